"""The optimizers' updates: one pass over a parameter, its gradient and what the optimizer keeps of it, written in place.

Numbers that change from step to step (learning rate, corrections) stand in a small array that the kernel was bound to.
"""

from __future__ import annotations

import numpy as np

from ._activation import SERIAL_RECTIFIED, share
from ._jit import inlined
from ._simd import (
    BoundKernel,
    fma,
    get,
    lanes_of,
    load_first,
    parallel_kernel,
    prefetch_read,
    prefetch_write,
    spread,
    square_root,
    store_first,
    thawed,
)

NUMBERS = 8  # that a kernel reads, float64
AHEAD = 64  # vectors: what is read so far ahead lies in the next page, where the hardware's own prefetching stops


@inlined
def fetch(x, y, i):
    """Bring the gradient x and the parameter y near, of the vectors to come."""
    prefetch_read(x, i + AHEAD * lanes_of(x))
    prefetch_write(y, i + AHEAD * lanes_of(y))


@inlined
def sgd_step(x, w, y, i, count, rate, decay, keep, take, direct, buffered):
    """buffer = keep buffer + take g, parameter -= rate (direct g + buffered buffer), with g the gradient + decay parameter."""
    fetch(x, y, i)
    prefetch_write(w, i + AHEAD * lanes_of(w))
    p = load_first(y, i, count)
    g = fma(decay, p, load_first(x, i, count))
    b = fma(keep, load_first(w, i, count), take * g)
    store_first(w, i, b, count)
    store_first(y, i, p - rate * fma(buffered, b, direct * g), count)


@parallel_kernel
def sgd(x, w, bias, y, constants, scratch, counters, thread, threads):
    """y from the gradient x and the buffer w."""
    size, numbers = thawed(constants)
    lanes = lanes_of(x)
    start, end = share(size, thread, threads, lanes)
    rate, decay, keep = spread(x, get(numbers, 0)), spread(x, get(numbers, 1)), spread(x, get(numbers, 2))
    take, direct, buffered = spread(x, get(numbers, 3)), spread(x, get(numbers, 4)), spread(x, get(numbers, 5))
    for i in range(start, end, lanes):
        sgd_step(x, w, y, i, end - i, rate, decay, keep, take, direct, buffered)


@parallel_kernel
def plain_sgd(x, w, bias, y, constants, scratch, counters, thread, threads):
    """y -= rate (x + decay y)."""
    size, numbers = thawed(constants)
    lanes = lanes_of(x)
    start, end = share(size, thread, threads, lanes)
    rate, decay = spread(x, get(numbers, 0)), spread(x, get(numbers, 1))
    for i in range(start, end, lanes):
        fetch(x, y, i)
        p = load_first(y, i, end - i)
        store_first(y, i, p - rate * fma(decay, p, load_first(x, i, end - i)), end - i)


@parallel_kernel
def adam(x, w, bias, y, constants, scratch, counters, thread, threads):
    """y from the gradient x, its mean w and the mean of its square, `bias`."""
    size, numbers = thawed(constants)
    lanes = lanes_of(x)
    start, end = share(size, thread, threads, lanes)
    rate, decay, shrink = spread(x, get(numbers, 0)), spread(x, get(numbers, 1)), spread(x, get(numbers, 2))
    beta1, beta2 = spread(x, get(numbers, 3)), spread(x, get(numbers, 4))
    rest1, rest2 = spread(x, 1.0 - get(numbers, 3)), spread(x, 1.0 - get(numbers, 4))
    root, eps = spread(x, get(numbers, 5)), spread(x, get(numbers, 6))
    for i in range(start, end, lanes):
        count = end - i
        fetch(x, y, i)
        fetch(w, bias, i)
        p = load_first(y, i, count)
        g = fma(decay, p, load_first(x, i, count))
        m = fma(beta1, load_first(w, i, count), rest1 * g)
        v = fma(beta2, load_first(bias, i, count), rest2 * g * g)
        store_first(w, i, m, count)
        store_first(bias, i, v, count)
        store_first(y, i, shrink * p - rate * m / fma(square_root(v), root, eps), count)


@parallel_kernel
def rmsprop(x, w, bias, y, constants, scratch, counters, thread, threads):
    """y from the gradient x, the buffer of its momentum, w, and the mean of its square, `bias`."""
    size, numbers = thawed(constants)
    lanes = lanes_of(x)
    start, end = share(size, thread, threads, lanes)
    rate, decay, keep = spread(x, get(numbers, 0)), spread(x, get(numbers, 1)), spread(x, get(numbers, 2))
    alpha, rest, eps = spread(x, get(numbers, 3)), spread(x, 1.0 - get(numbers, 3)), spread(x, get(numbers, 4))
    for i in range(start, end, lanes):
        count = end - i
        fetch(x, y, i)
        fetch(w, bias, i)
        p = load_first(y, i, count)
        g = fma(decay, p, load_first(x, i, count))
        v = fma(alpha, load_first(bias, i, count), rest * g * g)
        b = fma(keep, load_first(w, i, count), g / (square_root(v) + eps))
        store_first(bias, i, v, count)
        store_first(w, i, b, count)
        store_first(y, i, p - rate * b, count)


KERNELS = {"plain_sgd": plain_sgd, "sgd": sgd, "adam": adam, "rmsprop": rmsprop}


def bind(name: str, size: int, dtype: str, numbers: np.ndarray) -> BoundKernel:
    """The update of a parameter of `size` elements, with the numbers that it reads each time."""
    return KERNELS[name].bind(dtype, (size, numbers), parallel=size > SERIAL_RECTIFIED)
