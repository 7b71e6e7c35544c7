"""The vector type: arithmetic, broadcasts, masked forms and the transpose, for every element type it takes."""

import numba
import numpy as np
import pytest

from fastconv.backends._simd import (
    advance,
    fma,
    lane_count,
    load,
    load_alternate,
    load_first,
    pointer,
    splat,
    store,
    store_first,
    transpose_block,
    transpose_chosen,
    zero,
)

DTYPES = ("float32", "float64", "int32", "int64")


@numba.njit
def formula(x, y, result, lanes):
    for i in range(0, x.size, lanes):
        a, b = load(pointer(x, 0), i), load(pointer(y, 0), i)
        store(pointer(result, 0), i, fma(a, b, a + b) - a * splat(pointer(y, 0), 1) + zero(pointer(x, 0)))


@numba.njit
def first_lanes(x, result, count):
    store_first(pointer(result, 0), 0, load_first(pointer(x, 0), 0, count), count + 1)


@numba.njit
def alternate(x, result):
    store(pointer(result, 0), 0, load_alternate(pointer(x, 0), 1))


@numba.njit
def turn(x, pitch, rows, columns, result, result_pitch, width):
    transpose_block(advance(pointer(x, 0), 0), pitch, rows, columns, pointer(result, 0), result_pitch, width)


@numba.njit
def turn_chosen(x, pitch, rows, columns, offsets, first, result, result_pitch):
    transpose_chosen(pointer(x, 0), pitch, rows, columns, pointer(offsets, 0), offsets.size, first, pointer(result, 0), result_pitch)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_formula_over_vectors(dtype):
    lanes = lane_count(dtype)
    x, y = (np.random.default_rng(seed).integers(-9, 9, 3 * lanes).astype(dtype) for seed in (0, 1))
    result = np.empty_like(x)
    formula(x, y, result, lanes)
    np.testing.assert_array_equal(result, x * y + (x + y) - x * y[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_masked_forms_touch_only_their_lanes(dtype):
    """The lane after the loaded ones is written as zero, those beyond keep what they had; -1 and more than all are cut."""
    lanes = lane_count(dtype)
    x = np.arange(1, 2 * lanes + 1).astype(dtype)
    for count in (-1, 0, 1, lanes - 1, lanes, lanes + 3):
        result = np.full(2 * lanes, 77, dtype)
        first_lanes(x, result, count)
        kept = min(max(count, 0), lanes)
        written = min(max(count + 1, 0), lanes)
        expected = np.full(2 * lanes, 77, dtype)
        expected[:written] = 0
        expected[:kept] = x[:kept]
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_other_element(dtype):
    lanes = lane_count(dtype)
    x = np.arange(2 * lanes + 1).astype(dtype)
    result = np.empty(lanes, dtype)
    alternate(x, result)
    np.testing.assert_array_equal(result, x[1::2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_transpose_of_whole_and_ragged_blocks(dtype):
    """Rows that are not there count as zeros; columns and lanes beyond those asked for are not written."""
    lanes = lane_count(dtype)
    x = np.arange(1, lanes * (lanes + 1) + 1).reshape(lanes, lanes + 1).astype(dtype)
    for rows, columns, width in ((lanes, lanes, lanes), (lanes - 1, lanes, lanes), (lanes, 1, 1), (1, lanes, lanes - 1)):
        result = np.full((lanes + 1, lanes + 2), 77, dtype)
        turn(x.ravel(), lanes + 1, rows, columns, result.ravel(), lanes + 2, width)
        expected = np.full_like(result, 77)
        block = np.where(np.arange(lanes)[:, None] < rows, x[:, :lanes], 0)
        expected[:columns, :width] = block.T[:columns, :width]
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_chosen_columns_of_a_transpose(dtype):
    """Columns in any order; rows that are not there are zeros, and their memory is not touched."""
    lanes = lane_count(dtype)
    rows, columns = max(1, lanes - 1), max(1, lanes // 2)
    x = np.arange(rows * columns).astype(dtype)
    offsets = np.arange(columns)[::-1].copy() + 5
    result = np.full((columns, lanes + 1), 77, dtype)
    turn_chosen(x, columns, rows, columns, offsets, 5, result, lanes + 1)
    np.testing.assert_array_equal(result[:, :rows], x.reshape(rows, columns)[:, ::-1].T)
    assert (result[:, rows:lanes] == 0).all() and (result[:, lanes] == 77).all()
