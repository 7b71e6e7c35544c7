"""Products of spectra: for each frequency, a product of complex matrices; `fft` says how spectra lie.

    y[row, column] = sum over terms of  z[term, column] conj(w[term, row])

A block has a tile of rows and columns for one block of frequencies, and a warp for each of these, so that the threads of a warp share
what they read. The terms pass through shared memory in stages, copied while the stages before are multiplied. Where a term and a
column begin stands in tables.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from . import (
    SIMULATED,
    advance,
    concatenate,
    copy_async,
    copy_commit,
    copy_wait,
    cuda,
    fetch,
    fetch_each,
    i32,
    inlined,
    load,
    load4,
    outer_product,
    pick,
    quotient,
    remainder,
    shared_memory,
    store,
    store_each,
    traced,
    zeros,
)
from .compiling import Code, repeated
from .fft import ITEM, VECTOR
from .fourier import part_of

__all__ = ["COLUMNS", "ROWS", "STAGE_TERMS", "Products", "multiply_code", "shared_bytes"]

WIDE = 4  # elements of a wide load
DOWN, ACROSS = (1, 2) if SIMULATED else (4, 8)  # threads of a warp
GROUPS = 1 if SIMULATED else 2  # of four rows of a thread
ROWS, COLUMNS = GROUPS * WIDE * DOWN, WIDE * ACROSS  # of a block
STAGE_TERMS = 2 if SIMULATED else 4
STAGES = 3
LDA, LDB = ROWS + WIDE, COLUMNS + WIDE  # elements between rows of shared memory
STAGE_A, STAGE_B = STAGE_TERMS * ITEM * LDA, STAGE_TERMS * ITEM * LDB
PITCH = ITEM + 1  # between items of the result on their way out
THREADS = VECTOR * DOWN * ACROSS
SLOTS = THREADS // ITEM  # items that are copied at a time
ROW_COPIES, COLUMN_COPIES = ROWS // SLOTS, COLUMNS // SLOTS  # of a thread, for each term
SUMS = GROUPS * WIDE * WIDE  # of a thread


class Products(NamedTuple):
    """The matrices of a frequency; offsets count items."""

    rows: int
    columns: int
    terms: int
    blocks: int  # of frequencies
    w_items: int
    w_group: int
    w_row: int
    z_items: int
    z_group: int
    y_items: int


def shared_bytes(dtype: str) -> int:
    """Shared memory of a block."""
    return STAGES * (STAGE_A + STAGE_B) * np.dtype(dtype).itemsize


@functools.cache
def multiply_code(dtype: str) -> Code:
    """The kernel; `terms` has the offsets of z and w of each term, `columns` that of each column in z."""
    fragment = _fragment()
    negative = traced(lambda values: [-value for value in values])
    AHEAD = STAGES - 2
    assert DOWN * COLUMNS * PITCH <= STAGES * (STAGE_A + STAGE_B)

    def step(sums, operands, k):
        a, b = operands
        w, w_imaginary = fragment(a, k * (ITEM * LDA)), fragment(a, (k * ITEM + VECTOR) * LDA)
        z, z_imaginary = load4(b, k * (ITEM * LDB)), load4(b, (k * ITEM + VECTOR) * LDB)
        real = outer_product(outer_product(sums[0], w, z), w_imaginary, z_imaginary)
        imaginary = outer_product(outer_product(sums[1], w, z_imaginary), w_imaginary, negative(z))
        return real, imaginary

    multiply = repeated(step, STAGE_TERMS)

    def copy_column(state, operands, r):
        target, z, items, offset, slot, part, first, columns, known = operands
        column = i32(slot + r * SLOTS)
        inside = known and first + column < columns
        copy_async(target, part * LDB + column, z, i32((pick(items, r) + offset) * ITEM + part) if inside else i32(0), 1, inside)
        return state

    copy_columns = repeated(copy_column, COLUMN_COPIES)

    @inlined
    def copy_stage(memory, stage, w, z, terms, items, g, slot, part, m0, n0, first):
        for k in range(STAGE_TERMS):
            term = i32(first + k)
            known = term < g.terms
            own = i32(2 * term) if known else i32(0)
            z_offset, w_offset = fetch(terms, own), fetch(terms, own + 1)
            target = advance(memory, i32(stage * STAGE_A + k * (ITEM * LDA)))
            for r in range(ROW_COPIES):
                row = i32(slot + r * SLOTS)
                inside = known and m0 + row < g.rows
                item = i32((m0 + row) * g.w_row + w_offset) if inside else i32(0)
                copy_async(target, part * LDA + row, w, item * ITEM + part, 1, inside)
            target = advance(memory, i32(STAGES * STAGE_A + stage * STAGE_B + k * (ITEM * LDB)))
            copy_columns(0, (target, z, items, z_offset, slot, part, n0, g.columns, known), 0)

    def write_row(state, operands, values, r):
        """Write a row of each thread's, through shared memory, in runs of frequencies."""
        memory, y, g, down, column, frequency, m0, n0 = operands
        thread = i32(cuda.threadIdx.x)
        cuda.syncthreads()
        own = advance(memory, i32((down * COLUMNS + column) * PITCH + frequency))
        store_each(own, 0, PITCH, state)
        store_each(own, VECTOR, PITCH, values)
        cuda.syncthreads()
        for index in range(thread, DOWN * COLUMNS * ITEM, THREADS):
            item, part = i32(index // ITEM), i32(index % ITEM)
            m = i32(m0 + r // WIDE * (ROWS // GROUPS) + item // COLUMNS * WIDE + r % WIDE)
            n = i32(n0 + item % COLUMNS)
            if m < g.rows and n < g.columns:
                store(y, (m * g.columns + n) * ITEM + part, load(memory, item * PITCH + part))

    write_rows = _for_each_row(inlined(write_row))

    def multiply_spectra(w, z, terms, columns, y, g):
        thread = i32(cuda.threadIdx.x)
        block, group = remainder(cuda.blockIdx.z, g.blocks), quotient(cuda.blockIdx.z, g.blocks)
        n0, m0 = i32(cuda.blockIdx.x * COLUMNS), i32(cuda.blockIdx.y * ROWS)
        w = advance(w, (np.int64(block) * g.w_items + group * g.w_group) * ITEM)
        z = advance(z, (np.int64(block) * g.z_items + group * g.z_group) * ITEM)
        y = advance(y, (np.int64(block) * g.y_items + np.int64(group) * g.rows * g.columns) * ITEM)
        memory = shared_memory(w)
        slot, part = i32(thread // ITEM), i32(thread % ITEM)
        items = fetch_each(columns, n0 + slot, SLOTS, COLUMN_COPIES)
        count = quotient(g.terms + STAGE_TERMS - 1, STAGE_TERMS)
        for stage in range(STAGES - 1):
            if stage < count:
                copy_stage(memory, stage, w, z, terms, items, g, slot, part, m0, n0, i32(stage * STAGE_TERMS))
            copy_commit()
        frequency, lane = thread // (DOWN * ACROSS), thread % (DOWN * ACROSS)
        down, column = i32(lane // ACROSS), i32(lane % ACROSS * WIDE)
        own_a = i32(frequency * LDA + down * WIDE)
        own_b = i32(STAGES * STAGE_A + frequency * LDB + column)
        sums = zeros(w, SUMS), zeros(w, SUMS)
        reading, writing = i32(0), i32(STAGES - 1)
        for number in range(count):
            copy_wait(AHEAD)
            cuda.syncthreads()
            if number + STAGES - 1 < count:
                first = i32((number + STAGES - 1) * STAGE_TERMS)
                copy_stage(memory, writing, w, z, terms, items, g, slot, part, m0, n0, first)
            copy_commit()
            sums = multiply(sums, (advance(memory, i32(own_a + reading * STAGE_A)), advance(memory, i32(own_b + reading * STAGE_B))), 0)
            reading = i32(reading + 1) if reading < STAGES - 1 else i32(0)
            writing = i32(writing + 1) if writing < STAGES - 1 else i32(0)
        write_rows(sums, (memory, y, g, down, column, frequency, m0, n0))

    return Code(f"fft_multiply.{dtype}", multiply_spectra, (dtype, dtype, "int32", "int32", dtype), Products, 0, THREADS, 2)


def _fragment() -> Callable:
    """A thread's rows of one part of one term: groups of four."""
    if GROUPS == 1:
        return inlined(lambda pointer, i: load4(pointer, i))
    return inlined(lambda pointer, i: concatenate(load4(pointer, i), load4(pointer, i + ROWS // GROUPS)))


def _for_each_row(write: Callable, row: int = 0) -> Callable:
    """`write(real parts, operands, imaginary parts, row)` for each of a thread's rows, from `row` on."""
    own = part_of(row * WIDE, WIDE)
    if row == GROUPS * WIDE - 1:
        return inlined(lambda sums, operands: write(own(sums[0]), operands, own(sums[1]), row))
    rest = _for_each_row(write, row + 1)

    def both(sums, operands):
        write(own(sums[0]), operands, own(sums[1]), row)
        rest(sums, operands)

    return inlined(both)
