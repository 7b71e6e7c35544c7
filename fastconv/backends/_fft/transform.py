"""The transform of one real tile of 2 rows x columns points, and its inverse.

    fold       z[r, c] = (x[r, c] + i x[r + rows, c]) exp(i pi r / (2 rows)): a complex tile of half as many rows, whose cyclic
               convolution is a negacyclic one of x along the columns; no unpacking of a real transform
    columns    a transform of `rows` points down each column, as two passes over vectors of neighbouring columns
    turn       blocks are transposed, so that vectors now hold frequencies
    rows       a transform of `columns` points along each row, as two passes over vectors of frequencies

Frequencies stay in the order in which the passes leave them, the same for images and kernels. A long line (1-D) is read as
the rows of a tile one after the other; one more table of factors between columns and rows makes the whole line negacyclic.

A transformed tile is [block of frequencies][column][real, imaginary][lane]. Wrapped-around points are never used.

Source: Bernstein, "Multidigit multiplication for mathematicians" (2001), section 4 (the fold, there the "right-angle"
convolution); Van Loan, "Computational Frameworks for the Fast Fourier Transform" (1992), section 3.2 (the four-step form).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from .._jit import outlined
from .._scratch import ALIGNMENT
from .._simd import advance, fma, lane_count, lanes_of, load, store, zero
from .._simd.fourier import AFTER, BEFORE, PLAIN, turn_square
from .codelets import RADICES, call_pass, call_product, pass_address, product_address


class Transform(NamedTuple):
    """Sizes of a tile's transform and the addresses of its passes; integers only, as the kernels take it."""

    rows: int  # of the complex tile: half the real one's
    columns: int
    blocks: int  # of `lanes` frequencies
    pitch: int  # of a row of the staged tile
    line: int  # 1 where the tile is one long line
    row_first: int  # radices
    row_second: int
    column_first: int
    column_second: int
    row_first_pass: int  # addresses
    row_second_pass: int
    column_first_pass: int
    column_second_pass: int
    product_pass: int
    column_twiddles: int  # offsets in the table of factors
    row_twiddles: int
    unfold: int
    line_factors: int
    lanes: int
    staged: int  # elements of a staged tile, with room for a vector that runs over its end
    spectrum: int  # of a transformed tile
    strip: int  # of a strip of columns as wide as a vector, transformed


def split_length(length: int) -> tuple[int, int]:
    """The two radices of a length, the larger one first (its pass has no factors to apply along rows)."""
    return max((a, length // a) for a in RADICES if length % a == 0 and a <= length // a in RADICES)[::-1]


@functools.lru_cache(maxsize=256)
def make_transform(rows: int, columns: int, line: bool, dtype: str) -> tuple[Transform, np.ndarray]:
    """The transform of a tile of 2 rows x columns real points, and its table of factors."""
    lanes = lane_count(dtype)
    row_first, row_second = split_length(rows)
    column_first, column_second = split_length(columns)
    blocks = -(-rows // lanes)
    pitch = columns
    if not line and columns & (columns - 1) == 0:
        pitch += lanes  # rows a power of two apart would meet in a few sets of the first-level cache
    tables = _tables(rows, columns, line, lanes)
    offsets = np.cumsum([0] + [table.size for table in tables])
    numbers: tuple[int, ...] = (
        rows, columns, blocks, pitch, int(line), row_first, row_second, column_first, column_second,
        *(pass_address(radix, dtype) for radix in (row_first, row_second, column_first, column_second)),
        product_address(column_second, dtype), *(int(offset) for offset in offsets[1:5]), lanes,
        -(-2 * rows * pitch // lanes) * lanes + 2 * lanes, blocks * columns * 2 * lanes, blocks * lanes * 2 * lanes)
    return Transform(*numbers), _on_a_line(np.concatenate([table.ravel() for table in tables]).astype(dtype))


def _on_a_line(table: np.ndarray) -> np.ndarray:
    """A copy that begins at a cache line."""
    whole = np.empty(table.nbytes + ALIGNMENT, np.uint8)
    start = -whole.ctypes.data % ALIGNMENT
    copy = whole[start:start + table.nbytes].view(table.dtype)
    copy[:] = table
    return copy


def _tables(rows: int, columns: int, line: bool, lanes: int) -> list[np.ndarray]:
    """Factors: fold, between the passes down the columns, between those along the rows, unfold with the scale, line."""
    (r1, r2), (c1, c2) = split_length(rows), split_length(columns)
    fold = np.exp(0.5j * np.pi / rows * (np.arange(r2)[:, None] + r2 * np.arange(r1)))
    down = np.exp(-2j * np.pi / rows * np.arange(r1)[:, None] * np.arange(r2))
    along = np.exp(-2j * np.pi / columns * np.arange(c1)[:, None] * np.arange(c2))
    tables = [np.stack([table.real, table.imag], axis=-1) for table in (fold, down, along, fold / (rows * columns))]
    factors = np.zeros((0, columns, 2, lanes))
    if line:
        places = np.arange(rows)
        frequency = np.pad(places // r2 + r1 * (places % r2), (0, -rows % lanes)).reshape(-1, 1, lanes)
        place = np.arange(columns)[:, None]
        turns = np.exp(-2j * np.pi / (rows * columns) * (frequency - 0.25) * place)
        factors = np.stack([turns.real, turns.imag], axis=2)
    return [*tables, factors]


@outlined
def turn_blocks(source, source_block, target, target_block, blocks):
    """Transpose squares of complex elements, `lanes` rows of them a block."""
    lanes = lanes_of(source)
    for block in range(blocks):
        for part in range(2):
            turn_square(advance(source, block * source_block + part * lanes), 2 * lanes,
                        advance(target, block * target_block + part * lanes), 2 * lanes)


@outlined
def multiply_line(tile, factors, count, sign):
    """tile *= factors (sign 1) or their conjugates (sign -1), complex vectors."""
    lanes = lanes_of(tile)
    for i in range(0, 2 * count * lanes, 2 * lanes):
        real, imaginary = load(tile, i), load(tile, i + lanes)
        cosine, sine = load(factors, i), load(factors, i + lanes)
        if sign > 0:
            store(tile, i, real * cosine - imaginary * sine)
            store(tile, i + lanes, fma(real, sine, imaginary * cosine))
        else:
            store(tile, i, fma(real, cosine, imaginary * sine))
            store(tile, i + lanes, imaginary * cosine - real * sine)


@outlined
def transform_columns(t, factors, staged, columns, strip, tile):
    """Fold and transform the first `columns` columns of a staged tile; the tile's others are taken as zero."""
    lanes = t.lanes
    pair = 2 * lanes
    strips = -(-columns // lanes)
    for i in range(strips):
        column = min(i * lanes, t.columns - lanes)
        call_pass(t.row_first_pass, advance(staged, column), t.row_second * t.pitch, t.rows * t.pitch, t.pitch,
                  strip, t.row_second * pair, lanes, pair, factors, BEFORE, t.row_second)
        call_pass(t.row_second_pass, strip, pair, lanes, t.row_second * pair, strip, pair, lanes, t.row_second * pair,
                  advance(factors, t.column_twiddles), BEFORE, t.row_first)
        turn_blocks(strip, pair * lanes, advance(tile, column * pair), t.columns * pair, t.blocks)
    done = min(strips * lanes, t.columns)
    if done < t.columns:
        for block in range(t.blocks):
            for i in range((block * t.columns + done) * pair, (block + 1) * t.columns * pair, lanes):
                store(tile, i, zero(tile))


@outlined
def transform_rows(t, factors, tile, spectrum, pitch):
    """The rows' transform; frequency vector f of the tile goes to spectrum[f * pitch]."""
    lanes = t.lanes
    pair = 2 * lanes
    for block in range(t.blocks):
        row = advance(tile, block * t.columns * pair)
        if t.line:
            multiply_line(row, advance(factors, t.line_factors + block * t.columns * pair), t.columns, 1)
        call_pass(t.column_first_pass, row, t.column_second * pair, lanes, pair, row, t.column_second * pair, lanes, pair, factors,
                  PLAIN, t.column_second)
        call_pass(t.column_second_pass, row, pair, lanes, t.column_second * pair, advance(spectrum, block * t.columns * pitch), pitch,
                  lanes, t.column_second * pitch, advance(factors, t.row_twiddles), BEFORE, t.column_first)


@outlined
def multiply_rows(t, factors, tile, spectrum):
    """The rows' transform, the product with a conjugate spectrum, and the inverse, in place."""
    lanes = t.lanes
    pair = 2 * lanes
    for block in range(t.blocks):
        at = block * t.columns * pair
        row = advance(tile, at)
        swapped = advance(row, lanes)
        if t.line:
            multiply_line(row, advance(factors, t.line_factors + at), t.columns, 1)
        call_pass(t.column_first_pass, row, t.column_second * pair, lanes, pair, row, t.column_second * pair, lanes, pair, factors,
                  PLAIN, t.column_second)
        call_pass(t.column_second_pass, row, pair, lanes, t.column_second * pair, row, pair, lanes, t.column_second * pair,
                  advance(factors, t.row_twiddles), BEFORE, t.column_first)
        call_product(t.product_pass, row, advance(spectrum, at), advance(factors, t.row_twiddles), t.column_first)
        call_pass(t.column_first_pass, swapped, t.column_second * pair, -lanes, pair, swapped, t.column_second * pair, -lanes, pair,
                  factors, PLAIN, t.column_second)
        if t.line:
            multiply_line(row, advance(factors, t.line_factors + at), t.columns, -1)


@outlined
def invert_rows(t, factors, spectrum, pitch, tile):
    """The inverse of `transform_rows`, times the columns."""
    lanes = t.lanes
    pair = 2 * lanes
    for block in range(t.blocks):
        row = advance(tile, block * t.columns * pair)
        swapped = advance(row, lanes)
        call_pass(t.column_second_pass, advance(spectrum, block * t.columns * pitch + lanes), pitch, -lanes, t.column_second * pitch,
                  swapped, pair, -lanes, t.column_second * pair, advance(factors, t.row_twiddles), AFTER, t.column_first)
        call_pass(t.column_first_pass, swapped, t.column_second * pair, -lanes, pair, swapped, t.column_second * pair, -lanes, pair,
                  factors, PLAIN, t.column_second)
        if t.line:
            multiply_line(row, advance(factors, t.line_factors + block * t.columns * pair), t.columns, -1)


@outlined
def invert_columns(t, factors, tile, columns, strip, staged):
    """The inverse of `transform_columns` for the first `columns` columns, scaled."""
    lanes = t.lanes
    pair = 2 * lanes
    swapped = advance(strip, lanes)
    below = t.rows * t.pitch
    for i in range(-(-columns // lanes)):
        column = min(i * lanes, t.columns - lanes)
        turn_blocks(advance(tile, column * pair), t.columns * pair, strip, pair * lanes, t.blocks)
        call_pass(t.row_second_pass, swapped, pair, -lanes, t.row_second * pair, swapped, pair, -lanes, t.row_second * pair,
                  advance(factors, t.column_twiddles), AFTER, t.row_first)
        call_pass(t.row_first_pass, swapped, t.row_second * pair, -lanes, pair, advance(staged, column + below),
                  t.row_second * t.pitch, -below, t.pitch, advance(factors, t.unfold), AFTER, t.row_second)
