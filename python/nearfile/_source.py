"""What a file is read from: Python objects as the library's sources, and the callbacks between the two.

An exception in a callback is kept under a number that the callback returns as its code; the call that fails with this code raises it.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import itertools
import os
import stat
import sys
import threading
from operator import index
from typing import Any, Callable, Dict, Iterator, List, Optional, Set, Tuple, TypeVar, Union

from . import _library as c

Path = Union[str, bytes, "os.PathLike[Any]"]
T = TypeVar("T")


# ---- connections: one opened use of a source each ----


class _Connection:
    source: int  # the number of the one that opened it

    def read_into(self, address: int, size: int, offset: int) -> int:
        raise NotImplementedError

    def size(self) -> int:
        raise NotImplementedError

    def close(self) -> None:
        pass


class _Descriptor(_Connection):
    """A descriptor of the operating system, read without moving its position."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read_into(self, address: int, size: int, offset: int) -> int:
        view = c.view_memory(address, size, c.WRITABLE)
        try:
            return os.preadv(self._fd, [view], offset)
        finally:
            view.release()

    def size(self) -> int:
        status = os.fstat(self._fd)
        return status.st_size if stat.S_ISREG(status.st_mode) else os.lseek(self._fd, 0, os.SEEK_END)

    def close(self) -> None:
        os.close(self._fd)


class _Stream(_Connection):
    """An object with read and seek. The library uses one connection from one thread at a time."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def read_into(self, address: int, size: int, offset: int) -> int:
        position = self._file.seek(offset)
        if position is not None and position != offset:
            raise OSError(f"{self._file!r}: seek({offset}) went to {position}")
        return _put(self._file.read(size), address, size, offset, self._file)

    def size(self) -> int:
        end = self._file.seek(0, io.SEEK_END)
        return index(self._file.tell() if end is None else end)

    def close(self) -> None:
        self._file.close()


class _Reader(_Connection):
    """A callable read_at(offset, size), or an object that has one."""

    def __init__(self, owner: Any, read_at: Callable[[int, int], Any]) -> None:
        self._owner, self._read_at = owner, read_at

    def read_into(self, address: int, size: int, offset: int) -> int:
        return _put(self._read_at(offset, size), address, size, offset, self._read_at)

    def size(self) -> int:
        size = getattr(self._owner, "size", None)
        if size is None:
            raise ValueError(f"{self._owner!r} does not tell its size: pass size=")
        return index(size() if callable(size) else size)

    def close(self) -> None:
        close = getattr(self._owner, "close", None)
        if close is not None:
            close()


def _put(data: Any, address: int, size: int, offset: int, giver: Any) -> int:
    """Copies what a source gave to the library's buffer, after a look at it."""
    try:
        view = memoryview(data)
    except TypeError:
        raise TypeError(f"{giver!r} returned {type(data).__name__}, and bytes are wanted") from None
    with view:
        if view.nbytes > size:
            raise ValueError(f"{giver!r} returned {view.nbytes} bytes at offset {offset}, and {size} were asked for")
        if type(data) is bytes:
            ctypes.memmove(address, data, view.nbytes)
        elif view.nbytes:
            with c.view_memory(address, view.nbytes, c.WRITABLE) as target:
                target[:] = view.cast("B") if view.contiguous else view.tobytes()
        return view.nbytes


def _is_path(thing: Any) -> bool:
    return isinstance(thing, (str, bytes)) or hasattr(thing, "__fspath__")


def _is_stream(thing: Any) -> bool:
    return hasattr(thing, "read") and hasattr(thing, "seek")


def _is_plain_stream(thing: Any) -> bool:
    return _is_stream(thing) and not hasattr(thing, "read_at")


def _connection(thing: Any) -> _Connection:
    """A connection over whatever an `open` or `reopen` returned."""
    if _is_path(thing):
        return _Descriptor(os.open(thing, os.O_RDONLY | os.O_CLOEXEC))
    if hasattr(thing, "read_at"):
        return _Reader(thing, thing.read_at)
    if _is_stream(thing):
        return _Stream(thing)
    if callable(thing):
        return _Reader(thing, thing)
    raise TypeError(f"{thing!r} has neither read_at nor read and seek, and is neither a callable nor a path")


# ---- sources ----


class Source:
    """A source as nearfile_open wants it, made of what the user passed."""

    def __init__(
        self,
        given: Any,
        reopen: Optional[Callable[[], Any]] = None,
        close_source: bool = False,
        fork_safe: bool = False,
        max_connections: int = 0,
    ) -> None:
        self.given, self.reopen = given, reopen
        self.close_source, self.fork_safe = close_source, fork_safe
        self.max_connections = c.unsigned("max_connections", max_connections, 32)
        self.connect: Optional[Callable[[], _Connection]] = None
        self.only: Optional[_Connection] = None
        self.single = False
        self._descriptor: Optional[_Descriptor] = None
        if reopen is not None:
            self.connect = lambda: _connection(reopen())
        elif _is_path(given):
            place = os.path.abspath(os.fspath(given))
            self.connect = lambda: _connection(place)
        elif hasattr(given, "open") and (hasattr(given, "read_at") or not _is_stream(given)):
            self.connect = lambda: _connection(given.open())
        elif _is_plain_stream(given):
            fd = _regular_descriptor(given)
            if fd is not None:
                # A descriptor of our own: the position of the program's stays, and its close harms nobody.
                self.only = self._descriptor = _Descriptor(os.dup(fd))
                self.fork_safe = True
            else:
                self.only = _Stream(given)
                self.single = True
        else:
            self.only = _connection(given)

    def told_size(self) -> Optional[int]:
        """The size, where the object given tells it without a connection."""
        size = None if _is_path(self.given) or _is_plain_stream(self.given) else getattr(self.given, "size", None)
        return None if size is None else index(size() if callable(size) else size)

    def drop(self) -> None:
        """Nobody reads it any more."""
        if self._descriptor is not None:
            self._descriptor.close()

    def release(self) -> None:
        """The last file over it is closed."""
        self.drop()
        close = getattr(self.given, "close", None)
        if self.close_source and close is not None:
            close()

    def to_pickle(self) -> Tuple[Any, Dict[str, Any]]:
        """What opens the same source in another process."""
        options: Dict[str, Any] = {"max_connections": self.max_connections, "fork_safe": self.fork_safe}
        if self.reopen is not None:
            return None, {**options, "reopen": self.reopen}
        if _is_path(self.given):
            return os.path.abspath(os.fspath(self.given)), options
        if self.connect is None and _is_plain_stream(self.given):
            place = _path_of(self.given)
            if place is None:
                raise TypeError(
                    f"cannot pickle a nearfile.File over {self.given!r}, which cannot be opened again: pass reopen=, a callable "
                    "without arguments that can be pickled and returns a new file object or source, or open a path"
                )
            return place, options
        return self.given, {**options, "close_source": self.close_source}


def _regular_descriptor(file: Any) -> Optional[int]:
    """The descriptor of an ordinary file opened by open() or tempfile; None of anything else, which may read differently."""
    file = getattr(file, "file", file) if type(file).__module__ == "tempfile" else file
    raw = file.raw if type(file) in (io.BufferedReader, io.BufferedRandom) else file
    if type(raw) is not io.FileIO or raw.closed or not raw.readable():
        return None
    if file.writable():
        file.flush()
    fd = raw.fileno()
    return fd if stat.S_ISREG(os.fstat(fd).st_mode) else None


def _path_of(file: Any) -> Optional[str]:
    """Where such a file can be opened again."""
    try:
        fd, name = _regular_descriptor(file), getattr(file, "name", None)
        if fd is None or not isinstance(name, (str, bytes)):
            return None
        return os.path.abspath(os.fsdecode(name)) if os.path.samestat(os.fstat(fd), os.stat(name)) else None
    except (OSError, ValueError):
        return None


# ---- exceptions between a callback and the call that fails by it ----


class _Thread(threading.local):
    # Where what the callbacks of this thread raise is gathered; None: each goes to the call that fails by it.
    gathered: Optional[List[BaseException]] = None


_thread = _Thread()
_codes = itertools.cycle(range(1, 2**31 - 1))
_raised: Dict[int, BaseException] = {}
# The same of the library's own threads, with the number of the source: often no call fails by them, as who reads tries again itself.
_raised_aside: Dict[int, Tuple[int, BaseException]] = {}
# By thread: exceptions that a callback could not catch, such as a KeyboardInterrupt at its first instruction.
_lost: Dict[int, BaseException] = {}
_MOST_RAISED = 256


def _keep(error: BaseException, number: int) -> int:
    """The code under which a call finds it. The number is the source's or the connection's that raised it."""
    code = next(_codes)
    if sys._getframe(2).f_back is None:  # below the callback there is no call of Python's
        _enter(_raised_aside, code, (getattr(_connections.get(number), "source", number), error))
    else:
        _enter(_raised, code, error)
    return code


def _enter(table: Dict[int, T], code: int, entry: T) -> None:
    """The oldest goes, should nobody have asked for it."""
    table[code] = entry
    if len(table) > _MOST_RAISED:
        table.pop(next(iter(table)), None)


def failure(status: int) -> BaseException:
    """What to raise for a call that returned `status`: the exception of the callback that made it fail, if one did."""
    error = c.CError()
    c.last_error(error)
    if status == c.ERROR_SOURCE and error.status == status:
        lost = _lost.pop(threading.get_ident(), None)
        ours = _raised.pop(error.source_code, None) or _raised_aside.pop(error.source_code, (0, None))[1] or lost
        if ours is not None:
            return ours
    return c.exception_of(status, error)


@contextlib.contextmanager
def gathering() -> Iterator[None]:
    """For a call that goes on after a callback has failed: raises the first of what they raised, an interrupt before all others."""
    before = _thread.gathered
    errors: List[BaseException] = []
    _thread.gathered = errors
    try:
        yield
    finally:
        _thread.gathered = before
    if errors:
        error = next(filter(_interrupts, errors), errors[0])
        errors.clear()
        try:
            raise error
        finally:
            del error


def _interrupts(error: BaseException) -> bool:
    return not isinstance(error, Exception)


def _unraisable(unraisable: Any) -> None:
    """What ctypes says of an exception that left a callback is for the call that fails by it; the rest is for the hook before."""
    trace, error = unraisable.exc_traceback, unraisable.exc_value
    frame = trace.tb_frame if trace is not None and error is not None else None
    code = frame.f_code if frame is not None else None
    if code in _callback_codes and _thread.gathered is not None:
        _thread.gathered.append(error)
    elif code in _answering_codes:
        _lost[threading.get_ident()] = error
    elif _hook_before is not None:
        _hook_before(unraisable)
        return
    # C gets whatever is in a register for the callback's status, which may be 0: its results must not look right.
    if frame is not None and "out" in frame.f_locals:
        out = frame.f_locals["out"].contents
        if code is _on_open.__code__:
            _connections.pop(out.value, None)
        out.value = _REFUSED[frame.f_code]


_hook_before: Optional[Callable[[Any], Any]] = None


def _watch() -> None:
    """Once: a hook that somebody sets later, and that calls ours, would run in a circle with it."""
    global _hook_before
    if _hook_before is None:
        _hook_before, sys.unraisablehook = sys.unraisablehook, _unraisable


# ---- callbacks: one set for all sources, which are told apart by number ----

_numbers = itertools.count(1)
_sources: Dict[int, Source] = {}
_connections: Dict[int, _Connection] = {}
_hearers: Dict[int, Callable[..., Any]] = {}


def _answer(function: Callable[..., int], *arguments: Any) -> int:
    """Runs a callback that answers with a status. What it calls itself is none of the gathering around it."""
    gathered, _thread.gathered = _thread.gathered, None
    try:
        if gathered and any(map(_interrupts, gathered)):
            return -1  # the call around goes on, and the user wants it to end
        return function(*arguments)
    except BaseException as error:
        if gathered is None:
            return _keep(error, arguments[0] or 0)
        gathered.append(error)
        return -1
    finally:
        _thread.gathered = gathered


def _open(user_data: int, out: Any) -> int:
    connect = _sources[user_data].connect
    assert connect is not None
    connection, number = connect(), next(_numbers)
    connection.source = user_data
    _connections[number] = connection
    out[0] = number
    return 0


def _opened(connection: Optional[int]) -> _Connection:
    if connection is None:  # an interrupt came while it was opened
        raise _lost.pop(threading.get_ident(), None) or ConnectionAbortedError("the open of this connection was interrupted")
    return _connections[connection]


def _read_at(connection: Optional[int], offset: int, buffer: int, size: int, out: Any) -> int:
    out[0] = _opened(connection).read_into(buffer, size, offset)
    return 0


def _size(connection: Optional[int], out: Any) -> int:
    out[0] = c.unsigned("the source's size", _opened(connection).size(), 63)
    return 0


def _hear(number: int, *arguments: Any) -> int:
    return 1 if _hearers[number](*arguments) else 0


def _on_open(user_data: int, out: Any) -> int:
    return _answer(_open, user_data, out)


def _on_read_at(connection: Optional[int], offset: int, buffer: int, size: int, out: Any) -> int:
    return _answer(_read_at, connection, offset, buffer, size, out)


def _on_size(connection: Optional[int], out: Any) -> int:
    return _answer(_size, connection, out)


def _on_hear(number: int, *arguments: Any) -> int:
    return _answer(_hear, number, *arguments)


def _on_close(connection: Optional[int]) -> None:
    if connection is not None:
        _end(_connections.pop(connection).close)


def _on_release(user_data: int) -> None:
    _end(_forget(user_data).release)


def _end(function: Callable[[], Any]) -> None:
    """Runs a callback that has no answer: what it raises is for the close() that waits, or for Python to report."""
    gathered, _thread.gathered = _thread.gathered, None
    try:
        function()
    except BaseException as error:
        if gathered is None:
            raise
        gathered.append(error)
    finally:
        _thread.gathered = gathered


_answering_codes: Set[Any] = {function.__code__ for function in (_on_open, _on_read_at, _on_size, _on_hear)}
_REFUSED = {_on_read_at.__code__: 2**64 - 1, _on_size.__code__: 2**64 - 1, _on_open.__code__: None}
_callback_codes: Set[Any] = {*_answering_codes, _on_close.__code__, _on_release.__code__}
_OPEN, _READ_AT, _SIZE = c.OPEN(_on_open), c.READ_AT(_on_read_at), c.SIZE(_on_size)
_CLOSE, _RELEASE = c.CLOSE(_on_close), c.CLOSE(_on_release)
PROGRESS, LIST = c.PROGRESS(_on_hear), c.LIST(_on_hear)


def _forget(number: int) -> Source:
    _connections.pop(number, None)
    for code, (source, _) in [*_raised_aside.items()]:
        if source == number:
            _raised_aside.pop(code, None)
    return _sources.pop(number)


@contextlib.contextmanager
def entered(source: Source, handle: c.FileHandle) -> Iterator[c.CSource]:
    """Enters a source while nearfile_open is called with the table that this gives; it stays if that sets the handle."""
    _watch()
    number = next(_numbers)
    table = c.CSource(
        flags=c.SOURCE_FORK_SAFE if source.fork_safe else 0,
        max_connections=1 if source.single else source.max_connections,
        user_data=number,
        read_at=_READ_AT,
        size=_SIZE,
        release=_RELEASE,
    )
    if source.connect is not None:
        table.open, table.close = _OPEN, _CLOSE
    else:
        assert source.only is not None
        _connections[number] = source.only
    _sources[number] = source
    try:
        yield table
    finally:
        if not handle.value:
            _forget(number).drop()


@contextlib.contextmanager
def heard(function: Callable[..., Any]) -> Iterator[int]:
    """Enters what PROGRESS or LIST calls; its number, for user_data. A true result, or an exception, ends the C call."""
    number = next(_numbers)
    _hearers[number] = function
    try:
        yield number
    finally:
        del _hearers[number]
