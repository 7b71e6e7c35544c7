"""Poolings by their definitions: plain NumPy loops over windows, in the type of the input. Slow, and easy to believe.

Arrays are batched; `layout` is "NCHW" or "NHWC". A window is the list of its points inside the image; which those are stands
in `windows` and nowhere else.
"""

import itertools
import math

import numpy as np


def as_list(value, ndim):
    return [value] * ndim if np.ndim(value) == 0 else list(value)


def pads_of(padding, size, kernel, stride, dilation):
    """(low, high) on each axis."""
    if padding == "valid":
        return [(0, 0)] * len(size)
    if isinstance(padding, str):
        total = [max((math.ceil(n / s) - 1) * s + d * (k - 1) + 1 - n, 0) for n, k, s, d in zip(size, kernel, stride, dilation)]
        small = [t // 2 for t in total]
        return [(a, t - a) if padding == "same" else (t - a, a) for a, t in zip(small, total)]
    return [tuple(as_list(item, 2)) for item in as_list(padding, len(size))]


def axis_windows(n, k, s, d, pads, ceil_mode):
    """For each window along an axis: its points inside the input, and how many lie before the end of the padding."""
    low, high = pads
    exact = (n + low + high - d * (k - 1) - 1) / s
    count = (math.ceil(exact) if ceil_mode else math.floor(exact)) + 1
    if ceil_mode and count > 1 and (count - 1) * s >= n + low:
        count -= 1
    result = []
    for o in range(count):
        points = [o * s - low + d * j for j in range(k)]
        result.append(([p for p in points if 0 <= p < n], len([p for p in points if p < n + high])))
    return result


def adaptive_windows(n, outputs):
    result = []
    for o in range(outputs):
        points = list(range(math.floor(o * n / outputs), math.ceil((o + 1) * n / outputs)))
        result.append((points, len(points)))
    return result


def windows(size, kernel_size=None, stride=None, padding=0, dilation=1, ceil_mode=False, output_size=None):
    """The windows along each axis."""
    ndim = len(size)
    if kernel_size is None:
        return [adaptive_windows(n, n if o is None else o) for n, o in zip(size, as_list(output_size, ndim))]
    kernel, dilation = as_list(kernel_size, ndim), as_list(dilation, ndim)
    stride = kernel if stride is None else as_list(stride, ndim)
    pads = pads_of(padding, size, kernel, stride, dilation)
    return [axis_windows(*axis, ceil_mode) for axis in zip(size, kernel, stride, dilation, pads)]


def reduce(x, function, dtype, layout="NCHW", **options):
    """y[n, c, o] = function(values, positions in the flattened plane, points before the end of the padding) of each window."""
    if layout == "NHWC":
        return np.moveaxis(reduce(np.moveaxis(x, -1, 1), function, dtype, **options), 1, -1)
    size = x.shape[2:]
    axes = windows(size, **options)
    y = np.empty((*x.shape[:2], *map(len, axes)), dtype)
    planes = x.reshape(*x.shape[:2], -1)
    for o in np.ndindex(y.shape[2:]):
        chosen = [axis[i] for axis, i in zip(axes, o)]
        points = [int(np.ravel_multi_index(p, size)) for p in itertools.product(*(inside for inside, _ in chosen))]
        for n, c in np.ndindex(x.shape[:2]):
            y[(n, c, *o)] = function(planes[n, c, points], points, math.prod(counted for _, counted in chosen))
    return y


def smallest(dtype):
    dtype = np.dtype(dtype)
    return -np.inf if dtype.kind == "f" else dtype.type(0) if dtype.kind == "b" else np.iinfo(dtype).min


def place(values, points):
    """Position of the first of the largest, of the last NaN if there is one, -1 for no values."""
    if len(points) == 0:
        return -1
    nans = [p for v, p in zip(values, points) if v != v]
    return nans[-1] if nans else points[int(np.argmax(values))]


def max_pool(x, **options):
    return reduce(x, lambda values, points, counted: values.max() if len(points) else smallest(x.dtype), x.dtype, **options)


def max_places(x, **options):
    return reduce(x, lambda values, points, counted: place(values, points), np.int64, **options)


def avg_pool(x, count_include_pad=True, divisor_override=None, **options):
    def mean(values, points, counted):
        count = divisor_override or (counted if count_include_pad else len(points))
        return values.sum() / max(count, 1)

    return reduce(x, mean, x.dtype, **options)


def lp_pool(x, p, convention="torch", **options):
    ndim = x.ndim - 2
    whole = math.prod(as_list(options["kernel_size"], ndim))

    def norm(values, points, counted):
        if convention == "onnx":
            return (np.abs(values) ** p).sum() ** (1 / p)
        return ((values**p).sum() * whole / counted) ** (1 / p)

    with np.errstate(invalid="ignore"):
        return reduce(x, norm, x.dtype, **options)


def max_pool_backward(gy, x, layout="NCHW", **options):
    if layout == "NHWC":
        return np.moveaxis(max_pool_backward(np.moveaxis(gy, -1, 1), np.moveaxis(x, -1, 1), **options), 1, -1)
    places = max_places(x, **options)
    gx = np.zeros_like(x, dtype=gy.dtype)
    planes = gx.reshape(*x.shape[:2], -1)
    for at in np.ndindex(places.shape):
        if places[at] >= 0:
            planes[at[0], at[1], places[at]] += gy[at]
    return gx


def avg_pool_backward(gy, input_shape, layout="NCHW", count_include_pad=True, divisor_override=None, **options):
    if layout == "NHWC":
        shape = (input_shape[0], input_shape[-1], *input_shape[1:-1])
        result = avg_pool_backward(np.moveaxis(gy, -1, 1), shape, "NCHW", count_include_pad, divisor_override, **options)
        return np.moveaxis(result, 1, -1)
    axes = windows(input_shape[2:], **options)
    gx = np.zeros(input_shape)
    for o in np.ndindex(gy.shape[2:]):
        chosen = [axis[i] for axis, i in zip(axes, o)]
        inside = math.prod(len(points) for points, _ in chosen)
        count = divisor_override or (math.prod(counted for _, counted in chosen) if count_include_pad else inside)
        for p in itertools.product(*(points for points, _ in chosen)):
            gx[(slice(None), slice(None), *p)] += gy[(slice(None), slice(None), *o)] / max(count, 1)
    return gx
