"""A 1x1 convolution and the depthwise one behind it as one run: what lies between them never leaves a core's cache.

    z[m, p] = rectifier(bias[m] + sum over c of  w[m, c] * x[c, p])
    y[m, q] = rectifier(bias'[m] + sum over k of  w'[m, k] * zpad[m, stride * q + k])

As a channel of y needs that channel of z alone, a task is a register tile's channels: `_pointwise`'s tiles write their planes into
scratch, `_strips`' read them from there. It saves a region and both ways of z through the caches, between cores too, which is
what these layers' time goes to: z has several times the channels of x (Sandler et al., "MobileNetV2: inverted residuals and
linear bottlenecks" (2018), section 3.3).

Its weights are packed for the tiles: in order they come sooner from memory, and offsets are half of what a step loads (MobileNetV2
fused: 3.90 ms, 3.73).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..problem import Problem
from . import _strips
from ._gemm import Epilogue, epilogue_of, panel_width
from ._jit import inlined, num_threads
from ._pointwise import ALIASED_BYTES, PANEL_BYTES, call_pixel_tile, pack_pixels, tile_address, tiles_of
from ._rectifiers import RECTIFIERS
from ._scratch import operand
from ._simd import COUNTER_PITCH, TILE_COLUMNS, TILE_SIZES, advance, lane_count, lanes_of, own_first, parallel_kernel, thawed
from ._strips import RUN_BYTES, call_strips

PLANES_BYTES = 768 * 1024  # of a tile's planes: with x they share a second-level cache (MobileNetV2, 16 -> 96 at 112 x 112)
FEWEST_TASKS = 2  # of a thread


class Sizes(NamedTuple):
    """The sizes of both convolutions, and a pitch in elements."""

    images: int
    channels: int  # of x
    planes: int  # channels of z and y
    in_h: int
    in_w: int
    out_h: int
    out_w: int
    taps: int
    low_w: int
    run: int  # rows of y of which the edges are computed together
    panels: int  # of an image's pixels
    pitch: int  # from one plane of z to the next
    tiles: int  # of the channels
    filters: int  # where the second convolution's weights begin


class Expansion(NamedTuple):
    """What the tiles of the first convolution need."""

    addresses: np.ndarray  # of each tile's kernels
    firsts: np.ndarray  # channels of the tiles
    starts: np.ndarray  # of their packed weights
    heights: np.ndarray
    y_offsets: np.ndarray
    counts: np.ndarray  # of elements to write; also in place of offsets, which packed weights need none of
    width: int
    epilogue: Epilogue


class Filter(NamedTuple):
    """What the strips of the second need."""

    rows: np.ndarray
    zeros: np.ndarray
    strips: int
    epilogue: Epilogue


@inlined
def pack_last(g, e, source, panel):
    """Copy the last panel of an image's pixels, if it is short."""
    pixels = g.in_h * g.in_w
    left = pixels - (g.panels - 1) * e.width
    if left < e.width:
        pack_pixels(advance(source, pixels - left), pixels, g.channels, left, e.width, panel)


@inlined
def expand(g, e, source, last, t, w, bias, planes):
    """The planes of z of a tile's channels; `last` is the last panel's copy."""
    pixels, first = g.in_h * g.in_w, e.firsts[t]
    for panel in range(g.panels):
        count = min(e.width, pixels - panel * e.width)
        at, pitch = advance(source, panel * e.width), pixels
        if count < e.width:
            at, pitch = last, e.width
        short = 1 if count <= lanes_of(source) else 0
        call_pixel_tile(e.addresses[TILE_COLUMNS * t + short], advance(w, e.starts[t]), e.counts, 1, g.channels, at, pitch, 0,
                        advance(bias, first), advance(planes, panel * e.width), g.pitch, e.y_offsets,
                        advance(e.counts, TILE_COLUMNS * count), e.epilogue)


@inlined
def filter_planes(g, f, first, count, planes, w, bias, target, pitch):
    """The planes of y, `pitch` apart, of `count` channels from `first` on; w and bias are those of the second convolution."""
    for r in range(count):
        call_strips(f.strips, advance(planes, r * g.pitch), g.in_w, f.rows, 1, f.zeros, advance(w, (first + r) * g.taps),
                    advance(bias, first + r), advance(target, r * pitch), g.out_w, g.out_h, g.run, g.out_w, g.low_w, g.in_w, 1, f.epilogue)


@parallel_kernel
def expanded_strips(x, w, bias, y, constants, scratch, counters, thread, threads):
    """y from x, by (image, tile of channels); w and bias are those of both convolutions, one behind the other."""
    g, e, f, shares = thawed(constants)
    planes = advance(scratch, g.channels * e.width)
    packed = -1
    for task in own_first(counters, thread, shares, g.images * g.tiles):
        image, t = task // g.tiles, task % g.tiles
        source = advance(x, image * g.channels * g.in_h * g.in_w)
        if image != packed:
            pack_last(g, e, source, scratch)
            packed = image
        expand(g, e, source, scratch, t, w, bias, planes)
        pitch = g.out_h * g.out_w
        filter_planes(g, f, e.firsts[t], e.heights[t], planes, advance(w, g.filters), advance(bias, g.planes),
                      advance(y, (image * g.planes + e.firsts[t]) * pitch), pitch)


def fits(expand: Problem, depthwise: Problem) -> bool:
    """Whether one run computes both: the first a product of matrices, the second of single planes by strips, that read its result."""
    e, d = expand, depthwise
    pixels, plane_bytes = math.prod(e.output_size), math.prod(e.output_size) * e.itemsize
    return (e.pass_name == "forward" and not e.channels_last and e.groups == 1 and math.prod(e.kernel_size) == math.prod(e.stride) == 1
            and not any(map(any, e.padding)) and {e.activation, d.activation} <= RECTIFIERS.keys() and np.dtype(e.dtype).kind == "f"
            and e.output_shape == d.input_shape and e.dtype == d.dtype and d.group_out == 1 and d.dilation == (1, 1, 1)
            and d.padding_mode == "zeros" and _strips.fits(d) and d.flops > 0 and e.flops > 0
            and pixels >= panel_width(e.dtype) and e.group_in * panel_width(e.dtype) * e.itemsize <= PANEL_BYTES
            and plane_bytes % ALIASED_BYTES != 0 and TILE_SIZES[0] * plane_bytes <= PLANES_BYTES
            and e.out_channels >= TILE_SIZES[-1] and e.batch * len(tiles_of(e.out_channels)) >= FEWEST_TASKS * num_threads())


def constants_of(expand: Problem, depthwise: Problem) -> tuple[Sizes, Expansion, Filter]:
    """What kernels are bound to that compute both."""
    e, d = expand, depthwise
    width, lanes = panel_width(e.dtype), lane_count(e.dtype)
    pixels, name, tiles = math.prod(e.output_size), _strips.shape_name(d), tiles_of(e.out_channels)
    assert name is not None
    strip = _strips.SHAPES[name].tile
    (_, in_h, in_w), (_, out_h, out_w) = d.input_size, d.output_size
    strip_bytes = (strip.rows * d.stride[1] * in_w + strip.rows * out_w) * d.itemsize
    sizes = Sizes(e.batch, e.in_channels, e.out_channels, in_h, in_w, out_h, out_w, d.taps, d.padding[2][0],
                  max(1, RUN_BYTES // strip_bytes) * strip.rows, -(-pixels // width), -(-pixels // lanes) * lanes, len(tiles),
                  sum(height for _, height in tiles) * e.in_channels)
    rows = np.pad(d.border_sources()[1], (0, strip.rows * d.stride[1]), constant_values=-1)  # the last strip may read too many
    counts = np.clip(np.arange(width + 1)[:, None] - np.arange(TILE_COLUMNS) * lanes, 0, lanes)
    addresses = [tile_address(height, columns, e.dtype, packed=True) for _, height in tiles for columns in (TILE_COLUMNS, 1)]
    firsts, heights = np.array(tiles, np.int64).T.copy()
    starts = (np.cumsum(heights) - heights) * e.in_channels
    expansion = Expansion(np.array(addresses, np.int64), firsts, starts, heights, np.arange(TILE_COLUMNS) * lanes,
                          counts.astype(np.int32).ravel(), width, epilogue_of(e))
    return sizes, expansion, Filter(rows, np.zeros(in_w, e.dtype), _strips.strips_address(name, d.dtype), epilogue_of(d))


def packed_rows(w: np.ndarray) -> np.ndarray:
    """Weights (O, C, 1, 1) as the tiles read them: those of an input channel for all rows of a tile, then those of the next."""
    matrix = w.reshape(w.shape[:2])
    return np.concatenate([matrix[first:first + rows].T.reshape(-1) for first, rows in tiles_of(len(matrix))])


class ExpandedDepthwise:
    """Both convolutions; `pack` their weights, then `run`."""

    def __init__(self, expand: Problem, depthwise: Problem):
        sizes, expansion, strips = constants_of(expand, depthwise)
        self.dtype = np.dtype(expand.dtype)
        self.kernel = expanded_strips.bind(
            expand.dtype, (sizes, expansion, strips, num_threads()),
            scratch=sizes.channels * expansion.width + TILE_SIZES[0] * sizes.pitch, counters=num_threads() * COUNTER_PITCH)

    def pack(self, weights: Sequence[np.ndarray], biases: Sequence[np.ndarray | None]) -> tuple[np.ndarray, np.ndarray]:
        """The weights and the biases of both, one behind the other; a bias that is None is zero."""
        parts = packed_rows(weights[0]), weights[1].reshape(-1)
        w = operand(sum(part.size for part in parts), self.dtype)
        np.concatenate(parts, out=w)
        given = [np.zeros(len(part), self.dtype) if bias is None else bias for part, bias in zip(weights, biases, strict=True)]
        return w, np.concatenate(given)

    def run(self, x: np.ndarray, packed: tuple[np.ndarray, np.ndarray], out: np.ndarray) -> None:
        """Compute both into `out`."""
        self.kernel(x, *packed, out)
