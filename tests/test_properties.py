"""Random problems. The operands are small whole numbers, so that the exact answer is known whatever the order of the sums."""

import numpy as np
import reference
from cases import Case
from helpers import PASSES, assert_close, integers, poisoned, public, reference_pass, run_pass
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import fastconv as fc

WIDEST = {
    "zeros": lambda n: 6,
    "replicate": lambda n: 6,
    "reflect": lambda n: n - 1,
    "symmetric": lambda n: n,
    "circular": lambda n: n,
}


@st.composite
def problems(draw, modes=("zeros", "reflect", "symmetric", "replicate", "circular")):
    """Any convolution that the public functions accept, small."""
    ndim = draw(st.integers(1, 3))
    largest = (60, 18, 8)[ndim - 1]
    size = draw(st.tuples(*[st.integers(1, largest)] * ndim))
    kernel = draw(st.tuples(*[st.integers(1, (9, 6, 3)[ndim - 1])] * ndim))
    stride = draw(st.tuples(*[st.integers(1, 4)] * ndim))
    dilation = draw(st.tuples(*[st.integers(1, 3)] * ndim))
    groups = draw(st.sampled_from((1, 1, 1, 2, 3, 5)))
    group_in, group_out = draw(st.integers(1, 7)), draw(st.integers(1, 19 if groups == 1 else 4))
    mode = draw(st.sampled_from(modes))
    pads = [st.integers(0, min(WIDEST[mode](n), 6)) for n in size]
    padding = draw(
        st.one_of(
            st.tuples(*[st.tuples(p, p) for p in pads]),
            st.sampled_from(("valid", "same", "same_lower")) if mode == "zeros" else st.just(0),
        )
    )
    layout = draw(st.sampled_from(("NCHW", "NHWC")))
    batch = draw(st.integers(1, 3))
    channels, outputs = group_in * groups, group_out * groups
    shapes = (
        ((batch, channels, *size), (outputs, group_in, *kernel))
        if layout == "NCHW"
        else ((batch, *size, channels), (*kernel, group_in, outputs))
    )
    options = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "padding_mode": mode,
        "layout": layout,
    }
    spatial = (
        reference.output_shape(*shapes, **options)[2:] if layout == "NCHW" else reference.output_shape(*shapes, **options)[1:-1]
    )
    assume(min(spatial) >= 1)
    return Case("random", ndim, *shapes, options)


def whole_operands(case, pass_name, seed, dtype):
    """The pass's operands, filled with whole numbers from -5 to 5."""
    rng = np.random.default_rng(seed)
    shapes = {
        "x": case.input_shape,
        "w": case.weight_shape,
        "gy": reference.output_shape(case.input_shape, case.weight_shape, **case.options),
    }
    names = {"forward": "xw", "grad_input": ("gy", "w"), "grad_weight": ("gy", "x")}[pass_name]
    return [integers(rng, shapes[name], dtype) for name in names]


@settings(max_examples=150)
@given(
    case=problems(),
    pass_name=st.sampled_from(PASSES),
    dtype=st.sampled_from(("float32", "float64")),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_backend(case, pass_name, dtype, seed):
    """All backends that take a random problem give the reference's answer."""
    first, second = whole_operands(case, pass_name, seed, dtype)
    desired = reference_pass(case, pass_name, first, second)
    ran = set()
    for backend in (*fc.backends(), None):
        out = poisoned(desired.shape, dtype)
        try:
            run_pass(case, pass_name, first, second, backend=backend, out=out)
        except fc.BackendError:
            continue
        ran.add(backend)
        try:
            assert_close(out, desired, 2e-5 if dtype == "float32" else 1e-12, scale=max(25, np.abs(desired).max(initial=0)))
        except AssertionError as error:
            raise AssertionError(f"{backend}: {error}") from None
    assert {"direct", None} <= ran


@settings(max_examples=60)
@given(
    case=problems(),
    pass_name=st.sampled_from(PASSES),
    dtype=st.sampled_from(("int8", "uint8", "int32", "int64", "float16", "complex64")),
    seed=st.integers(0, 2**32 - 1),
)
def test_other_types_are_exact(case, pass_name, dtype, seed):
    """Whole numbers are exact in every type but where float16 rounds the result."""
    first, second = whole_operands(case, pass_name, seed, dtype)
    desired = reference_pass(case, pass_name, first, second)
    result = run_pass(case, pass_name, first, second)
    if dtype == "float16":
        np.testing.assert_array_equal(result, desired.astype(np.float16))
    elif dtype == "complex64":
        assert_close(result, desired, 2e-5)
    else:
        np.testing.assert_array_equal(result, desired)


@settings(max_examples=60)
@given(case=problems(modes=("zeros",)), extra=st.integers(0, 3), bias=st.booleans(), seed=st.integers(0, 2**32 - 1))
def test_transposed(case, extra, bias, seed):
    """The transposed convolution of random problems: x takes the place of gy, its result that of x."""
    options = {name: case.options[name] for name in ("stride", "dilation", "groups", "layout", "padding")}
    options["output_padding"] = tuple(
        min(extra, max(s, d) - 1) for s, d in zip(options["stride"], options["dilation"], strict=True)
    )
    assume(not isinstance(options["padding"], str) or options["padding"] == "valid")
    x, w = whole_operands(case, "grad_input", seed, np.float64)
    size, kernel = reference.spatial_size(x.shape, options["layout"]), reference.weights_first(w, options["layout"]).shape[2:]
    target = reference.transposed_geometry(
        size, kernel, options["stride"], options["padding"], options["output_padding"], options["dilation"]
    )[1]
    assume(min(target) >= 1)
    channels = (w.shape[-2] if options["layout"] == "NHWC" else w.shape[1]) * options["groups"]
    b = np.arange(float(channels)) if bias else None
    assert_close(public("conv_transpose{}d", case.ndim)(x, w, b, **options), reference.conv_transpose(x, w, b, **options), 1e-12)


@settings(max_examples=60)
@given(case=problems(), seed=st.integers(0, 2**32 - 1), factor=st.integers(-3, 3))
def test_linear_in_both_operands(case, seed, factor):
    """conv(x + a z, w) = conv(x, w) + a conv(z, w), and the same in w: exact on whole numbers."""
    x, w = whole_operands(case, "forward", seed, np.int64)
    z, v = whole_operands(case, "forward", seed ^ 1, np.int64)
    np.testing.assert_array_equal(
        run_pass(case, "forward", x + factor * z, w), run_pass(case, "forward", x, w) + factor * run_pass(case, "forward", z, w)
    )
    np.testing.assert_array_equal(
        run_pass(case, "forward", x, w + factor * v), run_pass(case, "forward", x, w) + factor * run_pass(case, "forward", x, v)
    )


@settings(max_examples=60)
@given(case=problems(), seed=st.integers(0, 2**32 - 1))
def test_samples_do_not_mix(case, seed):
    """A batch is the stack of its samples."""
    x, w = whole_operands(case, "forward", seed, np.float64)
    together = run_pass(case, "forward", x, w)
    for sample, y in zip(x, together, strict=True):
        assert_close(run_pass(case, "forward", sample, w), y, 1e-12)
