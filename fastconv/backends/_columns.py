"""The columns of a matrix product of few points, channels first: how points are cut into vectors, and how they are copied.

    columns[(c, t), p] = x[c, stride p + dilation t - low]

Vectors of points are read from the input as it lies where taps, stride and border leave it so. Else a thread copies them: each
channel with its border of zeros, each phase of the stride a plane of its own, so that a tap's points are runs of a plane.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..problem import Problem
from ._jit import inlined, outlined
from ._simd import VECTOR_REGISTERS, advance, get, lane_count, lanes_of, load, load_first, put, store, store_first, zero
from ._unfolding import copy_strided

COLUMNS = 3 if VECTOR_REGISTERS == 32 else 2  # vectors of a strip
# What a tile of so many vectors costs, in vectors of a whole one, and a pair of points left over, by lanes (bench_conv.py, 1x1_2048@7):
TILE_COSTS = (0.0, 1.5, 2.2, 3.0) if VECTOR_REGISTERS == 32 else (0.0, 1.5, 2.0)
PAIR_COST = 4.0
JOINT_GAIN = 1.1  # times fewer vectors of all images together pay for copying them


class Strip(NamedTuple):
    """Neighbouring points."""

    point: int  # the first, counted through all images
    source: int  # where the columns have it
    vectors: int
    kept: int  # points of the vectors that there are
    rest: int  # points behind them
    rest_source: int
    rest_row: int  # of the first of these among all of them


STRIP_NUMBERS = len(Strip._fields)


class Cut(NamedTuple):
    """How a run of points is cut into vectors and points left over."""

    vectors: int
    rest: int
    columns: float  # what they cost, in vectors of a whole tile


def cut_points(count: int, lanes: int) -> Cut:
    """The cheapest cut: the points behind the last whole vector left over, or a vector of their own."""

    def cost(vectors: int) -> float:
        return vectors // COLUMNS * COLUMNS + TILE_COSTS[vectors % COLUMNS]

    whole, rest = divmod(count, lanes)
    left_over = cost(whole) + -(-rest // 2) * PAIR_COST / lanes
    return Cut(whole, rest, left_over) if rest == 0 or left_over < cost(whole + 1) else Cut(whole + 1, 0, cost(whole + 1))


def is_adjacent(problem: Problem) -> bool:
    """Whether the input is its own columns."""
    p = problem
    return math.prod(p.kernel_size) == math.prod(p.stride) == 1 and not any(map(any, p.padding))


def cut_of(problem: Problem) -> tuple[bool, Cut]:
    """Whether columns are read in place, and then the cut of an image, else that of all images together."""
    p = problem
    lanes, points = lane_count(p.dtype), math.prod(p.output_size)
    image, joint = cut_points(points, lanes), cut_points(p.batch * points, lanes)
    inside = image.vectors * lanes <= points or image.vectors > COLUMNS
    in_place = is_adjacent(p) and inside and p.batch * image.columns <= JOINT_GAIN * joint.columns
    return in_place, image if in_place else joint


def strips_of(problem: Problem) -> list[Strip]:
    """The points by strips of at most COLUMNS vectors."""
    p = problem
    in_place, (vectors, rest, _) = cut_of(p)
    lanes, points = lane_count(p.dtype), math.prod(p.output_size)
    runs, count = (p.batch, points) if in_place else (1, p.batch * points)
    strips: list[Strip] = []
    for run in range(runs):
        image = run * p.in_channels * points
        for first in range(0, max(1, vectors), COLUMNS):
            width = min(COLUMNS, vectors - first) * lanes
            # In place, the last vector lies over some points of the one before, and they are computed twice.
            start = min(first * lanes, count - rest - width) if in_place else first * lanes
            left = rest if first + COLUMNS >= vectors else 0
            strips.append(Strip(run * count + start, image + start, width // lanes, min(width, count - start), left,
                                image + count - left, run * rest))
    return strips


def plane_of(problem: Problem) -> tuple[int, int]:
    """Rows and columns of the plane of one phase of a channel of an image."""
    p = problem
    h, w = (n + d * (k - 1) // s for n, d, k, s in zip(p.output_size[1:], p.dilation[1:], p.kernel_size[1:], p.stride[1:], strict=True))
    return h, w


def phases_of(problem: Problem) -> np.ndarray:
    """For each phase down, then across: the first input of the image, where it lies in the phase's plane, and how many follow."""
    p, phases = problem, []
    for axis, plane in zip((1, 2), plane_of(p), strict=True):
        (low, _), size, stride, taps = p.padding[axis], p.input_size[axis], p.stride[axis], p.kernel_size[axis]
        used = set(np.arange(taps) * p.dilation[axis] % stride)
        for phase in range(stride):
            at = max(0, -(-(low - phase) // stride))
            first = at * stride + phase - low
            phases.append((first, at, max(0, min(-(-(size - first) // stride), plane - at)) if phase in used else 0))
    return np.array(phases, np.int32).ravel()


def tap_offsets(problem: Problem) -> np.ndarray:
    """Where each tap of the first point lies in the planes of a channel."""
    p = problem
    plane_h, plane_w = plane_of(p)
    down, across = (np.arange(p.kernel_size[axis]) * p.dilation[axis] for axis in (1, 2))
    phases = (down % p.stride[1])[:, None] * p.stride[2] + across % p.stride[2]
    return (phases * plane_h * plane_w + (down // p.stride[1])[:, None] * plane_w + across // p.stride[2]).astype(np.int32).ravel()


# -- kernels' helpers -----------------------------------------------------------------------------------------------------


@inlined
def strip_at(strips, number):
    """An entry of the table of strips."""
    s = advance(strips, STRIP_NUMBERS * number)
    return Strip(get(s, 0), get(s, 1), get(s, 2), get(s, 3), get(s, 4), get(s, 5), get(s, 6))


@outlined
def split_channel(g, phases, source, planes):
    """The planes of a channel of one image: with a border of zeros, each phase of the stride that a tap needs a plane of its own."""
    size = g.plane_h * g.plane_w
    for i in range(0, g.stride_h * g.stride_w * size, lanes_of(source)):
        store(planes, i, zero(source))
    for down in range(g.stride_h):
        in_h, row, rows = get(phases, 3 * down), get(phases, 3 * down + 1), get(phases, 3 * down + 2)
        for across in range(g.stride_h, g.stride_h + g.stride_w):
            in_w, column, columns = get(phases, 3 * across), get(phases, 3 * across + 1), get(phases, 3 * across + 2)
            target = advance(planes, (down * g.stride_w + across - g.stride_h) * size + row * g.plane_w + column)
            for i in range(rows):
                copy_strided(advance(target, i * g.plane_w), advance(source, (in_h + i * g.stride_h) * g.in_w + in_w), columns, g.stride_w)


@outlined
def copy_points(target, source, count):
    """target[:count] = source[:count], the last vector over the one before."""
    lanes = lanes_of(source)
    if count < lanes:
        store_first(target, 0, load_first(source, 0, count), count)
    else:
        for i in range(0, count - lanes, lanes):
            store(target, i, load(source, i))
        store(target, count - lanes, load(source, count - lanes))


@outlined
def copy_lines(g, target, plane):
    """The points of a tap, from where its plane's first begins; up to a vector behind them is written."""
    lanes = lanes_of(plane)
    for line in range(g.out_h):
        for i in range(0, g.out_w, lanes):
            store(target, line * g.out_w + i, load(plane, line * g.plane_w + i))


@outlined
def copy_columns(g, x, phases, tap_offsets, planes, columns):
    """The columns of a group, a row for each term; what is written behind a row is overwritten by the next."""
    size = g.stride_h * g.stride_w * g.plane_h * g.plane_w
    points = g.images * g.points
    for channel in range(g.group_in):
        for image in range(g.images):
            source = advance(x, (image * g.groups * g.group_in + channel) * g.in_h * g.in_w)
            if g.adjacent == 1:
                copy_points(advance(columns, channel * g.pitch + image * g.points), source, g.points)
            else:
                split_channel(g, phases, source, advance(planes, image * size))
        for tap in range(g.taps):
            row = advance(columns, (channel * g.taps + tap) * g.pitch)
            if g.adjacent == 0:
                for image in range(g.images):
                    copy_lines(g, advance(row, image * g.points), advance(planes, image * size + get(tap_offsets, tap)))
            if points < g.pitch:
                store(row, points, zero(x))


@outlined
def copy_rest(g, strip, columns, rest):
    """A row of terms for each point behind a strip."""
    for k in range(g.depth):
        for i in range(strip.rest):
            put(rest, (strip.rest_row + i) * g.rest_pitch + k, get(columns, strip.rest_source + k * g.pitch + i))
