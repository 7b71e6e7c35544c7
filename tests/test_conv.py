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


PASS_CALLS = {
    "forward": lambda x, w, gy, **options: fc.conv2d(x, w, **options),
    "grad_input": lambda x, w, gy, **options: fc.conv2d_grad_input(gy, w, x.shape, **options),
    "grad_weight": lambda x, w, gy, **options: fc.conv2d_grad_weight(gy, x, w.shape, **options),
    "backward": lambda x, w, gy, **options: np.concatenate([part.ravel() for part in fc.conv2d_backward(gy, x, w, **options)]),
    "transposed_backward": lambda x, w, gy, **options: np.concatenate(
        [part.ravel() for part in fc.conv_transpose2d_backward(x, gy, w, **options)]
    ),
    "transposed": lambda x, w, gy, **options: fc.conv_transpose2d(gy, w, **options),
}


@pytest.mark.parametrize("call", PASS_CALLS.values(), ids=PASS_CALLS)
def test_remembered_calls_see_what_is_new(call):
    """A list changed in place, another memory layout and dtype of the same shape, a border mode, NumPy's integers."""
    rng = np.random.default_rng(0)
    x, w, gy = (rng.standard_normal(shape).astype(np.float32) for shape in ((1, 2, 6, 6), (2, 2, 3, 3), (1, 2, 6, 6)))
    padding = [(2, 0), (1, 1)]
    first = call(x, w, gy, padding=padding)
    padding[0] = (0, 2)
    second = call(x, w, gy, padding=padding)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(second, call(x, w, gy, padding=((0, 2), (1, 1))))
    np.testing.assert_array_equal(second, call(x, w, gy, padding=np.array([(0, 2), (1, 1)])))
    np.testing.assert_array_equal(second, call(*(np.asfortranarray(a) for a in (x, w, gy)), padding=padding))
    np.testing.assert_array_equal(second, call(*(a.astype(">f4") for a in (x, w, gy)), padding=padding))
    assert call(*(a.astype(np.float64) for a in (x, w, gy)), padding=padding).dtype == np.float64
    np.testing.assert_array_equal(second, call(x, w, gy, padding=padding, stride=np.int64(1), groups=np.int8(1)))
    with pytest.raises(TypeError, match="padding"):
        call(x, w, gy, padding=[(False, 2), (True, 1)])
    with pytest.raises(fc.BackendError), fc.use_backend("winograd"):
        call(x, w, gy, padding=padding, dilation=1, accuracy="strict")
    with pytest.raises(ValueError, match="backend"):
        call(x, w, gy, padding=padding, backend="none")


def test_backward_of_a_single_sample():
    """Unbatched x and gy, remembered or not."""
    rng = np.random.default_rng(0)
    x, w, gy = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 6, 7), (4, 2, 3, 3), (4, 4, 5)))
    for _ in range(2):
        gx, gw, gb = fc.conv2d_backward(gy, x, w)
        assert gx.shape == x.shape and gw.shape == w.shape and gb.shape == (4,)
        for part, whole in zip((gx[None], gw, gb), fc.conv2d_backward(gy[None], x[None], w), strict=True):
            np.testing.assert_array_equal(part, whole)
        gx, gw, gb = fc.conv_transpose2d_backward(x, gy, w)
        assert gx.shape == gy.shape and gw.shape == w.shape and gb.shape == (2,)
        for part, whole in zip((gx[None], gw, gb), fc.conv_transpose2d_backward(x[None], gy[None], w), strict=True):
            np.testing.assert_array_equal(part, whole)
