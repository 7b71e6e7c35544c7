"""Assembly of a strided gradient: the results of its phases, each at every stride-th point, put together in one pass."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..problem import Problem
from ._boxes import copy_run, strides_of
from ._jit import inlined, outlined
from ._simd import (
    advance,
    get,
    lanes_of,
    load,
    load_first,
    next_task,
    parallel_kernel,
    put,
    store_interleaved,
    store_interleaved_first,
    thawed,
)

RUN = 4096  # elements of a task: about a microsecond
SERIAL_SIZE = 20_000  # elements that one thread moves sooner than a region starts: 2 us at 40 GB/s


class Target(NamedTuple):
    """Sizes of the assembled image, its strides, and the phases of each axis."""

    images: int
    channels: int
    size_d: int
    size_h: int
    size_w: int
    image: int
    channel: int
    depth: int
    row: int
    column: int
    stride_d: int
    stride_h: int
    stride_w: int
    phases_h: int
    phases_w: int


class Part(NamedTuple):
    """Where the elements of one phase lie among the parts; `start` is negative where the phase has no taps."""

    start: int
    image: int
    channel: int
    depth: int
    row: int
    column: int


PART_FIELDS = len(Part._fields)
NO_PART = Part(-1, 0, 0, 0, 0, 0)


@inlined
def part_row(part, n, c, d, h):
    """Offset of a row of a phase."""
    return get(part, 0) + n * get(part, 1) + c * get(part, 2) + d * get(part, 3) + h * get(part, 4)


@inlined
def interleave_pairs(target, even, odd, pairs):
    """target[2 i] = even[i], target[2 i + 1] = odd[i] for i < pairs; the last vector starts early where there are pairs enough."""
    lanes = lanes_of(target)
    if pairs < lanes:
        store_interleaved_first(target, 0, load_first(even, 0, pairs), load_first(odd, 0, pairs), 2 * pairs)
        return
    for i in range(0, pairs, lanes):
        at = min(i, pairs - lanes)
        store_interleaved(target, 2 * at, load(even, at), load(odd, at))


@outlined
def interleave_rows(target, g, n, c, d, first, last, parts, table, bias):
    """Rows [first, last) of the image's plane (n, c, d), channels first, from the phases of their columns."""
    outer_d = d // g.stride_d
    phases_d = advance(table, (d - outer_d * g.stride_d) * g.phases_h * g.phases_w * PART_FIELDS)
    for h in range(first, last):
        outer_h = h // g.stride_h
        row_parts = advance(phases_d, (h - outer_h * g.stride_h) * g.phases_w * PART_FIELDS)
        row = advance(target, h * g.row)
        done = 0
        if g.stride_w == 2 and g.size_w > 1 and get(row_parts, 0) >= 0 and get(row_parts, PART_FIELDS) >= 0:
            done = g.size_w // 2
            odd = advance(row_parts, PART_FIELDS)
            interleave_pairs(row, advance(parts, part_row(row_parts, n, c, outer_d, outer_h)),
                             advance(parts, part_row(odd, n, c, outer_d, outer_h)), done)
        for r in range(g.phases_w):
            part = advance(row_parts, r * PART_FIELDS)
            count = -(-(g.size_w - r) // g.stride_w) if done == 0 else g.size_w - r - done
            if done < count:
                if get(part, 0) < 0:
                    for i in range(done, count):
                        put(row, i * g.stride_w + r, get(bias, c))
                else:
                    source = advance(parts, part_row(part, n, c, outer_d, outer_h))
                    for i in range(done, count):
                        put(row, i * g.stride_w + r, get(source, i))


@outlined
def interleave_pixels(target, g, n, d, first, last, parts, table, bias):
    """Rows [first, last) of the image's plane (n, d), channels last."""
    outer_d = d // g.stride_d
    for h in range(first, last):
        outer_h = h // g.stride_h
        phase = (d - outer_d * g.stride_d) * g.phases_h + h - outer_h * g.stride_h
        for r in range(g.phases_w):
            part = advance(table, (phase * g.phases_w + r) * PART_FIELDS)
            count = -(-(g.size_w - r) // g.stride_w)
            for i in range(count):
                to = advance(target, h * g.row + (i * g.stride_w + r) * g.column)
                if get(part, 0) < 0:
                    copy_run(to, bias, g.channels)
                else:
                    copy_run(to, advance(parts, part_row(part, n, 0, outer_d, outer_h) + i * get(part, 5)), g.channels)


@parallel_kernel
def interleave(parts, w, bias, y, constants, scratch, counters, thread, threads):
    """y from the parts of its phases, by runs of rows; `bias`, through the activation, where a phase has no taps."""
    g, table, by_rows, lines, run = thawed(constants)
    rows = g.images * lines * g.size_d * g.size_h
    while True:
        first = next_task(counters) * run
        if first >= rows:
            break
        index, end = first, min(first + run, rows)
        while index < end:
            plane = index // g.size_h
            begin = index - plane * g.size_h
            stop = min(g.size_h, begin + end - index)
            d = plane % g.size_d
            c = plane // g.size_d % lines
            n = plane // (g.size_d * lines)
            target = advance(y, n * g.image + c * g.channel + d * g.depth)
            if by_rows:
                interleave_rows(target, g, n, c, d, begin, stop, parts, table, bias)
            else:
                interleave_pixels(target, g, n, d, begin, stop, parts, table, bias)
            index += stop - begin


class Interleaving:
    """`interleaving(parts, bias, out)` assembles the image of a `grad_input` from its parts, in the order of their phases."""

    def __init__(self, problem: Problem, parts: list[Part]):
        p = problem
        channels, strides = p.in_channels, strides_of(p.in_channels, p.input_size, p.channels_last)
        phases = [min(s, n) for s, n in zip(p.stride, p.input_size, strict=True)]
        by_rows = strides[4] == 1 and all(part.column == 1 for part in parts if part.start >= 0)
        numbers = (p.batch, channels, *p.input_size, *strides, *p.stride, phases[1], phases[2])
        target = Target(*numbers)
        lines = channels if by_rows else 1
        width = p.input_size[2] * (1 if by_rows else channels)
        self.kernel = interleave.bind(p.dtype, (target, np.array(parts, np.int64), by_rows, lines, -(-RUN // max(1, width))),
                                      parallel=math.prod(p.input_shape) > SERIAL_SIZE)

    def __call__(self, parts: np.ndarray, bias: np.ndarray, out: np.ndarray) -> None:
        self.kernel(parts, bias, bias, out.reshape(-1))
