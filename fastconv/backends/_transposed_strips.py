"""Gradients of the input of single planes with stride 2, and transposed convolutions of them, without a pass for each phase.

    gx[2 a + i, 2 b + j] = sum over m, n of  w[i + 2 m, j + 2 n] gy[a - m, b - n]

A tile is some rows of gy by one vector of its columns, and the four sums (i, j) of each of its points: twice the rows of
gx by twice the columns, interleaved in registers and written once. As in `_strips` nothing is copied: rows of gy outside
the image are a row of zeros, columns outside it are masked where a tile touches them.

Coordinates of gx here start at the padding; where that is odd, a row of gx starts with the odd column of a pair.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import intrinsic

from ..problem import Problem
from ._gemm import epilogue_of, epilogue_type
from ._jit import address_of, addressed
from ._planes import PLANE_OVERHEAD, PlaneEngine, task_size
from ._simd import (
    VECTOR_REGISTERS,
    advance,
    lane_count,
    lanes_of,
    own_first,
    parallel_kernel,
    tap_vectors,
    thawed,
    transposed_tile,
)
from ._simd.emit import call_by_address, pointer_to

# Costs in vector multiply-adds (bench_conv.py, depthwise, grad_input)
EFFICIENCY = 0.6  # of the tiles, masked ones at the edges included
VECTOR_OVERHEAD = 24  # of a vector of gy: four of gx are written
STRIDE = 2
SIZES = (2, 3, 4, 5, 7)  # of the square kernels that there are strips for
HOISTED_TAPS = 9  # taps that stay in registers beside a tile's sums


def tile_height(size: int) -> int:
    """Rows of gy in a tile."""
    if VECTOR_REGISTERS < 32:
        return 2
    return 4 if size * size <= HOISTED_TAPS else 6


def make_transposed(size: int):
    """All tiles of some rows of one plane, for one kernel size, to be called through its address."""
    taps, height = size * size, tile_height(size)
    hoisted = VECTOR_REGISTERS == 32 and taps <= HOISTED_TAPS

    def strips(gy, rows, zeros, w, bias, gx, in_h, in_w, out_w, first, count, start, odd, epilogue):
        vectors = tap_vectors(w, taps) if hoisted else w
        lanes = lanes_of(w)
        least = (size - 1) // 2 + (odd if size % 2 == 0 else 0)  # columns that taps reach to the left
        inside = min(in_w // 2, out_w - start) - lanes  # the last column of a tile that no border touches
        for a in range(0, count, height):
            row = first + 2 * a
            # Rows of the last tile beyond the task's are another's, or outside the image.
            end = min(in_h, first + 2 * count)
            for b in range(0, (in_w + 1) // 2, lanes):
                target = advance(gx, row * in_w + 2 * b)
                if start + b >= least and b <= inside:
                    transposed_tile(gy, out_w, advance(rows, a), zeros, start + b, odd, out_w, vectors, bias, target, in_w, row, end,
                                    2 * b, in_w, epilogue, size, height, False)
                else:
                    transposed_tile(gy, out_w, advance(rows, a), zeros, start + b, odd, out_w, vectors, bias, target, in_w, row, end,
                                    2 * b, in_w, epilogue, size, height, True)

    return addressed(strips)


STRIPS = {size: make_transposed(size) for size in SIZES}


def _signature(p: types.CPointer) -> tuple[Any, ...]:
    return (p, types.CPointer(types.int32), p, p, p, p, *[types.int64] * 7, epilogue_type(p))


@functools.cache
def transposed_address(size: int, dtype: str) -> int:
    """Address of the compiled strips of a kernel size."""
    return address_of(STRIPS[size], _signature(pointer_to(dtype)))


@intrinsic
def call_transposed(typingctx, strips, gy, rows, zeros, w, bias, gx, in_h, in_w, out_w, first, count, start, odd, epilogue):
    """Call strips through their address."""
    return call_by_address(_signature(gy))


class Planes(NamedTuple):
    """Sizes of the planes and of the tasks; integers only, as the kernel takes it."""

    planes: int  # of gx: batch * channels
    channels: int
    group_in: int
    in_h: int
    in_w: int
    out_h: int
    out_w: int
    taps: int
    first: int  # row of gx where pairs of rows start: 0, or -1
    pairs: int  # of rows of gx
    start: int  # column of gy that meets the first tap at the first pair of columns
    odd: int  # whether pairs of columns start with the odd one
    block: int  # planes of a task
    chunk: int  # pairs of rows of a task


@parallel_kernel
def direct_transposed(gy, w, bias, gx, constants, scratch, counters, thread, threads):
    """gx = epilogue(transposed convolution of each plane of gy with its kernel + bias), by (block of planes, run of rows)."""
    g, rows, zeros, strips, epilogue, shares = thawed(constants)
    chunks = -(-g.pairs // g.chunk)
    tasks = -(-g.planes // g.block) * chunks
    for task in own_first(counters, thread, shares, tasks):
        begin, block = task % chunks * g.chunk, task // chunks * g.block
        for plane in range(block, min(block + g.block, g.planes)):
            channel = plane % g.channels
            call_transposed(strips, advance(gy, plane // g.group_in * g.out_h * g.out_w), advance(rows, begin), zeros,
                            advance(w, channel * g.taps), advance(bias, channel), advance(gx, plane * g.in_h * g.in_w), g.in_h, g.in_w,
                            g.out_w, g.first + 2 * begin, min(g.chunk, g.pairs - begin), g.start, g.odd, epilogue)


def fits(problem: Problem) -> bool:
    """Whether strips compute a gradient of the input: planes apart, channels first, stride 2, a kernel size that has a strip."""
    p = problem
    return (p.pass_name == "grad_input" and p.padding_mode == "zeros" and not p.channels_last and p.group_out == 1
            and p.kernel_size[0] == p.input_size[0] == p.stride[0] == 1 and not any(p.padding[0])
            and p.stride[1:] == (STRIDE, STRIDE) and p.dilation[1:] == (1, 1)
            and p.kernel_size[1] == p.kernel_size[2] and p.kernel_size[1] in SIZES)


def slots(problem: Problem) -> float:
    """Time of a run on one thread, in vector multiply-adds; infinite where strips do not fit."""
    p = problem
    if not fits(p):
        return math.inf
    height = tile_height(p.kernel_size[1])
    rows = -(-(p.input_size[1] + 1) // (2 * height)) * height
    vectors = -(-p.input_size[2] // (2 * lane_count(p.dtype)))
    return p.batch * p.in_channels * (rows * vectors * (math.prod(p.kernel_size) / EFFICIENCY + VECTOR_OVERHEAD) + PLANE_OVERHEAD)


def _planes(problem: Problem) -> Planes:
    p = problem
    (_, in_h, in_w), (_, out_h, out_w) = p.input_size, p.output_size
    (low_h, _), (low_w, _) = p.padding[1:]
    planes = p.batch * p.in_channels
    height = tile_height(p.kernel_size[1])
    first = -(low_h % 2)
    pairs = -(-(in_h - first) // 2)
    block, chunk = task_size(p, planes, -(-pairs // height))
    return Planes(planes, p.in_channels, p.group_in, in_h, in_w, out_h, out_w, math.prod(p.kernel_size), first, pairs,
                  -(-low_w // 2), low_w % 2, block, chunk * height)


class TransposedStrips(PlaneEngine):
    """The gradient of the input by strips."""

    def __init__(self, problem: Problem):
        p, g, size = problem, _planes(problem), problem.kernel_size[1]
        reach = (size + 1) // 2
        rows = np.arange(g.pairs + tile_height(size) + reach - 1) + p.padding[1][0] // 2 - (reach - 1)
        rows = np.where((rows >= 0) & (rows < g.out_h), rows, -1).astype(np.int32)
        constants = (g, rows, np.zeros(g.out_w, p.dtype), transposed_address(size, p.dtype), epilogue_of(p))
        super().__init__(p, direct_transposed, constants)
