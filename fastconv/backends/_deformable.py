"""The samples of a deformable convolution, and the gradients of its input, offsets and mask.

A sample reads four neighbours, weighted bilinearly, of a place that is the same for all channels of an offset group. Places
and weights are computed once, into tables of a run of points, and then serve the group's channels, which lie last: a vector
is some channels of a pixel. Pixels come in a border of zeros, so that no neighbour needs a test and a NaN elsewhere does not
spread.

The samples (N, L, taps, C) are rows of pixels that a convolution of kernel (1, taps) multiplies by the weights. The gradient
of the input adds to four pixels, so that its tasks are blocks of channels; offsets' and mask's sum over channels, so that
theirs are runs of points. Offsets and mask are one array, `moves`: all offsets (N, groups, taps, 2, L), then the mask (N,
groups, taps, L) if there is one.

Tried: channels first, the points of a plane one by one, took four to six times as long for 64 channels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..problem import Problem
from ._jit import num_threads, outlined
from ._local import load_some, store_some
from ._simd import (
    BoundKernel,
    advance,
    as_int64,
    fma,
    get,
    lane_count,
    lanes_of,
    parallel_kernel,
    put,
    shared_out,
    splat,
    thawed,
    total,
    zero,
    zero_element,
)
from ._simd.threads import ParallelKernel
from ._unfolding import Windows, windows_of

RUN = 64  # points of a task: with 576 channels and taps their samples take 150 KB, which stay in the second-level cache
LONG_RUN = 512  # points tabulated at once where samples are read: 20 KiB in the first-level cache
FIELDS = 8  # of a point: weights of the four neighbours, fractions y and x, mask, unused


class Sampling(NamedTuple):
    """Sizes of the offsets and of the samples, and how tasks are cut."""

    groups: int  # of channels that share offsets
    channels: int  # of such a group
    taps: int
    points: int
    run: int
    block: int  # channels of a task that adds to the input's gradient
    masked: bool
    pitch: int  # pixels of a padded row
    plane: int  # pixels of a padded image


@outlined
def tabulate(moves, g, s, n, group, tap, first, count, slopes, places, table):
    """For each point the place of its sample's upper left neighbour in a padded plane, and its FIELDS.

    A sample is zero from -1 outwards, but at -1 itself its slopes exist: `slopes` asks for those, as torchvision has them.
    """
    nothing = zero_element(table)
    one = nothing + 1
    row_y = ((n * s.groups + group) * s.taps + tap) * 2 * s.points
    row_mask = g.images * s.groups * s.taps * 2 * s.points + ((n * s.groups + group) * s.taps + tap) * s.points
    out_h, out_w = first // g.out_w, first % g.out_w
    at_h, at_w = tap // g.kernel_w * g.dilation_h - g.low_h, tap % g.kernel_w * g.dilation_w - g.low_w
    for i in range(count):
        y = get(moves, row_y + first + i) + (nothing + (out_h * g.stride_h + at_h))
        x = get(moves, row_y + s.points + first + i) + (nothing + (out_w * g.stride_w + at_w))
        out_w += 1
        if out_w == g.out_w:
            out_w, out_h = 0, out_h + 1
        to = advance(table, i * FIELDS)
        if not (y >= -1 and y < g.in_h and x >= -1 and x < g.in_w) or (not slopes and (y == -1 or x == -1)):
            put(places, i, (g.in_h + 2) * s.pitch)
            for field in range(FIELDS):
                put(to, field, nothing)
            continue
        row, column = np.int64(math.floor(y)), np.int64(math.floor(x))
        down, right = y - (nothing + row), x - (nothing + column)
        scale = get(moves, row_mask + first + i) if s.masked else one
        put(places, i, (row + 1) * s.pitch + column + 1)
        put(to, 0, (one - down) * (one - right))
        put(to, 1, (one - down) * right)
        put(to, 2, down * (one - right))
        put(to, 3, down * right)
        put(to, 4, down)
        put(to, 5, right)
        put(to, 6, scale)


@outlined
def sample_points(x, s, channels, count, places, table, y):
    """The samples of one tap at each point of a run, for the channels of an offset group."""
    lanes = lanes_of(x)
    for i in range(count):
        upper, t, target = advance(x, places[i] * channels), advance(table, i * FIELDS), advance(y, i * s.taps * channels)
        lower = advance(upper, s.pitch * channels)
        a, b, c, d, scale = splat(t, 0), splat(t, 1), splat(t, 2), splat(t, 3), splat(t, 6)
        for k in range(0, s.channels, lanes):
            left = s.channels - k
            value = fma(b, load_some(upper, k + channels, left), a * load_some(upper, k, left))
            value += fma(d, load_some(lower, k + channels, left), c * load_some(lower, k, left))
            store_some(target, k, scale * value, left)


@parallel_kernel
def sample_pixels(x, w, moves, y, constants, scratch, counters, thread, threads):
    """y (N, L, taps, C) from the padded x (N, plane, C)."""
    g, s = thawed(constants)
    places, table = as_int64(scratch), advance(scratch, 2 * s.run)
    runs = -(-s.points // s.run)
    for task in shared_out(counters, 1, g.images * runs):
        n, first = task // runs, task % runs * s.run
        count = min(s.run, s.points - first)
        for group in range(s.groups):
            source = advance(x, n * s.plane * g.channels + group * s.channels)
            for tap in range(s.taps):
                tabulate(moves, g, s, n, group, tap, first, count, False, places, table)
                target = advance(y, ((n * s.points + first) * s.taps + tap) * g.channels + group * s.channels)
                sample_points(source, s, g.channels, count, places, table, target)


@outlined
def spread_points(columns, s, channels, size, count, places, table, gx):
    """Add the gradients of one tap's samples, of `size` channels, to the neighbours of each point, by their weights."""
    lanes = lanes_of(gx)
    for i in range(count):
        upper, t, source = advance(gx, places[i] * channels), advance(table, i * FIELDS), advance(columns, i * s.taps * channels)
        lower = advance(upper, s.pitch * channels)
        a, b, c, d, scale = splat(t, 0), splat(t, 1), splat(t, 2), splat(t, 3), splat(t, 6)
        for k in range(0, size, lanes):
            left = size - k
            value = scale * load_some(source, k, left)
            store_some(upper, k, fma(a, value, load_some(upper, k, left)), left)
            store_some(upper, k + channels, fma(b, value, load_some(upper, k + channels, left)), left)
            store_some(lower, k, fma(c, value, load_some(lower, k, left)), left)
            store_some(lower, k + channels, fma(d, value, load_some(lower, k + channels, left)), left)


@parallel_kernel
def spread_pixels(columns, w, moves, gx, constants, scratch, counters, thread, threads):
    """gx (N, plane, C), padded, which holds zeros, += the gradient of the samples (N, L, taps, C)."""
    g, s = thawed(constants)
    places, table = as_int64(scratch), advance(scratch, 2 * s.run)
    blocks = -(-s.channels // s.block)
    for task in shared_out(counters, 1, g.images * s.groups * blocks):
        n, group, start = task // (s.groups * blocks), task // blocks % s.groups, task % blocks * s.block
        channel, size = group * s.channels + start, min(s.block, s.channels - start)
        target = advance(gx, n * s.plane * g.channels + channel)
        for tap in range(s.taps):
            for first in range(0, s.points, s.run):
                count = min(s.run, s.points - first)
                tabulate(moves, g, s, n, group, tap, first, count, False, places, table)
                source = advance(columns, ((n * s.points + first) * s.taps + tap) * g.channels + channel)
                spread_points(source, s, g.channels, size, count, places, table, target)


@outlined
def slope_points(columns, x, s, channels, count, places, table, gmoves, mask_row):
    """The gradients of the moves of one tap at each point of a run: sums over the channels of an offset group."""
    lanes = lanes_of(x)
    for i in range(count):
        upper, t, source = advance(x, places[i] * channels), advance(table, i * FIELDS), advance(columns, i * s.taps * channels)
        lower = advance(upper, s.pitch * channels)
        by_y = by_x = by_mask = zero(x)
        for k in range(0, s.channels, lanes):
            left = s.channels - k
            gradient, a, b = load_some(source, k, left), load_some(upper, k, left), load_some(upper, k + channels, left)
            c, d = load_some(lower, k, left), load_some(lower, k + channels, left)
            twist = (d - c) - (b - a)
            by_y = fma(gradient, fma(splat(t, 5), twist, c - a), by_y)
            by_x = fma(gradient, fma(splat(t, 4), twist, b - a), by_x)
            by_mask = fma(gradient, fma(splat(t, 0), a, splat(t, 1) * b) + fma(splat(t, 2), c, splat(t, 3) * d), by_mask)
        put(gmoves, i, total(by_y) * get(t, 6))
        put(gmoves, s.points + i, total(by_x) * get(t, 6))
        if s.masked:
            put(mask_row, i, total(by_mask))


@parallel_kernel
def slopes(columns, x, moves, gmoves, constants, scratch, counters, thread, threads):
    """Gradients of the moves from that of the samples (N, L, taps, C) and the padded x."""
    g, s = thawed(constants)
    places, table = as_int64(scratch), advance(scratch, 2 * s.run)
    runs = -(-s.points // s.run)
    for task in shared_out(counters, 1, g.images * runs):
        n, first = task // runs, task % runs * s.run
        count = min(s.run, s.points - first)
        for group in range(s.groups):
            image = advance(x, n * s.plane * g.channels + group * s.channels)
            for tap in range(s.taps):
                tabulate(moves, g, s, n, group, tap, first, count, True, places, table)
                row = (n * s.groups + group) * s.taps + tap
                source = advance(columns, ((n * s.points + first) * s.taps + tap) * g.channels + group * s.channels)
                mask_row = advance(gmoves, (g.images * s.groups * s.taps * 2 + row) * s.points + first)
                slope_points(source, image, s, g.channels, count, places, table, advance(gmoves, row * 2 * s.points + first), mask_row)


class DeformableKernels(NamedTuple):
    """The three kernels of a deformable convolution; see the functions."""

    sample: BoundKernel
    spread: BoundKernel
    slopes: BoundKernel


def deformable_kernels(problem: Problem, groups: int, masked: bool) -> DeformableKernels:
    """The kernels for the shapes of a forward convolution, and `groups` of channels that share offsets."""
    p = problem
    g: Windows = windows_of(p)
    taps, points, channels, lanes = math.prod(p.kernel_size), math.prod(p.output_size), p.in_channels // groups, lane_count(p.dtype)
    rows, pitch = p.input_size[1] + 4, p.input_size[2] + 2  # a border of one, and two rows for samples outside
    parts = -(-2 * num_threads() // (p.batch * groups))
    block = max(1, -(-channels // (parts * lanes))) * lanes
    parallel = p.batch * p.in_channels * taps * points > RUN * RUN

    def bound(kernel: ParallelKernel, longest: int) -> BoundKernel:
        run = min(longest, points)
        s = Sampling(groups, channels, taps, points, run, block, masked, pitch, rows * pitch)
        return kernel.bind(p.dtype, (g, s), scratch=run * (2 + FIELDS), parallel=parallel)

    return DeformableKernels(bound(sample_pixels, RUN), bound(spread_pixels, LONG_RUN), bound(slopes, RUN))
