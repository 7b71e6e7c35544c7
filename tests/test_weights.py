"""Where forward convolutions find their weights: by definition, and in the panels of the matrix product."""

import numpy as np
import pytest

from fastconv.backends._gemm import PanelPacking, panel_width, weight_matrices
from fastconv.backends._weights import forward_layout, phase_layout
from fastconv.problem import Options, Problem

CASES = {
    "same": dict(kernel=(3, 3)),
    "strided": dict(kernel=(3, 3), stride=2),
    "strided by more than the kernel": dict(kernel=(2, 2), stride=3),
    "long row": dict(kernel=(2, 37)),
    "one tap": dict(kernel=(1, 1)),
    "grouped": dict(kernel=(3, 2), groups=3),
    "grouped, strided, dilated": dict(kernel=(5, 4), groups=2, stride=(2, 3), dilation=(1, 2)),
}


def gradient(kernel, layout, groups=1, outputs=21, channels=19, **options):
    """A `grad_input` problem, and its weights counted through."""
    weight = (groups * outputs, channels, *kernel)
    image = (1, groups * channels, 40, 60)
    if layout == "NHWC":
        weight, image = (*kernel, channels, groups * outputs), (1, 40, 60, groups * channels)
    problem = Problem.create("grad_input", 2, image, weight, "float32", Options(groups=groups, layout=layout, **options))
    return problem, np.arange(np.prod(problem.weight_shape), dtype=np.float32).reshape(problem.weight_shape)


def turned(problem, phase, w):
    """The phase's weights as (groups, outputs, channels, taps...): taps reversed, channels exchanged."""
    w = w.transpose(4, 3, 0, 1, 2) if problem.channels_last else w
    w = w.reshape(problem.groups, problem.group_out, problem.group_in, *problem.kernel_size)[..., *phase.taps]
    return w[..., ::-1, ::-1, ::-1].swapaxes(1, 2)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_layouts_of_phases(case, layout):
    """Each phase finds its weights among the gradient's, in an array of their own and in panels."""
    problem, w = gradient(layout=layout, **case)
    for phase in problem.phases():
        if phase.problem is None:
            continue
        p, expected = phase.problem, turned(problem, phase, w)
        place = phase_layout(problem, phase)
        own = place.array(p, w)
        first = own.transpose(4, 3, 0, 1, 2) if p.channels_last else own
        np.testing.assert_array_equal(first.reshape(expected.shape), expected)
        width = panel_width("float32")
        panels = PanelPacking(weight_matrices(p, place), width, "float32")(w)
        np.testing.assert_array_equal(panels, PanelPacking(weight_matrices(p, forward_layout(p)), width, "float32")(own))
