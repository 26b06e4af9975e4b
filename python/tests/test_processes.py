"""Files that are used in other processes: inherited by fork, and pickled into spawned ones."""

import functools
import io
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
import threading
import time
import zipfile

import nearfile
import pytest
from common import Logged, noise, run_child, run_children

PAGE = 4096


def make_zip(path, members=200):
    rng = random.Random(3)
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(members):
            archive.writestr(f"member {number}", rng.randbytes(rng.randrange(20_000)), zipfile.ZIP_STORED)


def read_members(archive, seed):
    names = archive.namelist()
    random.Random(seed).shuffle(names)
    return all(archive.read(name) is not None for name in names)  # ZipFile compares each CRC


def test_eight_forked_workers_read_one_zip(cache, tmp_path):
    """One handle and one ZipFile, inherited: over all of them each page is fetched once."""
    make_zip(tmp_path / "zip")
    fetchers = set()
    for round_ in range(5):
        source = Logged(tmp_path / "zip", tmp_path / f"log {round_}", delay=0.0005)
        with cache.open(source) as file, zipfile.ZipFile(file) as archive:
            run_children([functools.partial(read_members, archive, seed) for seed in range(8)])
            assert source.pages(PAGE) == [*range((file.size + PAGE - 1) // PAGE)]
            fetchers |= {pid for pid, _, _ in source.reads()}
            assert file.stats().misses < len(source.reads())
            assert read_members(archive, 9)
    assert len(fetchers) > 6


def spawned(file, seed):
    with zipfile.ZipFile(file) as archive:
        return read_members(archive, seed) and file.tell() >= 0


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_workers_of_a_pool_get_the_file_pickled(cache, tmp_path, method):
    make_zip(tmp_path / "zip")
    source = Logged(tmp_path / "zip", tmp_path / "log", delay=0.0005)
    with cache.open(source, key="far.zip") as file, multiprocessing.get_context(method).Pool(3) as pool:
        assert pool.starmap(spawned, [(file, seed) for seed in range(6)]) == [True] * 6
        assert source.pages(PAGE) == [*range((file.size + PAGE - 1) // PAGE)]


def test_what_a_pickled_file_keeps(cache, tmp_path):
    data = noise(50_000)
    path = tmp_path / "data"
    path.write_bytes(data)
    opened = open(path, "rb")
    sources = [
        (path, {}), (str(path), {}), (opened, {}), (io.BytesIO(data), {"reopen": functools.partial(open, path, "rb")}),
        (Logged(path, tmp_path / "log"), {}), (functools.partial(read_at, str(path)), {"size": len(data)}),
    ]  # fmt: skip
    for source, options in sources:
        for place in ({"key": "k"}, {}, {"data_path": tmp_path / "d", "index_path": tmp_path / "i"}):
            with cache.open(source, version="v", page_size=1000, verify_always=True, **place, **options) as file:
                file.seek(40_000)
                with pickle.loads(pickle.dumps(file)) as other:
                    assert (other.tell(), other.size, other.page_size) == (40_000, len(data), 1000)
                    assert other.read() == data[40_000:]
                    assert (other.data_path == file.data_path) == bool(place)
    opened.close()
    again = pickle.loads(pickle.dumps(cache))
    assert again.stats().cached_bytes == cache.stats().cached_bytes > 0


def read_at(path, offset, size):
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(size)


def test_what_cannot_be_pickled_says_what_to_pass(cache, tmp_path):
    path = tmp_path / "data"
    path.write_bytes(b"1234567890")
    gone = open(path, "rb")
    os.unlink(path)
    with open(__file__, "rb") as lock:
        for source in (io.BytesIO(b"1234567890"), gone, lambda offset, size: b"x" * size, functools.partial(read_at, lock), threading.Lock):
            if source is threading.Lock:
                options = {"reopen": lambda: io.BytesIO(b"1234567890")}
            else:
                options = {}
            with cache.open(source, size=10, **options) as file, pytest.raises(TypeError, match="pass reopen="):
                pickle.dumps(file)
    gone.close()


def test_a_forked_child_opens_connections_of_its_own(cache, tmp_path):
    data = noise(50_000)
    path = tmp_path / "data"
    path.write_bytes(data)
    logged = Logged(path, tmp_path / "log")  # its connections refuse to work, and to close, in another process
    opened = open(path, "rb")
    for source, options in (
        (logged, {}), (path, {}), (opened, {}), (None, {"reopen": functools.partial(open, path, "rb")}),
        (lambda offset, size: data[offset : offset + size], {"fork_safe": True, "size": len(data)}),
    ):  # fmt: skip
        file = cache.open(source, **options)
        assert file.pread(10, 0) == data[:10]

        def child():
            if file.pread(100, 20_000) != data[20_000:20_100]:
                return False
            file.seek(30_000)
            grandchild = functools.partial(lambda: file.tell() == 30_000 and file.read() == data[30_000:])
            run_child(grandchild)
            file.close()
            return True

        run_child(child)
        assert file.tell() == 0
        before = len(logged.reads())
        assert file.read() == data
        assert source is not logged or len(logged.reads()) > before
        file.close()
    opened.close()


def test_a_child_of_a_source_that_cannot_be_opened_again(cache):
    data = noise(50_000)
    for source in (io.BytesIO(data), lambda offset, size: data[offset : offset + size]):
        with cache.open(source, size=len(data)) as file:
            file.pread(10, 0)

            def child():
                hit = file.pread(10, 5) == data[5:15]
                try:
                    file.pread(10, 20_000)
                except nearfile.ForkedError as error:
                    return hit and "pass reopen=" in str(error) and file.pread(10, 5) == data[5:15]

            run_child(child)
            assert file.read() == data


def test_exceptions_in_children(cache, tmp_path):
    class Bad:
        size = 100

        def open(self):
            raise ConnectionRefusedError("nobody there")

    with cache.open(Bad()) as file:

        def child():
            try:
                file.read()
            except ConnectionRefusedError as error:
                return error.args == ("nobody there",)

        run_children([child] * 3)
        with pytest.raises(ConnectionRefusedError):
            file.read()


def test_fork_while_threads_are_inside(cache, tmp_path):
    """Threads that hit, miss and fetch, and a main thread that forks: every child reads what it wants."""
    data = noise(PAGE * 512)
    path = tmp_path / "data"
    path.write_bytes(data)
    stop = threading.Event()
    with cache.open(Logged(path, tmp_path / "log"), key="k") as file:

        def work(seed):
            rng = random.Random(seed)
            while not stop.is_set():
                at = rng.randrange(len(data) - 10_000)
                assert file.pread(10_000, at) == data[at : at + 10_000]
                if rng.random() < 0.3:
                    file.discard(at, 50_000)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()

        def child(seed):
            rng = random.Random(seed)
            for _ in range(20):
                at = rng.randrange(len(data) - 10_000)
                if file.pread(10_000, at) != data[at : at + 10_000]:
                    return False
            return True

        try:
            for round_ in range(25):
                run_children([functools.partial(child, 100 * round_ + number) for number in range(4)])
        finally:
            stop.set()
            for thread in threads:
                thread.join()


def test_a_child_that_ends_in_the_ordinary_way(cache, tmp_path):
    """Its atexit functions close what it inherited; the parent's file goes on."""
    path = tmp_path / "data"
    path.write_bytes(noise(50_000))
    script = f"""
import io, os, nearfile, sys
cache = nearfile.Cache({str(tmp_path / "c")!r}, page_size=4096)
class Source:
    size = 50_000
    def open(self): return self
    def read_at(self, offset, size): return open({str(path)!r}, "rb").read()[offset:offset + size]
    def close(self): print("closed", os.getpid() == parent, flush=True)
parent = os.getpid()
file = cache.open(Source(), key="k", close_source=True)
file.pread(1, 0)
if os.fork() == 0:
    file.pread(1, 9000)
    sys.exit()
os.wait()
print(len(file.read()))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment(), timeout=60)
    assert done.stderr == "" and done.returncode == 0
    assert done.stdout.splitlines() == ["closed False", "50000", "closed True", "closed True"]


def test_the_end_of_the_interpreter(tmp_path):
    """Files that are open at the end are closed while callbacks still run; what the last run read is there without a comparison."""
    script = f"""
import nearfile, sys, threading, time
cache = nearfile.Cache({str(tmp_path / "c")!r})
def read_at(offset, size):
    if "daemon" in sys.argv: time.sleep(60)
    return bytes(size)
class Source:
    size, read_at = 100_000, staticmethod(read_at)
    def close(self): print("closed", flush=True)
file = nearfile.open(Source(), cache=cache, key=sys.argv[1] or "k", close_source=True, trust_clean=True)
if "daemon" in sys.argv:
    threading.Thread(target=file.read, daemon=True).start()
    time.sleep(0.3)
elif "cycle" in sys.argv:
    file.me = file
    file.read()
    del file
else:
    print(len(file.read()), file.stats().source_reads, file.stats().pages_verified)
"""
    outputs = []
    for argument in ("", "", "cycle", "daemon"):
        done = subprocess.run([sys.executable, "-c", script, argument], capture_output=True, text=True, env=environment(), timeout=30)
        assert (done.stderr, done.returncode) == ("", 0), done
        outputs.append(done.stdout.split())
    assert outputs == [["100000", "1", "0", "closed"], ["100000", "0", "0", "closed"], ["closed"], []]


def environment():
    path = os.pathsep.join([os.path.dirname(os.path.dirname(os.path.abspath(nearfile.__file__))), *sys.path])
    return {**os.environ, "PYTHONPATH": path}


def test_a_library_that_is_not_there(tmp_path):
    for library, sentence in ((str(tmp_path / "nothing.so"), "set NEARFILE_LIBRARY"), ("libc.so.6", "no nearfile library")):
        done = subprocess.run(
            [sys.executable, "-c", "import nearfile"], capture_output=True, text=True, env={**environment(), "NEARFILE_LIBRARY": library}
        )
        assert done.returncode == 1 and "ImportError" in done.stderr and sentence in done.stderr


def test_killed_in_a_fetch(cache, tmp_path):
    """A worker that is killed inside its callback: the next one fetches the page, at once."""
    data = noise(50_000)
    path = tmp_path / "data"
    path.write_bytes(data)
    source = Logged(path, tmp_path / "log", delay=20)
    with cache.open(source) as file:
        pid = os.fork()
        if pid == 0:
            file.pread(10, 0)
            os._exit(1)
        while not os.path.exists(tmp_path / "log"):
            time.sleep(0.002)
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        source.delay = 0
        began = time.monotonic()
        assert file.pread(10, 0) == data[:10]
        assert time.monotonic() - began < 5
