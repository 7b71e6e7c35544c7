"""The samples of a deformable convolution, and the gradients of its input, offsets and mask.

A sample reads four neighbours, weighted bilinearly, of a place that is the same for all channels of an offset group. Places
are computed once, a vector of points at a time, into a table that every pass reads; channels lie last, so that a vector is
some channels of a pixel. Pixels come in a border of zeros, so that no neighbour needs a test and a NaN elsewhere does not
spread.

The samples are rows of pixels, (N, L, taps, C), that one matrix product multiplies by the weights. With groups they are
planes, (N, C, taps, L): products of few channels are fast where the points are contiguous, so that blocks of samples are
transposed in scratch on their way. The gradient of the input adds to four pixels, so that its tasks are blocks of channels;
offsets' and mask's sum over channels, so that theirs are runs of points. Offsets and mask are one array, `moves`: all
offsets (N, groups, taps, 2, L), then the mask (N, groups, taps, L) if there is one.

Tried: channels first, the points of a plane one by one, took four to six times as long for 64 channels; places and weights
tabulated a point at a time in each pass took most of the time of few channels; samples as pixels with groups too, whose
gradients took twice as long with 64 groups.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..problem import Problem
from ._jit import inlined, num_threads, outlined
from ._local import load_some, store_some
from ._simd import (
    BoundKernel,
    advance,
    choose_greater,
    floor,
    fma,
    get,
    lane_count,
    lanes_of,
    parallel_kernel,
    put,
    shared_out,
    splat,
    spread,
    thawed,
    total,
    transpose_block,
    transpose_whole,
    zero,
)
from ._simd.threads import ParallelKernel
from ._unfolding import Windows, windows_of

RUN = 64  # points of a task: with 576 channels and taps their samples take 150 KB, which stay in the second-level cache
ROW, COLUMN, DOWN, RIGHT, SCALE, FIELDS = range(6)  # of the table: the upper left neighbour, fractions towards the next, the mask


class Sampling(NamedTuple):
    """Sizes of the offsets and of the samples, and how tasks are cut."""

    groups: int  # of channels that share offsets
    channels: int  # of such a group
    taps: int
    points: int
    run: int
    block: int  # channels of a task that adds to the input's gradient
    masked: bool
    planes: bool  # whether the samples of a channel lie together
    pitch: int  # pixels of a padded row
    plane: int  # pixels of a padded image


@parallel_kernel
def tabulate(places, w, moves, table, constants, scratch, counters, thread, threads):
    """The table (N, groups, taps, FIELDS, L) of the moves; places (2, L) are those of a tap without padding and offsets.

    A sample from -1 outwards is zero, but at -1 itself its slopes exist, as torchvision has them: the places of both are kept,
    and others, NaN among them, become that of zeros below the image.
    """
    g, s = thawed(constants)
    lanes, rows = lanes_of(table), g.images * s.groups * s.taps
    one, below = spread(table, 1), spread(table, g.in_h + 1)
    high, wide, least = spread(table, g.in_h), spread(table, g.in_w), zero(table) - one
    for row in shared_out(counters, 1, rows):
        tap, target = row % s.taps, advance(table, row * FIELDS * s.points)
        at_y = spread(table, tap // g.kernel_w * g.dilation_h - g.low_h)
        at_x = spread(table, tap % g.kernel_w * g.dilation_w - g.low_w)
        offsets, mask = advance(moves, row * 2 * s.points), advance(moves, (2 * rows + row) * s.points)
        for i in range(0, s.points, lanes):
            left = s.points - i
            y = load_some(offsets, i, left) + (load_some(places, i, left) + at_y)
            x = load_some(offsets, s.points + i, left) + (load_some(places, s.points + i, left) + at_x)
            y = choose_greater(least, y, below, choose_greater(high, y, y, below))
            y = choose_greater(least, x, below, choose_greater(wide, x, y, below))
            x = choose_greater(below, y, x, least)
            top, start = floor(y), floor(x)
            store_some(target, ROW * s.points + i, top, left)
            store_some(target, COLUMN * s.points + i, start, left)
            store_some(target, DOWN * s.points + i, y - top, left)
            store_some(target, RIGHT * s.points + i, x - start, left)
            store_some(target, SCALE * s.points + i, load_some(mask, i, left) if s.masked else one, left)


@inlined
def neighbour(table, s, i):
    """The upper left neighbour of a point's slopes in a padded plane."""
    return (np.int64(get(table, i)) + 1) * s.pitch + np.int64(get(table, COLUMN * s.points + i)) + 1


@inlined
def sampled_neighbour(table, s, i):
    """That of its sample: of zeros where the sample lies outside or just touches the border."""
    row, column = get(table, i), get(table, COLUMN * s.points + i)
    if (row < 0 and get(table, DOWN * s.points + i) == 0) or (column < 0 and get(table, RIGHT * s.points + i) == 0):
        return s.plane - 2 * s.pitch
    return (np.int64(row) + 1) * s.pitch + np.int64(column) + 1


@inlined
def neighbour_weights(table, s, i):
    """Those of the four neighbours of a point, times the mask: upper left and right, lower left and right."""
    down, right, scale = splat(table, DOWN * s.points + i), splat(table, RIGHT * s.points + i), splat(table, SCALE * s.points + i)
    lower = scale * down
    upper = scale - lower
    b, d = upper * right, lower * right
    return upper - b, b, lower - d, d


@outlined
def transpose(source, source_pitch, rows, columns, target, target_pitch):
    """target[c * target_pitch + r] = source[r * source_pitch + c]."""
    lanes = lanes_of(source)
    for r in range(0, rows, lanes):
        for c in range(0, columns, lanes):
            block, to = advance(source, r * source_pitch + c), advance(target, c * target_pitch + r)
            if rows - r >= lanes and columns - c >= lanes:
                transpose_whole(block, source_pitch, to, target_pitch)
            else:
                transpose_block(block, source_pitch, rows - r, min(lanes, columns - c), to, target_pitch, min(lanes, rows - r))


@outlined
def sample_points(x, s, channels, count, table, y, pitch):
    """The samples of one tap at each point of a run, for the channels of an offset group; `pitch` from point to point."""
    lanes = lanes_of(x)
    for i in range(count):
        upper, target = advance(x, sampled_neighbour(table, s, i) * channels), advance(y, i * pitch)
        lower = advance(upper, s.pitch * channels)
        a, b, c, d = neighbour_weights(table, s, i)
        for k in range(0, s.channels, lanes):
            left = s.channels - k
            value = fma(b, load_some(upper, k + channels, left), a * load_some(upper, k, left))
            value += fma(d, load_some(lower, k + channels, left), c * load_some(lower, k, left))
            store_some(target, k, value, left)


@inlined
def samples_at(g, s, n, channel, tap, point):
    """Where the samples of a tap begin, from a channel and a point on."""
    if s.planes:
        return ((n * g.channels + channel) * s.taps + tap) * s.points + point
    return ((n * s.points + point) * s.taps + tap) * g.channels + channel


@parallel_kernel
def sample_pixels(x, w, table, y, constants, scratch, counters, thread, threads):
    """y, the samples, from the padded x (N, plane, C)."""
    g, s = thawed(constants)
    runs = -(-s.points // s.run)
    for task in shared_out(counters, 1, g.images * runs):
        n, first = task // runs, task % runs * s.run
        count = min(s.run, s.points - first)
        for group in range(s.groups):
            source = advance(x, n * s.plane * g.channels + group * s.channels)
            for tap in range(s.taps):
                moved = advance(table, ((n * s.groups + group) * s.taps + tap) * FIELDS * s.points + first)
                target = advance(y, samples_at(g, s, n, group * s.channels, tap, first))
                if s.planes:
                    sample_points(source, s, g.channels, count, moved, scratch, s.channels)
                    transpose(scratch, s.channels, count, s.channels, target, s.taps * s.points)
                else:
                    sample_points(source, s, g.channels, count, moved, target, s.taps * g.channels)


@outlined
def spread_points(columns, pitch, s, channels, size, count, table, gx):
    """Add the gradients of one tap's samples, of `size` channels, to the neighbours of each point, by their weights."""
    lanes = lanes_of(gx)
    for i in range(count):
        upper, source = advance(gx, sampled_neighbour(table, s, i) * channels), advance(columns, i * pitch)
        lower = advance(upper, s.pitch * channels)
        a, b, c, d = neighbour_weights(table, s, i)
        for k in range(0, size, lanes):
            left = size - k
            value = load_some(source, k, left)
            store_some(upper, k, fma(a, value, load_some(upper, k, left)), left)
            store_some(upper, k + channels, fma(b, value, load_some(upper, k + channels, left)), left)
            store_some(lower, k, fma(c, value, load_some(lower, k, left)), left)
            store_some(lower, k + channels, fma(d, value, load_some(lower, k + channels, left)), left)


@parallel_kernel
def spread_pixels(columns, w, table, gx, constants, scratch, counters, thread, threads):
    """gx (N, plane, C), padded, which holds zeros, += the gradient of the samples."""
    g, s = thawed(constants)
    blocks = -(-s.channels // s.block)
    for task in shared_out(counters, 1, g.images * s.groups * blocks):
        n, group, start = task // (s.groups * blocks), task // blocks % s.groups, task % blocks * s.block
        channel, size = group * s.channels + start, min(s.block, s.channels - start)
        target = advance(gx, n * s.plane * g.channels + channel)
        for first in range(0, s.points, s.run):
            count = min(s.run, s.points - first)
            for tap in range(s.taps):
                moved = advance(table, ((n * s.groups + group) * s.taps + tap) * FIELDS * s.points + first)
                source = advance(columns, samples_at(g, s, n, channel, tap, first))
                if s.planes:
                    transpose(source, s.taps * s.points, size, count, scratch, size)
                    spread_points(scratch, size, s, g.channels, size, count, moved, target)
                else:
                    spread_points(source, s.taps * g.channels, s, g.channels, size, count, moved, target)


@outlined
def slope_points(columns, pitch, x, s, channels, count, table, gmoves, mask_row):
    """The gradients of the moves of one tap at each point of a run: sums over the channels of an offset group."""
    lanes = lanes_of(x)
    for i in range(count):
        upper, source = advance(x, neighbour(table, s, i) * channels), advance(columns, i * pitch)
        lower = advance(upper, s.pitch * channels)
        down, right, scale = splat(table, DOWN * s.points + i), splat(table, RIGHT * s.points + i), get(table, SCALE * s.points + i)
        by_y = by_x = by_mask = zero(x)
        for k in range(0, s.channels, lanes):
            left = s.channels - k
            gradient, a, b = load_some(source, k, left), load_some(upper, k, left), load_some(upper, k + channels, left)
            c, d = load_some(lower, k, left), load_some(lower, k + channels, left)
            across = b - a
            twist = (d - c) - across
            fall = fma(right, twist, c - a)
            by_y = fma(gradient, fall, by_y)
            by_x = fma(gradient, fma(down, twist, across), by_x)
            by_mask = fma(gradient, fma(down, fall, fma(right, across, a)), by_mask)
        put(gmoves, i, total(by_y) * scale)
        put(gmoves, s.points + i, total(by_x) * scale)
        if s.masked:
            put(mask_row, i, total(by_mask))


@parallel_kernel
def slopes(columns, x, table, gmoves, constants, scratch, counters, thread, threads):
    """Gradients of the moves from that of the samples and the padded x."""
    g, s = thawed(constants)
    runs = -(-s.points // s.run)
    for task in shared_out(counters, 1, g.images * runs):
        n, first = task // runs, task % runs * s.run
        count = min(s.run, s.points - first)
        for group in range(s.groups):
            image = advance(x, n * s.plane * g.channels + group * s.channels)
            for tap in range(s.taps):
                row = (n * s.groups + group) * s.taps + tap
                moved = advance(table, row * FIELDS * s.points + first)
                source = advance(columns, samples_at(g, s, n, group * s.channels, tap, first))
                by_place = advance(gmoves, row * 2 * s.points + first)
                by_mask = advance(gmoves, (g.images * s.groups * s.taps * 2 + row) * s.points + first)
                if s.planes:
                    transpose(source, s.taps * s.points, s.channels, count, scratch, s.channels)
                    slope_points(scratch, s.channels, image, s, g.channels, count, moved, by_place, by_mask)
                else:
                    slope_points(source, s.taps * g.channels, image, s, g.channels, count, moved, by_place, by_mask)


class DeformableKernels(NamedTuple):
    """The kernels of a deformable convolution, see the functions; and the first operand and the size of the table."""

    tabulate: BoundKernel
    sample: BoundKernel
    spread: BoundKernel
    slopes: BoundKernel
    places: np.ndarray
    table_size: int


def deformable_kernels(problem: Problem, groups: int, masked: bool) -> DeformableKernels:
    """The kernels for the shapes of a forward convolution, and `groups` of channels that share offsets."""
    p = problem
    g: Windows = windows_of(p)
    taps, points, channels, lanes = math.prod(p.kernel_size), math.prod(p.output_size), p.in_channels // groups, lane_count(p.dtype)
    rows, pitch = p.input_size[1] + 4, p.input_size[2] + 2  # a border of one, and two rows for samples outside
    parts = -(-2 * num_threads() // (p.batch * groups))
    block = max(1, -(-channels // (parts * lanes))) * lanes
    s = Sampling(groups, channels, taps, points, min(RUN, points), block, masked, p.groups > 1, pitch, rows * pitch)
    parallel = p.batch * p.in_channels * taps * points > RUN * RUN
    places = np.indices(p.output_size[1:]).reshape(2, -1) * np.reshape(p.stride[1:], (2, 1))

    def bound(kernel: ParallelKernel, scratch: int = 0) -> BoundKernel:
        return kernel.bind(p.dtype, (g, s), scratch=scratch, parallel=parallel)

    size = s.run * channels if s.planes else 0
    return DeformableKernels(bound(tabulate), bound(sample_pixels, size), bound(spread_pixels, size), bound(slopes, size),
                             places.astype(p.dtype).reshape(-1), p.batch * groups * taps * FIELDS * points)
