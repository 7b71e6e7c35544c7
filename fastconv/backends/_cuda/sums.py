"""Kernels of the plain sum: any pass, type, layout and border; a thread, or for weights a block, an output element.

Dimension letters: n image, o output channel, c input channel, q point of y, i point of x, t tap; d h w the three axes.
Where an axis's padded positions come from stands in a table (`geometry.source_table`), which lies in the cache.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ...problem import Problem
from . import cuda, fetch, inlined, load, shared_memory, store, zero_of
from .compiling import Code
from .geometry import image_strides, weight_strides

__all__ = ["Sizes", "forward_code", "grad_input_code", "grad_weight_code", "sizes_of"]


class Sizes(NamedTuple):
    """A problem as the kernels take it; x_d is x's stride along d, in elements."""

    batch: int
    groups: int
    group_in: int
    group_out: int
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
    start_d: int  # of each axis's part of the table
    start_h: int
    start_w: int
    x_n: int
    x_c: int
    x_d: int
    x_h: int
    x_w: int
    w_o: int
    w_c: int
    w_d: int
    w_h: int
    w_w: int
    y_n: int
    y_c: int
    y_d: int
    y_h: int
    y_w: int
    channels_last: int
    has_bias: int


def sizes_of(problem: Problem, starts: tuple[int, int, int]) -> Sizes:
    """The sizes of a problem whose table's axes begin at `starts`."""
    p = problem
    x, y = (image_strides(*sizes, p.channels_last) for sizes in ((p.in_channels, p.input_size), (p.out_channels, p.output_size)))
    channels = p.batch, p.groups, p.group_in, p.group_out
    axes = *p.input_size, *p.output_size, *p.kernel_size, *p.stride, *p.dilation, *starts
    return Sizes._make((*channels, *axes, *x, *weight_strides(p), *y, int(p.channels_last), int(p.bias)))


def rectifier(dtype: str) -> Callable:
    """`value`, times a slope where it is negative, cut at a ceiling; integers as they are."""
    element = np.dtype(dtype).type
    if np.dtype(dtype).kind != "f":
        return inlined(lambda value, slope, ceiling: value)

    def rectify(value, slope, ceiling):
        if value < element(0):
            value = value * element(slope)
        return element(ceiling) if value > element(ceiling) else value

    return inlined(rectify)


def _point_of(index, channels_last, channels, depths, rows, columns):
    """(n, channel, d, h, w) of the element `index` of an image."""
    channel = index % channels if channels_last else index // (depths * rows * columns) % channels
    point = index // channels if channels_last else index
    w, h, d = point % columns, point // columns % rows, point // columns // rows % depths
    return index // channels // (depths * rows * columns), channel, d, h, w


point_of = inlined(_point_of)


@functools.cache
def forward_code(dtype: str, threads: int) -> Code:
    """y[n, o, q] = bias[o] + sum over c, t of  w[o, c, t] x[n, c, source(stride q + dilation t)]."""
    finish = rectifier(dtype)

    def direct_forward(x, w, bias, sources, y, g, slope, ceiling):
        index = cuda.blockIdx.x * np.int64(threads) + cuda.threadIdx.x
        channels = g.groups * g.group_out
        if index >= np.int64(g.batch) * channels * g.out_d * g.out_h * g.out_w:
            return
        n, o, q_d, q_h, q_w = point_of(index, g.channels_last, channels, g.out_d, g.out_h, g.out_w)
        total = fetch(bias, o) if g.has_bias else zero_of(x)
        image = n * g.x_n + o // g.group_out * g.group_in * g.x_c
        for t_d in range(g.kernel_d):
            d = fetch(sources, g.start_d + q_d * g.stride_d + t_d * g.dilation_d)
            for t_h in range(g.kernel_h):
                h = fetch(sources, g.start_h + q_h * g.stride_h + t_h * g.dilation_h)
                for t_w in range(g.kernel_w):
                    v = fetch(sources, g.start_w + q_w * g.stride_w + t_w * g.dilation_w)
                    inside = d >= 0 and h >= 0 and v >= 0
                    at = image + np.int64(d) * g.x_d + h * g.x_h + v * g.x_w
                    tap = o * g.w_o + t_d * g.w_d + t_h * g.w_h + t_w * g.w_w
                    for c in range(g.group_in):
                        value = fetch(x, at + c * g.x_c) if inside else zero_of(x)
                        total += value * fetch(w, tap + c * g.w_c)
        store(y, index, finish(total, slope, ceiling))

    return Code(f"direct_forward.{dtype}.{threads}", direct_forward, (dtype, dtype, dtype, "int32", dtype), Sizes, 2, threads)


BEYOND, PASSED_OVER = -1, -2  # no point of gy: a zero of its border, which takes part in the sum; between two points, which does not


def _output_of(position, dilated, stride, outputs):
    """The output point that meets a padded position with a tap `dilated` positions into the kernel, or why there is none."""
    reach = position - dilated
    if reach % stride != 0:
        return PASSED_OVER
    q = reach // stride
    return q if 0 <= q < outputs else BEYOND


output_of = inlined(_output_of)


@functools.cache
def grad_input_code(dtype: str, threads: int) -> Code:
    """gx[n, c, i] = bias[c] + sum over o, t, and the padded positions u that show i, of  w[o, c, t] gy[n, o, (u - dilation t) / stride]."""
    finish = rectifier(dtype)

    def tap_sum(gy, w, g, gradient, weights, u_d, u_h, u_w):
        """What one padded position receives; `gradient` and `weights` are where its image and channel begin."""
        total = zero_of(gy)
        for t_d in range(g.kernel_d):
            q_d = output_of(u_d, t_d * g.dilation_d, g.stride_d, g.out_d)
            for t_h in range(g.kernel_h):
                q_h = output_of(u_h, t_h * g.dilation_h, g.stride_h, g.out_h)
                for t_w in range(g.kernel_w):
                    q_w = output_of(u_w, t_w * g.dilation_w, g.stride_w, g.out_w)
                    if q_d != PASSED_OVER and q_h != PASSED_OVER and q_w != PASSED_OVER:
                        inside = q_d >= 0 and q_h >= 0 and q_w >= 0
                        at = gradient + q_d * g.y_d + q_h * g.y_h + q_w * g.y_w
                        tap = weights + t_d * g.w_d + t_h * g.w_h + t_w * g.w_w
                        for o in range(g.group_out):
                            value = fetch(gy, at + o * g.y_c) if inside else zero_of(gy)
                            total += value * fetch(w, tap + o * g.w_o)
        return total

    tap_sum = inlined(tap_sum)

    def direct_grad_input(gy, w, bias, targets, gx, g, slope, ceiling):
        index = cuda.blockIdx.x * np.int64(threads) + cuda.threadIdx.x
        channels = g.groups * g.group_in
        if index >= np.int64(g.batch) * channels * g.in_d * g.in_h * g.in_w:
            return
        n, c, i_d, i_h, i_w = point_of(index, g.channels_last, channels, g.in_d, g.in_h, g.in_w)
        group = c // g.group_in
        gradient = n * g.y_n + group * g.group_out * g.y_c
        weights = group * g.group_out * g.w_o + c % g.group_in * g.w_c
        total = fetch(bias, c) if g.has_bias else zero_of(gy)
        for d in range(fetch(targets, g.start_d + i_d), fetch(targets, g.start_d + i_d + 1)):
            for h in range(fetch(targets, g.start_h + i_h), fetch(targets, g.start_h + i_h + 1)):
                for v in range(fetch(targets, g.start_w + i_w), fetch(targets, g.start_w + i_w + 1)):
                    total += tap_sum(gy, w, g, gradient, weights, fetch(targets, g.start_d + d), fetch(targets, g.start_h + h),
                                     fetch(targets, g.start_w + v))
        store(gx, index, finish(total, slope, ceiling))

    return Code(f"direct_grad_input.{dtype}.{threads}", direct_grad_input, (dtype, dtype, dtype, "int32", dtype), Sizes, 2, threads)


@functools.cache
def grad_weight_code(dtype: str, threads: int) -> Code:
    """gw[o, c, t] = sum over n, q of  gy[n, o, q] x[n, c, source(stride q + dilation t)], a block each."""

    def direct_grad_weight(x, gy, sources, gw, g):
        index = cuda.blockIdx.x
        thread = cuda.threadIdx.x
        o = index // g.w_o % (g.groups * g.group_out)
        c = index // g.w_c % g.group_in
        t_d, t_h, t_w = index // g.w_d % g.kernel_d, index // g.w_h % g.kernel_h, index // g.w_w % g.kernel_w
        image = (o // g.group_out * g.group_in + c) * g.x_c
        points = g.out_d * g.out_h * g.out_w
        total = zero_of(x)
        for point in range(thread, np.int64(g.batch) * points, threads):
            n, q = point // points, point % points
            q_d, q_h, q_w = q // g.out_w // g.out_h, q // g.out_w % g.out_h, q % g.out_w
            d = fetch(sources, g.start_d + q_d * g.stride_d + t_d * g.dilation_d)
            h = fetch(sources, g.start_h + q_h * g.stride_h + t_h * g.dilation_h)
            v = fetch(sources, g.start_w + q_w * g.stride_w + t_w * g.dilation_w)
            inside = d >= 0 and h >= 0 and v >= 0
            value = fetch(x, n * g.x_n + image + np.int64(d) * g.x_d + h * g.x_h + v * g.x_w) if inside else zero_of(x)
            total += value * fetch(gy, n * g.y_n + o * g.y_c + q_d * g.y_d + q_h * g.y_h + q_w * g.y_w)
        sums = shared_memory(x)
        store(sums, thread, total)
        width = threads // 2
        while width:
            cuda.syncthreads()
            if thread < width:
                store(sums, thread, load(sums, thread) + load(sums, thread + width))
            width //= 2
        if thread == 0:
            store(gw, index, load(sums, 0))

    return Code(f"direct_grad_weight.{dtype}.{threads}", direct_grad_weight, (dtype, dtype, "int32", dtype), Sizes, 0, threads)
