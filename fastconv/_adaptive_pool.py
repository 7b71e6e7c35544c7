"""Poolings to a given number of points, down to one, and their gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ._arrays import as_array
from ._calls import shape_of
from ._pool_calls import adaptive, max_gradient, mean_gradient, pool, pool_with_places, windows_of
from ._pool_docs import RANKS, named

__all__ = ["adaptive_avg_pool1d", "adaptive_avg_pool1d_backward", "adaptive_avg_pool2d", "adaptive_avg_pool2d_backward",
           "adaptive_avg_pool3d", "adaptive_avg_pool3d_backward", "adaptive_max_pool1d", "adaptive_max_pool1d_backward",
           "adaptive_max_pool2d", "adaptive_max_pool2d_backward", "adaptive_max_pool3d", "adaptive_max_pool3d_backward",
           "global_avg_pool", "global_avg_pool_backward", "global_max_pool", "global_max_pool_backward"]


def _make_adaptive_avg_pool(ndim: int) -> Callable[..., np.ndarray]:
    def adaptive_avg_pool(x: Any, output_size: Any, *, layout: str = "NCHW", out: np.ndarray | None = None) -> np.ndarray:
        return pool("mean", ndim, x, (False, None), adaptive(output_size, layout), out)

    return named(adaptive_avg_pool, "adaptive_avg_pool", ndim, """\
    Averages of windows that share x out among a number of outputs: of the points from floor(o n / outputs) to ceil((o + 1) n / outputs).

    Parameters
    ----------
    x : array_like, shape (N, C, {s}) or (C, {s})
        Numbers.
    output_size : int or sequence of {n} ints or None
        Points of the result on each axis; None keeps an axis.
    {layout}
    {out}

    {result}

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> fc.adaptive_avg_pool{n}d(np.ones({8}), 3).shape
    {3}
    """)


def _make_adaptive_avg_pool_backward(ndim: int) -> Callable[..., np.ndarray]:
    def adaptive_avg_pool_backward(gy: Any, input_shape: Any, *, layout: str = "NCHW") -> np.ndarray:
        gy = as_array("gy", gy)
        return mean_gradient(ndim, gy, input_shape, (False, None), _adaptive_to(ndim, gy, layout))

    return named(adaptive_avg_pool_backward, "adaptive_avg_pool_backward", ndim, """\
    The gradient of `adaptive_avg_pool{n}d` with respect to x: its adjoint.

    Parameters
    ----------
    {gy}
    {shape}
    {layout}

    Returns
    -------
    ndarray of input_shape

    {raises}

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> fc.adaptive_avg_pool{n}d_backward(np.ones({3}), {8}).shape
    {8}
    """)


def _adaptive_to(ndim: int, gy: np.ndarray, layout: Any) -> tuple[Any, ...]:
    """The geometry of an adaptive pooling with a result of gy's shape."""
    size = windows_of(ndim, gy.shape, "sliding", 1, None, 0, 1, False, layout, name="gy").input_size
    return adaptive(size[3 - ndim:], layout)


def _make_adaptive_max_pool(ndim: int) -> Callable[..., Any]:
    def adaptive_max_pool(x: Any, output_size: Any, return_indices: bool = False, *, flat_indices: bool = False, layout: str = "NCHW",
                          out: np.ndarray | None = None) -> Any:
        geometry = adaptive(output_size, layout)
        return pool_with_places(ndim, x, flat_indices, geometry, out) if return_indices else pool("max", ndim, x, (), geometry, out)

    return named(adaptive_max_pool, "adaptive_max_pool", ndim, """\
    Maxima of windows that share x out among a number of outputs: of the points from floor(o n / outputs) to ceil((o + 1) n / outputs).

    Parameters
    ----------
    x : array_like, shape (N, C, {s}) or (C, {s})
        Real numbers.
    output_size : int or sequence of {n} ints or None
        Points of the result on each axis; None keeps an axis.
    return_indices : bool
        Return where the maxima are, too, as `max_pool{n}d` does.
    {flat}
    {layout}
    {out}

    Returns
    -------
    y : ndarray, shape (N, C, ...)
    indices : ndarray of int64, shape of y
        If asked for.

    {raises}

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> fc.adaptive_max_pool{n}d(np.ones({8}), 3).shape
    {3}
    """)


def _make_adaptive_max_pool_backward(ndim: int) -> Callable[..., np.ndarray]:
    def adaptive_max_pool_backward(gy: Any, x: Any, *, indices: Any = None, flat_indices: bool = False,
                                   layout: str = "NCHW") -> np.ndarray:
        gy = as_array("gy", gy)
        return max_gradient(ndim, gy, x, indices, flat_indices, _adaptive_to(ndim, gy, layout))

    return named(adaptive_max_pool_backward, "adaptive_max_pool_backward", ndim, """\
    The gradient of `adaptive_max_pool{n}d` with respect to x.

    Parameters
    ----------
    {gy}
    {pooled}
    indices : array_like of int64, shape of gy, optional
        What the pooling returned; without them the maxima are searched again.
    {flat}
    {layout}

    Returns
    -------
    ndarray, shape of x

    {raises}

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> fc.adaptive_max_pool{n}d_backward(np.ones({3}), np.ones({8})).shape
    {8}
    """)


adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d = map(_make_adaptive_avg_pool, RANKS)
adaptive_avg_pool1d_backward, adaptive_avg_pool2d_backward, adaptive_avg_pool3d_backward = map(_make_adaptive_avg_pool_backward, RANKS)
adaptive_max_pool1d, adaptive_max_pool2d, adaptive_max_pool3d = map(_make_adaptive_max_pool, RANKS)
adaptive_max_pool1d_backward, adaptive_max_pool2d_backward, adaptive_max_pool3d_backward = map(_make_adaptive_max_pool_backward, RANKS)


# -- global --------------------------------------------------------------------------------------------------------------


def _spatial_rank(name: str, shape: tuple[int, ...]) -> int:
    if not 3 <= len(shape) <= 5:
        raise ValueError(f"{name} must have 3, 4 or 5 dimensions, a batch and channels among them, got shape {tuple(shape)}")
    return len(shape) - 2


def global_avg_pool(x: Any, *, layout: str = "NCHW", out: np.ndarray | None = None) -> np.ndarray:
    """The average of each channel of each image; the spatial axes stay, as 1.

    Parameters
    ----------
    x : array_like, shape (N, C, W), (N, C, H, W) or (N, C, D, H, W)
        Numbers.
    layout : {"NCHW", "NHWC"}
        Channels first or last.
    out : ndarray, optional
        Where to write the result.

    Returns
    -------
    ndarray, shape (N, C, 1, ...), or (N, 1, ..., C)

    Raises
    ------
    ValueError, TypeError
        For wrong arguments, naming them.

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> fc.global_avg_pool(np.ones((2, 3, 7, 7))).shape
    (2, 3, 1, 1)

    References
    ----------
    Lin, Chen, Yan, "Network in network" (2014), section 3.2.
    """
    if type(x) is not np.ndarray:
        x = as_array("x", x)
    return pool("mean", _spatial_rank("x", x.shape), x, (False, None), ("adaptive", 1, layout), out)


def global_avg_pool_backward(gy: Any, input_shape: Any, *, layout: str = "NCHW") -> np.ndarray:
    """The gradient of `global_avg_pool` with respect to x: gy over the number of points, at each of them.

    Parameters
    ----------
    gy : array_like, shape of the pooling's result
        Gradient with respect to it.
    input_shape : sequence of ints
        Shape of x.
    layout : {"NCHW", "NHWC"}
        Channels first or last.

    Returns
    -------
    ndarray of input_shape

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> fc.global_avg_pool_backward(np.ones((2, 3, 1, 1)), (2, 3, 7, 7)).shape
    (2, 3, 7, 7)
    """
    shape = shape_of("input_shape", input_shape)
    return mean_gradient(_spatial_rank("input_shape", shape), gy, shape, (False, None), ("adaptive", 1, layout))


def global_max_pool(x: Any, *, layout: str = "NCHW", out: np.ndarray | None = None) -> np.ndarray:
    """The largest value of each channel of each image; the spatial axes stay, as 1.

    Parameters
    ----------
    x : array_like, shape (N, C, W), (N, C, H, W) or (N, C, D, H, W)
        Real numbers.
    layout : {"NCHW", "NHWC"}
        Channels first or last.
    out : ndarray, optional
        Where to write the result.

    Returns
    -------
    ndarray, shape (N, C, 1, ...), or (N, 1, ..., C)

    Raises
    ------
    ValueError, TypeError
        For wrong arguments, naming them.

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> fc.global_max_pool(np.ones((2, 3, 7, 7))).shape
    (2, 3, 1, 1)
    """
    if type(x) is not np.ndarray:
        x = as_array("x", x)
    return pool("max", _spatial_rank("x", x.shape), x, (), ("adaptive", 1, layout), out)


def global_max_pool_backward(gy: Any, x: Any, *, layout: str = "NCHW") -> np.ndarray:
    """The gradient of `global_max_pool` with respect to x: gy at the first of the largest.

    Parameters
    ----------
    gy : array_like, shape of the pooling's result
        Gradient with respect to it.
    x : array_like, shape (N, C, ...), or (N, ..., C)
        The pooling's input.
    layout : {"NCHW", "NHWC"}
        Channels first or last.

    Returns
    -------
    ndarray, shape of x

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> fc.global_max_pool_backward(np.ones((2, 3, 1, 1)), np.ones((2, 3, 7, 7))).shape
    (2, 3, 7, 7)
    """
    x = as_array("x", x)
    return max_gradient(_spatial_rank("x", x.shape), gy, x, None, False, ("adaptive", 1, layout))
