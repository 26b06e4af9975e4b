"""The C library: found, loaded, declared; its statuses as exceptions."""

from __future__ import annotations

import ctypes
import errno
import os
from ctypes import CFUNCTYPE, POINTER, c_char, c_char_p, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from typing import Any, Callable, Dict, Type, Union

SONAME = "libnearfile.so.0"
VERSION = (0, 1)

SIZE_UNKNOWN = 2**64 - 1
SOURCE_FORK_SAFE = 1
PAGED, EXACT = 0, 1
MAP, FROZEN, VERIFY_ALWAYS, TRUST_CLEAN, READAHEAD_OFF = 1, 2, 4, 8, 16
PREFETCH_NOWAIT = 1
WHEN_FULL = {"evict": 0, "stop": 1, "flush": 2}


# ---- loading ----


def _load() -> ctypes.CDLL:
    named = os.environ.get("NEARFILE_LIBRARY")
    bundled = os.path.join(os.path.dirname(os.path.abspath(__file__)), SONAME)
    path = named or (bundled if os.path.exists(bundled) else SONAME)
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        raise ImportError(
            f"nearfile: no library at {path!r} ({error}); set NEARFILE_LIBRARY to the path of libnearfile.so, "
            "or install a wheel that has it inside"
        ) from None
    try:
        library.nearfile_version.restype = c_uint32
        number = library.nearfile_version()
    except AttributeError:
        raise ImportError(f"nearfile: {path!r} is no nearfile library") from None
    if (number >> 16, number >> 8 & 0xFF) != VERSION:
        raise ImportError(
            f"nearfile: {path!r} is version {number >> 16}.{number >> 8 & 0xFF}, "
            f"and this module is for {VERSION[0]}.{VERSION[1]}"
        )
    return library


LIBRARY = _load()


# ---- types ----


class _Sized(ctypes.Structure):
    """A struct that begins with its own size."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(struct_size=ctypes.sizeof(self), **fields)


class CError(_Sized):
    _fields_ = [
        ("struct_size", c_size_t),
        ("status", c_int32),
        ("os_errno", c_int32),
        ("source_code", c_int64),
        ("message", c_char * 256),
    ]


class CCacheOptions(_Sized):
    _fields_ = [
        ("struct_size", c_size_t),
        ("size_limit", c_uint64),
        ("min_free", c_uint64),
        ("page_size", c_uint64),
        ("max_fetch_bytes", c_uint64),
        ("when_full", c_uint32),
        ("flags", c_uint32),
        ("wait_ms", c_uint32),
        ("workers", c_uint32),
    ]


class CStats(_Sized):
    _fields_ = [
        ("struct_size", c_size_t),
        ("hits", c_uint64),
        ("misses", c_uint64),
        ("waits", c_uint64),
        ("bytes_asked", c_uint64),
        ("bytes_served", c_uint64),
        ("source_reads", c_uint64),
        ("source_bytes", c_uint64),
        ("source_errors", c_uint64),
        ("pages_fetched", c_uint64),
        ("pages_verified", c_uint64),
        ("checksum_failures", c_uint64),
        ("passed_through", c_uint64),
        ("pages_evicted", c_uint64),
        ("cached_pages", c_uint64),
        ("cached_bytes", c_uint64),
        ("size_limit", c_uint64),
    ]


OPEN = CFUNCTYPE(c_int32, c_void_p, POINTER(c_void_p))
READ_AT = CFUNCTYPE(c_int32, c_void_p, c_uint64, c_void_p, c_size_t, POINTER(c_size_t))
READ = CFUNCTYPE(c_int32, c_void_p, c_void_p, c_size_t, POINTER(c_size_t))
SEEK = CFUNCTYPE(c_int32, c_void_p, c_int64, c_int32, POINTER(c_uint64))
CLOSE = CFUNCTYPE(None, c_void_p)
SIZE = CFUNCTYPE(c_int32, c_void_p, POINTER(c_uint64))
PROGRESS = CFUNCTYPE(c_int32, c_void_p, c_uint64, c_uint64)


class CSource(_Sized):
    _fields_ = [
        ("struct_size", c_size_t),
        ("flags", c_uint32),
        ("max_connections", c_uint32),
        ("user_data", c_void_p),
        ("open", OPEN),
        ("read_at", READ_AT),
        ("read", READ),
        ("seek", SEEK),
        ("close", CLOSE),
        ("release", CLOSE),
        ("size", SIZE),
    ]


class COptions(_Sized):
    _fields_ = [
        ("struct_size", c_size_t),
        ("key", c_char_p),
        ("version", c_char_p),
        ("size", c_uint64),
        ("page_size", c_uint64),
        ("size_limit", c_uint64),
        ("mode", c_uint32),
        ("flags", c_uint32),
        ("data_path", c_char_p),
        ("index_path", c_char_p),
    ]


class CEntry(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("key", c_char_p),
        ("version", c_char_p),
        ("data_path", c_char_p),
        ("index_path", c_char_p),
        ("size", c_uint64),
        ("page_size", c_uint64),
        ("cached_pages", c_uint64),
        ("cached_bytes", c_uint64),
        ("open", c_uint32),
        ("outdated", c_uint32),
    ]


class CRange(ctypes.Structure):
    _fields_ = [
        ("offset", c_uint64),
        ("buf", c_char_p),
        ("len", c_size_t),
        ("out_len", c_size_t),
        ("out_status", c_int32),
    ]


LIST = CFUNCTYPE(c_int32, c_void_p, POINTER(CEntry))


# ---- functions ----


def _declare(name: str, restype: Any, *argtypes: Any, library: ctypes.CDLL = LIBRARY) -> Callable[..., Any]:
    """A function of the library. Calls release the GIL."""
    try:
        function = library[name]
    except AttributeError:
        raise ImportError(f"nearfile: {LIBRARY._name!r} has no {name}: it is an older one") from None
    function.restype = restype
    function.argtypes = argtypes
    return function


def _declare_short(name: str, restype: Any, *argtypes: Any) -> Callable[..., Any]:
    """A function that never waits and calls nothing: it keeps the GIL, which a busy thread would not give back for milliseconds."""
    return _declare(name, restype, *argtypes, library=_SHORT)


_SHORT = ctypes.PyDLL(LIBRARY._name, handle=LIBRARY._handle)


# ---- handles ----

_ended = False


def end() -> None:
    """The interpreter ends: the library is not called for handles that are dropped from now on."""
    global _ended
    _ended = True


class _Handle(c_void_p):
    """A C handle, closed when the last reference goes. A call holds one while it runs, so no call is ever inside a closed one."""

    _close: Callable[[Any], None]

    def __del__(self) -> None:
        if self.value and not _ended:
            self._close(self)


class CacheHandle(_Handle):
    pass


class FileHandle(_Handle):
    pass


# ctypes converts an int to a pointer faster than to a 64-bit number. Callers look at the range: it is cut silently.
_word: Any = c_void_p if ctypes.sizeof(c_void_p) == 8 else c_uint64
_out = POINTER(c_void_p)
version_string = _declare_short("nearfile_version_string", c_char_p)
status_name = _declare_short("nearfile_status_name", c_char_p, c_int32)
last_error = _declare_short("nearfile_last_error", c_int32, POINTER(CError))
cache_open = _declare("nearfile_cache_open", c_int32, c_char_p, POINTER(CCacheOptions), _out)
cache_close = _declare("nearfile_cache_close", None, CacheHandle)
cache_get_stats = _declare("nearfile_cache_get_stats", c_int32, CacheHandle, POINTER(CStats))
cache_trim = _declare("nearfile_cache_trim", c_int32, CacheHandle, c_uint64)
cache_remove = _declare("nearfile_cache_remove", c_int32, CacheHandle, c_char_p)
cache_list = _declare("nearfile_cache_list", c_int32, CacheHandle, LIST, c_void_p)
file_open = _declare("nearfile_open", c_int32, CacheHandle, POINTER(CSource), POINTER(COptions), _out)
file_dup = _declare("nearfile_dup", c_int32, FileHandle, _out)
file_close = _declare("nearfile_close", None, FileHandle)
size = _declare_short("nearfile_size", c_int64, FileHandle)
page_size = _declare_short("nearfile_page_size", c_int64, FileHandle)
data_path = _declare_short("nearfile_data_path", c_char_p, FileHandle)
index_path = _declare_short("nearfile_index_path", c_char_p, FileHandle)
read = _declare("nearfile_read", c_int64, FileHandle, c_void_p, c_void_p)
seek = _declare_short("nearfile_seek", c_int64, FileHandle, _word, c_int32)
tell = _declare_short("nearfile_tell", c_int64, FileHandle)
pread = _declare("nearfile_pread", c_int64, FileHandle, c_void_p, c_void_p, _word)
read_ranges = _declare("nearfile_read_ranges", c_int32, FileHandle, POINTER(CRange), c_size_t, c_size_t)
prefetch = _declare("nearfile_prefetch", c_int32, FileHandle, c_uint64, c_uint64, c_uint32, PROGRESS, c_void_p)
extent = _declare("nearfile_extent", c_int32, FileHandle, c_uint64, POINTER(c_uint64), POINTER(c_int32))
discard = _declare("nearfile_discard", c_int32, FileHandle, c_uint64, c_uint64)
freeze = _declare("nearfile_freeze", c_int32, FileHandle)
preserve = _declare("nearfile_preserve", c_int32, FileHandle, c_char_p)
get_stats = _declare("nearfile_get_stats", c_int32, FileHandle, POINTER(CStats))

CacheHandle._close = staticmethod(cache_close)
FileHandle._close = staticmethod(file_close)

# A new bytes object, its content not set: filled in place before anyone else sees it.
new_bytes = ctypes.pythonapi.PyBytes_FromStringAndSize
new_bytes.restype, new_bytes.argtypes = ctypes.py_object, (c_void_p, c_void_p)
# A memoryview of the library's own memory.
view_memory = ctypes.pythonapi.PyMemoryView_FromMemory
view_memory.restype, view_memory.argtypes = ctypes.py_object, (c_void_p, ctypes.c_ssize_t, ctypes.c_int)
WRITABLE = 0x200


# ---- errors ----


class Error(OSError):
    """A failure of nearfile. `status` is the name of the C status."""

    status = "NEARFILE_ERROR_INTERNAL"


class SourceError(Error):
    """The source failed in a way that raised nothing."""

    status = "NEARFILE_ERROR_SOURCE"


class ShortSourceError(Error):
    """The source ended before the size that the file was opened with."""

    status = "NEARFILE_ERROR_SHORT_SOURCE"


class FrozenError(Error):
    """A frozen file misses the bytes."""

    status = "NEARFILE_ERROR_FROZEN"


class ForkedError(Error):
    """A forked child has to read the source, and it cannot be opened again."""

    status = "NEARFILE_ERROR_FORKED"


class CancelledError(Error):
    """The progress callback ended it."""

    status = "NEARFILE_ERROR_CANCELLED"


ERROR_ARGUMENT, ERROR_IO, ERROR_SOURCE, ERROR_SHORT_SOURCE, ERROR_FROZEN = -1, -2, -3, -4, -5
ERROR_FORKED, ERROR_EXISTS, ERROR_CANCELLED, ERROR_UNSUPPORTED, ERROR_NO_MEMORY = -6, -7, -8, -9, -10
_ERRORS: Dict[int, Type[Exception]] = {
    ERROR_ARGUMENT: ValueError,
    ERROR_SOURCE: SourceError,
    ERROR_SHORT_SOURCE: ShortSourceError,
    ERROR_FROZEN: FrozenError,
    ERROR_FORKED: ForkedError,
    ERROR_CANCELLED: CancelledError,
    ERROR_UNSUPPORTED: NotImplementedError,
    ERROR_NO_MEMORY: MemoryError,
}
HOW_TO_REOPEN = (
    "pass reopen=, a callable without arguments that returns a new file object or source "
    "(or open a path; or pass fork_safe=True where read_at keeps no state and no connection)"
)


def exception_of(status: int, error: CError) -> Exception:
    """The exception that stands for a status and what the library says of it."""
    message = error.message.decode("utf-8", "replace") if error.status == status else status_name(status).decode()
    if status == ERROR_FORKED:
        message = f"a forked child has to read the source, which cannot be opened again there: {HOW_TO_REOPEN}"
    if status == ERROR_IO:
        return OSError(error.os_errno, message)
    if status == ERROR_EXISTS:
        return FileExistsError(errno.EEXIST, message)
    return _ERRORS.get(status, Error)(message)


# ---- arguments ----


def unsigned(name: str, value: int, bits: int = 64) -> int:
    """`value`, if it fits: ctypes would cut it silently."""
    if not 0 <= value < 1 << bits:
        raise ValueError(f"{name} is {value}: 0 to 2**{bits} - 1 is possible")
    return value


def text(name: str, value: Union[str, bytes]) -> bytes:
    """A key or version for C: the same bytes in every locale."""
    encoded = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else bytes(value)
    if b"\0" in encoded:
        raise ValueError(f"{name} holds a zero byte")
    return encoded


def path(name: str, value: "Union[str, bytes, os.PathLike[Any]]") -> bytes:
    """A path for C."""
    encoded = os.fsencode(value)
    if b"\0" in encoded:
        raise ValueError(f"{name} holds a zero byte")
    return encoded
