"""What a layer of `fastconv.nn` takes on top of its kernels: calls on inputs of a few elements.

    python benchmarks/overhead.py [--only TEXT] [--seconds 0.05]

Microseconds of `layer(x)`, of `layer.forward(x)` and of `backprop(gy)`, medians. A kernel's own call is part of them: Numba
unpacks its arrays in about a microsecond, and takes hardly more for so few elements. A convolution's
backward pass calls three, of its input, weights and bias.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from fastconv import nn

IMAGE, LINE, VOLUME, ROWS = (1, 4, 6, 6), (1, 4, 6), (1, 4, 4, 4, 4), (2, 8)
POOLED = {1: LINE, 2: IMAGE, 3: VOLUME}
LAYERS: dict[str, tuple[Callable[[], nn.Layer], tuple[int, ...]]] = {
    "Linear": (lambda: nn.Linear(8, 4), ROWS),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(4), LINE), "BatchNorm2d": (lambda: nn.BatchNorm2d(4), IMAGE),
    "BatchNorm3d": (lambda: nn.BatchNorm3d(4), VOLUME), "LayerNorm": (lambda: nn.LayerNorm(8), ROWS),
    "GroupNorm": (lambda: nn.GroupNorm(2, 4), IMAGE),
    "DepthwiseConv2d": (lambda: nn.DepthwiseConv2d(4, 3), IMAGE), "PointwiseConv2d": (lambda: nn.PointwiseConv2d(4, 4), IMAGE),
    "SeparableConv2d": (lambda: nn.SeparableConv2d(4, 4, 3), IMAGE),
    "LocallyConnected2d": (lambda: nn.LocallyConnected2d(4, 4, (6, 6), 3), IMAGE),
    "Flatten": (nn.Flatten, IMAGE), "Dropout": (nn.Dropout, ROWS),
    "GlobalAvgPool": (nn.GlobalAvgPool, IMAGE), "GlobalMaxPool": (nn.GlobalMaxPool, IMAGE)}
for _name in ("ReLU", "ReLU6", "LeakyReLU", "Sigmoid", "Tanh", "SiLU", "GELU", "Softmax"):
    LAYERS[_name] = (getattr(nn, _name), ROWS)
for _n, _shape in POOLED.items():
    for _name in ("Conv", "ConvTranspose"):
        LAYERS[f"{_name}{_n}d"] = (lambda name=f"{_name}{_n}d": getattr(nn, name)(4, 4, 3), _shape)
    for _name, _arguments in (("MaxPool", (2,)), ("AvgPool", (2,)), ("LPPool", (2, 2)), ("AdaptiveAvgPool", (3,)),
                              ("AdaptiveMaxPool", (3,))):
        LAYERS[f"{_name}{_n}d"] = (lambda name=f"{_name}{_n}d", arguments=_arguments: getattr(nn, name)(*arguments), _shape)


def microseconds(call: Callable[[], Any], seconds: float) -> float:
    """The median of the mean time of ten calls."""
    times: list[float] = []
    while len(times) < 5 or sum(times) < seconds:
        start = time.perf_counter()
        for _ in range(10):
            call()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e5


def measured(layer: nn.Layer, shape: tuple[int, ...], seconds: float) -> list[float]:
    """Microseconds of inference, of the forward and of the backward pass."""
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    y, backprop = layer.forward(x)
    gy = np.ones_like(y)
    calls: list[Callable[[], Any]] = [lambda: layer(x), lambda: layer.forward(x), lambda: backprop(gy)]
    for call in calls:
        call()
    return [microseconds(call, seconds) for call in calls]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="only layers whose name contains this")
    parser.add_argument("--seconds", type=float, default=0.05)
    options = parser.parse_args()
    print(f"{'microseconds':22s}{'layer(x)':>10s}{'forward':>10s}{'backprop':>10s}")
    for name, (make, shape) in sorted(LAYERS.items()):
        if options.only not in name:
            continue
        times = measured(make(), shape, options.seconds)
        print(f"{name:22s}" + "".join(f"{time:10.1f}" for time in times), flush=True)


if __name__ == "__main__":
    main()
