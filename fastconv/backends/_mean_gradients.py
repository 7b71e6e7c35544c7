"""Gradients of averages: each input point gathers the outputs whose windows hold it, each over its divisor.

The rows of gy that look at a row of the input are added into one line, and along it each input column adds the outputs of its
windows. Channels first, the line has zeros on both sides, and columns are vectors: at stride 1 as they lie, at stride 2 one
for the even and one for the odd columns, which are then put together, and elsewhere each output is added to the lanes of its
window. Channels last, columns are pixels; of a row that a single row of gy looks at, that one is the line.

A norm's gradient, x times that of the mean of gy / y, is the same with gy divided on the way in and rows multiplied on the way
out. Without overlap a gradient is written as fast as memory takes it (avg 2 x 2, 32 x 64 x 56 x 56: 32 MB in .78 ms, 41 GB/s,
where two threads fill 45 to 50).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .._windows import Windows
from ._jit import inlined, outlined
from ._pooling_pixels import clear_run, copy_pixel
from ._pooling_rows import fill_line, load_most, store_most
from ._pooling_tasks import next_row, row_at
from ._simd import (
    advance,
    broadcast,
    divide,
    fma,
    get,
    keep_between,
    lane_count,
    lanes_of,
    load,
    own_first,
    parallel_kernel,
    put,
    quotient,
    splat,
    store,
    store_interleaved,
    thawed,
    zero,
    zero_element,
)


class Covering(NamedTuple):
    """Sizes of planes, and of what looks at them."""

    planes: int
    size_d: int
    size_h: int
    size_w: int
    out_d: int
    out_h: int
    out_w: int
    kernel_w: int
    step_w: int
    stride_w: int  # 1 or 2, or 0 where columns are taken from the table
    low_w: int
    left: int  # zeros before the line
    length: int  # of the line, in whole vectors


def covering_of(windows: Windows, planes: int, dtype: str) -> Covering:
    """The sizes for the gradient of a pooling."""
    lanes = lane_count(dtype)
    k, stride, d, low = windows.kernel_size[2], windows.stride[2], windows.dilation[2], windows.padding[2][0]
    left = max(0, k - 1) * d
    length = left + max(windows.output_size[2], windows.input_size[2] + low) + 4 * lanes
    return Covering(planes, *windows.input_size, *windows.output_size, k, d,  # type: ignore[call-arg]
                    stride if k > 0 and stride <= 2 else 0, low, left, -(-length // lanes) * lanes)


class Covered(NamedTuple):
    """The outputs that look at the points of an axis: those of i are outputs[offsets[i] : offsets[i + 1]]."""

    offsets: np.ndarray
    outputs: np.ndarray


@inlined
def weighted(gy, norms, at, count, rooted):
    """A vector of gy, `count` lanes of it, or of gy over the norms, zero where these are."""
    v = load_most(gy, at, count)
    return quotient(v, load_most(norms, at, count)) if rooted else v


@inlined
def added_covering(gy, norms, rooted, at, count, pitch, g, d, h, in_d, in_h, rates_d, rates_h):
    """The vector at `at`, `count` lanes of it, of the weighted sum of the rows of gy, `pitch` apart, that look at a row of the input."""
    a = zero(gy)
    for i in range(in_d.offsets[d], in_d.offsets[d + 1]):
        od = in_d.outputs[i]
        for j in range(in_h.offsets[h], in_h.offsets[h + 1]):
            oh = in_h.outputs[j]
            v = weighted(gy, norms, (od * g.out_h + oh) * pitch + at, count, rooted)
            a = fma(v, broadcast(gy, rates_d[od] * rates_h[oh]), a)
    return a


@outlined
def multiply_run(x, count, y):
    """y[:count] *= x[:count]."""
    for i in range(0, count, lanes_of(y)):
        store_most(y, i, load_most(y, i, count - i) * load_most(x, i, count - i), count - i)


@outlined
def copy_run(source, count, target):
    """target[:count] = source[:count]."""
    for i in range(0, count, lanes_of(source)):
        store_most(target, i, load_most(source, i, count - i), count - i)


# -- channels first -------------------------------------------------------------------------------------------------------


@inlined
def phase_sum(line, j, g, phase):
    """Vector of input columns 2 i + phase for the lanes i from j on, from outputs of the line."""
    a = zero(line)
    for k in range(g.kernel_w):
        reach = phase + g.low_w - k * g.step_w
        if reach % 2 == 0:
            a += load(line, g.left + j + reach // 2)
    return a


@outlined
def spread_columns(line, g, in_w, windows_w, reaching, spare, gx):
    """gx[w] = the sum of line[left + o] over the outputs o that look at w."""
    lanes = lanes_of(line)
    if g.stride_w == 1:
        for w in range(0, g.size_w, lanes):
            a = load(line, g.left + w + g.low_w)
            for k in range(1, g.kernel_w):
                a += load(line, g.left + w + g.low_w - k * g.step_w)
            store_most(gx, w, a, g.size_w - w)
    elif g.stride_w == 2:
        for w in range(0, g.size_w, 2 * lanes):
            even, odd = phase_sum(line, w // 2, g, 0), phase_sum(line, w // 2, g, 1)
            if w + 2 * lanes <= g.size_w:
                store_interleaved(gx, w, even, odd)
            else:
                store_interleaved(spare, 0, even, odd)
                store_most(gx, w, load(spare, 0), g.size_w - w)
                if g.size_w - w > lanes:
                    store_most(gx, w + lanes, load(spare, lanes), g.size_w - w - lanes)
    elif g.step_w == 1:
        for w in range(0, g.size_w, lanes):
            a, block = zero(line), w // lanes
            for o in range(reaching[2 * block], reaching[2 * block + 1]):
                start = windows_w[2 * o] - w
                a += keep_between(splat(line, g.left + o), start, start + windows_w[2 * o + 1])
            store_most(gx, w, a, g.size_w - w)
    else:
        for w in range(g.size_w):
            total = zero_element(line)
            for i in range(in_w.offsets[w], in_w.offsets[w + 1]):
                total += get(line, g.left + in_w.outputs[i])
            put(gx, w, total)


@parallel_kernel
def spread_rows(gy, norms, x, gx, constants, scratch, counters, thread, threads):
    """gx = the gradient of `mean_rows`, channels first; where `rooted`, of the roots, given these norms and x."""
    g, (in_d, in_h, in_w), alike_d, alike_h, windows_w, reaching, rates_d, rates_h, rates_w, rooted, tasks = thawed(constants)
    spare = advance(scratch, g.length)
    fill_line(scratch, g.length, zero_element(gy))
    for task in own_first(counters, thread, tasks.shares, tasks.number):
        start = task * tasks.run
        plane, d, h = row_at(start, g.size_d, g.size_h)
        for index in range(start, min(tasks.rows, start + tasks.run)):
            target = advance(gx, index * g.size_w)
            if alike_h[h] and index > start:
                copy_run(advance(target, -g.size_w), g.size_w, target)
            elif alike_d[d] and index - g.size_h >= start:
                copy_run(advance(target, -g.size_h * g.size_w), g.size_w, target)
            else:
                above = plane * g.out_d * g.out_h * g.out_w
                for o in range(0, g.out_w, lanes_of(gy)):
                    a = added_covering(advance(gy, above), advance(norms, above), rooted, o, g.out_w - o, g.out_w, g, d, h, in_d, in_h,
                                       rates_d, rates_h)
                    store_most(scratch, g.left + o, a * load(rates_w, o), g.out_w - o)
                spread_columns(scratch, g, in_w, windows_w, reaching, spare, target)
                if rooted:
                    multiply_run(advance(x, index * g.size_w), g.size_w, target)
            plane, d, h = next_row(plane, d, h, g.size_d, g.size_h)


# -- channels last --------------------------------------------------------------------------------------------------------


@outlined
def share_pixels(line, rate, g, channels, rates_w, windows_w, gx):
    """`gather_pixels` where windows have no common column: each pixel of the line goes to those of its window."""
    lanes, done = lanes_of(line), 0
    for o in range(g.out_w):
        first, count = windows_w[2 * o], windows_w[2 * o + 1]
        if count == 0:
            continue
        if first > done:
            clear_run(advance(gx, done * channels), (first - done) * channels)
        done, scale = first + count, broadcast(line, rate * rates_w[o])
        for c in range(0, channels, lanes):
            left = channels - c
            v = load_most(line, o * channels + c, left) * scale
            for i in range(first, done):
                store_most(gx, i * channels + c, v, left)
    clear_run(advance(gx, done * channels), (g.size_w - done) * channels)


@outlined
def gather_pixels(line, rate, g, channels, in_w, rates_w, gx):
    """Pixels of gx = the sum of the line's that look at them, times rate * rates_w."""
    lanes = lanes_of(line)
    whole = channels - channels % (4 * lanes)
    for w in range(g.size_w):
        first, end, target = in_w.offsets[w], in_w.offsets[w + 1], advance(gx, w * channels)
        for c in range(0, whole, 4 * lanes):
            p = q = r = s = zero(line)
            for i in range(first, end):
                o = in_w.outputs[i]
                source, scale = advance(line, o * channels + c), broadcast(line, rate * rates_w[o])
                p = fma(load(source, 0), scale, p)
                q = fma(load(source, lanes), scale, q)
                r = fma(load(source, 2 * lanes), scale, r)
                s = fma(load(source, 3 * lanes), scale, s)
            store(target, c, p)
            store(target, c + lanes, q)
            store(target, c + 2 * lanes, r)
            store(target, c + 3 * lanes, s)
        for c in range(whole, channels, lanes):
            p, left = zero(line), channels - c
            for i in range(first, end):
                o = in_w.outputs[i]
                p = fma(load_most(line, o * channels + c, left), broadcast(line, rate * rates_w[o]), p)
            store_most(target, c, p, left)


@parallel_kernel
def spread_pixels(gy, norms, x, gx, constants, scratch, counters, thread, threads):
    """gx = the gradient of `mean_pixels`, channels last; where `rooted`, of the roots, given these norms and x."""
    g, channels, (in_d, in_h, in_w), windows_w, apart, rates_d, rates_h, rates_w, one, rooted, tasks = thawed(constants)
    pitch, size = g.out_w * channels, g.size_w * channels
    for task in own_first(counters, thread, tasks.shares, tasks.number):
        image, d, h = row_at(task * tasks.run, g.size_d, g.size_h)
        for index in range(task * tasks.run, min(tasks.rows, (task + 1) * tasks.run)):
            source, roots = advance(gy, image * g.out_d * g.out_h * pitch), advance(norms, image * g.out_d * g.out_h * pitch)
            first_d, first_h, target = in_d.offsets[d], in_h.offsets[h], advance(gx, index * size)
            if (in_d.offsets[d + 1] - first_d) * (in_h.offsets[h + 1] - first_h) == 1 and not rooted:
                od, oh = in_d.outputs[first_d], in_h.outputs[first_h]
                line, rate = advance(source, (od * g.out_h + oh) * pitch), rates_d[od] * rates_h[oh]
            else:
                for c in range(0, pitch, lanes_of(gy)):
                    a = added_covering(source, roots, rooted, c, pitch - c, pitch, g, d, h, in_d, in_h, rates_d, rates_h)
                    store_most(scratch, c, a, pitch - c)
                line, rate = scratch, one
            if apart:
                share_pixels(line, rate, g, channels, rates_w, windows_w, target)
            else:
                gather_pixels(line, rate, g, channels, in_w, rates_w, target)
            if rooted:
                multiply_run(advance(x, index * size), size, target)
            image, d, h = next_row(image, d, h, g.size_d, g.size_h)


# -- whole images ---------------------------------------------------------------------------------------------------------


@parallel_kernel
def fill_planes(gy, w, bias, gx, constants, scratch, counters, thread, threads):
    """Each plane of gx = its gy over a divisor: the gradient of a mean over whole images, channels first."""
    size, divisor, tasks = thawed(constants)
    for task in own_first(counters, thread, tasks.shares, tasks.number):
        for plane in range(task * tasks.run, min(tasks.rows, (task + 1) * tasks.run)):
            value = broadcast(gy, get(gy, plane) / divisor)
            for i in range(0, size, lanes_of(gy)):
                store_most(gx, plane * size + i, value, size - i)


@parallel_kernel
def fill_pixels(gy, w, bias, gx, constants, scratch, counters, thread, threads):
    """Each pixel of gx = its image's gy over a divisor: the gradient of a mean over whole images, channels last."""
    size, channels, divisor, tasks = thawed(constants)
    for task in own_first(counters, thread, tasks.shares, tasks.number):
        held = -1
        for pixel in range(task * tasks.run, min(tasks.rows, (task + 1) * tasks.run)):
            if pixel // size != held:
                held = pixel // size
                for c in range(0, channels, lanes_of(gy)):
                    v = load_most(gy, held * channels + c, channels - c)
                    store_most(scratch, c, divide(v, broadcast(gy, divisor)), channels - c)
            copy_pixel(scratch, channels, advance(gx, pixel * channels))
