"""Sums over all but the channels of an image: the gradient of a bias.

Numba vectorises no float sum, so that it stays what was written; here several vectors of partial sums run over a block of
elements, and the blocks' totals are added in float64 by the thread that is done last.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from ._jit import outlined
from ._simd import (
    advance,
    as_float64,
    get,
    lane_count,
    lanes_of,
    load,
    load_first,
    next_task,
    parallel_kernel,
    put,
    shared_out,
    store,
    thawed,
    total,
    zero,
)

BLOCK = 4096  # elements added in the array's own precision: 64 steps of a float32 sum
ROWS = 256  # rows of channels added so
TASK = 8 * BLOCK  # elements of a task: a few microseconds


@outlined
def sum_run(source, count):
    """The sum of source[:count]."""
    lanes = lanes_of(source)
    a = b = c = d = zero(source)
    whole = count - count % (4 * lanes)
    for i in range(0, whole, 4 * lanes):
        a += load(source, i)
        b += load(source, i + lanes)
        c += load(source, i + 2 * lanes)
        d += load(source, i + 3 * lanes)
    for i in range(whole, count, lanes):
        a += load_first(source, i, count - i)
    return total((a + b) + (c + d))


@outlined
def sum_rows(source, pitch, rows, count, target):
    """target[:lanes] = the sum of `rows` rows, `pitch` apart, of at most a vector's lanes; those from `count` on are zero."""
    lanes = lanes_of(source)
    a = b = zero(source)
    if count >= lanes:
        for r in range(0, rows - 1, 2):
            a += load(source, r * pitch)
            b += load(source, (r + 1) * pitch)
    else:
        for r in range(0, rows - 1, 2):
            a += load_first(source, r * pitch, count)
            b += load_first(source, (r + 1) * pitch, count)
    if rows % 2 == 1:
        a += load_first(source, (rows - 1) * pitch, count)
    store(target, 0, a + b)


@outlined
def add_parts(parts, count, channels, target):
    """target[channel] = the sum of parts[:count][channel], in their order."""
    for i in range(1, count):
        for c in range(channels):
            put(parts, c, get(parts, c) + get(parts, i * channels + c))
    for c in range(channels):
        put(target, c, get(parts, c))


@parallel_kernel
def sum_planes(x, w, bias, y, constants, scratch, counters, thread, threads):
    """parts[image][chunk][channel] of an image with channels first, by runs of (image, channel, chunk of a plane)."""
    images, channels, size, chunks, run = thawed(constants)
    parts = as_float64(w)
    for part in shared_out(counters, run, images * channels * chunks):
        plane, chunk = part // chunks, part % chunks
        last = min(size, (chunk + 1) * TASK)
        result = 0.0
        for i in range(chunk * TASK, last, BLOCK):
            result += sum_run(advance(x, plane * size + i), min(BLOCK, last - i))
        put(parts, (plane // channels * chunks + chunk) * channels + plane % channels, result)
    if next_task(advance(counters, 1)) == threads - 1:
        add_parts(parts, images * chunks, channels, y)


@parallel_kernel
def sum_pixels(x, w, bias, y, constants, scratch, counters, thread, threads):
    """parts[chunk][channel] of rows of channels, by chunks of rows."""
    rows, channels, chunk_rows, chunks = thawed(constants)
    lanes = lanes_of(x)
    parts = as_float64(w)
    while True:
        chunk = next_task(counters)
        if chunk >= chunks:
            break
        last = min(rows, (chunk + 1) * chunk_rows)
        for c in range(channels):
            put(parts, chunk * channels + c, 0.0)
        for r in range(chunk * chunk_rows, last, ROWS):
            for c in range(0, channels, lanes):
                sum_rows(advance(x, r * channels + c), channels, min(ROWS, last - r), channels - c, scratch)
                for i in range(min(lanes, channels - c)):
                    at = chunk * channels + c + i
                    put(parts, at, get(parts, at) + get(scratch, i))
    if next_task(advance(counters, 1)) == threads - 1:
        add_parts(parts, chunks, channels, y)


class ChannelSums:
    """The sums of the channels of arrays of one shape, whose axis `axis` counts them."""

    def __init__(self, shape: tuple[int, ...], axis: int, dtype: np.dtype):
        self.channels, self.dtype = shape[axis], dtype
        outer, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1:])
        parallel = math.prod(shape) > TASK
        if inner == 1:
            chunk_rows = max(ROWS, TASK // self.channels)
            self.parts = -(-outer // chunk_rows)
            self.kernel = sum_pixels.bind(dtype, (outer, self.channels, chunk_rows, self.parts), scratch=lane_count(dtype), counters=2,
                                          parallel=parallel)
        else:
            chunks = -(-inner // TASK)
            self.parts = outer * chunks
            self.kernel = sum_planes.bind(dtype, (outer, self.channels, inner, chunks, -(-TASK // inner)), counters=2, parallel=parallel)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """The sums of a contiguous image."""
        sums = np.empty(self.channels, self.dtype)
        self.kernel(image, np.empty(self.parts * self.channels), sums, sums)
        return sums


@functools.lru_cache(maxsize=256)
def channel_sums(shape: tuple[int, ...], axis: int, dtype: np.dtype) -> ChannelSums:
    """What sums the channels of a float32 or float64 image in C order; it has some elements."""
    return ChannelSums(shape, axis, dtype)
