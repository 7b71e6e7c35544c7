"""Depthwise convolutions whose lanes are channels: no lane is lost on narrow planes, and channels-last images are read as they lie.

The input rows of a run of output rows are copied into scratch, one vector of channels a pixel, with their borders and split
by the phase of the stride; channels-first images are transposed on the way in and out. A tile is some pixels of a row, in
registers over all taps.

What did not pay: one tap at a time, which needs no neighbours and so serves every stride and dilation, but loads as many
vectors as it multiplies (188 GFLOP/s, not 270); transposing by masked blocks only (twice the time of whole ones);
prefetching a block's lines of y and the next block's of x during the sums (nothing gained).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..problem import Problem
from ._boxes import TASKS_PER_THREAD, strides_of
from ._gemm import epilogue_of
from ._jit import inlined, num_threads, outlined
from ._planes import PlaneEngine
from ._simd import (
    advance,
    get,
    lane_count,
    lanes_of,
    load,
    load_first,
    own_first,
    parallel_kernel,
    store,
    thawed,
    tile_load,
    tile_pixels,
    tile_store_pixels,
    transpose_block,
    transpose_whole,
    zero,
)

# Costs in vector multiply-adds (bench_conv.py, depthwise)
EFFICIENCY = 0.87  # of all that follows
SINGLE_STEP = 1.3  # of a tap on its own, which loads each pixel again
PIXEL_OVERHEAD = 10  # of a pixel of outputs
TRANSPOSE_OVERHEAD = 10  # of the same where channels come first
COPY_COST = 10  # of a pixel of padded input
GATHER_COST = 10  # of a tap's weights
RUN_BYTES = 256 * 1024  # of copied input and sums of a task: a quarter of the second-level cache (bench_conv.py, depthwise 7x7)
MOST_BYTES = 4 * 1024 * 1024  # of scratch of a thread
TAP_RUN = 3  # neighbouring taps of a kernel row at once: a pixel loaded once meets all of them (one at a time reached 188 GFLOP/s)
LARGE_TILE, SMALL_TILE = 14, 7  # pixels: with the weights' vector they fill 16 registers


class Channels(NamedTuple):
    """Sizes and strides of a depthwise convolution by blocks of channels; integers only, as the kernel takes it."""

    last: bool  # whether channels come last
    channels: int
    batch: int
    in_h: int
    in_w: int
    out_h: int
    out_w: int
    kernel_h: int
    taps: int
    tap_runs: int  # of neighbouring taps
    tap_singles: int  # other taps
    stride: int
    dilation_h: int
    low_h: int
    low_w: int
    padded_w: int
    x_image: int
    x_channel: int
    x_h: int
    x_w: int
    y_image: int
    y_channel: int
    y_point: int
    run: int  # output rows of a task
    phase: int  # elements of a copied row of one phase of the stride
    row: int  # of a copied row
    w_start: int  # where the weights, the bias and the sums stand in scratch
    bias_start: int
    sums_start: int


def make_pixels(count: int):
    """The micro-kernel of `count` pixels."""

    @outlined
    def pixels(x, taps, runs, singles, w, bias, y, pitch, wanted, channels, epilogue):
        acc = tile_load(bias, 0, count, 1)
        for k in range(0, 2 * runs, 2):
            acc = tile_pixels(acc, advance(x, get(taps, k)), advance(w, get(taps, k + 1)), TAP_RUN)
        for k in range(2 * runs, 2 * (runs + singles), 2):
            acc = tile_pixels(acc, advance(x, get(taps, k)), advance(w, get(taps, k + 1)), 1)
        tile_store_pixels(y, pitch, acc, wanted, channels, epilogue)

    return pixels


large_pixels, small_pixels = make_pixels(LARGE_TILE), make_pixels(SMALL_TILE)


@inlined
def gather_weights(g, w, bias, first, channels, target, bias_target):
    """The taps of a block of channels, a vector a tap, and its bias."""
    lanes = lanes_of(w)
    store(bias_target, 0, load_first(bias, first, channels))
    if g.last:
        for k in range(g.taps):
            store(target, k * lanes, load_first(w, k * g.channels + first, channels))
    else:
        transpose_pixels(advance(w, first * g.taps), g.taps, channels, g.taps, target, lanes)


@outlined
def transpose_pixels(source, source_pitch, rows, columns, target, target_pitch):
    """target[c * target_pitch + r] = source[r * source_pitch + c] for c < columns, any number; rows beyond `rows` are zeros.

    The last block starts early where there are columns enough: whole blocks take half the time.
    """
    lanes = lanes_of(source)
    for c in range(0, columns, lanes):
        at = min(c, max(0, columns - lanes))
        if rows == lanes and columns >= lanes:
            transpose_whole(advance(source, at), source_pitch, advance(target, at * target_pitch), target_pitch)
        else:
            transpose_block(advance(source, at), source_pitch, rows, min(lanes, columns), advance(target, at * target_pitch), target_pitch,
                            lanes)


@outlined
def transpose_sums(sums, points, channels, target, target_pitch):
    """target[c * target_pitch + p] = sums[p * lanes + c]."""
    lanes = lanes_of(sums)
    for p in range(0, points, lanes):
        at = min(p, max(0, points - lanes))
        if channels == lanes and points >= lanes:
            transpose_whole(advance(sums, at * lanes), lanes, advance(target, at), target_pitch)
        else:
            count = min(lanes, points)
            transpose_block(advance(sums, at * lanes), lanes, count, channels, advance(target, at), target_pitch, count)


@inlined
def copy_pixels(g, source, columns, channels, target):
    """One padded row of the image, a vector a pixel, split by the phase of the stride."""
    lanes = lanes_of(source)
    if g.last:
        for phase in range(g.stride):
            to = advance(target, phase * g.phase)
            for p in range(phase, g.padded_w, g.stride):
                if columns[p] < 0:
                    store(to, 0, zero(to))
                elif channels >= lanes:
                    store(to, 0, load(source, columns[p] * g.x_w))
                else:
                    store(to, 0, load_first(source, columns[p] * g.x_w, channels))
                to = advance(to, lanes)
    else:
        low = max(0, g.low_w)
        first = max(0, -g.low_w)
        inside = min(g.in_w - first, g.padded_w - low)
        transpose_pixels(advance(source, first), g.x_channel, channels, inside, advance(target, low * lanes), lanes)
        for p in range(g.padded_w):
            if p < low or p >= low + inside:
                to = advance(target, p * lanes)
                if columns[p] < 0:
                    store(to, 0, zero(to))
                else:
                    store(to, 0, load(target, (low + columns[p] - first) * lanes))


@inlined
def convolve_row(g, x, taps, w, bias, y, pitch, channels, epilogue):
    """One row of outputs, `pitch` elements apart; the last tile starts early where the row is long enough."""
    lanes = lanes_of(x)
    column = 0
    while column < g.out_w:
        left = g.out_w - column
        size = LARGE_TILE if left > SMALL_TILE else SMALL_TILE
        at = max(0, min(column, g.out_w - size))
        source, target = advance(x, at * lanes), advance(y, at * pitch)
        if left > SMALL_TILE:
            large_pixels(source, taps, g.tap_runs, g.tap_singles, w, bias, target, pitch, g.out_w - at, channels, epilogue)
        else:
            small_pixels(source, taps, g.tap_runs, g.tap_singles, w, bias, target, pitch, g.out_w - at, channels, epilogue)
        column += size


@parallel_kernel
def direct_channels(x, w, bias, y, constants, scratch, counters, thread, threads):
    """y = epilogue(depthwise convolution of x with w + bias), by (image, run of rows, block of channels)."""
    g, rows, columns, taps, epilogue, shares = thawed(constants)
    lanes = lanes_of(x)
    blocks = -(-g.channels // lanes)
    runs = -(-g.out_h // g.run)
    weights, start, sums = advance(scratch, g.w_start), advance(scratch, g.bias_start), advance(scratch, g.sums_start)
    tasks = g.batch * runs * blocks
    for task in own_first(counters, thread, shares, tasks):
        first = task % blocks * lanes
        begin = task // blocks % runs * g.run
        image = task // (blocks * runs)
        channels = min(lanes, g.channels - first)
        end = min(begin + g.run, g.out_h)
        gather_weights(g, w, bias, first, channels, weights, start)
        source = advance(x, image * g.x_image + first * g.x_channel)
        for i in range((end - begin - 1) * g.stride + (g.kernel_h - 1) * g.dilation_h + 1):
            number = rows[begin * g.stride + i]
            if number < 0:
                for p in range(0, g.row, lanes):
                    store(scratch, i * g.row + p, zero(scratch))
            else:
                copy_pixels(g, advance(source, number * g.x_h), columns, channels, advance(scratch, i * g.row))
        target = advance(y, image * g.y_image + first * g.y_channel + begin * g.out_w * g.y_point)
        for r in range(end - begin):
            source_row = advance(scratch, r * g.stride * g.row)
            if g.last:
                pixel = advance(target, r * g.out_w * g.y_point)
                convolve_row(g, source_row, taps, weights, start, pixel, g.y_point, channels, epilogue)
            else:
                convolve_row(g, source_row, taps, weights, start, advance(sums, r * g.out_w * lanes), lanes, lanes, epilogue)
        if not g.last:
            transpose_sums(sums, (end - begin) * g.out_w, channels, target, g.y_channel)


def fits(problem: Problem) -> bool:
    """Whether blocks of channels compute a problem: depthwise in two dimensions, of the same stride along both."""
    p = problem
    return (p.pass_name == "forward" and p.group_in == p.group_out == 1 and p.kernel_size[0] == 1 and p.stride[0] == 1
            and p.input_size[0] == 1 and not any(p.padding[0]) and p.stride[1] == p.stride[2] and (p.stride[1] == 1 or p.channels_last)
            and _row(p) * (p.dilation[1] * (p.kernel_size[1] - 1) + 4) * p.itemsize <= MOST_BYTES)


def _row(p: Problem) -> int:
    """Elements of a copied row, with what a tile longer than a row of outputs reads too much."""
    size = LARGE_TILE if p.output_size[2] > SMALL_TILE else SMALL_TILE
    beyond = max(0, size - p.output_size[2])
    return p.stride[2] * (-(-p.padded_size[2] // p.stride[2]) + beyond) * lane_count(p.dtype)


def slots(problem: Problem) -> float:
    """Time of a run on one thread, in vector multiply-adds; infinite where blocks of channels do not fit."""
    p = problem
    if not fits(p):
        return math.inf
    width = p.output_size[2]
    pixels = -(-width // SMALL_TILE) * SMALL_TILE
    step = 1.0 if p.kernel_size[2] >= TAP_RUN and p.stride[2] == p.dilation[2] == 1 else SINGLE_STEP
    each = p.taps * step + PIXEL_OVERHEAD + (0 if p.channels_last else TRANSPOSE_OVERHEAD)
    copied = p.padded_size[1] * p.padded_size[2] * COPY_COST
    block = p.output_size[1] * pixels * each + copied + p.taps * GATHER_COST
    return p.batch * -(-p.out_channels // lane_count(p.dtype)) * block / EFFICIENCY


def _channels(problem: Problem) -> Channels:
    p = problem
    lanes, stride = lane_count(p.dtype), p.stride[1]
    (_, in_h, in_w), (_, out_h, out_w) = p.input_size, p.output_size
    row, reach_h = _row(p), p.dilation[1] * (p.kernel_size[1] - 1)
    row_bytes = (row * stride + out_w * lanes) * p.itemsize
    blocks = p.batch * -(-p.out_channels // lanes)
    wanted = -(-TASKS_PER_THREAD * num_threads() // blocks)
    run = min(out_h, max(1, reach_h // stride, RUN_BYTES // row_bytes))
    if -(-out_h // run) < wanted:
        run = max(min(run, 2 * reach_h // stride), min(run, -(-out_h // wanted)), 1)
    run = -(-out_h // -(-out_h // run))
    x_strides = strides_of(p.in_channels, p.input_size, p.channels_last)
    y_strides = strides_of(p.out_channels, p.output_size, p.channels_last)
    runs = p.kernel_size[2] // TAP_RUN if stride == p.dilation[2] == 1 else 0
    w_start = ((run - 1) * stride + reach_h + 1) * row
    return Channels(p.channels_last, p.out_channels, p.batch, in_h, in_w, out_h, out_w, p.kernel_size[1], p.taps,
                    p.kernel_size[1] * runs, p.kernel_size[1] * (p.kernel_size[2] - runs * TAP_RUN), stride, p.dilation[1],
                    p.padding[1][0], p.padding[2][0], p.padded_size[2], x_strides[0], x_strides[1], *x_strides[3:],
                    y_strides[0], y_strides[1], y_strides[4], run, row // stride, row, w_start, w_start + p.taps * lanes,
                    w_start + (p.taps + 1) * lanes)


class ByChannels(PlaneEngine):
    """The forward pass by blocks of channels."""

    def __init__(self, problem: Problem):
        p, g, lanes = problem, _channels(problem), lane_count(problem.dtype)
        _, rows, columns = p.border_sources()
        (_, kh, kw), (_, dilation_h, dilation_w) = p.kernel_size, p.dilation
        column = np.arange(kw) * dilation_w
        offset = np.arange(kh)[:, None] * dilation_h * g.row + column % g.stride * g.phase + column // g.stride * lanes
        table = np.stack([offset, np.arange(p.taps).reshape(kh, kw) * lanes], axis=-1).astype(np.int32)
        alone = kw - g.tap_runs // kh * TAP_RUN
        taps = np.concatenate([table[:, :kw - alone:TAP_RUN].ravel(), table[:, kw - alone:].ravel()])
        size = g.sums_start + (0 if p.channels_last else g.run * g.out_w * lanes)
        super().__init__(p, direct_channels, (g, rows, columns, taps, epilogue_of(p)), scratch=size)
