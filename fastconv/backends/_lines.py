"""The general direct engine: rows of a box copied with their borders, whose lanes meet several output channels at once.

The rows of a box (`_boxes`) are copied into scratch, split by the phase of the stride, so that every tap reads consecutive
elements whatever the stride, the dilation, the border and the layout. Where there is no border, no stride along the row and
no short row, the image is read in place. A tile of output channels x vectors of pixels stays in registers over all taps, and
is written straight to y.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import intrinsic

from ..problem import Problem
from ._boxes import Geometry, box_end, box_start, fill_run, input_offset
from ._gemm import epilogue_of, epilogue_type
from ._jit import address_of, addressed, inlined, num_threads, outlined
from ._line_choice import COPIED_STRIDES, boxes_and_block, copied_by_vectors, tile_rows
from ._planes import threads_of, uses_threads
from ._scratch import operand
from ._simd import (
    COUNTER_PITCH,
    LANES_TILES,
    advance,
    as_int32,
    as_int64,
    column_pointers,
    get,
    lane_count,
    lanes_of,
    load_every_between,
    own_first,
    parallel_kernel,
    put,
    store,
    thawed,
    tile_columns_of,
    tile_lanes,
    tile_store_lanes,
    zero_element,
)
from ._simd.emit import call_by_address, pointer_to

SMALL_WEIGHTS = 16_384  # elements that are picked by a table faster than copied tile by tile (bench_conv.py, tiny)
MOST_COLUMNS = max(LANES_TILES.values())


class Lines(NamedTuple):
    """How the rows of a box lie in scratch: [image][depth][row][channel][phase of the stride][position]."""

    image: int
    depth: int
    row: int
    channel: int
    phase: int
    size: int  # elements of the whole box
    by_vectors: int  # 1 where rows are copied by vectors, which leave zeros beyond them
    bordered: int  # 1 where something else lies there


class Space(NamedTuple):
    """Where a thread's tables start in its scratch, elements from its beginning."""

    sums: int
    x_offsets: int  # of the box's vectors of pixels in its input, int32
    y_offsets: int  # in y, int64
    counts: int  # pixels of each vector, int32
    size: int


def make_copy(stride: int):
    """The copy of every stride-th element of a row with zeros around it."""

    @inlined
    def copy(target, source, count, low, in_w):
        """target[i] = source[i * stride - low] where that lies in [0, in_w), else zero, for i < count rounded up to whole vectors."""
        start = advance(source, -low)
        for i in range(0, count, lanes_of(source)):
            at = i * stride
            store(target, i, load_every_between(start, at, stride, low - at, low + in_w - at))

    return copy


copy_every, copy_second, copy_third, copy_fourth = (make_copy(stride) for stride in COPIED_STRIDES)


@inlined
def copy_vectors(stride, target, source, count, low, in_w):
    """The copy for a stride of COPIED_STRIDES."""
    if stride == 1:
        copy_every(target, source, count, low, in_w)
    elif stride == 2:
        copy_second(target, source, count, low, in_w)
    elif stride == 3:
        copy_third(target, source, count, low, in_w)
    else:
        copy_fourth(target, source, count, low, in_w)


@inlined
def copy_elements(target, source, columns, first, start, end, stride, step, zero):
    """Every stride-th padded position of [first, ...) that lies in [start, end), by the table of their sources."""
    for i in range(max(0, -(-(start - first) // stride)), -(-(end - first) // stride)):
        column = columns[first + i * stride]
        put(target, i, zero if column < 0 else get(source, column * step))


@inlined
def copy_line(g, lines, columns, first, last, source, target, inside):
    """Every stride-th padded position of [first, last) of one row, or of a row of zeros where it is not `inside`."""
    zero = zero_element(source)
    if lines.by_vectors == 1:
        copy_vectors(g.stride_w, target, source, -(-(last - first) // g.stride_w), g.low_w - first, g.in_w if inside else 0)
        if inside and lines.bordered == 1:
            copy_elements(target, source, columns, first, first, min(last, g.low_w), g.stride_w, g.x_w, zero)
            copy_elements(target, source, columns, first, g.low_w + g.in_w, last, g.stride_w, g.x_w, zero)
    elif inside:
        copy_elements(target, source, columns, first, first, last, g.stride_w, g.x_w, zero)
    else:
        fill_run(target, -(-(last - first) // g.stride_w), zero)


@outlined
def pack_lines(g, lines, x, borders, start, end, channel, channels, target):
    """Copy the padded input of a box, split by the phase of the stride along the row."""
    depths, rows, columns = borders
    first, last = start[3] * g.stride_w, (end[3] - 1) * g.stride_w + g.reach_w + 1
    for n in range(start[0], end[0]):
        for d in range((end[1] - 1 - start[1]) * g.stride_d + g.reach_d + 1):
            source_d = depths[start[1] * g.stride_d + d]
            for h in range((end[2] - 1 - start[2]) * g.stride_h + g.reach_h + 1):
                source_h = rows[start[2] * g.stride_h + h]
                to = advance(target, (n - start[0]) * lines.image + d * lines.depth + h * lines.row)
                inside = source_d >= 0 and source_h >= 0
                at = advance(x, n * g.x_image + channel * g.x_channel + max(source_d, 0) * g.x_d + max(source_h, 0) * g.x_h)
                for c in range(channels):
                    for phase in range(g.stride_w):
                        copy_line(g, lines, columns, first + phase, last, advance(at, c * g.x_channel),
                                  advance(to, c * lines.channel + phase * lines.phase), inside)


@outlined
def vector_tables(g, lines, extents, x_offsets, y_offsets, counts, lanes, overlap):
    """Offsets of the vectors of pixels of a box of such extents, in its input and in y, and their number.

    With `overlap` the last vector of a row starts early and computes some pixels again; without, it is short.
    """
    vectors = 0
    width = extents[3]
    for n in range(extents[0]):
        for d in range(extents[1]):
            for h in range(extents[2]):
                if g.in_place == 1:
                    x_row = n * g.x_image + d * g.stride_d * g.x_d + h * g.stride_h * g.x_h
                else:
                    x_row = n * lines.image + d * g.stride_d * lines.depth + h * g.stride_h * lines.row
                y_row = n * g.y_image + (d * g.out_h + h) * g.out_w * g.y_point
                for w in range(0, width, lanes):
                    at = width - lanes if overlap and width >= lanes and w + lanes > width else w
                    put(x_offsets, vectors, np.int32(x_row + at))
                    put(y_offsets, vectors, np.int64(y_row + at * g.y_point))
                    put(counts, vectors, np.int32(min(lanes, width - at)))
                    vectors += 1
    for i in range(MOST_COLUMNS):
        put(x_offsets, vectors + i, get(x_offsets, vectors - 1))
        put(y_offsets, vectors + i, get(y_offsets, vectors - 1))
        put(counts, vectors + i, np.int32(0))
    return vectors


@inlined
def box_output(g, start):
    """Offset in a channel of y of a box's first output point."""
    return start[0] * g.y_image + ((start[1] * g.out_h + start[2]) * g.out_w + start[3]) * g.y_point


@outlined
def scatter_pixels(g, sums, columns, rows, y, y_offsets, counts):
    """Write a finished tile to pixels that are not neighbours in memory."""
    lanes = lanes_of(y)
    for c in range(columns):
        for i in range(get(counts, c)):
            for r in range(rows):
                put(y, get(y_offsets, c) + i * g.y_point + r * g.y_channel, get(sums, (r * columns + c) * lanes + i))


def make_tile(rows: int, columns: int):
    """The micro-kernel of one tile size: `rows` output channels by `columns` vectors of pixels."""

    @addressed
    def tile(x, x_offsets, taps, depth, w, bias, y, y_pitch, y_offsets, counts, epilogue):
        acc = tile_columns_of(bias, rows, columns)
        sources = column_pointers(x, x_offsets, columns)
        for k in range(depth):
            acc = tile_lanes(acc, sources, get(taps, k), advance(w, k * rows), rows)
        tile_store_lanes(y, y_pitch, y_offsets, counts, acc, epilogue, rows)

    return tile


TILES = {rows: make_tile(rows, columns) for rows, columns in LANES_TILES.items()}


def _signature(p: types.CPointer) -> tuple[Any, ...]:
    small, large = types.CPointer(types.int32), types.CPointer(types.int64)
    return (p, small, small, types.int64, p, p, p, types.int64, large, small, epilogue_type(p))


@functools.cache
def tile_address(rows: int, dtype: str) -> int:
    """Address of the micro-kernel of so many rows."""
    return address_of(TILES[rows], _signature(pointer_to(dtype)))


@intrinsic
def call_lanes_tile(typingctx, tile, x, x_offsets, taps, depth, w, bias, y, y_pitch, y_offsets, counts, epilogue):
    """Call a micro-kernel through its address."""
    return call_by_address(_signature(x))


@parallel_kernel
def direct_forward(x, w, bias, y, constants, scratch, counters, thread, threads):
    """y = epilogue(convolution of x with w + bias), by (box, block of groups)."""
    g, lines, space, taps, depth, borders, tiles, sizes, tile_count, block, local, whole, epilogue = thawed(constants)
    blocks = -(-g.groups // block)
    boxes = -(-g.out_n // g.box_n) * -(-g.out_d // g.box_d) * -(-g.out_h // g.box_h) * -(-g.out_w // g.box_w)
    lanes = lanes_of(x)
    sums = advance(scratch, space.sums)
    x_offsets = as_int32(advance(scratch, space.x_offsets))
    y_offsets = as_int64(advance(scratch, space.y_offsets))
    counts = as_int32(advance(scratch, space.counts))
    known = (0, 0, 0, 0)
    vectors = 0
    if g.in_place == 0:  # lanes beyond a row multiply what lies there: tables of another run are denormal numbers, 10 x as slow
        fill_run(scratch, space.sums, zero_element(x))
    for task in own_first(counters, thread, threads, boxes * blocks):
        first = task % blocks * block
        last = min(first + block, g.groups)
        start = box_start(g, task // blocks)
        end = box_end(g, start[0], start[1], start[2], start[3])
        extents = (end[0] - start[0], end[1] - start[1], end[2] - start[2], end[3] - start[3])
        if extents != known:
            vectors = vector_tables(g, lines, extents, x_offsets, y_offsets, counts, lanes, True)
            known = extents
        if g.in_place == 0:
            pack_lines(g, lines, x, borders, start, end, first * g.group_in, (last - first) * g.group_in, scratch)
        for group in range(first, last):
            if g.in_place == 0:
                source = advance(scratch, (group - first) * g.group_in * lines.channel)
            else:
                source = advance(x, input_offset(g, start[0], start[1], start[2], start[3]) + group * g.group_in * g.x_channel)
            output = group * g.group_out
            for t in range(tile_count):
                rows, columns = sizes[2 * t], sizes[2 * t + 1]
                weights, bias_start = advance(w, output * depth), advance(bias, output)
                target = advance(y, output * g.y_channel + box_output(g, start))
                for v in range(0, vectors, columns):
                    if g.y_point == 1:
                        call_lanes_tile(tiles[t], source, advance(x_offsets, v), taps, depth, weights, bias_start, target, g.y_channel,
                                        advance(y_offsets, v), advance(counts, v), epilogue)
                    else:
                        call_lanes_tile(tiles[t], source, advance(x_offsets, v), taps, depth, weights, bias_start, sums, columns * lanes,
                                        local, whole, epilogue)
                        scatter_pixels(g, sums, columns, rows, target, advance(y_offsets, v), advance(counts, v))
                output += rows


class Lined:
    """What both passes share: boxes, the way their rows lie in scratch, and the scratch."""

    def __init__(self, problem: Problem, in_place: bool):
        p = self.problem = problem
        self.threads = threads_of(p)
        self.lanes = lane_count(p.dtype)
        self.geometry, self.block = boxes_and_block(p, self.threads, in_place)
        self.lines = self._lines(self.geometry, self.block * p.group_in)
        self.borders = p.border_sources()
        g = self.geometry
        self.vectors = g.box_n * g.box_d * g.box_h * -(-g.box_w // self.lanes) + MOST_COLUMNS

    def _lines(self, g: Geometry, channels: int) -> Lines:
        if g.in_place:
            return Lines(0, 0, 0, 0, 0, 0, 0, 0)
        depths, rows, columns = ((b - 1) * s + r + 1 for b, s, r in zip(
            (g.box_d, g.box_h, g.box_w), (g.stride_d, g.stride_h, g.stride_w), (g.reach_d, g.reach_h, g.reach_w), strict=True))
        phase = -(-columns // g.stride_w) + self.lanes
        channel = phase * g.stride_w
        row = channel * channels
        by_vectors, bordered = copied_by_vectors(self.problem), self.problem.padding_mode != "zeros"
        return Lines(depths * rows * row, rows * row, row, channel, phase, g.box_n * depths * rows * row, int(by_vectors), int(bordered))

    def offsets(self, channels: int) -> np.ndarray:
        """Offset of each tap of `channels` channels, channel by channel, in the box's input; int32."""
        p, g, lines = self.problem, self.geometry, self.lines
        d, h, w = (np.arange(k) * dilation for k, dilation in zip(p.kernel_size, p.dilation, strict=True))
        if g.in_place:
            spatial, channel = d[:, None, None] * g.x_d + h[:, None] * g.x_h + w, g.x_channel
        else:
            column = w % g.stride_w * lines.phase + w // g.stride_w
            spatial, channel = d[:, None, None] * lines.depth + h[:, None] * lines.row + column, lines.channel
        return (np.arange(channels)[:, None] * channel + spatial.ravel()).astype(np.int32).ravel()

    def space(self) -> Space:
        """Places of the tables, each at the start of a cache line."""
        item = self.problem.itemsize
        starts = [0]
        for size in (self.lines.size * item, 6 * MOST_COLUMNS * self.lanes * item, 4 * self.vectors, 8 * self.vectors, 4 * self.vectors):
            starts.append(starts[-1] + -(-size // 64) * 64 // item)
        return Space(*starts[1:])


class Forward(Lined):
    """The forward pass."""

    def __init__(self, problem: Problem):
        super().__init__(problem, in_place=True)
        p = problem
        self.rows = tile_rows(p.group_out)
        addresses = np.array([tile_address(rows, p.dtype) for rows in self.rows], np.int64)
        sizes = np.array([(rows, LANES_TILES[rows]) for rows in self.rows], np.int64)
        local, whole = np.arange(MOST_COLUMNS) * self.lanes, np.full(MOST_COLUMNS, self.lanes, np.int32)
        space = self.space()
        constants = (self.geometry, self.lines, space, self.offsets(p.group_in), p.taps, p.border_sources(), addresses, sizes,
                     len(self.rows), self.block, local, whole, epilogue_of(p))
        self.kernel = direct_forward.bind(p.dtype, constants, scratch=space.size, counters=num_threads() * COUNTER_PITCH,
                                          parallel=uses_threads(p))
        self.no_bias = np.zeros(p.out_channels, p.dtype)

        self.order = None
        size = math.prod(p.weight_shape)
        if size <= SMALL_WEIGHTS and (p.channels_last or p.group_out > 1):
            self.order = np.array(self._interleaved(np.arange(size)))  # a copy, should the packed be scratch

    def pack(self, w: np.ndarray) -> np.ndarray:
        """(G, Og, taps), the output channels of a tile interleaved: [tile][tap][row]."""
        if self.order is not None:
            return w.take(self.order)
        return self._interleaved(w)

    def _interleaved(self, w: np.ndarray) -> np.ndarray:
        p = self.problem
        w = w.reshape(p.shapes[1])
        matrix = (w.transpose(4, 3, 0, 1, 2) if p.channels_last else w).reshape(p.groups, p.group_out, p.taps)
        if p.group_out == 1:
            return np.ascontiguousarray(matrix).reshape(-1)
        packed = operand(w.size, w.dtype)
        target = packed.reshape(p.groups, -1)
        start = 0
        for rows, run in itertools.groupby(self.rows):
            count = rows * len(list(run))
            tiles = matrix[:, start:start + count].reshape(p.groups, -1, rows, p.taps)
            target[:, start * p.taps:(start + count) * p.taps].reshape(p.groups, -1, p.taps, rows)[...] = tiles.swapaxes(2, 3)
            start += count
        return packed

    def run(self, x: np.ndarray, packed: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> None:
        self.kernel(x, packed, self.no_bias if bias is None else bias, out)

    @property
    def scratch_bytes(self) -> int:
        return self.kernel.scratch_bytes(num_threads())
