"""Layers with few channels a group on a GPU: grouped ones, first layers; any stride and dilation, borders of zeros.

    y[o, q] = bias[o] + sum over c, t of  w[o, c, t] x[c, stride q + dilation t - low]

A block has a rectangle of points of some images and a few output channels of one group. It copies what they see of the image to shared
memory, zeros around it included; each thread keeps the sums of several points of all those channels, so that a value of the image and a
wide load of weights serve many products. Points are dealt to lanes in turn, hence any stride, and a rectangle of any shape. The gradient of
the input at stride 1 is the same with the weights turned round.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

from ...problem import Problem
from .._rectifiers import RECTIFIERS
from . import (
    SIMULATED,
    advance,
    concatenate,
    cuda,
    fetch,
    fetch4,
    i32,
    inlined,
    less_unsigned,
    load,
    one,
    outer_product,
    pick,
    quotient,
    remainder,
    shared_memory,
    store,
    zero_of,
    zeros,
)
from .compiling import Code, repeated
from .driver import Gpu, Launch, Stream
from .geometry import image_strides, index_refusal, weight_strides
from .planes import LAUNCH_SECONDS, work_seconds
from .sums import rectifier

__all__ = ["Grouped", "codes", "pack_seconds", "seconds"]

THREADS = 8 if SIMULATED else 128
POINTS = 2 if SIMULATED else 4  # of a thread
OUTPUTS = (1, 4, 8)  # output channels of a thread
PACKING_THREADS = 8 if SIMULATED else 256
MOST_CHANNELS = 16  # of a group
SHARED_BYTES = 48 * 1024  # of a block, at most
WIDE = 4
WARP = 32
MOST_GRID = 65535  # blocks along the second axis of a grid
MOST_PARTS = 16  # that a side of the result is tried to be divided into


class Rectangles(NamedTuple):
    """A convolution as the kernel takes it; `from_` is what is read, `to_` the result. Strides count elements."""

    images: int
    groups: int
    group_from: int  # channels of a group
    group_to: int
    from_h: int
    from_w: int
    to_h: int
    to_w: int
    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    dilation_h: int
    dilation_w: int
    low_h: int
    low_w: int
    block_images: int  # the block's share of the result
    block_h: int
    block_w: int
    tiles_h: int
    tiles_w: int
    seen_h: int  # what it sees of an image
    seen_w: int
    lanes: int  # threads that copy a row
    packs: int  # of output channels of a group
    from_n: int
    from_c: int
    from_row: int
    from_column: int
    to_n: int
    to_c: int
    to_row: int
    to_column: int
    has_bias: int


def _copying(x, g, memory, n, group, row, column, thread):
    """Copy what a block sees of its images' channels to shared memory, (image, channel, row, column)."""
    lane, line = remainder(thread, g.lanes), quotient(thread, g.lanes)
    lines = quotient(THREADS, g.lanes)
    for plane in range(g.block_images * g.group_from):
        image, c = n + quotient(plane, g.group_from), remainder(plane, g.group_from)
        source = advance(x, i32(image * g.from_n + (group * g.group_from + c) * g.from_c))
        for i in range(line, g.seen_h, lines):
            inside = less_unsigned(row + i, g.from_h) and image < g.images
            target = i32((plane * g.seen_h + i) * g.seen_w)
            at = i32((row + i) * g.from_row)
            for j in range(lane, g.seen_w, g.lanes):
                there = inside and less_unsigned(column + j, g.from_w)
                store(memory, i32(target + j), fetch(source, i32(at + (column + j) * g.from_column)) if there else zero_of(x))


copying = inlined(_copying)


def _point_of(index, g):
    """(image, row, column) of a point of a block's share."""
    line = quotient(index, g.block_w)
    return quotient(line, g.block_h), remainder(line, g.block_h), remainder(index, g.block_w)


point_of = inlined(_point_of)


def _fetch8(packed, at):
    return concatenate(fetch4(packed, at), fetch4(packed, i32(at + WIDE)))


@functools.cache
def grouped_code(outputs: int, dtype: str) -> Code:
    """A rectangle of points of `outputs` channels of a group; `packed` has weights as (group, pack, channel, tap, output)."""
    finish, sums_count = rectifier(dtype), POINTS * outputs
    point, copy = point_of, copying

    def gathered_one(k):
        return inlined(lambda memory, offsets, at: one(load(memory, i32(pick(offsets, k) + at))))

    def gathered(k):
        """The values of k points at a tap, as a tuple."""
        if k == 1:
            return gathered_one(0)
        before, own = gathered(k - 1), gathered_one(k - 1)
        return inlined(lambda memory, offsets, at: concatenate(before(memory, offsets, at), own(memory, offsets, at)))

    def begins(k):
        if k == 1:
            return inlined(lambda thread, g: one(offset_of(thread, g, 0)))
        before, last = begins(k - 1), k - 1
        return inlined(lambda thread, g: concatenate(before(thread, g), one(offset_of(thread, g, last))))

    def offset_at(thread, g, k):
        """Where a point's window begins in shared memory; points beyond the block's share read the first's."""
        index = i32(thread + k * THREADS)
        image, h, v = point(index if index < g.block_images * g.block_h * g.block_w else i32(0), g)
        return i32((image * g.group_from * g.seen_h + h * g.stride_h) * g.seen_w + v * g.stride_w)

    offset_of = inlined(offset_at)
    values_of, offsets_of = gathered(POINTS), begins(POINTS)
    weights_of = {1: inlined(lambda packed, at: one(fetch(packed, at))), WIDE: fetch4, 2 * WIDE: inlined(_fetch8)}[outputs]

    def write(first, operands, j):
        y, at, bias, g, sums, k, channel, slope, ceiling = operands
        o = channel + j
        if o < g.group_to:
            shift = fetch(bias, i32(first + o)) if g.has_bias else zero_of(y)
            store(y, i32(at + o * g.to_c), finish(pick(sums, i32(k * outputs + j)) + shift, slope, ceiling))
        return first

    write_outputs = repeated(write, outputs)

    def write_point(thread, operands, k):
        y, bias, g, sums, n, group, channel, row, column, slope, ceiling = operands
        index = i32(thread + k * THREADS)
        image, h, v = point(index, g)
        image, h, v = i32(n + image), i32(row + h), i32(column + v)
        if index < g.block_images * g.block_h * g.block_w and image < g.images and h < g.to_h and v < g.to_w:
            first = i32(group * g.group_to)
            at = i32(image * g.to_n + first * g.to_c + h * g.to_row + v * g.to_column)
            write_outputs(first, (y, at, bias, g, sums, k, channel, slope, ceiling), 0)
        return thread

    write_points = repeated(write_point, POINTS)

    def grouped(x, packed, bias, y, g, slope, ceiling):
        thread = i32(cuda.threadIdx.x)
        tile = i32(cuda.blockIdx.x)
        column, line = i32(remainder(tile, g.tiles_w) * g.block_w), quotient(tile, g.tiles_w)
        row, n = i32(remainder(line, g.tiles_h) * g.block_h), i32(quotient(line, g.tiles_h) * g.block_images)
        group, pack = quotient(cuda.blockIdx.y, g.packs), remainder(cuda.blockIdx.y, g.packs)
        memory = shared_memory(x)
        copy(x, g, memory, n, group, i32(row * g.stride_h - g.low_h), i32(column * g.stride_w - g.low_w), thread)
        cuda.syncthreads()
        offsets = offsets_of(thread, g)
        sums = zeros(x, sums_count)
        weights = i32(cuda.blockIdx.y * g.group_from * g.kernel_h * g.kernel_w * outputs)
        plane = i32(0)
        for _ in range(g.group_from):
            for t_h in range(g.kernel_h):
                at = i32(plane + t_h * g.dilation_h * g.seen_w)
                for _ in range(g.kernel_w):
                    sums = outer_product(sums, values_of(memory, offsets, at), weights_of(packed, weights))
                    at, weights = i32(at + g.dilation_w), i32(weights + outputs)
            plane = i32(plane + g.seen_h * g.seen_w)
        write_points(thread, (y, bias, g, sums, n, group, i32(pack * outputs), row, column, slope, ceiling), 0)

    return Code(f"grouped.{outputs}.{dtype}", grouped, (dtype,) * 4, Rectangles, 2, THREADS)


class Weights(NamedTuple):
    """Weights as (group, pack, channel, tap, output); strides count elements."""

    packs: int
    outputs: int
    group_from: int
    group_to: int
    kernel_h: int
    kernel_w: int
    first: int
    w_group: int
    w_to: int
    w_from: int
    w_row: int
    w_column: int
    total: int


@functools.cache
def pack_code(dtype: str) -> Code:
    """packed[group, pack, c, t, j] = w[group, outputs pack + j, c, t], zero beyond the last output."""

    def pack_outputs(w, packed, g):
        index = i32(cuda.blockIdx.x * PACKING_THREADS + cuda.threadIdx.x)
        if index >= g.total:
            return
        j, rest = remainder(index, g.outputs), quotient(index, g.outputs)
        column, rest = remainder(rest, g.kernel_w), quotient(rest, g.kernel_w)
        row, rest = remainder(rest, g.kernel_h), quotient(rest, g.kernel_h)
        c, rest = remainder(rest, g.group_from), quotient(rest, g.group_from)
        o = i32(remainder(rest, g.packs) * g.outputs + j)
        at = i32(g.first + quotient(rest, g.packs) * g.w_group + o * g.w_to + c * g.w_from + row * g.w_row + column * g.w_column)
        store(packed, index, fetch(w, at) if o < g.group_to else zero_of(w))

    return Code(f"pack_outputs.{dtype}", pack_outputs, (dtype, dtype), Weights, 0, PACKING_THREADS)


# -- plans ----------------------------------------------------------------------------------------------------------------


class Sharing(NamedTuple):
    """How the points of the result are shared out among blocks."""

    images: int
    rows: int
    columns: int
    seen_h: int
    seen_w: int
    blocks: int
    instructions: float  # of a thread


def roles_of(problem: Problem) -> tuple[int, int, tuple[int, ...], tuple[int, ...]]:
    """Channels of a group that are read and written, and the sizes of what is read and written."""
    p = problem
    if p.pass_name == "grad_input":
        return p.group_out, p.group_in, p.output_size[1:], p.input_size[1:]
    return p.group_in, p.group_out, p.input_size[1:], p.output_size[1:]


def outputs_of(problem: Problem) -> int:
    """Output channels of a thread."""
    wanted = roles_of(problem)[1]
    return next((outputs for outputs in OUTPUTS if outputs >= wanted), OUTPUTS[-1])


@functools.lru_cache(maxsize=256)
def sharing_of(problem: Problem) -> Sharing | None:
    """The quickest sharing of a problem's points, or None where the kernel does not compute it."""
    p = problem
    group_from, _, _, (to_h, to_w) = roles_of(p)
    flat = p.input_size[0] == p.output_size[0] == p.kernel_size[0] == 1
    if not (flat and p.flops and p.padding_mode == "zeros" and p.dtype in ("float32", "float64") and group_from <= MOST_CHANNELS):
        return None
    if (p.pass_name == "grad_input" and max(p.stride) > 1) or index_refusal(p):
        return None
    if p.groups * -(-roles_of(p)[1] // outputs_of(p)) > MOST_GRID:
        return None
    capacity = THREADS * POINTS
    found = []
    for parts in range(1, min(to_w, MOST_PARTS) + 1):
        columns = -(-to_w // parts)
        least = -(-to_h // max(1, min(to_h, capacity // columns)))
        for height in {-(-to_h // count) for count in range(least, least + MOST_PARTS)}:
            if columns * height <= capacity:
                images = max(1, min(p.batch, capacity // (columns * height))) if columns == to_w and height == to_h else 1
                found += [_shared_out(p, count, height, columns) for count in {1, images}]
    fitting = [sharing for sharing in found if _memory(p, sharing) <= SHARED_BYTES]
    return min(fitting, key=lambda sharing: sharing.blocks * sharing.instructions, default=None)


def _memory(problem: Problem, sharing: Sharing) -> int:
    return sharing.images * roles_of(problem)[0] * sharing.seen_h * sharing.seen_w * problem.itemsize


def _shared_out(problem: Problem, images: int, rows: int, columns: int) -> Sharing:
    p = problem
    group_from, group_to, _, (to_h, to_w) = roles_of(p)
    outputs = outputs_of(p)
    axes = zip((rows, columns), p.stride[1:], p.dilation[1:], p.kernel_size[1:], strict=True)
    seen = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in axes]
    blocks = -(-p.batch // images) * -(-to_h // rows) * -(-to_w // columns) * p.groups * -(-group_to // outputs)
    taps = group_from * math.prod(p.kernel_size)
    copied = images * group_from * seen[0] * seen[1] / THREADS
    return Sharing._make((images, rows, columns, *seen, blocks, taps * (POINTS * (outputs + 2) + outputs / WIDE + 4) + 14 * copied + 200))


class Grouped:
    """A forward convolution, or the gradient of the input of one at stride 1."""

    scratch_bytes = 0

    def __init__(self, problem: Problem):
        p = problem
        sharing = sharing_of(p)
        assert sharing is not None
        outputs = outputs_of(p)
        geometry = _rectangles_of(p, sharing, outputs)
        tiles = -(-p.batch // sharing.images) * geometry.tiles_h * geometry.tiles_w
        self.launch = Launch(grouped_code(outputs, p.dtype), (tiles, p.groups * geometry.packs), geometry, RECTIFIERS[p.activation],
                             _memory(p, sharing))
        weights = _weights_of(p, geometry.packs, outputs)
        self.packed = ((weights.total, p.dtype),)
        self.pack_launch = Launch(pack_code(p.dtype), (-(-weights.total // PACKING_THREADS),), weights)

    def pack(self, stream: Stream, second: Any, target: list[Any]) -> None:
        """Lay the weights of a thread's output channels side by side."""
        self.pack_launch(stream, second, target[0])

    def run(self, stream: Stream, first: Any, second: Any, packed: list[Any], bias: Any, out: Any) -> None:
        """Launch the kernel."""
        self.launch(stream, first, packed[0], out if bias is None else bias, out)


def _rectangles_of(problem: Problem, sharing: Sharing, outputs: int) -> Rectangles:
    p = problem
    x, y = (image_strides(*sizes, p.channels_last) for sizes in ((p.in_channels, p.input_size), (p.out_channels, p.output_size)))
    group_from, group_to, from_size, to_size = roles_of(p)
    lows = [low for low, _ in p.padding[1:]]
    if p.pass_name == "grad_input":
        x, y = y, x
        lows = [d * (k - 1) - low for d, k, low in zip(p.dilation[1:], p.kernel_size[1:], lows, strict=True)]
    lanes = 1
    while lanes < min(sharing.seen_w, THREADS, WARP):
        lanes *= 2
    tiles = -(-to_size[0] // sharing.rows), -(-to_size[1] // sharing.columns)
    return Rectangles._make((p.batch, p.groups, group_from, group_to, *from_size, *to_size, *p.kernel_size[1:], *p.stride[1:],
                             *p.dilation[1:],
                      *lows, sharing.images, sharing.rows, sharing.columns, *tiles, sharing.seen_h, sharing.seen_w, lanes,
                      -(-group_to // outputs), x.batch, x.channel, x.row, x.column, y.batch, y.channel, y.row, y.column, int(p.bias)))


def _weights_of(problem: Problem, packs: int, outputs: int) -> Weights:
    p = problem
    w = weight_strides(p)
    group_from, group_to, *_ = roles_of(p)
    kernel = p.kernel_size[1:]
    total = p.groups * packs * group_from * math.prod(kernel) * outputs
    sizes = packs, outputs, group_from, group_to, *kernel
    if p.pass_name == "grad_input":
        last = (kernel[0] - 1) * w.row + (kernel[1] - 1) * w.column
        return Weights._make((*sizes, last, p.group_out * w.out_channel, w.in_channel, w.out_channel, -w.row, -w.column, total))
    return Weights._make((*sizes, 0, p.group_out * w.out_channel, w.out_channel, w.in_channel, w.row, w.column, total))


def seconds(problem: Problem, machine: Gpu) -> float:
    """Predicted time; infinite for what the kernel does not compute."""
    sharing = sharing_of(problem)
    if sharing is None:
        return math.inf
    threads = sharing.blocks * THREADS
    return work_seconds(threads * sharing.instructions, threads, problem.bytes, problem.dtype, machine)


def pack_seconds(problem: Problem, machine: Gpu) -> float:
    """Time of laying the weights out."""
    return LAUNCH_SECONDS + 2 * problem.itemsize * math.prod(problem.weight_shape) / machine.bandwidth


def codes(dtype: str) -> list[Code]:
    """Every kernel that a problem may need."""
    return [*(grouped_code(outputs, dtype) for outputs in OUTPUTS), pack_code(dtype)]
