"""The weights' transform of minimal-filtering algorithms, from panels of weights as `_gemm` packs them."""

from __future__ import annotations

from typing import NamedTuple

from ..problem import Problem
from ._bilinear import call_transform, transform_address
from ._boxes import copy_run, fill_run
from ._cook_toom import WEIGHTS
from ._gemm import panel_width
from ._jit import outlined
from ._simd import advance, lanes_of, next_task, parallel_kernel, thawed, zero_element
from ._winograd_choice import Algorithm


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
    channels_last: bool

    @property
    def folded(self) -> int:
        """Elements of the scratch memory that `transform_panel` needs, a vector of lanes each."""
        return self.height * self.width


def weight_taps(problem: Problem, algorithm: Algorithm) -> WeightTaps:
    """The numbers of a problem's weights."""
    p, a = problem, algorithm
    width = panel_width(p.dtype)
    kernel_d, kernel_h, kernel_w = p.kernel_size
    panels = p.groups * -(-p.group_out // width)
    return WeightTaps(transform_address(WEIGHTS, *a.keys, p.dtype), panels, p.group_in, kernel_d, kernel_h, kernel_w, a.fold_h, a.fold_w,
                      a.high.taps * a.fold_h, a.wide.taps * a.fold_w, a.products, a.wide.products, width, p.channels_last)


@outlined
def transform_panel(t, panel, channels, d, product, u, scratch):
    """u[product][depth tap d][folded channel][width] from a panel's first `channels` channels; scratch[folded] is zero."""
    planes = t.kernel_h * t.kernel_w
    lanes = lanes_of(panel)
    folds = t.fold_h * t.fold_w
    target = advance(u, d * channels * folds * t.panel)
    for c in range(channels):
        if t.channels_last:
            at, column = advance(panel, (d * planes * channels + c) * t.panel), channels * t.panel
        else:
            at, column = advance(panel, (c * t.kernel_d + d) * planes * t.panel), t.panel
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
                                   t.products_w * product, product, at)
                else:
                    call_transform(t.transform, advance(at, lane), t.kernel_w * column, column, to,
                                   t.products_w * product, product, at)


@parallel_kernel
def winograd_weights(panels, unused, bias, u, constants, scratch, counters, thread, threads):
    """u[panel][product][depth tap][folded channel][width] from panels of weights, by (panel, depth tap)."""
    t, product = thawed(constants)
    fill_run(scratch, t.height * t.width * lanes_of(panels), zero_element(panels))
    while True:
        task = next_task(counters)
        if task >= t.panels * t.kernel_d:
            break
        panel = task // t.kernel_d
        source = advance(panels, panel * t.kernel_d * t.kernel_h * t.kernel_w * t.channels * t.panel)
        transform_panel(t, source, t.channels, task % t.kernel_d, product, advance(u, panel * t.products * product), scratch)
