"""Convolution layers: what `fastconv`'s convolutions are with weights of their own."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from .. import conv
from .._calls import bias_gradient
from ..backends._activation import rectifier, rectifier_gradient
from . import initializers
from ._layer import LARGE, Backprop, Layer, check_layout, documented

__all__ = ["Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "DepthwiseConv2d", "PointwiseConv2d",
           "SeparableConv2d"]


def per_axis(name: str, value: Any, ndim: int) -> tuple[int, ...]:
    """An integer of at least 1 for each axis."""
    values = (value,) * ndim if isinstance(value, (int, np.integer)) else tuple(value)
    if len(values) != ndim or not all(isinstance(v, (int, np.integer)) and not isinstance(v, bool) and v >= 1 for v in values):
        raise ValueError(f"{name} must be a positive integer or {ndim} of them, got {value!r}")
    return tuple(int(v) for v in values)


def plain(value: Any) -> Any:
    """Tuples for lists, an integer for equal ones: what calls are remembered by."""
    if isinstance(value, (list, tuple)):
        value = tuple(plain(v) for v in value)
        return value[0] if value and all(isinstance(v, int) and v == value[0] for v in value) else value
    return int(value) if isinstance(value, np.integer) else value


class _Convolution(Layer):
    ndim = 0
    transposed = False

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Any, stride: Any, padding: Any, dilation: Any, groups: int,
                 bias: bool, padding_mode: str, layout: str, dtype: Any, rng: Any):
        super().__init__(dtype)
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(f"groups={groups} must divide in_channels={in_channels} and out_channels={out_channels}")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = per_axis("kernel_size", kernel_size, self.ndim)
        self.stride, self.dilation = per_axis("stride", stride, self.ndim), per_axis("dilation", dilation, self.ndim)
        self.padding, self.padding_mode, self.layout = padding, padding_mode, check_layout(layout)
        self.options: dict[str, Any] = {"stride": plain(self.stride), "padding": plain(padding), "dilation": plain(self.dilation),
                                        "groups": groups, "layout": layout}
        if not self.transposed:
            self.options["padding_mode"] = padding_mode
        first, second = (in_channels, out_channels) if self.transposed else (out_channels, in_channels)
        shape = (first, second // groups, *self.kernel_size)
        fan = second // groups * math.prod(self.kernel_size)
        generator = np.random.default_rng(rng)
        weight = initializers.kaiming_uniform(shape, fan, a=math.sqrt(5), rng=generator)
        self.add_parameter("weight", self.from_state("weight", weight))
        if bias:
            self.add_parameter("bias", initializers.uniform((out_channels,), 1 / math.sqrt(fan) if fan else 0.0, rng=generator))

    def arguments(self) -> str:
        """As torch's."""
        values = {"padding": (self.padding, 0), "dilation": (self.dilation, (1,) * self.ndim), "groups": (self.groups, 1),
                  "bias": ("bias" in self.params, True), "padding_mode": (self.padding_mode, "zeros"), "layout": (self.layout, "NCHW")}
        more = "".join(f", {name}={value!r}" for name, (value, default) in values.items() if value != default)
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}{more}"

    def to_state(self, key: str, array: np.ndarray) -> np.ndarray:
        """Weights with their channels first."""
        if key == "bias" or self.layout == "NCHW":
            return array
        return np.ascontiguousarray(np.moveaxis(array, (-1, -2), (0, 1)))

    def from_state(self, key: str, array: np.ndarray) -> np.ndarray:
        """Weights as the layout has them."""
        return array if key == "bias" or self.layout == "NCHW" else np.ascontiguousarray(np.moveaxis(array, (0, 1), (-1, -2)))

    def _checked(self, x: Any) -> np.ndarray:
        x = self.as_input(x)
        axis = x.ndim - 1 if self.layout == "NHWC" else x.ndim - self.ndim - 1
        if x.ndim not in (self.ndim + 1, self.ndim + 2) or x.shape[axis] != self.in_channels:
            sizes = ", ".join("DHW"[3 - self.ndim:])
            expected = f"{self.in_channels}, {sizes}" if self.layout == "NCHW" else f"{sizes}, {self.in_channels}"
            raise self.wrong_input(x.shape, f"(N, {expected}) or ({expected})")
        return x

    def _compute(self, x: np.ndarray, activation: str | None) -> np.ndarray:
        function = _function("conv_transpose{}d" if self.transposed else "conv{}d", self.ndim)
        return function(x, self.params["weight"], self.params.get("bias"), activation=activation, **self.options)

    def _gradients(self, gy: np.ndarray, x: np.ndarray, weight: np.ndarray, input_gradient: bool) -> np.ndarray:
        raise NotImplementedError

    def _run(self, x: Any, activation: str | None) -> tuple[np.ndarray, np.ndarray]:
        x = self._checked(x)
        try:
            return x, self._compute(x, activation)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{self!r}: x of shape {x.shape}: {error}") from None

    def __call__(self, x: Any) -> np.ndarray:
        """The output."""
        return self._run(x, None)[1]

    def activated(self, x: Any, name: str) -> np.ndarray:
        """The output through an activation."""
        return self._run(x, name)[1]

    def forward(self, x: Any) -> tuple[np.ndarray, Backprop]:
        """The output; the gradients of input, weights and bias."""
        x, y = self._run(x, None)
        shape, dtype, weight = y.shape, y.dtype, self.params["weight"]

        def backprop(gy: Any, input_gradient: bool = True) -> np.ndarray:
            return self._gradients(self.as_gradient(gy, shape, dtype), x, weight, input_gradient)

        return y, backprop

    takes_activation = skips_input_gradient = True

    def forward_activated(self, x: Any, name: str) -> tuple[np.ndarray, Backprop]:
        """As `forward`; the rectifier's gradient is told from the output."""
        x, y = self._run(x, name)
        slope, ceiling = rectifier(name)
        weight = self.params["weight"]

        def backprop(gy: Any, input_gradient: bool = True) -> np.ndarray:
            gy = self.as_gradient(gy, y.shape, y.dtype)
            gy = rectifier_gradient(y, gy if gy.flags.num & 0x501 == 0x501 else np.array(gy, order="C"), slope, ceiling)
            return self._gradients(gy, x, weight, input_gradient)

        return y, backprop


class _Conv(_Convolution):
    def __init__(self, in_channels: int, out_channels: int, kernel_size: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
                 groups: int = 1, bias: bool = True, padding_mode: str = "zeros", *, layout: str = "NCHW", dtype: Any = "float32",
                 rng: Any = None):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, layout, dtype, rng)

    def _gradients(self, gy: np.ndarray, x: np.ndarray, weight: np.ndarray, input_gradient: bool) -> np.ndarray:
        ndim, options, bias = self.ndim, self.options, "bias" in self.params
        if input_gradient and weight.size < LARGE:  # nothing is written in place, and one call has fewer checks than three
            gx, gw, gb = _function("conv{}d_backward", ndim)(gy, x, weight, bias=bias, **options)
            self.grads.add("weight", gw)
            if bias:
                self.grads.add("bias", gb)
            return gx
        grad_weight = _function("conv{}d_grad_weight", ndim)
        self.grads.accumulate("weight", lambda out: grad_weight(gy, x, weight.shape, out=out, **options))
        if bias:
            self.grads.add("bias", bias_gradient(gy, ndim, self.layout, gy.dtype))
        return _function("conv{}d_grad_input", ndim)(gy, weight, x.shape, **options) if input_gradient else gy


class _Transpose(_Convolution):
    transposed = True

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Any, stride: Any = 1, padding: Any = 0, output_padding: Any = 0,
                 groups: int = 1, bias: bool = True, dilation: Any = 1, padding_mode: str = "zeros", *, layout: str = "NCHW",
                 dtype: Any = "float32", rng: Any = None):
        if padding_mode != "zeros":
            raise ValueError(f"padding_mode must be 'zeros' for a transposed convolution, got {padding_mode!r}")
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, layout, dtype, rng)
        self.output_padding = output_padding
        self.options["output_padding"] = plain(output_padding)

    def arguments(self) -> str:
        """As torch's."""
        return super().arguments() + (f", output_padding={self.output_padding}" if self.output_padding else "")

    def _gradients(self, gy: np.ndarray, x: np.ndarray, weight: np.ndarray, input_gradient: bool) -> np.ndarray:
        bias = "bias" in self.params
        gx, gw, gb = _function("conv_transpose{}d_backward", self.ndim)(gy, x, weight, bias=bias, **self.options)
        self.grads.add("weight", gw)
        if bias:
            self.grads.add("bias", gb)
        return gx


@functools.cache
def _function(name: str, ndim: int) -> Any:
    """A public function of a rank."""
    return getattr(conv, name.format(ndim))


_DOC = """
    Parameters
    ----------
    in_channels, out_channels : int
        Channels of input and output.
    kernel_size, stride, padding, {order} : int or sequence
        As in `fastconv.{function}`: padding may be pairs or a name.
    groups : int
        Input and output channels are split into this many independent groups.
    bias : bool
        Whether a bias is learned.
    padding_mode : str
        What lies beyond the border{modes}.
    layout : {{"NCHW", "NHWC"}}
        Channels first or last. The state dict has PyTorch's weights (channels first) in both.
    dtype : {{"float32", "float64"}}
        What is computed in.
    rng : int or numpy.random.Generator, optional
        Of the initial weights, uniform within 1 / sqrt(fan) as PyTorch's.

    Attributes
    ----------
    weight, bias : ndarray, shapes {weight} and (out_channels,)

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> layer = nn.{name}(2, 4, 3, stride=2, rng=0)
    >>> y, backprop = layer.forward(np.ones({shape}))
    >>> y.shape, backprop(np.ones_like(y)).shape
    ({result}, {shape})

    References
    ----------
    Goodfellow, Bengio, Courville, "Deep Learning" (2016), section 9.5.
    """


def _shapes(ndim: int, transposed: bool) -> dict[str, str]:
    axes = ", ".join(["kd", "kh", "kw"][3 - ndim:])
    function = f"conv_transpose{ndim}d" if transposed else f"conv{ndim}d"
    return {"name": f"ConvTranspose{ndim}d" if transposed else f"Conv{ndim}d", "function": function,
            "shape": "(1, 2" + ", 7" * ndim + ")", "result": "(1, 4" + (", 15" if transposed else ", 3") * ndim + ")",
            "weight": f"(in_channels, out_channels/groups, {axes})" if transposed else f"(out_channels, in_channels/groups, {axes})",
            "order": "output_padding, dilation" if transposed else "dilation", "modes": ": zeros" if transposed else ""}


@documented(_DOC, **_shapes(1, False))
class Conv1d(_Conv):
    """Convolution (cross-correlation) of lines of many channels."""

    ndim = 1


@documented(_DOC, **_shapes(2, False))
class Conv2d(_Conv):
    """Convolution (cross-correlation) of images of many channels."""

    ndim = 2


@documented(_DOC, **_shapes(3, False))
class Conv3d(_Conv):
    """Convolution (cross-correlation) of volumes of many channels."""

    ndim = 3


@documented(_DOC, **_shapes(1, True))
class ConvTranspose1d(_Transpose):
    """Transposed convolution of lines: the gradient of `Conv1d`, as a layer."""

    ndim = 1


@documented(_DOC, **_shapes(2, True))
class ConvTranspose2d(_Transpose):
    """Transposed convolution of images: the gradient of `Conv2d`, as a layer."""

    ndim = 2


@documented(_DOC, **_shapes(3, True))
class ConvTranspose3d(_Transpose):
    """Transposed convolution of volumes: the gradient of `Conv3d`, as a layer."""

    ndim = 3


class DepthwiseConv2d(Conv2d):
    """Convolution of each channel with kernels of its own: `Conv2d` with as many groups as channels.

    Parameters
    ----------
    in_channels : int
        Channels.
    kernel_size, stride, padding, dilation, bias, padding_mode, layout, dtype, rng
        As in `Conv2d`.
    multiplier : int
        Kernels, and outputs, of each channel.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> nn.DepthwiseConv2d(2, 3, padding=1, multiplier=2)(np.ones((1, 2, 5, 5))).shape
    (1, 4, 5, 5)

    References
    ----------
    Howard et al., "MobileNets" (2017), section 3.1.
    """

    def __init__(self, in_channels: int, kernel_size: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1, multiplier: int = 1,
                 bias: bool = True, padding_mode: str = "zeros", *, layout: str = "NCHW", dtype: Any = "float32", rng: Any = None):
        super().__init__(in_channels, in_channels * multiplier, kernel_size, stride, padding, dilation, in_channels, bias, padding_mode,
                         layout=layout, dtype=dtype, rng=rng)


class PointwiseConv2d(Conv2d):
    """Mixture of the channels at each point: `Conv2d` with a 1x1 kernel.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels of input and output.
    stride, groups, bias, layout, dtype, rng
        As in `Conv2d`.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> nn.PointwiseConv2d(2, 4)(np.ones((1, 2, 5, 5))).shape
    (1, 4, 5, 5)
    """

    def __init__(self, in_channels: int, out_channels: int, stride: Any = 1, groups: int = 1, bias: bool = True, *, layout: str = "NCHW",
                 dtype: Any = "float32", rng: Any = None):
        super().__init__(in_channels, out_channels, 1, stride, 0, 1, groups, bias, layout=layout, dtype=dtype, rng=rng)


class SeparableConv2d(Layer):
    """Depthwise-separable convolution: `DepthwiseConv2d` without a bias, then `PointwiseConv2d`.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels of input and output.
    kernel_size, stride, padding, dilation, padding_mode
        Of the depthwise step, as in `Conv2d`.
    bias : bool
        Whether the pointwise step has a bias.
    multiplier : int
        Kernels of each channel in the depthwise step.
    layout, dtype, rng
        As in `Conv2d`.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> layer = nn.SeparableConv2d(2, 4, 3)
    >>> layer(np.ones((1, 2, 5, 5))).shape, list(layer.state_dict())
    ((1, 4, 3, 3), ['depthwise.weight', 'pointwise.weight', 'pointwise.bias'])

    References
    ----------
    Chollet, "Xception: deep learning with depthwise separable convolutions" (2017), section 1.
    """

    takes_activation = True

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
                 bias: bool = True, padding_mode: str = "zeros", multiplier: int = 1, *, layout: str = "NCHW", dtype: Any = "float32",
                 rng: Any = None):
        super().__init__()
        rng = np.random.default_rng(rng)
        self.children["depthwise"] = DepthwiseConv2d(in_channels, kernel_size, stride, padding, dilation, multiplier, False, padding_mode,
                                                     layout=layout, dtype=dtype, rng=rng)
        self.children["pointwise"] = PointwiseConv2d(in_channels * multiplier, out_channels, bias=bias, layout=layout, dtype=dtype, rng=rng)

    def arguments(self) -> str:
        """Of both steps."""
        return f"{self.children['depthwise']!r}, {self.children['pointwise']!r}"

    def __call__(self, x: Any) -> np.ndarray:
        """The output."""
        return self.children["pointwise"](self.children["depthwise"](x))

    def activated(self, x: Any, name: str) -> np.ndarray:
        """The output through an activation."""
        return self.children["pointwise"].activated(self.children["depthwise"](x), name)

    def forward(self, x: Any) -> tuple[np.ndarray, Backprop]:
        """Both steps in turn."""
        spread, through_depthwise = self.children["depthwise"].forward(x)
        y, through_pointwise = self.children["pointwise"].forward(spread)
        return y, lambda gy: through_depthwise(through_pointwise(gy))

    def forward_activated(self, x: Any, name: str) -> tuple[np.ndarray, Backprop]:
        """Both steps in turn, and a rectifier."""
        spread, through_depthwise = self.children["depthwise"].forward(x)
        y, through_pointwise = self.children["pointwise"].forward_activated(spread, name)
        return y, lambda gy: through_depthwise(through_pointwise(gy))

    def trace(self, x: np.ndarray, record: Any, name: str = "") -> np.ndarray:
        """Trace both steps."""
        for key, child in self.children.items():
            x = child.trace(x, record, f"{name}.{key}" if name else key)
        return x
