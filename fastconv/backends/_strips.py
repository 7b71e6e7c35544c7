"""Convolutions of single planes (depthwise layers, filters of images), read in place.

An output plane is computed in strips: some rows of it, by vectors of its columns, with all sums of a tile in registers
(`_simd.strip`). Nothing is copied: rows outside the image are a row of zeros, and columns outside it are masked where a
tile touches them. A dilation along the height makes strips of every dilation-th row. The other border modes read rows
that were copied with their borders.

A strip of each kernel size that matters is straight-line code, compiled once and called through its address, so that one
driver serves all of them.

What did not pay: masked loads everywhere (7x7 at 210 GFLOP/s instead of 245 a core); tiles of one height for all images (seven
rows, 4 KiB apart, crowd one set of the first-level cache: a filter of 1024 x 1024 took a fifth longer; four rows took 30%
longer on planes of 14 x 14); the edges of many rows before their insides (strided access that no prefetcher follows).
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import intrinsic

from ..problem import Problem
from ._boxes import pack_row
from ._gemm import epilogue_of, epilogue_type
from ._jit import address_of, addressed, inlined
from ._planes import PLANE_OVERHEAD, STRIDE_FACTOR, PlaneEngine, task_size, with_waiting
from ._simd import (
    advance,
    lane_count,
    lanes_of,
    own_first,
    parallel_kernel,
    strip_tile,
    tap_vectors,
    thawed,
    zero_element,
)
from ._simd.emit import VECTOR_REGISTERS, call_by_address, pointer_to

# Costs in vector multiply-adds (bench_conv.py, depthwise and filters)
EFFICIENCY = 0.92  # of the tiles inside the image
EDGE_FACTOR = 1.25  # of a vector in a masked tile at an edge
VECTOR_OVERHEAD = 10  # of a vector of outputs
COPIED_BYTES = 256 * 1024  # of rows that are copied with their borders at once (bench_conv.py, filters)
RUN_BYTES = 16 * 1024  # of input and output of a run: the first-level cache keeps them between its tiles (bench_conv.py, depthwise)
WIDE_BYTES = 1024  # of a row beyond which seven rows of input and output crowd one set of the cache (bench_conv.py, filters)
PANEL = 4096  # columns of a strip: its rows stay in the second-level cache (bench_conv.py, filters)


class Tile(NamedTuple):
    """A strip's tiles: rows, vectors of columns inside the image and at its edge; whether all taps stay in registers."""

    rows: int
    columns: int
    edge_columns: int
    hoisted: bool


class Shape(NamedTuple):
    """A kernel size with a stride and the tile for it."""

    kh: int
    kw: int
    stride: int
    tile: Tile


def _shapes() -> dict[str, Shape]:
    if VECTOR_REGISTERS < 32:
        small = wide = Tile(4, 1, 1, False)
        large = Tile(6, 1, 1, False)
    else:
        small, wide, large = Tile(7, 1, 1, True), Tile(4, 2, 1, True), Tile(6, 4, 2, False)
    return {"3": Shape(3, 3, 1, small), "3 wide": Shape(3, 3, 1, wide), "3/2": Shape(3, 3, 2, wide._replace(columns=1)),
            "5": Shape(5, 5, 1, large), "5/2": Shape(5, 5, 2, large._replace(columns=2)), "7": Shape(7, 7, 1, large),
            "9": Shape(9, 9, 1, large),
            # the phases of the input gradient of 3x3 with stride 2
            "1": Shape(1, 1, 1, small), "1x2": Shape(1, 2, 1, small), "2x1": Shape(2, 1, 1, small), "2": Shape(2, 2, 1, small)}


SHAPES = _shapes()


def shape_name(problem: Problem) -> str | None:
    """Which strips are for a kernel size and a stride, if any are."""
    kd, kh, kw = problem.kernel_size
    if kd != 1 or problem.stride[1] != problem.stride[2]:
        return None
    name = f"{kh}" if kh == kw else f"{kh}x{kw}"
    if problem.stride[2] > 1:
        name += f"/{problem.stride[2]}"
    if name == "3" and problem.input_size[2] * problem.itemsize > WIDE_BYTES:
        name = "3 wide"
    return name if name in SHAPES else None


class Plane(NamedTuple):
    """Sizes of one plane's convolution and of its tasks; integers only, as the kernel takes it."""

    planes: int  # output planes: batch * output channels
    out_channels: int
    group_out: int
    in_h: int
    in_w: int
    out_h: int
    out_w: int
    taps: int
    kernel_h: int
    stride: int
    dilation_h: int
    dilation_w: int
    low_w: int
    reach_w: int
    residue_h: int  # output rows of one residue modulo the dilation
    block: int  # planes of a task
    chunk: int  # rows of a task
    run: int  # rows of which the edges are computed together
    panel: int  # columns of a task
    pitch: int  # of rows copied with their borders; 0 where x is read in place


def make_strips(kh: int, kw: int, stride: int, tile: Tile):
    """All tiles of a run of strips, for one kernel size, to be called through its address."""
    taps = kh * kw
    height, columns, edge_columns, hoisted = tile

    def strips(x, pitch, rows, step, zeros, w, bias, y, y_pitch, out_h, run, end, low, in_w, dilation, epilogue):
        vectors = tap_vectors(w, taps) if hoisted else w
        width = columns * lanes_of(w)
        last = min(end - width, (in_w + low - width * stride - (kw - 1) * dilation) // stride)  # column of a tile inside the image
        for top in range(0, out_h, run):
            bottom = min(top + run, out_h)
            column = 0
            while column < end:
                if column * stride >= low and column <= last:
                    stop = column + (last - column) // width * width + width
                    for r in range(top, bottom, height):
                        for c in range(column, stop, width):
                            strip_tile(x, pitch, advance(rows, r * stride * step), step, zeros, c * stride - low, in_w, dilation, vectors,
                                       bias, advance(y, r * y_pitch + c), y_pitch, bottom - r, end - c, epilogue,
                                       kh, kw, stride, height, columns, False)
                    column = stop
                else:
                    for r in range(top, bottom, height):
                        strip_tile(x, pitch, advance(rows, r * stride * step), step, zeros, column * stride - low, in_w, dilation, vectors,
                                   bias, advance(y, r * y_pitch + column), y_pitch, bottom - r, end - column, epilogue,
                                   kh, kw, stride, height, edge_columns, True)
                    column += edge_columns * lanes_of(w)

    return addressed(strips)


STRIPS = {name: make_strips(*shape) for name, shape in SHAPES.items()}


def strips_signature(p: types.CPointer) -> tuple[Any, ...]:
    """Argument types of strips."""
    word = types.int64
    return (p, word, types.CPointer(types.int32), word, p, p, p, p, *[word] * 7, epilogue_type(p))


@functools.cache
def strips_address(name: str, dtype: str) -> int:
    """Address of the compiled strips of a shape."""
    return address_of(STRIPS[name], strips_signature(pointer_to(dtype)))


@intrinsic
def call_strips(typingctx, strips, x, pitch, rows, step, zeros, w, bias, y, y_pitch, out_h, run, end, low, in_w, dilation, epilogue):
    """Call strips through their address."""
    return call_by_address(strips_signature(x))


@inlined
def copy_rows(g, x, rows, columns, first, count, begin, end, target):
    """Copy the padded input of `count` rows of outputs from `first` on, columns [begin, end)."""
    for i in range((count - 1) * g.stride + g.kernel_h):
        source = rows[first * g.stride + i * g.dilation_h]
        pack_row(advance(target, i * g.pitch), advance(x, max(source, 0) * g.in_w), columns, begin * g.stride,
                 (end - 1) * g.stride + g.reach_w + 1, g.low_w, g.in_w, 1, zero_element(x))


@parallel_kernel
def direct_strips(x, w, bias, y, constants, scratch, counters, thread, threads):
    """y = epilogue(convolution of each plane of x with its kernel + bias), by (block of planes, columns, run of rows)."""
    g, rows, columns, identity, zeros, strips, epilogue, shares = thawed(constants)
    chunks = -(-g.residue_h // g.chunk)
    panels = -(-g.out_w // g.panel)
    tasks = -(-g.planes // g.block) * panels * g.dilation_h * chunks
    for task in own_first(counters, thread, shares, tasks):
        chunk, rest = task % chunks, task // chunks
        residue, rest = rest % g.dilation_h, rest // g.dilation_h
        begin, block = rest % panels * g.panel, rest // panels * g.block
        end = min(begin + g.panel, g.out_w)
        first = residue + chunk * g.chunk * g.dilation_h
        count = min(g.chunk, -(-(g.out_h - first) // g.dilation_h))
        for plane in range(block, min(block + g.block, g.planes)):
            channel = plane % g.out_channels
            image = advance(x, plane // g.group_out * g.in_h * g.in_w)
            target = advance(y, (plane * g.out_h + first) * g.out_w + begin)
            kernel, start = advance(w, channel * g.taps), advance(bias, channel)
            if g.pitch == 0:
                call_strips(strips, image, g.in_w, advance(rows, first * g.stride), g.dilation_h, zeros, kernel, start, target,
                            g.dilation_h * g.out_w, count, g.run, end - begin, g.low_w - begin * g.stride, g.in_w, g.dilation_w,
                            epilogue)
            elif count > 0:
                copy_rows(g, image, rows, columns, first, count, begin, end, scratch)
                call_strips(strips, scratch, g.pitch, identity, 1, zeros, kernel, start, target, g.dilation_h * g.out_w, count, g.run,
                            end - begin, 0, g.pitch, g.dilation_w, epilogue)


def fits(problem: Problem) -> bool:
    """Whether strips compute a problem: a forward pass over single planes, channels first, with a kernel size that has a strip."""
    p = problem
    return (p.pass_name == "forward" and not p.channels_last and p.group_in == 1 and p.stride[0] == 1
            and not any(p.padding[0]) and p.input_size[0] == 1 and shape_name(p) is not None
            and (p.stride[1] == 1 or p.dilation[1:] == (1, 1)))


def slots(problem: Problem) -> float:
    """Time of a run on one thread, in vector multiply-adds, more where there are few tasks; infinite where strips do not fit."""
    name = shape_name(problem)
    if name is None or not fits(problem):
        return math.inf
    p, tile = problem, SHAPES[name].tile
    rows = p.dilation[1] * -(-p.output_size[1] // (p.dilation[1] * tile.rows)) * tile.rows
    each = (p.taps / EFFICIENCY + VECTOR_OVERHEAD) * (1 if p.stride[2] == 1 else STRIDE_FACTOR)
    tasks = p.batch * p.out_channels * (rows // tile.rows) * -(-p.output_size[2] // PANEL)
    return with_waiting(p, p.batch * p.out_channels * (rows * _row_vectors(p, tile) * each + PLANE_OVERHEAD), tasks)


def _row_vectors(problem: Problem, tile: Tile) -> float:
    """Vectors of a row of outputs, those of masked tiles counted by what they take."""
    p, lanes = problem, lane_count(problem.dtype)
    edge, width = lanes * tile.edge_columns, lanes * tile.columns
    start = -(-p.padding[2][0] // (edge * p.stride[2])) * edge
    last = (p.input_size[2] + p.padding[2][0] - width * p.stride[2] - p.dilation[2] * (p.kernel_size[2] - 1)) // p.stride[2]
    inside = max(0, (min(p.output_size[2] - width, last) - start) // width + 1) * tile.columns
    masked = -(-(p.output_size[2] - inside * lanes) // edge) * tile.edge_columns
    return inside + EDGE_FACTOR * masked


def _plane(problem: Problem, tile: Tile) -> Plane:
    p = problem
    (_, in_h, in_w), (_, out_h, out_w) = p.input_size, p.output_size
    planes = p.batch * p.out_channels
    panel = min(out_w, PANEL)
    reach_w = p.dilation[2] * (p.kernel_size[2] - 1)
    pitch = 0 if p.padding_mode == "zeros" else panel * p.stride[2] + reach_w + lane_count(p.dtype)
    residue_h = -(-out_h // p.dilation[1])
    fitting = COPIED_BYTES // (pitch * p.itemsize * tile.rows * p.stride[1]) if pitch else None
    block, chunk = task_size(p, planes, -(-residue_h // tile.rows), pieces=p.dilation[1] * -(-out_w // panel), most=fitting)
    strip_bytes = (tile.rows * p.stride[1] * in_w + tile.rows * out_w) * p.itemsize
    run = max(1, RUN_BYTES // strip_bytes) * tile.rows
    return Plane(planes, p.out_channels, p.group_out, in_h, in_w, out_h, out_w, p.taps, p.kernel_size[1], p.stride[1],
                 p.dilation[1], p.dilation[2], p.padding[2][0], reach_w, residue_h, block, chunk * tile.rows, run, panel, pitch)


class Strips(PlaneEngine):
    """The forward pass by strips."""

    def __init__(self, problem: Problem):
        p, name = problem, shape_name(problem)
        assert name is not None
        tile = SHAPES[name].tile
        g = _plane(p, tile)
        _, rows, columns = p.border_sources()
        beyond = tile.rows * p.stride[1] * p.dilation[1]  # rows that the last tile of a residue may read too many
        rows = np.pad(rows, (0, beyond), constant_values=-1)
        copied = (g.chunk - 1) * g.stride + g.kernel_h if g.pitch else 0
        identity = np.append(np.arange(copied), np.full(beyond, -1)).astype(np.int32)
        zeros = np.zeros(max(p.input_size[2], g.pitch), p.dtype)
        constants = (g, rows, columns, identity, zeros, strips_address(name, p.dtype), epilogue_of(p))
        super().__init__(p, direct_strips, constants, scratch=copied * g.pitch)
