"""The engines of `im2col` for few points, on every convolution they can compute, whatever the cost model prefers."""

import numpy as np
import pytest
from cases import CASES, Case
from helpers import assert_close, assert_same_nonfinite, expected, operands, poisoned, reference_pass, terms, tolerance

from fastconv.backends import _forward_rows, cpu_im2col
from fastconv.backends._col2im import Col2im, refuses_col2im
from fastconv.backends._forward_rows import ForwardRows
from fastconv.backends._gradient_rows import GradientRows
from fastconv.backends._scratch import arena, reused_operands
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


# Points as vectors and a few left over, of one image and of several, odd numbers of channels on both sides.
POINTS = [Case(f"points_{n}", 2, (batch, 37, 1, n // batch), (5, 37, 1, 1), {})
          for n, batch in ((4, 1), (15, 1), (17, 1), (48, 1), (49, 1), (50, 2), (51, 3), (57, 3), (64, 1), (98, 2), (113, 1), (196, 4))]
WIDE = [Case(f"{c.name}_wide", c.ndim, c.input_shape, (7 * c.weight_shape[0], *c.weight_shape[1:]), c.options) for c in [*PLAIN, *POINTS]]
FEW = [case for case in WIDE if _forward_rows.fits(p := problem_of(case, "forward", "float32")) and p.flops < 1e7]


def test_forward_cases_are_taken():
    """The table holds convolutions of every kind that the engine of the forward pass is for."""
    names = {case.name.removesuffix("_wide") for case in FEW}
    assert {"groups_2", "groups_1x1", "stride_2", "stride_3_dilation_2", "1d_stride_4", "batch_of_3", "asymmetric_pads"} <= names
    assert {f"points_{n}" for n in (4, 15, 17, 48, 49, 50, 51, 57, 64, 113)} <= names


def run_rows(case, dtype, *arrays, bias=None, **more):
    """The engine's result, with whatever lay in the scratch memory before."""
    p = problem_of(case, "forward", dtype, **more)
    made = ForwardRows(p)
    arena(made.scratch_bytes)[0].fill(255)  # NaN
    out = poisoned(operands(case).target_shape("forward"), dtype)
    x, w = (np.array(a, dtype) for a in arrays)
    made.run(x, made.pack(w), bias, out)
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", FEW, ids=lambda case: case.name)
def test_forward_rows(case, dtype):
    """The forward pass, with weights as they lie."""
    result = run_rows(case, dtype, *operands(case).of("forward"))
    assert_close(result, expected(case, "forward"), tolerance("im2col", dtype, terms(case, "forward")))


@pytest.mark.parametrize("case", FEW, ids=lambda case: case.name)
def test_forward_rows_epilogue(case):
    """With a bias and a rectifier."""
    bias = np.linspace(-2, 2, case.weight_shape[0], dtype=np.float32)
    result = run_rows(case, "float32", *operands(case).of("forward"), bias=bias, activation="relu")
    desired = np.maximum(expected(case, "forward") + bias.reshape(-1, *[1] * case.ndim), 0)
    assert_close(result, desired, tolerance("im2col", "float32", terms(case, "forward")))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("operand", [0, 1])
@pytest.mark.parametrize("case", FEW, ids=lambda case: case.name)
def test_forward_rows_nonfinite(case, operand, value):
    """One value that is not finite reaches the sums it belongs to, and no others."""
    arrays = [a.copy() for a in operands(case).of("forward")]
    arrays[operand][tuple(n // 2 for n in arrays[operand].shape)] = value
    assert_same_nonfinite(run_rows(case, "float32", *arrays), reference_pass(case, "forward", *arrays))


def test_weights_used_once_are_not_packed():
    """An engine that has the rows' packs weights for a plan only; both results agree."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((1, 64, 7, 7), dtype=np.float32), rng.standard_normal((64, 64, 3, 3), dtype=np.float32)
    p = Problem.create("forward", 2, x.shape, w.shape, "float32", Options(padding=1))
    made = cpu_im2col.Forward(p, once=ForwardRows(p))
    once, kept = poisoned(p.output_shape, "float32"), poisoned(p.output_shape, "float32")
    with reused_operands:
        packed = made.pack(w)
        assert packed.w is w
        made.run(x, packed, None, once)
    made.run(x, made.pack(w), None, kept)
    np.testing.assert_allclose(once, kept, rtol=0, atol=1e-3)
