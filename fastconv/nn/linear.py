"""The fully connected layer."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import initializers
from ._layer import Backprop, Layer

__all__ = ["Linear"]


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

    takes_activation = False

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

    def _product(self, x: np.ndarray) -> np.ndarray:
        y = x @ self.params["weight"].T
        if "bias" in self.params:
            y += self.params["bias"]
        return y

    def forward(self, x: Any) -> tuple[np.ndarray, Backprop]:
        """The output; gx = gy W, gW += gy^T x, gb += the sum of gy."""
        x = self._checked(x)
        y = self._product(x)
        shape, dtype, weight = y.shape, y.dtype, self.params["weight"]

        def backprop(gy: Any) -> np.ndarray:
            gy = self.as_gradient(gy, shape, dtype)
            rows, inputs = gy.reshape(-1, self.out_features), x.reshape(-1, self.in_features)
            self.grads.accumulate("weight", lambda out: np.matmul(rows.T, inputs, out=out))
            if "bias" in self.params:
                self.grads.add("bias", rows.sum(axis=0))
            return gy @ weight

        return y, backprop
