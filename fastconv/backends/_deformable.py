"""The samples of a deformable convolution, and the gradients of its input, offsets and mask.

A sample reads four neighbours, weighted bilinearly, of a place that is the same for all channels of an offset group. Its
place and weights are computed once, into tables of a run of points, and then serve a block of the group's channels. Planes
come with a border of zeros, so that no neighbour needs a test and a NaN elsewhere does not spread.

The samples are the columns (N, C, taps, L) that a 1x1 convolution multiplies by the weights. The gradient of the input adds
to four places of a plane, so that its tasks are blocks of channels; offsets' and mask's sum over channels, so that theirs
are runs of points. Offsets and mask are one array, `moves`: all offsets (N, groups, taps, 2, L), then the mask (N, groups,
taps, L) if there is one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..problem import Problem
from ._jit import inlined, outlined
from ._simd import BoundKernel, advance, as_int64, get, next_task, parallel_kernel, put, thawed, zero_element
from ._unfolding import Windows, clear_run, windows_of

RUN = 512  # points whose places and weights are tabulated at once: 20 KiB in the first-level cache
CHANNELS = 16  # channels of a task, which share the tables
FIELDS = 8  # of a point: weights of the four neighbours, fractions y and x, mask, unused
SUMS = 3  # of a point: gradients of y, x and the mask


class Sampling(NamedTuple):
    """Sizes of the offsets, and how tasks are cut."""

    groups: int  # of channels that share offsets
    channels: int  # of such a group
    taps: int
    points: int
    run: int
    block: int  # channels of a task
    masked: bool
    pitch: int  # of a row of a padded plane
    plane: int  # elements of a padded plane


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


@inlined
def task_of(s, blocks, task):
    """(image, group, first channel, channels) of a task of a block of channels."""
    block, group, n = task % blocks, task // blocks % s.groups, task // (blocks * s.groups)
    return n, group, group * s.channels + block * s.block, min(s.block, s.channels - block * s.block)


@outlined
def sample_run(target, plane, s, count, places, table):
    """target[i] = the sample of a plane at each point."""
    for i in range(count):
        at, t = advance(plane, places[i]), advance(table, i * FIELDS)
        value = (get(t, 0) * get(at, 0) + get(t, 1) * get(at, 1)) + (get(t, 2) * get(at, s.pitch) + get(t, 3) * get(at, s.pitch + 1))
        put(target, i, get(t, 6) * value)


@parallel_kernel
def sample_planes(x, w, moves, y, constants, scratch, counters, thread, threads):
    """y (N, C, taps, L) from the padded x (N, C, plane)."""
    g, s = thawed(constants)
    places, table = as_int64(scratch), advance(scratch, 2 * s.run)
    blocks = -(-s.channels // s.block)
    while True:
        task = next_task(counters)
        if task >= g.images * s.groups * blocks:
            break
        n, group, channel, channels = task_of(s, blocks, task)
        for tap in range(s.taps):
            for first in range(0, s.points, s.run):
                count = min(s.run, s.points - first)
                tabulate(moves, g, s, n, group, tap, first, count, False, places, table)
                for c in range(channel, channel + channels):
                    plane = n * g.channels + c
                    target = advance(y, (plane * s.taps + tap) * s.points + first)
                    sample_run(target, advance(x, plane * s.plane), s, count, places, table)


@outlined
def spread_run(plane, source, s, count, places, table):
    """Add source[i] to the neighbours of each point, by their weights."""
    for i in range(count):
        at, t = advance(plane, places[i]), advance(table, i * FIELDS)
        value = get(source, i) * get(t, 6)
        put(at, 0, get(at, 0) + get(t, 0) * value)
        put(at, 1, get(at, 1) + get(t, 1) * value)
        put(at, s.pitch, get(at, s.pitch) + get(t, 2) * value)
        put(at, s.pitch + 1, get(at, s.pitch + 1) + get(t, 3) * value)


@parallel_kernel
def spread_planes(columns, w, moves, gx, constants, scratch, counters, thread, threads):
    """gx (N, C, plane), padded, from the gradient of the samples (N, C, taps, L)."""
    g, s = thawed(constants)
    places, table = as_int64(scratch), advance(scratch, 2 * s.run)
    blocks = -(-s.channels // s.block)
    while True:
        task = next_task(counters)
        if task >= g.images * s.groups * blocks:
            break
        n, group, channel, channels = task_of(s, blocks, task)
        clear_run(advance(gx, (n * g.channels + channel) * s.plane), channels * s.plane)
        for tap in range(s.taps):
            for first in range(0, s.points, s.run):
                count = min(s.run, s.points - first)
                tabulate(moves, g, s, n, group, tap, first, count, False, places, table)
                for c in range(channel, channel + channels):
                    plane = n * g.channels + c
                    source = advance(columns, (plane * s.taps + tap) * s.points + first)
                    spread_run(advance(gx, plane * s.plane), source, s, count, places, table)


@outlined
def slope_run(sums, plane, source, s, count, places, table):
    """Add to each point's SUMS what one channel contributes."""
    for i in range(count):
        at, t, to = advance(plane, places[i]), advance(table, i * FIELDS), advance(sums, i * SUMS)
        down, right, gradient = get(t, 4), get(t, 5), get(source, i)
        a, b, c, d = get(at, 0), get(at, 1), get(at, s.pitch), get(at, s.pitch + 1)
        put(to, 0, get(to, 0) + gradient * ((c - a) + right * ((d - c) - (b - a))))
        put(to, 1, get(to, 1) + gradient * ((b - a) + down * ((d - c) - (b - a))))
        put(to, 2, get(to, 2) + gradient * ((get(t, 0) * a + get(t, 1) * b) + (get(t, 2) * c + get(t, 3) * d)))


@parallel_kernel
def slopes(columns, x, moves, gmoves, constants, scratch, counters, thread, threads):
    """Gradients of the moves from that of the samples (N, C, taps, L) and the padded x."""
    g, s = thawed(constants)
    places, table = as_int64(scratch), advance(scratch, 2 * s.run)
    sums = advance(table, s.run * FIELDS)
    runs = -(-s.points // s.run)
    while True:
        task = next_task(counters)
        if task >= g.images * s.groups * s.taps * runs:
            break
        first, row = task % runs * s.run, task // runs
        tap, group, n = row % s.taps, row // s.taps % s.groups, row // (s.taps * s.groups)
        count = min(s.run, s.points - first)
        tabulate(moves, g, s, n, group, tap, first, count, True, places, table)
        clear_run(sums, count * SUMS)
        for c in range(group * s.channels, (group + 1) * s.channels):
            plane = n * g.channels + c
            source = advance(columns, (plane * s.taps + tap) * s.points + first)
            slope_run(sums, advance(x, plane * s.plane), source, s, count, places, table)
        target = advance(gmoves, row * 2 * s.points + first)
        for i in range(count):
            put(target, i, get(sums, i * SUMS) * get(table, i * FIELDS + 6))
            put(target, s.points + i, get(sums, i * SUMS + 1) * get(table, i * FIELDS + 6))
            if s.masked:
                put(gmoves, (g.images * s.groups * s.taps * 2 + row) * s.points + first + i, get(sums, i * SUMS + 2))


class DeformableKernels(NamedTuple):
    """The three kernels of a deformable convolution; see the functions."""

    sample: BoundKernel
    spread: BoundKernel
    slopes: BoundKernel


def deformable_kernels(problem: Problem, groups: int, masked: bool) -> DeformableKernels:
    """The kernels for the shapes of a forward convolution, and `groups` of channels that share offsets."""
    p = problem
    g: Windows = windows_of(p)
    taps, points = math.prod(p.kernel_size), math.prod(p.output_size)
    rows, pitch = p.input_size[1] + 4, p.input_size[2] + 2  # a border of one, and two rows for samples outside
    run = max(1, min(RUN, points))
    channels = p.in_channels // groups
    block = max(1, min(CHANNELS, -(-channels * groups * p.batch // 8)))
    s = Sampling(groups, channels, taps, points, run, block, masked, pitch, rows * pitch)
    scratch = run * (2 + FIELDS + SUMS) + FIELDS
    parallel = p.batch * p.in_channels * taps * points > RUN * CHANNELS
    return DeformableKernels(*(kernel.bind(p.dtype, (g, s), scratch=scratch, parallel=parallel)
                               for kernel in (sample_planes, spread_planes, slopes)))
