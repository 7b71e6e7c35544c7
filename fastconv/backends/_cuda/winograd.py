"""Kernels of minimal filtering on a GPU: the transforms before and after the products.

    into      V = B^T x B of every tile of an image; G w G^T and A gy A^T are the same kernel with other matrices
    out       y = A^T M A, with bias and activation
    gradient  gw = G^T M G, added up over the parts of a sum

A thread transforms a tile of a channel, in registers. Weights are images of one tile: the output channels are the images. A transform
lies as the products want it, product * group * depth * lanes, and neighbouring threads write neighbouring elements; where they cannot
also read those, the threads of a block share the cache's sectors.

A tile whose sums are not finite, because one of its elements is not, or because they overflowed, is summed directly by its thread: what
is not finite spreads as in the direct sum.

Source: Lavin and Gray, "Fast algorithms for convolutional neural networks" (2016), section 4.1.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .._cook_toom import INPUT, OUTPUT, OUTPUT_GRADIENT, WEIGHT_GRADIENT, WEIGHTS, Combinations, matrices
from . import (
    SIMULATED,
    advance,
    cuda,
    fetch,
    fetch_apart,
    fetch_patch,
    i32,
    inlined,
    is_aligned,
    less_unsigned,
    load,
    pick,
    pick4,
    quotient,
    remainder,
    store,
    store4,
    store_apart,
    traced,
    zero_of,
)
from .compiling import Code, repeated
from .sums import rectifier

__all__ = ["LANES", "LINES", "Algorithm", "Gradient", "Image", "Sums", "gradient_code", "into_code", "out_code"]

LANES, LINES = (4, 2) if SIMULATED else (32, 8)  # of a block: threads side by side, and such rows
THREADS = LANES * LINES
WIDE = 4
BLOCKS, GRADIENT_BLOCKS = 5, 4  # of a multiprocessor, as whose share of the registers holds a float32 transform without spills
NAMES = {INPUT: "input", WEIGHTS: "weights", OUTPUT_GRADIENT: "output_gradient"}
SUM = Combinations()


class Algorithm(NamedTuple):
    """F(m, r) along both axes."""

    outputs: int
    taps: int

    @property
    def samples(self) -> int:
        """Inputs, and products, of a tile along an axis."""
        return self.outputs + self.taps - 1

    @property
    def products(self) -> int:
        """Multiplications of a tile."""
        return self.samples**2


def transform(kind: int, algorithm: Algorithm) -> Callable:
    """matrix * tile * matrix^T as straight-line code: a function of a tile's elements, row by row."""
    (matrix,) = matrices(kind, (*algorithm, 1))

    def formula(tile: tuple[Any, ...]) -> list[Any]:
        size = matrix.shape[1]
        columns = [SUM.apply(matrix, [tile[i * size + j] for i in range(size)]) for j in range(size)]
        return [value for i in range(len(matrix)) for value in SUM.apply(matrix, [column[i] for column in columns])]

    return traced(formula)


def blocks(most: int, dtype: str) -> int:
    """Blocks of a multiprocessor for a kernel of which `most` fit in float32."""
    return most * np.dtype("float32").itemsize // np.dtype(dtype).itemsize


# -- into -----------------------------------------------------------------------------------------------------------------


class Image(NamedTuple):
    """An image as tiles, and where their transforms go; strides count elements."""

    channels: int  # of a group
    tiles: int  # to be done now
    first: int  # of them
    down: int  # tiles of an image
    across: int
    height: int
    width: int
    above: int  # rows of the first tile that lie before the image
    left: int
    start: int
    image: int
    group: int
    channel: int
    row: int
    column: int
    to_product: int
    to_group: int
    to_channel: int
    to_tile: int


@functools.cache
def into_code(kind: int, algorithm: Algorithm, along_channels: bool, dtype: str) -> Code:
    """The transform of an image's tiles; the threads side by side are tiles, or channels."""
    (matrix,) = matrices(kind, (*algorithm, 1))
    SIZE, STEP = matrix.shape[1], algorithm.outputs
    TILES, CHANNELS = (LINES, LANES) if along_channels else (LANES, LINES)
    transformed = transform(kind, algorithm)

    def winograd_into(x, v, g):
        lane, line = cuda.threadIdx.x % LANES, cuda.threadIdx.x // LANES
        tile = i32(cuda.blockIdx.x * TILES + (line if along_channels else lane))
        channel = i32(cuda.blockIdx.y * CHANNELS + (lane if along_channels else line))
        group = i32(cuda.blockIdx.z)
        if channel >= g.channels or tile >= g.tiles:
            return
        image, row, column = tile_place(i32(g.first + tile), g)
        row, column = i32(row * STEP - g.above), i32(column * STEP - g.left)
        at = i32(g.start + image * g.image + group * g.group + channel * g.channel + row * g.row + column * g.column)
        values = transformed(fetch_patch(x, at, row, column, g.height, g.width, g.row, g.column, SIZE, SIZE))
        store_apart(v, i32(group * g.to_group + channel * g.to_channel + tile * g.to_tile), values, g.to_product)

    name = f"winograd_into.{NAMES[kind]}.{'x'.join(map(str, algorithm))}.{'channels' if along_channels else 'tiles'}.{dtype}"
    return Code(name, winograd_into, (dtype, dtype), Image, 0, THREADS, blocks(BLOCKS, dtype))


def _tile_place(number, g):
    """(image, row, column) of a tile, in tiles."""
    image = quotient(number, g.down * g.across)
    rest = i32(number - image * (g.down * g.across))
    row = quotient(rest, g.across)
    return image, row, i32(rest - row * g.across)


tile_place = inlined(_tile_place)


# -- out ------------------------------------------------------------------------------------------------------------------


class Sums(NamedTuple):
    """The products' sums, the result that tiles go to, and what it is the direct sum of; strides count elements."""

    channels: int  # of a group of the result
    tiles: int
    first: int
    down: int
    across: int
    height: int  # of the result
    width: int
    has_bias: int
    product: int  # of the sums
    group: int
    channel: int
    y_image: int
    y_group: int
    y_channel: int
    y_row: int
    y_column: int
    depth: int  # channels of a group of the image
    x_height: int
    x_width: int
    above: int
    left: int
    x_image: int
    x_group: int
    x_channel: int
    x_row: int
    x_column: int
    w_start: int
    w_group: int
    w_out: int
    w_in: int
    w_row: int
    w_column: int


@functools.cache
def out_code(algorithm: Algorithm, dtype: str) -> Code:
    """The result of each tile, summed directly where its transform is not finite."""
    SIDE, TAPS, PRODUCTS = algorithm.outputs, algorithm.taps, algorithm.products
    transformed, finish, added = transform(OUTPUT, algorithm), rectifier(dtype), _sum_of()

    @inlined
    def write_row(bias, operands, i):
        y, at, rows, columns, values, g, slope, ceiling = operands
        if i < rows:
            own = i32(at + i * g.y_row)
            if SIDE == WIDE and columns >= WIDE and g.y_column == 1 and is_aligned(y, own):
                a, b, c, d = pick4(values, i * SIDE)
                store4(y, own, (finish(a + bias, slope, ceiling), finish(b + bias, slope, ceiling),
                                finish(c + bias, slope, ceiling), finish(d + bias, slope, ceiling)))
            else:
                for j in range(SIDE):
                    if j < columns:
                        store(y, i32(own + j * g.y_column), finish(pick(values, i * SIDE + j) + bias, slope, ceiling))
        return bias

    write = repeated(write_row, SIDE)

    @inlined
    def direct(x, w, g, row, column):
        """The sum at a point of the result; x and w begin at its image and its output channel. One loop takes few registers."""
        total = zero_of(x)
        for k in range(g.depth * TAPS * TAPS):
            c, i, j = quotient(k, TAPS * TAPS), remainder(quotient(k, TAPS), TAPS), remainder(k, TAPS)
            u, v = i32(row + i - g.above), i32(column + j - g.left)
            inside = less_unsigned(u, g.x_height) and less_unsigned(v, g.x_width)
            value = fetch(x, i32(c * g.x_channel + u * g.x_row + v * g.x_column)) if inside else zero_of(x)
            total += value * fetch(w, i32(c * g.w_in + i * g.w_row + j * g.w_column))
        return total

    def winograd_out(m, x, w, bias, y, g, slope, ceiling):
        tile = i32(cuda.blockIdx.x * LANES + cuda.threadIdx.x % LANES)
        channel = i32(cuda.blockIdx.y * LINES + cuda.threadIdx.x // LANES)
        group = i32(cuda.blockIdx.z)
        if channel >= g.channels or tile >= g.tiles:
            return
        values = transformed(fetch_apart(m, i32(group * g.group + channel * g.channel + tile), g.product, PRODUCTS))
        image, row, column = tile_place(i32(g.first + tile), g)
        row, column = i32(row * SIDE), i32(column * SIDE)
        at = i32(image * g.y_image + group * g.y_group + channel * g.y_channel + row * g.y_row + column * g.y_column)
        own_bias = fetch(bias, group * g.channels + channel) if g.has_bias else zero_of(y)
        total = pick(added(values), 0)
        if total - total == zero_of(y):
            write(own_bias, (y, at, i32(g.height - row), i32(g.width - column), values, g, slope, ceiling), 0)
            return
        own_x = advance(x, image * g.x_image + group * g.x_group)
        own_w = advance(w, g.w_start + group * g.w_group + channel * g.w_out)
        columns = i32(min(SIDE, g.width - column))
        for k in range(columns * min(SIDE, g.height - row)):
            i, j = quotient(k, columns), remainder(k, columns)
            value = direct(own_x, own_w, g, i32(row + i), i32(column + j))
            store(y, i32(at + i * g.y_row + j * g.y_column), finish(value + own_bias, slope, ceiling))

    name = f"winograd_out.{'x'.join(map(str, algorithm))}.{dtype}"
    return Code(name, winograd_out, (dtype,) * 5, Sums, 2, THREADS, blocks(BLOCKS, dtype))


def _sum_of() -> Callable:
    def formula(values: tuple[Any, ...]) -> list[Any]:
        total = values[0]
        for value in values[1:]:
            total = total + value
        return [total]

    return traced(formula)


# -- gradient -------------------------------------------------------------------------------------------------------------


class Gradient(NamedTuple):
    """The products' sums of a weight gradient, where it goes, and the tiles that it is the direct sum of; strides count elements."""

    out_channels: int  # of a group
    in_channels: int
    tiles: int
    first: int
    down: int
    across: int
    height: int  # of the output
    width: int
    adds: int  # whether the gradient of other tiles is there already
    parts: int
    part: int
    product: int
    group: int
    out_channel: int
    w_group: int
    w_out: int
    w_in: int
    w_row: int
    w_column: int
    x_height: int
    x_width: int
    above: int
    left: int
    x_image: int
    x_group: int
    x_channel: int
    x_row: int
    x_column: int
    y_image: int
    y_group: int
    y_channel: int
    y_row: int
    y_column: int


@functools.cache
def gradient_code(algorithm: Algorithm, dtype: str) -> Code:
    """The gradient of each pair of channels, summed directly where its transform is not finite."""
    STEP, TAPS, PRODUCTS = algorithm.outputs, algorithm.taps, algorithm.products
    transformed, added = transform(WEIGHT_GRADIENT, algorithm), _sum_of()

    @traced
    def plus(a, b):
        return [u + v for u, v in zip(a, b, strict=True)]

    @inlined
    def write_tap(gw, operands, k):
        values, at, g = operands
        own = i32(at + k // TAPS * g.w_row + k % TAPS * g.w_column)
        value = pick(values, k)
        store(gw, own, value + load(gw, own) if g.adds else value)
        return gw

    write = repeated(write_tap, TAPS * TAPS)

    @inlined
    def direct(x, gy, g, i, j):
        """The sum for a tap; x and gy begin at their channels."""
        total = zero_of(x)
        for k in range(g.tiles * (STEP * STEP)):
            image, row, column = tile_place(i32(g.first + k // (STEP * STEP)), g)
            p, q = i32(row * STEP + k // STEP % STEP), i32(column * STEP + k % STEP)
            if p < g.height and q < g.width:
                u, v = i32(p + i - g.above), i32(q + j - g.left)
                inside = less_unsigned(u, g.x_height) and less_unsigned(v, g.x_width)
                value = fetch(x, i32(image * g.x_image + u * g.x_row + v * g.x_column)) if inside else zero_of(x)
                total += value * fetch(gy, i32(image * g.y_image + p * g.y_row + q * g.y_column))
        return total

    def winograd_gradient(m, x, gy, gw, g):
        c = i32(cuda.blockIdx.x * LANES + cuda.threadIdx.x % LANES)
        o = i32(cuda.blockIdx.y * LINES + cuda.threadIdx.x // LANES)
        group = i32(cuda.blockIdx.z)
        if c >= g.in_channels or o >= g.out_channels:
            return
        first = i32(group * g.group + o * g.out_channel + c)
        sums = fetch_apart(m, first, g.product, PRODUCTS)
        for part in range(1, g.parts):
            sums = plus(sums, fetch_apart(advance(m, np.int64(part) * g.part), first, g.product, PRODUCTS))
        values = transformed(sums)
        at = i32(group * g.w_group + o * g.w_out + c * g.w_in)
        total = pick(added(values), 0)
        if total - total == zero_of(gw):
            write(gw, (values, at, g), 0)
            return
        own_x, own_gy = advance(x, group * g.x_group + c * g.x_channel), advance(gy, group * g.y_group + o * g.y_channel)
        for k in range(TAPS * TAPS):
            i, j = quotient(k, TAPS), remainder(k, TAPS)
            own = i32(at + i * g.w_row + j * g.w_column)
            value = direct(own_x, own_gy, g, i, j)
            store(gw, own, value + load(gw, own) if g.adds else value)

    name = f"winograd_gradient.{'x'.join(map(str, algorithm))}.{dtype}"
    return Code(name, winograd_gradient, (dtype,) * 4, Gradient, 0, THREADS, blocks(GRADIENT_BLOCKS, dtype))
