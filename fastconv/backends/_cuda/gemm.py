"""The implicit GEMM of a GPU: a matrix product, one factor of which is gathered from an image.

    rows      output channels
    columns   points of the output (all images'), or for weight gradients taps of the kernel (all channels')
    depth     the other of the two

An element of the image belongs to a point and a tap; both have an entry of four integers in a table, and the sums of theirs say where
it lies and whether it is inside:

    point     offset in the image, position, offset in the result
    tap       offset in the image, position, offset in the weights

A position is all three coordinates in one integer, each in a field that has a guard bit above it. The sum of a point's and a tap's is
inside the image where neither it nor the image's last position less it has a guard bit set: a field below zero borrows from those
above, but is outside itself. The fields' places come as numbers (`Fields`), so that one kernel serves lines, planes and volumes.

So stride, dilation, padding, layout and the phases of a strided input gradient are contents of tables, and one kernel serves them all.
Blocks of threads copy tiles of both factors to shared memory, some stages ahead, asynchronously; each thread keeps a tile of sums in
registers. Lanes that copy follow the axis along which the image is contiguous: columns, singly or by fours, or depth. The depth's entries
go to shared memory a stage before they are needed, through registers of the first threads that hold them for one step more.

What a main loop needs of addresses is hidden from the compiler (`opaque`) once it is computed, and what only the end needs is computed
there: else each copy computes its address from the beginning, and registers are spilled. Multiply-adds are then .80 to .89 of the main
loop's instructions (`tests/test_cuda_code.py`), against .69 to .81 before; dividing a point's number for each copy cost .1 alone.

Source: Chetlur et al., "cuDNN: Efficient primitives for deep learning" (2014), section 3; NVIDIA, "CUTLASS: Fast linear algebra in
CUDA C++" (2017).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from . import (
    advance,
    cast,
    copy_async,
    copy_commit,
    copy_wait,
    cuda,
    fetch,
    i32,
    inlined,
    less_unsigned,
    load,
    load4,
    opaque,
    quotient,
    remainder,
    shared_memory,
    store,
    zero_of,
    zeros,
)
from .compiling import Code, repeated
from .fragments import ELEMENTS, Tile, fragments_of
from .sums import rectifier
from .tables import ENTRY, FAR, PHASE

__all__ = ["WIDE", "Product", "gemm_code", "shared_bytes"]

PAIR = 2  # integers of an entry that copies need: offset and position
WIDE = 4  # elements of a wide copy
INTEGER_BYTES = 4
REGISTER_BYTES = 256 * 1024  # of a multiprocessor
SUMS_SHARE = 2  # of a thread's registers: half of them are its sums
SHARED_BYTES = 163 * 1024  # of a multiprocessor, at least


class Product(NamedTuple):
    """A product as the kernel takes it. Offsets count elements."""

    groups: int
    splits: int  # of the depth
    chunk: int  # steps of a split
    rows: int  # of a group
    images: int
    points: int  # of an image, where they are the depth
    step_points: int  # a tile's depth as whole images and points: the points
    step_images: int  # elements of the images
    x_image: int
    x_group: int
    x_end: int  # beyond the last image
    y_image: int
    y_group: int
    y_row: int
    pitch: int  # of the packed left factor's steps
    part: int  # elements of a split's result
    has_bias: int
    last: int  # position in the image
    guards: int  # bits that a position outside has set


def _stage(tile: Tile, factors: str) -> tuple[int, int, int]:
    """Elements of a stage: where the right factor and the depth's pairs begin, and where the stage ends."""
    fragments = fragments_of(tile, factors)
    right = tile.depth // fragments.steps * fragments.line_a
    pairs = right + tile.depth * fragments.line_b
    return right, pairs, pairs + tile.depth * PAIR * INTEGER_BYTES // np.dtype(ELEMENTS[factors]).itemsize


def shared_bytes(tile: Tile, factors: str) -> int:
    """Shared memory of a block: the stages, the rows' biases, an entry for each column."""
    elements = tile.stages * _stage(tile, factors)[2] + tile.rows
    return elements * np.dtype(ELEMENTS[factors]).itemsize + tile.columns * (PAIR + 1) * INTEGER_BYTES


@functools.cache
def gemm_code(tile: Tile, factors: str, gradient: bool, lanes: str) -> Code:
    """The kernel: of a weight gradient or not, whose lanes copy along the "depth", the "columns", or "fours" of these."""
    BM, BN, BK, _, _, STAGES = tile
    dtype = ELEMENTS[factors]
    NT, ITEM = tile.threads, np.dtype(dtype).itemsize
    fragments = fragments_of(tile, factors)
    LINE_A, LINE_B, SUMS, PARTS, STEPS = fragments.line_a, fragments.line_b, fragments.sums, fragments.parts, fragments.steps
    begin_fragments, multiply, write_fragments = fragments.begin, fragments.multiply, fragments.write
    START_B, START_PAIRS, STAGE = _stage(tile, factors)
    START_BIAS = STAGES * STAGE
    START_COLUMNS = START_BIAS + BM
    START_PLACES = PAIR * BN  # of the result's columns, after their pairs
    LAST = (STAGES - 1) * STAGE
    AHEAD = STAGES - 2  # stages that may be under way when one is needed
    PART = BM // PARTS
    rows_last = gradient != (lanes == "depth")  # in the result: channels are
    assert PART * LINE_B <= START_BIAS, f"{tile}: rows of sums do not fit the stages"
    PER_ROW = BM // WIDE  # copies
    ROWS, COPIES = NT // PER_ROW, BM * BK // STEPS // (WIDE * NT)
    finish = rectifier(dtype)
    first_depth, next_depth, depth_pair, column_entry = _entries(gradient, BK)
    copies = _copies_along_depth(tile, LINE_B) if lanes == "depth" else _copies_along_columns(tile, LINE_B, lanes == "fours")
    begin_image, copy_image = copies

    @inlined
    def copy_rows(target, left, g):
        for j in range(COPIES):
            copy_async(target, j * ROWS * LINE_A, left, i32(j * ROWS * g.pitch), WIDE, True)

    @inlined
    def store_pair(entries, pair):
        store(entries, 0, pair[0])
        store(entries, 1, pair[1])

    @inlined
    def own_product(z, g):
        """(split, group, phase) of a block."""
        rest = quotient(z, g.splits)
        return remainder(z, g.splits), remainder(rest, g.groups), quotient(rest, g.groups)

    def write_rows(sums, operands, c):
        """Write the c-th part of all threads' sums, through shared memory: lanes follow the axis along which the result lies."""
        memory, places, result, thread, m0, columns, g, slope, ceiling = operands
        cuda.syncthreads()
        write_fragments(memory, sums, c, thread)
        cuda.syncthreads()
        for index in range(thread, PART * BN, NT):
            r, n = (index % PART, index // PART) if rows_last else (index // BN, index % BN)
            m = i32(c * PART + r)
            if n < columns and m0 + m < g.rows:
                total = load(memory, r * LINE_B + n) + load(memory, START_BIAS + m)
                store(result, i32(load(places, n) + i32(i32(m0 + m) * g.y_row)), finish(total, slope, ceiling))
        return sums

    write = repeated(write_rows, PARTS)

    def im2col(a, x, taps, points, phases, bias, y, g, slope, ceiling):
        thread = i32(cuda.threadIdx.x)
        split, group, number = own_product(cuda.blockIdx.z, g)
        own = advance(phases, number * PHASE)
        phase = fetch(own, 0), fetch(own, 1), fetch(own, 2), fetch(own, 3)
        columns = phase[1] if gradient else i32(phase[0] * g.images)
        depth = i32(g.points * g.images) if gradient else phase[1]
        n0, m0 = i32(cuda.blockIdx.x * BN), i32(cuda.blockIdx.y * BM)
        if n0 >= columns:
            return
        first = i32(split * g.chunk)
        steps = i32(min(i32(depth - first), g.chunk))
        blocks = quotient(steps + BK - 1, BK) if steps > 0 else i32(0)
        memory = shared_memory(x)
        pairs = cast(advance(memory, START_COLUMNS), taps)
        for n in range(thread, BN, NT):
            entry = column_entry(taps, points, phase, g, i32(n0 + n), columns)
            store_pair(advance(pairs, n * PAIR), entry)
            store(pairs, START_PLACES + n, entry[2])
        for m in range(thread, BM, NT):
            store(memory, START_BIAS + m, fetch(bias, group * g.rows + m0 + m) if g.has_bias and m0 + m < g.rows else zero_of(x))
        own_pair = opaque(i32(START_PAIRS + thread * PAIR * INTEGER_BYTES // ITEM))
        at = first_depth(phase, g, i32(first + thread % BK))
        for stage in range(STAGES):
            if thread < BK:
                store_pair(cast(advance(memory, i32(own_pair + stage * STAGE)), taps), depth_pair(taps, points, at, g))
            at = next_depth(at, g)
        pair = depth_pair(taps, points, at, g)
        cuda.syncthreads()
        start = i32(i32(first // STEPS + thread // PER_ROW) * g.pitch) + m0 + thread % PER_ROW * WIDE
        left = opaque(advance(a, fetch(own, 4) + group * fetch(own, 5) + start))
        own_a = opaque(i32(thread // PER_ROW * LINE_A + thread % PER_ROW * WIDE))
        image = begin_image(advance(x, group * g.x_group), pairs, thread, g)
        for stage in range(STAGES - 1):
            if stage < blocks:
                target = advance(memory, stage * STAGE)
                copy_rows(cast(advance(target, own_a), a), left, g)
                copy_image(advance(target, START_B), cast(advance(target, START_PAIRS), taps), pairs, image, g)
                left = advance(left, i32(BK // STEPS * g.pitch))
            copy_commit()
        sums = zeros(x, SUMS)
        row, across = begin_fragments(thread)
        row, across = opaque(row), opaque(i32(START_B + across))
        reading, writing = i32(0), i32(LAST)
        for block in range(blocks):
            copy_wait(AHEAD)
            cuda.syncthreads()
            if block + STAGES - 1 < blocks:
                target = advance(memory, writing)
                copy_rows(cast(advance(target, own_a), a), left, g)
                copy_image(advance(target, START_B), cast(advance(target, START_PAIRS), taps), pairs, image, g)
                left = advance(left, i32(BK // STEPS * g.pitch))
            copy_commit()
            if own_pair < STAGE:  # this stage's pairs were used a step ago
                store_pair(cast(advance(memory, i32(reading + own_pair)), taps), pair)
                at = next_depth(at, g)
                pair = depth_pair(taps, points, at, g)
            sums = multiply(sums, (cast(advance(memory, i32(reading + row)), a), advance(memory, i32(reading + across))), 0)
            writing = reading
            reading = i32(reading + STAGE) if reading < LAST else i32(0)
        # Nothing of this is kept in registers meanwhile; `fetch` instead of `load` would be.
        thread = opaque(i32(cuda.threadIdx.x))
        split, group, number = own_product(opaque(i32(cuda.blockIdx.z)), g)
        m0 = opaque(i32(cuda.blockIdx.y * BM))
        columns = i32(load(phases, i32(number * PHASE + 1)) if gradient else i32(load(phases, i32(number * PHASE)) * g.images))
        columns = i32(columns - opaque(i32(cuda.blockIdx.x * BN)))
        places = cast(advance(memory, START_COLUMNS), taps)
        result = advance(y, np.int64(split) * g.part + group * g.y_group)
        write(sums, (memory, advance(places, START_PLACES), result, thread, m0, columns, g, slope, ceiling), 0)

    name = ".".join(["im2col", "gradient" if gradient else "forward", lanes, "x".join(map(str, tile)), factors])
    pointers = ("int32" if STEPS > 1 else dtype, dtype, "int32", "int32", "int32", dtype, dtype)
    blocks = min(REGISTER_BYTES // (SUMS_SHARE * SUMS * ITEM * NT), SHARED_BYTES // shared_bytes(tile, factors))
    return Code(name, im2col, pointers, Product, 2, NT, blocks)


# -- entries --------------------------------------------------------------------------------------------------------------


def _entries(gradient: bool, steps: int) -> tuple[Callable, Callable, Callable, Callable]:
    """A state that walks along the depth by `steps`: its first, its next, its pair; and a column's entry of three by number.

    Those beyond the last are nowhere inside.
    """

    def first_tap(phase, g, own):
        return (i32(i32(phase[3] + own) * ENTRY),)

    def next_tap(at, g):
        return (i32(at[0] + steps * ENTRY),)

    def tap_pair(taps, points, at, g):
        return fetch(taps, at[0]), fetch(taps, i32(at[0] + 1))

    def tap_entry(taps, points, phase, g, number, columns):
        at = i32(i32(phase[3] + number) * ENTRY)
        return fetch(taps, at), fetch(taps, i32(at + 1)), fetch(taps, i32(at + 2))

    def first_point(phase, g, own):
        image = quotient(own, g.points)
        return i32(own - image * g.points), i32(image * g.x_image)

    def next_point(at, g):
        point, offset = i32(at[0] + g.step_points), i32(at[1] + g.step_images)
        further = point >= g.points
        return i32(point - g.points) if further else point, i32(offset + g.x_image) if further else offset

    def point_pair(taps, points, at, g):
        own = i32(at[0] * ENTRY)
        return i32(fetch(points, own) + at[1]), fetch(points, i32(own + 1)) if less_unsigned(at[1], g.x_end) else i32(FAR)

    def point_entry(taps, points, phase, g, number, columns):
        image = quotient(number, phase[0])
        at = i32(i32(phase[2] + number - image * phase[0]) * ENTRY) if number < columns else i32(0)
        position = fetch(points, i32(at + 1)) if number < columns else i32(FAR)
        return i32(fetch(points, at) + image * g.x_image), position, i32(fetch(points, i32(at + 2)) + image * g.y_image)

    chosen = (first_point, next_point, point_pair, tap_entry) if gradient else (first_tap, next_tap, tap_pair, point_entry)
    first, following, pair, entry = map(inlined, chosen)
    return first, following, pair, entry


# -- copies of the image --------------------------------------------------------------------------------------------------


@inlined
def is_inside(position, remaining, further, guards):
    """Whether a point's tap is inside the image; `remaining` is the image's last position less that of one of both."""
    return (i32(position + further) | i32(remaining - further)) & guards == 0


def _copies_along_columns(tile: Tile, line: int, fours: bool) -> tuple[Callable, Callable]:
    """What a thread knows of its column or its four, and copies of some steps of the depth for it."""
    BN, BK, NT = tile.columns, tile.depth, tile.threads
    width = WIDE if fours else 1
    PER_STEP = BN // width
    COPIES = BN * BK // (NT * width)

    def begin(x, pairs, thread, g):
        column, step = i32(thread % PER_STEP * width), i32(thread // PER_STEP * COPIES)
        position = opaque(load(pairs, i32(column * PAIR + 1)))
        places = opaque(i32(step * line + column)), opaque(i32(step * PAIR))
        return opaque(advance(x, load(pairs, i32(column * PAIR)))), position, opaque(i32(g.last - position)), places

    def copy(target, entries, pairs, image, g):
        source, position, remaining, places = image
        target, entries = advance(target, places[0]), advance(entries, places[1])
        for j in range(0, COPIES, 2):
            a, b, c, d = load4(entries, j * PAIR)
            copy_async(target, j * line, source, a, width, is_inside(position, remaining, b, g.guards))
            copy_async(target, (j + 1) * line, source, c, width, is_inside(position, remaining, d, g.guards))

    return inlined(begin), inlined(copy)


def _copies_along_depth(tile: Tile, line: int) -> tuple[Callable, Callable]:
    """The same for a step of the depth, and for some columns."""
    BN, BK, NT = tile.columns, tile.depth, tile.threads
    APART = 2 * NT // BK  # columns between a thread's pairs of neighbours

    def begin(x, pairs, thread, g):
        column, step = i32(thread // BK * 2), i32(thread % BK)
        return opaque(x), opaque(i32(step * line + column)), opaque(i32(step * PAIR)), opaque(i32(column * PAIR))

    def copy(target, entries, pairs, image, g):
        x, place, entry, column = image
        target, pairs = advance(target, place), advance(pairs, column)
        source, position = opaque(advance(x, load(entries, entry))), opaque(load(entries, i32(entry + 1)))
        remaining = opaque(i32(g.last - position))
        for j in range(0, BN, APART):
            a, b, c, d = load4(pairs, j * PAIR)
            copy_async(target, j, source, a, 1, is_inside(position, remaining, b, g.guards))
            copy_async(target, j + 1, source, c, 1, is_inside(position, remaining, d, g.guards))

    return inlined(begin), inlined(copy)
