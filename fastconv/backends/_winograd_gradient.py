"""The weight gradient by minimal filtering: the transposed algorithm.

    gw = G^T (sum over tiles of (B^T x) * (A gy)) G

Two runs transform all tiles of x and of gy, a third multiplies them, per product a (channels x tiles) by (tiles x panel of
output channels) matrix product, and transforms the sums back. Strips of tiles (all tiles that share a row of tiles) are
taken in chunks that bound the memory; the gradients of chunks are added up. Where the sums are small enough for a thread to
have its own, `_winograd_strips` does all in one run.

Tried, and did not pay: chunks as large as the last-level cache (24 MiB: 10.8 ms for 64 channels at 224 x 224, 8 MiB 4.7), and smaller
ones (4 MiB 5.0, 1 MiB 8.0); fetching the lines of gw before they are written (6% slower at 512 channels at 7 x 7); tiles
of F(2, 7) along both axes, whose gradient errs by 3e-5.

Source: Winograd (1980), theorem 5 of chapter IV (transposition of bilinear algorithms); Lavin and Gray (2016), section 4.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..problem import Problem
from ._cook_toom import OUTPUT_GRADIENT, WEIGHT_GRADIENT
from ._gemm import Epilogue, multiply_rows, panel_width, tile_addresses
from ._jit import num_threads
from ._scratch import shared
from ._simd import (
    TILE_ROWS,
    BoundKernel,
    advance,
    as_int64,
    get,
    next_task,
    parallel_kernel,
    raise_flag,
    thawed,
    zero_element,
)
from ._winograd_blocks import blocks_of, store_gradient
from ._winograd_choice import GRADIENT_SUMS_BYTES, SERIAL_FLOPS, Algorithm, best_algorithm, splits_tiles, vectors_of
from ._winograd_strips import SplitGradWeight
from ._winograd_tiles import (
    TASKS_PER_THREAD,
    Strips,
    bind_input_transform,
    bind_transform,
    channel_offsets,
    channel_panel,
    gradient_tiling,
    input_depths,
    strips_of_a_task,
)

CHUNK_BYTES = 8 * 1024 * 1024  # of transforms of x and gy: a quarter of a 32 MiB last-level cache (bench_conv.py, grad_weight)
GRADIENT_KINDS = (OUTPUT_GRADIENT, WEIGHT_GRADIENT)


class Operands(NamedTuple):
    """Pitches of the transforms."""

    strip_points: int  # tiles of a strip, all output depths
    v_product: int
    v_group: int
    v_depth: int  # from one depth tap to the next
    z_product: int
    z_panel: int
    z_group: int


@parallel_kernel
def winograd_grad_weight(v, z, chunk, gw, constants, scratch, counters, thread, threads):
    """The gradient of the weights over a chunk of strips, by (group, block of channels, panel of output channels)."""
    p, o, register_tiles, rows, taps, targets, zeros = thawed(constants)
    panels = -(-p.group_out // p.panel)
    blocks = -(-p.channels // p.block)
    folds = p.fold_h * p.fold_w
    depth = get(as_int64(chunk), 1) * o.strip_points
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
            source = advance(v, group * o.v_group + product * o.v_product + tap * o.v_depth)
            weights = advance(z, group * o.z_group + panel * o.z_panel + product * o.z_product)
            multiply_rows(register_tiles, channels * folds, source, advance(rows, first * folds), taps, depth, weights, p.panel, zeros, 0,
                          advance(scratch, product * p.m_product), outputs, 0)
        to = advance(gw, (group * p.group_out + panel * p.panel) * p.gw_output + first * p.gw_channel + tap * p.gw_depth)
        if not store_gradient(p, scratch, finished, channels, outputs, targets, to, identity):
            raise_flag(counters)


class GradWeight:
    """The weight gradient: `run` transforms and multiplies both operands; `pack` leaves gy as it is."""

    def __init__(self, problem: Problem, algorithm: Algorithm):
        p, a = self.problem, self.algorithm = problem, algorithm
        self.threads = num_threads()
        self.tiles_down, self.across = a.tiles(p)
        self.strips = self._strips_of_a_chunk()
        self.transform_x, v = bind_input_transform(p, a, self.strips, channel_panel(p, a))
        self.transform_gy, z = self._bind_gradient()
        self.multiply = self._bind_products(v, z)
        self.sizes = (v.groups * v.group, z.groups * z.group)
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
        width, depths = panel_width(p.dtype), p.output_size[0]
        lines = -(-p.group_out // width) * width
        row_bytes = a.high.outputs * p.dilation[1] * self.across * a.wide.outputs * p.dilation[2] * lines * p.itemsize
        down = strips_of_a_task(p, self.strips, self.tiles_down, row_bytes, depths)
        plane = self._strip_tiles * width
        s, t, borders = gradient_tiling(p, a, self.strips * depths)
        strips = Strips(p.groups, depths, self.tiles_down, down, self.across, plane, depths * plane, lines // width * t.panel)
        return bind_transform(p, s, t, strips, borders), strips

    def _bind_products(self, v: Strips, z: Strips) -> BoundKernel:
        p, a = self.problem, self.algorithm
        width, channels = panel_width(p.dtype), channel_panel(p, a)
        panels = -(-p.group_out // width)
        b, targets = blocks_of(p, a, self._block(panels))
        v_panel = v.group // -(-a.channels(p) // channels)
        operands = Operands(p.output_size[0] * self._strip_tiles, v_panel // a.products, v.group, p.dilation[0] * v.plane,
                            z.group // (panels * a.products), z.group // panels, z.group)
        planes = np.arange(p.output_size[0])[:, None] * p.stride[0] * v.plane
        taps = np.arange(self.strips)[:, None, None] * v.strip + planes + np.arange(self._strip_tiles) * channels
        rows = channel_offsets(a.channels(p), channels, v_panel)
        constants = (b, operands, tile_addresses(p.dtype), rows, taps.astype(np.int32).ravel(), targets, np.zeros(width, p.dtype))
        return winograd_grad_weight.bind(p.dtype, constants, scratch=a.products * b.m_product + b.finished,
                                         parallel=p.flops > SERIAL_FLOPS)

    def _block(self, panels: int) -> int:
        """Channels of a task: full register tiles, sums within the cache, tasks enough."""
        p, a = self.problem, self.algorithm
        folds = a.fold_h * a.fold_w
        fitting = GRADIENT_SUMS_BYTES // (a.products * panel_width(p.dtype) * p.itemsize)
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


def build_grad_weight(problem: Problem) -> GradWeight | SplitGradWeight:
    """The weight gradient by the algorithm that is predicted to be the fastest."""
    from ._machine import machine_constants

    algorithm = best_algorithm(problem, machine_constants())[1]
    return (SplitGradWeight if splits_tiles(problem, algorithm) else GradWeight)(problem, algorithm)
