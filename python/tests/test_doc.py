import doctest
import importlib
import pkgutil

import nearfile
import pytest


@pytest.mark.parametrize("name", ["nearfile", *(f"nearfile.{module.name}" for module in pkgutil.iter_modules(nearfile.__path__))])
def test_doctests(name):
    module = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0
    for public in getattr(module, "__all__", ()):
        assert getattr(module, public).__doc__
