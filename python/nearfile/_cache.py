"""Cache directories, and opening files in them."""

from __future__ import annotations

import atexit
import multiprocessing.reduction
import os
import pickle
import sys
from ctypes import byref
from operator import index
from types import TracebackType
from typing import TYPE_CHECKING, Any, Callable, Dict, List, NamedTuple, Optional, Tuple, Type, Union
from weakref import WeakSet

from . import _library as c
from . import _source
from ._file import Again, File, Stats, open_files, stats_of

if TYPE_CHECKING:
    from typing_extensions import TypedDict, Unpack

    class Options(TypedDict, total=False):
        """What `Cache.open` takes beside the source."""

        key: Union[None, str, bytes]
        version: Union[str, bytes]
        size: Optional[int]
        page_size: int
        size_limit: int
        exact: bool
        frozen: bool
        verify_always: bool
        trust_clean: bool
        map: bool
        data_path: "Optional[Path]"
        index_path: "Optional[Path]"
        reopen: Optional[Callable[[], Any]]
        close_source: bool
        fork_safe: bool
        max_connections: int
        readahead: bool


Path = Union[str, "os.PathLike[str]"]
_open_caches: "WeakSet[Cache]" = WeakSet()


class Entry(NamedTuple):
    """A near copy in a cache directory, as `Cache.list` shows it."""

    key: str
    version: str
    data_path: str
    index_path: str
    size: int
    page_size: int
    cached_pages: int
    cached_bytes: int
    open: bool  # in this process or another
    outdated: bool  # another version of the same key was made later


class Cache:
    """A cache directory: made 0700 if need be; None: $XDG_CACHE_HOME/nearfile, else ~/.cache/nearfile.

    Zero means the default: pages of 1 MiB, fetches of up to 8 MiB, 10,000 ms of waiting for another's fetch, at most 16 threads of the
    library's own (`workers`) that read ahead and beside the one that reads, no limit. `size_limit`
    bounds the directory over all its files and processes and is kept there; at the limit pages are evicted ("evict"), or no more are
    kept ("stop"), or the file's are all dropped ("flush"). Files opened through a cache outlive it.

    >>> import nearfile, tempfile
    >>> with tempfile.TemporaryDirectory() as dir, nearfile.Cache(dir, page_size=4096) as cache:
    ...     with cache.open(lambda offset, size: b"x" * size, key="some://file", version="1", size=5000) as file:
    ...         _ = file.seek(4096), file.read()
    ...         file.extent(0), file.extent(4096)
    ((4096, False), (5000, True))
    """

    def __init__(
        self,
        dir: Optional[Path] = None,
        *,
        page_size: int = 0,
        size_limit: int = 0,
        min_free: int = 0,
        when_full: str = "evict",
        max_fetch_bytes: int = 0,
        wait_ms: int = 0,
        workers: int = 0,
    ) -> None:
        self._handle: Optional[c.CacheHandle] = None
        if when_full not in c.WHEN_FULL:
            raise ValueError(f"when_full is {when_full!r}: 'evict', 'stop' or 'flush' is possible")
        self._options: Dict[str, Any] = {
            "dir": None if dir is None else os.path.abspath(os.fspath(dir)),
            "page_size": index(page_size),
            "size_limit": index(size_limit),
            "min_free": index(min_free),
            "when_full": when_full,
            "max_fetch_bytes": index(max_fetch_bytes),
            "wait_ms": index(wait_ms),
            "workers": index(workers),
        }
        options = c.CCacheOptions(
            size_limit=c.unsigned("size_limit", size_limit),
            min_free=c.unsigned("min_free", min_free),
            page_size=c.unsigned("page_size", page_size),
            max_fetch_bytes=c.unsigned("max_fetch_bytes", max_fetch_bytes),
            when_full=c.WHEN_FULL[when_full],
            wait_ms=c.unsigned("wait_ms", wait_ms, 32),
            workers=c.unsigned("workers", workers, 32),
        )
        handle = c.CacheHandle()
        _check(c.cache_open(None if dir is None else c.path("dir", dir), byref(options), byref(handle)))
        self._handle = handle
        _open_caches.add(self)

    def open(
        self,
        source: Any = None,
        *,
        key: Union[None, str, bytes] = None,
        version: Union[str, bytes] = "",
        size: Optional[int] = None,
        page_size: int = 0,
        size_limit: int = 0,
        exact: bool = False,
        frozen: bool = False,
        verify_always: bool = False,
        trust_clean: bool = False,
        map: bool = False,
        data_path: Optional[Path] = None,
        index_path: Optional[Path] = None,
        reopen: Optional[Callable[[], Any]] = None,
        close_source: bool = False,
        fork_safe: bool = False,
        max_connections: int = 0,
        readahead: bool = True,
    ) -> File:
        """Opens the near copy of a remote file. Nothing is read from the source, but its size if that is None.

        source: what is read, one of
          - a path;
          - a file object: seek and read, by one thread at a time. One made by the builtin open() is read at offsets through a
            descriptor of its own; any other one works in forked children, and can be pickled, if `reopen` is given;
          - a callable read_at(offset, size) that returns bytes: fewer is fine and is read on, none is an error. It may be called by
            several threads at once;
          - an object with read_at; or with open() that returns any of these, called once for each connection and in each process
            that needs one. Its size (a number or a method) is asked if `size` is None, and its close if `close_source` is set.
        key: names the remote file (a URL), for all processes. None: the near copy is private and gone at close.
        version: names its content (an ETag). Another version is another near copy.
        size: bytes.
        page_size: bytes a page; 0: the cache's. A near copy that exists keeps its own.
        size_limit: the most bytes kept of this file.
        exact: only the bytes asked for are fetched, not whole pages; private only.
        frozen: never reads the source: a miss is `FrozenError`. With data_path and index_path no source is needed.
        verify_always: compares checksums at every hit. trust_clean: not at all after a clean close.
        map: copies hits from a map of the near copy, without a system call; a disk error there kills the process (SIGBUS).
        data_path, index_path: the near copy at two paths of one's own, both or neither; made if neither exists.
        reopen: a callable that returns a new source for each connection; `source` is then not read and may be None.
        close_source: calls source.close() when the last handle of the file is closed.
        fork_safe: the callable or read_at keeps no state and no connection: forked children may go on with it.
        max_connections: the most that are open at once; 1: calls never overlap. 0: 16, or 1 for a file object.
        readahead: False: nothing is read ahead, and the source is called on the thread that reads only.
        """
        if self._handle is None:
            raise ValueError("the cache is closed")
        handle_again_name = open_handle(
            self._options, self._handle, source, key=key, version=version, size=size, page_size=page_size,
            size_limit=size_limit, exact=exact, frozen=frozen, verify_always=verify_always, trust_clean=trust_clean,
            map=map, data_path=data_path, index_path=index_path, reopen=reopen, close_source=close_source, fork_safe=fork_safe,
            max_connections=max_connections, readahead=readahead,
        )  # fmt: skip
        return File(*handle_again_name)

    def stats(self) -> Stats:
        """The directory's numbers over all processes. Counts the pages of every index: not for a hot path."""
        filled = c.CStats()
        self._done(c.cache_get_stats(self._handle, byref(filled)))
        return stats_of(filled)

    def trim(self, keep_bytes: int = 0) -> None:
        """Evicts until no more than `keep_bytes` are used."""
        self._done(c.cache_trim(self._handle, c.unsigned("keep_bytes", index(keep_bytes))))

    def remove(self, key: Union[str, bytes]) -> None:
        """Removes the near copies of a key, all versions."""
        self._done(c.cache_remove(self._handle, c.text("key", key)))

    def list(self) -> "List[Entry]":
        """The near copies in the directory."""
        found: List[Entry] = []
        with _source.gathering(), _source.heard(lambda entry: found.append(_entry(entry.contents))) as number:
            status = c.cache_list(self._handle, _source.LIST, number)
        self._done(status)
        return found

    def close(self) -> None:
        """Ends the handle; files opened through it stay usable."""
        self._handle = None

    @property
    def closed(self) -> bool:
        return self._handle is None

    def __enter__(self) -> "Cache":
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<nearfile.Cache {self._options['dir'] or 'in the default directory'}{', closed' if self.closed else ''}>"

    def __reduce__(self) -> Any:
        return cache_again, (self._options,)

    def _done(self, status: int) -> None:
        if self._handle is None:
            raise ValueError("the cache is closed")
        _check(status)


def _check(status: int) -> None:
    if status < 0:
        raise _source.failure(status)


def _entry(entry: Any) -> Entry:
    def decoded(field: bytes) -> str:
        return field.decode("utf-8", "surrogateescape")

    return Entry(
        decoded(entry.key), decoded(entry.version), os.fsdecode(entry.data_path), os.fsdecode(entry.index_path),
        entry.size, entry.page_size, entry.cached_pages, entry.cached_bytes, bool(entry.open), bool(entry.outdated),
    )  # fmt: skip


def cache_again(options: Dict[str, Any]) -> Cache:
    """A cache as it was pickled."""
    return Cache(**options)


# ---- opening ----


def open_handle(
    cache_options: Optional[Dict[str, Any]], cache: Optional[c.CacheHandle], given: Any, **options: Any
) -> Tuple[c.FileHandle, Callable[[File], Any], str]:
    """Opens a file: its handle, what pickles it, and its name. The options are all of `Cache.open`."""
    key, size, reopen = options["key"], options["size"], options["reopen"]
    flags = {"frozen": c.FROZEN, "verify_always": c.VERIFY_ALWAYS, "trust_clean": c.TRUST_CLEAN, "map": c.MAP}
    table = c.COptions(
        key=None if key is None else c.text("key", key),
        version=c.text("version", options["version"]),
        size=c.SIZE_UNKNOWN if size is None else c.unsigned("size", index(size), 63),
        page_size=c.unsigned("page_size", options["page_size"]),
        size_limit=c.unsigned("size_limit", options["size_limit"]),
        mode=c.EXACT if options["exact"] else c.PAGED,
        flags=sum(flag for name, flag in flags.items() if options[name]) | (0 if options["readahead"] else c.READAHEAD_OFF),
    )
    for name in ("data_path", "index_path"):
        if options[name] is not None:
            setattr(table, name, c.path(name, options[name]))
    source = None
    if given is not None or reopen is not None:
        how = (options[name] for name in ("close_source", "fork_safe", "max_connections"))
        source = _source.Source(given, reopen, *how)
        told = source.told_size() if size is None else None
        if told is not None:
            table.size = c.unsigned("the source's size", told, 63)
    elif not options["frozen"]:
        raise TypeError("no source: pass one, or reopen=, or frozen=True with data_path= and index_path=")
    handle = c.FileHandle()
    if source is None:
        _check(c.file_open(cache, None, byref(table), byref(handle)))
    else:
        with _source.entered(source, handle) as callbacks:
            _check(c.file_open(cache, byref(callbacks), byref(table), byref(handle)))

    def again(file: File) -> Again:
        thing, ways = (None, {}) if source is None else source.to_pickle()
        paths = {name: options[name] and os.path.abspath(options[name]) for name in ("data_path", "index_path")}
        all_ = {**options, **paths, "size": file.size, **ways}
        all_["reopen"] = _checked(all_["reopen"])
        return Again(_open_again, {"cache": cache_options, "source": _checked(thing), **all_})

    if key is not None:
        name = key if isinstance(key, str) else key.decode("utf-8", "replace")
    else:
        name = str(options["data_path"] or getattr(given, "name", given if isinstance(given, str) else ""))
    return handle, again, name


def _checked(thing: Any) -> Any:
    """What can be pickled, by pickle or as multiprocessing does it."""
    for dumps in (pickle.dumps, multiprocessing.reduction.ForkingPickler.dumps):
        try:
            dumps(thing)
            return thing
        except Exception as error:
            cause = error
    raise TypeError(
        f"cannot pickle a nearfile.File over {thing!r} ({cause}): pass reopen=, a callable without arguments that can be pickled "
        "(a function of a module, a functools.partial) and returns a new file object or source, or open a path"
    ) from cause


def _open_again(cache: Optional[Dict[str, Any]], source: Any, **options: Any) -> File:
    if cache is None:
        return File(*open_handle(None, None, source, **options))
    with Cache(**cache) as opened:
        return opened.open(source, **options)


_shared_caches: Dict[Any, Tuple[Cache, os.stat_result]] = {}


def default_directory(name: str) -> str:
    """A directory of this name among the user's caches."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):
        base = os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, name)


def shared_cache(dir: Path, **options: Any) -> Cache:
    """A cache that stays open to the end of the process: closing one syncs. Opened anew where its path is another directory now."""
    name = os.path.abspath(dir), *sorted(options.items())
    cache, place = _shared_caches.get(name, (None, None))
    try:
        if cache is not None and place is not None and os.path.samestat(os.stat(dir), place):
            return cache
    except FileNotFoundError:
        pass
    cache = Cache(dir, **options)
    try:
        _shared_caches[name] = cache, os.stat(dir)
    except OSError:
        pass  # it cannot be made or reached: a cache that keeps nothing
    return cache


def open(source: Any = None, *, cache: Union[None, Cache, Path] = None, **options: Unpack[Options]) -> File:
    """Opens the near copy of a remote file, as `Cache.open` does, whose options these are.

    cache: a Cache; or the path of its directory; None: the default directory. Caches opened here stay open to the end of the process.

    >>> import io, nearfile
    >>> with nearfile.open(io.BytesIO(b"far away")) as file:
    ...     file.read(3)
    b'far'
    """
    if not isinstance(cache, Cache):
        cache = shared_cache(default_directory("nearfile") if cache is None else cache)
    return cache.open(source, **options)


def _end() -> None:
    """At the end of the interpreter, while callbacks still can run."""
    for file in [*open_files]:
        try:
            file.close()
        except Exception:
            sys.excepthook(*sys.exc_info())
    for cache in [*_open_caches]:
        cache.close()
    c.end()


atexit.register(_end)
