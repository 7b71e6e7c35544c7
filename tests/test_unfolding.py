"""unfold and fold against their definitions: all ranks, layouts and dtypes, adjointness, wrong arguments."""

import numpy as np
import pytest
import reference_operations as reference
from helpers import integers, python
from hypothesis import given
from hypothesis import strategies as st

import fastconv as fc

# name, input shape, kernel, options
CASES = {
    "single_pixel": ((1, 1, 1, 1), (1, 1), {}),
    "same_3x3": ((2, 3, 7, 7), (3, 3), {"padding": 1}),
    "same_wide": ((1, 2, 5, 70), (3, 5), {"padding": (1, 2)}),
    "valid": ((2, 5, 9, 21), (3, 3), {}),
    "asymmetric": ((1, 2, 6, 9), (2, 3), {"padding": ((0, 2), (3, 1))}),
    "border_wider_than_input": ((1, 2, 2, 2), (3, 3), {"padding": 4}),
    "stride_2": ((1, 3, 17, 67), (3, 3), {"stride": 2, "padding": 1}),
    "stride_3_dilation_2": ((2, 2, 19, 23), (3, 4), {"stride": 3, "dilation": 2, "padding": 2}),
    "stride_4_dilation_6": ((1, 2, 25, 31), (3, 3), {"stride": 4, "dilation": 6, "padding": 3}),
    "patches": ((1, 3, 16, 32), (8, 8), {"stride": 8}),
    "gaps": ((1, 2, 11, 14), (2, 2), {"stride": 5}),
    "dilated_same": ((1, 3, 12, 35), (3, 3), {"dilation": 3, "padding": 3}),
    "line": ((2, 3, 40), (5,), {"padding": 2}),
    "line_stride_2": ((1, 20, 77), (4,), {"stride": 2, "padding": (((1, 3)),)}),
    "volume": ((1, 2, 5, 6, 7), (2, 3, 3), {"padding": 1}),
    "volume_stride": ((2, 17, 6, 5, 9), (3, 2, 3), {"stride": (2, 1, 3), "dilation": (1, 2, 1), "padding": (1, 1, 0)}),
    "many_planes": ((3, 40, 6, 6), (3, 3), {"padding": 1}),
    "large": ((1, 3, 90, 130), (3, 3), {"padding": 1}),
}


def columns_of(windows, layout):
    """(N, C, taps, L) as unfold writes it."""
    n, c, taps, points = windows.shape
    return windows.reshape(n, c * taps, points) if layout == "NCHW" else windows.transpose(0, 3, 2, 1).reshape(n, points, c * taps)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64", "int8", "uint16", "bool", "float16", "complex64", "complex128"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("name", CASES)
def test_against_definition(name, layout, dtype):
    """Copies are exact, and so are sums of small integers."""
    shape, kernel, options = CASES[name]
    if dtype not in ("float32", "float64") and name not in ("same_3x3", "stride_3_dilation_2", "volume"):
        pytest.skip("one dtype's kernels are the other's")
    rng = np.random.default_rng(7)
    x = integers(rng, shape, dtype)
    windows = reference.unfold(x, kernel, **options)
    given_x = x if layout == "NCHW" else np.moveaxis(x, 1, -1)
    columns = fc.unfold(given_x, kernel, **options, layout=layout)
    assert columns.dtype == x.dtype
    np.testing.assert_array_equal(columns, columns_of(windows, layout))
    np.testing.assert_array_equal(fc.fold_backward(given_x, kernel, **options, layout=layout), columns)
    g = integers(rng, windows.shape, dtype)
    widened = g.astype(np.int64) if g.dtype.kind in "biu" else g
    desired = reference.fold(widened, shape[2:], kernel, **options)
    image = fc.fold(columns_of(g, layout), shape[2:], kernel, **options, layout=layout)
    assert image.dtype == (g.dtype if g.dtype.kind in "fc" else np.int32 if g.dtype.itemsize == 1 else np.int64)
    np.testing.assert_array_equal(image if layout == "NCHW" else np.moveaxis(image, -1, 1), desired)
    np.testing.assert_array_equal(fc.unfold_backward(columns_of(g, layout), given_x.shape, kernel, **options, layout=layout), image)


@given(st.data())
def test_random_shapes(data):
    """Sizes, strides and pads of any kind."""
    rank = data.draw(st.integers(1, 2))
    draw = lambda low, high: tuple(data.draw(st.integers(low, high)) for _ in range(rank))  # noqa: E731
    kernel, stride, dilation, low, high = draw(1, 5), draw(1, 4), draw(1, 3), draw(0, 4), draw(0, 4)
    size = tuple(
        max(1, d * (k - 1) + 1 - a - b + e) for k, d, a, b, e in zip(kernel, dilation, low, high, draw(0, 40), strict=True)
    )
    options = {"stride": stride, "dilation": dilation, "padding": tuple(zip(low, high, strict=True))}
    x = np.arange(2 * np.prod(size), dtype=np.float32).reshape(1, 2, *size)
    windows = reference.unfold(x, kernel, **options)
    np.testing.assert_array_equal(fc.unfold(x, kernel, **options), columns_of(windows, "NCHW"))
    np.testing.assert_array_equal(
        fc.fold(columns_of(windows, "NCHW"), size, kernel, **options), reference.fold(windows, size, kernel, **options)
    )


@pytest.mark.parametrize("name", CASES)
def test_adjoint(name):
    """<unfold(x), g> = <x, fold(g)>."""
    shape, kernel, options = CASES[name]
    rng = np.random.default_rng(8)
    x = rng.standard_normal(shape)
    columns = fc.unfold(x, kernel, **options)
    g = rng.standard_normal(columns.shape)
    assert np.vdot(columns, g) == pytest.approx(np.vdot(x, fc.fold(g, shape[2:], kernel, **options)), rel=1e-11, abs=1e-10)


@pytest.mark.parametrize("name", ["same_3x3", "stride_2", "patches", "dilated_same", "large"])
def test_beside_pytorch(name):
    """The same columns and images, bit for bit and up to the order of a sum."""
    torch = pytest.importorskip("torch")
    shape, kernel, options = CASES[name]
    x = np.random.default_rng(9).standard_normal(shape, dtype=np.float32)
    columns = torch.nn.functional.unfold(torch.from_numpy(x), kernel, **options)
    np.testing.assert_array_equal(fc.unfold(x, kernel, **options), columns.numpy())
    image = torch.nn.functional.fold(columns, shape[2:], kernel, **options)
    np.testing.assert_allclose(fc.fold(columns.numpy(), shape[2:], kernel, **options), image.numpy(), rtol=1e-5, atol=1e-5)


def test_nonfinite_stay_where_they_are():
    """A NaN is copied to its windows only."""
    x = np.zeros((1, 2, 8, 40), np.float32)
    x[0, 1, 3, 20] = np.nan
    columns = fc.unfold(x, 3, padding=1)
    assert np.isnan(columns).sum() == 9 and not np.isnan(columns[:, :9]).any()
    assert np.isnan(fc.fold(columns, (8, 40), 3, padding=1)).sum() == 1


def test_operands_of_all_kinds():
    """Lists, single samples, read-only, byte-swapped and sliced arrays; a single integer means two axes."""
    x = np.arange(48.0).reshape(1, 3, 4, 4)
    desired = fc.unfold(x, (2, 2))
    np.testing.assert_array_equal(fc.unfold(x[0], 2), desired[0])
    np.testing.assert_array_equal(fc.unfold(x.tolist(), 2), desired)
    np.testing.assert_array_equal(fc.unfold(x.astype(">f8"), 2), desired)
    np.testing.assert_array_equal(fc.unfold(np.repeat(x, 2, axis=3)[..., ::2], [2, 2]), desired)
    frozen = x.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(fc.unfold(frozen, np.int64(2)), desired)
    np.testing.assert_array_equal(fc.fold(desired[0], 4, 2), fc.fold(desired, (4, 4), 2)[0])
    np.testing.assert_array_equal(fc.unfold_backward(desired[0], x.shape[1:], 2), fc.fold(desired, 4, 2)[0])


@pytest.mark.parametrize("shape", [(0, 3, 5, 5), (2, 0, 5, 5), (1, 2, 0, 4)])
def test_zero_size(shape):
    """Nothing gives nothing, and a border around nothing zeros."""
    columns = fc.unfold(np.ones(shape), 3, padding=2)
    assert columns.shape[:2] == (shape[0], shape[1] * 9) and not columns.any()
    assert fc.unfold_backward(columns, shape, 3, padding=2).shape == shape


X = np.ones((1, 2, 5, 5), np.float32)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: fc.unfold(X, 0), ValueError, "kernel_size"),
        (lambda: fc.unfold(X, 2.0), TypeError, "kernel_size"),
        (lambda: fc.unfold(X, (2, True)), TypeError, "kernel_size"),
        (lambda: fc.unfold(X, (1, 1, 1, 1)), ValueError, "kernel_size"),
        (lambda: fc.unfold(X, 3, stride=0), ValueError, "stride"),
        (lambda: fc.unfold(X, 3, dilation=(1, 2, 3)), ValueError, "dilation"),
        (lambda: fc.unfold(X, 3, padding=-1), ValueError, "padding"),
        (lambda: fc.unfold(X, 6), ValueError, "larger than the padded input"),
        (lambda: fc.unfold(X, 3, layout="HWC"), ValueError, "layout"),
        (lambda: fc.unfold(X[0, 0], 3), ValueError, "x must have 4 dimensions"),
        (lambda: fc.unfold(X, (3,)), ValueError, "x must have 3 dimensions"),
        (lambda: fc.unfold("x", 3), TypeError, "x must be"),
        (lambda: fc.fold(np.ones((1, 10, 9)), (5, 5), 3), ValueError, "multiple of the 9 taps"),
        (lambda: fc.fold(np.ones((1, 18, 8)), (5, 5), 3), ValueError, r"x must have shape \(1, 18, 9\)"),
        (lambda: fc.fold(np.ones((1, 18, 9)), (5, 5, 5), (3, 3)), ValueError, "kernel_size|taps"),
        (lambda: fc.fold(np.ones((1, 18, 9)), (5, 0), 3), ValueError, "output_size"),
        (lambda: fc.fold(X, (5, 5), 3), ValueError, "x must have 3 dimensions"),
        (lambda: fc.fold(np.full((1, 9, 9), 2**62), (5, 5), 3), ValueError, "may exceed int64"),
        (lambda: fc.unfold_backward(np.ones((1, 18, 8)), (1, 2, 5, 5), 3), ValueError, "gy must have shape"),
        (lambda: fc.unfold_backward(np.ones((1, 18, 9)), (2, 5), 3), ValueError, "input_shape"),
    ],
)
def test_wrong_arguments(call, error, match):
    """One clear error that names the argument."""
    with pytest.raises(error, match=match):
        call()


def test_every_element_is_written():
    """Outputs come from memory full of NaN: none is left."""
    python(
        """
import numpy as np
import fastconv as fc
empty = np.empty
np.empty = lambda shape, dtype=float, **more: np.full(shape, np.nan, dtype) if np.dtype(dtype).kind == "f" else empty(shape, dtype, **more)
for shape, kernel, options in [((1, 2, 9, 33), 3, {"padding": 1}), ((1, 2, 20, 31), (2, 3), {"stride": 5, "padding": 2}),
                               ((2, 3, 6, 6), 3, {"dilation": 2, "padding": 5})]:
    columns = fc.unfold(np.ones(shape), kernel, **options)
    assert not np.isnan(columns).any()
    assert not np.isnan(fc.fold(np.ones(columns.shape), shape[2:], kernel, **options)).any()
"""
    )
