"""Kernels with a substitute: another backend computes where the weights, or the results, do not suit the first.

Each is a `Kernel` itself (`pack`, `run`), so the dispatcher's wrappers compose with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from .asking import Choice, warn_once
from .backends import BackendError, Kernel, load
from .explanation import Candidate, describe, machine
from .parts import nonfinite_parts
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
    """A kernel that smears NaN and Inf, made exact: the parts that are not finite are redone by a backend that sums directly."""

    def __init__(self, name: str, problem: Problem, candidates: Sequence[Candidate]):
        self.build = load(problem.device)[name].build
        self.kernel = self.build(problem)
        self.problem = problem
        self.substitute = next(c.name for c in candidates if c.refusal is None and load(problem.device)[c.name].sums_directly)

    def pack(self, second: np.ndarray) -> Any:
        return self.kernel.pack(second), second

    def run(self, first: np.ndarray, packed: Any, bias: np.ndarray | None, out: np.ndarray) -> None:
        spectra, second = packed
        if self.kernel.run(first, spectra, bias, out):
            return
        first, second, result = (array.reshape(shape) for array, shape in zip((first, second, out), self.problem.shapes, strict=True))
        for part in nonfinite_parts(self.problem, self._sums(first, spectra, bias, out)):
            direct = load(self.problem.device)[self.substitute].build(part.problem)
            redone = np.empty(part.problem.shapes[2], out.dtype)
            direct.run(np.ascontiguousarray(first[part.first]), direct.pack(np.ascontiguousarray(second[part.second])),
                       None if bias is None else bias[part.bias], redone)
            result[part.result] = redone

    def _sums(self, first: np.ndarray, spectra: Any, bias: np.ndarray | None, out: np.ndarray) -> np.ndarray:
        """The result before its activation, which may hide infinities."""
        if self.problem.activation is None:
            return out
        sums = np.empty_like(out)
        self.build(replace(self.problem, activation=None)).run(first, spectra, bias, sums)
        return sums

    @property
    def scratch_bytes(self) -> int:
        return self.kernel.scratch_bytes
