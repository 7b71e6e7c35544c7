"""Wrong arguments: one ValueError or TypeError that names the argument, and an `out` that is left untouched."""

import numpy as np
import pytest
import reference
from helpers import poisoned

import fastconv as fc

X = np.ones((1, 4, 8, 9), np.float32)
W = np.ones((6, 4, 3, 3), np.float32)
Y = np.ones((1, 6, 6, 7), np.float32)
READ_ONLY = np.full(Y.shape, np.nan, np.float32)
READ_ONLY.flags.writeable = False


def wrong(function, *arguments, match, error=(ValueError, TypeError), **options):
    """One row of the table: a call and what its error says."""
    label = ",".join([_label(a) for a in arguments] + [f"{k}={_label(v)}" for k, v in options.items()])
    return pytest.param(function, arguments, options, match, error, id=f"{function}({label})")


def _label(value):
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else repr(value)[:40]


AXES = [0, -1, 1.5, "2", None, (1, 2, 3), (1,), (0, 1), (1, -2), (1, 1.5), [[1, 1], [1, 1]], {"a": 1}, True, np.nan]
OPTIONS = [
    *(wrong("conv2d", X, W, stride=value, match="stride") for value in AXES),
    *(wrong("conv2d", X, W, dilation=value, match="dilation") for value in AXES),
    *(
        wrong("conv2d", X, W, padding=value, match="padding")
        for value in (
            -1,
            1.5,
            None,
            "full",
            "SAME",
            (1,),
            (1, 2, 3),
            (1, -1),
            ((1, 2), (3, -4)),
            ((1, 2, 3), (1, 2, 3)),
            ((1, 2),),
            {"a": 1},
            True,
        )
    ),
    wrong("conv2d", X, W, padding="causal", match="padding.*1-D", error=ValueError),
    *(wrong("conv2d", X, W, groups=value, match="groups") for value in (0, -2, 1.0, "2", None, (1, 1), 3, True)),
    wrong("conv2d", X, W, groups=2, match=r"w of shape|groups", error=ValueError),
    *(wrong("conv2d", X, W, padding_mode=value, match="padding_mode.*zeros") for value in ("mirror", "Reflect", "", None, 1)),
    wrong("conv2d", X, W, padding=8, padding_mode="reflect", match="padding.*reflect", error=ValueError),
    wrong("conv2d", X, W, padding=((0, 0), (0, 9)), padding_mode="reflect", match="padding.*reflect", error=ValueError),
    wrong("conv2d", X, W, padding=10, padding_mode="symmetric", match="padding.*symmetric", error=ValueError),
    wrong("conv2d", X, W, padding=9, padding_mode="circular", match="padding.*circular", error=ValueError),
    wrong("conv2d", np.ones((1, 4, 0, 9)), W, padding=3, padding_mode="replicate", match="padding.*replicate", error=ValueError),
    *(wrong("conv2d", X, W, layout=value, match="layout.*NCHW") for value in ("CHWN", "nchw", "NLC", "NDHWC", None, 3)),
    *(wrong("conv2d", X, W, activation=value, match="activation.*relu") for value in ("swish", "ReLU", 1, np.tanh, "")),
    wrong("conv2d", X.astype(complex), W, activation="relu", match="activation.*complex", error=TypeError),
    wrong("conv2d", X.astype(int), W.astype(int), activation="sigmoid", match="activation.*int", error=TypeError),
    *(wrong("conv2d", X, W, accuracy=value, match="accuracy.*strict") for value in ("exact", 1)),
    *(wrong("conv2d", X, W, backend=value, match="backend.*direct") for value in ("fastest", "cpu_direct", "")),
    *(wrong("conv2d", X, W, backend=value, match="backend") for value in (1, ["direct"])),
    wrong("conv2d", X, W, strides=1, match="strides", error=TypeError),
]

JUNK = [
    "image",
    b"bytes",
    None,
    [[1, 2], [3]],
    [["a", "b"]],
    object(),
    {"a": 1},
    np.array(["a", "b"]),
    np.array([None, 1]),
    np.full((1, 4, 8, 9), 1, object),
    np.zeros((1, 4, 8, 9), "M8[s]"),
    np.zeros((1, 4, 8, 9), [("a", float)]),
    np.float32(1),
    np.ones(3),
    np.ones((3, 3)),
    np.ones((1, 1, 4, 8, 9), np.float32),
]
ARRAYS = [
    *(wrong("conv2d", value, W, match=r"\bx\b") for value in JUNK),
    *(wrong("conv2d", X, value, match=r"\bw\b") for value in JUNK),
    *(
        wrong("conv2d", X, W, value, match=r"\bbias\b")
        for value in (
            "bias",
            object(),
            [[1, 2], [3]],
            np.ones(5),
            np.ones((6, 1)),
            np.ones((1, 6, 1, 1)),
            np.float32(1),
            np.ones(6, complex),
            np.full(6, None),
            np.ones(0),
        )
    ),
    wrong("conv2d", X.astype(np.int8), W.astype(np.int8), np.ones(6), out=None, match=r"\bbias\b", error=TypeError),
    wrong("conv2d", np.ones((1, 5, 8, 9)), W, match=r"\bx\b|\bw\b", error=ValueError),
    wrong("conv2d", X, np.ones((6, 4, 9, 9)), match="kernel", error=ValueError),
    wrong("conv2d", X, W, dilation=5, match="kernel", error=ValueError),
    wrong("conv2d", X, np.ones((6, 4, 0, 3)), match=r"\bw\b|kernel", error=ValueError),
    wrong("conv2d", np.ones((1, 4, 0, 9)), W, match=r"kernel|\bx\b", error=ValueError),
    wrong("conv2d", X, W, layout="NHWC", match=r"\bw\b", error=ValueError),
    wrong("conv1d", X, W, match=r"\bx\b", error=ValueError),
    wrong("conv3d", X, W, match=r"\bx\b|\bw\b", error=ValueError),
    wrong(
        "conv2d", np.ones((1, 1, 1, 1), np.longdouble), np.ones((1, 1, 1, 1)), match=r"\bx\b|longdouble|float128", error=TypeError
    ),
]

OUT = [
    wrong("conv2d", X, W, out=np.full((1, 6, 6, 8), np.nan, np.float32), match=r"\bout\b", error=ValueError),
    wrong("conv2d", X, W, out=np.full((6, 6, 7), np.nan, np.float32), match=r"\bout\b", error=ValueError),
    wrong("conv2d", X, W, out=np.full(Y.shape, np.nan, np.float64), match=r"\bout\b"),
    wrong("conv2d", X, W, out=np.full(Y.shape, -7, np.int32), match=r"\bout\b"),
    wrong("conv2d", X, W, out=np.full(Y.shape, np.nan, ">f4"), match=r"\bout\b"),
    wrong("conv2d", X, W, out=READ_ONLY, match=r"\bout\b", error=ValueError),
    wrong("conv2d", X, W, out=np.broadcast_to(np.float32(np.nan), Y.shape), match=r"\bout\b", error=ValueError),
    wrong("conv2d", X, W, out=Y.tolist(), match=r"\bout\b", error=TypeError),
    wrong("conv2d", X, W, out="out", match=r"\bout\b", error=TypeError),
    wrong("conv2d_grad_input", Y, W, X.shape, out=np.full(Y.shape, np.nan, np.float32), match=r"\bout\b", error=ValueError),
    wrong("conv2d_grad_weight", Y, X, W.shape, out=np.full(Y.shape, np.nan, np.float32), match=r"\bout\b", error=ValueError),
    wrong("conv_transpose2d", Y, W, out=np.full(Y.shape, np.nan, np.float32), match=r"\bout\b", error=ValueError),
]

GRADIENTS = [
    wrong("conv2d_grad_input", np.ones((1, 6, 6, 8)), W, X.shape, match=r"\bgy\b", error=ValueError),
    wrong("conv2d_grad_input", np.ones((2, 6, 6, 7)), W, X.shape, match=r"\bgy\b", error=ValueError),
    wrong("conv2d_grad_input", np.ones((1, 5, 6, 7)), W, X.shape, match=r"\bgy\b", error=ValueError),
    wrong("conv2d_grad_input", "gy", W, X.shape, match=r"\bgy\b"),
    wrong("conv2d_grad_input", Y, "w", X.shape, match=r"\bw\b"),
    *(
        wrong("conv2d_grad_input", Y, W, shape, match=r"input_shape|shape of x|\bx\b")
        for shape in (None, 8, "1489", (8, 9), (1, 4, 8), (1, 4, 8, 9.5), (1, 4, -8, 9), (1, 4, 2, 2), (1, 5, 8, 9))
    ),
    wrong("conv2d_grad_weight", np.ones((1, 6, 6, 8)), X, W.shape, match=r"\bgy\b", error=ValueError),
    wrong("conv2d_grad_weight", Y, "x", W.shape, match=r"\bx\b"),
    *(
        wrong("conv2d_grad_weight", Y, X, shape, match=r"weight_shape|shape of w|\bw\b|kernel")
        for shape in (
            None,
            3,
            "6433",
            (3, 3),
            (6, 4, 3),
            (6, 4, 3, 3.5),
            (6, 4, -3, 3),
            (6, 4, 0, 3),
            (6, 5, 3, 3),
            (6, 4, 9, 10),
        )
    ),
    wrong("conv2d_backward", np.ones((1, 6, 6, 8)), X, W, match=r"\bgy\b", error=ValueError),
    wrong("conv2d_backward", Y, X, np.ones((6, 5, 3, 3)), match=r"\bw\b", error=ValueError),
    wrong("conv2d_backward", Y, X, W, stride=0, match="stride", error=ValueError),
    wrong("conv2d_grad_input", Y, W, X.shape, backend="fastest", match="backend.*direct", error=ValueError),
]

TRANSPOSED = [
    *(
        wrong("conv_transpose2d", Y, W, output_padding=value, match="output_padding")
        for value in (1, -1, 0.5, "1", (0, 1), (0, 0, 0), None)
    ),
    wrong("conv_transpose2d", Y, W, stride=2, output_padding=2, match="output_padding", error=ValueError),
    wrong("conv_transpose2d", Y, W, stride=0, match="stride", error=ValueError),
    wrong("conv_transpose2d", Y, W, padding=9, match="padding", error=ValueError),
    wrong("conv_transpose2d", Y, W, padding=-1, match="padding", error=ValueError),
    wrong("conv_transpose2d", X, W, match=r"\bx\b|\bw\b", error=ValueError),
    wrong("conv_transpose2d", Y, W, groups=4, match="groups", error=ValueError),
    wrong("conv_transpose2d", Y, W, np.ones(6), match=r"\bbias\b", error=ValueError),
    wrong("conv_transpose2d", "x", W, match=r"\bx\b"),
    wrong("conv_transpose2d_backward", Y, Y, W, match=r"\bgy\b", error=ValueError),
]

OTHERS = [
    wrong("plan_conv2d", "w", input_shape=X.shape, match=r"\bw\b"),
    wrong("plan_conv2d", W, input_shape=(1, 5, 8, 9), match=r"\bw\b|\bx\b|input_shape", error=ValueError),
    wrong("plan_conv2d", W, np.ones(5), input_shape=X.shape, match=r"\bbias\b", error=ValueError),
    wrong("plan_conv2d", W, input_shape=X.shape, stride=0, match="stride", error=ValueError),
    wrong("plan_conv2d", W, input_shape=X.shape, backend="fastest", match="backend.*direct", error=ValueError),
    wrong("depthwise_conv2d", X, W, match=r"\bw\b|groups", error=ValueError),
    wrong("depthwise_conv2d", "x", W, match=r"\bx\b"),
    wrong("explain", X.shape, (6, 5, 3, 3), match=r"\bw\b|\bx\b", error=ValueError),
    wrong("explain", X.shape, W.shape, dtype="float99", match="dtype", error=TypeError),
    wrong("explain", (8, 9), W.shape, match="input_shape|shape of x|x must", error=ValueError),
    wrong("explain", "1489", W.shape, match="input_shape|shape of x|x must"),
    wrong("explain", X.shape, W.shape, pass_name="backward", match="pass_name.*grad_input", error=ValueError),
    wrong("explain", X.shape, W.shape, stride=0, match="stride", error=ValueError),
    wrong("backends", "tpu", match="device", error=ValueError),
    wrong("set_num_threads", 0, match="count|threads", error=ValueError),
    wrong("set_num_threads", 1.5, match="count|threads", error=TypeError),
    wrong("tune", [(X.shape, (6, 5, 3, 3), {})], match=r"\bw\b|\bx\b", error=ValueError),
    wrong("tune", [(X.shape, W.shape, {"stride": 0})], match="stride", error=ValueError),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("function", "arguments", "options", "match", "error"), [*OPTIONS, *ARRAYS, *OUT, *GRADIENTS, *TRANSPOSED, *OTHERS]
)
def test_one_clear_error(function, arguments, options, match, error):
    """A ValueError or TypeError of the package's own, naming the argument; `out` keeps every byte."""
    if function == "conv2d":
        options = {"out": poisoned(Y.shape, np.float32)} | options
    out = options.get("out")
    before = out.tobytes() if isinstance(out, np.ndarray) else None
    with pytest.raises(error, match=match) as caught:
        getattr(fc, function)(*arguments, **options)
    assert caught.type in (ValueError, TypeError, fc.BackendError), f"a {caught.type.__module__}.{caught.type.__name__}"
    assert "numba" not in str(caught.value).lower()
    assert len(str(caught.value)) < 500
    if before is not None:
        assert out.tobytes() == before, "out was written"


@pytest.mark.parametrize("bad", ["wrong shape", "wrong dtype", "wrong rank", "not an array", "read-only out"])
def test_errors_of_a_plan(bad):
    """A plan checks what it is called with."""
    plan = fc.plan_conv2d(W, input_shape=X.shape)
    out = poisoned(Y.shape, np.float32)
    arguments = {
        "wrong shape": (np.ones((1, 5, 8, 9), np.float32), out),
        "wrong dtype": (X.astype(complex), out),
        "wrong rank": (X[0, 0], out),
        "not an array": ("x", out),
        "read-only out": (X, READ_ONLY),
    }[bad]
    with pytest.raises((ValueError, TypeError), match=r"\bx\b|\bout\b|dtype"):
        plan(*arguments)
    assert np.isnan(out).all()


@pytest.mark.parametrize("function", ["conv2d", "conv2d_grad_input", "conv_transpose2d"])
def test_out_that_overlaps_an_operand(function):
    """`out` in the memory of an operand gives the right answer or a ValueError, never a result computed from itself."""
    rng = np.random.default_rng(15)
    memory = rng.standard_normal((1, 4, 9, 8))
    w = rng.standard_normal((4, 4, 3, 3))
    operand, out = memory[:, :, :8], memory[:, :, 1:]
    arguments = (operand, w, operand.shape) if function == "conv2d_grad_input" else (operand, w)
    desired = {"conv2d": reference.conv, "conv2d_grad_input": reference.grad_input, "conv_transpose2d": reference.conv_transpose}[
        function
    ](*(a.copy() if isinstance(a, np.ndarray) else a for a in arguments), padding=1)
    try:
        getattr(fc, function)(*arguments, padding=1, out=out)
    except ValueError as error:
        assert "out" in str(error)
    else:
        np.testing.assert_allclose(out, desired, rtol=1e-10, atol=1e-10)


def test_arguments_after_the_bias_are_keywords():
    """No stride by position: its order is nobody's guess."""
    with pytest.raises(TypeError):
        fc.conv2d(X, W, None, 2)


def test_unknown_names_list_the_valid_ones():
    """An unknown backend's error is the list to choose from."""
    with pytest.raises(ValueError, match="fastest") as caught:
        fc.conv2d(X, W, backend="fastest")
    for name in fc.backends():
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("stride", True),
        ("stride", 1.0),
        ("groups", True),
        ("groups", 1.0),
        ("padding", 0.0),
        ("padding", ((0, 0), (0, False))),
        ("dilation", (1, 1.0)),
        ("dilation", np.float64(1)),
    ],
)
def test_equal_values_of_other_types_are_not_taken_from_a_cache(option, value):
    """1 == 1.0 == True, yet only the integer is right, also when the same call with it came before."""
    fc.conv2d(X, W, **{option: {"padding": 0}.get(option, 1)})
    fc.conv2d(X, W, padding=((0, 0), (0, 0)), dilation=(1, 1))
    with pytest.raises(TypeError, match=option):
        fc.conv2d(X, W, **{option: value})


def test_errors_do_not_stick():
    """After an error the same functions work."""
    with pytest.raises(ValueError, match="stride"):
        fc.conv2d(X, W, stride=0)
    np.testing.assert_array_equal(fc.conv2d(X, W), np.full(Y.shape, 36, np.float32))
