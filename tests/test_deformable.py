"""Deformable convolutions against their definition; gradients against differences."""

import numpy as np
import pytest
import reference_operations as reference

import fastconv as fc

CASES = {
    "plain": ((1, 2, 5, 6), (3, 2, 3, 3), 1, {}),
    "padded_groups": ((2, 4, 6, 5), (4, 2, 3, 2), 2, {"padding": 1, "groups": 2}),
    "strided_dilated": ((1, 6, 9, 8), (2, 6, 2, 3), 3, {"stride": (2, 1), "dilation": (1, 2), "padding": ((0, 2), (1, 0))}),
    "more_than_a_block": ((1, 35, 4, 4), (2, 35, 2, 2), 1, {"padding": 1}),
}


def arrays(name, masked=True):
    shape, weight_shape, sharing, options = CASES[name]
    rng = np.random.default_rng(21)
    x, w = rng.standard_normal(shape), rng.standard_normal(weight_shape)
    out = fc.conv2d(x, w, **options).shape[2:]
    taps = int(np.prod(weight_shape[2:]))
    offset = 2 * rng.standard_normal((shape[0], 2 * sharing * taps, *out))
    mask = rng.standard_normal((shape[0], sharing * taps, *out)) if masked else None
    return x, offset, w, rng.standard_normal(weight_shape[0]), mask, sharing, options


def last(array):
    return None if array is None else np.moveaxis(array, 1, -1)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_forward(name, masked):
    """float64 and float32, both layouts, a single sample."""
    x, offset, w, bias, mask, sharing, options = arrays(name, masked)
    desired = reference.deform_conv2d(x, offset, w, bias, mask, offset_groups=sharing, **options)
    np.testing.assert_allclose(fc.deform_conv2d(x, offset, w, bias, mask=mask, **options), desired, rtol=1e-11, atol=1e-11)
    single = fc.deform_conv2d(x[0], offset[0], w, bias, mask=None if mask is None else mask[0], offset_groups=sharing, **options)
    np.testing.assert_allclose(single, desired[0], rtol=1e-11, atol=1e-11)
    small = [None if a is None else a.astype(np.float32) for a in (x, offset, w, bias, mask)]
    np.testing.assert_allclose(fc.deform_conv2d(*small[:4], mask=small[4], **options), desired, rtol=1e-3, atol=1e-3)
    moved = fc.deform_conv2d(last(x), last(offset), w.transpose(2, 3, 1, 0), bias, mask=last(mask), layout="NHWC", **options)
    np.testing.assert_allclose(np.moveaxis(moved, -1, 1), desired, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", CASES)
def test_gradients(name):
    """Directional derivatives by central differences, and the same channels last."""
    x, offset, w, bias, mask, _, options = arrays(name)
    rng = np.random.default_rng(22)
    operands = [x, offset, w, bias, mask]

    def value(operands):
        return fc.deform_conv2d(*operands[:4], mask=operands[4], **options)

    gy = rng.standard_normal(value(operands).shape)
    gradients = fc.deform_conv2d_backward(gy, x, offset, w, mask=mask, **options)
    for i, (operand, gradient) in enumerate(zip(operands, gradients, strict=True)):
        direction = rng.standard_normal(operand.shape)
        ends = [value([*operands[:i], operand + step * direction, *operands[i + 1:]]) for step in (1e-7, -1e-7)]
        assert np.vdot(gradient, direction) == pytest.approx(np.vdot(ends[0] - ends[1], gy) / 2e-7, rel=1e-5, abs=1e-5)
    moved = fc.deform_conv2d_backward(last(gy), last(x), last(offset), w.transpose(2, 3, 1, 0), mask=last(mask), layout="NHWC", **options)
    for i in (0, 1, 4):
        np.testing.assert_allclose(np.moveaxis(moved[i], -1, 1), gradients[i], rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(moved[2].transpose(3, 2, 0, 1), gradients[2], rtol=1e-11, atol=1e-11)


def test_no_offset_is_a_convolution():
    """Zero offsets; a NaN in x reaches what the convolution's NaN reaches, save where its weight is zero."""
    rng = np.random.default_rng(23)
    x, w = rng.standard_normal((2, 3, 8, 9)), rng.standard_normal((4, 3, 3, 3))
    offset = np.zeros((2, 18, 8, 9))
    np.testing.assert_allclose(fc.deform_conv2d(x, offset, w, padding=1), fc.conv2d(x, w, padding=1), rtol=1e-12, atol=1e-12)
    far = fc.deform_conv2d(x, offset + 100, w, padding=1)
    np.testing.assert_array_equal(far, 0)
    assert np.isfinite(fc.deform_conv2d(x, np.full_like(offset, np.nan), w, padding=1)).all()
    assert np.isfinite(fc.deform_conv2d(x, np.full_like(offset, 1e300), w, padding=1)).all()
    x[0, 0, 0, 0] = np.nan
    assert np.isfinite(fc.deform_conv2d(x, offset + 100, w, padding=1)).all()


@pytest.mark.parametrize("images", [1, 1 << 30])
def test_few_images_at_a_time(images, monkeypatch):
    """The samples of some images at a time give what all at once give."""
    from fastconv import deformable

    monkeypatch.setattr(deformable, "COLUMNS_BYTES", images)
    deformable._deformable.cache_clear()
    x, offset, w, bias, mask, sharing, options = arrays("padded_groups")
    desired = reference.deform_conv2d(x, offset, w, bias, mask, offset_groups=sharing, **options)
    np.testing.assert_allclose(fc.deform_conv2d(x, offset, w, bias, mask=mask, **options), desired, rtol=1e-11, atol=1e-11)
    deformable._deformable.cache_clear()


def test_wrong_arguments():
    """Each names its argument."""
    x, offset, w, _, mask, _, _ = arrays("plain")
    for call, error, match in [
        (lambda: fc.deform_conv2d(x, offset[:, :17], w), ValueError, "offset must have"),
        (lambda: fc.deform_conv2d(x, offset[..., 1:], w), ValueError, "offset must have shape"),
        (lambda: fc.deform_conv2d(x, offset, w, mask=mask[:, 1:]), ValueError, "mask must have shape"),
        (lambda: fc.deform_conv2d(x, offset, w, offset_groups=2), ValueError, "offset_groups=2"),
        (lambda: fc.deform_conv2d(x, offset, w, groups=0), ValueError, "groups"),
        (lambda: fc.deform_conv2d(x, offset, w, np.ones(2)), ValueError, "bias"),
        (lambda: fc.deform_conv2d(x, offset, w[0]), ValueError, "w must have 4"),
        (lambda: fc.deform_conv2d(x, offset, w, layout="CHW"), ValueError, "layout"),
        (lambda: fc.deform_conv2d(x.astype(int), offset.astype(int), w.astype(int)), TypeError, "floating-point"),
        (lambda: fc.deform_conv2d_backward(x, x, offset, w), ValueError, "gy must have shape"),
    ]:
        with pytest.raises(error, match=match):
            call()
    empty = fc.deform_conv2d(x[:0], offset[:0], w)
    assert empty.shape == (0, 3, 3, 4)
