"""How well the dispatcher chooses: the time of the backend it takes over that of the fastest one.

    python benchmarks/regret.py [--random 200] [--seed 0] [--passes plan,call,grad_input,grad_weight] [--only TEXT] [--over 1.1]

Every backend that takes a convolution runs it, by turns; microseconds, predicted -> measured. A regret over RECHECKED is measured
once more, for longer, which leaves out moments of noise. Run nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import time
from typing import NamedTuple

from shapes import PASSES, call, explain, named, random_items, title

import fastconv as fc
from fastconv.bench.measure import geometric_mean, median_seconds
from fastconv.bench.suite import Item

__all__ = ["Regret", "regret"]

SECONDS = 0.1  # for all backends of a row together
RECHECKED, LONGER = 1.1, 5
HOPELESS = 4  # times the fastest first run: such backends run once


class Regret(NamedTuple):
    """The dispatcher's choice for one pass of one convolution, and what each backend was predicted to take and took."""

    title: str
    which: str
    chosen: str
    predicted: dict[str, float]
    measured: dict[str, float]

    @property
    def value(self) -> float:
        """Time of the choice over the time of the fastest: 1 is perfect."""
        return self.measured[self.chosen] / min(self.measured.values())

    def __str__(self) -> str:
        times = "  ".join(f"{name} {self.predicted[name] * 1e6:.0f} -> {seconds * 1e6:.0f}"
                          for name, seconds in sorted(self.measured.items(), key=lambda pair: pair[1]))
        return f"{self.value:5.2f}  {self.title:44s} {self.which:12s}{self.chosen:10s}{times}"


def regret(item: Item, which: str = "plan", seconds: float = SECONDS) -> Regret:
    """Measure the backends on one pass of a convolution."""
    explained = explain(item, which)
    predicted = {candidate.name: candidate.seconds for candidate in explained.candidates if candidate.refusal is None}
    calls = {name: call(item, which, name) for name in predicted}
    first = {}
    for name, run in calls.items():
        run()  # compiles
        start = time.perf_counter()
        run()
        first[name] = time.perf_counter() - start
    able = {name: run for name, run in calls.items() if first[name] <= HOPELESS * min(first.values()) or name == explained.chosen}

    def measured(budget: float) -> Regret:
        times = {name: median for name, (median, _) in median_seconds(able, budget).items()}
        return Regret(title(item), which, explained.chosen, predicted, first | times)

    found = measured(seconds)
    return found if found.value <= RECHECKED else measured(LONGER * seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--random", type=int, default=0, metavar="N", help="N random convolutions instead of the named ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--passes", default=",".join(PASSES))
    parser.add_argument("--only", default="", metavar="TEXT", help="only rows whose name contains this")
    parser.add_argument("--over", type=float, default=0.0, metavar="REGRET", help="print only the rows above")
    options = parser.parse_args()
    items = random_items(options.random, options.seed) if options.random else named()
    print(f"regret, row, pass, choice, microseconds predicted -> measured; {fc.get_num_threads()} threads")
    for which in options.passes.split(","):
        values = []
        for item in items:
            if options.only in title(item):
                found = regret(item, which)
                values.append(found.value)
                if found.value >= options.over:
                    print(found, flush=True)
        print(f"{which}: geometric mean {geometric_mean(values):.3f}, worst {max(values):.2f}, "
              f"{sum(value > 1.1 for value in values)} of {len(values)} over 1.1")


if __name__ == "__main__":
    main()
