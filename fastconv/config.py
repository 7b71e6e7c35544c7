"""What this installation is and has: versions, processor, threads, caches; compiling kernels ahead."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from types import ModuleType
from typing import Any

import numpy as np

from ._version import __version__
from .problem import Options, Problem

__all__ = ["describe", "get_num_threads", "set_num_threads", "show_config", "warmup"]

# One forward and one weight gradient per backend reach every kernel that a dtype has; both layouts share them.
WARMUP_CASES: tuple[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]], ...] = (
    ((1, 8, 24, 24), (40, 8, 3, 3), {"padding": 1}), ((1, 8, 24, 24), (8, 1, 3, 3), {"padding": 1, "groups": 8}),
    ((1, 8, 24, 24), (40, 8, 1, 1), {}))
STRIDED_CASE = ((1, 8, 24, 24), (40, 8, 3, 3), {"stride": 2})


def set_num_threads(count: int) -> None:
    """Let later calls, in the whole process, use up to `count` threads.

    Parameters
    ----------
    count : int
        At least 1; more than Numba's pool has (the processors, or NUMBA_NUM_THREADS) come to as many as it has.

    Examples
    --------
    >>> import fastconv as fc
    >>> fc.set_num_threads(fc.get_num_threads())
    """
    from .backends import _jit

    _jit.set_num_threads(count)


def get_num_threads() -> int:
    """Threads a call may use: `set_num_threads`, else FASTCONV_NUM_THREADS, else the processors available.

    Examples
    --------
    >>> import fastconv as fc
    >>> fc.get_num_threads() >= 1
    True
    """
    from .backends import _jit

    return _jit.num_threads()


def kernels() -> dict[str, Any]:
    """Every compiled entry point of the CPU backends, by name."""
    from .backends import (
        _activation,
        _gemm,
        _interleave,
        _jit,
        _layer_norm,
        _machine,
        _normalization,
        _normalization_rows,
        _optimizers,
        _products,
        _sums,
        load,
    )
    from .backends._fft import kernels as _fft

    modules: list[ModuleType] = [_activation, _fft, _gemm, _interleave, _layer_norm, _machine, _normalization, _normalization_rows,
                                 _optimizers, _products, _sums]
    modules += [sys.modules[f"{__package__}.backends.cpu_{name}"] for name in load("cpu")]
    return _jit.compiled_kernels(modules)


def warmup(dtypes: Sequence[str] = ("float32",)) -> list[tuple[str, float]]:
    """Compile the kernels ahead, into the cache on disk.

    Parameters
    ----------
    dtypes : sequence of dtype-like
        float32, float64, or integers.

    Returns
    -------
    list of (str, float)
        What was run and the seconds it took.

    Examples
    --------
    >>> import fastconv as fc
    >>> len(fc.warmup(["float32"])) > 0
    True
    """
    from .backends import load
    from .backends._activation import apply
    from .backends._interleave import NO_PART, Interleaving
    from .backends._sums import channel_sums
    from .dispatcher import machine

    start = time.perf_counter()
    machine()
    times = [("machine constants", time.perf_counter() - start)]
    for dtype in dtypes:
        computed = np.dtype(dtype).name
        for name, backend in load("cpu").items():
            for pass_name in ("forward", "grad_weight"):
                start = time.perf_counter()
                for shape, weights, options in WARMUP_CASES:
                    problem = Problem.create(pass_name, 2, shape, weights, computed, Options(**options))
                    if backend.refuses(problem) is None:
                        first, second, result = (np.zeros(s, computed) for s in problem.shapes)
                        kernel = backend.build(problem)
                        kernel.run(first, kernel.pack(second), None, result)
                times.append((f"{name} {pass_name} {computed}", time.perf_counter() - start))
            start = time.perf_counter()
            backend.prepare(computed)
            times.append((f"{name} variants {computed}", time.perf_counter() - start))
        start = time.perf_counter()
        problem = Problem.create("grad_input", 2, *STRIDED_CASE[:2], computed, Options(**STRIDED_CASE[2]))
        Interleaving(problem, [NO_PART] * 4)
        times.append((f"interleaving {computed}", time.perf_counter() - start))
        if np.dtype(computed).kind == "f":
            start = time.perf_counter()
            for name in ("sigmoid", "gelu"):
                apply(name, np.zeros(1, computed))
            times.append((f"activations {computed}", time.perf_counter() - start))
            start = time.perf_counter()
            for size in (1, 2):  # channels last, channels first
                channel_sums((1, 1, size), 1, np.dtype(computed))
            times.append((f"sums {computed}", time.perf_counter() - start))
            start = time.perf_counter()
            _warm_layers(computed)
            times.append((f"layers {computed}", time.perf_counter() - start))
    return times


def _warm_layers(dtype: str) -> None:
    """Compile the kernels of `nn` besides the convolutions'."""
    from . import nn

    x = np.ones((2, 4, 2, 2), dtype)
    norms: list[nn.Layer] = [nn.BatchNorm2d(2, layout="NHWC", dtype=dtype), nn.BatchNorm2d(4, dtype=dtype), nn.LayerNorm(2, dtype=dtype)]
    nn.Linear(4, 2, dtype=dtype).forward(x.reshape(8, 4))[1](np.ones((8, 2), dtype))
    for layer in (*norms, nn.ReLU(), nn.SiLU(), nn.GELU()):
        layer(x)
        y, backprop = layer.forward(x)
        backprop(y)
    for optimizer in (nn.SGD(norms[0]), nn.SGD(norms[0], momentum=0.9), nn.Adam(norms[0]), nn.RMSprop(norms[0])):
        optimizer.step()


def describe() -> dict[str, Any]:
    """The facts that `fastconv info` prints, as plain data."""
    from importlib.metadata import version

    from .asking import backends
    from .backends import _jit, _simd
    from .dispatcher import machine

    triple, cpu, _ = _jit.cpu_target()
    states = {name: _jit.cache_state(dispatcher) for name, dispatcher in kernels().items()}
    return {
        "fastconv": __version__, "python": platform.python_version(),
        **{name: version(name) for name in ("numba", "llvmlite", "numpy", "scipy")},
        "platform": triple, "cpu": cpu, "float32 lanes": _simd.lane_count("float32"),
        "register tile": f"{_simd.TILE_ROWS} x {_simd.TILE_COLUMNS}", "threading layer": _jit.threading_layer(),
        "threads": _jit.num_threads(), "cache directory": str(_jit.cache_directory()), "backends": backends(),
        "machine": asdict(machine()), "kernels": sorted(states.items()),
    }


def show_config() -> None:
    """Print what `fastconv info` prints.

    Examples
    --------
    >>> import fastconv as fc
    >>> fc.show_config()  # doctest: +ELLIPSIS
    fastconv...
    """
    for key, value in describe().items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {number:.3g}" if isinstance(number, float) else f"{name} {number}" for name, number in value.items())
        elif isinstance(value, list):
            value = ", ".join(f"{item[0]} ({item[1]})" if isinstance(item, tuple) else str(item) for item in value)
        print(f"{key:16s} {value}")
