"""Windows of an image as columns, and the sums that undo it: `unfold` copies, `fold` adds.

Channels first, an unfolded image is (N, C * taps, L): each tap's row is the image's plane, shifted, of which whole lines
are copied. Folding gathers: a line of the image is the sum of a line of each tap that reaches it, kept in registers, so
that no two threads write to one place; with a stride, the taps of each residue are summed apart and interleaved at the end.
Channels last, it is (N, L, taps * C): runs of channels are copied, or added to their pixel.

Tried, and did not pay: adding each tap's line to the image's in memory (loads across two stores that are still under way
wait for both: a 3x3 fold took twice as long).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..problem import Problem
from ._boxes import copy_run
from ._jit import inlined, outlined
from ._simd import (
    BoundKernel,
    advance,
    as_int64,
    get,
    lane_count,
    lanes_of,
    load,
    load_alternate,
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
    zero_element,
)

RUN = 8192  # elements of a task: a few microseconds
SERIAL_SIZE = 20_000  # elements that one thread moves sooner than a region starts: 2 us at 40 GB/s


class Windows(NamedTuple):
    """Sizes of an image and of the windows that slide over it."""

    images: int
    channels: int
    in_d: int
    in_h: int
    in_w: int
    out_d: int
    out_h: int
    out_w: int
    kernel_d: int
    kernel_h: int
    kernel_w: int
    stride_d: int
    stride_h: int
    stride_w: int
    dilation_d: int
    dilation_h: int
    dilation_w: int
    low_d: int
    low_h: int
    low_w: int


def windows_of(problem: Problem) -> Windows:
    """The windows of a forward problem; its output channels do not matter."""
    p = problem
    lows = (low for low, _ in p.padding)
    return Windows(*(p.batch, p.in_channels, *p.input_size, *p.output_size, *p.kernel_size, *p.stride, *p.dilation, *lows))


# -- channels first -------------------------------------------------------------------------------------------------------


@inlined
def clear_run(target, count):
    """target[:count] = 0."""
    lanes = lanes_of(target)
    nothing = zero(target)
    whole = count - count % lanes
    for i in range(0, whole, lanes):
        store(target, i, nothing)
    for i in range(whole, count):
        put(target, i, zero_element(target))


@inlined
def clear_few(target, count):
    """The same for the few elements that a border has."""
    for i in range(count):
        put(target, i, zero_element(target))


@inlined
def copy_strided(target, source, count, stride):
    """target[i] = source[i * stride] for i < count."""
    i = 0
    if stride == 1:
        copy_run(target, source, count)
        i = count
    elif stride == 2:
        lanes = lanes_of(source)
        while i + lanes < count:  # the last vector would read one element more than there may be
            store(target, i, load_alternate(source, 2 * i))
            i += lanes
    while i < count:
        put(target, i, get(source, i * stride))
        i += 1


@inlined
def inner_range(at, stride, size, count):
    """The first of the `count` outputs whose input at + stride * i lies in [0, size), and one past the last."""
    left = min(max(-(at // stride), 0), count)
    return left, min(max(-((at - size) // stride), left), count)


@outlined
def unfold_lines(target, plane, g, tap_d, tap_h, tap_w, first, last):
    """Lines [first, last) of the outputs of one tap: the plane, shifted, with zeros around it."""
    at = tap_w * g.dilation_w - g.low_w
    left, right = inner_range(at, g.stride_w, g.in_w, g.out_w)
    at_d, at_h = tap_d * g.dilation_d - g.low_d, tap_h * g.dilation_h - g.low_h
    out_d, out_h = first // g.out_h, first % g.out_h
    for _ in range(last - first):
        d, h = out_d * g.stride_d + at_d, out_h * g.stride_h + at_h
        if 0 <= d < g.in_d and 0 <= h < g.in_h:
            clear_few(target, left)
            copy_strided(advance(target, left), advance(plane, (d * g.in_h + h) * g.in_w + left * g.stride_w + at), right - left, g.stride_w)
            clear_few(advance(target, right), g.out_w - right)
        else:
            clear_run(target, g.out_w)
        target = advance(target, g.out_w)
        out_h += 1
        if out_h == g.out_h:
            out_h = 0
            out_d += 1


@parallel_kernel
def unfold_planes(x, w, bias, y, constants, scratch, counters, thread, threads):
    """y (N, C, taps, L) from x (N, C, D, H, W); tasks are runs of pieces of the rows of y."""
    g, pieces, lines, run = thawed(constants)
    taps, points = g.kernel_d * g.kernel_h * g.kernel_w, g.out_d * g.out_h * g.out_w
    total = g.images * g.channels * taps * pieces
    while True:
        start = next_task(counters) * run
        if start >= total:
            break
        for part in range(start, min(start + run, total)):
            row, first = part // pieces, part % pieces * lines
            plane, tap = row // taps, row % taps
            unfold_lines(advance(y, row * points + first * g.out_w), advance(x, plane * g.in_d * g.in_h * g.in_w), g,
                         tap // (g.kernel_h * g.kernel_w), tap // g.kernel_w % g.kernel_h, tap % g.kernel_w,
                         first, min(first + lines, g.out_d * g.out_h))


@inlined
def reaching(position, stride, outputs):
    """The output whose window starts at `position` of the padded axis, or -1."""
    if position < 0 or position % stride != 0 or position // stride >= outputs:
        return -1
    return position // stride


@outlined
def reaching_taps(g, d, h, residue, table):
    """Write, for each tap of a residue that reaches line (d, h), its line's offset less its shift, and its shift.

    Returns how many there are, and the range of i in which all of them have the elements [i - shift].
    """
    count, left, right = 0, 0, g.out_w + g.in_w + g.low_w
    for tap_d in range(g.kernel_d):
        out_d = reaching(d + g.low_d - tap_d * g.dilation_d, g.stride_d, g.out_d)
        for tap_h in range(g.kernel_h):
            out_h = reaching(h + g.low_h - tap_h * g.dilation_h, g.stride_h, g.out_h)
            if out_d < 0 or out_h < 0:
                continue
            for tap_w in range(g.kernel_w):
                shift = tap_w * g.dilation_w // g.stride_w
                if tap_w * g.dilation_w % g.stride_w == residue:
                    line = (((tap_d * g.kernel_h + tap_h) * g.kernel_w + tap_w) * g.out_d + out_d) * g.out_h + out_h
                    put(table, 2 * count, line * g.out_w - shift)
                    put(table, 2 * count + 1, shift)
                    left, right = max(left, shift), min(right, shift + g.out_w)
                    count += 1
    return count, left, right


@outlined
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


@outlined
def fold_line(target, windows, g, d, h, scratch, pitch):
    """Line (d, h) of an image's channel from the windows of all taps."""
    if g.stride_w == 1:
        table = as_int64(scratch)
        count, left, right = reaching_taps(g, d, h, 0, table)
        sum_line(target, windows, g, table, count, left, right, g.low_w, g.in_w)
        return
    phases = scratch
    table = as_int64(advance(scratch, g.stride_w * pitch))
    for residue in range(g.stride_w):
        count, left, right = reaching_taps(g, d, h, residue, table)
        sum_line(advance(phases, residue * pitch), windows, g, table, count, left, right, 0, pitch)
    i = 0
    if g.stride_w == 2:
        lanes = lanes_of(target)
        even = advance(phases, g.low_w % 2 * pitch + g.low_w // 2)
        odd = advance(phases, (g.low_w + 1) % 2 * pitch + (g.low_w + 1) // 2)
        while i + 2 * lanes <= g.in_w:
            store_interleaved(target, i, load(even, i // 2), load(odd, i // 2))
            i += 2 * lanes
    while i < g.in_w:
        position = i + g.low_w
        put(target, i, get(phases, position % g.stride_w * pitch + position // g.stride_w))
        i += 1


@parallel_kernel
def fold_planes(x, w, bias, y, constants, scratch, counters, thread, threads):
    """y (N, C, D, H, W) from x (N, C, taps, L); tasks are runs of lines of y."""
    g, pitch, run = thawed(constants)
    windows = g.kernel_d * g.kernel_h * g.kernel_w * g.out_d * g.out_h * g.out_w
    lines = g.images * g.channels * g.in_d * g.in_h
    while True:
        start = next_task(counters) * run
        if start >= lines:
            break
        for line in range(start, min(start + run, lines)):
            plane = line // (g.in_d * g.in_h)
            fold_line(advance(y, line * g.in_w), advance(x, plane * windows), g, line // g.in_h % g.in_d, line % g.in_h, scratch, pitch)


# -- channels last --------------------------------------------------------------------------------------------------------


@outlined
def unfold_window(target, image, g, d, h, w):
    """The pixels of the window that starts at (d, h, w), perhaps outside of the image."""
    channels = g.channels
    left, right = inner_range(w, g.dilation_w, g.in_w, g.kernel_w)
    for tap_d in range(g.kernel_d):
        at_d = d + tap_d * g.dilation_d
        for tap_h in range(g.kernel_h):
            at_h = h + tap_h * g.dilation_h
            if not (0 <= at_d < g.in_d and 0 <= at_h < g.in_h) or right <= left:
                clear_run(target, g.kernel_w * channels)
            else:
                source = advance(image, ((at_d * g.in_h + at_h) * g.in_w + w) * channels)
                clear_run(target, left * channels)
                if g.dilation_w == 1:
                    copy_run(advance(target, left * channels), advance(source, left * channels), (right - left) * channels)
                else:
                    for tap_w in range(left, right):
                        copy_run(advance(target, tap_w * channels), advance(source, tap_w * g.dilation_w * channels), channels)
                clear_run(advance(target, right * channels), (g.kernel_w - right) * channels)
            target = advance(target, g.kernel_w * channels)


@parallel_kernel
def unfold_pixels(x, w, bias, y, constants, scratch, counters, thread, threads):
    """y (N, L, taps, C) from x (N, D, H, W, C); tasks are runs of the rows of y."""
    g, run = thawed(constants)
    width = g.kernel_d * g.kernel_h * g.kernel_w * g.channels
    points = g.out_d * g.out_h * g.out_w
    while True:
        start = next_task(counters) * run
        if start >= g.images * points:
            break
        for row in range(start, min(start + run, g.images * points)):
            out_w, out_h = row % g.out_w, row // g.out_w % g.out_h
            out_d = row // (g.out_w * g.out_h) % g.out_d
            unfold_window(advance(y, row * width), advance(x, row // points * g.in_d * g.in_h * g.in_w * g.channels), g,
                          out_d * g.stride_d - g.low_d, out_h * g.stride_h - g.low_h, out_w * g.stride_w - g.low_w)


@inlined
def add_run(target, source, count):
    """target[:count] += source[:count]."""
    lanes = lanes_of(source)
    whole = count - count % lanes
    for i in range(0, whole, lanes):
        store(target, i, load(target, i) + load(source, i))
    if whole < count:
        left = count - whole
        store_first(target, whole, load_first(target, whole, left) + load_first(source, whole, left), left)


@outlined
def fold_pixel(target, windows, g, d, h, w):
    """Pixel (d, h, w) of an image from the windows that it lies in."""
    clear_run(target, g.channels)
    for tap_d in range(g.kernel_d):
        out_d = reaching(d + g.low_d - tap_d * g.dilation_d, g.stride_d, g.out_d)
        for tap_h in range(g.kernel_h):
            out_h = reaching(h + g.low_h - tap_h * g.dilation_h, g.stride_h, g.out_h)
            if out_d < 0 or out_h < 0:
                continue
            for tap_w in range(g.kernel_w):
                out_w = reaching(w + g.low_w - tap_w * g.dilation_w, g.stride_w, g.out_w)
                if out_w >= 0:
                    point = (out_d * g.out_h + out_h) * g.out_w + out_w
                    tap = (tap_d * g.kernel_h + tap_h) * g.kernel_w + tap_w
                    add_run(target, advance(windows, (point * g.kernel_d * g.kernel_h * g.kernel_w + tap) * g.channels), g.channels)


@parallel_kernel
def fold_pixels(x, w, bias, y, constants, scratch, counters, thread, threads):
    """y (N, D, H, W, C) from x (N, L, taps, C); tasks are runs of pixels of y."""
    g, run = thawed(constants)
    windows = g.kernel_d * g.kernel_h * g.kernel_w * g.out_d * g.out_h * g.out_w * g.channels
    pixels = g.in_d * g.in_h * g.in_w
    while True:
        start = next_task(counters) * run
        if start >= g.images * pixels:
            break
        for pixel in range(start, min(start + run, g.images * pixels)):
            fold_pixel(advance(y, pixel * g.channels), advance(x, pixel // pixels * windows), g, pixel // (g.in_w * g.in_h) % g.in_d,
                       pixel // g.in_w % g.in_h, pixel % g.in_w)


# -- binding --------------------------------------------------------------------------------------------------------------


def unfolding(problem: Problem) -> BoundKernel:
    """The kernel that unfolds the input of a forward problem: kernel(x, any, any, y), all flat."""
    g = windows_of(problem)
    taps, lines = math.prod(problem.kernel_size), g.out_d * g.out_h
    parallel = g.images * g.channels * taps * lines * g.out_w > SERIAL_SIZE
    if problem.channels_last:
        return unfold_pixels.bind(problem.dtype, (g, -(-RUN // max(1, taps * g.channels))), parallel=parallel)
    piece = min(lines, -(-RUN // g.out_w))
    return unfold_planes.bind(problem.dtype, (g, -(-lines // piece), piece, -(-RUN // (piece * g.out_w))), parallel=parallel)


def folding(problem: Problem) -> BoundKernel:
    """The adjoint of `unfolding(problem)`."""
    g = windows_of(problem)
    taps = math.prod(problem.kernel_size)
    parallel = g.images * g.channels * taps * g.out_d * g.out_h * g.out_w > SERIAL_SIZE
    share = -(-taps // math.prod(problem.stride))  # windows that a point lies in
    if problem.channels_last:
        return fold_pixels.bind(problem.dtype, (g, -(-RUN // max(1, share * g.channels))), parallel=parallel)
    lanes = lane_count(problem.dtype)
    # Loads of whole vectors at a phase's end stay within it.
    pitch = -(-(-(-(g.in_w + g.low_w) // g.stride_w) + 1) // lanes) * lanes + lanes
    scratch = g.stride_w * pitch * (g.stride_w > 1) + 2 * taps * 8 // np.dtype(problem.dtype).itemsize + lanes
    return fold_planes.bind(problem.dtype, (g, pitch, -(-RUN // (share * max(1, g.in_w)))), scratch=scratch, parallel=parallel)
