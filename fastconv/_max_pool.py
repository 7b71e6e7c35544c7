"""Maxima of windows, their gradients, and unpooling in one to three dimensions.

Each function is made for its three ranks by one factory. Padding never wins a maximum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ._arrays import as_array, check_out
from ._calls import shape_of
from ._pool_calls import max_gradient, pool, pool_with_places, scattered, sliding, taken, windows_of
from ._pool_docs import RANKS, named
from ._windows import Windows

__all__ = ["max_pool1d", "max_pool1d_backward", "max_pool2d", "max_pool2d_backward", "max_pool3d", "max_pool3d_backward", "max_unpool1d",
           "max_unpool1d_backward", "max_unpool2d", "max_unpool2d_backward", "max_unpool3d", "max_unpool3d_backward"]


def _make_max_pool(ndim: int) -> Callable[..., Any]:
    def max_pool(x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
                 return_indices: bool = False, *, flat_indices: bool = False, layout: str = "NCHW", out: np.ndarray | None = None) -> Any:
        geometry = sliding(kernel_size, stride, padding, dilation, ceil_mode, layout)
        if return_indices:
            return pool_with_places(ndim, x, flat_indices, geometry, out)
        return pool("max", ndim, x, (), geometry, out)

    return named(max_pool, "max_pool", ndim, """\
    The largest value of each window.

    y[n, c, o] = max over k of  x[n, c, stride o + dilation k - low]

    Parameters
    ----------
    x : array_like, shape (N, C, {s}) or (C, {s})
        Real numbers.
    {options}
    return_indices : bool
        Return where the maxima are, too.
    {flat}
    {layout}
    {out}

    Returns
    -------
    y : ndarray, shape (N, C, ...)
        Of x's dtype, with floor((n + low + high - dilation (k - 1) - 1) / stride) + 1 points on each axis. NaN where a window holds
        one; minus infinity, or the smallest integer, where a window lies in the padding.
    indices : ndarray of int64, shape of y
        If asked for: the position of the first of the largest in the flattened plane, of NaNs that of the last, as in PyTorch; -1
        where a window lies in the padding.

    {raises}

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> fc.max_pool{n}d(np.ones({8}), 3, stride=2, padding=1).shape
    {4}

    References
    ----------
    Goodfellow, Bengio, Courville, "Deep Learning" (2016), section 9.3.
    """)


def _make_max_pool_backward(ndim: int) -> Callable[..., np.ndarray]:
    def max_pool_backward(gy: Any, x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
                          ceil_mode: bool = False, *, indices: Any = None, flat_indices: bool = False, layout: str = "NCHW") -> np.ndarray:
        return max_gradient(ndim, gy, x, indices, flat_indices, sliding(kernel_size, stride, padding, dilation, ceil_mode, layout))

    return named(max_pool_backward, "max_pool_backward", ndim, """\
    The gradient of `max_pool{n}d` with respect to x: each gy goes to the place of its window's maximum.

    Parameters
    ----------
    {gy}
    x : array_like, shape (N, C, {s}) or (C, {s})
        The pooling's input; where indices are given, only its shape and dtype count.
    {options}
    indices : array_like of int64, shape of gy, optional
        What the pooling returned for `return_indices=True`. Without them the maxima are searched again, which is about as fast.
    {flat}
    {layout}

    Returns
    -------
    ndarray, shape of x

    {raises}

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> fc.max_pool{n}d_backward(np.ones({4}), np.ones({8}), 2).shape
    {8}
    """)


def _make_max_unpool(ndim: int) -> Callable[..., np.ndarray]:
    def max_unpool(x: Any, indices: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, output_size: Any = None, *,
                   flat_indices: bool = False, layout: str = "NCHW", out: np.ndarray | None = None) -> np.ndarray:
        x = as_array("x", x)
        windows = _unpooled(ndim, x.shape, kernel_size, stride, padding, output_size, layout)
        if out is not None:
            check_out(out, windows.input_shape, x.dtype)
        y = scattered(x, indices, windows, flat_indices)
        if out is None:
            return y
        out[...] = y
        return out

    return named(max_unpool, "max_unpool", ndim, """\
    Undo a maximum pooling: zeros, but for each x at the place it came from.

    Parameters
    ----------
    x : array_like, shape (N, C, {s}) or (C, {s})
        Result of a pooling.
    indices : array_like of int64, shape of x
        Its indices. Of values with the same index one is kept, any of them.
    kernel_size, stride, padding
        Of the pooling.
    output_size : sequence of {n} ints, optional
        Spatial size of the result, or its shape; by default (n - 1) stride - low - high + kernel_size on each axis. It may differ from
        that by less than the stride.
    {flat}
    {layout}
    {out}

    {result}

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> y, indices = fc.max_pool{n}d(np.ones({8}), 2, return_indices=True)
    >>> fc.max_unpool{n}d(y, indices, 2).shape
    {8}

    References
    ----------
    Zeiler, Fergus, "Visualizing and Understanding Convolutional Networks" (2014), section 2.1.
    """)


def _unpooled(ndim: int, shape: tuple[int, ...], kernel_size: Any, stride: Any, padding: Any, output_size: Any, layout: str) -> Windows:
    """Windows whose output has the shape of x and whose input that of the unpooling's result."""
    probe = windows_of(ndim, shape, "sliding", 1, None, 0, 1, False, layout)
    lead, inner = (1,) * (3 - ndim), probe.input_size[3 - ndim:]
    # The checks of the pooling's options, on an input that any window fits.
    room = Windows.create(ndim, (1, 1, *(1 << 40 for _ in inner)), kernel_size, stride, padding, 1, False, "NCHW")
    sizes = tuple((n - 1) * s - sum(pads) + k for n, s, pads, k in zip(probe.input_size, room.stride, room.padding, room.kernel_size,
                                                                        strict=True))[3 - ndim:]
    if output_size is not None:
        wanted = shape_of("output_size", output_size)
        if len(wanted) > ndim:
            wanted = wanted[-ndim - 1:-1] if probe.channels_last else wanted[-ndim:]
        close = len(wanted) == ndim and all(abs(a - b) < s for a, b, s in zip(wanted, sizes, room.stride[3 - ndim:], strict=True))
        if not close:
            raise ValueError(f"output_size={output_size!r} must differ by less than the stride from {sizes}")
        sizes = wanted
    if min(sizes) < 1:
        raise ValueError(f"padding={padding!r} leaves no output: its size would be {sizes}")
    zeros = (0, 0, 0)
    return Windows(ndim, probe.batch, probe.channels, lead + sizes, probe.input_size, zeros, (1, 1, 1), (1, 1, 1), ((0, 0),) * 3,
                   probe.layout, probe.single)


def _make_max_unpool_backward(ndim: int) -> Callable[..., np.ndarray]:
    def max_unpool_backward(gy: Any, indices: Any, *, flat_indices: bool = False, layout: str = "NCHW") -> np.ndarray:
        gy, indices = as_array("gy", gy), as_array("indices", indices)
        above, below = (windows_of(ndim, a.shape, "sliding", 1, None, 0, 1, False, layout, name=name)
                        for a, name in ((gy, "gy"), (indices, "indices")))
        if (above.batch, above.channels, above.single) != (below.batch, below.channels, below.single):
            raise ValueError(f"indices of shape {indices.shape} must have the batch and the channels of gy, {gy.shape}")
        windows = Windows(ndim, above.batch, above.channels, above.input_size, below.input_size, (0, 0, 0), (1, 1, 1), (1, 1, 1),
                          ((0, 0),) * 3, above.layout, above.single)
        return taken(gy, indices, windows, flat_indices)

    return named(max_unpool_backward, "max_unpool_backward", ndim, """\
    The gradient of `max_unpool{n}d` with respect to its x: the elements of gy at the indices.

    Parameters
    ----------
    gy : array_like, shape of the unpooling's result
        Gradient with respect to it.
    indices : array_like of int64
        The unpooling's indices.
    {flat}
    {layout}

    Returns
    -------
    ndarray, shape of the indices

    {raises}

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> y, indices = fc.max_pool{n}d(np.ones({8}), 2, return_indices=True)
    >>> fc.max_unpool{n}d_backward(np.ones({8}), indices).shape
    {4}
    """)


max_pool1d, max_pool2d, max_pool3d = map(_make_max_pool, RANKS)
max_pool1d_backward, max_pool2d_backward, max_pool3d_backward = map(_make_max_pool_backward, RANKS)
max_unpool1d, max_unpool2d, max_unpool3d = map(_make_max_unpool, RANKS)
max_unpool1d_backward, max_unpool2d_backward, max_unpool3d_backward = map(_make_max_unpool_backward, RANKS)
