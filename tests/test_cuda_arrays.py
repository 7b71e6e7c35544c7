"""Arrays of a GPU's: of whatever library, layout and type, as operands and results, and how they get there and back.

Run like `test_cuda.py`: in the simulator, or where there is a GPU.
"""

import numpy as np
import pytest
from helpers import assert_close

import fastconv as fc
from fastconv.backends._cuda import SIMULATED
from fastconv.backends._cuda.driver import absence

pytestmark = pytest.mark.skipif(absence() is not None, reason=str(absence()))
cuda = pytest.importorskip("numba.cuda")
only_simulated = pytest.mark.skipif(not SIMULATED, reason="makes arrays of the processor pass for a GPU's")

TYPES = ("float32", "float64", "float16", "complex64", "complex128", "int8", "uint16", "bool")
TOLERANCES = {"float32": 2e-6, "float64": 1e-13, "float16": 1e-3, "complex64": 3e-6, "complex128": 1e-13}


def random(shape, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    kind = np.dtype(dtype).kind
    if kind in "iub":
        return rng.integers(0, 2 if kind == "b" else 5, shape).astype(dtype)
    values = rng.standard_normal(shape)
    return (values + 1j * rng.standard_normal(shape) if kind == "c" else values).astype(dtype)


def agree(actual, desired):
    """Two results, of the same dtype, within what the type allows."""
    actual = fc.asnumpy(actual)
    assert actual.dtype == desired.dtype
    wide = np.complex128 if desired.dtype.kind == "c" else np.float64
    assert_close(actual.astype(wide), desired.astype(wide), TOLERANCES.get(desired.dtype.name, 0))


class Interface:
    """An array of a library that only speaks `__cuda_array_interface__`; in the simulator it lies in the processor's memory."""

    def __init__(self, array, stream=None):
        self.array = array
        data = array.__array_interface__["data"]
        self.__cuda_array_interface__ = {"shape": array.shape, "typestr": array.dtype.str, "data": data, "version": 3,
                                         "strides": array.strides, "stream": stream}

    @property
    def shape(self):
        return self.array.shape


class Packed:
    """One that only speaks DLPack; `device` is DLPack's pair."""

    def __init__(self, array, device=(2, 0)):
        self.array, self.device = array, device
        self.shape = array.shape

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, *, stream=None):
        assert stream == 1
        return self.array.__dlpack__()


@pytest.mark.parametrize("dtype", TYPES)
def test_there_and_back(dtype):
    for shape in ((2, 3), (0, 4), (5,), ()):
        array = random(shape, dtype)
        moved = fc.asarray(array, device="cuda")
        assert type(moved) is type(cuda.to_device(array)) and fc.asarray(moved, device="cuda") is moved
        back = fc.asnumpy(moved)
        assert back.dtype == array.dtype and back.shape == array.shape
        np.testing.assert_array_equal(back, array)
    with pytest.raises(ValueError, match="device must be"):
        fc.asarray(array, device="gpu")


def test_other_byte_order():
    np.testing.assert_array_equal(fc.asnumpy(fc.asarray(np.arange(3, dtype=">f4"), device="cuda")), [0, 1, 2])


@pytest.mark.parametrize(("dtype", "layout"), [("float32", "NCHW"), ("float16", "NHWC"), ("complex64", "NCHW"), ("complex128", "NHWC"),
                                               ("int8", "NCHW")])
def test_every_function(dtype, layout):
    """All passes of a grouped, strided convolution and of its transpose, in every type, give what the processor gives."""
    x, w, b = (random(shape, dtype, seed) for seed, shape in enumerate(((1, 4, 4, 3), (2, 2, 2, 3), (2,))))
    if layout == "NHWC":
        x, w = np.ascontiguousarray(x.transpose(0, 2, 3, 1)), np.ascontiguousarray(w.transpose(2, 3, 1, 0))
    options = {"stride": 2, "padding": 1, "groups": 2, "layout": layout}
    y = fc.conv2d(x, w, b, **options)
    on_gpu = [fc.asarray(a, device="cuda") for a in (x, w, b)]
    agree(fc.conv2d(*on_gpu, **options), y)
    agree(fc.plan_conv2d(*on_gpu[1:], input_shape=x.shape, **options)(on_gpu[0]), y)
    gy = random(y.shape, dtype, 7)
    moved = fc.asarray(gy, device="cuda")
    for actual, desired in zip(fc.conv2d_backward(moved, *on_gpu[:2], **options), fc.conv2d_backward(gy, x, w, **options), strict=True):
        agree(actual, desired)
    transposed = fc.conv_transpose2d(gy, w, **options)
    agree(fc.conv_transpose2d(moved, on_gpu[1], **options), transposed)
    z = random(transposed.shape, dtype, 8)
    for actual, desired in zip(fc.conv_transpose2d_backward(fc.asarray(z, device="cuda"), moved, on_gpu[1], **options),
                               fc.conv_transpose2d_backward(z, gy, w, **options), strict=True):
        agree(actual, desired)


def test_transposed_padding_that_no_tap_reaches():
    """Rows of gy that no tap reaches have no part in the gradients."""
    x, w = random((1, 2, 3, 3)), random((2, 1, 2, 2), seed=1)
    options = {"stride": 2, "output_padding": 3, "dilation": 4}
    gy = random(fc.conv_transpose2d(x, w, **options).shape, seed=2)
    arrays = [fc.asarray(a, device="cuda") for a in (gy, x, w)]
    gradients = fc.conv_transpose2d_backward(gy, x, w, **options)
    for actual, desired in zip(fc.conv_transpose2d_backward(*arrays, **options), gradients, strict=True):
        agree(actual, desired)


@pytest.mark.parametrize("dtypes", [("float32", "complex64"), ("complex64", "float64"), ("float16", "float32"), ("int8", "float32")])
def test_mixed_types(dtypes):
    """Promotion as NumPy has it."""
    x, w = random((1, 2, 4, 4), dtypes[0]), random((2, 2, 3, 3), dtypes[1], 1)
    agree(fc.conv2d(fc.asarray(x, device="cuda"), fc.asarray(w, device="cuda")), fc.conv2d(x, w))
    agree(fc.conv2d(fc.asarray(x, device="cuda"), w), fc.conv2d(x, w))
    assert type(fc.conv2d(x, fc.asarray(w, device="cuda"))) is np.ndarray


@only_simulated
@pytest.mark.parametrize("dtype", ["float32", "complex128", "float16"])
@pytest.mark.parametrize("made", [Interface, Packed])
def test_protocols_and_strides(made, dtype):
    """Arrays of unknown libraries, transposed, sliced and turned round, through either protocol."""
    whole = random((4, 7, 6, 2), dtype)
    w = random((2, 2, 3, 3), dtype, 1)
    for x in (whole.transpose(0, 3, 1, 2), whole.transpose(0, 3, 1, 2)[::2, :, 1:, ::-1], whole.transpose(3, 0, 1, 2)[:, :2, :, :]):
        agree(fc.conv2d(made(x), made(w[::-1])), fc.conv2d(x, w[::-1]))
        np.testing.assert_array_equal(fc.asnumpy(made(x)), x)


@only_simulated
def test_dlpack_of_the_processor_is_no_gpu_array():
    x = random((1, 1, 4, 4))
    with pytest.raises(TypeError):
        fc.conv2d(Packed(x, (1, 0)), random((1, 1, 3, 3)))


@only_simulated
def test_strides_within_elements_are_refused():
    odd = Interface(random((1, 1, 4, 4)))
    odd.__cuda_array_interface__["strides"] = (64, 64, 18, 4)
    with pytest.raises(ValueError, match="whole elements"):
        fc.conv2d(odd, random((1, 1, 3, 3)))


def test_out():
    """`out` is written, even if it is an operand; what does not fit is refused before it is touched."""
    x, w = random((1, 2, 5, 5)), random((2, 2, 3, 3), seed=1)
    desired = fc.conv2d(x, w, padding=1)
    on_gpu = fc.asarray(x, device="cuda")
    out = fc.asarray(np.full_like(x, np.nan), device="cuda")
    assert fc.conv2d(on_gpu, w, padding=1, out=out) is out
    agree(out, desired)
    agree(fc.conv2d(on_gpu, w, padding=1, out=on_gpu), desired)
    for wrong, error in ((fc.asarray(np.zeros((1, 2, 4, 5), np.float32), device="cuda"), ValueError),
                         (fc.asarray(np.zeros(x.shape), device="cuda"), TypeError), (np.zeros_like(x), TypeError)):
        with pytest.raises(error, match="out must"):
            fc.conv2d(on_gpu, w, padding=1, out=wrong)
    strided = np.zeros((1, 5, 5, 2), np.float32).transpose(0, 3, 1, 2)
    assert fc.conv2d(x, w, padding=1, backend="cuda", out=strided) is strided
    agree(strided, desired)


def test_integers_never_wrap():
    """Where types alone do not tell that a sum fits, values do."""
    x = np.full((1, 1, 3, 3), 2**40, np.int64)
    on_gpu = fc.asarray(x, device="cuda")
    agree(fc.conv2d(on_gpu, np.ones((1, 1, 3, 3), np.int64)), fc.conv2d(x, np.ones((1, 1, 3, 3), np.int64)))
    for w in (x, on_gpu):
        with pytest.raises(ValueError, match="may exceed"):
            fc.conv2d(on_gpu, w)
        with pytest.raises(ValueError, match="may exceed"):
            fc.plan_conv2d(w, backend="cuda")(on_gpu)


def test_wrong_bias():
    x, w = (fc.asarray(random(shape), device="cuda") for shape in ((1, 2, 4, 4), (3, 2, 3, 3)))
    with pytest.raises(ValueError, match="bias must have shape"):
        fc.conv2d(x, w, fc.asarray(random((2,)), device="cuda"))
    with pytest.raises(TypeError, match="bias of type"):
        fc.conv2d(x, w, random((3,), "complex64"))


def test_backends_of_the_processor_refuse(monkeypatch):
    """An argument raises; the variable is overruled by where the arrays lie, with a warning."""
    x, w = random((1, 2, 4, 4)), random((3, 2, 3, 3))
    on_gpu = fc.asarray(x, device="cuda")
    with pytest.raises(fc.BackendError, match="cuda_direct"):
        fc.conv2d(on_gpu, w, backend="direct")
    monkeypatch.setenv("FASTCONV_BACKEND", "direct")
    with pytest.warns(fc.BackendFallbackWarning):
        agree(fc.conv2d(on_gpu, w), fc.conv2d(x, w))


def test_names_in_plans_and_explanations(monkeypatch):
    """What was chosen goes by the name that would choose it."""
    x, w = random((1, 2, 4, 4)), random((3, 2, 3, 3))
    plan = fc.plan_conv2d(w, input_shape=x.shape, backend="cuda")
    assert plan.backend in fc.backends("cuda") and f"chosen: {plan.backend} (" in repr(plan)
    explained = fc.explain(x.shape, w.shape, backend="cuda_direct")
    assert explained.chosen == "cuda_direct" and explained.problem.device == "cuda"
    assert {candidate.name for candidate in explained.candidates} == set(fc.backends("cuda"))
    monkeypatch.setenv("FASTCONV_BACKEND", "cuda_direct")
    assert fc.plan_conv2d(w, input_shape=x.shape).backend == "cuda_direct"
    agree(fc.conv2d(x, w), fc.conv2d(x, w, backend="direct"))


def test_measuring(monkeypatch):
    """`tune` and FASTCONV_TUNE=measure time the GPU's backends, and what they find is followed."""
    fc.wisdom.clear()
    shapes = (1, 2, 3, 3), (2, 2, 2, 2)
    monkeypatch.setattr("fastconv.measuring.RUNS_BETWEEN_EVENTS", 1)
    best = fc.tune([(*shapes, {"device": "cuda"})], save=False)[shapes]
    explained = fc.explain(*shapes, backend="cuda")
    assert explained.chosen == best and "measured" in explained.reason
    monkeypatch.setenv("FASTCONV_TUNE", "measure")
    assert "measured" in fc.plan_conv2d(random(shapes[1]), input_shape=(1, 2, 4, 3), backend="cuda").plan.reason
    fc.wisdom.clear()
