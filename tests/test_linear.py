"""Linear layers against the product in float64."""

import sys

import numpy as np
import pytest
from helpers import assert_close, integers

import fastconv as fc

module = sys.modules["fastconv.linear"]  # the package's attribute of this name is the function

SHAPES = [((1,), 3), ((7,), 1), ((1, 40), 33), ((5, 12), 7), ((2, 3, 8), 4), ((64, 100), 10), ((0, 3), 2), ((3, 0), 2), ((2, 3), 0)]


def arrays(shape, outputs, dtype):
    rng = np.random.default_rng(31)
    return [rng.standard_normal(s).astype(dtype) for s in (shape, (outputs, shape[-1]), (outputs,), (*shape[:-1], outputs))]


@pytest.mark.parametrize("product", ["unpacked", "BLAS", "convolution"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize(("shape", "outputs"), SHAPES)
def test_against_definition(shape, outputs, dtype, product, monkeypatch):
    """By each of the products, on whatever number of rows."""
    monkeypatch.setattr(module, "FEW_ROWS", 100 if product == "unpacked" else 0)
    monkeypatch.setattr(module, "SOME_ROWS", 0)
    if product == "convolution":
        monkeypatch.setattr(module, "_is_own", lambda *arguments: True)
        monkeypatch.setattr(module, "OWN_ROWS", 0)
    x, w, bias, gy = arrays(shape, outputs, dtype)
    wide = [a.astype(float) for a in (x, w, bias, gy)]
    tolerance = {"float32": 2e-6, "float64": 1e-13, "float16": 2e-3}[dtype]
    y = fc.linear(x, w, bias)
    assert y.dtype == dtype
    assert_close(y, wide[0] @ wide[1].T + wide[2], tolerance)
    gx, gw, gb = fc.linear_backward(gy, x, w)
    assert gx.dtype == gw.dtype == gb.dtype == dtype
    rows, g = wide[0].reshape(int(np.prod(shape[:-1])), shape[-1]), wide[3].reshape(int(np.prod(shape[:-1])), outputs)
    assert_close(gx, (g @ wide[1]).reshape(shape), tolerance)
    assert_close(gw, g.T @ rows, tolerance)
    assert_close(gb, g.sum(axis=0), tolerance)
    assert fc.linear_backward(gy, x, w, bias=False)[2] is None


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("activation", ["relu", "relu6", "leaky_relu", "sigmoid", "tanh", "silu", "gelu"])
def test_activations(activation, own, monkeypatch):
    """As a convolution has them; NaN stays."""
    monkeypatch.setattr(module, "FEW_ROWS", 0)
    monkeypatch.setattr(module, "_is_own", lambda *arguments: own)
    x, w, bias, _ = arrays((6, 9), 8, "float64")
    desired = fc.conv2d(x.reshape(6, 9, 1, 1), w.reshape(8, 9, 1, 1), bias, activation=activation).reshape(6, 8)
    np.testing.assert_allclose(fc.linear(x, 1.0 * w, bias, activation=activation), desired, rtol=1e-12, atol=1e-12)
    assert np.isnan(fc.linear([[np.nan]], [[1.0]], activation=activation)).all()


def test_large_batch_and_other_numbers():
    """The size at which the package's own product takes over; integers and complex numbers."""
    x, w, bias, gy = arrays((module.OWN_ROWS, 512), 512, "float32")
    assert_close(fc.linear(x, w, bias, "relu"), np.maximum(x.astype(float) @ w.T.astype(float) + bias, 0), 2e-6)
    gx, gw, _ = fc.linear_backward(gy, x, w)
    assert_close(gx, gy.astype(float) @ w, 2e-6)
    assert_close(gw, gy.T.astype(float) @ x, 4e-6)
    rng = np.random.default_rng(32)
    x, w = integers(rng, (3, 5), "int8"), integers(rng, (2, 5), "int8")
    y = fc.linear(x, w)
    assert y.dtype == np.int32
    np.testing.assert_array_equal(y, x.astype(int) @ w.T.astype(int))
    z = rng.standard_normal((2, 3)) + 1j
    gx, gw, _ = fc.linear_backward(np.ones((2, 4)), z, np.ones((4, 3)) * 1j)
    np.testing.assert_allclose(gx, np.ones((2, 4)) @ (-1j * np.ones((4, 3))))
    np.testing.assert_allclose(gw, np.ones((4, 2)) @ z.conj())


def test_inputs_stay_as_they_are():
    """No operand is written, and read-only ones are taken."""
    x, w, bias, gy = arrays((1, 4), 4, "float64")
    for array in (x, w, bias, gy):
        array.flags.writeable = False
    fc.linear(x, w, bias, "relu")
    fc.linear_backward(gy, x, w)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: fc.linear(np.ones((2, 3)), np.ones((4, 2))), ValueError, r"x must have shape \(..., 2\)"),
        (lambda: fc.linear(np.ones((2, 3)), np.ones(3)), ValueError, "w must have 2 dimensions"),
        (lambda: fc.linear(np.float64(1), np.ones((1, 1))), ValueError, "x must have shape"),
        (lambda: fc.linear(np.ones((2, 3)), np.ones((4, 3)), np.ones(3)), ValueError, "bias must have shape"),
        (lambda: fc.linear(np.ones((2, 3)), np.ones((4, 3)), activation="elu"), ValueError, "activation"),
        (lambda: fc.linear(np.ones((2, 3), complex), np.ones((4, 3)), activation="relu"), TypeError, "activation"),
        (lambda: fc.linear_backward(np.ones((2, 3)), np.ones((2, 3)), np.ones((4, 3))), ValueError, "gy must have shape"),
    ],
)
def test_wrong_arguments(call, error, match):
    with pytest.raises(error, match=match):
        call()
