"""What is to be computed: a frozen, hashable `Problem`. All shape arithmetic and validation of the package lives here.

The checks of single arguments (`_checks`) and the arithmetic of borders (`_padding`) are modules that only this one uses.

Dimension letters: N batch, C input channels, O output channels, G groups, D H W the three spatial axes.
1-D and 2-D convolutions are 3-D ones whose leading spatial sizes are 1, so a backend sees one rank only.

    y[n, o, p] = sum over c, k of  w[o, c, k] * xpad[n, c, stride * p + dilation * k]          (forward)

The three passes share one `Problem` that describes the *forward* convolution; `pass_name` says which of its three arrays
is asked for. Each pass is a function of two operands:

    pass          first operand    second operand    result
    forward       x                w                 y
    grad_input    gy               w                 gx
    grad_weight   x                gy                gw
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ._checks import (
    ACTIVATIONS,
    Size,
    as_int,
    check_activation,
    check_axes,
    check_groups,
    check_layout,
    check_name,
    join_shape,
    split_shape,
    split_weight_shape,
)
from ._padding import PADDING_MODES, Pads, border_source, check_border, resolve_padding

__all__ = ["ACTIVATIONS", "PADDING_MODES", "PASSES", "Options", "Phase", "Problem", "border_source", "computing_dtype", "resolve_padding"]

PASSES = ("forward", "grad_input", "grad_weight")
ACCURACIES = ("default", "strict", "tf32", "float16")


@dataclass(frozen=True)
class Options:
    """The keyword options of a convolution as the caller gave them; `Problem.create` checks and resolves them."""

    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: Any = 1
    padding_mode: Any = "zeros"
    layout: Any = "NCHW"
    activation: Any = None
    accuracy: Any = "default"
    cold_weights: bool = False


@dataclass(frozen=True)
class Phase:
    """One residue class of a strided `grad_input`: a forward convolution of gy with every stride-th tap, reversed.

    `taps` and `target` are slices over the three spatial axes of the kernel and of gx; `problem` is None where no tap
    of the kernel reaches the class, so that gx is only the bias there.
    """

    taps: tuple[slice, ...]
    target: tuple[slice, ...]
    problem: Problem | None


@dataclass(frozen=True)
class Problem:
    """One convolution, checked and resolved: the key of every plan. Build it with `Problem.create`."""

    pass_name: str
    ndim: int
    batch: int
    in_channels: int
    out_channels: int
    groups: int
    input_size: Size
    kernel_size: Size
    stride: Size
    dilation: Size
    padding: Pads
    padding_mode: str
    dtype: str
    layout: str
    bias: bool = False
    activation: str | None = None
    accuracy: str = "default"
    device: str = "cpu"
    cold_weights: bool = False  # whether they come from memory at each run, as those of a network do that is larger than the caches

    @staticmethod
    def create(pass_name: str, ndim: int, input_shape: Sequence[int], weight_shape: Sequence[int], dtype: str,
               options: Options, *, bias: bool = False, device: str = "cpu") -> Problem:
        """Check the caller's arguments and resolve them; shapes are batched ones, in the caller's layout."""
        check_name("pass_name", pass_name, PASSES)
        layout = check_layout(options.layout, ndim)
        batch, channels, size = split_shape("x", input_shape, ndim, layout)
        out_channels, group_channels, kernel = split_weight_shape(weight_shape, ndim, layout)
        groups = check_groups(options.groups, channels, out_channels)
        if group_channels * groups != channels:
            raise ValueError(
                f"w of shape {tuple(weight_shape)} takes {group_channels} channels per group, but x of shape "
                f"{tuple(input_shape)} with groups={groups} has {channels}/{groups}")
        stride = check_axes("stride", options.stride, ndim, minimum=1)
        dilation = check_axes("dilation", options.dilation, ndim, minimum=1)
        mode = check_name("padding_mode", options.padding_mode, PADDING_MODES)
        padding = resolve_padding(options.padding, size, kernel, stride, dilation)
        check_border(mode, padding, size)
        activation = check_activation(options.activation, dtype)
        accuracy = check_name("accuracy", options.accuracy, ACCURACIES)
        lead = 3 - ndim
        problem = Problem(
            pass_name=pass_name, ndim=ndim, batch=batch, in_channels=channels, out_channels=out_channels, groups=groups,
            input_size=(1,) * lead + size, kernel_size=(1,) * lead + kernel, stride=(1,) * lead + stride,
            dilation=(1,) * lead + dilation, padding=((0, 0),) * lead + padding,
            padding_mode=mode if any(map(any, padding)) else "zeros", dtype=dtype, layout=layout, bias=bias,
            activation=activation, accuracy=accuracy, device=device, cold_weights=bool(options.cold_weights))
        if min(problem.output_size) < 1:
            padded = tuple(n + low + high for n, (low, high) in zip(size, padding, strict=True))
            raise ValueError(f"kernel of size {kernel} with dilation={dilation} is larger than the padded input {padded} "
                             f"(x of shape {tuple(input_shape)}, padding={options.padding!r})")
        return problem

    @staticmethod
    def create_transposed(ndim: int, input_shape: Sequence[int], weight_shape: Sequence[int], dtype: str, options: Options,
                          output_padding: Any = 0, *, bias: bool = False, device: str = "cpu") -> Problem:
        """The `grad_input` problem that a transposed convolution is: its x is gy, its output gx."""
        layout = check_layout(options.layout, ndim)
        batch, channels, size = split_shape("x", input_shape, ndim, layout)
        out_channels, group_channels, kernel = split_weight_shape(weight_shape, ndim, layout)
        if channels != out_channels:
            raise ValueError(f"w of shape {tuple(weight_shape)} takes {out_channels} channels, but x of shape "
                             f"{tuple(input_shape)} has {channels}")
        if options.padding_mode != "zeros":
            raise ValueError(f"padding_mode must be 'zeros' for a transposed convolution, got {options.padding_mode!r}")
        groups = check_groups(options.groups, group_channels * as_int("groups", options.groups, 1), channels)
        stride = check_axes("stride", options.stride, ndim, minimum=1)
        dilation = check_axes("dilation", options.dilation, ndim, minimum=1)
        extra = check_axes("output_padding", output_padding, ndim, minimum=0)
        for e, s, d in zip(extra, stride, dilation, strict=True):
            if e >= max(s, d):
                raise ValueError(f"output_padding={output_padding!r} must be smaller than stride={stride} or dilation={dilation}")
        named_same = isinstance(options.padding, str) and options.padding in ("same", "same_lower")
        if named_same:  # the output has n * stride points, as in TensorFlow
            target = tuple(n * s + e for n, s, e in zip(size, stride, extra, strict=True))
            padding = resolve_padding(options.padding, tuple(n * s for n, s in zip(size, stride, strict=True)), kernel, stride, dilation)
        else:
            padding = resolve_padding(options.padding, size, kernel, stride, dilation)
            target = tuple((n - 1) * s + d * (k - 1) + 1 - low - high + e for n, k, s, d, (low, high), e
                           in zip(size, kernel, stride, dilation, padding, extra, strict=True))
        if min(target) < 1:
            raise ValueError(f"padding={options.padding!r} leaves no output: its size would be {target}")
        channels_out = group_channels * groups
        lead = 3 - ndim
        # An output padding of a stride or more asks for points that no tap reaches: the forward convolution, of which
        # this is the adjoint, leaves them out by a negative pad at the end.
        padding = tuple((low, (n - 1) * s + d * (k - 1) + 1 - low - t) for n, s, d, k, (low, _), t
                        in zip(size, stride, dilation, kernel, padding, target, strict=True))
        return Problem(
            pass_name="grad_input", ndim=ndim, batch=batch, in_channels=channels_out, out_channels=channels, groups=groups,
            input_size=(1,) * lead + target, kernel_size=(1,) * lead + kernel, stride=(1,) * lead + stride,
            dilation=(1,) * lead + dilation, padding=((0, 0),) * lead + padding, padding_mode="zeros", dtype=dtype,
            layout=layout, bias=bias, activation=check_activation(options.activation, dtype),
            accuracy=check_name("accuracy", options.accuracy, ACCURACIES), device=device)

    # -- shapes -----------------------------------------------------------------------------------------------------

    @cached_property
    def output_size(self) -> Size:
        """Spatial size of y: floor((n + low + high - dilation (k - 1) - 1) / stride) + 1 on each axis."""
        axes = zip(self.input_size, self.kernel_size, self.stride, self.dilation, self.padding, strict=True)
        return tuple((n + low + high - d * (k - 1) - 1) // s + 1 for n, k, s, d, (low, high) in axes)

    @cached_property
    def padded_size(self) -> Size:
        """Spatial size of the padded input."""
        return tuple(n + low + high for n, (low, high) in zip(self.input_size, self.padding, strict=True))

    @property
    def group_in(self) -> int:
        """Input channels of a group."""
        return self.in_channels // self.groups

    @property
    def group_out(self) -> int:
        """Output channels of a group."""
        return self.out_channels // self.groups

    @property
    def channels_last(self) -> bool:
        """Whether arrays are (N, D, H, W, C) rather than (N, C, D, H, W)."""
        return self.layout == "NHWC"

    @cached_property
    def input_shape(self) -> Size:
        """Shape of x and gx, with all three spatial axes."""
        return join_shape(self.batch, self.in_channels, self.input_size, self.layout)

    @cached_property
    def output_shape(self) -> Size:
        """Shape of y and gy, with all three spatial axes."""
        return join_shape(self.batch, self.out_channels, self.output_size, self.layout)

    @cached_property
    def weight_shape(self) -> Size:
        """Shape of w and gw, with all three spatial axes: (O, C/G, kd, kh, kw) or (kd, kh, kw, C/G, O)."""
        if self.channels_last:
            return (*self.kernel_size, self.group_in, self.out_channels)
        return (self.out_channels, self.group_in, *self.kernel_size)

    @cached_property
    def shapes(self) -> tuple[Size, Size, Size]:
        """Shapes of the pass's first operand, second operand and result."""
        x, w, y = self.input_shape, self.weight_shape, self.output_shape
        return {"forward": (x, w, y), "grad_input": (y, w, x), "grad_weight": (x, y, w)}[self.pass_name]

    @cached_property
    def epilogue_channels(self) -> int:
        """Length of the bias: the channels of the result."""
        return self.in_channels if self.pass_name == "grad_input" else self.out_channels

    def public_shape(self, shape: Size) -> Size:
        """A five-dimensional operand shape with the leading spatial ones dropped, as the caller has it."""
        lead = 3 - self.ndim
        if shape == self.weight_shape and self.channels_last:
            return shape[lead:]
        at = 1 if self.channels_last and shape != self.weight_shape else 2
        return shape[:at] + shape[at + lead:]

    # -- costs ------------------------------------------------------------------------------------------------------

    @cached_property
    def taps(self) -> int:
        """Multiply-adds per output point: C/G * kd * kh * kw."""
        return self.group_in * math.prod(self.kernel_size)

    @property
    def longest_sum(self) -> int:
        """Products in the longest sum of the pass."""
        if self.pass_name == "forward":
            return self.taps
        if self.pass_name == "grad_input":
            return self.group_out * math.prod(self.kernel_size)
        return self.batch * math.prod(self.output_size)

    @cached_property
    def flops(self) -> int:
        """Floating-point operations of the direct sum, the same for the three passes; a multiply-add counts as two."""
        return 2 * self.batch * self.out_channels * math.prod(self.output_size) * self.taps

    @cached_property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return np.dtype(self.dtype).itemsize

    @cached_property
    def bytes(self) -> int:
        """Bytes of both operands and the result: the least memory traffic."""
        return self.itemsize * sum(math.prod(shape) for shape in self.shapes)

    # -- derived problems -------------------------------------------------------------------------------------------

    def border_sources(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For each axis the input index that stands at each padded position; -1 is a zero."""
        sources = [border_source(n, low, high, self.padding_mode)
                   for n, (low, high) in zip(self.input_size, self.padding, strict=True)]
        return sources[0], sources[1], sources[2]

    def without_border(self) -> Problem:
        """The same convolution of an input that is already padded."""
        return replace(self, input_size=self.padded_size, padding=((0, 0),) * 3, padding_mode="zeros")

    def phases(self) -> tuple[Phase, ...]:
        """The forward convolutions of gy that make up a `grad_input` with zero borders, one per residue of the stride.

        With i + low = stride * q + dilation * t, an input index i meets only the taps t of one residue class modulo
        stride / gcd(stride, dilation); within it q moves by one as i moves by the stride.
        """
        if self.padding_mode != "zeros":
            raise ValueError("phases() is for zero borders: lower the border first")
        axes = [_axis_phases(*axis) for axis in zip(self.input_size, self.output_size, self.kernel_size, self.stride,
                                                    self.dilation, (low for low, _ in self.padding), strict=True)]
        return tuple(self._phase((a, b, c)) for a in axes[0] for b in axes[1] for c in axes[2])

    def _phase(self, parts: tuple[_AxisPhase, ...]) -> Phase:
        problem = None
        if all(part.taps for part in parts):
            problem = replace(
                self, pass_name="forward", in_channels=self.out_channels, out_channels=self.in_channels,
                input_size=self.output_size, kernel_size=tuple(part.taps for part in parts), stride=(1, 1, 1),
                dilation=tuple(part.dilation for part in parts), padding=tuple(part.padding for part in parts))
        return Phase(tuple(part.tap_slice for part in parts), tuple(part.target for part in parts), problem)


# -- dtypes ---------------------------------------------------------------------------------------------------------------

_COMPUTED_IN = {"float16": "float32", "bool": "int32", "int8": "int32", "uint8": "int32", "int16": "int64", "uint16": "int64",
                "int32": "int64", "uint32": "int64", "int64": "int64", "uint64": "int64"}
DTYPES = ("float16", "float32", "float64", "complex64", "complex128", *_COMPUTED_IN)


def computing_dtype(dtype: np.dtype) -> str:
    """The dtype that arrays of `dtype` are computed in.

    float16 computes in float32; 8-bit integers and booleans accumulate in int32, wider ones in int64, and integer
    results have the accumulator's type.
    """
    name = np.dtype(dtype).name
    if name not in DTYPES:
        raise TypeError(f"arrays of type {dtype} cannot be convolved; supported: {', '.join(dict.fromkeys(DTYPES))}")
    return _COMPUTED_IN.get(name, name)


# -- phases ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _AxisPhase:
    taps: int
    tap_slice: slice
    target: slice
    padding: tuple[int, int]
    dilation: int


def _axis_phases(size: int, outputs: int, kernel: int, stride: int, dilation: int, low: int) -> list[_AxisPhase]:
    common = math.gcd(stride, dilation)
    step, inner = stride // common, dilation // common
    phases = []
    for residue in range(min(stride, size)):
        first = next((t for t in range(min(step, kernel)) if (residue + low - dilation * t) % stride == 0), None)
        target = slice(residue, None, stride)
        if first is None:
            phases.append(_AxisPhase(0, slice(0, 0), target, (0, 0), 1))
            continue
        taps = -(-(kernel - first) // step)
        count = -(-(size - residue) // stride)
        shift = (residue + low - dilation * first) // stride
        padding = ((taps - 1) * inner - shift, count - outputs + shift)
        phases.append(_AxisPhase(taps, slice(first, None, step), target, padding, inner))
    return phases
