"""`separable` on the CPU: kernels that are outer products, or short sums of them, as one pass down the columns and one along the rows.

Takes images of one channel and depthwise convolutions. Whether a kernel qualifies is known with the weights: `pack` finds its
terms by singular values in float64, keeps those above the accuracy asked for, and refuses kernels that need too many.

    columns    a few output rows at a time: middle[term][row] = sum over taps of  down[term][tap] * x[row + tap]
    borders    the columns of the middle rows that a border adds are copies of their other columns
    rows       y[row] = sum over terms and taps of  along[term][tap] * middle[term][row][tap:]

Middle rows never leave the first-level cache. A 31 x 31 kernel takes 62 multiply-adds a point, not 961.

Tried, and did not pay: transposing the middle rows so that both passes run down columns, at twice the rate of unaligned loads:
the two transposes take what they save. Folding symmetric taps: the loads bound the row pass.

Source: Treitel and Shanks, "The design of multistage separable planar filters" (1971).
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from ..problem import Problem
from . import Backend, BackendError, Kernel, Machine
from ._boxes import fill_run
from ._gemm import epilogue_of
from ._jit import num_threads, outlined
from ._phases import GradInputByPhases
from ._separable_terms import MOST_TERMS, REMEMBERED_BYTES, terms_of, terms_within
from ._simd import (
    LANES_TILE_COLUMNS,
    LANES_TILE_ROWS,
    LANES_TILE_SINGLE,
    VECTOR_BYTES,
    BoundKernel,
    advance,
    as_int32,
    column_pointers,
    fma,
    get,
    lane_count,
    lanes_of,
    load,
    next_task,
    parallel_kernel,
    put,
    raise_flag,
    rectify,
    store,
    thawed,
    tile_columns_of,
    tile_lanes,
    tile_slide,
    tile_store,
    total,
    zero,
    zero_element,
)

STARTS = 16  # zeros that the rows of a tile start from: a cache line at least
RUN_POINTS = 16_384  # output points of a task: some 10 us
SERIAL_FLOPS = 400_000  # below which one thread is done before a second has started (benchmarks/bench_conv.py, tiny)


class Geometry(NamedTuple):
    """Sizes of one forward problem; planes are (image, output channel, depth)."""

    planes: int
    depth: int
    in_channels: int
    out_channels: int
    multiplier: int  # output channels of an input channel
    in_h: int
    in_w: int
    out_h: int
    out_w: int
    stride_h: int
    dilation_h: int
    dilation_w: int
    tile: int  # output rows at a time
    taps: int  # rows of x that they need
    terms: int
    kernel_w: int
    low_w: int
    padded_w: int
    lead: int  # elements before the image's columns in a middle row
    pitch: int  # of the middle rows
    run: int  # tiles of a task


def make_tile(rows: int, columns: int):
    """sums[r][c] = start[r] + the sum over k of w[k * rows + r] * x[offsets[k] + c]; `columns` vectors, rows `pitch` apart."""

    @outlined
    def tile(x, columns_of_tile, offsets, depth, w, start, sums, pitch):
        acc = tile_columns_of(start, rows, columns)
        sources = column_pointers(x, columns_of_tile, columns)
        for k in range(depth):
            acc = tile_lanes(acc, sources, get(offsets, k), advance(w, k * rows), rows)
        tile_store(sums, pitch, acc, rows)

    return tile


rows_by_columns = make_tile(LANES_TILE_ROWS, LANES_TILE_COLUMNS)
rows_by_one = make_tile(LANES_TILE_ROWS, 1)
one_by_columns = make_tile(1, LANES_TILE_SINGLE)
one_by_one = make_tile(1, 1)


def make_line(columns: int):
    """sums = start + the sum over terms and taps of w[term][tap] * x[term * pitch + tap * dilation:], `columns` vectors."""

    @outlined
    def line(x, columns_of_tile, terms, pitch, taps, dilation, w, start, sums):
        lanes = lanes_of(x)
        acc = tile_columns_of(start, 1, columns)
        for term in range(terms):
            source, weights = advance(x, term * pitch), advance(w, term * taps)
            sources = column_pointers(source, columns_of_tile, columns)
            k = 0
            if SLIDES and dilation == 1:
                while k + lanes <= taps:
                    acc = tile_slide(acc, advance(source, k), advance(weights, k), 1)
                    k += lanes
                if k + lanes // 2 <= taps:
                    acc = tile_slide(acc, advance(source, k), advance(weights, k), 2)
                    k += lanes // 2
                if k + lanes // 4 <= taps:
                    acc = tile_slide(acc, advance(source, k), advance(weights, k), 4)
                    k += lanes // 4
            while k < taps:
                acc = tile_lanes(acc, sources, k * dilation, advance(weights, k), 1)
                k += 1
        tile_store(sums, columns * lanes, acc, 1)

    return line


SLIDES = VECTOR_BYTES == 64  # every unaligned load of a whole cache line crosses into the next
line_of_columns, line_of_one = make_line(LANES_TILE_SINGLE), make_line(1)


@outlined
def sum_columns(x, columns_of_tile, offsets, depth, w, start, width, rows, target, pitch):
    """The tile of `rows` lines over `width` elements; the last vectors start early rather than reach beyond."""
    lanes = lanes_of(x)
    block = (LANES_TILE_COLUMNS if rows > 1 else LANES_TILE_SINGLE) * lanes
    step = block if width >= block else lanes
    for c in range(0, width, step):
        at = min(c, width - step)
        source, to = advance(x, at), advance(target, at)
        if rows > 1:
            if step == block:
                rows_by_columns(source, columns_of_tile, offsets, depth, w, start, to, pitch)
            else:
                rows_by_one(source, columns_of_tile, offsets, depth, w, start, to, pitch)
        elif step == block:
            one_by_columns(source, columns_of_tile, offsets, depth, w, start, to, pitch)
        else:
            one_by_one(source, columns_of_tile, offsets, depth, w, start, to, pitch)


@outlined
def sum_along(g, x, columns_of_tile, w, start, y):
    """A line of y from the middle rows; whole vectors beyond its end would be another line's."""
    lanes = lanes_of(x)
    step = LANES_TILE_SINGLE * lanes if g.out_w >= LANES_TILE_SINGLE * lanes else lanes
    for c in range(0, g.out_w, step):
        at = min(c, g.out_w - step)
        if step > lanes:
            line_of_columns(advance(x, at), columns_of_tile, g.terms, g.tile * g.pitch, g.kernel_w, g.dilation_w, w, start, advance(y, at))
        else:
            line_of_one(advance(x, at), columns_of_tile, g.terms, g.tile * g.pitch, g.kernel_w, g.dilation_w, w, start, advance(y, at))


@outlined
def fill_borders(g, columns, middle):
    """The padded positions of a middle row whose image part starts at `lead`."""
    left = advance(middle, g.lead - g.low_w)
    image = advance(middle, g.lead)
    for p in range(g.low_w):
        put(left, p, get(image, get(columns, p)) if get(columns, p) >= 0 else zero_element(middle))
    for p in range(g.low_w + g.in_w, g.padded_w):
        put(left, p, get(image, get(columns, p)) if get(columns, p) >= 0 else zero_element(middle))


@outlined
def finish_line(y, count, epilogue):
    """Apply the epilogue to a line in place; returns whether its sums are finite."""
    lanes = lanes_of(y)
    nothing = zero(y)
    check = nothing
    for c in range(0, count, lanes):
        check = fma(load(y, min(c, count - lanes)), nothing, check)
    if epilogue.rectify:
        whole = count - count % lanes
        for c in range(0, whole, lanes):
            store(y, c, rectify(load(y, c), epilogue.slope, epilogue.ceiling))
        for c in range(whole, count):
            value = get(y, c)
            if value < 0:
                value = epilogue.slope if epilogue.slope == 0 else value * epilogue.slope
            put(y, c, epilogue.ceiling if value > epilogue.ceiling else value)
    return total(check) == zero_element(y)


@parallel_kernel
def separable_forward(x, w, bias, y, constants, scratch, counters, thread, threads):
    """y = epilogue(x filtered by the terms + bias), by runs of (plane, a few rows)."""
    g, rows, columns, vectors, epilogue = thawed(constants)
    tiles = -(-g.out_h // g.tile)
    kernel_size = g.terms * (g.taps * g.tile + g.kernel_w)
    start = scratch
    middle = advance(start, STARTS)
    offsets = as_int32(advance(middle, g.terms * g.tile * g.pitch))
    fill_run(start, STARTS, zero_element(x))
    while True:
        first = next_task(counters) * g.run
        if first >= g.planes * tiles:
            break
        for task in range(first, min(first + g.run, g.planes * tiles)):
            plane, h = task // tiles, task % tiles * g.tile
            d, channel, n = plane % g.depth, plane // g.depth % g.out_channels, plane // (g.depth * g.out_channels)
            source = advance(x, ((n * g.in_channels + channel // g.multiplier) * g.depth + d) * g.in_h * g.in_w)
            weights = advance(w, channel * kernel_size)
            low = 0
            count = 0
            for k in range(g.taps):  # rows of zeros are at the ends only
                row = get(rows, h * g.stride_h + k * g.dilation_h)
                if row >= 0:
                    put(offsets, count, np.int32(row * g.in_w))
                    count += 1
                elif count == 0:
                    low += 1
            for term in range(g.terms):
                target = advance(middle, term * g.tile * g.pitch)
                sum_columns(source, vectors, offsets, count, advance(weights, (term * g.taps + low) * g.tile), start, g.in_w, g.tile,
                          advance(target, g.lead), g.pitch)
                for r in range(g.tile):
                    fill_borders(g, columns, advance(target, r * g.pitch))
            weights = advance(weights, g.terms * g.taps * g.tile)
            for r in range(min(g.tile, g.out_h - h)):
                line = advance(y, (plane * g.out_h + h + r) * g.out_w)
                sum_along(g, advance(middle, r * g.pitch + g.lead - g.low_w), vectors, weights, advance(bias, channel), line)
                if not finish_line(line, g.out_w, epilogue):
                    raise_flag(counters)


# -- the kernel -----------------------------------------------------------------------------------------------------------


class Packed(NamedTuple):
    """The terms of all kernels as the passes read them."""

    terms: int
    weights: np.ndarray


class Forward:
    """The forward pass: `pack` finds the terms of the kernels, `run` filters by them."""

    def __init__(self, problem: Problem):
        p = self.problem = problem
        self.tile = LANES_TILE_ROWS if p.stride[1] == p.dilation[1] == 1 else 1
        self.taps = p.kernel_size[1] + self.tile - 1
        rows, columns = p.border_sources()[1:]
        beyond = self.tile * p.stride[1] + self.taps * p.dilation[1]
        self.rows, self.columns = np.pad(rows, (0, beyond), constant_values=-1), columns.copy()
        self.no_bias = np.zeros(p.out_channels, p.dtype)
        self._bound = functools.lru_cache(maxsize=MOST_TERMS)(self._bind)
        self.scratch_bytes = self._bound(1).scratch_bytes(num_threads())

    def _bind(self, terms: int) -> BoundKernel:
        p = self.problem
        lanes = lane_count(p.dtype)
        (_, in_h, in_w), (depth, out_h, out_w), (low, high) = p.input_size, p.output_size, p.padding[2]
        lead = max(low, 0)
        # A vector more, as the last loads may reach beyond; an odd number of cache lines, so that rows fall on different sets.
        pitch = (-(-(lead + in_w + max(high, 0)) // lanes) + 1 | 1) * lanes
        numbers = (p.batch * p.out_channels * depth, depth, p.in_channels, p.out_channels, p.out_channels // p.in_channels, in_h, in_w,
                   out_h, out_w, p.stride[1], *p.dilation[1:], self.tile, self.taps, terms, p.kernel_size[2], low, in_w + low + high,
                   lead, pitch, -(-RUN_POINTS // (self.tile * out_w)))
        vectors = np.arange(max(LANES_TILE_COLUMNS, LANES_TILE_SINGLE)) * lanes
        constants = (Geometry(*numbers), self.rows, self.columns, vectors.astype(np.int32), epilogue_of(p))
        scratch = STARTS + terms * self.tile * pitch + lanes + self.taps
        return separable_forward.bind(p.dtype, constants, scratch=scratch, parallel=p.flops > SERIAL_FLOPS)

    def pack(self, w: np.ndarray) -> Packed:
        p = self.problem
        found = terms_of(p, w)
        if found is None:
            raise BackendError(f"the kernel is no sum of at most {MOST_TERMS} outer products within {terms_within(p):.0e} of its norm")
        count = found.down.shape[1]
        down = np.zeros((p.out_channels, count, self.taps, self.tile))
        for r in range(self.tile):
            down[:, :, r:r + p.kernel_size[1], r] = found.down
        parts = (down.reshape(p.out_channels, -1), found.along.reshape(p.out_channels, -1))
        return Packed(count, np.concatenate(parts, axis=1).astype(p.dtype).ravel())

    def run(self, x: np.ndarray, packed: Packed, bias: np.ndarray | None, out: np.ndarray) -> bool:
        return not self._bound(packed.terms)(x, packed.weights, self.no_bias if bias is None else bias, out)


# -- the backend ----------------------------------------------------------------------------------------------------------

DOWN_EFFICIENCY = 0.5  # share of the peak in the pass down the columns (benchmarks/bench_conv.py, Gaussian filters)
ALONG_EFFICIENCY = 0.3  # and along the rows, whose loads are unaligned (the same)
MIDDLE_PASSES = 2  # times a middle row's bytes pass the second-level cache (the same)
CACHED_BYTES = 16 * 1024 * 1024  # of image and result that a last-level cache keeps from call to call (the same)
ROW_SECONDS = 80e-9  # of a finished row (bench_conv.py, depthwise)
CALL_SECONDS = 2e-6  # of Python around a run (bench_conv.py, tiny)
PACK_SECONDS = 10e-6  # of finding one term again
FIND_SECONDS = 3e-9  # of an element of weights whose terms are to be found (the same)


def refuses(problem: Problem) -> str | None:
    p = problem
    if np.dtype(p.dtype).kind != "f":
        return f"rounds, and {p.dtype} results are exact"
    if p.pass_name == "grad_weight":
        return "a gradient of weights is no filter"
    if p.pass_name == "grad_input":
        if math.prod(p.stride) > 1:
            return "has no gradients of strided convolutions"
        return next((reason for phase in p.phases() if phase.problem and (reason := refuses(phase.problem))), None)
    if p.group_in > 1:
        return f"filters single channels, not sums of {p.group_in}"
    if p.channels_last and p.in_channels * p.out_channels > 1:
        return "takes channels first only"
    if min(p.kernel_size[1:]) == 1 or p.kernel_size[0] > 1 or p.stride[0] > 1 or any(p.padding[0]):
        return f"needs a kernel of two axes, not {p.kernel_size[3 - p.ndim:]}"
    if p.stride[2] > 1:
        return "takes no stride along the rows"
    if min(p.input_size[2], p.output_size[2]) < lane_count(p.dtype):
        return f"needs rows of at least a vector, {lane_count(p.dtype)} elements"
    return None


def seconds_of_terms(problem: Problem, machine: Machine, terms: int) -> float:
    """Time of both passes for kernels of so many terms."""
    p = problem
    points = p.batch * p.out_channels * math.prod(p.output_size)
    tile = LANES_TILE_ROWS if p.stride[1] == p.dilation[1] == 1 else 1
    down = (p.kernel_size[1] + tile - 1) / (DOWN_EFFICIENCY if tile > 1 else ALONG_EFFICIENCY)
    multiply = 2 * points * terms * (down + p.kernel_size[2] / ALONG_EFFICIENCY) / machine.flops(p.dtype)
    far = p.bytes / machine.bandwidth if p.bytes > CACHED_BYTES else 0.0
    moved = far + MIDDLE_PASSES * p.itemsize * points / machine.cache_bandwidth
    rows = ROW_SECONDS * points / max(1, p.output_size[2])
    threads = machine.threads if p.flops > SERIAL_FLOPS else 1
    return CALL_SECONDS + machine.region_seconds + (multiply + moved + rows) / threads


def seconds(problem: Problem, machine: Machine) -> float:
    """Time for outer products."""
    return seconds_of_terms(problem, machine, 1)


def packed_seconds(problem: Problem, machine: Machine, packed: Packed | list[Packed]) -> float:
    """Time for the kernels at hand."""
    return seconds_of_terms(problem, machine, packed.terms if isinstance(packed, Packed) else packed[0].terms)


def pack_seconds(problem: Problem, machine: Machine) -> float:
    """Finding the terms again where they are remembered, else by elimination."""
    size = math.prod(problem.weight_shape)
    return PACK_SECONDS + (0 if size * problem.itemsize <= REMEMBERED_BYTES else FIND_SECONDS * size)


def build(problem: Problem) -> Kernel:
    return Forward(problem) if problem.pass_name == "forward" else GradInputByPhases(problem, Forward)


BACKEND = Backend(refuses, seconds, build, pack_seconds, sums_directly=False, packed_seconds=packed_seconds)
