"""Tiles of minimal-filtering algorithms: an image's rows packed with channels last, and transformed a vector of channels at a time.

Both passes use it: for the input (`forward`, `grad_weight`) and for the output's gradient (`grad_weight`). Products are
transformed back to rows of output points.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..problem import Problem
from ._bilinear import call_transform, transform_address
from ._boxes import copy_run, fill_run, strides_of
from ._cook_toom import INPUT, OUTPUT_GRADIENT
from ._gemm import panel_width, store_points
from ._jit import inlined, num_threads, outlined
from ._simd import (
    TILE_ROWS,
    BoundKernel,
    advance,
    as_int64,
    fma,
    get,
    lane_count,
    lanes_of,
    load,
    next_task,
    parallel_kernel,
    put,
    thawed,
    total,
    transpose_block,
    zero,
    zero_element,
)
from ._winograd_choice import SERIAL_FLOPS, Algorithm, odd_lines, vectors_of

PACKED_BYTES = 128 * 1024  # of a task's packed rows (bench_conv.py, grad_weight)
TASKS_PER_THREAD = 4
# Vectors of channels of a panel of x's transforms: with all channels side by side, a product's tiles lie far apart, on few cache
# sets, where no prefetcher follows (bench_conv.py, grad_weight, 3x3_256@56: 5.9 ms for the products, in panels of a vector 4.2).
CHANNEL_VECTORS = 1


class Source(NamedTuple):
    """How the padded rows of an image are read for a box, and how they lie in scratch: [depth][row][column][line]."""

    channels: int  # of a group, before folding
    lines: int  # channels of a group after folding, rounded up to whole vectors
    pixel: int  # pitch in scratch: an odd number of vectors, so that a tile's pixels fall on different cache sets
    fold_h: int
    fold_w: int
    stride_d: int  # padded positions from one point of the box to the next, after folding
    stride_h: int
    stride_w: int
    span_d: int  # extents of a box's input, after folding
    span_h: int
    span_w: int
    low_w: int
    in_w: int
    image: int  # pitches
    channel: int
    depth: int
    row: int
    column: int

    @property
    def size(self) -> int:
        """Elements of a packed box."""
        return self.span_d * self.span_h * self.span_w * self.pixel


class Tiling(NamedTuple):
    """How a packed box is cut into tiles, and where their transforms go: [panel][product][plane][tile][channel]."""

    transform: int  # address
    tile_h: int  # points of a tile
    tile_w: int
    dilation_h: int
    dilation_w: int
    products_w: int
    product: int  # pitches of the transforms
    tile: int
    panel_width: int
    panel: int


def input_source(problem: Problem, algorithm: Algorithm, spans: tuple[int, int, int], stride_d: int) -> Source:
    """The padded input of a convolution."""
    p, a = problem, algorithm
    lines = vectors_of(a.channels(p), p.dtype)
    return Source(p.group_in, lines, odd_lines(lines, lane_count(p.dtype)), a.fold_h, a.fold_w, stride_d, p.stride[1] // a.fold_h,
                  p.stride[2] // a.fold_w, *spans, p.padding[2][0], p.input_size[2],
                  *strides_of(p.in_channels, p.input_size, p.channels_last))


def input_spans(problem: Problem, algorithm: Algorithm, down: int, across: int) -> tuple[int, int]:
    """Rows and columns of the folded input that so many tiles down and across read."""
    spans = []
    for axis, tiles, fold, d, s in zip((algorithm.high, algorithm.wide), (down, across), (algorithm.fold_h, algorithm.fold_w),
                                       problem.dilation[1:], problem.stride[1:], strict=True):
        step = s // fold
        spans.append(((tiles - 1) * axis.outputs * step + axis.samples - 1) * d + (d - 1) * step + 1)
    return spans[0], spans[1]


def input_borders(problem: Problem, source: Source) -> tuple[np.ndarray, ...]:
    """Where each padded position lies in the image; ragged tiles reach beyond, and what they find there is never written."""
    folds = (1, source.fold_h, source.fold_w)
    spans = (source.span_d, source.span_h, source.span_w)
    return tuple(np.pad(border, (0, 2 * span * fold), constant_values=-1)
                 for border, span, fold in zip(problem.border_sources(), spans, folds, strict=True))


@outlined
def pack_tiles(s, x, zero, borders, start, group, target):
    """Copy a box of one group's padded channels, folded if need be; `start` is (image, depth, row, column) of the folded image."""
    if s.fold_h * s.fold_w > 1:
        pack_folded(s, x, zero, borders, start, group, target)
    else:
        pack_channels_last(s, x, zero, borders, start, group, target)


@outlined
def pack_channels_last(s, x, zero, borders, start, group, target):
    """Copy the padded input of a box, one group's channels; lines beyond the channels are zero."""
    depths, rows, columns = borders
    lanes = lanes_of(x)
    image, first_d, first_h, first = start
    last = first + s.span_w
    left = min(max(first, s.low_w), last)
    right = max(min(last, s.low_w + s.in_w), left)
    for d in range(s.span_d):
        source_d = depths[first_d + d]
        for h in range(s.span_h):
            source_h = rows[first_h + h]
            to = advance(target, (d * s.span_h + h) * s.span_w * s.pixel)
            if source_d < 0 or source_h < 0:
                fill_run(to, s.span_w * s.pixel, zero)
                continue
            at = advance(x, image * s.image + group * s.channels * s.channel + source_d * s.depth + source_h * s.row)
            for p in range(first, last):
                if p < left or p >= right or s.channel == 1:
                    pixel = advance(to, (p - first) * s.pixel)
                    if columns[p] < 0:
                        fill_run(pixel, s.lines, zero)
                    elif s.channel == 1:
                        copy_run(pixel, advance(at, columns[p] * s.column), s.channels)
                        fill_run(advance(pixel, s.channels), s.lines - s.channels, zero)
                    else:
                        for c in range(s.lines):
                            put(pixel, c, get(at, columns[p] * s.column + c * s.channel) if c < s.channels else zero)
            if s.channel != 1:
                for c in range(0, s.lines, lanes):
                    for p in range(left, right, lanes):
                        transpose_block(advance(at, c * s.channel + p - s.low_w), s.channel, min(lanes, s.channels - c),
                                        min(lanes, right - p), advance(to, (p - first) * s.pixel + c), s.pixel, lanes)


@inlined
def copy_phases(target, source, count):
    """target[:count] = source[:count] for the few phases of a stride; two and four are one move each."""
    if count == 4:
        a, b, c, d = get(source, 0), get(source, 1), get(source, 2), get(source, 3)
        put(target, 0, a)
        put(target, 1, b)
        put(target, 2, c)
        put(target, 3, d)
    elif count == 2:
        a, b = get(source, 0), get(source, 1)
        put(target, 0, a)
        put(target, 1, b)
    else:
        for j in range(count):
            put(target, j, get(source, j))


@outlined
def pack_folded(s, x, zero, borders, start, group, target):
    """The same from space to depth: line (c fold_h + i) fold_w + j holds the positions of phase (i, j) of channel c.

    The phases along a row lie side by side in the image and in the box.
    """
    depths, rows, columns = borders
    image, first_d, first_h, first_w = start
    for d in range(s.span_d):
        source_d = depths[first_d + d]
        for h in range(s.span_h):
            to = advance(target, (d * s.span_h + h) * s.span_w * s.pixel)
            fill_run(to, s.span_w * s.pixel, zero)
            for c in range(s.channels):
                for i in range(s.fold_h):
                    source_h = rows[(first_h + h) * s.fold_h + i]
                    if source_d < 0 or source_h < 0:
                        continue
                    at = advance(x, image * s.image + (group * s.channels + c) * s.channel + source_d * s.depth + source_h * s.row)
                    line = advance(to, (c * s.fold_h + i) * s.fold_w)
                    for p in range(s.span_w):
                        position = (first_w + p) * s.fold_w
                        if s.column == 1 and position >= s.low_w and position + s.fold_w <= s.low_w + s.in_w:
                            copy_phases(advance(line, p * s.pixel), advance(at, position - s.low_w), s.fold_w)
                        else:
                            for j in range(s.fold_w):
                                if columns[position + j] >= 0:
                                    put(line, p * s.pixel + j, get(at, columns[position + j] * s.column))


@outlined
def transform_tiles(s, t, packed, down, across, plane_pitch, row_pitch, target):
    """The transforms of all tiles of a packed box; depth planes and rows of tiles are `plane_pitch` and `row_pitch` apart."""
    lanes = lanes_of(target)
    row_step, column_step = t.dilation_h * s.span_w * s.pixel, t.dilation_w * s.pixel
    for first in range(0, s.lines, t.panel_width):  # the planes of one panel at a time: as few pages as can be
        panel = advance(target, first // t.panel_width * t.panel)
        for d in range(s.span_d):
            for i in range(down):
                to = advance(panel, d * plane_pitch + i * row_pitch)
                for f in range(t.dilation_h):
                    row = (i * t.tile_h * t.dilation_h + f) * s.stride_h
                    for j in range(across):
                        for e in range(t.dilation_w):
                            column = (j * t.tile_w * t.dilation_w + e) * s.stride_w
                            at = advance(packed, ((d * s.span_h + row) * s.span_w + column) * s.pixel)
                            for c in range(first, min(first + t.panel_width, s.lines), lanes):
                                call_transform(t.transform, advance(at, c), row_step, column_step, advance(to, c - first),
                                               t.products_w * t.product, t.product, packed)
                            to = advance(to, t.tile)


@outlined
def store_tiles(g, t, transform, sums, width, bias, first, down, across, start, end, rows, ramp, y, channels, epilogue):
    """Transform a plane of products back and write its output rows; `first` is the plane's first tile in `sums`.

    `g` has the fields products_h, m_product, out_w, y_point and y_channel. Returns whether all results are finite.
    """
    lanes = lanes_of(sums)
    nothing = zero(sums)
    check = nothing
    pitch = across * t.tile_w * t.dilation_w * width
    tile = first
    for i in range(down):
        for f in range(t.dilation_h):
            for j in range(across):
                for e in range(t.dilation_w):
                    to = advance(rows, (j * t.tile_w * t.dilation_w + e) * width)
                    for c in range(0, channels, lanes):
                        call_transform(transform, advance(sums, tile * width + c), t.products_w * g.m_product, g.m_product,
                                       advance(to, c), pitch, t.dilation_w * width, advance(bias, c))
                    tile += 1
            for k in range(t.tile_h):
                h = start[2] + (i * t.tile_h + k) * t.dilation_h + f
                if h < end[2]:
                    for point in range(0, (end[3] - start[3]) * width, width):
                        for c in range(0, channels, lanes):
                            check = fma(load(rows, k * pitch + point + c), nothing, check)
                    store_points(advance(rows, k * pitch), width, end[3] - start[3], advance(y, h * g.out_w * g.y_point), ramp,
                                 g.y_channel, channels, epilogue)
    return total(check) == zero_element(sums)


# -- the tiles of a whole image, or batch ------------------------------------------------------------------------------------


class Strips(NamedTuple):
    """How a transform's strips lie, and how they are handed out."""

    groups: int
    depths: int  # planes of an image
    tiles_down: int
    down: int  # strips of a task
    across: int  # tiles of a strip, without those of the dilation
    plane: int  # pitches
    strip: int
    group: int


@parallel_kernel
def winograd_transform(x, unused, chunk, v, constants, scratch, counters, thread, threads):
    """v[group][panel][product][strip][depth][tile][channel] of a chunk of strips, by (block of strips, group, depth).

    `chunk` points to the first strip and the number of strips, which lie in one image unless they are whole images.
    """
    p, s, t, borders = thawed(constants)
    first, strips = get(as_int64(chunk), 0), get(as_int64(chunk), 1)
    rows = min(p.tiles_down, strips)
    blocks = -(-rows // p.down)
    while True:
        task = next_task(counters)
        if task >= strips // rows * blocks * p.groups * p.depths:
            break
        depth = task % p.depths
        group = task // p.depths % p.groups
        block = task // (p.depths * p.groups) % blocks
        image = task // (p.depths * p.groups * blocks)
        row = block * p.down
        strip = first + image * rows + row
        start = (strip // p.tiles_down, depth, strip % p.tiles_down * t.tile_h * t.dilation_h * s.stride_h, np.int64(0))
        pack_tiles(s, x, zero_element(x), borders, start, group, scratch)
        to = advance(v, group * p.group + (image * rows + row) * p.strip + depth * p.plane)
        transform_tiles(s, t, scratch, min(p.down, rows - row), p.across, p.plane, p.strip, to)


def input_tiling(problem: Problem, algorithm: Algorithm, down: int, strips: int,
                 panel_width: int) -> tuple[Source, Tiling, tuple[np.ndarray, ...]]:
    """How `down` strips of tiles of x are read, transformed into planes of `strips` strips, and where x's positions lie."""
    p, a = problem, algorithm
    across = a.tiles(p)[1]
    s = input_source(p, a, (1, *input_spans(p, a, down, across)), 1)
    product = odd_lines(strips * p.dilation[1] * across * p.dilation[2] * panel_width, lane_count(p.dtype))
    t = Tiling(transform_address(INPUT, *a.keys, p.dtype), a.high.outputs, a.wide.outputs, p.dilation[1], p.dilation[2],
               a.wide.products, product, panel_width, panel_width, a.products * product)
    return s, t, input_borders(p, s)


def gradient_tiling(problem: Problem, algorithm: Algorithm, down: int, strips: int) -> tuple[Source, Tiling, tuple[np.ndarray, ...]]:
    """How `down` strips of tiles of gy are read, transformed into planes of `strips` strips, and where gy's rows lie."""
    p, a = problem, algorithm
    width, across = panel_width(p.dtype), a.tiles(p)[1]
    (depths, out_h, out_w), (_, dh, dw) = p.output_size, p.dilation
    lines = -(-p.group_out // width) * width
    spans = (1, down * a.high.outputs * dh, across * a.wide.outputs * dw)
    s = Source(p.group_out, lines, odd_lines(lines, lane_count(p.dtype)), 1, 1, 1, 1, 1, *spans, 0, out_w,
               *strides_of(p.out_channels, p.output_size, p.channels_last))
    product = odd_lines(strips * dh * across * dw * width, lane_count(p.dtype))
    t = Tiling(transform_address(OUTPUT_GRADIENT, *a.keys, p.dtype), a.high.outputs, a.wide.outputs, dh, dw, a.wide.products, product,
               width, width, a.products * product)
    # Tiles that reach beyond gy find zeros there.
    borders = tuple(np.pad(np.arange(size, dtype=np.int32), (0, margin), constant_values=-1)
                    for size, margin in ((depths, 0), (out_h, s.span_h), (out_w, s.span_w)))
    return s, t, borders


def input_depths(problem: Problem) -> int:
    """Planes of the padded input that are read."""
    p = problem
    return (p.output_size[0] - 1) * p.stride[0] + p.dilation[0] * (p.kernel_size[0] - 1) + 1


def strips_of_a_task(problem: Problem, strips: int, tiles_down: int, row_bytes: int, depths: int) -> int:
    """Strips of a task of `winograd_transform`: its rows in the cache, and tasks enough."""
    tasks = max(1, strips // tiles_down) * problem.groups * depths
    fair = -(-min(strips, tiles_down) * tasks // (TASKS_PER_THREAD * num_threads()))
    return max(1, min(strips, tiles_down, PACKED_BYTES // max(1, row_bytes), fair))


def bind_transform(problem: Problem, source: Source, tiling: Tiling, strips: Strips, borders: tuple[np.ndarray, ...]) -> BoundKernel:
    """The transform of chunks of strips."""
    return winograd_transform.bind(problem.dtype, (strips, source, tiling, borders), scratch=source.size,
                                   parallel=problem.flops > SERIAL_FLOPS)


def bind_input_transform(problem: Problem, algorithm: Algorithm, strips: int, panel_width: int) -> tuple[BoundKernel, Strips]:
    """The transform of chunks of that many strips of the input, in panels of so many channels."""
    p, a = problem, algorithm
    tiles_down, across = a.tiles(p)
    depths, lines = input_depths(p), vectors_of(a.channels(p), p.dtype)
    height, width = input_spans(p, a, 1, across)
    down = strips_of_a_task(p, strips, tiles_down, height * width * lines * p.itemsize, depths)
    s, t, borders = input_tiling(p, a, down, strips * depths, panel_width)
    plane = across * p.dilation[1] * p.dilation[2] * panel_width
    laid = Strips(p.groups, depths, tiles_down, down, across, plane, depths * plane, -(-lines // panel_width) * t.panel)
    return bind_transform(p, s, t, laid, borders), laid


def channel_panel(problem: Problem, algorithm: Algorithm) -> int:
    """Channels of a panel of x's transforms for products over tiles."""
    lanes = lane_count(problem.dtype)
    return min(vectors_of(algorithm.channels(problem), problem.dtype), CHANNEL_VECTORS * lanes)


def channel_offsets(channels: int, panel_width: int, panel: int) -> np.ndarray:
    """Where the channels of a tile's transform lie, with room for a register tile that runs over: it takes the last one again."""
    channel = np.arange(channels)
    return np.pad(channel // panel_width * panel + channel % panel_width, (0, TILE_ROWS), mode="edge").astype(np.int32)
