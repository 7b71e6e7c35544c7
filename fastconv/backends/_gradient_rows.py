"""The weight gradient of `im2col` of few points, channels first: rows of gw as they lie.

    gw[o, (c, t)] = sum over p of  gy[o, p] * columns[p, (c, t)]        columns[p, (c, t)] = x[c, stride p + dilation t - low]

The rows of the product are output channels, read from gy in place; its columns are taps of a few input channels, panels of which
are gathered from a padded copy of theirs. Writing gw takes as long as the products where points are few, and the other way round
(`_im2col_gradient`), where lanes are output channels, each vector of it would be written by a transpose.

Tried, and did not pay: writing gw past the caches (512 channels at 7 x 7 6% faster, stride 2 from 256 channels at 14 x 14 half as
fast).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..problem import Problem
from . import Machine
from ._boxes import (
    TASKS_PER_THREAD,
    Geometry,
    box_end,
    box_start,
    box_tables,
    copy_run,
    cut,
    input_offset,
    make_space,
    pack_box,
    space_of,
    speedup,
)
from ._gemm import multiply_tile, panel_width, tile_addresses
from ._jit import num_threads, outlined
from ._planes import uses_threads
from ._simd import (
    COUNTER_PITCH,
    TILE_COLUMNS,
    TILE_ROWS,
    advance,
    as_int32,
    get,
    lane_count,
    lanes_of,
    load_first,
    own_first,
    parallel_kernel,
    prefetch_write,
    put,
    store_first,
    thawed,
    zero_element,
)

MOST_POINTS = 128  # of all images; of more, gw is written fast enough the other way round (bench_conv.py, backward, 3x3_512@14)
# The cost model (bench_conv.py, backward, 3x3_512@7, 3x3s2_256@14):
TILE_OVERHEAD = 10  # steps of a sum that filling a tile and writing its rows costs
EFFICIENCY, SINGLE_EFFICIENCY = 0.91, 0.62  # share of the peak in the products, of panels of two vectors and of one
GATHERED_COST = 4  # vector multiply-adds of an element of a panel
CALL_SECONDS = 1e-6  # of Python around a run


class Rows(NamedTuple):
    """How gw is shared out; integers only, as the kernel takes it."""

    chunk: int  # input channels of a task
    taps: int  # of a channel
    boxes: int
    most: int  # points of a box


@outlined
def gather_panel(packed, offsets, count, x_offsets, points, width, panel):
    """panel[p * width + i] = packed[x_offsets[p] + offsets[i]] for i < count, zero beyond."""
    for i in range(width):
        if i < count:
            source = advance(packed, get(offsets, i))
            for p in range(points):
                put(panel, p * width + i, get(source, get(x_offsets, p)))
        else:
            for p in range(points):
                put(panel, p * width + i, zero_element(packed))


@outlined
def store_rows(sums, width, rows, count, gw, pitch, begun):
    """Write the first `count` columns of some rows, or add them where gw has been begun."""
    lanes = lanes_of(sums)
    for r in range(rows):
        at, row = advance(gw, r * pitch), advance(sums, r * width)
        if begun:
            for i in range(0, count, lanes):
                left = count - i
                store_first(at, i, load_first(at, i, left) + load_first(row, i, left), left)
        else:
            copy_run(at, row, count)


@outlined
def multiply_panels(tiles, c, g, gy, k_offsets, points, panels, width, columns, rows, zeros, sums, gw, begun):
    """Multiply all output channels of a group with a box's panels, and write the products."""
    pitch = g.group_in * c.taps
    output = 0
    while output < g.group_out:
        left, taken = g.group_out - output, 0
        table = advance(rows, min(left, TILE_ROWS) * TILE_ROWS)
        for panel in range(0, columns, width):
            count = min(width, columns - panel)
            target = advance(gw, output * pitch + panel)
            for r in range(min(left, TILE_ROWS)):
                for i in range(0, count, lanes_of(gy)):
                    prefetch_write(target, r * pitch + i)
            taken = multiply_tile(tiles, left, advance(gy, output * g.y_channel), table, k_offsets, points,
                                  advance(panels, panel * c.most), width, zeros, 0, sums, count)
            store_rows(sums, width, taken, count, target, pitch, begun)
        output += taken


@parallel_kernel
def im2col_gradient_rows(x, gy, unused, gw, constants, scratch, counters, thread, threads):
    """gw by (group, chunk of input channels)."""
    tiles, g, c, offsets, rows, zeros, borders, space, width, shares = thawed(constants)
    chunks = -(-g.group_in // c.chunk)
    packed, sums, x_offsets, y_offsets = space_of(space, scratch)
    k_offsets = as_int32(advance(sums, TILE_ROWS * width))
    panels = advance(sums, TILE_ROWS * width + c.most)
    for task in own_first(counters, thread, shares, g.groups * chunks):
        group, first = task // chunks, task % chunks * c.chunk
        channels = min(c.chunk, g.group_in - first)
        columns = channels * c.taps
        result = advance(gw, (group * g.group_out * g.group_in + first) * c.taps)
        for box in range(c.boxes):
            start = box_start(g, box)
            end = box_end(g, start[0], start[1], start[2], start[3])
            points = box_tables(g, start, end, x_offsets, y_offsets, 0)
            for p in range(points):
                put(k_offsets, p, np.int32(get(y_offsets, p)))
            channel = group * g.group_in + first
            source = packed
            if g.in_place == 0:
                pack_box(g, x, zero_element(x), borders, start, end, channel, channels, packed)
            else:
                source = advance(x, input_offset(g, start[0], start[1], start[2], start[3]) + channel * g.x_channel)
            for panel in range(0, columns, width):
                gather_panel(source, advance(offsets, panel), min(width, columns - panel), x_offsets, points, width,
                             advance(panels, panel * c.most))
            multiply_panels(tiles, c, g, advance(gy, group * g.group_out * g.y_channel), k_offsets, points, panels, width, columns, rows,
                            zeros, sums, result, box > 0)


def gradient_chunk(problem: Problem, threads: int) -> int:
    """Input channels of a task: whole panels, and tasks enough."""
    p = problem
    chunk = panel_width(p.dtype)
    while chunk > 2 and p.groups * -(-p.group_in // chunk) < TASKS_PER_THREAD * threads:
        chunk //= 2
    return min(chunk, p.group_in)


def takes_rows(problem: Problem) -> bool:
    """Whether points are so few that writing gw takes as long as the products, and taps fill the lanes.

    Of one tap, panels are packed sooner than gathered.
    """
    p = problem
    return (not p.channels_last and math.prod(p.kernel_size) > 1 and p.batch * math.prod(p.output_size) <= MOST_POINTS
            and p.taps >= panel_width(p.dtype) and p.group_out >= 2 * TILE_ROWS and 0 not in p.output_shape)


def rows_seconds(problem: Problem, machine: Machine) -> float:
    """Time of the products, of gathering their panels and of writing gw; infinite where it does not pay."""
    p = problem
    if not takes_rows(p):
        return math.inf
    chunk, lanes, points = gradient_chunk(p, machine.threads), lane_count(p.dtype), p.batch * math.prod(p.output_size)
    chunks = p.groups * -(-p.group_in // chunk)
    vectors = -(-chunk * math.prod(p.kernel_size) // lanes)
    single = vectors % TILE_COLUMNS
    columns = chunks * lanes * ((vectors - single) / EFFICIENCY + single / SINGLE_EFFICIENCY)
    multiply = 2 * p.group_out * columns * (points + TILE_OVERHEAD)
    gathered = 2 * lanes * GATHERED_COST * points * p.groups * p.taps
    work = (multiply + gathered) / machine.flops(p.dtype) + p.bytes / machine.cache_bandwidth
    return CALL_SECONDS + machine.region_seconds + work / speedup(chunks, machine.threads)


class GradientRows:
    """The weight gradient; `pack` leaves gy as it is."""

    def __init__(self, problem: Problem):
        p = self.problem = problem
        width, threads, lanes = panel_width(p.dtype), num_threads(), lane_count(p.dtype)
        chunk, taps = gradient_chunk(p, threads), math.prod(p.kernel_size)
        g = cut(p, 1, channels=chunk, column_multiple=max(p.output_size[2], 1))
        most = -(-g.points // lanes) * lanes
        c = Rows(chunk, taps, g.boxes, most)
        panels = -(-chunk * taps // width)
        space = make_space(g.packed, (TILE_ROWS + panels * most) * width + most, g.points + TILE_ROWS, p.dtype)
        constants = (tile_addresses(p.dtype), g, c, self._offsets(g), self._rows(g), np.zeros(width, p.dtype), p.border_sources(), space,
                     width, threads)
        self.kernel = im2col_gradient_rows.bind(p.dtype, constants, scratch=space.size, counters=threads * COUNTER_PITCH,
                                                parallel=uses_threads(p))
        self.scratch_bytes = self.kernel.scratch_bytes(threads)

    def _offsets(self, g: Geometry) -> np.ndarray:
        """Offset of each column in the padded copy of a chunk."""
        d, h, w = (np.arange(k) * d for k, d in zip(self.problem.kernel_size, self.problem.dilation, strict=True))
        spatial = (d[:, None, None] * g.p_d + h[:, None] * g.p_h + w * g.p_w).ravel()
        return (np.arange(gradient_chunk(self.problem, num_threads()))[:, None] * g.p_channel + spatial).astype(np.int32).ravel()

    @staticmethod
    def _rows(g: Geometry) -> np.ndarray:
        """Offsets of a tile's output channels in gy, by how many are left; where a tile runs over, those of the last one."""
        left = np.arange(TILE_ROWS + 1)[:, None]
        return (np.clip(np.arange(TILE_ROWS), 0, np.maximum(left - 1, 0)) * g.y_channel).astype(np.int32).ravel()

    def pack(self, gy: np.ndarray) -> np.ndarray:
        return gy

    def run(self, x: np.ndarray, packed: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> None:
        self.kernel(x.reshape(-1), packed.reshape(-1), packed.reshape(-1), out.reshape(-1))
