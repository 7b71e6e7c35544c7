"""Every backend over the whole table of cases, in all three passes, into poisoned outputs."""

import numpy as np
import pytest
from cases import BY_NAME, CASES, named
from helpers import PASSES, assert_close, expected, operands, poisoned, public, run_pass, terms, tolerance

import fastconv as fc

FLOATS = ("float32", "float64")
GENERAL = ("direct", "im2col", "fft")  # these serve each pass wherever it is mathematically possible
PLAIN = named(
    "single_tile",
    "batch_of_3",
    "prime_channels",
    "asymmetric_pads",
    "kernel_4x4_even_padded",
    "1d",
    "3d",
    "resnet_3x3",
    "lenet_conv1",
)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("backend", fc.backends())
@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_pass(case, pass_name, backend, dtype):
    """The backend's answer is the reference's, every element of `out` is written, and the operands are left alone."""
    first, second = (a.astype(dtype) for a in operands(case).of(pass_name))
    before = first.tobytes(), second.tobytes()
    out = poisoned(operands(case).target_shape(pass_name), dtype)
    try:
        result = run_pass(case, pass_name, first, second, backend=backend, out=out)
    except fc.BackendError as refusal:
        _check_refusal(refusal, backend, out)
        pytest.skip(f"refused: {refusal}")
    assert result is out
    assert_close(out, expected(case, pass_name), tolerance(backend, dtype, terms(case, pass_name)))
    assert (first.tobytes(), second.tobytes()) == before


def _check_refusal(refusal, backend, out):
    """A refusal names the backend and a reason, and comes before anything is written; `direct` has none."""
    assert backend != "direct", f"direct refuses nothing, yet: {refusal}"
    assert backend in str(refusal)
    assert len(str(refusal)) > len(backend) + 10, "a refusal without a reason"
    assert np.isnan(out).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_automatic_choice(case, pass_name, dtype):
    """Whatever the dispatcher chooses is right, and allocates a result of the operands' type."""
    first, second = (a.astype(dtype) for a in operands(case).of(pass_name))
    result = run_pass(case, pass_name, first, second)
    assert result.dtype == dtype
    assert_close(result, expected(case, pass_name), tolerance("any", dtype, terms(case, pass_name)))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("backend", [name for name in GENERAL if name in fc.backends()])
@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("case", PLAIN, ids=lambda case: case.name)
def test_general_backends_accept_plain_cases(case, pass_name, backend, dtype):
    """Nothing in `test_pass` is skipped for a backend that could have run: these refuse no plain convolution."""
    first, second = (a.astype(dtype) for a in operands(case).of(pass_name))
    assert run_pass(case, pass_name, first, second, backend=backend).shape == operands(case).target_shape(pass_name)


def test_registry():
    """The backends that the package is built on are there, each once, and `direct` among them."""
    names = fc.backends()
    assert set(GENERAL) <= set(names)
    assert len(set(names)) == len(names)
    assert list(fc.backends("cpu")) == list(names)


@pytest.mark.parametrize("backend", fc.backends())
def test_repeated_calls_agree(backend):
    """Scratch that is reused between calls carries nothing over: large, small, large again."""
    large, small = BY_NAME["resnet_3x3"], BY_NAME["input_smaller_than_tile"]
    results = []
    for case in (large, small, large, small):
        first, second = (a.astype(np.float32) for a in operands(case).of("forward"))
        try:
            results.append(run_pass(case, "forward", first, second, backend=backend))
        except fc.BackendError:
            pytest.skip(f"{backend} does not take these")
    np.testing.assert_array_equal(results[0], results[2])
    np.testing.assert_array_equal(results[1], results[3])


@pytest.mark.parametrize(
    "case", named("resnet_3x3", "1d", "3d_stride_dilation", "depthwise", "prime_channels_nhwc"), ids=lambda case: case.name
)
@pytest.mark.parametrize("dtype", FLOATS)
def test_backward_is_the_three_gradients(case, dtype):
    """`conv{n}d_backward` gives the gradients with respect to x, w and the bias."""
    data = operands(case)
    gy, x, w = (a.astype(dtype) for a in (data.gy, data.x, data.w))
    gx, gw, gb = public("conv{}d_backward", case.ndim)(gy, x, w, **case.options)
    assert_close(gx, expected(case, "grad_input"), tolerance("any", dtype))
    assert_close(gw, expected(case, "grad_weight"), tolerance("any", dtype))
    channel = -1 if case.options.get("layout") == "NHWC" else 1
    assert_close(gb, data.gy.sum(axis=tuple(i for i in range(gy.ndim) if i != channel % gy.ndim)), tolerance("any", dtype))
    assert gx.dtype == gw.dtype == gb.dtype == dtype
    assert public("conv{}d_backward", case.ndim)(gy, x, w, bias=False, **case.options)[2] is None


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("backend", fc.backends())
@pytest.mark.parametrize("pass_name", PASSES)
def test_any_number_of_threads(pass_name, backend, threads):
    """Neither the serial path nor more threads than tasks change the answer."""
    before = fc.get_num_threads()
    fc.set_num_threads(threads)
    try:
        for case in named("vgg_3x3", "single_output", "mobilenet_depthwise", "batch_of_3"):
            first, second = (a.astype(np.float32) for a in operands(case).of(pass_name))
            try:
                result = run_pass(case, pass_name, first, second, backend=backend)
            except fc.BackendError:
                continue
            assert_close(result, expected(case, pass_name), tolerance(backend, "float32"))
    finally:
        fc.set_num_threads(before)
