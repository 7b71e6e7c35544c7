"""How the general direct engine shares out its work, and its cost model."""

from __future__ import annotations

import functools
import math

from ..problem import Problem
from ._boxes import TASKS_PER_THREAD, Geometry, cut
from ._planes import threads_of, with_waiting
from ._simd import LANES_TILES, lane_count

# Costs in vector multiply-adds (bench_conv.py, first layers, grouped)
EFFICIENCY, SINGLE_EFFICIENCY = 0.96, 0.85  # of the tiles, and of those of a single output channel
VECTOR_OVERHEAD = 9.0  # of a vector of outputs
COPIED_STRIDES = (1, 2, 3, 4)  # along rows that are copied by vectors: a vector of every fourth element takes four loads
LINE_COST, VECTOR_COST = 14, 8  # of a padded row that is copied, and of a vector of it
STRIDED_LINE_COST, STRIDED_VECTOR_COST = 22, 12  # the same of each of its phases (bench_conv.py, grouped, strides 2 to 4)
SCATTER_COST = 130  # of a vector of outputs where channels come last
ELEMENT_COST = 3  # of an element copied by itself
PAGE_BYTES = 4096  # addresses so far apart share a set of the first-level cache
SET_BYTES, SET_WAYS = 64 * 1024, 16  # and so far apart one of the second-level cache, which holds so many lines
ALIASED_OVERHEAD = 12  # of a vector of outputs whose channels share one of the first (bench_conv.py, 1x1)
ALIASED_FACTOR = 1.7  # of taps read in place from more channels than that (the same)
BUDGET_BYTES = 64 * 1024  # of packed input of a task: it shares the caches with y (benchmarks/bench_conv.py, depthwise)


def tile_step(rows: int) -> float:
    """Vector multiply-adds that a tap of a tile takes for each of its columns: as long as its products, or its loads."""
    columns = LANES_TILES[rows]
    return max(rows, (2 * columns + rows) / columns)


@functools.cache
def tile_rows(channels: int) -> tuple[int, ...]:
    """Tiles that make up so many output channels at the least cost: what limits a step of a tile is its loads or its products."""
    costs: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    step = {rows: tile_step(rows) + 0.2 for rows in LANES_TILES}
    for count in range(1, channels + 1):
        costs.append(min((costs[count - rows][0] + cost, (rows, *costs[count - rows][1])) for rows, cost in step.items() if rows <= count))
    return tuple(sorted(costs[channels][1], reverse=True))


def boxes_and_block(problem: Problem, threads: int, in_place: bool) -> tuple[Geometry, int]:
    """The boxes, and how many groups of one make a task: as many as a small cache holds, so long as there are tasks enough."""
    p, lanes = problem, lane_count(problem.dtype)
    span = (p.output_size[2] - 1) * p.stride[2] + p.dilation[2] * (p.kernel_size[2] - 1) + 1
    rows = (min(8, p.output_size[1]) - 1) * p.stride[1] + p.dilation[1] * (p.kernel_size[1] - 1) + 1
    most = BUDGET_BYTES // (rows * span * p.itemsize * max(1, p.group_in))
    block = max(1, min(p.groups, most, -(-p.groups * p.batch // (TASKS_PER_THREAD * threads))))
    in_place = in_place and p.stride[2] == 1 and not p.channels_last and p.output_size[2] >= lanes

    def boxes(in_place: bool) -> Geometry:
        return cut(p, threads, in_place=in_place, channels=block * p.group_in, tasks_per_box=-(-p.groups // block), column_multiple=lanes)

    g = boxes(in_place)
    ragged = g.in_place and g.out_w % g.box_w and g.out_w % g.box_w < lanes
    return boxes(False) if ragged else g, block


def copied_by_vectors(problem: Problem) -> bool:
    """Whether the elements of a row that are copied lie near each other."""
    return not problem.channels_last and problem.stride[2] in COPIED_STRIDES


def copy_slots(problem: Problem, g: Geometry) -> float:
    """Time in which one thread copies all boxes' rows, in vector multiply-adds."""
    p = problem
    depths, rows, columns = g.input_extents
    phases = p.stride[2]
    if copied_by_vectors(p):
        cost, vector_cost = (LINE_COST, VECTOR_COST) if phases == 1 else (STRIDED_LINE_COST, STRIDED_VECTOR_COST)
        line: float = cost + -(-columns // (phases * lane_count(p.dtype))) * vector_cost
    else:
        line = LINE_COST + -(-columns // phases) * ELEMENT_COST
    return g.boxes * g.box_n * depths * rows * p.in_channels * phases * line


def slots(problem: Problem) -> float:
    """Time of a run on one thread, in vector multiply-adds; more where there are not tasks for all threads."""
    p = problem
    lanes = lane_count(p.dtype)
    g, block = boxes_and_block(p, threads_of(p), True)
    vectors = g.box_n * g.box_d * g.box_h * -(-g.box_w // lanes)
    each = VECTOR_OVERHEAD + (SCATTER_COST if p.channels_last else 0)
    if math.prod(p.output_size) * p.itemsize % PAGE_BYTES == 0:
        each += ALIASED_OVERHEAD
    ways = SET_WAYS * SET_BYTES // math.gcd(SET_BYTES, math.prod(p.input_size) * p.itemsize)
    slowed = ALIASED_FACTOR if g.in_place and p.group_in > ways else 1.0
    work = 0.0
    for rows in tile_rows(p.group_out):
        filled = -(-vectors // LANES_TILES[rows]) * LANES_TILES[rows]  # a box's last tile may lack columns
        work += filled * p.taps * slowed * tile_step(rows) / (EFFICIENCY if rows > 1 else SINGLE_EFFICIENCY) + vectors * rows * each
    work *= g.boxes * p.groups
    if not g.in_place:
        work += copy_slots(p, g)
    return with_waiting(p, work, g.boxes * -(-p.groups // block))
