"""The sums of products that a weight gradient by minimal filtering ends with: transformed back to taps, and written.

Sums are taken in blocks of channels by panels of output channels: [product][channel, folded][output channel].
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..problem import Problem
from ._bilinear import call_transform, transform_address
from ._cook_toom import WEIGHT_GRADIENT
from ._gemm import panel_width, store_points
from ._jit import outlined
from ._simd import (
    TILE_ROWS,
    advance,
    fma,
    lane_count,
    lanes_of,
    load,
    misalignment,
    total,
    transpose_streamed,
    zero,
    zero_element,
)
from ._winograd_choice import Algorithm, odd_lines

STREAMED_BYTES = 4 * 1024 * 1024  # of gw, an eighth of a 32 MiB last-level cache (bench_conv.py, backward, 3x3_512@7: 1.51 ms, 1.40)


class Blocks(NamedTuple):
    """How the gradient is cut into blocks, and where they go."""

    groups: int
    group_out: int
    channels: int  # of a group, before folding
    block: int  # of those in a task
    panel: int  # output channels of a panel
    fold_h: int
    fold_w: int
    kernel_d: int
    kernel_h: int
    kernel_w: int
    height: int  # taps of the folded kernels times the folds
    width: int
    products: int
    products_w: int
    transform: int  # address
    m_product: int  # pitches
    gw_output: int
    gw_channel: int
    gw_depth: int
    gw_row: int
    merged: bool  # whether taps and channels of gw follow each other as the sums do
    streamed: bool  # whether gw goes past the caches

    @property
    def finished(self) -> int:
        """Elements of a block's taps, and of what a transform may write beyond them."""
        return (self.block + 1) * self.height * self.width * self.panel


def blocks_of(problem: Problem, algorithm: Algorithm, block: int) -> tuple[Blocks, np.ndarray]:
    """Blocks of that many channels, and the offsets of a block's taps in gw."""
    p, a = problem, algorithm
    width = panel_width(p.dtype)
    kernel_d, kernel_h, kernel_w = p.kernel_size
    height, wide = a.high.taps * a.fold_h, a.wide.taps * a.fold_w
    last = p.channels_last
    gw = ((1, p.out_channels, kernel_h * kernel_w * p.group_in * p.out_channels, kernel_w * p.group_in * p.out_channels) if last
          else (p.taps, p.taps // p.group_in, kernel_h * kernel_w, kernel_w))
    column = p.group_in * p.out_channels if last else 1
    merged = not last and kernel_d == 1 and (height, wide) == (kernel_h, kernel_w)
    streamed = merged and p.taps % lane_count(p.dtype) == 0 and math.prod(p.weight_shape) * p.itemsize >= STREAMED_BYTES
    blocks = Blocks(p.groups, p.group_out, p.group_in, block, width, a.fold_h, a.fold_w, kernel_d, kernel_h, kernel_w, height, wide,
                    a.products, a.wide.products, transform_address(WEIGHT_GRADIENT, *a.keys, p.dtype),
                    odd_lines((block * a.fold_h * a.fold_w + TILE_ROWS) * width, lane_count(p.dtype)), *gw, merged, streamed)
    return blocks, np.arange(block * kernel_h * kernel_w) * column


@outlined
def stream_points(sums, width, rows, gw, targets, pitch, identity):
    """Write a whole panel of merged sums past the caches, save what shares a line with others'."""
    lanes = lanes_of(sums)
    r = 0
    while r < rows:
        deep = min(lanes - misalignment(advance(gw, r)), rows - r)
        if deep == lanes:
            for c in range(0, width, lanes):
                transpose_streamed(advance(sums, r * width + c), width, advance(gw, c * pitch + r), pitch)
        else:
            store_points(advance(sums, r * width), width, deep, advance(gw, r), targets, pitch, width, identity)
        r += deep


@outlined
def store_gradient(p, sums, finished, channels, outputs, targets, gw, identity):
    """Transform a block's sums back to taps and write them; returns whether all are finite."""
    lanes = lanes_of(sums)
    nothing = zero(sums)
    check = nothing
    folds = p.fold_h * p.fold_w
    plane = p.height * p.width
    for c in range(channels):
        for fold in range(folds):
            at = advance(sums, (c * folds + fold) * p.panel)
            to = advance(finished, (c * plane + fold // p.fold_w * p.width + fold % p.fold_w) * p.panel)
            for lane in range(0, outputs, lanes):
                call_transform(p.transform, advance(at, lane), p.products_w * p.m_product, p.m_product, advance(to, lane),
                               p.fold_h * p.width * p.panel, p.fold_w * p.panel, at)
    for row in range(channels * plane):
        for lane in range(0, outputs, lanes):
            check = fma(load(finished, row * p.panel + lane), nothing, check)
    if p.streamed and outputs == p.panel:
        stream_points(finished, p.panel, channels * plane, gw, targets, p.gw_output, identity)
    elif p.merged:
        store_points(finished, p.panel, channels * plane, gw, targets, p.gw_output, outputs, identity)
    else:
        for c in range(channels):
            for h in range(p.kernel_h):
                store_points(advance(finished, (c * plane + h * p.width) * p.panel), p.panel, p.kernel_w,
                             advance(gw, c * p.gw_channel + h * p.gw_row), targets, p.gw_output, outputs, identity)
    return total(check) == zero_element(sums)
