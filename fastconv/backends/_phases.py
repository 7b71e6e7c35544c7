"""`grad_input` for any backend that has a forward pass: one forward convolution of gy per residue class of the stride.

With stride 1 that is one convolution with the reversed kernel, written straight into gx. Otherwise each class has its
own sub-kernel (no multiplication by stuffed zeros) and is written into its interleaved positions of gx.

Source: Dumoulin and Visin, "A guide to convolution arithmetic for deep learning" (2016), section 4; the polyphase form is
Vaidyanathan, "Multirate Systems and Filter Banks" (1993), section 4.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from ..problem import Phase, Problem
from . import Kernel
from ._rectifiers import RECTIFIERS
from ._weights import WeightLayout, phase_layout


class ForwardBuilder(Protocol):
    """Builds a forward kernel; one that reads its weights in place, if the backend has such."""

    def __call__(self, problem: Problem, layout: WeightLayout = ...) -> Kernel:
        """The kernel, whose `pack` finds the weights by `layout`."""


class GradInputByPhases:
    """The kernels of all phases and the assembly of their results.

    A backend's forward kernel either finds its weights by a `WeightLayout`, or takes them in an array of their own.
    """

    def __init__(self, problem: Problem, build_forward: Callable[[Problem], Kernel] | None = None, *,
                 build_in_place: ForwardBuilder | None = None):
        self.problem = problem
        self.phases = problem.phases()
        self.layouts = [phase_layout(problem, phase) for phase in self.phases]
        self.in_place = build_in_place is not None
        self.kernels: list[Kernel | None] = []
        for phase, layout in zip(self.phases, self.layouts, strict=True):
            if phase.problem is None:
                self.kernels.append(None)
            elif build_in_place is not None:
                self.kernels.append(build_in_place(phase.problem, layout))
            elif build_forward is not None:
                self.kernels.append(build_forward(phase.problem))

    def pack(self, w: np.ndarray) -> list[Any]:
        packed: list[Any] = []
        for phase, layout, kernel in zip(self.phases, self.layouts, self.kernels, strict=True):
            if kernel is None or phase.problem is None:
                packed.append(None)
            else:
                packed.append(kernel.pack(w if self.in_place else layout.array(phase.problem, w)))
        return packed

    def run(self, gy: np.ndarray, packed: list[Any], bias: np.ndarray | None, out: np.ndarray) -> None:
        if len(self.phases) == 1 and self.kernels[0] is not None:
            self.kernels[0].run(gy, packed[0], bias, out)
            return
        for phase, kernel, weights in zip(self.phases, self.kernels, packed, strict=True):
            target = out[self._index(phase)]
            if kernel is None:
                target[...] = self._bias_alone(bias)
            elif target.size:
                part = np.empty(target.shape, out.dtype)
                kernel.run(gy, weights, bias, part)
                target[...] = part

    @property
    def scratch_bytes(self) -> int:
        parts = [kernel.scratch_bytes for kernel in self.kernels if kernel]
        p = self.problem
        assembled = 0 if len(self.phases) == 1 else math.prod(p.input_shape) * p.itemsize // len(self.phases)
        return max(parts, default=0) + assembled

    def _index(self, phase: Phase) -> tuple[slice, ...]:
        return (slice(None), *phase.target) if self.problem.channels_last else (slice(None), slice(None), *phase.target)

    def _bias_alone(self, bias: np.ndarray | None) -> np.ndarray:
        p = self.problem
        value = np.zeros(p.in_channels, p.dtype) if bias is None else bias
        slope, ceiling = RECTIFIERS[p.activation]
        value = np.minimum(np.where(value < 0, value * slope, value), ceiling).astype(p.dtype)
        return value if p.channels_last else value[:, None, None, None]


def phase_seconds(problem: Problem, seconds: Callable[[Problem], float], assembly_bandwidth: float) -> float:
    """Predicted time of a `grad_input` from that of its phases, and the bytes moved to interleave them."""
    phases = problem.phases()
    time = sum(seconds(phase.problem) for phase in phases if phase.problem)
    if len(phases) > 1:
        time += 3 * math.prod(problem.input_shape) * problem.itemsize / assembly_bandwidth + 10e-6 * len(phases)
    return time
