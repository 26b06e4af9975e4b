"""Filling, keeping, dropping, limits."""

import io
import os
import pickle
import random
import signal
import threading
import time

import nearfile
import numpy
import pytest
from common import Logged, data_bytes, noise, run_child, run_children

DATA = noise(100_000)
PAGE = 4096


def never(offset, size):
    raise AssertionError("the source is read again")


# ---- batches ----


def test_ranges_are_read_together(cache):
    asked = []

    def read_at(offset, size):
        asked.append((offset, size))
        return DATA[offset : offset + size]

    with cache.open(read_at, size=len(DATA)) as file:
        rng = random.Random(1)
        for _ in range(30):
            ranges = [(rng.randrange(len(DATA) + 100), rng.choice([0, 1, 100, 9000])) for _ in range(rng.randrange(12))]
            assert file.read_ranges(ranges) == [DATA[at : at + size] for at, size in ranges]
        assert file.read_ranges((numpy.int64(at), 5) for at in (0, 10)) == [DATA[:5], DATA[10:15]]
        assert file.read_ranges([(2**63, 5), (2**64 - 1, 10**18), (99_999, 2**62)]) == [b"", b"", DATA[-1:]]
        assert len({page for at, size in asked for page in range(at // PAGE, (at + size + PAGE - 1) // PAGE)}) == sum(
            (size + PAGE - 1) // PAGE for _, size in asked
        )
        assert file.tell() == 0
        for wrong in ([(-1, 1)], [(1, -1)], [(2**64, 1)]):
            with pytest.raises(ValueError):
                file.read_ranges(wrong)
        with pytest.raises(TypeError):
            file.read_ranges([(1.0, 1)])


def test_a_range_that_fails(cache):
    error, bad = OSError("not there"), [True]

    def read_at(offset, size):
        if bad and offset + size > 50_000:
            raise error
        return DATA[offset : offset + size]

    with cache.open(read_at, size=len(DATA)) as file:
        for _ in range(3):
            with pytest.raises(OSError) as raised:
                file.read_ranges([(0, 10), (60_000, 10), (90_000, 10)])
            assert raised.value is error
        assert file.pread(10, 0) == DATA[:10]
        bad.clear()
        assert file.read_ranges([(0, 10), (60_000, 10)]) == [DATA[:10], DATA[60_000:60_010]]
    assert not nearfile._source._raised


def test_an_interrupt_ends_a_batch(cache):
    """The library reads the other ranges all the same; their callbacks are not run any more, and the interrupt is what is raised."""
    calls = []

    def read_at(offset, size):
        calls.append(offset)
        if len(calls) == 1:
            raise OSError("the first range")
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return DATA[offset : offset + size]

    with cache.open(read_at, size=len(DATA)) as file:
        with pytest.raises(KeyboardInterrupt):
            file.read_ranges((page * PAGE, 10) for page in range(20))
        assert len(calls) == 2
        assert file.read() == DATA
    assert not nearfile._source._raised


def test_a_batch_over_a_batch(cache):
    """What the callback's own reads raise, and it handles, is not the outer call's."""
    error = OSError("handled")

    def broken(offset, size):
        raise error

    with cache.open(broken, size=len(DATA)) as inner:

        def read_at(offset, size):
            for call in (lambda: inner.pread(10, 0), lambda: inner.read_ranges([(0, 1)]), inner.prefetch):
                with pytest.raises(OSError) as raised:
                    call()
                assert raised.value is error
            return DATA[offset : offset + size]

        with cache.open(read_at, size=len(DATA)) as file:
            assert file.read_ranges([(0, 10), (50_000, 10)]) == [DATA[:10], DATA[50_000:50_010]]
            file.prefetch(progress=lambda done, total: None)
            assert file.read() == DATA
    assert not nearfile._source._raised


# ---- prefetching ----


def test_prefetch(cache, tmp_path):
    path = tmp_path / "data"
    path.write_bytes(DATA)
    source, told = Logged(path, tmp_path / "log"), []
    with cache.open(source) as file:
        file.prefetch(10_000, 5000)
        assert file.extent(8192) == (16_384, True) and file.extent(16_384)[1] is False
        file.prefetch(progress=lambda done, total: told.append((done, total)))
        assert file.extent(0) == (len(DATA), True)
        assert told and told[-1][0] == told[-1][1] and told == sorted(told)
        reads = len(source.reads())
        assert file.read() == DATA
        file.prefetch()
        file.prefetch(len(DATA) + 5, 10)
        assert len(source.reads()) == reads
        assert source.pages(PAGE) == [*range(25)]


class Mine(Exception):
    pass


@pytest.mark.parametrize("how", ["cancel", "raise", "interrupt", "source"])
def test_a_prefetch_that_is_ended(tmp_path, how):
    error, calls = Mine("enough"), []

    def progress(done, total):
        calls.append(done)
        if len(calls) == 3:
            if how == "raise":
                raise error
            if how == "interrupt":
                signal.raise_signal(signal.SIGINT)
            return how == "cancel"

    def read_at(offset, size):
        if how == "source" and offset >= 40_000:
            raise error
        return DATA[offset : offset + size]

    kinds = {"cancel": nearfile.CancelledError, "raise": Mine, "interrupt": KeyboardInterrupt, "source": Mine}
    with nearfile.Cache(tmp_path / "c", page_size=PAGE, max_fetch_bytes=PAGE) as cache:
        with cache.open(read_at, size=len(DATA)) as file:
            with pytest.raises(kinds[how]) as raised:
                file.prefetch(progress=progress)
            assert kinds[how] is not Mine or raised.value is error
            assert 0 < file.stats().cached_bytes < len(DATA)
            error = None
            how = ""
            assert file.read() == DATA
    assert not nearfile._source._hearers


# ---- keeping ----


def test_freeze(cache):
    with cache.open(io.BytesIO(DATA), key="k") as file, cache.open(io.BytesIO(DATA), key="k") as other:
        file.pread(10, 0)
        file.freeze()
        file.freeze()
        assert file.pread(PAGE, 0) == DATA[:PAGE]
        for call in (lambda: file.pread(1, PAGE), lambda: file.read(), lambda: file.prefetch(), lambda: file.read_ranges([(PAGE, 1)])):
            with pytest.raises(nearfile.FrozenError):
                call()
        assert other.pread(10, PAGE) == DATA[PAGE : PAGE + 10]
        assert file.pread(10, PAGE) == DATA[PAGE : PAGE + 10]


def test_preserve_and_open_in_another_process(tmp_path):
    """All hits, the source never opened; and the copy is unharmed while the cache evicts."""
    kept = tmp_path / "kept"
    with nearfile.Cache(tmp_path / "c", page_size=PAGE, size_limit=300_000) as cache:
        with cache.open(io.BytesIO(DATA), key="k") as file:
            file.prefetch(0, 50_000)
            file.preserve(kept)
            with pytest.raises(FileExistsError):
                file.preserve(os.fspath(kept))
            with pytest.raises(nearfile.FrozenError):
                file.read()
        paths = {"data_path": kept, "index_path": f"{kept}.index", "size": len(DATA)}

        def child():
            class Unused:
                def open(self):
                    raise AssertionError("opened")

            with nearfile.open(Unused(), **paths) as file:
                return file.pread(50_000, 0) == DATA[:50_000] and file.stats().misses == 0

        run_child(child)
        for number in range(6):
            with cache.open(io.BytesIO(noise(100_000, number)), key=str(number)) as other:
                assert other.read() == noise(100_000, number)
        run_child(child)
    with nearfile.open(frozen=True, **paths) as file:
        assert file.pread(50_000, 0) == DATA[:50_000]
        with pytest.raises(nearfile.FrozenError):
            file.read()
        with pickle.loads(pickle.dumps(file)) as again:
            assert again.pread(50_000, 0) == DATA[:50_000]
    with nearfile.open(io.BytesIO(DATA), **paths) as file:
        assert file.read() == DATA


# ---- the directory ----


def test_list_trim_and_remove(cache):
    opened = []
    for key, version in (("a", "1"), ("a", "2"), ("b", ""), ("ü\udcff", "v")):
        opened.append(cache.open(io.BytesIO(DATA), key=key, version=version))
        opened[-1].prefetch(0, 20_000)
    entries = {(entry.key, entry.version): entry for entry in cache.list()}
    assert {*entries} == {("a", "1"), ("a", "2"), ("b", ""), ("ü\udcff", "v")}
    entry = entries["a", "1"]
    assert (entry.size, entry.page_size, entry.cached_pages, entry.cached_bytes) == (len(DATA), PAGE, 5, 20_480)
    assert (entry.data_path, entry.index_path) == (opened[0].data_path, opened[0].index_path)
    assert entry.open is True and entry.outdated is True and entries["a", "2"].outdated is False
    for file in opened[:3]:
        file.close()
    cache.remove("a")
    cache.remove("nothing of that name")
    assert {entry.key for entry in cache.list()} == {"b", "ü\udcff"}
    cache.remove("ü\udcff")
    assert opened[3].read() == DATA
    cache.trim(10_000)
    assert cache.stats().cached_bytes <= 10_000
    cache.trim()
    assert cache.stats().cached_bytes == 0
    opened[3].close()


@pytest.mark.parametrize("when_full", ["evict", "stop", "flush"])
def test_the_directorys_limit(tmp_path, when_full):
    limit = 120_000
    with nearfile.Cache(tmp_path / "c", page_size=PAGE, size_limit=limit, when_full=when_full) as cache:
        files = [cache.open(lambda offset, size, n=n: noise(100_000, n)[offset : offset + size], size=100_000, key=str(n), fork_safe=True) for n in range(3)]
        assert cache.stats().size_limit == limit

        def work(seed):
            rng = random.Random(seed)
            contents = [noise(100_000, n) for n in range(3)]
            for _ in range(200):
                n, at = rng.randrange(3), rng.randrange(100_000)
                if files[n].pread(6000, at) != contents[n][at : at + 6000] or cache.stats().cached_bytes > limit:
                    return False
            return True

        run_children([lambda seed=seed: work(seed) for seed in range(3)], 120)
        assert work(7)
        assert 0 < cache.stats().cached_bytes <= limit
        assert sum(data_bytes(file.data_path) for file in files) <= limit
        for file in files:
            file.close()
        with pytest.raises(ValueError, match="'evict', 'stop' or 'flush'"):
            nearfile.Cache(tmp_path / "c", when_full="explode")


def test_the_limit_of_one_file(cache):
    with cache.open(io.BytesIO(DATA), size_limit=40_960) as file:
        for _ in range(3):
            assert file.pread(len(DATA), 0) == DATA
            assert 0 < file.stats().cached_bytes <= 40_960


def test_space_that_is_to_stay_free(tmp_path):
    with nearfile.Cache(tmp_path / "c", min_free=1 << 62) as cache, cache.open(io.BytesIO(DATA), key="k") as file:
        assert file.read() == DATA
        assert file.stats().cached_bytes == 0 and file.stats().passed_through > 0


# ---- exact ranges ----


def test_exact_mode(cache):
    asked = []

    def read_at(offset, size):
        asked.append((offset, size))
        return DATA[offset : offset + size]

    with cache.open(read_at, size=len(DATA), exact=True, fork_safe=True) as file:
        rng, covered = random.Random(4), set()
        for _ in range(300):
            at, size = rng.randrange(len(DATA)), rng.choice([1, 10, 500])
            assert file.pread(size, at) == DATA[at : at + size]
            covered.update(range(at, min(at + size, len(DATA))))
        assert sum(size for _, size in asked) == len(covered)
        assert {byte for at, size in asked for byte in range(at, at + size)} == covered
        assert file.stats().cached_bytes == len(covered)
        end, cached = file.extent(0)
        assert cached == (0 in covered) and all((byte in covered) == cached for byte in range(end))
        before = len(asked)

        def child():
            """Starts its own, empty."""
            at = min(covered)
            return file.pread(1, at) == DATA[at : at + 1] and len(asked) == before + 1

        run_child(child)
        assert file.read() == DATA
    with pytest.raises(ValueError):
        cache.open(read_at, size=10, exact=True, key="k")


def test_an_interrupted_wait_for_another_thread(cache):
    """A signal that comes while the library waits is raised when the call is over, whichever way it ends."""
    fetching = threading.Event()

    def read_at(offset, size):
        fetching.set()
        time.sleep(0.4)
        return DATA[offset : offset + size]

    with cache.open(read_at, size=len(DATA)) as file:
        thread = threading.Thread(target=file.pread, args=(10, 0))
        thread.start()
        assert fetching.wait(20)
        timer = threading.Timer(0.1, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            file.pread(10, 0)
            time.sleep(1)
        thread.join()
        timer.join()
        assert file.pread(10, 0) == DATA[:10]
