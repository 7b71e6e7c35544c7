"""The compiled building blocks of the engine, each called through its address.

A pass of radix r is `count` transforms of r complex vectors; a product of spectra is a register tile. They are compiled
on their own, so that one set serves every tile length, and an engine of any lengths compiles nothing new.
"""

from __future__ import annotations

import functools

import numpy as np
from numba import types
from numba.extending import intrinsic

from .._jit import address_of, addressed
from .._simd import VECTOR_REGISTERS, advance, lanes_of, prefetch_read
from .._simd.emit import call_by_address, pointer_to
from .._simd.fourier import AFTER, BEFORE, PLAIN, butterfly, product_butterfly, spectra_load, spectra_step, spectra_store, spectra_zeros

RADICES = (4, 5, 6, 8, 10, 12, 16)  # their products of two are spaced by a quarter at most
LENGTHS = tuple(sorted({a * b for a in RADICES for b in RADICES}))
# Output channels and tiles of a register tile of complex sums: 24 of 32 registers, or 8 of 16
SUM_ROWS, SUM_COLUMNS = (4, 3) if VECTOR_REGISTERS == 32 else (2, 2)


def make_pass(radix: int):
    """`count` transforms of one radix; `place` says where the twiddle factors are, radix of them for each transform."""

    @addressed
    def radix_pass(source, source_step, source_imaginary, source_next, target, target_step, target_imaginary, target_next, twiddles,
                   place, count):
        if place == BEFORE:
            for i in range(count):
                butterfly(advance(source, i * source_next), source_step, source_imaginary, advance(target, i * target_next), target_step,
                          target_imaginary, advance(twiddles, 2 * radix * i), radix, BEFORE)
        elif place == AFTER:
            for i in range(count):
                butterfly(advance(source, i * source_next), source_step, source_imaginary, advance(target, i * target_next), target_step,
                          target_imaginary, advance(twiddles, 2 * radix * i), radix, AFTER)
        else:
            for i in range(count):
                butterfly(advance(source, i * source_next), source_step, source_imaginary, advance(target, i * target_next), target_step,
                          target_imaginary, twiddles, radix, PLAIN)

    return radix_pass


def make_product(radix: int):
    """The passes on both sides of the product with a conjugate spectrum, `count` times along a row of frequencies."""

    @addressed
    def product_pass(source, spectrum, twiddles, count):
        step = 2 * radix * lanes_of(source)
        for i in range(count):
            product_butterfly(advance(source, i * step), advance(spectrum, i * step), advance(twiddles, 2 * radix * i), radix)

    return product_pass


def make_sum(rows: int, columns: int):
    """target[r][c] (+)= sum over k of  x[k][c] * conj(w[k][r]), one vector of frequencies.

    Meanwhile a share of the next block's rows is fetched from beyond the second-level cache (a fifth faster).
    """

    @addressed
    def sum_tile(depth, x, x_next, w, w_next, ahead, target, target_pitch, going_on):
        if going_on:
            tile = spectra_load(target, target_pitch, rows, columns)
        else:
            tile = spectra_zeros(target, rows, columns)
        for k in range(depth):
            prefetch_read(ahead, k * w_next)
            prefetch_read(ahead, k * w_next + lanes_of(x))
            tile = spectra_step(tile, advance(x, k * x_next), advance(w, k * w_next), rows)
        spectra_store(target, target_pitch, tile, rows)

    return sum_tile


PASSES = {radix: make_pass(radix) for radix in RADICES}
PRODUCTS = {radix: make_product(radix) for radix in RADICES}
SUMS = {columns: make_sum(SUM_ROWS, columns) for columns in range(1, SUM_COLUMNS + 1)}


def _pass_types(pointer: types.CPointer) -> tuple[types.Type, ...]:
    words = (types.int64,) * 3
    return (pointer, *words, pointer, *words, pointer, types.int64, types.int64)


def _product_types(pointer: types.CPointer) -> tuple[types.Type, ...]:
    return (pointer, pointer, pointer, types.int64)


def _sum_types(pointer: types.CPointer) -> tuple[types.Type, ...]:
    word = types.int64
    return (word, pointer, word, pointer, word, pointer, pointer, word, types.boolean)


@functools.cache
def pass_address(radix: int, dtype: str) -> int:
    """Address of a radix's pass."""
    return address_of(PASSES[radix], _pass_types(pointer_to(dtype)))


@functools.cache
def product_address(radix: int, dtype: str) -> int:
    """Address of a radix's product pass."""
    return address_of(PRODUCTS[radix], _product_types(pointer_to(dtype)))


@functools.cache
def sum_addresses(dtype: str) -> np.ndarray:
    """Addresses of the register tiles by their columns."""
    return np.array([0] + [address_of(SUMS[columns], _sum_types(pointer_to(dtype))) for columns in sorted(SUMS)], np.int64)


def prepare(dtype: str) -> None:
    """Compile all of them."""
    for radix in RADICES:
        pass_address(radix, dtype)
        product_address(radix, dtype)
    sum_addresses(dtype)


@intrinsic
def call_pass(typingctx, address, source, source_step, source_imaginary, source_next, target, target_step, target_imaginary,
              target_next, twiddles, place, count):
    """Call a pass."""
    return call_by_address(_pass_types(source))


@intrinsic
def call_product(typingctx, address, source, spectrum, twiddles, count):
    """Call a product pass."""
    return call_by_address(_product_types(source))


@intrinsic
def call_sum(typingctx, address, depth, x, x_next, w, w_next, ahead, target, target_pitch, going_on):
    """Call a register tile of sums."""
    return call_by_address(_sum_types(x))
