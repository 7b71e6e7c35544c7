"""`grad_input` for any backend that has a forward pass: one forward convolution of gy per residue class of the stride.

With stride 1 that is one convolution with the reversed kernel, written straight into gx. Otherwise each class has its
own sub-kernel (no multiplication by stuffed zeros) and is written into its interleaved positions of gx.

Source: Dumoulin and Visin, "A guide to convolution arithmetic for deep learning" (2016), section 4; the polyphase form is
Vaidyanathan, "Multirate Systems and Filter Banks" (1993), section 4.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..problem import Phase, Problem
from . import Kernel
from ._rectifiers import RECTIFIERS


class GradInputByPhases:
    """The kernels of all phases and the assembly of their results."""

    def __init__(self, problem: Problem, build_forward: Callable[[Problem], Kernel]):
        self.problem = problem
        self.phases = problem.phases()
        self.kernels = [build_forward(phase.problem) if phase.problem else None for phase in self.phases]

    def pack(self, w: np.ndarray) -> list[Any]:
        w = w.reshape(self.problem.shapes[1])
        return [kernel.pack(phase_weights(self.problem, phase, w)) if kernel else None
                for phase, kernel in zip(self.phases, self.kernels, strict=True)]

    def run(self, gy: np.ndarray, packed: list[Any], bias: np.ndarray | None, out: np.ndarray) -> bool:
        if len(self.phases) == 1 and self.kernels[0] is not None:
            return self.kernels[0].run(gy, packed[0], bias, out) is not False
        finite = True
        out = out.reshape(self.problem.input_shape)
        for phase, kernel, weights in zip(self.phases, self.kernels, packed, strict=True):
            target = out[self._index(phase)]
            if kernel is None:
                target[...] = self._bias_alone(bias)
            elif target.size:
                part = np.empty(target.shape, out.dtype)
                finite &= kernel.run(gy, weights, bias, part) is not False
                target[...] = part
        return finite

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


def phase_weights(problem: Problem, phase: Phase, w: np.ndarray) -> np.ndarray:
    """The forward weights of a phase: its taps reversed, input and output channels exchanged within each group."""
    groups, o, c = problem.groups, problem.group_out, problem.group_in
    if problem.channels_last:
        part = w[phase.taps][::-1, ::-1, ::-1]
        spatial = part.shape[:3]
        return np.ascontiguousarray(part.reshape(*spatial, c, groups, o).transpose(0, 1, 2, 5, 4, 3)).reshape(*spatial, o, groups * c)
    part = w[(slice(None), slice(None), *phase.taps)][:, :, ::-1, ::-1, ::-1]
    spatial = part.shape[2:]
    return np.ascontiguousarray(part.reshape(groups, o, c, *spatial).swapaxes(1, 2)).reshape(groups * c, o, *spatial)


def phase_seconds(problem: Problem, seconds: Callable[[Problem], float], assembly_bandwidth: float) -> float:
    """Predicted time of a `grad_input` from that of its phases, and the bytes moved to interleave them."""
    phases = problem.phases()
    time = sum(seconds(phase.problem) for phase in phases if phase.problem)
    if len(phases) > 1:
        time += 3 * math.prod(problem.input_shape) * problem.itemsize / assembly_bandwidth + 10e-6 * len(phases)
    return time
