"""The open near copy as a Python file."""

from __future__ import annotations

import io
import os
from ctypes import addressof, byref, c_char, c_int32, c_uint64, sizeof
from operator import index
from typing import Any, Callable, Iterable, List, NamedTuple, NoReturn, Optional, Tuple, Type, TypeVar
from weakref import WeakSet

from . import _library as c
from . import _source

# The way of a hit looks up as little as can be.
_read, _pread, _from_buffer, _new_bytes = c.read, c.pread, c_char.from_buffer, c.new_bytes
_END = 1 << 64
# Up to here a buffer is made without a look at what is left.
_SMALL = 64 << 10
T = TypeVar("T")


class Stats(NamedTuple):
    """Numbers of a file (this process's) or of a cache (of all processes, since the directory was made)."""

    hits: int  # reads of which every page was present
    misses: int  # reads of which at least one page was not
    waits: int  # reads that waited for another's fetch
    bytes_asked: int
    bytes_served: int
    source_reads: int
    source_bytes: int
    source_errors: int
    pages_fetched: int
    pages_verified: int
    checksum_failures: int
    passed_through: int  # reads that went to the source without being kept
    pages_evicted: int
    cached_pages: int
    cached_bytes: int
    size_limit: int


def stats_of(filled: c.CStats) -> Stats:
    return Stats(*(getattr(filled, name) for name in Stats._fields))


open_files: "WeakSet[File]" = WeakSet()


class File(io.RawIOBase):
    """A remote file through its near copy: read-only, seekable, unbuffered. Made by `Cache.open` and `nearfile.open`.

    It may be used by several threads at once and in forked children; threads that share it share its position, `pread` and its kin
    need none. What a source raises comes out of the call that needed the source.

    >>> import nearfile
    >>> file = nearfile.open(lambda offset, size: bytes(size), size=10)
    >>> file.seek(-3, 2), file.read(), file.read()
    (7, b'\\x00\\x00\\x00', b'')
    >>> file.pread(2, 0)
    b'\\x00\\x00'
    >>> file.close()
    """

    mode = "rb"
    _handle: Optional[c.FileHandle] = None
    _closed_error: Type[Exception] = ValueError

    def __init__(self, handle: c.FileHandle, again: Callable[["File"], Any], name: str) -> None:
        """Takes over a handle. `again` makes what `__reduce__` returns."""
        self._handle, self.name = handle, name
        self._again: Optional[Callable[[File], Any]] = again
        self._size: int = c.size(handle)
        open_files.add(self)

    # ---- at the position ----

    def readinto(self, buffer: Any, /) -> int:
        """Reads into a writable buffer, all of it but at the end of the file. Returns the count: 0 at the end."""
        length = len(buffer) if type(buffer) is bytearray else memoryview(buffer).nbytes
        if not length:
            return self._nothing(0)
        first: Any = _from_buffer(buffer)
        count: int = _read(self._handle, addressof(first), length)
        if count < 0:
            first = None  # a traceback would keep the buffer
            self._fail(count)
        return count

    def read(self, size: Optional[int] = -1, /) -> bytes:
        """Reads `size` bytes, or all that are left; less only at the end of the file, b"" there."""
        size = -1 if size is None else index(size)
        if not 0 <= size <= _SMALL:
            left = max(self._size - self.tell(), 0)
            size = left if size < 0 else min(size, left)
        if not size:
            return self._nothing(b"")
        data: bytes = _new_bytes(None, size)
        count: int = _read(self._handle, data, size)
        if count < 0:
            self._fail(count)
        return data if count == size else data[:count]

    def readall(self) -> bytes:
        """Reads what is left."""
        return self.read()

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Moves the position, also past the end, where reads give b"". Returns it."""
        offset = index(offset)
        if not -(1 << 63) <= offset < 1 << 63:
            raise ValueError(f"seek to {offset}: the position would be negative, or more than 2**63 - 1")
        if not 0 <= whence <= 2:
            raise ValueError(f"whence {whence} is none of 0 (SET), 1 (CUR), 2 (END)")
        return self._count(c.seek(self._handle, offset, whence))

    def tell(self) -> int:
        """The position."""
        return self._count(c.tell(self._handle))

    def readable(self) -> bool:
        return self._nothing(True)

    def seekable(self) -> bool:
        return self._nothing(True)

    def write(self, data: Any, /) -> NoReturn:
        raise io.UnsupportedOperation("not writable")

    # ---- at an offset: any thread, at once ----

    def pread_into(self, buffer: Any, offset: int) -> int:
        """Reads at `offset` into a writable buffer; the position does not matter. Returns the count: less only at the end."""
        length = len(buffer) if type(buffer) is bytearray else memoryview(buffer).nbytes
        if type(offset) is not int:
            offset = index(offset)
        if offset >> 64:
            raise ValueError(f"offset {offset} is negative, or too large")
        if not length:
            return self._nothing(0)
        first: Any = _from_buffer(buffer)
        count: int = _pread(self._handle, addressof(first), length, offset)
        if count < 0:
            first = None
            self._fail(count)
        return count

    def pread(self, size: int, offset: int) -> bytes:
        """Reads `size` bytes at `offset`; less only at the end of the file."""
        size, offset = index(size), index(offset)
        if size < 0 or not 0 <= offset < _END:
            raise ValueError(f"pread of {size} bytes at {offset}: neither may be negative")
        length = min(size, self._size - offset)
        if length <= 0:
            return self._nothing(b"")
        data: bytes = _new_bytes(None, length)
        count: int = _pread(self._handle, data, length, offset)
        if count < 0:
            self._fail(count)
        return data if count == length else data[:count]

    def read_ranges(self, ranges: Iterable[Tuple[int, int]]) -> List[bytes]:
        """Reads (offset, size) ranges, each as `pread` does, with one call.

        >>> import nearfile
        >>> with nearfile.open(lambda offset, size: bytes(range(offset, offset + size)), size=100) as file:
        ...     file.read_ranges([(97, 10), (1, 2)])
        [b'abc', b'\\x01\\x02']
        """
        wanted = [(index(offset), index(size)) for offset, size in ranges]
        if any(not 0 <= offset < _END or size < 0 for offset, size in wanted):
            raise ValueError("a range has an offset or size that is negative, or too large")
        found: List[bytes] = [_new_bytes(None, max(0, min(size, self._size - offset))) for offset, size in wanted]
        table = (c.CRange * len(wanted))()
        for entry, (offset, _), data in zip(table, wanted, found):
            if data:
                entry.offset, entry.buf, entry.len = offset, data, len(data)
        with _source.gathering():
            status = c.read_ranges(self._handle, table, len(table), sizeof(c.CRange))
        self._done(status)
        return [data if entry.out_len == len(data) else data[: entry.out_len] for entry, data in zip(table, found)]

    # ---- what is cached ----

    def prefetch(
        self,
        offset: int = 0,
        length: Optional[int] = None,
        progress: Optional[Callable[[int, int], Any]] = None,
        *,
        wait: bool = True,
    ) -> None:
        """Fetches what is absent in a range and waits for it; or, where `wait` is False, has threads of the library fetch it.

        `progress(done_bytes, total_bytes)` is called as it goes; it ends the call with `CancelledError` by returning a true value,
        or with an exception of its own.
        """
        offset, length = self._range(offset, length)
        with _source.gathering(), _source.heard(progress or int) as number:
            callback = c.PROGRESS() if progress is None else _source.PROGRESS
            status = c.prefetch(self._handle, offset, length, 0 if wait else c.PREFETCH_NOWAIT, callback, number)
        self._done(status)

    def extent(self, offset: int) -> Tuple[int, bool]:
        """Where the answer ends, and whether the byte at `offset` is cached: (end, cached). At or past the end: (size, False)."""
        end, cached = c_uint64(), c_int32()
        self._done(c.extent(self._handle, c.unsigned("offset", index(offset)), byref(end), byref(cached)))
        return end.value, bool(cached.value)

    def discard(self, offset: int = 0, length: Optional[int] = None) -> None:
        """Drops the pages that lie wholly in a range, and gives their space back."""
        self._done(c.discard(self._handle, *self._range(offset, length)))

    def freeze(self) -> None:
        """Never reads the source again: a later miss is `FrozenError`."""
        self._done(c.freeze(self._handle))

    def preserve(self, path: "str | os.PathLike[str]") -> None:
        """Freezes, and writes the near copy to `path` and its index to `path` + ".index".

        `nearfile.open(data_path=path, index_path=path + ".index", frozen=True, size=...)` opens them again.
        """
        self._done(c.preserve(self._handle, c.path("path", path)))

    def stats(self) -> Stats:
        """This process's numbers of the file."""
        filled = c.CStats()
        self._done(c.get_stats(self._handle, byref(filled)))
        return stats_of(filled)

    @property
    def size(self) -> int:
        """Bytes of the remote file."""
        return self._size

    @property
    def page_size(self) -> int:
        """Bytes a page, as the near copy has them."""
        return self._count(c.page_size(self._handle))

    @property
    def data_path(self) -> Optional[str]:
        """Where the mirror is: a sparse file, of which only what `extent` calls cached may be read. None where nothing is kept."""
        path: Optional[bytes] = self._nothing(c.data_path(self._handle))
        return None if path is None else os.fsdecode(path)

    @property
    def index_path(self) -> Optional[str]:
        """Where the index is, likewise."""
        path: Optional[bytes] = self._nothing(c.index_path(self._handle))
        return None if path is None else os.fsdecode(path)

    # ---- the handle ----

    def dup(self) -> "File":
        """The same file, with a position of its own, at 0."""
        other = c.FileHandle()
        self._done(c.file_dup(self._handle, byref(other)))
        assert self._again is not None
        return File(other, self._again, self.name)

    def close(self) -> None:
        """Ends the handle. The last one of a file closes its connections, and raises what they raise."""
        try:
            super().close()
        finally:
            if self._handle is not None:
                with _source.gathering():
                    self._again = self._handle = None

    @property
    def closed(self) -> bool:
        return self._handle is None

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self._size} bytes"
        return f"<{type(self).__module__}.{type(self).__qualname__} {self.name!r}, {state}>"

    def __reduce__(self) -> Any:
        """Where the source can be opened again: the same file at the same position, in another process."""
        position = self.tell()
        assert self._again is not None
        return _at, (self._again(self), position)

    # ---- results ----

    def _fail(self, status: int) -> NoReturn:
        if self._handle is None:
            raise self._closed_error("I/O operation on closed file")
        error = _source.failure(status)
        try:
            raise error
        finally:
            del error

    def _count(self, count: int) -> int:
        if count < 0:
            self._fail(count)
        return count

    def _done(self, status: int) -> None:
        if status < 0:
            self._fail(status)

    def _nothing(self, result: T) -> T:
        if self._handle is None:
            raise self._closed_error("I/O operation on closed file")
        return result

    @staticmethod
    def _range(offset: int, length: Optional[int]) -> Tuple[int, int]:
        offset = c.unsigned("offset", index(offset))
        return offset, _END - 1 - offset if length is None else c.unsigned("length", index(length))


class Again(NamedTuple):
    """How a file is opened again in another process: a call, pickled."""

    make: Callable[..., File]
    options: Any


def _at(again: Again, position: int) -> File:
    file = again.make(**again.options)
    file.seek(position)
    return file
