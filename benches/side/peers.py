"""What a run needs beside nearfile: the peers and their versions, the library and the programs built, the far server, the mounts. A peer
that is not there is a sentence, never a failure of the run."""

import glob
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = ROOT / "benches/side"
WORK = ROOT / "target/bench"
PYTHON = WORK / "venv/bin/python"
# Where Debian and rustup put programs that a user's PATH may lack.
os.environ["PATH"] += f":/usr/sbin:/sbin:{os.environ.get('CARGO_HOME', os.path.expanduser('~/.cargo'))}/bin"
os.environ["no_proxy"] = "127.0.0.1"

APT = {"rclone": "peer_rclone", "nbdkit": "peer_nbdkit", "FFmpeg": "peer_ffmpeg", "GDAL": "peer_gdal"}
PIP = ("pfio", "fsspec", "matplotlib")
FOYER = WORK / "foyer/release/foyer_contender"
LIBRARIES = {"FFmpeg": "libavformat", "GDAL": "libgdal", "nbdkit": "libnbd"}


class Missing(Exception):
    """A peer, or part of one, is not here: the sentence for its column."""


def output(*command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


# ---- what is installed ----


class Peers:
    """Which peers are here: `versions` of those that are, `missing` with the reason of those that are not."""

    def __init__(self, install):
        self.versions, self.missing, self.libraries = {}, {}, {}
        self._make_venv()
        for name in PIP:
            self._try(name, lambda name=name: self._pip(name))
        for name, word in APT.items():
            self._try(name, lambda name=name, word=word: self._debian(name, word, install))
        self._try("foyer", lambda: self._foyer(install))
        self.versions["cp"] = re.search(r"[\d.]+", output("cp", "--version")).group()
        for name, why in self.missing.items():
            say(f"without {name}: {why}")

    def require(self, name):
        if name in self.missing:
            raise Missing(self.missing[name])

    def _try(self, name, install):
        try:
            self.versions[name] = install()
        except (Missing, OSError, subprocess.CalledProcessError) as error:
            self.missing[name] = f"not installed: {getattr(error, 'output', None) or error}".strip().splitlines()[-1]

    def _make_venv(self):
        if not PYTHON.exists():
            subprocess.run([sys.executable, "-m", "venv", WORK / "venv"], check=True)

    def _pip(self, name):
        wanted = next(line.strip() for line in (HERE / "requirements.txt").read_text().splitlines() if line.startswith(name + "=="))
        version = wanted.partition("==")[2]
        there = f"import importlib.metadata as m; assert m.version('{name}') == '{version}'"
        if subprocess.run([PYTHON, "-c", there], stderr=subprocess.DEVNULL).returncode != 0:
            say(f"pip install {wanted}")
            output(PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wanted)
        return version

    def _debian(self, name, word, install):
        if install:
            output(ROOT / "scripts/setup", word)
        if name in LIBRARIES:
            found = re.findall(rf"^\s*{LIBRARIES[name]}\.so\.\S+ .*=> (\S+)", output("ldconfig", "-p"), re.M)
            if not found:
                raise Missing(f"no {LIBRARIES[name]} (--quick installs no peers)")
            self.libraries[name] = found[0]
        if name == "FFmpeg":
            return "libavformat " + re.search(r"so\.([\d.]+)", os.path.realpath(self.libraries[name])).group(1)
        program = {"GDAL": "gdalinfo"}.get(name, name)
        if shutil.which(program) is None:
            raise Missing(f"no {program} (--quick installs no peers)")
        return re.search(r"\d+\.[\d.]+\d", output(program, "version" if name == "rclone" else "--version")).group()


    def _foyer(self, install):
        if install:
            output("cargo", "build", "--locked", "--release", "--quiet", "--manifest-path", HERE / "foyer/Cargo.toml", "--target-dir", WORK / "foyer")
        if not FOYER.exists():
            raise Missing("not built (--quick installs no peers)")
        return re.search(r'name = "foyer"\nversion = "([^"]+)"', (HERE / "foyer/Cargo.lock").read_text()).group(1)


# ---- what is built ----


def build():
    """The release library as it is now, copied so that a later build does not disturb a run; the contenders in C over it."""
    output_dir = WORK / "lib"
    output_dir.mkdir(parents=True, exist_ok=True)
    # With --lib, no bench or example of the same crate is built as a library, too.
    subprocess.run(["cargo", "rustc", "--locked", "--release", "--quiet", "--lib", "--crate-type", "cdylib"], cwd=ROOT, check=True)
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    shutil.copy2(target / "release/libnearfile.so", output_dir / "libnearfile.so.0")
    link = output_dir / "libnearfile.so"
    link.unlink(missing_ok=True)
    link.symlink_to("libnearfile.so.0")
    subprocess.run(["gcc", "-std=c11", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-pedantic", "-isystem", ROOT / "include", *sorted(HERE.glob("*.c")),
                    "-o", WORK / "side", f"-L{output_dir}", f"-Wl,-rpath,{output_dir}", "-lnearfile", "-lcurl", "-lzip", "-lpthread",
                    "-ldl"], check=True)


# ---- processes that a contender needs ----


def start(command, **more):
    """A process that is in a group of its own, and dies with this one."""
    return subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *map(str, command)], start_new_session=True, stdin=subprocess.DEVNULL,
                            stdout=more.pop("stdout", subprocess.DEVNULL), stderr=more.pop("stderr", subprocess.DEVNULL), **more)


def stop(process):
    if process is None or process.poll() is not None:
        return
    process.send_signal(signal.SIGINT)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_for(what, ready, process, seconds=10):
    deadline = time.monotonic() + seconds
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise Missing(f"{what} does not start" + (f" (it ended with {process.returncode})" if process.returncode else ""))
        time.sleep(0.01)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Server:
    """An nginx of ours over the data, which sleeps before it answers below /MILLISECONDS/, and whose log counts requests and bytes."""

    def __init__(self, data):
        self.dir, self.port = WORK / "nginx", free_port()
        shutil.rmtree(self.dir, ignore_errors=True)
        self.dir.mkdir(parents=True)
        self.log = self.dir / "access.log"
        module = next(iter(glob.glob("/usr/lib/nginx/modules/ngx_http_echo_module.so")))
        paths = "\n".join(f"{kind}_temp_path {self.dir}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        places = "\n".join(f"""
          location /{ms}/ {{ alias {data}/; autoindex on; auth_request /wait{ms}; access_log {self.log} bytes; }}
          location = /wait{ms} {{ internal; {f"echo_sleep {ms / 1000};" if ms else ""} echo ""; }}""" for ms in (0, 5))
        (self.dir / "nginx.conf").write_text(f"""
          {"user root;" if os.geteuid() == 0 else ""}
          load_module {module};
          daemon off; master_process off; pid {self.dir}/nginx.pid; error_log {self.dir}/error.log;
          events {{ worker_connections 1024; }}
          http {{ {paths}
            log_format bytes '$request_method $body_bytes_sent'; access_log off; keepalive_requests 100000000;
            sendfile on;
            server {{ listen 127.0.0.1:{self.port}; {places} }} }}""")
        self.process = start(["nginx", "-p", self.dir, "-e", self.dir / "error.log", "-c", self.dir / "nginx.conf"])
        wait_for("nginx", lambda: (self.dir / "nginx.pid").exists() and (self.dir / "nginx.pid").stat().st_size > 0, self.process)

    def url(self, ms, name):
        return f"http://127.0.0.1:{self.port}/{ms}/{name}"

    def mark(self):
        """Where the log ends: what stands before it is no more counted."""
        return self.log.stat().st_size if self.log.exists() else 0

    def counted(self, mark):
        """Requests and bytes since the mark."""
        time.sleep(0.05)  # a request is logged after its last byte is sent
        with open(self.log) as log:
            log.seek(mark)
            lines = [line.split() for line in log if line.endswith("\n")]
        return sum(line[0] == "GET" for line in lines), sum(int(line[1]) for line in lines)

    def stop(self):
        stop(self.process)


def sweep():
    """Takes away the mounts of a run that was killed."""
    for line in open("/proc/mounts"):
        place = line.split()[1]
        if place.startswith(f"{WORK}/"):
            subprocess.run(["umount", "-l", place], check=False)


class Rclone:
    """An rclone mount of the data, or of the server's, with its full cache in a directory."""

    def __init__(self, dir, source, name):
        self.mount, self.process = pathlib.Path(f"{dir}.mount"), None
        self.mount.mkdir(parents=True, exist_ok=True)
        remote = source if source.startswith("/") else f":http,url='{source}':"
        self.process = start(["rclone", "mount", remote, self.mount, "--vfs-cache-mode", "full", "--cache-dir", dir, "--read-only",
                              "--config", "/dev/null"])
        wait_for("rclone mount", lambda: (self.mount / name).exists(), self.process)
        self.path = self.mount / name

    def stop(self):
        subprocess.run(["umount", self.mount], stderr=subprocess.DEVNULL)
        stop(self.process)
        shutil.rmtree(self.mount, ignore_errors=True)


class Nbdkit:
    """nbdkit's cache filter over the local file, over a delay, or over the server."""

    def __init__(self, dir, source, page):
        self.socket = pathlib.Path(f"{dir}.socket")
        self.socket.unlink(missing_ok=True)
        pathlib.Path(dir).mkdir(parents=True, exist_ok=True)
        plugin = ["file", source] if source.startswith("/") else ["curl", source]
        self.process = start(["nbdkit", "-f", "-r", "-U", self.socket, "--filter=cache", *plugin, "cache-on-read=true",
                              f"cache-min-block-size={page}"], env={**os.environ, "TMPDIR": str(dir)})
        wait_for("nbdkit", self.listens, self.process)

    def listens(self):
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(str(self.socket)) == 0

    def stop(self):
        stop(self.process)
