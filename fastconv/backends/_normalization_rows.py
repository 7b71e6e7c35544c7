"""Normalisation where channels lie last: batch and group norm over rows of channels.

Batch and group norm see (images, rows, channels); batch norm has one image. Tasks are chunks of rows: one kernel leaves each
chunk's sums in float64, a serial one makes a factor and a term for each channel of them, a third writes. The rest is as in
`_normalization`.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from ._jit import inlined, outlined
from ._normalization import NO_CEILING, SERIAL_ELEMENTS
from ._simd import (
    BoundKernel,
    advance,
    as_float64,
    fma,
    gate,
    get,
    lane_count,
    lanes_of,
    load,
    load_first,
    next_task,
    parallel_kernel,
    put,
    rectify,
    spread,
    store,
    store_first,
    thawed,
    zero,
)

ROWS = 256  # rows added in the array's own precision
TASK = 32768  # elements of a chunk: a few microseconds
BLOCK = 4096
TABLES = 6  # float64 numbers a channel: mean, scale, variance, weight, the gradients of bias and weight


# -- sums over rows -------------------------------------------------------------------------------------------------------


@inlined
def some(p, offset, count):
    """A vector of which `count` lanes count, zero in the others."""
    return load(p, offset) if count >= lanes_of(p) else load_first(p, offset, count)


@outlined
def row_sums(source, channels, rows, pivot, sums):
    """sums[:channels] += the rows less `pivot`, and sums[padded:] their squares, both whole vectors."""
    lanes = lanes_of(source)
    padded = -(-channels // lanes) * lanes
    for r in range(0, rows, 2):
        last = r + 1 == rows
        for c in range(0, channels, lanes):
            count = channels - c
            k = some(pivot, c, count)
            u = some(source, r * channels + c, count) - k
            v = zero(source) if last else some(source, (r + 1) * channels + c, count) - k
            store(sums, c, load(sums, c) + (u + v))
            store(sums, padded + c, fma(u, u, fma(v, v, load(sums, padded + c))))


@outlined
def gated_row_sums(source, gradient, channels, rows, table, stride, slope, ceiling, sums):
    """As `row_sums`, of gy and gy (source - mean), gy through the rectifier of factor * source + term; `table` has all three."""
    lanes = lanes_of(source)
    padded = -(-channels // lanes) * lanes
    for r in range(rows):
        for c in range(0, channels, lanes):
            count = channels - c
            u = some(source, r * channels + c, count)
            y = fma(u, some(table, stride + c, count), some(table, 2 * stride + c, count))
            g = gate(y, some(gradient, r * channels + c, count), slope, ceiling)
            store(sums, c, load(sums, c) + g)
            store(sums, padded + c, fma(g, u - some(table, c, count), load(sums, padded + c)))


@parallel_kernel
def sum_rows_twice(x, w, bias, y, constants, scratch, counters, thread, threads):
    """Parts[image][chunk][2][channel] in y: of x less its image's first row and the square; with `gated`, as `gated_row_sums`.

    Then w is gy, and `bias` a mean, a factor and a term for each image and channel.
    """
    images, rows, channels, chunk_rows, chunks, gated, slope, ceiling = thawed(constants)
    lanes = lanes_of(x)
    parts = as_float64(y)
    stride, padded = images * channels, -(-channels // lanes) * lanes
    while True:
        task = next_task(counters)
        if task >= images * chunks:
            break
        n, start = task // chunks, task % chunks * chunk_rows
        end = min(rows, start + chunk_rows)
        target = advance(parts, task * 2 * channels)
        for c in range(2 * channels):
            put(target, c, 0.0)
        for r in range(start, end, ROWS):
            height, at = min(ROWS, end - r), (n * rows + r) * channels
            for c in range(0, 2 * padded, lanes):
                store(scratch, c, zero(x))
            if gated:
                table = advance(bias, n * channels)
                gated_row_sums(advance(x, at), advance(w, at), channels, height, table, stride, slope, ceiling, scratch)
            else:
                row_sums(advance(x, at), channels, height, advance(x, n * rows * channels), scratch)
            for c in range(channels):
                put(target, c, get(target, c) + get(scratch, c))
                put(target, channels + c, get(target, channels + c) + get(scratch, padded + c))


@parallel_kernel
def scale_rows(x, w, bias, y, constants, scratch, counters, thread, threads):
    """y = the rectified factor * x + term; w is the factors, then the terms, of each image and channel.

    With `backward`, y = by_gradient * gy + by_source * x + constant: `bias` is gy, and w the factors and terms of the rectifier's
    argument, by_source and constant; by_gradient is the factor.
    """
    images, rows, channels, chunk_rows, chunks, backward, slope, ceiling = thawed(constants)
    lanes = lanes_of(x)
    stride = images * channels
    while True:
        task = next_task(counters)
        if task >= images * chunks:
            break
        n, start = task // chunks, task % chunks * chunk_rows
        table = advance(w, n * channels)
        for r in range(start, min(rows, start + chunk_rows)):
            row = (n * rows + r) * channels
            for c in range(0, channels, lanes):
                count = channels - c
                f, s = some(table, c, count), some(table, stride + c, count)
                u = some(x, row + c, count)
                value = fma(u, f, s)
                if backward:
                    g = gate(value, some(bias, row + c, count), slope, ceiling)
                    value = fma(g, f, fma(u, some(table, 2 * stride + c, count), some(table, 3 * stride + c, count)))
                else:
                    value = rectify(value, slope, ceiling)
                if count >= lanes:
                    store(y, row + c, value)
                else:
                    store_first(y, row + c, value, count)


# -- from sums to factors ---------------------------------------------------------------------------------------------------


@parallel_kernel
def combine(x, w, bias, y, constants, scratch, counters, thread, threads):
    """From the sums in `bias` to the table in y: means, scales and variances, and what `scale_rows` takes; w is weight and bias."""
    images, rows, channels, each, chunks, ratio, eps = thawed(constants)
    parts, table, size = as_float64(bias), as_float64(y), images * channels
    tables = advance(y, TABLES * size * ratio)
    count = float(rows * each)
    for n in range(images):
        for g in range(0, channels, each):
            mean = variance = 0.0
            for c in range(g, g + each):
                for k in range(chunks):
                    mean += get(parts, (n * chunks + k) * 2 * channels + c)
                mean += float(rows) * get(x, n * rows * channels + c)
            mean /= count
            for c in range(g, g + each):
                apart = get(x, n * rows * channels + c) - mean
                for k in range(chunks):
                    at = (n * chunks + k) * 2 * channels + c
                    variance += get(parts, at + channels) + 2.0 * apart * get(parts, at)
                variance += float(rows) * apart * apart
            variance /= count
            if variance < 0.0:
                variance = 0.0
            scale = 1.0 / math.sqrt(variance + eps)
            for c in range(g, g + each):
                factor = scale * get(w, c)
                at = n * channels + c
                put(table, at, mean)
                put(table, size + at, scale)
                put(table, 2 * size + at, variance)
                put(table, 3 * size + at, float(get(w, c)))
                store_first(tables, at, spread(x, mean), 1)
                store_first(tables, size + at, spread(x, factor), 1)
                store_first(tables, 2 * size + at, spread(x, get(w, channels + c) - mean * factor), 1)


@parallel_kernel
def combine_backward(x, w, bias, y, constants, scratch, counters, thread, threads):
    """From the gated sums in `bias` to the gradients of bias and weight, and what `scale_rows` takes backward."""
    images, rows, channels, each, chunks, ratio, _ = thawed(constants)
    parts, table, size = as_float64(bias), as_float64(y), images * channels
    tables = advance(y, TABLES * size * ratio)
    count = float(rows * each)
    for n in range(images):
        for g in range(0, channels, each):
            first = second = 0.0
            mean, scale = get(table, n * channels + g), get(table, size + n * channels + g)
            rounding = mean - float(get(tables, n * channels + g))  # what the vectors subtract is the rounded mean
            for c in range(g, g + each):
                a = b = 0.0
                for k in range(chunks):
                    at = (n * chunks + k) * 2 * channels + c
                    a, b = a + get(parts, at), b + get(parts, at + channels)
                b = (b - rounding * a) * scale
                at = n * channels + c
                put(table, 4 * size + at, a)
                put(table, 5 * size + at, b)
                weight = get(table, 3 * size + at)
                first, second = first + weight * a, second + weight * b
            by_source = -scale * scale * second / count
            constant = -scale * first / count - mean * by_source
            for c in range(g, g + each):
                store_first(tables, 3 * size + n * channels + c, spread(x, by_source), 1)
                store_first(tables, 4 * size + n * channels + c, spread(x, constant), 1)


# -- calls ----------------------------------------------------------------------------------------------------------------


def _chunks(rows: int, channels: int) -> tuple[int, int]:
    each = max(1, -(-TASK // max(1, channels)))
    return each, -(-rows // each)


@functools.lru_cache(maxsize=1024)
def _sums(images: int, rows: int, channels: int, dtype: str, gated: bool, slope: float, ceiling: float | None) -> BoundKernel:
    scalar = np.dtype(dtype).type
    constants = (images, rows, channels, *_chunks(rows, channels), gated, scalar(slope), scalar(NO_CEILING if ceiling is None else ceiling))
    scratch = 2 * (channels + lane_count(dtype))
    return sum_rows_twice.bind(dtype, constants, scratch=scratch, parallel=images * rows * channels > SERIAL_ELEMENTS)


@functools.lru_cache(maxsize=1024)
def _scale(images: int, rows: int, channels: int, dtype: str, backward: bool, slope: float, ceiling: float | None) -> BoundKernel:
    scalar = np.dtype(dtype).type
    constants = (images, rows, channels, *_chunks(rows, channels), backward, scalar(slope),
                 scalar(NO_CEILING if ceiling is None else ceiling))
    return scale_rows.bind(dtype, constants, parallel=images * rows * channels > SERIAL_ELEMENTS)


@functools.lru_cache(maxsize=1024)
def _row_norm(images: int, rows: int, channels: int, groups: int, eps: float, dtype: str, rectifier: tuple[float, float],
              ) -> tuple[list[BoundKernel], list[BoundKernel], int]:
    """The kernels of the forward and the backward pass, and the elements of the sums."""
    chunks = _chunks(rows, channels)[1]
    slope, ceiling = rectifier
    limit = None if ceiling == math.inf else ceiling
    constants = (images, rows, channels, channels // groups, chunks, 8 // np.dtype(dtype).itemsize, eps)
    forward = [_sums(images, rows, channels, dtype, False, 1.0, None), combine.bind(dtype, constants, parallel=False),
               _scale(images, rows, channels, dtype, False, slope, ceiling)]
    backward = [_sums(images, rows, channels, dtype, True, slope, limit), combine_backward.bind(dtype, constants, parallel=False),
                _scale(images, rows, channels, dtype, True, slope, limit)]
    return forward, backward, images * chunks * 2 * channels


def row_normalized(x: np.ndarray, parameters: np.ndarray, images: int, channels: int, groups: int, eps: float,
                   rectifier: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """The normalised array, through a rectifier, and the table, which starts with mean, scale and variance of each channel."""
    y = np.empty(x.shape, x.dtype)
    size = images * channels
    (sums, combined, scale), _, count = _row_norm(images, x.size // size, channels, groups, eps, x.dtype.char, rectifier)
    table = np.empty((TABLES + 5) * size + count)  # the last for the sums
    view = table.view(x.dtype)
    ratio = view.size // table.size
    parts, tables, flat = view[(TABLES + 5) * size * ratio:], view[TABLES * size * ratio:], x.reshape(-1)
    sums(flat, flat, flat, parts)
    combined(flat, parameters, parts, view)
    scale(flat, tables[size:], flat, y.reshape(-1))
    return y, table


def row_normalized_gradient(x: np.ndarray, gy: np.ndarray, table: np.ndarray, images: int, channels: int, groups: int,
                            rectifier: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """The gradient of x, and (2, images, channels): those of bias and weight."""
    gx = np.empty(x.shape, x.dtype)
    size = images * channels
    _, (sums, combined, scale), _ = _row_norm(images, x.size // size, channels, groups, 0.0, x.dtype.char, rectifier)
    view = table.view(x.dtype)
    ratio = view.size // table.size
    parts, tables, flat, gy = view[(TABLES + 5) * size * ratio:], view[TABLES * size * ratio:], x.reshape(-1), gy.reshape(-1)
    sums(flat, gy, tables, parts)
    combined(flat, gy, parts, view)
    scale(flat, tables[size:], gy, gx.reshape(-1))
    return gx, table[4 * size:6 * size].reshape(2, images, channels)


def scaled_rows(x: np.ndarray, table: np.ndarray, rectifier: tuple[float, float]) -> np.ndarray:
    """The rectified factor * x + term; `table` is (2, images, channels)."""
    y = np.empty(x.shape, x.dtype)
    _, images, channels = table.shape
    slope, ceiling = rectifier
    kernel = _scale(images, x.size // (images * channels), channels, x.dtype.char, False, slope, ceiling)
    flat = x.reshape(-1)
    kernel(flat, table.reshape(-1), flat, y.reshape(-1))
    return y
