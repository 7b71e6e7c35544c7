"""`im2col` on the CPU: convolution as an implicit matrix product; the image's im2col matrix is never made.

A box of output points (`_boxes`) is multiplied with one panel of output channels after the other (`_gemm`). The lanes
of a vector are output channels, and image elements are broadcast from wherever they lie, so no stride, dilation, width
or border wastes lanes; few output channels per group do.

    forward       rows = output points    k = taps             columns = output channels, or
                  rows = output channels  k = taps             columns = output points (`_forward_rows`)
    grad_weight   rows = taps             k = output points    columns = output channels (`_im2col_gradient`), or
                  rows = output channels  k = output points    columns = taps (`_gradient_rows`)
    grad_input    the forward convolutions of its phases (`Problem.phases`), or
                  rows = points of gy      k = output channels     columns = taps (`_col2im`)

Source of the method: Chellapilla, Puri, Simard, "High performance convolutional neural networks for document
processing" (2006), section 3; the implicit form and the register tile: Goto and van de Geijn, "Anatomy of
high-performance matrix multiplication" (2008), sections 4 and 6.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..problem import Options, Problem
from . import Backend, Kernel, _pointwise
from ._boxes import box_end, box_start, box_tables, input_offset, make_space, pack_box, space_of, tap_offsets
from ._col2im import Col2im
from ._forward_rows import ForwardRows
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
from ._gradient_rows import GradientRows
from ._im2col_choice import (
    SERIAL_FLOPS,
    forward_boxes,
    is_forward_rows,
    is_product,
    is_rows,
    is_turned,
    pack_seconds,
    phase_forward_seconds,
    runs_unpacked,
    seconds,
    takes_col2im,
)
from ._im2col_gradient import GradWeight, PointwiseGradWeight
from ._jit import num_threads
from ._phases import build_grad_input
from ._pointwise import PointwiseForward
from ._scratch import used_once
from ._simd import (
    COUNTER_PITCH,
    TILE_ROWS,
    advance,
    get,
    own_first,
    parallel_kernel,
    prefetch_write,
    thawed,
    zero_element,
)
from ._weights import JointLayout, WeightLayout, forward_layout

STORED_ROWS = 8 * TILE_ROWS  # output points written at once: whole cache lines, from sums in the first-level cache
PANEL_BYTES = 512 * 1024  # of packed weights per block of the sum: half a 1 MiB L2; smaller blocks cost up to 12 %


@parallel_kernel
def im2col_forward(x, w, bias, y, constants, scratch, counters, thread, threads):
    """y = epilogue(convolution of x with the packed w + bias), by box and panel.

    A thread that helps with another's panels packs their box again.
    """
    tiles, g, taps, depth, borders, space, k_block, width, boxes, epilogue, shares = thawed(constants)
    per_group = -(-g.group_out // width)
    panels = g.groups * per_group
    packed, sums, x_offsets, y_offsets = space_of(space, scratch)
    source = packed
    current = -1
    points = 0
    for task in own_first(counters, thread, shares, boxes * panels):
        box, panel = task // panels, task % panels
        if box != current:
            start = box_start(g, box)
            end = box_end(g, start[0], start[1], start[2], start[3])
            points = box_tables(g, start, end, x_offsets, y_offsets, TILE_ROWS)
            if g.in_place == 0:
                pack_box(g, x, zero_element(x), borders, start, end, 0, g.groups * g.group_in, packed)
            else:
                source = advance(x, input_offset(g, start[0], start[1], start[2], start[3]))
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


class Unpacked(NamedTuple):
    """Weights as they lie."""

    w: np.ndarray


class Forward:
    """The forward pass: `pack` makes panels of the weights, `run` convolves with them, or with weights that are used once, by `once`."""

    def __init__(self, problem: Problem, layout: WeightLayout | JointLayout | None = None, once: ForwardRows | None = None):
        p = self.problem = problem
        self.once = once
        width = panel_width(p.dtype)
        threads = num_threads()
        g = forward_boxes(p, threads)
        blocks = -(-p.taps * width * p.itemsize // PANEL_BYTES)
        points = g.points + TILE_ROWS
        space = make_space(g.packed, points * width, points, p.dtype)
        constants = (tile_addresses(p.dtype), g, tap_offsets(p, g), p.taps, p.border_sources(), space, -(-p.taps // blocks), width,
                     g.boxes, epilogue_of(p), threads)
        self.kernel = im2col_forward.bind(p.dtype, constants, scratch=space.size, counters=threads * COUNTER_PITCH,
                                          parallel=p.flops > SERIAL_FLOPS)
        self.scratch_bytes = self.kernel.scratch_bytes(threads)
        self.panels = PanelPacking(weight_matrices(p, layout or forward_layout(p)), width, p.dtype)
        self.bias = PaddedBias(p, width)

    def pack(self, w: np.ndarray) -> np.ndarray | Unpacked:
        return Unpacked(w) if self.once is not None and used_once() else self.panels(w)

    def run(self, x: np.ndarray, packed: np.ndarray | Unpacked, bias: np.ndarray | None, out: np.ndarray) -> None:
        if isinstance(packed, Unpacked):
            assert self.once is not None
            self.once.run(x, packed.w, bias, out)
            return
        self.kernel(x, packed, self.bias(bias), out)


# -- the backend ----------------------------------------------------------------------------------------------------------


def refuses(problem: Problem) -> str | None:
    return None


def build(problem: Problem) -> Kernel:
    from ._machine import machine_constants

    machine = machine_constants()

    def forward(problem: Problem, layout: WeightLayout | JointLayout | None = None) -> Kernel:
        layout = layout or forward_layout(problem)
        if isinstance(layout, WeightLayout) and is_product(problem, machine):
            return PointwiseForward(problem, layout)
        return Forward(problem, layout)

    def plain(problem: Problem) -> Kernel:
        if is_forward_rows(problem, machine):
            return ForwardRows(problem)
        return Forward(problem, once=ForwardRows(problem)) if runs_unpacked(problem, machine) else forward(problem)

    def grad_weight(problem: Problem) -> Kernel:
        if is_turned(problem, machine):
            return PointwiseGradWeight(problem)
        return GradientRows(problem) if is_rows(problem, machine) else GradWeight(problem)

    passes: dict[str, Callable[[Problem], Kernel]] = {
        "forward": plain, "grad_input": lambda p: (
            Col2im(p) if takes_col2im(p, machine) else build_grad_input(p, forward, lambda phase: phase_forward_seconds(phase, machine))),
        "grad_weight": grad_weight}
    return passes[problem.pass_name](problem)


def prepare(dtype: str) -> None:
    """Compile the tiles that the kernels call through their addresses, and the gradients that are chosen for some sizes only."""
    tile_addresses(dtype)
    for rows, columns, packed in _pointwise.TILES:
        _pointwise.tile_address(rows, columns, dtype, packed)
    operands = (2, (1, 8, 4, 4), (8, 8, 3, 3), dtype, Options())
    Col2im(Problem.create("grad_input", *operands))
    ForwardRows(Problem.create("forward", *operands))
    GradientRows(Problem.create("grad_weight", *operands))
    product = Problem.create("grad_input", 2, (1, 64, 32, 32), (64, 64, 1, 1), dtype, Options())
    build_grad_input(product, lambda phase, layout=None: PointwiseForward(phase, layout), lambda phase: 0.0)


BACKEND = Backend(refuses, seconds, build, pack_seconds, prepare)
