"""`im2col` on the CPU: convolution as an implicit matrix product; the image's im2col matrix is never made.

A box of output points (`_boxes`) is multiplied with one panel of output channels after the other (`_gemm`). The lanes
of a vector are output channels, and image elements are broadcast from wherever they lie, so no stride, dilation, width
or border wastes lanes; few output channels per group do.

    forward       rows = output points    k = taps             columns = output channels
    grad_weight   rows = taps             k = output points    columns = output channels (`_im2col_gradient`)
    grad_input    the forward convolutions of its phases (`Problem.phases`)

Source of the method: Chellapilla, Puri, Simard, "High performance convolutional neural networks for document
processing" (2006), section 3; the implicit form and the register tile: Goto and van de Geijn, "Anatomy of
high-performance matrix multiplication" (2008), sections 4 and 6.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ..problem import Problem
from . import Backend, Kernel, Machine, _pointwise
from ._boxes import box_end, box_start, box_tables, cut, input_offset, make_space, pack_box, space_of, tap_offsets
from ._gemm import (
    PaddedBias,
    PanelPacking,
    epilogue_of,
    multiply_tile,
    panel_width,
    store_points,
    tile_addresses,
    weight_matrices,
)
from ._im2col_gradient import SERIAL_FLOPS, GradWeight, PointwiseGradWeight
from ._jit import num_threads
from ._phases import build_grad_input, phase_seconds
from ._pointwise import PointwiseForward, product_seconds
from ._simd import (
    TILE_COLUMNS,
    TILE_ROWS,
    TILE_SIZES,
    advance,
    get,
    next_task,
    parallel_kernel,
    prefetch_write,
    thawed,
    zero_element,
)
from ._weights import JointLayout, WeightLayout, forward_layout

STORED_ROWS = 8 * TILE_ROWS  # output points written at once: whole cache lines, from sums in the first-level cache
TILE_OVERHEAD = 18  # steps of k that filling and storing a tile costs (bench_conv.py, 1x1 against 3x3)
ALIASED_OVERHEAD = 25  # the same, further, where planes of y are a multiple of 4 KiB apart (bench_conv.py, 224 against 222)
EFFICIENCY = 0.88  # share of the peak in the main loop (bench_conv.py, 3x3 layers)
PACK_SPEED = 1.4  # times the bandwidth at which panels are written, both threads together (bench_conv.py, 3x3 layers)
CALL_SECONDS = 1.5e-6  # of Python around a run (bench_conv.py, tiny)
PANEL_BYTES = 512 * 1024  # of packed weights per block of the sum: half a 1 MiB L2; smaller blocks cost up to 12 %


@parallel_kernel
def im2col_forward(x, w, bias, y, constants, scratch, counters, thread, threads):
    """y = epilogue(convolution of x with the packed w + bias), by box and panel.

    A thread starts with boxes of its own and takes their panels one by one; done with them, it helps with the others'
    panels, at the price of packing such a box again.
    """
    tiles, g, taps, depth, borders, space, k_block, width, boxes, epilogue = thawed(constants)
    per_group = -(-g.group_out // width)
    panels = g.groups * per_group
    packed, sums, x_offsets, y_offsets = space_of(space, scratch)
    current = -1
    points = 0
    for i in range(boxes):
        box = (boxes * thread // threads + i) % boxes
        start = box_start(g, box)
        source = packed if g.in_place == 0 else advance(x, input_offset(g, start[0], start[1], start[2], start[3]))
        while True:
            panel = next_task(advance(counters, box))
            if panel >= panels:
                break
            if box != current:
                end = box_end(g, start[0], start[1], start[2], start[3])
                points = box_tables(g, start, end, x_offsets, y_offsets, TILE_ROWS)
                if g.in_place == 0:
                    pack_box(g, x, zero_element(x), borders, start, end, 0, g.groups * g.group_in, packed)
                current = box
            group = panel // per_group
            channel = (panel - group * per_group) * width
            count = min(width, g.group_out - channel)
            result = advance(y, (group * g.group_out + channel) * g.y_channel)
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
                        advance(taps, k), k_end - k, advance(w, (panel * depth + k) * width), width,
                        advance(bias, panel * width) if k == 0 else own, 0 if k == 0 else width, own, count)
                    if k_end == depth and (row - stored >= STORED_ROWS or row == points):
                        store_points(advance(sums, 0 if k_block >= depth else stored * width), width, row - stored, result,
                                     advance(y_offsets, stored), g.y_channel, count, epilogue)
                        stored = row


class Forward:
    """The forward pass: `pack` makes panels of the weights, `run` convolves with them."""

    def __init__(self, problem: Problem, layout: WeightLayout | JointLayout | None = None):
        p = self.problem = problem
        width = panel_width(p.dtype)
        panels = p.groups * -(-p.group_out // width)
        threads = num_threads()
        g = cut(p, threads, tasks_per_box=panels)
        blocks = -(-p.taps * width * p.itemsize // PANEL_BYTES)
        points = g.points + TILE_ROWS
        space = make_space(g.packed, points * width, points, p.dtype)
        constants = (tile_addresses(p.dtype), g, tap_offsets(p, g), p.taps, p.border_sources(), space, -(-p.taps // blocks), width,
                     g.boxes, epilogue_of(p))
        self.kernel = im2col_forward.bind(p.dtype, constants, scratch=space.size, counters=g.boxes, parallel=p.flops > SERIAL_FLOPS)
        self.scratch_bytes = self.kernel.scratch_bytes(threads)
        self.pack = PanelPacking(weight_matrices(p, layout or forward_layout(p)), width, p.dtype)
        self.bias = PaddedBias(p, width)

    def run(self, x: np.ndarray, packed: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> None:
        self.kernel(x, packed, self.bias(bias), out)


# -- the backend ----------------------------------------------------------------------------------------------------------


def refuses(problem: Problem) -> str | None:
    return None


def seconds(problem: Problem, machine: Machine) -> float:
    """Time of the register tiles, columns beyond the channels included, plus what enters and leaves them."""
    if problem.pass_name == "grad_input":
        return phase_seconds(problem, lambda phase: seconds(phase, machine), machine.bandwidth)
    multiply = tile_seconds(problem, machine)
    if problem.pass_name == "forward" and PointwiseForward.takes(problem):
        multiply = min(multiply, product_seconds(problem, machine))
    moved = 2 * problem.bytes / machine.cache_bandwidth
    if problem.flops <= SERIAL_FLOPS:
        return CALL_SECONDS + multiply + moved
    return CALL_SECONDS + machine.region_seconds + (multiply + moved) / machine.threads


def is_product(problem: Problem, machine: Machine) -> bool:
    """Whether a forward convolution is faster as a product that is written as it is."""
    return PointwiseForward.takes(problem) and product_seconds(problem, machine) < tile_seconds(problem, machine)


def tile_seconds(problem: Problem, machine: Machine) -> float:
    """Time of the tiles whose lanes are output channels, on one thread."""
    lanes = panel_width(problem.dtype) // TILE_COLUMNS
    columns = problem.groups * -(-problem.group_out // lanes) * lanes
    points = problem.batch * math.prod(problem.output_size)
    if problem.pass_name == "forward":
        rows, depth = points, problem.taps
    else:
        rows, depth = -(-problem.taps // TILE_SIZES[-2]) * TILE_SIZES[-2], points
    if problem.pass_name == "forward" and not problem.channels_last and math.prod(problem.output_size) * problem.itemsize % 4096 == 0:
        depth += ALIASED_OVERHEAD
    return 2 * rows * columns * (depth + TILE_OVERHEAD) / (EFFICIENCY * machine.flops(problem.dtype))


def pack_seconds(problem: Problem, machine: Machine) -> float:
    """Both sides of the copy into panels, whose missing columns are written too."""
    if problem.pass_name == "forward" and is_product(problem, machine):
        return 0.0
    second = math.prod(problem.shapes[1]) * problem.itemsize
    panels = second // max(1, problem.out_channels) * problem.groups * -(-problem.group_out // panel_width(problem.dtype))
    written = panels * panel_width(problem.dtype)
    return CALL_SECONDS / 2 + second / machine.cache_bandwidth + written / (PACK_SPEED * machine.bandwidth)


def build(problem: Problem) -> Kernel:
    from ._machine import machine_constants

    machine = machine_constants()

    def forward(problem: Problem, layout: WeightLayout | JointLayout | None = None) -> Kernel:
        layout = layout or forward_layout(problem)
        if isinstance(layout, WeightLayout) and is_product(problem, machine):
            return PointwiseForward(problem, layout)
        return Forward(problem, layout)

    passes: dict[str, Callable[[Problem], Kernel]] = {
        "forward": forward, "grad_input": lambda p: build_grad_input(p, forward, lambda phase: seconds(phase, machine)),
        "grad_weight": lambda p: PointwiseGradWeight(p) if PointwiseGradWeight.takes(p) else GradWeight(p)}
    return passes[problem.pass_name](problem)


def prepare(dtype: str) -> None:
    """Compile the tiles that the kernels call through their addresses."""
    tile_addresses(dtype)
    for rows, columns in _pointwise.TILES:
        _pointwise.tile_address(rows, columns, dtype)


BACKEND = Backend(refuses, seconds, build, pack_seconds, prepare)
