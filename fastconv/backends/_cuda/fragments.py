"""How threads multiply tiles of two factors in shared memory: by multiply-adds, or a warp at a time by tensor cores.

    multiply-adds     a thread's sums are groups of four rows by groups of four columns
    tensor cores      a warp's sums are tiles of 16 rows by 8 columns, of which a lane has two pairs; factors are rounded to tf32, or to
                      float16 (the left one when it is packed, two steps of the depth in a word; the right one as it is read)

The sums are written in parts, each one group or tile of rows of every thread.

Source: NVIDIA, "Parallel Thread Execution ISA", section 9.7.14.5 (fragments of mma.m16n8k8 and mma.m16n8k16).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from . import advance, concatenate, i32, inlined, load, load4, mma, one, outer_product, pack_halves, pick, round_tf32, store, store_part
from .compiling import repeated

__all__ = ["ELEMENTS", "Fragments", "Tile", "fragments_of"]

ELEMENTS = {"float32": "float32", "float64": "float64", "tf32": "float32", "float16": "float32"}  # of arrays, by their factors
WIDE = 4  # elements of a wide load
WARP = 32
SKEW = 4  # elements between rows of shared memory, so that lanes along the depth meet different banks
APART = 8  # the same for a warp's lanes of four steps and eight rows or columns
MMA_ROWS, MMA_COLUMNS = 16, 8
DOWN, ACROSS = 8, 4  # lanes of a warp on tensor cores


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


class Fragments(NamedTuple):
    """What the product needs to know of them."""

    steps: int  # of the depth in a row of the left factor
    line_a: int  # elements from row to row of the left factor in shared memory
    line_b: int  # the same of the right one
    sums: int  # of a thread
    parts: int  # of them
    begin: Callable  # thread -> where its fragments begin in both factors
    multiply: Callable  # (sums, (a, b), 0) -> sums, of a whole tile
    write: Callable  # (pointer, sums, part, thread): a part to shared memory, in rows of line_b


def fragments_of(tile: Tile, factors: str) -> Fragments:
    """The way to multiply factors of a type."""
    return _tensor_fragments(tile, factors == "float16") if factors in ("tf32", "float16") else _plain_fragments(tile)


def _chain(read: Callable, count: int, step: int) -> Callable:
    """read(pointer, i) for i, i + step and so on, `count` of them, as one tuple."""
    if count == 1:
        return inlined(read)
    first, rest = inlined(read), _chain(read, count - 1, step)
    return inlined(lambda pointer, i: concatenate(first(pointer, i), rest(pointer, i + step)))


def _plain_fragments(tile: Tile) -> Fragments:
    BM, BN, BK, TY, TX, _ = tile
    LINE_A, LINE_B = BM, BN + SKEW
    GROUPS_M, GROUPS_N = BM // TY // WIDE, BN // TX // WIDE  # groups of four rows and columns of a thread
    STEP_M, STEP_N = BM // GROUPS_M, BN // GROUPS_N
    WARP_X = min(8, TX)
    WARPS_X, WARP_Y = TX // WARP_X, WARP // WARP_X
    read_a = _chain(lambda pointer, i: load4(pointer, i), GROUPS_M, STEP_M)
    read_b = _chain(lambda pointer, i: load4(pointer, i), GROUPS_N, STEP_N)

    @inlined
    def begin(thread):
        warp, lane = thread // WARP, thread % WARP
        return i32((warp // WARPS_X * WARP_Y + lane // WARP_X) * WIDE), i32((warp % WARPS_X * WARP_X + lane % WARP_X) * WIDE)

    def step(sums, operands, k):
        a, b = operands
        return outer_product(sums, read_a(a, k * LINE_A), read_b(b, k * LINE_B))

    @inlined
    def write(pointer, sums, part, thread):
        row, column = begin(thread)
        store_part(advance(pointer, i32(row * LINE_B + column)), sums, part, WIDE, GROUPS_N, STEP_N, LINE_B)

    return Fragments(1, LINE_A, LINE_B, BM // TY * (BN // TX), GROUPS_M, begin, repeated(step, BK), write)


def _tensor_fragments(tile: Tile, halves: bool) -> Fragments:
    BM, BN, BK, TY, TX, _ = tile
    STEPS = 2 if halves else 1
    LINE_A, LINE_B = BM + APART, BN + (SKEW if halves else APART)
    WARPS_X = TX // ACROSS
    STEP_M, STEP_N = TY // DOWN * MMA_ROWS, WARPS_X * MMA_COLUMNS
    TILES_M, TILES_N = BM // STEP_M, BN // STEP_N
    DEPTH = 16 if halves else 8  # of one instruction
    FURTHER_A, FURTHER_B = 4 * LINE_A, DEPTH // 2 * LINE_B

    @inlined
    def word_a(pointer, i):
        return one(load(pointer, i))

    if halves:

        @inlined
        def word_b(pointer, i):
            return one(pack_halves(load(pointer, i), load(pointer, i + LINE_B)))

    else:

        @inlined
        def word_b(pointer, i):
            return one(round_tf32(load(pointer, i)))

    def tile_a(pointer, i):
        upper = concatenate(word_a(pointer, i), word_a(pointer, i + DOWN))
        return concatenate(upper, concatenate(word_a(pointer, i + FURTHER_A), word_a(pointer, i + FURTHER_A + DOWN)))

    def tile_b(pointer, i):
        return concatenate(word_b(pointer, i), word_b(pointer, i + FURTHER_B))

    read_a, read_b = _chain(tile_a, TILES_M, STEP_M), _chain(tile_b, TILES_N, STEP_N)

    @inlined
    def begin(thread):
        warp, lane = thread // WARP, thread % WARP
        row, column = i32(warp // WARPS_X * MMA_ROWS + lane // ACROSS), i32(warp % WARPS_X * MMA_COLUMNS + lane // ACROSS)
        return i32(lane % ACROSS * LINE_A + row), i32(lane % ACROSS * STEPS * LINE_B + column)

    def step(sums, operands, k):
        a, b = operands
        return mma(sums, read_a(a, k * (DEPTH // STEPS) * LINE_A), read_b(b, k * DEPTH * LINE_B))

    def write_pairs(sums, operands, j):
        """A lane's two pairs of one tile."""
        pointer, part, at = operands
        first = (part * TILES_N + j) * 4
        for h in range(2):
            store(pointer, i32(at + h * DOWN * LINE_B + j * STEP_N), pick(sums, first + 2 * h))
            store(pointer, i32(at + h * DOWN * LINE_B + j * STEP_N + 1), pick(sums, first + 2 * h + 1))
        return sums

    write_tiles = repeated(write_pairs, TILES_N)

    @inlined
    def write(pointer, sums, part, thread):
        warp, lane = thread // WARP, thread % WARP
        row, column = warp // WARPS_X * MMA_ROWS + lane // ACROSS, warp % WARPS_X * MMA_COLUMNS + lane % ACROSS * 2
        write_tiles(sums, (pointer, part, i32(row * LINE_B + column)), 0)

    return Fragments(STEPS, LINE_A, LINE_B, TILES_M * TILES_N * 4, TILES_M, begin, repeated(step, BK // DEPTH), write)
