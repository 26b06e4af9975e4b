"""The classes that pfio had: what its users relied on, and what was wrong there."""

import functools
import importlib
import io
import multiprocessing
import os
import random
import threading
import zipfile

import nearfile
import pytest
from common import Logged, data_bytes, noise, open_descriptors, run_child, run_children
from nearfile import pfio
from nearfile.pfio import CachedWrapper, DynamicCachedWrapper, MPCachedWrapper

ALL = [CachedWrapper, DynamicCachedWrapper, MPCachedWrapper]
PAGED = [CachedWrapper, MPCachedWrapper]
DATA = noise(100_000)


class Far(io.BytesIO):
    """A remote file object: it writes down what is asked of it."""

    def __init__(self, data=DATA):
        super().__init__(data)
        self.asked = []

    def read(self, size=-1):
        self.asked.append((self.tell(), size))
        return super().read(size)

    def readinto(self, buffer):
        raise AssertionError("read is what a remote file object has")


def small(kind):
    return {} if kind is DynamicCachedWrapper else {"pagesize": 4096}


@pytest.fixture(params=ALL)
def kind(request):
    return request.param


def test_names_and_arguments(kind, tmp_path):
    assert pfio.SparseFileCache is CachedWrapper and pfio.MultiprocessSparseFileCache is MPCachedWrapper
    far, cachedir = Far(), tmp_path / "c"
    orders = {
        DynamicCachedWrapper: (str(cachedir), True, 1 << 20, True),
        CachedWrapper: (str(cachedir), True, 4096, True, 1 << 20),
        MPCachedWrapper: (str(cachedir), True, 1 << 20, 4096, str(tmp_path / "d"), str(tmp_path / "i"), True),
    }
    with kind(far, len(DATA), *orders[kind]) as file:
        assert (file.fileobj, file.size, file.cachedir, file.close_on_close) == (far, len(DATA), str(cachedir), True)
        assert (file.cache_size_limit, file.multithread_safe, file.closed, file.pos) == (1 << 20, True, False, 0)
        if kind is not DynamicCachedWrapper:
            assert file.pagesize == file.page_size == 4096
        if kind is MPCachedWrapper:
            assert (file.local_cachefile, file.local_indexfile) == (str(tmp_path / "d"), str(tmp_path / "i"))
        assert file.read() == DATA and not far.closed
    assert file.closed and far.closed
    for call in (file.read, lambda: file.read(1), lambda: file.readinto(bytearray(1)), lambda: file.seek(0)):
        for error in (RuntimeError, ValueError):
            with pytest.raises(error, match="closed"):
                call()


def test_defaults(kind, tmp_path, monkeypatch):
    far = Far()
    with kind(far, len(DATA)) as file:
        assert file.cachedir == str(tmp_path / "xdg" / "pfio") and os.path.isdir(file.cachedir)
        assert (file.close_on_close, file.cache_size_limit, file.multithread_safe) == (False, None, False)
        assert file.read(10) == DATA[:10]
        if kind is not DynamicCachedWrapper:
            assert file.pagesize == 16 << 20 and sum(size for _, size in far.asked) == len(DATA)
    assert not far.closed
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with kind(far, len(DATA)) as file:
        assert file.cachedir == str(tmp_path / "home" / ".cache" / "pfio")


def test_it_reads_as_a_file(kind, tmp_path):
    for size in (1, 4096, len(DATA)):
        data, rng = DATA[:size], random.Random(size)
        with kind(Far(data), size, tmp_path, **small(kind)) as file:
            model = io.BytesIO(data)
            for _ in range(300):
                at, length = rng.randrange(size + 10), rng.choice([0, 1, 100, 9000, -1])
                assert file.seek(at) == model.seek(at) and file.read(length) == model.read(length) and file.tell() == model.tell()
                buffer = bytearray(100)
                file.seek(-min(50, size), 2)
                assert file.readinto(buffer) == min(50, size) and buffer.startswith(data[-50:])


def test_the_end(kind, tmp_path):
    """The position does not wrap there, so a loop of reads ends; and a seek past it is fine."""
    with kind(Far(), len(DATA), tmp_path, **small(kind)) as file:
        assert b"".join(iter(lambda: file.read(3000), b"")) == DATA
        assert file.tell() == len(DATA) and file.read(1) == b"" == file.read()
        assert file.seek(len(DATA) + 5) == len(DATA) + 5 and file.read(10) == b""
        for wrong in (lambda: file.seek(-1), lambda: file.seek(-len(DATA) - 1, 2), lambda: file.seek(0, 7)):
            with pytest.raises(ValueError):
                wrong()
        for unsupported in (file.truncate, lambda: file.write(b"x")):
            with pytest.raises(io.UnsupportedOperation):
                unsupported()
        assert file.readable() and file.seekable() and not file.writable() and not file.isatty()


def test_an_empty_file(kind, tmp_path):
    with kind(Far(b""), 0, tmp_path, **small(kind)) as file:
        assert file.size == 0 and file.read() == b"" == file.read(10)


@pytest.mark.parametrize("paged", PAGED)
def test_whole_pages_are_fetched_once(paged, tmp_path):
    far = Far()
    with paged(far, len(DATA), tmp_path, pagesize=1000) as file:
        file.seek(2500)
        file.read(1000)
        assert [(at, min(size, 2000)) for at, size in far.asked] == [(2000, 2000)]
        for _ in range(3):
            file.seek(2000)
            assert file.read(2000) == DATA[2000:4000]
        assert len(far.asked) == 1
        position = far.tell()
        file.seek(2100)
        file.read(10)
        assert far.tell() == position  # a hit does not touch the source
        assert data_bytes(file.data_path) <= 8192


def test_exact_ranges_are_fetched_once(tmp_path):
    far = Far()
    with DynamicCachedWrapper(far, len(DATA), tmp_path) as file:
        file.seek(2500)
        file.read(1000)
        file.seek(2000)
        assert file.read(2000) == DATA[2000:4000]
        assert sorted(far.asked) == [(2000, 500), (2500, 1000), (3500, 500)]
        assert file.stats().cached_bytes == 2000


def test_a_zip(kind, tmp_path):
    packed, rng = io.BytesIO(), random.Random(2)
    with zipfile.ZipFile(packed, "w") as archive:
        for number in range(100):
            archive.writestr(str(number), rng.randbytes(rng.randrange(3000)))
    far = Far(packed.getvalue())
    with kind(far, len(packed.getvalue()), tmp_path, **small(kind)) as file:
        for wrapped in (file, io.BufferedReader(file, 1 << 14)):
            with zipfile.ZipFile(wrapped) as archive:
                assert archive.testzip() is None
        asked = len(far.asked)
        with zipfile.ZipFile(io.BufferedReader(file)) as archive:
            assert archive.testzip() is None
        assert len(far.asked) == asked


def test_errors_of_the_far_file_poison_nothing(kind, tmp_path):
    far, bad = Far(), []

    class Flaky(Far):
        def read(self, size=-1):
            if bad:
                raise bad.pop()
            return super().read(size)

    error = ConnectionResetError("gone")
    with kind(Flaky(), len(DATA), tmp_path, **small(kind)) as file:
        for _ in range(3):
            bad.append(error)
            with pytest.raises(ConnectionResetError) as raised:
                file.read(10_000)
            assert raised.value is error and file.tell() == 0
        assert file.read() == DATA
    assert not far.asked


def test_threads(kind, tmp_path):
    far = Far()
    with kind(far, len(DATA), tmp_path, multithread_safe=True, **small(kind)) as file:
        wrong = []

        def work(seed):
            rng = random.Random(seed)
            for _ in range(200):
                at = rng.randrange(len(DATA))
                if file.pread(5000, at) != DATA[at : at + 5000]:
                    wrong.append(at)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        # Each byte was read once.
        asked = sorted(far.asked)
        assert all(at + size <= next_at for (at, size), (next_at, _) in zip(asked, asked[1:]))


@pytest.mark.parametrize("paged", PAGED)
def test_eight_forked_workers(paged, tmp_path):
    """pfio fetched seven times what was needed, and stored wrong pages for ever."""
    path = tmp_path / "data"
    path.write_bytes(DATA)
    logged = Logged(path, tmp_path / "log", delay=0.001)
    for source, reopen in ((Far(), logged.open), (open(path, "rb"), None)):
        with source, paged(source, len(DATA), tmp_path / "c", pagesize=1000, reopen=reopen) as file:

            def child(seed):
                pages = [*range(100)]
                random.Random(seed).shuffle(pages)
                return all(file.seek(at * 1000) >= 0 and file.read(1000) == DATA[at * 1000 : at * 1000 + 1000] for at in pages)

            run_children([functools.partial(child, seed) for seed in range(8)])
            assert file.stats().source_reads == 0 and file.read() == DATA
    assert logged.pages(1000) == [*range(100)]


def test_a_child_that_cannot_reopen_is_told_what_to_pass(kind, tmp_path):
    with kind(Far(), len(DATA), tmp_path, **small(kind)) as file:
        file.read(10)

        def child():
            try:
                file.pread(10, 50_000)
            except nearfile.ForkedError as error:
                return "pass reopen=" in str(error)

        run_child(child)
        assert file.read() == DATA[10:]


def read_all(file):
    return file.read(), file.stats().source_reads


def test_pickled_into_a_spawned_worker(kind, tmp_path):
    path = tmp_path / "data"
    path.write_bytes(DATA)
    with kind(Far(), len(DATA), tmp_path / "c", reopen=functools.partial(open, path, "rb"), **small(kind)) as file:
        file.read(1000)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.apply(read_all, [file])[0] == DATA[1000:]
        file.seek(0)
        assert file.read() == DATA and (kind is not MPCachedWrapper or file.stats().source_reads == 1)
    with kind(Far(), len(DATA), tmp_path / "c") as file, pytest.raises(TypeError, match="pass reopen="):
        multiprocessing.reduction.ForkingPickler.dumps(file)


def test_a_pair_of_files_shared_by_path(tmp_path):
    """As pfio's zip does: whoever opens the two paths has what the others fetched, also after the first has closed them."""
    first = MPCachedWrapper(Far(), len(DATA), tmp_path / "c", pagesize=1000)
    assert os.path.exists(first.local_cachefile) and os.path.exists(first.local_indexfile)
    assert first.read(50_000) == DATA[:50_000]
    paths = {"local_cachefile": first.local_cachefile, "local_indexfile": first.local_indexfile}

    def child():
        far = Far()
        with MPCachedWrapper(far, len(DATA), tmp_path / "c", pagesize=1000, **paths) as file:
            return file.read(50_000) == DATA[:50_000] and not far.asked and file.read() == DATA[50_000:] and far.asked

    run_child(child)
    assert first.pread(50_000, 50_000) == DATA[50_000:]
    first.close()
    far = Far()
    with MPCachedWrapper(far, len(DATA), tmp_path / "c", pagesize=1000, **paths) as file:
        assert file.read() == DATA and not far.asked
    for one in ({"local_cachefile": "x"}, {"local_indexfile": "x"}):
        with pytest.raises(ValueError, match="both or neither"):
            MPCachedWrapper(far, len(DATA), **one)
    with pytest.raises(ValueError, match="at least 1 byte"):
        CachedWrapper(far, len(DATA), pagesize=0)


@pytest.mark.parametrize("when_full", ["stop", "flush", "evict"])
@pytest.mark.parametrize("paged", PAGED)
def test_the_limit(paged, when_full, tmp_path):
    """It is counted, and it holds; the bytes are right on both sides of it, also in other processes."""
    path = tmp_path / "data"
    path.write_bytes(DATA)
    far = open(path, "rb")
    with far, paged(far, len(DATA), tmp_path / "c", pagesize=4096, cache_size_limit=40_960, when_full=when_full) as file:

        def work(seed):
            rng = random.Random(seed)
            for _ in range(300):
                at = rng.randrange(len(DATA))
                if file.pread(5000, at) != DATA[at : at + 5000] or file.stats().cached_bytes > 40_960:
                    return False
            return True

        run_children([functools.partial(work, seed) for seed in range(3)])
        assert work(9)
        assert 0 < file.stats().cached_bytes <= 40_960
        assert data_bytes(file.data_path) <= 40_960


def test_preserve(kind, tmp_path):
    far, kept = Far(), tmp_path / "kept"
    with kind(far, len(DATA), tmp_path / "c", **small(kind)) as file:
        assert file.read(50_000) == DATA[:50_000]
        file.preserve(kept)
        file.seek(0)
        assert file.read(50_000) == DATA[:50_000]
        asked = len(far.asked)
        with pytest.raises(nearfile.FrozenError):
            file.pread(10, 90_000)
        assert len(far.asked) == asked
        with pytest.raises(FileExistsError):
            file.preserve(kept)
    # Of exact ranges whole pages of 4 KiB are preserved.
    whole = 49_152 if kind is DynamicCachedWrapper else 50_000
    assert kept.read_bytes()[:whole] == DATA[:whole] and data_bytes(kept) <= 53_248
    with nearfile.open(size=len(DATA), data_path=kept, index_path=f"{kept}.index", frozen=True) as file:
        assert file.pread(whole, 0) == DATA[:whole]
        with pytest.raises(nearfile.FrozenError):
            file.pread(10, 90_000)
    with MPCachedWrapper(far, len(DATA), local_cachefile=str(kept), local_indexfile=f"{kept}.index") as file:
        assert file.read() == DATA


def test_many_wrappers_leave_nothing(kind, tmp_path):
    paths = {} if kind is not MPCachedWrapper else {"local_cachefile": tmp_path / "d", "local_indexfile": tmp_path / "i"}
    counts = []
    for number in range(300):
        with kind(Far(), len(DATA), tmp_path, **small(kind), **paths) as file:
            file.read(10)
        if number % 100 == 50:
            counts.append((open_descriptors(), len(os.listdir(tmp_path))))
    assert len(set(counts)) == 1


def test_pfios_own_zip_with_these_classes(tmp_path, monkeypatch):
    """pfio 2.7's own local_cache=True, over our class."""
    # Not `import pfio.v2.local`: pfio gives that name to something else, too.
    local, zip_module = importlib.import_module("pfio.v2.local"), importlib.import_module("pfio.v2.zip")
    monkeypatch.setattr(zip_module, "MPCachedWrapper", MPCachedWrapper)
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        for number in range(50):
            archive.writestr(str(number), noise(2000, number))
    with local.Local(str(tmp_path)) as fs, zip_module.Zip(fs, "z.zip", local_cache=True, local_cachedir=str(tmp_path / "c")) as files:

        def work():
            return all(files.open(str(number), "rb").read() == noise(2000, number) for number in range(50))

        assert work() and files.local_cachefile and os.path.exists(files.local_indexfile)
        run_children([work] * 4)
