"""The C library under callbacks that are plain ctypes functions and misbehave: what they raise is lost, what they return is garbage,
and none of it becomes a page, a crash or a hang."""

import ctypes
import gc
import sys
import threading

import pytest
from common import noise

from nearfile import _library as c

PAGE = 4096
DATA = noise(5 * PAGE + 100)
ANY_FAILURE = (c.ERROR_SOURCE, c.ERROR_SHORT_SOURCE, c.ERROR_ARGUMENT)


class Far:
    """A far file for C: `bad`, where it is set, takes the place of the callback that it is named after."""

    def __init__(self):
        self.bad, self.position, self.opened, self.closed, self.released = {}, 0, 0, 0, 0

    def callback(self, name, good):
        def call(*args):
            return self.bad.get(name, good)(*args)

        return call

    def source(self, seeks):
        fields = {"user_data": None}
        fields["open"] = c.OPEN(self.callback("open", self.open))
        fields["close"] = c.CLOSE(self.callback("close", self.close))
        fields["release"] = c.CLOSE(self.callback("release", self.release))
        fields["size"] = c.SIZE(self.callback("size", self.size))
        if seeks:
            fields["read"] = c.READ(self.callback("read", self.read))
            fields["seek"] = c.SEEK(self.callback("seek", self.seek))
        else:
            fields["read_at"] = c.READ_AT(self.callback("read", self.read_at))
        self.kept = fields  # ctypes does not keep them
        return c.CSource(**fields)

    def open(self, user_data, out_connection):
        self.opened += 1
        out_connection[0] = 1234
        return 0

    def close(self, connection):
        assert connection in (1234, None)
        self.closed += 1

    def release(self, user_data):
        self.released += 1

    def size(self, connection, out_size):
        out_size[0] = len(DATA)
        return 0

    def read_at(self, connection, offset, buf, size, out_len):
        part = DATA[offset : offset + size]
        ctypes.memmove(buf, part, len(part))
        out_len[0] = len(part)
        return 0

    def read(self, connection, buf, size, out_len):
        self.read_at(connection, self.position, buf, size, out_len)
        self.position += out_len[0]
        return 0

    def seek(self, connection, offset, whence, out_position):
        self.position = offset + (len(DATA) if whence == 2 else 0)
        out_position[0] = self.position
        return 0


@pytest.fixture
def unraisable(monkeypatch):
    """What ctypes could not raise anywhere."""
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: seen.append(args.exc_type))
    return seen


@pytest.fixture
def c_cache(tmp_path):
    handle = ctypes.c_void_p()
    options = c.CCacheOptions(page_size=PAGE)
    assert c.cache_open(bytes(tmp_path / "cache"), ctypes.byref(options), ctypes.byref(handle)) == 0
    return c.CacheHandle(handle.value)


def open_file(cache, far, seeks, size=len(DATA), key=b"key"):
    handle = ctypes.c_void_p()
    source, options = far.source(seeks), c.COptions(key=key, size=size)
    status = c.file_open(cache, ctypes.byref(source), ctypes.byref(options), ctypes.byref(handle))
    return status, c.FileHandle(handle.value)


def pread(file, offset=0, size=len(DATA)):
    room = ctypes.create_string_buffer(size + 1)
    got = c.pread(file, room, size, offset)
    return room.raw[:got] if got >= 0 else got


def cached_pages(file):
    stats = c.CStats()
    assert c.get_stats(file, ctypes.byref(stats)) == 0
    return stats.cached_pages


def raises(kind):
    def call(*args):
        raise kind("a callback")  # a new one: it would keep the frames of the last call, and their file

    return call


def lies(code, length=None, touch=True):
    """Returns `code`; sets *out_len if a length is given; fills the buffer with something else than the file."""

    def call(*args):
        *_, buf, size, out_len = args
        if touch:
            ctypes.memset(buf, 0xBD, size)
        if length is not None:
            out_len[0] = length(size) if callable(length) else length
        return code

    return call


def deep(*args):
    return deep(*args)


READS = {
    "raises": raises(ValueError),
    "raises SystemExit": raises(SystemExit),
    "raises KeyboardInterrupt": raises(KeyboardInterrupt),
    "raises MemoryError": raises(MemoryError),
    "recurses": deep,
    "takes no arguments": lambda: 0,
    "returns None": lies(None),
    "returns None and a length": lies(None, 10),
    "returns a string": lies("0", lambda size: size),
    "returns a float": lies(0.0, lambda size: size),
    "returns what is no 32 bits": lies(1 << 40 | 7, lambda size: size),
    "forgets the length": lies(0),
    "one byte too much": lies(0, lambda size: size + 1),
    "a length of 2**63": lies(0, 1 << 63),
    "a length of -1": lies(0, 2**64 - 1),
    "a length of -size": lies(0, lambda size: 2**64 - size),
    "no bytes": lies(0, 0),
    "a code": lies(5, lambda size: size),
    "a negative code": lies(-7, lambda size: size),
    "the least code": lies(-(2**31), lambda size: size),
    "the largest code": lies(2**31 - 1, lambda size: size),
    "a status of ours": lies(-5, lambda size: size),
}


@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize("seeks", [False, True])
@pytest.mark.parametrize("key", [b"key", None])
def test_reads(c_cache, unraisable, name, seeks, key):
    far = Far()
    status, file = open_file(c_cache, far, seeks, key=key)
    assert status == 0
    far.bad["read"] = READS[name]
    for size in (1, 7, 33, 64, PAGE, PAGE + 1, len(DATA)):  # lengths that garbage has equalled
        assert pread(file, 0, size) in ANY_FAILURE
        pin, rest = ctypes.c_void_p(), c.CRange(offset=PAGE, buf=b" " * size, len=size)
        assert c.prefetch(file, 0, size, 0, c.PROGRESS(0), None) in ANY_FAILURE
        assert c.read_ranges(file, ctypes.byref(rest), 1, ctypes.sizeof(rest)) in ANY_FAILURE
        assert rest.out_status in ANY_FAILURE
        assert c.LIBRARY.nearfile_pin_range(file, ctypes.c_uint64(0), ctypes.c_size_t(size), ctypes.byref(pin)) in ANY_FAILURE
        assert not pin
        assert cached_pages(file) == 0
    if name.startswith("raises"):
        assert unraisable
    far.bad.clear()
    assert pread(file) == DATA
    far.bad["read"] = READS[name]
    assert pread(file) == DATA  # hits do not mind
    del file
    assert far.opened == far.closed and far.released == 1
    far.bad.clear()
    if key is not None:
        status, file = open_file(c_cache, far, seeks, key=key)
        assert status == 0 and pread(file) == DATA


# The callback, what takes its place, and whether that must fail: what "returns" nothing may by chance return 0.
OTHERS = {
    "open raises": ("open", raises(ValueError), False),
    "open returns a code": ("open", lambda user_data, out: 13, True),
    "open returns None": ("open", lambda user_data, out: None, False),
    "seek raises": ("seek", raises(ValueError), True),
    "seek goes elsewhere": ("seek", lambda connection, offset, whence, out: out.__setitem__(0, offset + 1) or 0, True),
    "seek is negative": ("seek", lambda connection, offset, whence, out: out.__setitem__(0, 2**64 - 5) or 0, True),
    "seek forgets": ("seek", lambda connection, offset, whence, out: 0, True),
}


@pytest.mark.parametrize("name", OTHERS)
def test_open_and_seek(c_cache, unraisable, name):
    part, bad, certain = OTHERS[name]
    far = Far()
    status, file = open_file(c_cache, far, seeks=True)
    assert status == 0
    far.bad[part] = bad
    for _ in range(20):  # more often than there are connections
        got = pread(file, 0, 100)
        assert got in ANY_FAILURE or (got == DATA[:100] and not certain)
        assert cached_pages(file) == 0 or got == DATA[:100]
    far.bad.clear()
    assert pread(file) == DATA
    del file
    assert far.released == 1


SIZES = {
    "raises": raises(ValueError),
    "forgets": lambda connection, out: 0,
    "returns a code": lambda connection, out: 5,
    "is negative": lambda connection, out: out.__setitem__(0, 2**64 - 1) or 0,
    "is 2**63": lambda connection, out: out.__setitem__(0, 2**63) or 0,
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes(c_cache, unraisable, name):
    far = Far()
    far.bad["size"] = SIZES[name]
    status, file = open_file(c_cache, far, seeks=False, size=c.SIZE_UNKNOWN)
    assert status in ANY_FAILURE and not file.value
    assert far.opened == far.closed and far.released == 0
    far.bad.clear()
    status, file = open_file(c_cache, far, seeks=False, size=c.SIZE_UNKNOWN)
    assert status == 0 and c.size(file) == len(DATA) and pread(file) == DATA


@pytest.mark.parametrize("part", ["close", "release"])
def test_ends_that_raise(c_cache, unraisable, part):
    far = Far()
    far.bad[part] = raises(ValueError)
    status, file = open_file(c_cache, far, seeks=False)
    assert status == 0 and pread(file) == DATA
    del file
    gc.collect()
    assert unraisable == [ValueError]


@pytest.mark.parametrize("bad", [raises(ValueError), lambda *args: None, lambda *args: "go on", lambda *args: 1 << 35 | 1])
def test_progress(c_cache, unraisable, bad):
    far = Far()
    status, file = open_file(c_cache, far, seeks=False)
    assert status == 0
    assert c.prefetch(file, 0, len(DATA), 0, c.PROGRESS(bad), None) in (0, c.ERROR_CANCELLED)
    assert pread(file) == DATA


def test_a_callback_that_calls_back(c_cache):
    """Its own file: refused. Another: read. And the collector, threads and closed handles in the middle of it."""
    far, other_far, inner = Far(), Far(), []
    status, other = open_file(c_cache, other_far, seeks=True, key=b"other")
    status, file = open_file(c_cache, far, seeks=False)

    def read_at(connection, offset, buf, size, out_len):
        inner.append(pread(file, offset, 10))
        inner.append(pread(other, offset, 10))
        thread = threading.Thread(target=lambda: inner.append(pread(other, 0, 10)))
        thread.start()
        thread.join()
        open_file(c_cache, Far(), seeks=False, key=None)
        gc.collect()
        return far.read_at(connection, offset, buf, size, out_len)

    far.bad["read"] = read_at
    assert pread(file, 0, 100) == DATA[:100]
    assert inner == [c.ERROR_ARGUMENT, DATA[:10], DATA[:10]]
    assert pread(file) == DATA
