"""What a run says: tables in the terminal, JSON, plots, and the figures of docs/performance.md."""

import json
import re
import subprocess

from cases import GOALS
from peers import PYTHON, ROOT, HERE

BEGIN, END = "<!-- figures: written by scripts/bench --write -->", "<!-- end of figures -->"


def amount(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def time_of(column, unit):
    if unit == "calls":
        return f"{column['median']:.2f}"
    value = column["median"] * (1e6 if unit == "ms" else 1)
    for scale, name in ((1e9, "s"), (1e6, "ms"), (1e3, "µs")):
        if value >= scale:
            return f"{amount(value / scale)} {name}"
    return f"{amount(value)} ns"


def note_of(column):
    if column.get("computed"):
        return "computed"
    notes = [f"{column['rounds']} rounds"]
    if "requests" in column:
        notes.append(f"{column['requests']} requests, {column['amplification']:.3f} of the size read from the source")
    if "spread" in column:
        notes.append(column["spread"])
    return ", ".join(notes)


def rows(case):
    for label, column in case["contenders"].items():
        if "error" in column:
            yield label, "–", "–", column["error"]
        else:
            ratio = f"{column['ratio']:.2f}" if "ratio" in column else "–"
            yield label, time_of(column, case["unit"]), ratio, note_of(column)


def print_case(name, case):
    print(f"\n{name}: {case['title']}")
    head = ("contender", "median", f"× {case['base']}" if case["base"] else "×", "")
    lines = [head, *rows(case)]
    widths = [max(len(line[at]) for line in lines) for at in range(3)]
    for line in lines:
        print(f"  {line[0]:<{widths[0]}}  {line[1]:>{widths[1]}}  {line[2]:>{widths[2]}}  {line[3]}".rstrip())


def goal_rows(cases):
    """Goal, measured, met: of each goal whose cases were run."""
    for goal in GOALS:
        measured = goal.measured(cases)
        if measured is not None:
            yield goal.text, ", ".join(goal.form.format(figure) for _, figure in measured), "met" if goal.met(measured) else "not met"


def print_goals(cases):
    lines = [("goal", "measured", ""), *goal_rows(cases)]
    widths = [max(len(line[at]) for line in lines) for at in range(2)]
    print("\ngoals")
    for line in lines:
        print(f"  {line[0]:<{widths[0]}}  {line[1]:>{widths[1]}}  {line[2]}")


def write_json(results, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


def draw(json_path, dir):
    dir.mkdir(parents=True, exist_ok=True)
    subprocess.run([PYTHON, HERE / "plots.py", json_path, dir], check=True)


# ---- docs/performance.md ----


def markdown(results):
    machine, lines = results["machine"], []
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines += [f"{machine['cpu']}, {machine['cores']} cores, {machine['memory']}, Linux {machine['kernel']}, {machine['file_system']}; load"
              f" {machine['load_before']:.1f} before the run and {machine['load_after']:.1f} after it, the run's own included.", "",
              f"Versions: {versions}." + "".join(f" {name}: {why}." for name, why in results["missing"].items()), "",
              "| goal | measured | |", "|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in goal_rows(results["cases"])]
    for name, case in results["cases"].items():
        lines += ["", f"**{case['title']}** (`{name}`)", "", f"| | median | {'× ' + case['base'] if case['base'] else ''} | |", "|---|---|---|---|"]
        lines += [f"| {' | '.join(row)} |" for row in rows(case)]
    return "\n".join(lines)


def write_into(results, path=ROOT / "docs/performance.md"):
    text = path.read_text()
    marked = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.S)
    if not marked.search(text):
        raise SystemExit(f"bench: {path} has no place for figures: '{BEGIN}' to '{END}'")
    path.write_text(marked.sub(lambda _: f"{BEGIN}\n\n{markdown(results)}\n\n{END}", text))
