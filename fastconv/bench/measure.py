"""Times every backend on every item of a suite, and compares their results with each other and with NumPy and SciPy."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from importlib import metadata
from typing import Any

import numpy as np

import fastconv as fc
from fastconv import config, dispatcher
from fastconv.bench.baseline import baseline
from fastconv.bench.suite import Item

__all__ = ["Report", "Result", "Timing", "check_backends", "median_seconds", "run"]

TOLERANCE = 1e-4  # of the result's largest value; "default" accuracy allows float32 errors of about 1e-5
SUITE_SECONDS = 75.0  # leaves room under two minutes for items that exceed their share
ITEM_SECONDS = (0.05, 0.5)  # least and most time for one item: longer would not change a median that anyone can see
BASELINE_SHARE = 0.25
TURNS = 3
SHORT_OF_TIME = 0.4  # seconds left for each item still to come, below which hopeless backends are skipped
HOPELESS = 10.0  # times the fastest backend's predicted time
SKIPPED = f"skipped: predicted to take over {HOPELESS:g} times as long as the fastest, and time is short (see --seconds)"

Call = Callable[[], Any]


@dataclass(frozen=True)
class Timing:
    """Median seconds of `calls` calls; `error` is the largest difference from NumPy/SciPy over the largest value."""

    seconds: float
    calls: int
    error: float


@dataclass(frozen=True)
class Result:
    """What was measured of one item: backends by name in `timings`, or in `refusals` or `failures` with the reason."""

    item: Item
    flops: int
    bytes: int
    timings: dict[str, Timing]
    refusals: dict[str, str]
    failures: dict[str, str]
    baseline: Timing
    chosen: str
    spread: float
    peak: float

    @property
    def fastest(self) -> str | None:
        """The backend with the least time."""
        return min(self.timings, key=lambda name: self.timings[name].seconds, default=None)

    @property
    def shown(self) -> str | None:
        """The backend that the rates below are of: the dispatcher's choice, or the fastest where that was not measured."""
        return self.chosen if self.chosen in self.timings else self.fastest

    @property
    def seconds(self) -> float:
        """Median time of the shown backend, nan where every backend refused or failed."""
        return self.timings[self.shown].seconds if self.shown else float("nan")

    @property
    def rate(self) -> float:
        """FLOP/s, counting the direct sum's operations whatever the method."""
        return self.flops / self.seconds

    @property
    def share(self) -> float:
        """Rate over the measured FMA peak of all threads; a method with fewer operations can exceed 1."""
        return self.rate / self.peak

    @property
    def intensity(self) -> float:
        """Operations for each byte of input, weights and output."""
        return self.flops / self.bytes

    @property
    def speedup(self) -> float:
        """Time of NumPy/SciPy over the time of the shown backend."""
        return self.baseline.seconds / self.seconds

    @property
    def regret(self) -> float:
        """Time of the shown backend over the time of the fastest."""
        return self.seconds / self.timings[self.fastest].seconds if self.fastest else float("nan")

    @property
    def wrong(self) -> list[str]:
        """Backends whose result differs from NumPy's or SciPy's by more than the tolerance, or that failed."""
        return [name for name, timing in self.timings.items() if not timing.error <= TOLERANCE] + list(self.failures)

    @property
    def verified(self) -> bool:
        """Whether all results agree with each other."""
        return not self.wrong and self.spread <= TOLERANCE


@dataclass(frozen=True)
class Report:
    """A whole run: its results and the facts needed to read them. Rates are FLOP/s and bytes/s of all threads."""

    results: list[Result]
    backends: list[str]
    threads: int
    cpu: str
    peak: float
    bandwidth: float
    cache_bandwidth: float
    seconds: float
    date: str
    versions: dict[str, str]

    @property
    def verified(self) -> bool:
        """Whether every item's results agree."""
        return all(result.verified for result in self.results)

    @property
    def measured(self) -> list[Result]:
        """The results that have at least one timing."""
        return [result for result in self.results if result.timings]


def geometric_mean(values: Iterable[float]) -> float:
    """Geometric mean, nan of nothing."""
    values = list(values)
    return statistics.geometric_mean(values) if values else float("nan")


def check_backends(names: list[str] | None, device: str = "cpu") -> list[str]:
    """The names as given, or all of a device's backends for none; an unknown name raises ValueError with the valid ones."""
    valid = list(fc.backends(device))
    if unknown := [name for name in names or [] if name not in valid]:
        raise ValueError(f"there is no backend {unknown[0]!r}; valid names are {', '.join(valid)}")
    return list(dict.fromkeys(names)) if names else valid


def run(items: list[Item], backends: list[str], advance: Callable[[Item], None], seconds: float = SUITE_SECONDS,
        device: str = "cpu") -> Report:
    """Measure items one after the other within about `seconds`, which also pay for what is compiled on the way.

    Parameters
    ----------
    items : list of Item
        What to convolve.
    backends : list of str
        Names out of `fastconv.backends()`.
    advance : callable
        Called with each item before it is measured.
    seconds : float
        Time for everything; every item gets an equal share of what is left, within `ITEM_SECONDS`.
    device : {"cpu", "cuda"}
        Whose backends they are. On a GPU arrays lie there before, and a call's time is until it is done.

    Returns
    -------
    Report
        One result per item, in order.
    """
    start = time.perf_counter()
    machine = dispatcher.machine(device)
    threads = fc.get_num_threads() if device == "cpu" else 1
    peak = machine.flops("float32") * threads
    results: list[Result] = []
    for index, item in enumerate(items):
        advance(item)
        left = seconds - (time.perf_counter() - start)
        budget = min(max(left / (len(items) - index), ITEM_SECONDS[0]), ITEM_SECONDS[1])
        short = left / (len(items) - index) < SHORT_OF_TIME
        results.append(measure(item, backends, budget, peak, skip_hopeless=short, device=device))
    return Report(
        results=results, backends=backends, threads=threads, cpu=machine.cpu if device == "cpu" else machine.name, peak=peak,
        bandwidth=machine.bandwidth * threads, cache_bandwidth=getattr(machine, "cache_bandwidth", machine.bandwidth) * threads,
        seconds=time.perf_counter() - start,
        date=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"), versions=versions())


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the figures depend on."""
    packages = ("fastconv", "numba", "numpy", "scipy")
    return {"python": platform.python_version()} | {name: _version(name) for name in packages}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # fastconv itself, run from its source tree
        return getattr(fc, "__version__", "not installed")


@dataclass
class Trial:
    """The first calls of all backends: plans as calls, results, seconds, which compiled; or the reason there is none."""

    calls: dict[str, Call] = field(default_factory=dict)
    outputs: dict[str, np.ndarray] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    compiled: set[str] = field(default_factory=set)
    refusals: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def measure(item: Item, backends: list[str], budget: float, peak: float, skip_hopeless: bool = False, device: str = "cpu") -> Result:
    """Build, check and time every backend that accepts an item, or all but the hopeless ones.

    The first call may compile, so it does not count, except where it compiled nothing and took more than the budget.
    """
    x, w, bias = item.arrays()
    reference = baseline(item, x, w, bias)
    expected = reference()
    explained = fc.explain(item.input_shape, item.weight_shape, bias=bias is not None, backend=None if device == "cpu" else device,
                           **item.options)
    x = fc.asarray(x, device)
    skipped = hopeless(explained, backends) if skip_hopeless else {}
    trial = first_calls(item, [name for name in backends if name not in skipped], x, w, bias)
    affordable = {name: call for name, call in trial.calls.items() if name in trial.compiled or trial.seconds[name] <= budget}
    times = {name: (trial.seconds[name], 1) for name in trial.calls} | median_seconds(affordable, budget * (1 - BASELINE_SHARE))
    return Result(
        item=item, flops=explained.problem.flops, bytes=explained.problem.bytes,
        refusals=trial.refusals | skipped, failures=trial.failures,
        timings={name: Timing(*times[name], error=difference(trial.outputs[name], expected)) for name in trial.calls},
        baseline=Timing(*median_seconds({"": reference}, budget * BASELINE_SHARE)[""], error=0.0),
        chosen=explained.chosen, spread=spread([expected, *trial.outputs.values()]), peak=peak)


def _finished(plan: Any, x: Any) -> None:
    """A call on a GPU until its work is done."""
    from fastconv.backends._cuda.events import finish

    plan(x)
    finish(0)


def hopeless(explained: Any, backends: list[str]) -> dict[str, str]:
    """The backends that the dispatcher expects to be far slower than the fastest of them, and why they are left out."""
    predicted = {candidate.name: candidate.predicted_seconds for candidate in explained.candidates
                 if candidate.predicted_seconds is not None and candidate.name in backends}
    return {name: SKIPPED for name, seconds in predicted.items() if seconds > HOPELESS * min(predicted.values())}


def first_calls(item: Item, backends: list[str], x: np.ndarray, w: np.ndarray, bias: np.ndarray | None) -> Trial:
    """Plan and call every backend once."""
    trial = Trial()
    make_plan = getattr(fc, f"plan_conv{item.ndim}d")
    for name in backends:
        try:
            plan = make_plan(w, bias, input_shape=item.input_shape, backend=name, **item.options)
            known, start = _compiled_count(), time.perf_counter()
            output = fc.asnumpy(plan(x))
        except fc.BackendError as error:
            trial.refusals[name] = str(error)
        except Exception as error:  # a broken backend is a finding of the verification, not the end of the run
            trial.failures[name] = f"{type(error).__name__}: {error}"
        else:
            trial.seconds[name] = time.perf_counter() - start
            trial.outputs[name], trial.calls[name] = output, partial(plan, x) if name in fc.backends() else partial(_finished, plan, x)
            if _compiled_count() > known:
                trial.compiled.add(name)
    return trial


def _compiled_count() -> int:
    return sum(len(kernel.signatures) for kernel in config.kernels().values())


def median_seconds(calls: dict[str, Call], budget: float) -> dict[str, tuple[float, int]]:
    """Median seconds and number of calls, of functions that take turns so that a slow moment of the machine hits all.

    Within a turn the calls of one function follow each other, as they do in use: its data stays in cache. A function
    that has used up its share of the budget sits out the remaining turns.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    share = budget / max(len(calls), 1)
    for turn in range(1, TURNS + 1):
        for name, call in calls.items():
            spent = sum(times[name])
            while spent < share * turn / TURNS or not times[name]:
                start = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - start)
                spent += times[name][-1]
    return {name: (statistics.median(values), len(values)) for name, values in times.items()}


def difference(result: np.ndarray, expected: np.ndarray) -> float:
    """Largest absolute difference over the largest absolute expected value; infinite where the shapes differ."""
    if result.shape != expected.shape:
        return float("inf")
    scale = float(np.abs(expected).max(initial=0.0)) or 1.0
    return float(np.abs(result - expected).max(initial=0.0)) / scale


def spread(outputs: list[np.ndarray]) -> float:
    """Largest difference between any two results, as `difference` measures it."""
    if any(output.shape != outputs[0].shape for output in outputs):
        return float("inf")
    low, high = outputs[0].copy(), outputs[0].copy()
    for output in outputs[1:]:
        np.minimum(low, output, out=low)
        np.maximum(high, output, out=high)
    scale = float(np.abs(outputs[0]).max(initial=0.0)) or 1.0
    return float((high - low).max(initial=0.0)) / scale
