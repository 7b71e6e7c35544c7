"""The parallel kernels of the engine.

Two forms. Local: a tile is transformed, multiplied and transformed back while it is in the cache (`convolve_tiles`,
`correlate_tiles`). By channels, in three parallel regions: all tiles are transformed (`transform_inputs`), each vector of
frequencies is a matrix product over channels (`multiply_spectra`), the sums are transformed back (`invert_sums`).
Second operands, kernels or gy, are transformed by `transform_grids` for both forms.
"""

from __future__ import annotations

from typing import NamedTuple

from .._boxes import fill_run
from .._jit import inlined, outlined
from .._simd import advance, fma, lanes_of, load, own_first, parallel_kernel, raise_flag, store, thawed, transpose_block, zero, zero_element
from .codelets import SUM_ROWS, call_sum
from .tiles import place_of, stage_grid, stage_window, store_grid
from .transform import invert_columns, invert_rows, multiply_rows, transform_columns, transform_rows


class Layout(NamedTuple):
    """Where spectra lie, in elements; those of a group are a matrix of rows by steps k for each vector f of frequencies.

    f * frequency + group * group_pitch + row // rows * block + k * step + row % rows * 2 * lanes
    """

    frequency: int
    group: int
    block: int
    rows: int  # of a block, side by side
    step: int


class Product(NamedTuple):
    """Sizes and pitches of the matrix products over all frequencies."""

    groups: int
    frequencies: int
    blocks: int  # of SUM_ROWS outputs
    chunk: int  # of blocks a task
    depth: int
    columns: int
    x: Layout
    w: Layout
    y_frequency: int
    y_group: int
    y_output: int
    going_on: bool


@inlined
def scratch_of(t, scratch):
    """A thread's staged tile, strip and transformed tile; the frequencies that fill up the last block are kept zero."""
    strip = advance(scratch, t.staged)
    fill_run(strip, t.strip, zero_element(scratch))
    return scratch, strip, advance(strip, t.strip)


@inlined
def offset_of(layout, lanes, group, row, k):
    """Offset of the first frequency of a row's step k."""
    return group * layout.group + row // layout.rows * layout.block + k * layout.step + row % layout.rows * 2 * lanes


@outlined
def sum_products(spectra, weights, channels, size, tile):
    """tile = sum over channels of spectra[c] * conj(weights[c])."""
    lanes = lanes_of(tile)
    nothing = zero(tile)
    for i in range(0, size, 2 * lanes):
        real = imaginary = nothing
        for c in range(channels):
            a, b = load(spectra, c * size + i), load(spectra, c * size + i + lanes)
            u, v = load(weights, c * size + i), load(weights, c * size + i + lanes)
            real = fma(b, v, fma(a, u, real))
            imaginary = fma(nothing - a, v, fma(b, u, imaginary))
        store(tile, i, real)
        store(tile, i + lanes, imaginary)


@outlined
def add_product(x, w, size, sums):
    """sums += x * conj(w)."""
    lanes = lanes_of(sums)
    nothing = zero(sums)
    for i in range(0, size, 2 * lanes):
        a, b = load(x, i), load(x, i + lanes)
        u, v = load(w, i), load(w, i + lanes)
        store(sums, i, fma(b, v, fma(a, u, load(sums, i))))
        store(sums, i + lanes, fma(nothing - a, v, fma(b, u, load(sums, i + lanes))))


@parallel_kernel
def turn_matrices(source, unused, bias, target, constants, scratch, counters, thread, threads):
    """target[n][c][r] = source[n][r][c]: channels from last to first, or from first to last; by (image, block of the matrix)."""
    images, rows, columns, block_rows, block_columns = thawed(constants)
    lanes = lanes_of(source)
    down, across = -(-rows // block_rows), -(-columns // block_columns)
    for task in own_first(counters, thread, threads, images * down * across):
        image = task // (down * across) * rows * columns
        first_row, first_column = task // across % down * block_rows, task % across * block_columns
        for r in range(first_row, min(first_row + block_rows, rows), lanes):
            count = min(lanes, rows - r)
            for c in range(first_column, min(first_column + block_columns, columns), lanes):
                transpose_block(advance(source, image + r * columns + c), columns, count, min(lanes, columns - c),
                                advance(target, image + c * rows + r), rows, count)


@parallel_kernel
def convolve_tiles(x, w, bias, y, constants, scratch, counters, thread, threads):
    """y = epilogue(x convolved with the kernels whose spectra are w, plus bias), by (image, group, tile)."""
    t, table, window, borders, grid, epilogue = thawed(constants)
    staged, strip, tile = scratch_of(t, scratch)
    spectra = advance(tile, t.spectrum)
    group_in = window.channels // grid.groups
    tiles = window.tiles_h * window.tiles_w
    size = t.spectrum
    for task in own_first(counters, thread, threads, window.amount * grid.groups):
        image = task // (tiles * grid.groups)
        group = task // tiles % grid.groups
        i, j = task // window.tiles_w % window.tiles_h, task % window.tiles_w
        source = advance(x, image * window.image + group * group_in * window.channel)
        weights = advance(w, group * grid.outputs * group_in * size)
        single = group_in * grid.outputs == 1
        for c in range(group_in):
            width = stage_window(t, window, advance(source, c * window.channel), borders, i, j, staged)
            transform_columns(t, table, staged, width, strip, tile)
            if not single:
                transform_rows(t, table, tile, advance(spectra, c * size), 2 * t.lanes)
        for o in range(grid.outputs):
            if single:
                multiply_rows(t, table, tile, weights)
            else:
                sum_products(spectra, advance(weights, o * group_in * size), group_in, size, tile)
                invert_rows(t, table, tile, 2 * t.lanes, tile)
            count_w = min(grid.tile_columns, grid.columns - j * grid.tile_columns)
            invert_columns(t, table, tile, t.columns if t.line else (count_w - 1) * grid.spread_w + 1, strip, staged)
            output = group * grid.outputs + o
            if not store_grid(t, grid, staged, i, j, advance(y, grid.start + image * grid.image + output * grid.output),
                       advance(bias, output), epilogue):
                raise_flag(counters)


@parallel_kernel
def correlate_tiles(x, gy, bias, parts, constants, scratch, counters, thread, threads):
    """parts[share] = weight gradient over the share's tiles of a single channel a group, by (share, group)."""
    t, table, window, borders, grid, result, epilogue, shares, part = thawed(constants)
    staged, strip, tile = scratch_of(t, scratch)
    other = advance(tile, t.spectrum)
    sums = advance(other, t.spectrum)
    for task in own_first(counters, thread, threads, shares * grid.groups):
        share, group = task // grid.groups, task % grid.groups
        fill_run(sums, t.spectrum, zero_element(sums))
        for index in range(window.amount * share // shares, window.amount * (share + 1) // shares):
            image, i, j = place_of(grid, index)
            source = advance(gy, grid.start + image * grid.image + group * grid.group)
            width = stage_grid(t, grid, source, i, j, staged)
            transform_columns(t, table, staged, width, strip, tile)
            transform_rows(t, table, tile, other, 2 * t.lanes)
            width = stage_window(t, window, advance(x, image * window.image + group * window.channel), borders, i, j, staged)
            transform_columns(t, table, staged, width, strip, tile)
            transform_rows(t, table, tile, tile, 2 * t.lanes)
            add_product(tile, other, t.spectrum, sums)
        invert_rows(t, table, sums, 2 * t.lanes, tile)
        invert_columns(t, table, tile, t.columns if t.line else (result.columns - 1) * result.spread_w + 1, strip, staged)
        if not store_grid(t, result, staged, 0, 0, advance(parts, share * part + result.start + group * result.group), advance(bias, group),
                   epilogue):
            raise_flag(counters)


@parallel_kernel
def transform_grids(source, unused, bias, spectra, constants, scratch, counters, thread, threads):
    """Spectra of a second operand, by (group, block of outputs, tile, output)."""
    t, table, grid, layout = thawed(constants)
    staged, strip, tile = scratch_of(t, scratch)
    blocks = -(-grid.outputs // layout.rows)
    for task in own_first(counters, thread, threads, grid.groups * blocks * grid.amount * layout.rows):
        index = task // layout.rows % grid.amount
        output = task // (layout.rows * grid.amount) % blocks * layout.rows + task % layout.rows
        group = task // (layout.rows * grid.amount * blocks)
        if output < grid.outputs:
            image, i, j = place_of(grid, grid.begin + index)
            at = advance(source, grid.start + image * grid.image + group * grid.group + output * grid.output)
            width = stage_grid(t, grid, at, i, j, staged)
            transform_columns(t, table, staged, width, strip, tile)
            transform_rows(t, table, tile, advance(spectra, offset_of(layout, t.lanes, group, output, index)),
                           layout.frequency)


@parallel_kernel
def transform_inputs(x, unused, bias, spectra, constants, scratch, counters, thread, threads):
    """Spectra of an input's tiles, by (channel, tile); the matrix products have `columns` of them, channels or tiles."""
    t, table, window, borders, layout, group_in, by_channel = thawed(constants)
    staged, strip, tile = scratch_of(t, scratch)
    for task in own_first(counters, thread, threads, window.channels * window.amount):
        channel, index = task // window.amount, task % window.amount
        image, i, j = place_of(window, window.begin + index)
        width = stage_window(t, window, advance(x, image * window.image + channel * window.channel), borders, i, j, staged)
        transform_columns(t, table, staged, width, strip, tile)
        group, within = channel // group_in, channel % group_in
        at = offset_of(layout, t.lanes, group, within, index) if by_channel else offset_of(layout, t.lanes, group, index, within)
        transform_rows(t, table, tile, advance(spectra, at), layout.frequency)


@parallel_kernel
def multiply_spectra(x, w, bias, y, constants, scratch, counters, thread, threads):
    """y[f][o][c] (+)= sum over k of x[f][k][c] * conj(w[f][k][o]), by (group, vector of frequencies, chunk of blocks of outputs)."""
    p, addresses = thawed(constants)
    chunks = -(-p.blocks // p.chunk)
    for task in own_first(counters, thread, threads, p.groups * p.frequencies * chunks):
        first = task % chunks * p.chunk
        frequency = task // chunks % p.frequencies
        group = task // (chunks * p.frequencies)
        source = advance(x, frequency * p.x.frequency + group * p.x.group)
        pair = 2 * lanes_of(source)
        for block in range(first, min(first + p.chunk, p.blocks)):
            weights = advance(w, frequency * p.w.frequency + group * p.w.group + block * p.w.block)
            target = advance(y, frequency * p.y_frequency + group * p.y_group + block * SUM_ROWS * p.y_output)
            for i in range(-(-p.columns // p.x.rows)):
                columns = min(p.columns - i * p.x.rows, p.x.rows)
                call_sum(addresses[columns], p.depth, advance(source, i * p.x.block), p.x.step, weights, p.w.step,
                         advance(weights, p.w.block + i % SUM_ROWS * pair), advance(target, i * p.x.rows * pair), p.y_output, p.going_on)


@parallel_kernel
def invert_sums(spectra, unused, bias, y, constants, scratch, counters, thread, threads):
    """Results from their spectra, by (group, output, tile)."""
    t, table, grid, layout, epilogue = thawed(constants)
    staged, strip, tile = scratch_of(t, scratch)
    for task in own_first(counters, thread, threads, grid.groups * grid.outputs * grid.amount):
        index = task % grid.amount
        output = task // grid.amount % grid.outputs
        group = task // (grid.amount * grid.outputs)
        image, i, j = place_of(grid, grid.begin + index)
        invert_rows(t, table, advance(spectra, offset_of(layout, t.lanes, group, output, index)), layout.frequency, tile)
        count_w = min(grid.tile_columns, grid.columns - j * grid.tile_columns)
        invert_columns(t, table, tile, t.columns if t.line else (count_w - 1) * grid.spread_w + 1, strip, staged)
        at = advance(y, grid.start + image * grid.image + group * grid.group + output * grid.output)
        if not store_grid(t, grid, staged, i, j, at, advance(bias, group * grid.outputs + output), epilogue):
            raise_flag(counters)
