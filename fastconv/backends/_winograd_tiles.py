"""Tiles of minimal-filtering algorithms: an image's strips, packed with channels last, transformed a vector of channels at a time.

Both passes use it: for the input (`forward`, `grad_weight`) and for the output's gradient (`grad_weight`). Products are
transformed back to rows of output points.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..problem import Problem
from ._bilinear import call_transform, transform_address
from ._boxes import strides_of
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
    thawed,
    total,
    zero,
    zero_element,
)
from ._winograd_choice import SERIAL_FLOPS, Algorithm, odd_lines, vectors_of
from ._winograd_packing import Source, input_borders, input_source, input_spans, pack_strip, tiles_of_a_strip

PACKED_BYTES = 128 * 1024  # of a task's packed rows (bench_conv.py, grad_weight)
TASKS_PER_THREAD = 4
# Vectors of channels of a panel of x's transforms: with all channels side by side, a product's tiles lie far apart, on few cache
# sets, where no prefetcher follows (bench_conv.py, grad_weight, 3x3_256@56: 5.9 ms for the products, in panels of a vector 4.2).
CHANNEL_VECTORS = 1


class Tiling(NamedTuple):
    """How a box is cut into tiles, and where their transforms go: [panel][product][plane][tile][channel]."""

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
    strip: int  # tiles whose input is packed at a time


@outlined
def transform_box(s, t, x, zero, borders, start, group, down, across, plane_pitch, row_pitch, packed, target):
    """Pack and transform all tiles of a box of one group's input, which begins at `start`: (image, depth, row, column).

    Depth planes and rows of tiles are `plane_pitch` and `row_pitch` apart.
    """
    image, depth, row, column = start
    for line in range(0, s.lines, s.chunk):
        for d in range(s.span_d):
            for j in range(0, across, t.strip):
                tiles = min(t.strip, across - j)
                at = column + j * t.tile_w * t.dilation_w * s.stride_w
                for i in range(down):
                    strip = (image, depth + d, row + i * t.tile_h * t.dilation_h * s.stride_h, at)
                    pack_strip(s, x, zero, borders, strip, group, line, s.kept if i > 0 else 0, packed)
                    to = advance(target, d * plane_pitch + i * row_pitch + j * t.dilation_w * t.tile)
                    transform_strip(s, t, packed, line, tiles, across * t.dilation_w * t.tile, to)


@outlined
def transform_strip(s, t, packed, line, tiles, interleaved, target):
    """The transforms of the tiles of a packed strip; those of its other rows, where dilation interleaves them, are `interleaved` apart."""
    lanes = lanes_of(target)
    row_step, column_step = t.dilation_h * s.span_w * s.pixel, t.dilation_w * s.pixel
    for c in range(0, s.chunk, lanes):
        panel = (line + c) // t.panel_width
        to_panel = advance(target, panel * t.panel + line + c - panel * t.panel_width)
        for f in range(t.dilation_h):
            to = advance(to_panel, f * interleaved)
            for j in range(tiles):
                for e in range(t.dilation_w):
                    column = (j * t.tile_w * t.dilation_w + e) * s.stride_w
                    at = advance(packed, (f * s.stride_h * s.span_w + column) * s.pixel + c)
                    call_transform(t.transform, at, row_step, column_step, to, t.products_w * t.product, t.product, packed)
                    to = advance(to, t.tile)


@outlined
def store_tiles(g, t, transform, sums, width, bias, first, down, across, start, end, rows, ramp, y, channels, epilogue):
    """Transform a plane of products back and write its output rows; `first` is the plane's first tile in `sums`.

    `g` has the fields products_h, m_product, out_w, y_point and y_channel. Returns whether all results are finite.
    Rows that follow each other in y do so in `rows`, so that whole lines of y are written, however narrow the image.
    """
    lanes = lanes_of(sums)
    check = zero(sums)
    points = end[3] - start[3]
    joined = points == g.out_w and t.dilation_h == 1 and t.dilation_w == 1
    pitch = (points if joined else across * t.tile_w * t.dilation_w) * width
    tile = first
    for i in range(down):
        for f in range(t.dilation_h):
            for j in range(across):
                # The last tile first: where rows are joined, the others write over what it has beyond the end of a row.
                j = j - 1 if j > 0 else across - 1
                for e in range(t.dilation_w):
                    to = advance(rows, (j * t.tile_w * t.dilation_w + e) * width)
                    at = advance(sums, (tile + j * t.dilation_w + e) * width)
                    for c in range(0, channels, lanes):
                        call_transform(transform, advance(at, c), t.products_w * g.m_product, g.m_product, advance(to, c), pitch,
                                       t.dilation_w * width, advance(bias, c))
            tile += across * t.dilation_w
            h = start[2] + i * t.tile_h * t.dilation_h + f
            height = min(t.tile_h, -(-(end[2] - h) // t.dilation_h))
            lines, run = (1, height * points) if joined else (height, points)
            for k in range(lines):
                row = advance(rows, k * pitch)
                for c in range(0, channels, lanes):
                    check = check_finite(advance(row, c), width, run, check)
                store_points(row, width, run, advance(y, (h + k * t.dilation_h) * g.out_w * g.y_point), ramp, g.y_channel, channels,
                             epilogue)
    return total(check) == zero_element(sums)


@inlined
def check_finite(source, step, count, check):
    """`check` plus 0 times each of `count` vectors, in sums that do not wait for each other."""
    nothing = zero(source)
    a, b, c = nothing, nothing, nothing
    whole = count - count % 4
    for i in range(0, whole, 4):
        a = fma(load(source, i * step), nothing, a)
        b = fma(load(source, (i + 1) * step), nothing, b)
        c = fma(load(source, (i + 2) * step), nothing, c)
        check = fma(load(source, (i + 3) * step), nothing, check)
    for i in range(whole, count):
        check = fma(load(source, i * step), nothing, check)
    return (a + b) + (c + check)


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
        to = advance(v, group * p.group + (image * rows + row) * p.strip + depth * p.plane)
        transform_box(s, t, x, zero_element(x), borders, start, group, min(p.down, rows - row), p.across, p.plane, p.strip, scratch, to)


def input_tiling(problem: Problem, algorithm: Algorithm, strips: int, panel_width: int) -> tuple[Source, Tiling, tuple[np.ndarray, ...]]:
    """How x is read, transformed into planes of `strips` strips of tiles, and where its positions lie."""
    p, a = problem, algorithm
    across = a.tiles(p)[1]
    strip = tiles_of_a_strip(p, a, across)
    s = input_source(p, a, strip, 1, 1)
    product = odd_lines(strips * p.dilation[1] * across * p.dilation[2] * panel_width, lane_count(p.dtype))
    t = Tiling(transform_address(INPUT, *a.keys, p.dtype), a.high.outputs, a.wide.outputs, p.dilation[1], p.dilation[2],
               a.wide.products, product, panel_width, panel_width, a.products * product, strip)
    return s, t, input_borders(p, s)


def gradient_tiling(problem: Problem, algorithm: Algorithm, strips: int) -> tuple[Source, Tiling, tuple[np.ndarray, ...]]:
    """How gy is read, transformed into planes of `strips` strips of tiles, and where its rows lie."""
    p, a = problem, algorithm
    lanes, width, across = lane_count(p.dtype), panel_width(p.dtype), a.tiles(p)[1]
    (depths, out_h, out_w), (_, dh, dw) = p.output_size, p.dilation
    lines = -(-p.group_out // width) * width
    strip = tiles_of_a_strip(p, a, across)
    s = Source(p.group_out, lines, lanes, lanes, 1, 1, 1, 1, 1, 1, a.high.outputs * dh, strip * a.wide.outputs * dw, 0, 0, out_w,
               *strides_of(p.out_channels, p.output_size, p.channels_last))
    product = odd_lines(strips * dh * across * dw * width, lanes)
    t = Tiling(transform_address(OUTPUT_GRADIENT, *a.keys, p.dtype), a.high.outputs, a.wide.outputs, dh, dw, a.wide.products, product,
               width, width, a.products * product, strip)
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
    height, width = input_spans(p, a, across)
    down = strips_of_a_task(p, strips, tiles_down, height * width * lines * p.itemsize, depths)
    s, t, borders = input_tiling(p, a, strips * depths, panel_width)
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
