"""Kernels with a substitute: another backend computes where the weights, or the results, do not suit the first.

Each is a `Kernel` itself (`pack`, `run`), so the dispatcher's wrappers compose with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .asking import Choice, warn_once
from .backends import BackendError, Kernel, load
from .explanation import Candidate, describe, machine
from .problem import Problem

__all__ = ["ByWeights", "ExactNonFinite", "PackedBy"]


class PackedBy(NamedTuple):
    """What `ByWeights` packed: the backend that took the weights, its kernel, and what that made of them."""

    backend: str
    kernel: Kernel
    packed: Any


class ByWeights:
    """A kernel that chooses when the weights are known: a picky backend where it takes them and gains by it, else a general one."""

    def __init__(self, problem: Problem, name: str, picky: Kernel, general: Candidate, general_kernel: Kernel, choice: Choice):
        self.problem, self.name, self.picky = problem, name, picky
        self.general, self.general_kernel, self.choice = general, general_kernel, choice

    def pack(self, second: np.ndarray) -> PackedBy:
        try:
            packed = self.picky.pack(second)
        except BackendError as refusal:
            if self.choice.name is not None:
                self._not_as_asked(refusal)
        else:
            if self.choice.name is not None or self._predicted(packed) < self.general.seconds:
                return PackedBy(self.name, self.picky, packed)
        return PackedBy(self.general.name, self.general_kernel, self.general_kernel.pack(second))

    def run(self, first: np.ndarray, packed: PackedBy, bias: np.ndarray | None, out: np.ndarray) -> bool | None:
        return packed.kernel.run(first, packed.packed, bias, out)

    @property
    def scratch_bytes(self) -> int:
        return max(self.picky.scratch_bytes, self.general_kernel.scratch_bytes)

    def _predicted(self, packed: Any) -> float:
        backend = load(self.problem.device)[self.name]
        assert backend.packed_seconds is not None
        return backend.packed_seconds(self.problem, machine(), packed[0] if isinstance(self.picky, ExactNonFinite) else packed)

    def _not_as_asked(self, refusal: BackendError) -> None:
        message = f"backend {self.name!r} cannot compute this problem: {refusal} ({describe(self.problem)})"
        if self.choice.source != "FASTCONV_BACKEND":
            raise BackendError(message) from None
        warn_once(f"FASTCONV_BACKEND: {message}; using {self.general.name!r}")


class ExactNonFinite:
    """A kernel that smears NaN and Inf, made exact: where a result is not finite, a backend that sums directly redoes it."""

    def __init__(self, kernel: Kernel, problem: Problem, candidates: Sequence[Candidate]):
        self.kernel = kernel
        self.problem = problem
        self.substitute = next(c.name for c in candidates if c.refusal is None and load(problem.device)[c.name].sums_directly)

    def pack(self, second: np.ndarray) -> Any:
        return self.kernel.pack(second), second

    def run(self, first: np.ndarray, packed: Any, bias: np.ndarray | None, out: np.ndarray) -> None:
        spectra, second = packed
        if not self.kernel.run(first, spectra, bias, out):
            direct = load(self.problem.device)[self.substitute].build(self.problem)
            direct.run(first, direct.pack(second), bias, out)

    @property
    def scratch_bytes(self) -> int:
        return self.kernel.scratch_bytes
