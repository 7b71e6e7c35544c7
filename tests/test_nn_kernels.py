"""Vector functions of the layers' kernels against SciPy's in float64, on every vector width that the suite is run with."""

import math

import numpy as np
import pytest
from scipy.special import expit, ndtr

from fastconv import nn
from fastconv.backends import _activation, _products

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


SIZES = [(1, 1, 1), (1, 5, 3), (1, 600, 40), (1, 5003, 70), (1, 33, 700), (2, 16, 14), (3, 17, 15), (8, 60, 9), (5, 33, 1),
         (7, 40, 29), (33, 1, 70), (64, 600, 120), (70, 31, 9), (11, 2100, 37), (300, 77, 1100)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SIZES)
def test_simd_products(rows, inputs, outputs, dtype):
    """Those of a fully connected layer and its gradients, in tiles, parts of tiles and on several threads; nothing beyond is written."""
    rng = np.random.default_rng(2)
    x, w, bias, gy = (rng.standard_normal(s).astype(dtype) for s in ((rows, inputs), (outputs, inputs), (outputs,), (rows, outputs)))
    wide, tolerance = [a.astype(float) for a in (x, w, bias, gy)], 40 * EPSILON[dtype] * math.sqrt(max(rows, inputs, outputs))
    space = np.full((outputs + 2, inputs), 7, dtype)
    found = [_products.layer_product(x, w, None), _products.layer_product(x, w, bias), _products.product(gy, w),
             _products.transposed_product(gy, x), _products.transposed_product(gy, x, space[1:-1])]
    desired = [wide[0] @ wide[1].T, wide[0] @ wide[1].T + wide[2], wide[3] @ wide[1], wide[3].T @ wide[0], wide[3].T @ wide[0]]
    for y, expected in zip(found, desired, strict=True):
        assert y.dtype == dtype
        np.testing.assert_allclose(y, expected, rtol=0, atol=tolerance * max(1, np.abs(expected).max()))
    assert (space[[0, -1]] == 7).all()


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(40, 700, 650), (9, 2000, 1000), (600, 300, 250)])
def test_large_linear_layers(rows, inputs, outputs):
    """Those whose products are of packed strips, and convolutions; the input's and the weights' gradients too."""
    rng = np.random.default_rng(3)
    layer, x = nn.Linear(inputs, outputs, rng=0), rng.standard_normal((rows, inputs), dtype=np.float32)
    y, backprop = layer.forward(x)
    gy = rng.standard_normal(y.shape, dtype=np.float32)
    wide = layer.weight.astype(float)
    np.testing.assert_allclose(y, x @ wide.T + layer.bias, rtol=0, atol=1e-4)
    np.testing.assert_allclose(backprop(gy), gy @ wide, rtol=0, atol=1e-4)
    np.testing.assert_allclose(layer.grads["weight"], gy.T.astype(float) @ x, rtol=0, atol=1e-3)
    np.testing.assert_allclose(layer.grads["bias"], gy.sum(axis=0, dtype=float), rtol=0, atol=1e-4)
