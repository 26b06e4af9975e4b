"""The near copy of a far file: what was read once is served from a sparse file on the local disk, shared by the threads, processes
and forked children of the machine, and kept for the next run.

    import nearfile, zipfile

    cache = nearfile.Cache("/nvme/cache", size_limit=100 << 30)
    file = cache.open(read_at, key="s3://bucket/data.zip", version=etag, size=size)
    archive = zipfile.ZipFile(file)

The library is found by the environment variable NEARFILE_LIBRARY, beside this module, or by the system's loader.
CPython on Linux. nearfile.pfio has the classes of pfio's sparse-file cache.
"""

from ._cache import Cache, Entry, open
from ._file import File, Stats
from ._library import CancelledError, Error, ForkedError, FrozenError, ShortSourceError, SourceError
from ._library import version_string as _version_string

__all__ = [
    "Cache",
    "CancelledError",
    "Entry",
    "Error",
    "File",
    "ForkedError",
    "FrozenError",
    "ShortSourceError",
    "SourceError",
    "Stats",
    "open",
]
__version__: str = _version_string().decode()
