"""What the documents promise: docstrings and the README's examples run, and the types hold under mypy --strict."""

import doctest
import importlib
import os
import pathlib
import pkgutil
import re
import subprocess
import sys

import nearfile
import pytest
from common import noise, s3_server

PROJECT = pathlib.Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("name", ["nearfile", *(f"nearfile.{module.name}" for module in pkgutil.iter_modules(nearfile.__path__))])
def test_doctests(name):
    module = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0
    for public in getattr(module, "__all__", ()):
        assert getattr(module, public).__doc__


def test_the_readmes_examples(tmp_path, monkeypatch):
    """All of them, one after the other as a reader would, over a bucket of an S3 server."""
    import io
    import zipfile

    import boto3
    import h5py

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    archive, arrays = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("inner.csv", "x,y\n1,2\n")
        file.writestr("noise", noise(100_000))
    with h5py.File(arrays, "w") as file:
        file["x"] = [1, 2, 3]
    blocks = re.findall(r"^```python\n(.*?)^```", (PROJECT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 4
    with s3_server() as endpoint:
        for name, value in {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "REGION": "us-east-1", "ENDPOINT_URL": endpoint}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        s3 = boto3.session.Session(region_name="us-east-1").client("s3")
        s3.create_bucket(Bucket="bucket")
        s3.put_object(Bucket="bucket", Key="arrays.h5", Body=arrays.getvalue())
        etag = s3.put_object(Bucket="bucket", Key="data.zip", Body=archive.getvalue())["ETag"]
        names = {"s3": s3, "b": "bucket", "k": "data.zip", "etag": etag, "size": len(archive.getvalue())}
        for block in blocks:
            exec(compile(block.replace("/nvme/cache", str(tmp_path / "cache")), "README.md", "exec"), names)
        s3.close()
    assert names["header"][:2] == b"PK" and names["archive"].namelist() == ["inner.csv", "noise"]
    assert names["csv"] == "x,y\n1,2\n" and [*names["x"]] == [1, 2, 3] and names["parts"] == [archive.getvalue()[:4], archive.getvalue()[100:110]]


def mypy(*arguments):
    command = [sys.executable, "-m", "mypy", "--cache-dir", os.devnull, *arguments]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=300)


def test_types_of_the_package():
    done = mypy("--config-file", "pyproject.toml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_types_of_a_program(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        """import nearfile

def read_at(offset: int, size: int) -> bytes:
    return bytes(size)

with nearfile.Cache("/nowhere", size_limit=1 << 30) as cache, cache.open(read_at, key="k", size=10) as file:
    data: bytes = file.pread(5, 0)
    parts: list[bytes] = file.read_ranges([(0, 1)])
    names: list[str] = [entry.key for entry in cache.list()]
    hits: int = file.stats().hits
nearfile.open(read_at, size="ten")
"""
    )
    done = mypy("--strict", program)
    (error, count) = done.stdout.splitlines()
    assert "program.py:11:" in error and '"size"' in error and count.startswith("Found 1 error"), done.stdout + done.stderr
