"""What goes before a product and after it: weights to tiles of rows, the parts of a split sum to its result."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from . import SIMULATED, cuda, fetch, i32, load, quotient, shared_memory, store, zero_of
from .compiling import Code
from .gemm import ENTRY, PHASE
from .sums import rectifier

__all__ = ["SQUARE", "Packed", "Parts", "Turned", "pack_code", "sum_parts_code", "turn_code"]

THREADS = 8 if SIMULATED else 256


class Packed(NamedTuple):
    """Weights as rows of taps, each with all rows of the product; offsets count elements."""

    groups: int
    rows: int
    pitch: int
    w_group: int
    w_row: int


@functools.cache
def pack_code(dtype: str) -> Code:
    """packed[phase, group, tap, row] = w[group, row, tap]; zero for taps and rows beyond the last. A block a tap."""

    def pack(w, taps, phases, packed, g):
        own = i32(cuda.blockIdx.z * PHASE)
        group, tap = cuda.blockIdx.y, cuda.blockIdx.x
        steps = quotient(fetch(phases, own + 5), g.pitch)
        if tap >= steps:
            return
        inside = tap < fetch(phases, own + 1)
        source = fetch(taps, (fetch(phases, own + 3) + tap) * ENTRY + 1) + group * g.w_group
        target = fetch(phases, own + 4) + (group * steps + tap) * g.pitch
        for row in range(cuda.threadIdx.x, g.pitch, THREADS):
            store(packed, target + row, fetch(w, source + row * g.w_row) if inside and row < g.rows else zero_of(w))

    return Code(f"pack.{dtype}", pack, (dtype, "int32", "int32", dtype), Packed, 0, THREADS)


class Turned(NamedTuple):
    """The gradient of an output as rows of points; strides count elements."""

    groups: int
    rows: int
    points: int  # of an image
    columns: int  # of an output row
    total: int  # points of all images
    steps: int  # the same, filled up
    pitch: int
    y_image: int
    y_group: int
    y_channel: int
    y_row: int
    y_column: int
    channels_last: int


SQUARE = 8 if SIMULATED else 32  # of the tile that is turned in shared memory
TURNING_ROWS = 1 if SIMULATED else 8  # of threads


@functools.cache
def turn_code(dtype: str) -> Code:
    """packed[group, point, row] = gy[image, group, row, point]; zero beyond the last. A block a square, read along the points."""
    threads = SQUARE * TURNING_ROWS

    def turn(gy, packed, g):
        memory = shared_memory(gy)
        lane, line = cuda.threadIdx.x % SQUARE, cuda.threadIdx.x // SQUARE
        first_point, first_row, group = cuda.blockIdx.x * SQUARE, cuda.blockIdx.y * SQUARE, cuda.blockIdx.z
        for i in range(line, SQUARE, TURNING_ROWS):
            p, r = (i, lane) if g.channels_last else (lane, i)
            point, row = first_point + p, first_row + r
            image, q = point // g.points, point % g.points
            at = image * np.int64(g.y_image) + group * g.y_group + row * np.int64(g.y_channel)
            at += q // g.columns * g.y_row + q % g.columns * g.y_column
            value = fetch(gy, at) if point < g.total and row < g.rows else zero_of(gy)
            store(memory, r * (SQUARE + 1) + p, value)
        cuda.syncthreads()
        for p in range(line, SQUARE, TURNING_ROWS):
            if first_point + p < g.steps:
                at = (group * np.int64(g.steps) + first_point + p) * g.pitch + first_row + lane
                store(packed, at, load(memory, lane * (SQUARE + 1) + p))

    return Code(f"turn.{dtype}", turn, (dtype, dtype), Turned, 0, threads)


class Parts(NamedTuple):
    """The parts of a result of (outer, channels, inner)."""

    parts: int
    outer: int
    channels: int
    inner: int
    has_bias: int


@functools.cache
def sum_parts_code(dtype: str) -> Code:
    """y = epilogue(sum of the parts + bias)."""
    finish = rectifier(dtype)

    def sum_parts(parts, bias, y, g, slope, ceiling):
        size = np.int64(g.outer) * g.channels * g.inner
        index = cuda.blockIdx.x * np.int64(THREADS) + cuda.threadIdx.x
        if index < size:
            total = fetch(bias, index // g.inner % g.channels) if g.has_bias else zero_of(y)
            for part in range(g.parts):
                total += fetch(parts, part * size + index)
            store(y, index, finish(total, slope, ceiling))

    return Code(f"sum_parts.{dtype}", sum_parts, (dtype, dtype, dtype), Parts, 2, THREADS)
