"""Measured times of the backends on one problem: what `tune` and FASTCONV_TUNE=measure rank by."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from .backends import Backend, load
from .backends._scratch import reused_operands
from .problem import Problem

__all__ = ["measure"]

RUNS_BETWEEN_EVENTS = 5  # which hide the time until the GPU hears of the first


def measure(problem: Problem, prepacked: bool = True, budget: float = 0.2) -> dict[str, float]:
    """Measured seconds of each backend that takes a lowered problem, taken in turns; what is hopeless gets one run."""
    prepacked = prepacked and problem.pass_name != "grad_weight"  # gy is new at each call
    rng = np.random.default_rng(0)
    shapes = problem.shapes
    first, second = (_random(rng, shape, problem.dtype) for shape in shapes[:2])
    bias = _random(rng, (problem.epilogue_channels,), problem.dtype) if problem.bias else None
    out = np.empty(shapes[2], problem.dtype)
    timed = _timed_run if problem.device == "cpu" else _timed_run_on_device
    if problem.device != "cpu":
        first, second, bias, out = _moved(first, second, bias, out)
    runs = {}
    for name, backend in load(problem.device).items():
        if backend.refuses(problem) is None and backend.packed_seconds is None:  # random weights suit no picky backend
            runs[name] = timed(backend, problem, prepacked, first, second, bias, out)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for name, run in runs.items():
        run()  # compiles, and warms the caches
        times[name].append(run())
    best = min(min(t) for t in times.values())
    end = time.perf_counter() + budget
    while time.perf_counter() < end and len(times[next(iter(times))]) < 50:
        for name, run in runs.items():
            if times[name][0] < 4 * best:
                times[name].append(run())
    return {name: float(np.median(t)) for name, t in times.items()}


def _random(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    kind = np.dtype(dtype)
    return rng.integers(-9, 9, shape).astype(kind) if kind.kind == "i" else rng.standard_normal(shape, kind)


def _timed_run(backend: Backend, problem: Problem, prepacked: bool, first: np.ndarray, second: np.ndarray,
               bias: np.ndarray | None, out: np.ndarray) -> Callable[[], float]:
    kernel = backend.build(problem)
    packed = kernel.pack(second)

    def run() -> float:
        start = time.perf_counter()
        if prepacked:
            kernel.run(first, packed, bias, out)
        else:
            with reused_operands:  # as a plain call does
                kernel.run(first, kernel.pack(second), bias, out)
        return time.perf_counter() - start

    return run


def _moved(*arrays: np.ndarray | None) -> list[Any]:
    from .backends._cuda.driver import resident

    return [None if array is None else resident(array) for array in arrays]


def _timed_run_on_device(backend: Backend, problem: Problem, prepacked: bool, first: Any, second: Any, bias: Any,
                         out: Any) -> Callable[[], float]:
    """The same by the GPU's clock."""
    from .backends._cuda.driver import DEFAULT_STREAM, address_of, memory
    from .backends._cuda.events import elapsed

    kernel = backend.build(problem)
    packed = [memory(max(1, count), dtype) for count, dtype in kernel.packed]
    x, w, b, y, *places = (None if array is None else address_of(array) for array in (first, second, bias, out, *packed))
    kernel.pack(DEFAULT_STREAM, w, places)

    def work() -> None:
        for _ in range(RUNS_BETWEEN_EVENTS):
            if not prepacked:
                kernel.pack(DEFAULT_STREAM, w, places)
            kernel.run(DEFAULT_STREAM, x, w, places, b, y)

    def run(kept: Any = (first, second, bias, out, packed)) -> float:
        return elapsed(DEFAULT_STREAM, work) / RUNS_BETWEEN_EVENTS

    return run
