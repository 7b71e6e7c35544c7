"""Locally connected layers: a convolution whose every output point has weights of its own.

Each weight is used once an image, so that reading the weights is the work; what is read of the image lies in cache. The
lanes of a vector are output points (channels first) or output channels (channels last), as the weights lie.

    channels first   w (O, C/G, taps, L): a task has a run of the L points, of which the windows are unfolded in scratch
    channels last    w (L, taps, C/G, O): a task has some points, each the product of its window and its own matrix

A weight loaded serves up to IMAGES images. Gradients of the input are gathered, so that no two threads write to one place:
channels first, the windows of a channel in scratch and folded; channels last, an input pixel from the windows it lies in.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..problem import Problem
from ._folding import FoldTables, first_tap, fold_lines, output_of
from ._jit import inlined, num_threads, outlined
from ._simd import (
    BoundKernel,
    advance,
    as_int64,
    fma,
    lane_count,
    lanes_of,
    load,
    load_first,
    parallel_kernel,
    put,
    shared_out,
    splat,
    store,
    store_first,
    thawed,
    total,
    zero,
)
from ._unfolding import Windows, clear_run, unfold_piece, unfold_window, windows_of

IMAGES = 4  # sums side by side for one weight that is loaded
RUN_BYTES = 2048  # of the points of a task: what is read at once of each row of weights, half a page
BLOCK_BYTES = 192 * 1024  # of unfolded windows that a task keeps: they stay in a 1 MiB L2 beside the weights
TASKS_OF_THREAD = 2  # at least, where there are outputs enough
SERIAL_PRODUCTS = 100_000  # below which one thread is done before a second has started


class Local(NamedTuple):
    """Sizes of a locally connected layer, and how its tasks are cut."""

    outputs: int
    groups: int
    taps: int
    points: int
    run: int  # points of a task
    block: int  # channels whose windows are unfolded at once
    images: int  # images of a task
    parts: int = 1  # tasks that share out a group's outputs


@inlined
def load_some(p, offset, count):
    """A vector, of which the first `count` lanes are there."""
    return load(p, offset) if count >= lanes_of(p) else load_first(p, offset, count)


@inlined
def store_some(p, offset, value, count):
    """The first `count` lanes of a vector."""
    if count >= lanes_of(p):
        store(p, offset, value)
    else:
        store_first(p, offset, value, count)


@inlined
def sum_products(y, y_pitch, x, x_pitch, w, w_pitch, terms, term_pitch, images, count):
    """y[n * y_pitch + i] += the sum over k of x[n * x_pitch + k * term_pitch + i] * w[k * w_pitch + i], for n < images and i < count."""
    lanes = lanes_of(x)
    for i in range(0, count, lanes):
        left = count - i
        n = 0
        while n + 4 <= images:
            at, to = n * x_pitch + i, n * y_pitch + i
            a, b = load_some(y, to, left), load_some(y, to + y_pitch, left)
            c, d = load_some(y, to + 2 * y_pitch, left), load_some(y, to + 3 * y_pitch, left)
            for k in range(terms):
                weight = load_some(w, k * w_pitch + i, left)
                term = at + k * term_pitch
                a = fma(weight, load_some(x, term, left), a)
                b = fma(weight, load_some(x, term + x_pitch, left), b)
                c = fma(weight, load_some(x, term + 2 * x_pitch, left), c)
                d = fma(weight, load_some(x, term + 3 * x_pitch, left), d)
            store_some(y, to, a, left)
            store_some(y, to + y_pitch, b, left)
            store_some(y, to + 2 * y_pitch, c, left)
            store_some(y, to + 3 * y_pitch, d, left)
            n += 4
        while n < images:
            value = load_some(y, n * y_pitch + i, left)
            for k in range(terms):
                value = fma(load_some(w, k * w_pitch + i, left), load_some(x, n * x_pitch + k * term_pitch + i, left), value)
            store_some(y, n * y_pitch + i, value, left)
            n += 1


# -- channels first -------------------------------------------------------------------------------------------------------


@outlined
def unfold_block(target, pitch, x, g, local, image, images, channel, channels, first, count):
    """Windows [first, first + count) of some channels of some images: target (images, channels, taps, pitch)."""
    size = g.in_h * g.in_w
    for n in range(images):
        for c in range(channels):
            plane = advance(x, ((image + n) * g.channels + channel + c) * size)
            for tap in range(local.taps):
                to = advance(target, ((n * channels + c) * local.taps + tap) * pitch)
                unfold_piece(to, plane, g, tap // g.kernel_w, tap % g.kernel_w, first, count)


@outlined
def forward_run(x, w, y, g, local, image, images, group, part, first, count, windows):
    """A run of points of a part of a group's outputs of some images: y += products, block of channels by block."""
    per_group, group_out = g.channels // local.groups, local.outputs // local.groups
    for channel in range(0, per_group, local.block):
        channels = min(local.block, per_group - channel)
        terms = channels * local.taps
        unfold_block(windows, local.run, x, g, local, image, images, group * per_group + channel, channels, first, count)
        for output in range(group * group_out + part * group_out // local.parts, group * group_out + (part + 1) * group_out // local.parts):
            sum_products(advance(y, (image * local.outputs + output) * local.points + first), local.outputs * local.points,
                         windows, terms * local.run,
                         advance(w, (output * per_group + channel) * local.taps * local.points + first), local.points,
                         terms, local.run, images, count)


@parallel_kernel
def local_forward_planes(x, w, bias, y, constants, scratch, counters, thread, threads):
    """y (N, O, L), which holds the bias, += x (N, C, H, W) by w (O, C/G, taps, L)."""
    g, local = thawed(constants)
    runs = -(-local.points // local.run)
    shares = runs * local.parts
    for task in shared_out(counters, 1, -(-g.images // local.images) * local.groups * shares):
        first, part = task % runs * local.run, task // runs % local.parts
        group, image = task // shares % local.groups, task // (shares * local.groups) * local.images
        images, count = min(local.images, g.images - image), min(local.run, local.points - first)
        forward_run(x, w, y, g, local, image, images, group, part, first, count, scratch)


@outlined
def weight_run(x, gy, gw, g, local, channel, image, images, first, count, windows):
    """A run of points of the gradients of all weights of a channel, added up over some images."""
    lanes = lanes_of(x)
    per_group, group_out = g.channels // local.groups, local.outputs // local.groups
    group = channel // per_group
    unfold_block(windows, local.run, x, g, local, image, images, channel, 1, first, count)
    for output in range(group * group_out, (group + 1) * group_out):
        target = advance(gw, (output * per_group + channel % per_group) * local.taps * local.points + first)
        source = advance(gy, (image * local.outputs + output) * local.points + first)
        for tap in range(local.taps):
            for i in range(0, count, lanes):
                left = count - i
                value = zero(x)
                if image > 0:
                    value = load_some(target, tap * local.points + i, left)
                for n in range(images):
                    value = fma(load_some(source, n * local.outputs * local.points + i, left),
                                load_some(windows, (n * local.taps + tap) * local.run + i, left), value)
                store_some(target, tap * local.points + i, value, left)


@parallel_kernel
def local_weight_planes(x, gy, bias, gw, constants, scratch, counters, thread, threads):
    """gw (O, C/G, taps, L) from x (N, C, H, W) and gy (N, O, L)."""
    g, local = thawed(constants)
    runs = -(-local.points // local.run)
    for task in shared_out(counters, 1, g.channels * runs):
        first = task % runs * local.run
        for image in range(0, g.images, local.images):
            weight_run(x, gy, gw, g, local, task // runs, image, min(local.images, g.images - image), first,
                       min(local.run, local.points - first), scratch)


@outlined
def input_windows(gy, w, g, local, channel, image, images, windows):
    """Gradients of a channel's windows of some images: windows (images, taps, points)."""
    per_group, group_out = g.channels // local.groups, local.outputs // local.groups
    group = channel // per_group
    clear_run(windows, images * local.taps * local.points)
    for tap in range(local.taps):
        sum_products(advance(windows, tap * local.points), local.taps * local.points,
                     advance(gy, (image * local.outputs + group * group_out) * local.points), local.outputs * local.points,
                     advance(w, ((group * group_out * per_group + channel % per_group) * local.taps + tap) * local.points),
                     per_group * local.taps * local.points, group_out, local.points, images, local.points)


@parallel_kernel
def local_input_planes(gy, w, bias, gx, constants, scratch, counters, thread, threads):
    """gx (N, C, H, W) from gy (N, O, L) and w (O, C/G, taps, L)."""
    g, local, fold = thawed(constants)
    for task in shared_out(counters, 1, -(-g.images // local.images) * g.channels):
        channel, image = task % g.channels, task // g.channels * local.images
        images = min(local.images, g.images - image)
        windows = advance(scratch, fold.scratch)
        input_windows(gy, w, g, local, channel, image, images, windows)
        for n in range(images):
            fold_lines(advance(gx, ((image + n) * g.channels + channel) * g.in_h * g.in_w), advance(windows, n * local.taps * local.points),
                       g, fold, 0, g.in_h, scratch)


# -- channels last --------------------------------------------------------------------------------------------------------


@outlined
def forward_point(x, w, y, g, local, image, images, point, windows):
    """A point of all outputs of some images: windows (images, taps, C) by the point's own matrices."""
    lanes = lanes_of(x)
    terms, per_group, group_out = local.taps * g.channels, g.channels // local.groups, local.outputs // local.groups
    for n in range(images):
        unfold_window(advance(windows, n * terms), advance(x, (image + n) * g.in_h * g.in_w * g.channels), g, 0,
                      point // g.out_w * g.stride_h - g.low_h, point % g.out_w * g.stride_w - g.low_w)
    for group in range(local.groups):
        for o in range(group * group_out, (group + 1) * group_out, lanes):
            left = (group + 1) * group_out - o
            weights = advance(w, point * local.taps * per_group * local.outputs + o)
            for n in range(0, images, 2):
                pair = min(n + 1, images - 1)  # an odd image is computed twice
                first = advance(windows, n * terms + group * per_group)
                second = advance(windows, pair * terms + group * per_group)
                to = ((image + n) * local.points + point) * local.outputs + o
                to_second = to + (pair - n) * local.points * local.outputs
                a, b = load_some(y, to, left), load_some(y, to_second, left)
                for tap in range(local.taps):
                    for c in range(per_group):
                        weight = load_some(weights, (tap * per_group + c) * local.outputs, left)
                        a = fma(weight, splat(first, tap * g.channels + c), a)
                        b = fma(weight, splat(second, tap * g.channels + c), b)
                store_some(y, to, a, left)
                store_some(y, to_second, b, left)


@parallel_kernel
def local_forward_pixels(x, w, bias, y, constants, scratch, counters, thread, threads):
    """y (N, L, O), which holds the bias, += x (N, H, W, C) by w (L, taps, C/G, O)."""
    g, local = thawed(constants)
    for point in shared_out(counters, local.run, local.points):
        for image in range(0, g.images, local.images):
            forward_point(x, w, y, g, local, image, min(local.images, g.images - image), point, scratch)


@outlined
def weight_point(x, gy, gw, g, local, image, images, point, windows):
    """The gradient of a point's matrices, added up over some images."""
    lanes = lanes_of(x)
    terms, per_group, group_out = local.taps * g.channels, g.channels // local.groups, local.outputs // local.groups
    for n in range(images):
        unfold_window(advance(windows, n * terms), advance(x, (image + n) * g.in_h * g.in_w * g.channels), g, 0,
                      point // g.out_w * g.stride_h - g.low_h, point % g.out_w * g.stride_w - g.low_w)
    for tap in range(local.taps):
        for c in range(per_group):
            target = advance(gw, ((point * local.taps + tap) * per_group + c) * local.outputs)
            for group in range(local.groups):
                for o in range(group * group_out, (group + 1) * group_out, lanes):
                    left = (group + 1) * group_out - o
                    value = zero(x)
                    if image > 0:
                        value = load_some(target, o, left)
                    for n in range(images):
                        value = fma(load_some(gy, ((image + n) * local.points + point) * local.outputs + o, left),
                                    splat(windows, n * terms + tap * g.channels + group * per_group + c), value)
                    store_some(target, o, value, left)


@parallel_kernel
def local_weight_pixels(x, gy, bias, gw, constants, scratch, counters, thread, threads):
    """gw (L, taps, C/G, O) from x (N, H, W, C) and gy (N, L, O)."""
    g, local = thawed(constants)
    for point in shared_out(counters, local.run, local.points):
        for image in range(0, g.images, local.images):
            weight_point(x, gy, gw, g, local, image, min(local.images, g.images - image), point, scratch)


@outlined
def input_pixel(gy, w, gx, g, local, steps, image, h, at_w, table):
    """gx of a pixel: the products of the gradients of the windows that it lies in with their rows of weights."""
    lanes = lanes_of(gy)
    per_group, group_out = g.channels // local.groups, local.outputs // local.groups
    count = 0
    for tap_h in range(first_tap(h + g.low_h, g.stride_h, g.dilation_h, steps[1]), g.kernel_h, steps[1]):
        out_h = output_of(h + g.low_h - tap_h * g.dilation_h, g.stride_h)
        for tap_w in range(first_tap(at_w + g.low_w, g.stride_w, g.dilation_w, steps[2]), g.kernel_w, steps[2]):
            out_w = output_of(at_w + g.low_w - tap_w * g.dilation_w, g.stride_w)
            if 0 <= out_h < g.out_h and 0 <= out_w < g.out_w:
                point = out_h * g.out_w + out_w
                put(table, 2 * count, point * local.outputs)
                put(table, 2 * count + 1, (point * local.taps + tap_h * g.kernel_w + tap_w) * per_group * local.outputs)
                count += 1
    target = advance(gx, ((image * g.in_h + h) * g.in_w + at_w) * g.channels)
    source = advance(gy, image * local.points * local.outputs)
    for channel in range(g.channels):
        group = channel // per_group
        value = zero(gy)
        for i in range(count):
            for o in range(group * group_out, (group + 1) * group_out, lanes):
                left = (group + 1) * group_out - o
                value = fma(load_some(source, table[2 * i] + o, left),
                            load_some(w, table[2 * i + 1] + channel % per_group * local.outputs + o, left), value)
        put(target, channel, total(value))


@parallel_kernel
def local_input_pixels(gy, w, bias, gx, constants, scratch, counters, thread, threads):
    """gx (N, H, W, C) from gy (N, L, O) and w (L, taps, C/G, O); a pixel's weights serve all images."""
    g, local, steps = thawed(constants)
    for line in shared_out(counters, 1, g.in_h):
        for at_w in range(g.in_w):
            for image in range(g.images):
                input_pixel(gy, w, gx, g, local, steps, image, line, at_w, as_int64(scratch))


# -- binding --------------------------------------------------------------------------------------------------------------


def local_kernel(problem: Problem) -> BoundKernel:
    """The kernel of a locally connected layer with the shapes of a convolution (1-D and 2-D), for the pass of the problem.

    forward: kernel(x, w, any, y), adding to y; grad_input: kernel(gy, w, any, gx); grad_weight: kernel(x, gy, any, gw).
    """
    p = problem
    g, taps, points = windows_of(p), math.prod(p.kernel_size), math.prod(p.output_size)
    parallel = p.flops > 2 * SERIAL_PRODUCTS
    if p.channels_last:
        return _pixels_kernel(p, g, taps, points, parallel)
    lanes = lane_count(p.dtype)
    run = min(RUN_BYTES // p.itemsize, -(-points // lanes) * lanes)
    plane = taps * run * p.itemsize
    if p.pass_name == "forward":
        images = min(IMAGES, p.batch)
        block = max(1, min(p.group_in, BLOCK_BYTES // (plane * images)))
        parts = min(p.group_out, -(-TASKS_OF_THREAD * num_threads() // (-(-p.batch // images) * p.groups * -(-points // run))))
        local = Local(p.out_channels, p.groups, taps, points, run, block, images, max(1, parts))
        return local_forward_planes.bind(p.dtype, (g, local), scratch=images * block * taps * run, parallel=parallel)
    if p.pass_name == "grad_weight":
        images = max(1, min(p.batch, BLOCK_BYTES // plane))
        local = Local(p.out_channels, p.groups, taps, points, run, 1, images)
        return local_weight_planes.bind(p.dtype, (g, local), scratch=images * taps * run, parallel=parallel)
    images = min(IMAGES, p.batch)
    local = Local(p.out_channels, p.groups, taps, points, run, 1, images)
    fold = FoldTables.of(p)
    return local_input_planes.bind(p.dtype, (g, local, fold), scratch=fold.scratch + images * taps * points, parallel=parallel)


def _pixels_kernel(p: Problem, g: Windows, taps: int, points: int, parallel: bool) -> BoundKernel:
    """The kernels of channels-last layers."""
    terms = taps * p.in_channels
    images = max(1, min(p.batch, BLOCK_BYTES // (terms * p.itemsize)))
    run = max(1, SERIAL_PRODUCTS // max(1, p.flops // (2 * points)))
    local = Local(p.out_channels, p.groups, taps, points, run, p.group_in, images)
    if p.pass_name == "grad_input":
        steps = tuple(s // math.gcd(s, d) for s, d in zip(p.stride, p.dilation, strict=True))
        return local_input_pixels.bind(p.dtype, (g, local, steps), scratch=2 * taps * 8 // np.dtype(p.dtype).itemsize, parallel=parallel)
    kernel = local_forward_pixels if p.pass_name == "forward" else local_weight_pixels
    return kernel.bind(p.dtype, (g, local), scratch=images * terms, parallel=parallel)
