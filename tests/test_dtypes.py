"""Types and memory layouts of the operands: what comes out, exactly, and that the operands are never written."""

import numpy as np
import pytest
import reference
from cases import named
from helpers import PASSES, assert_close, expected, integers, operands, poisoned, reference_pass, run_pass, tolerance

import fastconv as fc

FEW = named(
    "batch_of_3",
    "stride_2_dilation_2_common_divisor",
    "depthwise",
    "groups_3_odd_channels",
    "reflect_asymmetric",
    "prime_channels_nhwc",
    "kernel_9x9",
    "1d_stride_4",
    "3d_groups",
    "resnet_1x1",
)
RESULT = {
    "int8": "int32",
    "uint8": "int32",
    "int16": "int64",
    "uint16": "int64",
    "int32": "int64",
    "uint32": "int64",
    "int64": "int64",
}


def each_backend(case, pass_name, first, second):
    """(backend, result) of all that take the problem, the automatic choice among them; `direct` does take it."""
    results = [("any", run_pass(case, pass_name, first, second))]
    for backend in fc.backends():
        try:
            results.append((backend, run_pass(case, pass_name, first, second, backend=backend)))
        except fc.BackendError:
            assert backend != "direct"
    return results


# -- kinds of numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("case", FEW, ids=lambda case: case.name)
def test_float16(case, pass_name):
    """Computed in float32 and rounded once: half a unit of float16 from the exact sum of the rounded operands."""
    first, second = (a.astype(np.float16) for a in operands(case).of(pass_name))
    desired = reference_pass(case, pass_name, first, second)
    for _, result in each_backend(case, pass_name, first, second):
        assert result.dtype == np.float16
        assert_close(result, desired, tolerance("any", np.float16))


def test_float16_accumulates_in_float32():
    """4000 ones sum to 4000 and not to 2048, where float16 stops counting."""
    y = fc.conv1d(np.ones((1, 1, 4000), np.float16), np.ones((1, 1, 4000), np.float16))
    assert y.dtype == np.float16
    assert y.item() == 4000


def test_float16_bias_gradient():
    """The same for the sum over gy: 12800 ones."""
    gb = fc.conv2d_backward(
        np.ones((2, 3, 80, 80), np.float16), np.ones((2, 1, 80, 80), np.float16), np.ones((3, 1, 1, 1), np.float16)
    )[2]
    np.testing.assert_array_equal(gb, np.full(3, 12800, np.float16))


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("case", FEW, ids=lambda case: case.name)
def test_complex(case, pass_name, dtype):
    """Forward does not conjugate; the gradients are the adjoints, as PyTorch's."""
    rng = np.random.default_rng(9)
    first, second = ((a + 1j * rng.standard_normal(a.shape)).astype(dtype) for a in operands(case).of(pass_name))
    desired = reference_pass(case, pass_name, first, second)
    for backend, result in each_backend(case, pass_name, first, second):
        assert result.dtype == dtype, backend
        assert_close(result, desired, tolerance(backend, dtype))


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2}], ids=repr)
def test_complex_transposed(options):
    """The transposed convolution is the transpose, not the adjoint: nothing is conjugated. Its gradients are adjoints."""
    rng = np.random.default_rng(10)
    x, w = (
        rng.standard_normal(s) + 1j * rng.standard_normal(s) for s in ((2, 4, 5, 6), (4, 6 // options.get("groups", 1), 3, 3))
    )
    bias = rng.standard_normal(6) + 1j * rng.standard_normal(6)
    desired = reference.conv_transpose(x, w, bias, **options)
    assert_close(fc.conv_transpose2d(x, w, bias, **options), desired, 1e-12)
    gy = rng.standard_normal(desired.shape) + 1j * rng.standard_normal(desired.shape)
    results = fc.conv_transpose2d_backward(gy, x, w, **options)
    for result, gradient in zip(results, reference.conv_transpose_backward(gy, x, w, **options), strict=True):
        assert_close(result, gradient, 1e-12)


@pytest.mark.parametrize("dtype", sorted(RESULT))
@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("case", FEW, ids=lambda case: case.name)
def test_integers_are_exact(case, pass_name, dtype):
    """8-bit operands give int32, wider ones int64, and every sum is exact."""
    rng = np.random.default_rng(12)
    bound = min(np.iinfo(dtype).max, 2**20)
    first, second = (integers(rng, a.shape, dtype, bound) for a in operands(case).of(pass_name))
    desired = reference_pass(case, pass_name, first, second)
    for backend, result in each_backend(case, pass_name, first, second):
        assert result.dtype == RESULT[dtype], backend
        np.testing.assert_array_equal(result, desired, err_msg=backend)


@pytest.mark.parametrize(("dtype", "extreme"), [("int8", -128), ("uint8", 255)])
def test_extreme_8_bit_values(dtype, extreme):
    """The largest products of 8-bit numbers do not wrap in the accumulator."""
    x, w = np.full((1, 40, 5, 5), extreme, dtype), np.full((2, 40, 3, 3), extreme, dtype)
    np.testing.assert_array_equal(fc.conv2d(x, w), np.full((1, 2, 3, 3), 40 * 9 * extreme**2))


@pytest.mark.parametrize(("dtype", "extreme", "terms"), [("uint8", 255, 33100), ("int8", -128, 131200)])
def test_8_bit_sums_beyond_int32(dtype, extreme, terms):
    """A sum that does not fit the result's int32 is an error or exact, never wrapped."""
    x, w = np.full((1, terms, 1), extreme, dtype), np.full((1, terms, 1), extreme, dtype)
    try:
        result = fc.conv1d(x, w)
    except ValueError as error:
        assert "int32" in str(error) or "overflow" in str(error) or "exact" in str(error)
    else:
        assert result.item() == terms * extreme**2


@pytest.mark.parametrize(
    ("dtype", "value", "terms"),
    [
        ("int32", -(2**31), 2),
        ("uint32", 2**32 - 1, 1),
        ("int64", 2**40, 1),
        ("int64", -(2**63), 1),
        ("int64", 2**31, 2),
        ("uint64", 2**63, 1),
    ],
)
def test_integer_overflow_is_an_error(dtype, value, terms):
    """Where the sum could leave int64 there is one ValueError, and `out` is untouched."""
    x = w = np.full((1, terms, 1), value, dtype)
    out = poisoned((1, 1, 1), np.int64)
    before = out.copy()
    with pytest.raises(ValueError, match=r"int64|overflow|exact"):
        fc.conv1d(x, w, out=out)
    np.testing.assert_array_equal(out, before)


@pytest.mark.parametrize(
    ("dtype", "a", "b"), [("int64", 2**40, 3), ("int64", 2**62, 1), ("int32", 2**31 - 1, -(2**31)), ("int64", -(2**31), 2**31)]
)
def test_large_integers_that_fit_are_exact(dtype, a, b):
    """The check looks at the values: what fits int64 is computed, beyond the 53 bits of a float64 too."""
    x, w = np.full((1, 1, 3), a, dtype), np.full((1, 1, 1), b, dtype)
    x[0, 0, 1] -= 1
    np.testing.assert_array_equal(fc.conv1d(x, w)[0, 0], [a * b, (a - 1) * b, a * b])


def test_integer_bias():
    """A bias is part of the exact sum."""
    x, w = np.full((1, 3, 4), 100, np.int8), np.full((2, 3, 2), -100, np.int8)
    np.testing.assert_array_equal(fc.conv1d(x, w, np.array([1000, -7]))[0], [[-59000] * 3, [-60007] * 3])


@pytest.mark.parametrize(
    ("first", "second", "result"),
    [
        ("float32", "float64", "float64"),
        ("float64", "float32", "float64"),
        ("float16", "float32", "float32"),
        ("int8", "float32", "float32"),
        ("int32", "float32", "float64"),
        ("float32", "complex64", "complex64"),
        ("float64", "complex64", "complex128"),
        ("int8", "int16", "int64"),
        ("uint8", "int32", "int64"),
        ("int16", "float16", "float32"),
    ],
)
def test_mixed_types_promote(first, second, result):
    """Operands of two types meet in `np.result_type`, in all three passes."""
    rng = np.random.default_rng(13)
    case = named("batch_of_3")[0]
    for pass_name in PASSES:
        a, b = (
            integers(rng, array.shape, dtype) for array, dtype in zip(operands(case).of(pass_name), (first, second), strict=True)
        )
        y = run_pass(case, pass_name, a, b)
        assert y.dtype == result
        exact = reference_pass(case, pass_name, a, b)
        tolerance = 0 if y.dtype.kind == "i" else 1e-5 if y.dtype.itemsize <= 4 or y.dtype == "complex64" else 1e-13
        np.testing.assert_allclose(y, exact, rtol=0, atol=tolerance * np.abs(exact).max())


def test_mixed_8_bit_signs_are_exact():
    """uint8 data and int8 weights, the usual pair of quantised networks."""
    x, w = np.full((1, 2, 6), 255, np.uint8), np.full((1, 2, 3), -128, np.int8)
    y = fc.conv1d(x, w)
    assert y.dtype in (np.int32, np.int64)
    np.testing.assert_array_equal(y, np.full((1, 1, 4), 6 * 255 * -128))


def test_nested_lists():
    """Anything that NumPy makes numbers of is an array."""
    np.testing.assert_array_equal(fc.conv1d([[[1.0, 2.0, 3.0]]], [[[1.0, 1.0]]]), [[[3.0, 5.0]]])


# -- memory ---------------------------------------------------------------------------------------------------------------


def _unaligned(array):
    raw = np.empty(array.nbytes + 1, np.uint8)
    view = raw[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def _with_gaps(array):
    wide = np.full((*array.shape[:-1], 3 * array.shape[-1]), np.nan, array.dtype)
    wide[..., 1::3] = array
    return wide[..., 1::3]


def _read_only(array):
    copy = array.copy()
    copy.flags.writeable = False
    return copy


VIEWS = {
    "fortran": np.asfortranarray,
    "reversed": lambda a: np.ascontiguousarray(a[..., ::-1])[..., ::-1],
    "all_axes_reversed": lambda a: np.ascontiguousarray(np.flip(a))[tuple(slice(None, None, -1) for _ in a.shape)],
    "gaps": _with_gaps,
    "transposed": lambda a: np.ascontiguousarray(a.swapaxes(0, -1)).swapaxes(0, -1),
    "channels_elsewhere": lambda a: np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1),
    "cropped": lambda a: np.pad(a, 1, constant_values=np.nan)[tuple(slice(1, -1) for _ in a.shape)],
    "unaligned": _unaligned,
    "byte_swapped": lambda a: a.astype(a.dtype.newbyteorder()),
    "read_only": _read_only,
}


@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("backend", fc.backends())
@pytest.mark.parametrize("case", named("batch_of_3", "prime_channels_nhwc", "depthwise"), ids=lambda case: case.name)
def test_any_memory_layout(case, backend, view, pass_name):
    """Strides, order, alignment and byte order of the operands do not matter, and results are in native order."""
    first, second = (VIEWS[view](a.astype(np.float32)) for a in operands(case).of(pass_name))
    try:
        result = run_pass(case, pass_name, first, second, backend=backend)
    except fc.BackendError:
        assert backend != "direct"
        pytest.skip(f"{backend} refuses")
    assert result.dtype.isnative and result.dtype == np.float32
    assert_close(result, expected(case, pass_name), tolerance(backend, np.float32))


def test_broadcast_operands():
    """Strides of zero."""
    x, w = np.broadcast_to(np.float64(2), (2, 3, 8, 9)), np.broadcast_to(np.float64(3), (4, 3, 3, 3))
    np.testing.assert_array_equal(fc.conv2d(x, w), np.full((2, 4, 6, 7), 2 * 3 * 27.0))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64", "int8", "int64"])
@pytest.mark.parametrize("backend", fc.backends())
@pytest.mark.parametrize("pass_name", PASSES)
def test_operands_are_never_written(pass_name, backend, dtype):
    """Not even by way of scratch: bit for bit the same after the call, the memory around a view included."""
    rng = np.random.default_rng(14)
    for case in named("circular_asymmetric", "prime_channels_nhwc", "kernel_1x1"):
        frames = [np.pad(integers(rng, a.shape, dtype), 1, constant_values=77) for a in operands(case).of(pass_name)]
        before = [frame.copy() for frame in frames]
        first, second = (frame[tuple(slice(1, -1) for _ in frame.shape)] for frame in frames)
        try:
            run_pass(case, pass_name, first, second, backend=backend)
        except fc.BackendError:
            assert backend != "direct"
        for frame, copy in zip(frames, before, strict=True):
            np.testing.assert_array_equal(frame, copy)


def test_result_is_not_a_view_of_an_operand():
    """A 1x1 convolution by one is a copy."""
    x = np.ones((1, 1, 4, 5))
    y = fc.conv2d(x, np.ones((1, 1, 1, 1)))
    assert not np.shares_memory(x, y)


# -- nothing --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "float16", "int8"])
@pytest.mark.parametrize("backend", [None, *fc.backends()])
@pytest.mark.parametrize(
    ("input_shape", "weight_shape", "options"),
    [
        ((0, 3, 5, 6), (4, 3, 3, 3), {}),
        ((2, 0, 5, 6), (4, 0, 3, 3), {}),
        ((2, 3, 5, 6), (0, 3, 3, 3), {}),
        ((0, 0, 5, 6), (0, 0, 3, 3), {}),
        ((1, 2, 0, 6), (4, 2, 3, 3), {"padding": 2}),
        ((0, 5, 6, 3), (3, 3, 3, 4), {"layout": "NHWC"}),
        ((0, 4, 5, 6), (4, 1, 3, 3), {"groups": 4}),
        ((0, 3, 5, 6), (4, 3, 3, 3), {"padding": 1, "padding_mode": "circular", "stride": 2}),
    ],
    ids=repr,
)
def test_zero_size(input_shape, weight_shape, options, backend, dtype):
    """No samples, no channels, no outputs or no pixels: the sums are empty, in all three passes."""
    x, w = np.ones(input_shape, dtype), np.ones(weight_shape, dtype)
    y = reference.conv(x, w, **options)
    gy = np.ones(y.shape, dtype)
    try:
        results = [
            fc.conv2d(x, w, backend=backend, **options),
            fc.conv2d_grad_input(gy, w, input_shape, backend=backend, **options),
            fc.conv2d_grad_weight(gy, x, weight_shape, backend=backend, **options),
        ]
    except fc.BackendError:
        assert backend not in (None, "direct")
        pytest.skip(f"{backend} refuses")
    desired = [y, reference.grad_input(gy, w, input_shape, **options), reference.grad_weight(gy, x, weight_shape, **options)]
    for result, value in zip(results, desired, strict=True):
        np.testing.assert_array_equal(result, value)


def test_zero_channels_leave_the_bias():
    """An empty sum, then the epilogue."""
    y = fc.conv2d(np.ones((1, 0, 4, 4)), np.ones((2, 0, 3, 3)), np.array([3.0, -1.0]), activation="relu")
    np.testing.assert_array_equal(y, np.broadcast_to(np.array([3.0, 0.0])[:, None, None], (1, 2, 2, 2)))
