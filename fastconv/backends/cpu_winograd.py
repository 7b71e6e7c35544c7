"""`winograd` on the CPU: minimal-filtering ("Winograd") convolution by one engine for every algorithm of `_bilinear`.

A box of output points is cut into tiles of m_h x m_w. Per box:

    pack         the box's input, borders included, with channels last: [depth][row][column][channel]
    transform    each tile's samples, a vector of channels at a time:   V[product][depth][tile][channel]
    multiply     per product a (tiles x channels) by (channels x panel of outputs) matrix product, `_gemm`'s register tile
    transform    the products back to output points, a vector of output channels at a time, and write them

Taps along the depth axis are summed directly (they are more channels to the product), so 3-D works with 2-D tiles.
Dilation interleaves independent tiles; a stride has polyphase algorithms. The gradient of the input is the forward
convolutions of its phases.

The weights' transform reads the panels that `im2col` uses too. Which algorithm a problem gets is chosen by predicted time
among those that its accuracy allows.

Source: Lavin and Gray, "Fast algorithms for convolutional neural networks" (2016), sections 4 and 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..problem import Problem
from . import Backend, Kernel, Machine
from ._bilinear import INPUT, OUTPUT, WEIGHTS, Axis, axis_algorithm, call_transform, transform_address
from ._boxes import copy_run, fill_run, strides_of
from ._gemm import Matrices, PaddedBias, PanelPacking, epilogue_of, multiply_tile, panel_width, store_points, tile_addresses
from ._jit import num_threads, outlined
from ._phases import GradInputByPhases, phase_seconds
from ._scratch import operand
from ._simd import (
    TILE_ROWS,
    advance,
    as_int32,
    fma,
    get,
    lane_count,
    lanes_of,
    load,
    next_task,
    parallel_kernel,
    put,
    raise_flag,
    thawed,
    total,
    transpose_block,
    zero,
    zero_element,
)

# Outputs per tile of the algorithms there are, by (taps, stride): both axes alike, or one axis of a line of taps.
SQUARES = {(2, 1): (4, 2), (3, 1): (4, 2), (4, 1): (2,), (5, 1): (4, 2), (7, 1): (2,), (3, 2): (4, 2), (5, 2): (2,)}
LINES = {(2, 1): 4, (3, 1): 4, (5, 1): 4, (7, 1): 4}
MIXED = {(2, 3): 4, (3, 2): 4}  # taps of the two axes: phases of a strided 5x5
SMALLEST_CHANNELS = 8  # of a group, in and out: fewer leave lanes of the transforms and the product empty
TRANSFORMED_BYTES = 512 * 1024  # of V: half a 1 MiB L2 (benchmarks/bench_conv.py, 3x3 layers)
FEWEST_TILES, MOST_TILES = 2 * TILE_ROWS, 16 * TILE_ROWS  # of a box, where there are so many


class Geometry(NamedTuple):
    """Sizes and strides of one forward convolution cut into boxes of tiles; integers only, as the kernels take it."""

    groups: int
    group_in: int
    group_out: int
    lines: int  # channels of a group, rounded up to whole vectors
    stride_d: int
    stride_h: int
    stride_w: int
    dilation_d: int
    dilation_h: int
    dilation_w: int
    kernel_d: int
    low_w: int
    in_w: int
    out_n: int
    out_d: int
    out_h: int
    out_w: int
    x_image: int
    x_channel: int
    x_d: int
    x_h: int
    x_w: int
    y_image: int
    y_channel: int
    y_point: int
    tile_h: int  # outputs of a tile
    tile_w: int
    products_h: int
    products_w: int
    samples_h: int
    samples_w: int
    box_d: int  # extents of a box in output points, whole tiles but at the image's end
    box_h: int
    box_w: int
    span_d: int  # extents of its input
    span_h: int
    span_w: int
    across: int  # tiles of a full box along a row and down a column
    down: int
    high: int  # boxes down a column, which share its tiles evenly
    tiles_down: int
    v_product: int  # pitch of a product's plane of V
    m_product: int  # and of its sums
    u_product: int  # and of its transformed weights


class Space(NamedTuple):
    """Sizes, in elements of the dtype, of what a thread keeps in scratch; each part starts at a cache line."""

    packed: int  # the box's input, channels last
    v: int  # its transformed tiles
    sums: int  # their products with a panel
    rows: int  # finished rows of output points, a panel wide
    tiles: int  # offset of each tile in a product's plane of V


@outlined
def pack_channels_last(g, x, zero, borders, start, group, target):
    """Copy the padded input of a box, one group's channels, to [depth][row][column][lines]; channels beyond are zero."""
    depths, rows, columns = borders
    lanes = lanes_of(x)
    first = start[3] * g.stride_w
    last = first + g.span_w
    left = min(max(first, g.low_w), last)
    right = max(min(last, g.low_w + g.in_w), left)
    for d in range(g.span_d):
        source_d = depths[start[1] * g.stride_d + d]
        for h in range(g.span_h):
            source_h = rows[start[2] * g.stride_h + h]
            to = advance(target, (d * g.span_h + h) * g.span_w * g.lines)
            if source_d < 0 or source_h < 0:
                fill_run(to, g.span_w * g.lines, zero)
                continue
            at = advance(x, start[0] * g.x_image + group * g.group_in * g.x_channel + source_d * g.x_d + source_h * g.x_h)
            for p in range(first, last):
                if p < left or p >= right or g.x_channel == 1:
                    pixel = advance(to, (p - first) * g.lines)
                    if columns[p] < 0:
                        fill_run(pixel, g.lines, zero)
                    elif g.x_channel == 1:
                        copy_run(pixel, advance(at, columns[p] * g.x_w), g.group_in)
                        fill_run(advance(pixel, g.group_in), g.lines - g.group_in, zero)
                    else:
                        for c in range(g.lines):
                            put(pixel, c, get(at, columns[p] * g.x_w + c * g.x_channel) if c < g.group_in else zero)
            if g.x_channel != 1:
                for c in range(0, g.lines, lanes):
                    for p in range(left, right, lanes):
                        transpose_block(advance(at, c * g.x_channel + p - g.low_w), g.x_channel, min(lanes, g.group_in - c),
                                        min(lanes, right - p), advance(to, (p - first) * g.lines + c), g.lines, lanes)


@outlined
def transform_box(g, transform, packed, down, across, v, tiles):
    """V of all tiles of a box, and the table of the tiles' offsets in a product's plane; returns the tiles of a plane."""
    lanes = lanes_of(v)
    row_step, column_step = g.dilation_h * g.span_w * g.lines, g.dilation_w * g.lines
    count = down * g.dilation_h * across * g.dilation_w
    for d in range(g.span_d):
        tile = 0
        for i in range(down):
            for f in range(g.dilation_h):
                row = (i * g.tile_h * g.dilation_h + f) * g.stride_h
                for j in range(across):
                    for e in range(g.dilation_w):
                        column = (j * g.tile_w * g.dilation_w + e) * g.stride_w
                        at = advance(packed, ((d * g.span_h + row) * g.span_w + column) * g.lines)
                        to = advance(v, (d * count + tile) * g.lines)
                        for c in range(0, g.lines, lanes):
                            call_transform(transform, advance(at, c), row_step, column_step, advance(to, c),
                                           g.products_w * g.v_product, g.v_product, packed)
                        tile += 1
    for d in range(g.box_d):
        for tile in range(count):
            put(tiles, d * count + tile, np.int32((d * g.stride_d * count + tile) * g.lines))
    for i in range(TILE_ROWS):
        put(tiles, g.box_d * count + i, get(tiles, g.box_d * count - 1))
    return count


@outlined
def store_tiles(g, transform, sums, width, bias, first, count, down, across, start, end, rows, ramp, y, channels, epilogue):
    """Transform a plane of products back and write its output rows; `first` is the plane's first tile in `sums`.

    Returns whether all results are finite.
    """
    lanes = lanes_of(sums)
    nothing = zero(sums)
    check = nothing
    pitch = across * g.tile_w * g.dilation_w * width
    tile = first
    for i in range(down):
        for f in range(g.dilation_h):
            for j in range(across):
                for e in range(g.dilation_w):
                    to = advance(rows, (j * g.tile_w * g.dilation_w + e) * width)
                    for c in range(0, channels, lanes):
                        call_transform(transform, advance(sums, tile * width + c), g.products_w * g.m_product, g.m_product,
                                       advance(to, c), pitch, g.dilation_w * width, advance(bias, c))
                    tile += 1
            for k in range(g.tile_h):
                h = start[2] + (i * g.tile_h + k) * g.dilation_h + f
                if h < end[2]:
                    for point in range(0, (end[3] - start[3]) * width, width):
                        for c in range(0, channels, lanes):
                            check = fma(load(rows, k * pitch + point + c), nothing, check)
                    store_points(advance(rows, k * pitch), width, end[3] - start[3], advance(y, h * g.out_w * g.y_point), ramp,
                                 g.y_channel, channels, epilogue)
    return total(check) == zero_element(sums)


@parallel_kernel
def winograd_forward(x, u, bias, y, constants, scratch, counters, thread, threads):
    """y = epilogue(convolution of x with the transformed weights u + bias), by (box, group) and panel.

    A thread starts with boxes of its own and takes their panels one by one; done with them, it helps with the others'
    panels, at the price of transforming such a box again.
    """
    (zeros, register_tiles, g, input_transform, output_transform, borders, space, taps, depth, ramp, width, boxes,
     epilogue) = thawed(constants)
    per_group = -(-g.group_out // width)
    wide, high, deep = -(-g.out_w // g.box_w), g.high, -(-g.out_d // g.box_d)
    tile_row = g.tile_h * g.dilation_h
    packed = scratch
    v = advance(packed, space.packed)
    sums = advance(v, space.v)
    rows = advance(sums, space.sums)
    tiles = as_int32(advance(rows, space.rows))
    products = g.products_h * g.products_w
    current = -1
    count = 0
    for i in range(boxes):
        box = (boxes * thread // threads + i) % boxes
        group = box % g.groups
        place = box // g.groups
        row = place // wide % high
        start = (place // (wide * high * deep), place // (wide * high) % deep * g.box_d, g.tiles_down * row // high * tile_row,
                 place % wide * g.box_w)
        end = (start[0] + 1, min(start[1] + g.box_d, g.out_d), min(g.tiles_down * (row + 1) // high * tile_row, g.out_h),
               min(start[3] + g.box_w, g.out_w))
        down = -(-(end[2] - start[2]) // tile_row)
        across = -(-(end[3] - start[3]) // (g.tile_w * g.dilation_w))
        while True:
            panel = next_task(advance(counters, box))
            if panel >= per_group:
                break
            if box != current:
                pack_channels_last(g, x, zero_element(x), borders, start, group, packed)
                count = transform_box(g, input_transform, packed, down, across, v, tiles)
                current = box
            total = (end[1] - start[1]) * count
            output = group * g.group_out + panel * width
            channels = min(width, g.group_out - panel * width)
            weights = advance(u, (group * per_group + panel) * products * g.u_product)
            for product in range(products):
                row = 0
                while row < total:
                    row += multiply_tile(register_tiles, total - row, advance(v, product * g.v_product), advance(tiles, row),
                                         taps, depth, advance(weights, product * g.u_product), width, zeros, 0,
                                         advance(sums, product * g.m_product + row * width), channels)
            for d in range(end[1] - start[1]):
                to = advance(y, start[0] * g.y_image + output * g.y_channel + ((start[1] + d) * g.out_h * g.out_w + start[3]) * g.y_point)
                if not store_tiles(g, output_transform, sums, width, advance(bias, (group * per_group + panel) * width), d * count, count,
                                   down, across, start, end, rows, ramp, to, channels, epilogue):
                    raise_flag(counters)


@parallel_kernel
def winograd_weights(panels, unused, bias, u, constants, scratch, counters, thread, threads):
    """u[panel][product][depth tap][channel][width] from panels of weights, by (panel, depth tap)."""
    transform, count, channels, kernel_d, rows, columns, products, step, width, u_product, channels_last = thawed(constants)
    planes = rows * columns
    while True:
        task = next_task(counters)
        if task >= count * kernel_d:
            break
        panel, d = task // kernel_d, task % kernel_d
        source = advance(panels, panel * kernel_d * planes * channels * width)
        target = advance(u, panel * products * u_product + d * channels * width)
        for c in range(channels):
            if channels_last:
                at, row, column = advance(source, (d * planes * channels + c) * width), columns * channels * width, channels * width
            else:
                at, row, column = advance(source, (c * kernel_d + d) * planes * width), columns * width, width
            for lane in range(0, width, lanes_of(source)):
                call_transform(transform, advance(at, lane), row, column, advance(target, c * width + lane),
                               step * u_product, u_product, at)


# -- choosing the algorithm -----------------------------------------------------------------------------------------------


def algorithms(problem: Problem) -> list[tuple[Axis, Axis]]:
    """The pairs of axis algorithms for a forward problem, none where there are none."""
    (_, kh, kw), (_, sh, sw) = problem.kernel_size, problem.stride
    if (kh, sh) == (kw, sw):
        return [(axis_algorithm(m, kh, sh),) * 2 for m in SQUARES.get((kh, sh), ())]
    if (kw, sw) == (1, 1) and (kh, sh) in LINES:
        return [(axis_algorithm(LINES[kh, sh], kh, sh), axis_algorithm(4, 1))]
    if (kh, sh) == (1, 1) and (kw, sw) in LINES:
        return [(axis_algorithm(4, 1), axis_algorithm(LINES[kw, sw], kw, sw))]
    if sh == sw == 1 and (kh, kw) in MIXED:
        return [(axis_algorithm(MIXED[kh, kw], kh), axis_algorithm(MIXED[kh, kw], kw))]
    return []


def prepare(dtype: str) -> None:
    """Compile the transforms of every algorithm."""
    if np.dtype(dtype).kind != "f":
        return
    pairs = [((m, *key), (m, *key)) for key, outputs in SQUARES.items() for m in outputs]
    for (taps, stride), m in LINES.items():
        pairs += [((m, taps, stride), (4, 1, 1)), ((4, 1, 1), (m, taps, stride))]
    pairs += [((m, kh, 1), (m, kw, 1)) for (kh, kw), m in MIXED.items()]
    for high, wide in pairs:
        for kind in (INPUT, OUTPUT, WEIGHTS):
            transform_address(kind, high, wide, dtype)


def algorithm_seconds(problem: Problem, high: Axis, wide: Axis, machine: Machine) -> float:
    """Time of the products, of both transforms, and of reading the weights once a box."""
    p = problem
    lanes = lane_count(p.dtype)
    lines = -(-p.group_in // lanes) * lanes
    columns = -(-p.group_out // lanes) * lanes
    (out_d, out_h, out_w), (_, dh, dw) = p.output_size, p.dilation
    tiles = p.batch * p.groups * -(-out_h // (high.outputs * dh)) * dh * -(-out_w // (wide.outputs * dw)) * dw
    products = high.products * wide.products
    peak = machine.flops(p.dtype)
    multiply = 2 * tiles * out_d * products * columns * (p.group_in * p.kernel_size[0] + PRODUCT_OVERHEAD) / (EFFICIENCY * peak)
    depths = out_d * p.stride[0] + p.dilation[0] * (p.kernel_size[0] - 1)
    vectors = tiles * (depths * lines * products + out_d * columns * products) / lanes
    transform = vectors * lanes * p.itemsize * TRANSFORM_PASSES / machine.cache_bandwidth
    boxes = max(1, tiles * out_d / (p.groups * _tiles_of_a_box(p, products, lines)))
    weight_bytes = products * columns * p.groups * p.group_in * p.kernel_size[0] * p.itemsize
    weights = boxes * weight_bytes / (WEIGHT_READS * machine.bandwidth)
    moved = 2 * p.bytes / machine.cache_bandwidth
    threads = machine.threads if p.flops > SERIAL_FLOPS else 1
    return CALL_SECONDS + machine.region_seconds + (multiply + transform + weights + moved) / threads


def _tiles_of_a_box(problem: Problem, products: int, lines: int) -> int:
    fitting = TRANSFORMED_BYTES // (products * lines * problem.itemsize * problem.kernel_size[0])
    return min(MOST_TILES, max(FEWEST_TILES, fitting))


def best_algorithm(problem: Problem, machine: Machine) -> tuple[float, Axis, Axis]:
    """The fastest algorithm as predicted, and its time."""
    found = [(algorithm_seconds(problem, high, wide, machine), high, wide) for high, wide in algorithms(problem)]
    return min(found, key=lambda item: item[0])


# -- the kernel -----------------------------------------------------------------------------------------------------------


class Forward:
    """The forward pass: `pack` transforms the weights, `run` convolves with them."""

    def __init__(self, problem: Problem):
        from ._machine import machine_constants

        p = self.problem = problem
        _, self.high, self.wide = best_algorithm(p, machine_constants())
        width = self.width = panel_width(p.dtype)
        panels = p.groups * -(-p.group_out // width)
        g = self._cut()
        products = g.products_h * g.products_w
        count = g.down * g.dilation_h * g.across * g.dilation_w
        planes = np.arange(p.kernel_size[0])[:, None] * p.dilation[0] * count * g.lines
        taps = (planes + np.arange(p.group_in)).astype(np.int32).ravel()
        # Ragged tiles reach beyond the padded input; what they find there is never written.
        borders = tuple(np.pad(source, (0, 2 * span), constant_values=-1)
                        for source, span in zip(p.border_sources(), (g.span_d, g.span_h, g.span_w), strict=True))
        keys = [(axis.outputs, axis.taps, axis.stride) for axis in (self.high, self.wide)]
        to_input, to_output, to_weights = (transform_address(kind, *keys, p.dtype) for kind in (INPUT, OUTPUT, WEIGHTS))
        space = self._space(g, width)
        boxes = p.batch * p.groups * -(-p.output_size[0] // g.box_d) * g.high * -(-p.output_size[2] // g.box_w)
        constants = (np.zeros(width, p.dtype), tile_addresses(p.dtype), g, to_input, to_output, borders, space, taps, taps.size,
                     np.arange(g.box_w + TILE_ROWS) * g.y_point, width, boxes, epilogue_of(p))
        self.kernel = winograd_forward.bind(p.dtype, constants, scratch=sum(space), counters=boxes, parallel=p.flops > SERIAL_FLOPS)
        self.scratch_bytes = self.kernel.scratch_bytes(num_threads())
        pitches = (p.group_out, 1, p.out_channels) if p.channels_last else (p.group_out * p.taps, p.taps, 1)
        self.panels = PanelPacking(Matrices(1, p.groups, p.group_out, p.taps, 0, *pitches), width, p.dtype)
        self.transform = winograd_weights.bind(p.dtype, (to_weights, panels, p.group_in, *p.kernel_size, products, self.wide.products,
                                                         width, g.u_product, p.channels_last))
        self.transformed = panels * products * g.u_product
        self.bias = PaddedBias(p, width)

    def _cut(self) -> Geometry:
        p, high, wide = self.problem, self.high, self.wide
        lanes = lane_count(p.dtype)
        lines = -(-p.group_in // lanes) * lanes
        (out_d, out_h, out_w), (dd, dh, dw), (sd, sh, sw) = p.output_size, p.dilation, p.stride
        products = high.products * wide.products
        wanted = _tiles_of_a_box(p, products, lines)
        down, across = -(-out_h // (high.outputs * dh)), -(-out_w // (wide.outputs * dw))
        boxes_across = max(1, round(across * dh * dw / wanted))
        across = -(-across // boxes_across)
        tiles_down = down
        high_boxes = -(-down // max(1, wanted // (across * dh * dw)))
        down = -(-down // high_boxes)
        box_d = 1
        if boxes_across == 1 and down * high.outputs * dh >= out_h:
            box_d = max(1, min(out_d, wanted // (down * across * dh * dw)))
        tiles = down * dh * across * dw
        spans = ((box_d - 1) * sd + dd * (p.kernel_size[0] - 1) + 1,
                 ((down - 1) * high.outputs * sh + high.samples - 1) * dh + (dh - 1) * sh + 1,
                 ((across - 1) * wide.outputs * sw + wide.samples - 1) * dw + (dw - 1) * sw + 1)
        # An odd number of cache lines apart, the planes of the products fall on different sets.
        v_product = _odd_lines(spans[0] * tiles * lines, lanes)
        m_product = _odd_lines((box_d * tiles + TILE_ROWS) * self.width, lanes)
        x_strides = strides_of(p.in_channels, p.input_size, p.channels_last)
        y_strides = strides_of(p.out_channels, p.output_size, p.channels_last)
        numbers = (p.groups, p.group_in, p.group_out, lines, *p.stride, *p.dilation, p.kernel_size[0], p.padding[2][0], p.input_size[2],
                   p.batch, out_d, out_h, out_w, *x_strides, y_strides[0], y_strides[1], y_strides[4], high.outputs, wide.outputs,
                   high.products, wide.products, high.samples, wide.samples, box_d, down * high.outputs * dh,
                   across * wide.outputs * dw, *spans, across, down, high_boxes, tiles_down, v_product, m_product,
                   _odd_lines(p.kernel_size[0] * p.group_in * self.width, lanes))
        return Geometry(*numbers)

    def _space(self, g: Geometry, width: int) -> Space:
        products = g.products_h * g.products_w
        tiles = g.box_d * g.down * g.dilation_h * g.across * g.dilation_w
        counts = (g.span_d * g.span_h * g.span_w * g.lines, products * g.v_product, products * g.m_product,
                  g.tile_h * g.box_w * width, tiles + TILE_ROWS)
        return Space(*(-(-count // 16) * 16 + 16 for count in counts))

    def pack(self, w: np.ndarray) -> np.ndarray:
        panels = self.panels(w)
        u = operand(self.transformed, self.problem.dtype)
        self.transform(panels, panels, panels, u)
        return u

    def run(self, x: np.ndarray, packed: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> bool:
        return not self.kernel(x, packed, self.bias(bias), out)


def _odd_lines(count: int, lanes: int) -> int:
    return (-(-count // lanes) | 1) * lanes


# -- the backend ----------------------------------------------------------------------------------------------------------

SERIAL_FLOPS = 400_000  # below which one thread is done before a second has started (benchmarks/bench_conv.py, tiny)
PRODUCT_OVERHEAD = 12  # steps of the sum that filling and storing a register tile costs (bench_conv.py, 3x3 layers)
EFFICIENCY = 0.85  # share of the peak in the products (bench_conv.py, 3x3 layers)
TRANSFORM_PASSES = 4  # times a transformed element's bytes pass the second-level cache (bench_conv.py, 3x3_64@56)
WEIGHT_READS = 2  # weights come from the last-level cache, about twice as fast as memory (bench_conv.py, 3x3_512@7)
PACK_PASSES = 2  # times the weights' bytes pass memory, both threads together (bench_conv.py, 3x3 layers)
CALL_SECONDS = 14e-6  # of Python around a run (bench_conv.py, tiny)


def refuses(problem: Problem) -> str | None:
    p = problem
    if np.dtype(p.dtype).kind != "f":
        return f"rounds, and {p.dtype} results are exact"
    if p.accuracy == "strict":
        return "its error exceeds a plain sum's: accuracy='strict' refuses that"
    if p.pass_name == "grad_weight":
        return "has no weight gradient yet"
    if p.pass_name == "grad_input":
        reasons = [refuses(phase.problem) for phase in p.phases() if phase.problem]
        return next((reason for reason in reasons if reason), None)
    if min(p.group_in, p.group_out) < SMALLEST_CHANNELS:
        return f"needs {SMALLEST_CHANNELS} input and output channels a group, not {p.group_in} and {p.group_out}"
    if not algorithms(p):
        return f"has no algorithm for kernel {p.kernel_size[3 - p.ndim:]} with stride {p.stride[3 - p.ndim:]}"
    return None


def seconds(problem: Problem, machine: Machine) -> float:
    if problem.pass_name == "grad_input":
        return phase_seconds(problem, lambda phase: seconds(phase, machine), machine.bandwidth)
    return best_algorithm(problem, machine)[0]


def pack_seconds(problem: Problem, machine: Machine) -> float:
    """Packing into panels, and writing a few times as many transformed weights."""
    w = math.prod(problem.weight_shape) * problem.itemsize
    return CALL_SECONDS + PACK_PASSES * w / machine.bandwidth


def build(problem: Problem) -> Kernel:
    passes: dict[str, Callable[[Problem], Kernel]] = {"forward": Forward, "grad_input": lambda p: GradInputByPhases(p, Forward)}
    return passes[problem.pass_name](problem)


BACKEND = Backend(refuses, seconds, build, pack_seconds, prepare, sums_directly=False)
