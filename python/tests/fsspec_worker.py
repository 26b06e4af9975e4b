"""What a worker of test_fsspec.py does, without the libraries that the test needs: a spawned one imports this alone."""

import functools
import pickle
import random

from common import noise

PAGE = 16_384
SIZE = 1_000_000


def read_all(make, seed, data):
    """Reads all of the file in an order of its own, half through an open file and half through the filesystem."""
    file = make()
    parts = [*range(0, SIZE, 10_000)]
    random.Random(seed).shuffle(parts)
    for number, at in enumerate(parts):
        got = file.pread(10_000, at) if number % 2 else file.fs.cat_file(file.path, at, at + 10_000)
        assert got == data[at : at + 10_000]
    return True


def identity(thing):
    return thing


def read_pickled(pickled, seed):
    assert read_all(functools.partial(pickle.loads, pickled), seed, noise(SIZE))
