"""The forward pass of `im2col` of few points, channels first: weights as they lie.

    y[o, p] = bias[o] + sum over k of  w[o, k] * columns[k, p]        columns[(c, t), p] = x[c, stride p + dilation t - low]

Rows of the register tile are output channels, whose weights are broadcast from where they lie: packing them takes as long as
the products where points are few. Its columns are vectors of points: the input as it lies where taps, stride and border leave it
so, else a copy that each thread makes. Terms are taken in chunks whose columns stay in the first-level cache. Few points behind
the last whole vector, 1 of 49 at 7 x 7, are dot products of the same weights, which then lie in that cache, with vectors along
k: a quarter of what a vector for them would take.

Tried, and did not pay: fetching the next tile's weights ahead (the hardware does, from memory too); smaller and larger chunks;
two tiles of two vectors for one of three and one of one; a part of few points a task (each thread reads all weights).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..problem import Problem
from . import CACHED_BYTES, Machine
from ._boxes import TASKS_PER_THREAD, copy_run, speedup
from ._columns import (
    COLUMNS,
    copy_columns,
    copy_rest,
    cut_of,
    is_adjacent,
    phases_of,
    plane_of,
    strip_at,
    strips_of,
    tap_offsets,
)
from ._gemm import epilogue_of
from ._jit import num_threads, outlined
from ._planes import uses_threads
from ._simd import (
    COUNTER_PITCH,
    VECTOR_BYTES,
    VECTOR_REGISTERS,
    advance,
    column_pointers,
    lane_count,
    lanes_of,
    load,
    own_first,
    parallel_kernel,
    put,
    rectify,
    splat,
    store,
    thawed,
    tile_dot,
    tile_dot_first,
    tile_load,
    tile_outer_rows,
    tile_store,
    tile_zeros,
    total,
)

ROWS = 8 if VECTOR_REGISTERS == 32 else 6  # of the register tile: output channels; its columns are a strip's vectors
CHUNK_BYTES = 24 * 1024  # of columns: half a first-level cache
MOST_TILES = 16  # of a task: their weights stay in the second-level cache while all points are multiplied by them
PART_STRIPS = 4  # of a task at least: they share its weights
MOST_POINTS, MOST_BYTES = 4096, 2 * 1024 * 1024  # of all images, and of their columns where they are copied
# The cost model (bench_conv.py, 1x1 and 3x3s2 layers), in vector multiply-adds:
EFFICIENCY = 0.99  # share of the peak in the products
TILE_OVERHEAD = 16  # steps of a sum that filling a tile and writing its rows costs
VECTOR_COST, STRIDED_COST, REST_COST = 15, 3, 6  # of a vector of columns, an element that a stride moves, one of a point left over
EXPOSED = 0.25  # share of the time of weights from memory that the products do not hide (cold plans of 1x1_2048@7)


class Rows(NamedTuple):
    """A forward convolution as a product with columns; integers only, as the kernels take it."""

    groups: int
    group_in: int
    group_out: int
    images: int
    in_h: int
    in_w: int
    out_h: int
    out_w: int
    stride_h: int
    stride_w: int
    plane_h: int  # of one image and phase of a channel
    plane_w: int
    taps: int
    depth: int  # terms of a sum
    points: int  # of an image
    adjacent: int  # 1 where the points of a channel lie in x as they are,
    in_place: int  # and where vectors of them are read there
    pitch: int  # from column to column
    strips: int
    rest: int  # points that no vector has
    rest_pitch: int  # from one to the next
    chunk: int  # terms of a chunk
    tiles: int  # of a task
    parts: int  # of the strips, each a task


def task_of(problem: Problem, threads: int) -> tuple[int, int]:
    """Tiles of a task, and parts of the points: tasks enough for the threads, of few channels only where points are few."""
    p = problem
    all_tiles, strips = -(-p.group_out // ROWS), len(strips_of(p))
    wanted = -(-TASKS_PER_THREAD * threads // p.groups) if uses_threads(p) else 1
    runs = -(-all_tiles // MOST_TILES)
    parts = max(1, min(strips // PART_STRIPS, -(-wanted // runs)))
    return max(1, min(-(-all_tiles // runs), all_tiles * parts // wanted)), parts


def rows_of(problem: Problem, threads: int) -> Rows:
    """The product of a problem of one depth."""
    p = problem
    lanes, points, strips = lane_count(p.dtype), math.prod(p.output_size), strips_of(p)
    in_place, last = cut_of(p)[0], strips[-1]
    pitch = points if in_place else last.source + last.vectors * lanes + last.rest
    tiles, parts = task_of(p, threads)
    numbers: tuple[int, ...] = (
        p.groups, p.group_in, p.group_out, p.batch, *p.input_size[1:], *p.output_size[1:], *p.stride[1:], *plane_of(p),
        math.prod(p.kernel_size), p.taps, points, int(is_adjacent(p)), int(in_place), pitch, len(strips), last.rest_row + last.rest,
        -(-p.taps // lanes) * lanes, CHUNK_BYTES // (COLUMNS * VECTOR_BYTES * lanes) * lanes, tiles, parts)
    return Rows(*numbers)


# -- kernels --------------------------------------------------------------------------------------------------------------


def make_tile(columns: int):
    """Add terms [first, last) to a tile of sums, which begin with the first term."""

    @outlined
    def tile(w, outputs, first, last, x, x_pitch, sums, pitch):
        rows = column_pointers(w, outputs, ROWS)
        acc = tile_zeros(x, ROWS, columns)
        if first > 0:
            acc = tile_load(sums, pitch, ROWS, columns)
        for k in range(first, last):
            acc = tile_outer_rows(acc, rows, k, advance(x, k * x_pitch))
        tile_store(sums, pitch, acc, ROWS)

    return tile


single_tile, double_tile, whole_tile = (make_tile(columns) for columns in (1, 2, COLUMNS))


@outlined
def add_dots(w, outputs, first, last, x, sums):
    """Add terms [first, last) of a point to the vectors of partial sums of a tile's rows."""
    lanes = lanes_of(x)
    acc = tile_zeros(x, ROWS, 1)
    if first > 0:
        acc = tile_load(sums, lanes, ROWS, 1)
    whole = last - (last - first) % lanes
    for k in range(first, whole, lanes):
        acc = tile_dot(acc, advance(w, k), outputs, advance(x, k))
    if whole < last:
        acc = tile_dot_first(acc, advance(w, whole), outputs, advance(x, whole), last - whole)
    tile_store(sums, lanes, acc, ROWS)


@outlined
def add_dot_pairs(w, outputs, first, last, x, pitch, sums):
    """The same of two points, whose terms lie `pitch` apart: as fast, for the weights' loads are what takes time."""
    lanes = lanes_of(x)
    acc, other = tile_zeros(x, ROWS, 1), tile_zeros(x, ROWS, 1)
    if first > 0:
        acc, other = tile_load(sums, lanes, ROWS, 1), tile_load(advance(sums, ROWS * lanes), lanes, ROWS, 1)
    whole = last - (last - first) % lanes
    for k in range(first, whole, lanes):
        acc = tile_dot(acc, advance(w, k), outputs, advance(x, k))
        other = tile_dot(other, advance(w, k), outputs, advance(x, pitch + k))
    if whole < last:
        acc = tile_dot_first(acc, advance(w, whole), outputs, advance(x, whole), last - whole)
        other = tile_dot_first(other, advance(w, whole), outputs, advance(x, pitch + whole), last - whole)
    tile_store(sums, lanes, acc, ROWS)
    tile_store(advance(sums, ROWS * lanes), lanes, other, ROWS)


@outlined
def multiply_strip(g, strip, w, outputs, count, columns, rest, sums, dots):
    """The sums of `count` output channels at the points of a strip."""
    lanes = lanes_of(columns)
    pitch = (COLUMNS + 1) * lanes
    x = advance(columns, strip.source)
    for k in range(0, g.depth, g.chunk):
        end = min(k + g.chunk, g.depth)
        for at in range(0, count, ROWS):
            weights, table, target = advance(w, at * g.depth), advance(outputs, min(ROWS, count - at) * ROWS), advance(sums, at * pitch)
            if strip.vectors == COLUMNS:
                whole_tile(weights, table, k, end, x, g.pitch, target, pitch)
            elif strip.vectors == 2:
                double_tile(weights, table, k, end, x, g.pitch, target, pitch)
            elif strip.vectors == 1:
                single_tile(weights, table, k, end, x, g.pitch, target, pitch)
            for i in range(0, strip.rest - 1, 2):
                add_dot_pairs(weights, table, k, end, advance(rest, (strip.rest_row + i) * g.rest_pitch), g.rest_pitch,
                              advance(dots, (at * strip.rest + i * ROWS) * lanes))
            if strip.rest % 2 == 1:
                add_dots(weights, table, k, end, advance(rest, (strip.rest_row + strip.rest - 1) * g.rest_pitch),
                         advance(dots, (at * strip.rest + (strip.rest - 1) * ROWS) * lanes))


@outlined
def write_strip(g, strip, sums, dots, value, epilogue, y):
    """The points of a strip in an output channel."""
    lanes = lanes_of(sums)
    count = strip.kept + strip.rest
    for i in range(strip.rest):
        put(sums, strip.kept + i, total(load(dots, i * ROWS * lanes)))
    for i in range(0, count, lanes):
        finished = load(sums, i) + value
        store(sums, i, rectify(finished, epilogue.slope, epilogue.ceiling) if epilogue.rectify else finished)
    done = 0
    while done < count:
        image, point = (strip.point + done) // g.points, (strip.point + done) % g.points
        run = min(count - done, g.points - point)
        copy_run(advance(y, image * g.groups * g.group_out * g.points + point), advance(sums, done), run)
        done += run


@parallel_kernel
def im2col_forward_rows(x, w, bias, y, constants, scratch, counters, thread, threads):
    """y = epilogue(convolution with w + bias), by runs of output channels.

    A thread that comes to another group copies its columns.
    """
    g, strips, phases, offsets, outputs, space, epilogue, shares = thawed(constants)
    lanes = lanes_of(x)
    rest, sums = advance(scratch, space[0]), advance(scratch, space[1])
    dots, planes = advance(scratch, space[2]), advance(scratch, space[3])
    pitch = (COLUMNS + 1) * lanes
    runs = -(-g.group_out // (g.tiles * ROWS))
    current, columns = -1, scratch
    for task in own_first(counters, thread, shares, g.groups * g.parts * runs):
        group, part, first = task // runs // g.parts, task // runs % g.parts, task % runs * g.tiles * ROWS
        if group != current:
            source = advance(x, group * g.group_in * g.in_h * g.in_w)
            if g.in_place == 1:
                columns = source
            else:
                copy_columns(g, source, phases, offsets, planes, scratch)
            for number in range(g.strips):
                copy_rest(g, strip_at(strips, number), columns, rest)
            current = group
        channel, count = group * g.group_out + first, min(g.tiles * ROWS, g.group_out - first)
        for number in range(g.strips * part // g.parts, g.strips * (part + 1) // g.parts):
            strip = strip_at(strips, number)
            multiply_strip(g, strip, advance(w, channel * g.depth), outputs, count, columns, rest, sums, dots)
            for r in range(count):
                write_strip(g, strip, advance(sums, r * pitch), advance(dots, ((r - r % ROWS) * strip.rest + r % ROWS) * lanes),
                            splat(bias, channel + r), epilogue, advance(y, (channel + r) * g.points))


# -- the engine -----------------------------------------------------------------------------------------------------------


def fits(problem: Problem) -> bool:
    """Whether it is a convolution of one depth, of floats between zeros, with outputs for a tile and columns that a cache holds."""
    p = problem
    return (not p.channels_last and np.dtype(p.dtype).kind == "f" and p.padding_mode == "zeros" and p.group_out >= ROWS
            and p.flops > 0 and p.input_size[0] * p.output_size[0] * p.kernel_size[0] * p.stride[0] == 1 and not any(p.padding[0])
            and p.batch * math.prod(p.output_size) <= MOST_POINTS
            and (cut_of(p)[0] or p.taps * p.batch * math.prod(p.output_size) * p.itemsize <= MOST_BYTES))


def rows_seconds(problem: Problem, machine: Machine) -> float:
    """Time of the products and of the columns, which each thread copies; infinite where it is not for the problem."""
    p = problem
    if not fits(p):
        return math.inf
    lanes, (in_place, cut) = lane_count(p.dtype), cut_of(p)
    runs = p.batch if in_place else 1
    tiles, parts = task_of(p, machine.threads)
    all_tiles = -(-p.group_out // ROWS)
    multiply = ROWS * p.groups * all_tiles * runs * cut.columns * (p.taps + TILE_OVERHEAD) / EFFICIENCY
    copied: float = REST_COST * p.groups * p.taps * runs * cut.rest
    if not in_place:
        lines = 1 if is_adjacent(p) else p.output_size[1]
        vectors = lines * -(-math.prod(p.output_size) // (lines * lanes))
        copied += VECTOR_COST * p.groups * p.taps * p.batch * vectors
        used = math.prod(min(1.0, k / s) for k, s in zip(p.kernel_size, p.stride, strict=True))
        copied += STRIDED_COST * used * math.prod(p.input_shape) * (p.stride[2] > 1)
    vector_seconds = 2 * lanes / machine.flops(p.dtype)
    near = multiply * vector_seconds + p.bytes / machine.cache_bandwidth
    if not uses_threads(p):
        return near + copied * vector_seconds
    far = p.bytes / (machine.bandwidth * machine.threads) if p.bytes > CACHED_BYTES else 0.0
    streamed = math.prod(p.weight_shape) * p.itemsize / (machine.bandwidth * machine.threads) if p.cold_weights else 0.0
    shared = near / speedup(p.groups * parts * -(-all_tiles // tiles), machine.threads)
    work = shared + copied * vector_seconds / min(p.groups, machine.threads)
    return machine.region_seconds + max(far, work) + EXPOSED * streamed


class ForwardRows:
    """The forward pass of weights as they lie."""

    def __init__(self, problem: Problem):
        p = self.problem = problem
        threads, lanes = num_threads(), lane_count(p.dtype)
        g, strips = rows_of(p, threads), strips_of(p)
        left = np.arange(ROWS + 1)[:, None]
        outputs = (np.clip(np.arange(ROWS), 0, np.maximum(left - 1, 0)) * g.depth).astype(np.int32).ravel()
        copied, split = 1 - g.in_place, 1 - g.adjacent
        sizes = (copied * (g.depth * g.pitch + lanes), g.rest * g.rest_pitch, g.tiles * ROWS * (COLUMNS + 1) * lanes,
                 g.tiles * ROWS * strips[-1].rest * lanes, split * (p.batch * math.prod(p.stride) * g.plane_h * g.plane_w + lanes))
        space = np.cumsum([-(-size // lanes) * lanes for size in sizes])
        constants = (g, np.array(strips, np.int64).ravel(), phases_of(p), tap_offsets(p), outputs, space, epilogue_of(p), threads)
        self.kernel = im2col_forward_rows.bind(p.dtype, constants, scratch=int(space[-1]), counters=threads * COUNTER_PITCH,
                                               parallel=uses_threads(p))
        self.scratch_bytes = self.kernel.scratch_bytes(threads)
        self.no_bias = np.zeros(p.out_channels, p.dtype)

    def pack(self, w: np.ndarray) -> np.ndarray:
        return w

    def run(self, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> None:
        self.kernel(x.reshape(-1), w.reshape(-1), self.no_bias if bias is None else bias, out.reshape(-1))
