"""Layers without arithmetic of their own: flattening, and dropping some of the input."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ._layer import Backprop, Layer

__all__ = ["Dropout", "Flatten"]


class Flatten(Layer):
    """Axes from `start_dim` to `end_dim` as one, in their order in memory.

    Parameters
    ----------
    start_dim, end_dim : int
        First and last of the axes.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> nn.Flatten()(np.ones((2, 3, 4, 5))).shape
    (2, 60)
    """

    def __init__(self, start_dim: int = 1, end_dim: int = -1):
        super().__init__()
        self.start_dim, self.end_dim = start_dim, end_dim

    def arguments(self) -> str:
        """As torch's."""
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"

    def __call__(self, x: Any) -> np.ndarray:
        """A copy of the input in another shape."""
        x = self.as_input(x)
        start, end = self.start_dim % max(1, x.ndim), self.end_dim % max(1, x.ndim)
        if not (-x.ndim <= self.start_dim < x.ndim and -x.ndim <= self.end_dim < x.ndim and start <= end):
            raise self.wrong_input(x.shape, f"with axes {self.start_dim} to {self.end_dim}")
        return np.array(x, order="C").reshape(*x.shape[:start], math.prod(x.shape[start:end + 1]), *x.shape[end + 1:])

    def forward(self, x: Any) -> tuple[np.ndarray, Backprop]:
        """The input in another shape; its gradient in the input's."""
        x = self.as_input(x)
        y, before, dtype = self(x), x.shape, x.dtype
        shape = y.shape
        return y, lambda gy: np.array(self.as_gradient(gy, shape, dtype), order="C").reshape(before)


class Dropout(Layer):
    """Training: each element is zero with probability p, else divided by 1 - p. Inference: the input as it is.

    Parameters
    ----------
    p : float
        Probability of an element to be dropped, in [0, 1].
    rng : int or numpy.random.Generator, optional
        What chooses them.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> y, backprop = nn.Dropout(0.5, rng=0).forward(np.ones(6))
    >>> bool((backprop(np.ones(6)) == y).all())
    True

    References
    ----------
    Srivastava et al., "Dropout" (2014), section 4.
    """

    def __init__(self, p: float = 0.5, *, rng: Any = None):
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"p must lie in [0, 1], got {p!r}")
        self.p, self.rng = p, np.random.default_rng(rng)
        self._before = self.rng.bit_generator.state

    def arguments(self) -> str:
        """As torch's."""
        return f"p={self.p}"

    def __call__(self, x: Any) -> np.ndarray:
        """A copy of the input."""
        return np.array(self.as_input(x), order="C")

    def forward(self, x: Any) -> tuple[np.ndarray, Backprop]:
        """The input with elements dropped; so is its gradient."""
        x = self.as_input(x)
        self._before = self.rng.bit_generator.state
        kept = self.rng.random(x.shape, np.float32) >= self.p
        mask = kept * x.dtype.type(0 if self.p == 1 else 1 / (1 - self.p))
        return x * mask, lambda gy: self.as_gradient(gy, mask.shape, mask.dtype) * mask

    def undo(self) -> None:
        """Let the next forward pass draw what the last one drew."""
        self.rng.bit_generator.state = self._before
