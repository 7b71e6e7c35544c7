"""The keyword options: named padding, layouts, single samples, out=, bias and activation, and the derived functions."""

import itertools

import numpy as np
import pytest
import reference
from cases import named
from helpers import PASSES, assert_close, expected, operands, poisoned, public, run_pass, tolerance

import fastconv as fc

TOLERANCE = 1e-12
RNG_SEED = 21


def normal(*shapes):
    """Standard normal float64 arrays, the same in each run."""
    rng = np.random.default_rng(RNG_SEED)
    return [rng.standard_normal(shape) for shape in shapes]


# -- padding --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "padding", ["valid", "same", "same_lower", 2, (1, 3), ((0, 2), (3, 1)), [1, 0], np.int64(1), np.array([1, 2])], ids=repr
)
@pytest.mark.parametrize("stride", [1, 2, (3, 1)])
@pytest.mark.parametrize("kernel", [(3, 3), (4, 2)])
def test_padding_forms(padding, stride, kernel):
    """An integer, one per axis, pairs, names; integers of NumPy too."""
    x, w = normal((2, 3, 9, 10), (4, 3, *kernel))
    y = fc.conv2d(x, w, stride=stride, padding=padding)
    assert_close(y, reference.conv(x, w, stride=stride, padding=_plain(padding)), TOLERANCE)


@pytest.mark.parametrize("padding", ["same", "same_lower"])
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "dilation"), tuple(itertools.product((1, 6, 7), (1, 2, 3, 4), (1, 2, 3), (1, 2)))
)
def test_same_has_ceil_of_size_over_stride_points(padding, size, kernel, stride, dilation):
    """The definition of "same", which is TensorFlow's, for every parity."""
    x, w = normal((1, 1, size), (1, 1, kernel))
    y = fc.conv1d(x, w, padding=padding, stride=stride, dilation=dilation)
    assert y.shape == (1, 1, -(-size // stride))
    assert_close(y, reference.conv(x, w, padding=padding, stride=stride, dilation=dilation), TOLERANCE)


def test_same_puts_the_odd_pad_at_the_end():
    """n=224, k=3, s=2 pads (0, 1), where PyTorch's models pad (1, 1)."""
    x, w = normal((1, 1, 224), (1, 1, 3))
    np.testing.assert_array_equal(fc.conv1d(x, w, stride=2, padding="same"), fc.conv1d(x, w, stride=2, padding=((0, 1),)))
    np.testing.assert_array_equal(fc.conv1d(x, w, stride=2, padding="same_lower"), fc.conv1d(x, w, stride=2, padding=((1, 0),)))


def test_causal_output_does_not_see_the_future():
    """Changing the input from time t on leaves the output before t as it was."""
    x, w = normal((1, 2, 40), (3, 2, 5))
    y = fc.conv1d(x, w, padding="causal", dilation=2)
    assert y.shape == (1, 3, 40)
    changed = x.copy()
    changed[..., 17:] += 1
    np.testing.assert_allclose(fc.conv1d(changed, w, padding="causal", dilation=2)[..., :17], y[..., :17], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("backend", fc.backends())
@pytest.mark.parametrize("mode", ["zeros", "reflect", "symmetric", "replicate", "circular"])
def test_border_modes_differ(backend, mode, pass_name):
    """Each border mode on each backend, pads as wide as the mode allows for on one side."""
    x, w = normal((1, 2, 6, 7), (3, 2, 3, 3))
    options = {"padding": ((5, 0), (0, 6)), "padding_mode": mode}
    gy = normal(reference.output_shape(x.shape, w.shape, **options))[0]
    names = {
        "forward": ("conv2d", (x, w)),
        "grad_input": ("conv2d_grad_input", (gy, w, x.shape)),
        "grad_weight": ("conv2d_grad_weight", (gy, x, w.shape)),
    }
    desired = {"forward": reference.conv, "grad_input": reference.grad_input, "grad_weight": reference.grad_weight}[pass_name]
    name, arguments = names[pass_name]
    try:
        result = getattr(fc, name)(*arguments, backend=backend, **options)
    except fc.BackendError:
        assert backend != "direct"
        pytest.skip(f"{backend} refuses")
    assert_close(result, desired(*arguments, **options), TOLERANCE)


def _plain(padding):
    return padding.tolist() if isinstance(padding, np.ndarray) else padding


# -- layouts and single samples -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ndim", "layout"), [(1, "NCL"), (1, "NCW"), (1, "NLC"), (1, "NWC"), (3, "NCDHW"), (3, "NDHWC")])
def test_layout_names_of_other_ranks(ndim, layout):
    """1-D and 3-D know their own names beside NCHW and NHWC."""
    general = "NHWC" if layout in reference.CHANNELS_LAST else "NCHW"
    sizes = (5, 6, 7)[:ndim]
    x, w = normal(
        (2, *sizes, 3) if general == "NHWC" else (2, 3, *sizes),
        (*(3,) * ndim, 3, 4) if general == "NHWC" else (4, 3, *(3,) * ndim),
    )
    y = public("conv{}d", ndim)(x, w, layout=layout, padding=1)
    np.testing.assert_array_equal(y, public("conv{}d", ndim)(x, w, layout=general, padding=1))
    assert_close(y, reference.conv(x, w, layout=layout, padding=1), TOLERANCE)


@pytest.mark.parametrize("backend", fc.backends())
@pytest.mark.parametrize(
    "options", [{}, {"stride": 2, "padding": 1}, {"groups": 3}, {"padding": 2, "padding_mode": "circular"}], ids=repr
)
def test_layouts_agree(backend, options):
    """NHWC is NCHW with the axes moved, in value and in shape."""
    x, w = normal((2, 6, 8, 9), (9, 6 // options.get("groups", 1), 3, 3))
    x_last, w_last = np.ascontiguousarray(np.moveaxis(x, 1, -1)), np.ascontiguousarray(np.moveaxis(w, (0, 1), (-1, -2)))
    try:
        y_last = fc.conv2d(x_last, w_last, layout="NHWC", backend=backend, **options)
        y = fc.conv2d(x, w, backend=backend, **options)
    except fc.BackendError:
        assert backend != "direct"
        pytest.skip(f"{backend} refuses")
    assert_close(np.moveaxis(y_last, -1, 1), y, TOLERANCE)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_single_samples(ndim, layout):
    """Inputs without a batch axis give results without one, in every function."""
    last = layout == "NHWC"
    sizes, kernel = (7, 6, 5)[:ndim], (3,) * ndim
    x, w, bias = normal((*sizes, 4) if last else (4, *sizes), (*kernel, 4, 5) if last else (5, 4, *kernel), (5,))
    gy = normal(reference.output_shape((1, *x.shape), w.shape, padding=1, layout=layout)[1:])[0]
    options = {"padding": 1, "layout": layout}
    y = reference.conv(x[None], w, bias, **options)[0]
    gx = reference.grad_input(gy[None], w, (1, *x.shape), **options)[0]
    gw = reference.grad_weight(gy[None], x[None], w.shape, **options)
    assert_close(public("conv{}d", ndim)(x, w, bias, **options), y, TOLERANCE)
    assert_close(public("conv{}d_grad_input", ndim)(gy, w, x.shape, **options), gx, TOLERANCE)
    assert_close(public("conv{}d_grad_weight", ndim)(gy, x, w.shape, **options), gw, TOLERANCE)
    results = public("conv{}d_backward", ndim)(gy, x, w, **options)
    for result, desired in zip(results, (gx, gw, reference.grad_bias(gy[None], layout=layout)), strict=True):
        assert_close(result, desired, TOLERANCE)
    transposed = reference.conv_transpose(gy[None], w, stride=2, **options)[0]
    assert_close(public("conv_transpose{}d", ndim)(gy, w, stride=2, **options), transposed, TOLERANCE)
    plan = public("plan_conv{}d", ndim)(w, bias, input_shape=x.shape, **options)
    assert_close(plan(x), y, TOLERANCE)
    out = poisoned(y.shape, np.float64)
    assert public("conv{}d", ndim)(x, w, bias, out=out, **options) is out
    assert_close(out, y, TOLERANCE)


# -- out= -----------------------------------------------------------------------------------------------------------------


OUT_CASES = named(
    "batch_of_3", "stride_differs_by_axis", "depthwise", "reflect_asymmetric", "prime_channels_nhwc", "stride_larger_than_input"
)


@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("backend", fc.backends())
@pytest.mark.parametrize("case", OUT_CASES, ids=lambda case: case.name)
def test_out_of_any_strides(case, backend, pass_name):
    """`out` may be a view with gaps, reversed or in Fortran order; what lies between its elements is left alone."""
    first, second = operands(case).of(pass_name)
    shape = operands(case).target_shape(pass_name)
    wide = poisoned((*shape[:-1], 2 * shape[-1] + 1), np.float64)
    frame = poisoned((*shape[:-2], shape[-2] + 2, shape[-1] + 2), np.float64)
    views = [
        wide[..., 1::2][..., : shape[-1]],
        frame[..., 1:-1, 1:-1],
        poisoned(shape, np.float64, order="F"),
        poisoned(shape, np.float64)[..., ::-1],
        poisoned(shape[::-1], np.float64).T,
    ]
    for view in views:
        try:
            assert run_pass(case, pass_name, first, second, backend=backend, out=view) is view
        except fc.BackendError:
            assert backend != "direct"
            pytest.skip(f"{backend} refuses")
        assert_close(view, expected(case, pass_name), TOLERANCE)
    assert np.isnan(wide[..., ::2]).all()
    assert np.isnan(frame[..., 0, :]).all() and np.isnan(frame[..., -1, :]).all()
    assert np.isnan(frame[..., 0]).all() and np.isnan(frame[..., -1]).all()


def test_out_of_transposed_and_backward_functions():
    """`out` of a transposed convolution is written whole, its output padding included."""
    x, w = normal((1, 3, 4, 5), (3, 2, 2, 2))
    desired = reference.conv_transpose(x, w, stride=3, output_padding=2)
    out = poisoned(desired.shape, np.float64)
    assert fc.conv_transpose2d(x, w, stride=3, output_padding=2, out=out) is out
    assert_close(out, desired, TOLERANCE)


# -- bias and activation --------------------------------------------------------------------------------------------------


EPILOGUE_CASES = named(
    "prime_channels", "single_output", "depthwise", "out_channels_33_nhwc", "1d_stride_4", "circular_strided_dilated"
)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", [None, *sorted(reference.ACTIVATIONS)])
@pytest.mark.parametrize("backend", fc.backends())
@pytest.mark.parametrize("case", EPILOGUE_CASES, ids=lambda case: case.name)
def test_bias_and_activation(case, backend, activation, dtype):
    """Fused into the kernel or not: every activation on every backend, with and without a bias."""
    data = operands(case)
    x, w, bias = (a.astype(dtype) for a in (data.x, data.w, data.bias))
    for b in (None, bias):
        sums = reference.conv(data.x, data.w, b if b is None else data.bias, **case.options)
        desired = sums if activation is None else reference.ACTIVATIONS[activation](sums)
        try:
            y = public("conv{}d", case.ndim)(x, w, b, activation=activation, backend=backend, **case.options)
        except fc.BackendError:
            assert backend != "direct"
            pytest.skip(f"{backend} refuses")
        assert_close(y, desired, tolerance(backend, dtype), scale=1.2 * np.abs(sums).max())  # no activation is steeper than 1.2


@pytest.mark.parametrize("activation", sorted(reference.ACTIVATIONS))
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_activation_over_its_whole_range(activation, dtype):
    """No overflow in an exponential: values from -1000 to 1000 through a 1x1 convolution by one."""
    values = np.concatenate([np.linspace(-12, 12, 97), [-1000, -90, -30, 30, 90, 1000, 0, -0.0, 1e-4, -1e-4]]).astype(dtype)
    y = fc.conv1d(values[None, None], np.ones((1, 1, 1), dtype), activation=activation)[0, 0]
    with np.errstate(over="ignore"):
        desired = reference.ACTIVATIONS[activation](values.astype(np.float64))
    np.testing.assert_allclose(y.astype(np.float64), desired, rtol=20 * np.finfo(dtype).eps, atol=2 * np.finfo(dtype).eps)


@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_activation_of_integers(activation):
    """The two activations that make whole numbers of whole numbers."""
    rng = np.random.default_rng(8)
    x, w = rng.integers(-9, 9, (1, 2, 5, 6)).astype(np.int16), rng.integers(-3, 4, (3, 2, 2, 2)).astype(np.int16)
    np.testing.assert_array_equal(fc.conv2d(x, w, activation=activation), reference.conv(x, w, activation=activation))


@pytest.mark.parametrize(
    "bias",
    [
        [1.0, -2.0, 0.5],
        np.array([1, -2, 3], np.int8),
        np.array([1, -2, 0.5], np.float32),
        np.arange(6.0)[::-2],
        np.array([1, 2, 3], ">f8"),
    ],
    ids=lambda b: getattr(getattr(b, "dtype", None), "str", "list"),
)
def test_bias_of_other_types(bias):
    """A bias is cast to the result's type; a list, other widths and strides will do."""
    x, w = normal((1, 2, 5, 6), (3, 2, 2, 2))
    assert_close(fc.conv2d(x, w, bias), reference.conv(x, w, np.asarray(bias)), TOLERANCE)


def test_strict_accuracy(monkeypatch):
    """accuracy="strict", by argument or variable, has a plain sum's error whatever is chosen."""
    for case in named("resnet_3x3", "vgg_3x3", "kernel_31x31_small_image"):
        for pass_name in PASSES:
            first, second = (a.astype(np.float32) for a in operands(case).of(pass_name))
            assert_close(run_pass(case, pass_name, first, second, accuracy="strict"), expected(case, pass_name), 2e-6)
            monkeypatch.setenv("FASTCONV_ACCURACY", "strict")
            assert_close(run_pass(case, pass_name, first, second), expected(case, pass_name), 2e-6)
            monkeypatch.delenv("FASTCONV_ACCURACY")


# -- transposed convolution -----------------------------------------------------------------------------------------------


TRANSPOSED = [
    {},
    {"stride": 2},
    {"stride": 2, "padding": 1, "output_padding": 1},
    {"stride": (3, 2), "padding": ((0, 1), (2, 0)), "output_padding": (2, 0)},
    {"dilation": 2, "output_padding": 1},
    {"stride": 2, "dilation": 2, "padding": 2},
    {"stride": 3, "dilation": 2, "groups": 2, "padding": 1},
    {"groups": 2},
    {"stride": 5},
    {"stride": 5, "output_padding": 4},
    {"padding": "valid", "stride": 2},
    {"padding": "same"},
    {"padding": "same", "stride": 2},
    {"padding": "same_lower", "stride": 2},
    {"padding": "same", "stride": 3},
]


@pytest.mark.parametrize("backend", [None, *fc.backends()])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("options", TRANSPOSED, ids=repr)
def test_transposed(options, layout, backend):
    """The transposed convolution against the definition, with bias and activation."""
    groups = options.get("groups", 1)
    x, w, bias = normal((2, 4, 5, 6), (4, 6 // groups, 3, 3), (6,))
    if layout == "NHWC":
        x, w = np.moveaxis(x, 1, -1), np.moveaxis(w, (0, 1), (-1, -2))
    desired = reference.conv_transpose(x, w, bias, layout=layout, activation="relu", **options)
    out = poisoned(desired.shape, np.float64)
    try:
        fc.conv_transpose2d(x, w, bias, layout=layout, activation="relu", backend=backend, out=out, **options)
    except fc.BackendError:
        assert backend != "direct"
        pytest.skip(f"{backend} refuses")
    assert_close(out, desired, TOLERANCE)


@pytest.mark.parametrize("options", TRANSPOSED, ids=repr)
def test_transposed_backward(options):
    """Gradients of the transposed convolution."""
    x, w = normal((2, 4, 5, 6), (4, 6 // options.get("groups", 1), 3, 3))
    gy = normal(reference.conv_transpose(x, w, **options).shape)[0]
    results = fc.conv_transpose2d_backward(gy, x, w, **options)
    for result, desired in zip(results, reference.conv_transpose_backward(gy, x, w, **options), strict=True):
        assert_close(result, desired, TOLERANCE)
    assert fc.conv_transpose2d_backward(gy, x, w, bias=False, **options)[2] is None


@pytest.mark.parametrize("ndim", [1, 3])
@pytest.mark.parametrize(
    "options", [{}, {"stride": 2, "padding": 1, "output_padding": 1}, {"stride": 2, "padding": "same", "groups": 2}], ids=repr
)
def test_transposed_of_other_ranks(ndim, options):
    """1-D and 3-D transposed convolutions and their gradients."""
    x, w, bias = normal((2, 4, *(5, 4, 3)[:ndim]), (4, 6 // options.get("groups", 1), *(3,) * ndim), (6,))
    desired = reference.conv_transpose(x, w, bias, **options)
    assert_close(public("conv_transpose{}d", ndim)(x, w, bias, **options), desired, TOLERANCE)
    gy = normal(desired.shape)[0]
    results = public("conv_transpose{}d_backward", ndim)(gy, x, w, **options)
    for result, gradient in zip(results, reference.conv_transpose_backward(gy, x, w, **options), strict=True):
        assert_close(result, gradient, TOLERANCE)


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", ["same", "same_lower"])
def test_transposed_same_has_size_times_stride_points(padding, stride, kernel):
    """The transpose of the "same" convolution of size * stride points, kernels shorter than the stride included."""
    x, w = normal((1, 2, 7), (2, 3, kernel))
    y = fc.conv_transpose1d(x, w, stride=stride, padding=padding)
    assert y.shape == (1, 3, 7 * stride)
    assert_close(y, reference.conv_transpose(x, w, stride=stride, padding=padding), TOLERANCE)


def test_transposed_inverts_the_shape():
    """conv_transpose of conv's output has conv's input shape, the ambiguity resolved by output_padding."""
    for size, stride, kernel, padding in itertools.product((7, 8, 9), (1, 2, 3), (3, 4), (0, 1)):
        x, w = normal((1, 1, size), (1, 1, kernel))
        y = fc.conv1d(x, w, stride=stride, padding=padding)
        extra = (size + 2 * padding - kernel) % stride
        assert fc.conv_transpose1d(y, w, stride=stride, padding=padding, output_padding=extra).shape == x.shape


# -- depthwise and separable ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("multiplier", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 2, "padding": 1}, {"padding": "same", "dilation": 2}, {"padding": 2, "padding_mode": "reflect"}],
    ids=repr,
)
def test_depthwise(multiplier, options):
    """`depthwise_conv2d` is `conv2d` with a group per channel."""
    x, w, bias = normal((2, 5, 9, 10), (5 * multiplier, 1, 3, 3), (5 * multiplier,))
    desired = reference.conv(x, w, bias, groups=5, activation="relu", **options)
    assert_close(fc.depthwise_conv2d(x, w, bias, activation="relu", **options), desired, TOLERANCE)


def test_depthwise_channels_last():
    """The same with the channels at the end."""
    x, w = normal((2, 9, 10, 5), (3, 3, 1, 10))
    desired = reference.conv(x, w, groups=5, padding=1, layout="NHWC")
    assert_close(fc.depthwise_conv2d(x, w, padding=1, layout="NHWC"), desired, TOLERANCE)


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"padding": "same"}], ids=repr)
def test_separable(options):
    """`separable_conv2d` is a depthwise convolution, then a 1x1 one with the bias and the activation."""
    x, depthwise, pointwise, bias = normal((2, 5, 9, 10), (10, 1, 3, 3), (7, 10, 1, 1), (7,))
    desired = reference.conv(reference.conv(x, depthwise, groups=5, **options), pointwise, bias, activation="tanh")
    assert_close(fc.separable_conv2d(x, depthwise, pointwise, bias, activation="tanh", **options), desired, TOLERANCE)


# -- plans ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", [None, *fc.backends()])
@pytest.mark.parametrize(
    "case",
    named("resnet_3x3", "depthwise_stride_2", "prime_channels_nhwc", "1d_stride_4", "3d", "circular_asymmetric"),
    ids=lambda case: case.name,
)
def test_plan(case, backend):
    """A plan packs the weights once and gives what the function gives; later changes of w do not reach it."""
    data = operands(case)
    x, w, bias = (a.astype(np.float32) for a in (data.x, data.w, data.bias))
    try:
        plan = public("plan_conv{}d", case.ndim)(w, bias, input_shape=x.shape, backend=backend, activation="relu", **case.options)
    except fc.BackendError:
        assert backend != "direct"
        pytest.skip(f"{backend} refuses")
    w[...] = np.nan
    desired = reference.conv(data.x, data.w, data.bias, activation="relu", **case.options)
    out = poisoned(desired.shape, np.float32)
    assert plan(x, out=out) is out
    assert_close(out, desired, tolerance(plan.backend, np.float32))
    assert_close(plan(np.asfortranarray(x)), desired, tolerance(plan.backend, np.float32))
    assert plan.backend in fc.backends()
    assert plan.backend in repr(plan)


def test_plan_without_input_shape():
    """`input_shape` is optional: the plan then takes each shape as it comes."""
    x, longer, w = normal((1, 2, 20), (3, 2, 33), (4, 2, 3))
    plan = fc.plan_conv1d(w, padding=1)
    assert_close(plan(x), reference.conv(x, w, padding=1), TOLERANCE)
    assert_close(plan(longer), reference.conv(longer, w, padding=1), TOLERANCE)
