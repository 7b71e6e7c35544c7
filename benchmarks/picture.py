"""Draw the README's picture of the speed from the figures of peers.py.

    python benchmarks/peers.py --suite quick --json benchmarks/speed.json
    python benchmarks/picture.py benchmarks/speed.json benchmarks/speed.svg

One row an item: how many times as long as fastconv each other library takes, on a logarithmic axis. Needs matplotlib.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

MARKS = {"torch": ("o", "#ee4c2c"), "onnxruntime": ("s", "#5c6bc0"), "opencv": ("^", "#2e9e5b"), "scipy": ("D", "#8a6d3b")}


def draw(facts: dict, target: Path) -> None:
    """Write the picture."""
    # Imported here: asv imports every module of this folder, in environments without matplotlib.
    from matplotlib import pyplot as plt

    rows = facts["rows"]
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.28 * len(rows)))
    for name, (marker, colour) in MARKS.items():
        times = [(row["milliseconds"], i) for i, row in enumerate(rows) if name in row["milliseconds"]]
        points = [(milliseconds[name] / milliseconds["fastconv"], i) for milliseconds, i in times]
        if points:
            axes.scatter(*zip(*points, strict=True), marker=marker, color=colour, s=32, zorder=3, label=f"{name} {facts['versions'][name]}")
    axes.axvline(1, color="#333333", linewidth=1.5)
    axes.set_xscale("log")
    axes.set_xticks([0.5, 1, 2, 5, 10, 100], ["0.5", "1", "2", "5", "10", "100"])
    axes.set_yticks(range(len(rows)), [f"{row['name']}  ({row['milliseconds']['fastconv']:.3g} ms)" for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.grid(axis="x", color="#dddddd", zorder=0)
    axes.set_xlabel("time relative to fastconv's (right of the line: fastconv is faster)")
    axes.set_title(f"{facts['cpu']}, {facts['threads']} threads, {facts['date']}", fontsize=9)
    figure.legend(loc="lower center", ncols=len(MARKS), fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
