"""Training steps and inference of whole networks beside PyTorch and ONNX Runtime.

    python benchmarks/training.py [--only NAME] [--threads 2] [--seconds 0.5] [--turns 5] [--layers]

A training step is forward, loss, backward and SGD with momentum; inference is of one image, with `fuse()` here. Every library
runs in a process of its own, and they take turns. The figures are medians over the turns of each turn's median, in
milliseconds. The networks of PyTorch and ONNX Runtime are made from this package's layers, with the same weights, and all
results are compared.
--layers prints the time of each layer instead. Run nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
from peer_models import as_onnx, as_torch
from turns import Call, Libraries, start, take_turns, typical_seconds

from fastconv import nn

TOLERANCE = 1e-3


class Row(NamedTuple):
    """A network, its input, whether it is trained, and how many times faster than each library it ought to be."""

    make: Callable[[], nn.Layer]
    shape: tuple[int, ...]
    trained: bool
    goals: dict[str, float]


ROWS = {
    "lenet5 training": Row(lambda: nn.lenet5(rng=0), (64, 1, 28, 28), True, {"torch": 1.5}),
    "small_vgg training": Row(lambda: nn.small_vgg(dropout=0, rng=0), (32, 3, 32, 32), True, {"torch": 2.0}),
    "resnet18 training": Row(lambda: nn.resnet18(rng=0), (1, 3, 224, 224), True, {"torch": 1.8}),
    "resnet18 inference": Row(lambda: nn.resnet18(rng=0), (1, 3, 224, 224), False, {"torch": 1.8, "onnxruntime": 1.3}),
    "mobilenet_v2 inference": Row(lambda: nn.mobilenet_v2(rng=0), (1, 3, 224, 224), False, {"torch": 1.5, "onnxruntime": 1.0}),
}


def _data(row: Row) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal(row.shape, dtype=np.float32), rng.integers(0, 10, row.shape[0])


def _result(value: float) -> np.ndarray:
    return np.array([value])


# -- one function per library: the row as a call, or None ----------------------------------------------------------------


def _fastconv(name: str, threads: int) -> Call | None:
    row = ROWS[name]
    import fastconv as fc

    fc.set_num_threads(threads)
    model, (x, labels) = row.make(), _data(row)
    if not row.trained:
        fused = model.fuse(x.shape)
        return lambda: fused(x)
    optimizer = nn.SGD(model, lr=0.001, momentum=0.9)

    def step() -> np.ndarray:
        model.zero_grad()
        y, backprop = model.forward(x)
        loss, gradient = nn.softmax_cross_entropy(y, labels)
        backprop(gradient, input_gradient=False)  # as PyTorch, whose input has no gradient either
        optimizer.step()
        return _result(loss)

    return step


def _torch(name: str, threads: int) -> Call | None:
    row = ROWS[name]
    import torch

    torch.set_num_threads(threads)
    model, (inputs, labels) = as_torch(row.make()), _data(row)
    x, y = torch.from_numpy(inputs), torch.from_numpy(labels)
    if not row.trained:
        model.eval()

        def infer() -> np.ndarray:
            with torch.inference_mode():
                return model(x).numpy()

        return infer
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)

    def step() -> np.ndarray:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return _result(loss.item())

    return step


def _onnxruntime(name: str, threads: int) -> Call | None:
    row = ROWS[name]
    if row.trained:
        return None
    import onnxruntime

    x, _ = _data(row)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(as_onnx(row.make(), row.shape), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": x})[0]


LIBRARIES: Libraries = {
    # name: (function, modules it needs)
    "fastconv": (_fastconv, ()),
    "torch": (_torch, ("torch",)),
    "onnxruntime": (_onnxruntime, ("onnxruntime", "onnx")),
}


# -- comparing ------------------------------------------------------------------------------------------------------------


def compare(name: str, pipes: dict[str, Connection], turns: int) -> tuple[dict[str, float], list[str]]:
    """Median seconds of each library that can do the row, and what went wrong, in words."""
    results, seconds, problems = take_turns(name, name, pipes, turns, calls=3)
    for library, result in results.items():
        error = max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(results.get("fastconv", result), result, strict=True))
        if not error <= TOLERANCE:
            problems.append(f"{library} on {name}: results differ by {error:.1e}")
    return {library: statistics.median(times) for library, times in seconds.items()}, problems


def main() -> int:
    """Compare and print the table; the status is 1 where results differ or a library failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="NAME", help="only rows whose name contains this")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, default=0.5, help="time of a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--layers", action="store_true", help="time of each of this package's layers instead")
    options = parser.parse_args()
    names = [name for name in ROWS if options.only in name]
    if not names:
        parser.error(f"there are {', '.join(ROWS)}")
    if options.layers:
        for name in names:
            print_layers(name, options.threads, options.seconds)
        return 0
    pipes = start(LIBRARIES, options.threads, options.seconds)
    return 1 if _print_table(names, pipes, options.turns) else 0


def _print_table(names: list[str], pipes: dict[str, Connection], turns: int) -> list[str]:
    print(f"{'milliseconds':26s}" + "".join(f"{library:>13s}" for library in pipes) + "   peer / fastconv (goal)")
    problems: list[str] = []
    for name in names:
        times, found = compare(name, pipes, turns)
        problems += found
        text = "".join(f"{times[library] * 1e3:13.3f}" if library in times else f"{'-':>13s}" for library in pipes)
        ratios = [f"{library} {times[library] / times['fastconv']:.2f}x ({goal:.1f}x)" for library, goal in ROWS[name].goals.items()
                  if library in times and "fastconv" in times]
        print(f"{name:26s}{text}   {', '.join(ratios)}", flush=True)
    for line in problems:
        print(line)
    return problems


# -- the time of each layer -----------------------------------------------------------------------------------------------


class Timed(nn.Layer):
    """A layer that notes the time of its passes."""

    def __init__(self, inner: nn.Layer, name: str, seconds: dict[tuple[str, str], list[float]]):
        super().__init__()
        self.inner, self.name, self.seconds = inner, name, seconds
        self.takes_activation, self.rectifier, self.skips_input_gradient = (
            inner.takes_activation, inner.rectifier, inner.skips_input_gradient)
        self.params, self.grads, self.buffers = inner.params, inner.grads, inner.buffers

    def _clocked(self, kind: str, function: Callable[..., Any], *arguments: Any) -> Any:
        start = time.perf_counter()
        result = function(*arguments)
        self.seconds[self.name, kind].append(time.perf_counter() - start)
        return result

    def __call__(self, x: Any) -> Any:
        return self._clocked("forward", self.inner, x)

    def activated(self, x: Any, name: str) -> Any:
        return self._clocked("forward", self.inner.activated, x, name)  # type: ignore[attr-defined]

    def forward(self, x: Any) -> Any:
        y, backprop = self._clocked("forward", self.inner.forward, x)
        return y, lambda gy, **options: self._clocked("backward", functools.partial(backprop, **options), gy)

    def forward_activated(self, x: Any, name: str) -> Any:
        y, backprop = self._clocked("forward", self.inner.forward_activated, x, name)  # type: ignore[attr-defined]
        return y, lambda gy, **options: self._clocked("backward", functools.partial(backprop, **options), gy)


def _wrapped(layer: nn.Layer, name: str, seconds: dict[tuple[str, str], list[float]]) -> None:
    for key, child in layer.children.items():
        inner = f"{name}.{key}" if name else key
        if child.children:
            _wrapped(child, inner, seconds)
        else:
            layer.children[key] = Timed(child, inner, seconds)


def print_layers(name: str, threads: int, seconds: float) -> None:
    """Median milliseconds of each layer's passes in a training step, or of each step of a fused model."""
    import fastconv as fc

    fc.set_num_threads(threads)
    row, found = ROWS[name], defaultdict[tuple[str, str], list[float]](list)
    model, (x, labels) = row.make(), _data(row)
    if not row.trained:
        _print_fused(name, model, x, seconds)
        return
    _wrapped(model, "", found)
    optimizer = nn.SGD(model, lr=0.001, momentum=0.9)

    def clocked(kind: str, function: Call) -> Any:
        start = time.perf_counter()
        result = function()
        found[kind, "all"].append(time.perf_counter() - start)
        return result

    def step() -> None:
        clocked("zero_grad", model.zero_grad)
        y, backprop = clocked("forward", lambda: model.forward(x))
        _, gradient = clocked("loss", lambda: nn.softmax_cross_entropy(y, labels))
        clocked("backward", lambda: backprop(gradient, input_gradient=False))
        clocked("SGD", optimizer.step)

    for _ in range(3):
        step()
    found.clear()
    end = time.perf_counter() + max(seconds, 0.5)
    while time.perf_counter() < end:
        step()
    print(f"{name}: milliseconds of each layer")
    names = dict.fromkeys(key for key, _ in found)
    for key in names:
        values = [statistics.median(found[key, kind]) * 1e3 if (key, kind) in found else 0.0 for kind in ("forward", "backward", "all")]
        print(f"  {key:32s}" + "".join(f"{value:10.3f}" if value else " " * 10 for value in values))


def _print_fused(name: str, model: nn.Layer, x: np.ndarray, seconds: float) -> None:
    """Each child of the model fused by itself, those of sequences one by one."""
    def parts(layer: nn.Layer, name: str) -> list[tuple[str, list[nn.Layer]]]:
        """Layers that are fused with each other: a convolution with what follows it."""
        found: list[tuple[str, list[nn.Layer]]] = []
        for key, child in layer.children.items():
            inner = f"{name}.{key}" if name else key
            if isinstance(child, nn.Sequential):
                found += parts(child, inner)
            elif found and isinstance(child, (nn.BatchNorm2d, nn.ReLU, nn.ReLU6)):
                found[-1][1].append(child)
            else:
                found.append((inner, [child]))
        return found

    steps, shapes = [], [x.shape]
    y = x
    for key, layers in parts(model, ""):
        steps.append((key, type(layers[0]).__name__, nn.Sequential(*layers).fuse(y.shape)))
        y = steps[-1][2](y)
        shapes.append(y.shape)
    whole = model.fuse(x.shape)
    times: list[list[float]] = []
    end = time.perf_counter() + max(seconds, 0.5)
    while time.perf_counter() < end:  # one after the other: each finds the caches as it would in the whole
        y, marks = x, [time.perf_counter()]
        for _, _, step in steps:
            y = step(y)
            marks.append(time.perf_counter())
        times.append(np.diff(marks).tolist())
    medians = [statistics.median(column) * 1e3 for column in zip(*times)]
    taken_by_all = typical_seconds(lambda: whole(x), seconds) * 1e3
    print(f"{name}: milliseconds of each fused step; {sum(medians):.3f} together, {taken_by_all:.3f} the whole model")
    for (key, kind, step), before, after, taken in zip(steps, shapes, shapes[1:], medians):
        alone = typical_seconds(functools.partial(step, np.ones(before, np.float32)), 0.01) * 1e3
        sizes = f"{'x'.join(map(str, before))} -> {'x'.join(map(str, after))}"
        print(f"  {key:24s}{taken:9.3f} {alone:9.3f} again and again  {sizes:36s} {kind}")


if __name__ == "__main__":
    sys.exit(main())
