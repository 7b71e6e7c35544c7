"""The locally connected layer: a convolution whose weights are not shared between places."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from ..problem import Options, Problem
from . import initializers
from ._layer import Backprop, Layer, check_layout
from .convolutions import per_axis, plain

__all__ = ["LocallyConnected2d"]


@functools.cache
def _function(name: str) -> Any:
    """A function of `fastconv.local`, which is imported with the first of them."""
    from .. import local

    return getattr(local, name)


class LocallyConnected2d(Layer):
    """A convolution with weights of its own at each place of the output.

    y[n, o, p] = b[o] + sum over c, k of  w[o, c, k, p] x[n, c, stride p + dilation k - low]

    Parameters
    ----------
    in_channels, out_channels : int
        Channels of input and output.
    input_size : int or (int, int)
        Height and width of the inputs, on which the weights' shape depends.
    kernel_size, stride, padding, dilation, groups
        As in `Conv2d`.
    bias : bool
        Whether a bias, one number a channel, is learned.
    layout : {"NCHW", "NHWC"}
        Channels first or last. The state dict has the weights of channels first in both.
    dtype : {"float32", "float64"}
        What is computed in.
    rng : int or numpy.random.Generator, optional
        Of the initial weights, uniform within 1 / sqrt(fan).

    Attributes
    ----------
    weight, bias : ndarray, shapes (out_channels, in_channels/groups, kh, kw, Ho, Wo) and (out_channels,)

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> nn.LocallyConnected2d(2, 3, 6, 3).weight.shape
    (3, 2, 3, 3, 4, 4)

    References
    ----------
    Goodfellow, Bengio, Courville, "Deep Learning" (2016), section 9.5, equation 9.9.
    """

    def __init__(self, in_channels: int, out_channels: int, input_size: Any, kernel_size: Any, stride: Any = 1, padding: Any = 0,
                 dilation: Any = 1, groups: int = 1, bias: bool = True, *, layout: str = "NCHW", dtype: Any = "float32", rng: Any = None):
        super().__init__(dtype)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.input_size, self.kernel_size = per_axis("input_size", input_size, 2), per_axis("kernel_size", kernel_size, 2)
        self.layout = check_layout(layout)
        self.options = {"stride": plain(stride), "padding": plain(padding), "dilation": plain(dilation), "groups": groups, "layout": layout}
        shared = (out_channels, in_channels // max(1, groups), *self.kernel_size)
        options = Options(**{key: value for key, value in self.options.items() if key != "layout"})
        problem = Problem.create("forward", 2, (1, in_channels, *self.input_size), shared, self.params_dtype, options)
        fan = shared[1] * math.prod(self.kernel_size)
        generator = np.random.default_rng(rng)
        weight = initializers.kaiming_uniform((*shared, *problem.output_size[1:]), fan, a=math.sqrt(5), rng=generator)
        self.add_parameter("weight", self.from_state("weight", weight))
        if bias:
            self.add_parameter("bias", initializers.uniform((out_channels,), 1 / math.sqrt(fan) if fan else 0.0, rng=generator))

    @property
    def params_dtype(self) -> str:
        """Name of the parameters' dtype."""
        assert self.dtype is not None  # given by the constructor
        return self.dtype.name

    def arguments(self) -> str:
        """What makes the layer."""
        names = ("stride", "padding", "dilation", "groups")
        options = ", ".join(f"{name}={self.options[name]}" for name in names)
        text = f"{self.in_channels}, {self.out_channels}, input_size={self.input_size}, kernel_size={self.kernel_size}, {options}"
        return text + (", layout='NHWC'" if self.layout == "NHWC" else "")

    def to_state(self, key: str, array: np.ndarray) -> np.ndarray:
        """Weights (O, C/G, kh, kw, Ho, Wo), from (Ho, Wo, kh, kw, C/G, O) for channels last."""
        return array if key == "bias" or self.layout == "NCHW" else np.ascontiguousarray(array.transpose(5, 4, 2, 3, 0, 1))

    def from_state(self, key: str, array: np.ndarray) -> np.ndarray:
        """`to_state` undone."""
        return array if key == "bias" or self.layout == "NCHW" else np.ascontiguousarray(array.transpose(4, 5, 2, 3, 1, 0))

    def _checked(self, x: Any) -> np.ndarray:
        x = self.as_input(x)
        height, width = self.input_size
        expected = (self.in_channels, height, width) if self.layout == "NCHW" else (height, width, self.in_channels)
        if x.ndim not in (3, 4) or x.shape[-3:] != expected:
            raise self.wrong_input(x.shape, f"(N, {', '.join(map(str, expected))})")
        return x

    def __call__(self, x: Any) -> np.ndarray:
        """The output."""
        return _function("locally_connected2d")(self._checked(x), self.params["weight"], self.params.get("bias"), **self.options)

    def forward(self, x: Any) -> tuple[np.ndarray, Backprop]:
        """The output; the gradients of input, weights and bias."""
        x = self._checked(x)
        y, weight = self(x), self.params["weight"]
        shape, dtype = y.shape, y.dtype

        def backprop(gy: Any) -> np.ndarray:
            bias = "bias" in self.params
            gy = self.as_gradient(gy, shape, dtype)
            gx, gw, gb = _function("locally_connected2d_backward")(gy, x, weight, bias=bias, **self.options)
            self.grads.add("weight", gw)
            if bias:
                self.grads.add("bias", gb)
            return gx

        return y, backprop
