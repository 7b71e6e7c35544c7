"""`direct` on the CPU: the sum over the taps as it stands. The lanes of a vector are neighbouring pixels of a row.

It refuses nothing. Its strengths are depthwise and grouped convolutions, images of few channels and small kernels, where
`im2col` has too few output channels to fill a vector. Rows of a box (`_boxes`) are copied with their borders into
scratch, split by the phase of the stride, so that every tap reads consecutive elements whatever the stride. Where there
is no border, no stride along the row and no short row, the image is read in place.

    forward       a tile of output channels x vectors of pixels stays in registers over all taps
    grad_weight   a tile of taps stays in registers over all pixels; lanes are added up at the end
    grad_input    the forward convolutions of its phases (`Problem.phases`)

Source: the definition; register blocking of direct convolution: Georganas et al., "Anatomy of high-performance deep
learning convolutions on SIMD architectures" (2018), section II.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..problem import Problem
from . import Backend, Kernel, Machine
from ._boxes import TASKS_PER_THREAD, Geometry, box_end, box_start, cut, input_offset, pack_line
from ._gemm import epilogue_of
from ._jit import inlined, num_threads, outlined, parallel_region
from ._legacy_threads import parallel_kernel, scratch
from ._phases import GradInputByPhases, phase_seconds
from ._simd import (
    DOT_TILE,
    LANES_TILE_COLUMNS,
    LANES_TILE_ROWS,
    LANES_TILE_SINGLE,
    advance,
    get,
    lane_count,
    lanes_of,
    load,
    next_task,
    pointer,
    put,
    rectify,
    store,
    store_first,
    tile_columns_of,
    tile_dot,
    tile_dot_first,
    tile_lanes,
    tile_store,
    tile_totals,
    tile_zeros,
)

SERIAL_FLOPS = 200_000  # below which one thread is done before a second has started (benchmarks/bench_conv.py, tiny)
BUDGET_BYTES = 64 * 1024  # of packed input of a task: it shares the caches with y (benchmarks/bench_conv.py, depthwise)


class Lines(NamedTuple):
    """How the rows of a box lie in scratch: [image][depth][row][channel][phase of the stride][position]."""

    image: int
    depth: int
    row: int
    channel: int
    phase: int
    size: int  # elements of the whole box


class Workspace(NamedTuple):
    """Scratch of all threads; each has its share, one pitch after the other."""

    packed: np.ndarray
    packed_pitch: int
    x_offsets: np.ndarray  # of the box's vectors of pixels in its input
    y_offsets: np.ndarray  # in y
    counts: np.ndarray  # pixels of each vector
    vectors_pitch: int


@inlined
def pack_lines(g, lines, x, zero, borders, start, end, channel, channels, target):
    """Copy the padded input of a box, split by the phase of the stride along the row."""
    depths, rows, columns = borders
    first, last = start[3] * g.stride_w, (end[3] - 1) * g.stride_w + g.reach_w + 1
    for n in range(start[0], end[0]):
        for d in range((end[1] - 1 - start[1]) * g.stride_d + g.reach_d + 1):
            source_d = depths[start[1] * g.stride_d + d]
            for h in range((end[2] - 1 - start[2]) * g.stride_h + g.reach_h + 1):
                source_h = rows[start[2] * g.stride_h + h]
                to = advance(target, (n - start[0]) * lines.image + d * lines.depth + h * lines.row)
                inside = source_d >= 0 and source_h >= 0
                at = advance(x, n * g.x_image + channel * g.x_channel + max(source_d, 0) * g.x_d + max(source_h, 0) * g.x_h)
                for c in range(channels):
                    for phase in range(g.stride_w):
                        pack_line(advance(to, c * lines.channel + phase * lines.phase), advance(at, c * g.x_channel), columns,
                                  first + phase, last, g.stride_w, g.low_w, g.in_w, g.x_w, inside, zero)


@inlined
def vector_tables(g, lines, start, end, x_offsets, y_offsets, counts, lanes, overlap):
    """Offsets of the box's vectors of pixels, and their number.

    With `overlap` the last vector of a row starts early and computes some pixels again; without, it is short.
    """
    vectors = 0
    width = end[3] - start[3]
    for n in range(start[0], end[0]):
        for d in range(start[1], end[1]):
            for h in range(start[2], end[2]):
                if g.in_place == 1:
                    x_row = (n - start[0]) * g.x_image + (d - start[1]) * g.stride_d * g.x_d + (h - start[2]) * g.stride_h * g.x_h
                else:
                    x_row = ((n - start[0]) * lines.image + (d - start[1]) * g.stride_d * lines.depth
                             + (h - start[2]) * g.stride_h * lines.row)
                y_row = n * g.y_image + ((d * g.out_h + h) * g.out_w + start[3]) * g.y_point
                for w in range(0, width, lanes):
                    at = width - lanes if overlap and width >= lanes and w + lanes > width else w
                    put(x_offsets, vectors, np.int32(x_row + at))
                    put(y_offsets, vectors, np.int64(y_row + at * g.y_point))
                    put(counts, vectors, np.int32(min(lanes, width - at)))
                    vectors += 1
    for i in range(LANES_TILE_SINGLE):
        put(x_offsets, vectors + i, get(x_offsets, vectors - 1))
        put(y_offsets, vectors + i, get(y_offsets, vectors - 1))
        put(counts, vectors + i, np.int32(0))
    return vectors


@inlined
def store_pixels(y, step, sums, count, epilogue):
    """Write `count` pixels of a vector in memory, `step` apart."""
    lanes = lanes_of(sums)
    value = load(sums, 0)
    if epilogue.rectify:
        value = rectify(value, epilogue.slope, epilogue.ceiling)
    if step != 1:
        store(sums, 0, value)
        for i in range(count):
            put(y, i * step, get(sums, i))
    elif count == lanes:
        store(y, 0, value)
    else:
        store_first(y, 0, value, count)


def make_tile(rows: int, columns: int):
    """The micro-kernel of one tile size: `rows` output channels by `columns` vectors of pixels, sums left in memory."""

    @outlined
    def tile(x, x_offsets, taps, depth, w, bias, sums):
        acc = tile_columns_of(bias, rows, columns)
        for k in range(depth):
            acc = tile_lanes(acc, advance(x, get(taps, k)), x_offsets, advance(w, k * rows), rows)
        tile_store(sums, columns * lanes_of(x), acc, rows)

    return tile


several_channels = make_tile(LANES_TILE_ROWS, LANES_TILE_COLUMNS)
single_channel = make_tile(1, LANES_TILE_SINGLE)


@parallel_kernel
def direct_forward(args, thread):
    """y = epilogue(convolution of x with w + bias), by (box, block of groups)."""
    x, w, bias, y, g, lines, taps, borders, space, block, epilogue, counter = args
    depth = taps.size
    blocks = -(-g.groups // block)
    boxes = -(-g.out_n // g.box_n) * -(-g.out_d // g.box_d) * -(-g.out_h // g.box_h) * -(-g.out_w // g.box_w)
    lanes = lanes_of(pointer(x, 0))
    packed = pointer(space.packed, thread * space.packed_pitch)
    sums = advance(packed, lines.size)
    x_offsets = pointer(space.x_offsets, thread * space.vectors_pitch)
    y_offsets = pointer(space.y_offsets, thread * space.vectors_pitch)
    counts = pointer(space.counts, thread * space.vectors_pitch)
    while True:
        task = next_task(pointer(counter, 0))
        if task >= boxes * blocks:
            break
        first = task % blocks * block
        last = min(first + block, g.groups)
        start = box_start(g, task // blocks)
        end = box_end(g, start[0], start[1], start[2], start[3])
        vectors = vector_tables(g, lines, start, end, x_offsets, y_offsets, counts, lanes, True)
        if g.in_place == 0:
            pack_lines(g, lines, pointer(x, 0), x.dtype.type(0), borders, start, end, first * g.group_in,
                       (last - first) * g.group_in, packed)
        for group in range(first, last):
            if g.in_place == 0:
                source = advance(packed, (group - first) * g.group_in * lines.channel)
            else:
                source = pointer(x, input_offset(g, start[0], start[1], start[2], start[3]) + group * g.group_in * g.x_channel)
            channel = 0
            while channel < g.group_out:
                output = group * g.group_out + channel
                several = g.group_out - channel >= LANES_TILE_ROWS
                rows, columns = (LANES_TILE_ROWS, LANES_TILE_COLUMNS) if several else (1, LANES_TILE_SINGLE)
                weights, start_value = pointer(w, output * depth), pointer(bias, output)
                for v in range(0, vectors, columns):
                    if several:
                        several_channels(source, advance(x_offsets, v), pointer(taps, 0), depth, weights, start_value, sums)
                    else:
                        single_channel(source, advance(x_offsets, v), pointer(taps, 0), depth, weights, start_value, sums)
                    for c in range(min(columns, vectors - v)):
                        to = pointer(y, output * g.y_channel + get(y_offsets, v + c))
                        for r in range(rows):
                            store_pixels(advance(to, r * g.y_channel), g.y_point, advance(sums, (r * columns + c) * lanes),
                                         get(counts, v + c), epilogue)
                channel += rows


@parallel_kernel
def direct_grad_weight(args, thread):
    """parts[share] += gradient of the weights over the share's boxes; a tile of taps meets all pixels of a box."""
    x, gy, parts, g, lines, taps, kernel_points, borders, space, block, shares, counter = args
    blocks = -(-g.groups // block)
    boxes = -(-g.out_n // g.box_n) * -(-g.out_d // g.box_d) * -(-g.out_h // g.box_h) * -(-g.out_w // g.box_w)
    lanes = lanes_of(pointer(x, 0))
    row = parts.shape[1] // max(1, g.groups * g.group_out * g.group_in)
    packed = pointer(space.packed, thread * space.packed_pitch)
    x_offsets = pointer(space.x_offsets, thread * space.vectors_pitch)
    y_offsets = pointer(space.y_offsets, thread * space.vectors_pitch)
    counts = pointer(space.counts, thread * space.vectors_pitch)
    while True:
        task = next_task(pointer(counter, 0))
        if task >= shares * blocks:
            break
        share = task // blocks
        first = task % blocks * block
        last = min(first + block, g.groups)
        for box in range(boxes * share // shares, boxes * (share + 1) // shares):
            start = box_start(g, box)
            end = box_end(g, start[0], start[1], start[2], start[3])
            vectors = vector_tables(g, lines, start, end, x_offsets, y_offsets, counts, lanes, False)
            pack_lines(g, lines, pointer(x, 0), x.dtype.type(0), borders, start, end, first * g.group_in,
                       (last - first) * g.group_in, packed)
            for output in range(first * g.group_out, last * g.group_out):
                group = output // g.group_out
                for channel in range(g.group_in):
                    source = advance(packed, ((group - first) * g.group_in + channel) * lines.channel)
                    for tap in range(0, kernel_points, DOT_TILE):
                        acc = tile_zeros(packed, DOT_TILE, 1)
                        for v in range(vectors):
                            at = advance(source, get(x_offsets, v))
                            gradient = pointer(gy, output * g.y_channel + get(y_offsets, v))
                            if get(counts, v) == lanes:
                                acc = tile_dot(acc, at, pointer(taps, tap), gradient)
                            else:
                                acc = tile_dot_first(acc, at, pointer(taps, tap), gradient, get(counts, v))
                        tile_totals(acc, pointer(parts, share * parts.shape[1] + (output * g.group_in + channel) * row + tap))


class _Lined:
    """What both passes share: boxes, the way their rows lie in scratch, and the scratch."""

    def __init__(self, problem: Problem, in_place: bool):
        p = self.problem = problem
        self.threads = num_threads()
        self.lanes = lane_count(p.dtype)
        span = (p.output_size[2] - 1) * p.stride[2] + p.dilation[2] * (p.kernel_size[2] - 1) + 1
        in_place = in_place and p.stride[2] == 1 and not p.channels_last and p.output_size[2] >= self.lanes
        self.block = self._block(span)
        blocks = -(-p.groups // self.block)
        channels = self.block * p.group_in
        g = cut(p, self.threads, in_place=in_place, channels=channels, tasks_per_box=blocks, column_multiple=self.lanes)
        if g.in_place and g.out_w % g.box_w and g.out_w % g.box_w < self.lanes:
            g = cut(p, self.threads, in_place=False, channels=channels, tasks_per_box=blocks, column_multiple=self.lanes)
        self.geometry = g
        self.lines = self._lines(g, channels)
        self.borders = p.border_sources()
        self.vectors = g.box_n * g.box_d * g.box_h * -(-g.box_w // self.lanes) + LANES_TILE_SINGLE

    def _block(self, span: int) -> int:
        """Groups of a task: as many as a small cache holds, so long as there are tasks enough."""
        p = self.problem
        rows = (min(8, p.output_size[1]) - 1) * p.stride[1] + p.dilation[1] * (p.kernel_size[1] - 1) + 1
        most = BUDGET_BYTES // (rows * span * p.itemsize * max(1, p.group_in))
        fair = -(-p.groups * p.batch // (TASKS_PER_THREAD * self.threads))
        return max(1, min(p.groups, most, fair))

    def _lines(self, g: Geometry, channels: int) -> Lines:
        if g.in_place:
            return Lines(0, 0, 0, 0, 0, 0)
        depths, rows, columns = ((b - 1) * s + r + 1 for b, s, r in zip(
            (g.box_d, g.box_h, g.box_w), (g.stride_d, g.stride_h, g.stride_w), (g.reach_d, g.reach_h, g.reach_w), strict=True))
        phase = -(-columns // g.stride_w) + self.lanes
        channel = phase * g.stride_w
        row = channel * channels
        return Lines(depths * rows * row, rows * row, row, channel, phase, g.box_n * depths * rows * row)

    def offsets(self, channels: int) -> np.ndarray:
        """Offset of each tap of `channels` channels, channel by channel, in the box's input; int32."""
        p, g, lines = self.problem, self.geometry, self.lines
        d, h, w = (np.arange(k) * dilation for k, dilation in zip(p.kernel_size, p.dilation, strict=True))
        if g.in_place:
            spatial, channel = d[:, None, None] * g.x_d + h[:, None] * g.x_h + w, g.x_channel
        else:
            column = w % g.stride_w * lines.phase + w // g.stride_w
            spatial, channel = d[:, None, None] * lines.depth + h[:, None] * lines.row + column, lines.channel
        return (np.arange(channels)[:, None] * channel + spatial.ravel()).astype(np.int32).ravel()

    def workspace(self, threads: int) -> Workspace:
        sums = max(LANES_TILE_ROWS * LANES_TILE_COLUMNS, LANES_TILE_SINGLE) * self.lanes
        packed, vectors = (-(-count // 16) * 16 + 16 for count in (self.lines.size + sums, self.vectors))
        return Workspace(scratch("packed", threads * packed, self.problem.dtype), packed, scratch("x_offsets", threads * vectors, np.int32),
                         scratch("y_offsets", threads * vectors, np.int64), scratch("counts", threads * vectors, np.int32), vectors)

    @property
    def scratch_bytes(self) -> int:
        return self.threads * (self.lines.size * self.problem.itemsize + 16 * self.vectors)


class Forward(_Lined):
    """The forward pass."""

    def __init__(self, problem: Problem):
        super().__init__(problem, in_place=True)
        self.taps = self.offsets(problem.group_in)
        self.epilogue = epilogue_of(problem)
        self.no_bias = np.zeros(problem.out_channels, problem.dtype)

    def pack(self, w: np.ndarray) -> np.ndarray:
        """(G, Og, taps), the output channels of a full tile interleaved: [tile][tap][row]."""
        p = self.problem
        w = w.reshape(p.shapes[1])
        matrix = (w.transpose(4, 3, 0, 1, 2) if p.channels_last else w).reshape(p.groups, p.group_out, p.taps)
        whole = p.group_out - p.group_out % LANES_TILE_ROWS
        if whole == 0:
            return np.ascontiguousarray(matrix).reshape(-1)
        packed = np.empty((p.groups, p.group_out * p.taps), p.dtype)
        tiles = matrix[:, :whole].reshape(p.groups, -1, LANES_TILE_ROWS, p.taps)
        packed[:, :whole * p.taps].reshape(p.groups, -1, p.taps, LANES_TILE_ROWS)[...] = tiles.swapaxes(2, 3)
        packed[:, whole * p.taps:] = matrix[:, whole:].reshape(p.groups, -1)
        return packed.reshape(-1)

    def run(self, x: np.ndarray, packed: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> None:
        with parallel_region() as threads:
            arguments = (x.reshape(-1), packed, self.no_bias if bias is None else bias, out.reshape(-1), self.geometry, self.lines,
                         self.taps, self.borders, self.workspace(threads), self.block, self.epilogue, np.zeros(1, np.int64))
            direct_forward(arguments, threads if self.problem.flops > SERIAL_FLOPS else 1)


class GradWeight(_Lined):
    """The weight gradient."""

    def __init__(self, problem: Problem):
        p = problem
        super().__init__(p, in_place=False)
        channels, points = p.out_channels, math.prod(p.output_size)
        self.geometry = self.geometry._replace(y_image=channels * points, y_channel=points, y_point=1)
        self.kernel_points = math.prod(p.kernel_size)
        self.row = -(-self.kernel_points // DOT_TILE) * DOT_TILE
        self.taps = np.pad(self.offsets(1), (0, self.row - self.kernel_points), mode="edge")
        tasks = -(-p.groups // self.block)
        self.shares = max(1, min(self.geometry.boxes, -(-TASKS_PER_THREAD * self.threads // tasks)))

    def pack(self, gy: np.ndarray) -> np.ndarray:
        """Gy with channels first."""
        gy = gy.reshape(self.problem.shapes[1])
        return np.ascontiguousarray(gy.transpose(0, 4, 1, 2, 3)) if self.problem.channels_last else gy

    def run(self, x: np.ndarray, packed: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> None:
        p = self.problem
        parts = np.zeros((self.shares, p.out_channels * p.group_in * self.row), p.dtype)
        with parallel_region() as threads:
            arguments = (x.reshape(-1), packed.reshape(-1), parts, self.geometry, self.lines, self.taps, self.kernel_points,
                         self.borders, self.workspace(threads), self.block, self.shares, np.zeros(1, np.int64))
            direct_grad_weight(arguments, threads if p.flops > SERIAL_FLOPS else 1)
        with np.errstate(invalid="ignore", over="ignore"):
            total = parts.sum(axis=0, dtype=p.dtype)
        whole = total.reshape(p.out_channels, p.group_in, self.row)[..., :self.kernel_points]
        whole = whole.reshape(p.out_channels, p.group_in, *p.kernel_size)
        out = out.reshape(p.shapes[2])
        out[...] = whole.transpose(2, 3, 4, 1, 0) if p.channels_last else whole


# -- the backend ----------------------------------------------------------------------------------------------------------

EFFICIENCY = 0.8  # share of the multiply-add peak, loads of x shared by four output channels (bench_conv.py, first layers)
FAR_EFFICIENCY = 0.5  # the same where a tile's input exceeds the first-level cache (bench_conv.py, 3x3 layers)
NEAR_BYTES = 32 * 1024  # of input that a tile reads and the first-level cache keeps
SINGLE_EFFICIENCY = 0.35  # the same for one output channel a group (bench_conv.py, depthwise)
GRADIENT_EFFICIENCY = 0.25  # the weight gradient's (bench_conv.py, depthwise, grad_weight)
TILE_OVERHEAD = 8  # taps that storing a tile costs (bench_conv.py, depthwise 3x3)
CALL_SECONDS = 11e-6  # of Python around a run (bench_conv.py, tiny)


def refuses(problem: Problem) -> str | None:
    return None


def seconds(problem: Problem, machine: Machine) -> float:
    """Time of the register tiles, lanes beyond a row's end included, plus the copy of the rows."""
    p = problem
    if p.pass_name == "grad_input":
        return phase_seconds(p, lambda phase: seconds(phase, machine), machine.bandwidth)
    lanes = lane_count(p.dtype)
    vectors = math.prod(p.output_size[:2]) * -(-p.output_size[2] // lanes)
    outputs = float(p.batch * p.out_channels * vectors * lanes)
    if p.pass_name == "forward":
        efficiency = SINGLE_EFFICIENCY
        if p.group_out >= LANES_TILE_ROWS:
            outputs *= -(-vectors // LANES_TILE_COLUMNS) * LANES_TILE_COLUMNS / vectors
            read = p.group_in * math.prod(p.kernel_size[:2]) * LANES_TILE_COLUMNS * lanes * p.itemsize
            efficiency = EFFICIENCY if read <= NEAR_BYTES else FAR_EFFICIENCY
        multiply = 2 * outputs * (p.taps + TILE_OVERHEAD) / (efficiency * machine.flops(p.dtype))
    else:
        points = math.prod(p.kernel_size)
        multiply = 2 * outputs * p.taps * (-(-points // DOT_TILE) * DOT_TILE / points) / (GRADIENT_EFFICIENCY * machine.flops(p.dtype))
    moved = p.bytes / machine.bandwidth + 4 * p.itemsize * math.prod(p.input_shape) / machine.cache_bandwidth
    threads = machine.threads if p.flops > SERIAL_FLOPS else 1
    return CALL_SECONDS + machine.region_seconds + (multiply + moved) / threads


def pack_seconds(problem: Problem, machine: Machine) -> float:
    """A strided copy by NumPy."""
    return 4e-6 + 16 * math.prod(problem.shapes[1]) * problem.itemsize / machine.cache_bandwidth


def build(problem: Problem) -> Kernel:
    passes: dict[str, Callable[[Problem], Kernel]] = {
        "forward": Forward, "grad_input": lambda p: GradInputByPhases(p, Forward), "grad_weight": GradWeight}
    return passes[problem.pass_name](problem)


BACKEND = Backend(refuses, seconds, build, pack_seconds)
