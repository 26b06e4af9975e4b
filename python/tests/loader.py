"""A data loader as PyTorch's over a far file: eight workers by fork, then by spawn, read samples of one file from an nginx in an order
of their own each epoch. Every page is asked of the server once, over all workers and epochs, and every sample is right.

    loader.py [--rounds N] [--seconds S]      in NEARFILE_TEST_DIR, an empty directory; one round is both ways of starting workers
"""

import argparse
import hashlib
import multiprocessing
import os
import pathlib
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import nearfile  # noqa: E402
from common import Http, noise, wait_until  # noqa: E402

WORKERS, EPOCHS, FULL = 8, 2, 30
PAGE, SAMPLE, SAMPLES = 16_384, 5_000, 600
SIZE = SAMPLE * SAMPLES


# ---- the server ------------------------------------------------------------------------------------------------------------


class Nginx:
    """An nginx of our own on a free port, which logs the range of each request, and dies with us."""

    def __init__(self, root):
        self.root, self.log = root, root / "access.log"
        for _ in range(3):
            with socket.create_server(("127.0.0.1", 0)) as free:
                self.port = free.getsockname()[1]  # another program may take it before nginx does: then the next
            (root / "nginx.conf").write_text(self.conf())
            command = ["setpriv", "--pdeathsig", "TERM", shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")]
            self.process = subprocess.Popen([*command, "-p", root, "-e", root / "error.log", "-c", root / "nginx.conf"])
            try:
                wait_until(lambda: (root / "nginx.pid").exists() or self.process.poll() is not None, 10)
            except AssertionError:
                pass
            if self.process.poll() is None and (root / "nginx.pid").exists():
                return
        raise SystemExit(f"nginx does not start: {(root / 'error.log').read_text()}")

    def conf(self):
        temps = "\n".join(f"  {kind}_temp_path {self.root}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        return f"""
daemon off;
master_process off;
pid {self.root}/nginx.pid;
events {{ worker_connections 256; }}
http {{
{temps}
  log_format range '$status $http_range';
  access_log {self.log} range;
  keepalive_requests 1000000;
  server {{ listen 127.0.0.1:{self.port}; root {self.root}/far; }}
}}
"""

    def pages(self):
        """The pages that were asked for, as often as they were."""
        lines = self.log.read_text().splitlines()
        found = [re.fullmatch(r"206 bytes=(\d+)-(\d+)", line) for line in lines]
        assert all(found), lines
        return sorted(page for one in found for page in range(int(one[1]) // PAGE, int(one[2]) // PAGE + 1))

    def requests(self):
        return len(self.log.read_text().splitlines())

    def forget(self):
        os.truncate(self.log, 0)  # nginx appends

    def close(self):
        self.process.terminate()
        self.process.wait()


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


def one_way(method, root, server, digests, seed):
    server.forget()
    place = tempfile.mkdtemp(prefix=f"{method}-", dir=root)
    with nearfile.Cache(place, page_size=PAGE) as cache:
        with cache.open(Http(f"http://127.0.0.1:{server.port}/samples"), key="samples", version="1", size=SIZE) as file:
            wrong = run_epochs(multiprocessing.get_context(method), Dataset(file), digests, seed)
        reads = cache.stats().source_reads
    wait_until(lambda: server.requests() >= reads, 5)  # nginx writes its line after the client has its answer
    pages = server.pages()
    twice = len(pages) - len(set(pages))
    missing = (SIZE + PAGE - 1) // PAGE - len(set(pages))
    shutil.rmtree(place)
    return wrong, twice, missing, server.requests()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=FULL)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    limits = parser.parse_args()
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
                wrong, twice, missing, asked = one_way(method, root, server, digests, done)
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
        f"{done} of {FULL} rounds: {WORKERS} workers by fork and {WORKERS} by spawn each, {EPOCHS} epochs of {SAMPLES} samples:"
        f" {2 * done * pages} pages, each once, in {requests} requests to nginx; {found} found wrong"
    )
    return found > 0 or done == 0


if __name__ == "__main__":
    sys.exit(main())
