"""Normalisation where channels lie last: batch and group norm over rows of channels, layer norm over each row.

Batch and group norm see (images, rows, channels); batch norm has one image. Tasks are chunks of rows: one kernel leaves each
chunk's sums in float64, a second writes what NumPy made of them, a factor and a term for each channel. The rest is as in
`_normalization`.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from ._jit import outlined
from ._normalization import NO_CEILING, SERIAL_ELEMENTS, moments
from ._simd import (
    BoundKernel,
    advance,
    as_float64,
    fma,
    gate,
    get,
    keep_first,
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
    total,
    zero,
)

ROWS = 256  # rows added in the array's own precision
TASK = 32768  # elements of a chunk: a few microseconds
BLOCK = 4096


# -- sums over rows -------------------------------------------------------------------------------------------------------


@outlined
def row_sums(source, pitch, rows, count, pivot, target):
    """target[:2 lanes] = sums, over rows, of source - pivot and of its square, in `count` lanes at most."""
    lanes = lanes_of(source)
    a = p = zero(source)
    k = load_first(pivot, 0, count)
    for r in range(rows):
        u = load_first(source, r * pitch, count) - k
        a, p = a + u, fma(u, u, p)
    store(target, 0, a)
    store(target, lanes, p)


@outlined
def gated_row_sums(source, gradient, pitch, rows, count, mean, factor, term, slope, ceiling, target):
    """target[:2 lanes] = sums, over rows, of gy and gy (source - mean), gy through the rectifier of factor * source + term."""
    lanes = lanes_of(source)
    a = p = zero(source)
    m, f, s = load_first(mean, 0, count), load_first(factor, 0, count), load_first(term, 0, count)
    for r in range(rows):
        u = load_first(source, r * pitch, count)
        g = gate(fma(u, f, s), load_first(gradient, r * pitch, count), slope, ceiling)
        a, p = a + g, fma(g, u - m, p)
    store(target, 0, a)
    store(target, lanes, p)


@parallel_kernel
def sum_rows_twice(x, w, bias, y, constants, scratch, counters, thread, threads):
    """Parts[image][chunk][2][channel] in y: of x less its image's first row and the square; with `gated`, as `gated_row_sums`.

    Then w is gy, and `bias` a mean, a factor and a term for each image and channel.
    """
    images, rows, channels, chunk_rows, chunks, gated, slope, ceiling = thawed(constants)
    lanes = lanes_of(x)
    parts = as_float64(y)
    stride = images * channels
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
            height = min(ROWS, end - r)
            for c in range(0, channels, lanes):
                count = min(lanes, channels - c)
                at = (n * rows + r) * channels + c
                if gated:
                    table = advance(bias, n * channels + c)
                    gated_row_sums(advance(x, at), advance(w, at), channels, height, count, table, advance(table, stride),
                                   advance(table, 2 * stride), slope, ceiling, scratch)
                else:
                    row_sums(advance(x, at), channels, height, count, advance(x, n * rows * channels + c), scratch)
                for i in range(count):
                    put(target, c + i, get(target, c + i) + get(scratch, i))
                    put(target, channels + c + i, get(target, channels + c + i) + get(scratch, lanes + i))


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
                f, s = load_first(table, c, count), load_first(table, stride + c, count)
                u = load_first(x, row + c, count)
                value = fma(u, f, s)
                if backward:
                    g = gate(value, load_first(bias, row + c, count), slope, ceiling)
                    value = fma(g, f, fma(u, load_first(table, 2 * stride + c, count), load_first(table, 3 * stride + c, count)))
                else:
                    value = rectify(value, slope, ceiling)
                store_first(y, row + c, value, count)


# -- layer norm -----------------------------------------------------------------------------------------------------------


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


def _chunks(rows: int, channels: int) -> tuple[int, int]:
    each = max(1, -(-TASK // max(1, channels)))
    return each, -(-rows // each)


@functools.lru_cache(maxsize=1024)
def _sums(images: int, rows: int, channels: int, dtype: str, gated: bool, slope: float, ceiling: float | None) -> BoundKernel:
    scalar = np.dtype(dtype).type
    constants = (images, rows, channels, *_chunks(rows, channels), gated, scalar(slope), scalar(NO_CEILING if ceiling is None else ceiling))
    return sum_rows_twice.bind(dtype, constants, scratch=2 * lane_count(dtype), parallel=images * rows * channels > SERIAL_ELEMENTS)


@functools.lru_cache(maxsize=1024)
def _scale(images: int, rows: int, channels: int, dtype: str, backward: bool, slope: float, ceiling: float | None) -> BoundKernel:
    scalar = np.dtype(dtype).type
    constants = (images, rows, channels, *_chunks(rows, channels), backward, scalar(slope),
                 scalar(NO_CEILING if ceiling is None else ceiling))
    return scale_rows.bind(dtype, constants, parallel=images * rows * channels > SERIAL_ELEMENTS)


def row_statistics(x: np.ndarray, images: int, channels: int) -> np.ndarray:
    """(2, images, channels): sums over the rows of each image of x less the first row, and of the square, in float64."""
    rows = x.size // (images * channels)
    parts = np.empty((images, _chunks(rows, channels)[1], 2, channels))
    flat = x.reshape(-1)
    _sums(images, rows, channels, x.dtype.name, False, 1.0, None)(flat, flat, flat, parts.reshape(-1).view(x.dtype))
    return parts.sum(axis=1).transpose(1, 0, 2)


def row_gradient_sums(x: np.ndarray, gy: np.ndarray, mean: np.ndarray, table: np.ndarray, rectifier: tuple[float, float]) -> np.ndarray:
    """(2, images, channels): sums of gy and of gy (x - mean); `table` is (2, images, channels): factor, term."""
    _, images, channels = table.shape
    rows = x.size // (images * channels)
    parts = np.empty((images, _chunks(rows, channels)[1], 2, channels))
    slope, ceiling = rectifier
    kernel = _sums(images, rows, channels, x.dtype.name, True, slope, None if ceiling == math.inf else ceiling)
    tables = np.empty((3, images, channels), x.dtype)
    tables[0], tables[1:] = mean, table
    kernel(x.reshape(-1), gy.reshape(-1), tables.reshape(-1), parts.reshape(-1).view(x.dtype))
    sums = parts.sum(axis=1).transpose(1, 0, 2)
    sums[1] -= (mean - tables[0]) * sums[0]  # what the kernel subtracts is the rounded mean
    return sums


def scaled_rows(x: np.ndarray, table: np.ndarray, rectifier: tuple[float, float]) -> np.ndarray:
    """The rectified factor * x + term; `table` is (2, images, channels)."""
    y = np.empty(x.shape, x.dtype)
    _, images, channels = table.shape
    slope, ceiling = rectifier
    kernel = _scale(images, x.size // (images * channels), channels, x.dtype.name, False, slope, ceiling)
    flat = x.reshape(-1)
    kernel(flat, table.reshape(-1), flat, y.reshape(-1))
    return y


def scaled_rows_gradient(x: np.ndarray, gy: np.ndarray, table: np.ndarray, rectifier: tuple[float, float]) -> np.ndarray:
    """Factor * gy + by_source * x + constant; `table` is (4, images, channels): factor, term, by_source, constant."""
    gx = np.empty(x.shape, x.dtype)
    _, images, channels = table.shape
    slope, ceiling = rectifier
    kernel = _scale(images, x.size // (images * channels), channels, x.dtype.name, True, slope, None if ceiling == math.inf else ceiling)
    kernel(x.reshape(-1), table.reshape(-1), gy.reshape(-1), gx.reshape(-1))
    return gx


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
    _layer_norm(rows, size, eps, x.dtype.name)(x.reshape(-1), parameters, table.view(x.dtype), y.reshape(-1))
    return y, table


def rows_normalized_gradient(x: np.ndarray, gy: np.ndarray, weight: np.ndarray, statistics: np.ndarray,
                             ) -> tuple[np.ndarray, np.ndarray]:
    """The gradient of x, and (2, size): those of weight and bias."""
    gx = np.empty(x.shape, x.dtype)
    size = weight.size
    rows = x.size // size
    kernel, chunks = _layer_norm_gradient(rows, size, x.dtype.name)
    table = np.empty(size + 2 * rows + chunks * 2 * size)
    view = table.view(x.dtype)
    view[:size] = weight.reshape(-1)
    table[size:size + 2 * rows] = statistics
    kernel(x.reshape(-1), gy.reshape(-1), view, gx.reshape(-1))
    return gx, table[size + 2 * rows:].reshape(chunks, 2, size).sum(axis=0)
