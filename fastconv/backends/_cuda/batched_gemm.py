"""Many products of matrices of one shape, both factors packed: row by row of the depth, lanes of wide copies side by side.

    c[split][n] = sum over k of a split's depth of  a[n][k]^T b[n][k]          a (depth, rows), b (depth, columns)

The main loop is `gemm`'s. The copies fill up with zeros what lies beyond the depth, so that the factors need not be filled up there; what
lies beyond the rows and columns, up to their pitches, may be anything.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from . import (
    advance,
    copy_async,
    copy_commit,
    copy_wait,
    cuda,
    i32,
    inlined,
    pick4,
    quotient,
    remainder,
    shared_memory,
    store4,
    zeros,
)
from .compiling import Code, repeated
from .fragments import Tile, fragments_of

__all__ = ["PITCH", "Batch", "batched_gemm_code", "stage_bytes"]

COPY_BYTES = 16  # of a wide copy
WIDE = 4
PITCH = 32  # elements whose multiples the pitches are: a cache line of float32


class Batch(NamedTuple):
    """Products of one shape; pitches count elements."""

    batch: int
    splits: int  # of the depth
    chunk: int  # steps of a split
    rows: int
    columns: int
    depth: int
    a_pitch: int
    b_pitch: int
    c_pitch: int
    part: int  # elements of a split's result


def stage_bytes(tile: Tile, dtype: str) -> int:
    """Shared memory of a block: both factors' stages."""
    fragments = fragments_of(tile, dtype)
    return tile.stages * tile.depth * (fragments.line_a + fragments.line_b) * np.dtype(dtype).itemsize


@functools.cache
def batched_gemm_code(tile: Tile, dtype: str) -> Code:
    """The kernel: a block a tile of a product, or of a split of it."""
    BM, BN, BK, TY, TX, STAGES = tile
    NT = tile.threads
    fragments = fragments_of(tile, dtype)
    STAGE_A, STAGE_B, SUMS = BK * fragments.line_a, BK * fragments.line_b, fragments.sums
    START_B = STAGES * STAGE_A
    AHEAD = STAGES - 2  # stages that may be under way when one is needed
    GROUPS_M, GROUPS_N = BM // TY // WIDE, BN // TX // WIDE
    STEP_M, STEP_N = BM // GROUPS_M, BN // GROUPS_N
    ACROSS = BN // TX
    begin_a, copy_a = _wide_copies(BM, fragments.line_a, tile, dtype)
    begin_b, copy_b = _wide_copies(BN, fragments.line_b, tile, dtype)
    multiply, place = fragments.multiply, fragments.begin

    def write_row(sums, operands, i):
        c, row, across, g = operands
        m = i32(row + (i // WIDE * STEP_M + i % WIDE))
        if m < g.rows:
            for b in range(GROUPS_N):
                n = i32(across + b * STEP_N)
                if n < g.c_pitch:
                    store4(c, i32(i32(m * g.c_pitch) + n), pick4(sums, i * ACROSS + b * WIDE))
        return sums

    write = repeated(write_row, BM // TY)

    def batched_gemm(a, b, c, g):
        thread = i32(cuda.threadIdx.x)
        number, split = remainder(cuda.blockIdx.z, g.batch), quotient(cuda.blockIdx.z, g.batch)
        n0, m0 = i32(cuda.blockIdx.x * BN), i32(cuda.blockIdx.y * BM)
        first, end = i32(split * g.chunk), i32(min(g.depth, (split + 1) * g.chunk))
        blocks = quotient(end - first + BK - 1, BK) if end > first else i32(0)
        number = np.int64(number)
        step, to_a, from_a, end_a = begin_a(thread, m0, first, end, g.a_pitch)
        _, to_b, from_b, end_b = begin_b(thread, n0, first, end, g.b_pitch)
        source_a, source_b = advance(a, number * g.depth * g.a_pitch + from_a), advance(b, number * g.depth * g.b_pitch + from_b)
        memory = shared_memory(a)
        for stage in range(STAGES - 1):
            if stage < blocks:
                copy_a(advance(memory, i32(to_a + stage * STAGE_A)), source_a, g.a_pitch, step, end_a)
                copy_b(advance(memory, i32(to_b + (START_B + stage * STAGE_B))), source_b, g.b_pitch, step, end_b)
                source_a, source_b, step = advance(source_a, BK * g.a_pitch), advance(source_b, BK * g.b_pitch), i32(step + BK)
            copy_commit()
        row, across = place(thread)
        sums = zeros(a, SUMS)
        reading, writing = i32(0), i32(STAGES - 1)
        for block in range(blocks):
            copy_wait(AHEAD)
            cuda.syncthreads()
            if block + STAGES - 1 < blocks:
                copy_a(advance(memory, i32(to_a + writing * STAGE_A)), source_a, g.a_pitch, step, end_a)
                copy_b(advance(memory, i32(to_b + (START_B + writing * STAGE_B))), source_b, g.b_pitch, step, end_b)
                source_a, source_b, step = advance(source_a, BK * g.a_pitch), advance(source_b, BK * g.b_pitch), i32(step + BK)
            copy_commit()
            rows, columns = i32(reading * STAGE_A + row), i32(START_B + reading * STAGE_B + across)
            sums = multiply(sums, (advance(memory, rows), advance(memory, columns)), 0)
            reading = i32(reading + 1) if reading < STAGES - 1 else i32(0)
            writing = i32(writing + 1) if writing < STAGES - 1 else i32(0)
        result = advance(c, np.int64(split) * g.part + number * g.rows * g.c_pitch)
        write(sums, (result, i32(m0 + row), i32(n0 + across), g), 0)

    name = f"batched_gemm.{'x'.join(map(str, tile))}.{dtype}"
    return Code(name, batched_gemm, (dtype,) * 3, Batch, 0, NT, 2 if NT == 256 else 1)


def _wide_copies(lanes: int, pitch_here: int, tile: Tile, dtype: str) -> tuple[Callable, Callable]:
    """How a thread copies stages of a factor to rows `pitch_here` apart: where it begins, and a stage."""
    wide = COPY_BYTES // np.dtype(dtype).itemsize
    per_row = lanes // wide
    rows, copies = tile.threads // per_row, lanes * tile.depth // (wide * tile.threads)

    def begin(thread, first_lane, first, end, pitch):
        """A thread's first step; its first element in shared memory and in the factor; the steps' end, 0 for lanes beyond the last."""
        row, lane = i32(thread // per_row), i32(thread % per_row * wide)
        own = i32(first_lane + lane)
        return i32(first + row), i32(row * pitch_here + lane), i32(i32(i32(first + row) * pitch) + own), end if own < pitch else i32(0)

    def copy(target, source, pitch, step, end):
        for j in range(copies):
            copy_async(target, j * rows * pitch_here, source, i32(j * rows * pitch), wide, i32(step + j * rows) < end)

    return inlined(begin), inlined(copy)
