"""Strips of an image packed with channels last, a vector of channels at a time, for the transforms of `_winograd_tiles`.

A strip is a row of tiles' input. It stays in the first-level cache while its tiles are transformed, and hands the rows that the
tiles below it need down to the next strip, so each position is transposed once.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..problem import Problem
from ._boxes import copy_run, fill_run, strides_of
from ._jit import inlined, outlined
from ._simd import advance, get, lane_count, lanes_of, put, transpose_block, transpose_whole
from ._winograd_choice import Algorithm, odd_lines, vectors_of

STRIP_BYTES = 32 * 1024  # of a packed strip, within a first-level cache


class Source(NamedTuple):
    """How padded rows of an image are read for a strip of tiles, and how they lie in scratch: [row][column][line]."""

    channels: int  # of a group, before folding
    lines: int  # channels of a group after folding, rounded up to whole vectors
    chunk: int  # lines that are packed at a time: a vector of them, or all where the image is folded
    pixel: int  # pitch in scratch: an odd number of vectors, so that a tile's pixels fall on different cache sets
    fold_h: int
    fold_w: int
    stride_d: int  # padded positions from one point of the box to the next, after folding
    stride_h: int
    stride_w: int
    span_d: int  # planes of a box's input
    span_h: int  # rows and columns of a strip's, after folding
    span_w: int
    kept: int  # rows that a strip shares with the one above it
    low_w: int
    in_w: int
    image: int  # pitches
    channel: int
    depth: int
    row: int
    column: int

    @property
    def size(self) -> int:
        """Elements of a packed strip."""
        return self.span_h * self.span_w * self.pixel


def input_source(problem: Problem, algorithm: Algorithm, tiles: int, span_d: int, stride_d: int) -> Source:
    """The padded input of a convolution, in strips of so many tiles."""
    p, a = problem, algorithm
    lanes = lane_count(p.dtype)
    lines = vectors_of(a.channels(p), p.dtype)
    chunk = chunk_of(p, a)
    height, width = input_spans(p, a, tiles)
    kept = max(0, height - a.high.outputs * p.dilation[1] * p.stride[1] // a.fold_h)
    return Source(p.group_in, lines, chunk, odd_lines(chunk, lanes), a.fold_h, a.fold_w, stride_d, p.stride[1] // a.fold_h,
                  p.stride[2] // a.fold_w, span_d, height, width, kept, p.padding[2][0], p.input_size[2],
                  *strides_of(p.in_channels, p.input_size, p.channels_last))


def chunk_of(problem: Problem, algorithm: Algorithm) -> int:
    """Lines that are packed at a time."""
    if algorithm.fold_h * algorithm.fold_w > 1:
        return vectors_of(algorithm.channels(problem), problem.dtype)
    return lane_count(problem.dtype)


def input_spans(problem: Problem, algorithm: Algorithm, tiles: int) -> tuple[int, int]:
    """Rows and columns of the folded input that a strip of so many tiles reads."""
    spans = []
    for axis, count, fold, d, s in zip((algorithm.high, algorithm.wide), (1, tiles), (algorithm.fold_h, algorithm.fold_w),
                                       problem.dilation[1:], problem.stride[1:], strict=True):
        step = s // fold
        spans.append(((count - 1) * axis.outputs * step + axis.samples - 1) * d + (d - 1) * step + 1)
    return spans[0], spans[1]


def tiles_of_a_strip(problem: Problem, algorithm: Algorithm, across: int) -> int:
    """Tiles, of `across` side by side, whose input is packed at a time: it stays in the first-level cache."""
    pixel = odd_lines(chunk_of(problem, algorithm), lane_count(problem.dtype)) * problem.itemsize
    strips = 1
    while strips < across and math.prod(input_spans(problem, algorithm, -(-across // strips))) * pixel > STRIP_BYTES:
        strips += 1
    return -(-across // strips)


def input_borders(problem: Problem, source: Source) -> tuple[np.ndarray, ...]:
    """Where each padded position lies in the image; ragged tiles reach beyond, and what they find there is never written."""
    folds = (1, source.fold_h, source.fold_w)
    spans = (source.span_d, source.span_h, source.span_w)
    return tuple(np.pad(border, (0, 2 * span * fold), constant_values=-1)
                 for border, span, fold in zip(problem.border_sources(), spans, folds, strict=True))


@outlined
def pack_strip(s, x, zero, borders, start, group, line, kept, target):
    """Copy the padded input of a strip, a chunk of one group's lines, folded if need be.

    `start` is (image, depth, row, column) of the folded image. The first `kept` rows are in scratch: the last strip's last ones.
    """
    row = s.span_w * s.pixel
    copy_run(target, advance(target, (s.span_h - kept) * row), kept * row)
    if s.fold_h * s.fold_w > 1:
        pack_folded(s, x, zero, borders, start, group, kept, target)
    else:
        pack_channels_last(s, x, zero, borders, start, group, line, kept, target)


@outlined
def pack_channels_last(s, x, zero, borders, start, group, first_channel, kept, target):
    """Copy rows of the padded input, a vector of one group's channels; lines beyond the channels are zero."""
    depths, rows, columns = borders
    image, d, first_h, first = start
    count = min(s.chunk, s.channels - first_channel)
    last = first + s.span_w
    left = min(max(first, s.low_w), last)
    right = max(min(last, s.low_w + s.in_w), left)
    for h in range(kept, s.span_h):
        source_h = rows[first_h + h]
        to = advance(target, h * s.span_w * s.pixel)
        if depths[d] < 0 or source_h < 0:
            fill_run(to, s.span_w * s.pixel, zero)
            continue
        at = advance(x, image * s.image + (group * s.channels + first_channel) * s.channel + depths[d] * s.depth + source_h * s.row)
        pack_border(s, at, columns, first, left, count, zero, to)
        pack_border(s, at, columns, right, last, count, zero, advance(to, (right - first) * s.pixel))
        to = advance(to, (left - first) * s.pixel)
        if s.channel == 1:
            for p in range(left, right):
                pixel = advance(to, (p - left) * s.pixel)
                copy_run(pixel, advance(at, (p - s.low_w) * s.column), count)
                fill_run(advance(pixel, count), s.chunk - count, zero)
        else:
            transpose_run(advance(at, left - s.low_w), s.channel, count, right - left, to, s.pixel)


@inlined
def pack_border(s, source, columns, first, last, channels, zero, target):
    """Copy padded positions [first, last) of a row, which lie elsewhere in the image or nowhere."""
    for p in range(first, last):
        pixel = advance(target, (p - first) * s.pixel)
        fill_run(pixel, s.chunk, zero)
        if columns[p] >= 0:
            for c in range(channels):
                put(pixel, c, get(source, columns[p] * s.column + c * s.channel))


@inlined
def transpose_run(source, channel, channels, count, target, pixel):
    """target[p * pixel + c] = source[c * channel + p] for p < count and a vector of channels, zero from `channels` on."""
    lanes = lanes_of(source)
    if channels == lanes and count >= lanes:
        for p in range(0, count, lanes):
            p = min(p, count - lanes)  # the last ones begin in those before
            transpose_whole(advance(source, p), channel, advance(target, p * pixel), pixel)
    else:
        for p in range(0, count, lanes):
            transpose_block(advance(source, p), channel, channels, min(lanes, count - p), advance(target, p * pixel), pixel, lanes)


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
def pack_folded(s, x, zero, borders, start, group, kept, target):
    """Copy rows from space to depth: line (c fold_h + i) fold_w + j holds the positions of phase (i, j) of channel c.

    The phases along a row lie side by side in the image and in the box.
    """
    depths, rows, columns = borders
    image, d, first_h, first_w = start
    left = right = s.span_w
    if s.column == 1:  # columns whose phases all lie in the image
        left = min(max(-(-s.low_w // s.fold_w) - first_w, 0), s.span_w)
        right = min(max((s.low_w + s.in_w) // s.fold_w - first_w, left), s.span_w)
    for h in range(kept, s.span_h):
        to = advance(target, h * s.span_w * s.pixel)
        fill_run(to, s.span_w * s.pixel, zero)
        for c in range(s.channels):
            for i in range(s.fold_h):
                source_h = rows[(first_h + h) * s.fold_h + i]
                if depths[d] < 0 or source_h < 0:
                    continue
                at = advance(x, image * s.image + (group * s.channels + c) * s.channel + depths[d] * s.depth + source_h * s.row)
                line = advance(to, (c * s.fold_h + i) * s.fold_w)
                fold_border(s, at, columns, first_w, 0, left, line)
                inner = advance(at, first_w * s.fold_w - s.low_w)
                for p in range(left, right):
                    copy_phases(advance(line, p * s.pixel), advance(inner, p * s.fold_w), s.fold_w)
                fold_border(s, at, columns, first_w, right, s.span_w, line)


@inlined
def fold_border(s, source, columns, first_w, first, last, line):
    """Copy the phases of columns [first, last) that lie elsewhere in the image, or some of them nowhere."""
    for p in range(first, last):
        for j in range(s.fold_w):
            column = columns[(first_w + p) * s.fold_w + j]
            if column >= 0:
                put(line, p * s.pixel + j, get(source, column * s.column))
