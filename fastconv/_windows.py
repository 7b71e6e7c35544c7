"""Windows: what a pooling slides over an image, checked and resolved. All shape arithmetic of the poolings lives here.

As in `problem`, 1-D and 2-D are 3-D with leading sizes of 1, so a kernel sees one rank only. Along each axis output o
looks at the input points

    stride o - low + dilation j,   j < kernel,     of which only those inside the input count,

or, where the pooling is adaptive, at the points from floor(o n / outputs) up to ceil((o + 1) n / outputs).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ._checks import Size, as_int, as_sequence, check_axes, check_layout, join_shape, split_shape
from ._padding import Pads, resolve_padding

__all__ = ["Windows"]


@dataclass(frozen=True)
class Windows:
    """The windows of one pooling. Build them with `create` or `create_adaptive`."""

    ndim: int
    batch: int
    channels: int
    input_size: Size
    output_size: Size
    kernel_size: Size  # 0 on an axis whose windows differ, which an adaptive pooling may have
    stride: Size
    dilation: Size
    padding: Pads
    layout: str
    single: bool  # without a batch axis

    @staticmethod
    def create(ndim: int, input_shape: Sequence[int], kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: Any,
               layout: Any, name: str = "x") -> Windows:
        """Check the caller's arguments and resolve them; `name` is the argument that has the input's shape."""
        layout, single, batch, channels, size = _split(name, input_shape, ndim, layout)
        kernel = check_axes("kernel_size", kernel_size, ndim, minimum=1)
        steps = kernel if stride is None else check_axes("stride", stride, ndim, minimum=1)
        dilations = check_axes("dilation", dilation, ndim, minimum=1)
        if not isinstance(ceil_mode, (bool, np.bool_)):
            raise TypeError(f"ceil_mode must be True or False, got {ceil_mode!r}")
        pads = resolve_padding(padding, size, kernel, steps, dilations)
        outputs = tuple(_outputs(*axis, bool(ceil_mode)) for axis in zip(size, kernel, steps, dilations, pads, strict=True))
        if min(outputs) < 1:
            padded = tuple(n + low + high for n, (low, high) in zip(size, pads, strict=True))
            raise ValueError(f"kernel_size={kernel_size!r} with dilation={dilation!r} is larger than the padded input {padded} "
                             f"({name} of shape {tuple(input_shape)}, padding={padding!r})")
        lead = (1,) * (3 - ndim)
        return Windows(ndim, batch, channels, lead + size, lead + outputs, lead + kernel, lead + steps, lead + dilations,
                       ((0, 0),) * len(lead) + pads, layout, single)

    @staticmethod
    def create_adaptive(ndim: int, input_shape: Sequence[int], output_size: Any, layout: Any, name: str = "x") -> Windows:
        """Windows that share an input out among `output_size` points; None keeps an axis."""
        layout, single, batch, channels, size = _split(name, input_shape, ndim, layout)
        wanted = as_sequence("output_size", output_size, ndim)
        outputs = tuple(n if item is None else as_int("output_size", item, 1) for n, item in zip(size, wanted, strict=True))
        kernel = tuple(n // o if n % o == 0 else 0 for n, o in zip(size, outputs, strict=True))
        lead = (1,) * (3 - ndim)
        kernel, ones = lead + kernel, (1, 1, 1)
        return Windows(ndim, batch, channels, lead + size, lead + outputs, kernel, tuple(max(1, k) for k in kernel), ones,
                       ((0, 0),) * 3, layout, single)

    # -- shapes -----------------------------------------------------------------------------------------------------

    def _shape(self, size: Size) -> tuple[int, ...]:
        shape = join_shape(self.batch, self.channels, size[3 - self.ndim:], self.layout)
        return shape[1:] if self.single else shape

    @cached_property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of x, as the caller sees it."""
        return self._shape(self.input_size)

    @cached_property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the result, as the caller sees it."""
        return self._shape(self.output_size)

    @property
    def channels_last(self) -> bool:
        """Whether arrays are (N, D, H, W, C) rather than (N, C, D, H, W)."""
        return self.layout == "NHWC"

    @cached_property
    def whole(self) -> bool:
        """Whether the only window of an image is the image."""
        return self.output_size == (1, 1, 1) and all(
            k == n and pads == (0, 0) and d == 1
            for n, k, pads, d in zip(self.input_size, self.kernel_size, self.padding, self.dilation, strict=True))

    # -- tables -----------------------------------------------------------------------------------------------------

    def begins(self, axis: int) -> np.ndarray:
        """The point, perhaps in the padding, at which each window begins."""
        if self.kernel_size[axis] == 0:
            return self.inside(axis)[:, 0]
        return np.arange(self.output_size[axis], dtype=np.int64) * self.stride[axis] - self.padding[axis][0]

    @cached_property
    def largest(self) -> Size:
        """Points of the largest window along each axis."""
        return tuple(k or int(self.inside(axis)[:, 1].max()) for axis, k in enumerate(self.kernel_size))

    def inside(self, axis: int) -> np.ndarray:
        """(outputs, 2): the first input point of each window, and how many it has."""
        n, outputs, k = self.input_size[axis], np.arange(self.output_size[axis]), self.kernel_size[axis]
        if k == 0:
            first, end = outputs * n // len(outputs), -(-(outputs + 1) * n // len(outputs))
            return np.stack([first, end - first], axis=1).astype(np.int64)
        d = self.dilation[axis]
        start = outputs * self.stride[axis] - self.padding[axis][0]
        skipped = -(np.minimum(start, 0) // d)
        count = np.clip(-((start - n) // d), 0, k) - np.minimum(skipped, k)
        count = np.maximum(count, 0)
        return np.stack([np.where(count > 0, start + d * skipped, 0), count], axis=1).astype(np.int64)

    def covering(self, axis: int) -> tuple[np.ndarray, np.ndarray]:
        """The outputs that look at each input point i: `outputs[offsets[i]:offsets[i + 1]]`."""
        table, d = self.inside(axis), self.dilation[axis]
        points = np.concatenate([first + d * np.arange(count) for first, count in table] or [np.zeros(0, np.int64)]).astype(np.int64)
        outputs = np.repeat(np.arange(len(table)), table[:, 1])
        offsets = np.zeros(self.input_size[axis] + 1, np.int64)
        np.cumsum(np.bincount(points, minlength=self.input_size[axis]), out=offsets[1:])
        return offsets, outputs[np.argsort(points, kind="stable")].astype(np.int64)

    def counts(self, axis: int, include_pad: bool) -> np.ndarray:
        """How many points each window averages along an axis: those inside, or those up to the end of the padding too."""
        inside = self.inside(axis)[:, 1]
        k = self.kernel_size[axis]
        if not include_pad or k == 0:
            return inside
        (low, high), d = self.padding[axis], self.dilation[axis]
        start = np.arange(self.output_size[axis]) * self.stride[axis]
        return np.clip(-((start - (self.input_size[axis] + low + high)) // d), 0, k)

    @property
    def taps(self) -> int:
        """Points of a window."""
        return math.prod(self.kernel_size)


def _split(name: str, shape: Sequence[int], ndim: int, layout: Any) -> tuple[str, bool, int, int, Size]:
    layout = check_layout(layout, ndim)
    single = len(shape) == ndim + 1
    batch, channels, size = split_shape(name, (1, *shape) if single else shape, ndim, layout)
    if min(size) < 1:
        raise ValueError(f"{name} must have at least one point on each spatial axis, got shape {tuple(shape)}")
    return layout, single, batch, channels, size


def _outputs(n: int, kernel: int, stride: int, dilation: int, pads: tuple[int, int], ceil_mode: bool) -> int:
    """Windows along an axis; rounded up, the last must not start in the padding behind the input."""
    room = n + sum(pads) - dilation * (kernel - 1) - 1
    outputs = (room + (stride - 1 if ceil_mode else 0)) // stride + 1
    if ceil_mode and outputs > 1 and (outputs - 1) * stride >= n + pads[0]:
        outputs -= 1
    return outputs
