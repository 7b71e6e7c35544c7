"""NaN and Inf: the result is non-finite exactly where the direct sum is, and of the same kind, whatever the method."""

import numpy as np
import pytest
import reference
from cases import named
from helpers import PASSES, assert_close, assert_same_nonfinite, operands, poisoned, reference_pass, run_pass, terms, tolerance

import fastconv as fc

CASES = named(
    "batch_of_3",
    "vgg_3x3",
    "kernel_9x9",
    "stride_2",
    "stride_3_dilation_2",
    "groups_2",
    "depthwise",
    "kernel_1x1",
    "kernel_31x31_small_image",
    "asymmetric_pads",
    "circular_asymmetric",
    "reflect_asymmetric",
    "replicate_wider_than_input",
    "prime_channels_nhwc",
    "depthwise_stride_2_nhwc",
    "1d_long_kernel",
    "1d_stride_4",
    "3d_groups",
    "lenet_conv2",
)
VALUES = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}


def run_each(case, pass_name, first, second, dtype):
    """(backend, result) of all backends that take the case, into poisoned outputs."""
    results = []
    for backend in fc.backends():
        out = poisoned(operands(case).target_shape(pass_name), dtype)
        try:
            results.append(
                (backend, run_pass(case, pass_name, first.astype(dtype), second.astype(dtype), backend=backend, out=out))
            )
        except fc.BackendError:
            assert backend != "direct"
    return results


def check_each(case, pass_name, first, second, dtype):
    """Every backend has the reference's non-finite elements, and its usual accuracy in the others."""
    desired = reference_pass(case, pass_name, first, second)
    finite = np.isfinite(desired)
    for backend, result in run_each(case, pass_name, first, second, dtype):
        try:
            assert_same_nonfinite(result, desired)
            assert_close(
                np.where(finite, result, 0), np.where(finite, desired, 0), tolerance(backend, dtype, terms(case, pass_name))
            )
        except AssertionError as error:
            raise AssertionError(f"{backend}: {error}") from None


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("operand", [0, 1])
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_single_value(case, pass_name, value, operand, dtype):
    """One NaN or Inf in the middle of either operand reaches the sums it belongs to and no others."""
    arrays = [a.copy() for a in operands(case).of(pass_name)]
    array = arrays[operand]
    array[tuple(n // 2 for n in array.shape)] = VALUES[value]
    check_each(case, pass_name, *arrays, dtype)


@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize(
    "case", named("vgg_3x3", "kernel_9x9", "depthwise", "prime_channels_nhwc", "1d_long_kernel"), ids=lambda case: case.name
)
def test_values_in_the_corners(case, pass_name):
    """At the first and the last element, where tiles are cut and borders begin; NaN and both Infs at once."""
    first, second = (a.copy() for a in operands(case).of(pass_name))
    first.flat[0], first.flat[-1], second.flat[-1] = np.inf, np.nan, -np.inf
    check_each(case, pass_name, first, second, np.float32)


@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("case", named("vgg_3x3", "depthwise", "kernel_31x31_small_image"), ids=lambda case: case.name)
def test_only_nan(case, pass_name):
    """Nothing finite at all."""
    first, second = operands(case).of(pass_name)
    check_each(case, pass_name, np.full_like(first, np.nan), second, np.float32)


@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize(
    "case",
    named("vgg_3x3", "kernel_9x9", "kernel_31x31_small_image", "lenet_conv2", "1d_long_kernel"),
    ids=lambda case: case.name,
)
def test_large_values_do_not_overflow(case, pass_name):
    """Sums that fit float32 are finite even where a transform of the same data would overflow."""
    first, second = (a.copy() for a in operands(case).of(pass_name))
    first[...] = 1e38 * np.sign(first)
    second[...] = np.sign(second) * 1e-3
    desired = reference_pass(case, pass_name, first, second)
    assert np.abs(desired).max() < 3e38
    for backend, result in run_each(case, pass_name, first, second, np.float32):
        assert np.isfinite(result).all(), (
            f"{backend} overflows in {np.count_nonzero(~np.isfinite(result))} of {result.size} elements"
        )
        try:
            assert_close(result, desired, tolerance(backend, np.float32, terms(case, pass_name)))
        except AssertionError as error:
            raise AssertionError(f"{backend}: {error}") from None


@pytest.mark.parametrize("case", named("vgg_3x3", "kernel_9x9", "lenet_conv2"), ids=lambda case: case.name)
def test_overflow_of_the_result(case):
    """Finite operands whose products leave float32 give Inf, as the direct sum does."""
    data = operands(case)
    x, w = np.abs(data.x) + 0.5, np.abs(data.w) + 0.5
    x[(0, *(n // 2 for n in x.shape[1:]))] = 3e38
    w *= 100
    with np.errstate(over="ignore"):
        desired = reference_pass(case, "forward", x, w).astype(np.float32)
    assert np.isinf(desired).any() and np.isfinite(desired).any()
    for backend, result in run_each(case, "forward", x, w, np.float32):
        try:
            assert_same_nonfinite(result, desired)
        except AssertionError as error:
            raise AssertionError(f"{backend}: {error}") from None


@pytest.mark.parametrize("backend", fc.backends())
@pytest.mark.parametrize("activation", ["relu", "relu6", "leaky_relu", "sigmoid", "tanh", "gelu", "silu"])
def test_nan_passes_through_activations(activation, backend):
    """relu(nan) is nan, in the vector kernels too."""
    case = named("vgg_3x3")[0]
    data = operands(case)
    x = data.x.copy()
    x[0, 3, 7, 8] = np.nan
    try:
        y = fc.conv2d(
            x.astype(np.float32),
            data.w.astype(np.float32),
            data.bias.astype(np.float32),
            activation=activation,
            backend=backend,
            **case.options,
        )
    except fc.BackendError:
        assert backend != "direct"
        pytest.skip(f"{backend} refuses")
    np.testing.assert_array_equal(np.isnan(y), np.isnan(reference_pass(case, "forward", x, data.w)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backend", fc.backends())
@pytest.mark.parametrize("activation", ["relu", "relu6", "leaky_relu", "sigmoid", "tanh"])
def test_infinities_meet_activations(activation, backend, dtype):
    """relu(-inf) is 0 and not 0 * -inf, relu6(inf) is 6, tanh(inf) is 1."""
    x, w = np.ones((1, 1, 9, 20), dtype), np.ones((1, 1, 3, 3), dtype)
    x[0, 0, 4, 4], x[0, 0, 4, 14] = np.inf, -np.inf
    desired = reference.conv(x, w, activation=activation)
    try:
        y = fc.conv2d(x, w, activation=activation, backend=backend)
    except fc.BackendError:
        assert backend != "direct"
        pytest.skip(f"{backend} refuses")
    assert_same_nonfinite(y, desired)
    np.testing.assert_allclose(y, desired, rtol=1e-5)


def test_nan_bias_stays_in_its_channel():
    """A NaN in the bias is one channel's."""
    x, w = np.ones((1, 2, 5, 6)), np.ones((3, 2, 3, 3))
    y = fc.conv2d(x, w, np.array([0, np.nan, 0]))
    np.testing.assert_array_equal(np.isnan(y).all(axis=(0, 2, 3)), [False, True, False])
    assert np.isfinite(y[:, [0, 2]]).all()


@pytest.mark.parametrize("dtype", ["float16", "complex64", "complex128"])
def test_other_types(dtype):
    """One NaN in a half-precision or complex input poisons only the windows that hold it."""
    x, w = np.ones((1, 1, 9, 9), dtype), np.ones((1, 1, 3, 3), dtype)
    x[0, 0, 4, 4] = np.nan
    for backend in fc.backends():
        try:
            y = fc.conv2d(x, w, backend=backend)
        except fc.BackendError:
            assert backend != "direct"
            continue
        desired = np.zeros((7, 7), bool)
        desired[2:5, 2:5] = True
        np.testing.assert_array_equal(np.isnan(y[0, 0]), desired, err_msg=backend)
