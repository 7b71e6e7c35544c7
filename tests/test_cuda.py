"""The CUDA backends against the definition: in the simulator on small cases, on a GPU on all of them.

Run with NUMBA_ENABLE_CUDASIM=1, or where there is a GPU; elsewhere nothing here can run, and `test_cuda_code.py` checks what can be.
"""

import numpy as np
import pytest
from cases import CASES, named
from helpers import PASSES, assert_close, assert_same_nonfinite, expected, operands, poisoned, reference_pass, run_pass, terms, tolerance

import fastconv as fc
from fastconv.backends._cuda import SIMULATED
from fastconv.backends._cuda.driver import absence

pytestmark = pytest.mark.skipif(absence() is not None, reason=str(absence()))
cuda = pytest.importorskip("numba.cuda")

BACKENDS = fc.backends("cuda")
SIMULATED_WORK = 40_000  # products of a case that the simulator does in about a second
HAZARDS = named("batch_of_3", "prime_channels", "asymmetric_pads", "kernel_4x4_even_padded", "1d", "3d", "3d_stride_dilation",
                "groups_3_odd_channels", "depthwise_stride_2", "prime_channels_nhwc", "reflect_asymmetric", "circular_3d")


def work(case):
    data = operands(case)
    return data.w.size * data.gy.size // case.weight_shape[-1 if case.options.get("layout") == "NHWC" else 0]


SMALL = [case for case in CASES if work(case) <= SIMULATED_WORK]
TABLE = list(dict.fromkeys([*HAZARDS, *SMALL[::16]])) if SIMULATED else CASES


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name)
def test_pass(case, pass_name, backend):
    """A backend's answer is the reference's, and every element of `out` is written."""
    first, second = (a.astype(np.float32) for a in operands(case).of(pass_name))
    out = poisoned(operands(case).target_shape(pass_name), np.float32)
    try:
        result = run_pass(case, pass_name, first, second, backend=backend, out=out)
    except fc.BackendError as refusal:
        assert backend != "cuda_direct", f"direct refuses nothing, yet: {refusal}"
        pytest.skip(f"refused: {refusal}")
    assert result is out
    assert_close(out, expected(case, pass_name), tolerance(backend.removeprefix("cuda_"), "float32", terms(case, pass_name)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float64", "float16", "int32", "uint8"])
def test_types(dtype, backend):
    """Every type of number gives what the processor's backends give, of the same type."""
    rng = np.random.default_rng(0)
    x, w = (rng.integers(0, 5, shape).astype(dtype) for shape in ((2, 8, 6, 5), (9, 8, 3, 3)))
    try:
        y = fc.conv2d(x, w, padding=1, backend=backend)
    except fc.BackendError as refusal:
        pytest.skip(f"refused: {refusal}")
    desired = fc.conv2d(x, w, padding=1, backend="direct")
    assert y.dtype == desired.dtype
    np.testing.assert_allclose(y, desired, rtol=2e-3 if dtype == "float16" else 2e-5 if backend.endswith("winograd") else 1e-12)


@pytest.mark.parametrize("activation", ["relu", "relu6", "leaky_relu", "sigmoid", "tanh", "silu", "gelu"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_epilogue(backend, activation):
    """Bias and activation are applied to the sum, in either layout."""
    rng = np.random.default_rng(0)
    x, w, b = (rng.standard_normal(shape, dtype=np.float32) for shape in ((1, 8, 5, 6), (8, 8, 3, 3), (8,)))
    for layout in ("NCHW", "NHWC"):
        a, k = (x, w) if layout == "NCHW" else (x.transpose(0, 2, 3, 1), w.transpose(2, 3, 1, 0))
        try:
            y = fc.conv2d(a, k, b, padding=1, activation=activation, layout=layout, backend=backend)
        except fc.BackendError as refusal:
            pytest.skip(f"refused: {refusal}")
        assert_close(y, fc.conv2d(a, k, b, padding=1, activation=activation, layout=layout).astype(np.float64), 2e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("operand", [0, 1])
@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_nonfinite(backend, pass_name, operand, value):
    """One element that is not finite reaches exactly the results that it reaches in the direct sum."""
    case = named("resnet_3x3")[0] if not SIMULATED else named("batch_of_3")[0]
    first, second = (a.astype(np.float32) for a in operands(case).of(pass_name))
    array = (first, second)[operand]
    array.reshape(-1)[array.size // 3] = value
    try:
        result = run_pass(case, pass_name, first, second, backend=backend)
    except fc.BackendError as refusal:
        pytest.skip(f"refused: {refusal}")
    assert_same_nonfinite(result, reference_pass(case, pass_name, first.astype(np.float64), second.astype(np.float64)))


def test_device_arrays_stay():
    """Arrays of a GPU give arrays of it; no backend needs to be named."""
    rng = np.random.default_rng(0)
    x, w, b = (rng.standard_normal(shape, dtype=np.float32) for shape in ((1, 3, 6, 7), (4, 3, 3, 3), (4,)))
    on_device = [cuda.to_device(a) for a in (x, w, b)]
    y = fc.conv2d(*on_device, padding=1)
    assert type(y) is type(on_device[0])
    assert_close(y.copy_to_host(), fc.conv2d(x, w, b, padding=1).astype(np.float64), 1e-5)
    gy = cuda.to_device(np.ones(y.shape, np.float32))
    gradients = fc.conv2d_backward(gy, *on_device[:2], padding=1)
    for actual, desired in zip(gradients, fc.conv2d_backward(gy.copy_to_host(), x, w, padding=1), strict=True):
        assert_close(actual.copy_to_host(), desired.astype(np.float64), 1e-5)


def test_empty_arrays():
    """Nothing to compute is no error, and a sum without terms is the bias."""
    assert fc.conv2d(np.empty((0, 3, 5, 5), np.float32), np.ones((2, 3, 3, 3), np.float32), backend="cuda").shape == (0, 2, 3, 3)
    y = fc.conv2d(np.empty((1, 0, 5, 5), np.float32), np.empty((2, 0, 3, 3), np.float32), np.ones(2, np.float32), backend="cuda")
    np.testing.assert_array_equal(y, np.ones((1, 2, 3, 3)))


def test_plans():
    """Weights are packed once; arrays of either kind, of any shape, go through the same plan."""
    rng = np.random.default_rng(0)
    w, b, x, other = (rng.standard_normal(shape, dtype=np.float32) for shape in ((4, 3, 3, 3), (4,), (1, 3, 6, 7), (2, 3, 5, 5)))
    plan = fc.plan_conv2d(w, b, input_shape=x.shape, padding=1, activation="relu", backend="cuda")
    for image in (x, other, x[0]):
        desired = fc.conv2d(image, w, b, padding=1, activation="relu").astype(np.float64)
        assert_close(plan(image), desired, 1e-5)
        assert_close(plan(cuda.to_device(image)).copy_to_host(), desired, 1e-5)
    assert plan.backend in BACKENDS
    assert "chosen" in repr(plan)


@pytest.mark.parametrize(("kernel", "options"), [((1, 1), {}), ((3, 1), {"padding": ((1, 0), (0, 0))}), ((3, 1), {"stride": (2, 1)})])
def test_copies_by_fours(kernel, options):
    """Points that lie side by side are copied four at a time, unless the image begins between two fours."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((5, 3, *kernel), dtype=np.float32)
    x = rng.standard_normal((2, 3, 6, 8), dtype=np.float32)
    gy = rng.standard_normal(fc.conv2d(x, w, **options).shape, dtype=np.float32)
    desired = fc.conv2d(x, w, **options).astype(np.float64)
    assert_close(fc.conv2d(x, w, **options, backend="cuda_im2col"), desired, 2e-6)
    shifted = cuda.to_device(np.concatenate([np.zeros(1, np.float32), x.ravel()]))[1:].reshape(x.shape)
    assert_close(fc.conv2d(shifted, cuda.to_device(w), **options, backend="cuda_im2col").copy_to_host(), desired, 2e-6)
    back = fc.conv2d_grad_input(gy, w, x.shape, **options, backend="cuda_im2col")
    assert_close(back, fc.conv2d_grad_input(gy, w, x.shape, **options).astype(np.float64), 2e-6)
