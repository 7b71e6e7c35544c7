"""`winograd` on the CPU: minimal-filtering ("Winograd") convolution by one engine for every algorithm of `_bilinear`.

A box of output points is cut into tiles of m_h x m_w. Per box:

    pack         the box's input, borders included, with channels last: [depth][row][column][channel]
    transform    each tile's samples, a vector of channels at a time:   V[product][depth][tile][channel]
    multiply     per product a (tiles x channels) by (channels x panel of outputs) matrix product, `_gemm`'s register tile
    transform    the products back to output points, a vector of output channels at a time, and write them

Taps along the depth axis are summed directly (they are more channels to the product), so 3-D works with 2-D tiles.
Dilation interleaves independent tiles; a stride has polyphase algorithms, or is folded into channels while packing. The
gradient of the input is the forward convolutions of its phases, that of the weights the transposed algorithm
(`_winograd_gradient`). Which algorithm a problem gets is chosen by predicted time (`_winograd_choice`).

The weights' transform reads the panels that `im2col` uses too.

Tried, and did not pay: folding by de-interleaved rows and register transposes (11x11 stride 4: 0.23 ms, phases copied side by
side 0.20); folding 3x3 stride 2 with many channels (0.52 ms at 128 @56, polyphase 0.37).

Source: Lavin and Gray, "Fast algorithms for convolutional neural networks" (2016), sections 4 and 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..problem import Problem
from . import Backend, Kernel, Machine
from ._bilinear import INPUT, OUTPUT, WEIGHTS, call_transform, transform_address
from ._boxes import copy_run, fill_run, strides_of
from ._gemm import PaddedBias, PanelPacking, epilogue_of, multiply_tile, panel_width, store_points, tile_addresses, weight_matrices
from ._jit import num_threads, outlined
from ._phases import build_grad_input, phase_seconds, phases_refusal
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
    zero,
    zero_element,
)
from ._weights import JointLayout, WeightLayout, forward_layout
from ._winograd_choice import (
    CALL_SECONDS,
    PACK_PASSES,
    SERIAL_FLOPS,
    SMALLEST_CHANNELS,
    algorithms,
    best_algorithm,
    tiles_of_a_box,
    transforms,
)
from ._winograd_gradient import GRADIENT_KINDS, GradWeight, odd_lines
from ._winograd_tiles import Source, Tiling, input_borders, input_source, input_spans, pack_tiles, transform_tiles


class Geometry(NamedTuple):
    """A forward convolution cut into boxes of tiles; integers only, as the kernels take it."""

    groups: int
    group_out: int
    channels: int  # of a group, after folding
    kernel_d: int
    stride_d: int
    out_d: int
    out_h: int
    out_w: int
    y_image: int
    y_channel: int
    y_point: int
    products_h: int
    box_d: int  # extents of a box in output points, whole tiles but at the image's end
    box_w: int
    down: int  # tiles of a full box
    across: int
    high: int  # boxes down a column, which share its tiles evenly
    tiles_down: int
    m_product: int  # pitch of a product's plane of sums
    u_product: int  # and of its transformed weights

    @property
    def boxes(self) -> int:
        """Boxes of an image and group."""
        return -(-self.out_d // self.box_d) * self.high * -(-self.out_w // self.box_w)


class Space(NamedTuple):
    """Sizes, in elements of the dtype, of what a thread keeps in scratch; each part starts at a cache line."""

    packed: int  # the box's input, channels last
    v: int  # its transformed tiles
    sums: int  # their products with a panel
    rows: int  # finished rows of output points, a panel wide
    tiles: int  # offset of each tile in a product's plane of V


@outlined
def tile_table(g, s, t, count, tiles):
    """Offsets of a box's tiles in a product's plane of V; the last is repeated, so that a register tile may run over."""
    for d in range(g.box_d):
        for tile in range(count):
            put(tiles, d * count + tile, np.int32((d * g.stride_d * count + tile) * s.lines))
    for i in range(TILE_ROWS):
        put(tiles, g.box_d * count + i, get(tiles, g.box_d * count - 1))


@outlined
def store_tiles(g, t, transform, sums, width, bias, first, down, across, start, end, rows, ramp, y, channels, epilogue):
    """Transform a plane of products back and write its output rows; `first` is the plane's first tile in `sums`.

    Returns whether all results are finite.
    """
    lanes = lanes_of(sums)
    nothing = zero(sums)
    check = nothing
    pitch = across * t.tile_w * t.dilation_w * width
    tile = first
    for i in range(down):
        for f in range(t.dilation_h):
            for j in range(across):
                for e in range(t.dilation_w):
                    to = advance(rows, (j * t.tile_w * t.dilation_w + e) * width)
                    for c in range(0, channels, lanes):
                        call_transform(transform, advance(sums, tile * width + c), t.products_w * g.m_product, g.m_product,
                                       advance(to, c), pitch, t.dilation_w * width, advance(bias, c))
                    tile += 1
            for k in range(t.tile_h):
                h = start[2] + (i * t.tile_h + k) * t.dilation_h + f
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
    zeros, register_tiles, g, s, t, output_transform, borders, space, taps, ramp, width, boxes, epilogue = thawed(constants)
    per_group = -(-g.group_out // width)
    wide, high, deep = -(-g.out_w // g.box_w), g.high, -(-g.out_d // g.box_d)
    tile_row = t.tile_h * t.dilation_h
    v = advance(scratch, space.packed)
    sums = advance(v, space.v)
    rows = advance(sums, space.sums)
    tiles = as_int32(advance(rows, space.rows))
    products = g.products_h * t.products_w
    depth = g.kernel_d * g.channels
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
        across = -(-(end[3] - start[3]) // (t.tile_w * t.dilation_w))
        while True:
            panel = next_task(advance(counters, box))
            if panel >= per_group:
                break
            if box != current:
                corner = (start[0], start[1] * s.stride_d, start[2] * s.stride_h, start[3] * s.stride_w)
                row_tiles = t.dilation_h * across * t.dilation_w
                count = down * row_tiles
                pack_tiles(s, x, zero_element(x), borders, corner, group, scratch)
                transform_tiles(s, t, scratch, down, across, count * s.lines, row_tiles * s.lines, v)
                tile_table(g, s, t, count, tiles)
                current = box
            points = (end[1] - start[1]) * count
            output = group * g.group_out + panel * width
            channels = min(width, g.group_out - panel * width)
            weights = advance(u, (group * per_group + panel) * products * g.u_product)
            for product in range(products):
                row = 0
                while row < points:
                    row += multiply_tile(register_tiles, points - row, advance(v, product * t.product), advance(tiles, row),
                                         taps, depth, advance(weights, product * g.u_product), width, zeros, 0,
                                         advance(sums, product * g.m_product + row * width), channels)
            for d in range(end[1] - start[1]):
                to = advance(y, start[0] * g.y_image + output * g.y_channel + ((start[1] + d) * g.out_h * g.out_w + start[3]) * g.y_point)
                if not store_tiles(g, t, output_transform, sums, width, advance(bias, (group * per_group + panel) * width), d * count,
                                   down, across, start, end, rows, ramp, to, channels, epilogue):
                    raise_flag(counters)


class WeightTaps(NamedTuple):
    """How panels of weights are transformed."""

    transform: int  # address
    panels: int
    channels: int  # of a group, before folding
    kernel_d: int
    kernel_h: int
    kernel_w: int
    fold_h: int
    fold_w: int
    height: int  # taps of the folded kernels times the folds
    width: int
    products: int
    products_w: int
    panel: int  # output channels of a panel
    product: int  # pitch
    channels_last: bool


@parallel_kernel
def winograd_weights(panels, unused, bias, u, constants, scratch, counters, thread, threads):
    """u[panel][product][depth tap][folded channel][width] from panels of weights, by (panel, depth tap)."""
    (t,) = thawed(constants)
    planes = t.kernel_h * t.kernel_w
    lanes = lanes_of(panels)
    folds = t.fold_h * t.fold_w
    fill_run(scratch, t.height * t.width * lanes, zero_element(panels))
    while True:
        task = next_task(counters)
        if task >= t.panels * t.kernel_d:
            break
        panel, d = task // t.kernel_d, task % t.kernel_d
        source = advance(panels, panel * t.kernel_d * planes * t.channels * t.panel)
        target = advance(u, panel * t.products * t.product + d * t.channels * folds * t.panel)
        for c in range(t.channels):
            if t.channels_last:
                at, column = advance(source, (d * planes * t.channels + c) * t.panel), t.channels * t.panel
            else:
                at, column = advance(source, (c * t.kernel_d + d) * planes * t.panel), t.panel
            for lane in range(0, t.panel, lanes):
                if folds > 1:  # a phase's last taps may lie beyond the kernel, where scratch is zero
                    for h in range(t.kernel_h):
                        for w in range(t.kernel_w):
                            copy_run(advance(scratch, (h * t.width + w) * lanes), advance(at, (h * t.kernel_w + w) * column + lane), lanes)
                for fold in range(folds):
                    to = advance(target, (c * folds + fold) * t.panel + lane)
                    if folds > 1:
                        phase = advance(scratch, (fold // t.fold_w * t.width + fold % t.fold_w) * lanes)
                        call_transform(t.transform, phase, t.fold_h * t.width * lanes, t.fold_w * lanes, to,
                                       t.products_w * t.product, t.product, at)
                    else:
                        call_transform(t.transform, advance(at, lane), t.kernel_w * column, column, to,
                                       t.products_w * t.product, t.product, at)


class Forward:
    """The forward pass: `pack` transforms the weights, `run` convolves with them."""

    def __init__(self, problem: Problem, layout: WeightLayout | JointLayout | None = None):
        from ._machine import machine_constants

        p = self.problem = problem
        _, self.algorithm = best_algorithm(p, machine_constants())
        a = self.algorithm
        self.width = panel_width(p.dtype)
        g, s, t = self._cut()
        plane = g.down * p.dilation[1] * g.across * p.dilation[2] * s.lines
        planes = np.arange(p.kernel_size[0])[:, None] * p.dilation[0] * plane
        taps = (planes + np.arange(g.channels)).astype(np.int32).ravel()
        space = self._space(g, s, t)
        boxes = p.batch * p.groups * g.boxes
        constants = (np.zeros(self.width, p.dtype), tile_addresses(p.dtype), g, s, t, transform_address(OUTPUT, *a.keys, p.dtype),
                     input_borders(p, s), space, taps, np.arange(g.box_w + TILE_ROWS) * g.y_point, self.width, boxes, epilogue_of(p))
        self.kernel = winograd_forward.bind(p.dtype, constants, scratch=sum(space), counters=boxes, parallel=p.flops > SERIAL_FLOPS)
        self.scratch_bytes = self.kernel.scratch_bytes(num_threads())
        self.bias = PaddedBias(p, self.width)
        self.panels = PanelPacking(weight_matrices(p, layout or forward_layout(p)), self.width, p.dtype)
        self._plan_weights(g.u_product)

    def _cut(self) -> tuple[Geometry, Source, Tiling]:
        p, a = self.problem, self.algorithm
        lanes = lane_count(p.dtype)
        (out_d, out_h, out_w), (dd, dh, dw), sd = p.output_size, p.dilation, p.stride[0]
        wanted = tiles_of_a_box(p, a)
        tiles_down, across = a.tiles(p)
        boxes_across = max(1, round(across * dh * dw / wanted))
        across = -(-across // boxes_across)
        high = -(-tiles_down // max(1, wanted // (across * dh * dw)))
        down = -(-tiles_down // high)
        box_d = 1
        if boxes_across == 1 and high == 1:
            box_d = max(1, min(out_d, wanted // (down * across * dh * dw)))
        tiles = down * dh * across * dw
        span_d = (box_d - 1) * sd + dd * (p.kernel_size[0] - 1) + 1
        s = input_source(p, a, (span_d, *input_spans(p, a, down, across)), sd)
        # An odd number of cache lines apart, the planes of the products fall on different sets.
        product = odd_lines(span_d * tiles * s.lines, lanes)
        t = Tiling(transform_address(INPUT, *a.keys, p.dtype), a.high.outputs, a.wide.outputs, dh, dw, a.wide.products, product, s.lines,
                   s.lines, 0)
        y_image, y_channel, _, _, y_point = strides_of(p.out_channels, p.output_size, p.channels_last)
        g = Geometry(p.groups, p.group_out, a.channels(p), p.kernel_size[0], sd, out_d, out_h, out_w, y_image, y_channel, y_point,
                     a.high.products, box_d, across * a.wide.outputs * dw, down, across, high, tiles_down,
                     odd_lines((box_d * tiles + TILE_ROWS) * self.width, lanes),
                     odd_lines(p.kernel_size[0] * a.channels(p) * self.width, lanes))
        return g, s, t

    def _space(self, g: Geometry, s: Source, t: Tiling) -> Space:
        products = self.algorithm.products
        tiles = g.box_d * g.down * t.dilation_h * g.across * t.dilation_w
        counts = (s.size, products * t.product, products * g.m_product, t.tile_h * g.box_w * self.width, tiles + TILE_ROWS)
        return Space(*(-(-count // 16) * 16 + 16 for count in counts))

    def _plan_weights(self, u_product: int) -> None:
        p, a = self.problem, self.algorithm
        panels = p.groups * -(-p.group_out // self.width)
        kernel_d, kernel_h, kernel_w = p.kernel_size
        taps = WeightTaps(
            transform_address(WEIGHTS, *a.keys, p.dtype), panels, p.group_in, kernel_d, kernel_h, kernel_w, a.fold_h, a.fold_w,
            a.high.taps * a.fold_h, a.wide.taps * a.fold_w, a.products, a.wide.products, self.width, u_product, p.channels_last)
        self.transform = winograd_weights.bind(p.dtype, (taps,), scratch=taps.height * taps.width * lane_count(p.dtype))
        self.transformed = panels * a.products * u_product

    def pack(self, w: np.ndarray) -> np.ndarray:
        panels = self.panels(w)
        u = operand(self.transformed, self.problem.dtype)
        self.transform(panels, panels, panels, u)
        return u

    def run(self, x: np.ndarray, packed: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> bool:
        return not self.kernel(x, packed, self.bias(bias), out)


# -- the backend ----------------------------------------------------------------------------------------------------------


def prepare(dtype: str) -> None:
    """Compile the transforms of every algorithm."""
    if np.dtype(dtype).kind == "f":
        for high, wide in transforms():
            for kind in (INPUT, OUTPUT, WEIGHTS, *GRADIENT_KINDS):
                transform_address(kind, high, wide, dtype)


def refuses(problem: Problem) -> str | None:
    p = problem
    if np.dtype(p.dtype).kind != "f":
        return f"rounds, and {p.dtype} results are exact"
    if p.accuracy == "strict":
        return "its error exceeds a plain sum's: accuracy='strict' refuses that"
    if p.pass_name == "grad_input":
        return phases_refusal(p, refuses)
    if p.group_out < SMALLEST_CHANNELS or p.group_in * math.prod(p.stride) < SMALLEST_CHANNELS:
        return f"needs {SMALLEST_CHANNELS} input and output channels a group, not {p.group_in} and {p.group_out}"
    if not algorithms(p):
        return f"has no algorithm for kernel {p.kernel_size[3 - p.ndim:]} with stride {p.stride[3 - p.ndim:]}"
    return None


def seconds(problem: Problem, machine: Machine) -> float:
    if problem.pass_name == "grad_input":
        return phase_seconds(problem, lambda phase: seconds(phase, machine), machine.bandwidth, refuses, exact=False)
    return best_algorithm(problem, machine)[0]


def pack_seconds(problem: Problem, machine: Machine) -> float:
    """Packing into panels, and writing a few times as many transformed weights."""
    if problem.pass_name == "grad_weight":
        return 0.0
    w = math.prod(problem.weight_shape) * problem.itemsize
    return CALL_SECONDS + PACK_PASSES * w / machine.bandwidth


def build(problem: Problem) -> Kernel:
    from ._machine import machine_constants

    passes: dict[str, Callable[[Problem], Kernel]] = {
        "forward": Forward, "grad_weight": GradWeight,
        "grad_input": lambda p: build_grad_input(p, Forward, lambda phase: seconds(phase, machine_constants()), refuses, exact=False)}
    return passes[problem.pass_name](problem)


BACKEND = Backend(refuses, seconds, build, pack_seconds, prepare, sums_directly=False)
