"""Locally connected layers against their definition, and against convolutions whose weights are repeated."""

import numpy as np
import pytest
import reference_operations as reference
from helpers import integers

import fastconv as fc

CASES = {
    "single_pixel": ((1, 1, 1, 1), (1, 1, 1, 1), {}),
    "same": ((2, 3, 7, 9), (5, 3, 3, 3), {"padding": 1}),
    "strided": ((5, 2, 11, 12), (3, 2, 3, 2), {"stride": (2, 3), "padding": ((1, 0), (2, 1))}),
    "dilated_groups": ((9, 4, 9, 8), (6, 2, 2, 3), {"dilation": 2, "padding": 2, "groups": 2}),
    "many_channels": ((3, 37, 4, 5), (33, 37, 2, 2), {}),
    "line": ((4, 3, 50), (4, 3, 5), {"padding": 2}),
    "line_groups": ((1, 6, 23), (4, 3, 4), {"stride": 2, "groups": 2}),
    "several_runs": ((1, 2, 30, 41), (2, 2, 3, 3), {"padding": 1}),
}


def arrays(name, dtype="float64"):
    """x, w, bias, gy of whole numbers, so that all sums are exact."""
    shape, kernel_shape, options = CASES[name]
    rng = np.random.default_rng(11)
    shared = {key: value for key, value in options.items() if key != "groups"}
    _, _, out = reference.window_points(
        shape[2:], kernel_shape[2:], *(np.broadcast_to(shared.get("stride", 1), len(shape) - 2),), shared.get("padding", 0),
        np.broadcast_to(shared.get("dilation", 1), len(shape) - 2),
    )
    x, w = integers(rng, shape, dtype, 3), integers(rng, (*kernel_shape, *out), dtype, 3)
    return x, w, integers(rng, w.shape[:1], dtype, 3), integers(rng, (shape[0], w.shape[0], *out), dtype, 3), options


def last(w, rank):
    """Weights channels last."""
    return w.transpose(*range(2 + rank, 2 + 2 * rank), *range(2, 2 + rank), 1, 0)


def functions(x):
    return [getattr(fc, f"locally_connected{x.ndim - 2}d{end}") for end in ("", "_backward")]


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "float16"])
@pytest.mark.parametrize("name", CASES)
def test_forward(name, dtype):
    """Both layouts, a bias a channel and one a point."""
    x, w, bias, gy, options = arrays(name, dtype)
    forward, _ = functions(x)
    desired = reference.locally_connected(x.astype(float), w.astype(float), bias.astype(float), **options)
    np.testing.assert_array_equal(forward(x, w, bias, **options), desired)
    np.testing.assert_array_equal(forward(x[0], w, bias, **options), desired[0])
    rank = x.ndim - 2
    moved = forward(np.moveaxis(x, 1, -1), last(w, rank), bias, **options, layout="NHWC")
    np.testing.assert_array_equal(np.moveaxis(moved, -1, 1), desired)
    np.testing.assert_array_equal(forward(x, w, gy[0], **options), forward(x, w, **options) + gy[0])


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("name", CASES)
def test_backward_is_adjoint(name, layout):
    """The layer is linear in x and in w: <y, gy> = <x, gx> = <w, gw> for every x and w, exactly in whole numbers."""
    x, w, _, gy, options = arrays(name)
    forward, backward = functions(x)
    if layout == "NHWC":
        x, w, gy = np.moveaxis(x, 1, -1), last(w, x.ndim - 2), np.moveaxis(gy, 1, -1)
    rng = np.random.default_rng(12)
    gx, gw, gb = backward(gy, x, w, **options, layout=layout)
    for _ in range(3):
        u, v = integers(rng, x.shape, float), integers(rng, w.shape, float)
        assert np.vdot(forward(u, w, **options, layout=layout), gy) == np.vdot(u, gx)
        assert np.vdot(forward(x, v, **options, layout=layout), gy) == np.vdot(v, gw)
    np.testing.assert_array_equal(gb, gy.sum(axis=tuple(i for i in range(gy.ndim) if i != (1 if layout == "NCHW" else gy.ndim - 1))))
    assert backward(gy, x, w, bias=False, **options, layout=layout)[2] is None


def test_shared_weights_are_a_convolution():
    """Weights that are the same everywhere."""
    rng = np.random.default_rng(13)
    x, w = rng.standard_normal((2, 4, 9, 10)), rng.standard_normal((6, 2, 3, 3))
    y = fc.conv2d(x, w, padding=1, groups=2)
    repeated = np.broadcast_to(w[..., None, None], (*w.shape, 9, 10))
    np.testing.assert_allclose(fc.locally_connected2d(x, repeated, padding=1, groups=2), y, rtol=1e-12, atol=1e-12)


def test_zero_size_and_errors():
    """No samples give none; weights for another output are refused with both sizes."""
    w = np.ones((3, 2, 3, 3, 4, 4))
    assert fc.locally_connected2d(np.ones((0, 2, 6, 6)), w).shape == (0, 3, 4, 4)
    gx, gw, gb = fc.locally_connected2d_backward(np.ones((0, 3, 4, 4)), np.ones((0, 2, 6, 6)), w)
    assert gx.shape == (0, 2, 6, 6) and not gw.any() and not gb.any()
    x = np.ones((1, 2, 6, 6))
    for call, error, match in [
        (lambda: fc.locally_connected2d(x, w, padding=1), ValueError, r"outputs of size \(4, 4\).*\(6, 6\)"),
        (lambda: fc.locally_connected2d(x, w[0]), ValueError, "w must have 6 dimensions"),
        (lambda: fc.locally_connected2d(x, w, np.ones(4)), ValueError, "bias must have shape"),
        (lambda: fc.locally_connected2d(x[:, :1], w), ValueError, "channels per group"),
        (lambda: fc.locally_connected2d(x + 1j, w), TypeError, "real numbers"),
        (lambda: fc.locally_connected2d(x, w, stride=0), ValueError, "stride"),
        (lambda: fc.locally_connected2d_backward(x, x, w), ValueError, "gy must have shape"),
    ]:
        with pytest.raises(error, match=match):
            call()
