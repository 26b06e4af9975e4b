"""A nearfile.File is a file: checked against io.BytesIO, and against what the io module's own classes expect of it."""

import array
import io
import os
import random
import threading
import weakref

import nearfile
import numpy
import pytest
from common import noise, open_descriptors, resident, wait_until

SIZE = 40_000


def test_random_operations_do_what_bytesio_does(cache, tmp_path):
    path = tmp_path / "data"
    for size in (0, 1, 4095, 4096, SIZE):
        data = noise(size)
        path.write_bytes(data)
        sources = [
            lambda offset, length: data[offset : offset + length],
            lambda offset, length: memoryview(data)[offset : offset + min(length, 1000)],
            io.BytesIO(data),
            path,
            open(path, "rb"),
            open(path, "rb", buffering=0),
        ]
        for number, source in enumerate(sources):
            for page_size in (7, 4096, 1 << 20):
                rng = random.Random(f"{size} {number} {page_size}")
                with cache.open(source, size=size, page_size=page_size) as file:
                    against_bytesio(file, data, rng, 300)
            getattr(source, "close", lambda: None)()


def against_bytesio(file, data, rng, rounds):
    model = io.BytesIO(data)
    size = len(data)
    for _ in range(rounds):
        kind = rng.randrange(8)
        length = rng.choice([0, 1, 10, 5000, rng.randrange(size + 10)])
        offset = rng.choice([0, size - 1 if size else 0, size, size + 5, rng.randrange(size + 10)])
        if kind == 0:
            assert file.read(length) == model.read(length)
        elif kind == 1:
            ours, theirs = bytearray(length), bytearray(length)
            assert file.readinto(ours) == model.readinto(theirs) and ours == theirs
        elif kind == 2:
            whence = rng.randrange(3)
            base = [0, model.tell(), size][whence]
            assert file.seek(offset - base, whence) == model.seek(offset - base, whence)
        elif kind == 3:
            assert file.pread(length, offset) == data[offset : offset + length]
        elif kind == 4:
            ours = bytearray(length)
            count = file.pread_into(ours, offset)
            assert ours[:count] == data[offset : offset + length]
        elif kind == 5 and rng.random() < 0.2:
            assert file.read() == model.read()
        elif kind == 6 and rng.random() < 0.2:
            file.discard(*sorted(rng.randrange(size + 1) for _ in range(2)))
        assert file.tell() == model.tell()


def test_the_io_module_takes_it_for_a_file(cache):
    text = "".join(f"line {number}\n" for number in range(3000))
    data = text.encode()
    with cache.open(io.BytesIO(data)) as file:
        assert isinstance(file, io.RawIOBase)
        assert (file.readable(), file.seekable(), file.writable(), file.isatty()) == (True, True, False, False)
        assert io.TextIOWrapper(io.BufferedReader(file.dup())).read() == text
        assert io.BufferedReader(file.dup(), 100).readlines() == data.splitlines(keepends=True)
        assert [*file.dup()][:2] == [b"line 0\n", b"line 1\n"]
        assert file.readall() == data and file.readall() == b"" and file.read(1) == b""
        for refused in (lambda: file.write(b""), lambda: file.truncate(), lambda: file.fileno()):
            with pytest.raises(io.UnsupportedOperation):
                refused()


def test_any_writable_buffer_is_filled(cache):
    data = noise(64)
    with cache.open(io.BytesIO(data)) as file:
        for buffer in (array.array("q", [0] * 8), numpy.zeros((4, 2)), memoryview(bytearray(64)), bytearray(64)):
            assert file.pread_into(buffer, 0) == 64 and bytes(memoryview(buffer).cast("B")) == data
            file.seek(0)
            assert file.readinto(buffer) == 64
        assert file.pread_into(bytearray(), 0) == 0 == file.readinto(b"")
        for wrong in (b"12345678", numpy.zeros(8)[::2], "text", None):
            with pytest.raises(TypeError):
                file.pread_into(wrong, 0)
            with pytest.raises(TypeError):
                file.readinto(wrong)
        buffer = bytearray(64)
        file.pread_into(buffer, 0)
        buffer.extend(b"nothing holds the buffer any more")


def test_numbers_out_of_range_are_refused(cache):
    with cache.open(io.BytesIO(b"0123456789")) as file:
        for offset in (-1, -(2**63), 2**64, 2**65):
            for call in (lambda: file.pread(1, offset), lambda: file.pread_into(bytearray(1), offset), lambda: file.extent(offset)):
                with pytest.raises(ValueError):
                    call()
        for call in (
            lambda: file.seek(-1), lambda: file.seek(0, 3), lambda: file.seek(2**63), lambda: file.seek(-11, 2), lambda: file.pread(-1, 0),
            lambda: file.discard(0, -1), lambda: file.discard(-1), lambda: file.seek(2**64 + 1), lambda: file.seek(0, 2**32),
        ):  # fmt: skip
            with pytest.raises(ValueError):
                call()
        for wrong in ("1", 1.0, None):
            with pytest.raises(TypeError):
                file.pread_into(bytearray(1), wrong)
            with pytest.raises(TypeError):
                file.seek(wrong)
        assert file.tell() == 0
        assert file.pread(numpy.int64(3), numpy.int64(2)) == b"234"
        assert file.pread(10**18, 5) == b"56789" and file.pread(1, 2**64 - 1) == b"" and file.seek(2**63 - 1) == 2**63 - 1
        assert file.read() == b"" == file.read(5)
    for wrong in (dict(size=-1), dict(size=2**63), dict(page_size=-1), dict(page_size=2**30 + 1), dict(key="a\0b"), dict(key=""),
                  dict(max_connections=-1), dict(data_path="/tmp/x"), dict(version="v" * 1025)):  # fmt: skip
        with pytest.raises(ValueError):
            cache.open(io.BytesIO(b""), **wrong)


def test_a_closed_file_refuses_everything(cache):
    file = cache.open(io.BytesIO(b"0123456789"))
    other = file.dup()
    file.close()
    file.close()
    assert file.closed and "closed" in repr(file)
    for call in (
        file.read, file.readall, file.tell, file.stats, file.freeze, file.dup, file.readable, file.seekable, file.flush, file.__enter__,
        lambda: file.read(0), lambda: file.read(1), lambda: file.readinto(bytearray(1)), lambda: file.readinto(bytearray()),
        lambda: file.pread(1, 0), lambda: file.pread(0, 0), lambda: file.pread_into(bytearray(1), 0), lambda: file.seek(0),
        lambda: file.extent(0), file.discard, lambda: file.data_path, lambda: file.index_path, lambda: file.page_size, lambda: next(file),
        lambda: file.read_ranges([(0, 1)]), file.prefetch, lambda: file.preserve("/nowhere"), lambda: file.__reduce__(),
    ):  # fmt: skip
        with pytest.raises((ValueError, NotImplementedError)):
            call()
    assert other.read() == b"0123456789"
    other.close()
    cache.close()
    for call in (cache.stats, lambda: cache.open(io.BytesIO(b""))):
        with pytest.raises(ValueError):
            call()


def test_numbers_and_paths(cache, tmp_path):
    data = noise(SIZE)
    with cache.open(io.BytesIO(data), key="k", version="v") as file:
        assert (file.size, file.page_size, file.name) == (SIZE, 4096, "k")
        assert file.extent(0) == (SIZE, False)
        file.pread(10, 4096)
        assert (file.extent(0), file.extent(4096), file.extent(8192)) == ((4096, False), (8192, True), (SIZE, False))
        assert file.extent(SIZE) == (SIZE, False)
        stats = file.stats()
        assert (stats.misses, stats.hits, stats.source_reads, stats.pages_fetched, stats.cached_bytes) == (1, 0, 1, 1, 4096)
        with open(file.data_path, "rb") as mirror:
            mirror.seek(4096)
            assert mirror.read(4096) == data[4096:8192]
        assert os.path.dirname(file.index_path) == str(tmp_path / "cache")
        assert cache.stats().cached_bytes == 4096
        file.discard()
        assert file.extent(0) == (SIZE, False)
    with cache.open(io.BytesIO(data), key="k", version="w") as other_version:
        assert other_version.stats().cached_pages == 0


def test_what_was_read_is_there_for_the_next(cache):
    data = noise(SIZE)
    for source in (io.BytesIO(data), lambda offset, size: pytest.fail("read again")):
        with cache.open(source, key=b"k\xff", size=SIZE) as file:
            assert file.read() == data


def test_paths_of_ones_own(tmp_path):
    data = noise(SIZE)
    paths = dict(data_path=tmp_path / "d", index_path=tmp_path / "i")
    for source in (io.BytesIO(data), lambda offset, size: pytest.fail("read again")):
        with nearfile.open(source, size=SIZE, **paths) as file:
            assert file.read() == data
            assert (file.data_path, file.index_path) == (str(tmp_path / "d"), str(tmp_path / "i"))
    (tmp_path / "i").write_bytes(b"somebody else's")
    with pytest.raises(FileExistsError):
        nearfile.open(io.BytesIO(data), size=SIZE, **paths)


def test_threads_share_one_position(cache):
    data = noise(1 << 20)
    file = cache.open(io.BytesIO(data))
    parts = []

    def work():
        while True:
            part = file.read(1000)
            if not part:
                return
            parts.append(part)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wanted = [data[at : at + 1000] for at in range(0, len(data), 1000)]
    assert sorted(parts) == sorted(wanted)
    file.close()


def test_close_while_another_thread_reads(cache):
    inside, go, released = threading.Event(), threading.Event(), []

    class Slow:
        size = 10

        def read_at(self, offset, size):
            inside.set()
            assert go.wait(20)
            return b"0123456789"[offset:][:size]

        def close(self):
            released.append(True)

    file = cache.open(Slow(), close_source=True)
    got = []
    thread = threading.Thread(target=lambda: got.append(file.read()))
    thread.start()
    assert inside.wait(20)
    file.close()
    assert not released
    with pytest.raises(ValueError):
        file.read()
    go.set()
    thread.join()
    assert got == [b"0123456789"]
    wait_until(lambda: released)


def test_files_outlive_their_cache_and_are_closed_by_the_collector(tmp_path):
    released = []

    class Source:
        size = 4

        def read_at(self, offset, size):
            return b"data"[offset:][:size]

        def close(self):
            released.append(True)

    cache, source = nearfile.Cache(tmp_path / "c"), Source()
    file, kept = cache.open(source, close_source=True), weakref.ref(source)
    other = file.dup()
    del cache, source
    assert other.read() == b"data"
    file.close()
    assert not released
    del other
    assert released == [True] and kept() is None


@pytest.mark.parametrize("key", [None, "k"])
def test_ten_thousand_opens_leave_nothing(cache, tmp_path, key):
    path = tmp_path / "data"
    path.write_bytes(noise(8192))
    source = open(path, "rb")

    def rounds(count):
        for number in range(count):
            with cache.open([source, path, lambda offset, size: bytes(size)][number % 3], size=8192, key=key) as file:
                if number % 100 == 0:
                    assert len(file.pread(10, 0)) == 10
                with file.dup():
                    pass

    rounds(500)
    before = open_descriptors(), resident(), len(nearfile._source._sources), len(nearfile._source._connections)
    rounds(10_000)
    after = open_descriptors(), resident(), len(nearfile._source._sources), len(nearfile._source._connections)
    assert (after[0], after[2:]) == (before[0], before[2:])
    assert after[1] - before[1] < 4 << 20
    source.close()
