"""Boxes: how the CPU kernels cut a convolution into tasks, and how they read the input of one.

The output points of a problem are cut into boxes (images x depths x rows x columns). A box's input is either read in
place (no border to add) or copied, borders included, into a scratch buffer that fits the cache: whole rows with a fixed
pitch, so that one table of offsets per tap and one per output point address it. Only a box is ever padded, never the
image, and every border mode costs the same.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..problem import Problem
from ._jit import inlined, outlined
from ._simd import TILE_ROWS, advance, as_int32, as_int64, get, lanes_of, load, load_first, put, store, store_first

CACHE_BUDGET = 256 * 1024  # bytes of packed input a box aims at: a quarter of a 1 MiB L2 (benchmarks/bench_conv.py)
LARGEST_BOX = 4 * 1024 * 1024  # bytes beyond which columns are split too
MOST_POINTS = 4096  # output points of a box: its two int32 tables stay in the first-level cache
TASKS_PER_THREAD = 4  # so that a thread that loses its core for a while delays the others by a quarter at most


class Geometry(NamedTuple):
    """Sizes and element strides of one forward convolution cut into boxes; integers only, as the kernels take it."""

    groups: int
    group_in: int
    group_out: int
    stride_d: int
    stride_h: int
    stride_w: int
    reach_d: int  # dilation * (kernel - 1): how far a point's taps extend
    reach_h: int
    reach_w: int
    low_d: int
    low_h: int
    low_w: int
    in_w: int
    out_n: int
    out_d: int
    out_h: int
    out_w: int
    x_image: int  # strides of x
    x_channel: int
    x_d: int
    x_h: int
    x_w: int
    y_image: int  # strides of y
    y_channel: int
    y_point: int
    box_n: int  # extents of a box in output points
    box_d: int
    box_h: int
    box_w: int
    in_place: int  # 1 where the kernels read x itself
    p_image: int  # strides of the box's input: x's own, or the packed buffer's
    p_channel: int
    p_d: int
    p_h: int
    p_w: int
    packed: int  # elements of the packed buffer

    @property
    def points(self) -> int:
        """Output points of a full box."""
        return self.box_n * self.box_d * self.box_h * self.box_w

    @property
    def input_extents(self) -> tuple[int, int, int]:
        """Depths, rows and columns of a full box's input, borders included."""
        return ((self.box_d - 1) * self.stride_d + self.reach_d + 1, (self.box_h - 1) * self.stride_h + self.reach_h + 1,
                (self.box_w - 1) * self.stride_w + self.reach_w + 1)

    @property
    def boxes(self) -> int:
        """Number of boxes."""
        return (-(-self.out_n // self.box_n) * -(-self.out_d // self.box_d)
                * -(-self.out_h // self.box_h) * -(-self.out_w // self.box_w))


def speedup(tasks: int, threads: int) -> float:
    """How many times faster so many equal tasks are done by threads than by one."""
    return tasks / -(-tasks // threads) if tasks else 1.0


def strides_of(channels: int, size: tuple[int, ...], channels_last: bool) -> tuple[int, int, int, int, int]:
    """Element strides (image, channel, depth, row, column) of a contiguous array."""
    depth, height, width = size
    if channels_last:
        return depth * height * width * channels, 1, height * width * channels, width * channels, channels
    return channels * depth * height * width, depth * height * width, height * width, width, 1


def cut(problem: Problem, threads: int, *, in_place: bool = True, channels: int | None = None,
        tasks_per_box: int = 1, column_multiple: int = TILE_ROWS) -> Geometry:
    """Choose boxes for a forward problem: input within the cache, enough tasks for the threads, halos small.

    `channels` is how many input channels are packed at once (all by default).
    """
    channels = problem.in_channels if channels is None else channels
    out_d, out_h, out_w = problem.output_size
    reach = [d * (k - 1) for d, k in zip(problem.dilation, problem.kernel_size, strict=True)]
    in_place = in_place and all(low <= 0 and high <= 0 for low, high in problem.padding)
    box_n, box_d, box_h, box_w = _extents(problem, threads, channels, reach, in_place, tasks_per_box, column_multiple)
    x_strides = strides_of(problem.in_channels, problem.input_size, problem.channels_last)
    y_strides = strides_of(problem.out_channels, problem.output_size, problem.channels_last)
    if in_place:
        packed_strides, packed = x_strides, 0
    else:
        depths, rows, columns = ((b - 1) * s + r + 1 for b, s, r in zip((box_d, box_h, box_w), problem.stride, reach, strict=True))
        if problem.channels_last:
            packed_strides = (depths * rows * columns * channels, 1, rows * columns * channels, columns * channels, channels)
        else:
            packed_strides = (depths * rows * channels * columns, columns, rows * channels * columns, channels * columns, 1)
        packed = box_n * packed_strides[0]
    numbers: tuple[int, ...] = (
        problem.groups, problem.group_in, problem.group_out, *problem.stride, *reach,
        *(low for low, _ in problem.padding), problem.input_size[2], problem.batch, out_d, out_h, out_w,
        *x_strides, y_strides[0], y_strides[1], y_strides[4], box_n, box_d, box_h, box_w, int(in_place), *packed_strides, packed)
    return Geometry(*numbers)


def _extents(problem: Problem, threads: int, channels: int, reach: list[int], in_place: bool, tasks_per_box: int,
             column_multiple: int) -> tuple[int, int, int, int]:
    size, strides = problem.output_size, problem.stride

    def cost(d: int, h: int, w: int) -> int:
        """Bytes of input that a box of d x h x w points reads."""
        spans = [(b - 1) * s + r + 1 for b, s, r in zip((d, h, w), strides, reach, strict=True)]
        return math.prod(spans) * channels * problem.itemsize

    box_w = size[2]
    while box_w > column_multiple and (cost(1, 1, box_w) > LARGEST_BOX or box_w > MOST_POINTS):
        box_w = -(-box_w // 2 // column_multiple) * column_multiple
    box_h = max(1, min(size[1], MOST_POINTS // box_w))
    while box_h > 1 and cost(1, box_h, box_w) > CACHE_BUDGET:
        box_h -= max(1, box_h // 8)
    wanted = -(-threads * TASKS_PER_THREAD // tasks_per_box)
    others = problem.batch * size[0] * -(-size[2] // box_w)
    if others * -(-size[1] // box_h) < wanted:
        halo = max(1, 4 * (reach[1] // strides[1]))  # rows below which the halo would be a fifth of the box
        box_h = max(min(box_h, halo), min(box_h, -(-size[1] * others // wanted)))
        # Whatever the halo costs, a thread without a task costs more.
        box_h = max(1, min(box_h, size[1] * others // max(others, -(-threads // tasks_per_box))))
    box_h = -(-size[1] // -(-size[1] // box_h))
    box_d = box_n = 1
    if (box_h, box_w) == size[1:]:
        plane = box_h * box_w
        most = max(1, min(128 // plane, problem.batch * size[0] // max(1, wanted)))
        if in_place or cost(1, box_h, box_w) * most <= CACHE_BUDGET:
            box_d = min(size[0], most)
            box_n = min(problem.batch, most // box_d) if box_d == size[0] else 1
    return max(1, box_n), box_d, box_h, box_w


def tap_offsets(problem: Problem, geometry: Geometry) -> np.ndarray:
    """Offset of each of a group's taps in the box's input, in the order of the weights' own layout; int32."""
    kd, kh, kw = (np.arange(k) * d for k, d in zip(problem.kernel_size, problem.dilation, strict=True))
    spatial = (kd[:, None, None] * geometry.p_d + kh[:, None] * geometry.p_h + kw * geometry.p_w)
    channel = np.arange(problem.group_in) * geometry.p_channel
    if problem.channels_last:
        return (spatial[..., None] + channel).astype(np.int32).ravel()
    return (channel[:, None, None, None] + spatial).astype(np.int32).ravel()


class Space(NamedTuple):
    """Sizes, in elements of the dtype, of what a thread keeps in scratch; and gw's pitches where there is a gw."""

    packed: int  # the box's input, borders included
    sums: int  # sums of the box's points, a panel wide
    x_offsets: int  # of the box's points in its input
    y_offsets: int  # of the box's points in y
    gw_output: int
    gw_channel: int

    @property
    def size(self) -> int:
        """Elements of a thread's scratch."""
        return self.packed + self.sums + self.x_offsets + self.y_offsets


def make_space(packed: int, sums: int, points: int, dtype: str, gw_pitches: tuple[int, int] = (0, 0)) -> Space:
    """Scratch of a box of so many packed elements, sums and points; each part starts at a cache line."""
    item = np.dtype(dtype).itemsize
    a, b, c, d = (-(-size // 64) * 64 // item for size in (packed * item, sums * item, 4 * points, 8 * points))
    return Space(a, b, c, d, *gw_pitches)


# -- kernels' helpers -----------------------------------------------------------------------------------------------------


@inlined
def space_of(space, scratch):
    """The parts of a thread's scratch: packed input, sums, offsets in x, offsets in y."""
    sums = advance(scratch, space.packed)
    x_offsets = advance(sums, space.sums)
    return scratch, sums, as_int32(x_offsets), as_int64(advance(x_offsets, space.x_offsets))


@inlined
def copy_run(target, source, count):
    """target[:count] = source[:count]."""
    lanes = lanes_of(source)
    whole = count - count % lanes
    for i in range(0, whole, lanes):
        store(target, i, load(source, i))
    if whole < count:
        store_first(target, whole, load_first(source, whole, count - whole), count - whole)


@inlined
def add_run(target, source, count):
    """target[:count] += source[:count], whole vectors."""
    for i in range(0, count, lanes_of(source)):
        store(target, i, load(target, i) + load(source, i))


@inlined
def fill_run(target, count, value):
    """target[:count] = value."""
    for i in range(count):
        put(target, i, value)


@inlined
def box_start(g, box):
    """First output point (image, depth, row, column) of box number `box`."""
    across = -(-g.out_w // g.box_w)
    down = -(-g.out_h // g.box_h)
    deep = -(-g.out_d // g.box_d)
    w = box % across
    h = box // across % down
    d = box // (across * down) % deep
    n = box // (across * down * deep)
    return n * g.box_n, d * g.box_d, h * g.box_h, w * g.box_w


@inlined
def box_end(g, n, d, h, w):
    """One past the last output point of the box that starts at (n, d, h, w)."""
    return min(n + g.box_n, g.out_n), min(d + g.box_d, g.out_d), min(h + g.box_h, g.out_h), min(w + g.box_w, g.out_w)


@inlined
def input_offset(g, n, d, h, w):
    """Offset in x, where it is read in place, of the first tap of output point (n, d, h, w)."""
    return (n * g.x_image + (d * g.stride_d - g.low_d) * g.x_d + (h * g.stride_h - g.low_h) * g.x_h
            + (w * g.stride_w - g.low_w) * g.x_w)


@outlined
def box_tables(g, start, end, x_offsets, y_offsets, multiple):
    """Offsets of the box's points in its input and in y, and their number.

    The last point is repeated `multiple` times, so that a tile may run over.
    """
    point = 0
    for n in range(start[0], end[0]):
        for d in range(start[1], end[1]):
            for h in range(start[2], end[2]):
                x_row = (n - start[0]) * g.p_image + (d - start[1]) * g.stride_d * g.p_d + (h - start[2]) * g.stride_h * g.p_h
                y_row = n * g.y_image + ((d * g.out_h + h) * g.out_w + start[3]) * g.y_point
                for w in range(end[3] - start[3]):
                    put(x_offsets, point, np.int32(x_row + w * g.stride_w * g.p_w))
                    put(y_offsets, point, np.int64(y_row + w * g.y_point))
                    point += 1
    for i in range(multiple):
        put(x_offsets, point + i, get(x_offsets, point - 1))
        put(y_offsets, point + i, get(y_offsets, point - 1))
    return point


@outlined
def pack_row(target, source, columns, first, last, low, in_w, step, zero):
    """Padded positions [first, last) of one row: the run that lies in the image at once, the border by its table."""
    left = min(max(first, low), last)
    right = max(min(last, low + in_w), left)
    for p in range(first, left):
        put(target, p - first, zero if columns[p] < 0 else get(source, columns[p] * step))
    if step == 1:
        copy_run(advance(target, left - first), advance(source, left - low), right - left)
    else:
        for p in range(left, right):
            put(target, p - first, get(source, (p - low) * step))
    for p in range(right, last):
        put(target, p - first, zero if columns[p] < 0 else get(source, columns[p] * step))


@outlined
def pack_pixels(target, pitch, source, columns, first, last, low, in_w, pixel, channels, zero):
    """The same for a channels-last row: `channels` of each pixel, whose pitch is `pixel` in the image, `pitch` in the box."""
    left = min(max(first, low), last)
    right = max(min(last, low + in_w), left)
    if channels == pixel:
        copy_run(advance(target, (left - first) * pitch), advance(source, (left - low) * pixel), (right - left) * channels)
    for p in range(first, last):
        to = advance(target, (p - first) * pitch)
        if left <= p < right:
            if channels != pixel:
                copy_run(to, advance(source, (p - low) * pixel), channels)
        elif columns[p] < 0:
            fill_run(to, channels, zero)
        else:
            copy_run(to, advance(source, columns[p] * pixel), channels)


@outlined
def pack_box(g, x, zero, borders, start, end, channel, channels, target):
    """Copy the padded input of a box, channels [channel, channel + channels), to `target` in the packed pitches."""
    depths, rows, columns = borders
    first_w, last_w = start[3] * g.stride_w, (end[3] - 1) * g.stride_w + g.reach_w + 1
    for n in range(start[0], end[0]):
        for d in range((end[1] - 1 - start[1]) * g.stride_d + g.reach_d + 1):
            source_d = depths[start[1] * g.stride_d + d]
            for h in range((end[2] - 1 - start[2]) * g.stride_h + g.reach_h + 1):
                source_h = rows[start[2] * g.stride_h + h]
                to = advance(target, (n - start[0]) * g.p_image + d * g.p_d + h * g.p_h)
                if source_d < 0 or source_h < 0:
                    fill_run(to, g.p_h, zero)
                else:
                    at = advance(x, n * g.x_image + channel * g.x_channel + source_d * g.x_d + source_h * g.x_h)
                    if g.x_channel == 1 and g.x_w != 1:
                        pack_pixels(to, g.p_w, at, columns, first_w, last_w, g.low_w, g.in_w, g.x_w, channels, zero)
                    else:
                        for c in range(channels):
                            pack_row(advance(to, c * g.p_channel), advance(at, c * g.x_channel), columns, first_w, last_w,
                                     g.low_w, g.in_w, g.x_w, zero)
