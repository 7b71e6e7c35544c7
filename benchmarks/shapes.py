"""The convolutions that the scripts of this folder measure: some of every kind, and random ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import fastconv as fc
from fastconv.bench.suite import Arrays, Item

__all__ = ["PASSES", "call", "convolution", "explain", "named", "random_items", "title"]

PASSES = ("plan", "call", "grad_input", "grad_weight")  # plan: forward, weights packed once; call: forward, packed at each call
RANDOM_FLOPS = 1e5, 3e9  # least and most of a random convolution


def convolution(name: str, batch: int, channels: int, size: int | tuple[int, ...], outputs: int, kernel: int, stride: int = 1,
                dilation: int = 1, groups: int = 1, suite: str = "shapes") -> Item:
    """A convolution of a square image, or of a line or box if `size` has other than two lengths, padded to as many outputs as inputs."""
    lengths = (size, size) if isinstance(size, int) else size
    input_shape = (batch, channels, *lengths)
    weight_shape = (outputs, channels // groups, *(min(kernel, 2 * length - 1) for length in lengths))
    options: dict[str, Any] = {"stride": stride, "padding": tuple(dilation * (k - 1) // 2 for k in weight_shape[2:]),
                               "dilation": dilation, "groups": groups}
    return Item(suite, name, input_shape, weight_shape, options, partial(_arrays, input_shape, weight_shape), "")


def _arrays(input_shape: tuple[int, ...], weight_shape: tuple[int, ...]) -> Arrays:
    random = np.random.default_rng(0)
    x, w = random.standard_normal(input_shape, np.float32), random.standard_normal(weight_shape, np.float32)
    return x, w / np.float32(math.sqrt(math.prod(weight_shape[1:]))), random.standard_normal(weight_shape[0], np.float32)


def named() -> list[Item]:
    """A row for each kind of layer and filter: kernel, stride and channels, then the image's size."""
    return [
        convolution("7x7s2 3-64 @224", 1, 3, 224, 64, 7, stride=2),
        convolution("11x11s4 3-64 @224", 1, 3, 224, 64, 11, stride=4),
        convolution("5x5 3-100 @64", 1, 3, 64, 100, 5),
        convolution("1x1 64-256 @56", 1, 64, 56, 256, 1),
        convolution("1x1 2048-512 @7", 1, 2048, 7, 512, 1),
        convolution("3x3 64 @224", 1, 64, 224, 64, 3),
        convolution("3x3 64 @56", 1, 64, 56, 64, 3),
        convolution("3x3 256 @56", 1, 256, 56, 256, 3),
        convolution("3x3s2 128 @56", 1, 128, 56, 128, 3, stride=2),
        convolution("3x3 128 @28", 1, 128, 28, 128, 3),
        convolution("3x3 512 @28", 1, 512, 28, 512, 3),
        convolution("3x3d2 256 @28", 1, 256, 28, 256, 3, dilation=2),
        convolution("3x3 256 @14", 1, 256, 14, 256, 3),
        convolution("3x3 512 @14", 1, 512, 14, 512, 3),
        convolution("3x3 512 @7", 1, 512, 7, 512, 3),
        convolution("5x5 64-192 @27", 1, 64, 27, 192, 5),
        convolution("15x15 64 @64", 1, 64, 64, 64, 15),
        convolution("grouped 3x3 32x4 @56", 1, 128, 56, 128, 3, groups=32),
        convolution("depthwise 3x3 32 @112", 1, 32, 112, 32, 3, groups=32),
        convolution("depthwise 3x3s2 96 @112", 1, 96, 112, 96, 3, stride=2, groups=96),
        convolution("depthwise 3x3 384 @14", 1, 384, 14, 384, 3, groups=384),
        convolution("depthwise 7x7 96 @56", 1, 96, 56, 96, 7, groups=96),
        convolution("depthwise 31x31 128 @56", 1, 128, 56, 128, 31, groups=128),
        convolution("filter 3x3 @1024", 1, 1, 1024, 1, 3),
        convolution("filter 7x7 @1024", 1, 1, 1024, 1, 7),
        convolution("filter 31x31 @1024", 1, 1, 1024, 1, 31),
        convolution("filter 65x65 @1024", 1, 1, 1024, 1, 65),
        convolution("batch 64: 5x5 1-6 @28", 64, 1, 28, 6, 5),
        convolution("batch 32: 3x3 64 @32", 32, 64, 32, 64, 3),
        convolution("3x3 1-8 @8", 1, 1, 8, 8, 3),
        convolution("signal 9 16-32 @10000", 1, 16, (10_000,), 32, 9),
        convolution("signal 1024 @100000", 1, 1, (100_000,), 1, 1023),
        convolution("volume 3x3x3 16 @32", 1, 16, (32, 32, 32), 16, 3),
    ]


def random_items(count: int, seed: int = 0) -> list[Item]:
    """Random convolutions: one to three axes, odd sizes, any number of channels, strides, dilations, groups, batches."""
    random = np.random.default_rng(seed)
    found: list[Item] = []
    while len(found) < count:
        item = _random_item(random, len(found))
        if RANDOM_FLOPS[0] <= explain(item).problem.flops <= RANDOM_FLOPS[1]:
            found.append(item)
    return found


def _random_item(random: np.random.Generator, number: int) -> Item:
    def one_of(*values: int) -> int:
        return int(random.choice(values))

    def up_to(*limits: int) -> int:
        return int(random.integers(1, one_of(*limits) + 1))

    ndim = one_of(1, 2, 2, 2, 2, 2, 2, 2, 2, 3)
    groups = one_of(1, 1, 1, 1, 2, 4)
    channels, outputs = groups * up_to(7, 64, 300), groups * up_to(7, 64, 300)
    if random.random() < 0.15:
        groups = outputs = channels
    lengths = {1: (100, 3000, 50_000), 2: (16, 64, 224), 3: (8, 16, 40)}[ndim]
    kernels = {1: (1, 3, 9, 31, 255), 2: (1, 3, 3, 3, 5, 7, 9, 15), 3: (1, 3, 3, 5)}[ndim]
    size = tuple(3 + up_to(*lengths) for _ in range(ndim)) if ndim != 2 or random.random() < 0.3 else (3 + up_to(*lengths),) * ndim
    return convolution(f"random {number}", one_of(1, 1, 1, 2, 8, 32), channels, size, outputs, one_of(*kernels),
                       one_of(1, 1, 1, 2, 3), one_of(1, 1, 1, 2), groups, suite="random")


def title(item: Item) -> str:
    """A row's name; of a random one, its shapes."""
    dilation = item.options["dilation"]
    return item.shape + (f" d{dilation}" if dilation > 1 else "") if item.suite == "random" else item.name


# -- passes ---------------------------------------------------------------------------------------------------------------


def explain(item: Item, which: str = "plan") -> Any:
    """The dispatcher's explanation of one of `PASSES`."""
    forward = which in ("plan", "call")
    return fc.explain(item.input_shape, item.weight_shape, bias=forward, pass_name="forward" if forward else which,
                      prepacked=which == "plan", **item.options)


def call(item: Item, which: str = "plan", backend: str | None = None) -> Callable[[], np.ndarray]:
    """One of `PASSES` as a function of no arguments; BackendError where the backend refuses."""
    x, w, bias = item.arrays()
    options = {"backend": backend, **item.options}
    if which == "plan":
        return partial(getattr(fc, f"plan_conv{item.ndim}d")(w, bias, input_shape=x.shape, **options), x)
    if which == "call":
        return partial(getattr(fc, f"conv{item.ndim}d"), x, w, bias, **options)
    problem = explain(item).problem
    gradient = np.random.default_rng(1).standard_normal(problem.public_shape(problem.output_shape), np.float32)
    if which == "grad_input":
        return partial(getattr(fc, f"conv{item.ndim}d_grad_input"), gradient, w, x.shape, **options)
    return partial(getattr(fc, f"conv{item.ndim}d_grad_weight"), gradient, x, w.shape, **options)
