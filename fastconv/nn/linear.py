"""The fully connected layer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._arrays import as_operand
from ..backends._products import layer_product, product, transposed_product
from ..backends._sums import channel_sums
from ..conv import conv2d, conv2d_grad_input, conv2d_grad_weight
from . import initializers
from ._layer import Backprop, Layer

__all__ = ["Linear"]

SOME_ROWS = 512  # up to which matrix products are faster than a 1x1 convolution (2 cores, AVX-512)


class Linear(Layer):
    """A fully connected layer: y = x W^T + b.

    Parameters
    ----------
    in_features, out_features : int
        Sizes of the last axis of input and output.
    bias : bool
        Whether b is learned.
    dtype : {"float32", "float64"}
        What is computed in.
    rng : int or numpy.random.Generator, optional
        Of the initial weights, uniform within 1 / sqrt(in_features) as PyTorch's.

    Attributes
    ----------
    weight, bias : ndarray, shapes (out_features, in_features) and (out_features,)

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> layer = nn.Linear(4, 2, rng=0)
    >>> y, backprop = layer.forward(np.ones((3, 4), np.float32))
    >>> backprop(np.ones_like(y)).shape, layer.grads["bias"]
    ((3, 4), array([3., 3.], dtype=float32))

    References
    ----------
    Goodfellow, Bengio, Courville, "Deep Learning" (2016), equation 6.5.
    """

    skips_input_gradient = True

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, dtype: Any = "float32", rng: Any = None):
        super().__init__(dtype)
        self.in_features, self.out_features = in_features, out_features
        rng = np.random.default_rng(rng)
        self.add_parameter("weight", initializers.kaiming_uniform((out_features, in_features), in_features, a=5 ** 0.5, rng=rng))
        if bias:
            self.add_parameter("bias", initializers.uniform((out_features,), in_features ** -0.5 if in_features else 0.0, rng=rng))

    def arguments(self) -> str:
        """As torch's."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={'bias' in self.params}"

    def __call__(self, x: Any) -> np.ndarray:
        """The output."""
        return self._product(self._checked(x))

    def _checked(self, x: Any) -> np.ndarray:
        x = self.as_input(x)
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise self.wrong_input(x.shape, f"(..., {self.in_features})")
        return x

    def _rows(self, x: np.ndarray, features: int) -> np.ndarray:
        count = x.size // features if features else math.prod(x.shape[:-1])
        return as_operand(x, x.dtype, (count, features))

    def _product(self, x: np.ndarray) -> np.ndarray:
        y = _forward(self._rows(x, self.in_features), self.params["weight"], self.params.get("bias"))
        return y if x.ndim == 2 else y.reshape(*x.shape[:-1], self.out_features)

    def forward(self, x: Any) -> tuple[np.ndarray, Backprop]:
        """The output; gx = gy W, gW += gy^T x, gb += the sum of gy."""
        x = self._checked(x)
        y = self._product(x)
        shape, dtype, weight = y.shape, y.dtype, self.params["weight"]

        def backprop(gy: Any, input_gradient: bool = True) -> np.ndarray:
            rows, inputs = self._rows(self.as_gradient(gy, shape, dtype), self.out_features), self._rows(x, self.in_features)
            self.grads.accumulate("weight", lambda out: _grad_weight(rows, inputs, out))
            if "bias" in self.params:
                self.grads.add("bias", channel_sums(rows.shape, 1, dtype)(rows) if rows.size else rows.sum(axis=0))
            return _grad_input(rows, weight).reshape(x.shape) if input_gradient else rows

        return y, backprop


# -- products of contiguous matrices -------------------------------------------------------------------------------------


def _pixels(matrix: np.ndarray) -> np.ndarray:
    """Rows as images of one pixel."""
    return matrix.reshape(*matrix.shape, 1, 1)


def _forward(x: np.ndarray, w: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """x w^T + bias."""
    if 0 in x.shape or 0 in w.shape:
        y = np.zeros((len(x), len(w)), x.dtype)
        return y if bias is None else y + bias
    if len(x) <= SOME_ROWS:
        return layer_product(x, w, bias)
    return conv2d(_pixels(x), _pixels(w), bias).reshape(len(x), len(w))


def _grad_input(gy: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Gradient of x, gy w."""
    if 0 in gy.shape or 0 in w.shape:
        return np.zeros((len(gy), w.shape[1]), gy.dtype)
    if len(gy) <= SOME_ROWS:
        return product(gy, w)
    return conv2d_grad_input(_pixels(gy), _pixels(w), (len(gy), w.shape[1], 1, 1)).reshape(len(gy), w.shape[1])


def _grad_weight(gy: np.ndarray, x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Gradient of w, gy^T x."""
    shape = (gy.shape[1], x.shape[1])
    if 0 in gy.shape or 0 in x.shape:
        return np.matmul(gy.T, x, out=out)
    if len(gy) <= SOME_ROWS:
        return transposed_product(gy, x, out)
    pixels = None if out is None else _pixels(out)
    return conv2d_grad_weight(_pixels(gy), _pixels(x), (*shape, 1, 1), out=pixels).reshape(shape)
