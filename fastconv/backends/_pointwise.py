"""The pure matrix product of `im2col`: kernels of one tap, stride 1 and no border, channels first, as y = w x.

    y[o, p] = bias[o] + sum over c of  w[o, c] * x[c, p]

Rows of the register tile are output channels, its columns pixels: what leaves it is written as it is, where the tiles of
`_gemm` are transposed, which costs as much as 18 input channels. The image is one row of pixels, taken in panels of
`TILE_COLUMNS` vectors; the last, short one of an image is copied and ends in zeros, as are all where channels a multiple of
4 KiB apart would push each other out of the first-level cache. The first tiles of a panel fetch the next one, which comes from
the last-level cache (an Intel server, 256 -> 64 channels at 56 x 56: .37 ms, .42 without; AMD's own prefetching does as well).

The weights are read in place where an output channel's adjoin. Where those of an input channel do, in gradients of the input, each
step of a sum would read a line of its own, a power of two from the last, for a few of its elements: they are packed, tile by tile.

Tried, and did not pay: copying every panel, so that loads are aligned (256 -> 64 channels at 56x56: 79 % of the peak, 88 %
in place); fetching the lines of y ahead (no change).
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
from numba import types
from numba.extending import intrinsic

from ..problem import Problem
from . import Machine
from ._gemm import FULL_ROWS, RUN_ELEMENTS, SERIAL_PACKING, epilogue_of, epilogue_type, panel_width
from ._jit import address_of, addressed, num_threads, outlined
from ._scratch import operand
from ._simd import (
    COUNTER_PITCH,
    TILE_COLUMNS,
    TILE_SIZES,
    advance,
    get,
    lanes_of,
    load,
    load_between,
    load_first,
    own_first,
    parallel_kernel,
    prefetch_read,
    put,
    shared_out,
    store,
    store_first,
    thawed,
    tile_columns_of,
    tile_outer,
    tile_outer_packed,
    tile_store_lanes,
)
from ._simd.emit import call_by_address, pointer_to
from ._weights import WeightLayout

PANEL_BYTES = 256 * 1024  # of pixels by channels: a quarter of a second-level cache
BLOCKS_PER_THREAD = 32  # of panels: enough to balance, few enough counters
ALIASED_BYTES = 4096  # apart, lines share a set of the first-level cache
NEAR_BYTES = 16 * 1024  # of a panel that stays in that cache while so many tiles read it that its copy pays
NEAR_TILES = 6
CHUNK_TILES = 2  # of a task where blocks are few (32 -> 192 at 28 x 28 in MobileNetV2: 82 us with 4, 60)
# An image of so many bytes is not cut where tiles are enough: where threads meet, each row of y has a line that both write.
WHOLE_BYTES, FEWEST_CHUNKS = 256 * 1024, 4
# An image of so many bytes, read by few tiles, comes from the caches of the cores that wrote it: faster in one sweep, the panel's
# copy, than channel by channel in the first tile (576 -> 96 at 14 x 14 in MobileNetV2: 125 us, 106; by itself, 95 both).
PASSED_BYTES = 1024 * 1024
PACKED_PIXELS = 128  # from which packed weights gain more than their packing takes (bench_conv.py, backward, 1x1 at 14x14 and 7x7)
TILE_OVERHEAD = 8  # input channels that filling and storing a tile costs (bench_conv.py, 1x1)
EFFICIENCY = 0.95  # share of the peak in the main loop, other tiles' being .91 (bench_conv.py, 1x1 at 56x56 to 14x14)
SERIAL_FLOPS = 1_500_000  # below which one thread is done before a second has started (benchmarks/bench_conv.py, tiny)


class Product(NamedTuple):
    """The sizes of the product, and its pitches in elements."""

    images: int
    groups: int
    group_in: int
    group_out: int
    pixels: int
    start: int  # of the weights
    w_group: int
    w_output: int
    w_channel: int
    panels: int  # of an image
    blocks: int  # of an image's panels
    in_place: int  # 1 where panels are read where they lie
    tiles: int  # of a group's output channels
    chunk: int  # tiles of a task
    fetches: int  # 1 where the first tiles fetch the next panel


def make_tile(rows: int, columns: int, packed: bool):
    """The micro-kernel of one tile size: `rows` output channels by `columns` vectors of pixels.

    The weights lie anywhere, or are packed: those of an input channel for all rows, then those of the next.
    """

    @addressed
    def tile(w, w_outputs, w_channel, depth, x, x_channel, ahead, bias, y, y_pitch, y_offsets, counts, epilogue):
        acc = tile_columns_of(bias, rows, columns)
        for c in range(depth):
            prefetch_read(x, c * x_channel + ahead)
            if packed:
                acc = tile_outer_packed(acc, advance(w, c * rows), advance(x, c * x_channel), rows)
            else:
                acc = tile_outer(acc, advance(w, c * w_channel), w_outputs, advance(x, c * x_channel), rows)
        tile_store_lanes(y, y_pitch, y_offsets, counts, acc, epilogue, rows)

    return tile


TILES = {(rows, columns, packed): make_tile(rows, columns, packed)
         for rows in TILE_SIZES for columns in (1, TILE_COLUMNS) for packed in (False, True)}


def _signature(p: types.CPointer) -> tuple[types.Type, ...]:
    small, large = types.CPointer(types.int32), types.CPointer(types.int64)
    return (p, small, types.int64, types.int64, p, types.int64, types.int64, p, p, types.int64, large, small, epilogue_type(p))


@functools.cache
def tile_address(rows: int, columns: int, dtype: str, packed: bool = False) -> int:
    """Address of the micro-kernel of so many rows and columns."""
    return address_of(TILES[rows, columns, packed], _signature(pointer_to(dtype)))


@intrinsic
def call_pixel_tile(typingctx, tile, w, w_outputs, w_channel, depth, x, x_channel, ahead, bias, y, y_pitch, y_offsets, counts,
                    epilogue):
    """Call a micro-kernel through its address."""
    return call_by_address(_signature(x))


@outlined
def pack_pixels(x, plane, channels, count, width, panel):
    """panel[c * width + i] = x[c * plane + i] for i < count, zero from there to the end of its vector."""
    lanes = lanes_of(x)
    for c in range(channels):
        if count == width:
            for i in range(0, width, lanes):
                store(panel, c * width + i, load(x, c * plane + i))
        else:
            for i in range(0, count, lanes):
                store(panel, c * width + i, load_between(x, c * plane + i, 0, count - i))


@parallel_kernel
def pack_weights(w, unused, bias, target, constants, scratch, counters, thread, threads):
    """The weights of each tile: those of an input channel for all its rows, then those of the next; by runs of input channels."""
    g, first_outputs, starts, heights, run = thawed(constants)
    lanes = lanes_of(w)
    runs = -(-g.group_in // run)
    for task in shared_out(counters, 1, g.groups * runs):
        group, first = task // runs, task % runs * run
        matrix, packed = advance(w, g.start + group * g.w_group), advance(target, group * starts[g.tiles])
        for t in range(g.tiles):
            rows, source, to = heights[t], advance(matrix, first_outputs[t] * g.w_output), advance(packed, starts[t])
            for c in range(first, min(g.group_in, first + run)):
                if g.w_output == 1:
                    for r in range(0, rows, lanes):
                        store_first(to, c * rows + r, load_first(source, c * g.w_channel + r, rows - r), rows - r)
                else:
                    for r in range(rows):
                        put(to, c * rows + r, get(source, c * g.w_channel + r * g.w_output))


@parallel_kernel
def pointwise_forward(x, w, bias, y, constants, scratch, counters, thread, threads):
    """y = epilogue(w x + bias), by block of pixels and chunk of output channels.

    A thread that helps with another's chunks packs their pixels again.
    """
    g, addresses, first_outputs, starts, w_outputs, y_offsets, counts, width, epilogue, shares = thawed(constants)
    lanes = lanes_of(x)
    chunks = -(-g.tiles // g.chunk)
    packed = -1
    for task in own_first(counters, thread, shares, g.images * g.groups * g.blocks * chunks):
        block, chunk = task // chunks, task % chunks
        matrix, part = block // g.blocks, block % g.blocks
        group = matrix % g.groups
        source = advance(x, matrix * g.group_in * g.pixels)
        target = advance(y, matrix * g.group_out * g.pixels)
        weights, biases = advance(w, g.start + group * g.w_group), advance(bias, group * g.group_out)
        for panel in range(g.panels * part // g.blocks, g.panels * (part + 1) // g.blocks):
            pixel = panel * width
            count = min(width, g.pixels - pixel)
            pixels, pitch = scratch, width
            if g.in_place == 1 and count == width:
                pixels, pitch = advance(source, pixel), g.pixels
            elif matrix * g.panels + panel != packed:
                pack_pixels(advance(source, pixel), g.pixels, g.group_in, count, width, scratch)
                packed = matrix * g.panels + panel
            short = 1 if count <= lanes else 0
            for t in range(chunk * g.chunk, min(g.tiles, (chunk + 1) * g.chunk)):
                output = first_outputs[t]
                turn = t - chunk * g.chunk  # the first tiles fetch the next panel
                ahead = width + turn * lanes if g.fetches == 1 and turn < TILE_COLUMNS else 0
                call_pixel_tile(addresses[TILE_COLUMNS * t + short], advance(weights, starts[t]), w_outputs, g.w_channel,
                                g.group_in, pixels, pitch, ahead, advance(biases, output), advance(target, output * g.pixels + pixel),
                                g.pixels, y_offsets, advance(counts, TILE_COLUMNS * count), epilogue)


def tiles_of(outputs: int) -> list[tuple[int, int]]:
    """(first output, rows) of the tiles that cover so many channels at the least cost; the last may overlap the one before."""
    costs: list[tuple[int, tuple[int, ...]]] = [(0, ())]
    for count in range(1, outputs + 1):
        costs.append(min((costs[max(0, count - rows)][0] + max(rows, FULL_ROWS) + 1, (*costs[max(0, count - rows)][1], rows))
                         for rows in TILE_SIZES if rows <= outputs))
    firsts, first = [], 0
    for rows in sorted(costs[outputs][1], reverse=True):
        firsts.append((min(first, outputs - rows), rows))
        first += rows
    return firsts


def product_seconds(problem: Problem, machine: Machine) -> float:
    """Time of the product on one thread, vectors of pixels beyond an image included."""
    p = problem
    lanes = panel_width(p.dtype) // TILE_COLUMNS
    pixels = p.batch * p.groups * -(-math.prod(p.output_size) // lanes) * lanes
    outputs = sum(max(rows, FULL_ROWS) for _, rows in tiles_of(p.group_out))
    return 2 * pixels * outputs * (p.group_in + TILE_OVERHEAD) / (EFFICIENCY * machine.flops(p.dtype))


class PointwiseForward:
    """The forward pass of a kernel of one tap, channels first."""

    def __init__(self, problem: Problem, layout: WeightLayout):
        p = problem
        threads = num_threads()
        width, lanes = panel_width(p.dtype), panel_width(p.dtype) // TILE_COLUMNS
        tiles = tiles_of(p.group_out)
        pixels = math.prod(p.output_size)
        panels = -(-pixels // width)
        whole = p.group_in * pixels * p.itemsize <= WHOLE_BYTES and len(tiles) >= FEWEST_CHUNKS * threads
        blocks = 1 if whole else min(panels, -(-BLOCKS_PER_THREAD * threads // (p.batch * p.groups)))
        few = p.batch * p.groups * blocks < BLOCKS_PER_THREAD * threads
        panel_bytes = p.group_in * width * p.itemsize
        aliased = pixels * p.itemsize % ALIASED_BYTES == 0 and panel_bytes <= NEAR_BYTES and len(tiles) >= NEAR_TILES
        near = not whole and len(tiles) < FEWEST_CHUNKS * threads and p.group_in * pixels * p.itemsize <= PASSED_BYTES
        copied = aliased or near
        product = Product(p.batch, p.groups, p.group_in, p.group_out, pixels, layout.start, layout.group, layout.output, layout.channel,
                          panels, blocks, int(not copied), len(tiles), min(len(tiles), CHUNK_TILES) if few else len(tiles),
                          int(not copied and not whole))
        packs = abs(layout.output) < abs(layout.channel) and p.batch * pixels >= PACKED_PIXELS and p.flops > SERIAL_FLOPS
        addresses = np.array([tile_address(rows, columns, p.dtype, packs) for _, rows in tiles for columns in (TILE_COLUMNS, 1)], np.int64)
        firsts, heights = np.array(tiles, np.int64).T.copy()
        starts = firsts * layout.output
        self.packing = None
        if packs:
            starts = np.append(0, np.cumsum(heights) * p.group_in)
            self.packed = p.groups * int(starts[-1])
            run = max(1, RUN_ELEMENTS // (p.group_out * abs(layout.output)))
            self.packing = pack_weights.bind(p.dtype, (product, firsts, starts, heights, run), parallel=self.packed > SERIAL_PACKING)
            product = product._replace(start=0, w_group=int(starts[-1]))
        w_outputs = (np.arange(TILE_SIZES[0]) * layout.output).astype(np.int32)
        pixels_left = np.arange(width + 1)[:, None] - np.arange(TILE_COLUMNS) * lanes
        counts = np.clip(pixels_left, 0, lanes).astype(np.int32).ravel()
        constants = (product, addresses, firsts, starts, w_outputs, np.arange(TILE_COLUMNS) * lanes, counts, width,
                     epilogue_of(p), threads)
        self.no_bias = np.zeros(p.out_channels, p.dtype)
        self.kernel = pointwise_forward.bind(p.dtype, constants, scratch=p.group_in * width, counters=threads * COUNTER_PITCH,
                                             parallel=p.flops > SERIAL_FLOPS)
        self.scratch_bytes = self.kernel.scratch_bytes(threads)

    @staticmethod
    def takes(problem: Problem) -> bool:
        """Whether the convolution is a product of matrices with a panel of pixels or more, which a cache holds."""
        p = problem
        return (not p.channels_last and math.prod(p.kernel_size) == math.prod(p.stride) == 1 and not any(map(any, p.padding))
                and p.group_out >= TILE_SIZES[-1] and math.prod(p.output_size) >= panel_width(p.dtype)
                and p.batch * p.group_in > 0
                and p.group_in * panel_width(p.dtype) * p.itemsize <= PANEL_BYTES)

    def pack(self, w: np.ndarray) -> np.ndarray:
        w = w.reshape(-1)
        if self.packing is None:
            return w
        packed = operand(self.packed, w.dtype)
        self.packing(w, w, w, packed)
        return packed

    def run(self, x: np.ndarray, packed: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> None:
        self.kernel(x, packed, self.no_bias if bias is None else bias, out)
