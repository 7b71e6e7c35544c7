"""Pools and other operations beside PyTorch, forward and backward.

    python benchmarks/operations.py [--only TEXT] [--threads 2] [--seconds 0.2] [--turns 5]

Both run in processes of their own and take turns. The figure is the median of the best turn, in milliseconds, and the ratio.
"backward" is what a layer of `fastconv.nn` does after its forward pass, and PyTorch's autograd after its own; "training" is
both passes. Channels last is `torch.channels_last` to PyTorch. Results are compared. Run nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import functools
import os
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


OTHERS = (("max_unpool2d", (32, 64, 28, 28), (2,)), ("max_unpool3d", (4, 32, 8, 14, 14), (2,)), ("max_unpool1d", (32, 64, 1568), (2,)),
          ("unfold", (8, 32, 56, 56), (3, 1, 1)), ("unfold", (8, 32, 56, 56), (2, 1, 0, 2)), ("fold", (8, 288, 3136), ((56, 56), 3, 1, 1)),
          ("linear", (1, 1024), (1000,)), ("linear", (1, 4096), (4096,)), ("linear", (64, 1024), (1000,)),
          ("locally_connected2d", (16, 16, 28, 28), (32, 3)), ("locally_connected2d", (1, 64, 14, 14), (64, 3)),
          ("deform_conv2d", (1, 64, 56, 56), (64, 3)), ("deform_conv2d", (4, 64, 28, 28), (64, 3)))
WEIGHTED = ("linear", "locally_connected2d", "deform_conv2d")  # operations of more than x: their options start with the outputs
ROWS = [Row(*layer, layout, which) for layer in LAYERS.values() for layout in ("NCHW", "NHWC") for which in PASSES]
ROWS += [Row(*other, "NCHW", which) for other in OTHERS for which in PASSES]


def _operands(row: Row) -> list[np.ndarray]:
    """What the row works on: x, and where it has them indices, or weights, then the offsets and the mask of a deformable convolution."""
    rng = np.random.default_rng(0)
    shapes = [row.shape]
    if row.operation.startswith("max_unpool"):
        return [rng.standard_normal(row.shape, dtype=np.float32), _places(rng, row.shape, *row.options)]
    if row.operation == "linear":
        shapes.append((row.options[0], row.shape[1]))
    elif row.operation in WEIGHTED:
        outputs, k = row.options
        batch, channels, *size = row.shape
        if row.operation == "deform_conv2d":
            shapes += [(outputs, channels, k, k), (batch, 2 * k * k, *size), (batch, k * k, *size)]
        else:
            shapes.append((outputs, channels, k, k, size[0] - k + 1, size[1] - k + 1))
    return [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]


def _places(rng: np.random.Generator, shape: tuple[int, ...], k: int) -> np.ndarray:
    """Where the largest elements lie in planes of random numbers that were pooled to a shape by windows of k points an axis."""
    size = tuple(k * n for n in shape[2:])
    points = [k * np.arange(n) + rng.integers(0, k, shape) for n in shape[-1:]]
    for axis in range(len(size) - 2, -1, -1):
        start = k * np.arange(shape[2 + axis]).reshape(-1, *[1] * (len(size) - 1 - axis))
        points.append((start + rng.integers(0, k, shape)) * int(np.prod(size[axis + 1:])))
    return sum(points[1:], points[0])


# -- one function per library: the row as a call ----------------------------------------------------------------------------


def _fastconv(row: Row, threads: int) -> Call | None:
    import fastconv as fc

    fc.set_num_threads(threads)
    x, *others = _operands(row)
    x = x if row.layout == "NCHW" else np.ascontiguousarray(np.moveaxis(x, 1, -1))
    forward = _passes(row, x, *others)
    y, backprop = forward()
    gy = np.ones_like(y)

    def train() -> np.ndarray:
        _, backprop = forward()
        return backprop(gy)

    infer = _inference(row, x, *others)
    call = {"forward": infer, "backward": lambda: backprop(gy), "training": train}[row.which]
    return call if row.layout == "NCHW" else _moved(call, x.ndim)


def _passes(row: Row, x: np.ndarray, *others: np.ndarray) -> Callable[[], tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]]:
    """The forward pass that returns the backward pass."""
    import fastconv as fc
    from fastconv import nn

    infer = _inference(row, x, *others)
    backward: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        **{f"max_unpool{n}d": functools.partial(_unpool_gradient, row, others) for n in (1, 2, 3)},
        "unfold": lambda gy: fc.unfold_backward(gy, x.shape, *row.options),
        "fold": lambda gy: fc.fold_backward(gy, *row.options[1:]),
        "linear": lambda gy: fc.linear_backward(gy, x, *others, bias=False)[0],
        "locally_connected2d": lambda gy: fc.locally_connected2d_backward(gy, x, *others, bias=False)[0],
        "deform_conv2d": lambda gy: fc.deform_conv2d_backward(gy, x, others[1], others[0], bias=False, padding=1, mask=others[2])[0]}
    if row.operation in backward:
        return lambda: (infer(), backward[row.operation])
    name = "".join(word.capitalize() for word in row.operation.split("_")).replace("Lp", "LP")
    layer = getattr(nn, name)(*row.options, layout=row.layout)
    return lambda: layer.forward(x)


def _unpool_gradient(row: Row, others: tuple[np.ndarray, ...], gy: np.ndarray) -> np.ndarray:
    import fastconv as fc

    return getattr(fc, f"{row.operation}_backward")(gy, *others)


def _inference(row: Row, x: np.ndarray, *others: np.ndarray) -> Call:
    import fastconv as fc

    function = getattr(fc, row.operation)
    if row.operation == "deform_conv2d":
        w, offset, mask = others
        return lambda: function(x, offset, w, padding=1, mask=mask)
    if others:
        return lambda: function(x, *others, *(row.options if row.operation.startswith("max_unpool") else ()))
    if row.operation in ("unfold", "fold"):
        return lambda: function(x, *row.options)
    return lambda: function(x, *row.options, layout=row.layout)


def _moved(call: Call, ndim: int) -> Call:
    """A call whose result is compared with channels first; a view, and not by `np.moveaxis`, which would take 3 us."""
    axes = (0, ndim - 1, *range(1, ndim - 1))
    return lambda: call().transpose(axes)


def _torch(row: Row, threads: int) -> Call | None:
    import torch

    torch.set_num_threads(threads)
    inputs = [torch.from_numpy(operand) for operand in _operands(row)]
    if row.layout == "NHWC":  # contiguous with channels last, as `torch.channels_last` is for images
        inputs[0] = inputs[0].movedim(1, -1).contiguous().movedim(-1, 1)
    function = _torch_function(row)
    if function is None:
        return None
    if row.which == "forward":

        def infer() -> np.ndarray:
            with torch.inference_mode():
                return function(*inputs).numpy()

        return infer
    learned = [tensor.requires_grad_() for tensor in inputs if tensor.is_floating_point()]
    y = function(*inputs)
    gy = torch.ones_like(y)

    def backward(y: Any, keep: bool) -> np.ndarray:
        return torch.autograd.grad(y, learned, gy, retain_graph=keep)[0].numpy()

    return (lambda: backward(y, True)) if row.which == "backward" else lambda: backward(function(*inputs), False)


def _torch_function(row: Row) -> Callable[..., Any] | None:
    """The operation, or None where the library for it is missing."""
    import torch

    functional: Any = torch.nn.functional
    if row.operation == "deform_conv2d":
        try:
            from torchvision.ops import deform_conv2d
        except (ImportError, RuntimeError):
            return None
        return lambda x, w, offset, mask: deform_conv2d(x, offset, w, padding=1, mask=mask)
    if row.operation == "linear":
        return functional.linear
    if row.operation == "locally_connected2d":  # PyTorch has none: windows times weights, as its users write it

        def local(x: Any, w: Any) -> Any:
            windows = functional.unfold(x, row.options[1])
            return torch.einsum("nkp,okp->nop", windows, w.flatten(4).flatten(1, 3)).unflatten(2, w.shape[-2:])

        return local
    if row.operation.startswith("global"):
        name = "adaptive_avg_pool2d" if "avg" in row.operation else "adaptive_max_pool2d"
        return lambda x: getattr(functional, name)(x, 1)
    return lambda *inputs: getattr(functional, row.operation)(*inputs, *row.options)


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
        best = {name: min(times) for name, times in seconds.items()}
        text = "".join(f"{best[name] * 1e3:11.4f}" if name in best else f"{'-':>11s}" for name in pipes)
        if len(best) == len(LIBRARIES):
            ratios.append(best["torch"] / best["fastconv"])
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
