"""`winograd` on the CPU: minimal-filtering ("Winograd") convolution by one engine for every algorithm of `_cook_toom`.

A box of output points is cut into tiles of m_h x m_w. Per box:

    pack         strips of the box's input, borders included, a vector of channels at a time: [row][column][channel]
    transform    their tiles' samples:                                  V[panel of channels][product][depth][tile][channel]
    multiply     per product a (tiles x channels) by (channels x panel of outputs) matrix product, `_gemm`'s register tile
    transform    the products back to output points, a vector of output channels at a time, and write them

Taps along the depth axis are summed directly (they are more channels to the product), so 3-D works with 2-D tiles.
Dilation interleaves independent tiles; a stride has polyphase algorithms, or is folded into channels while packing. The
gradient of the input is the forward convolutions of its phases, those of one tap products of matrices (`_pointwise`), that of the
weights the transposed algorithm (`_winograd_gradient`). Which algorithm a problem gets is chosen by predicted time (`_winograd_choice`).

The weights' transform reads the panels that `im2col` uses too; weights that are used once, in a plain call or a gradient of the
input, are transformed where they are multiplied (`_winograd_once`), if that is predicted to be faster.

Tried, and did not pay: folding by de-interleaved rows and register transposes (11x11 stride 4: 0.23 ms, phases copied side by
side 0.20); folding 3x3 stride 2 with many channels (0.52 ms at 128 @56, polyphase 0.37). Fetching the next product's panel by
all tiles of this one pays for weights from memory (512 at 7 x 7: 1.04 ms, .84), and for those from the last-level cache does not.
Fetching the lines of the result before they are written, during the products, costs 3 to 7% (3x3 layers of 64 to 256 channels); huge
pages for scratch change nothing. The input's transform is bound by V's lines, written to the second-level cache (an Intel server: 211
cycles for 16 channels of 6 x 6 samples, 131 where V stays in the first level), whatever their order.

Source: Lavin and Gray, "Fast algorithms for convolutional neural networks" (2016), sections 4 and 5.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..problem import Options, Problem
from . import Backend, Kernel, Machine
from ._bilinear import transform_address
from ._boxes import strides_of
from ._cook_toom import INPUT, OUTPUT, WEIGHTS
from ._gemm import PaddedBias, PanelPacking, epilogue_of, multiply_rows, panel_width, rows_computed, tile_addresses, weight_matrices
from ._jit import inlined, num_threads, outlined
from ._phases import build_grad_input, phase_seconds, phases_refusal
from ._pointwise import PointwiseForward, product_seconds
from ._scratch import operand, used_once
from ._simd import (
    COUNTER_PITCH,
    TILE_ROWS,
    advance,
    as_int32,
    get,
    lane_count,
    own_first,
    parallel_kernel,
    put,
    raise_flag,
    thawed,
    zero_element,
)
from ._weights import JointLayout, WeightLayout, forward_layout
from ._winograd_choice import (
    SERIAL_FLOPS,
    SMALLEST_CHANNELS,
    algorithms,
    best_algorithm,
    best_once,
    fetches_products,
    odd_lines,
    packing_seconds,
    tiles_of_a_box,
    transforms,
)
from ._winograd_gradient import GRADIENT_KINDS, GradWeight, build_grad_weight
from ._winograd_once import ForwardOnce
from ._winograd_packing import Source, input_borders, input_source, tiles_of_a_strip
from ._winograd_strips import SplitGradWeight
from ._winograd_tiles import Tiling, channel_offsets, store_tiles, transform_box
from ._winograd_weights import weight_taps, winograd_weights

MANY_BOXES = 8  # of a thread, which are never far from even shares
# Of a tile: what its transform costs in rows of a product with one panel; of a box: reading the panel (bench_conv.py, 3x3 layers, 11x11s4).
TRANSFORM_ROWS = 0.6
PANEL_ROWS = 4
PHASE_READS = 2  # times gy's bytes pass memory for each phase (bench_conv.py, backward, 3x3s2 of 32 to 128 channels at 112 to 56)


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
    fetches_product: int  # 1 where each product fetches the next one's weights

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
def tile_table(g, t, count, tiles):
    """Offsets of a box's tiles in a product's plane of V; the last is repeated, so that a register tile may run over."""
    for d in range(g.box_d):
        for tile in range(count):
            put(tiles, d * count + tile, np.int32((d * g.stride_d * count + tile) * t.tile))
    for i in range(TILE_ROWS):
        put(tiles, g.box_d * count + i, get(tiles, g.box_d * count - 1))


@inlined
def box_corners(g, t, place):
    """The first (image, depth, row, column) of a box of output points, and the ones behind its last."""
    wide, deep = -(-g.out_w // g.box_w), -(-g.out_d // g.box_d)
    tile_row = t.tile_h * t.dilation_h
    row = place // wide % g.high
    start = (place // (wide * g.high * deep), place // (wide * g.high) % deep * g.box_d, g.tiles_down * row // g.high * tile_row,
             place % wide * g.box_w)
    end = (start[0] + 1, min(start[1] + g.box_d, g.out_d), min(g.tiles_down * (row + 1) // g.high * tile_row, g.out_h),
           min(start[3] + g.box_w, g.out_w))
    return start, end


@parallel_kernel
def winograd_forward(x, u, bias, y, constants, scratch, counters, thread, threads):
    """y = epilogue(convolution of x with the transformed weights u + bias), by (box, group) and panel.

    A thread that helps with another's panels transforms their box again.
    """
    zeros, register_tiles, g, s, t, output_transform, borders, space, taps, ramp, width, boxes, epilogue, shares = thawed(constants)
    per_group = -(-g.group_out // width)
    v = advance(scratch, space.packed)
    sums = advance(v, space.v)
    rows = advance(sums, space.sums)
    tiles = as_int32(advance(rows, space.rows))
    products = g.products_h * t.products_w
    depth = g.kernel_d * g.channels
    current = -1
    count = down = across = 0
    start = end = (0, 0, 0, 0)
    for task in own_first(counters, thread, shares, boxes * per_group):
        box, panel = task // per_group, task % per_group
        group = box % g.groups
        if box != current:
            start, end = box_corners(g, t, box // g.groups)
            down = -(-(end[2] - start[2]) // (t.tile_h * t.dilation_h))
            across = -(-(end[3] - start[3]) // (t.tile_w * t.dilation_w))
            row_tiles = t.dilation_h * across * t.dilation_w
            count = down * row_tiles
            corner = (start[0], start[1] * s.stride_d, start[2] * s.stride_h, start[3] * s.stride_w)
            transform_box(s, t, x, zero_element(x), borders, corner, group, down, across, count * t.tile, row_tiles * t.tile, scratch, v)
            tile_table(g, t, count, tiles)
            current = box
        points = (end[1] - start[1]) * count
        output = group * g.group_out + panel * width
        channels = min(width, g.group_out - panel * width)
        weights = advance(u, (group * per_group + panel) * products * g.u_product)
        for product in range(products):
            multiply_rows(register_tiles, points, advance(v, product * t.product), tiles, taps, depth,
                          advance(weights, product * g.u_product), width, zeros, 0, advance(sums, product * g.m_product), channels,
                          g.u_product if g.fetches_product == 1 else 0)
        for d in range(end[1] - start[1]):
            to = advance(y, start[0] * g.y_image + output * g.y_channel + ((start[1] + d) * g.out_h * g.out_w + start[3]) * g.y_point)
            if not store_tiles(g, t, output_transform, sums, width, advance(bias, (group * per_group + panel) * width), d * count,
                               down, across, start, end, rows, ramp, to, channels, epilogue):
                raise_flag(counters)


class UsedOnce(NamedTuple):
    """Weights as they lie, whose transforms are not worth keeping."""

    w: np.ndarray


class Forward:
    """The forward pass: `pack` transforms the weights, `run` convolves with them."""

    def __init__(self, problem: Problem, layout: WeightLayout | JointLayout | None = None):
        from ._machine import machine_constants

        p = self.problem = problem
        self.seconds, self.algorithm = best_algorithm(p, machine_constants())
        a = self.algorithm
        self.width = panel_width(p.dtype)
        g, s, t = self._cut()
        plane = g.down * p.dilation[1] * g.across * p.dilation[2] * t.tile
        planes = np.arange(p.kernel_size[0])[:, None] * p.dilation[0] * plane
        taps = (planes + channel_offsets(g.channels, t.panel_width, t.panel)[:g.channels]).astype(np.int32).ravel()
        space = self._space(g, s, t)
        boxes = p.batch * p.groups * g.boxes
        constants = (np.zeros(self.width, p.dtype), tile_addresses(p.dtype), g, s, t, transform_address(OUTPUT, *a.keys, p.dtype),
                     input_borders(p, s), space, taps, np.arange(t.tile_h * g.box_w) * g.y_point, self.width, boxes, epilogue_of(p),
                     num_threads())
        self.kernel = winograd_forward.bind(p.dtype, constants, scratch=sum(space), counters=num_threads() * COUNTER_PITCH,
                                            parallel=p.flops > SERIAL_FLOPS)
        self.scratch_bytes = self.kernel.scratch_bytes(num_threads())
        self.bias = PaddedBias(p, self.width)
        self.layout = layout or forward_layout(p)
        self.panels = PanelPacking(weight_matrices(p, self.layout), self.width, p.dtype)
        taken = weight_taps(p, a)
        self.transform = winograd_weights.bind(p.dtype, (taken, g.u_product), scratch=taken.folded * lane_count(p.dtype))
        self.transformed = taken.panels * a.products * g.u_product

    def _cut(self) -> tuple[Geometry, Source, Tiling]:
        p, a = self.problem, self.algorithm
        lanes = lane_count(p.dtype)
        (out_d, out_h, out_w), (dd, dh, dw), sd = p.output_size, p.dilation, p.stride[0]
        wanted = tiles_of_a_box(p, a)
        tiles_down, across = a.tiles(p)
        boxes_across = max(1, round(across * dh * dw / wanted))
        across = -(-across // boxes_across)
        high = self._boxes_down(across * dh * dw, wanted, boxes_across)
        down = -(-tiles_down // high)
        box_d = 1
        if boxes_across == 1 and high == 1:
            box_d = max(1, min(out_d, wanted // (down * across * dh * dw)))
        tiles = down * dh * across * dw
        span_d = (box_d - 1) * sd + dd * (p.kernel_size[0] - 1) + 1
        strip = tiles_of_a_strip(p, a, across)
        s = input_source(p, a, strip, span_d, sd)
        panel = s.lines if fetches_products(p, a) else lanes  # weights that are fetched meanwhile are read in one go
        # An odd number of cache lines apart, the planes of the products fall on different sets.
        product = odd_lines(span_d * tiles * panel, lanes)
        t = Tiling(transform_address(INPUT, *a.keys, p.dtype), a.high.outputs, a.wide.outputs, dh, dw, a.wide.products, product, panel,
                   panel, a.products * product, strip)
        y_image, y_channel, _, _, y_point = strides_of(p.out_channels, p.output_size, p.channels_last)
        g = Geometry(p.groups, p.group_out, a.channels(p), p.kernel_size[0], sd, out_d, out_h, out_w, y_image, y_channel, y_point,
                     a.high.products, box_d, across * a.wide.outputs * dw, down, across, high, tiles_down,
                     odd_lines((box_d * tiles + TILE_ROWS) * self.width, lanes),
                     odd_lines(p.kernel_size[0] * a.channels(p) * self.width, lanes), int(fetches_products(p, a)))
        return g, s, t

    def _boxes_down(self, row_tiles: int, wanted: int, boxes_across: int) -> int:
        """Boxes down an image, by what the busiest thread does: products of whole register tiles, transforms of all boxes it meets."""
        p, threads = self.problem, num_threads()
        tiles_down = self.algorithm.tiles(p)[0]
        panels = -(-p.group_out // self.width)
        others = p.batch * p.groups * boxes_across
        most = -(-tiles_down // max(1, wanted // row_tiles))
        fewest = min(most, -(-tiles_down // max(1, (wanted + wanted // 4) // row_tiles)))
        if most * others > MANY_BOXES * threads:
            return most

        def busiest(high: int) -> float:
            rows = [(tiles_down * (i + 1) // high - tiles_down * i // high) * row_tiles for i in range(high)]
            products = [rows_computed(tiles) + PANEL_ROWS for tiles in rows]
            tasks = high * others * panels
            shares = [range(tasks * thread // threads, tasks * (thread + 1) // threads) for thread in range(threads)]
            return max(sum(products[task // panels % high] for task in share)
                       + TRANSFORM_ROWS * sum(rows[box % high] for box in {task // panels for task in share}) for share in shares)

        even = threads // math.gcd(others, threads)  # as many boxes for each thread
        wider = -(-most // even) * even
        return min((*range(fewest, most + 1), wider if wider <= tiles_down else most), key=busiest)

    def _space(self, g: Geometry, s: Source, t: Tiling) -> Space:
        products = self.algorithm.products
        tiles = g.box_d * g.down * t.dilation_h * g.across * t.dilation_w
        counts = (s.size, s.lines // t.panel_width * t.panel, products * g.m_product, t.tile_h * g.box_w * self.width, tiles + TILE_ROWS)
        return Space(*(-(-count // 16) * 16 + 16 for count in counts))

    @functools.cached_property
    def once(self) -> ForwardOnce | None:
        """What runs with weights that are used once, if that is faster."""
        from ._machine import machine_constants

        machine = machine_constants()
        seconds, algorithm = best_once(self.problem, machine)
        if seconds > self.seconds + packing_seconds(self.problem, machine):
            return None
        return ForwardOnce(self.problem, algorithm, self.layout)

    def pack(self, w: np.ndarray) -> np.ndarray | UsedOnce:
        if used_once() and self.once is not None:
            return UsedOnce(w)
        panels = self.panels(w)
        u = operand(self.transformed, self.problem.dtype)
        self.transform(panels, panels, panels, u)
        return u

    def run(self, x: np.ndarray, packed: np.ndarray | UsedOnce, bias: np.ndarray | None, out: np.ndarray) -> bool:
        if isinstance(packed, UsedOnce):
            assert self.once is not None
            return self.once.run(x, packed.w, bias, out)
        return not self.kernel(x, packed, self.bias(bias), out)


# -- the backend ----------------------------------------------------------------------------------------------------------


def prepare(dtype: str) -> None:
    """Compile the transforms of every algorithm, and the kernels that are chosen for some sizes only."""
    if np.dtype(dtype).kind == "f":
        forward, gradient = (Problem.create(pass_name, 2, (1, 16, 8, 8), (16, 16, 3, 3), dtype, Options())
                             for pass_name in ("forward", "grad_weight"))
        ForwardOnce(forward, algorithms(forward)[0], forward_layout(forward))
        for engine in (GradWeight, SplitGradWeight):
            engine(gradient, algorithms(gradient)[0])
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
        if all(math.prod(phase.problem.kernel_size) == 1 for phase in p.phases() if phase.problem):
            return f"has no algorithm for kernel {p.kernel_size[3 - p.ndim:]} with stride {p.stride[3 - p.ndim:]}"
        return phases_refusal(p, phase_refusal)
    if p.group_out < SMALLEST_CHANNELS or p.group_in * math.prod(p.stride) < SMALLEST_CHANNELS:
        return f"needs {SMALLEST_CHANNELS} input and output channels a group, not {p.group_in} and {p.group_out}"
    if not algorithms(p):
        return f"has no algorithm for kernel {p.kernel_size[3 - p.ndim:]} with stride {p.stride[3 - p.ndim:]}"
    return None


def is_product(problem: Problem) -> bool:
    """Whether a phase of a strided gradient is a single tap, for which no algorithm saves multiplications."""
    return math.prod(problem.kernel_size) == 1 and PointwiseForward.takes(problem)


def phase_refusal(problem: Problem) -> str | None:
    """Why a phase of a gradient of the input cannot be computed here."""
    return None if is_product(problem) else refuses(problem)


def seconds(problem: Problem, machine: Machine) -> float:
    p = problem
    if p.pass_name == "grad_input":
        return phase_seconds(p, lambda phase: phase_cost(p, phase, machine), machine.bandwidth, phase_refusal, exact=False)
    if is_product(p):
        return machine.region_seconds + (product_seconds(p, machine) + p.bytes / machine.cache_bandwidth) / machine.threads
    return best_algorithm(p, machine)[0]


def phase_cost(problem: Problem, phase: Problem, machine: Machine) -> float:
    """Time of one of the convolutions that make a gradient of the input: after another's, it finds gy in no near cache."""
    p = problem
    again = PHASE_READS * math.prod(p.output_shape) * p.itemsize / (machine.bandwidth * machine.threads) if math.prod(p.stride) > 1 else 0.0
    return seconds(phase, machine) + again


def pack_seconds(problem: Problem, machine: Machine) -> float:
    """What a plain call takes longer than a plan's: weights packed and transformed first, or as they are used."""

    def plain(p: Problem) -> float:
        if is_product(p):
            return seconds(p, machine)
        return min(best_algorithm(p, machine)[0] + packing_seconds(p, machine), best_once(p, machine)[0])

    def plain_phase(phase: Problem) -> float:
        return plain(phase) + phase_cost(problem, phase, machine) - seconds(phase, machine)

    p = problem
    if p.pass_name == "grad_weight":
        return 0.0
    if p.pass_name == "forward":
        return plain(p) - seconds(p, machine)
    # All phases but one read lines of weights for a few of their taps.
    reads = (math.prod(p.stride) - 1) * math.prod(p.weight_shape) * p.itemsize / (machine.bandwidth * machine.threads)
    return phase_seconds(p, plain_phase, machine.bandwidth, phase_refusal, exact=False) - seconds(p, machine) + reads


def build(problem: Problem) -> Kernel:
    from ._machine import machine_constants

    def phase(problem: Problem, layout: WeightLayout | JointLayout | None = None) -> Kernel:
        if is_product(problem) and isinstance(layout, WeightLayout):
            return PointwiseForward(problem, layout)
        return Forward(problem, layout)

    def grad_input(problem: Problem) -> Kernel:
        machine = machine_constants()
        return build_grad_input(problem, phase, lambda part: phase_cost(problem, part, machine), phase_refusal, exact=False)

    passes: dict[str, Callable[[Problem], Kernel]] = {"forward": Forward, "grad_weight": build_grad_weight, "grad_input": grad_input}
    return passes[problem.pass_name](problem)


BACKEND = Backend(refuses, seconds, build, pack_seconds, prepare, sums_directly=False)
