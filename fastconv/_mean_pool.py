"""Averages and norms of windows, and their gradients in one to three dimensions.

Each function is made for its three ranks by one factory. Padding adds nothing to a sum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ._checks import as_int
from ._pool_calls import mean_gradient, norm_gradient, norms, pool, sliding
from ._pool_docs import RANKS, named

__all__ = ["avg_pool1d", "avg_pool1d_backward", "avg_pool2d", "avg_pool2d_backward", "avg_pool3d", "avg_pool3d_backward", "lp_pool1d",
           "lp_pool1d_backward", "lp_pool2d", "lp_pool2d_backward", "lp_pool3d", "lp_pool3d_backward"]


def _averaging(count_include_pad: Any, divisor_override: Any) -> tuple[bool, int | None]:
    if divisor_override is not None:
        divisor_override = as_int("divisor_override", divisor_override, 1)
    return bool(count_include_pad), divisor_override


def _make_avg_pool(ndim: int) -> Callable[..., np.ndarray]:
    def avg_pool(x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
                 count_include_pad: bool = True, divisor_override: int | None = None, *, layout: str = "NCHW",
                 out: np.ndarray | None = None) -> np.ndarray:
        geometry = sliding(kernel_size, stride, padding, dilation, ceil_mode, layout)
        return pool("mean", ndim, x, _averaging(count_include_pad, divisor_override), geometry, out)

    return named(avg_pool, "avg_pool", ndim, """\
    The average of each window.

    y[n, c, o] = 1 / count[o] * sum over k of  x[n, c, stride o + dilation k - low]

    Parameters
    ----------
    x : array_like, shape (N, C, {s}) or (C, {s})
        Numbers; float16 computes in float32, integers in float64.
    {options}
    count_include_pad : bool
        Count the points of the padding, though never those behind it that `ceil_mode` reaches; ONNX's default is False. An
        average of no points is 0.
    divisor_override : int, optional
        Divide by this number instead.
    {layout}
    {out}

    Returns
    -------
    ndarray, shape (N, C, ...)
        With floor((n + low + high - dilation (k - 1) - 1) / stride) + 1 points on each axis.

    {raises}

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> fc.avg_pool{n}d(np.ones({8}), 2).shape
    {4}

    References
    ----------
    LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document recognition" (1998), section II.B.
    """)


def _make_avg_pool_backward(ndim: int) -> Callable[..., np.ndarray]:
    def avg_pool_backward(gy: Any, input_shape: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
                          ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: int | None = None, *,
                          layout: str = "NCHW") -> np.ndarray:
        geometry = sliding(kernel_size, stride, padding, dilation, ceil_mode, layout)
        return mean_gradient(ndim, gy, input_shape, _averaging(count_include_pad, divisor_override), geometry)

    return named(avg_pool_backward, "avg_pool_backward", ndim, """\
    The gradient of `avg_pool{n}d` with respect to x: its adjoint.

    Parameters
    ----------
    {gy}
    {shape}
    {options}
    count_include_pad, divisor_override
        Of the pooling.
    {layout}

    Returns
    -------
    ndarray of input_shape

    {raises}

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> fc.avg_pool{n}d_backward(np.ones({4}), {8}, 2).shape
    {8}
    """)


# -- norms ---------------------------------------------------------------------------------------------------------------


def _make_lp_pool(ndim: int) -> Callable[..., np.ndarray]:
    def lp_pool(x: Any, norm_type: float, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
                ceil_mode: bool = False, *, convention: str = "torch", layout: str = "NCHW", out: np.ndarray | None = None) -> np.ndarray:
        return norms(ndim, x, norm_type, convention, sliding(kernel_size, stride, padding, dilation, ceil_mode, layout), out)

    return named(lp_pool, "lp_pool", ndim, """\
    The p-norm of each window.

    y[n, c, o] = (sum over k of  x[n, c, stride o + dilation k - low] ** p) ** (1 / p)

    Parameters
    ----------
    x : array_like, shape (N, C, {s}) or (C, {s})
        Real numbers.
    norm_type : float
        p > 0.
    {options}
    convention : {"torch", "onnx"}
        PyTorch adds powers with their signs, so that a negative sum of odd powers gives NaN, and scales the sum of a window that
        `ceil_mode` cuts off up to a whole window's. ONNX adds powers of magnitudes, as they are.
    {layout}
    {out}

    {result}

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> fc.lp_pool{n}d(np.ones({8}), 2, 2).shape
    {4}

    References
    ----------
    Sermanet, Chintala, LeCun, "Convolutional neural networks applied to house numbers digit classification" (2012), section 2.2.
    """)


def _make_lp_pool_backward(ndim: int) -> Callable[..., np.ndarray]:
    def lp_pool_backward(gy: Any, x: Any, norm_type: float, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
                         ceil_mode: bool = False, *, convention: str = "torch", layout: str = "NCHW") -> np.ndarray:
        geometry = sliding(kernel_size, stride, padding, dilation, ceil_mode, layout)
        return norm_gradient(ndim, gy, x, None, norm_type, convention, geometry)

    return named(lp_pool_backward, "lp_pool_backward", ndim, """\
    The gradient of `lp_pool{n}d` with respect to x: gx = x ** (p - 1) * sum over the windows of gy y ** (1 - p), 0 where y is.

    Parameters
    ----------
    {gy}
    {pooled}
    norm_type : float
        p > 0.
    {options}
    convention : {"torch", "onnx"}
        Of the pooling.
    {layout}

    Returns
    -------
    ndarray, shape of x

    {raises}

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> fc.lp_pool{n}d_backward(np.ones({4}), np.ones({8}), 2, 2).shape
    {8}
    """)


avg_pool1d, avg_pool2d, avg_pool3d = map(_make_avg_pool, RANKS)
avg_pool1d_backward, avg_pool2d_backward, avg_pool3d_backward = map(_make_avg_pool_backward, RANKS)
lp_pool1d, lp_pool2d, lp_pool3d = map(_make_lp_pool, RANKS)
lp_pool1d_backward, lp_pool2d_backward, lp_pool3d_backward = map(_make_lp_pool_backward, RANKS)
