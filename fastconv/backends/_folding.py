"""Windows added up in an image: `fold`, the adjoint of `_unfolding`.

Folding gathers, so that no two threads write to one place. Channels first, a line of the image is the sum of a line of each
tap that reaches it, kept in registers; with a stride, the taps of each residue are summed apart and interleaved at the end.
Channels last, a pixel is the sum of the runs of channels of the windows that it lies in.

Tried, and did not pay: a table of the taps for each line made by divisions (a 3x3 fold of 28 x 28 took half as long again).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..problem import Problem
from ._jit import inlined, outlined
from ._simd import (
    BoundKernel,
    advance,
    as_int64,
    get,
    lane_count,
    lanes_of,
    load,
    load_between,
    load_first,
    next_task,
    parallel_kernel,
    put,
    store,
    store_first,
    store_interleaved,
    thawed,
    zero,
)
from ._unfolding import RUN, SERIAL_SIZE, windows_of

LINE = 64  # bytes of a cache line


# -- channels first -------------------------------------------------------------------------------------------------------


@inlined
def first_tap(position, stride, dilation, step):
    """The first tap whose window starts at a multiple of the stride if the tap lies at `position`; `step` or more if none does."""
    if stride == 1:
        return 0
    for tap in range(step):
        if (position - tap * dilation) % stride == 0:
            return tap
    return 1 << 30


@inlined
def output_of(position, stride):
    """The window that starts at `position`, a multiple of the stride."""
    return position if stride == 1 else position // stride


@inlined
def reaching_lines(g, steps, d, h, table):
    """Write the first window and the first tap of each pair (line of windows, line of taps) that reaches line (d, h).

    Returns the number of pairs.
    """
    count = 0
    d, h = d + g.low_d, h + g.low_h
    first_h = first_tap(h, g.stride_h, g.dilation_h, steps[1])
    for tap_d in range(first_tap(d, g.stride_d, g.dilation_d, steps[0]), g.kernel_d, steps[0]):
        out_d = output_of(d - tap_d * g.dilation_d, g.stride_d)
        if 0 <= out_d < g.out_d:
            for tap_h in range(first_h, g.kernel_h, steps[1]):
                out_h = output_of(h - tap_h * g.dilation_h, g.stride_h)
                if 0 <= out_h < g.out_h:
                    put(table, 2 * count, (out_d * g.out_h + out_h) * g.out_w)
                    put(table, 2 * count + 1, (tap_d * g.kernel_h + tap_h) * g.kernel_w)
                    count += 1
    return count


class FoldTables(NamedTuple):
    """What folding has to know beside the windows; `taps` and `starts` are sorted by residue of the stride."""

    steps: tuple[int, int, int]  # from a tap to the next one that reaches the same point
    taps: np.ndarray  # of kernel_w: the tap, and its place divided by the stride
    starts: np.ndarray  # of each residue among them
    tables: int  # elements of scratch for the lines and the taps that reach a line
    pitch: int  # elements of a phase, a residue's sums
    scratch: int

    @staticmethod
    def of(problem: Problem) -> FoldTables:
        """The tables of a forward problem."""
        (_, _, kernel_w), (_, _, stride), (_, _, dilation) = problem.kernel_size, problem.stride, problem.dilation
        item, lanes = np.dtype(problem.dtype).itemsize, lane_count(problem.dtype)
        steps = [s // math.gcd(s, d) for s, d in zip(problem.stride, problem.dilation, strict=True)]
        taps = math.prod(problem.kernel_size)
        tables = -(-2 * (taps // kernel_w + taps) * 8 // LINE) * LINE // item
        # Vectors at the end of a phase stay within it.
        pitch = -(-((problem.input_size[2] + problem.padding[2][0]) // stride + 2) // lanes) * lanes + lanes
        places = np.arange(kernel_w) * dilation
        order = np.argsort(places % stride, kind="stable")
        reached = np.stack([order, places[order] // stride], axis=1).astype(np.int64)
        starts = np.searchsorted(places[order] % stride, np.arange(stride + 1)).astype(np.int64)
        return FoldTables((steps[0], steps[1], steps[2]), reached.ravel(), starts, tables, pitch, tables + stride * pitch)


@inlined
def reaching_taps(g, lines, line_count, taps, first, last, table):
    """Write the offset less the shift, and the shift, of each tap in [first, last) of each line.

    Returns how many there are, and the range of i in which all of them have the element [i - shift].
    """
    count, left, right = 0, 0, 1 << 62
    points = g.out_d * g.out_h * g.out_w
    for i in range(line_count):
        at = lines[2 * i] + lines[2 * i + 1] * points
        for t in range(first, last):
            shift = taps[2 * t + 1]
            put(table, 2 * count, at + taps[2 * t] * points - shift)
            put(table, 2 * count + 1, shift)
            left, right = max(left, shift), min(right, shift + g.out_w)
            count += 1
    return count, left, right


@inlined
def sum_line(target, windows, g, table, count, left, right, first, size):
    """target[i] = the sum of windows[table[t] + first + i] over the taps whose line has this element, for i < size."""
    lanes = lanes_of(windows)
    for i in range(0, size, lanes):
        at = first + i
        value = zero(windows)
        if left <= at and at + lanes <= right:
            for t in range(count):
                value += load(windows, table[2 * t] + at)
        else:
            for t in range(count):
                start = table[2 * t + 1] - at
                value += load_between(windows, table[2 * t] + at, start, start + g.out_w)
        if i + lanes <= size:
            store(target, i, value)
        else:
            store_first(target, i, value, size - i)


@inlined
def fold_line(target, windows, g, fold, lines, line_count, table, phases):
    """A line of an image's channel from the lines of windows that reach it."""
    for residue in range(g.stride_w):
        count, left, right = reaching_taps(g, lines, line_count, fold.taps, fold.starts[residue], fold.starts[residue + 1], table)
        if g.stride_w == 1:
            sum_line(target, windows, g, table, count, left, right, g.low_w, g.in_w)
        else:
            sum_line(advance(phases, residue * fold.pitch), windows, g, table, count, left, right, 0, fold.pitch)
    if g.stride_w > 1:
        interleave_phases(target, phases, fold.pitch, g)


@inlined
def interleave_phases(target, phases, pitch, g):
    """target[i] = the sum of position i + low_w, which lies in the phase of its residue."""
    done = 0
    if g.stride_w == 2:
        lanes = lanes_of(target)
        even = advance(phases, g.low_w % 2 * pitch + g.low_w // 2)
        odd = advance(phases, (g.low_w + 1) % 2 * pitch + (g.low_w + 1) // 2)
        while done + 2 * lanes <= g.in_w:
            store_interleaved(target, done, load(even, done // 2), load(odd, done // 2))
            done += 2 * lanes
    for first in range(done, min(done + g.stride_w, g.in_w)):
        position = first + g.low_w
        at = position % g.stride_w * pitch + position // g.stride_w
        for i in range(first, g.in_w, g.stride_w):
            put(target, i, get(phases, at))
            at += 1


@outlined
def fold_lines(y, x, g, fold, start, count, scratch):
    """`count` lines of y from line `start` on."""
    lines, phases = as_int64(scratch), advance(scratch, fold.tables)
    table = advance(lines, 2 * g.kernel_d * g.kernel_h)
    windows = g.kernel_d * g.kernel_h * g.kernel_w * g.out_d * g.out_h * g.out_w
    h, d, plane = start % g.in_h, start // g.in_h % g.in_d, start // (g.in_h * g.in_d)
    for line in range(start, start + count):
        line_count = reaching_lines(g, fold.steps, d, h, lines)
        fold_line(advance(y, line * g.in_w), advance(x, plane * windows), g, fold, lines, line_count, table, phases)
        h += 1
        if h == g.in_h:
            h, d = 0, d + 1
            if d == g.in_d:
                d, plane = 0, plane + 1


@parallel_kernel
def fold_planes(x, w, bias, y, constants, scratch, counters, thread, threads):
    """y (N, C, D, H, W) from x (N, C, taps, L); tasks are runs of lines of y."""
    g, fold, run = thawed(constants)
    lines = g.images * g.channels * g.in_d * g.in_h
    while True:
        start = next_task(counters) * run
        if start >= lines:
            break
        fold_lines(y, x, g, fold, start, min(run, lines - start), scratch)


# -- channels last --------------------------------------------------------------------------------------------------------


@inlined
def fold_pixel(target, windows, g, step, lines, line_count, w, table):
    """Pixel w of a line from the windows that it lies in, given the lines of windows and taps that reach it."""
    taps = g.kernel_d * g.kernel_h * g.kernel_w
    count = 0
    w += g.low_w
    first = first_tap(w, g.stride_w, g.dilation_w, step)
    for i in range(line_count):
        for tap in range(first, g.kernel_w, step):
            out_w = output_of(w - tap * g.dilation_w, g.stride_w)
            if 0 <= out_w < g.out_w:
                put(table, count, ((lines[2 * i] + out_w) * taps + lines[2 * i + 1] + tap) * g.channels)
                count += 1
    lanes = lanes_of(windows)
    for c in range(0, g.channels, lanes):
        value = zero(windows)
        if c + lanes <= g.channels:
            for t in range(count):
                value += load(windows, table[t] + c)
            store(target, c, value)
        else:
            for t in range(count):
                value += load_first(windows, table[t] + c, g.channels - c)
            store_first(target, c, value, g.channels - c)


@outlined
def fold_line_of_pixels(y, x, g, steps, line, tables):
    """A line of y, channels last."""
    table = advance(tables, 2 * g.kernel_d * g.kernel_h)
    windows = g.kernel_d * g.kernel_h * g.kernel_w * g.out_d * g.out_h * g.out_w * g.channels
    line_count = reaching_lines(g, steps, line // g.in_h % g.in_d, line % g.in_h, tables)
    source = advance(x, line // (g.in_h * g.in_d) * windows)
    for w in range(g.in_w):
        fold_pixel(advance(y, (line * g.in_w + w) * g.channels), source, g, steps[2], tables, line_count, w, table)


@parallel_kernel
def fold_pixels(x, w, bias, y, constants, scratch, counters, thread, threads):
    """y (N, D, H, W, C) from x (N, L, taps, C); tasks are runs of lines of y."""
    g, steps, run = thawed(constants)
    lines = g.images * g.in_d * g.in_h
    while True:
        start = next_task(counters) * run
        if start >= lines:
            break
        for line in range(start, min(start + run, lines)):
            fold_line_of_pixels(y, x, g, steps, line, as_int64(scratch))


# -- binding --------------------------------------------------------------------------------------------------------------


def folding(problem: Problem) -> BoundKernel:
    """The adjoint of `unfolding(problem)`."""
    g, fold = windows_of(problem), FoldTables.of(problem)
    taps = math.prod(problem.kernel_size)
    parallel = g.images * g.channels * taps * g.out_d * g.out_h * g.out_w > SERIAL_SIZE
    share = -(-taps // math.prod(problem.stride))  # windows that a point lies in
    if problem.channels_last:
        constants = (g, fold.steps, -(-RUN // max(1, share * g.channels * g.in_w)))
        return fold_pixels.bind(problem.dtype, constants, scratch=fold.tables, parallel=parallel)
    return fold_planes.bind(problem.dtype, (g, fold, -(-RUN // (share * max(1, g.in_w)))), scratch=fold.scratch, parallel=parallel)
