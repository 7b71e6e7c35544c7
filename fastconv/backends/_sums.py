"""Sums over all but the channels of an image: the gradient of a bias.

Numba vectorises no float sum, so that it stays what was written; here several vectors of partial sums run over a block of
elements, and the blocks' totals are added in float64.
"""

from __future__ import annotations

import math

import numpy as np

from ._jit import outlined, parallel_region
from ._scratch import scratch
from ._simd import get, lane_count, lanes_of, load, load_first, next_task, parallel_kernel, pointer, store, total, zero

BLOCK = 4096  # elements, or rows of channels, added in the array's own precision: 64 steps of a float32 sum
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


@parallel_kernel
def sum_planes(args, thread):
    """parts[image, chunk, channel] of an image with channels first, by (image, channel, chunk of a plane)."""
    source, parts, images, channels, size, counter = args
    chunks = parts.shape[1]
    while True:
        task = next_task(pointer(counter, 0))
        if task >= images * channels * chunks:
            break
        plane, chunk = task // chunks, task % chunks
        first, last = chunk * TASK, min(size, (chunk + 1) * TASK)
        result = 0.0
        for i in range(first, last, BLOCK):
            result += sum_run(pointer(source, plane * size + i), min(BLOCK, last - i))
        parts[plane // channels, chunk, plane % channels] = result


@parallel_kernel
def sum_pixels(args, thread):
    """parts[chunk, channel] of rows of channels, by chunks of rows."""
    source, parts, rows, channels, chunk_rows, sums, counter = args
    lanes = lanes_of(pointer(source, 0))
    own = pointer(sums, thread * lanes)
    while True:
        chunk = next_task(pointer(counter, 0))
        if chunk >= parts.shape[0]:
            break
        last = min(rows, (chunk + 1) * chunk_rows)
        for c in range(channels):
            parts[chunk, c] = 0.0
        for c in range(0, channels, lanes):
            for r in range(chunk * chunk_rows, last, BLOCK // lanes):
                sum_rows(pointer(source, r * channels + c), channels, min(BLOCK // lanes, last - r), channels - c, own)
                for i in range(min(lanes, channels - c)):
                    parts[chunk, c + i] += get(own, i)


def channel_sums(image: np.ndarray, channel_axis: int) -> np.ndarray:
    """The sum of each channel of (N, C, ...) or (N, ..., C), for float32 and float64 in C order."""
    channels = image.shape[channel_axis]
    counter = np.zeros(1, np.int64)
    with parallel_region() as threads:
        if channel_axis == 1:
            size = math.prod(image.shape[2:])
            planes = np.empty((image.shape[0], -(-size // TASK), channels))
            sum_planes((image.reshape(-1), planes, image.shape[0], channels, size, counter), threads)
            parts = planes.reshape(-1, channels)
        else:
            rows = image.size // channels
            chunk_rows = max(BLOCK // 16, TASK // channels)
            parts = np.empty((-(-rows // chunk_rows), channels))
            sums = scratch("sums", threads * lane_count(image.dtype), image.dtype)
            sum_pixels((image.reshape(-1), parts, rows, channels, chunk_rows, sums, counter), threads)
    with np.errstate(invalid="ignore", over="ignore"):
        return parts.sum(axis=0).astype(image.dtype)
