"""A data loader as PyTorch's over a far file: eight workers by fork, then by spawn, read samples of one file from an nginx in an order
of their own each epoch. Every page is asked of the server once, over all workers and epochs, and every sample is right.

    loader.py [--rounds N] [--seconds S] [--torch]     in NEARFILE_TEST_DIR, an empty directory

One round is both ways of starting workers. With --torch it is torch.utils.data.DataLoader that starts them.
"""

import argparse
import hashlib
import multiprocessing
import os
import pathlib
import random
import shutil
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import nearfile  # noqa: E402
from common import Http, Nginx, noise  # noqa: E402

WORKERS, EPOCHS, FULL = 8, 2, 30
PAGE, SAMPLE, SAMPLES = 16_384, 5_000, 600
SIZE = SAMPLE * SAMPLES


# ---- the loader --------------------------------------------------------------------------------------------------------------


class Dataset:
    """Samples by number, of a file that was opened before there were workers."""

    def __init__(self, file):
        self.file = file

    def __getitem__(self, number):
        return self.file.pread(SAMPLE, number * SAMPLE)


def work(dataset, tasks, results):
    for batch in iter(tasks.get, None):
        results.put([(number, hashlib.sha256(dataset[number]).digest()) for number in batch])


def run_epochs(context, dataset, digests, seed):
    """Reads every sample in each epoch, through the workers; returns how many were wrong or missing."""
    tasks, results = context.Queue(), context.Queue()
    workers = [context.Process(target=work, args=(dataset, tasks, results), daemon=True) for _ in range(WORKERS)]
    for worker in workers:
        worker.start()
    wrong = 0
    for epoch in range(EPOCHS):
        order = list(range(SAMPLES))
        random.Random(seed * EPOCHS + epoch).shuffle(order)
        batches = [order[at : at + 16] for at in range(0, SAMPLES, 16)]
        for batch in batches:
            tasks.put(batch)
        loaded = dict(one for _ in batches for one in results.get(timeout=60))
        wrong += sum(loaded.get(number) != digests[number] for number in range(SAMPLES))
    for _ in workers:
        tasks.put(None)
    for worker in workers:
        worker.join(60)
        wrong += worker.exitcode != 0
    return wrong


class Tensors(Dataset):
    """The same samples for torch."""

    def __len__(self):
        return SAMPLES

    def __getitem__(self, number):
        import torch

        return number, torch.frombuffer(bytearray(super().__getitem__(number)), dtype=torch.uint8)


def run_torch_epochs(context, dataset, digests, seed):
    """The same by torch."""
    import torch
    from torch.utils.data import DataLoader

    order = torch.Generator().manual_seed(seed)
    options = {"batch_size": 16, "shuffle": True, "generator": order, "num_workers": WORKERS, "multiprocessing_context": context}
    loader, wrong = DataLoader(Tensors(dataset.file), **options), 0
    for _ in range(EPOCHS):
        loaded = {
            int(number): hashlib.sha256(bytes(sample.numpy())).digest() for numbers, samples in loader for number, sample in zip(numbers, samples)
        }
        wrong += sum(loaded.get(number) != digests[number] for number in range(SAMPLES))
    return wrong


def one_way(run, method, root, server, digests, seed):
    server.forget()
    place = tempfile.mkdtemp(prefix=f"{method}-", dir=root)
    with nearfile.Cache(place, page_size=PAGE) as cache:
        with cache.open(Http(f"{server.url}/samples"), key="samples", version="1", size=SIZE) as file:
            wrong = run(multiprocessing.get_context(method), Dataset(file), digests, seed)
    pages = server.pages(PAGE)
    twice = len(pages) - len(set(pages))
    missing = (SIZE + PAGE - 1) // PAGE - len(set(pages))
    shutil.rmtree(place)
    return wrong, twice, missing, len(server.requests())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=FULL)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--torch", action="store_true")
    limits = parser.parse_args()
    run = run_torch_epochs if limits.torch else run_epochs
    root = pathlib.Path(tempfile.mkdtemp(prefix="loader-", dir=os.environ["NEARFILE_TEST_DIR"]))
    (root / "far").mkdir()
    data = noise(SIZE)
    (root / "far" / "samples").write_bytes(data)
    digests = [hashlib.sha256(data[at : at + SAMPLE]).digest() for at in range(0, SIZE, SAMPLE)]
    server, began, told = Nginx(root), time.monotonic(), time.monotonic()
    done, found, requests = 0, 0, 0
    try:
        while done < limits.rounds and time.monotonic() - began < limits.seconds and found == 0:
            for method in ("fork", "spawn"):
                wrong, twice, missing, asked = one_way(run, method, root, server, digests, done)
                requests += asked
                if wrong + twice + missing > 0:
                    found += wrong + twice + missing
                    print(f"{method}: {wrong} samples wrong, {twice} pages asked for twice, {missing} never", file=sys.stderr)
            done += 1
            if time.monotonic() - told > 15:
                told = time.monotonic()
                print(f"  loader: {done} of {limits.rounds} rounds, {told - began:.0f} s", file=sys.stderr)
    finally:
        server.close()
    pages = (SIZE + PAGE - 1) // PAGE
    print(
        f"{done} of {FULL} rounds{', by torch' * limits.torch}: {WORKERS} workers by fork and {WORKERS} by spawn each, {EPOCHS} epochs of {SAMPLES} samples:"
        f" {2 * done * pages} pages, each once, in {requests} requests to nginx; {found} found wrong"
    )
    return found > 0 or done == 0


if __name__ == "__main__":
    sys.exit(main())
