"""One contender of a benchmark in Python, by the protocol of side.c: reads "prepare", "run" or "check" on stdin and answers each with a
line of JSON. It makes the same list of reads."""

import http.client
import io
import json
import mmap
import os
import random
import shutil
import struct
import sys
import time
import urllib.parse
import zipfile

P = {"mode": "warm", "pattern": "random", "seed": "1", "count": "1", "op": "4096", "processes": "1", "delay_us": "0", "url": "", "page": "0"}
P.update(argument.split("=", 1) for argument in sys.argv[1:])
SIZE, OP, COUNT, SEED, PAGE = (int(P[key]) for key in ("size", "op", "count", "seed", "page"))
DELAY, PROCESSES, COLD = int(P["delay_us"]) / 1e6, int(P["processes"]), P["mode"] == "cold"

# Requests and bytes of each process, in memory that forked children share.
counts = mmap.mmap(-1, 16 * 64)
number = 0


def count(n):
    requests, total = struct.unpack_from("QQ", counts, 16 * number)
    struct.pack_into("QQ", counts, 16 * number, requests + 1, total + n)


class Far(io.RawIOBase):
    """The far file: a request sleeps, then reads the local file."""

    def __init__(self):
        self.fd, self.position = os.open(P["file"], os.O_RDONLY), 0

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=0):
        self.position = offset + (0, self.position, SIZE)[whence]
        return self.position

    def tell(self):
        return self.position

    def pread(self, size, offset):
        if DELAY:
            time.sleep(DELAY)
        data = os.pread(self.fd, size, offset)
        count(len(data))
        return data

    def read(self, size=-1):
        left = max(0, SIZE - self.position)
        data = self.at(left if size < 0 else min(size, left), self.position)
        self.position += len(data)
        return data

    def readinto(self, buffer):
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def at(self, size, offset):
        return self.pread(size, offset) if size else b""

    def close(self):
        if not self.closed:
            os.close(self.fd)
        super().close()


class FarHttp(Far):
    """The same over HTTP, one kept-alive connection in each process."""

    def __init__(self):
        super().__init__()
        self.url, self.connection, self.owner = urllib.parse.urlsplit(P["url"]), None, None

    def pread(self, size, offset):
        if self.owner != os.getpid():
            self.connection, self.owner = http.client.HTTPConnection(self.url.hostname, self.url.port), os.getpid()
        self.connection.request("GET", self.url.path, headers={"Range": f"bytes={offset}-{min(offset + size, SIZE) - 1}"})
        return self.connection.getresponse().read()


def far():
    return FarHttp() if P["url"] else Far()


# ---- the contenders: open(), then pread_into(buffer, offset) and file(), a file object ----


class Plain:
    """The local file, by os.preadv; written as a near copy is, so that the kernel has it in pages as large."""

    def open(self):
        self.path = os.path.join(P["dir"], "local")
        with open(P["file"], "rb") as far_file, open(self.path, "wb") as local:
            shutil.copyfileobj(far_file, local, 1 << 20)
        self.fd = os.open(self.path, os.O_RDONLY)

    def loop(self, buffer, offsets):
        preadv, fd, buffers = os.preadv, self.fd, [buffer]
        for offset in offsets:
            preadv(fd, buffers, offset)

    def file(self):
        return open(self.path, "rb", buffering=0)

    def close(self):
        os.close(self.fd)


class Wrapped:
    """What has a file object."""

    def loop(self, buffer, offsets):
        seek, readinto = self.at.seek, self.at.readinto
        for offset in offsets:
            seek(offset)
            readinto(buffer)

    def file(self):
        return self.at

    def close(self):
        self.at.close()


class Uncached(Wrapped):
    def open(self):
        self.at = far()


class Nearfile(Wrapped):
    flags: dict = {}

    def open(self):
        import nearfile

        self.cache = nearfile.Cache(P["dir"], page_size=PAGE)
        source = far()
        self.at = self.cache.open(lambda offset, size: source.pread(size, offset), key="far", version="1", size=SIZE, fork_safe=True,
                                  **self.flags)

    def loop(self, buffer, offsets):
        pread_into = self.at.pread_into
        for offset in offsets:
            pread_into(buffer, offset)

    def close(self):
        self.at.close()
        self.cache.close()


class NearfileMap(Nearfile):
    flags = {"map": True}


class Pfio(Wrapped):
    wrapper = "CachedWrapper"

    def open(self):
        from pfio.cache import sparse_file

        self.at = getattr(sparse_file, self.wrapper)(far(), SIZE, cachedir=P["dir"], pagesize=PAGE or 1 << 20, close_on_close=True)


class PfioMP(Pfio):
    wrapper = "MPCachedWrapper"

    def close(self):
        names = self.at.local_indexfile, self.at.local_cachefile
        self.at.close()
        for name in names:
            os.unlink(name)


class Fsspec(Wrapped):
    def open(self):
        import fsspec.implementations.cached as cached
        from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

        class FarFile(AbstractBufferedFile):
            def _fetch_range(self, start, end):
                return self.fs.source.at(end - start, start)

        class FarSystem(AbstractFileSystem):
            protocol, cachable = "far", False

            def __init__(self):
                super().__init__()
                self.source = far()

            def info(self, path, **_):
                return {"name": path, "size": SIZE, "type": "file"}

            def _open(self, path, mode="rb", block_size=None, cache_options=None, **kwargs):
                return FarFile(self, path, mode, block_size=block_size, cache_type="none", size=SIZE)

            def cat_ranges(self, paths, starts, ends, **_):
                return [self.source.at(end - start, start) for start, end in zip(starts, ends)]

        system = cached.CachingFileSystem(fs=FarSystem(), cache_storage=P["dir"], skip_instance_cache=True)
        self.at = system.open("far", block_size=PAGE or 1 << 20)

    def close(self):
        self.at.close()


# ---- the work ----


class Random:
    def __init__(self, state):
        self.state = state

    def next(self):
        self.state ^= self.state << 13 & (1 << 64) - 1
        self.state ^= self.state >> 7
        self.state ^= self.state << 17 & (1 << 64) - 1
        return self.state


def offsets_of(worker):
    places, random_numbers = SIZE // OP, Random(SEED + worker)
    if P["pattern"] == "random":
        return [random_numbers.next() % places * OP for _ in range(COUNT)]
    return [i % places * OP for i in range(COUNT)]


def read_zip(file):
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        if P["pattern"] == "zip":
            random.Random(SEED).shuffle(names)
        for name in names:
            archive.read(name)


def open_many(contender):
    for _ in range(COUNT):
        contender.open()


def work(contender, offsets):
    if P["pattern"].startswith("zip"):
        read_zip(contender.file())
    elif P["pattern"] == "stream":
        read_into = contender.file().readinto
        buffer = bytearray(OP)
        while read_into(buffer) == OP:
            pass
    elif P["pattern"] != "open":
        contender.loop(bytearray(OP), offsets)


def run_children(contender):
    """Forked children of one open contender, each reading the list."""
    global number
    contender.open()
    children = []
    for worker in range(PROCESSES):
        child = os.fork()
        if child == 0:
            number = worker + 1
            work(contender, offsets_of(worker))
            os._exit(0)
        children.append(child)
    if any(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children):
        raise RuntimeError("a child failed")


def run(contender, offsets):
    start = time.perf_counter_ns()
    if PROCESSES > 1:
        run_children(contender)
    else:
        if COLD:
            contender.open()
        work(contender, offsets)
    ns = time.perf_counter_ns() - start
    if COLD:
        contender.close()
    totals = [struct.unpack_from("QQ", counts, 16 * slot) for slot in range(64)]
    return {"ns": ns, "count": COUNT, "requests": sum(t[0] for t in totals), "bytes": sum(t[1] for t in totals), "extra": 0}


def check(contender, offsets):
    """Every byte of a few reads is the far file's."""
    if COLD:
        contender.open()
    buffer, fd = bytearray(OP), os.open(P["file"], os.O_RDONLY)
    for offset in offsets[: 3 if COLD else 200]:
        contender.loop(buffer, [offset])
        if buffer != os.pread(fd, OP, offset):
            raise RuntimeError(f"wrong bytes at {offset}")
    os.close(fd)
    if COLD:
        contender.close()
    return {"checked": True}


def warm_up(contender):
    contender.open()
    if P["pattern"] in ("random", "sequential"):
        contender.loop(bytearray(1 << 20), range(0, SIZE - (1 << 20) + 1, 1 << 20))
        work(contender, offsets_of(0))
    if P["pattern"] == "zip":
        read_zip(contender.file())


def serve(contender):
    offsets = offsets_of(0) if P["pattern"] in ("random", "sequential") else []
    if not COLD:
        warm_up(contender)
    print('{"ready": true}', flush=True)
    for line in sys.stdin:
        if line == "prepare\n":
            if COLD:
                shutil.rmtree(P["dir"], ignore_errors=True)
                os.makedirs(P["dir"], 0o700)
            counts[:] = bytes(len(counts))
            answer = {"prepared": True}
        else:
            if line == "check\n":
                answer = check(contender, offsets) if offsets and PROCESSES == 1 else {"checked": False}
            else:
                answer = run(contender, offsets)
        print(json.dumps(answer), flush=True)


CONTENDERS = {"os.preadv": Plain, "uncached": Uncached, "nearfile": Nearfile, "nearfile-map": NearfileMap, "pfio": Pfio, "pfio-mp": PfioMP,
              "fsspec": Fsspec}

try:
    os.makedirs(P["dir"], 0o700, exist_ok=True)
    serve(CONTENDERS[P["contender"]]())
except Exception as error:  # becomes the contender's column
    print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
    raise
