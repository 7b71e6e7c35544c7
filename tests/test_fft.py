"""The FFT engine's transforms against numpy.fft: every radix, every axis length, tiles and lines, for both float types."""

import itertools

import numba
import numpy as np
import pytest

from fastconv.backends._fft import codelets, cutting
from fastconv.backends._fft.codelets import LENGTHS, RADICES, pass_address, product_address, sum_addresses
from fastconv.backends._fft.transform import (
    invert_columns,
    invert_rows,
    make_transform,
    multiply_rows,
    split_length,
    transform_columns,
    transform_rows,
)
from fastconv.backends._simd import advance, lane_count, pointer
from fastconv.backends._simd.fourier import AFTER, BEFORE, PLAIN
from fastconv.problem import Options, Problem

FLOATS = ("float32", "float64")
TOLERANCE = {"float32": 1e-6, "float64": 1e-15}
TILES = ((16, 36), (20, 40), (25, 60), (36, 72), (64, 144), (120, 96), (144, 16))


@numba.njit
def run_pass(address, source, target, radix, lanes, factors, place, count, inverse):
    pair = 2 * lanes
    part, sign = (lanes, -lanes) if inverse else (0, lanes)
    codelets.call_pass(
        address, advance(pointer(source, 0), part), pair, sign, radix * pair, advance(pointer(target, 0), part), pair, sign, radix * pair,
        pointer(factors, 0), place, count,
    )  # fmt: skip


@numba.njit
def run_product(address, source, spectrum, factors, count):
    codelets.call_product(address, pointer(source, 0), pointer(spectrum, 0), pointer(factors, 0), count)


@numba.njit
def run_sum(address, depth, x, x_next, w, w_next, y, pitch, going_on):
    codelets.call_sum(
        address, depth, pointer(x, 0), x_next, pointer(w, 0), w_next, pointer(w, 0), pointer(y, 0), pitch, going_on
    )


@numba.njit
def there(t, factors, staged, columns, strip, tile, spectrum):
    transform_columns(t, pointer(factors, 0), pointer(staged, 0), columns, pointer(strip, 0), pointer(tile, 0))
    transform_rows(t, pointer(factors, 0), pointer(tile, 0), pointer(spectrum, 0), 2 * t.lanes)


@numba.njit
def back(t, factors, spectrum, tile, columns, strip, staged):
    invert_rows(t, pointer(factors, 0), pointer(spectrum, 0), 2 * t.lanes, pointer(tile, 0))
    invert_columns(t, pointer(factors, 0), pointer(tile, 0), columns, pointer(strip, 0), pointer(staged, 0))


@numba.njit
def there_and_back(t, factors, staged, spectrum, strip, tile):
    transform_columns(t, pointer(factors, 0), pointer(staged, 0), t.columns, pointer(strip, 0), pointer(tile, 0))
    multiply_rows(t, pointer(factors, 0), pointer(tile, 0), pointer(spectrum, 0))
    invert_columns(t, pointer(factors, 0), pointer(tile, 0), t.columns, pointer(strip, 0), pointer(staged, 0))


def planar(z, dtype):
    """Complex numbers (..., lanes) as the kernels hold them: (..., real and imaginary, lanes)."""
    return np.stack([z.real, z.imag], axis=-2).astype(dtype)


def complex_of(array):
    """The other way round."""
    return array[..., 0, :] + 1j * array[..., 1, :].astype(np.float64)


def random_complex(rng, *shape):
    return rng.standard_normal(shape) + 1j * rng.standard_normal(shape)


def assert_near(actual, desired, dtype):
    assert np.abs(actual - desired).max() <= TOLERANCE[dtype] * np.abs(desired).max()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("radix", RADICES)
def test_passes(radix, dtype):
    """Each radix forwards and backwards, its factors nowhere, before and after; in place too."""
    rng, lanes, count = np.random.default_rng(radix), lane_count(dtype), 3
    z, factors = random_complex(rng, count, radix, lanes), np.exp(2j * np.pi * rng.random((count, radix)))
    table = np.stack([factors.real, factors.imag], axis=-1).astype(dtype).ravel()
    for place, inverse in itertools.product((PLAIN, BEFORE, AFTER), (False, True)):
        used = np.conj(factors[..., None]) if inverse else factors[..., None]
        desired = z * used if place == BEFORE else z
        desired = np.fft.ifft(desired, axis=1) * radix if inverse else np.fft.fft(desired, axis=1)
        desired = desired * used if place == AFTER else desired
        source = planar(z, dtype)
        for target in (np.full_like(source, np.nan), source):
            run_pass(pass_address(radix, dtype), source.ravel(), target.reshape(-1), radix, lanes, table, place, count, inverse)
            assert_near(complex_of(target), desired, dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("radix", RADICES)
def test_products_of_spectra(radix, dtype):
    """The product with a conjugate spectrum, the inverse and its conjugate factors, in one pass."""
    rng, lanes, count = np.random.default_rng(radix), lane_count(dtype), 3
    z, w = random_complex(rng, count, radix, lanes), random_complex(rng, count, radix, lanes)
    factors = np.exp(2j * np.pi * rng.random((count, radix)))
    table = np.stack([factors.real, factors.imag], axis=-1).astype(dtype).ravel()
    array = planar(z, dtype)
    run_product(product_address(radix, dtype), array.reshape(-1), planar(w, dtype).ravel(), table, count)
    assert_near(complex_of(array), np.fft.ifft(z * w.conj(), axis=1) * radix * np.conj(factors[..., None]), dtype)


@pytest.mark.parametrize("dtype", FLOATS)
def test_register_tiles_of_sums(dtype):
    """Every number of columns, from zero and going on."""
    rng, lanes, depth = np.random.default_rng(0), lane_count(dtype), 5
    rows = codelets.SUM_ROWS
    for columns, going_on in itertools.product(range(1, codelets.SUM_COLUMNS + 1), (False, True)):
        x, w = random_complex(rng, depth, columns, lanes), random_complex(rng, depth, rows, lanes)
        y = random_complex(rng, rows, columns, lanes)
        desired = np.einsum("kcl,krl->rcl", x, w.conj()) + (y if going_on else 0)
        sums = planar(y, dtype)
        run_sum(sum_addresses(dtype)[columns], depth, planar(x, dtype).ravel(), columns * 2 * lanes, planar(w, dtype).ravel(),
                rows * 2 * lanes, sums.reshape(-1), columns * 2 * lanes, going_on)  # fmt: skip
        assert_near(complex_of(sums), desired, dtype)


def transformed(x, t, factors, columns=None):
    """The engine's spectrum of a staged tile, (blocks, columns, lanes)."""
    strip, tile = np.zeros(t.strip, x.dtype), np.full(t.spectrum, np.nan, x.dtype)
    spectrum = np.full(t.spectrum, np.nan, x.dtype)
    there(t, factors, x.ravel(), t.columns if columns is None else columns, strip, tile, spectrum)
    return spectrum


def places(t):
    """(row frequency, column frequency) of each frequency of a transformed tile, in the order the passes leave them."""
    (r1, r2), (c1, c2) = split_length(t.rows), split_length(t.columns)
    row, column = np.arange(t.rows), np.arange(t.columns)
    return row // r2 + r1 * (row % r2), column // c2 + c1 * (column % c2)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("rows,columns", TILES)
def test_tiles_against_numpy(rows, columns, dtype):
    """The spectrum of a folded tile, its inverse, and a tile whose last columns are empty."""
    t, factors = make_transform(rows, columns, False, dtype)
    x = np.random.default_rng(rows).standard_normal((2 * rows, t.pitch)).astype(dtype)
    for filled in (columns, columns // 3):
        x[:, filled:] = 0
        spectrum = transformed(x, t, factors, filled)
        folded = (x[:rows, :columns] + 1j * x[rows:, :columns]) * np.exp(0.5j * np.pi * np.arange(rows) / rows)[:, None]
        row, column = places(t)
        got = complex_of(spectrum.reshape(t.blocks, columns, 2, -1)).transpose(0, 2, 1).reshape(-1, columns)
        assert_near(got[:rows], np.fft.fft2(folded)[row][:, column], dtype)
        assert not got[rows:].any(), "lanes beyond the last frequency must stay zero"
    again = np.full_like(x, np.nan)
    back(t, factors, spectrum, np.zeros_like(spectrum), columns, np.zeros(t.strip, dtype), again.reshape(-1))
    assert_near(again[:, :columns], x[:, :columns].astype(np.float64), dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("length", LENGTHS)
def test_correlations_of_every_length(length, dtype):
    """A tile times a conjugate spectrum is the correlation, negacyclic down the columns, cyclic or negacyclic along the rows."""
    for rows, columns, line in ((16, max(length, 16), False), (length, 16, False), (length, 20, True)):
        t, factors = make_transform(rows, columns, line, dtype)
        rng = np.random.default_rng(length)
        x, w = (np.zeros((2 * rows, t.pitch), dtype) for _ in range(2))
        x[:, :columns] = rng.standard_normal((2 * rows, columns))
        w[:3, :4] = rng.standard_normal((3, 4))
        exact = np.zeros((2 * rows, columns))
        for i, j in itertools.product(range(3), range(4)):
            if line:
                flat = np.concatenate([x.ravel(), -x.ravel()]).astype(np.float64)
                exact += w[i, j] * flat[i * columns + j :][: x.size].reshape(x.shape)
            else:
                extended = np.concatenate([x, -x])[:, :columns].astype(np.float64)
                exact += w[i, j] * np.roll(extended[i : i + 2 * rows], -j, axis=1)
        spectrum = transformed(w, t, factors)
        there_and_back(t, factors, x.reshape(-1), spectrum, np.zeros(t.strip, dtype), np.zeros(t.spectrum, dtype))
        assert_near(x[:, :columns], exact, dtype)


def test_tiles_hold_their_kernel():
    """Tiles chosen for kernels of all sizes make every output, and a kernel beyond all tiles is refused by the engine."""
    for size, kernel, stride in itertools.product((5, 40, 300), (1, 2, 9, 31, 64, 200), (1, 3)):
        options = Options(stride=stride, padding=kernel)
        problem = Problem.create("forward", 2, (1, 1, size, size), (1, 1, kernel, kernel), "float32", options)
        cut = cutting.cut_tiles(problem)
        for axis, tiles, step, length in zip((1, 2), cut.tiles, cut.step, (2 * cut.rows, cut.columns), strict=True):
            found = cutting.axis_of(problem, axis)
            assert tiles * step >= found.outputs and (tiles == 1 or step % stride == 0)
            assert length >= (found.whole if tiles == 1 else step + found.extent - 1)
    with pytest.raises(ValueError, match="no tile holds"):
        cutting.cut_tiles(Problem.create("forward", 2, (1, 1, 700, 700), (1, 1, 600, 600), "float32", Options()))
