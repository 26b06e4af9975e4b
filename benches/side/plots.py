"""Draws the ratios of a run, one picture a group of cases: plots.py RESULTS.json DIR."""

import json
import math
import pathlib
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OURS, THEIRS, COMPUTED = "#1f5fa8", "#9a9a9a", "#d0d0d0"


def colour(label, column):
    if column.get("computed"):
        return COMPUTED
    return OURS if label.startswith(("nearfile", "pin")) else THEIRS


def bars(axes, name, case):
    columns = [(label, column) for label, column in case["contenders"].items() if "ratio" in column]
    labels, ratios = [label for label, _ in columns], [column["ratio"] for _, column in columns]
    axes.barh(labels, ratios, color=[colour(label, column) for label, column in columns], height=0.7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    low, high = min([*ratios, 1]), max([*ratios, 1])
    axes.set_xlim(low / 1.6, high * 2.2)
    axes.axvline(1, color="black", linewidth=0.8)
    for at, ratio in enumerate(ratios):
        axes.text(ratio * 1.05, at, f"{ratio:.2f}", va="center", fontsize=8, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5})
    axes.set_title(f"{case['title']}\ntime over {case['base']}", fontsize=9, loc="left")
    axes.tick_params(labelsize=8)
    axes.minorticks_off()
    axes.xaxis.set_major_formatter("{x:g}")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def picture(group, cases, path):
    across = min(3, len(cases))
    down = math.ceil(len(cases) / across)
    most = max(sum("ratio" in column for column in case["contenders"].values()) for case in cases.values())
    figure, axes = plt.subplots(down, across, figsize=(6.2 * across, (0.9 + 0.24 * most) * down), squeeze=False, layout="constrained")
    for at, (name, case) in zip(axes.flat, cases.items()):
        bars(at, name, case)
    for at in axes.flat[len(cases):]:
        at.axis("off")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(results, dir):
    cases = {name: case for name, case in results["cases"].items() if any("ratio" in column for column in case["contenders"].values())}
    for group in dict.fromkeys(case["group"] for case in cases.values()):
        picture(group, {name: case for name, case in cases.items() if case["group"] == group}, dir / f"{group}.png")


main(json.loads(pathlib.Path(sys.argv[1]).read_text()), pathlib.Path(sys.argv[2]))
