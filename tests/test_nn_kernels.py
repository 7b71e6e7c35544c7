"""Vector functions of the layers' kernels against SciPy's in float64, on every vector width that the suite is run with."""

import math

import numpy as np
import pytest
from scipy.special import expit, ndtr

from fastconv.backends import _activation

EPSILON = {"float32": 6e-8, "float64": 2.2e-16}
FUNCTIONS = {
    "sigmoid": (expit, lambda x: expit(x) * expit(-x)),
    "tanh": (np.tanh, lambda x: 1 - np.tanh(x) ** 2),
    "silu": (lambda x: x * expit(x), lambda x: expit(x) * (1 + x * expit(-x))),
    "gelu": (lambda x: x * ndtr(x), lambda x: ndtr(x) + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)),
}


def arguments(dtype):
    """Of all sizes, in a number that no vector divides."""
    x = np.random.default_rng(0).normal(size=1009) * 4
    x[:6] = 0, -0.0, -300, 300, 1e-9, -1e-9
    return x.astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_simd_activations(name, dtype):
    """Within some units in the last place of the largest of value and argument, gradients too."""
    x = arguments(dtype)
    gy = np.random.default_rng(1).normal(size=x.size).astype(dtype)
    value, slope = FUNCTIONS[name]
    wide = x.astype(np.float64)
    y = _activation.activated(name, x)
    assert y.dtype == dtype
    assert (np.abs(y - value(wide)) <= 8 * EPSILON[dtype] * np.maximum(1, np.abs(value(wide)))).all()
    known = y if name in ("sigmoid", "tanh") else x
    gx = _activation.activation_gradient(name, known, gy)
    assert (np.abs(gx - gy * slope(wide)) <= 16 * EPSILON[dtype] * np.maximum(1, np.abs(gy))).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_simd_tanh_near_zero(dtype):
    """The series keeps relative precision where tanh is its argument."""
    x = np.logspace(-30, -1, 200).astype(dtype)
    np.testing.assert_allclose(_activation.activated("tanh", x), np.tanh(x.astype(float)), rtol=8 * EPSILON[dtype])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_simd_activations_of_nan_and_infinities(name):
    """NaN stays; the limits at the infinities."""
    y = _activation.activated(name, np.array([math.nan, math.inf, -math.inf], np.float32))
    top = {"sigmoid": 1, "tanh": 1, "silu": math.inf, "gelu": math.inf}[name]
    np.testing.assert_array_equal(y, [math.nan, top, -1 if name == "tanh" else 0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("slope", "ceiling"), [(0.0, math.inf), (0.01, math.inf), (0.0, 6.0)])
def test_simd_rectifiers(slope, ceiling, dtype):
    """Exactly the definition, of an array and of a sum; the gradient is told from the output."""
    x = arguments(dtype)
    w = np.random.default_rng(1).normal(size=x.size).astype(dtype)
    factor = x.dtype.type(slope)
    for y, v in ((_activation.rectified(x, slope, ceiling), x), (_activation.rectified_sum(x, w, slope, ceiling), x + w)):
        np.testing.assert_array_equal(y, np.minimum(np.where(v > 0, v, v * factor), ceiling))
    gx = _activation.rectifier_gradient(_activation.rectified(x, slope, ceiling), w, slope, ceiling)
    np.testing.assert_array_equal(gx, np.where(x >= ceiling, 0, np.where(x > 0, w, w * factor)))
