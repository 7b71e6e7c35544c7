"""The weight gradient by minimal filtering: the transposed algorithm.

    gw = G^T (sum over tiles of (B^T x) * (A gy)) G

Two runs transform all tiles of x and of gy, a third multiplies them, per product a (channels x tiles) by (tiles x panel of
output channels) matrix product, and transforms the sums back. Strips of tiles (all tiles that share a row of tiles) are
taken in chunks that bound the memory; the gradients of chunks are added up.

Tried, and did not pay: chunks as large as the last-level cache (24 MiB: 10.8 ms for 64 channels at 224 x 224, 8 MiB 4.7), and smaller
ones (4 MiB 5.0, 1 MiB 8.0); fetching the lines of gw before they are written (6% slower at 512 channels at 7 x 7); tiles
of F(2, 7) along both axes, whose gradient errs by 3e-5.

Source: Winograd (1980), theorem 5 of chapter IV (transposition of bilinear algorithms); Lavin and Gray (2016), section 4.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..problem import Problem
from ._bilinear import OUTPUT_GRADIENT, WEIGHT_GRADIENT, call_transform, transform_address
from ._boxes import strides_of
from ._gemm import Epilogue, multiply_tile, panel_width, store_points, tile_addresses
from ._jit import num_threads, outlined
from ._scratch import shared
from ._simd import (
    TILE_ROWS,
    BoundKernel,
    advance,
    as_int64,
    fma,
    get,
    lane_count,
    lanes_of,
    load,
    misalignment,
    next_task,
    parallel_kernel,
    raise_flag,
    thawed,
    total,
    transpose_streamed,
    zero,
    zero_element,
)
from ._winograd_choice import SERIAL_FLOPS, best_algorithm, odd_lines, vectors_of
from ._winograd_tiles import TASKS_PER_THREAD, Source, Strips, Tiling, bind_input_transform, bind_transform, input_depths, strips_of_a_task

CHUNK_BYTES = 8 * 1024 * 1024  # of transforms of x and gy: a quarter of a 32 MiB last-level cache (bench_conv.py, grad_weight)
SUMS_BYTES = 256 * 1024  # of a task's sums: a quarter of a 1 MiB L2 (bench_conv.py, grad_weight)
STREAMED_BYTES = 4 * 1024 * 1024  # of gw, an eighth of a 32 MiB last-level cache (bench_conv.py, backward, 3x3_512@7: 1.51 ms, 1.40)
GRADIENT_KINDS = (OUTPUT_GRADIENT, WEIGHT_GRADIENT)


class Products(NamedTuple):
    """The matrix products of the transforms, and where their gradients go."""

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
    strip_points: int  # tiles of a strip, all output depths
    v_product: int  # pitches
    v_group: int
    v_depth: int  # from one depth tap to the next
    z_product: int
    z_panel: int
    z_group: int
    m_product: int
    gw_output: int
    gw_channel: int
    gw_depth: int
    gw_row: int
    merged: bool  # whether taps and channels of gw follow each other as the sums do
    streamed: bool  # whether gw goes past the caches


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


@parallel_kernel
def winograd_grad_weight(v, z, chunk, gw, constants, scratch, counters, thread, threads):
    """The gradient of the weights over a chunk of strips, by (group, block of channels, panel of output channels)."""
    p, register_tiles, rows, taps, targets, zeros = thawed(constants)
    panels = -(-p.group_out // p.panel)
    blocks = -(-p.channels // p.block)
    folds = p.fold_h * p.fold_w
    depth = get(as_int64(chunk), 1) * p.strip_points
    identity = Epilogue(False, zero_element(v), zero_element(v))
    finished = advance(scratch, p.products * p.m_product)
    while True:
        task = next_task(counters)
        if task >= p.groups * blocks * panels * p.kernel_d:
            break
        tap = task % p.kernel_d
        panel = task // p.kernel_d % panels
        first = task // (p.kernel_d * panels) % blocks * p.block
        group = task // (p.kernel_d * panels * blocks)
        channels = min(p.block, p.channels - first)
        outputs = min(p.panel, p.group_out - panel * p.panel)
        for product in range(p.products):
            source = advance(v, group * p.v_group + product * p.v_product + tap * p.v_depth + first * folds)
            weights = advance(z, group * p.z_group + panel * p.z_panel + product * p.z_product)
            row = 0
            while row < channels * folds:
                row += multiply_tile(register_tiles, channels * folds - row, source, advance(rows, row), taps, depth, weights, p.panel,
                                     zeros, 0, advance(scratch, product * p.m_product + row * p.panel), outputs)
        to = advance(gw, (group * p.group_out + panel * p.panel) * p.gw_output + first * p.gw_channel + tap * p.gw_depth)
        if not store_gradient(p, scratch, finished, channels, outputs, targets, to, identity):
            raise_flag(counters)


class GradWeight:
    """The weight gradient: `run` transforms and multiplies both operands; `pack` leaves gy as it is."""

    def __init__(self, problem: Problem):
        from ._machine import machine_constants

        p = self.problem = problem
        _, a = best_algorithm(p, machine_constants())
        self.algorithm = a
        self.threads = num_threads()
        self.tiles_down, self.across = a.tiles(p)
        self.strips = self._strips_of_a_chunk()
        self.transform_x, v = bind_input_transform(p, a, self.strips)
        self.transform_gy, z = self._bind_gradient()
        self.multiply, margin = self._bind_products(v, z)
        self.sizes = (v.groups * v.group + margin, z.groups * z.group)
        self.scratch_bytes = (sum(self.sizes) * p.itemsize + max(kernel.scratch_bytes(self.threads) for kernel in (
            self.transform_x, self.transform_gy, self.multiply)))

    @property
    def _strip_tiles(self) -> int:
        return self.across * self.problem.dilation[1] * self.problem.dilation[2]

    def _strips_of_a_chunk(self) -> int:
        """Strips whose transforms the memory holds: whole images, or part of one."""
        p, a = self.problem, self.algorithm
        depths, outputs = input_depths(p), p.output_size[0]
        per_point = depths * vectors_of(a.channels(p), p.dtype) + outputs * -(-p.group_out // panel_width(p.dtype)) * panel_width(p.dtype)
        strips = max(1, CHUNK_BYTES // (self._strip_tiles * a.products * p.groups * per_point * p.itemsize))
        if strips < self.tiles_down:
            return strips
        return min(p.batch, strips // self.tiles_down) * self.tiles_down

    def _bind_gradient(self) -> tuple[BoundKernel, Strips]:
        p, a = self.problem, self.algorithm
        lanes, width = lane_count(p.dtype), panel_width(p.dtype)
        (depths, out_h, out_w), (_, dh, dw) = p.output_size, p.dilation
        lines = -(-p.group_out // width) * width
        span = self.across * a.wide.outputs * dw
        down = strips_of_a_task(p, self.strips, self.tiles_down, a.high.outputs * dh * span * lines * p.itemsize, depths)
        s = Source(p.group_out, lines, 1, 1, 1, 1, 1, 1, down * a.high.outputs * dh, span, 0, out_w,
                   *strides_of(p.out_channels, p.output_size, p.channels_last))
        plane = self._strip_tiles * width
        product = odd_lines(self.strips * depths * plane, lanes)
        t = Tiling(transform_address(OUTPUT_GRADIENT, *a.keys, p.dtype), a.high.outputs, a.wide.outputs, dh, dw, a.wide.products,
                   product, width, width, a.products * product)
        # Tiles that reach beyond gy find zeros there.
        borders = tuple(np.pad(np.arange(size), (0, margin), constant_values=-1)
                        for size, margin in ((depths, 0), (out_h, s.span_h), (out_w, s.span_w)))
        group = lines // width * a.products * product
        strips = Strips(p.groups, depths, self.tiles_down, down, self.across, plane, depths * plane, group)
        return bind_transform(p, s, t, strips, borders), strips

    def _bind_products(self, v: Strips, z: Strips) -> tuple[BoundKernel, int]:
        p, a = self.problem, self.algorithm
        width = panel_width(p.dtype)
        lines, panels = vectors_of(a.channels(p), p.dtype), -(-p.group_out // width)
        folds = a.fold_h * a.fold_w
        kernel_d, kernel_h, kernel_w = p.kernel_size
        block = self._block(panels)
        height, wide = a.high.taps * a.fold_h, a.wide.taps * a.fold_w
        last = p.channels_last
        gw = ((1, p.out_channels, kernel_h * kernel_w * p.group_in * p.out_channels, kernel_w * p.group_in * p.out_channels) if last
              else (p.taps, p.taps // p.group_in, kernel_h * kernel_w, kernel_w))
        column = p.group_in * p.out_channels if last else 1
        merged = not last and kernel_d == 1 and (height, wide) == (kernel_h, kernel_w)
        m_product = odd_lines((block * folds + TILE_ROWS) * width, lane_count(p.dtype))
        finished = (block + 1) * height * wide * width
        outputs = p.output_size[0]
        numbers = Products(
            p.groups, p.group_out, p.group_in, block, width, a.fold_h, a.fold_w, kernel_d, kernel_h, kernel_w, height, wide,
            a.products, a.wide.products,
            transform_address(WEIGHT_GRADIENT, *a.keys, p.dtype), outputs * self._strip_tiles, v.group // a.products, v.group,
            p.dilation[0] * v.plane, z.group // (panels * a.products), z.group // panels, z.group, m_product, *gw, merged,
            merged and p.taps % lane_count(p.dtype) == 0 and math.prod(p.weight_shape) * p.itemsize >= STREAMED_BYTES)
        tiles = np.arange(self._strip_tiles) * lines
        taps = (np.arange(self.strips)[:, None, None] * v.strip + np.arange(outputs)[:, None] * p.stride[0] * v.plane + tiles)
        constants = (numbers, tile_addresses(p.dtype), np.arange(block * folds + TILE_ROWS, dtype=np.int32), taps.astype(np.int32).ravel(),
                     np.arange(block * kernel_h * kernel_w) * column, np.zeros(width, p.dtype))
        kernel = winograd_grad_weight.bind(p.dtype, constants, scratch=a.products * m_product + finished, parallel=p.flops > SERIAL_FLOPS)
        return kernel, block * folds + TILE_ROWS  # register tiles may read so many channels beyond the last

    def _block(self, panels: int) -> int:
        """Channels of a task: full register tiles, sums within the cache, tasks enough."""
        p, a = self.problem, self.algorithm
        folds = a.fold_h * a.fold_w
        fitting = SUMS_BYTES // (a.products * panel_width(p.dtype) * p.itemsize)
        tiles = max(1, fitting // TILE_ROWS)
        others = p.groups * panels * p.kernel_size[0]
        while tiles > 1 and -(-p.group_in * folds // (tiles * TILE_ROWS)) * others < TASKS_PER_THREAD * self.threads:
            tiles -= 1
        return max(1, min(p.group_in, tiles * TILE_ROWS // folds))

    def pack(self, gy: np.ndarray) -> np.ndarray:
        return gy

    def run(self, x: np.ndarray, packed: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> bool:
        x, gy, gw = x.reshape(-1), packed.reshape(-1), out.reshape(-1)
        v, z = (shared(role, size, x.dtype) for role, size in zip("vz", self.sizes, strict=True))
        finite = True
        for first, count in self._chunks():
            chunk = np.array([first, count], np.int64).view(x.dtype)
            self.transform_x(x, chunk, chunk, v)
            self.transform_gy(gy, chunk, chunk, z)
            part = gw if first == 0 else np.empty_like(gw)
            finite &= not self.multiply(v, z, chunk, part)
            if first > 0:
                with np.errstate(invalid="ignore", over="ignore"):
                    gw += part
        return finite

    def _chunks(self) -> list[tuple[int, int]]:
        """First strip and number of strips of each chunk: of whole images, or within one."""
        batch, rows = self.problem.batch, self.tiles_down
        if self.strips >= rows:
            return [(first, min(self.strips, batch * rows - first)) for first in range(0, batch * rows, self.strips)]
        return [(image * rows + row, min(self.strips, rows - row)) for image in range(batch) for row in range(0, rows, self.strips)]
