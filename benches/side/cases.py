"""The cases: what is measured, over which file, by which contenders, and what the goals ask of it."""

import dataclasses
import math

KI, MI, GI, TI = 1 << 10, 1 << 20, 1 << 30, 1 << 40
OURS = ("nearfile", "nearfile-map")
FOYER = (("foyer", "foyer"), ("foyer, in memory", "foyer-memory"))


@dataclasses.dataclass
class Contender:
    """A column. `program`: c, python or foyer; `name`: what the program calls it; `daemon`: what serves it, `peer`: what must be there."""

    label: str
    program: str = "c"
    name: str = ""
    daemon: str = ""
    peer: str = ""
    slower: int = 1  # it makes one in so many of the reads
    http: bool = False  # reads the far file from the server
    rounds: int = 0  # at most so many
    long: bool = False  # not in a quick run
    params: dict = dataclasses.field(default_factory=dict)

    @property
    def ours(self):
        return not self.peer


@dataclasses.dataclass
class Case:
    name: str
    title: str
    base: str  # the contender that ratios are over
    contenders: list
    params: dict
    rounds: int = 9
    unit: str = "ns"  # of one read; or ms, of all
    group: str = ""
    latency_ms: int = 0
    strace: bool = False
    bounds: dict = dataclasses.field(default_factory=dict)  # label: function of (case, times in ms by label), in ms

    @property
    def cold(self):
        return self.params.get("mode") == "cold"


def c(label, name="", **more):
    return Contender(label, "c", name or label, **more)


def python(label, name="", **more):
    return Contender(label, "python", name or label, **more)


def peers(slower=True, http=False):
    """The peers; http: the far file comes from the server."""
    by = (lambda n: n) if slower else (lambda n: 1)
    foyer = [Contender(label, "foyer", name, peer="foyer", slower=by(20)) for label, name in FOYER]
    return [
        python("pfio", peer="pfio", slower=by(4), http=http),
        python("pfio MP", "pfio-mp", peer="pfio", slower=by(8), http=http),
        python("fsspec", peer="fsspec", slower=by(4), http=http),
        c("FFmpeg cache:", "ffmpeg", peer="FFmpeg", slower=by(4), http=http),
        c("GDAL vsicurl", "gdal", peer="GDAL", slower=by(8), http=True),
        c("nbdkit cache", "nbd", daemon="nbdkit", peer="nbdkit", slower=by(20), http=http),
        c("rclone mount", "mounted", daemon="rclone", peer="rclone", http=http),
        *([] if http else foyer),
    ]


def named(size):
    return next(f"{size // scale}{unit}" for scale, unit in ((GI, "g"), (MI, "m"), (KI, "k"), (1, "")) if size >= scale)


def in_words(size):
    return next(f"{size // scale} {unit}" for scale, unit in ((GI, "GiB"), (MI, "MiB"), (KI, "KiB"), (1, "B")) if size >= scale)


# ---- warm ----

READS = {64: 200_000, 512: 200_000, 4 * KI: 60_000, 64 * KI: 6_000, MI: 400}


def warm(far):
    base = [c("pread"), c("mmap"), *map(c, OURS)]
    cases = []
    for op, count in READS.items():
        for workers, params in (("", {}), ("-2t", {"threads": 2}), ("-2p", {"processes": 2})):
            who = {"": "1 thread", "-2t": "2 threads", "-2p": "2 processes"}[workers]
            more = peers() if not workers else [c("rclone mount", "mounted", daemon="rclone", peer="rclone")] if op == 4 * KI else []
            cases.append(Case(f"warm-{named(op)}{workers}", f"warm, random, {in_words(op)}, {who}", "pread", base + more,
                              {"op": op, "count": count, "size": far, "page": MI, **params}, group="warm"))
    cases.append(Case("warm-sequential", "warm, sequential, 128 KiB", "pread", base + peers(),
                      {"op": 128 * KI, "count": 4000, "size": far, "page": MI, "pattern": "sequential"}, group="warm"))
    cases.append(Case("warm-100b", "100 B at the position, one after the other", "pread", [c("pread"), c("stdio"), *map(c, OURS)],
                      {"op": 100, "count": 300_000, "size": far, "page": MI, "pattern": "stream"}, group="warm"))
    cases.append(Case("pinned", "the pointer of a pinned range, one byte through it", "pread",
                      [c("pread"), c("pinned"), c("pin and release", "pin+release", slower=50)],
                      {"op": 64 * KI, "count": 100_000, "size": far, "page": MI}, group="warm"))
    cases.append(Case("calls", "system calls a hit, 4 KiB", "", [c("pread"), *map(c, OURS), *[p for p in peers(False) if p.name not in ("nbd", "foyer")]],
                      {"op": 4 * KI, "count": 1000, "size": far // 8, "page": MI}, rounds=1, unit="calls", group="warm", strace=True))
    cases.append(Case("python-4k", "from Python, warm, random, 4 KiB", "os.preadv",
                      [python("os.preadv"), *map(python, OURS), python("pfio", peer="pfio", slower=2),
                       python("pfio MP", "pfio-mp", peer="pfio", slower=4), python("fsspec", peer="fsspec", slower=4)],
                      {"op": 4 * KI, "count": 20_000, "size": far, "page": MI}, group="warm"))
    return cases


# ---- cold ----


def windows(size, page, most=8 * MI):
    """Requests, one after the other, for a file read from its start: a page, then windows that double up to the longest fetch."""
    requests = window = 0
    while size > 0:
        window = min(max(page, window * 2), most)
        size -= window
        requests += 1
    return requests


def window_bound(case, times):
    return windows(case.params["size"], case.params["page"]) * case.latency_ms + times["copy, no latency"]


def cold(far):
    base = {"mode": "cold", "pattern": "sequential"}
    size, small = far // 2, far // 8
    cases = [Case("cold-sequential-0ms-1m", "cold, sequential, 1 MiB pages, no latency", "cp",
                  [c("cp"), c("cp, then read", "cp+read"), c("copy", params={"page": MI}), *map(c, OURS), *peers(False)],
                  {**base, "op": MI, "count": size // MI, "size": size, "page": MI}, unit="ms", group="cold")]
    for source, http in (("", False), ("-http", True)):
        over = ", over HTTP" if http else ""
        ours = [c(label, http=http) for label in OURS]
        plain = [] if http else [c("a page at a time", "paged", rounds=3), c("no cache", "uncached", rounds=3),
                                 c("copy, no latency", "copy", params={"page": 8 * MI, "delay_us": 0})]
        bounds = {} if http else {"the bound": window_bound}
        theirs = peers(False, http=True) if http else [p for p in peers(False) if p.program != "c"]
        cases.append(Case(f"cold-sequential-5ms-64k{source}", f"cold, sequential, 64 KiB pages, 5 ms a request{over}",
                          "nearfile" if http else "a page at a time", plain + ours + [dataclasses.replace(p, rounds=3) for p in theirs],
                          {**base, "op": 64 * KI, "count": small // (64 * KI), "size": small, "page": 64 * KI}, unit="ms", rounds=5,
                          latency_ms=5, group="cold", bounds=bounds))
    for ms in (0, 5):
        for page in (64 * KI, MI):
            count = 2000 if ms == 0 else 200
            theirs = [dataclasses.replace(p, rounds=3) for p in peers(False, http=ms > 0)]
            cases.append(Case(f"cold-random-{ms}ms-{named(page)}", f"cold, random 4 KiB, {in_words(page)} pages, {ms} ms a request", "a page at a time",
                              [c("no cache", "uncached"), c("a page at a time", "paged"), *map(c, OURS), *theirs],
                              {"mode": "cold", "op": 4 * KI, "count": count, "size": size, "page": page}, unit="ms", rounds=5, latency_ms=ms,
                              group="cold"))
    return cases + many(small) + [batch(far)]


def many(size):
    params = {"mode": "cold", "pattern": "sequential", "op": 64 * KI, "count": size // (64 * KI), "size": size, "page": 64 * KI, "processes": 8}
    return [Case(f"eight{name}", f"8 processes read one cold file, 64 KiB pages, 5 ms a request{over}", "no cache",
                 [c("no cache", "uncached"), *[c(label, http=http) for label in OURS],
                  *[dataclasses.replace(p, rounds=2) for p in peers(False, http=http) if http or p.program == "python"]],
                 params, rounds=3, unit="ms", latency_ms=5, group="cold") for name, over, http in (("", "", False), ("-http", ", over HTTP", True))]


def batch_bound(case, _):
    connections = case.params["connections"]
    return math.ceil(case.params["count"] / connections) * case.latency_ms


def batch(far):
    return Case("batch", "256 ranges of 100 KiB in one call, 5 ms a request, 16 connections", "no cache",
                [c("no cache", "uncached", rounds=2), c("nearfile", "batch")],
                {"mode": "cold", "op": 100 * KI, "count": 256, "size": far, "page": 64 * KI, "connections": 16}, rounds=5, unit="ms",
                latency_ms=5, group="cold", bounds={"the bound": batch_bound})


# ---- zip, opening, eviction ----


def others(far):
    zipped = {"pattern": "zip", "page": MI, "op": 4 * KI, "count": 1, "file": "members.zip"}
    python_zips = [python("nearfile"), python("nearfile-map"), python("pfio", peer="pfio"), python("pfio MP", "pfio-mp", peer="pfio"),
                   python("fsspec", peer="fsspec")]
    return [
        Case("zip-warm", "a zip of 1,000 members, warm, libzip", "pread",
             [c("pread", "zip-pread"), c("nearfile", "zip-nearfile"), c("nearfile-map", "zip-nearfile-map")], zipped, unit="ms", group="zip"),
        Case("zip-python-warm", "a zip of 1,000 members, warm, Python's zipfile", "pread", [python("pread", "os.preadv"), *python_zips],
             zipped, unit="ms", group="zip"),
        *[Case(f"zip-cold{name}", f"a zip of 1,000 members{order}, cold, 1 MiB pages, 5 ms a request, Python's zipfile", "pfio",
               [*python_zips, python("no cache", "uncached", rounds=1)], {**zipped, "mode": "cold", "pattern": pattern}, rounds=3, unit="ms",
               latency_ms=5, group="zip")
          for name, order, pattern in (("", " as they lie", "zip-in-order"), ("-random", " in random order", "zip"))],
        Case("open", "opening a file of 1 TiB, 64 KiB pages", "nearfile",
             [c("nearfile", "opening", params={"count": 20}), python("fsspec", peer="fsspec", params={"pattern": "open"}),
              python("pfio", peer="pfio", rounds=1, long=True, params={"pattern": "open"})],
             {"mode": "cold", "pattern": "sequential", "op": 4 * KI, "count": 1, "size": TI, "page": 64 * KI}, unit="ns", group="open"),
        Case("evict", "random 64 KiB, 64 KiB pages, a limit of half of the file", "no cache",
             [c("no cache", "uncached"), c("nearfile"), c("nearfile-map")],
             {"op": 64 * KI, "count": 2000, "size": far // 2, "page": 64 * KI, "limit": far // 4}, group="evict"),
    ]


def all_cases(far):
    return [*warm(far), *cold(far), *others(far)]


# ---- the goals ----


@dataclasses.dataclass
class Goal:
    text: str
    cases: tuple
    measure: object  # of results by case: a list of (what, figure)
    limit: float
    form: str = "{:.2f} ×"
    at_least: bool = False

    def measured(self, results):
        if not all(name in results for name in self.cases):
            return None
        try:
            return self.measure({name: results[name] for name in self.cases})
        except (KeyError, TypeError):
            return None

    def met(self, measured):
        return all(round(figure, 3) >= self.limit if self.at_least else round(figure, 3) <= self.limit for _, figure in measured)


def ratio(label, base=None):
    """Of every case."""

    def measure(results):
        return [(name, result["contenders"][label]["median"] / result["contenders"][base]["median"] if base
                 else result["contenders"][label]["ratio"]) for name, result in results.items()]

    return measure


def value(label, key="median", scale=1.0):
    return lambda results: [(name, result["contenders"][label][key] * scale) for name, result in results.items()]


GOALS = [
    Goal("warm 4 KiB random, default: ≤ 1.10 × raw pread's time", ("warm-4k",), ratio("nearfile"), 1.10),
    Goal("warm 4 KiB random, map: ≤ 0.50 ×", ("warm-4k",), ratio("nearfile-map"), 0.50),
    Goal("warm 64 B, map: ≤ 0.20 ×", ("warm-64",), ratio("nearfile-map"), 0.20),
    Goal("warm 64 KiB, map: ≤ 0.77 ×", ("warm-64k",), ratio("nearfile-map"), 0.77),
    Goal("warm 1 MiB, map: ≤ 0.95 ×", ("warm-1m",), ratio("nearfile-map"), 0.95),
    Goal("2 threads, 2 processes, 4 KiB, map: ≤ 0.55 × raw pread under the same load", ("warm-4k-2t", "warm-4k-2p"), ratio("nearfile-map"), 0.55),
    Goal("pinned pointer, already pinned: ≤ 20 ns", ("pinned",), value("pinned"), 20, "{:.1f} ns"),
    Goal("system calls a hit, map: 0", ("calls",), value("nearfile-map"), 0, "{:.2f}"),
    Goal("system calls a hit, default: 1", ("calls",), value("nearfile"), 1, "{:.2f}"),
    Goal("small sequential reads of 100 B, default: ≤ 0.10 × a raw pread each", ("warm-100b",), ratio("nearfile"), 0.10),
    Goal("cold sequential at 0 latency, delivered and cached, 1 MiB pages: ≤ 1.35 × the time of cp", ("cold-sequential-0ms-1m",), ratio("nearfile"), 1.35),
    Goal("cold sequential, 64 KiB pages, 5 ms a request: ≥ 30 × faster than a page at a time", ("cold-sequential-5ms-64k",),
         lambda results: [(name, 1 / figure) for name, figure in ratio("nearfile")(results)], 30, "{:.1f} ×", at_least=True),
    Goal("and ≤ 1.5 × (window-limited requests × latency + copy)", ("cold-sequential-5ms-64k",), ratio("nearfile", "the bound"), 1.5),
    Goal("8 processes, one cold file, 5 ms: 1.000 amplification", ("eight",), value("nearfile", "amplification"), 1.0, "{:.3f}"),
    Goal("and ≤ 0.5 × the time of 8 uncached readers", ("eight",), ratio("nearfile"), 0.5),
    Goal("zip of 1,000 members, warm, map: ≤ 1.0 × raw pread", ("zip-warm",), ratio("nearfile-map"), 1.0),
    Goal("zip of 1,000 members as they lie, cold: ≤ 0.7 × pfio", ("zip-cold",), ratio("nearfile"), 0.7),
    Goal("zip of 1,000 members in random order, cold: ≤ 0.7 × pfio", ("zip-cold-random",), ratio("nearfile"), 0.7),
    Goal("batch of 256 ranges of 100 KiB in one call, 5 ms, 16 connections: ≤ 1.3 × the latency bound", ("batch",), ratio("nearfile", "the bound"), 1.3),
    Goal("open 1 TiB at 64 KiB pages: ≤ 0.2 ms", ("open",), value("nearfile", scale=1e-6), 0.2, "{:.3f} ms"),
    Goal("and ≤ 16 KiB allocated", ("open",), value("nearfile", "extra", 1 / KI), 16, "{:.0f} KiB"),
    Goal("Python, 4 KiB hit through File.pread_into: ≤ 2 × os.preadv", ("python-4k",), ratio("nearfile"), 2.0),
]
GOAL_CASES = list(dict.fromkeys(name for goal in GOALS for name in goal.cases))
