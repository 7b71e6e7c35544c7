"""Gradients of averages: each input point gathers the outputs whose windows hold it, each over its divisor.

Channels first, the rows of gy that look at a row of the input are added into one line with zeros on both sides, and along it
each input column adds the outputs of its taps: vectors at stride 1, and at stride 2 one vector for the even and one for
the odd columns, which are then put together.
"""

from __future__ import annotations

from typing import NamedTuple

from .._windows import Windows
from ._jit import inlined, outlined
from ._pooling_pixels import copy_pixel
from ._pooling_rows import fill_line, load_most, store_most
from ._simd import (
    advance,
    broadcast,
    divide,
    fma,
    get,
    lane_count,
    lanes_of,
    load,
    parallel_kernel,
    put,
    shared_out,
    store_first,
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


@inlined
def added_covering(gy, o, count, g, od_first, od_end, outputs_d, oh_first, oh_end, outputs_h, rates_d, rates_h):
    """The vector at column o, `count` lanes of it, of the weighted sum of the rows of gy that look at a row of the input."""
    a = zero(gy)
    for i in range(od_first, od_end):
        od = outputs_d[i]
        for j in range(oh_first, oh_end):
            oh = outputs_h[j]
            at = (od * g.out_h + oh) * g.out_w + o
            v = load_most(gy, at, count)
            a = fma(v, broadcast(gy, rates_d[od] * rates_h[oh]), a)
    return a


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
def spread_columns(line, g, offsets_w, outputs_w, spare, gx):
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
    else:
        for w in range(g.size_w):
            total = zero_element(line)
            for i in range(offsets_w[w], offsets_w[w + 1]):
                total += get(line, g.left + outputs_w[i])
            put(gx, w, total)


@parallel_kernel
def spread_rows(gy, w, bias, gx, constants, scratch, counters, thread, threads):
    """gx = the gradient of `mean_rows`, channels first."""
    g, tables, rates_d, rates_h, divisors_w, run = thawed(constants)
    offsets_d, outputs_d, offsets_h, outputs_h, offsets_w, outputs_w = tables
    spare = advance(scratch, g.length)
    fill_line(scratch, g.length, zero_element(gy))
    rows = g.planes * g.size_d * g.size_h
    for index in shared_out(counters, run, rows):
        plane, d, h = index // (g.size_h * g.size_d), index // g.size_h % g.size_d, index % g.size_h
        source = advance(gy, plane * g.out_d * g.out_h * g.out_w)
        for o in range(0, g.out_w, lanes_of(gy)):
            a = added_covering(source, o, g.out_w - o, g, offsets_d[d], offsets_d[d + 1], outputs_d, offsets_h[h], offsets_h[h + 1],
                               outputs_h, rates_d, rates_h)
            store_most(scratch, g.left + o, divide(a, load(divisors_w, o)), g.out_w - o)
        spread_columns(scratch, g, offsets_w, outputs_w, spare, advance(gx, index * g.size_w))


@parallel_kernel
def spread_pixels(gy, w, bias, gx, constants, scratch, counters, thread, threads):
    """gx = the gradient of `mean_pixels`, channels last."""
    g, channels, tables, rates_d, rates_h, rates_w, run = thawed(constants)
    offsets_d, outputs_d, offsets_h, outputs_h, offsets_w, outputs_w = tables
    lanes = lanes_of(gy)
    rows = g.planes * g.size_d * g.size_h
    for index in shared_out(counters, run, rows):
        image, d, h = index // (g.size_h * g.size_d), index // g.size_h % g.size_d, index % g.size_h
        for w_at in range(g.size_w):
            target = advance(gx, (index * g.size_w + w_at) * channels)
            for c in range(0, channels, lanes):
                a = zero(gy)
                for i in range(offsets_d[d], offsets_d[d + 1]):
                    od = outputs_d[i]
                    for j in range(offsets_h[h], offsets_h[h + 1]):
                        oh = outputs_h[j]
                        row = ((image * g.out_d + od) * g.out_h + oh) * g.out_w
                        for k in range(offsets_w[w_at], offsets_w[w_at + 1]):
                            o = outputs_w[k]
                            v = load_most(gy, (row + o) * channels + c, channels - c)
                            a = fma(v, broadcast(gy, rates_d[od] * rates_h[oh] * rates_w[o]), a)
                store_most(target, c, a, channels - c)


@parallel_kernel
def fill_images(gy, w, bias, gx, constants, scratch, counters, thread, threads):
    """Each plane of gx, or each of its pixels, = gy over a divisor: the gradient of a mean over whole images."""
    images, size, channels, last, divisor, run = thawed(constants)
    lanes = lanes_of(gy)
    for image in shared_out(counters, run, images):
        if not last:
            value = get(gy, image) / divisor
            target = advance(gx, image * size)
            for i in range(0, size, lanes):
                store_most(target, i, broadcast(gy, value), size - i)
            continue
        for c in range(0, channels, lanes):
            v = load_most(gy, image * channels + c, channels - c)
            store_first(scratch, c, divide(v, broadcast(gy, divisor)), channels - c)
        for i in range(size):
            copy_pixel(scratch, channels, advance(gx, (image * size + i) * channels))
