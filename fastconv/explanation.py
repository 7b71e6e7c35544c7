"""What a choice of backend looks like to a person: the candidates and the table that `explain` and plans print."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .problem import Problem

__all__ = ["Candidate", "Explanation", "describe", "machine"]


@dataclass(frozen=True)
class Candidate:
    """One backend's standing for one problem."""

    name: str
    refusal: str | None = None
    predicted_seconds: float | None = None  # of a run, and of packing too unless the plan is made for many runs
    measured_seconds: float | None = None
    suited_seconds: float | None = None  # predicted for the best weights, where a backend takes some weights only

    @property
    def seconds(self) -> float:
        """What it is ranked by."""
        if self.refusal is not None:
            return math.inf
        return self.measured_seconds if self.measured_seconds is not None else self.predicted_seconds or 0.0


@dataclass(frozen=True, repr=False)
class Explanation:
    """What was chosen for a problem and why; `print` it."""

    problem: Problem
    chosen: str
    candidates: tuple[Candidate, ...]
    reason: str
    scratch_bytes: int

    def __repr__(self) -> str:
        return "\n".join(_lines(self))


def machine(device: str = "cpu") -> Any:
    """The constants of the cost models: the processor's, measured once and stored, or a GPU's, as its driver says."""
    if device != "cpu":
        from .backends._cuda.driver import gpu

        return gpu()
    from .backends._machine import machine_constants

    return machine_constants()


def describe(problem: Problem) -> str:
    """A problem in one line."""
    x, w = problem.public_shape(problem.input_shape), problem.public_shape(problem.weight_shape)
    parts = [f"{problem.pass_name} {problem.ndim}-D, x {x}, w {w}", problem.dtype, problem.layout]
    axes = slice(3 - problem.ndim, None)
    for name, neutral in (("stride", 1), ("dilation", 1), ("padding", (0, 0))):
        value = getattr(problem, name)[axes]
        if any(item != neutral for item in value):
            parts.append(f"{name} {value}")
    if problem.groups > 1:
        parts.append(f"groups {problem.groups}")
    parts += [name for name in (problem.padding_mode if problem.padding_mode != "zeros" else None, problem.activation) if name]
    return ", ".join(parts)


def _lines(explanation: Explanation) -> Iterator[str]:
    problem = explanation.problem
    constants = machine(problem.device)
    real = "float32" if problem.dtype in ("float32", "complex64", "int32") else "float64"
    peak = constants.flops(real) * (constants.threads if problem.device == "cpu" else 1)
    yield describe(problem)
    yield (f"{problem.flops / 1e6:,.2f} MFLOP, {problem.bytes / 1e6:,.2f} MB of arrays, "
           f"{explanation.scratch_bytes / 1e6:,.2f} MB of scratch")
    yield f"chosen: {explanation.chosen} ({explanation.reason})"
    width = max(10, *(len(candidate.name) for candidate in explanation.candidates))
    yield f"  {'backend':{width}s} {'predicted':>12s} {'measured':>12s} {'of the peak':>12s}"
    for candidate in explanation.candidates:
        mark = "*" if candidate.name == explanation.chosen else " "
        if candidate.refusal is not None:
            yield f"{mark} {candidate.name:{width}s} refuses: {candidate.refusal}"
            continue
        times = [f"{t * 1e3:9.4f} ms" if t is not None else "-" for t in (candidate.predicted_seconds, candidate.measured_seconds)]
        share = problem.flops / max(candidate.seconds, 1e-12) / peak
        yield f"{mark} {candidate.name:{width}s} {times[0]:>12s} {times[1]:>12s} {share:>11.0%}"
