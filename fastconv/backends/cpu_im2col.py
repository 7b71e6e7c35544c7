"""`im2col` on the CPU: convolution as an implicit matrix product; the image's im2col matrix is never made.

A box of output points (`_boxes`) is multiplied with one panel of output channels after the other (`_gemm`). The lanes
of a vector are output channels, and image elements are broadcast from wherever they lie, so no stride, dilation, width
or border wastes lanes; few output channels per group do.

    forward       rows = output points    k = taps             columns = output channels
    grad_weight   rows = taps             k = output points    columns = output channels; gy is packed into panels
    grad_input    the forward convolutions of its phases (`Problem.phases`)

Source of the method: Chellapilla, Puri, Simard, "High performance convolutional neural networks for document
processing" (2006), section 3; the implicit form and the register tile: Goto and van de Geijn, "Anatomy of
high-performance matrix multiplication" (2008), sections 4 and 6.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..problem import Problem
from . import Backend, Kernel, Machine
from ._boxes import TASKS_PER_THREAD, box_end, box_start, box_tables, cut, fill_run, input_offset, pack_box, tap_offsets
from ._gemm import (
    Epilogue,
    Matrices,
    epilogue_of,
    multiply_tile,
    packed_panels,
    pad_bias,
    panel_width,
    store_points,
    tile_addresses,
)
from ._jit import num_threads, parallel_region
from ._phases import GradInputByPhases, phase_seconds
from ._scratch import scratch
from ._simd import TILE_COLUMNS, TILE_ROWS, TILE_SIZES, advance, get, next_task, parallel_kernel, pointer, prefetch_write

STORED_ROWS = 8 * TILE_ROWS  # output points written at once: whole cache lines, from sums in the first-level cache
CHUNK_TAPS = 126  # rows of a weight gradient's task: nine full tiles (benchmarks/bench_conv.py, grad_weight)
PARTS_BYTES = 16 * 1024 * 1024  # of partial weight gradients that are added up at the end
SERIAL_FLOPS = 400_000  # below which one thread is done before a second has started (benchmarks/bench_conv.py, tiny)
TILE_OVERHEAD = 18  # steps of k that filling and storing a tile costs (bench_conv.py, 1x1 against 3x3)
ALIASED_OVERHEAD = 25  # the same, further, where planes of y are a multiple of 4 KiB apart (bench_conv.py, 224 against 222)
EFFICIENCY = 0.88  # share of the peak in the main loop (bench_conv.py, 3x3 layers)
PACK_SPEED = 1.4  # times the bandwidth at which panels are written, both threads together (bench_conv.py, 3x3 layers)
CALL_SECONDS = 12e-6  # of Python around a run (bench_conv.py, tiny)
PANEL_BYTES = 512 * 1024  # of packed weights per block of the sum: half a 1 MiB L2; smaller blocks cost up to 12 %


class Workspace(NamedTuple):
    """Scratch of all threads; each has its share, one pitch after the other."""

    packed: np.ndarray  # the box's input, borders included
    packed_pitch: int
    sums: np.ndarray  # sums of the box's points, a panel wide
    sums_pitch: int
    x_offsets: np.ndarray  # of the box's points in its input
    y_offsets: np.ndarray  # of the box's points in y
    offsets_pitch: int
    gw_output: int  # pitches of a weight gradient
    gw_channel: int


@parallel_kernel
def im2col_forward(args, thread):
    """y = epilogue(convolution of x with the packed w + bias), by box and panel.

    A thread starts with boxes of its own and takes their panels one by one; done with them, it helps with the others'
    panels, at the price of packing such a box again.
    """
    x, w, bias, y, tiles, g, taps, borders, space, k_block, width, epilogue, counters, threads = args
    depth = taps.size
    per_group = -(-g.group_out // width)
    panels = g.groups * per_group
    boxes = counters.size
    packed = pointer(space.packed, thread * space.packed_pitch)
    sums = pointer(space.sums, thread * space.sums_pitch)
    x_offsets = pointer(space.x_offsets, thread * space.offsets_pitch)
    y_offsets = pointer(space.y_offsets, thread * space.offsets_pitch)
    current = -1
    points = 0
    for i in range(boxes):
        box = (boxes * thread // threads + i) % boxes
        start = box_start(g, box)
        source = packed if g.in_place == 0 else pointer(x, input_offset(g, start[0], start[1], start[2], start[3]))
        while True:
            panel = next_task(pointer(counters, box))
            if panel >= panels:
                break
            if box != current:
                end = box_end(g, start[0], start[1], start[2], start[3])
                points = box_tables(g, start, end, x_offsets, y_offsets, TILE_ROWS)
                if g.in_place == 0:
                    pack_box(g, pointer(x, 0), x.dtype.type(0), borders, start, end, 0, g.groups * g.group_in, packed)
                current = box
            group = panel // per_group
            channel = (panel - group * per_group) * width
            count = min(width, g.group_out - channel)
            result = pointer(y, (group * g.group_out + channel) * g.y_channel)
            for k in range(0, depth, k_block):
                k_end = min(depth, k + k_block)
                row = stored = 0
                while row < points:
                    # A sum that ends here only passes through `sums`, which then stays in the first-level cache.
                    own = advance(sums, (row - stored if k_block >= depth else row) * width)
                    if g.y_channel > 1 and k_end == depth:
                        for c in range(count):
                            prefetch_write(result, get(y_offsets, row) + c * g.y_channel)
                    row += multiply_tile(
                        tiles, points - row, advance(source, group * g.group_in * g.p_channel), advance(x_offsets, row),
                        pointer(taps, k), k_end - k, pointer(w, (panel * depth + k) * width), width,
                        pointer(bias, panel * width) if k == 0 else own, 0 if k == 0 else width, own, count)
                    if k_end == depth and (row - stored >= STORED_ROWS or row == points):
                        store_points(advance(sums, 0 if k_block >= depth else stored * width), width, row - stored, result,
                                     advance(y_offsets, stored), g.y_channel, count, epilogue)
                        stored = row


@parallel_kernel
def im2col_grad_weight(args, thread):
    """parts[share] = gradient of the weights over the share's boxes, by (share, group, chunk of its channels, share of its panels).

    The rows of the product are the chunk's taps, its k the output points; sums go on from box to box in scratch.
    """
    x, gy, parts, tiles, g, rows, targets, borders, space, chunk, kernel_points, width, splits, shares, counter = args
    per_group = -(-g.group_out // width)
    chunks = -(-g.group_in // chunk)
    boxes_per_image = -(-g.out_d // g.box_d) * -(-g.out_h // g.box_h)
    boxes = -(-g.out_n // g.box_n) * boxes_per_image
    size = parts.shape[1]
    image_points = g.out_d * g.out_h * g.out_w
    identity = Epilogue(False, x.dtype.type(0), x.dtype.type(0))
    packed = pointer(space.packed, thread * space.packed_pitch)
    sums = pointer(space.sums, thread * space.sums_pitch)
    x_offsets = pointer(space.x_offsets, thread * space.offsets_pitch)
    y_offsets = pointer(space.y_offsets, thread * space.offsets_pitch)
    while True:
        task = next_task(pointer(counter, 0))
        if task >= shares * g.groups * chunks * splits:
            break
        split = task % splits
        group = task // (splits * chunks) % g.groups
        first = task // splits % chunks * chunk
        share = task // (splits * chunks * g.groups)
        channels = min(chunk, g.group_in - first)
        taps = channels * kernel_points
        first_panel, last_panel = per_group * split // splits, per_group * (split + 1) // splits
        block = (taps + TILE_ROWS) * width
        fill_run(sums, (last_panel - first_panel) * block, x.dtype.type(0))
        for box in range(boxes * share // shares, boxes * (share + 1) // shares):
            start = box_start(g, box)
            end = box_end(g, start[0], start[1], start[2], start[3])
            points = box_tables(g, start, end, x_offsets, y_offsets, TILE_ROWS)
            channel = group * g.group_in + first
            if g.in_place == 0:
                pack_box(g, pointer(x, 0), x.dtype.type(0), borders, start, end, channel, channels, packed)
                source = packed
            else:
                source = pointer(x, input_offset(g, start[0], start[1], start[2], start[3]) + channel * g.x_channel)
            point = (start[1] * g.out_h + start[2]) * g.out_w
            for panel in range(first_panel, last_panel):
                w = pointer(gy, (((start[0] * g.groups + group) * per_group + panel) * image_points + point) * width)
                row = 0
                while row < taps:
                    own = advance(sums, (panel - first_panel) * block + row * width)
                    row += multiply_tile(tiles, taps - row, source, pointer(rows, row), x_offsets, points, w, width, own, width, own,
                                         min(width, g.group_out - panel * width))
        for panel in range(first_panel, last_panel):
            output = group * g.group_out + panel * width
            to = pointer(parts, share * size + output * space.gw_output + first * space.gw_channel)
            for row in range(0, taps, TILE_ROWS):
                store_points(advance(sums, (panel - first_panel) * block + row * width), width, min(TILE_ROWS, taps - row), to,
                             pointer(targets, row), space.gw_output, min(width, g.group_out - panel * width), identity)


class Forward:
    """The forward pass: `pack` makes panels of the weights, `run` convolves with them."""

    def __init__(self, problem: Problem):
        self.problem = problem
        self.width = panel_width(problem.dtype)
        self.panels = problem.groups * -(-problem.group_out // self.width)
        self.threads = num_threads()
        self.geometry = cut(problem, self.threads, tasks_per_box=self.panels)
        self.taps = tap_offsets(problem, self.geometry)
        self.borders = problem.border_sources()
        blocks = -(-problem.taps * self.width * problem.itemsize // PANEL_BYTES)
        self.k_block = -(-problem.taps // blocks)
        points = self.geometry.points + TILE_ROWS
        self.layout = SpaceLayout(self.geometry.packed, points * self.width, points)
        self.epilogue = epilogue_of(problem)

    def pack(self, w: np.ndarray) -> np.ndarray:
        p = self.problem
        pitches = (p.group_out, 1, p.out_channels) if p.channels_last else (p.group_out * p.taps, p.taps, 1)
        return packed_panels(w, Matrices(1, p.groups, p.group_out, p.taps, 0, *pitches), self.width)

    def run(self, x: np.ndarray, packed: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> None:
        p = self.problem
        with parallel_region() as available:
            threads = available if p.flops > SERIAL_FLOPS else 1
            arguments = (x.reshape(-1), packed, pad_bias(bias, p.groups, p.group_out, self.width, p.dtype), out.reshape(-1),
                         tile_addresses(p.dtype), self.geometry, self.taps, self.borders, self.layout.allocate(threads, p.dtype),
                         self.k_block, self.width, self.epilogue, np.zeros(self.geometry.boxes, np.int64), threads)
            im2col_forward(arguments, threads)

    @property
    def scratch_bytes(self) -> int:
        return self.layout.bytes(self.problem.itemsize) * self.threads


class GradWeight:
    """The weight gradient: `pack` makes panels of gy, `run` multiplies them with x."""

    def __init__(self, problem: Problem):
        p = self.problem = problem
        self.width = panel_width(p.dtype)
        self.threads = num_threads()
        self.kernel_points = math.prod(p.kernel_size)
        panels = -(-p.group_out // self.width)
        self.chunk = min(p.group_in, max(1, CHUNK_TAPS // self.kernel_points))
        wanted = TASKS_PER_THREAD * self.threads
        while (p.groups * -(-p.group_in // self.chunk) * panels < wanted
               and self.chunk > 1 and self.chunk * self.kernel_points > 2 * TILE_ROWS):
            self.chunk = -(-self.chunk // 2)
        tasks = p.groups * -(-p.group_in // self.chunk)
        self.splits = min(panels, max(1, -(-wanted // tasks)))
        self.geometry = cut(p, 1, channels=self.chunk, column_multiple=max(p.output_size[2], 1))
        most_parts = max(1, PARTS_BYTES // (p.itemsize * max(1, math.prod(p.weight_shape))))
        self.shares = max(1, min(-(-wanted // (tasks * self.splits)), self.geometry.boxes, most_parts))
        self.rows, self.targets, gw_pitches = self._tables()
        self.borders = p.border_sources()
        rows = self.chunk * self.kernel_points + TILE_ROWS
        self.layout = SpaceLayout(self.geometry.packed, rows * -(-panels // self.splits) * self.width,
                                  self.geometry.points + TILE_ROWS, *gw_pitches)

    def _tables(self) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
        """Offsets of a chunk's taps in x and in gw, channel by channel, and gw's pitches (output channel, input channel)."""
        p, g = self.problem, self.geometry
        kd, kh, kw = (np.arange(k) * d for k, d in zip(p.kernel_size, p.dilation, strict=True))
        spatial = (kd[:, None, None] * g.p_d + kh[:, None] * g.p_h + kw * g.p_w).ravel()
        channel = np.arange(self.chunk)[:, None]
        pitches = (1, p.out_channels) if p.channels_last else (p.taps, self.kernel_points)
        point = np.arange(self.kernel_points) * (p.group_in * p.out_channels if p.channels_last else 1)
        rows = (channel * g.p_channel + spatial).astype(np.int32).ravel()
        targets = (channel * pitches[1] + point).astype(np.int64).ravel()
        return np.pad(rows, (0, TILE_ROWS), mode="edge"), np.pad(targets, (0, TILE_ROWS), mode="edge"), pitches

    def pack(self, gy: np.ndarray) -> np.ndarray:
        p = self.problem
        points = math.prod(p.output_size)
        pitches = (p.group_out, 1, p.out_channels) if p.channels_last else (p.group_out * points, points, 1)
        return packed_panels(gy, Matrices(p.batch, p.groups, p.group_out, points, p.out_channels * points, *pitches), self.width)

    def run(self, x: np.ndarray, packed: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> None:
        p = self.problem
        parts = out.reshape(1, -1) if self.shares == 1 else np.empty((self.shares, out.size), out.dtype)
        with parallel_region() as threads:
            arguments = (x.reshape(-1), packed, parts, tile_addresses(p.dtype), self.geometry, self.rows, self.targets, self.borders,
                         self.layout.allocate(threads, p.dtype), self.chunk, self.kernel_points, self.width, self.splits,
                         self.shares, np.zeros(1, np.int64))
            im2col_grad_weight(arguments, threads if p.flops > SERIAL_FLOPS else 1)
        if self.shares > 1:
            with np.errstate(invalid="ignore", over="ignore"):
                np.sum(parts, axis=0, out=out.reshape(-1))

    @property
    def scratch_bytes(self) -> int:
        parts = self.shares * math.prod(self.problem.weight_shape) if self.shares > 1 else 0
        return self.layout.bytes(self.problem.itemsize) * self.threads + parts * self.problem.itemsize


@dataclass(frozen=True)
class SpaceLayout:
    """Sizes, in elements, of one thread's share of the workspace, and gw's pitches where there is a gw."""

    packed: int
    sums: int
    points: int
    gw_output: int = 0
    gw_channel: int = 0

    def allocate(self, threads: int, dtype: str) -> Workspace:
        packed, sums, points = (-(-count // 16) * 16 + 16 for count in (self.packed, self.sums, self.points))
        return Workspace(scratch("packed", threads * packed, dtype), packed, scratch("sums", threads * sums, dtype), sums,
                         scratch("x_offsets", threads * points, np.int32), scratch("y_offsets", threads * points, np.int64), points,
                         self.gw_output, self.gw_channel)

    def bytes(self, itemsize: int) -> int:
        return (self.packed + self.sums) * itemsize + 12 * self.points


# -- the backend ----------------------------------------------------------------------------------------------------------


def refuses(problem: Problem) -> str | None:
    return None


def seconds(problem: Problem, machine: Machine) -> float:
    """Time of the register tiles, columns beyond the channels included, plus what enters and leaves them."""
    if problem.pass_name == "grad_input":
        return phase_seconds(problem, lambda phase: seconds(phase, machine), machine.bandwidth)
    lanes = panel_width(problem.dtype) // TILE_COLUMNS
    columns = problem.groups * -(-problem.group_out // lanes) * lanes
    points = problem.batch * math.prod(problem.output_size)
    if problem.pass_name == "forward":
        rows, depth = points, problem.taps
    else:
        rows, depth = -(-problem.taps // TILE_SIZES[-2]) * TILE_SIZES[-2], points
    if problem.pass_name == "forward" and not problem.channels_last and math.prod(problem.output_size) * problem.itemsize % 4096 == 0:
        depth += ALIASED_OVERHEAD
    multiply = 2 * rows * columns * (depth + TILE_OVERHEAD) / (EFFICIENCY * machine.flops(problem.dtype))
    moved = 2 * problem.bytes / machine.cache_bandwidth
    threads = machine.threads if problem.flops > SERIAL_FLOPS else 1
    return CALL_SECONDS + machine.region_seconds + (multiply + moved) / threads


def pack_seconds(problem: Problem, machine: Machine) -> float:
    """Both sides of the copy into panels, whose missing columns are written too."""
    second = math.prod(problem.shapes[1]) * problem.itemsize
    panels = second // max(1, problem.out_channels) * problem.groups * -(-problem.group_out // panel_width(problem.dtype))
    written = panels * panel_width(problem.dtype)
    return CALL_SECONDS / 2 + second / machine.cache_bandwidth + written / (PACK_SPEED * machine.bandwidth)


def build(problem: Problem) -> Kernel:
    passes: dict[str, Callable[[Problem], Kernel]] = {
        "forward": Forward, "grad_input": lambda p: GradInputByPhases(p, Forward), "grad_weight": GradWeight}
    return passes[problem.pass_name](problem)


BACKEND = Backend(refuses, seconds, build, pack_seconds)
