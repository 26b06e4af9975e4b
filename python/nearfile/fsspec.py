"""An fsspec filesystem over any other: what was read once is served from near copies.

    fsspec.open("nearfile::s3://bucket/data.parquet", nearfile={"cache_dir": "/nvme/cache"})
    pandas.read_csv("zip://inner.csv::nearfile::https://host/data.zip")

A near copy's key is the URL, its version what the target says of the content: an ETag or a checksum, else a date, else its `ukey`. Needs fsspec.
"""

from __future__ import annotations

import concurrent.futures
import errno
import hashlib
import io
import os
import time
from operator import index
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Optional, Tuple, Type

try:
    import fsspec
    from fsspec.archive import AbstractArchiveFileSystem
    from fsspec.asyn import sync
    from fsspec.implementations.chained import ChainedFileSystem
    from fsspec.spec import AbstractFileSystem
except ImportError as error:
    raise ImportError(f"nearfile.fsspec needs fsspec, and {error}: pip install 'fsspec>=2026.1'") from error

from ._cache import Cache, Path, default_directory, shared_cache
from ._file import File

__all__ = ["BufferedFile", "NearfileFileSystem"]

# What names the content of a file in what `info` of the known targets says, the surest first.
_CONTENT = ("ETag", "etag", "md5Hash", "md5", "Content-MD5", "Digest", "Last-Modified")
# Files that are kept open between calls of one filesystem.
_MOST_KEPT = 64
_MOST_AT_ONCE = 16


# ---- the source ----


class _Target(NamedTuple):
    """A filesystem as it was asked for, which makes it again: in another process, in a forked child, for another connection."""

    kind: Type[Any]
    args: Tuple[Any, ...]
    options: Dict[str, Any]

    @classmethod
    def of(cls, fs: Any) -> _Target:
        kept = {name: value for name, value in fs.storage_options.items() if name not in ("asynchronous", "loop")}
        return cls(type(fs), fs.storage_args, kept)

    def make(self) -> Any:
        """One for this process. fsspec knows those of a forked child's parent from its own."""
        return self.kind(*self.args, **self.options)

    def connect(self) -> Any:
        """One for a connection: an asynchronous one serves all threads; another may be a single socket."""
        return self.make() if self.kind.async_impl else self.kind(*self.args, **{**self.options, "skip_instance_cache": True})


class _Source(NamedTuple):
    target: _Target
    path: str
    etag: str  # "": the target has none, or none to ask for

    def open(self) -> _Connection:
        return _Connection(self)


class _Connection:
    def __init__(self, source: _Source) -> None:
        self._source, self._fs = source, source.target.connect()

    def read_at(self, offset: int, size: int) -> Any:
        _, path, etag = self._source
        try:
            data = _reader(self._fs)(self._fs, path, offset, offset + size, etag)
        except Exception as error:
            if _is_refused(error):
                raise OSError(errno.ESTALE, f"{path} has changed since it was opened: open it again") from error
            raise
        if len(data) > size:
            raise OSError(errno.EPROTO, f"{path}: its server sends {len(data)} bytes for a range of {size}: it ignores ranges")
        return data


def _read_any(fs: Any, path: str, start: int, end: int, etag: str) -> Any:
    return fs.cat_file(path, start=start, end=end)


def _read_http(fs: Any, path: str, start: int, end: int, etag: str) -> Any:
    # Sizes are those of the content as it is, not of a compressed one.
    headers = {"Accept-Encoding": "identity", **(fs.kwargs.get("headers") or {})}
    if etag:
        headers["If-Match"] = etag
    return fs.cat_file(path, start=start, end=end, headers=headers)


def _read_s3(fs: Any, path: str, start: int, end: int, etag: str) -> Any:
    return sync(fs.loop, _get_object, fs, path, start, end, etag)


async def _get_object(fs: Any, path: str, start: int, end: int, etag: str) -> Any:
    bucket, key, version = fs.split_path(path)
    only = {"IfMatch": etag} if etag else {}
    if version:
        only["VersionId"] = version
    answer = await fs._call_s3("get_object", Bucket=bucket, Key=key, Range=f"bytes={start}-{end - 1}", **only)
    async with answer["Body"] as body:
        return await body.read()


def _reader(fs: Any) -> Callable[[Any, str, int, int, str], Any]:
    """How a range is read, and refused where the content is another."""
    protocols = _protocols(fs)
    if "http" in protocols and fs.async_impl:
        return _read_http
    if "s3" in protocols and hasattr(fs, "_call_s3"):
        return _read_s3
    return _read_any


def _is_refused(error: BaseException) -> bool:
    """Whether a server's answer is 412, the condition failed: of aiohttp, of botocore, or of what s3fs makes of that."""
    answers = (error, error.__cause__)
    codes = [getattr(one, "response", None) for one in answers]
    return any(getattr(one, "status", None) == 412 for one in answers) or any(
        isinstance(code, dict) and code.get("ResponseMetadata", {}).get("HTTPStatusCode") == 412 for code in codes
    )


# ---- names ----


def _protocols(fs: Any) -> Tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _key(fs: Any, path: str) -> Optional[str]:
    """The URL, chained where the target is itself over another file; None where what that is has no name."""
    url = str(fs.unstrip_protocol(path))
    over = fs.storage_options.get("fo", fs.storage_args[0] if fs.storage_args and isinstance(fs, AbstractArchiveFileSystem) else "")
    if not isinstance(over, str):
        return None
    url = f"{url}::{over}" if over else url
    return _cut(url, 4096)


def _version(fs: Any, path: str, info: Dict[str, Any]) -> str:
    for name in _CONTENT:
        if info.get(name):
            return _cut(f"{name} {info[name]}", 1024)
    if type(fs).ukey is AbstractFileSystem.ukey:  # which would ask again
        return hashlib.sha256(str(info).encode()).hexdigest()
    return _cut(str(fs.ukey(path)), 1024)


def _cut(text: str, most: int) -> str:
    encoded = text.encode("utf-8", "surrogateescape")
    return text if len(encoded) <= most else f"sha256 {hashlib.sha256(encoded).hexdigest()}"


# ---- files ----


class BufferedFile(io.BufferedReader):
    """What `open` returns: a `nearfile.File` (`.raw`) behind a buffer, with what fsspec's own files have beside.

    `pread` needs no position and may be called by any number of threads at once.
    """

    raw: File

    def __init__(self, file: File, fs: Any, path: str, details: Dict[str, Any]) -> None:
        super().__init__(file)
        self.fs, self.path, self.details = fs, path, details
        self.pread = file.pread

    @property
    def size(self) -> int:
        """Bytes."""
        return self.raw.size

    @property
    def blocksize(self) -> int:
        """Bytes a page."""
        return self.raw.page_size

    @property
    def full_name(self) -> str:
        """The URL."""
        return str(self.fs.unstrip_protocol(self.path))

    @property
    def loc(self) -> int:
        """The position."""
        return self.tell()

    def info(self) -> Dict[str, Any]:
        """What the target said of the file when it was opened."""
        return self.details

    def readuntil(self, char: bytes = b"\n", blocks: Optional[int] = None) -> bytes:
        """Reads up to `char`, with it, or to the end."""
        if char == b"\n":
            return self.readline()
        start, found = self.tell(), b""
        while char not in found:
            more = self.read(blocks or 1 << 16)
            if not more:
                return found
            found += more
        found = found[: found.index(char) + len(char)]
        self.seek(start + len(found))
        return found

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _opened_again, (self.raw, self.tell(), self.fs, self.path, self.details)

    def __reduce__(self) -> Any:
        return self.__reduce_ex__(2)


def _opened_again(raw: File, position: int, fs: Any, path: str, details: Dict[str, Any]) -> BufferedFile:
    file = BufferedFile(raw, fs, path, details)
    file.seek(position)
    return file


class _Kept(NamedTuple):
    """A file that is open for the next call."""

    file: File
    details: Dict[str, Any]
    version: str
    asked: float  # when the target was asked for its details, seconds


# ---- the filesystem ----


class NearfileFileSystem(ChainedFileSystem):  # type: ignore[misc]
    """Reads through near copies; everything else (lists, names, writing) is the target's.

    target_protocol, target_options: the target; or `fs`, a filesystem (its kind and options count: it is made again in each process
    that reads).
    cache_dir: None: $XDG_CACHE_HOME/nearfile, else ~/.cache/nearfile. size_limit, page_size, min_free, when_full, max_fetch_bytes,
    wait_ms, workers: as `nearfile.Cache` has them. map, verify_always, trust_clean, max_connections, readahead: as
    `nearfile.Cache.open` has them.
    check_seconds: for how long `cat_file` and `cat_ranges` believe what the target's `info` said of a file; `open` always asks.

    A file whose content has changed is another near copy from the next open on. While it is open, HTTP and S3 targets refuse
    another content than the one that was opened (If-Match): that is an OSError with ESTALE. A target that keeps listings (s3fs) tells
    of a change once it lists again (`invalidate_cache`). A file whose size the target does not know is opened by the target. Works in
    forked and spawned workers; can be pickled, with its open files.

    >>> import fsspec, tempfile
    >>> with tempfile.TemporaryDirectory() as place:
    ...     fs = fsspec.filesystem("nearfile", target_protocol="memory", cache_dir=place)
    ...     with fs.open("/far.txt", "w") as file:
    ...         _ = file.write("far away")
    ...     fs.cat_file("/far.txt", 0, 3), fs.cat_file("/far.txt", -4)
    (b'far', b'away')
    """

    protocol = "nearfile"
    _strip_tokenize_options = ("fo",)

    def __init__(
        self,
        target_protocol: Optional[str] = None,
        target_options: Optional[Dict[str, Any]] = None,
        fs: Any = None,
        *,
        cache_dir: Optional[Path] = None,
        size_limit: int = 0,
        page_size: int = 0,
        min_free: int = 0,
        when_full: str = "evict",
        max_fetch_bytes: int = 0,
        wait_ms: int = 0,
        workers: int = 0,
        map: bool = False,
        verify_always: bool = False,
        trust_clean: bool = False,
        max_connections: int = 0,
        readahead: bool = True,
        check_seconds: float = 10.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if (fs is None) == (target_protocol is None):
            raise ValueError("pass target_protocol or fs, one of them (or a chained URL: nearfile::s3://bucket/key)")
        fs = fsspec.filesystem(target_protocol, **(target_options or {})) if fs is None else fs
        self._target, self._process, self._fs = _Target.of(fs), os.getpid(), fs
        self._cache_options = {
            "size_limit": size_limit, "page_size": page_size, "min_free": min_free, "when_full": when_full,
            "max_fetch_bytes": max_fetch_bytes, "wait_ms": wait_ms, "workers": workers,
        }  # fmt: skip
        self._file_options = {
            "map": map, "verify_always": verify_always, "trust_clean": trust_clean, "max_connections": max_connections,
            "readahead": readahead,
        }  # fmt: skip
        self._cache_dir, self._check_seconds = cache_dir, check_seconds
        self._kept: Dict[str, _Kept] = {}
        # An instance's own: each has another target.
        self._strip_protocol = self._strip

    def _strip(self, path: Any) -> Any:
        return self.fs._strip_protocol(super()._strip_protocol(path))

    @property
    def fs(self) -> Any:
        """The target, of this process."""
        if self._process != os.getpid():
            self._fs, self._process = self._target.make(), os.getpid()
        return self._fs

    @property
    def cache(self) -> Cache:
        """The cache directory, with its numbers (`.stats()`), `.list()`, `.trim()` and `.remove()`."""
        return shared_cache(default_directory("nearfile") if self._cache_dir is None else self._cache_dir, **self._cache_options)

    # ---- reading ----

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: Any = None,
        autocommit: bool = True,
        cache_options: Any = None,
        **kwargs: Any,
    ) -> Any:
        if mode == "rb":
            kept = self._look(path, 0)
            if kept is not None:
                return BufferedFile(kept.file.dup(), self, path, kept.details)
        else:
            self._kept.pop(path, None)
        options = {"block_size": block_size, "autocommit": autocommit, "cache_options": cache_options, **kwargs}
        return self.fs._open(path, mode=mode, **options)

    def _look(self, path: str, seconds: float) -> Optional[_Kept]:
        """The near copy of what the target has now, or had some seconds ago. None where it knows no size."""
        kept = self._kept.pop(path, None)
        now = time.monotonic()
        if kept is None or now - kept.asked > seconds:
            details = self.fs.info(path)
            if details.get("type") == "directory":
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
            if details.get("size") is None:
                return None
            version, size = _version(self.fs, path, details), index(details["size"])
            if kept is None or (kept.version, kept.file.size) != (version, size):
                kept = _Kept(self._open_near(path, version, size, details), details, version, now)
            kept = kept._replace(details=details, asked=now)
        self._kept[path] = kept
        for old in [*self._kept][:-_MOST_KEPT]:
            self._kept.pop(old, None)
        return kept

    def _open_near(self, path: str, version: str, size: int, details: Dict[str, Any]) -> File:
        etag = str(details.get("ETag") or "")
        source = _Source(self._target, path, "" if etag.startswith("W/") else etag)
        return self.cache.open(source, key=_key(self.fs, path), version=version, size=size, **self._file_options)  # type: ignore[arg-type]

    def cat_file(self, path: str, start: Optional[int] = None, end: Optional[int] = None, **kwargs: Any) -> Any:
        """The bytes from `start` to `end`, each counted from the end where negative."""
        path = self._strip_protocol(path)
        kept = self._look(path, self._check_seconds)
        if kept is None:
            return self.fs.cat_file(path, start=start, end=end, **kwargs)
        first, past, _ = slice(start, end).indices(kept.file.size)
        return kept.file.pread(max(past - first, 0), first)

    def cat_ranges(
        self, paths: List[str], starts: Any, ends: Any, max_gap: Optional[int] = None, on_error: str = "return", **kwargs: Any
    ) -> List[Any]:
        """The bytes of many ranges, those of a file with one call, files at the same time."""
        if not isinstance(paths, list):
            raise TypeError("paths is no list")
        starts, ends = (list(one) if isinstance(one, Iterable) else [one] * len(paths) for one in (starts, ends))
        if not len(paths) == len(starts) == len(ends):
            raise ValueError("there are not as many starts and ends as paths")
        numbers: Dict[str, List[int]] = {}
        for number, path in enumerate(paths):
            numbers.setdefault(self._strip_protocol(path), []).append(number)
        found: List[Any] = [None] * len(paths)

        def read(path: str) -> None:
            mine = numbers[path]
            for number, data in zip(mine, self._ranges(path, [(starts[one], ends[one]) for one in mine], kwargs)):
                if on_error == "raise" and isinstance(data, Exception):
                    raise data
                found[number] = data

        _at_once(read, [*numbers])
        return found

    def _ranges(self, path: str, ranges: List[Tuple[Any, Any]], kwargs: Dict[str, Any]) -> List[Any]:
        """Of each range its bytes, or the exception."""
        try:
            kept = self._look(path, self._check_seconds)
            if kept is not None:
                slices = [slice(*one).indices(kept.file.size) for one in ranges]
                return [*kept.file.read_ranges((first, max(past - first, 0)) for first, past, _ in slices)]
        except Exception as error:
            if len(ranges) == 1:
                return [error]
        return [_tried(self.cat_file, path, *one, **kwargs) for one in ranges]

    def cat(self, path: Any, recursive: bool = False, on_error: str = "raise", **kwargs: Any) -> Any:
        """The content of a file; of several, or of a pattern: a dict by path."""
        paths = self.expand_path(path, recursive=recursive)
        if len(paths) == 1 and not isinstance(path, list) and paths[0] == self._strip_protocol(path):
            return self.cat_file(paths[0], **kwargs)
        found = zip(paths, _at_once(lambda one: _tried(self.cat_file, one, **kwargs), paths))
        if on_error == "omit":
            return {name: data for name, data in found if not isinstance(data, Exception)}
        contents = dict(found)
        for data in contents.values():
            if on_error == "raise" and isinstance(data, Exception):
                raise data
        return contents


def _tried(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    try:
        return function(*arguments, **options)
    except Exception as error:
        return error


def _at_once(function: Callable[[str], Any], paths: List[str]) -> List[Any]:
    if len(paths) < 2:
        return [function(path) for path in paths]
    with concurrent.futures.ThreadPoolExecutor(min(len(paths), _MOST_AT_ONCE)) as pool:
        return [*pool.map(function, paths)]


# ---- what the target does ----


def _pass(name: str, changes: bool) -> Callable[..., Any]:
    def method(self: NearfileFileSystem, *args: Any, **kwargs: Any) -> Any:
        if changes:
            self._kept.clear()
        return getattr(self.fs, name)(*args, **kwargs)

    method.__name__ = name
    return method


_LOOKS = (
    "ls", "info", "exists", "isdir", "size", "sizes", "glob", "find", "walk", "du", "disk_usage", "created", "modified",
    "checksum", "ukey", "sign", "url", "unstrip_protocol", "_parent", "invalidate_cache", "expand_path",
)  # fmt: skip
_CHANGES = (
    "mkdir", "makedirs", "rmdir", "rm", "rm_file", "_rm", "delete", "cp_file", "copy", "cp", "mv", "move", "rename", "put", "put_file",
    "upload", "pipe", "pipe_file", "touch", "mkdirs",
)  # fmt: skip
for _name in (*_LOOKS, *_CHANGES):
    setattr(NearfileFileSystem, _name, _pass(_name, _name in _CHANGES))

# For a checkout; an installed package is found by its entry point.
fsspec.register_implementation("nearfile", NearfileFileSystem, clobber=True)
