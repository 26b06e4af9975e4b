"""The wheel: built, installed into an environment of its own, imported and read through, with the library that it has inside."""

import os
import pathlib
import re
import subprocess
import sys
import zipfile

import fsspec
import pytest

PROJECT = pathlib.Path(__file__).resolve().parent.parent
SCRIPT = """
import io, os, nearfile, nearfile.pfio, sys
print(nearfile._library.LIBRARY._name)
print(nearfile.__version__)
with nearfile.open(io.BytesIO(b"0123456789")) as file, nearfile.pfio.SparseFileCache(file, 10) as other:
    print(other.read().decode())
"""
FSSPEC_SCRIPT = """
import sys
sys.path.append(sys.argv[1])  # where fsspec is
import fsspec
fsspec.filesystem("memory").pipe_file("/far", b"0123456789")
with fsspec.open("nearfile::memory://far") as file:
    print(type(file.fs).__module__, file.read().decode())
"""


def run(*command, **env):
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "NEARFILE_LIBRARY")}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env={**clean, **env}, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    copy = tmp_path_factory.mktemp("wheel")
    # Built in a copy, so that no build directory is left in the project.
    run("cp", "-r", PROJECT, copy / "python")
    run("cp", PROJECT.parent / "Cargo.toml", copy)
    library = os.environ.get("NEARFILE_LIBRARY") or PROJECT.parent / "target/release/libnearfile.so"
    run(sys.executable, "-m", "build", "--wheel", "--outdir", copy / "dist", copy / "python", NEARFILE_LIBRARY=str(library))
    (built,) = (copy / "dist").iterdir()
    return built


def test_the_wheels_name_and_contents(wheel):
    version = re.search(r'^version = "(.+)"', (PROJECT.parent / "Cargo.toml").read_text(), re.MULTILINE).group(1)
    assert re.fullmatch(rf"nearfile-{re.escape(version)}-py3-none-(many)?linux_(2_\d+_)?(x86_64|aarch64)\.whl", wheel.name)
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"nearfile/__init__.py", "nearfile/pfio.py", "nearfile/py.typed", "nearfile/libnearfile.so.0"} <= names
    assert not any("test" in name for name in names)


def test_it_is_installed_and_reads(wheel, tmp_path):
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    run(python, "-m", "pip", "install", "--no-index", "--no-deps", wheel)
    name, version, data = run(python, "-I", "-c", SCRIPT, XDG_CACHE_HOME=str(tmp_path)).split()
    assert name.startswith(str(tmp_path / "venv")) and name.endswith("nearfile/libnearfile.so.0")
    assert wheel.name.startswith(f"nearfile-{version}-") and data == "0123456789"
    # fsspec finds the filesystem by its entry point, without an import of ours.
    place = pathlib.Path(fsspec.__file__).parents[1]
    assert run(python, "-I", "-c", FSSPEC_SCRIPT, place, XDG_CACHE_HOME=str(tmp_path)).split() == ["nearfile.fsspec", "0123456789"]
