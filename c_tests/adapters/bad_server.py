"""A server that misbehaves as its URL says: /BEHAVIOUR/FILE?WHAT_TELLS_TESTS_APART, over a directory of files.

    bad_server.py ROOT LOG CERTIFICATE PORTS     writes its two ports, of HTTP and of HTTPS, to the file PORTS

Where a behaviour says nothing else it is a good server of ranges: ETag from the time of change, If-Match, If-Unmodified-Since.
"""
import collections
import email.utils
import http.server
import os
import re
import socket
import ssl
import struct
import sys
import threading
import time

root, log_path, certificate_path, ports_path = sys.argv[1:]
seen = collections.Counter()  # requests of each method and URL
lock = threading.Lock()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        self.behaviour, name = self.path.split("?")[0].lstrip("/").split("/", 1)
        with lock:
            seen[self.command, self.path] += 1
            self.count = seen[self.command, self.path]
            with open(log_path, "a") as log:
                log.write(f"{self.command} {self.path} {self.headers.get('Range', '-')} {self.headers.get('X-Signed', '-')}\n")
        if self.command == "HEAD" and self.behaviour in ("headless", "no_total", "weird"):
            return self.refuse(405)
        if self.behaviour == "busy" and self.command == "GET" and self.count <= 2:
            return self.refuse(503)
        if self.behaviour == "dead":
            return self.refuse(503)
        if self.behaviour == "later" and self.command == "GET" and self.count == 1:
            return self.refuse(429, {"Retry-After": "1"})
        if self.behaviour == "much_later" and self.command == "GET":
            return self.refuse(429, {"Retry-After": "3600"})
        if self.behaviour == "signed" and self.headers.get("X-Signed") is None:
            return self.refuse(403)
        self.serve(name)

    def refuse(self, status, headers={}):
        body = b"" if self.command == "HEAD" else b"no\n" * 100
        self.send_response(status)
        for header in headers.items():
            self.send_header(*header)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def tags(self, status):
        changed = self.behaviour == "turn" and self.command == "GET" and self.count > 1
        etag = f'"{int(status.st_mtime):x}-{status.st_size:x}{"-new" if changed else ""}"'
        date = email.utils.formatdate(status.st_mtime, usegmt=True)
        tags = {"ETag": etag, "Last-Modified": date}
        if self.behaviour in ("dated", "undated"):
            del tags["ETag"]
        if self.behaviour == "weak":
            tags["ETag"] = "W/" + etag
        if self.behaviour == "undated":
            del tags["Last-Modified"]
        return tags

    def precondition_fails(self, tags):
        if self.behaviour in ("careless", "weak"):
            return False
        match, since = self.headers.get("If-Match"), self.headers.get("If-Unmodified-Since")
        return (match is not None and match != tags.get("ETag")) or (since is not None and since != tags.get("Last-Modified"))

    def serve(self, name):
        try:
            file = open(os.path.join(root, name), "rb")
        except FileNotFoundError:
            return self.refuse(404)
        with file:
            status = os.fstat(file.fileno())
            tags = self.tags(status)
            if self.precondition_fails(tags):
                return self.refuse(412)
            wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if self.command == "HEAD" or not wanted or self.behaviour == "whole":
                return self.send(200, tags, file, 0, status.st_size)
            first, last = int(wanted[1]), min(int(wanted[2]), status.st_size - 1)
            if first >= status.st_size:
                return self.refuse(416, {"Content-Range": f"bytes */{status.st_size}"})
            if self.behaviour == "stingy":
                last = min(last, first + 999)
            total = "*" if self.behaviour == "no_total" else status.st_size
            told = first + 1 if self.behaviour == "wrong_range" else first
            tags["Content-Range"] = f"bytes {told}-{last}/{total}"
            self.send(206, tags, file, first, last + 1 - first)

    def send(self, status, headers, file, offset, length):
        self.send_response(status)
        for header in headers.items():
            self.send_header(*header)
        if self.behaviour == "gzip" and self.command == "GET" or self.behaviour == "gzip_head":
            self.send_header("Content-Encoding", "gzip")
        unannounced = self.command == "GET" and self.behaviour in ("long", "short")
        if unannounced:
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command == "HEAD":
            return
        file.seek(offset)
        self.send_body(file.read(length))

    def send_body(self, body):
        half = body[: len(body) // 2]
        if self.behaviour == "long":
            self.wfile.write(body)
            self.wfile.flush()
            time.sleep(0.02)  # what is too much comes by itself
            body = b"more"
        elif self.behaviour == "short" and self.count == 1:
            body = half
        elif self.behaviour in ("reset", "turn") and self.count % 2 == 1 or self.behaviour == "always_reset":
            self.wfile.write(half)
            self.wfile.flush()
            time.sleep(0.05)  # a reset overtakes what was not read yet
            return self.reset()
        elif self.behaviour == "stall" and self.count == 1:
            self.wfile.write(half)
            self.wfile.flush()
            self.connection.settimeout(30)
            self.connection.recv(1)  # until the client has had enough
            self.close_connection = True
            return
        self.wfile.write(body)
        self.wfile.flush()

    def reset(self):
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        os.close(self.connection.detach())  # now, whatever else holds the socket


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def shutdown_request(self, request):
        try:
            super().shutdown_request(request)
        except OSError:
            pass  # reset already

    def handle_error(self, request, address):
        pass  # the client has gone


plain, secure = Server(("127.0.0.1", 0), Handler), Server(("127.0.0.1", 0), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate_path)
secure.socket = context.wrap_socket(secure.socket, server_side=True)
threading.Thread(target=secure.serve_forever, daemon=True).start()
with open(ports_path + ".new", "w") as ports:
    ports.write(f"{plain.server_address[1]} {secure.server_address[1]}\n")
os.rename(ports_path + ".new", ports_path)
plain.serve_forever()
