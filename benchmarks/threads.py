"""What more threads gain: milliseconds with one thread and with several, and their ratio.

    python benchmarks/threads.py [--threads 2] [--passes plan] [--only TEXT] [--seconds 0.2]

Both take turns in one process. "share" is the ratio over the number of threads. Run nothing else meanwhile.
"""

from __future__ import annotations

import argparse

from shapes import PASSES, call, explain, named, title
from turns import typical_seconds

import fastconv as fc
from fastconv.bench.measure import geometric_mean
from fastconv.bench.report import milliseconds
from fastconv.bench.suite import Item

TURNS = 4


def scaling(item: Item, which: str, counts: tuple[int, ...], seconds: float) -> list[float]:
    """Seconds with each number of threads: the best turn's median."""
    runs = []
    for count in counts:
        fc.set_num_threads(count)
        runs.append(call(item, which))
        runs[-1]()
    times: list[list[float]] = [[] for _ in counts]
    for _ in range(TURNS):
        for count, run, found in zip(counts, runs, times, strict=True):
            fc.set_num_threads(count)
            found.append(typical_seconds(run, seconds / TURNS))
    return [min(found) for found in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=fc.get_num_threads())
    parser.add_argument("--passes", default="plan", help=f"of {', '.join(PASSES)}, with commas between")
    parser.add_argument("--only", default="", metavar="TEXT", help="only rows whose name contains this")
    parser.add_argument("--seconds", type=float, default=0.2, help="time of a row and number of threads")
    options = parser.parse_args()
    print(f"{'row':30s}{'pass':12s}{'backend':10s}{'1 thread':>10s}{f'{options.threads} threads':>11s}{'ratio':>8s}{'share':>7s}")
    for which in options.passes.split(","):
        ratios = []
        for item in named():
            if options.only in title(item):
                one, many = scaling(item, which, (1, options.threads), options.seconds)
                ratios.append(one / many)
                print(f"{title(item):30s}{which:12s}{explain(item, which).chosen:10s}{milliseconds(one):>10s}{milliseconds(many):>11s}"
                      f"{ratios[-1]:8.2f}{ratios[-1] / options.threads:7.0%}", flush=True)
        print(f"{which}: geometric mean {geometric_mean(ratios):.2f}, least {min(ratios):.2f}")


if __name__ == "__main__":
    main()
