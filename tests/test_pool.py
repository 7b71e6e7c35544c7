"""Pooling against its definition: both layouts, every option, gradients, dtypes, NaN, borders and bad input."""

import zlib

import numpy as np
import pytest
import reference_pool as reference
from helpers import assert_close, poisoned, public

import fastconv as fc
from fastconv import nn

LAYOUTS = ("NCHW", "NHWC")
# (spatial size, options), named by what they might break.
CASES = {
    "vgg": ((12, 34), {"kernel_size": 2}),
    "vgg_odd": ((13, 35), {"kernel_size": 2}),
    "resnet": ((17, 40), {"kernel_size": 3, "stride": 2, "padding": 1}),
    "resnet_no_pad": ((9, 67), {"kernel_size": 3, "stride": 2}),
    "inception": ((7, 33), {"kernel_size": 3, "stride": 1, "padding": 1}),
    "ceil": ((8, 21), {"kernel_size": 3, "stride": 2, "ceil_mode": True}),
    "ceil_starts_in_padding": ((6, 10), {"kernel_size": 2, "stride": 3, "padding": 1, "ceil_mode": True}),
    "dilation": ((11, 37), {"kernel_size": 3, "stride": 2, "padding": 2, "dilation": 2}),
    "asymmetric": ((10, 19), {"kernel_size": (3, 4), "stride": (1, 2), "padding": ((0, 2), (3, 1))}),
    "stride_of_three": ((11, 29), {"kernel_size": (3, 2), "stride": 3, "padding": ((1, 0), (0, 1))}),
    "even_dilation_of_three": ((14, 26), {"kernel_size": (2, 4), "stride": (2, 1), "padding": 1, "dilation": (1, 3)}),
    "same": ((9, 22), {"kernel_size": 3, "stride": 2, "padding": "same"}),
    "same_lower": ((9, 22), {"kernel_size": 2, "stride": 1, "padding": "same_lower"}),
    "gaps": ((9, 8), {"kernel_size": 2, "stride": 3}),
    "single_point": ((1, 1), {"kernel_size": 1}),
    "padding_wider_than_kernel": ((3, 5), {"kernel_size": 2, "stride": 1, "padding": 3}),
    "whole": ((5, 7), {"kernel_size": (5, 7)}),
    "large_kernel": ((20, 24), {"kernel_size": (13, 9), "stride": 1, "padding": (6, 4)}),
    "line": ((50,), {"kernel_size": 3, "stride": 2, "padding": 1}),
    "line_dilated": ((45,), {"kernel_size": 4, "stride": 1, "dilation": 3, "padding": "same"}),
    "volume": ((5, 6, 19), {"kernel_size": 2}),
    "volume_overlap": ((5, 6, 18), {"kernel_size": (3, 2, 3), "stride": (2, 1, 2), "padding": 1}),
}
ADAPTIVE = [((7, 7), 3), ((13, 18), (6, 6)), ((8, 8), (4, 2)), ((5, 9), 1), ((4, 5), (7, 11)), ((17,), 5), ((4, 6, 7), (2, 3, 3)),
            ((6, 5), (None, 2))]


def image(size, layout, dtype="float32", seed=0, channels=3):
    """Few distinct values, so that maxima tie."""
    rng = np.random.default_rng(zlib.crc32(repr((size, layout, seed)).encode()))
    shape = (2, channels, *size) if layout == "NCHW" else (2, *size, channels)
    values = np.round(rng.standard_normal(shape) * 3)
    return np.abs(values).astype(dtype) if np.dtype(dtype).kind in "ub" else values.astype(dtype)


def each_case(names=CASES):
    return pytest.mark.parametrize("name", list(names))


both_layouts = pytest.mark.parametrize("layout", LAYOUTS)


# -- against the definition -----------------------------------------------------------------------------------------------


@both_layouts
@each_case()
def test_max_pool(name, layout):
    size, options = CASES[name]
    x = image(size, layout, channels=3 if layout == "NCHW" else 21)
    y, places = public("max_pool{}d", len(size))(x, **options, return_indices=True, layout=layout)
    expected = reference.max_pool(x, layout=layout, **options)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(places, reference.max_places(x, layout=layout, **options))
    assert places.dtype == np.int64
    np.testing.assert_array_equal(public("max_pool{}d", len(size))(x, **options, layout=layout), expected)
    flat = public("max_pool{}d", len(size))(x, **options, return_indices=True, flat_indices=True, layout=layout)[1]
    np.testing.assert_array_equal(x.ravel()[flat[flat >= 0]], y[places >= 0])
    assert ((flat < 0) == (places < 0)).all()


@both_layouts
@each_case()
def test_max_pool_backward(name, layout):
    size, options = CASES[name]
    x = image(size, layout, channels=3 if layout == "NCHW" else 21)
    y, places = public("max_pool{}d", len(size))(x, **options, return_indices=True, layout=layout)
    gy = np.random.default_rng(1).integers(-8, 9, y.shape).astype(np.float32)
    expected = reference.max_pool_backward(gy, x, layout=layout, **options)
    backward = public("max_pool{}d_backward", len(size))
    np.testing.assert_array_equal(backward(gy, x, **options, layout=layout), expected)
    np.testing.assert_array_equal(backward(gy, x, **options, indices=places, layout=layout), expected)
    np.testing.assert_array_equal(backward(gy.astype(float), x, **options, layout=layout), expected)


@both_layouts
@pytest.mark.parametrize("include", [True, False])
@each_case()
def test_avg_pool_and_its_adjoint(name, include, layout):
    size, options = CASES[name]
    x = image(size, layout, channels=3 if layout == "NCHW" else 21)
    options = options | {"count_include_pad": include, "layout": layout}
    y = public("avg_pool{}d", len(size))(x, **options)
    assert_close(y, reference.avg_pool(x.astype(float), **options), 1e-6)
    gy = np.random.default_rng(1).standard_normal(y.shape)
    gx = public("avg_pool{}d_backward", len(size))(gy, x.shape, **options)
    assert_close(gx, reference.avg_pool_backward(gy, x.shape, **options), 1e-14)
    exact = public("avg_pool{}d", len(size))(x.astype(float), **options)
    assert np.vdot(exact, gy) == pytest.approx(np.vdot(x.astype(float), gx), rel=1e-11, abs=1e-9)
    single = public("avg_pool{}d_backward", len(size))(gy.astype(np.float32), x.shape, **options)
    assert single.dtype == np.float32
    assert_close(single, gx, 1e-6)


@both_layouts
@pytest.mark.parametrize("p", [1, 2, 3, 2.5])
@pytest.mark.parametrize("convention", ["torch", "onnx"])
def test_lp_pool(convention, p, layout):
    size, options = CASES["ceil"]
    x = image(size, layout, "float64") + 0.25
    x = np.abs(x) if convention == "torch" else x
    options = options | {"convention": convention, "layout": layout}
    y = fc.lp_pool2d(x, p, **options)
    assert_close(y, reference.lp_pool(x, p, **options), 1e-13)
    gy, direction = np.random.default_rng(1).standard_normal(y.shape), np.random.default_rng(2).standard_normal(x.shape)
    gx = fc.lp_pool2d_backward(gy, x, p, **options)
    step = 1e-6
    slope = np.vdot(gy, fc.lp_pool2d(x + step * direction, p, **options) - fc.lp_pool2d(x - step * direction, p, **options)) / (2 * step)
    assert np.vdot(gx, direction) == pytest.approx(slope, rel=1e-6)


@both_layouts
@each_case()
def test_gradient_of_norms(name, layout):
    """x times the adjoint of the sum, at gy / y; a norm of zero passes nothing on."""
    size, options = CASES[name]
    x = image(size, layout, "float64", channels=3 if layout == "NCHW" else 21)
    x[0] = 0
    y = public("lp_pool{}d", len(size))(x, 2, **options, convention="onnx", layout=layout)
    gy = np.random.default_rng(1).standard_normal(y.shape)
    shares = np.divide(gy, y, out=np.zeros_like(y), where=y != 0)
    expected = x * public("avg_pool{}d_backward", len(size))(shares, x.shape, **options, divisor_override=1, layout=layout)
    backward = public("lp_pool{}d_backward", len(size))
    assert_close(backward(gy, x, 2, **options, convention="onnx", layout=layout), expected, 1e-13)
    single = backward(gy.astype(np.float32), x.astype(np.float32), 2, **options, convention="onnx", layout=layout)
    assert single.dtype == np.float32
    assert_close(single, expected, 1e-5)
    assert not single[0].any()


def test_lp_conventions_differ_where_they_should():
    x = np.array([[[-1.0, -2.0, 3.0]]])
    assert np.isnan(fc.lp_pool1d(x, 3, 2)).all()
    assert fc.lp_pool1d(x, 3, 2, convention="onnx")[0, 0, 0] == pytest.approx(9 ** (1 / 3))
    assert fc.lp_pool1d(x, 2, 2, ceil_mode=True)[0, 0, 1] == pytest.approx(18**0.5)
    assert fc.lp_pool1d(x, 2, 2, ceil_mode=True, convention="onnx")[0, 0, 1] == pytest.approx(3)
    assert not fc.lp_pool1d_backward(np.ones((1, 1, 1)), np.zeros((1, 1, 2)), 2, 2).any()


@both_layouts
@pytest.mark.parametrize(("size", "outputs"), ADAPTIVE, ids=str)
def test_adaptive_pools(size, outputs, layout):
    x = image(size, layout, channels=3 if layout == "NCHW" else 21)
    options = {"output_size": outputs, "layout": layout}
    y = public("adaptive_avg_pool{}d", len(size))(x, **options)
    assert_close(y, reference.avg_pool(x.astype(float), count_include_pad=False, **options), 1e-6)
    gy = np.random.default_rng(1).integers(-8, 9, y.shape).astype(np.float64)
    gx = public("adaptive_avg_pool{}d_backward", len(size))(gy, x.shape, layout=layout)
    assert_close(gx, reference.avg_pool_backward(gy, x.shape, count_include_pad=False, **options), 1e-13)
    high, places = public("adaptive_max_pool{}d", len(size))(x, outputs, return_indices=True, layout=layout)
    np.testing.assert_array_equal(high, reference.max_pool(x, **options))
    np.testing.assert_array_equal(places, reference.max_places(x, **options))
    for indices in (None, places):
        back = public("adaptive_max_pool{}d_backward", len(size))(gy, x, indices=indices, layout=layout)
        np.testing.assert_array_equal(back, reference.max_pool_backward(gy, x.astype(float), **options))


@both_layouts
@pytest.mark.parametrize("size", [(7, 7), (1, 1), (41,), (70, 90), (3, 4, 5)], ids=str)
def test_global_pools(size, layout):
    x = image(size, layout, channels=19)
    axes = tuple(range(2, 2 + len(size))) if layout == "NCHW" else tuple(range(1, 1 + len(size)))
    assert_close(fc.global_avg_pool(x, layout=layout), x.mean(axes, keepdims=True, dtype=float), 1e-6)
    np.testing.assert_array_equal(fc.global_max_pool(x, layout=layout), x.max(axes, keepdims=True))
    gy = np.random.default_rng(0).standard_normal(x.mean(axes, keepdims=True).shape)
    assert_close(fc.global_avg_pool_backward(gy, x.shape, layout=layout), np.broadcast_to(gy, x.shape) / np.prod(size), 1e-15)
    options = {"kernel_size": size, "layout": layout}
    expected = reference.max_pool_backward(gy, x.astype(float), **options)
    np.testing.assert_array_equal(fc.global_max_pool_backward(gy, x, layout=layout), expected)


# -- unpooling ------------------------------------------------------------------------------------------------------------


@both_layouts
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("name", ["vgg", "vgg_odd", "line", "volume", "resnet"])
def test_max_unpool(name, flat, layout):
    size, options = CASES[name]
    x = image(size, layout) + 100
    y, places = public("max_pool{}d", len(size))(x, **options, return_indices=True, flat_indices=flat, layout=layout)
    back = public("max_unpool{}d", len(size))(y, places, **options, output_size=size, flat_indices=flat, layout=layout)
    mask = reference.max_pool_backward(np.ones_like(y), x, layout=layout, **options) > 0
    np.testing.assert_array_equal(back, np.where(mask, x, 0))
    gy = np.random.default_rng(0).standard_normal(x.shape)
    taken = public("max_unpool{}d_backward", len(size))(gy, places, flat_indices=flat, layout=layout)
    if flat:
        np.testing.assert_array_equal(taken, gy.ravel()[places])
    repeated = public("max_pool{}d_backward", len(size))(taken, x, **options, indices=places, flat_indices=flat, layout=layout)
    assert np.vdot(taken, taken) == pytest.approx(np.vdot(repeated, gy))


def test_max_unpool_sizes():
    y, places = fc.max_pool2d(np.arange(25.0).reshape(1, 1, 5, 5), 2, return_indices=True)
    assert fc.max_unpool2d(y, places, 2, output_size=(1, 1, 5, 5)).shape == (1, 1, 5, 5)
    with pytest.raises(ValueError, match="output_size"):
        fc.max_unpool2d(y, places, 2, output_size=(7, 7))
    out = np.full((1, 1, 4, 4), 7.0)
    with pytest.raises(ValueError, match="indices"):
        fc.max_unpool2d(y, places, 2, out=out)
    assert (out == 7).all()


# -- values ---------------------------------------------------------------------------------------------------------------


@both_layouts
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "bool", "float16"])
def test_max_pool_keeps_the_dtype(dtype, layout):
    size, options = CASES["resnet"]
    x = image(size, layout, dtype)
    y, places = fc.max_pool2d(x, **options, return_indices=True, layout=layout)
    plain = fc.max_pool2d(x, **options, layout=layout)
    assert y.dtype == plain.dtype == x.dtype
    np.testing.assert_array_equal(plain, reference.max_pool(x, layout=layout, **options))
    np.testing.assert_array_equal(y, plain)
    np.testing.assert_array_equal(places, reference.max_places(x, layout=layout, **options))


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_large_integers_are_exact(dtype):
    limit = np.iinfo(dtype).max
    x = np.array([[[limit - 1, limit, limit - 2, 0]]], dtype)
    np.testing.assert_array_equal(fc.max_pool1d(x, 2), [[[limit, limit - 2]]])


@both_layouts
@pytest.mark.parametrize("name", ["vgg", "resnet", "inception", "stride_of_three", "volume", "whole"])
def test_nan_wins(name, layout):
    """NaN is the maximum of a window that holds one, and of several the last one's place counts."""
    size, options = CASES[name]
    x = image(size, layout)
    x[np.random.default_rng(0).random(x.shape) < 0.1] = np.nan
    x[0] = np.where(x[0] > 2, np.inf, np.where(x[0] < -2, -np.inf, x[0]))
    pool = public("max_pool{}d", len(size))
    y, places = pool(x, **options, return_indices=True, layout=layout)
    expected = reference.max_pool(x, layout=layout, **options)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(pool(x, **options, layout=layout), expected)
    np.testing.assert_array_equal(places, reference.max_places(x, layout=layout, **options))
    gy = np.random.default_rng(1).integers(-8, 9, y.shape).astype(np.float32)
    gx = public("max_pool{}d_backward", len(size))(gy, x, **options, layout=layout)
    np.testing.assert_array_equal(gx, reference.max_pool_backward(gy, x, layout=layout, **options))


def test_minus_infinity_has_a_place():
    x = np.full((1, 1, 2, 40), -np.inf, np.float32)
    y, places = fc.max_pool2d(x, 2, padding=1, return_indices=True)
    np.testing.assert_array_equal(places, reference.max_places(x, kernel_size=2, padding=1))
    assert np.isneginf(y).all()


def test_means_of_other_dtypes():
    x = np.arange(16).reshape(1, 1, 4, 4)
    mean = np.array([[[[2.5, 4.5], [10.5, 12.5]]]])
    for dtype, result in (("int32", "float64"), ("uint8", "float64"), ("float16", "float16"), ("complex64", "complex64")):
        y = fc.avg_pool2d(x.astype(dtype), 2)
        assert y.dtype == result
        np.testing.assert_array_equal(y, mean)
    for shape in ((1, 1, 7, 4), (1, 1, 14, 8)):  # one window and several; times float32(1 / 28) would not give 3
        assert (fc.avg_pool2d(np.full(shape, 3, np.float32), (7, 4)) == 3).all()
    np.testing.assert_array_equal(fc.avg_pool2d(x, 2, divisor_override=1), 4 * mean)


@both_layouts
def test_out_and_awkward_inputs(layout):
    """Poisoned outputs are filled; unbatched, strided, read-only and byte-swapped inputs give the same; inputs stay as they are."""
    size, options = CASES["resnet"]
    x = image(size, layout)
    for pool in (fc.max_pool2d, fc.avg_pool2d, lambda a, **k: fc.lp_pool2d(np.abs(a), 2, **k)):
        y = pool(x, **options, layout=layout)
        out = poisoned(y.shape, y.dtype)
        assert pool(x, **options, layout=layout, out=out) is out
        np.testing.assert_array_equal(out, y)
        strided = poisoned((*y.shape, 2), y.dtype)[..., 0]
        pool(x, **options, layout=layout, out=strided)
        np.testing.assert_array_equal(strided, y)
        np.testing.assert_array_equal(pool(x[1], **options, layout=layout), y[1])
        np.testing.assert_array_equal(pool(x.astype(">f4"), **options, layout=layout), y)
        np.testing.assert_array_equal(pool(np.repeat(x, 2, axis=0)[::2], **options, layout=layout), y)
        frozen = x.copy()
        frozen.flags.writeable = False
        np.testing.assert_array_equal(pool(frozen, **options, layout=layout), y)
        np.testing.assert_array_equal(frozen, x)


def test_zero_size_batches():
    assert fc.max_pool2d(np.ones((0, 3, 8, 8)), 2).shape == (0, 3, 4, 4)
    assert fc.max_pool2d_backward(np.ones((0, 3, 4, 4)), np.ones((0, 3, 8, 8)), 2).shape == (0, 3, 8, 8)
    assert fc.avg_pool2d(np.ones((2, 0, 8, 8)), 2).shape == (2, 0, 4, 4)
    assert fc.avg_pool2d_backward(np.ones((2, 0, 4, 4)), (2, 0, 8, 8), 2).shape == (2, 0, 8, 8)
    assert fc.global_avg_pool(np.ones((0, 3, 8, 8))).shape == (0, 3, 1, 1)


# -- bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x: fc.max_pool2d(x, 0), ValueError, "kernel_size"),
        (lambda x: fc.max_pool2d(x, 2.0), TypeError, "kernel_size"),
        (lambda x: fc.max_pool2d(x, (2, 2, 2)), ValueError, "kernel_size"),
        (lambda x: fc.max_pool2d(x, 2, stride=0), ValueError, "stride"),
        (lambda x: fc.max_pool2d(x, 2, padding=-1), ValueError, "padding"),
        (lambda x: fc.max_pool2d(x, 2, padding="some"), ValueError, "padding"),
        (lambda x: fc.max_pool2d(x, 2, dilation=(1, True)), TypeError, "dilation"),
        (lambda x: fc.max_pool2d(x, 2, ceil_mode=1), TypeError, "ceil_mode"),
        (lambda x: fc.max_pool2d(x, 2, layout="CHWN"), ValueError, "layout"),
        (lambda x: fc.max_pool2d(x, 20), ValueError, "kernel_size"),
        (lambda x: fc.max_pool2d(x[0, 0], 2), ValueError, "x must have"),
        (lambda x: fc.max_pool2d(x * 1j, 2), TypeError, "complex"),
        (lambda x: fc.max_pool2d(x, 2, out=np.empty((1, 1))), ValueError, "out"),
        (lambda x: fc.max_pool2d(np.ones((1, 2, 0, 4)), 2), ValueError, "x must have"),
        (lambda x: fc.max_pool2d_backward(np.ones((1, 2, 3, 3)), x, 2), ValueError, "gy"),
        (lambda x: fc.max_pool2d_backward(np.ones((1, 2, 4, 4)), x, 2, indices=np.ones((1, 2, 4, 4))), TypeError, "indices"),
        (lambda x: fc.max_pool2d_backward(np.ones((1, 2, 4, 4)), x, 2, indices=np.full((1, 2, 4, 4), 64)), ValueError, "indices"),
        (lambda x: fc.avg_pool2d(x, 2, divisor_override=0), ValueError, "divisor_override"),
        (lambda x: fc.avg_pool2d_backward(np.ones((1, 2, 4, 4)), (1, 2, 9), 2), ValueError, "gy|input_shape"),
        (lambda x: fc.lp_pool2d(x, -1, 2), ValueError, "norm_type"),
        (lambda x: fc.lp_pool2d(x, 2, 2, convention="tf"), ValueError, "convention"),
        (lambda x: fc.adaptive_avg_pool2d(x, 0), ValueError, "output_size"),
        (lambda x: fc.global_avg_pool(x[0, 0]), ValueError, "x must have"),
        (lambda x: fc.max_unpool2d(x, np.full(x.shape, 1000), 2), ValueError, "indices"),
        (lambda x: fc.max_unpool2d(x, np.zeros((1, 2, 3, 3), int), 2), ValueError, "indices"),
        (lambda x: fc.max_unpool2d_backward(x, np.zeros((1, 3, 4, 4), int)), ValueError, "indices"),
    ],
)
def test_errors_name_the_argument(call, error, words):
    with pytest.raises(error, match=words):
        call(np.ones((1, 2, 8, 8)))



# -- how gradients of maxima are cut up -------------------------------------------------------------------------------------


CUTS = {
    "planes": ((3, 5, 12, 11), {"kernel_size": 2}),
    "many_outputs": ((3, 5, 70, 75), {"kernel_size": 2}),
    "bands": ((1, 1, 201, 150), {"kernel_size": 3, "stride": 2, "padding": 1}),
    "bands_that_overlap": ((1, 2, 90, 120), {"kernel_size": 7, "stride": 2, "padding": 3, "dilation": 1}),
    "bands_with_gaps": ((1, 1, 150, 200), {"kernel_size": 2, "stride": 9}),
    "bands_of_slices": ((1, 2, 30, 20, 41), {"kernel_size": (3, 2, 2), "stride": (2, 3, 1)}),
    "line": ((1, 2, 40000), {"kernel_size": 5, "stride": 2, "padding": 2}),
    "dilated": ((1, 3, 90, 121), {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 4}),
    "largest_tap": ((2, 3, 40, 50), {"kernel_size": (15, 17), "stride": 5}),
    "too_many_taps": ((2, 3, 40, 50), {"kernel_size": (16, 16), "stride": 5}),
}


@both_layouts
@pytest.mark.parametrize("name", CUTS)
def test_gradients_by_taps_and_by_indices_agree(name, layout):
    """By the taps that the layer keeps, by those found again, and by indices; NaN and ties included."""
    shape, options = CUTS[name]
    rank = len(shape) - 2
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 4, shape).astype(np.float32)
    x[rng.random(shape) < 0.01] = np.nan
    x = x if layout == "NCHW" else np.ascontiguousarray(np.moveaxis(x, 1, -1))
    y, indices = public("max_pool{}d", rank)(x, **options, return_indices=True, layout=layout)
    gy = rng.integers(-9, 10, y.shape).astype(np.float32)
    backward = public("max_pool{}d_backward", rank)
    wanted = backward(gy, x, **options, indices=indices, layout=layout)
    np.testing.assert_array_equal(backward(gy, x, **options, layout=layout), wanted)
    layer = getattr(nn, f"MaxPool{rank}d")(**options, layout=layout)
    kept, backprop = layer.forward(x)
    np.testing.assert_array_equal(kept, y)
    np.testing.assert_array_equal(backprop(gy), wanted)


@both_layouts
@pytest.mark.parametrize("size", [(13, 9), (20, 20)])
def test_adaptive_gradients_by_taps_and_by_indices_agree(size, layout):
    """Windows of different sizes, and whole images of more points than a tap can count."""
    x = np.random.default_rng(0).integers(-3, 4, (2, 5, *size)).astype(np.float32)
    x = x if layout == "NCHW" else np.ascontiguousarray(np.moveaxis(x, 1, -1))
    for outputs, layer in ((6, nn.AdaptiveMaxPool2d(6, layout=layout)), (1, nn.GlobalMaxPool(layout=layout))):
        y, indices = fc.adaptive_max_pool2d(x, outputs, return_indices=True, layout=layout)
        gy = np.random.default_rng(1).integers(-9, 10, y.shape).astype(np.float32)
        wanted = fc.adaptive_max_pool2d_backward(gy, x, indices=indices, layout=layout)
        np.testing.assert_array_equal(layer.forward(x)[1](gy), wanted)
        np.testing.assert_array_equal(fc.adaptive_max_pool2d_backward(gy, x, layout=layout), wanted)


# -- PyTorch --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vgg_odd", "resnet", "ceil", "dilation", "inception", "line", "volume"])
def test_as_pytorch(name):
    torch = pytest.importorskip("torch")
    size, options = CASES[name]
    if name == "dilation":
        options = {**options, "padding": 1}  # PyTorch pads by half a kernel at most
    x = image(size, "NCHW")
    x[0, 0].ravel()[[3, 4, 9]] = np.nan
    theirs = getattr(torch.nn.functional, f"max_pool{len(size)}d")(torch.from_numpy(x), **options, return_indices=True)
    for mine, other in zip(public("max_pool{}d", len(size))(x, **options, return_indices=True), theirs):
        np.testing.assert_array_equal(mine, other.numpy())
    if "dilation" not in options:
        for include in (True, False):
            other = getattr(torch.nn.functional, f"avg_pool{len(size)}d")(torch.from_numpy(x), **options, count_include_pad=include)
            mine = public("avg_pool{}d", len(size))(x, **options, count_include_pad=include)
            np.testing.assert_allclose(mine, other.numpy(), rtol=1e-5, atol=1e-6)
