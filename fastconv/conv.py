"""The convolutions, their transposes and gradients, in one to three dimensions.

Each function is made for its three ranks by one factory; what they do with their arguments stands in `_calls`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ._arrays import as_array, batched_shape
from ._calls import bias_gradient, check_shape, frozen, make_options, prepare_on_device, remembered, run, shape_of
from ._device_calls import device_choice
from ._device_operands import conjugated, dtype_of, leading_part
from ._planned import Convolution
from ._planned_on_device import ConvolutionOnDevice
from .problem import Problem, computing_dtype

__all__ = ["Convolution", "conv1d", "conv1d_backward", "conv1d_grad_input", "conv1d_grad_weight", "conv2d", "conv2d_backward",
           "conv2d_grad_input", "conv2d_grad_weight", "conv3d", "conv3d_backward", "conv3d_grad_input", "conv3d_grad_weight",
           "conv_transpose1d", "conv_transpose1d_backward", "conv_transpose2d", "conv_transpose2d_backward", "conv_transpose3d",
           "conv_transpose3d_backward", "plan_conv1d", "plan_conv2d", "plan_conv3d"]


def _named(function: Callable, name: str, ndim: int, doc: str) -> Callable:
    """Give a function made by a factory its name and its docstring, in which {n} is the rank and {s} the spatial axes."""
    function.__name__ = function.__qualname__ = name
    sizes = {1: "W", 2: "H, W", 3: "D, H, W"}[ndim]
    values = {"n": ndim, "s": sizes, "k": ", ".join("k" + letter.strip().lower() for letter in sizes.split(",")),
              "x": "(1, 2" + ", 5" * ndim + ")", "w": "(3, 2" + ", 3" * ndim + ")", "y": "(1, 3" + ", 5" * ndim + ")",
              "v": "(1, 3" + ", 3" * ndim + ")", "t": "(3, 2" + ", 2" * ndim + ")", "u": "(1, 2" + ", 10" * ndim + ")"}
    for key, value in {"options": _OPTIONS_DOC, **values}.items():
        doc = doc.replace("{" + key + "}", str(value))
    function.__doc__ = doc.lstrip()
    return function


_OPTIONS_DOC = """stride, dilation : int or sequence of {n} ints
        Step of the kernel over the input, and distance between its taps.
    padding : int, sequence of {n} ints or of {n} (low, high) pairs, or name
        "valid", "same" (ceil(n / stride) outputs, the odd pad at the end), "same_lower" (at the start), "causal" (1-D).
    groups : int
        Input and output channels are split into this many independent groups.
    padding_mode : {"zeros", "reflect", "symmetric", "replicate", "circular"}
        What lies beyond the border. Zeros take part in the sum, as if they were stored.
    layout : {"NCHW", "NHWC"}
        Channels first, with weights (O, C/G, {k}), or last, with weights ({k}, C/G, O).
    backend : str, optional
        A name of `backends()`; by default the dispatcher's choice.
    accuracy : {"default", "strict", "tf32", "float16"}, optional
        "strict" keeps to methods with a plain sum's rounding error. "tf32" and "float16" let a GPU's tensor cores round the factors of
        float32 products to 10 bits after the point (float16: beyond 65504 to infinity), and sum in float32; elsewhere they mean
        "default"."""


def _make_conv(ndim: int) -> Callable[..., np.ndarray]:
    def conv(x: Any, w: Any, bias: Any = None, *, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1,
             padding_mode: str = "zeros", layout: str = "NCHW", activation: str | None = None, backend: str | None = None,
             accuracy: str | None = None, out: np.ndarray | None = None) -> np.ndarray:
        settings = (stride, padding, dilation, groups, padding_mode, layout, activation, accuracy)
        ready = None if out is not None else remembered("forward", ndim, x, w, bias, settings, backend, None)
        return run("forward", ndim, x, w, bias, settings, backend, out) if ready is None else ready(x, w, bias)

    return _named(conv, f"conv{ndim}d", ndim, """\
    Convolve (cross-correlate) `x` with `w`.

    y[n, o, p] = b[o] + sum over c, k of  w[o, c, k] x[n, c, stride p + dilation k - low]

    Parameters
    ----------
    x : array_like, shape (N, C, {s}) or (C, {s})
        Input; NumPy's number types up to 64 bits. float16 computes in float32; 8-bit integers give int32, wider ones int64.
    w : array_like, shape (O, C/G, {k})
        Weights.
    bias : array_like, shape (O,), optional
        Added to each output channel.
    {options}
    activation : {"relu", "relu6", "leaky_relu", "sigmoid", "tanh", "silu", "gelu"}, optional
        Applied to the result; leaky_relu's slope is 0.01, gelu is the exact one.
    out : ndarray, optional
        Where to write the result.

    Returns
    -------
    ndarray, shape (N, O, ...)
        With floor((n + low + high - dilation (k - 1) - 1) / stride) + 1 points on each spatial axis.

    Raises
    ------
    ValueError, TypeError
        For wrong arguments; `out` is then untouched. `BackendError` if `backend` cannot compute this.

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> fc.conv{n}d(np.ones({x}), np.ones({w}), padding=1).shape
    {y}

    References
    ----------
    Goodfellow, Bengio, Courville, "Deep Learning" (2016), section 9.1 and equation 9.6.
    """)


def _make_transpose(ndim: int) -> Callable[..., np.ndarray]:
    def conv_transpose(x: Any, w: Any, bias: Any = None, *, stride: Any = 1, padding: Any = 0, output_padding: Any = 0,
                       dilation: Any = 1, groups: int = 1, padding_mode: str = "zeros", layout: str = "NCHW",
                       activation: str | None = None, backend: str | None = None, accuracy: str | None = None,
                       out: np.ndarray | None = None) -> np.ndarray:
        settings = (stride, padding, dilation, groups, padding_mode, layout, activation, accuracy)
        extra = frozen(output_padding, "output_padding")
        ready = None if out is not None else remembered("transposed", ndim, x, w, bias, settings, backend, extra)
        if ready is not None:
            return ready(x, w, bias)
        return run("transposed", ndim, x, conjugated(as_array("w", w)), bias, settings, backend, out, extra)

    return _named(conv_transpose, f"conv_transpose{ndim}d", ndim, """\
    Transpose a convolution: each input point adds its multiple of the kernel to the output.

    The adjoint of `conv{n}d` with the same options: y[n, c, stride q + dilation k - low] += w[o, c, k] x[n, o, q].

    Parameters
    ----------
    x : array_like, shape (N, O, {s}) or (O, {s})
        Input.
    w : array_like, shape (O, C/G, {k})
        Weights, as those of the convolution this is the transpose of.
    bias : array_like, shape (C,), optional
        Added to each output channel.
    output_padding : int or sequence of {n} ints
        Further points at the end of each axis, fewer than the stride or the dilation.
    {options}
    activation, out
        As in `conv{n}d`.

    Returns
    -------
    ndarray, shape (N, C, ...)
        With (n - 1) stride - low - high + dilation (k - 1) + 1 + output_padding points on each axis; n stride for "same".

    Raises
    ------
    ValueError, TypeError
        For wrong arguments.

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> fc.conv_transpose{n}d(np.ones({y}), np.ones({t}), stride=2).shape
    {u}

    References
    ----------
    Dumoulin and Visin, "A guide to convolution arithmetic for deep learning" (2016), section 4.
    """)


def _make_grad_input(ndim: int) -> Callable[..., np.ndarray]:
    def conv_grad_input(gy: Any, w: Any, input_shape: Sequence[int], *, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
                        groups: int = 1, padding_mode: str = "zeros", layout: str = "NCHW", backend: str | None = None,
                        accuracy: str | None = None, out: np.ndarray | None = None) -> np.ndarray:
        settings = (stride, padding, dilation, groups, padding_mode, layout, None, accuracy)
        shape = shape_of("input_shape", input_shape)
        shape = (1, *shape) if len(shape) == ndim + 1 else shape
        ready = None if out is not None else remembered("grad_input", ndim, gy, w, None, settings, backend, shape)
        return run("grad_input", ndim, gy, w, None, settings, backend, out, shape) if ready is None else ready(gy, w, None)

    return _named(conv_grad_input, f"conv{ndim}d_grad_input", ndim, """\
    Gradient of `conv{n}d` with respect to its input.

    gx = A^T gy, with A the convolution as a matrix

    Parameters
    ----------
    gy : array_like, shape (N, O, ...)
        Gradient of the output.
    w : array_like, shape (O, C/G, {k})
        Weights; conjugated if complex.
    input_shape : sequence of int
        Shape of x, which stride and padding leave open.
    {options}
    out : ndarray, optional
        Where to write the result.

    Returns
    -------
    ndarray of shape `input_shape`

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> fc.conv{n}d_grad_input(np.ones({v}), np.ones({w}), {x}).shape
    {x}
    """)


def _make_grad_weight(ndim: int) -> Callable[..., np.ndarray]:
    def conv_grad_weight(gy: Any, x: Any, weight_shape: Sequence[int], *, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
                         groups: int = 1, padding_mode: str = "zeros", layout: str = "NCHW", backend: str | None = None,
                         accuracy: str | None = None, out: np.ndarray | None = None) -> np.ndarray:
        settings = (stride, padding, dilation, groups, padding_mode, layout, None, accuracy)
        shape = shape_of("weight_shape", weight_shape)
        ready = None if out is not None else remembered("grad_weight", ndim, x, gy, None, settings, backend, shape)
        return run("grad_weight", ndim, x, gy, None, settings, backend, out, shape) if ready is None else ready(x, gy, None)

    return _named(conv_grad_weight, f"conv{ndim}d_grad_weight", ndim, """\
    Gradient of `conv{n}d` with respect to its weights.

    gw[o, c, k] = sum over n, p of  gy[n, o, p] x[n, c, stride p + dilation k - low]

    Parameters
    ----------
    gy : array_like, shape (N, O, ...)
        Gradient of the output.
    x : array_like, shape (N, C, {s})
        Input; conjugated if complex.
    weight_shape : sequence of int
        Shape of w.
    {options}
    out : ndarray, optional
        Where to write the result.

    Returns
    -------
    ndarray of shape `weight_shape`

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> fc.conv{n}d_grad_weight(np.ones({v}), np.ones({x}), {w}).shape
    {w}
    """)


def _make_backward(ndim: int) -> Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    grad_input, grad_weight = _make_grad_input(ndim), _make_grad_weight(ndim)

    def conv_backward(gy: Any, x: Any, w: Any, *, bias: bool = True, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
                      groups: int = 1, padding_mode: str = "zeros", layout: str = "NCHW", backend: str | None = None,
                      accuracy: str | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        settings = (stride, padding, dilation, groups, padding_mode, layout, None, accuracy)
        ready = remembered("backward", ndim, gy, x, w, settings, backend, (bool(bias), None))
        if ready is not None:
            return ready(gy, x, w)
        same = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "padding_mode": padding_mode,
                "layout": layout, "backend": backend, "accuracy": accuracy}
        gy, x, w = as_array("gy", gy), as_array("x", x), as_array("w", w)
        gx = grad_input(gy, w, x.shape, **same)
        gw = grad_weight(gy, x, w.shape, **same)
        return gx, gw, bias_gradient(gy, ndim, layout, dtype_of(gw)) if bias else None

    return _named(conv_backward, f"conv{ndim}d_backward", ndim, """\
    All gradients of `conv{n}d`, given that of its output.

    Parameters
    ----------
    gy : array_like, shape (N, O, ...)
        Gradient of the output (before the activation, if there was one).
    x, w : array_like
        The operands of the forward call.
    bias : bool
        Whether to compute the bias's gradient, the sum of gy over all but its channels.
    {options}

    Returns
    -------
    gx, gw, gb : ndarray, ndarray, ndarray or None
        Gradients of the input, the weights and the bias.

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> gx, gw, gb = fc.conv{n}d_backward(np.ones({v}), np.ones({x}), np.ones({w}))
    >>> gx.shape, gw.shape, gb.shape
    ({x}, {w}, (3,))
    """)


def _make_transpose_backward(ndim: int) -> Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    conv, grad_weight = _make_conv(ndim), _make_grad_weight(ndim)

    def conv_transpose_backward(gy: Any, x: Any, w: Any, *, bias: bool = True, stride: Any = 1, padding: Any = 0,
                                output_padding: Any = 0, dilation: Any = 1, groups: int = 1, layout: str = "NCHW",
                                backend: str | None = None, accuracy: str | None = None,
                                ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        settings = (stride, padding, dilation, groups, "zeros", layout, None, accuracy)
        extra = (frozen(output_padding, "output_padding"),)
        ready = remembered("backward", ndim, gy, x, w, settings, backend, (bool(bias), extra))
        if ready is not None:
            return ready(gy, x, w)
        same = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "layout": layout,
                "backend": backend, "accuracy": accuracy}
        gy, x, w = as_array("gy", gy), as_array("x", x), as_array("w", w)
        options = make_options(stride, padding, dilation, groups, layout=layout)
        shape, gy_shape = (batched_shape(name, tuple(array.shape), ndim)[0] for name, array in (("x", x), ("gy", gy)))
        dtype = np.dtype(computing_dtype(np.result_type(dtype_of(gy), dtype_of(w)))).name
        problem = Problem.create_transposed(ndim, shape, tuple(w.shape), dtype, options, *extra)
        check_shape("gy", gy_shape, problem.public_shape(problem.input_shape))
        reached = leading_part(gy, _reached(problem, tuple(gy.shape)))
        gx = conv(reached, conjugated(w), **same)
        gw = conjugated(grad_weight(x, reached, w.shape, **same))
        return gx, gw, bias_gradient(gy, ndim, layout, dtype_of(gw)) if bias else None

    return _named(conv_transpose_backward, f"conv_transpose{ndim}d_backward", ndim, """\
    All gradients of `conv_transpose{n}d`, given that of its output.

    Parameters
    ----------
    gy : array_like, shape (N, C, ...)
        Gradient of the output.
    x, w : array_like
        The operands of the forward call.
    bias : bool
        Whether to compute the bias's gradient.
    output_padding : int or sequence of {n} ints
        That of the forward call.
    {options}

    Returns
    -------
    gx, gw, gb : ndarray, ndarray, ndarray or None
        Gradients of the input, the weights and the bias.

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> gx, gw, gb = fc.conv_transpose{n}d_backward(np.ones({u}), np.ones({y}), np.ones({t}), stride=2)
    >>> gx.shape, gw.shape, gb.shape
    ({y}, {t}, (2,))
    """)


def _reached(problem: Problem, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the part of a transposed convolution's output that some tap reaches: output padding of a stride or more is not."""
    axes = slice(3 - problem.ndim, None)
    cut = [size - max(-high, 0) // stride * stride for size, (_, high), stride
           in zip(problem.input_size[axes], problem.padding[axes], problem.stride[axes], strict=True)]
    last = shape[-1:] if problem.channels_last else ()
    return (*shape[:len(shape) - len(cut) - len(last)], *cut, *last)


def _make_plan(ndim: int) -> Callable[..., Any]:
    def plan_conv(w: Any, bias: Any = None, *, input_shape: Sequence[int] | None = None, stride: Any = 1, padding: Any = 0,
                  dilation: Any = 1, groups: int = 1, padding_mode: str = "zeros", layout: str = "NCHW",
                  activation: str | None = None, backend: str | None = None, accuracy: str | None = None,
                  cold_weights: bool = False) -> Convolution | ConvolutionOnDevice:
        options = make_options(stride, padding, dilation, groups, padding_mode, layout, activation, accuracy)
        options = replace(options, cold_weights=bool(cold_weights))
        choice = device_choice(backend, w)
        if choice is not None:
            return ConvolutionOnDevice(ndim, w, bias, options, choice, input_shape, prepare_on_device)
        return Convolution(ndim, w, bias, options, backend, input_shape)

    return _named(plan_conv, f"plan_conv{ndim}d", ndim, """\
    Plan `conv{n}d` with fixed weights, packed once and used for any number of inputs.

    Parameters
    ----------
    w : array_like, shape (O, C/G, {k})
        Weights; copied.
    bias : array_like, shape (O,), optional
        Added to each output channel; copied.
    input_shape : sequence of int, optional
        Shape of the inputs to come. Without it, each new shape is planned when first seen.
    {options}
    activation
        As in `conv{n}d`.
    cold_weights : bool
        Whether the weights come from memory at each call, as those of a network do that is larger than the caches. The plan then
        prefers methods that read fewer bytes of them.

    Returns
    -------
    Convolution
        Call it as `plan(x, out=None)`; `print(plan)` says which backend it uses and why.

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> plan = fc.plan_conv{n}d(np.ones({w}), input_shape={x}, padding=1)
    >>> plan(np.ones({x})).shape
    {y}
    """)


conv1d, conv2d, conv3d = map(_make_conv, (1, 2, 3))
conv_transpose1d, conv_transpose2d, conv_transpose3d = map(_make_transpose, (1, 2, 3))
conv1d_grad_input, conv2d_grad_input, conv3d_grad_input = map(_make_grad_input, (1, 2, 3))
conv1d_grad_weight, conv2d_grad_weight, conv3d_grad_weight = map(_make_grad_weight, (1, 2, 3))
conv1d_backward, conv2d_backward, conv3d_backward = map(_make_backward, (1, 2, 3))
conv_transpose1d_backward, conv_transpose2d_backward, conv_transpose3d_backward = map(_make_transpose_backward, (1, 2, 3))
plan_conv1d, plan_conv2d, plan_conv3d = map(_make_plan, (1, 2, 3))
