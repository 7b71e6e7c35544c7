"""Locally connected layers: convolutions whose weights are not shared, each output point having its own."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ._arrays import as_array, as_operand, check_integer_range, common_dtype, is_plain
from ._calls import batched, bias_gradient, check_shape, make_options
from .problem import Options, Problem

__all__ = ["locally_connected1d", "locally_connected1d_backward", "locally_connected2d", "locally_connected2d_backward"]

NAMES = {"f": "float32", "d": "float64"}  # `dtype.name` takes a microsecond


class _Layer:
    """The convolution that has a layer's shapes, and the kernels of its passes."""

    def __init__(self, problem: Problem):
        self.problem = problem
        self.output_shape = problem.public_shape(problem.output_shape)

    @functools.cache  # noqa: B019 (as many layers as `_layer` keeps)
    def kernel(self, pass_name: str) -> Callable[..., int]:
        """The kernel of a pass."""
        from .backends._local import local_kernel

        return local_kernel(replace(self.problem, pass_name=pass_name))


@functools.lru_cache(maxsize=1024)
def _layer(ndim: int, input_shape: tuple[int, ...], weight_shape: tuple[int, ...], dtype: str, options: Options) -> _Layer:
    channels_last = str(options.layout).endswith("C")
    if len(weight_shape) != 2 * ndim + 2:
        raise ValueError(f"w must have {2 * ndim + 2} dimensions, {_weight_letters(ndim, channels_last)}, got shape {weight_shape}")
    shared = weight_shape[ndim:] if channels_last else weight_shape[:2 + ndim]
    out = weight_shape[:ndim] if channels_last else weight_shape[2 + ndim:]
    problem = Problem.create("forward", ndim, input_shape, shared, dtype, options)
    expected = problem.output_size[3 - ndim:]
    if out != expected:
        raise ValueError(f"w of shape {weight_shape} is for outputs of size {out}, but x of shape {input_shape} and these options give "
                         f"{expected}; w must be {_weight_letters(ndim, channels_last)}")
    if np.dtype(dtype).kind == "c":
        raise TypeError(f"locally connected layers take real numbers, got {dtype}")
    return _Layer(problem)


def _weight_letters(ndim: int, channels_last: bool) -> str:
    out, kernel = (("Wo", "kw") if ndim == 1 else ("Ho, Wo", "kh, kw"))
    return f"({out}, {kernel}, C/G, O)" if channels_last else f"(O, C/G, {kernel}, {out})"


def _check_bias(bias: Any, made: _Layer, dtype: np.dtype) -> np.ndarray:
    """The bias as it is added to the output: one value a channel, or one an output point."""
    p = made.problem
    bias = as_array("bias", bias)
    if bias.dtype is dtype and bias.shape == (p.out_channels,):
        return bias if p.channels_last else bias.reshape(-1, *(1,) * p.ndim)
    point = made.output_shape[1:]
    if bias.shape not in ((p.out_channels,), point):
        raise ValueError(f"bias must have shape ({p.out_channels},), one value per output channel, or {point}, one per output; "
                         f"got {bias.shape}")
    if not np.can_cast(bias.dtype, dtype, "same_kind"):
        raise TypeError(f"bias of type {bias.dtype} cannot be cast to {dtype}")
    return bias if bias.ndim > 1 or p.channels_last else bias.reshape(-1, *(1,) * p.ndim)


def _known(ndim: int, x: Any, w: Any, options: Options) -> _Layer | None:
    """The layer of batched operands that kernels take as they stand; else None."""
    if is_plain(x) and is_plain(w) and x.dtype is w.dtype and x.ndim == ndim + 2 and x.size and w.size:
        return _layer(ndim, x.shape, w.shape, NAMES[x.dtype.char], options)
    return None


def _forward(ndim: int, x: Any, w: Any, bias: Any, options: Options) -> np.ndarray:
    known = _known(ndim, x, w, options)
    if known is not None:
        y = np.empty(known.output_shape, x.dtype)
        y[...] = 0 if bias is None else _check_bias(bias, known, x.dtype)
        if y.size:
            known.kernel("forward")(x, w, y, y)
        return y
    x, w = as_array("x", x), as_array("w", w)
    x, single = batched("x", x, ndim)
    computed, result = common_dtype(x=x, w=w)
    made = _layer(ndim, x.shape, w.shape, computed.name, options)
    added = None if bias is None else _check_bias(bias, made, computed)
    if computed.kind == "i":
        check_integer_range(computed, made.problem.taps, added, x=x, w=w)
    y = np.empty(made.output_shape, computed)
    y[...] = 0 if added is None else added
    if y.size and x.size and w.size:
        target = y.reshape(-1)
        made.kernel("forward")(as_operand(x, computed, (x.size,)), as_operand(w, computed, (w.size,)), target, target)
    return (y[0] if single else y).astype(result, copy=False)


def _backward(ndim: int, gy: Any, x: Any, w: Any, bias: bool, options: Options,
              ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    known = _known(ndim, x, w, options)
    if known is not None and is_plain(gy) and gy.dtype is x.dtype and gy.shape == known.output_shape and gy.size:
        gx, gw = np.empty(x.shape, x.dtype), np.empty(w.shape, x.dtype)
        known.kernel("grad_input")(gy, w, w, gx)
        known.kernel("grad_weight")(x, gy, gy, gw)
        return gx, gw, bias_gradient(gy, ndim, str(options.layout), x.dtype) if bias else None
    gy, x, w = as_array("gy", gy), as_array("x", x), as_array("w", w)
    x, single = batched("x", x, ndim)
    computed, result = common_dtype(gy=gy, x=x, w=w)
    made = _layer(ndim, x.shape, w.shape, computed.name, options)
    gy = gy[np.newaxis] if single else gy
    check_shape("gy", gy.shape[1:] if single else gy.shape, made.output_shape[1:] if single else made.output_shape)
    if computed.kind == "i":
        group_out, kernel = made.problem.group_out, math.prod(made.problem.kernel_size)
        check_integer_range(computed, group_out * kernel, None, gy=gy, w=w)
        check_integer_range(computed, x.shape[0], None, gy=gy, x=x)
    flat = [as_operand(array, computed, (array.size,)) for array in (gy, x, w)]
    gx, gw = np.empty(x.shape, computed), np.empty(w.shape, computed)
    if gy.size and x.size and w.size:
        made.kernel("grad_input")(flat[0], flat[2], flat[2], gx.reshape(-1))
        made.kernel("grad_weight")(flat[1], flat[0], flat[0], gw.reshape(-1))
    else:
        gx.fill(0)
        gw.fill(0)
    gb = bias_gradient(flat[0].reshape(gy.shape), ndim, str(options.layout), computed).astype(result, copy=False) if bias else None
    return (gx[0] if single else gx).astype(result, copy=False), gw.astype(result, copy=False), gb


def _options(stride: Any, padding: Any, dilation: Any, groups: Any, layout: Any) -> Options:
    return make_options(stride, padding, dilation, groups, layout=layout)


def locally_connected1d(x: Any, w: Any, bias: Any = None, *, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1,
                        layout: str = "NCHW") -> np.ndarray:
    """Apply weights that are not shared along the axis: `locally_connected2d` with one axis.

    y[n, o, p] = b[o] + sum over c, k of  w[o, c, k, p] x[n, c, stride p + dilation k - low]

    Parameters
    ----------
    x : array_like, shape (N, C, W) or (C, W)
        Input.
    w : array_like, shape (O, C/G, kw, Wo), or (Wo, kw, C/G, O) for layout "NHWC"
        Weights.
    bias : array_like, shape (O,) or (O, Wo), optional
        Added to the output.
    stride, padding, dilation, groups, layout
        As in `conv1d`; beyond the border there are zeros.

    Returns
    -------
    ndarray, shape (N, O, Wo)

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> fc.locally_connected1d(np.ones((1, 1, 4)), np.arange(6.0).reshape(1, 1, 2, 3))
    array([[[3., 5., 7.]]])
    """
    return _forward(1, x, w, bias, _options(stride, padding, dilation, groups, layout))


def locally_connected2d(x: Any, w: Any, bias: Any = None, *, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1,
                        layout: str = "NCHW") -> np.ndarray:
    """Apply weights that are not shared: a convolution whose each output point has a kernel of its own.

    y[n, o, p] = b[o] + sum over c, k of  w[o, c, k, p] x[n, c, stride p + dilation k - low]

    Parameters
    ----------
    x : array_like, shape (N, C, H, W) or (C, H, W); (N, H, W, C) for layout "NHWC"
        Input, of real numbers; float16 computes in float32.
    w : array_like, shape (O, C/G, kh, kw, Ho, Wo), or (Ho, Wo, kh, kw, C/G, O) for layout "NHWC"
        Weights; Ho, Wo is the size of the output.
    bias : array_like, shape (O,) or that of a sample's output, optional
        Added to the output: a value a channel, or one a point.
    stride, padding, dilation, groups, layout
        As in `conv2d`; beyond the border there are zeros.

    Returns
    -------
    ndarray, shape (N, O, Ho, Wo), or (N, Ho, Wo, O) for layout "NHWC"

    Raises
    ------
    ValueError, TypeError
        For wrong arguments, and weights for an output of another size.

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> x, shared = np.arange(32.0).reshape(1, 2, 4, 4), np.arange(54.0).reshape(3, 2, 3, 3)
    >>> w = np.repeat(shared, 4, axis=-1).reshape(3, 2, 3, 3, 2, 2)
    >>> np.array_equal(fc.locally_connected2d(x, w), fc.conv2d(x, shared))
    True

    References
    ----------
    Goodfellow, Bengio, Courville, "Deep Learning" (2016), section 9.5, unshared convolution, equation 9.9.
    """
    return _forward(2, x, w, bias, _options(stride, padding, dilation, groups, layout))


def locally_connected1d_backward(gy: Any, x: Any, w: Any, *, bias: bool = True, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
                                 groups: int = 1, layout: str = "NCHW") -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """All gradients of `locally_connected1d`, given that of its output.

    Parameters
    ----------
    gy : array_like, shape (N, O, Wo)
        Gradient of the output.
    x, w : array_like
        The operands of the forward call.
    bias : bool
        Whether to compute the gradient of a bias of one value a channel; that of one a point is gy's sum over the batch.
    stride, padding, dilation, groups, layout
        Those of the forward call.

    Returns
    -------
    gx, gw, gb : ndarray, ndarray, ndarray or None

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> gx, gw, gb = fc.locally_connected1d_backward(np.ones((1, 1, 3)), np.ones((1, 1, 4)), np.arange(6.0).reshape(1, 1, 2, 3))
    >>> gx, gw.shape, gb
    (array([[[0., 4., 6., 5.]]]), (1, 1, 2, 3), array([3.]))
    """
    return _backward(1, gy, x, w, bias, _options(stride, padding, dilation, groups, layout))


def locally_connected2d_backward(gy: Any, x: Any, w: Any, *, bias: bool = True, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
                                 groups: int = 1, layout: str = "NCHW") -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """All gradients of `locally_connected2d`, given that of its output.

    Parameters
    ----------
    gy : array_like, shape (N, O, Ho, Wo), or (N, Ho, Wo, O) for layout "NHWC"
        Gradient of the output.
    x, w : array_like
        The operands of the forward call.
    bias : bool
        Whether to compute the gradient of a bias of one value a channel; that of one a point is gy's sum over the batch.
    stride, padding, dilation, groups, layout
        Those of the forward call.

    Returns
    -------
    gx, gw, gb : ndarray, ndarray, ndarray or None

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> gx, gw, gb = fc.locally_connected2d_backward(np.ones((1, 3, 2, 2)), np.ones((1, 2, 4, 4)), np.ones((3, 2, 3, 3, 2, 2)))
    >>> gx.shape, gw.shape, gb
    ((1, 2, 4, 4), (3, 2, 3, 3, 2, 2), array([4., 4., 4.]))
    """
    return _backward(2, gy, x, w, bias, _options(stride, padding, dilation, groups, layout))
