"""Layer norm: each row normalised by its own statistics, with a weight and a bias for each of its elements."""

from __future__ import annotations

import functools
import math

import numpy as np

from ._normalization import BLOCK, SERIAL_ELEMENTS, moments
from ._simd import (
    BoundKernel,
    advance,
    as_float64,
    fma,
    get,
    keep_first,
    lane_count,
    lanes_of,
    load,
    load_first,
    next_task,
    parallel_kernel,
    put,
    spread,
    store,
    store_first,
    thawed,
    total,
    zero,
)

ROWS = 256  # rows whose gradients of weight and bias are added in the array's own precision
TASK = 32768  # elements of a chunk: a few microseconds


@parallel_kernel
def normalize_rows(x, w, bias, y, constants, scratch, counters, thread, threads):
    """Each row normalised, times w[:size] plus w[size:]; `bias` takes the means and 1 / sqrt(var + eps), float64."""
    rows, size, run, eps = thawed(constants)
    lanes = lanes_of(x)
    table = as_float64(bias)
    while True:
        first = next_task(counters) * run
        if first >= rows:
            break
        for r in range(first, min(rows, first + run)):
            source, target = advance(x, r * size), advance(y, r * size)
            pivot = get(source, 0)
            a = b = 0.0
            for i in range(0, size, BLOCK):
                u, v = moments(advance(source, i), min(BLOCK, size - i), pivot)
                a, b = a + u, b + v
            variance = (b - a * a / size) / size
            scale = 1.0 / math.sqrt((0.0 if variance < 0 else variance) + eps)
            mean = a / size + pivot
            put(table, r, mean)
            put(table, rows + r, scale)
            f, s = spread(x, scale), spread(x, -mean * scale)
            for i in range(0, size, lanes):
                count = size - i
                u = fma(load_first(source, i, count), f, s)
                store_first(target, i, fma(u, load_first(w, i, count), load_first(w, size + i, count)), count)


@parallel_kernel
def normalize_rows_backward(x, w, bias, y, constants, scratch, counters, thread, threads):
    """y = the gradient of x from w, that of the output.

    `bias` starts with the factors, in the room of as many float64 numbers, which follow: means and scales of the rows, then
    parts[chunk][2][size], the sums over a chunk of gy times the normalised x and of gy.
    """
    rows, size, run = thawed(constants)
    lanes = lanes_of(x)
    weight, table = bias, advance(as_float64(bias), size)
    while True:
        chunk = next_task(counters)
        if chunk * run >= rows:
            break
        parts = advance(table, 2 * rows + chunk * 2 * size)
        padded = -(-size // lanes) * lanes
        for i in range(0, 2 * padded, lanes):
            store(scratch, i, zero(x))
        for r in range(chunk * run, min(rows, chunk * run + run)):
            source, gradient, target = advance(x, r * size), advance(w, r * size), advance(y, r * size)
            mean, scale = get(table, r), get(table, rows + r)
            m, f = spread(x, mean), spread(x, scale)
            a = b = zero(x)
            for i in range(0, size, lanes):
                count = size - i
                g = load_first(gradient, i, count)
                u = keep_first((load_first(source, i, count) - m) * f, count)
                store(scratch, i, fma(g, u, load(scratch, i)))
                store(scratch, padded + i, load(scratch, padded + i) + g)
                g = g * load_first(weight, i, count)
                a, b = a + g, fma(g, u, b)
            first, second = total(a) / size, total(b) / size
            c, d = spread(x, -scale * first), spread(x, -scale * second)
            for i in range(0, size, lanes):
                count = size - i
                u = (load_first(source, i, count) - m) * f
                g = load_first(gradient, i, count) * load_first(weight, i, count)
                store_first(target, i, fma(g, f, fma(u, d, c)), count)
        for i in range(size):
            put(parts, i, float(get(scratch, i)))
            put(parts, size + i, float(get(scratch, padded + i)))


# -- calls ----------------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1024)
def _layer_norm(rows: int, size: int, eps: float, dtype: str) -> BoundKernel:
    return normalize_rows.bind(dtype, (rows, size, max(1, -(-BLOCK // size)), eps), parallel=rows * size > SERIAL_ELEMENTS)


@functools.lru_cache(maxsize=1024)
def _layer_norm_gradient(rows: int, size: int, dtype: str) -> tuple[BoundKernel, int]:
    """The backward kernel of a shape, and its chunks, whose sums stay in the array's own precision."""
    run = min(ROWS, max(1, -(-TASK // size)))
    scratch = 2 * (size + lane_count(dtype))
    kernel = normalize_rows_backward.bind(dtype, (rows, size, run), scratch=scratch, parallel=rows * size > SERIAL_ELEMENTS)
    return kernel, -(-rows // run)


def rows_normalized(x: np.ndarray, parameters: np.ndarray, size: int, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Each run of `size` elements normalised, and (2, rows): means and 1 / sqrt(var + eps)."""
    y = np.empty(x.shape, x.dtype)
    rows = x.size // size
    table = np.empty(2 * rows)
    _layer_norm(rows, size, eps, x.dtype.char)(x.reshape(-1), parameters, table.view(x.dtype), y.reshape(-1))
    return y, table


def rows_normalized_gradient(x: np.ndarray, gy: np.ndarray, weight: np.ndarray, statistics: np.ndarray,
                             ) -> tuple[np.ndarray, np.ndarray]:
    """The gradient of x, and (2, size): those of weight and bias."""
    gx = np.empty(x.shape, x.dtype)
    size = weight.size
    rows = x.size // size
    kernel, chunks = _layer_norm_gradient(rows, size, x.dtype.char)
    table = np.empty(size + 2 * rows + chunks * 2 * size)
    view = table.view(x.dtype)
    view[:size] = weight.reshape(-1)
    table[size:size + 2 * rows] = statistics
    kernel(x.reshape(-1), gy.reshape(-1), view, gx.reshape(-1))
    return gx, table[size + 2 * rows:].reshape(chunks, 2, size).sum(axis=0)
