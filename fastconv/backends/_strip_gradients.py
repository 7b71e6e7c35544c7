"""Weight gradients read in place: every pair of an input and an output plane on its own, a sum for each tap in registers.

    gw[ky, kx] = sum over r, c of  gy[r, c] x[r stride + ky, c stride + kx]

A tile is some rows of gy by one vector of columns; each vector of x is loaded once for a tap of a kernel row and meets
all rows of the tile that it reaches. Where the sums of all taps are more than the registers hold, the kernel's rows are
taken in parts. Planes share no loads, so this serves few channels: depthwise, grouped, first layers.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import intrinsic

from ..problem import Problem
from ._jit import address_of, addressed
from ._planes import PLANE_OVERHEAD, STRIDE_FACTOR, PlaneEngine, planes_of_a_task, tasks_wanted, uses_threads
from ._simd import (
    VECTOR_REGISTERS,
    advance,
    gradient_tile,
    lane_count,
    lanes_of,
    own_first,
    parallel_kernel,
    put,
    thawed,
    tile_totals,
    tile_zeros,
    zero_element,
)
from ._simd.emit import call_by_address, pointer_to

# Costs in vector multiply-adds (bench_conv.py, depthwise, grad_weight)
EFFICIENCY = 0.6  # of the tiles, masked ones at the edges included
VECTOR_OVERHEAD = 12  # of a vector of gy for each part of the kernel
# (kernel width, stride) of the square kernels that there are gradients for
WIDTHS = ((3, 1), (3, 2), (5, 1), (5, 2), (7, 1))
LEAST_ROWS = 4  # of gy in a tile: each load of x then meets two of them at least


def kernel_parts(size: int) -> list[int]:
    """Rows of the kernel that one pass over the planes sums, for a square kernel."""
    most = max(1, (VECTOR_REGISTERS - LEAST_ROWS) // size)
    return [min(most, size - start) for start in range(0, size, most)]


def make_gradients(kh: int, kw: int, stride: int):
    """The sums of `kh` rows of taps over some rows of a pair of planes, to be called through its address."""
    height = min(LEAST_ROWS, VECTOR_REGISTERS - 1 - kh * kw)

    @addressed
    def gradients(x, pitch, rows, step, zeros, gy, gy_pitch, out_h, out_w, low, in_w, dilation, target):
        sums = tile_zeros(x, kh, kw)
        lanes = lanes_of(x)
        last = min(out_w - lanes, (in_w + low - lanes * stride - (kw - 1) * dilation) // stride)  # column of a tile inside the image
        whole = out_h - out_h % height
        for r in range(0, whole, height):
            first, gradient = advance(rows, r * stride * step), advance(gy, r * gy_pitch)
            for c in range(0, out_w, lanes):
                if c * stride >= low and c <= last:
                    sums = gradient_tile(sums, x, pitch, first, step, zeros, c * stride - low, in_w, dilation, advance(gradient, c),
                                         gy_pitch, lanes, kh, kw, stride, height, False)
                else:
                    sums = gradient_tile(sums, x, pitch, first, step, zeros, c * stride - low, in_w, dilation, advance(gradient, c),
                                         gy_pitch, out_w - c, kh, kw, stride, height, True)
        for r in range(whole, out_h):
            first, gradient = advance(rows, r * stride * step), advance(gy, r * gy_pitch)
            for c in range(0, out_w, lanes):
                sums = gradient_tile(sums, x, pitch, first, step, zeros, c * stride - low, in_w, dilation, advance(gradient, c), gy_pitch,
                                     out_w - c, kh, kw, stride, 1, True)
        tile_totals(sums, target)

    return gradients


GRADIENTS = {(kh, kw, stride): make_gradients(kh, kw, stride) for kw, stride in WIDTHS for kh in kernel_parts(kw)}


def _signature(p: types.CPointer) -> tuple[Any, ...]:
    word = types.int64
    return (p, word, types.CPointer(types.int32), word, p, p, *[word] * 6, p)


@functools.cache
def gradients_address(kh: int, kw: int, stride: int, dtype: str) -> int:
    """Address of the compiled gradients of a part of a kernel."""
    return address_of(GRADIENTS[kh, kw, stride], _signature(pointer_to(dtype)))


@intrinsic
def call_gradients(typingctx, gradients, x, pitch, rows, step, zeros, gy, gy_pitch, out_h, out_w, low, in_w, dilation, target):
    """Call gradients through their address."""
    return call_by_address(_signature(x))


class Pairs(NamedTuple):
    """Sizes of the pairs of planes and of the tasks; integers only, as the kernel takes it."""

    batch: int
    in_channels: int
    out_channels: int
    group_in: int
    group_out: int
    in_h: int
    in_w: int
    out_h: int
    out_w: int
    kernel: int
    stride: int
    dilation_h: int
    dilation_w: int
    low_w: int
    parts: int  # of the kernel
    part_rows: int  # of a part but the last
    block: int  # pairs of a task
    runs: int  # of the rows of a plane
    shares: int  # of the runs of all images, each with gradients of its own


@parallel_kernel
def direct_strip_gradients(x, gy, unused, gw, constants, scratch, counters, thread, threads):
    """gw[share] = gradient of the weights over the share's runs of rows, by (block of pairs of planes, share)."""
    g, rows, zeros, gradients, owners = thawed(constants)
    pairs = g.out_channels * g.group_in
    taps = g.kernel * g.kernel
    units = g.batch * g.dilation_h * g.runs
    tasks = -(-pairs // g.block) * g.shares
    for task in own_first(counters, thread, owners, tasks):
        share, block = task % g.shares, task // g.shares * g.block
        for pair in range(block, min(block + g.block, pairs)):
            output, channel = pair // g.group_in, pair // g.group_in // g.group_out * g.group_in + pair % g.group_in
            target = advance(gw, (share * pairs + pair) * taps)
            for tap in range(taps):
                put(target, tap, zero_element(gw))
            for unit in range(units * share // g.shares, units * (share + 1) // g.shares):
                image, residue, run = unit // (g.dilation_h * g.runs), unit // g.runs % g.dilation_h, unit % g.runs
                count = max(0, -(-(g.out_h - residue) // g.dilation_h))
                begin, end = count * run // g.runs, count * (run + 1) // g.runs
                first = residue + begin * g.dilation_h
                plane = advance(x, (image * g.in_channels + channel) * g.in_h * g.in_w)
                gradient = advance(gy, ((image * g.out_channels + output) * g.out_h + first) * g.out_w)
                for part in range(g.parts):
                    ky = part * g.part_rows
                    call_gradients(gradients[part], plane, g.in_w, advance(rows, first * g.stride + ky * g.dilation_h), g.dilation_h,
                                   zeros, gradient, g.dilation_h * g.out_w, end - begin, g.out_w, g.low_w, g.in_w, g.dilation_w,
                                   advance(target, ky * g.kernel))


def fits(problem: Problem) -> bool:
    """Whether strips compute a weight gradient: two dimensions, channels first, zeros beyond the border, a kernel size of theirs."""
    p = problem
    kd, kh, kw = p.kernel_size
    return (p.pass_name == "grad_weight" and not p.channels_last and p.padding_mode == "zeros" and kd == 1 and p.input_size[0] == 1
            and not any(p.padding[0]) and kh == kw and p.stride[0] == 1 and p.stride[1] == p.stride[2] and (kw, p.stride[1]) in WIDTHS
            and (p.stride[1] == 1 or p.dilation[1:] == (1, 1)))


def slots(problem: Problem) -> float:
    """Time of a run on one thread, in vector multiply-adds; infinite where strips do not fit."""
    p = problem
    if not fits(p):
        return math.inf
    vectors = p.output_size[1] * -(-p.output_size[2] // lane_count(p.dtype))
    points = p.kernel_size[1] * p.kernel_size[2]
    each = points / EFFICIENCY + VECTOR_OVERHEAD * len(kernel_parts(p.kernel_size[2]))
    each *= 1 if p.stride[2] == 1 else STRIDE_FACTOR
    return p.out_channels * p.group_in * p.batch * (vectors * each + PLANE_OVERHEAD)


def _pairs(problem: Problem) -> Pairs:
    p = problem
    kernel, stride, (_, out_h, out_w) = p.kernel_size[2], p.stride[2], p.output_size
    pairs = p.out_channels * p.group_in
    wanted = tasks_wanted() if uses_threads(p) else 1
    block = planes_of_a_task(p, pairs, wanted)
    shares = -(-wanted // -(-pairs // block))
    runs = max(1, min(-(-shares // (p.batch * p.dilation[1])), out_h // p.dilation[1] // LEAST_ROWS))
    shares = min(shares, p.batch * p.dilation[1] * runs)
    parts = kernel_parts(kernel)
    return Pairs(p.batch, p.in_channels, p.out_channels, p.group_in, p.group_out, p.input_size[1], p.input_size[2], out_h, out_w,
                 kernel, stride, p.dilation[1], p.dilation[2], p.padding[2][0], len(parts), parts[0], block, runs, shares)


class StripGradients(PlaneEngine):
    """The weight gradient by strips."""

    def __init__(self, problem: Problem):
        p = problem
        g = self.pairs = _pairs(p)
        addresses = np.array([gradients_address(rows, g.kernel, g.stride, p.dtype) for rows in kernel_parts(g.kernel)], np.int64)
        beyond = LEAST_ROWS * g.stride * g.dilation_h
        rows = np.pad(p.border_sources()[1], (0, beyond), constant_values=-1)
        super().__init__(p, direct_strip_gradients, (g, rows, np.zeros(g.in_w, p.dtype), addresses))

    def run(self, x: np.ndarray, packed: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> None:
        if self.pairs.shares == 1:
            self.kernel(x, packed, packed, out)
            return
        parts = np.empty((self.pairs.shares, out.size), out.dtype)
        self.kernel(x, packed, packed, parts)
        with np.errstate(invalid="ignore", over="ignore"):
            np.sum(parts, axis=0, out=out.reshape(-1))

    @property
    def scratch_bytes(self) -> int:
        parts = self.pairs.shares * self.problem.out_channels * self.problem.taps if self.pairs.shares > 1 else 0
        return super().scratch_bytes + parts * self.problem.itemsize
