"""An inverted residual block as one run: a 1x1 convolution, the depthwise one behind it, a 1x1 convolution, and the shortcut's sum.

    y[o, q] = rectifier(bias[o] + sum over m of  w[o, m] * d[m, q]  + x[o, q])        d: what `_expanded` gives; x with a shortcut only

The channels m are shared out among the threads, so each sums over those that it has made itself, whose planes never leave its cache;
what goes from core to core is the threads' sums, a few channels, which the last of them to be done adds up. The shares are as many as
threads whoever works on them, so the result depends on no race.

Source of the block: Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks" (2018), section 3.3.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..problem import Problem
from . import _expanded
from ._boxes import fill_run
from ._expanded import constants_of, expand, filter_planes, pack_last, packed_rows
from ._gemm import FIRST_TILES, epilogue_of, multiply_fetching, panel_width, tile_addresses
from ._jit import inlined, num_threads, outlined
from ._pointwise import ALIASED_BYTES
from ._rectifiers import RECTIFIERS
from ._scratch import operand, shared
from ._simd import (
    COUNTER_PITCH,
    TILE_ROWS,
    TILE_SIZES,
    advance,
    get,
    lane_count,
    lanes_of,
    load,
    load_first,
    next_task,
    own_first,
    parallel_kernel,
    rectify,
    spread,
    store,
    store_first,
    thawed,
    zero_element,
)

SCRATCH_BYTES = 1024 * 1024  # of a thread, which a second-level cache holds (24 -> 144 -> 24 at 56 x 56, 826 KiB: 345 us as one run,
# 429 as two; 16 -> 96 -> 24 at 112 x 112, 1353 KiB: 510 and 490)
GROUP_BYTES = 128 * 1024  # of planes whose products are added to the sums at once (96 -> 576 -> 96 at 14 x 14: 214 us with 32 KiB, 205)
RUN_SECONDS = 5e-6  # of a run that is saved, with its Python (MobileNetV2)


class Projection(NamedTuple):
    """The sizes of the last convolution, and its pitches in elements."""

    outputs: int
    pitch: int  # from one plane of d, and of the sums, to the next
    sums: int  # of one share
    group: int  # tiles of channels whose products are added at once
    shortcut: int  # 1 where x is added
    biases: int  # where they begin in w
    weights: int  # where the last convolution's begin in w


@inlined
def project(g, e, p, tiles, zeros, w, first, channels, planes, sums, fresh):
    """sums += w d for `channels` channels from `first` on, by panels of pixels."""
    for column in range(0, p.pitch, e.width):
        row = 0
        while row < p.outputs:
            at = advance(sums, row * p.pitch + column)
            left = p.outputs - row
            weights = advance(w, row * g.planes + first * FIRST_TILES[min(left, 2 * TILE_ROWS)])
            row += multiply_fetching(tiles, left, weights, e.counts, e.counts, channels, advance(planes, column), p.pitch,
                                     0, 0, zeros if fresh else at, 0 if fresh else p.pitch, at, min(e.width, p.pitch - column))


@outlined
def add_shares(g, p, shares, x, bias, sums, epilogue, y):
    """y = epilogue(bias + the sum of the shares' sums + x)."""
    pixels, lanes = g.out_h * g.out_w, lanes_of(y)
    for o in range(p.outputs):
        start, source, target = spread(y, get(bias, o)), advance(x, o * pixels), advance(y, o * pixels)
        for i in range(0, pixels, lanes):
            total = start
            for share in range(shares):
                total = total + load(sums, share * p.sums + o * p.pitch + i)
            left = pixels - i
            if p.shortcut == 1:
                total = total + (load(source, i) if left >= lanes else load_first(source, i, left))
            if epilogue.rectify:
                total = rectify(total, epilogue.slope, epilogue.ceiling)
            if left >= lanes:
                store(target, i, total)
            else:
                store_first(target, i, total, left)


@parallel_kernel
def bottleneck(x, w, sums, y, constants, scratch, counters, thread, threads):
    """y from x, by (image, share of the channels between); w holds the weights of all convolutions, then their biases."""
    g, e, f, p, register_tiles, zeros, epilogue, shares = thawed(constants)
    filters, biases, weights = advance(w, g.filters), advance(w, p.biases), advance(w, p.weights)
    planes = advance(scratch, g.channels * e.width)
    filtered = advance(planes, TILE_SIZES[0] * g.pitch)
    fill_run(filtered, p.group * TILE_SIZES[0] * p.pitch, zero_element(x))
    for task in own_first(counters, thread, shares, g.images * shares):
        image, share = task // shares, task % shares
        source, own = advance(x, image * g.channels * g.in_h * g.in_w), advance(sums, task * p.sums)
        pack_last(g, e, source, scratch)
        first, last = g.tiles * share // shares, g.tiles * (share + 1) // shares
        for t in range(first, last, p.group):
            stop = min(last, t + p.group)
            base = e.firsts[t]
            for tile in range(t, stop):
                expand(g, e, source, scratch, tile, w, biases, planes)
                filter_planes(g, f, e.firsts[tile], e.heights[tile], planes, filters, advance(biases, g.planes),
                              advance(filtered, (e.firsts[tile] - base) * p.pitch), p.pitch)
            begin = max(base, e.firsts[t - 1] + e.heights[t - 1] if t > 0 else 0)  # the last tile may overlap the one before
            end = e.firsts[stop - 1] + e.heights[stop - 1]
            project(g, e, p, register_tiles, zeros, weights, begin, end - begin,
                    advance(filtered, (begin - base) * p.pitch), own, t == first)
        if next_task(advance(counters, (shares + image) * COUNTER_PITCH)) == shares - 1:
            add_shares(g, p, shares, source, advance(biases, 2 * g.planes), advance(sums, image * shares * p.sums), epilogue,
                       advance(y, image * p.outputs * g.out_h * g.out_w))


def _pitch(problem: Problem) -> int:
    lanes = lane_count(problem.dtype)
    pitch = -(-math.prod(problem.output_size) // lanes) * lanes
    return pitch if pitch * problem.itemsize % ALIASED_BYTES else pitch + lanes


def fits(expand: Problem, depthwise: Problem, project: Problem) -> bool:
    """Whether one run computes all three."""
    p = project
    return (_expanded.fits(expand, depthwise) and p.dtype == expand.dtype and p.pass_name == "forward" and not p.channels_last
            and p.groups == 1 and math.prod(p.kernel_size) == math.prod(p.stride) == 1 and not any(map(any, p.padding))
            and p.activation in RECTIFIERS and p.input_shape == depthwise.output_shape and p.flops > 0
            and _scratch_bytes(depthwise, p) <= SCRATCH_BYTES and _saves(p))


def _group(project: Problem) -> int:
    """Tiles of channels whose products are added at once."""
    return max(1, GROUP_BYTES // (TILE_SIZES[0] * _pitch(project) * project.itemsize))


def _scratch_bytes(depthwise: Problem, project: Problem) -> int:
    """Of a tile's planes before the second convolution, of a group's behind it, and of the sums."""
    filtered = (_group(project) * TILE_SIZES[0] + project.out_channels + TILE_ROWS) * _pitch(project)
    return (TILE_SIZES[0] * math.prod(depthwise.input_size) + filtered) * project.itemsize


def _saves(problem: Problem) -> bool:
    """Whether the last convolution's lanes without pixels take less time than its input does from core to core: not 960 -> 320 at 7 x 7."""
    from ._machine import machine_constants

    p, machine = problem, machine_constants()
    empty = p.flops * (_pitch(p) / math.prod(p.output_size) - 1) / (machine.flops(p.dtype) * machine.threads)
    return empty < math.prod(p.input_shape) * p.itemsize / machine.bandwidth + RUN_SECONDS


def _rows(outputs: int) -> list[int]:
    """Where the tiles of so many rows begin, and where the last one ends, which may have rows too many."""
    rows = [0]
    while rows[-1] < outputs:
        rows.append(rows[-1] + FIRST_TILES[min(outputs - rows[-1], 2 * TILE_ROWS)])
    return rows


def _packed_terms(w: np.ndarray) -> np.ndarray:
    """Weights (O, C, 1, 1) as `project` reads them: tile by tile, those of a channel for all of its rows, then those of the next."""
    rows = _rows(len(w))
    matrix = np.zeros((rows[-1], w.shape[1]), w.dtype)
    matrix[:len(w)] = w.reshape(w.shape[:2])
    return np.concatenate([matrix[first:last].T.reshape(-1) for first, last in itertools.pairwise(rows)])


class Bottleneck:
    """The three convolutions; `pack` their weights, then `run`. With `shortcut` x is added before the last one's activation."""

    def __init__(self, expand: Problem, depthwise: Problem, project: Problem, shortcut: bool = False):
        o, shares = project, num_threads()
        sizes, expansion, strips = constants_of(expand, depthwise)
        pitch = _pitch(o)
        weights = sizes.filters + sizes.planes * sizes.taps
        projection = Projection(o.out_channels, pitch, (o.out_channels + TILE_ROWS) * pitch, _group(o),
                                int(shortcut), weights + sizes.planes * _rows(o.out_channels)[-1], weights)
        group = projection.group * TILE_SIZES[0]
        constants = (sizes, expansion, strips, projection, tile_addresses(o.dtype, packed=True),
                     np.zeros(panel_width(o.dtype), o.dtype), epilogue_of(o), shares)
        self.dtype, self.sums = np.dtype(o.dtype), o.batch * shares * projection.sums
        scratch = sizes.channels * expansion.width + TILE_SIZES[0] * sizes.pitch + group * pitch
        self.kernel = bottleneck.bind(o.dtype, constants, scratch=scratch, counters=(shares + o.batch) * COUNTER_PITCH)

    def pack(self, weights: Sequence[np.ndarray], biases: Sequence[np.ndarray | None]) -> np.ndarray:
        """The weights of all three, then the biases, one behind the other; a bias that is None is zero."""
        given = [np.zeros(len(part), self.dtype) if bias is None else bias for part, bias in zip(weights, biases, strict=True)]
        parts = [packed_rows(weights[0]), weights[1].reshape(-1), _packed_terms(weights[2]), *given]
        packed = operand(sum(part.size for part in parts), self.dtype)
        return np.concatenate(parts, out=packed)

    def run(self, x: np.ndarray, packed: np.ndarray, out: np.ndarray) -> None:
        """Compute all three into `out`."""
        self.kernel(x, packed, shared("bottleneck", self.sums, self.dtype), out)
