"""Which backend computes a problem: candidates, cost model, wisdom, measuring, explanations.

    problem -> lowered problem -> candidates (refused, or predicted, or measured) -> Plan

A `Plan` is immutable and may be shared by threads. Plans are kept in a bounded cache.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import wisdom
from .asking import AUTO, Choice, possible_choice, warn_once
from .backends import BackendError, Kernel, load
from .explanation import Candidate, Explanation, describe, machine
from .lowering import EmptySum, lower
from .measuring import measure
from .problem import Options, Problem, computing_dtype
from .substitutes import ByWeights, ExactNonFinite

__all__ = ["Candidate", "Explanation", "Plan", "explain", "machine", "plan", "tune"]

PLANS_KEPT = 1024


@dataclass(frozen=True, repr=False)
class Plan:
    """A problem with the kernel that computes it, and why that one."""

    problem: Problem
    backend: str
    kernel: Kernel
    candidates: tuple[Candidate, ...]
    reason: str

    def pack(self, second: np.ndarray) -> Any:
        """Prepare the pass's second operand for any number of runs."""
        return self.kernel.pack(second)

    def run(self, first: np.ndarray, packed: Any, bias: np.ndarray | None, out: np.ndarray) -> None:
        """Compute the problem into `out`."""
        self.kernel.run(first, packed, bias, out)

    def __repr__(self) -> str:
        return str(Explanation(self.problem, self.backend, self.candidates, self.reason, self.kernel.scratch_bytes))


# -- choosing -------------------------------------------------------------------------------------------------------------


def rank(problem: Problem, prepacked: bool) -> list[Candidate]:
    """All backends for a lowered problem, the fastest first, refusals last."""
    constants = machine(problem.device)
    measured = wisdom.store.measured(problem)
    candidates = []
    for name, backend in load(problem.device).items():
        refusal = backend.refuses(problem)
        if refusal is not None:
            candidates.append(Candidate(name, refusal))
            continue
        predicted = backend.seconds(problem, constants)
        if not prepacked or problem.pass_name == "grad_weight":  # gy is new at each call
            predicted += backend.pack_seconds(problem, constants)
        if backend.packed_seconds is not None:
            reason = f"takes some weights only, the best of them in {predicted * 1e3:.4f} ms"
            candidates.append(Candidate(name, reason, suited_seconds=predicted))
        else:
            candidates.append(Candidate(name, None, predicted, measured.get(name)))
    # Measured times rank among themselves; a backend that was never measured does not compete with one that was.
    known = any(candidate.measured_seconds is not None for candidate in candidates)
    return sorted(candidates, key=lambda c: (c.refusal is not None, known and c.measured_seconds is None, c.seconds))


def plan(problem: Problem, choice: Choice = AUTO, *, prepacked: bool = False) -> Plan:
    """The plan of a problem; `prepacked` if its second operand will be packed once for many runs."""
    if problem.device == "cpu":
        from .backends._jit import num_threads as executor
    else:
        from .backends._cuda.context import current_device as executor
    return _plan(problem, choice, prepacked, executor(), wisdom.store.generation)


@functools.lru_cache(maxsize=PLANS_KEPT)
def _plan(problem: Problem, choice: Choice, prepacked: bool, executor: int, generation: int) -> Plan:
    lowered, wrap = lower(problem)
    candidates = rank(lowered, prepacked)
    name, reason = _choose(candidates, choice, problem)
    if choice.name is None and _tuning() and all(c.measured_seconds is None for c in candidates):
        wisdom.store.update({wisdom.key_of(lowered): measure(lowered, prepacked)})
        candidates = rank(lowered, prepacked)
        name, reason = candidates[0].name, "measured to be the fastest just now (FASTCONV_TUNE=measure)"
    general = next(candidate for candidate in candidates if candidate.name == name)
    kernel = _build(name, lowered, candidates)
    picky = _picky(candidates, choice, general)
    if picky is not None and lowered.flops:
        kernel = ByWeights(lowered, picky, _build(picky, lowered, candidates), general, kernel, choice)
        reason = f"asked for by {choice.source}" if choice.name == picky else f"{reason}; {picky!r} for weights that suit it"
        name = picky if choice.name == picky else name
    return Plan(problem, name, wrap(kernel), tuple(candidates), reason)


def _build(name: str, problem: Problem, candidates: Sequence[Candidate]) -> Kernel:
    backend = load(problem.device)[name]
    if not problem.flops and problem.device == "cpu":
        return EmptySum(problem)
    return backend.build(problem) if backend.sums_directly else ExactNonFinite(name, problem, candidates)


def _picky(candidates: Sequence[Candidate], choice: Choice, general: Candidate) -> str | None:
    """The backend that may do better than `general`, or was asked for, if the weights suit it."""
    if choice.name is not None:
        return next((c.name for c in candidates if c.name == choice.name and c.suited_seconds is not None), None)
    able = [(c.suited_seconds, c.name) for c in candidates if c.suited_seconds is not None and c.suited_seconds < general.seconds]
    return min(able)[1] if able else None


def _choose(candidates: Sequence[Candidate], choice: Choice, problem: Problem) -> tuple[str, str]:
    best = candidates[0]
    reason = "measured to be the fastest (wisdom)" if best.measured_seconds is not None else "predicted to be the fastest"
    if choice.name is None:
        return best.name, reason
    asked = next(candidate for candidate in candidates if candidate.name == choice.name)
    if asked.refusal is None:
        return asked.name, f"asked for by {choice.source}"
    if asked.suited_seconds is not None:
        return best.name, reason
    message = f"backend {choice.name!r} cannot compute this problem: {asked.refusal} ({describe(problem)})"
    if choice.source != "FASTCONV_BACKEND":
        raise BackendError(message)
    warn_once(f"FASTCONV_BACKEND: {message}; using {best.name!r}")
    return best.name, f"{reason}; {choice.name!r} refused: {asked.refusal}"


def _tuning() -> bool:
    mode = os.environ.get("FASTCONV_TUNE", "off")
    if mode not in ("off", "measure"):
        raise ValueError(f"FASTCONV_TUNE must be 'off' or 'measure', got {mode!r}")
    return mode == "measure"


# -- explaining and tuning ------------------------------------------------------------------------------------------------


def _problem_of(input_shape: Sequence[int], weight_shape: Sequence[int], *, dtype: Any = "float32", bias: bool = False,
                pass_name: str = "forward", device: str = "cpu", **options: Any) -> Problem:
    if device != "cpu":
        possible_choice(device)
    known = set(Options.__dataclass_fields__)
    unknown = set(options) - known
    if unknown:
        raise TypeError(f"unknown options {sorted(unknown)}; valid ones: {sorted(known)}")
    try:
        name = np.dtype(dtype).name
    except TypeError:
        raise TypeError(f"dtype must name a NumPy dtype, got {dtype!r}") from None
    if np.dtype(name).kind not in "iufc":
        raise TypeError(f"dtype must be a number type, got {dtype!r}")
    if not 3 <= len(input_shape) <= 5:
        raise ValueError(f"input_shape must have 3 to 5 entries, the batch axis included, got {tuple(input_shape)}")
    return Problem.create(pass_name, len(input_shape) - 2, input_shape, weight_shape, computing_dtype(np.dtype(name)),
                          Options(**options), bias=bias, device=device)


def explain(input_shape: Sequence[int], weight_shape: Sequence[int], *, dtype: Any = "float32", bias: bool = False,
            pass_name: str = "forward", backend: str | None = None, prepacked: bool = True, **options: Any) -> Explanation:
    """Say which backend a convolution would use and why.

    Parameters
    ----------
    input_shape, weight_shape : sequence of int
        Shapes of x (with its batch axis) and w.
    dtype : dtype-like
        Element type.
    bias : bool
        Whether a bias is added.
    pass_name : {"forward", "grad_input", "grad_weight"}
        Which pass.
    backend : str, optional
        As in `conv2d`.
    prepacked : bool
        For a plan, whose weights are packed once (True), or for a plain call.
    **options
        stride, padding, dilation, groups, padding_mode, layout, activation, accuracy as in `conv2d`.

    Returns
    -------
    Explanation
        With `chosen`, `candidates`, `reason`, `problem`; it prints as a table.

    Examples
    --------
    >>> import fastconv as fc
    >>> print(fc.explain((1, 3, 8, 8), (4, 3, 3, 3), backend="direct").chosen)
    direct
    """
    choice = possible_choice(backend)
    problem = _problem_of(input_shape, weight_shape, dtype=dtype, bias=bias, pass_name=pass_name, device=choice.device, **options)
    made = plan(problem, choice, prepacked=prepacked)
    return Explanation(made.problem, made.backend, made.candidates, made.reason, made.kernel.scratch_bytes)


def tune(shapes: Sequence[tuple[Any, ...]], *, save: bool = True) -> dict[tuple[Any, ...], str]:
    """Measure every backend on some convolutions and keep the fastest as wisdom.

    Parameters
    ----------
    shapes : sequence of (input_shape, weight_shape) or (input_shape, weight_shape, options)
        Batched shapes; `options` are keyword arguments of `explain` (stride, padding, dtype, ...), and `device`, "cpu" or "cuda".
    save : bool
        Also write the wisdom to the cache directory.

    Returns
    -------
    dict
        The fastest backend of each (input_shape, weight_shape).

    Examples
    --------
    >>> import fastconv as fc
    >>> best = fc.tune([((1, 3, 16, 16), (4, 3, 3, 3), {"padding": 1})], save=False)
    >>> list(best) == [((1, 3, 16, 16), (4, 3, 3, 3))]
    True
    """
    chosen = {}
    for item in shapes:
        if not 2 <= len(item) <= 3:
            raise ValueError(f"shapes must hold (input_shape, weight_shape[, options]), got {item!r}")
        problem = _problem_of(item[0], item[1], **(item[2] if len(item) == 3 else {}))
        lowered, _ = lower(problem)
        times = measure(lowered)
        wisdom.store.update({wisdom.key_of(lowered): times})
        chosen[tuple(item[0]), tuple(item[1])] = min(times, key=times.__getitem__)
    if save:
        wisdom.save()
    return chosen
