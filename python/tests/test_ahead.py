"""What threads of the library fetch beside the one that reads: Python sources are called there, their exceptions come out of the read that
needs the bytes, and the interpreter ends in peace meanwhile."""

import os
import pathlib
import subprocess
import sys
import threading
import time

import nearfile
import pytest
from common import Logged, noise, run_child, run_children, say, wait_until

PAGE, PAGES = 4096, 200
DATA = noise(PAGE * PAGES)


class Slow:
    """A source that takes its time, and writes down the thread and the pages of each read."""

    def __init__(self, delay=0.02):
        self.delay, self.reads, self.broken = delay, [], set()

    def open(self):
        return SlowConnection(self)


class SlowConnection:
    def __init__(self, source):
        self.source = source

    def read_at(self, offset, size):
        pages = range(offset // PAGE, (offset + size - 1) // PAGE + 1)
        self.source.reads.append((threading.get_ident(), pages))
        time.sleep(self.source.delay)
        if self.source.broken & {*pages}:
            raise ConnectionResetError(f"pages {pages} are broken")
        return DATA[offset : offset + size]


@pytest.fixture
def slow():
    return Slow()


def fetched(slow):
    return sorted(page for _, pages in slow.reads for page in pages)


def test_sequential_reads_are_read_ahead(cache, slow):
    with cache.open(slow, size=len(DATA)) as file:
        for page in range(PAGES):
            assert file.pread(PAGE, page * PAGE) == DATA[page * PAGE : (page + 1) * PAGE]
    assert fetched(slow) == [*range(PAGES)]
    assert {thread for thread, _ in slow.reads} > {threading.get_ident()} and len(slow.reads) < PAGES


def test_without_readahead_the_source_is_called_on_the_thread_that_reads(cache, slow):
    slow.delay = 0.002
    with cache.open(slow, size=len(DATA), readahead=False) as file:
        for page in range(PAGES):
            file.pread(PAGE, page * PAGE)
        with pytest.raises(NotImplementedError):
            file.prefetch(wait=False)
    assert {thread for thread, _ in slow.reads} == {threading.get_ident()} and len(slow.reads) == PAGES


def test_one_worker(tmp_path, slow):
    def read():
        with nearfile.Cache(tmp_path / "few", page_size=PAGE, workers=1) as cache, cache.open(slow, size=len(DATA)) as file:
            for page in range(PAGES):
                file.pread(PAGE, page * PAGE)
        return len({thread for thread, _ in slow.reads}) == 2

    run_child(read)  # which has none of the workers that this process may have
    with pytest.raises(ValueError):
        nearfile.Cache(tmp_path / "many", workers=1 << 20)


def test_a_prefetch_that_is_not_waited_for(cache, slow):
    slow.delay = 0.2
    with cache.open(slow, key="k", size=len(DATA)) as file:
        began = time.monotonic()
        file.prefetch(0, 100 * PAGE, wait=False)
        assert file.stats().cached_pages == 0 and time.monotonic() - began < 20
        wait_until(lambda: file.stats().cached_pages == 100)
        before = len(slow.reads)
        assert file.pread(100 * PAGE, 0) == DATA[: 100 * PAGE] and len(slow.reads) == before
    assert threading.get_ident() not in {thread for thread, _ in slow.reads}


@pytest.mark.parametrize("how", ["ahead", "prefetched"])
def test_what_a_source_raises_there_comes_out_of_the_read_that_needs_it(cache, slow, how, capfd):
    slow.broken = {150}
    with cache.open(slow, size=len(DATA)) as file:
        if how == "prefetched":
            file.prefetch(wait=False)
        for page in range(150):
            assert file.pread(PAGE, page * PAGE) == DATA[page * PAGE : (page + 1) * PAGE]
        for _ in range(2):
            with pytest.raises(ConnectionResetError, match="are broken"):
                file.pread(PAGE, 150 * PAGE)
        slow.broken = set()
        assert file.read() == DATA
    # What no read needed is not kept for longer than the file.
    assert not nearfile._source._raised and not nearfile._source._raised_aside
    assert capfd.readouterr() == ("", "")


def test_forked_children_while_threads_fetch(tmp_path):
    (tmp_path / "far").write_bytes(DATA)
    source = Logged(tmp_path / "far", tmp_path / "log", 0.05)
    with nearfile.Cache(tmp_path / "small", page_size=PAGE, max_fetch_bytes=10 * PAGE) as small:
        with small.open(source, key="k", version="1") as file:
            file.prefetch(wait=False)
            wait_until(source.reads)
            run_children([lambda: file.pread(len(DATA), 0) == DATA] * 4)
            assert file.read() == DATA
    assert source.pages(PAGE) == [*range(PAGES)]
    readers = {pid for pid, _, _ in source.reads()}
    say(f"4 children forked while the library's threads fetch: {PAGES} pages, each read once, by {len(readers)} processes")


def test_a_batch_of_which_a_thread_fails(cache, slow):
    slow.broken = {50, 150}
    with cache.open(slow, size=len(DATA), max_connections=4) as file:
        for wanted in ([10, 50], [10, 50, 100, 150], [150, 50, 199, 3, 77, 120]):
            with pytest.raises(ConnectionResetError, match="are broken"):
                file.read_ranges([(page * PAGE, PAGE) for page in wanted])
        assert {thread for thread, _ in slow.reads} > {threading.get_ident()}
    assert not nearfile._source._raised and not nearfile._source._raised_aside


def test_a_close_as_a_read_fails(cache, slow, monkeypatch):
    slow.broken, last_error = {0}, nearfile._library.last_error
    file = cache.open(slow, size=len(DATA))
    monkeypatch.setattr(nearfile._library, "last_error", lambda filled: (file.close(), last_error(filled))[1])
    with pytest.raises(ConnectionResetError, match="are broken"):
        file.pread(1, 0)
    assert file.closed


@pytest.mark.parametrize("end", ["falls off the end", "sys.exit(0)", "os.kill(os.getpid(), signal.SIGINT)", "file.close()", "del file"])
def test_the_interpreter_ends_meanwhile(tmp_path, end):
    code = f"""
import os, signal, sys, nearfile
sys.path.insert(0, {os.path.dirname(__file__)!r})
from test_ahead import *
slow = Slow(0.3)
file = nearfile.Cache({str(tmp_path)!r}, page_size=PAGE, max_fetch_bytes=PAGE).open(slow, key="k", size=len(DATA))
file.prefetch(wait=False)
wait_until(lambda: slow.reads)
{end if "(" in end or "del" in end else ""}
"""
    env = {**os.environ, "PYTHONPATH": str(pathlib.Path(nearfile.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    if "SIGINT" in end:
        assert done.returncode == -2 and done.stderr.rstrip().endswith("KeyboardInterrupt")
    else:
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
