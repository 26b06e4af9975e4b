"""The classes of pfio's sparse-file cache (pfio.cache, up to 2.7), over nearfile: the same arguments, attributes and methods.

    from nearfile.pfio import MultiprocessSparseFileCache

docs/pfio.md tells what is different, each a defect there. All are safe with threads and forks, whatever `multithread_safe` says.

A file object that was not made by the builtin open() cannot be used from a forked child: `reopen=`, a callable that returns a new
one, makes its misses work there, and makes it possible to pickle the wrapper.
"""

from __future__ import annotations

import os
import secrets
from typing import Any, Callable, Dict, Optional, Tuple

from ._cache import Path, default_directory, open_handle, shared_cache
from ._file import Again, File

__all__ = [
    "CachedWrapper",
    "DynamicCachedWrapper",
    "MPCachedWrapper",
    "MultiprocessSparseFileCache",
    "SparseFileCache",
]

PAGE_SIZE = 16 * 1024 * 1024


class _Closed(ValueError, RuntimeError):
    """What files raise, and what pfio raised."""


class _Wrapper(File):
    """What the wrappers have in common."""

    _closed_error = _Closed

    def _start(
        self,
        fileobj: Any,
        size: Optional[int],
        cachedir: Optional[Path],
        close_on_close: bool,
        cache_size_limit: Optional[int],
        multithread_safe: bool,
        reopen: Optional[Callable[[], Any]],
        when_full: str,
        pagesize: int = 0,
        paths: Tuple[Optional[Path], Optional[Path]] = (None, None),
        own: Optional[Dict[str, Any]] = None,
    ) -> None:
        self.fileobj = fileobj
        self.cachedir = default_directory("pfio") if cachedir is None else os.fspath(cachedir)
        self.close_on_close, self.multithread_safe = close_on_close, multithread_safe
        self.cache_size_limit = cache_size_limit
        cache = shared_cache(self.cachedir, when_full="evict" if cache_size_limit is None else when_full)
        handle, again, name = open_handle(
            cache._options, cache._handle, fileobj, key=None, version="", size=size, page_size=pagesize,
            size_limit=0 if cache_size_limit is None else max(1, cache_size_limit), exact=not pagesize, frozen=False,
            verify_always=False, trust_clean=False, map=False, data_path=paths[0], index_path=paths[1], reopen=reopen,
            close_source=close_on_close, fork_safe=False, max_connections=0, readahead=True,
        )  # fmt: skip

        def wrap_again(file: File) -> Again:
            opened = again(file).options
            options = {
                "fileobj": opened["source"], "reopen": opened["reopen"], "size": file.size, "when_full": when_full,
                "cachedir": os.path.abspath(self.cachedir), "close_on_close": opened["close_source"],
                "cache_size_limit": cache_size_limit, "multithread_safe": multithread_safe, **(own or {}),
            }  # fmt: skip
            return Again(type(self), options)

        super().__init__(handle, wrap_again, name)

    @property
    def pos(self) -> int:
        """The position."""
        return self.tell()


class DynamicCachedWrapper(_Wrapper):
    """Fetches and keeps exactly the bytes that are read; private to the process: a forked child starts its own.

    when_full: at `cache_size_limit` no more is kept ("stop", as pfio's documentation said), or all is dropped ("flush", as it did).
    """

    def __init__(
        self,
        fileobj: Any,
        size: Optional[int],
        cachedir: Optional[Path] = None,
        close_on_close: bool = False,
        cache_size_limit: Optional[int] = None,
        multithread_safe: bool = False,
        *,
        reopen: Optional[Callable[[], Any]] = None,
        when_full: str = "stop",
    ) -> None:
        self._start(fileobj, size, cachedir, close_on_close, cache_size_limit, multithread_safe, reopen, when_full)


class CachedWrapper(_Wrapper):
    """Fetches whole pages into an unnamed file, gone at close and shared with forked children.

    >>> import io, nearfile.pfio
    >>> with nearfile.pfio.CachedWrapper(io.BytesIO(b"0123456789"), 10, pagesize=4) as file:
    ...     file.seek(8), file.read(4), file.tell(), file.read(4)
    (8, b'89', 10, b'')
    """

    def __init__(
        self,
        fileobj: Any,
        size: Optional[int],
        cachedir: Optional[Path] = None,
        close_on_close: bool = False,
        pagesize: int = PAGE_SIZE,
        multithread_safe: bool = False,
        cache_size_limit: Optional[int] = None,
        *,
        reopen: Optional[Callable[[], Any]] = None,
        when_full: str = "stop",
    ) -> None:
        self.pagesize = _positive(pagesize)
        self._start(
            fileobj, size, cachedir, close_on_close, cache_size_limit, multithread_safe, reopen, when_full, pagesize,
            own={"pagesize": pagesize},
        )  # fmt: skip


class MPCachedWrapper(CachedWrapper):
    """Fetches whole pages into a pair of files that other processes open by `local_cachefile` and `local_indexfile`.

    Where none are given they are made in `cachedir`. They stay after close, and are the program's to remove.
    """

    def __init__(
        self,
        fileobj: Any,
        size: Optional[int],
        cachedir: Optional[Path] = None,
        close_on_close: bool = False,
        cache_size_limit: Optional[int] = None,
        pagesize: int = PAGE_SIZE,
        local_cachefile: Optional[Path] = None,
        local_indexfile: Optional[Path] = None,
        multithread_safe: bool = False,
        *,
        reopen: Optional[Callable[[], Any]] = None,
        when_full: str = "stop",
    ) -> None:
        if bool(local_cachefile) != bool(local_indexfile):
            raise ValueError("local_cachefile and local_indexfile: give both or neither")
        if not local_cachefile:
            stem = os.path.join(os.path.abspath(cachedir or default_directory("pfio")), f"pfio-{secrets.token_hex(8)}")
            local_cachefile, local_indexfile = stem + ".data", stem + ".index"
        self.pagesize = _positive(pagesize)
        self.local_cachefile, self.local_indexfile = local_cachefile, local_indexfile
        own = {
            "pagesize": pagesize,
            "local_cachefile": os.path.abspath(local_cachefile),
            "local_indexfile": os.path.abspath(local_indexfile or ""),
        }
        self._start(
            fileobj, size, cachedir, close_on_close, cache_size_limit, multithread_safe, reopen, when_full, pagesize,
            (local_cachefile, local_indexfile), own,
        )  # fmt: skip


def _positive(pagesize: int) -> int:
    if pagesize <= 0:
        raise ValueError(f"pagesize is {pagesize}: at least 1 byte is needed")
    return pagesize


SparseFileCache = CachedWrapper
MultiprocessSparseFileCache = MPCachedWrapper
