"""The activations that are no rectifiers, and the gradients of all: each one pass over an array, in vectors.

sigmoid 1 / (1 + exp(-v)), tanh, silu v * sigmoid(v), gelu v * Phi(v) with the exact error function; at minus infinity
the last two take their limit, 0. The exponential is a series (`_simd/elementwise.py`), a vector's for little more than a
scalar's; in float32 the error function is W. H. Press's fit ("Numerical Recipes", section 6.2.2, 1.2e-7), in float64 the
C library's.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from ._jit import inlined, outlined
from ._rectifiers import RECTIFIERS
from ._simd import (
    BoundKernel,
    exponential,
    exponential_minus_one,
    fma,
    gate,
    get,
    lanes_of,
    load,
    load_first,
    magnitude,
    parallel_kernel,
    put,
    rectify,
    spread,
    store,
    store_first,
    thawed,
    where_infinite_below,
    where_negative,
    zero,
)

CODES = {"sigmoid": 0, "tanh": 1, "silu": 2, "gelu": 3}
SERIAL_ELEMENTS = 8192  # below which a region takes longer than the exponentials it shares out
SERIAL_RECTIFIED = 32768  # the same for rectifiers
ERROR_FUNCTION = (-1.26551223, 1.00002368, 0.37409196, 0.09678418, -0.18628806, 0.27886807, -1.13520398, 1.48851587, -0.82215223,
                  0.17087277)
ROOT_HALF, NORMAL_SCALE = math.sqrt(0.5), 1 / math.sqrt(2 * math.pi)


# -- functions of a vector ------------------------------------------------------------------------------------------------


@inlined
def sigmoid_of(p, v):
    """Of a vector; e^-|v| cannot overflow."""
    one = spread(p, 1.0)
    e = exponential(zero(p) - magnitude(v))
    return where_negative(v, e, one) / (one + e)


@inlined
def tanh_of(p, v):
    m = exponential_minus_one(spread(p, -2.0) * magnitude(v))
    size = m / (spread(p, 2.0) + m)
    return where_negative(v, size, zero(p) - size)


@outlined
def normal_of(p, v):
    """Phi(v), the normal distribution, half the complementary error function of -v / sqrt(2)."""
    one = spread(p, 1.0)
    z = magnitude(v) * spread(p, ROOT_HALF)
    t = one / fma(z, spread(p, 0.5), one)
    series = spread(p, ERROR_FUNCTION[9])
    series = fma(series, t, spread(p, ERROR_FUNCTION[8]))
    series = fma(series, t, spread(p, ERROR_FUNCTION[7]))
    series = fma(series, t, spread(p, ERROR_FUNCTION[6]))
    series = fma(series, t, spread(p, ERROR_FUNCTION[5]))
    series = fma(series, t, spread(p, ERROR_FUNCTION[4]))
    series = fma(series, t, spread(p, ERROR_FUNCTION[3]))
    series = fma(series, t, spread(p, ERROR_FUNCTION[2]))
    series = fma(series, t, spread(p, ERROR_FUNCTION[1]))
    tail = spread(p, 0.5) * t * exponential(fma(series, t, spread(p, ERROR_FUNCTION[0]) - z * z))
    return where_negative(v, tail, one - tail)


@outlined
def value_of(p, v, code):
    """The activation of a vector."""
    if code == 0:
        return sigmoid_of(p, v)
    if code == 1:
        return tanh_of(p, v)
    if code == 2:
        return where_infinite_below(v, zero(p), v * sigmoid_of(p, v))
    return where_infinite_below(v, zero(p), v * normal_of(p, v))


@outlined
def slope_of(p, v, code):
    """Its derivative: of sigmoid and tanh from the output v, of silu and gelu from the input v."""
    one = spread(p, 1.0)
    if code == 0:
        return v * (one - v)
    if code == 1:
        return one - v * v
    if code == 2:
        s = sigmoid_of(p, v)
        return where_infinite_below(v, zero(p), s * fma(v, one - s, one))
    density = spread(p, NORMAL_SCALE) * exponential(spread(p, -0.5) * v * v)
    return where_infinite_below(v, zero(p), fma(v, density, normal_of(p, v)))


# -- kernels --------------------------------------------------------------------------------------------------------------


@inlined
def share(size, thread, threads, lanes):
    """The elements from which and up to which a thread works, whole vectors but for the last."""
    each = -(-size // (threads * lanes)) * lanes
    return min(size, each * thread), min(size, each * (thread + 1))


@parallel_kernel
def activate(x, w, bias, y, constants, scratch, counters, thread, threads):
    """y = activation(x); y may be x."""
    code, size = thawed(constants)
    lanes = lanes_of(x)
    start, end = share(size, thread, threads, lanes)
    for i in range(start, end, lanes):
        if i + lanes <= end:
            store(y, i, value_of(x, load(x, i), code))
        else:
            store_first(y, i, value_of(x, load_first(x, i, end - i), code), end - i)


@parallel_kernel
def activate_backward(x, w, bias, y, constants, scratch, counters, thread, threads):
    """y = w * activation'(x), the gradient from w, that of the output; x is the output or the input, as `slope_of` wants it."""
    code, size = thawed(constants)
    lanes = lanes_of(x)
    start, end = share(size, thread, threads, lanes)
    for i in range(start, end, lanes):
        if i + lanes <= end:
            store(y, i, load(w, i) * slope_of(x, load(x, i), code))
        else:
            store_first(y, i, load_first(w, i, end - i) * slope_of(x, load_first(x, i, end - i), code), end - i)


@parallel_kernel
def gelu_scalars(x, w, bias, y, constants, scratch, counters, thread, threads):
    """The gelu of float64 numbers, y = v Phi(v), or with `backward` y = w (Phi(v) + v phi(v))."""
    backward, size = thawed(constants)
    start, end = share(size, thread, threads, lanes_of(x))
    for i in range(start, end):
        v = get(x, i)
        if v == -math.inf:
            put(y, i, 0.0)
        else:
            normal = 0.5 * math.erfc(-v * ROOT_HALF)
            if backward:
                put(y, i, get(w, i) * (normal + v * NORMAL_SCALE * math.exp(-0.5 * v * v)))
            else:
                put(y, i, v * normal)


@parallel_kernel
def rectify_all(x, w, bias, y, constants, scratch, counters, thread, threads):
    """y = rectifier(x), or of x + w where `added`."""
    added, size, slope, ceiling = thawed(constants)
    lanes = lanes_of(x)
    start, end = share(size, thread, threads, lanes)
    whole = end - (end - start) % lanes
    if added:
        for i in range(start, whole, lanes):
            store(y, i, rectify(load(x, i) + load(w, i), slope, ceiling))
    else:
        for i in range(start, whole, lanes):
            store(y, i, rectify(load(x, i), slope, ceiling))
    if whole < end:
        last = load_first(x, whole, end - whole)
        if added:
            last = last + load_first(w, whole, end - whole)
        store_first(y, whole, rectify(last, slope, ceiling), end - whole)


@parallel_kernel
def rectify_backward(x, w, bias, y, constants, scratch, counters, thread, threads):
    """y = the gradient through a rectifier, from its output x and that of the output, w."""
    size, slope, ceiling = thawed(constants)
    lanes = lanes_of(x)
    start, end = share(size, thread, threads, lanes)
    whole = end - (end - start) % lanes
    for i in range(start, whole, lanes):
        store(y, i, gate(load(x, i), load(w, i), slope, ceiling))
    if whole < end:
        store_first(y, whole, gate(load_first(x, whole, end - whole), load_first(w, whole, end - whole), slope, ceiling), end - whole)


# -- calls ----------------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1024)
def activation(name: str, size: int, dtype: str, backward: bool = False) -> BoundKernel:
    """The kernel that applies an activation, or its gradient, to `size` elements."""
    parallel = size > SERIAL_ELEMENTS
    if name == "gelu" and dtype == "d":
        return gelu_scalars.bind(dtype, (backward, size), parallel=parallel)
    return (activate_backward if backward else activate).bind(dtype, (CODES[name], size), parallel=parallel)


@functools.lru_cache(maxsize=1024)
def _rectifier(slope: float, ceiling: float, size: int, dtype: str, added: bool) -> BoundKernel:
    scalar = np.dtype(dtype).type
    return rectify_all.bind(dtype, (added, size, scalar(slope), scalar(ceiling)), parallel=size > SERIAL_RECTIFIED)


@functools.lru_cache(maxsize=1024)
def _rectifier_gradient(slope: float, ceiling: float | None, size: int, dtype: str) -> BoundKernel:
    scalar = np.dtype(dtype).type
    constants = (size, scalar(slope), scalar(math.nan if ceiling is None else ceiling))
    return rectify_backward.bind(dtype, constants, parallel=size > SERIAL_RECTIFIED)


def apply(name: str, y: np.ndarray) -> None:
    """Apply an activation to a contiguous array, in place."""
    y = y.reshape(-1)
    activation(name, y.size, y.dtype.char)(y, y, y, y)


def activated(name: str, x: np.ndarray) -> np.ndarray:
    """The activation of a contiguous array."""
    y = np.empty(x.shape, x.dtype)
    flat = x.reshape(-1)
    activation(name, x.size, x.dtype.char)(flat, flat, flat, y.reshape(-1))
    return y


def activation_gradient(name: str, known: np.ndarray, gy: np.ndarray) -> np.ndarray:
    """gy times the derivative: `known` is the output of sigmoid and tanh, the input of silu and gelu; both contiguous."""
    gx = np.empty(gy.shape, gy.dtype)
    flat, gy = known.reshape(-1), gy.reshape(-1)
    activation(name, gy.size, gy.dtype.char, True)(flat, gy, flat, gx.reshape(-1))
    return gx


def rectified(x: np.ndarray, slope: float = 0.0, ceiling: float = math.inf) -> np.ndarray:
    """The rectifier of a contiguous array."""
    y = np.empty(x.shape, x.dtype)
    flat = x.reshape(-1)
    _rectifier(slope, ceiling, x.size, x.dtype.char, False)(flat, flat, flat, y.reshape(-1))
    return y


def rectified_sum(x: np.ndarray, w: np.ndarray, slope: float, ceiling: float) -> np.ndarray:
    """The rectifier of the sum of two contiguous arrays."""
    y = np.empty(x.shape, x.dtype)
    flat = x.reshape(-1)
    _rectifier(slope, ceiling, x.size, x.dtype.char, True)(flat, w.reshape(-1), flat, y.reshape(-1))
    return y


def rectify_in_place(y: np.ndarray, slope: float = 0.0, ceiling: float = math.inf, added: np.ndarray | None = None) -> None:
    """Replace a contiguous array, or its sum with another, by its rectifier."""
    y = y.reshape(-1)
    other = y if added is None else added.reshape(-1)
    _rectifier(slope, ceiling, y.size, y.dtype.char, added is not None)(y, other, y, y)


def rectifier_gradient(y: np.ndarray, gy: np.ndarray, slope: float = 0.0, ceiling: float = math.inf) -> np.ndarray:
    """The gradient through a rectifier, from its output; both contiguous."""
    gx = np.empty(gy.shape, gy.dtype)
    flat, gy = y.reshape(-1), gy.reshape(-1)
    _rectifier_gradient(slope, None if ceiling == math.inf else ceiling, gy.size, gy.dtype.char)(flat, gy, flat, gx.reshape(-1))
    return gx


def rectifier(name: str) -> tuple[float, float]:
    """(slope, ceiling) of a rectifier's name."""
    return RECTIFIERS[name]
