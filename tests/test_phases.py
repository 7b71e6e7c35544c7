"""The gradient of a strided convolution's input: phase by phase and all phases at once give what the definition gives."""

import numpy as np
import pytest
import reference

from fastconv.backends import cpu_im2col
from fastconv.backends._gemm import panel_width
from fastconv.backends._phases import GradInputAtOnce, GradInputByPhases, joint_problem
from fastconv.problem import Options, Problem

CASES = {
    "stem": dict(size=(31, 44), kernel=(7, 7), stride=2, padding=3),
    "large stride": dict(size=(40, 35), kernel=(11, 11), stride=4, padding=2),
    "stride beyond the kernel": dict(size=(23, 17), kernel=(2, 2), stride=3),
    "stride along one axis": dict(size=(19, 70), kernel=(3, 3), stride=(1, 2), padding=1),
    "padding beyond the kernel": dict(size=(9, 9), kernel=(2, 3), stride=2, padding=4),
    "uneven padding": dict(size=(12, 33), kernel=(3, 5), stride=(2, 3), padding=((0, 1), (2, 0))),
    "stride beyond the image": dict(size=(2, 3), kernel=(2, 2), stride=5),
    "unused end": dict(size=(16, 70), kernel=(3, 3), stride=(2, 2)),
    "line": dict(size=(101,), kernel=(8,), stride=3, padding=2),
    "volume": dict(size=(7, 8, 9), kernel=(3, 2, 3), stride=(2, 2, 1), padding=1),
}


def gradient(size, kernel, layout, channels=3, outputs=5, **options):
    last = layout == "NHWC"
    image = (2, *size, channels) if last else (2, channels, *size)
    weight = (*kernel, channels, outputs) if last else (outputs, channels, *kernel)
    return Problem.create("grad_input", len(size), image, weight, "float64", Options(layout=layout, **options))


@pytest.mark.parametrize("build", [GradInputAtOnce, GradInputByPhases])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("channels", [1, 3, 2 * panel_width("float64")])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_both_ways_are_the_gradient(case, channels, layout, build):
    problem = gradient(layout=layout, channels=channels, **case)
    rng = np.random.default_rng(0)
    gy, w = (rng.standard_normal(shape) for shape in problem.shapes[:2])
    bias = rng.standard_normal(channels)
    kernel = build(problem, cpu_im2col.Forward)
    gx = np.full(problem.input_shape, np.nan)
    kernel.run(gy, kernel.pack(w), bias, gx)
    options = {name: value for name, value in case.items() if name in ("stride", "padding")}
    shape, *operand_shapes = map(problem.public_shape, (problem.input_shape, problem.output_shape, problem.weight_shape))
    expected = reference.grad_input(gy.reshape(operand_shapes[0]), w.reshape(operand_shapes[1]), shape, layout=layout, **options)
    expected = expected + (bias if layout == "NHWC" else bias.reshape(-1, *[1] * problem.ndim))
    np.testing.assert_allclose(gx.reshape(expected.shape), expected, atol=1e-12)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_joint_problem_covers_the_image(case):
    problem = gradient(layout="NCHW", **case)
    joint = joint_problem(problem)
    assert joint.output_size == tuple(-(-n // s) for n, s in zip(problem.input_size, problem.stride, strict=True))


def test_no_joint_problem():
    """Dilation and a stride of one have none."""
    for options in (dict(stride=1), dict(stride=2, dilation=2)):
        assert joint_problem(gradient((9, 9), (3, 3), "NCHW", **options)) is None


def test_an_exact_joint_problem_has_no_zeros_for_weights():
    assert joint_problem(gradient((9, 9), (3, 3), "NCHW", stride=2), exact=True) is None
    assert joint_problem(gradient((9, 9), (4, 4), "NCHW", stride=2, padding=1), exact=True) is None
    assert joint_problem(gradient((9, 9), (4, 4), "NCHW", stride=2), exact=True) is not None
