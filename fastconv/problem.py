"""What is to be computed: a frozen, hashable `Problem`. All shape arithmetic and validation of the package lives here.

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
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

__all__ = ["ACTIVATIONS", "PADDING_MODES", "PASSES", "Options", "Phase", "Problem", "border_source", "computing_dtype"]

PASSES = ("forward", "grad_input", "grad_weight")
PADDING_MODES = ("zeros", "reflect", "symmetric", "replicate", "circular")
ACTIVATIONS = ("relu", "relu6", "leaky_relu", "sigmoid", "tanh", "silu", "gelu")
ACCURACIES = ("default", "strict")
NAMED_PADDINGS = ("valid", "same", "same_lower", "causal")
CHANNELS_FIRST = {1: ("NCHW", "NCL", "NCW"), 2: ("NCHW",), 3: ("NCHW", "NCDHW")}
CHANNELS_LAST = {1: ("NHWC", "NLC", "NWC"), 2: ("NHWC",), 3: ("NHWC", "NDHWC")}
NUMPY_PAD_MODE = {"reflect": "reflect", "symmetric": "symmetric", "replicate": "edge", "circular": "wrap"}

Pads = tuple[tuple[int, int], ...]
Size = tuple[int, ...]


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

    @staticmethod
    def create(pass_name: str, ndim: int, input_shape: Sequence[int], weight_shape: Sequence[int], dtype: str,
               options: Options, *, bias: bool = False, device: str = "cpu") -> Problem:
        """Check the caller's arguments and resolve them; shapes are batched ones, in the caller's layout."""
        _check_name("pass_name", pass_name, PASSES)
        layout = _check_layout(options.layout, ndim)
        batch, channels, size = _split_shape("x", input_shape, ndim, layout)
        out_channels, group_channels, kernel = _split_weight_shape(weight_shape, ndim, layout)
        groups = _check_groups(options.groups, channels, out_channels)
        if group_channels * groups != channels:
            raise ValueError(
                f"w of shape {tuple(weight_shape)} takes {group_channels} channels per group, but x of shape "
                f"{tuple(input_shape)} with groups={groups} has {channels}/{groups}")
        stride = _check_axes("stride", options.stride, ndim, minimum=1)
        dilation = _check_axes("dilation", options.dilation, ndim, minimum=1)
        mode = _check_name("padding_mode", options.padding_mode, PADDING_MODES)
        padding = resolve_padding(options.padding, size, kernel, stride, dilation)
        _check_border(mode, padding, size)
        activation = _check_activation(options.activation, dtype)
        accuracy = _check_name("accuracy", options.accuracy, ACCURACIES)
        lead = 3 - ndim
        problem = Problem(
            pass_name=pass_name, ndim=ndim, batch=batch, in_channels=channels, out_channels=out_channels, groups=groups,
            input_size=(1,) * lead + size, kernel_size=(1,) * lead + kernel, stride=(1,) * lead + stride,
            dilation=(1,) * lead + dilation, padding=((0, 0),) * lead + padding,
            padding_mode=mode if any(map(any, padding)) else "zeros", dtype=dtype, layout=layout, bias=bias,
            activation=activation, accuracy=accuracy, device=device)
        if min(problem.output_size) < 1:
            padded = tuple(n + low + high for n, (low, high) in zip(size, padding, strict=True))
            raise ValueError(f"kernel of size {kernel} with dilation={dilation} is larger than the padded input {padded} "
                             f"(x of shape {tuple(input_shape)}, padding={options.padding!r})")
        return problem

    @staticmethod
    def create_transposed(ndim: int, input_shape: Sequence[int], weight_shape: Sequence[int], dtype: str, options: Options,
                          output_padding: Any = 0, *, bias: bool = False, device: str = "cpu") -> Problem:
        """The `grad_input` problem that a transposed convolution is: its x is gy, its output gx."""
        layout = _check_layout(options.layout, ndim)
        batch, channels, size = _split_shape("x", input_shape, ndim, layout)
        out_channels, group_channels, kernel = _split_weight_shape(weight_shape, ndim, layout)
        if channels != out_channels:
            raise ValueError(f"w of shape {tuple(weight_shape)} takes {out_channels} channels, but x of shape "
                             f"{tuple(input_shape)} has {channels}")
        if options.padding_mode != "zeros":
            raise ValueError(f"padding_mode must be 'zeros' for a transposed convolution, got {options.padding_mode!r}")
        groups = _check_groups(options.groups, group_channels * _as_int("groups", options.groups, 1), channels)
        stride = _check_axes("stride", options.stride, ndim, minimum=1)
        dilation = _check_axes("dilation", options.dilation, ndim, minimum=1)
        extra = _check_axes("output_padding", output_padding, ndim, minimum=0)
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
            layout=layout, bias=bias, activation=_check_activation(options.activation, dtype),
            accuracy=_check_name("accuracy", options.accuracy, ACCURACIES), device=device)

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
        return _join_shape(self.batch, self.in_channels, self.input_size, self.layout)

    @cached_property
    def output_shape(self) -> Size:
        """Shape of y and gy, with all three spatial axes."""
        return _join_shape(self.batch, self.out_channels, self.output_size, self.layout)

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


# -- borders and phases -------------------------------------------------------------------------------------------------


@lru_cache(maxsize=512)
def border_source(size: int, low: int, high: int, mode: str) -> np.ndarray:
    """The input index at each of the `low + size + high` positions of a padded axis, int32; -1 is a zero.

    Negative pads crop. The array is shared: it is read-only.
    """
    index = np.arange(-low, size + high, dtype=np.int32)
    if mode == "zeros":
        index[(index < 0) | (index >= size)] = -1
    else:
        line = np.pad(np.arange(size, dtype=np.int32), (max(low, 0), max(high, 0)), mode=NUMPY_PAD_MODE[mode])  # type: ignore[call-overload]
        index = line[max(-low, 0):line.size - max(-high, 0)]
    index.flags.writeable = False
    return index


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


# -- checks of single arguments -------------------------------------------------------------------------------------------


def _as_int(name: str, value: Any, minimum: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if number < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value!r}")
    return number


def _as_sequence(name: str, value: Any, ndim: int) -> list[Any]:
    if isinstance(value, (str, bytes)):
        raise TypeError(f"{name} must be an integer or a sequence of {ndim}, got {value!r}")
    try:
        items = list(value)
    except TypeError:
        return [value] * ndim
    if len(items) != ndim:
        raise ValueError(f"{name} must be an integer or a sequence of {ndim}, got {value!r}")
    return items


def _check_axes(name: str, value: Any, ndim: int, minimum: int) -> Size:
    try:
        return tuple(_as_int(name, item, minimum) for item in _as_sequence(name, value, ndim))
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}={value!r}: {error}") from None


def _check_name(name: str, value: Any, valid: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in valid:
        kind = ValueError if isinstance(value, str) else TypeError
        raise kind(f"{name} must be one of {', '.join(map(repr, valid))}; got {value!r}")
    return value


def _check_layout(value: Any, ndim: int) -> str:
    _check_name("layout", value, CHANNELS_FIRST[ndim] + CHANNELS_LAST[ndim])
    return "NCHW" if value in CHANNELS_FIRST[ndim] else "NHWC"


def _check_groups(value: Any, in_channels: int, out_channels: int) -> int:
    groups = _as_int("groups", value, 1)
    if in_channels % groups or out_channels % groups:
        raise ValueError(f"groups={groups} must divide the input channels ({in_channels}) and the output channels ({out_channels})")
    return groups


def _check_activation(value: Any, dtype: str) -> str | None:
    if value is None:
        return None
    name = _check_name("activation", value, ACTIVATIONS)
    kind = np.dtype(dtype).kind
    if kind == "c" or (kind in "iu" and name not in ("relu", "relu6")):
        raise TypeError(f"activation={name!r} is not defined for arrays of type {dtype}")
    return name


def _split_shape(name: str, shape: Sequence[int], ndim: int, layout: str) -> tuple[int, int, Size]:
    if len(shape) != ndim + 2:
        raise ValueError(f"{name} must have {ndim + 2} dimensions, or {ndim + 1} for a single sample, got shape {tuple(shape)}")
    shape = tuple(_as_int(f"shape of {name}", n, 0) for n in shape)
    return (shape[0], shape[1], shape[2:]) if layout == "NCHW" else (shape[0], shape[-1], shape[1:-1])


def _split_weight_shape(shape: Sequence[int], ndim: int, layout: str) -> tuple[int, int, Size]:
    if len(shape) != ndim + 2:
        raise ValueError(f"w must have {ndim + 2} dimensions, got shape {tuple(shape)}")
    shape = tuple(_as_int("shape of w", n, 0) for n in shape)
    outputs, channels, kernel = (shape[0], shape[1], shape[2:]) if layout == "NCHW" else (shape[-1], shape[-2], shape[:-2])
    if min(kernel) < 1:
        raise ValueError(f"w must have a kernel of at least one tap on each axis, got shape {tuple(shape)}")
    return outputs, channels, kernel


def _join_shape(batch: int, channels: int, size: Size, layout: str) -> Size:
    return (batch, channels, *size) if layout == "NCHW" else (batch, *size, channels)


def _check_border(mode: str, padding: Pads, size: Size) -> None:
    for axis, (n, pads) in enumerate(zip(size, padding, strict=True)):
        limit = {"reflect": n - 1, "symmetric": n, "circular": n, "replicate": None if n else 0}.get(mode)
        if mode != "zeros" and limit is not None and max(pads) > limit:
            raise ValueError(f"padding {pads} on spatial axis {axis} is larger than padding_mode={mode!r} allows "
                             f"for size {n}: at most {max(limit, 0)}")


def resolve_padding(value: Any, size: Size, kernel: Size, stride: Size, dilation: Size) -> Pads:
    """(low, high) pads per axis from an integer, one per axis, a pair per axis or a name.

    "same" gives ceil(n / stride) outputs, the odd pad at the end; "same_lower" puts it at the start; "causal" (1-D)
    pads the past only.
    """
    ndim = len(size)
    if isinstance(value, str):
        _check_name("padding", value, NAMED_PADDINGS)
        if value == "valid":
            return ((0, 0),) * ndim
        if value == "causal":
            if ndim != 1:
                raise ValueError(f"padding='causal' is for 1-D convolutions, this one is {ndim}-D")
            return ((dilation[0] * (kernel[0] - 1), 0),)
        totals = [max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0) for n, k, s, d in zip(size, kernel, stride, dilation, strict=True)]
        return tuple((t // 2, t - t // 2) if value == "same" else (t - t // 2, t // 2) for t in totals)
    pads = []
    for item in _as_sequence("padding", value, ndim):
        pair = _as_sequence("padding", item, 2)
        try:
            pads.append((_as_int("padding", pair[0], 0), _as_int("padding", pair[1], 0)))
        except (TypeError, ValueError) as error:
            raise type(error)(f"padding={value!r}: {error}") from None
    return tuple(pads)
