"""The implicit GEMM of a GPU: a matrix product, one factor of which is gathered from an image.

    rows      output channels
    columns   points of the output (all images'), or for weight gradients taps of the kernel (all channels')
    depth     the other of the two

An element of the image belongs to a point and a tap; both have an entry of four integers in a table, and the sums of theirs say where
it lies and whether it is inside:

    point     offset in the image, offset in the result, row and column of the image
    tap       offset in the image, offset in the weights, rows and columns further

A volume's row is plane * 65536 + row: the sum's halves are then tested one by one (a negative row borrows from the plane, but is outside).

So stride, dilation, padding, layout and the phases of a strided input gradient are contents of tables, and one kernel serves them all.
Blocks of threads copy tiles of both factors to shared memory, some stages ahead, asynchronously; each thread keeps a tile of sums in
registers. Lanes that copy follow the axis along which the image is contiguous: columns or depth.

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
    concatenate,
    copy_async,
    copy_commit,
    copy_wait,
    cuda,
    fetch,
    fetch4,
    i32,
    inlined,
    less_unsigned,
    load,
    load4,
    ones_of,
    outer_product,
    quotient,
    remainder,
    shared_memory,
    store,
    store4,
    store_part,
    zero_of,
    zeros,
)
from .compiling import Code, repeated
from .sums import rectifier

__all__ = ["BITS", "ENTRY", "FAR", "PHASE", "Phase", "Product", "Tile", "gemm_code", "multiplication", "shared_bytes",
           "thread_place"]

ENTRY = 4  # integers of a table's entry
FAR = -(2**28)  # a column of the image that no tap brings inside
WIDE = 4  # elements of a wide copy
BITS = 16  # of the row in a volume's rows, below the plane
LOW = 2**BITS - 1
SKEW = 4  # elements between rows of shared memory, so that lanes along the depth meet different banks


class Tile(NamedTuple):
    """Sizes of the tiles of a block of threads."""

    rows: int
    columns: int
    depth: int
    threads_down: int
    threads_across: int
    stages: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.threads_down * self.threads_across


class Product(NamedTuple):
    """A product as the kernel takes it. Offsets count elements."""

    groups: int
    splits: int  # of the depth
    chunk: int  # steps of a split
    rows: int  # of a group
    images: int
    in_d: int
    in_h: int
    in_w: int
    x_image: int
    x_group: int
    y_image: int
    y_group: int
    y_row: int
    pitch: int  # of the packed left factor's steps
    part: int  # elements of a split's result
    has_bias: int


class Phase(NamedTuple):
    """One of the products that are done at once: integers of the table `phases`."""

    points: int  # of an image
    taps: int
    first_point: int  # entries of the tables
    first_tap: int
    first_packed: int  # elements of the packed left factor
    packed_group: int  # the same of a group


PHASE = len(Phase._fields)


def shared_bytes(tile: Tile, dtype: str) -> int:
    """Shared memory of a block: both factors' stages, the rows' biases, and an entry for each column."""
    elements = tile.stages * tile.depth * (tile.rows + tile.columns + 2 * SKEW) + tile.rows
    return elements * np.dtype(dtype).itemsize + tile.columns * ENTRY * 4


def multiplication(tile: Tile) -> Callable:
    """The main loop's body: `sums + A B` of one stage of both factors, a function of sums, pointers to a thread's parts, and 0."""
    rows, columns = tile.rows + SKEW, tile.columns + SKEW
    groups_m, groups_n = tile.rows // tile.threads_down // WIDE, tile.columns // tile.threads_across // WIDE
    fragment_a, fragment_b = _fragment(groups_m, tile.rows // groups_m), _fragment(groups_n, tile.columns // groups_n)

    def step(sums, operands, k):
        a, b = operands
        return outer_product(sums, fragment_a(a, k * rows), fragment_b(b, k * columns))

    return repeated(step, tile.depth)


def thread_place(tile: Tile) -> Callable:
    """The first row and the first column of a thread's sums; the threads of a warp share rows and columns."""
    WARP_X = min(8, tile.threads_across)
    WARPS_X, WARP_Y = tile.threads_across // WARP_X, 32 // WARP_X

    def place(thread):
        warp, lane = thread // 32, thread % 32
        row = i32((warp // WARPS_X * WARP_Y + lane // WARP_X) * WIDE)
        return row, i32((warp % WARPS_X * WARP_X + lane % WARP_X) * WIDE)

    return inlined(place)


@functools.cache
def gemm_code(tile: Tile, dtype: str, gradient: bool, along_depth: bool, volume: bool) -> Code:
    """The kernel: of a weight gradient or not, with lanes that copy along the depth or along the columns, of planes or volumes."""
    BM, BN, BK, TY, TX, STAGES = tile
    NT = tile.threads
    LDA, LDB, LDC = BM + SKEW, BN + SKEW, BN + SKEW
    STAGE_A, STAGE_B = BK * LDA, BK * LDB
    START_B, START_BIAS = STAGES * STAGE_A, STAGES * (STAGE_A + STAGE_B)
    START_ENTRIES = START_BIAS + BM
    AHEAD = STAGES - 2  # stages that may be under way when one is needed
    GROUPS_M, GROUPS_N = BM // TY // WIDE, BN // TX // WIDE  # groups of four rows and columns of a thread
    STEP_M, STEP_N = BM // GROUPS_M, BN // GROUPS_N
    ACROSS = BN // TX
    SUMS = BM // TY * ACROSS
    rows_last = gradient != along_depth  # in the result: channels are
    assert STEP_M * LDC <= START_BIAS, f"{tile}: rows of sums do not fit the stages"
    PER_ROW = BM // WIDE  # copies
    COPIES_A, COPIES_B = BM * BK // (WIDE * NT), BN * BK // NT
    finish = rectifier(dtype)
    point_entry, tap_entry = _entries()
    column_entry, depth_entry = (tap_entry, point_entry) if gradient else (point_entry, tap_entry)
    fragment_a, multiply, place = _fragment(GROUPS_M, STEP_M), multiplication(tile), thread_place(tile)

    is_inside = _inside(volume)
    ones = inlined(lambda example: ones_of(example, ACROSS))

    if along_depth:

        @inlined
        def copy_image(target, x, tables, phase, g, entries, column, thread, k, end):
            """Lanes along the depth: an entry a thread, those of the columns from shared memory."""
            own = i32(k + thread % BK)
            at_depth = depth_entry(tables, phase, g, own, end)
            for j in range(COPIES_B):
                n = i32(thread // BK + j * (NT // BK))
                at_column = load4(entries, n * ENTRY)
                copy_async(target, i32(thread % BK * LDB + n), x, i32(at_column[0] + at_depth[0]), 1, is_inside(at_column, at_depth, g))

    else:

        @inlined
        def copy_image(target, x, tables, phase, g, entries, column, thread, k, end):
            """Lanes along the columns: an entry a thread, those of the depth from their table."""
            for j in range(COPIES_B):
                row = i32(thread // BN + j * (NT // BN))
                at_depth = depth_entry(tables, phase, g, i32(k + row), end)
                copy_async(target, i32(row * LDB + thread % BN), x, i32(column[0] + at_depth[0]), 1, is_inside(column, at_depth, g))

    @inlined
    def copy_rows(target, a, g, thread, m0, k):
        for j in range(COPIES_A):
            row = i32(thread // PER_ROW + j * (NT // PER_ROW))
            column = i32(thread % PER_ROW * WIDE)
            copy_async(target, i32(row * LDA + column), a, i32(i32(i32(k + row) * g.pitch) + i32(m0 + column)), WIDE, True)

    def write_rows(sums, operands, c):
        """Write the c-th groups of all threads' rows, through shared memory: lanes follow the axis along which the result lies."""
        memory, entries, result, row, across, m0, columns, g, slope, ceiling = operands
        cuda.syncthreads()
        store_part(advance(memory, i32(row * LDC + across)), sums, c, WIDE, GROUPS_N, STEP_N, LDC)
        cuda.syncthreads()
        for index in range(i32(cuda.threadIdx.x), STEP_M * BN, NT):
            r, n = (index % STEP_M, index // STEP_M) if rows_last else (index // BN, index % BN)
            m = i32(m0 + c * STEP_M + r)
            if n < columns and m < g.rows:
                at = i32(load(entries, n * ENTRY + 1) + i32(m * g.y_row))
                store(result, at, finish(load(memory, r * LDC + n), slope, ceiling))
        return sums

    write = repeated(write_rows, GROUPS_M)

    def im2col(a, x, taps, points, phases, bias, y, g, slope, ceiling):
        thread = i32(cuda.threadIdx.x)
        split = remainder(cuda.blockIdx.z, g.splits)
        group = remainder(quotient(cuda.blockIdx.z, g.splits), g.groups)
        number = quotient(quotient(cuda.blockIdx.z, g.splits), g.groups)
        own = advance(phases, number * PHASE)
        phase = fetch(own, 0), fetch(own, 1)
        tables = advance(points, fetch(own, 2) * ENTRY), advance(taps, fetch(own, 3) * ENTRY)
        columns = phase[1] if gradient else i32(phase[0] * g.images)
        depth = i32(phase[0] * g.images) if gradient else phase[1]
        n0, m0 = i32(cuda.blockIdx.x * BN), i32(cuda.blockIdx.y * BM)
        if n0 >= columns:
            return
        first, end = i32(split * g.chunk), i32(min(depth, (split + 1) * g.chunk))
        left = advance(a, fetch(own, 4) + group * fetch(own, 5))
        image = advance(x, group * g.x_group)
        memory = shared_memory(x)
        entries = cast(advance(memory, START_ENTRIES), taps)
        for n in range(thread, BN, NT):
            store4(entries, n * ENTRY, column_entry(tables, phase, g, i32(n0 + n), columns))
        for m in range(thread, BM, NT):
            store(memory, START_BIAS + m, fetch(bias, group * g.rows + m0 + m) if g.has_bias and m0 + m < g.rows else zero_of(x))
        cuda.syncthreads()
        column = load4(entries, thread % BN * ENTRY)
        blocks = i32(max(0, quotient(end - first + BK - 1, BK))) if end > first else i32(0)
        for stage in range(STAGES - 1):
            if stage < blocks:
                k = i32(first + stage * BK)
                copy_rows(advance(memory, stage * STAGE_A), left, g, thread, m0, k)
                copy_image(advance(memory, START_B + stage * STAGE_B), image, tables, phase, g, entries, column, thread, k, end)
            copy_commit()
        row, across = place(thread)
        sums = outer_product(zeros(x, SUMS), fragment_a(memory, START_BIAS + row), ones(x))
        reading, writing = i32(0), i32(STAGES - 1)
        for block in range(blocks):
            copy_wait(AHEAD)
            cuda.syncthreads()
            if block + STAGES - 1 < blocks:
                k = i32(first + (block + STAGES - 1) * BK)
                copy_rows(advance(memory, i32(writing * STAGE_A)), left, g, thread, m0, k)
                copy_image(advance(memory, i32(START_B + writing * STAGE_B)), image, tables, phase, g, entries, column, thread, k, end)
            copy_commit()
            own_rows, own_columns = i32(reading * STAGE_A + row), i32(START_B + reading * STAGE_B + across)
            sums = multiply(sums, (advance(memory, own_rows), advance(memory, own_columns)), 0)
            reading = i32(reading + 1) if reading < STAGES - 1 else i32(0)
            writing = i32(writing + 1) if writing < STAGES - 1 else i32(0)
        result = advance(y, np.int64(split) * g.part + group * g.y_group)
        write(sums, (memory, entries, result, row, across, m0, i32(columns - n0), g, slope, ceiling), 0)

    kinds = ("gradient" if gradient else "forward", "depth" if along_depth else "columns", "volume" if volume else "plane")
    name = ".".join(["im2col", *kinds, "x".join(map(str, tile)), dtype])
    pointers = (dtype, dtype, "int32", "int32", "int32", dtype, dtype)
    return Code(name, im2col, pointers, Product, 2, NT, 2 if NT == 256 else 1)


def _entries() -> tuple[Callable, Callable]:
    """Entries of a point and of a tap, by number; those beyond the last are nowhere inside."""

    def point_entry(tables, phase, g, number, end):
        image = quotient(number, phase[0])
        at = fetch4(tables[0], i32(i32(number - image * phase[0]) * ENTRY) if number < end else i32(0))
        return i32(at[0] + image * g.x_image), i32(at[1] + image * g.y_image), at[2], at[3] if number < end else i32(FAR)

    def tap_entry(tables, phase, g, number, end):
        return fetch4(tables[1], i32(number * ENTRY))

    return inlined(point_entry), inlined(tap_entry)


def _inside(volume: bool) -> Callable:
    """Whether a point's tap is inside the image."""

    def in_plane(point, tap, g):
        return less_unsigned(i32(point[2] + tap[2]), g.in_h) and less_unsigned(i32(point[3] + tap[3]), g.in_w)

    def in_volume(point, tap, g):
        row = i32(point[2] + tap[2])
        return less_unsigned(row & LOW, g.in_h) and less_unsigned(row >> BITS & LOW, g.in_d) and less_unsigned(point[3] + tap[3], g.in_w)

    return inlined(in_volume if volume else in_plane)


def _fragment(groups: int, step: int) -> Callable:
    """A thread's rows or columns of one step of the depth: groups of four, `step` apart."""
    if groups == 1:
        return inlined(lambda pointer, i: load4(pointer, i))
    rest = _fragment(groups - 1, step)
    return inlined(lambda pointer, i: concatenate(load4(pointer, i), rest(pointer, i + step)))
