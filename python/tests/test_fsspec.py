"""The fsspec filesystem over HTTP (nginx), S3 (moto) and local files: each page is asked for once, versions are told apart and never
mixed, and it does what fsspec's own filesystems do, in forked and spawned workers too."""

import concurrent.futures
import contextlib
import errno
import functools
import io
import itertools
import multiprocessing
import os
import pathlib
import pickle
import random
import subprocess
import sys
import threading
import time
import zipfile

import fsspec
import h5py
import nearfile
import nearfile.fsspec
import numpy
import pyarrow
import pyarrow.parquet
import pytest
from common import Nginx, noise, run_children, s3_server, say, wait_until
from fsspec_worker import PAGE, SIZE, identity, read_all, read_pickled

PAGES = [*range((SIZE + PAGE - 1) // PAGE)]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("fsspec")
    (root / "far").mkdir()
    (root / "far" / "noise").write_bytes(noise(SIZE))
    with zipfile.ZipFile(root / "far" / "data.zip", "w") as archive:
        archive.writestr("inner.csv", "x,y\n1,2\n")
        archive.writestr("noise", noise(300_000, 2))
    columns = {name: numpy.arange(50_000) * number for number, name in enumerate("abcdefgh", 1)}
    table = pyarrow.table(columns)
    pyarrow.parquet.write_table(table, root / "far" / "table.parquet", compression="none", use_dictionary=False, row_group_size=10_000)
    with h5py.File(root / "far" / "arrays.h5", "w") as file:
        file["wanted"] = numpy.arange(20_000)
        file["unwanted"] = numpy.arange(100_000)
    return root


@pytest.fixture(scope="module")
def nginx(root):
    server = Nginx(root)
    yield server
    server.close()


@pytest.fixture
def server(nginx):
    nginx.forget()
    return nginx


@pytest.fixture
def near(tmp_path):
    return {"cache_dir": str(tmp_path / "near"), "page_size": PAGE}


def over(protocol, near, **target):
    return fsspec.filesystem("nearfile", target_protocol=protocol, target_options=target, skip_instance_cache=True, **near)


def methods(server):
    return [line.split()[0] for line in server.requests()]


# ---- chains ----


def test_a_chained_url_is_read_once(server, near):
    for _ in range(2):
        with fsspec.open(f"nearfile::{server.url}/noise", nearfile=near) as file:
            assert file.read() == noise(SIZE) and file.size == SIZE
    assert server.pages(PAGE) == PAGES
    server.forget()
    fs = over("http", near)
    assert fs.open(f"{server.url}/noise").read() == noise(SIZE)
    assert methods(server) == ["HEAD"]
    (entry,) = fs.cache.list()
    assert entry.key == f"{server.url}/noise" and entry.version.startswith('ETag "')


def test_a_member_of_a_far_zip(server, near):
    with fsspec.open(f"zip://inner.csv::nearfile::{server.url}/data.zip", "rt", nearfile=near) as file:
        assert file.read() == "x,y\n1,2\n"
    assert len(server.pages(PAGE)) < 5
    with fsspec.open(f"zip://noise::nearfile::{server.url}/data.zip", nearfile=near) as file:
        assert file.read() == noise(300_000, 2)
    pages = server.pages(PAGE)
    assert pages == sorted({*pages})
    say(f"two members of a zip over HTTP: {len(pages)} pages, each asked for once")
    # The other way round: the key tells which archive.
    with fsspec.open(f"nearfile::zip://inner.csv::{server.url}/data.zip", nearfile=near) as file:
        assert file.readline() == b"x,y\n" and file.raw.name == f"zip://inner.csv::{server.url}/data.zip"


def test_columns_of_a_far_parquet_file(server, near):
    fs = over("http", {**near, "readahead": False})
    for _ in range(2):
        table = pyarrow.parquet.read_table(f"{server.url}/table.parquet", columns=["c", "f"], filesystem=fs)
        assert table["c"].to_numpy().tolist() == [*range(0, 150_000, 3)] and table["f"][49_999].as_py() == 49_999 * 6
    pages, size = server.pages(PAGE), fs.size(f"{server.url}/table.parquet")
    assert pages == sorted({*pages})
    say(f"2 of 8 columns of a Parquet file over HTTP, twice: {len(pages)} of {(size + PAGE - 1) // PAGE} pages, each asked for once")
    assert len(pages) < (size + PAGE - 1) // PAGE / 2


def test_a_dataset_of_a_far_hdf5_file(server, near):
    with fsspec.open(f"nearfile::{server.url}/arrays.h5", nearfile={**near, "readahead": False}) as far, h5py.File(far) as file:
        assert (file["wanted"][:] == numpy.arange(20_000)).all()
        size = far.size
    pages = server.pages(PAGE)
    assert pages == sorted({*pages}) and len(pages) < 20_000 * 8 / PAGE + 5
    say(f"a dataset of two of an HDF5 file over HTTP: {len(pages)} of {(size + PAGE - 1) // PAGE} pages, each asked for once")


def test_without_fsspec_it_says_what_to_install():
    code = "import sys; sys.modules['fsspec'] = None\ntry: import nearfile.fsspec\nexcept ImportError as error: print(error)"
    env = {**os.environ, "PYTHONPATH": str(pathlib.Path(nearfile.__file__).parents[1])}
    assert "pip install 'fsspec>=" in subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True).stdout


# ---- versions ----


def test_a_changed_object_is_another_near_copy(server, near, root):
    far, url, fs = root / "far" / "changing", f"{server.url}/changing", over("http", near)
    far.write_bytes(noise(10 * PAGE, 1))
    old = fs.open(url)
    assert old.read(PAGE) == noise(10 * PAGE, 1)[:PAGE]
    (root / "far" / "next").write_bytes(noise(10 * PAGE, 2))
    os.utime(root / "far" / "next", (1, 1))
    os.replace(root / "far" / "next", far)
    # What is here stays; what is not is refused, and not mixed in.
    assert old.pread(100, 0) == noise(10 * PAGE, 1)[:100]
    with pytest.raises(OSError) as raised:
        old.pread(100, 5 * PAGE)
    assert raised.value.errno == errno.ESTALE
    assert fs.open(url).read() == noise(10 * PAGE, 2)
    assert old.pread(PAGE, 0) == noise(10 * PAGE, 1)[:PAGE]
    assert sorted(entry.outdated for entry in fs.cache.list()) == [False, True]


def test_cat_file_believes_for_a_while(server, near, root):
    far, url, patient, eager = root / "far" / "shown", f"{server.url}/shown", over("http", {**near, "check_seconds": 1000}), over("http", {**near, "check_seconds": 0})
    far.write_bytes(b"1" * 10)
    for _ in range(5):
        assert patient.cat_file(url, 2, 4) == eager.cat_file(url, 2, 4) == b"11"
    assert methods(server).count("HEAD") == 6
    far.write_bytes(b"2" * 11)
    assert patient.cat_file(url) == b"1" * 10 and eager.cat_file(url) == b"2" * 11
    patient.open(url)
    assert patient.cat_file(url) == b"2" * 11


def test_a_server_that_ignores_ranges_is_refused(server, near):
    with fsspec.open(f"nearfile::{server.url}/whole/noise", nearfile=near) as file:
        with pytest.raises(OSError, match="ignores ranges") as raised:
            file.pread(10, 5)
        assert raised.value.errno == errno.EPROTO and file.raw.stats().cached_pages == 0


def test_a_missing_file(server, near):
    fs = over("http", near)
    with pytest.raises(FileNotFoundError):
        fs.open(f"{server.url}/nothing")
    with pytest.raises(FileNotFoundError):
        fs.cat_file(f"{server.url}/nothing", 0, 1)
    good, bad = fs.cat_ranges([f"{server.url}/noise", f"{server.url}/nothing"], [0, 0], [3, 3])
    assert good == noise(SIZE)[:3] and isinstance(bad, FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        fs.cat_ranges([f"{server.url}/nothing"], [0], [3], on_error="raise")


# ---- workers ----


@pytest.mark.parametrize("opened", ["before the fork", "after it"])
def test_eight_forked_workers(server, near, opened):
    fs = over("http", near)
    file, data = fs.open(f"{server.url}/noise"), noise(SIZE)
    assert file.pread(10, 0) == data[:10]  # the parent's loop runs, and has a connection
    make = functools.partial(identity, file) if opened == "before the fork" else functools.partial(fs.open, f"{server.url}/noise")
    run_children([functools.partial(read_all, make, seed, data) for seed in range(8)])
    assert server.pages(PAGE) == PAGES
    say(f"8 workers forked, the file opened {opened}: {len(PAGES)} pages, each asked for once, in {methods(server).count('GET')} requests")


def test_eight_spawned_workers(server, near):
    file = over("http", near).open(f"{server.url}/noise")
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=read_pickled, args=(pickle.dumps(file), seed)) for seed in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * 8
    assert server.pages(PAGE) == PAGES
    say(f"8 workers spawned: {len(PAGES)} pages, each asked for once, in {methods(server).count('GET')} requests")


def test_a_fork_while_threads_read(server, near):
    fs, data, stop = over("http", near), noise(SIZE), threading.Event()
    file = fs.open(f"{server.url}/noise")

    def busy(seed):
        rng = random.Random(seed)
        while not stop.is_set():
            at = rng.randrange(SIZE)
            assert file.pread(500, at) == data[at : at + 500]
            file.raw.discard(at - at % PAGE, PAGE)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        done = [pool.submit(busy, seed) for seed in range(4)]
        try:
            for _ in range(4):
                run_children([functools.partial(read_all, functools.partial(identity, file), seed, data) for seed in range(2)])
        finally:
            stop.set()
        assert not any(one.exception() for one in done)


def test_a_pickled_file_keeps_its_place(server, near):
    file = over("http", near).open(f"{server.url}/noise")
    file.seek(12_345)
    again = pickle.loads(pickle.dumps(file))
    assert again.tell() == 12_345 and again.read(10) == file.read(10) == noise(SIZE)[12_345:12_355]
    assert pickle.loads(pickle.dumps(fsspec.open(f"nearfile::{server.url}/noise", nearfile=near))).open().read(5) == noise(SIZE)[:5]


# ---- S3 ----


@pytest.fixture(scope="module")
def s3():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "127.0.0.1")
        with s3_server() as endpoint:
            options = {"key": "test", "secret": "test", "client_kwargs": {"endpoint_url": endpoint, "region_name": "us-east-1"}}
            fsspec.filesystem("s3", **options).call_s3("create_bucket", Bucket="shelf")
            yield options


def test_s3(s3, near):
    far = fsspec.filesystem("s3", use_listings_cache=False, **s3)
    far.pipe_file("shelf/dir/noise", noise(SIZE))
    fs, path = fsspec.url_to_fs("nearfile::s3://shelf/dir/noise", s3=s3, nearfile=near)
    assert fs.ls("shelf/dir", detail=False) == ["shelf/dir/noise"] and fs.exists(path) and fs.glob("shelf/d*/n*") == [path]
    file, data = fs.open(path), noise(SIZE)
    run_children([functools.partial(read_all, functools.partial(identity, file), seed, data) for seed in range(4)])
    stats = fs.cache.stats()
    assert stats.source_bytes == SIZE and stats.pages_fetched == len(PAGES)
    say(f"S3, 4 forked workers: {stats.source_bytes} of {SIZE} bytes read, in {stats.source_reads} requests")
    assert [entry.key for entry in fs.cache.list()] == ["s3://shelf/dir/noise"]
    # Another content: refused under the open file, and another near copy at the next open.
    file.raw.discard()
    far.pipe_file("shelf/dir/noise", noise(SIZE, 7))
    fs.invalidate_cache()
    with pytest.raises(OSError) as raised:
        file.pread(10, 500_000)
    assert raised.value.errno == errno.ESTALE
    assert fs.open(path).read() == noise(SIZE, 7)


# ---- as fsspec's own ----


@contextlib.contextmanager
def memory_file(content):
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/dir/file", content)
    try:
        yield memory
    finally:
        memory.rm("/dir", recursive=True)


def test_ranges_are_what_the_target_gives(near):
    content = noise(3 * PAGE + 5)
    with memory_file(content) as memory:
        fs = over("memory", near)
        ends = [None, 0, 1, 3, PAGE, 2 * PAGE + 1, len(content) - 1, len(content), len(content) + 9]
        ends += [-one for one in ends if one]
        pairs = [*itertools.product(ends, ends)]
        for start, end in pairs:
            assert fs.cat_file("/dir/file", start, end) == content[start:end], (start, end)
        wanted = [content[start:end] for start, end in pairs]
        starts, ends = zip(*pairs)
        assert fs.cat_ranges(["/dir/file"] * len(pairs), list(starts), list(ends)) == wanted
        assert fs.cat_ranges(["/dir/file", "memory://dir/file"], 1, 4) == [content[1:4]] * 2
        assert fs.cat("/dir/file") == memory.cat("/dir/file") and fs.cat(["/dir/file"]) == memory.cat(["/dir/file"])
        assert fs.cat("/dir/*") == memory.cat("/dir/*") == {"/dir/file": content}
        with pytest.raises(FileNotFoundError):
            fs.cat(["/dir/file", "/dir/no"])
        assert fs.cat(["/dir/file"], on_error="omit") == {"/dir/file": content}
        assert fs.head("/dir/file", 5) == content[:5] and fs.tail("/dir/file", 5) == content[-5:]
        assert fs.read_block("/dir/file", 7, 11) == content[7:18]


def test_files_are_what_the_target_gives(near, tmp_path):
    lines = b"".join(b"line %d\n" % number for number in range(20_000)) + b"the last; no end"
    with memory_file(lines) as memory:
        fs = over("memory", near)
        with fs.open("/dir/file") as file:
            assert [*file] == lines.splitlines(keepends=True)
            assert file.seek(-7, 2) == len(lines) - 7 == file.loc and file.read() == b" no end" and file.read() == b""
            assert file.seek(3) == 3 and file.readuntil(b";") == lines[3 : lines.index(b";") + 1] and file.readuntil(b";") == b" no end"
            buffer = bytearray(10)
            assert file.seek(5) == 5 and file.readinto(buffer) == 10 and buffer == lines[5:15]
            assert file.size == len(lines) == file.info()["size"] and file.blocksize == PAGE and file.path == "/dir/file"
            assert file.full_name == "memory:///dir/file" or file.full_name == "memory://dir/file", file.full_name
            assert not file.writable() and file.readable() and file.seekable() and not file.closed
        assert file.closed
        with pytest.raises(ValueError):
            file.read(1)
        with fs.open("/dir/file", "r") as text:
            assert text.readlines()[-1] == "the last; no end"
        fs.get("/dir/file", str(tmp_path / "got"))
        assert (tmp_path / "got").read_bytes() == lines
        assert [*fs.walk("/dir")] == [*memory.walk("/dir")] and fs.find("/") == memory.find("/") and fs.isdir("/dir") and fs.du("/dir") == len(lines)


def test_writing_is_the_targets(near):
    with memory_file(b"before") as memory:
        fs = over("memory", near)
        assert fs.cat_file("/dir/file") == b"before"
        with fs.open("/dir/file", "wb") as file:
            file.write(b"and after")
        assert fs.cat_file("/dir/file") == b"and after"
        fs.pipe_file("/dir/file", b"piped")
        assert fs.cat_file("/dir/file") == b"piped" == memory.cat_file("/dir/file")
        fs.mv("/dir/file", "/dir/other")
        assert not fs.exists("/dir/file") and fs.cat_file("/dir/other") == b"piped"
        fs.makedirs("/dir/sub")
        fs.rm("/dir/other")
        assert [*memory.find("/dir")] == [] and memory.isdir("/dir/sub")


def test_local_files_and_who_has_no_size(near, tmp_path):
    (tmp_path / "far").write_bytes(noise(SIZE))
    url = f"nearfile::file://{tmp_path}/far"
    with fsspec.open(url, nearfile=near) as file:
        assert file.read() == noise(SIZE) and file.raw.name == f"file://{tmp_path}/far"
    with fsspec.open(url, nearfile=near) as file:
        assert file.read() == noise(SIZE) and file.fs.cache.stats().source_bytes == SIZE
    with pytest.raises(IsADirectoryError):
        over("file", near).open(str(tmp_path))

    class Sizeless(fsspec.filesystem("memory").__class__):
        def info(self, path, **options):
            return {**super().info(path, **options), "size": None}

    with memory_file(b"of unknown size"):
        fs = fsspec.filesystem("nearfile", fs=Sizeless(), **near)
        assert fs.open("/dir/file").read() == fs.cat_file("/dir/file") == b"of unknown size"
        assert fs.cat_ranges(["/dir/file"], [3], [10]) == [b"unknown"]


def test_a_target_that_is_no_better_than_one_socket(near):
    """Each connection has a filesystem of its own, which is used by one thread at a time."""

    class OneSocket(fsspec.filesystem("memory").__class__):
        made, mixed = [], []

        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.user = None
            self.made.append(self)

        def cat_file(self, path, start=None, end=None, **options):
            if self.user is not None:
                self.mixed.append(threading.get_ident())
            self.user = threading.get_ident()
            time.sleep(0.2)
            self.user = None
            return super().cat_file(path, start, end, **options)

    with memory_file(noise(SIZE)):
        file = fsspec.filesystem("nearfile", fs=OneSocket(), readahead=False, **near).open("/dir/file")
        one, other = concurrent.futures.ThreadPoolExecutor(1), concurrent.futures.ThreadPoolExecutor(1)
        with one, other:
            one.submit(file.pread, PAGE, 0).result()
            # The other takes over the connection that the first thread made, and the first needs another.
            slow = other.submit(file.pread, PAGE, PAGE)
            wait_until(lambda: any(fs.user for fs in OneSocket.made))
            assert one.submit(file.pread, PAGE, 2 * PAGE).result() + slow.result() == noise(SIZE)[2 * PAGE : 3 * PAGE] + noise(SIZE)[PAGE : 2 * PAGE]
        assert not OneSocket.mixed and len(OneSocket.made) == 3


def test_options(near):
    with pytest.raises(ValueError, match="target_protocol or fs"):
        fsspec.filesystem("nearfile", **near)
    with pytest.raises(ValueError, match="when_full"):
        over("memory", {**near, "when_full": "panic"}).cache
    limited = over("memory", {**near, "size_limit": 4 * PAGE})
    with memory_file(noise(SIZE)):
        assert limited.open("/dir/file").read() == noise(SIZE)
        assert 0 < limited.cache.stats().cached_bytes <= 4 * PAGE
        assert isinstance(limited.open("/dir/file"), io.BufferedReader)
