"""The forward pass by minimal filtering for weights that are used once: in plain calls and gradients of the input.

Transformed weights are several times as large as the weights, so writing them to memory and reading them again takes longer
than the products where images are small and channels are many. Here they never leave a core's cache:

    transform    all tiles of the batch, shared by the threads                       V[product][strip][tile][channel]
    per panel of output channels and block of tiles, for some channels at a time
        pack         their weights, read where they lie                              [channel][tap][width]
        transform    them                                                            U[product][channel][width]
        multiply     all tiles of the block with them, on top of the sums so far
    transform    the sums back to output points, and write them

Weights are read once for each block of tiles, of which there is one where images are small; those of the next channels are fetched
during the products (512 channels at 7 x 7, gradient of the input: 1.3 ms without, 0.8 with).

Tried, and did not pay: taking the next panel early, to fetch its first weights too (1 to 3% of the same, and threads less balanced).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..problem import Problem
from ._bilinear import transform_address
from ._boxes import fill_run, strides_of
from ._cook_toom import OUTPUT
from ._gemm import PaddedBias, epilogue_of, multiply_rows, pack_rows, panel_width, tile_addresses, weight_matrices
from ._jit import num_threads, outlined
from ._scratch import shared
from ._simd import (
    TILE_ROWS,
    advance,
    as_int32,
    get,
    lane_count,
    lanes_of,
    next_task,
    parallel_kernel,
    prefetch_read,
    put,
    raise_flag,
    thawed,
    zero_element,
)
from ._weights import JointLayout, WeightLayout
from ._winograd_choice import SERIAL_FLOPS, Algorithm, channels_at_once, odd_lines, strips_at_once, vectors_of
from ._winograd_tiles import bind_input_transform, store_tiles
from ._winograd_weights import transform_panel, weight_taps


class Once(NamedTuple):
    """A forward convolution cut into blocks of strips, a strip being the tiles that share a row of them; integers only."""

    groups: int
    group_out: int
    strips: int  # of the result: of all images and depths
    block: int  # of a task
    channels_at_once: int
    out_d: int
    out_h: int
    out_w: int
    y_image: int
    y_channel: int
    y_point: int
    tiles_down: int
    across: int
    stride_d: int
    lines: int  # pitches of V
    v_strip: int
    v_plane: int
    v_depth: int  # from one depth tap to the next
    v_product: int
    v_group: int
    products_h: int
    m_product: int
    u_product: int
    tile_h: int
    tile_w: int
    dilation_h: int
    dilation_w: int
    products_w: int


class Space(NamedTuple):
    """Sizes, in elements of the dtype, of what a thread keeps in scratch; each part starts at a cache line."""

    folded: int
    packed: int  # weights of some channels
    u: int  # the same, transformed
    sums: int
    rows: int  # finished rows of output points, a panel wide
    tiles: int  # offset of each tile in a product's plane of V


@outlined
def tile_table(o, first, last, tiles):
    """Offsets of the tiles of some strips in a product's plane of V; the last is repeated, so that a register tile may run over."""
    count = o.dilation_h * o.across * o.dilation_w
    to = 0
    for strip in range(first, last):
        row, depth, image = strip % o.tiles_down, strip // o.tiles_down % o.out_d, strip // (o.tiles_down * o.out_d)
        start = (image * o.tiles_down + row) * o.v_strip + depth * o.stride_d * o.v_plane
        for tile in range(count):
            put(tiles, to + tile, np.int32(start + tile * o.lines))
        to += count
    for i in range(TILE_ROWS):
        put(tiles, to + i, get(tiles, to - 1))
    return to


@outlined
def pack_channels(t, m, source, group, panel, first, count, packed):
    """Pack a panel's weights of some channels in the order of the weights' own layout."""
    taps = t.kernel_d * t.kernel_h * t.kernel_w
    if t.channels_last:
        for tap in range(taps):
            pack_rows(m, source, group, panel, tap * t.channels + first, count, advance(packed, tap * count * t.panel), t.panel)
    else:
        pack_rows(m, source, group, panel, first * taps, count * taps, packed, t.panel)


@outlined
def fetch_channels(t, m, source, group, panel, first, last):
    """Ask for a panel's weights of some channels ahead of their packing, of channels first."""
    taps = t.kernel_d * t.kernel_h * t.kernel_w
    columns = min(t.panel, m.columns - panel * t.panel)
    at = advance(source, panel * t.panel * m.column_pitch)
    for c in range(first, last):
        if m.k_pitch == 0:  # by table, as the gradient of the input finds them: a channel's kernels adjoin, taps in any order
            offsets = advance(m.k_offsets, group * m.k_offsets_pitch + c * taps)
            start = max(0, min(get(offsets, 0), get(offsets, taps - 1)))
            for i in range(0, columns * m.column_pitch, lanes_of(source)):
                prefetch_read(at, start + i)
        else:
            for i in range(columns):
                prefetch_read(at, i * m.column_pitch + c * taps)


@outlined
def store_strips(o, output_transform, sums, width, bias, first, last, rows, ramp, y, channels, epilogue):
    """Transform the sums of some strips back and write them, by image and depth; returns whether all results are finite."""
    tile_row = o.tile_h * o.dilation_h
    strip = first
    finite = True
    while strip < last:
        plane, row = strip // o.tiles_down, strip % o.tiles_down
        down = min(o.tiles_down - row, last - strip)
        start = (plane // o.out_d, plane % o.out_d, row * tile_row, 0)
        end = (start[0] + 1, start[1] + 1, min((row + down) * tile_row, o.out_h), o.out_w)
        to = advance(y, start[0] * o.y_image + start[1] * o.out_h * o.out_w * o.y_point)
        tile = (strip - first) * o.dilation_h * o.across * o.dilation_w
        finite &= store_tiles(o, o, output_transform, sums, width, bias, tile, down, o.across, start, end, rows, ramp, to, channels,
                              epilogue)
        strip += down
    return finite


@parallel_kernel
def winograd_once(v, w, bias, y, constants, scratch, counters, thread, threads):
    """y = epilogue(products of the transformed tiles v with the weights w, transformed here, + bias), by (group, panel, block)."""
    register_tiles, o, t, m, output_transform, space, k_offsets, ramp, zeros, epilogue = thawed(constants)
    width = t.panel
    per_group = -(-o.group_out // width)
    blocks = -(-o.strips // o.block)
    folds = t.fold_h * t.fold_w
    packed = advance(scratch, space.folded)
    u = advance(packed, space.packed)
    sums = advance(u, space.u)
    rows = advance(sums, space.sums)
    tiles = as_int32(advance(rows, space.rows))
    fill_run(scratch, t.height * t.width * lanes_of(w), zero_element(w))
    while True:
        task = next_task(counters)
        if task >= o.groups * per_group * blocks:
            break
        block, panel, group = task % blocks, task // blocks % per_group, task // (blocks * per_group)
        first, last = block * o.block, min((block + 1) * o.block, o.strips)
        points = tile_table(o, first, last, tiles)
        outputs = min(width, o.group_out - panel * width)
        # The weights may count their groups otherwise: those of a strided gradient's phases lie in one array.
        panels = -(-m.columns // width)
        matrix, column = (group * per_group + panel) // panels, (group * per_group + panel) % panels
        source = advance(w, m.start + matrix * m.group_pitch)
        for c in range(0, t.channels, o.channels_at_once):
            count = min(o.channels_at_once, t.channels - c)
            pack_channels(t, m, source, matrix, column, c, count, packed)
            for d in range(t.kernel_d):
                transform_panel(t, packed, count, d, o.u_product, u, scratch)
            following = c + count
            ahead = 0 if t.channels_last else min(o.channels_at_once, t.channels - following)
            for product in range(t.products):
                fetch_channels(t, m, source, matrix, column, following + ahead * product // t.products,
                               following + ahead * (product + 1) // t.products)
                for d in range(t.kernel_d):
                    at = advance(v, group * o.v_group + product * o.v_product + d * o.v_depth + c * folds)
                    weights = advance(u, product * o.u_product + d * count * folds * width)
                    begun = c + d > 0
                    to = advance(sums, product * o.m_product)
                    multiply_rows(register_tiles, points, at, tiles, k_offsets, count * folds, weights, width,
                                  to if begun else zeros, width if begun else 0, to, outputs, 0)
        output = group * o.group_out + panel * width
        if not store_strips(o, output_transform, sums, width, advance(bias, (group * per_group + panel) * width), first, last, rows, ramp,
                            advance(y, output * o.y_channel), outputs, epilogue):
            raise_flag(counters)


class ForwardOnce:
    """A forward convolution with weights as they lie: `run(x, w, bias, out)`."""

    def __init__(self, problem: Problem, algorithm: Algorithm, layout: WeightLayout | JointLayout):
        p, a = problem, algorithm
        lanes, width = lane_count(p.dtype), panel_width(p.dtype)
        tiles_down, across = a.tiles(p)
        self.transform, v = bind_input_transform(p, a, p.batch * tiles_down, vectors_of(a.channels(p), p.dtype))
        self.size = v.groups * v.group
        self.chunk = np.array([0, p.batch * tiles_down], np.int64).view(p.dtype)
        taps, matrices = weight_taps(p, a), weight_matrices(p, layout)
        (out_d, out_h, out_w), (dd, dh, dw) = p.output_size, p.dilation
        y_image, y_channel, _, _, y_point = strides_of(p.out_channels, p.output_size, p.channels_last)
        strips, channels, folds = p.batch * out_d * tiles_down, channels_at_once(p, a), a.fold_h * a.fold_w
        block = strips_at_once(p, a)
        tiles = block * dh * across * dw
        o = Once(p.groups, p.group_out, strips, block, channels, out_d, out_h, out_w, y_image, y_channel, y_point, tiles_down, across,
                 p.stride[0], vectors_of(a.channels(p), p.dtype), v.strip, v.plane, dd * v.plane, v.group // a.products, v.group,
                 a.high.products, odd_lines((tiles + TILE_ROWS) * width, lanes),
                 odd_lines(p.kernel_size[0] * channels * folds * width, lanes), a.high.outputs, a.wide.outputs, dh, dw, a.wide.products)
        counts = (taps.folded * lanes, channels * p.taps // max(1, p.group_in) * width, a.products * o.u_product,
                  a.products * o.m_product, a.high.outputs * across * a.wide.outputs * dw * width, tiles + TILE_ROWS)
        space = Space(*(-(-count // 16) * 16 + 16 for count in counts))
        constants = (tile_addresses(p.dtype), o, taps, matrices, transform_address(OUTPUT, *a.keys, p.dtype), space,
                     np.arange(channels * folds, dtype=np.int32), np.arange(a.high.outputs * out_w) * y_point, np.zeros(width, p.dtype),
                     epilogue_of(p))
        self.kernel = winograd_once.bind(p.dtype, constants, scratch=sum(space), parallel=p.flops > SERIAL_FLOPS)
        self.bias = PaddedBias(p, width)
        self.scratch_bytes = self.size * p.itemsize + max(kernel.scratch_bytes(num_threads()) for kernel in (self.transform, self.kernel))

    def run(self, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> bool:
        x = x.reshape(-1)
        v = shared("v", self.size, x.dtype)
        self.transform(x, self.chunk, self.chunk, v)
        return not self.kernel(v, w.reshape(-1), self.bias(bias), out.reshape(-1))
