"""What goes before a product and after it: weights to tiles of rows, the parts of a split sum to its result."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from . import SIMULATED, cuda, fetch, i32, inlined, load, pack_halves, quotient, round_tf32, shared_memory, store, zero_of
from .compiling import Code
from .fragments import ELEMENTS
from .sums import rectifier
from .tables import ENTRY, PHASE

__all__ = ["SQUARE", "Packed", "Parts", "Turned", "pack_code", "packed_word", "sum_parts_code", "turn_code"]

THREADS = 8 if SIMULATED else 256


class Packed(NamedTuple):
    """Weights as rows of taps, each with all rows of the product; offsets count elements."""

    groups: int
    rows: int
    pitch: int
    w_group: int
    w_row: int


@functools.cache
def packed_word(factors: str) -> tuple[int, str, Callable]:
    """(steps of the depth in an element, its dtype, the element out of as many values) of a packed factor."""
    if factors == "float16":
        return 2, "int32", inlined(lambda low, high: pack_halves(low, high))
    return 1, ELEMENTS[factors], inlined((lambda value, _: round_tf32(value)) if factors == "tf32" else lambda value, _: value)


@functools.cache
def pack_code(factors: str) -> Code:
    """packed[phase, group, tap, row] = w[group, row, tap], rounded; zero for taps and rows beyond the last. A block a step or two."""
    steps, packed_dtype, word = packed_word(factors)

    @inlined
    def weight(w, taps, own, tap, group, row, g):
        entry = (own[1] + tap) * ENTRY
        inside = tap < own[0] and row < g.rows
        return fetch(w, fetch(taps, entry + 2) + group * g.w_group + row * g.w_row) if inside else zero_of(w)

    def pack(w, taps, phases, packed, g):
        phase = i32(cuda.blockIdx.z * PHASE)
        group, line = cuda.blockIdx.y, cuda.blockIdx.x
        lines = quotient(fetch(phases, phase + 5), g.pitch)
        if line >= lines:
            return
        own = fetch(phases, phase + 1), fetch(phases, phase + 3)
        target = fetch(phases, phase + 4) + (group * lines + line) * g.pitch
        for row in range(cuda.threadIdx.x, g.pitch, THREADS):
            first = weight(w, taps, own, line * steps, group, row, g)
            store(packed, target + row, word(first, weight(w, taps, own, line * steps + 1, group, row, g) if steps > 1 else first))

    dtype = ELEMENTS[factors]
    return Code(f"pack.{factors}", pack, (dtype, "int32", "int32", packed_dtype), Packed, 0, THREADS)


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
def turn_code(factors: str) -> Code:
    """packed[group, point, row] = gy[image, group, row, point], rounded; zero beyond the last. A block a square, read along the points."""
    threads = SQUARE * TURNING_ROWS
    steps, packed_dtype, word = packed_word(factors)

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
        own = lane * (SQUARE + 1)
        for p in range(line * steps, SQUARE, TURNING_ROWS * steps):
            if first_point + p < g.steps:
                at = (group * np.int64(g.steps) + first_point + p) // steps * g.pitch + first_row + lane
                store(packed, at, word(load(memory, own + p), load(memory, own + p + steps - 1)))

    dtype = ELEMENTS[factors]
    return Code(f"turn.{factors}", turn, (dtype, packed_dtype), Turned, 0, threads)


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
