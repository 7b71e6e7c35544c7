"""The adjoint identity <conv(x, w), y> = <x, grad_input(y, w)> = <w, grad_weight(y, x)>, with no reference at all."""

import numpy as np
import pytest
from cases import CASES, named
from helpers import operands, public, run_pass

import fastconv as fc

FEW = named(
    "resnet_3x3",
    "groups_3_odd_channels",
    "stride_2_dilation_2_common_divisor",
    "circular_strided_dilated",
    "reflect_asymmetric",
    "depthwise_stride_2_nhwc",
    "same_stride_2_nhwc",
    "1d_stride_4",
    "3d_stride_dilation",
)


def random_operands(case, dtype):
    """x, w and gy of the case's shapes; complex ones have imaginary parts."""
    rng = np.random.default_rng(11)
    arrays = []
    for array in (operands(case).x, operands(case).w, operands(case).gy):
        values = array if np.dtype(dtype).kind == "f" else array + 1j * rng.standard_normal(array.shape)
        arrays.append(values.astype(dtype))
    return arrays


def assert_adjoint(products, scale, dtype):
    """All the inner products agree to the precision of the type."""
    close = 100 * np.finfo(dtype).eps * scale
    for product in products[1:]:
        assert abs(product - products[0]) <= close, f"{products} differ by more than {close:.1e}"


def inner(a, b):
    """<a, b> in double precision, conjugate in the first."""
    return np.vdot(a.astype(np.complex128), b.astype(np.complex128))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_identity(case):
    """On the whole table in float64."""
    x, w, gy = random_operands(case, np.float64)
    y = run_pass(case, "forward", x, w)
    products = [inner(y, gy), inner(x, run_pass(case, "grad_input", gy, w)), inner(w, run_pass(case, "grad_weight", gy, x))]
    assert_adjoint(products, np.linalg.norm(y) * np.linalg.norm(gy), np.float64)


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("backend", fc.backends())
@pytest.mark.parametrize("case", FEW, ids=lambda case: case.name)
def test_identity_of_each_backend(case, backend, dtype):
    """Each backend's three passes belong together; <a, b> conjugates its first argument."""
    x, w, gy = random_operands(case, dtype)
    try:
        y, gx, gw = (
            run_pass(case, pass_name, first, second, backend=backend)
            for pass_name, first, second in (("forward", x, w), ("grad_input", gy, w), ("grad_weight", gy, x))
        )
    except fc.BackendError as refusal:
        assert backend != "direct"
        pytest.skip(f"refused: {refusal}")
    assert_adjoint([inner(y, gy), inner(x, gx), inner(w, gw)], np.linalg.norm(y) * np.linalg.norm(gy), dtype)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1, "output_padding": 1},
        {"stride": 3, "padding": ((0, 1), (2, 0)), "groups": 2},
        {"dilation": 2, "stride": 2},
        {"layout": "NHWC", "stride": 2, "padding": "same"},
    ],
    ids=repr,
)
def test_transposed_identity(options, dtype):
    """The transposed convolution and its two gradients."""
    rng = np.random.default_rng(5)
    last, groups = options.get("layout") == "NHWC", options.get("groups", 1)
    shapes = [(2, 5, 6, 4), (3, 3, 6 // groups, 4)] if last else [(2, 4, 5, 6), (4, 6 // groups, 3, 3)]
    x, w = (_normal(rng, shape, dtype) for shape in shapes)
    y = fc.conv_transpose2d(x, w, **options)
    gy = _normal(rng, y.shape, dtype)
    gx, gw, gb = fc.conv_transpose2d_backward(gy, x, w, **options)
    assert_adjoint([inner(y, gy), inner(x, gx), inner(w, gw)], np.linalg.norm(y) * np.linalg.norm(gy), dtype)
    assert gb.shape == (6,)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_transposed_is_the_gradient(ndim):
    """`conv_transpose{n}d` with real weights is `conv{n}d_grad_input` of the convolution it transposes."""
    rng = np.random.default_rng(6)
    gy, w = rng.standard_normal((2, 4, *(5, 6, 4)[:ndim])), rng.standard_normal((4, 3, *(3,) * ndim))
    y = public("conv_transpose{}d", ndim)(gy, w, stride=2, padding=1)
    gx = public("conv{}d_grad_input", ndim)(gy, w, y.shape, stride=2, padding=1)
    np.testing.assert_array_equal(y, gx)


def _normal(rng, shape, dtype):
    values = rng.standard_normal(shape)
    return (values if np.dtype(dtype).kind == "f" else values + 1j * rng.standard_normal(shape)).astype(dtype)
