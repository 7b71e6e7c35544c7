"""The weight gradient by minimal filtering where the sums of all channels fit into a thread's cache: threads share the tiles.

    sums[share] = sum over its strips of tiles of (B^T x) * (A gy)
    gw          = G^T (sum over shares of sums) G

A thread transforms a few strips of x and gy, multiplies them at once and goes on with its share's sums; a second run adds
up the sums of all shares. So what a thread reads it has written itself: where cores share no cache but a far one (an Intel
server, 2 threads), fetching the other's transforms took longer than the products: 64 channels at 56 x 56 0.80 ms in all, so
0.43; a batch of 32 with 64 channels at 32 x 32 9.1 and 4.1. Shares are fixed, and results the same bits in every run.

Source: as `_winograd_gradient`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..problem import Problem
from ._boxes import add_run, copy_run
from ._gemm import Epilogue, multiply_rows, panel_width, tile_addresses
from ._jit import inlined, num_threads
from ._scratch import shared
from ._simd import (
    advance,
    lane_count,
    parallel_kernel,
    raise_flag,
    shared_out,
    thawed,
    zero_element,
)
from ._winograd_blocks import blocks_of, store_gradient
from ._winograd_choice import SERIAL_FLOPS, STRIPS_BYTES, Algorithm, sums_pitches, vectors_of
from ._winograd_tiles import channel_offsets, channel_panel, gradient_tiling, input_tiling, transform_box

# Tasks of a share beyond which each thread has two, so that one is left to give away when a core is held by another process; with
# fewer, adding up more sums takes too long (bench_conv.py, grad_weight: 3x3_64@56 .43 ms with one, .52 with two).
LONG_SHARE = 16
JOINED_ROWS = 16  # folded channels of a task of the second run


class Strips(NamedTuple):
    """The strips of tiles and the sums; integers only, as the kernels take it."""

    groups: int
    channels: int  # of a group, folded
    group_out: int
    panel: int
    products: int
    depths: int  # output planes of an image
    stride_d: int
    tiles_down: int
    blocks: int  # of strips, down an image
    step: int  # padded rows from one strip to the next
    points: int  # tiles of a strip
    v_product: int  # pitches
    z_product: int
    z_panel: int
    m_product: int
    m_panel: int
    m_group: int
    m_share: int
    tasks: int
    shares: int  # of the tasks


class Space(NamedTuple):
    """Sizes, in elements of the dtype, of what a thread keeps in scratch; each part starts at a cache line."""

    packed: int
    v: int
    z: int


@inlined
def add_products(p, register_tiles, rows, taps, depth, v, z, goes_on, zeros, sums):
    """Sums of the products of a group's transforms v and z over `depth` tiles, on top of the sums so far where they go on."""
    for panel in range(-(-p.group_out // p.panel)):
        outputs = min(p.panel, p.group_out - panel * p.panel)
        for product in range(p.products):
            to = advance(sums, panel * p.m_panel + product * p.m_product)
            multiply_rows(register_tiles, p.channels, advance(v, product * p.v_product), rows, taps, depth,
                          advance(z, panel * p.z_panel + product * p.z_product), p.panel, to if goes_on else zeros,
                          p.panel if goes_on else 0, to, outputs, 0)


@parallel_kernel
def winograd_strips(x, gy, bias, sums, constants, scratch, counters, thread, threads):
    """The sums of each share of the tasks, in the order of the tasks: the same bits whichever thread takes a share."""
    p, space, register_tiles, across, x_source, x_tiling, x_borders, gy_source, gy_tiling, gy_borders, rows, taps, zeros = thawed(constants)
    v = advance(scratch, space.packed)
    z = advance(v, space.v)
    zero, origin = zero_element(x), np.int64(0)
    for share in shared_out(counters, 1, p.shares):
        begin, end = p.tasks * share // p.shares, p.tasks * (share + 1) // p.shares
        for task in range(begin, end):
            plane, block = task // p.blocks, task % p.blocks
            image, depth = plane // p.depths, plane % p.depths
            first, last = p.tiles_down * block // p.blocks, p.tiles_down * (block + 1) // p.blocks
            down, start = last - first, first * gy_tiling.tile_h * gy_tiling.dilation_h
            for group in range(p.groups):
                transform_box(x_source, x_tiling, x, zero, x_borders, (image, depth * p.stride_d, first * p.step, origin), group, down,
                              across, origin, p.points * x_tiling.tile, scratch, v)
                transform_box(gy_source, gy_tiling, gy, zero, gy_borders, (image, depth, start, origin), group, down, across, origin,
                              p.points * p.panel, scratch, z)
                own = advance(sums, share * p.m_share + group * p.m_group)
                add_products(p, register_tiles, rows, taps, down * p.points, v, z, task > begin, zeros, own)


@inlined
def join_shares(p, sums, count, target):
    """target[:count] = the sums of all shares."""
    copy_run(target, sums, count)
    for share in range(1, p.shares):
        add_run(target, advance(sums, share * p.m_share), count)


@parallel_kernel
def winograd_join(sums, w, bias, gw, constants, scratch, counters, thread, threads):
    """gw from the sums of all shares, by (group, block of channels, panel of output channels)."""
    p, b, targets = thawed(constants)
    panels = -(-p.group_out // p.panel)
    blocks = -(-b.channels // b.block)
    folds = b.fold_h * b.fold_w
    identity = Epilogue(False, zero_element(sums), zero_element(sums))
    finished = advance(scratch, b.products * b.m_product)
    for task in shared_out(counters, 1, p.groups * blocks * panels):
        panel, first, group = task % panels, task // panels % blocks * b.block, task // (panels * blocks)
        channels = min(b.block, b.channels - first)
        outputs = min(p.panel, p.group_out - panel * p.panel)
        own = advance(sums, group * p.m_group + panel * p.m_panel + first * folds * p.panel)
        for product in range(p.products):
            join_shares(p, advance(own, product * p.m_product), channels * folds * p.panel, advance(scratch, product * b.m_product))
        to = advance(gw, (group * p.group_out + panel * p.panel) * b.gw_output + first * b.gw_channel)
        if not store_gradient(b, scratch, finished, channels, outputs, targets, to, identity):
            raise_flag(counters)


class SplitGradWeight:
    """The weight gradient: `run` has each thread sum over strips of its own, and adds up; `pack` leaves gy as it is."""

    def __init__(self, problem: Problem, algorithm: Algorithm):
        p, a = self.problem, self.algorithm = problem, algorithm
        lanes, width, channels = lane_count(p.dtype), panel_width(p.dtype), channel_panel(p, a)
        tiles_down, across = a.tiles(p)
        points, lines = p.dilation[1] * across * p.dilation[2], vectors_of(a.channels(p), p.dtype)
        panels = -(-p.group_out // width)
        fitting = STRIPS_BYTES // (a.products * points * (lines + panels * width) * p.itemsize)
        m_product, m_panel = sums_pitches(p, a)
        planes = p.batch * p.output_size[0]
        blocks = -(-tiles_down // max(1, min(tiles_down, fitting)))
        shares = num_threads() * (2 if planes * blocks > LONG_SHARE * num_threads() else 1)
        # As many blocks in each share, as far as there are strips.
        unit = shares // math.gcd(planes, shares)
        blocks = min(tiles_down, -(-blocks // unit) * unit)
        down = -(-tiles_down // blocks)
        x_source, x_tiling, x_borders = input_tiling(p, a, down, channels)
        gy_source, gy_tiling, gy_borders = gradient_tiling(p, a, down)
        s = Strips(
            p.groups, a.channels(p), p.group_out, width, a.products, p.output_size[0], p.stride[0], tiles_down, blocks,
            a.high.outputs * p.dilation[1] * x_source.stride_h, points, x_tiling.product, gy_tiling.product, gy_tiling.panel,
            m_product, m_panel, panels * m_panel, p.groups * panels * m_panel, planes * blocks, min(shares, planes * blocks))
        counts = (max(x_source.size, gy_source.size), -(-lines // channels) * x_tiling.panel, panels * gy_tiling.panel)
        space = Space(*(-(-count // lanes) * lanes + lanes for count in counts))
        taps = (np.arange(down * points) * channels).astype(np.int32)
        rows = channel_offsets(s.channels, channels, x_tiling.panel)
        constants = (s, space, tile_addresses(p.dtype), across, x_source, x_tiling, x_borders, gy_source, gy_tiling, gy_borders,
                     rows, taps, np.zeros(width, p.dtype))
        parallel = p.flops > SERIAL_FLOPS
        self.sum = winograd_strips.bind(p.dtype, constants, scratch=sum(space), parallel=parallel)
        b, targets = blocks_of(p, a, max(1, min(p.group_in, JOINED_ROWS // (a.fold_h * a.fold_w))))
        self.join = winograd_join.bind(p.dtype, (s, b, targets), scratch=a.products * b.m_product + b.finished, parallel=parallel)
        scratch = max(kernel.scratch_bytes(num_threads()) for kernel in (self.sum, self.join))
        self.sums = s.shares * s.m_share
        self.scratch_bytes = self.sums * p.itemsize + scratch

    def pack(self, gy: np.ndarray) -> np.ndarray:
        return gy

    def run(self, x: np.ndarray, packed: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> bool:
        sums = shared("sums", self.sums, x.dtype)
        self.sum(x.reshape(-1), packed.reshape(-1), sums, sums)
        return not self.join(sums, sums, sums, out.reshape(-1))
