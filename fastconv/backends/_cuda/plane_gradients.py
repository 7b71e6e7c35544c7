"""Weight gradients of single planes on a GPU: depthwise layers with small kernels and borders of zeros.

    gw[o, t] = sum over n, q of  gy[n, o, q] x[n, c, stride q + t - low]

A block has a channel, or a run of them where they come last, and a share of the columns of all images. A thread walks down its columns
with a kernel's window of x in registers, which each row moves on, and one sum a tap; the block adds them up in a fixed order. Shares of
several blocks are added by another kernel.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from ...problem import Problem
from .._rectifiers import RECTIFIERS
from . import (
    SIMULATED,
    advance,
    concatenate,
    cuda,
    fetch,
    fetch_window,
    i32,
    inlined,
    load,
    one,
    outer_product,
    pick,
    quotient,
    remainder,
    shared_memory,
    store,
    traced,
    zero_of,
    zeros,
)
from .compiling import Code, repeated
from .driver import Gpu, Launch, Stream, gpu, scratch
from .geometry import image_strides, weight_strides
from .packing import Parts, sum_parts_code
from .planes import FULL_THREADS, LAUNCH_SECONDS, Shape, all_shapes, shape_of, work_seconds

__all__ = ["PlaneGradients", "codes", "seconds"]

THREADS = 8 if SIMULATED else 128
CHANNELS = 4 if SIMULATED else 32  # of a block, where they come last
RUN = 16  # sums that one thread adds up
HEIGHTS = (64, 32, 16, 8)  # of a thread's column


class Columns(NamedTuple):
    """A weight gradient of planes as the kernel takes it. Strides count elements."""

    images: int
    channels: int
    multiplier: int
    in_h: int
    in_w: int
    out_h: int
    out_w: int
    low_h: int
    low_w: int
    height: int  # of a strip
    strips: int
    x_n: int
    x_c: int
    x_row: int
    x_column: int
    y_n: int
    y_c: int
    y_row: int
    y_column: int
    w_channel: int
    w_row: int
    w_column: int
    part: int  # elements of a share's result


def lanes_of(channels_last: bool) -> tuple[int, int, int]:
    """(channels of a block, threads of each, runs of their sums)."""
    channels = CHANNELS if channels_last else 1
    lanes = THREADS // channels
    return channels, lanes, -(-lanes // RUN)


def shared_bytes(shape: Shape, channels_last: bool, dtype: str) -> int:
    """Shared memory of a block: every thread's sums, and those of the runs."""
    channels, _, runs = lanes_of(channels_last)
    return shape.rows * shape.columns * (THREADS + channels * runs) * np.dtype(dtype).itemsize


@functools.cache
def gradient_code(shape: Shape, channels_last: bool, dtype: str) -> Code:
    """gw[o, t] = sum over n, q of  gy[n, o, q] x[n, c, stride q + t - low], or a share of it."""
    rows, columns, row_stride, column_stride = shape
    channels, lanes, runs = lanes_of(channels_last)
    taps, head_rows = rows * columns, rows - row_stride
    fresh = row_stride * columns

    def head_of_window(x, row, column, x_step, g):
        at = i32(row * g.x_row + column * x_step)
        return fetch_window(x, at, g.x_row, x_step, row, column, g.in_h, g.in_w, head_rows, columns)

    head = inlined(head_of_window if head_rows else lambda x, row, column, x_step, g: zeros(x, 1))
    join = concatenate if head_rows else inlined(lambda carry, values: values)
    rest = traced((lambda values: list(values[fresh:])) if head_rows else (lambda values: [0.0]))

    def column_sums(x, gy, g, sums, n, strip, q_w):
        """The sums with the products of one strip of a column."""
        x_step = g.x_column if channels_last else 1
        y_step = g.y_column if channels_last else 1
        q_h = i32(strip * g.height)
        end = i32(min(q_h + g.height, g.out_h))
        x = advance(x, i32(n * g.x_n))
        at = i32(n * g.y_n + q_h * g.y_row + q_w * y_step)
        row, column = i32(q_h * row_stride - g.low_h), i32(q_w * column_stride - g.low_w)
        carry = head(x, row, column, x_step, g)
        row = i32(row + head_rows)
        while q_h < end:
            values = join(carry, fetch_window(x, i32(row * g.x_row + column * x_step), g.x_row, x_step, row, column, g.in_h, g.in_w,
                                              row_stride, columns))
            sums = outer_product(sums, values, one(fetch(gy, at)))
            carry = rest(values)
            q_h, row, at = i32(q_h + 1), i32(row + row_stride), i32(at + g.y_row)
        return sums

    column_sums = inlined(column_sums)

    def keep(thread, operands, k):
        memory, sums = operands
        store(memory, i32(k * THREADS + thread), pick(sums, k))
        return thread

    keep_all = repeated(keep, taps)

    def planes_gradient(x, gy, gw, g):
        thread = i32(cuda.threadIdx.x)
        lane, channel = quotient(thread, channels), remainder(thread, channels)
        first = i32(cuda.blockIdx.x * channels)
        o = i32(first + channel)
        sums = zeros(x, taps)
        if o < g.channels:
            source, gradient = advance(x, i32(quotient(o, g.multiplier) * g.x_c)), advance(gy, i32(o * g.y_c))
            item = i32(cuda.blockIdx.y * lanes + lane)
            while item < g.images * g.strips * g.out_w:
                line = quotient(item, g.out_w)
                sums = column_sums(source, gradient, g, sums, quotient(line, g.strips), remainder(line, g.strips), remainder(item, g.out_w))
                item = i32(item + cuda.gridDim.y * lanes)
        memory = shared_memory(x)
        keep_all(thread, (memory, sums), 0)
        cuda.syncthreads()
        for i in range(thread, taps * channels * runs, THREADS):
            at = i // (channels * runs) * THREADS + i % channels
            total = zero_of(x)
            for k in range(i // channels % runs * RUN, min((i // channels % runs + 1) * RUN, lanes)):
                total += load(memory, i32(at + k * channels))
            store(memory, i32(taps * THREADS + i), total)
        cuda.syncthreads()
        for i in range(thread, taps * channels, THREADS):
            tap, own = i // channels, i % channels
            total = zero_of(x)
            for k in range(runs):
                total += load(memory, i32(taps * THREADS + (tap * runs + k) * channels + own))
            if first + own < g.channels:
                place = (first + own) * g.w_channel + tap // columns * g.w_row + tap % columns * g.w_column
                store(gw, i32(cuda.blockIdx.y) * np.int64(g.part) + place, total)

    name = f"planes_gradient.{'x'.join(map(str, shape))}.{int(channels_last)}.{dtype}"
    return Code(name, planes_gradient, (dtype,) * 3, Columns, 0, THREADS)


# -- plans ----------------------------------------------------------------------------------------------------------------


class PlaneGradients:
    """A weight gradient by `Shape`."""

    packed: tuple[tuple[int, str], ...] = ()

    def __init__(self, problem: Problem):
        p = problem
        shape = shape_of(p)
        assert shape is not None
        elements = math.prod(p.weight_shape)
        height, strips, self.shares = _sharing(p, gpu())
        x, y = (image_strides(*sizes, p.channels_last) for sizes in ((p.in_channels, p.input_size), (p.out_channels, p.output_size)))
        w = weight_strides(p)
        geometry = Columns._make((p.batch, p.out_channels, p.group_out, *p.input_size[1:], *p.output_size[1:],
                                  p.padding[1][0], p.padding[2][0],
                           height, strips, x.batch, x.channel, x.row, x.column, y.batch, y.channel, y.row, y.column, w.out_channel, w.row,
                           w.column, elements))
        blocks = -(-p.out_channels // lanes_of(p.channels_last)[0])
        code = gradient_code(shape, p.channels_last, p.dtype)
        self.launch = Launch(code, (blocks, self.shares), geometry, (), shared_bytes(shape, p.channels_last, p.dtype))
        self.parts = (elements * self.shares, p.dtype)
        self.scratch_bytes = p.itemsize * elements * self.shares if self.shares > 1 else 0
        adding = sum_parts_code(p.dtype)
        self.add = Launch(adding, (-(-elements // adding.threads),), Parts(self.shares, elements, 1, 1, 0), RECTIFIERS[None])

    def pack(self, stream: Stream, second: Any, target: list[Any]) -> None:
        """The gradient of the output is read as it lies."""

    def run(self, stream: Stream, first: Any, second: Any, packed: list[Any], bias: Any, out: Any) -> None:
        """Launch the kernel, and another to add the shares."""
        if self.shares == 1:
            self.launch(stream, first, second, out)
            return
        with scratch(stream, self.parts) as (parts,):
            self.launch(stream, first, second, parts)
            self.add(stream, parts, out, out)


def _sharing(problem: Problem, machine: Gpu) -> tuple[int, int, int]:
    """The height of strips, how many a column has, and the shares of blocks of a channel."""
    p = problem
    rows, columns = p.output_size[1:]
    channels, lanes, _ = lanes_of(p.channels_last)
    wanted = FULL_THREADS * machine.multiprocessors
    height = next((h for h in HEIGHTS if p.out_channels * p.batch * columns * -(-rows // h) >= wanted), HEIGHTS[-1])
    strips = -(-rows // height)
    height = -(-rows // strips)
    blocks = -(-p.out_channels // channels)
    items = p.batch * columns * strips
    return height, strips, max(1, min(-(-2 * wanted // (blocks * THREADS)), items // (2 * lanes)))


def seconds(problem: Problem, machine: Gpu) -> float:
    """Predicted time; infinite for what the kernel does not compute."""
    p = problem
    shape = shape_of(p)
    if shape is None:
        return math.inf
    points = math.prod(p.output_shape)
    height, _, shares = _sharing(p, machine)
    instructions = points * (shape.rows * shape.columns + 2.5 * shape.columns * shape.row_stride * (1 + shape.carried / height) + 8)
    threads = shares * THREADS * -(-p.out_channels // lanes_of(p.channels_last)[0])
    return (shares > 1) * LAUNCH_SECONDS + work_seconds(instructions, threads, p.bytes, p.dtype, machine)


def codes(dtype: str) -> list[Code]:
    """Every kernel that a problem may need."""
    return [gradient_code(shape, last, dtype) for shape in all_shapes() for last in (False, True)]
