"""The forward pass of `im2col` of few points whose weights are used once, channels first: weights as they lie.

    y[o, p] = bias[o] + sum over (c, t) of  w[o, (c, t)] * x[c, stride p + dilation t - low]

The rows of the product are output channels, whose weights are broadcast from where they lie: packing them takes as long as the
products where points are few. Its columns are points. The input is copied with its border of zeros, each phase of the stride a
plane of its own, so that a tap of all points is one run of a plane: points of the columns beyond an output row are
computed with the others, and left out when y is written.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..problem import Problem
from . import Machine
from ._boxes import copy_run, speedup
from ._gemm import epilogue_of
from ._jit import num_threads, outlined
from ._planes import uses_threads
from ._scratch import shared
from ._simd import (
    COUNTER_PITCH,
    advance,
    get,
    lane_count,
    lanes_of,
    load,
    own_first,
    parallel_kernel,
    prefetch_read,
    put,
    rectify,
    shared_out,
    store,
    store_first,
    thawed,
    tile_columns_of,
    tile_outer,
    tile_store,
    zero,
)
from ._simd.emit import VECTOR_REGISTERS

ROWS, COLUMNS = (6, 4) if VECTOR_REGISTERS == 32 else (6, 2)  # of the register tile: output channels, vectors of points
LINE = 16  # steps of a sum, in which each row's weights are fetched ahead once
AHEAD = 64 * LINE  # steps: a page
MOST_POINTS = 128  # columns, those beyond output rows among them: of more, the weights' packing pays (bench_conv.py, 3x3s2_256@28)
PLANE_TASK = 4096  # elements of the planes that a task copies
# The cost model (bench_conv.py, 3x3_512@7, 3x3s2_512@14, plain calls):
EFFICIENCY = 0.9  # share of the peak in the products
TILE_OVERHEAD = 40  # steps of a sum that filling a tile and writing its rows costs
COPY_COST = 8  # vector multiply-adds of an element that is copied to a plane by itself, for a stride
CALL_SECONDS = 3e-6  # of Python around a run, and of a second region


class Rows(NamedTuple):
    """A forward convolution as a product with planes; integers only, as the kernels take it."""

    groups: int
    group_in: int
    group_out: int
    images: int
    in_h: int
    in_w: int
    out_h: int
    out_w: int
    stride_h: int
    stride_w: int
    low_h: int
    low_w: int
    plane_h: int  # of one image and phase
    plane_w: int
    plane: int
    channel: int  # planes of a channel: by phase down, phase across, image
    depth: int  # terms of a sum
    blocks: int  # of COLUMNS vectors
    size: int  # of all planes, and of the vectors that reach beyond the last


def rows_of(problem: Problem) -> Rows:
    """The product of a problem of one depth."""
    p = problem
    reach = [d * (k - 1) // s for d, k, s in zip(p.dilation, p.kernel_size, p.stride, strict=True)]
    plane_h, plane_w = (p.output_size[axis] + reach[axis] for axis in (1, 2))
    plane = plane_h * plane_w
    channel = math.prod(p.stride[1:]) * p.batch * plane
    points = (p.batch - 1) * plane + (p.output_size[1] - 1) * plane_w + p.output_size[2]
    width = COLUMNS * lane_count(p.dtype)
    numbers: tuple[int, ...] = (
        p.groups, p.group_in, p.group_out, p.batch, *p.input_size[1:], *p.output_size[1:], *p.stride[1:], p.padding[1][0],
        p.padding[2][0], plane_h, plane_w, plane, channel, p.taps, -(-points // width), p.in_channels * channel + width)
    return Rows(*numbers)


# -- kernels --------------------------------------------------------------------------------------------------------------


@outlined
def copy_phases(g, source, row, target):
    """One row of the image as row `row` of the planes of the phases across, which begin at `target`."""
    for phase in range(g.stride_w):
        to = advance(target, phase * g.images * g.plane + row * g.plane_w)
        first = (phase - g.low_w) % g.stride_w
        column = (first + g.low_w) // g.stride_w
        if column < 0:
            first, column = first - column * g.stride_w, 0
        count = max(0, min(-(-(g.in_w - first) // g.stride_w), g.plane_w - column))
        if g.stride_w == 1:
            copy_run(advance(to, column), advance(source, first), count)
        else:
            for i in range(count):
                put(to, column + i, get(source, first + i * g.stride_w))


@parallel_kernel
def split_planes(x, w, bias, planes, constants, scratch, counters, thread, threads):
    """The planes of x, by channel."""
    g, run = thawed(constants)
    lanes = lanes_of(x)
    channels = g.groups * g.group_in
    for channel in shared_out(counters, run, channels):
        target = advance(planes, channel * g.channel)
        end = g.size - channel * g.channel if channel == channels - 1 else g.channel
        for i in range(0, end, lanes):
            store_first(target, i, zero(x), end - i)
        for image in range(g.images):
            source = advance(x, (image * channels + channel) * g.in_h * g.in_w)
            for i in range(g.in_h):
                row, phase = (i + g.low_h) // g.stride_h, (i + g.low_h) % g.stride_h
                if 0 <= row < g.plane_h:
                    copy_phases(g, advance(source, i * g.in_w), row, advance(target, (phase * g.stride_w * g.images + image) * g.plane))


@outlined
def multiply_planes(g, w, outputs, planes, k_offsets, bias, sums, pitch, following):
    """A tile of sums; the weights `following` those of its rows are fetched at the end."""
    acc = tile_columns_of(bias, ROWS, COLUMNS)
    for first in range(0, g.depth, LINE):
        ahead = first + AHEAD if first + AHEAD < g.depth else first + AHEAD - g.depth + following
        for r in range(ROWS):
            prefetch_read(w, get(outputs, r) + ahead)
        for k in range(first, min(first + LINE, g.depth)):
            acc = tile_outer(acc, advance(w, k), outputs, advance(planes, get(k_offsets, k)), ROWS)
    tile_store(sums, pitch, acc, ROWS)


@parallel_kernel
def im2col_forward_rows(planes, w, bias, y, constants, scratch, counters, thread, threads):
    """y = epilogue(convolution with w + bias), by ROWS output channels; the last may be some of those before."""
    g, outputs, k_offsets, epilogue, shares = thawed(constants)
    lanes = lanes_of(planes)
    per_group = -(-g.group_out // ROWS)
    pitch = g.blocks * COLUMNS * lanes
    for task in own_first(counters, thread, shares, g.groups * per_group):
        group = task // per_group
        channel = group * g.group_out + min(task % per_group * ROWS, g.group_out - ROWS)
        for block in range(g.blocks):
            at = block * COLUMNS * lanes
            following = ROWS * g.depth if block == g.blocks - 1 else 0
            multiply_planes(g, advance(w, channel * g.depth), outputs, advance(planes, group * g.group_in * g.channel + at), k_offsets,
                            advance(bias, channel), advance(scratch, at), pitch, following)
        for r in range(ROWS):
            sums = advance(scratch, r * pitch)
            if epilogue.rectify:
                for i in range(0, pitch, lanes):
                    store(sums, i, rectify(load(sums, i), epilogue.slope, epilogue.ceiling))
            for image in range(g.images):
                result = advance(y, (image * g.groups * g.group_out + channel + r) * g.out_h * g.out_w)
                for i in range(g.out_h):
                    copy_run(advance(result, i * g.out_w), advance(sums, image * g.plane + i * g.plane_w), g.out_w)


# -- the engine -----------------------------------------------------------------------------------------------------------


def fits(problem: Problem) -> bool:
    """Whether it is a convolution of one depth, of floats between zeros, with outputs for a tile."""
    p = problem
    return (not p.channels_last and np.dtype(p.dtype).kind == "f" and p.padding_mode == "zeros" and p.group_out >= ROWS
            and p.flops > 0 and p.input_size[0] * p.output_size[0] * p.kernel_size[0] * p.stride[0] == 1 and not any(p.padding[0]))


def rows_seconds(problem: Problem, machine: Machine) -> float:
    """Time of the copy and of the products, columns beyond the points among them; infinite where it is not for the problem."""
    p = problem
    if not fits(p):
        return math.inf
    g, lanes = rows_of(p), lane_count(p.dtype)
    if g.blocks * COLUMNS * lanes > MOST_POINTS:
        return math.inf
    tiles = p.groups * -(-p.group_out // ROWS)
    multiply = 2 * ROWS * tiles * g.blocks * COLUMNS * lanes * (g.depth + TILE_OVERHEAD) / (EFFICIENCY * machine.flops(p.dtype))
    copied = 2 * lanes * COPY_COST * math.prod(p.input_shape) * (1 if p.stride[2] > 1 else 1 / 2) / machine.flops(p.dtype)
    work = multiply / speedup(tiles, machine.threads) + copied / machine.threads  # the weights are fetched meanwhile
    return CALL_SECONDS + 2 * machine.region_seconds + work


class ForwardRows:
    """The forward pass of weights that are used once."""

    def __init__(self, problem: Problem):
        p = self.problem = problem
        g, threads, parallel = rows_of(p), num_threads(), uses_threads(p)
        self.size = g.size
        self.split = split_planes.bind(p.dtype, (g, max(1, PLANE_TASK // g.channel)), parallel=parallel)
        outputs = (np.arange(ROWS) * g.depth).astype(np.int32)
        constants = (g, outputs, self._offsets(g), epilogue_of(p), threads)
        self.kernel = im2col_forward_rows.bind(p.dtype, constants, scratch=ROWS * g.blocks * COLUMNS * lane_count(p.dtype),
                                               counters=threads * COUNTER_PITCH, parallel=parallel)
        self.no_bias = np.zeros(p.out_channels, p.dtype)

    def _offsets(self, g: Rows) -> np.ndarray:
        """Offset of each term of a sum in the planes of a group."""
        p = self.problem
        down, across = (np.arange(p.kernel_size[axis]) * p.dilation[axis] for axis in (1, 2))
        phases = (down % g.stride_h)[:, None] * g.stride_w + across % g.stride_w
        spatial = phases * g.images * g.plane + (down // g.stride_h)[:, None] * g.plane_w + across // g.stride_w
        return (np.arange(g.group_in)[:, None] * g.channel + spatial.ravel()).astype(np.int32).ravel()

    def run(self, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> None:
        planes = shared("planes", self.size, self.problem.dtype)
        self.split(x.reshape(-1), planes, planes, planes)
        self.kernel(planes, w.reshape(-1), self.no_bias if bias is None else bias, out.reshape(-1))
