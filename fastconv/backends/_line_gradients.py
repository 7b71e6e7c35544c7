"""The weight gradient of the general direct engine: a tile of taps stays in registers over all pixels of a box."""

from __future__ import annotations

import math

import numpy as np

from ..problem import Problem
from ._boxes import TASKS_PER_THREAD, box_end, box_start
from ._jit import num_threads
from ._line_choice import boxes_and_block, copy_slots
from ._lines import Lined, box_output, pack_lines, vector_tables
from ._planes import threads_of, uses_threads, with_waiting
from ._simd import (
    DOT_TILE,
    advance,
    as_int32,
    as_int64,
    get,
    lane_count,
    lanes_of,
    next_task,
    parallel_kernel,
    put,
    thawed,
    tile_dot,
    tile_dot_first,
    tile_totals,
    tile_zeros,
    zero_element,
)

TOTALS_COST = 40  # of a tile's totals over its lanes (the same)
SUMMED_COST = 30_000  # of adding the shares by NumPy (bench_conv.py, tiny)
TAP_COST = 5.5  # of a tap for a vector of gy, in vector multiply-adds (bench_conv.py, depthwise, grad_weight)


@parallel_kernel
def direct_grad_weight(x, gy, unused, parts, constants, scratch, counters, thread, threads):
    """parts[share] = gradient of the weights over the share's boxes, rows of taps filled up to whole tiles."""
    g, lines, space, taps, kernel_points, row, borders, block, shares = thawed(constants)
    blocks = -(-g.groups // block)
    boxes = -(-g.out_n // g.box_n) * -(-g.out_d // g.box_d) * -(-g.out_h // g.box_h) * -(-g.out_w // g.box_w)
    lanes = lanes_of(x)
    size = g.groups * g.group_out * g.group_in * row
    x_offsets = as_int32(advance(scratch, space.x_offsets))
    y_offsets = as_int64(advance(scratch, space.y_offsets))
    counts = as_int32(advance(scratch, space.counts))
    while True:
        task = next_task(counters)
        if task >= shares * blocks:
            break
        share = task // blocks
        first = task % blocks * block
        last = min(first + block, g.groups)
        own = advance(parts, share * size)
        for i in range(first * g.group_out * g.group_in * row, last * g.group_out * g.group_in * row):
            put(own, i, zero_element(own))
        for box in range(boxes * share // shares, boxes * (share + 1) // shares):
            start = box_start(g, box)
            end = box_end(g, start[0], start[1], start[2], start[3])
            extents = (end[0] - start[0], end[1] - start[1], end[2] - start[2], end[3] - start[3])
            vectors = vector_tables(g, lines, extents, x_offsets, y_offsets, counts, lanes, False)
            first_pixel = box_output(g, start)
            pack_lines(g, lines, x, borders, start, end, first * g.group_in, (last - first) * g.group_in, scratch)
            for output in range(first * g.group_out, last * g.group_out):
                group = output // g.group_out
                for channel in range(g.group_in):
                    source = advance(scratch, ((group - first) * g.group_in + channel) * lines.channel)
                    for tap in range(0, kernel_points, DOT_TILE):
                        acc = tile_zeros(x, DOT_TILE, 1)
                        for v in range(vectors):
                            at = advance(source, get(x_offsets, v))
                            gradient = advance(gy, output * g.y_channel + first_pixel + get(y_offsets, v))
                            if get(counts, v) == lanes:
                                acc = tile_dot(acc, at, advance(taps, tap), gradient)
                            else:
                                acc = tile_dot_first(acc, at, advance(taps, tap), gradient, get(counts, v))
                        tile_totals(acc, advance(own, (output * g.group_in + channel) * row + tap))


def slots(problem: Problem) -> float:
    """Time of a run on one thread, in vector multiply-adds; more where there are not tasks for all threads."""
    p = problem
    threads = threads_of(p)
    g, block = boxes_and_block(p, threads, False)
    vectors = p.batch * p.out_channels * math.prod(p.output_size[:2]) * -(-p.output_size[2] // lane_count(p.dtype))
    tiles = -(-math.prod(p.kernel_size) // DOT_TILE)
    work = p.group_in * tiles * (vectors * DOT_TILE * TAP_COST + g.boxes * p.out_channels * TOTALS_COST)
    return SUMMED_COST * threads + with_waiting(p, work + copy_slots(p, g), g.boxes * -(-p.groups // block))


class GradWeight(Lined):
    """The weight gradient."""

    def __init__(self, problem: Problem):
        p = problem
        super().__init__(p, in_place=False)
        channels, points = p.out_channels, math.prod(p.output_size)
        g = self.geometry._replace(y_image=channels * points, y_channel=points, y_point=1)
        self.kernel_points = math.prod(p.kernel_size)
        self.row = -(-self.kernel_points // DOT_TILE) * DOT_TILE
        taps = np.pad(self.offsets(1), (0, self.row - self.kernel_points), mode="edge")
        tasks = -(-p.groups // self.block)
        self.shares = max(1, min(g.boxes, -(-TASKS_PER_THREAD * self.threads // tasks)))
        space = self.space()
        constants = (g, self.lines, space, taps, self.kernel_points, self.row, p.border_sources(), self.block, self.shares)
        self.kernel = direct_grad_weight.bind(p.dtype, constants, scratch=space.size, parallel=uses_threads(p))

    def pack(self, gy: np.ndarray) -> np.ndarray:
        """Gy with channels first."""
        gy = gy.reshape(self.problem.shapes[1])
        return np.ascontiguousarray(gy.transpose(0, 4, 1, 2, 3) if self.problem.channels_last else gy).reshape(-1)

    def run(self, x: np.ndarray, packed: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> None:
        p = self.problem
        parts = np.empty((self.shares, p.out_channels * p.group_in * self.row), p.dtype)
        self.kernel(x.reshape(-1), packed, packed, parts.reshape(-1))
        total = parts
        if self.shares > 1:
            with np.errstate(invalid="ignore", over="ignore"):
                total = parts.sum(axis=0, dtype=p.dtype)
        whole = total.reshape(p.out_channels, p.group_in, self.row)[..., :self.kernel_points]
        whole = whole.reshape(p.out_channels, p.group_in, *p.kernel_size)
        out.reshape(p.shapes[2])[...] = whole.transpose(2, 3, 4, 1, 0) if p.channels_last else whole

    @property
    def scratch_bytes(self) -> int:
        parts = self.shares * self.problem.out_channels * self.problem.group_in * self.row
        return self.kernel.scratch_bytes(num_threads()) + parts * self.problem.itemsize
