"""`grad_input` for any backend that has a forward pass: one forward convolution of gy per residue class of the stride.

With stride 1 that is one convolution with the reversed kernel, written straight into gx. Otherwise each class has its
own sub-kernel (no multiplication by stuffed zeros), and the results are interleaved. Where gx has few channels, all classes
are channels of a single convolution instead, its kernel as large as the largest of theirs: lanes are then full, and gy is
read once.

Source: Dumoulin and Visin, "A guide to convolution arithmetic for deep learning" (2016), section 4; the polyphase form is
Vaidyanathan, "Multirate Systems and Filter Banks" (1993), section 4.3; the single convolution is Shi et al., "Real-time single
image and video super-resolution using an efficient sub-pixel convolutional neural network" (2016), section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from ..problem import Problem
from . import Kernel
from ._boxes import strides_of
from ._gemm import panel_width
from ._interleave import NO_PART, Interleaving, Part
from ._rectifiers import RECTIFIERS
from ._scratch import shared
from ._weights import JointLayout, WeightLayout, joint_layout, phase_layout


class ForwardBuilder(Protocol):
    """Builds a forward kernel; one that reads its weights in place, if the backend has such."""

    def __call__(self, problem: Problem, layout: WeightLayout | JointLayout | None = None) -> Kernel:
        """The kernel, whose `pack` finds the weights by `layout`."""


class GradInputByPhases:
    """The kernels of all phases and the assembly of their results.

    A backend's forward kernel either finds its weights by a `WeightLayout`, or takes them in an array of their own. If its
    `pack` only moves them, up to `picked_weights` of them are picked by a table.
    """

    def __init__(self, problem: Problem, build_forward: Callable[[Problem], Kernel] | None = None, *,
                 build_in_place: ForwardBuilder | None = None, picked_weights: int = 0):
        p = self.problem = problem
        self.phases = p.phases()
        self.layouts = [phase_layout(p, phase) for phase in self.phases]
        self.in_place = build_in_place is not None
        self.kernels: list[Kernel | None] = []
        parts = []
        start = 0
        for phase, layout in zip(self.phases, self.layouts, strict=True):
            if phase.problem is None:
                self.kernels.append(None)
                parts.append(NO_PART)
                continue
            self.kernels.append(build_in_place(phase.problem, layout) if build_in_place is not None
                                else build_forward(phase.problem) if build_forward is not None else None)
            parts.append(Part(start, *strides_of(p.in_channels, phase.problem.output_size, p.channels_last)))
            start += math.prod(phase.problem.output_shape)
        size = math.prod(p.weight_shape)
        self.tables = self._packed(np.arange(size)) if size <= picked_weights else None
        self.whole = len(self.phases) == 1 and self.kernels[0] is not None
        self.size = 0 if self.whole else start
        self.starts = [part.start for part in parts]
        self.interleaving = None if self.whole else Interleaving(p, parts)
        kernel_bytes = max((kernel.scratch_bytes for kernel in self.kernels if kernel), default=0)
        self.scratch_bytes = kernel_bytes + self.size * p.itemsize

    def pack(self, w: np.ndarray) -> list[Any]:
        if self.tables is not None:
            return [None if table is None else w.take(table) for table in self.tables]
        return self._packed(w)

    def _packed(self, w: np.ndarray) -> list[Any]:
        packed: list[Any] = []
        for phase, layout, kernel in zip(self.phases, self.layouts, self.kernels, strict=True):
            if kernel is None or phase.problem is None:
                packed.append(None)
            else:
                packed.append(kernel.pack(w if self.in_place else layout.array(phase.problem, w)))
        return packed

    def run(self, gy: np.ndarray, packed: list[Any], bias: np.ndarray | None, out: np.ndarray) -> bool:
        if self.interleaving is None:
            assert self.kernels[0] is not None
            return self.kernels[0].run(gy, packed[0], bias, out) is not False
        parts = shared("phases", self.size, out.dtype)
        finite = True
        for phase, kernel, weights, start in zip(self.phases, self.kernels, packed, self.starts, strict=True):
            if kernel is not None and phase.problem is not None:
                shape = phase.problem.output_shape
                finite &= kernel.run(gy, weights, bias, parts[start:start + math.prod(shape)].reshape(shape)) is not False
        self.interleaving(parts, self._bias_alone(bias), out)
        return finite

    def _bias_alone(self, bias: np.ndarray | None) -> np.ndarray:
        """What gx is where no tap reaches."""
        p = self.problem
        value = np.zeros(p.in_channels, p.dtype) if bias is None else bias
        if p.activation is None:
            return value
        slope, ceiling = RECTIFIERS[p.activation]
        return np.minimum(np.where(value < 0, value * slope, value), ceiling).astype(p.dtype)


class GradInputAtOnce:
    """All phases as output channels, phase by phase, of one forward convolution, and the assembly of its result."""

    def __init__(self, problem: Problem, build_in_place: ForwardBuilder):
        p = self.problem = problem
        fused = joint_problem(p)
        assert fused is not None
        self.fused = fused
        self.layout = joint_layout(p, fused)
        self.kernel = build_in_place(fused, self.layout) if _joint_in_place(p) else build_in_place(fused)
        self.order = None if _joint_in_place(p) else self.layout.order(fused)
        strides = strides_of(fused.out_channels, fused.output_size, p.channels_last)
        counts = [min(s, n) for s, n in zip(p.stride, p.input_size, strict=True)]
        parts = [Part(((d * p.stride[1] + h) * p.stride[2] + w) * p.in_channels * strides[1], *strides)
                 for d in range(counts[0]) for h in range(counts[1]) for w in range(counts[2])]
        self.interleaving = Interleaving(p, parts)
        self.scratch_bytes = self.kernel.scratch_bytes + math.prod(fused.output_shape) * p.itemsize

    def pack(self, w: np.ndarray) -> Any:
        return self.kernel.pack(w if self.order is None else np.append(w, w.dtype.type(0)).take(self.order))

    def run(self, gy: np.ndarray, packed: Any, bias: np.ndarray | None, out: np.ndarray) -> bool:
        parts = shared("phases", math.prod(self.fused.output_shape), out.dtype).reshape(self.fused.output_shape)
        finite = self.kernel.run(gy, packed, None if bias is None else np.tile(bias, math.prod(self.problem.stride)), parts)
        self.interleaving(parts.reshape(-1), parts.reshape(-1), out)
        return finite is not False


def joint_problem(problem: Problem, exact: bool = False) -> Problem | None:
    """The forward convolution of gy whose output channels are gx's, phase by phase; None where there is none.

    Its weights are zero where a phase has fewer taps than another. A NaN in gy then reaches points of gx that no tap of the
    problem's takes it to: with `exact` there is no such convolution.

    With t + shift = stride * a + residue, `shift` so that low + shift is stride * e: tap t of residue r meets gy at the
    output's index + e - a.
    """
    p = problem
    if p.groups > 1 or math.prod(p.stride) == 1 or any(d > 1 and k > 1 for d, k in zip(p.dilation, p.kernel_size, strict=True)):
        return None
    kernel, padding = [], []
    for size, outputs, k, s, (low, _) in zip(p.input_size, p.output_size, p.kernel_size, p.stride, p.padding, strict=True):
        shift = -low % s
        taps = -(-(k + shift) // s)
        if exact and taps * s != k:
            return None
        first = taps - 1 - (low + shift) // s
        kernel.append(taps)
        padding.append((first, -(-size // s) + taps - 1 - outputs - first))
    return replace(p, pass_name="forward", in_channels=p.out_channels, out_channels=p.in_channels * math.prod(p.stride),
                   input_size=p.output_size, kernel_size=tuple(kernel), stride=(1, 1, 1), dilation=(1, 1, 1), padding=tuple(padding))


# -- choosing -------------------------------------------------------------------------------------------------------------

Refuses = Callable[[Problem], str | None]
Seconds = Callable[[Problem], float]


def takes_all(problem: Problem) -> str | None:
    """Refuse nothing."""
    return None


def phases_refusal(problem: Problem, refuses: Refuses) -> str | None:
    """Why a backend that does not sum directly cannot compute a `grad_input`, phase by phase or at once."""
    joint = joint_problem(problem)
    if joint is not None and refuses(joint) is None:
        return None
    reasons = [refuses(phase.problem) for phase in problem.phases() if phase.problem]
    return next((reason for reason in reasons if reason), None)


def phase_seconds(problem: Problem, seconds: Seconds, assembly_bandwidth: float, refuses: Refuses = takes_all, exact: bool = True) -> float:
    """Predicted time of a `grad_input` from that of its phases, or of all at once, and the bytes moved to interleave them."""
    time = min(_both(problem, seconds, refuses, exact))
    if math.prod(problem.stride) > 1:
        time += INTERLEAVED_PASSES * math.prod(problem.input_shape) * problem.itemsize / assembly_bandwidth + INTERLEAVING_SECONDS
    return time


INTERLEAVED_PASSES = 2  # times gx's bytes pass memory, all threads together (benchmarks/bench_conv.py, strided backward)
INTERLEAVING_SECONDS = 4e-6  # of a call
PICK_SECONDS = 2e-9  # of a weight picked by a table (the same, 51 channels)


def _both(problem: Problem, seconds: Seconds, refuses: Refuses, exact: bool) -> tuple[float, float]:
    """Predicted time of the phases apart and of all at once, infinite where it is refused."""
    phases = [phase.problem for phase in problem.phases() if phase.problem]
    apart = math.inf if any(refuses(phase) for phase in phases) else sum(map(seconds, phases))
    joint = joint_problem(problem, exact)
    if joint is None or refuses(joint) is not None:
        return apart, math.inf
    return apart, seconds(joint) + (0.0 if _joint_in_place(problem) else PICK_SECONDS * math.prod(joint.weight_shape))


def _joint_in_place(problem: Problem) -> bool:
    """Whether no panel holds channels of two phases: weights are packed from where they lie."""
    return problem.in_channels % panel_width(problem.dtype) == 0


def build_grad_input(problem: Problem, build_in_place: ForwardBuilder, seconds: Seconds, refuses: Refuses = takes_all,
                     exact: bool = True) -> Kernel:
    """The faster, as predicted, of the two; `exact` for a backend that sums directly."""
    apart, joint = _both(problem, seconds, refuses, exact)
    return GradInputAtOnce(problem, build_in_place) if joint < apart else GradInputByPhases(problem, build_in_place=build_in_place)
