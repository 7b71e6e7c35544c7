"""How near the machine's limits each row comes, and how exact it is.

    python benchmarks/limits.py [--only TEXT] [--seconds 0.2] [--backends]

    direct sum     operations of the definition over the time, and their share of the multiply-add peak: fast algorithms exceed it
    done           the same of the multiplications that are done, transforms not counted: winograd's share of the peak
    moved          bytes of the operands and the result over the time, and their share of the bandwidth of memory; near 100 %, or
                   beyond it where the caches hold them, the memory bounds the row
    error          largest difference from the float64 result over its largest value

With --backends every backend that takes a row has a line. Run nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import importlib

import numpy as np
from shapes import call, explain, named, title
from turns import typical_seconds

import fastconv as fc
from fastconv.bench.report import milliseconds
from fastconv.bench.suite import Item
from fastconv.explanation import machine
from fastconv.problem import Problem

ROW = "{:30s}{:26s}{:>10s}{:>9s}{:>6s}{:>9s}{:>6s}{:>8s}{:>6s}{:>10s}"


def algorithm(problem: Problem, backend: str) -> tuple[str, float]:
    """The backend with its algorithm, and the operations that it does; nan where they are not counted."""
    if backend == "winograd":
        choice = importlib.import_module("fastconv.backends._winograd_choice")
        found = choice.best_algorithm(problem, machine())[1]
        sizes = [f"F({axis.outputs},{axis.taps}{f'/{axis.stride}' if axis.stride > 1 else ''})" for axis in (found.high, found.wide)]
        folded = " folded" if found.fold_h * found.fold_w > 1 else ""
        down, across = found.tiles(problem)
        tiles = problem.batch * problem.output_size[0] * down * across * problem.dilation[1] * problem.dilation[2]
        sums = found.channels(problem) * problem.out_channels * problem.kernel_size[0]
        return f"winograd {'x'.join(sizes)}{folded}", 2.0 * tiles * found.products * sums
    return backend, float(problem.flops) if backend in ("direct", "im2col") else float("nan")


def exact(item: Item) -> np.ndarray:
    """The result in float64, by the direct sum."""
    x, w, bias = (None if array is None else array.astype(np.float64) for array in item.arrays())
    return getattr(fc, f"conv{item.ndim}d")(x, w, bias, backend="im2col" if item.weight_shape[0] > 1 else "direct", **item.options)


def line(item: Item, backend: str, expected: np.ndarray, seconds: float) -> str:
    """The row of one backend."""
    problem, facts = explain(item).problem, machine()
    peak, bandwidth = facts.flops("float32") * facts.threads, facts.bandwidth * facts.threads
    run = call(item, "plan", backend)
    error = np.abs(run() - expected).max() / np.abs(expected).max()
    time = typical_seconds(run, seconds)
    name, done = algorithm(problem, backend)
    rates = [f"{problem.flops / time / 1e9:.0f}", f"{problem.flops / time / peak:.0%}"]
    rates += ["-", "-"] if done != done else [f"{done / time / 1e9:.0f}", f"{done / time / peak:.0%}"]
    rates += [f"{problem.bytes / time / 1e9:.1f}", f"{problem.bytes / time / bandwidth:.0%}"]
    return ROW.format(title(item), name, milliseconds(time), *rates, f"{error:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="only rows whose name contains this")
    parser.add_argument("--seconds", type=float, default=0.2, help="time of a row and backend")
    parser.add_argument("--backends", action="store_true", help="every backend, not only the dispatcher's choice")
    options = parser.parse_args()
    facts = machine()
    print(f"{facts.cpu}, {facts.threads} threads of {facts.flops('float32') / 1e9:.0f} GFLOP/s and {facts.bandwidth / 1e9:.1f} GB/s")
    print(ROW.format("row", "backend", "time", "GFLOP/s", "", "done", "", "GB/s", "", "error"))
    for item in named():
        if options.only in title(item):
            explained, expected = explain(item), exact(item)
            able = [candidate.name for candidate in explained.candidates if candidate.refusal is None]
            for backend in able if options.backends else [explained.chosen]:
                print(line(item, backend, expected, options.seconds), flush=True)


if __name__ == "__main__":
    main()
