"""The engines of `im2col` for gradients of few points, on every convolution they can compute, whatever the cost model prefers."""

import numpy as np
import pytest
from cases import CASES
from helpers import assert_close, assert_same_nonfinite, expected, operands, poisoned, reference_pass, terms, tolerance

from fastconv.backends._col2im import Col2im, refuses_col2im
from fastconv.backends._gradient_rows import GradientRows
from fastconv.problem import Options, Problem

PLAIN = [case for case in CASES if case.options.get("padding_mode", "zeros") == "zeros" and "layout" not in case.options]
DTYPES = ["float32", "float64"]


def problem_of(case, pass_name, dtype, **more):
    """The problem of a case's pass."""
    return Problem.create(pass_name, case.ndim, case.input_shape, case.weight_shape, dtype, Options(**case.options, **more))


def run(engine, case, pass_name, first, second, dtype, bias=None, **more):
    """The engine's result for a case's pass, in a poisoned array."""
    made = engine(problem_of(case, pass_name, dtype, **more))
    out = poisoned(operands(case).target_shape(pass_name), dtype)
    made.run(np.array(first, dtype), made.pack(np.array(second, dtype)), bias, out)
    return out


TURNED = [case for case in PLAIN if not refuses_col2im(problem_of(case, "grad_input", "float32"))]


def test_cases_are_taken():
    """The table holds convolutions of every kind that the engine of the input's gradient is for."""
    names = {case.name for case in TURNED}
    assert {"groups_2", "stride_2", "stride_3_dilation_2", "3d_groups", "1d_stride_4", "batch_of_3", "asymmetric_pads"} <= names


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", TURNED, ids=lambda case: case.name)
def test_col2im(case, dtype):
    """The gradient of the input, with weights as they lie."""
    result = run(Col2im, case, "grad_input", *operands(case).of("grad_input"), dtype)
    assert_close(result, expected(case, "grad_input"), tolerance("im2col", dtype, terms(case, "grad_input")))


@pytest.mark.parametrize("case", TURNED, ids=lambda case: case.name)
def test_col2im_epilogue(case):
    """A transposed convolution's bias and rectifier, also where no tap reaches."""
    channels = case.input_shape[1]
    bias = np.linspace(-2, 2, channels, dtype=np.float32)
    result = run(Col2im, case, "grad_input", *operands(case).of("grad_input"), "float32", bias, activation="relu")
    desired = np.maximum(expected(case, "grad_input") + bias.reshape(-1, *[1] * case.ndim), 0)
    assert_close(result, desired, tolerance("im2col", "float32", terms(case, "grad_input")))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("operand", [0, 1])
@pytest.mark.parametrize("case", TURNED, ids=lambda case: case.name)
def test_col2im_nonfinite(case, operand, value):
    """One value that is not finite reaches the sums it belongs to, those with the zeros around gy among them, and no others."""
    arrays = [a.copy() for a in operands(case).of("grad_input")]
    arrays[operand][tuple(n // 2 for n in arrays[operand].shape)] = value
    assert_same_nonfinite(run(Col2im, case, "grad_input", *arrays, "float32"), reference_pass(case, "grad_input", *arrays))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", PLAIN, ids=lambda case: case.name)
def test_gradient_rows(case, dtype):
    """The gradient of the weights, row by row."""
    gy, x = operands(case).of("grad_weight")
    result = run(GradientRows, case, "grad_weight", x, gy, dtype)
    assert_close(result, expected(case, "grad_weight"), tolerance("im2col", dtype, terms(case, "grad_weight")))
