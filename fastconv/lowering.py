"""From what a caller may ask to what a backend computes: complex numbers, the borders' adjoints, smooth activations.

`lower(problem)` gives the problem that backends see and a function that wraps a kernel of it into one of the original.
Each wrapper is a `Kernel` itself (`pack`, `run`), so they compose.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from .backends import Kernel
from .backends._rectifiers import RECTIFIERS
from .problem import Problem

__all__ = ["EmptySum", "lower"]

REAL_OF = {"complex64": "float32", "complex128": "float64"}


class EmptySum:
    """The kernel of a problem without products: the bias, through the activation."""

    scratch_bytes = 0

    def __init__(self, problem: Problem):
        self.problem = problem

    def pack(self, second: np.ndarray) -> None:
        return None

    def run(self, first: np.ndarray, packed: None, bias: np.ndarray | None, out: np.ndarray) -> None:
        out = out.reshape(self.problem.shapes[2])
        out[...] = 0
        if bias is not None:
            out += bias if self.problem.channels_last else bias[:, None, None, None]
        if self.problem.activation is not None:
            slope, ceiling = RECTIFIERS[self.problem.activation]
            out[...] = np.minimum(np.where(out < 0, out * slope, out), ceiling)


def lower(problem: Problem) -> tuple[Problem, Callable[[Kernel], Kernel]]:
    """The problem that backends see, and what makes its kernel one of `problem`."""
    if problem.device != "cpu":
        return _lower_for_device(problem)
    wraps: list[Callable[[Kernel], Kernel]] = []
    if problem.dtype in REAL_OF:
        outer = problem
        wraps.append(lambda kernel: ComplexKernel(outer, kernel))
        problem = as_real(problem)
    if problem.activation not in RECTIFIERS:
        name = problem.activation
        wraps.append(lambda kernel: ActivationKernel(str(name), kernel))
        problem = replace(problem, activation=None)
    if problem.pass_name == "grad_input" and problem.padding_mode != "zeros":
        bordered = problem
        wraps.append(lambda kernel: BorderAdjointKernel(bordered, kernel))
        problem = problem.without_border()

    def wrap(kernel: Kernel) -> Kernel:
        for outer_kernel in reversed(wraps):
            kernel = outer_kernel(kernel)
        return kernel

    return problem, wrap


def _lower_for_device(problem: Problem) -> tuple[Problem, Callable[[Any], Any]]:
    """A GPU's backends see everything but complex numbers and smooth activations."""
    from .lowering_on_device import DeviceActivationKernel, DeviceComplexKernel

    if problem.dtype in REAL_OF:
        return as_real(problem), lambda kernel: DeviceComplexKernel(problem, kernel)
    if problem.activation not in RECTIFIERS:
        return replace(problem, activation=None), lambda kernel: DeviceActivationKernel(problem, kernel)
    return problem, lambda kernel: kernel


def as_real(problem: Problem) -> Problem:
    """A complex problem as a real one of twice the channels."""
    return replace(problem, dtype=REAL_OF[problem.dtype], in_channels=2 * problem.in_channels, out_channels=2 * problem.out_channels)


class _Wrapper:
    def __init__(self, inner: Kernel):
        self.inner = inner

    def pack(self, second: np.ndarray) -> Any:
        return self.inner.pack(second)

    @property
    def scratch_bytes(self) -> int:
        return self.inner.scratch_bytes


class ActivationKernel(_Wrapper):
    """A pass over the result for activations that no kernel has in its epilogue."""

    def __init__(self, name: str, inner: Kernel):
        super().__init__(inner)
        self.name = name

    def run(self, first: np.ndarray, packed: Any, bias: np.ndarray | None, out: np.ndarray) -> None:
        from .backends._activation import apply

        self.inner.run(first, packed, bias, out)
        apply(self.name, out)


class BorderAdjointKernel(_Wrapper):
    """`grad_input` behind a border: the gradient of the padded input, each of its points added where it came from."""

    def __init__(self, problem: Problem, inner: Kernel):
        super().__init__(inner)
        self.problem = problem
        self.padded = problem.without_border()

    def run(self, first: np.ndarray, packed: Any, bias: np.ndarray | None, out: np.ndarray) -> None:
        out = out.reshape(self.problem.shapes[2])
        part = np.empty(self.padded.input_shape, out.dtype)
        self.inner.run(first, packed, None, part)
        start = 1 if self.problem.channels_last else 2
        sources = self.problem.border_sources()
        for axis, (source, (low, _), size) in enumerate(zip(sources, self.problem.padding, self.problem.input_size, strict=True), start):
            part = _fold(part, axis, source, low, size)
        out[...] = part
        if bias is not None:
            out += bias if self.problem.channels_last else bias[:, None, None, None]

    @property
    def scratch_bytes(self) -> int:
        return self.inner.scratch_bytes + 2 * math.prod(self.padded.input_shape) * self.problem.itemsize


def _fold(part: np.ndarray, axis: int, source: np.ndarray, low: int, size: int) -> np.ndarray:
    lines = np.moveaxis(part, axis, 0)
    folded = lines[low:low + size].copy()
    for position in (*range(low), *range(low + size, source.size)):
        with np.errstate(invalid="ignore", over="ignore"):
            folded[source[position]] += lines[position]
    return np.moveaxis(folded, 0, axis)


class ComplexKernel(_Wrapper):
    """A complex convolution as a real one of twice the channels: [re; im] of each group, and [[wr, -wi], [wi, wr]].

    Its real adjoint is the complex one, so gradients come out as PyTorch defines them: through the conjugates.
    """

    def __init__(self, problem: Problem, inner: Kernel):
        super().__init__(inner)
        self.problem = problem
        self.real = np.dtype(REAL_OF[problem.dtype])

    def pack(self, second: np.ndarray) -> Any:
        stack = self._stack_image if self.problem.pass_name == "grad_weight" else self._stack_weights
        return self.inner.pack(stack(second))

    def run(self, first: np.ndarray, packed: Any, bias: np.ndarray | None, out: np.ndarray) -> None:
        p = self.problem
        if p.pass_name == "grad_weight":
            o, c = 2 * p.out_channels, 2 * p.group_in
            result = np.empty((*p.kernel_size, c, o) if p.channels_last else (o, c, *p.kernel_size), self.real)
        else:
            doubled = list(out.shape)
            doubled[self._channel_axis] *= 2
            result = np.empty(doubled, self.real)
        stacked = None
        if bias is not None:
            pairs = np.stack([bias.real, bias.imag]).reshape(2, p.groups, bias.size // p.groups)
            stacked = np.ascontiguousarray(pairs.swapaxes(0, 1), self.real).reshape(2 * bias.size)
        self.inner.run(self._stack_image(first), packed, stacked, result)
        (self._unstack_weights if p.pass_name == "grad_weight" else self._unstack_image)(result, out)

    @property
    def _channel_axis(self) -> int:
        return -1 if self.problem.channels_last else 1

    def _stack_image(self, image: np.ndarray) -> np.ndarray:
        """(N, G, 2, C/G, ...) of a complex (N, C, ...)."""
        lines = np.moveaxis(image, self._channel_axis, 0)
        groups, per_group = self.problem.groups, len(lines) // self.problem.groups
        parts = np.stack([lines.real, lines.imag]).reshape(2, groups, per_group, *lines.shape[1:])
        whole = parts.swapaxes(0, 1).reshape(2 * len(lines), *lines.shape[1:])
        return np.ascontiguousarray(np.moveaxis(whole, 0, self._channel_axis), self.real)

    def _unstack_image(self, result: np.ndarray, out: np.ndarray) -> None:
        lines, target = np.moveaxis(result, self._channel_axis, 0), np.moveaxis(out, self._channel_axis, 0)
        pairs = lines.reshape(self.problem.groups, 2, len(target) // self.problem.groups, *lines.shape[1:])
        target.real[...] = pairs[:, 0].reshape(target.shape)
        target.imag[...] = pairs[:, 1].reshape(target.shape)

    def _grouped(self, w: np.ndarray) -> np.ndarray:
        """A view of weights as (groups, O/G, C/G, kernel...)."""
        w = w.transpose(4, 3, 0, 1, 2) if self.problem.channels_last else w
        return w.reshape(self.problem.groups, len(w) // self.problem.groups, *w.shape[1:])

    def _stack_weights(self, w: np.ndarray) -> np.ndarray:
        w = self._grouped(w)
        groups, o, c, *kernel = w.shape
        stacked = np.empty((groups, 2, o, 2, c, *kernel), self.real)
        stacked[:, 0, :, 0] = stacked[:, 1, :, 1] = w.real
        stacked[:, 1, :, 0] = w.imag
        stacked[:, 0, :, 1] = -w.imag
        whole = stacked.reshape(groups * 2 * o, 2 * c, *kernel)
        return np.ascontiguousarray(whole.transpose(2, 3, 4, 1, 0)) if self.problem.channels_last else whole

    def _unstack_weights(self, result: np.ndarray, out: np.ndarray) -> None:
        blocks = self._grouped(result)
        groups, o, c, *kernel = blocks.shape
        blocks = blocks.reshape(groups, 2, o // 2, 2, c // 2, *kernel)
        target = out.transpose(4, 3, 0, 1, 2) if self.problem.channels_last else out
        target.real[...] = (blocks[:, 0, :, 0] + blocks[:, 1, :, 1]).reshape(target.shape)
        target.imag[...] = (blocks[:, 1, :, 0] - blocks[:, 0, :, 1]).reshape(target.shape)

    @property
    def scratch_bytes(self) -> int:
        return self.inner.scratch_bytes + 2 * self.problem.bytes
