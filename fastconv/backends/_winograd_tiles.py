"""Tiles of minimal-filtering algorithms: an image's rows packed with channels last, and transformed a vector of channels at a time.

Both passes use it: for the input (`forward`, `grad_weight`) and for the output's gradient (`grad_weight`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..problem import Problem
from ._bilinear import call_transform
from ._boxes import copy_run, fill_run, strides_of
from ._jit import inlined, outlined
from ._simd import advance, get, lanes_of, put, transpose_block
from ._winograd_choice import Algorithm, vectors_of


class Source(NamedTuple):
    """How the padded rows of an image are read for a box, and how they lie in scratch: [depth][row][column][line]."""

    channels: int  # of a group, before folding
    lines: int  # channels of a group after folding, rounded up to whole vectors
    fold_h: int
    fold_w: int
    stride_d: int  # padded positions from one point of the box to the next, after folding
    stride_h: int
    stride_w: int
    span_d: int  # extents of a box's input, after folding
    span_h: int
    span_w: int
    low_w: int
    in_w: int
    image: int  # pitches
    channel: int
    depth: int
    row: int
    column: int

    @property
    def size(self) -> int:
        """Elements of a packed box."""
        return self.span_d * self.span_h * self.span_w * self.lines


class Tiling(NamedTuple):
    """How a packed box is cut into tiles, and where their transforms go: [panel][product][plane][tile][channel]."""

    transform: int  # address
    tile_h: int  # points of a tile
    tile_w: int
    dilation_h: int
    dilation_w: int
    products_w: int
    product: int  # pitches of the transforms
    tile: int
    panel_width: int
    panel: int


def input_source(problem: Problem, algorithm: Algorithm, spans: tuple[int, int, int], stride_d: int) -> Source:
    """The padded input of a convolution."""
    p, a = problem, algorithm
    return Source(p.group_in, vectors_of(a.channels(p), p.dtype), a.fold_h, a.fold_w, stride_d, p.stride[1] // a.fold_h,
                  p.stride[2] // a.fold_w, *spans, p.padding[2][0], p.input_size[2],
                  *strides_of(p.in_channels, p.input_size, p.channels_last))


def input_spans(problem: Problem, algorithm: Algorithm, down: int, across: int) -> tuple[int, int]:
    """Rows and columns of the folded input that so many tiles down and across read."""
    spans = []
    for axis, tiles, fold, d, s in zip((algorithm.high, algorithm.wide), (down, across), (algorithm.fold_h, algorithm.fold_w),
                                       problem.dilation[1:], problem.stride[1:], strict=True):
        step = s // fold
        spans.append(((tiles - 1) * axis.outputs * step + axis.samples - 1) * d + (d - 1) * step + 1)
    return spans[0], spans[1]


def input_borders(problem: Problem, source: Source) -> tuple[np.ndarray, ...]:
    """Where each padded position lies in the image; ragged tiles reach beyond, and what they find there is never written."""
    folds = (1, source.fold_h, source.fold_w)
    spans = (source.span_d, source.span_h, source.span_w)
    return tuple(np.pad(border, (0, 2 * span * fold), constant_values=-1)
                 for border, span, fold in zip(problem.border_sources(), spans, folds, strict=True))


@outlined
def pack_tiles(s, x, zero, borders, start, group, target):
    """Copy a box of one group's padded channels, folded if need be; `start` is (image, depth, row, column) of the folded image."""
    if s.fold_h * s.fold_w > 1:
        pack_folded(s, x, zero, borders, start, group, target)
    else:
        pack_channels_last(s, x, zero, borders, start, group, target)


@outlined
def pack_channels_last(s, x, zero, borders, start, group, target):
    """Copy the padded input of a box, one group's channels; lines beyond the channels are zero."""
    depths, rows, columns = borders
    lanes = lanes_of(x)
    image, first_d, first_h, first = start
    last = first + s.span_w
    left = min(max(first, s.low_w), last)
    right = max(min(last, s.low_w + s.in_w), left)
    for d in range(s.span_d):
        source_d = depths[first_d + d]
        for h in range(s.span_h):
            source_h = rows[first_h + h]
            to = advance(target, (d * s.span_h + h) * s.span_w * s.lines)
            if source_d < 0 or source_h < 0:
                fill_run(to, s.span_w * s.lines, zero)
                continue
            at = advance(x, image * s.image + group * s.channels * s.channel + source_d * s.depth + source_h * s.row)
            for p in range(first, last):
                if p < left or p >= right or s.channel == 1:
                    pixel = advance(to, (p - first) * s.lines)
                    if columns[p] < 0:
                        fill_run(pixel, s.lines, zero)
                    elif s.channel == 1:
                        copy_run(pixel, advance(at, columns[p] * s.column), s.channels)
                        fill_run(advance(pixel, s.channels), s.lines - s.channels, zero)
                    else:
                        for c in range(s.lines):
                            put(pixel, c, get(at, columns[p] * s.column + c * s.channel) if c < s.channels else zero)
            if s.channel != 1:
                for c in range(0, s.lines, lanes):
                    for p in range(left, right, lanes):
                        transpose_block(advance(at, c * s.channel + p - s.low_w), s.channel, min(lanes, s.channels - c),
                                        min(lanes, right - p), advance(to, (p - first) * s.lines + c), s.lines, lanes)


@inlined
def copy_phases(target, source, count):
    """target[:count] = source[:count] for the few phases of a stride; two and four are one move each."""
    if count == 4:
        a, b, c, d = get(source, 0), get(source, 1), get(source, 2), get(source, 3)
        put(target, 0, a)
        put(target, 1, b)
        put(target, 2, c)
        put(target, 3, d)
    elif count == 2:
        a, b = get(source, 0), get(source, 1)
        put(target, 0, a)
        put(target, 1, b)
    else:
        for j in range(count):
            put(target, j, get(source, j))


@outlined
def pack_folded(s, x, zero, borders, start, group, target):
    """The same from space to depth: line (c fold_h + i) fold_w + j holds the positions of phase (i, j) of channel c.

    The phases along a row lie side by side in the image and in the box.
    """
    depths, rows, columns = borders
    image, first_d, first_h, first_w = start
    for d in range(s.span_d):
        source_d = depths[first_d + d]
        for h in range(s.span_h):
            to = advance(target, (d * s.span_h + h) * s.span_w * s.lines)
            fill_run(to, s.span_w * s.lines, zero)
            for c in range(s.channels):
                for i in range(s.fold_h):
                    source_h = rows[(first_h + h) * s.fold_h + i]
                    if source_d < 0 or source_h < 0:
                        continue
                    at = advance(x, image * s.image + (group * s.channels + c) * s.channel + source_d * s.depth + source_h * s.row)
                    line = advance(to, (c * s.fold_h + i) * s.fold_w)
                    for p in range(s.span_w):
                        position = (first_w + p) * s.fold_w
                        if s.column == 1 and position >= s.low_w and position + s.fold_w <= s.low_w + s.in_w:
                            copy_phases(advance(line, p * s.lines), advance(at, position - s.low_w), s.fold_w)
                        else:
                            for j in range(s.fold_w):
                                if columns[position + j] >= 0:
                                    put(line, p * s.lines + j, get(at, columns[position + j] * s.column))


@outlined
def transform_tiles(s, t, packed, down, across, plane_pitch, row_pitch, target):
    """The transforms of all tiles of a packed box; depth planes and rows of tiles are `plane_pitch` and `row_pitch` apart."""
    lanes = lanes_of(target)
    row_step, column_step = t.dilation_h * s.span_w * s.lines, t.dilation_w * s.lines
    for d in range(s.span_d):
        for i in range(down):
            to = advance(target, d * plane_pitch + i * row_pitch)
            for f in range(t.dilation_h):
                row = (i * t.tile_h * t.dilation_h + f) * s.stride_h
                for j in range(across):
                    for e in range(t.dilation_w):
                        column = (j * t.tile_w * t.dilation_w + e) * s.stride_w
                        at = advance(packed, ((d * s.span_h + row) * s.span_w + column) * s.lines)
                        for first in range(0, s.lines, t.panel_width):
                            panel = advance(to, first // t.panel_width * t.panel)
                            for c in range(first, min(first + t.panel_width, s.lines), lanes):
                                call_transform(t.transform, advance(at, c), row_step, column_step, advance(panel, c - first),
                                               t.products_w * t.product, t.product, packed)
                        to = advance(to, t.tile)
