"""Activations: each a function of an element (softmax: of a line), with its gradient from what it keeps, input or output."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..backends._activation import activated, activation_gradient, rectified, rectifier_gradient
from ._layer import Backprop, Layer

__all__ = ["GELU", "LeakyReLU", "ReLU", "ReLU6", "SiLU", "Sigmoid", "Softmax", "Tanh"]


def contiguous(x: np.ndarray) -> np.ndarray:
    """An array as the kernels take it."""
    return x if x.flags.c_contiguous and x.flags.writeable else np.array(x, order="C")


class Rectifier(Layer):
    """A slope below zero and a ceiling: the gradient is told from the output."""

    slope, ceiling = 0.0, math.inf

    def __call__(self, x: Any) -> np.ndarray:
        """The output."""
        return rectified(contiguous(self.as_input(x)), self.slope, self.ceiling)

    def forward(self, x: Any) -> tuple[np.ndarray, Backprop]:
        """The output, from which the gradient is told."""
        y = self(x)
        return y, self.backward_from(y)

    def backward_from(self, y: np.ndarray) -> Backprop:
        """The backward pass of an output."""
        def backprop(gy: Any) -> np.ndarray:
            return rectifier_gradient(y, contiguous(self.as_gradient(gy, y.shape, y.dtype)), self.slope, self.ceiling)

        return backprop


class ReLU(Rectifier):
    """y = max(x, 0); the gradient at 0 is 0.

    Examples
    --------
    >>> import fastconv.nn as nn
    >>> y, backprop = nn.ReLU().forward([-1.0, 0.0, 2.0])
    >>> y, backprop([1.0, 1.0, 1.0])
    (array([0., 0., 2.]), array([0., 0., 1.]))
    """

    rectifier = "relu"


class ReLU6(Rectifier):
    """y = min(max(x, 0), 6).

    Examples
    --------
    >>> import fastconv.nn as nn
    >>> nn.ReLU6()([-1.0, 2.0, 8.0])
    array([0., 2., 6.])

    References
    ----------
    Howard et al., "MobileNets" (2017).
    """

    ceiling = 6.0
    rectifier = "relu6"


class LeakyReLU(Rectifier):
    """y = x where x is positive, else negative_slope * x.

    Parameters
    ----------
    negative_slope : float
        Not negative: the gradient is told from the output's sign.

    Examples
    --------
    >>> import fastconv.nn as nn
    >>> nn.LeakyReLU(0.5)([-1.0, 2.0])
    array([-0.5,  2. ])
    """

    def __init__(self, negative_slope: float = 0.01):
        super().__init__()
        if not negative_slope >= 0:
            raise ValueError(f"negative_slope must not be negative, got {negative_slope!r}")
        self.slope = float(negative_slope)
        if self.slope == 0.01:
            self.rectifier = "leaky_relu"

    def arguments(self) -> str:
        """As torch's."""
        return f"negative_slope={self.slope}"


class _Smooth(Layer):
    name = ""
    from_output = False  # whether the gradient is told from the output

    def __call__(self, x: Any) -> np.ndarray:
        """The output."""
        return activated(self.name, contiguous(self.as_input(x)))

    def forward(self, x: Any) -> tuple[np.ndarray, Backprop]:
        """The output; what the gradient is told from is kept."""
        x = contiguous(self.as_input(x))
        y = activated(self.name, x)
        known = y if self.from_output else x

        def backprop(gy: Any) -> np.ndarray:
            return activation_gradient(self.name, known, contiguous(self.as_gradient(gy, known.shape, known.dtype)))

        return y, backprop


class Sigmoid(_Smooth):
    """y = 1 / (1 + exp(-x)).

    Examples
    --------
    >>> import fastconv.nn as nn
    >>> nn.Sigmoid()([0.0])
    array([0.5])
    """

    name, from_output = "sigmoid", True


class Tanh(_Smooth):
    """y = tanh(x).

    Examples
    --------
    >>> import fastconv.nn as nn
    >>> nn.Tanh()([0.0])
    array([0.])
    """

    name, from_output = "tanh", True


class SiLU(_Smooth):
    """y = x / (1 + exp(-x)), also known as swish.

    Examples
    --------
    >>> import fastconv.nn as nn
    >>> nn.SiLU()([0.0])
    array([0.])

    References
    ----------
    Elfwing, Uchibe, Doya, "Sigmoid-weighted linear units" (2018), equation 4.
    """

    name = "silu"


class GELU(_Smooth):
    """y = x Phi(x), with Phi the normal distribution.

    Examples
    --------
    >>> import fastconv.nn as nn
    >>> nn.GELU()([0.0])
    array([0.])

    References
    ----------
    Hendrycks and Gimpel, "Gaussian error linear units" (2016), section 2.
    """

    name = "gelu"


class Softmax(Layer):
    """y_i = exp(x_i) / sum over j of exp(x_j) along an axis.

    Parameters
    ----------
    dim : int
        The axis.

    Examples
    --------
    >>> import fastconv.nn as nn
    >>> nn.Softmax()([[0.0, 0.0]])
    array([[0.5, 0.5]])
    """

    def __init__(self, dim: int = 1):
        super().__init__()
        self.dim = dim

    def arguments(self) -> str:
        """As torch's."""
        return f"dim={self.dim}"

    def __call__(self, x: Any) -> np.ndarray:
        """The output."""
        x = self.as_input(x)
        if not -x.ndim <= self.dim < x.ndim:
            raise self.wrong_input(x.shape, f"with an axis {self.dim}")
        if x.size == 0:
            return np.empty_like(x)
        y = x - x.max(axis=self.dim, keepdims=True)
        np.exp(y, out=y)
        y /= y.sum(axis=self.dim, keepdims=True)
        return y

    def forward(self, x: Any) -> tuple[np.ndarray, Backprop]:
        """The output; gx = y (gy - sum of gy y)."""
        y = self(x)

        def backprop(gy: Any) -> np.ndarray:
            gy = self.as_gradient(gy, y.shape, y.dtype)
            return y * (gy - (gy * y).sum(axis=self.dim, keepdims=True))

        return y, backprop
