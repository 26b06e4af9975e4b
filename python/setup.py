"""Builds a wheel with the library inside: `pip wheel --no-deps ./python`, in a checkout of the project.

The library is the file that NEARFILE_LIBRARY names, else it is built by cargo. It needs no Python headers, so one wheel serves
every CPython of its platform. The version is Cargo.toml's.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = "libnearfile.so.0"


def version():
    return re.search(r'^version = "(.+)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE).group(1)


def library():
    """The file to bundle."""
    named = os.environ.get("NEARFILE_LIBRARY")
    if named:
        return Path(named).resolve(strict=True)
    subprocess.run(
        ["cargo", "rustc", "--locked", "--release", "--lib", "--crate-type", "cdylib", "--manifest-path", str(ROOT / "Cargo.toml")],
        check=True,
    )
    target = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
    return target / "release" / "libnearfile.so"


def oldest_glibc(file):
    """The oldest glibc that a library runs on: the newest version of a symbol that it asks for. None: it asks for none."""
    found = re.findall(rb"\0GLIBC_(\d+)\.(\d+)(?=[.\d]*\0)", file.read_bytes())
    return max(((int(major), int(minor)) for major, minor in found), default=None)


class BuildPy(build_py):
    def run(self):
        super().run()
        target = Path(self.build_lib, "nearfile", LIBRARY)
        shutil.copyfile(library(), target)
        target.chmod(0o755)

    def get_outputs(self, include_bytecode=True):
        return [*super().get_outputs(include_bytecode), str(Path(self.build_lib, "nearfile", LIBRARY))]


class BdistWheel(bdist_wheel):
    def get_tag(self):
        platform = super().get_tag()[2]
        glibc = oldest_glibc(Path(self.bdist_dir, "nearfile", LIBRARY))
        if glibc and not self.plat_name_supplied:
            platform = re.sub("^linux_", "manylinux_{}_{}_".format(*glibc), platform)
        return "py3", "none", platform


class PlatformDistribution(Distribution):
    def has_ext_modules(self):
        return True


class Sdist(sdist):
    def run(self):
        raise SystemExit("nearfile: the source distribution is the project's repository; build a wheel (build --wheel, pip wheel)")


setup(
    version=version(),
    distclass=PlatformDistribution,
    cmdclass={"build_py": BuildPy, "bdist_wheel": BdistWheel, "sdist": Sdist},
)
