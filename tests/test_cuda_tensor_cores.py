"""Factors that are rounded for tensor cores: what accuracy="tf32" and "float16" promise, in the simulator or on a GPU."""

import numpy as np
import pytest
from cases import named
from helpers import PASSES, assert_close, expected, operands, run_pass

import fastconv as fc
from fastconv.backends._cuda.driver import absence

pytestmark = pytest.mark.skipif(absence() is not None, reason=str(absence()))

TOLERANCES = {"tf32": 1e-3, "float16": 2e-3}  # of the result's scale
CASES = named("batch_of_3", "1d", "depthwise_stride_2", "prime_channels_nhwc")


@pytest.mark.parametrize("accuracy", TOLERANCES)
@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_pass(case, pass_name, accuracy):
    """The result is the reference's within the accuracy, and is not that of unrounded factors."""
    first, second = (a.astype(np.float32) for a in operands(case).of(pass_name))
    rounded = run_pass(case, pass_name, first, second, backend="cuda_im2col", accuracy=accuracy)
    assert_close(rounded, expected(case, pass_name), TOLERANCES[accuracy])
    assert not np.array_equal(rounded, run_pass(case, pass_name, first, second, backend="direct"))


@pytest.mark.parametrize("accuracy", TOLERANCES)
def test_representable_factors_give_exact_sums(accuracy):
    """Small integers are not rounded: the layout of the fragments decides every element."""
    rng = np.random.default_rng(0)
    x, w = (rng.integers(-8, 9, shape).astype(np.float32) for shape in ((1, 5, 5, 7), (19, 5, 3, 3)))
    y = fc.conv2d(x, w, padding=1, backend="cuda_im2col", accuracy=accuracy)
    np.testing.assert_array_equal(y, fc.conv2d(x, w, padding=1, backend="direct"))


@pytest.mark.parametrize("accuracy", TOLERANCES)
def test_nonfinite_values_stay(accuracy):
    """Rounding keeps infinities and NaN."""
    x = np.ones((1, 1, 4, 4), np.float32)
    x[0, 0, 0, 0], x[0, 0, 3, 3] = np.inf, np.nan
    y = fc.conv2d(x, np.ones((1, 1, 1, 1), np.float32), backend="cuda_im2col", accuracy=accuracy)
    np.testing.assert_array_equal(y, x)
