"""The same as `lowering` for a GPU's kernels: wrappers that are kernels themselves, of pointers on a stream."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .backends import DeviceKernel
from .backends._cuda.complexes import Blocks, join_weights, split_weights
from .backends._cuda.copies import apply_activation, copy_strided
from .backends._cuda.driver import same_memory, scratch
from .problem import Problem

__all__ = ["DeviceActivationKernel", "DeviceComplexKernel"]


class DeviceActivationKernel:
    """A pass over the result for activations that no kernel has in its epilogue."""

    def __init__(self, problem: Problem, inner: DeviceKernel):
        self.problem, self.inner = problem, inner
        self.packed, self.scratch_bytes, self.pack = inner.packed, inner.scratch_bytes, inner.pack

    def run(self, stream: int, first: Any, second: Any, packed: list[Any], bias: Any, out: Any) -> None:
        self.inner.run(stream, first, second, packed, bias, out)
        apply_activation(stream, str(self.problem.activation), self.problem.dtype, math.prod(self.problem.shapes[2]), out)


class DeviceComplexKernel:
    """A complex convolution as a real one of twice the channels: [re; im] of each group, and [[wr, -wi], [wi, wr]].

    Arrays come as pairs (re, im). What becomes of the second operand is the first of the packed memories.
    """

    def __init__(self, problem: Problem, inner: DeviceKernel):
        self.problem, self.inner = problem, inner
        self.real = {"complex64": "float32", "complex128": "float64"}[problem.dtype]
        p, (first, second, result) = problem, problem.shapes
        self.gradient = p.pass_name == "grad_weight"
        self.blocks = Blocks(p.groups, p.group_out, p.group_in, math.prod(p.kernel_size), int(p.channels_last))
        self.first, self.result = 2 * math.prod(first), (2 if not self.gradient else 4) * math.prod(result)
        self.packed = (((2 if self.gradient else 4) * math.prod(second), self.real), *inner.packed)
        self.scratch_bytes = inner.scratch_bytes + (self.first + self.result) * np.dtype(self.real).itemsize

    def pack(self, stream: int, second: Any, target: list[Any]) -> None:
        if self.gradient:
            self._split_image(stream, second, self.problem.shapes[1], target[0])
        else:
            split_weights(stream, self.real, self.blocks, same_memory(second, self.real), target[0])
        self.inner.pack(stream, target[0], target[1:])

    def run(self, stream: int, first: Any, second: Any, packed: list[Any], bias: Any, out: Any) -> None:
        channels = 0 if bias is None else 2 * self.problem.epilogue_channels
        with scratch(stream, (max(1, self.first), self.real), (max(1, self.result), self.real), (max(1, channels), self.real)) as memories:
            image, result, stacked = memories
            self._split_image(stream, first, self.problem.shapes[0], image)
            if bias is not None:
                self._split_image(stream, bias, (1, self.problem.epilogue_channels, 1), stacked)
            self.inner.run(stream, image, packed[0], packed[1:], None if bias is None else stacked, result)
            if self.gradient:
                join_weights(stream, self.real, self.blocks, result, same_memory(out, self.real))
            else:
                self._join_image(stream, result, self.problem.shapes[2], out)

    def _axes(self, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        """(images or points before the channels, groups, channels of a group, points after them)."""
        last = self.problem.channels_last and len(shape) > 3
        outer, channels, inner = (math.prod(shape[:-1]), shape[-1], 1) if last else (shape[0], shape[1], math.prod(shape[2:]))
        return outer, self.problem.groups, channels // self.problem.groups, inner

    def _split_image(self, stream: int, source: Any, shape: tuple[int, ...], target: Any) -> None:
        """(n, group, part, channel, point) of (n, group, channel, point, part)."""
        n, groups, c, points = self._axes(shape)
        steps = (2 * groups * c * points, 2 * c * points, 1, 2 * points, 2)
        copy_strided(stream, same_memory(source, self.real), (n, groups, 2, c, points), steps, (self.real, self.real), target)

    def _join_image(self, stream: int, source: Any, shape: tuple[int, ...], target: Any) -> None:
        """The inverse."""
        n, groups, c, points = self._axes(shape)
        steps = (2 * groups * c * points, 2 * c * points, points, 1, c * points)
        copy_strided(stream, source, (n, groups, c, points, 2), steps, (self.real, self.real), same_memory(target, self.real))
