"""What several tests use: sources that write down what is asked of them, and far servers."""

import contextlib
import http.client
import http.server
import os
import random
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse


said = []


def say(line):
    """A line for the end of the run: a figure that was seen."""
    said.append(line)


def noise(size, seed=1):
    return random.Random(seed).randbytes(size)


class Logged:
    """A source over a local file. Each read becomes a line of a log, which all processes share. Can be pickled."""

    def __init__(self, path, log, delay=0.0):
        self.path, self.log, self.delay = str(path), str(log), delay

    def open(self):
        return LoggedConnection(self)

    def reads(self):
        """(pid, offset, size) of each read."""
        if not os.path.exists(self.log):
            return []
        with open(self.log) as lines:
            return [tuple(map(int, line.split())) for line in lines]

    def pages(self, page_size):
        """The pages that were fetched, in order, as often as they were."""
        return sorted(
            page
            for _, offset, size in self.reads()
            for page in range(offset // page_size, (offset + size - 1) // page_size + 1)
        )


class LoggedConnection:
    def __init__(self, source):
        self.source, self.fd, self.pid = source, os.open(source.path, os.O_RDONLY), os.getpid()
        self.size = os.fstat(self.fd).st_size

    def read_at(self, offset, size):
        assert os.getpid() == self.pid, "a connection in a process that did not open it"
        log = os.open(self.source.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(log, f"{self.pid} {offset} {size}\n".encode())
        os.close(log)
        time.sleep(self.source.delay)
        return os.pread(self.fd, size, offset)

    def close(self):
        assert os.getpid() == self.pid
        os.close(self.fd)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def do_GET(self):
        path = os.path.join(self.server.root, os.path.basename(urllib.parse.urlsplit(self.path).path))
        size = os.path.getsize(path)
        first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups())
        last = min(last, size - 1)
        self.server.ranges.append((first, last))
        with open(path, "rb") as file:
            file.seek(first)
            body = file.read(last + 1 - first)
        self.send_response(206)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("ETag", '"1"')
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving(root):
    """A server of byte ranges of the files in a directory, on a free port; `.url` and `.ranges`."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.root, server.ranges, server.daemon_threads = str(root), [], True
        server.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class Http:
    """A file on such a server, one kept-alive connection for each of the library's. Can be pickled."""

    def __init__(self, url):
        self.url = url

    def open(self):
        return HttpConnection(urllib.parse.urlsplit(self.url))


class HttpConnection:
    def __init__(self, url):
        self.path, self.http = url.path, http.client.HTTPConnection(url.netloc, timeout=20)

    def _get(self, first, last):
        self.http.request("GET", self.path, headers={"Range": f"bytes={first}-{last}"})
        response = self.http.getresponse()
        body = response.read()
        assert response.status == 206, response.status
        return response, body

    def read_at(self, offset, size):
        return self._get(offset, offset + size - 1)[1]

    def size(self):
        return int(self._get(0, 0)[0].headers["Content-Range"].rpartition("/")[2])

    def close(self):
        self.http.close()


class Nginx:
    """An nginx of our own on a free port, over root/far, which logs each request, and dies with us."""

    def __init__(self, root):
        self.root, self.log = root, root / "access.log"
        for _ in range(3):
            with socket.create_server(("127.0.0.1", 0)) as free:
                self.port = free.getsockname()[1]  # another program may take it before nginx does: then the next
            (root / "nginx.conf").write_text(self.conf())
            command = ["setpriv", "--pdeathsig", "TERM", shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")]
            self.process = subprocess.Popen([*command, "-p", root, "-e", root / "error.log", "-c", root / "nginx.conf"])
            try:
                wait_until(lambda: (root / "nginx.pid").exists() or self.process.poll() is not None, 10)
            except AssertionError:
                pass
            if self.process.poll() is None and (root / "nginx.pid").exists():
                self.url = f"http://127.0.0.1:{self.port}"
                return
        raise SystemExit(f"nginx does not start: {(root / 'error.log').read_text()}")

    def conf(self):
        temps = "\n".join(f"  {kind}_temp_path {self.root}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        return f"""
daemon off;
master_process off;
pid {self.root}/nginx.pid;
events {{ worker_connections 256; }}
http {{
{temps}
  log_format asked '$request_method $uri $status $http_range';
  access_log {self.log} asked;
  keepalive_requests 1000000;
  autoindex on;
  server {{
    listen 127.0.0.1:{self.port};
    root {self.root}/far;
    location /whole/ {{ alias {self.root}/far/; max_ranges 0; }}
  }}
}}
"""

    def requests(self):
        """A line each: method, path, status, range."""
        # nginx writes the line of a request when its client may have its answer already, but before it takes up another request.
        with socket.create_connection(("127.0.0.1", self.port)) as last:
            last.sendall(b"GET /last HTTP/1.0\r\n\r\n")
            while last.recv(4096):
                pass
        return [line for line in self.log.read_text().splitlines() if not line.startswith("GET /last ")]

    def pages(self, page_size, name=""):
        """The pages that were asked for, of all files or one, as often as they were."""
        lines = [line for line in self.requests() if line.startswith(f"GET /{name}")]
        found = [re.search(r" 206 bytes=(\d+)-(\d+)$", line) for line in lines]
        assert all(found), lines
        return sorted(page for one in found for page in range(int(one[1]) // page_size, int(one[2]) // page_size + 1))

    def forget(self):
        os.truncate(self.log, 0)  # nginx appends

    def close(self):
        self.process.terminate()
        self.process.wait()


@contextlib.contextmanager
def s3_server():
    import moto.server as server_module

    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        yield "http://{}:{}".format(*server.get_host_and_port())
    finally:
        server.stop()


def data_bytes(path):
    """Bytes of a file that are not holes. (st_blocks also counts the blocks in which ext4 lists the parts of a file.)"""
    with open(path, "rb") as file:
        size, at, total = os.fstat(file.fileno()).st_size, 0, 0
        while at < size:
            try:
                start = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            total += at - start
        return total


def open_descriptors():
    return len(os.listdir("/proc/self/fd"))


def resident():
    with open("/proc/self/statm") as numbers:
        return int(numbers.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def wait_until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.002)


def run_child(function, seconds=60.0):
    """Runs a function in a forked child; its result must be true."""
    return run_children([function], seconds)


def run_children(functions, seconds=60.0):
    children = []
    for function in functions:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = 0 if function() else 2
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(pid)
    end, codes = time.monotonic() + seconds, {}
    while len(codes) < len(children):
        for pid in children:
            if pid not in codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[pid] = os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            for pid in set(children) - set(codes):
                os.kill(pid, 9)
                os.waitpid(pid, 0)
            raise AssertionError("a forked child hangs")
        time.sleep(0.002)
    assert set(codes.values()) == {0}, codes
