"""Single planes with kernels of any size on a GPU, stride 1: filters of images, depthwise layers with large kernels.

A block copies the weights of a plane and what its tile of points sees of the image, zeros around it included, to shared memory. A thread
has the sums of a square of points in registers; it goes along each row of the image that they see, four columns at a time, and adds it to
all the sums that it reaches: two wide loads of the image and one of weights a row of points serve 16 products each.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

from ...problem import Problem
from .._rectifiers import RECTIFIERS
from . import (
    SIMULATED,
    advance,
    concatenate,
    cuda,
    fetch,
    i32,
    inlined,
    less_unsigned,
    load4,
    pick,
    quotient,
    remainder,
    shared_memory,
    store,
    traced,
    zero_of,
    zeros,
)
from .compiling import Code, repeated
from .driver import Gpu, Launch, Stream, gpu
from .geometry import index_refusal
from .planes import Shape, Strips, strips_of, work_seconds
from .sums import rectifier

__all__ = ["Filters", "codes", "seconds"]

THREADS = 8 if SIMULATED else 128
ROWS = 8  # of a thread's points
WIDE = 4  # columns of them
MOST_ACROSS = 16  # threads of a block
SHARED_BYTES = 96 * 1024  # of a block, at most


class Tile(NamedTuple):
    """A block's share of a plane."""

    kernel_h: int
    kernel_w: int
    across: int  # threads of a row
    down: int
    tiles_w: int
    tiles_h: int
    pitch: int  # of the image's rows in shared memory
    w_pitch: int  # of the weights'

    def elements(self) -> int:
        """Of shared memory."""
        return (self.down * ROWS + self.kernel_h - 1) * self.pitch + self.kernel_h * self.w_pitch


Filtered = NamedTuple("Filtered", [(field, int) for field in (*Strips._fields, *Tile._fields)])  # type: ignore[misc]


def _row_products(row: int, taps: int) -> Any:
    """The tile with a row of points moved on by `taps` taps; `values` are eight columns of the image."""

    def formula(tile, values, weights):
        sums = list(tile)
        for j in range(WIDE):
            for t in range(taps):
                sums[row * WIDE + j] = values[j + t] * weights[t] + sums[row * WIDE + j]
        return sums

    return traced(formula)


def _products(row: int, taps: int) -> Any:
    """The same for all the rows of points that see row i of the image, from `row` on."""
    move = _row_products(row, taps)
    if row == ROWS - 1:
        rest = inlined(lambda tile, values, weights, at, i, g: tile)
    else:
        rest = _products(row + 1, taps)

    def multiply(tile, values, weights, at, i, g):
        if less_unsigned(i - row, g.kernel_h):
            tile = move(tile, values, load4(weights, i32((i - row) * g.w_pitch + at)))
        return rest(tile, values, weights, at, i, g)

    return inlined(multiply)


@functools.cache
def filter_code(remaining: int, dtype: str) -> Code:
    """y[q] = bias + sum over t of  w[t] x[q + t - low], for each plane; `remaining` is the kernel's width modulo four."""
    finish, points = rectifier(dtype), ROWS * WIDE
    whole = _products(0, WIDE)
    part = _products(0, remaining) if remaining else inlined(lambda tile, values, weights, at, i, g: tile)

    def write(row, operands, k):
        y, at, column, g, sums, shift, slope, ceiling = operands
        h, j = k // WIDE, k % WIDE
        if row + h < g.to_h and column + j < g.to_w:
            store(y, i32(at + h * g.to_row + j * g.to_column), finish(pick(sums, k) + shift, slope, ceiling))
        return row

    write_all = repeated(write, points)

    def copy_weights(w, memory, g, thread):
        for index in range(thread, g.kernel_h * g.w_pitch, THREADS):
            row, column = quotient(index, g.w_pitch), remainder(index, g.w_pitch)
            inside = column < g.kernel_w
            store(memory, i32(index), fetch(w, i32(row * g.w_row + column * g.w_column)) if inside else zero_of(w))

    def copy_image(x, memory, g, row, column, thread):
        for index in range(thread, (g.down * ROWS + g.kernel_h - 1) * g.pitch, THREADS):
            h, v = i32(row + quotient(index, g.pitch)), i32(column + remainder(index, g.pitch))
            inside = less_unsigned(h, g.from_h) and less_unsigned(v, g.from_w)
            store(memory, i32(index), fetch(x, i32(h * g.from_row + v * g.from_column)) if inside else zero_of(x))

    copy_weights, copy_image = inlined(copy_weights), inlined(copy_image)

    def planes_filter(x, w, bias, y, g, slope, ceiling):
        thread = i32(cuda.threadIdx.x)
        block = i32(cuda.blockIdx.x)
        tile_w, rest = remainder(block, g.tiles_w), quotient(block, g.tiles_w)
        tile_h, rest = remainder(rest, g.tiles_h), quotient(rest, g.tiles_h)
        n, o = quotient(rest, g.channels), remainder(rest, g.channels)
        row, column = i32(tile_h * g.down * ROWS), i32(tile_w * g.across * WIDE)
        weights = shared_memory(x)
        image = advance(weights, i32(g.kernel_h * g.w_pitch))
        copy_weights(advance(w, i32(g.w_first + o * g.w_channel)), weights, g, thread)
        source = advance(x, i32(n * g.from_n + quotient(o, g.multiplier) * g.from_c))
        copy_image(source, image, g, i32(row - g.low_h), i32(column - g.low_w), thread)
        cuda.syncthreads()
        own_w, own_h = remainder(thread, g.across), quotient(thread, g.across)
        if own_h >= g.down:
            return
        sums = zeros(x, points)
        for i in range(ROWS - 1 + g.kernel_h):
            line = advance(image, i32((own_h * ROWS + i) * g.pitch + own_w * WIDE))
            values = load4(line, 0)
            at = i32(0)
            while at + WIDE <= g.kernel_w:
                fresh = load4(line, i32(at + WIDE))
                sums = whole(sums, concatenate(values, fresh), weights, at, i32(i), g)
                values = fresh
                at = i32(at + WIDE)
            sums = part(sums, concatenate(values, load4(line, i32(at + WIDE))), weights, at, i32(i), g)
        row, column = i32(row + own_h * ROWS), i32(column + own_w * WIDE)
        shift = fetch(bias, o) if g.has_bias else zero_of(x)
        target = i32(n * g.to_n + o * g.to_c + row * g.to_row + column * g.to_column)
        write_all(row, (y, target, column, g, sums, shift, slope, ceiling), 0)

    return Code(f"planes_filter.{remaining}.{dtype}", planes_filter, (dtype,) * 4, Filtered, 2, THREADS)


# -- plans ----------------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def tile_of(problem: Problem) -> Tile | None:
    """The tile of a block that wastes the fewest threads, or None where the kernel does not compute the problem."""
    p = problem
    backward = p.pass_name == "grad_input"
    flat = p.input_size[0] == p.output_size[0] == p.kernel_size[0] == 1
    plain = p.padding_mode == "zeros" and p.dtype in ("float32", "float64") and max(p.stride) == max(p.dilation) == 1
    if not (flat and plain and p.flops and p.group_in == 1) or (backward and p.group_out > 1) or index_refusal(p):
        return None
    rows, columns = p.kernel_size[1:]
    to_h, to_w = p.input_size[1:] if backward else p.output_size[1:]
    found = []
    for most in (1, 2, 4, 8, MOST_ACROSS):
        tiles_w = -(-to_w // (most * WIDE))
        across = -(-to_w // (tiles_w * WIDE))
        for limit in {THREADS // across, THREADS // across // 2, THREADS // across // 4} - {0}:
            tiles_h = -(-to_h // (limit * ROWS))
            down = -(-to_h // (tiles_h * ROWS))
            reach = -(-columns // WIDE) * WIDE
            found.append(Tile(rows, columns, across, down, tiles_w, tiles_h, across * WIDE + reach + WIDE, reach))
    fitting = [tile for tile in found if tile.elements() * p.itemsize <= SHARED_BYTES]
    return min(fitting, key=lambda tile: tile.tiles_h * tile.tiles_w * _instructions(tile), default=None)


def _instructions(tile: Tile) -> float:
    """Of a thread."""
    chunks = -(-tile.kernel_w // WIDE)
    rows = tile.kernel_h + ROWS - 1
    return ROWS * WIDE * tile.kernel_h * tile.kernel_w + chunks * (4 * ROWS * rows + 6 * rows) + 20 * tile.elements() / THREADS + 300


class Filters:
    """A forward convolution of planes, or the gradient of its input."""

    packed: tuple[tuple[int, str], ...] = ()
    scratch_bytes = 0

    def __init__(self, problem: Problem):
        p = problem
        tile = tile_of(p)
        assert tile is not None
        strips = strips_of(p, Shape._make((*p.kernel_size[1:], 1, 1)), gpu())
        blocks = tile.tiles_h * tile.tiles_w * strips.images * strips.channels
        geometry = Filtered._make((*strips, *tile))
        self.launch = Launch(filter_code(tile.kernel_w % WIDE, p.dtype), (blocks,), geometry, RECTIFIERS[p.activation],
                             tile.elements() * p.itemsize)

    def pack(self, stream: Stream, second: Any, target: list[Any]) -> None:
        """Weights are read as they lie."""

    def run(self, stream: Stream, first: Any, second: Any, packed: list[Any], bias: Any, out: Any) -> None:
        """Launch the kernel."""
        self.launch(stream, first, second, out if bias is None else bias, out)


def seconds(problem: Problem, machine: Gpu) -> float:
    """Predicted time; infinite for what the kernel does not compute."""
    p = problem
    tile = tile_of(p)
    if tile is None:
        return math.inf
    channels = p.in_channels if p.pass_name == "grad_input" else p.out_channels
    threads = tile.tiles_h * tile.tiles_w * p.batch * channels * THREADS
    return work_seconds(threads * _instructions(tile), threads, p.bytes, p.dtype, machine)


def codes(dtype: str) -> list[Code]:
    """Every kernel that a problem may need."""
    return [filter_code(remaining, dtype) for remaining in range(WIDE)]
