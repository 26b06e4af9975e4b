"""Runs a case: one process a contender, all there at once, one at work at a time, in turns that begin with another in every round."""

import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess

import peers
from cases import OURS
from peers import HERE, PYTHON, WORK, Missing, say, stop

SCALE = {"ns": 1, "ms": 1e-6}


class Failed(Exception):
    """A contender of our own does not do its work."""


class Running:
    """A contender at work."""

    def __init__(self, contender, case, setting):
        self.contender, self.case, self.setting = contender, case, setting
        self.values, self.last, self.error = [], {}, ""
        self.daemon = self.process = self.perf = None
        self.dir = WORK / "dirs" / case.name / re.sub(r"\W+", "-", contender.label)
        shutil.rmtree(self.dir, ignore_errors=True)
        self.dir.mkdir(parents=True)

    def params(self):
        params = {**self.setting.params(self.case), **self.contender.params, "contender": self.contender.name, "dir": self.dir}
        if self.case.latency_ms and "delay_us" not in params and not self.contender.http:
            params["delay_us"] = self.case.latency_ms * 1000
        if self.contender.http:
            params["url"] = self.setting.server.url(self.case.latency_ms, params["file"].name)
        if self.contender.slower > 1:
            params["count"] = max(10, params["count"] // self.contender.slower)
        if self.contender.daemon == "rclone":
            params["file"] = self.mount_path(params["file"])
        if self.contender.daemon == "nbdkit":
            params["url"] = f"nbd+unix:///?socket={self.dir}.socket"
        return params

    def mount_path(self, file):
        return pathlib.Path(f"{self.dir}.mount") / file.name

    def start(self):
        self.setting.peers.require(self.contender.peer)
        self.start_daemon()
        environment = {**os.environ, "NEARFILE_LIBRARY": str(WORK / "lib/libnearfile.so.0"), "PYTHONPATH": str(peers.ROOT / "python"),
                       "SIDE_LIBRARY": self.setting.peers.libraries.get(self.contender.peer, "")}
        program = {"c": [WORK / "side"], "python": [PYTHON, HERE / "contender.py"], "foyer": [peers.FOYER]}[self.contender.program]
        self.command = [*program, *(f"{key}={value}" for key, value in self.params().items())]
        self.environment = environment
        if self.case.strace:
            return
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
                                        stderr=open(WORK / "errors.log", "a"))
        self.answer()
        if self.setting.profile and self.contender.ours:
            self.perf = peers.start(["perf", "record", "-q", "-o", self.profile(), "-p", self.process.pid])

    def profile(self):
        return WORK / "results" / f"{self.case.name} {self.contender.label}.perf"

    def report_profile(self):
        """Where its turns went: the functions with most of the samples."""
        stop(self.perf)
        lines = peers.output("perf", "report", "-i", self.profile(), "--stdio", "--no-children", "--percent-limit", "2", "-F", "overhead,dso,symbol")
        print(f"\n{self.case.name}: {self.contender.label}")
        print("\n".join(f"  {line.strip()}" for line in lines.splitlines() if "%" in line and not line.startswith("#")), flush=True)

    def start_daemon(self):
        if not self.contender.daemon:
            return
        file = self.setting.params(self.case)["file"]
        source = self.setting.server.url(self.case.latency_ms, "") if self.contender.http else f"{file.parent}/"
        if self.contender.daemon == "rclone":
            self.daemon = peers.Rclone(self.dir, source, file.name)
        else:
            # Its own size of blocks where all is warm: it copies a block at every hit.
            self.daemon = peers.Nbdkit(self.dir, source + file.name, self.case.params["page"] if self.case.cold else 64 << 10)

    def stop_daemon(self):
        if self.daemon is not None:
            self.daemon.stop()
            self.daemon = None

    def answer(self):
        line = self.process.stdout.readline()
        answer = json.loads(line) if line.strip() else {"error": f"it ended (see {WORK}/errors.log)"}
        if "error" in answer:
            raise Missing(answer["error"])
        return answer

    def ask(self, command):
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.answer()

    def prepare(self):
        """A cold daemon is a new one; what the contender in C empties is its cache then."""
        if self.case.cold:
            self.stop_daemon()
        if not (self.contender.daemon and self.case.cold):
            self.ask("prepare")
            return
        shutil.rmtree(self.dir, ignore_errors=True)
        self.dir.mkdir(parents=True)
        self.start_daemon()

    def round(self):
        self.prepare()
        mark = self.setting.server.mark() if self.contender.http else 0
        self.last = self.ask("run")
        if self.contender.http:
            self.last["requests"], self.last["bytes"] = self.setting.server.counted(mark)
        if self.contender.program == "c" and self.contender.name in OURS and self.case.group != "evict" and self.last["extra"]:
            raise Missing(f"{self.last['extra']} reads passed the near copy by")
        per = self.last["count"] if self.case.unit == "ns" else 1
        self.values.append(self.last["ns"] / per * SCALE[self.case.unit])

    def check(self):
        self.prepare()
        self.ask("check")

    def count_calls(self):
        """System calls a read, to a hundredth: the calls of two runs less those of one, over the reads of a run; the line that answers
        is a call, too."""
        self.values.append(round((self.calls_of(2) - self.calls_of(1) - 1) / self.params()["count"], 2))

    def calls_of(self, runs):
        shutil.rmtree(self.dir)
        self.dir.mkdir()
        log = WORK / "calls"
        done = subprocess.run(["strace", "-f", "-c", "-U", "name,calls", "-o", log, *map(str, self.command)], input="run\n" * runs, text=True,
                              stdout=subprocess.PIPE, env=self.environment, check=False)
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        if not answers or "ns" not in answers[-1]:
            raise Missing(answers[-1].get("error", "it ended") if answers else "it ended under strace")
        return int(re.search(r"^total\s+(\d+)", log.read_text(), re.M).group(1))

    def stop(self):
        if self.perf is not None:
            self.report_profile()
        if self.process is not None:
            self.process.stdin.close()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.stop_daemon()
        shutil.rmtree(self.dir, ignore_errors=True)


def guarded(running, step):
    """A peer that fails is out of the case; one of ours ends the run."""
    if running.error:
        return
    try:
        step()
    except (Missing, OSError, ValueError, subprocess.SubprocessError) as error:
        if running.contender.ours:
            raise Failed(f"{running.case.name}: {running.contender.label}: {error}") from error
        running.error = str(error)
        say(f"{running.case.name}: without {running.contender.label}: {error}")


def run_case(case, setting, rounds):
    everyone = [Running(contender, case, setting) for contender in case.contenders if not (setting.quick and contender.long)]
    try:
        for running in everyone:
            guarded(running, running.start)
        if case.strace:
            for running in everyone:
                guarded(running, running.count_calls)
            return summary(case, everyone)
        for running in everyone:
            guarded(running, running.check)
        for number in range(rounds or case.rounds):
            turn = number % len(everyone)
            for running in everyone[turn:] + everyone[:turn]:
                if not running.contender.rounds or number < running.contender.rounds:
                    guarded(running, running.round)
        return summary(case, everyone)
    finally:
        for running in everyone:
            running.stop()
        shutil.rmtree(WORK / "dirs" / case.name, ignore_errors=True)


# ---- what came of it ----


def summary(case, everyone):
    values = {running.contender.label: running.values for running in everyone if running.values and not running.error}
    base = values.get(case.base)
    result = {"title": case.title, "unit": case.unit, "base": case.base, "group": case.group, "contenders": {}}
    for running in everyone:
        label = running.contender.label
        result["contenders"][label] = column(case, running, base) if label in values else {"error": running.error or "no round"}
    times = {label: statistics.median(of) for label, of in values.items()}
    for label, bound in case.bounds.items():
        if base and all(needed in times for needed in (case.base,)):
            figure = bound(case, times)
            result["contenders"][label] = {"median": figure, "ratio": figure / times[case.base], "computed": True}
    return result


def column(case, running, base):
    values = running.values
    column = {"median": statistics.median(values), "least": min(values), "most": max(values), "rounds": len(values), "values": values}
    if base:
        column["ratio"] = statistics.median(value / over for value, over in zip(values, base))
    if case.cold and running.last.get("bytes"):
        column.update(requests=running.last["requests"], source_bytes=running.last["bytes"])
        column["amplification"] = running.last["bytes"] / running.params()["size"]
    if running.last.get("extra"):
        column["extra"] = running.last["extra"]
    return column
