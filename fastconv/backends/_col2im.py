"""The input gradient of `im2col` with the weights as they lie, channels first: a product, then col2im.

    columns[p, (c, t)] = sum over o of  gy[o, p] * w[o, (c, t)]
    gx[c, stride p + dilation t - low] += columns[p, (c, t)]

The lanes are pairs of a channel and a tap, in the order of the weights: each weight is read once and none is transposed. Forward
convolutions of the stride's phases multiply as often, but their weights must be turned first, which takes as long as the products
where images are small and channels many.

Only a panel's columns exist at a time. They are added to planes of their channels, one for each phase of the stride, whose rows
are apart by the reach of the kernel, so that no border needs a test; finished planes are interleaved into gx.

Source of the method: Chellapilla, Puri, Simard, "High performance convolutional neural networks for document processing" (2006),
section 3.2.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..problem import Problem
from . import Machine
from ._boxes import TASKS_PER_THREAD, copy_run, fill_run, speedup
from ._gemm import epilogue_of, multiply_rows, panel_width, tile_addresses
from ._interleave import interleave_pairs
from ._jit import inlined, num_threads, outlined
from ._planes import uses_threads
from ._simd import (
    COUNTER_PITCH,
    TILE_COLUMNS,
    TILE_ROWS,
    advance,
    fma,
    get,
    lane_count,
    lanes_of,
    load,
    load_first,
    own_first,
    parallel_kernel,
    put,
    rectify,
    store,
    store_first,
    thawed,
    total,
    transpose_block,
    zero,
    zero_element,
)

BAND_POINTS = 16 * TILE_ROWS  # of gy whose columns are made at once: with their transpose they fill a first-level cache
PLANES_BYTES = 512 * 1024  # of a task's planes: half a 1 MiB L2
PACKED_BYTES = 1024 * 1024  # of its weights
LONGEST_ROW = 4 * BAND_POINTS  # of gy
POINTS_OF_A_TASK = 256  # of small images together, so that a panel of weights is worth copying


# The cost model (bench_conv.py, backward, 3x3_512@7, 3x3s2_256@14, 3x3s2_128@56):
TILE_OVERHEAD = 18  # steps of a sum that filling and storing a tile costs
EFFICIENCY, SINGLE_EFFICIENCY = 0.91, 0.62  # share of the peak in the products, of panels of two vectors and of one
# Vector multiply-adds (bench_conv.py, backward, strides 1 to 3) of transposing a vector of a column and adding it to its plane, and
# of writing a row of gx, and an element of one where they lie in more than two phases:
ADDED_COST, ROW_COST, ELEMENT_COST = 16, 64, 11
CALL_SECONDS = 1e-6  # of Python around a run


class Columns(NamedTuple):
    """Sizes and pitches of the product and of the planes; integers only, as the kernel takes it."""

    images: int
    groups: int
    channels: int  # of gx in a group
    depth: int  # terms of a sum: channels of gy in a group
    taps: int  # of a channel
    chunk: int  # channels of a task
    together: int  # images of a task
    points: int  # of an image of gy
    out_h: int
    out_w: int
    band: int  # rows of gy at once
    rows: int  # of an image of gy
    pitch: int  # of a transposed column
    plane: int  # of a channel: all phases
    phase: int
    deep: int  # from one plane of a phase to the next
    wide: int  # from one row to the next
    low_d: int  # where gx begins in the planes
    low_h: int
    low_w: int
    stride_d: int
    stride_h: int
    stride_w: int
    in_d: int
    in_h: int
    in_w: int


class Space(NamedTuple):
    """Sizes, in elements of the dtype, of what a thread keeps in scratch; each part starts at a cache line."""

    packed: int  # a panel of weights
    sums: int  # a band's columns
    turned: int  # the same transposed
    planes: int


@outlined
def copy_columns(source, pitch, depth, columns, width, target):
    """Copy `columns` columns of `depth` rows, `pitch` apart, into panels, the last one's missing columns zero.

    Returns whether all are finite.
    """
    lanes = lanes_of(source)
    nothing = zero(source)
    check = nothing
    for k in range(depth):
        for panel in range(0, columns, width):
            to = advance(target, panel * depth + k * width)
            at = advance(source, k * pitch + panel)
            for i in range(0, width, lanes):
                left = columns - panel - i
                value = load(at, i) if left >= lanes else load_first(at, i if left > 0 else 0, left)
                store(to, i, value)
                check = fma(value, nothing, check)
    return total(check) == zero_element(source)


@outlined
def add_borders(c, source, pitch, columns, targets, planes):
    """Add what weights that are not finite give with the zeros around gy, which take part in the sums as if they were stored."""
    for i in range(columns):
        value = zero_element(source)
        for k in range(c.depth):
            value += zero_element(source) * get(source, k * pitch + i)
        if value == zero_element(source):
            continue
        first = get(targets, i) % c.plane % c.phase
        plane = advance(planes, get(targets, i) - first)
        for p in range(c.phase):
            d, h, w = p // c.deep - first // c.deep, p % c.deep // c.wide - first % c.deep // c.wide, p % c.wide - first % c.wide
            if not (0 <= d < c.rows // c.out_h and 0 <= h < c.out_h and 0 <= w < c.out_w):
                put(plane, p, get(plane, p) + value)


@outlined
def turn_columns(c, sums, width, count, rows, turned):
    """Transpose a panel's columns at some rows of points, to rows as far apart as those of the planes, with zeros between."""
    lanes = lanes_of(sums)
    nothing = zero(sums)
    for r in range(rows):
        for x in range(0, c.wide, lanes):
            points = min(lanes, c.out_w - x)
            for i in range(0, count, lanes):
                to = advance(turned, i * c.pitch + r * c.wide + x)
                if points > 0:
                    transpose_block(advance(sums, (r * c.out_w + x) * width + i), width, points, min(lanes, count - i), to, c.pitch, lanes)
                else:
                    for k in range(min(lanes, count - i)):
                        store(to, k * c.pitch, nothing)


@outlined
def add_columns(c, turned, count, first, rows, starts, targets, planes):
    """Add a panel's transposed columns at gy's rows [first, first + rows) to the planes of their channels."""
    lanes = lanes_of(turned)
    for i in range(count):
        plane = advance(planes, get(targets, i))
        r = 0
        while r < rows:
            run = min(rows - r, c.out_h - (first + r) % c.out_h)
            at, column = advance(plane, get(starts, first + r)), advance(turned, i * c.pitch + r * c.wide)
            size = (run - 1) * c.wide + c.out_w
            whole = size - size % lanes
            for x in range(0, whole, lanes):
                store(at, x, load(at, x) + load(column, x))
            if whole < size:
                left = size - whole
                store_first(at, whole, load_first(at, whole, left) + load_first(column, whole, left), left)
            r += run


@inlined
def store_row(c, source, gx):
    """A row of gx from those of its phases, which are `phase` apart."""
    if c.stride_w == 1:
        copy_run(gx, advance(source, c.low_w), c.in_w)
        return
    done = 0
    if c.stride_w == 2 and c.in_w > 1:
        done = c.in_w // 2
        interleave_pairs(gx, advance(source, c.low_w % 2 * c.phase + c.low_w // 2),
                         advance(source, (c.low_w + 1) % 2 * c.phase + (c.low_w + 1) // 2), done)
    for w in range(c.stride_w * done, c.in_w):
        position = c.low_w + w
        put(gx, w, get(source, position % c.stride_w * c.phase + position // c.stride_w))


@outlined
def store_plane(c, plane, gx, epilogue):
    """A channel of gx from its planes."""
    if epilogue.rectify:
        for i in range(0, c.plane, lanes_of(plane)):
            store(plane, i, rectify(load(plane, i), epilogue.slope, epilogue.ceiling))
    for d in range(c.in_d):
        depth = c.low_d + d
        for h in range(c.in_h):
            row = c.low_h + h
            phase = (depth % c.stride_d * c.stride_h + row % c.stride_h) * c.stride_w
            source = advance(plane, phase * c.phase + depth // c.stride_d * c.deep + row // c.stride_h * c.wide)
            store_row(c, source, advance(gx, (d * c.in_h + h) * c.in_w))


@parallel_kernel
def im2col_grad_input(gy, w, bias, gx, constants, scratch, counters, thread, threads):
    """gx = epilogue(gradient of the input + bias), by (images, group, chunk of channels)."""
    tiles, c, k_offsets, offsets, starts, targets, zeros, space, width, epilogue, shares = thawed(constants)
    chunks = -(-c.channels // c.chunk)
    sums = advance(scratch, space.packed)
    turned = advance(sums, space.sums)
    planes = advance(turned, space.turned)
    pitch = c.channels * c.taps
    for task in own_first(counters, thread, shares, -(-c.images // c.together) * c.groups * chunks):
        first = task % chunks * c.chunk
        group = task // chunks % c.groups
        image = task // (chunks * c.groups) * c.together
        images = min(c.together, c.images - image)
        channels = min(c.chunk, c.channels - first)
        for n in range(images):
            for i in range(channels):
                fill_run(advance(planes, (n * c.chunk + i) * c.plane), c.plane, get(bias, group * c.channels + first + i))
        columns = channels * c.taps
        source = advance(w, group * c.depth * pitch + first * c.taps)
        if not copy_columns(source, pitch, c.depth, columns, width, scratch):
            for n in range(images):
                add_borders(c, source, pitch, columns, targets, advance(planes, n * c.chunk * c.plane))
        for column in range(0, columns, width):
            count = min(width, columns - column)
            for n in range(images):
                for row in range(0, c.rows, c.band):
                    rows = min(c.band, c.rows - row)
                    here = advance(gy, ((image + n) * c.groups + group) * c.depth * c.points + row * c.out_w)
                    table = advance(offsets, 0 if rows == c.band else c.band * c.out_w + TILE_ROWS)
                    multiply_rows(tiles, rows * c.out_w, here, table, k_offsets, c.depth, advance(scratch, column * c.depth), width,
                                  zeros, 0, sums, count, 0)
                    turn_columns(c, sums, width, count, rows, turned)
                    add_columns(c, turned, count, row, rows, starts, advance(targets, column), advance(planes, n * c.chunk * c.plane))
        for n in range(images):
            for i in range(channels):
                channel = ((image + n) * c.groups + group) * c.channels + first + i
                store_plane(c, advance(planes, (n * c.chunk + i) * c.plane), advance(gx, channel * c.in_d * c.in_h * c.in_w), epilogue)


class PlaneAxis(NamedTuple):
    """One axis of the planes."""

    size: int  # of a phase
    low: int  # where gx begins
    phases: np.ndarray  # of each tap
    shifts: np.ndarray  # of each tap, within its phase


def plane_axes(problem: Problem) -> list[PlaneAxis]:
    """The axes of the planes: a tap of point p lies at stride p + dilation tap, which is shift + p of its phase."""
    axes = []
    for size, outputs, k, s, d, (low, _) in zip(problem.input_size, problem.output_size, problem.kernel_size, problem.stride,
                                                problem.dilation, problem.padding, strict=True):
        before = max(0, -(low // s))  # points of a phase before the first tap's, where gx begins earlier
        taps = np.arange(k) * d
        reach = outputs + before + int(taps[-1]) // s
        axes.append(PlaneAxis(max(reach, -(-(low + before * s + size) // s)), low + before * s, taps % s, taps // s + before))
    return axes


def columns_of(problem: Problem, threads: int) -> Columns:
    """How the product is shared out."""
    p = problem
    axes = plane_axes(p)
    lanes = lane_count(p.dtype)
    out_d, out_h, out_w = p.output_size
    points, taps = out_d * out_h * out_w, math.prod(p.kernel_size)
    deep, phase = axes[1].size * axes[2].size, math.prod(axis.size for axis in axes)
    plane = -(-phase * math.prod(p.stride) // lanes) * lanes
    together = max(1, min(p.batch, POINTS_OF_A_TASK // points))
    # Whole panels, or halves of them, and tasks enough.
    chunk = 2 * lanes
    while chunk > lanes // 2 and (together * chunk * plane * p.itemsize > PLANES_BYTES
                                  or p.group_out * chunk * taps * p.itemsize > PACKED_BYTES
                                  or -(-p.batch // together) * p.groups * -(-p.group_in // chunk) < TASKS_PER_THREAD * threads):
        chunk //= 2
    band = max(1, min(out_d * out_h, BAND_POINTS // out_w))
    pitch = (-(-band * axes[2].size // lanes) + 2 | 1) * lanes
    return Columns(p.batch, p.groups, p.group_in, p.group_out, taps, min(chunk, p.group_in), together, points, out_h, out_w, band,
                   out_d * out_h, pitch, plane, phase, deep, axes[2].size, *(axis.low for axis in axes), *p.stride, *p.input_size)


def refuses_col2im(problem: Problem) -> bool:
    """Whether lanes would be empty, the products written as they are would be gx, or a task's planes leave the cache."""
    p = problem
    if p.channels_last or math.prod(p.kernel_size) == 1 or p.output_size[2] > LONGEST_ROW or 0 in (*p.output_shape, *p.weight_shape):
        return True
    c = columns_of(p, 1)
    return c.chunk < min(p.group_in, lane_count(p.dtype) // 2) or c.together * c.chunk * c.plane * p.itemsize > PLANES_BYTES


def col2im_seconds(problem: Problem, machine: Machine) -> float:
    """Time of the products, of reading the weights and of adding the columns; infinite where it does not pay."""
    p = problem
    if refuses_col2im(p):
        return math.inf
    c, lanes = columns_of(p, machine.threads), lane_count(p.dtype)
    chunks = p.groups * -(-p.group_in // c.chunk)
    vectors = -(-c.chunk * c.taps // lanes)
    single = vectors % TILE_COLUMNS
    columns = chunks * lanes * ((vectors - single) / EFFICIENCY + single / SINGLE_EFFICIENCY)
    multiply = 2 * p.batch * c.points * columns * (c.depth + TILE_OVERHEAD)
    added = p.batch * chunks * vectors * lanes * c.rows * -(-c.wide // lanes) * ADDED_COST
    written = p.batch * p.in_channels * c.in_d * c.in_h * (ROW_COST + (c.in_w * ELEMENT_COST if c.stride_w > 2 else 0))
    moved = (-(-p.batch // c.together) * math.prod(p.weight_shape) + math.prod(p.input_shape)) * p.itemsize / machine.bandwidth
    work = (multiply + 2 * lanes * (added + written)) / machine.flops(p.dtype) + moved
    return CALL_SECONDS + machine.region_seconds + work / speedup(-(-p.batch // c.together) * chunks, machine.threads)


class Col2im:
    """The input gradient: `run` reads the weights as they lie."""

    def __init__(self, problem: Problem):
        p = self.problem = problem
        threads, width, lanes = num_threads(), panel_width(p.dtype), lane_count(p.dtype)
        c = columns_of(p, threads)
        points = c.band * c.out_w
        counts = (c.depth * -(-c.chunk * c.taps // width) * width, (points + TILE_ROWS) * width, width * c.pitch,
                  c.together * c.chunk * c.plane)
        space = Space(*(-(-count // lanes) * lanes for count in counts))
        shares = threads
        constants = (tile_addresses(p.dtype), c, (np.arange(c.depth) * c.points).astype(np.int32), self._offsets(c), self._starts(c),
                     self._targets(c), np.zeros(width, p.dtype), space, width, epilogue_of(p), shares)
        self.kernel = im2col_grad_input.bind(p.dtype, constants, scratch=sum(space), counters=shares * COUNTER_PITCH,
                                             parallel=uses_threads(p))
        self.no_bias = np.zeros(p.in_channels, p.dtype)
        self.scratch_bytes = self.kernel.scratch_bytes(threads)

    @staticmethod
    def _offsets(c: Columns) -> np.ndarray:
        """Offsets of a band's points in gy, and of the last one's; where a tile runs over, those of the last point."""
        counts = (c.band * c.out_w, (c.rows % c.band or c.band) * c.out_w)
        return np.concatenate([np.minimum(np.arange(counts[0] + TILE_ROWS), count - 1) for count in counts]).astype(np.int32)

    def _starts(self, c: Columns) -> np.ndarray:
        """Offset of each row of gy in a phase."""
        out_d, out_h, _ = self.problem.output_size
        return (np.arange(out_d)[:, None] * c.deep + np.arange(out_h) * c.wide).astype(np.int32).ravel()

    def _targets(self, c: Columns) -> np.ndarray:
        """Offset of each column of a chunk in its planes."""
        d, h, w = plane_axes(self.problem)
        phases = (d.phases[:, None, None] * c.stride_h + h.phases[:, None]) * c.stride_w + w.phases
        shifts = d.shifts[:, None, None] * c.deep + h.shifts[:, None] * c.wide + w.shifts
        return (np.arange(c.chunk)[:, None] * c.plane + (phases * c.phase + shifts).ravel()).astype(np.int32).ravel()

    def pack(self, w: np.ndarray) -> np.ndarray:
        return w.reshape(-1)

    def run(self, gy: np.ndarray, packed: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> None:
        self.kernel(gy.reshape(-1), packed, self.no_bias if bias is None else bias, out.reshape(-1))
