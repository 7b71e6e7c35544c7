"""Kernels of overlap-save convolution: tiles to spectra, products of spectra to tiles, or both in one kernel.

Two real tiles that meet the same kernel are the parts of one complex tile: its product with the conjugate of a real kernel's spectrum
keeps them apart, and for the gradient of the weights the real part of the product with another such pair sums both correlations. So
spectra are whole, nothing is split up by symmetry, and all threads of a group are busy.

Dimension letters: n image, i j row and column of a tile, h w points, d whatever is summed over besides the blocks of the kernel.
Spectra lie as [block of 8 frequencies][item][part][8]: an item is a pair of tiles of one channel, frequency = n * across + down.
All passes are one form, `Joined`: forward and grad_input sum over channels and blocks of the kernel, grad_weight over images and tiles.
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
    cuda,
    fetch,
    fetch_between,
    fetch_each,
    i32,
    inlined,
    less_unsigned,
    load,
    load_each,
    one,
    pick,
    quotient,
    rectify_each,
    remainder,
    shared_memory,
    store,
    store_between,
    store_each,
    traced,
    zero_of,
    zeros,
)
from .compiling import Code
from .fourier import LANES, conjugate_product, conjugate_sum, group_elements, part_of, tile_transforms, waiting
from .sums import rectifier

__all__ = ["FUSED", "READY", "SUMMED", "VECTOR", "WHOLE", "Cut", "Joined", "groups_of", "join_code", "shared_bytes", "transform_code"]

VECTOR = 8  # frequencies that lie together: a sector of the memory holds one of their parts
ITEM = 2 * VECTOR  # elements of an item in a block of frequencies
BLOCKS_OF = {8: 6, 16: 4, 32: 3, 64: 4}  # of a multiprocessor, by the points of a tile: what the registers are given up for
CHUNK = 4  # frequencies of a thread whose products are summed at a time
PART = 16  # points of a large tile's column that are loaded at a time
WHOLE = 2**30  # tiles: no tile is taken whole
# Where the products of spectra come from
FUSED, SUMMED, READY = "fused", "summed", "ready"


class Cut(NamedTuple):
    """An image, or the weights, cut into pairs of tiles. Strides count elements."""

    height: int  # points, with the dilation's
    width: int
    images: int
    start: int
    group: int
    channel: int
    image: int
    row: int
    column: int
    first_h: int  # the first tile's first point
    first_w: int
    step_h: int
    step_w: int
    last_h: int  # tiles from here on are taken whole, others `step` points of them
    last_w: int
    spread_h: int  # the dilation of weights
    spread_w: int
    pairs_n: int
    pairs_h: int
    pairs_w: int
    partner_n: int  # from a tile to the other of its pair
    partner_h: int
    item_group: int
    item_channel: int
    item_n: int
    item_h: int
    item_w: int
    items: int


class Joined(NamedTuple):
    """Sums of products of spectra, z conj(w), and their tiles in a target; the direct sum over d h w of  a[n, d, h, w] b[d, h, w]."""

    height: int  # of the target, as in Cut
    width: int
    images: int
    start: int
    group: int
    channel: int
    image: int
    row: int
    column: int
    step_h: int
    step_w: int
    last_h: int
    last_w: int
    spread_h: int
    spread_w: int
    pairs_n: int
    pairs_h: int
    pairs_w: int
    partner_n: int
    partner_h: int
    rows: int  # channels of a group of the target
    splits: int  # of the sum over d
    chunk: int  # pairs of d in each
    part: int  # elements of a split's target
    terms_d: int  # of the sum of products of spectra
    terms_h: int
    terms_w: int
    z_items: int
    z_group: int
    z_channel: int
    z_n: int
    z_d: int
    z_h: int
    z_w: int
    w_items: int
    w_group: int
    w_channel: int
    w_d: int
    w_h: int
    w_w: int
    a_height: int  # of the direct sum
    a_width: int
    a_start: int
    a_first_h: int
    a_first_w: int
    a_group: int
    a_n: int
    a_d: int
    a_row: int
    a_column: int
    count_d: int
    count_h: int
    count_w: int
    partner_d: int
    dilation_h: int
    dilation_w: int
    b_start: int
    b_group: int
    b_channel: int
    b_d: int
    b_row: int
    b_column: int
    has_bias: int


def threads_of(n: int) -> int:
    """Threads of a block."""
    return n if SIMULATED or n > LANES else 128


def groups_of(n: int) -> int:
    """Pairs of tiles of a block."""
    return threads_of(n) // n


def shared_bytes(n: int, dtype: str) -> int:
    """Shared memory of a block."""
    return groups_of(n) * group_elements(n) * np.dtype(dtype).itemsize


def _pair(number, g):
    """(n, i, j) of a pair of tiles; those beyond the last are of images beyond the last."""
    j = remainder(number, g.pairs_w)
    i = remainder(quotient(number, g.pairs_w), g.pairs_h)
    n = quotient(quotient(number, g.pairs_w), g.pairs_h)
    return n if n < g.pairs_n else i32(g.images), i, j


def _taken(n, i, step, last, first, size):
    """(points of an axis before the image, points inside it) of the tile i."""
    begin = i32(first + i * step)
    low = i32(max(0, -begin))
    high = i32(min(n if i >= last else step, size - begin))
    return low, i32(max(0, high - low))


pair = inlined(_pair)
taken = inlined(_taken)


def _large_column(n):
    """Load a column of a tile as it lies, a part at a time through the thread's own part of the shared memory: registers are few."""

    def column_of(source, memory, g, i, column, inside_w):
        low, inside = taken(n, i, g.step_h, g.last_h, g.first_h, g.height)
        first = i32((g.first_h + i * g.step_h) * g.row + column * g.column)
        inside = inside if inside_w else i32(0)
        for k in range(0, n, PART):
            store_each(memory, k, 1, fetch_between(source, i32(first + k * g.row), g.row, PART, i32(low - k), inside))
        return load_each(memory, 0, 1, n)

    return inlined(column_of)


def _plain_column(n):
    """Load a column of a tile as it lies."""

    def column_of(source, memory, g, i, column, inside_w):
        low, inside = taken(n, i, g.step_h, g.last_h, g.first_h, g.height)
        first = i32((g.first_h + i * g.step_h) * g.row + column * g.column)
        return fetch_between(source, first, g.row, n, low, inside if inside_w else i32(0))

    return inlined(column_of)


def _spread_column(n):
    """Load a column of a tile of dilated weights, through the thread's own part of the shared memory."""

    def column_of(source, memory, g, i, column, inside_w):
        low, inside = taken(n, i, g.step_h, g.last_h, g.first_h, g.height)
        on_tap = inside_w and remainder(column, g.spread_w) == 0
        for k in range(n):
            h = i32(g.first_h + i * g.step_h + k)
            value = zero_of(source)
            if on_tap and less_unsigned(k - low, inside) and remainder(h, g.spread_h) == 0:
                value = fetch(source, quotient(h, g.spread_h) * g.row + quotient(column, g.spread_w) * g.column)
            store(memory, k, value)
        return load_each(memory, 0, 1, n)

    return inlined(column_of)


def _spectrum_to_memory(n: int, first: int = 0) -> Callable:
    """Write a thread's frequencies from `first` on, few at a time: both parts of one share an address, which is not kept for long."""
    real, imaginary = part_of(first, CHUNK), part_of(n + first, CHUNK)

    def write_chunk(target, step, values):
        store_each(target, first * step, step, real(values))
        store_each(target, first * step + VECTOR, step, imaginary(values))

    write_chunk = inlined(write_chunk)
    if first + CHUNK == n:
        return write_chunk
    rest = _spectrum_to_memory(n, first + CHUNK)

    def write_all(target, step, values):
        write_chunk(target, step, values)
        rest(target, step, values)

    return inlined(write_all)


@functools.cache
def transform_code(n: int, dtype: str, spread: bool) -> Code:
    """Spectra of pairs of tiles, of one channel of one group a block; `spread` weights have gaps between their taps."""
    column_of = (_spread_column if spread else _large_column if n > LANES else _plain_column)(n)
    to_spectrum, _ = tile_transforms(n)
    write = _spectrum_to_memory(n)
    GROUPS, ELEMENTS, STEP = groups_of(n), group_elements(n), ITEM * n // VECTOR

    @inlined
    def half(source, memory, g, image, i, j, lane):
        low, inside = taken(n, j, g.step_w, g.last_w, g.first_w, g.width)
        plane = advance(source, np.int64(image if image < g.images else 0) * g.image)
        inside_w = image < g.images and less_unsigned(lane - low, inside)
        return column_of(plane, advance(memory, lane * (n + 1)), g, i, i32(g.first_w + j * g.step_w + lane), inside_w)

    def transform(source, spectra, g):
        lane, group = i32(cuda.threadIdx.x % n), i32(cuda.threadIdx.x // n)
        channel, block = i32(cuda.blockIdx.y), i32(cuda.blockIdx.z)
        memory = advance(shared_memory(source), group * ELEMENTS)
        image, i, j = pair(i32(cuda.blockIdx.x * GROUPS + group), g)
        plane = advance(source, g.start + np.int64(block) * g.group + np.int64(channel) * g.channel)
        first = half(plane, memory, g, image, i, j, lane)
        values = concatenate(first, half(plane, memory, g, i32(image + g.partner_n), i32(i + g.partner_h), j, lane))
        item = block * g.item_group + channel * g.item_channel + image * g.item_n + i * g.item_h + j * g.item_w
        target = advance(spectra, (np.int64(lane // VECTOR) * g.items + item) * ITEM + lane % VECTOR)
        values = to_spectrum(values, memory, lane)
        if image < g.images:
            write(target, i32(g.items * STEP), values)

    name = f"fft_transform.{'spread.' if spread else ''}{n}.{dtype}"
    return Code(name, transform, (dtype, dtype), Cut, 0, threads_of(n), BLOCKS_OF[n])


def _sum_from_memory(n: int, first: int = 0) -> Callable:
    """total + z conj(w) of n frequencies, from `first` on; few are loaded at a time, so that the registers do."""
    add = conjugate_sum(n, first, CHUNK)

    def add_chunk(total, z, z_step, w, w_step):
        at_z, at_w = first * z_step, first * w_step
        own_z = concatenate(fetch_each(z, at_z, z_step, CHUNK), fetch_each(z, at_z + VECTOR, z_step, CHUNK))
        own_w = concatenate(fetch_each(w, at_w, w_step, CHUNK), fetch_each(w, at_w + VECTOR, w_step, CHUNK))
        return add(total, own_z, own_w)

    add_chunk = inlined(add_chunk)
    if first + CHUNK == n:
        return add_chunk
    rest = _sum_from_memory(n, first + CHUNK)
    return inlined(lambda total, z, z_step, w, w_step: rest(add_chunk(total, z, z_step, w, w_step), z, z_step, w, w_step))


@functools.cache
def join_code(n: int, dtype: str, source: str, spread: bool) -> Code:
    """Tiles of the target: sums of products of spectra (SUMMED), or one spectrum of such a sum (READY), or all for one term (FUSED).

    A tile with a result that is not finite is computed again by the direct sum, so that a NaN reaches what it would reach there:
    every number of a tile's spectrum has a part in every result, so a thread sees by its own results whether the tile is spoiled.
    """
    to_spectrum, from_spectrum = tile_transforms(n)
    wait = waiting(n)
    real, imaginary = part_of(0, n), part_of(n, n)
    finish = rectifier(dtype)
    multiply, multiply_add = conjugate_product(n), _sum_from_memory(n)
    add_bias = traced(lambda values, bias: [value * (1 / n**2) + bias[0] for value in values])  # the inverse transform's factor, too
    difference = traced(lambda values: [sum(value - value for value in values)])  # zero, if all of them are finite
    GROUPS, ELEMENTS, STEP, PARTS = groups_of(n), group_elements(n), ITEM * n // VECTOR, 2 * n

    @inlined
    def at_item(spectra, items, lane, item):
        return advance(spectra, (np.int64(lane // VECTOR) * items + item) * ITEM + lane % VECTOR)

    @inlined
    def spectrum(spectra, items):
        step = i32(items * STEP)
        return concatenate(fetch_each(spectra, 0, step, n), fetch_each(spectra, VECTOR, step, n))

    @inlined
    def summed(z, w, terms, a, memory, g, block, channel, image, i, j, lane, first, end):
        z = at_item(z, g.z_items, lane, block * g.z_group + image * g.z_n + i * g.z_h + j * g.z_w)
        w = at_item(w, g.w_items, lane, block * g.w_group + channel * g.w_channel)
        total = zeros(z, PARTS)
        each = i32(g.terms_h * g.terms_w)
        for term in range(i32(first * each), i32(end * each)):
            own_z = advance(z, fetch(terms, 2 * term) * ITEM)
            own_w = advance(w, fetch(terms, 2 * term + 1) * ITEM)
            total = multiply_add(total, own_z, i32(g.z_items * STEP), own_w, i32(g.w_items * STEP))
        return total

    @inlined
    def ready(z, w, terms, a, memory, g, block, channel, image, i, j, lane, first, end):
        item = block * g.z_group + channel * g.z_channel + image * g.z_n + i * g.z_h + j * g.z_w
        return spectrum(at_item(z, g.z_items, lane, item), g.z_items)

    @inlined
    def source_column(a, g, image, i, column):
        low, inside = taken(n, i, g.step_h, 0, g.a_first_h, g.a_height)
        inside = inside if image < g.images and less_unsigned(column, g.a_width) else i32(0)
        plane = advance(a, np.int64(image if image < g.images else 0) * g.a_n)
        return fetch_between(plane, i32((g.a_first_h + i * g.step_h) * g.a_row + column * g.a_column), g.a_row, n, low, inside)

    @inlined
    def fused(z, w, terms, a, memory, g, block, channel, image, i, j, lane, first, end):
        column = i32(g.a_first_w + j * g.step_w + lane)
        a = advance(a, g.a_start + np.int64(block) * g.a_group)
        values = source_column(a, g, image, i, column)
        values = concatenate(values, source_column(a, g, i32(image + g.partner_n), i32(i + g.partner_h), column))
        own_w = at_item(w, g.w_items, lane, block * g.w_group + channel * g.w_channel)
        return multiply(to_spectrum(values, memory, lane), spectrum(own_w, g.w_items))

    @inlined
    def direct_sum(a, b, g, block, channel, image, h, v, first, end):
        """The sum as it stands, for the images of a split's pairs."""
        total = zero_of(a)
        for half in range(2):
            for d in range(first + half * g.partner_d, min(end + half * g.partner_d, g.count_d)):
                plane = g.a_start + np.int64(block) * g.a_group + np.int64(image) * g.a_n + np.int64(d) * g.a_d
                taps = g.b_start + np.int64(block) * g.b_group + np.int64(channel) * g.b_channel + np.int64(d) * g.b_d
                for t_h in range(g.count_h):
                    row = i32(g.a_first_h + h + t_h * g.dilation_h)
                    for t_w in range(g.count_w):
                        column = i32(g.a_first_w + v + t_w * g.dilation_w)
                        inside = less_unsigned(row, g.a_height) and less_unsigned(column, g.a_width)
                        value = fetch(a, plane + row * g.a_row + column * g.a_column) if inside else zero_of(a)
                        total += value * fetch(b, taps + t_h * g.b_row + t_w * g.b_column)
        return total

    @inlined
    def place(y, g, image, i, j, lane):
        """Where the points of a thread's column begin, and how many there are."""
        _, across = taken(n, j, g.step_w, g.last_w, 0, g.width)
        _, inside = taken(n, i, g.step_h, g.last_h, 0, g.height)
        is_inside = image < g.images and lane < across
        return advance(y, np.int64(image if image < g.images else 0) * g.image), inside if is_inside else i32(0)

    @inlined
    def write_plain(y, memory, values, g, bias, image, i, j, lane, slope, ceiling):
        plane, inside = place(y, g, image, i, j, lane)
        values = rectify_each(add_bias(values, one(bias)), slope, ceiling)
        store_between(plane, i32(i * g.step_h * g.row + (j * g.step_w + lane) * g.column), g.row, values, 0, inside)

    @inlined
    def write_one(plane, g, h, v, value):
        if not spread:
            store(plane, h * g.row + v * g.column, value)
        elif remainder(h, g.spread_h) == 0 and remainder(v, g.spread_w) == 0:
            store(plane, quotient(h, g.spread_h) * g.row + quotient(v, g.spread_w) * g.column, value)

    @inlined
    def write_spread(y, memory, values, g, bias, image, i, j, lane, slope, ceiling):
        """The same where there are gaps between the points that are wanted, through the thread's part of the shared memory."""
        plane, inside = place(y, g, image, i, j, lane)
        wait()
        store_each(memory, 0, 1, add_bias(values, one(bias)))
        for k in range(inside):
            write_one(plane, g, i32(i * g.step_h + k), i32(j * g.step_w + lane), load(memory, k))

    values_of = {FUSED: fused, SUMMED: summed, READY: ready}[source]
    write = write_spread if spread else write_plain

    def join(z, w, terms, bias, a, b, y, g, slope, ceiling):
        lane, group = i32(cuda.threadIdx.x % n), i32(cuda.threadIdx.x // n)
        channel, block = i32(cuda.blockIdx.y), quotient(cuda.blockIdx.z, g.splits)
        split = remainder(cuda.blockIdx.z, g.splits)
        first = i32(split * g.chunk)
        end = i32(min(g.terms_d, first + g.chunk))
        memory = advance(shared_memory(a), group * ELEMENTS)
        image, i, j = pair(i32(cuda.blockIdx.x * GROUPS + group), g)
        known = image if image < g.images else i32(0)
        values = values_of(z, w, terms, a, memory, g, block, channel, known, i, j, lane, first, end)
        values = from_spectrum(values, memory, lane)
        start = np.int64(split) * g.part + g.start + np.int64(block) * g.group + np.int64(channel) * g.channel
        y = advance(y, start)
        own_bias = fetch(bias, block * g.rows + channel) if g.has_bias else zero_of(a)
        own = advance(memory, lane * (n + 1))
        write(y, own, real(values), g, own_bias, image, i, j, lane, slope, ceiling)
        write(y, own, imaginary(values), g, own_bias, i32(image + g.partner_n), i32(i + g.partner_h), j, lane, slope, ceiling)
        if pick(difference(values), 0) != zero_of(a):
            for half in range(2):
                at, down = i32(image + half * g.partner_n), i32(i + half * g.partner_h)
                plane, inside = place(y, g, at, down, j, lane)
                v = i32(j * g.step_w + lane)
                for k in range(inside):
                    h = i32(down * g.step_h + k)
                    total = direct_sum(a, b, g, block, channel, at, h, v, first, end) + own_bias
                    write_one(plane, g, h, v, finish(total, slope, ceiling))

    name = f"fft_join.{source}.{'spread.' if spread else ''}{n}.{dtype}"
    return Code(name, join, (dtype, dtype, "int32", *(dtype,) * 4), Joined, 2, threads_of(n), BLOCKS_OF[n])
