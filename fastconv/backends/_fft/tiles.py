"""Reading tiles of inputs and of second operands into a staged tile, and writing results out of one.

Inputs come through border tables, tiles beginning every `step` padded positions (`Window`). Kernels and gy are grids whose
points are spread over the tile by the dilation or the stride; results are grids too, picked from the tile by the stride
or the dilation (`Grid`). The images of a kernel's grid are its input channels.
"""

from __future__ import annotations

from typing import NamedTuple

from .._boxes import copy_run, pack_row
from .._jit import inlined, outlined
from .._simd import (
    advance,
    fma,
    get,
    lanes_of,
    load,
    load_alternate,
    load_first,
    put,
    rectify,
    splat,
    store,
    store_first,
    total,
    zero,
    zero_element,
)


class Window(NamedTuple):
    """The tiles of an input: (image, tile row, tile column), of which a kernel takes `amount` from `begin` on."""

    begin: int
    amount: int
    channels: int
    tiles_h: int
    tiles_w: int
    step_h: int
    step_w: int
    image: int  # strides in elements
    channel: int
    row: int
    column: int
    low: int  # where the image begins in its padded rows, and how long they are
    size: int
    zeros: int  # 1 where the border is zero
    padded_h: int  # positions of the padded image
    padded_w: int


class Grid(NamedTuple):
    """The tiles of a kernel, of gy or of a result, as `Window`; each has points (rows, columns) for each output channel."""

    begin: int
    amount: int
    groups: int
    outputs: int  # of a group
    tiles_h: int
    tiles_w: int
    tile_rows: int  # points of a tile
    tile_columns: int
    rows: int  # points of the whole
    columns: int
    spread_h: int  # positions of the tile from point to point
    spread_w: int
    start: int  # offset and strides in elements
    image: int
    group: int
    output: int
    row: int
    column: int


@inlined
def place_of(grid, index):
    """(image, tile row, tile column) of a tile."""
    return index // (grid.tiles_h * grid.tiles_w), index // grid.tiles_w % grid.tiles_h, index % grid.tiles_w


@inlined
def fill_vectors(target, count):
    """target[:count] = 0, and what is left of the last vector too."""
    for i in range(0, count, lanes_of(target)):
        store(target, i, zero(target))


@outlined
def stage_border(window, x, columns, first, count, target):
    """Stage padded positions [first, first + count) of a row of the image by the border's table, zeros beyond its end."""
    last = min(first + count, window.padded_w)
    fill_vectors(target, count)
    pack_row(target, x, columns, first, last, window.low, window.size, window.column, get(target, 0))


@inlined
def stage_row(window, x, columns, first, count, left, right, target):
    """The same for any row; the image lies at positions [left, right) of the target."""
    if window.column == 1 and (window.zeros or (left == 0 and right == count)):
        if left > 0:
            fill_vectors(target, left)
        if right < count:
            whole = right - right % lanes_of(target)
            fill_vectors(advance(target, whole), count - whole)
        copy_run(advance(target, left), advance(x, first + left - window.low), right - left)
    else:
        stage_border(window, x, columns, first, count, target)


@outlined
def stage_window(t, window, x, borders, i, j, staged):
    """Stage the tile of a channel's image x at tile row i and column j; returns how many of its columns hold anything."""
    rows, columns = borders
    first = j * window.step_w
    if t.line:
        width, count = t.columns, 2 * t.rows * t.columns
    else:
        width = count = min(t.columns, -(-(window.padded_w - first) // t.lanes) * t.lanes)
    left = min(max(window.low - first, 0), count)
    right = max(min(window.low + window.size - first, count), left)
    for r in range(1 if t.line else 2 * t.rows):
        row = i * window.step_h + r
        to = advance(staged, r * t.pitch)
        if row >= window.padded_h or rows[row] < 0:
            fill_vectors(to, count)
        else:
            stage_row(window, advance(x, rows[row] * window.row), columns, first, count, left, right, to)
    return width


@outlined
def stage_grid(t, grid, source, i, j, staged):
    """Stage the points of the tile at tile row i and column j, spread; returns how many of its columns hold anything."""
    count_h = min(grid.tile_rows, grid.rows - i * grid.tile_rows)
    count_w = min(grid.tile_columns, grid.columns - j * grid.tile_columns)
    width = min(t.columns, -(-((count_w - 1) * grid.spread_w + 1) // t.lanes) * t.lanes)
    if t.line:
        width = t.columns
        fill_vectors(staged, 2 * t.rows * t.pitch)
    else:
        for r in range(2 * t.rows):
            fill_vectors(advance(staged, r * t.pitch), width)
    first = advance(source, i * grid.tile_rows * grid.row + j * grid.tile_columns * grid.column)
    for r in range(count_h):
        to = advance(staged, r * grid.spread_h * t.pitch)
        at = advance(first, r * grid.row)
        if grid.spread_w == 1 and grid.column == 1:
            copy_run(to, at, count_w)
        else:
            for c in range(count_w):
                put(to, c * grid.spread_w, get(at, c * grid.column))
    return width


@inlined
def rectified(value, epilogue):
    """A scalar through the epilogue."""
    if epilogue.rectify:
        if value < 0:
            value = value * epilogue.slope if epilogue.slope != 0 else epilogue.slope
        if value > epilogue.ceiling:
            value = epilogue.ceiling
    return value


@outlined
def store_grid(t, grid, staged, i, j, target, bias, epilogue):
    """Write the points of a result's tile, bias and epilogue applied; returns whether all sums were finite."""
    lanes = lanes_of(staged)
    count_h = min(grid.tile_rows, grid.rows - i * grid.tile_rows)
    count_w = min(grid.tile_columns, grid.columns - j * grid.tile_columns)
    first = advance(target, i * grid.tile_rows * grid.row + j * grid.tile_columns * grid.column)
    added = splat(bias, 0)
    nothing = zero(staged)
    bad = nothing
    difference = zero_element(bias)
    whole = count_w - count_w % lanes
    if grid.column != 1 or grid.spread_w > 2:
        whole = 0
    masked = grid.column == 1 and grid.spread_w == 1
    for r in range(count_h):
        source = advance(staged, r * grid.spread_h * t.pitch)
        to = advance(first, r * grid.row)
        for c in range(0, whole, lanes):
            value = (load(source, c) if grid.spread_w == 1 else load_alternate(source, 2 * c)) + added
            bad = fma(value, nothing, bad)
            store(to, c, rectify(value, epilogue.slope, epilogue.ceiling) if epilogue.rectify else value)
        if masked:
            value = load_first(source, whole, count_w - whole) + added
            bad = fma(value, nothing, bad)
            store_first(to, whole, rectify(value, epilogue.slope, epilogue.ceiling) if epilogue.rectify else value, count_w - whole)
        else:
            for c in range(whole, count_w):
                value = get(source, c * grid.spread_w) + get(bias, 0)
                difference += value - value
                put(to, c * grid.column, rectified(value, epilogue))
    return total(bad) + difference == zero_element(bias)
