import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(__file__))
import common  # noqa: E402

try:
    import nearfile
except ModuleNotFoundError:
    sys.path.insert(0, os.path.dirname(os.path.dirname(__file__)))
    import nearfile


def pytest_terminal_summary(terminalreporter):
    if common.said:
        terminalreporter.section("what was fetched")
        for line in common.said:
            terminalreporter.write_line(line)


@pytest.fixture(autouse=True)
def default_directory(tmp_path, monkeypatch):
    """Nothing of the tests goes to the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(nearfile._cache, "_shared_caches", {})


@pytest.fixture
def cache(tmp_path):
    with nearfile.Cache(tmp_path / "cache", page_size=4096) as cache:
        yield cache
