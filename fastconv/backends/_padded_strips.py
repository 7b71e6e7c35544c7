"""Narrow planes (depthwise layers): rows copied with their border of zeros, so that no tile needs a mask.

On planes of a few vectors most tiles of `_strips` touch an edge, and their masks, one a tap and a vector, take a third of the
time. Here a task's rows are copied into scratch, where an image row starts at a cache line between zeros: whole vectors, a
twelfth of the work of 7x7. Tiles are tall, for their weights are broadcast once for all columns, their input rows read
once for all output rows; the last rows of a plane are left to a short one.

Rates of the tiles of 7x7 in the first-level cache, of 166 GFLOP/s a core of an Intel Xeon: 14 x 2 vectors 153, 7 x 3 150,
6 x 4 143; `_strips` with masks 114.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from ..problem import Problem
from ._gemm import epilogue_of
from ._jit import address_of, addressed, outlined
from ._planes import PlaneEngine, task_size, with_waiting
from ._simd import (
    advance,
    lane_count,
    lanes_of,
    load,
    load_first,
    own_first,
    parallel_kernel,
    store,
    strip_tile,
    thawed,
    zero,
)
from ._simd.emit import VECTOR_REGISTERS, pointer_to
from ._strips import call_strips, strips_signature

# Rows of a tall and of a short tile: the sums, a column of input vectors and a weight fill the registers.
TALL, SHORT, COLUMNS = (14, 7, 2) if VECTOR_REGISTERS == 32 else (6, 3, 2)
SIZES = (5, 7, 9)

# Costs in vector multiply-adds (bench_conv.py, depthwise 7x7)
EFFICIENCY = 0.92  # of the tiles
VECTOR_OVERHEAD = 9  # of a vector of outputs
COPY_COST = 4  # of a vector of input
PLANE_OVERHEAD = 250
CHUNK_BYTES = 32 * 1024  # of copied rows: with y's they share the first-level cache (bench_conv.py, depthwise 7x7)


class Padded(NamedTuple):
    """Sizes of one plane's convolution and of its tasks; integers only, as the kernel takes it."""

    planes: int  # output planes: batch * output channels
    out_channels: int
    group_out: int
    in_h: int
    in_w: int
    out_h: int
    out_w: int
    taps: int
    kernel_h: int
    block: int  # planes of a task
    chunk: int  # rows of a task
    pitch: int  # of the copied rows
    left: int  # where the image begins in them
    origin: int  # where its border begins


def make_padded(size: int):
    """All tiles of a copied plane, for one kernel size, to be called through its address."""

    def padded_strips(x, pitch, rows, step, zeros, w, bias, y, y_pitch, out_h, run, end, low, in_w, dilation, epilogue):
        width = COLUMNS * lanes_of(w)
        for column in range(0, end, width):
            r = 0
            while out_h - r > SHORT:
                strip_tile(x, pitch, advance(rows, r), step, zeros, column, in_w, dilation, w, bias, advance(y, r * y_pitch + column),
                           y_pitch, out_h - r, end - column, epilogue, size, size, 1, TALL, COLUMNS, False)
                r += TALL
            if r < out_h:
                strip_tile(x, pitch, advance(rows, r), step, zeros, column, in_w, dilation, w, bias, advance(y, r * y_pitch + column),
                           y_pitch, out_h - r, end - column, epilogue, size, size, 1, SHORT, COLUMNS, False)

    return addressed(padded_strips)


PADDED = {size: make_padded(size) for size in SIZES}


@functools.cache
def padded_address(size: int, dtype: str) -> int:
    """Address of the compiled strips of a kernel size."""
    return address_of(PADDED[size], strips_signature(pointer_to(dtype)))


@outlined
def copy_plane(g, x, rows, first, count, target):
    """Copy the padded input rows of `count` output rows from `first` on; what is left and right of them is zero already."""
    lanes = lanes_of(x)
    whole = g.in_w - g.in_w % lanes
    for i in range(count - 1 + g.kernel_h):
        source = rows[first + i]
        to = advance(target, i * g.pitch + g.left)
        if source < 0:
            for c in range(0, g.in_w, lanes):
                store(to, c, zero(to))
        else:
            row = advance(x, source * g.in_w)
            for c in range(0, whole, lanes):
                store(to, c, load(row, c))
            if whole < g.in_w:
                store(to, whole, load_first(row, whole, g.in_w - whole))


@parallel_kernel
def direct_padded(x, w, bias, y, constants, scratch, counters, thread, threads):
    """y = epilogue(convolution of each plane of x with its kernel + bias), by (block of planes, chunk of rows)."""
    g, rows, identity, strips, epilogue, size, shares = thawed(constants)
    lanes = lanes_of(x)
    chunks = -(-g.out_h // g.chunk)
    tasks = -(-g.planes // g.block) * chunks
    for i in range(0, size, lanes):
        store(scratch, i, zero(scratch))
    for task in own_first(counters, thread, shares, tasks):
        first, block = task % chunks * g.chunk, task // chunks * g.block
        count = min(g.chunk, g.out_h - first)
        copied = -1
        for plane in range(block, min(block + g.block, g.planes)):
            image = plane // g.group_out
            if image != copied:
                copy_plane(g, advance(x, image * g.in_h * g.in_w), rows, first, count, scratch)
                copied = image
            channel = plane % g.out_channels
            call_strips(strips, advance(scratch, g.origin), g.pitch, identity, 1, scratch, advance(w, channel * g.taps),
                        advance(bias, channel), advance(y, (plane * g.out_h + first) * g.out_w), g.out_w, count, 0, g.out_w, 0,
                        g.pitch, 1, epilogue)


def fits(problem: Problem) -> bool:
    """Whether padded strips compute a problem: a forward pass over single planes with a border of zeros, square and of stride 1."""
    p = problem
    return (p.pass_name == "forward" and not p.channels_last and p.group_in == 1 and p.padding_mode == "zeros"
            and p.stride == (1, 1, 1) and p.dilation == (1, 1, 1) and p.kernel_size[0] == 1 and p.input_size[0] == 1
            and p.kernel_size[1] == p.kernel_size[2] in SIZES and not any(p.padding[0]) and p.padding[2][0] >= 0
            and min(p.input_size) > 0 and _pitch(p)[0] * (p.kernel_size[1] + TALL) * p.itemsize <= 2 * CHUNK_BYTES)


def _pitch(problem: Problem) -> tuple[int, int]:
    """Pitch of the copied rows, and where an image row begins in them: at a whole vector."""
    p, lanes = problem, lane_count(problem.dtype)
    low, width = p.padding[2][0], COLUMNS * lanes
    left = -(-low // lanes) * lanes
    reached = left - low + -(-p.output_size[2] // width) * width + p.kernel_size[2] - 1
    return -(-max(left + p.input_size[2], reached) // lanes) * lanes, left


def slots(problem: Problem) -> float:
    """Time of a run on one thread, in vector multiply-adds, more where there are few tasks; infinite where they do not fit."""
    if not fits(problem):
        return math.inf
    p, lanes = problem, lane_count(problem.dtype)
    vectors = -(-p.output_size[2] // (lanes * COLUMNS)) * COLUMNS
    tall, rest = divmod(p.output_size[1], TALL)
    rows = tall * TALL + (TALL if rest > SHORT else SHORT if rest else 0)
    copied = p.padded_size[1] * -(-p.input_size[2] // lanes) * COPY_COST / p.group_out
    tasks = p.batch * p.out_channels * -(-p.output_size[1] // TALL)
    each = rows * vectors * (p.taps / EFFICIENCY + VECTOR_OVERHEAD) + copied + PLANE_OVERHEAD
    return with_waiting(p, p.batch * p.out_channels * each, tasks)


def _padded(problem: Problem) -> Padded:
    p = problem
    (_, in_h, in_w), (_, out_h, out_w) = p.input_size, p.output_size
    pitch, left = _pitch(p)
    planes = p.batch * p.out_channels
    fitting = (CHUNK_BYTES // (pitch * p.itemsize) - p.kernel_size[1]) // TALL
    block, chunk = task_size(p, planes, -(-out_h // TALL), most=fitting)
    return Padded(planes, p.out_channels, p.group_out, in_h, in_w, out_h, out_w, p.taps, p.kernel_size[1], block, chunk * TALL,
                  pitch, left, left - p.padding[2][0])


class PaddedStrips(PlaneEngine):
    """The forward pass by strips of copied rows."""

    def __init__(self, problem: Problem):
        p, g = problem, _padded(problem)
        _, rows, _ = p.border_sources()
        copied = g.chunk - 1 + g.kernel_h
        identity = np.arange(copied + TALL, dtype=np.int32)
        size = (copied + TALL) * g.pitch  # the last tile reads rows beyond those copied
        constants = (g, rows, identity, padded_address(p.kernel_size[1], p.dtype), epilogue_of(p), size)
        super().__init__(p, direct_padded, constants, scratch=size)
