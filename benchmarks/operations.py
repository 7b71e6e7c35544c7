"""Pools and other operations beside PyTorch, forward and backward.

    python benchmarks/operations.py [--only TEXT] [--threads 2] [--seconds 0.2] [--turns 5]

Both run in processes of their own and take turns. The figures are medians over the turns of each turn's median, in
milliseconds, and the ratio. "backward" is what a layer of `fastconv.nn` does after its forward pass, and PyTorch's autograd
after its own; "training" is both passes. Results are compared. Run nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from bench_pool import LAYERS
from turns import Call, Libraries, start, take_turns

from fastconv.bench.measure import geometric_mean

TOLERANCE = 1e-4
PASSES = ("forward", "backward", "training")


class Row(NamedTuple):
    """An operation on an input of a shape (channels first), made of its name by each library, and a pass."""

    operation: str
    shape: tuple[int, ...]
    options: tuple[Any, ...]
    layout: str
    which: str

    @property
    def title(self) -> str:
        """The row in words."""
        return f"{self.operation} {'x'.join(map(str, self.shape))} {self.options} {self.layout} {self.which}"


OTHERS = (("unfold", (8, 32, 56, 56), (3, 1, 1)), ("unfold", (8, 32, 56, 56), (2, 1, 0, 2)), ("linear", (1, 1024), (1000,)),
          ("linear", (1, 4096), (4096,)), ("linear", (64, 1024), (1000,)))
ROWS = [Row(*layer, layout, which) for layer in LAYERS.values() for layout in ("NCHW", "NHWC") for which in PASSES]
ROWS += [Row(*other, "NCHW", which) for other in OTHERS for which in PASSES]


def _input(row: Row) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(row.shape, dtype=np.float32)


def _weight(row: Row) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((row.options[0], row.shape[1]), dtype=np.float32)


# -- one function per library: the row as a call ----------------------------------------------------------------------------


def _fastconv(row: Row, threads: int) -> Call | None:
    import fastconv as fc

    fc.set_num_threads(threads)
    x = _input(row) if row.layout == "NCHW" else np.ascontiguousarray(np.moveaxis(_input(row), 1, -1))
    forward = _passes(row, x)
    y, backprop = forward()
    gy = np.ones_like(y)

    def train() -> np.ndarray:
        _, backprop = forward()
        return backprop(gy)

    infer = _inference(row, x)
    call = {"forward": infer, "backward": lambda: backprop(gy), "training": train}[row.which]
    return call if row.layout == "NCHW" else _moved(call)


def _passes(row: Row, x: np.ndarray) -> Callable[[], tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]]:
    """The forward pass that returns the backward pass."""
    import fastconv as fc
    from fastconv import nn

    if row.operation == "unfold":
        return lambda: (fc.unfold(x, *row.options), lambda gy: fc.unfold_backward(gy, x.shape, *row.options))
    if row.operation == "linear":
        w = _weight(row)
        return lambda: (fc.linear(x, w), lambda gy: fc.linear_backward(gy, x, w, bias=False)[0])
    name = "".join(word.capitalize() for word in row.operation.split("_"))
    name = name if "Global" in name else name.removesuffix("2d") + "2d"
    layer = getattr(nn, name)(*row.options, layout=row.layout)
    return lambda: layer.forward(x)


def _inference(row: Row, x: np.ndarray) -> Call:
    import fastconv as fc

    if row.operation == "linear":
        w = _weight(row)
        return lambda: fc.linear(x, w)
    function = getattr(fc, row.operation)
    return lambda: function(x, *row.options, layout=row.layout)


def _moved(call: Call) -> Call:
    """A call whose result is compared with channels first; a view, which takes no time to speak of."""
    return lambda: np.moveaxis(call(), -1, 1)


def _torch(row: Row, threads: int) -> Call | None:
    import torch

    torch.set_num_threads(threads)
    x = torch.from_numpy(_input(row))
    if row.layout == "NHWC":
        x = x.contiguous(memory_format=torch.channels_last)
    functions: dict[str, Callable[[Any], Any]] = {
        "global_avg_pool": lambda x: torch.nn.functional.adaptive_avg_pool2d(x, 1),
        "unfold": lambda x: torch.nn.functional.unfold(x, *row.options)}
    if row.operation == "linear":
        w = torch.from_numpy(_weight(row)).requires_grad_()
        functions["linear"] = lambda x: torch.nn.functional.linear(x, w)
    function = functions.get(row.operation) or (lambda x: getattr(torch.nn.functional, row.operation)(x, *row.options))
    if row.which == "forward":

        def infer() -> np.ndarray:
            with torch.inference_mode():
                return function(x).numpy()

        return infer
    x.requires_grad_()
    inputs = (x, w) if row.operation == "linear" else (x,)
    y = function(x)
    gy = torch.ones_like(y)

    def backward(y: Any, keep: bool) -> np.ndarray:
        return torch.autograd.grad(y, inputs, gy, retain_graph=keep)[0].numpy()

    return (lambda: backward(y, True)) if row.which == "backward" else lambda: backward(function(x), False)


LIBRARIES: Libraries = {"fastconv": (_fastconv, ()), "torch": (_torch, ("torch",))}


def main() -> int:
    """Compare and print the table; the status is 1 where results differ or a library failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="only rows whose title contains this")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, default=0.2)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    pipes = start(LIBRARIES, options.threads, options.seconds)
    ratios, problems = [], []
    print(f"{'milliseconds':64s}" + "".join(f"{name:>11s}" for name in pipes) + "  PyTorch / fastconv")
    for row in ROWS:
        if options.only not in row.title:
            continue
        results, seconds, found = take_turns(row, row.title, pipes, options.turns)
        problems += found
        medians = {name: statistics.median(times) for name, times in seconds.items()}
        text = "".join(f"{medians[name] * 1e3:11.4f}" if name in medians else f"{'-':>11s}" for name in pipes)
        if len(medians) == len(LIBRARIES):
            ratios.append(medians["torch"] / medians["fastconv"])
            text += f"  {ratios[-1]:.2f}x"
            error = float(np.abs(results["torch"][0] - results["fastconv"][0]).max() / np.abs(results["torch"][0]).max())
            if not error <= TOLERANCE:
                problems.append(f"{row.title}: results differ by {error:.1e}")
        print(f"{row.title:64s}{text}", flush=True)
    if ratios:
        print(f"geometric mean over {len(ratios)} rows: {geometric_mean(ratios):.2f}x, least {min(ratios):.2f}x")
    for line in problems:
        print(line)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
