"""Windows of an image as columns: `unfold` copies; `_folding` undoes it.

Channels first, an unfolded image is (N, C * taps, L): each tap's row is the image's plane, shifted, of which whole lines
are copied, or the whole plane at once where lines of outputs are as long as lines of inputs. Channels last, it is
(N, L, taps * C): runs of channels are copied.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from ..problem import Problem
from ._boxes import copy_run
from ._jit import inlined, outlined
from ._simd import (
    BoundKernel,
    advance,
    get,
    lanes_of,
    load_alternate,
    next_task,
    parallel_kernel,
    put,
    store,
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
    if stride == 1:
        left, right = -at, size - at
    else:
        left, right = -(at // stride), -((at - size) // stride)
    left = min(max(left, 0), count)
    return left, min(max(right, left), count)


@inlined
def clear_columns(target, first, last, pitch, lines):
    """Zeros in columns [first, last) of some lines."""
    for line in range(lines):
        for i in range(first, last):
            put(target, line * pitch + i, zero_element(target))


@inlined
def unfold_flat(target, plane, g, at_h, at_w, first, last):
    """Lines [first, last) of a tap of an image without depth whose outputs are as many a line as its inputs: one run, cut at the ends."""
    low, high = min(max(first, -at_h), last), max(min(last, g.in_h - at_h), first)
    high = max(low, high)
    clear_run(target, (low - first) * g.in_w)
    clear_run(advance(target, (high - first) * g.in_w), (last - high) * g.in_w)
    inner = advance(target, (low - first) * g.in_w)
    source = (low + at_h) * g.in_w + at_w
    before, behind = max(0, -source), max(0, source + (high - low) * g.in_w - g.in_h * g.in_w)
    size = (high - low) * g.in_w
    if before + behind < size:
        copy_run(advance(inner, before), advance(plane, source + before), size - before - behind)
    clear_columns(inner, 0, min(max(-at_w, 0), g.in_w), g.in_w, high - low)
    clear_columns(inner, max(min(g.in_w - at_w, g.in_w), 0), g.in_w, g.in_w, high - low)


@inlined
def unfold_lines(target, plane, g, tap_d, tap_h, tap_w, first, last):
    """Lines [first, last) of the outputs of one tap: the plane, shifted, with zeros around it."""
    at = tap_w * g.dilation_w - g.low_w
    at_d, at_h = tap_d * g.dilation_d - g.low_d, tap_h * g.dilation_h - g.low_h
    if g.stride_h == 1 and g.stride_w == 1 and g.out_w == g.in_w and g.in_d == 1 and g.out_d == 1 and at_d == 0:
        unfold_flat(target, plane, g, at_h, at, first, last)
        return
    left, right = inner_range(at, g.stride_w, g.in_w, g.out_w)
    out_d = 0 if g.out_d == 1 else first // g.out_h
    out_h = first - out_d * g.out_h
    for _ in range(last - first):
        d, h = out_d * g.stride_d + at_d, out_h * g.stride_h + at_h
        if 0 <= d < g.in_d and 0 <= h < g.in_h:
            clear_few(target, left)
            source = advance(plane, (d * g.in_h + h) * g.in_w + left * g.stride_w + at)
            copy_strided(advance(target, left), source, right - left, g.stride_w)
            clear_few(advance(target, right), g.out_w - right)
        else:
            clear_run(target, g.out_w)
        target = advance(target, g.out_w)
        out_h += 1
        if out_h == g.out_h:
            out_h = 0
            out_d += 1


@outlined
def unfold_piece(target, plane, g, tap_h, tap_w, first, count):
    """Points [first, first + count) of the outputs of one tap of an image without depth, whole lines or not."""
    at = tap_w * g.dilation_w - g.low_w
    left, right = inner_range(at, g.stride_w, g.in_w, g.out_w)
    line, start = first // g.out_w, first % g.out_w
    while count > 0:
        end = min(start + count, g.out_w)
        h = line * g.stride_h + tap_h * g.dilation_h - g.low_h
        if 0 <= h < g.in_h:
            inner, outer = min(max(left, start), end), max(min(right, end), start)
            outer = max(inner, outer)
            clear_few(target, inner - start)
            copy_strided(advance(target, inner - start), advance(plane, h * g.in_w + inner * g.stride_w + at), outer - inner, g.stride_w)
            clear_few(advance(target, outer - start), end - outer)
        else:
            clear_run(target, end - start)
        target = advance(target, end - start)
        count -= end - start
        start = 0
        line += 1


@outlined
def unfold_pieces(y, x, g, start, count, pieces, lines):
    """`count` pieces of the rows of y from piece `start` on; a piece has `lines` lines, the last of a row perhaps fewer."""
    area = g.kernel_h * g.kernel_w
    taps, points, line_count = g.kernel_d * area, g.out_d * g.out_h * g.out_w, g.out_d * g.out_h
    row, piece = start // pieces, start % pieces
    plane, tap = row // taps, row % taps
    tap_d, tap_h, tap_w = tap // area, tap // g.kernel_w % g.kernel_h, tap % g.kernel_w
    for _ in range(count):
        first = piece * lines
        unfold_lines(advance(y, row * points + first * g.out_w), advance(x, plane * g.in_d * g.in_h * g.in_w), g, tap_d, tap_h, tap_w,
                     first, min(first + lines, line_count))
        piece += 1
        if piece == pieces:
            piece, row, tap_w = 0, row + 1, tap_w + 1
            if tap_w == g.kernel_w:
                tap_w, tap_h = 0, tap_h + 1
                if tap_h == g.kernel_h:
                    tap_h, tap_d = 0, tap_d + 1
                    if tap_d == g.kernel_d:
                        tap_d, plane = 0, plane + 1


@parallel_kernel
def unfold_planes(x, w, bias, y, constants, scratch, counters, thread, threads):
    """y (N, C, taps, L) from x (N, C, D, H, W); tasks are runs of pieces of the rows of y."""
    g, pieces, lines, run = thawed(constants)
    total = g.images * g.channels * g.kernel_d * g.kernel_h * g.kernel_w * pieces
    while True:
        start = next_task(counters) * run
        if start >= total:
            break
        unfold_pieces(y, x, g, start, min(run, total - start), pieces, lines)


# -- channels last --------------------------------------------------------------------------------------------------------


@inlined
def unfold_window(target, image, g, d, h, w):
    """The pixels of the window that starts at (d, h, w), perhaps outside of the image."""
    channels = g.channels
    left, right = 0, g.kernel_w
    if w < 0 or w + (g.kernel_w - 1) * g.dilation_w >= g.in_w:
        left, right = inner_range(w, g.dilation_w, g.in_w, g.kernel_w)
    for tap_d in range(g.kernel_d):
        at_d = d + tap_d * g.dilation_d
        for tap_h in range(g.kernel_h):
            at_h = h + tap_h * g.dilation_h
            if not (0 <= at_d < g.in_d and 0 <= at_h < g.in_h) or right <= left:
                clear_run(target, g.kernel_w * channels)
            else:
                source = advance(image, ((at_d * g.in_h + at_h) * g.in_w + w) * channels)
                if left > 0:
                    clear_run(target, left * channels)
                if g.dilation_w == 1:
                    copy_run(advance(target, left * channels), advance(source, left * channels), (right - left) * channels)
                else:
                    for tap_w in range(left, right):
                        copy_run(advance(target, tap_w * channels), advance(source, tap_w * g.dilation_w * channels), channels)
                if right < g.kernel_w:
                    clear_run(advance(target, right * channels), (g.kernel_w - right) * channels)
            target = advance(target, g.kernel_w * channels)


@outlined
def unfold_rows(y, x, g, start, count):
    """`count` rows of y from row `start` on: windows one after the other."""
    width = g.kernel_d * g.kernel_h * g.kernel_w * g.channels
    pixels = g.in_d * g.in_h * g.in_w
    out_w, out_h = start % g.out_w, start // g.out_w % g.out_h
    out_d, image = start // (g.out_w * g.out_h) % g.out_d, start // (g.out_w * g.out_h * g.out_d)
    for row in range(start, start + count):
        unfold_window(advance(y, row * width), advance(x, image * pixels * g.channels), g,
                      out_d * g.stride_d - g.low_d, out_h * g.stride_h - g.low_h, out_w * g.stride_w - g.low_w)
        out_w += 1
        if out_w == g.out_w:
            out_w, out_h = 0, out_h + 1
            if out_h == g.out_h:
                out_h, out_d = 0, out_d + 1
                if out_d == g.out_d:
                    out_d, image = 0, image + 1


@parallel_kernel
def unfold_pixels(x, w, bias, y, constants, scratch, counters, thread, threads):
    """y (N, L, taps, C) from x (N, D, H, W, C); tasks are runs of the rows of y."""
    g, run = thawed(constants)
    total = g.images * g.out_d * g.out_h * g.out_w
    while True:
        start = next_task(counters) * run
        if start >= total:
            break
        unfold_rows(y, x, g, start, min(run, total - start))


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
