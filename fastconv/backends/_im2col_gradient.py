"""The weight gradient of `im2col`: the rows of the product are taps, its k the output points, its columns output channels.

gy is packed into panels; a chunk's sums go on from box to box, in blocks of points that a float32 sum can take.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..problem import Problem
from ._boxes import (
    add_run,
    box_end,
    box_start,
    box_tables,
    copy_run,
    input_offset,
    make_space,
    pack_box,
    space_of,
)
from ._gemm import NO_OFFSETS, Epilogue, Matrices, PanelPacking, multiply_tile, panel_width, store_points, tile_addresses
from ._im2col_choice import SERIAL_FLOPS, gradient_tasks, turned_gradient
from ._jit import inlined, num_threads
from ._simd import COUNTER_PITCH, TILE_ROWS, advance, get, lanes_of, own_first, parallel_kernel, prefetch_write, thawed, zero_element

SUMMED_POINTS = 4096  # terms of a float32 sum in a row: 10^6 of them erred by 6e-6 to 5e-5, blocks of these by 1e-6


class Blocks(NamedTuple):
    """How a long sum over output points is cut, so that float32 does not lose what is small beside it."""

    boxes: int  # of a block: as many as have SUMMED_POINTS points
    points: int  # of a block, where a box has more
    totals: int  # where the finished blocks' sums stand behind the current one's


@inlined
def sum_points(tiles, blocks, box, last, left, x, row_offsets, k_offsets, points, w, width, zeros, sums, count):
    """Sums of a tile of at most `left` rows over a box's points, from box to box; with the `last`, of all boxes."""
    rows = 0
    totals = advance(sums, blocks.totals)
    for p in range(0, points, blocks.points):
        fresh = p > 0 or box % blocks.boxes == 0
        rows = multiply_tile(tiles, left, x, row_offsets, advance(k_offsets, p), min(blocks.points, points - p), advance(w, p * width),
                             width, zeros if fresh else sums, 0 if fresh else width, sums, count)
        more = p > 0 or box >= blocks.boxes  # than this block so far
        if last and p + blocks.points >= points:
            if more:
                add_run(sums, totals, rows * width)
        elif p + blocks.points < points or (box + 1) % blocks.boxes == 0:
            if more:
                add_run(totals, sums, rows * width)
            else:
                copy_run(totals, sums, rows * width)
    return rows


@parallel_kernel
def im2col_grad_weight(x, gy, bias, parts, constants, scratch, counters, thread, threads):
    """parts[share] = gradient of the weights over the share's boxes, by (share, group, chunk of its channels, share of its panels).

    The rows of the product are the chunk's taps, its k the output points; sums go on from box to box in scratch.
    """
    tiles, g, rows, targets, zeros, borders, space, blocks, chunk, kernel_points, width, splits, shares, size = thawed(constants)
    per_group = -(-g.group_out // width)
    chunks = -(-g.group_in // chunk)
    boxes_per_image = -(-g.out_d // g.box_d) * -(-g.out_h // g.box_h)
    boxes = -(-g.out_n // g.box_n) * boxes_per_image
    image_points = g.out_d * g.out_h * g.out_w
    identity = Epilogue(False, zero_element(x), zero_element(x))
    packed, sums, x_offsets, y_offsets = space_of(space, scratch)
    for task in own_first(counters, thread, threads, shares * g.groups * chunks * splits):
        split = task % splits
        group = task // (splits * chunks) % g.groups
        first = task // splits % chunks * chunk
        share = task // (splits * chunks * g.groups)
        channels = min(chunk, g.group_in - first)
        taps = channels * kernel_points
        first_panel, last_panel = per_group * split // splits, per_group * (split + 1) // splits
        first_box, last_box = boxes * share // shares, boxes * (share + 1) // shares
        # Sums that a single box makes only pass through the first-level cache.
        block = (taps + TILE_ROWS) * width if last_box - first_box > 1 else 0
        for box in range(first_box, last_box):
            start = box_start(g, box)
            end = box_end(g, start[0], start[1], start[2], start[3])
            points = box_tables(g, start, end, x_offsets, y_offsets, TILE_ROWS)
            channel = group * g.group_in + first
            if g.in_place == 0:
                pack_box(g, x, zero_element(x), borders, start, end, channel, channels, packed)
                source = packed
            else:
                source = advance(x, input_offset(g, start[0], start[1], start[2], start[3]) + channel * g.x_channel)
            point = (start[1] * g.out_h + start[2]) * g.out_w
            for panel in range(first_panel, last_panel):
                w = advance(gy, (((group * per_group + panel) * g.out_n + start[0]) * image_points + point) * width)
                own = advance(sums, (panel - first_panel) * block)
                count = min(width, g.group_out - panel * width)
                output = group * g.group_out + panel * width
                result = advance(parts, share * size + output * space.gw_output + first * space.gw_channel)
                row = stored = 0
                while row < taps:
                    if box == last_box - 1 and space.gw_output == 1:
                        for r in range(row, min(taps, row + TILE_ROWS)):
                            for c in range(0, count, lanes_of(x)):
                                prefetch_write(result, get(targets, r) + c)
                    row += sum_points(tiles, blocks, box - first_box, box == last_box - 1, taps - row, source, advance(rows, row),
                                      x_offsets, points, w, width, zeros, advance(own, row * width), count)
                    if box == last_box - 1 and (row == taps or space.gw_output == 1):
                        store_points(advance(own, stored * width), width, row - stored, result, advance(targets, stored),
                                     space.gw_output, count, identity)
                        stored = row


class GradWeight:
    """The weight gradient: `pack` makes panels of gy, `run` multiplies them with x.

    `turned` writes gw[channel][output] of a single group without borders and a kernel of one tap.
    """

    def __init__(self, problem: Problem, turned: bool = False):
        p = self.problem = problem
        self.turned = turned
        self.width = panel_width(p.dtype)
        threads = num_threads()
        self.kernel_points = math.prod(p.kernel_size)
        panels = -(-p.group_out // self.width)
        g, self.chunk, splits, self.shares = gradient_tasks(p, threads)
        self.geometry, size = g, math.prod(p.weight_shape)
        rows, targets, gw_pitches = self._tables()
        sums = (self.chunk * self.kernel_points + TILE_ROWS) * -(-panels // splits) * self.width
        together = max(1, SUMMED_POINTS // g.points)
        several = g.points > SUMMED_POINTS or -(-g.boxes // self.shares) > together
        blocks = Blocks(together, SUMMED_POINTS, sums if several else 0)
        space = make_space(g.packed, 2 * sums if several else sums, g.points + TILE_ROWS, p.dtype, gw_pitches)
        constants = (tile_addresses(p.dtype), g, rows, targets, np.zeros(self.width, p.dtype), p.border_sources(), space, blocks,
                     self.chunk, self.kernel_points, self.width, splits, self.shares, size)
        self.kernel = im2col_grad_weight.bind(p.dtype, constants, scratch=space.size, counters=num_threads() * COUNTER_PITCH,
                                              parallel=p.flops > SERIAL_FLOPS)
        self.scratch_bytes = self.kernel.scratch_bytes(threads) + (self.shares * size * p.itemsize if self.shares > 1 else 0)
        points = math.prod(p.output_size)
        pitches = (p.group_out, 1, p.out_channels) if p.channels_last else (p.group_out * points, points, 1)
        matrices = Matrices(p.batch, p.groups, p.group_out, points, 0, p.out_channels * points, *pitches, NO_OFFSETS, 0, points)
        self.pack = PanelPacking(matrices, self.width, p.dtype)

    def _tables(self) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
        """Offsets of a chunk's taps in x and in gw, channel by channel, and gw's pitches (output channel, input channel)."""
        p, g = self.problem, self.geometry
        kd, kh, kw = (np.arange(k) * d for k, d in zip(p.kernel_size, p.dilation, strict=True))
        spatial = (kd[:, None, None] * g.p_d + kh[:, None] * g.p_h + kw * g.p_w).ravel()
        channel = np.arange(self.chunk)[:, None]
        pitches = (1, p.out_channels) if p.channels_last or self.turned else (p.taps, self.kernel_points)
        point = np.arange(self.kernel_points) * (p.group_in * p.out_channels if p.channels_last else 1)
        rows = (channel * g.p_channel + spatial).astype(np.int32).ravel()
        targets = (channel * pitches[1] + point).astype(np.int64).ravel()
        return np.pad(rows, (0, TILE_ROWS), mode="edge"), np.pad(targets, (0, TILE_ROWS), mode="edge"), pitches

    def run(self, x: np.ndarray, packed: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> None:
        if self.shares == 1:
            self.kernel(x, packed, packed, out)
            return
        parts = np.empty((self.shares, out.size), out.dtype)
        self.kernel(x.reshape(-1), packed, packed, parts.reshape(-1))
        with np.errstate(invalid="ignore", over="ignore"):
            np.sum(parts, axis=0, out=out.reshape(-1))


class PointwiseGradWeight:
    """The weight gradient of a kernel of one tap, channels first: gw is gy times the panels of x.

    The lanes are then input channels, rows of gw, which is written without a transpose: 2048 -> 512 channels at 7x7 took .43 ms
    the other way round. And where x is smaller than gy, there is less to pack: 64 -> 256 at 56x56 .51 ms, so .44.
    """

    def __init__(self, problem: Problem):
        p = problem
        self.kernel = GradWeight(turned_gradient(p), turned=True)
        self.scratch_bytes = self.kernel.scratch_bytes + math.prod(p.input_shape) * p.itemsize

    def pack(self, gy: np.ndarray) -> np.ndarray:
        return gy

    def run(self, x: np.ndarray, packed: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> None:
        self.kernel.run(packed, self.kernel.pack(x), bias, out)
