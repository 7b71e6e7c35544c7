"""Compiling kernels ahead of their first use: every kernel is reached by one small call."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from .problem import Options, Problem

__all__ = ["warmup"]

Step = tuple[str, Callable[[str], None]]
Case = tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]

# Convolutions that, by every backend, reach every kernel that a dtype has.
DENSE: Case = ((1, 8, 24, 24), (40, 8, 3, 3), {"padding": 1})
POINTWISE: Case = ((1, 8, 24, 24), (40, 8, 1, 1), {})
DEPTHWISE: Case = ((1, 8, 24, 24), (8, 1, 3, 3), {"padding": 1, "groups": 8})
NARROW: Case = ((1, 64, 32, 32), (64, 1, 7, 7), {"padding": 3, "groups": 64})
WIDE: Case = ((1, 256, 8, 8), (256, 256, 3, 3), {"padding": 1})
PIXELS: Case = ((1, 24, 24, 64), (3, 3, 1, 64), {"padding": 1, "groups": 64, "layout": "NHWC"})
STRIDED: Case = ((1, 8, 24, 24), (8, 1, 3, 3), {"padding": 1, "groups": 8, "stride": 2})
CASES: dict[str, tuple[Case, ...]] = {
    "forward": (DENSE, POINTWISE, DEPTHWISE, NARROW, PIXELS), "grad_weight": (DENSE, WIDE, POINTWISE, DEPTHWISE),
    "grad_input": (STRIDED,)}
INTERLEAVED: Case = ((1, 8, 24, 24), (40, 8, 3, 3), {"stride": 2})
LARGE_PLANE = (1, 1, 1 << 13, 1 << 12)  # of more positions than float32 can count
LAYOUTS = ("NCHW", "NHWC")


def warmup(dtypes: Sequence[str] = ("float32",), operations: bool = True) -> list[tuple[str, float]]:
    """Compile the kernels ahead, into the cache on disk.

    Parameters
    ----------
    dtypes : sequence of dtype-like
        float32, float64, or integers.
    operations : bool
        Not only the convolutions' kernels, but also those of pooling, unfolding, locally connected and deformable layers, and of
        `fastconv.nn`: about as many again.

    Returns
    -------
    list of (str, float)
        What was run and the seconds it took.

    Examples
    --------
    >>> import fastconv as fc
    >>> len(fc.warmup(["float32"], operations=False)) > 0
    True
    """
    from .backends._machine import measure_again
    from .dispatcher import machine

    times = [_timed("machine constants", machine)]
    for dtype in dtypes:
        computed = np.dtype(dtype).name
        floats = np.dtype(computed).kind == "f"
        steps = [*_backend_steps(), ("interleaving", _interleaving), *([("activations", _activations), ("sums", _sums)] if floats else [])]
        if operations:
            steps += [("max pools", _max_pools), ("unfold and fold", _unfolding), ("locally connected", _local)]
            steps += [("mean pools", _mean_pools), ("deformable", _deformable), ("layers", _layers), ("blocks", _blocks)] if floats else []
        times += [_timed(f"{name} {computed}", step, computed) for name, step in steps]
    return [*times, _timed("machine constants again", measure_again)]


def _timed(name: str, step: Callable[..., Any], *arguments: Any) -> tuple[str, float]:
    start = time.perf_counter()
    step(*arguments)
    return name, time.perf_counter() - start


# -- convolutions ---------------------------------------------------------------------------------------------------------


def _backend_steps() -> Iterator[Step]:
    """The kernels of each backend, and what else problems may need of it."""
    from .backends import load

    for name, backend in load("cpu").items():
        for pass_name in CASES:
            yield f"{name} {pass_name}", functools.partial(_cases, pass_name, backend)
        yield f"{name} variants", backend.prepare


def _cases(pass_name: str, backend: Any, dtype: str) -> None:
    for shape, weights, options in CASES[pass_name]:
        problem = Problem.create(pass_name, 2, shape, weights, dtype, Options(**options))
        if backend.refuses(problem) is None:
            first, second, result = (np.zeros(s, dtype) for s in problem.shapes)
            kernel = backend.build(problem)
            kernel.run(first, kernel.pack(second), None, result)


def _interleaving(dtype: str) -> None:
    from .backends._interleave import NO_PART, Interleaving

    Interleaving(Problem.create("grad_input", 2, *INTERLEAVED[:2], dtype, Options(**INTERLEAVED[2])), [NO_PART] * 4)


def _activations(dtype: str) -> None:
    from .backends._activation import apply

    for name in ("sigmoid", "gelu"):
        apply(name, np.zeros(1, dtype))


def _sums(dtype: str) -> None:
    from .backends._sums import channel_sums

    for size in (1, 2):  # channels last, channels first
        channel_sums((1, 1, size), 1, np.dtype(dtype))


# -- other operations -----------------------------------------------------------------------------------------------------


def _max_pools(dtype: str) -> None:
    """Maxima, their places, their gradients with places and without, and unpooling."""
    from . import pool
    from ._windows import Windows
    from .backends._pooling_plans import bind_places

    x = np.zeros((1, 6, 6, 6), dtype)
    bind_places(Windows.create(2, LARGE_PLANE, 2, None, 0, 1, False, "NCHW"), dtype, flat=False)
    for layout in LAYOUTS:
        y, places = pool.max_pool2d(x, 2, return_indices=True, layout=layout)
        pool.max_pool2d(x, 2, layout=layout)
        pool.global_max_pool(x, layout=layout)
        pool.max_unpool2d_backward(pool.max_unpool2d(y, places, 2, layout=layout), places, layout=layout)
        if y.dtype.kind == "f":
            pool.max_pool2d_backward(y, x, 2, layout=layout)
            pool.max_pool2d_backward(np.zeros((1, 6, 2, 2), dtype), x, 3)
            pool.max_pool2d_backward(np.zeros((1, 6, 1, 1), dtype), x, 6)
            pool.max_pool2d_backward(y, x, 2, indices=places, layout=layout)
            pool.adaptive_max_pool2d_backward(y, x, layout=layout)


def _mean_pools(dtype: str) -> None:
    from . import pool

    x = np.zeros((1, 6, 6, 6), dtype)
    for layout in LAYOUTS:
        pool.avg_pool2d_backward(pool.avg_pool2d(x, 2, layout=layout), x.shape, 2, layout=layout)
        pool.global_avg_pool_backward(pool.global_avg_pool(x, layout=layout), x.shape, layout=layout)


def _unfolding(dtype: str) -> None:
    from .unfolding import fold, unfold

    for layout in LAYOUTS:
        fold(unfold(np.zeros((1, 4, 4, 4), dtype), 2, layout=layout), 4, 2, layout=layout)


def _local(dtype: str) -> None:
    from .local import locally_connected1d, locally_connected1d_backward

    for layout in LAYOUTS:
        x, w = np.zeros((1, 2, 2), dtype), np.zeros((2, 1, 2, 2) if layout == "NHWC" else (2, 2, 1, 2), dtype)
        locally_connected1d_backward(locally_connected1d(x, w, layout=layout), x, w, layout=layout)


def _deformable(dtype: str) -> None:
    from .deformable import deform_conv2d, deform_conv2d_backward

    x, w, offset = np.zeros((1, 1, 3, 3), dtype), np.zeros((1, 1, 1, 1), dtype), np.zeros((1, 2, 3, 3), dtype)
    deform_conv2d_backward(deform_conv2d(x, offset, w), x, offset, w)


def _blocks(dtype: str) -> None:
    """Convolutions that are one run in fused models; so many channels that all threads have tasks."""
    from . import nn
    from .backends._jit import num_threads

    between = 32 * num_threads()
    parts = [nn.Conv2d(4, between, 1, dtype=dtype), nn.Conv2d(between, between, 3, padding=1, groups=between, dtype=dtype),
             nn.Conv2d(between, 4, 1, dtype=dtype)]
    for model in (nn.Sequential(*parts[:2]), nn.Residual(nn.Sequential(*parts))):
        model.fuse((1, 4, 7, 7))


def _layers(dtype: str) -> None:
    """Norms, linear layers, activations and optimizers."""
    from . import nn

    x = np.ones((2, 4, 2, 2), dtype)
    norms: list[nn.Layer] = [nn.BatchNorm2d(2, layout="NHWC", dtype=dtype), nn.BatchNorm2d(4, dtype=dtype), nn.LayerNorm(2, dtype=dtype)]
    for rows in (1, 8):
        nn.Linear(4, 2, dtype=dtype).forward(x.reshape(8, 4)[:rows])[1](np.ones((rows, 2), dtype))
    for layer in (*norms, nn.ReLU(), nn.SiLU(), nn.GELU()):
        layer(x)
        y, backprop = layer.forward(x)
        backprop(y)
    for optimizer in (nn.SGD(norms[0]), nn.SGD(norms[0], momentum=0.9), nn.Adam(norms[0]), nn.RMSprop(norms[0])):
        optimizer.step()
