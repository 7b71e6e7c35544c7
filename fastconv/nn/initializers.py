"""Initial weights: Kaiming's and Xavier's scales, uniform and normal; the defaults are PyTorch's.

A fan is the number of products in a sum: of an output in the forward pass (in), of an input's gradient (out).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["gain", "kaiming_normal", "kaiming_uniform", "uniform", "xavier_normal", "xavier_uniform"]


def gain(nonlinearity: str = "leaky_relu", a: float = 0.0) -> float:
    """The factor by which weights must grow so that a nonlinearity keeps the variance of what passes through it.

    Parameters
    ----------
    nonlinearity : {"linear", "sigmoid", "tanh", "relu", "leaky_relu"}
        What follows the layer.
    a : float
        The slope below zero, for "leaky_relu".

    Examples
    --------
    >>> import fastconv.nn as nn
    >>> round(nn.initializers.gain("relu"), 4)
    1.4142
    """
    gains = {"linear": 1.0, "sigmoid": 1.0, "tanh": 5 / 3, "relu": math.sqrt(2), "leaky_relu": math.sqrt(2 / (1 + a * a))}
    if nonlinearity not in gains:
        raise ValueError(f"nonlinearity must be one of {', '.join(map(repr, gains))}; got {nonlinearity!r}")
    return gains[nonlinearity]


def uniform(shape: Sequence[int], bound: float, *, rng: Any = None) -> np.ndarray:
    """Numbers between -bound and bound.

    Examples
    --------
    >>> import fastconv.nn as nn
    >>> bool((abs(nn.initializers.uniform((3, 2), 0.5, rng=0)) <= 0.5).all())
    True
    """
    return np.random.default_rng(rng).uniform(-bound, bound, shape)


def kaiming_uniform(shape: Sequence[int], fan: int, *, a: float = 0.0, nonlinearity: str = "leaky_relu", rng: Any = None) -> np.ndarray:
    """Uniform numbers of variance gain^2 / fan: the bound is gain sqrt(3 / fan).

    Parameters
    ----------
    shape : sequence of int
        Of the weights.
    fan : int
        Products in a sum: C/G kh kw to keep the forward pass's variance.
    a, nonlinearity
        As in `gain`; the defaults of PyTorch's layers are a = sqrt(5), a bound of 1 / sqrt(fan).
    rng : int or numpy.random.Generator, optional
        Source of the numbers.

    Examples
    --------
    >>> import fastconv.nn as nn
    >>> nn.initializers.kaiming_uniform((8, 3, 3, 3), 27, rng=0).shape
    (8, 3, 3, 3)

    References
    ----------
    He et al., "Delving deep into rectifiers" (2015), equation 10.
    """
    return uniform(shape, gain(nonlinearity, a) * math.sqrt(3 / fan) if fan else 0.0, rng=rng)


def kaiming_normal(shape: Sequence[int], fan: int, *, a: float = 0.0, nonlinearity: str = "leaky_relu", rng: Any = None) -> np.ndarray:
    """Normal numbers of variance gain^2 / fan; arguments as those of `kaiming_uniform`.

    Examples
    --------
    >>> import fastconv.nn as nn
    >>> nn.initializers.kaiming_normal((8, 3, 3, 3), 27, nonlinearity="relu", rng=0).shape
    (8, 3, 3, 3)
    """
    return np.random.default_rng(rng).normal(0.0, gain(nonlinearity, a) / math.sqrt(fan) if fan else 0.0, shape)


def xavier_uniform(shape: Sequence[int], fan_in: int, fan_out: int, *, scale: float = 1.0, rng: Any = None) -> np.ndarray:
    """Uniform numbers of variance 2 scale^2 / (fan_in + fan_out).

    Examples
    --------
    >>> import fastconv.nn as nn
    >>> nn.initializers.xavier_uniform((2, 4), 4, 2, rng=0).shape
    (2, 4)

    References
    ----------
    Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks" (2010), equation 16.
    """
    return uniform(shape, scale * math.sqrt(6 / (fan_in + fan_out)), rng=rng)


def xavier_normal(shape: Sequence[int], fan_in: int, fan_out: int, *, scale: float = 1.0, rng: Any = None) -> np.ndarray:
    """Normal numbers of variance 2 scale^2 / (fan_in + fan_out).

    Examples
    --------
    >>> import fastconv.nn as nn
    >>> nn.initializers.xavier_normal((2, 4), 4, 2, rng=0).shape
    (2, 4)
    """
    return np.random.default_rng(rng).normal(0.0, scale * math.sqrt(2 / (fan_in + fan_out)), shape)
