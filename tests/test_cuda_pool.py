"""Pooling of a GPU's arrays against the processor's answers: in the simulator, or on a GPU. See `test_cuda.py` for how to run it."""

import itertools

import numpy as np
import pytest

import fastconv as fc
from fastconv.backends._cuda.driver import absence

pytestmark = pytest.mark.skipif(absence() is not None, reason=str(absence()))
cuda = pytest.importorskip("numba.cuda")

# (ndim, input shape, options) of sliding windows; the names are their hazards.
SLIDING = {
    "2x2": (2, (2, 3, 6, 7), {"kernel_size": 2}),
    "overlapping": (2, (1, 3, 7, 6), {"kernel_size": 3, "stride": 2, "padding": 1}),
    "gaps": (2, (1, 2, 9, 8), {"kernel_size": 2, "stride": 3}),
    "dilated": (2, (1, 2, 9, 8), {"kernel_size": (2, 3), "stride": (2, 1), "padding": (1, 1), "dilation": (2, 3)}),
    "ceil": (2, (1, 2, 7, 8), {"kernel_size": 3, "stride": 2, "padding": (0, 1), "ceil_mode": True}),
    "uneven_pads": (2, (1, 2, 5, 4), {"kernel_size": 3, "stride": 1, "padding": ((2, 1), (0, 2))}),
    "window_in_padding": (1, (1, 2, 5), {"kernel_size": 2, "stride": 1, "padding": ((3, 2),)}),
    "1d": (1, (2, 3, 11), {"kernel_size": 3, "stride": 2, "padding": 1}),
    "3d": (3, (1, 2, 4, 5, 6), {"kernel_size": (2, 3, 2), "stride": (1, 2, 2), "padding": (1, 1, 0)}),
    "single": (2, (3, 6, 5), {"kernel_size": 2}),
    "empty_batch": (2, (0, 3, 6, 5), {"kernel_size": 2}),
}
ADAPTIVE = {"divides": (2, (1, 3, 6, 8), (3, 2)), "uneven": (2, (2, 3, 7, 5), (3, 4)), "1d": (1, (1, 2, 9), 4),
            "3d": (3, (1, 2, 3, 4, 5), 2), "whole": (2, (2, 3, 5, 4), 1)}
LAYOUTS = ["NCHW", "NHWC"]


def image(shape, layout, ndim, dtype="float32"):
    """Standard normal numbers with ties, in a layout."""
    x = np.round(np.random.default_rng(0).standard_normal(shape) * 4).astype(dtype)
    return np.ascontiguousarray(np.moveaxis(x, -1 - ndim, -1)) if layout == "NHWC" else x


def assert_same(name, operands, options):
    """A function gives for a GPU's arrays what it gives for NumPy's, as arrays of the GPU."""
    call = getattr(fc, name)
    there = [cuda.to_device(a) if isinstance(a, np.ndarray) else a for a in operands]
    options_there = {key: cuda.to_device(value) if isinstance(value, np.ndarray) else value for key, value in options.items()}
    actual, desired = call(*there, **options_there), call(*operands, **options)
    pairs = zip(actual, desired, strict=True) if isinstance(desired, tuple) else [(actual, desired)]
    for result, wanted in pairs:
        assert type(result) is type(there[0])
        assert result.dtype == wanted.dtype
        assert tuple(result.shape) == wanted.shape
        np.testing.assert_allclose(result.copy_to_host(), wanted, rtol=1e-3 if wanted.dtype == np.float16 else 2e-6, atol=1e-6)
    return desired


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", SLIDING)
def test_max_pool(case, layout):
    """Maxima, the places of them, and the gradient with the places and without."""
    ndim, shape, options = SLIDING[case]
    x, options = image(shape, layout, ndim), options | {"layout": layout}
    for flat in (False, True):
        y, places = assert_same(f"max_pool{ndim}d", [x], options | {"return_indices": True, "flat_indices": flat})
        gy = np.arange(1, y.size + 1, dtype=np.float32).reshape(y.shape)
        gx = assert_same(f"max_pool{ndim}d_backward", [gy, x], options | {"indices": places, "flat_indices": flat})
    assert_same(f"max_pool{ndim}d", [x], options)
    searched = getattr(fc, f"max_pool{ndim}d_backward")(cuda.to_device(gy), cuda.to_device(x), **options)
    np.testing.assert_array_equal(searched.copy_to_host(), gx)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", SLIDING)
def test_avg_pool(case, layout):
    """Averages over all points, over those inside, over a number, and their gradients."""
    ndim, shape, options = SLIDING[case]
    x = image(shape, layout, ndim)
    for divisor in ({}, {"count_include_pad": False}, {"divisor_override": 3}):
        y = assert_same(f"avg_pool{ndim}d", [x], options | divisor | {"layout": layout})
        assert_same(f"avg_pool{ndim}d_backward", [y, x.shape], options | divisor | {"layout": layout})


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", ADAPTIVE)
def test_adaptive_pool(case, layout):
    """Windows that share an image out, down to one."""
    ndim, shape, size = ADAPTIVE[case]
    x = image(shape, layout, ndim)
    y = assert_same(f"adaptive_avg_pool{ndim}d", [x, size], {"layout": layout})
    assert_same(f"adaptive_avg_pool{ndim}d_backward", [y, x.shape], {"layout": layout})
    assert_same(f"adaptive_max_pool{ndim}d", [x, size], {"layout": layout, "return_indices": True})
    assert_same(f"adaptive_max_pool{ndim}d_backward", [y, x], {"layout": layout})


@pytest.mark.parametrize(("layout", "ndim"), list(itertools.product(LAYOUTS, (1, 2, 3))))
def test_global_pool(layout, ndim):
    """One window an image."""
    x = image((2, 3, 4, 5, 3)[:ndim + 2], layout, ndim)
    for kind, source in (("avg", x.shape), ("max", x)):
        y = assert_same(f"global_{kind}_pool", [x], {"layout": layout})
        assert_same(f"global_{kind}_pool_backward", [y, source], {"layout": layout})


@pytest.mark.parametrize("dtype", ["float16", "float64", "bool", "int8", "uint8", "int16", "int64", "uint32"])
def test_types(dtype):
    """Maxima are of x's type, averages of integers float64."""
    x = image((1, 2, 6, 5), "NCHW", 2, "float64").astype(dtype)
    assert_same("max_pool2d", [x, 3], {"padding": 1, "return_indices": True})
    assert_same("avg_pool2d", [x, 2], {})
    out = cuda.to_device(np.zeros((1, 2, 3, 2), dtype))
    assert fc.max_pool2d(cuda.to_device(x), 2, out=out) is out
    np.testing.assert_array_equal(out.copy_to_host(), fc.max_pool2d(x, 2))


def test_nonfinite():
    """A NaN wins, the last of several; windows of minus infinities have a place."""
    x = np.zeros((1, 1, 6, 6), np.float32)
    x[0, 0, :2, :2] = -np.inf
    x[0, 0, 2:4, 2:5] = np.nan
    x[0, 0, 5, 5] = np.inf
    assert_same("max_pool2d", [x, 2], {"return_indices": True})
    assert_same("max_pool2d", [x, 3], {"stride": 1, "padding": 1, "return_indices": True})
    assert_same("avg_pool2d", [x, 2], {"stride": 1, "padding": 1})


def test_wrong_arguments():
    """Arrays of both kinds, shapes that do not fit, and what the GPU has no kernel for."""
    x = np.zeros((1, 1, 4, 4), np.float32)
    there = cuda.to_device(x)
    with pytest.raises(TypeError, match="GPU"):
        fc.max_pool2d_backward(np.zeros((1, 1, 2, 2), np.float32), there, 2)
    with pytest.raises(ValueError, match="gy"):
        fc.max_pool2d_backward(there, there, 2)
    with pytest.raises(ValueError, match="gy"):
        fc.avg_pool2d_backward(there, (1, 1, 4, 4), 2)
    with pytest.raises(TypeError, match="not computed on a GPU"):
        fc.lp_pool2d(there, 2, 2)
    with pytest.raises(TypeError, match="compared"):
        fc.max_pool2d(cuda.to_device(x.astype(np.complex64)), 2)
