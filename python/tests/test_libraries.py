"""A nearfile.File where libraries take a file: pyarrow, h5py, asyncio by threads; each page of the far file is asked for once.
(zipfile, PIL and numpy: test_far.py; torch's DataLoader: loader.py --torch.)"""

import asyncio
import io
import random

import h5py
import numpy
import pyarrow
import pyarrow.parquet
import pytest
from common import Http, Nginx, noise, say

PAGE = 16_384
ROWS = 50_000


@pytest.fixture(scope="module")
def nginx(tmp_path_factory):
    root = tmp_path_factory.mktemp("libraries")
    (root / "far").mkdir()
    table = pyarrow.table({name: numpy.arange(ROWS) * number for number, name in enumerate("abcdefgh", 1)})
    pyarrow.parquet.write_table(table, root / "far" / "table.parquet", compression="none", use_dictionary=False, row_group_size=10_000)
    with pyarrow.ipc.new_file(root / "far" / "table.arrow", table.schema) as file:
        file.write_table(table, max_chunksize=10_000)
    with h5py.File(root / "far" / "arrays.h5", "w") as file:
        file.create_dataset("chunked", data=numpy.arange(100_000).reshape(1000, 100), chunks=(100, 100), compression="gzip")
        file["unwanted"] = numpy.random.default_rng(1).integers(0, 255, 1_000_000, numpy.uint8)
    (root / "far" / "noise").write_bytes(noise(1_000_000))
    server = Nginx(root)
    yield server
    server.close()


@pytest.fixture
def open_far(nginx, cache):
    """Opens a file of the server; at the end each page has been asked for once."""
    nginx.forget()

    def open_name(name, **options):
        size = (nginx.root / "far" / name).stat().st_size
        return cache.open(Http(f"{nginx.url}/{name}"), key=name, version="1", page_size=PAGE, size=size, **options)

    yield open_name
    pages = nginx.pages(PAGE)
    assert pages and pages == sorted({*pages})


def test_parquet_columns(open_far, nginx):
    for opened in (lambda file: file, pyarrow.PythonFile, lambda file: io.BufferedReader(file)):
        with open_far("table.parquet", readahead=False) as file:
            parquet = pyarrow.parquet.ParquetFile(opened(file))
            assert parquet.read(["c"])["c"].to_numpy().tolist() == [*range(0, 3 * ROWS, 3)]
            assert parquet.read_row_group(4, ["h"])["h"][-1].as_py() == 8 * (ROWS - 1)
    pages = len(nginx.pages(PAGE))
    say(f"a column of a Parquet file and a part of another, three times: {pages} of {(file.size + PAGE - 1) // PAGE} pages")
    assert pages < (file.size + PAGE - 1) // PAGE / 2


def test_parquet_read_ahead_of_use(open_far):
    with open_far("table.parquet") as file:
        table = pyarrow.parquet.read_table(file, pre_buffer=True, use_threads=True)
        assert table.num_rows == ROWS and table["h"][7].as_py() == 56


def test_arrow_batches(open_far):
    with open_far("table.arrow") as file, pyarrow.ipc.open_file(file) as batches:
        assert batches.get_batch(3).column("b")[0].as_py() == 60_000


def test_hdf5(open_far, nginx):
    with open_far("arrays.h5", readahead=False) as far, h5py.File(far) as file:
        assert (file["chunked"][450:460] == numpy.arange(45_000, 46_000).reshape(10, 100)).all()
        some = len(nginx.pages(PAGE))
        assert (file["chunked"][:] == numpy.arange(100_000).reshape(1000, 100)).all()
    assert some < (far.size + PAGE - 1) // PAGE / 4


def test_asyncio_by_threads(open_far):
    async def main():
        with open_far("noise") as file:
            places = [*range(0, file.size, 1000)]
            random.Random(3).shuffle(places)
            parts = await asyncio.gather(*(asyncio.to_thread(file.pread, 1000, at) for at in places))
            assert b"".join(part for _, part in sorted(zip(places, parts))) == noise(1_000_000)

    asyncio.run(main())
