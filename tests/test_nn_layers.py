"""One contract for every layer: shapes, dtypes, gradients, adjoints, inputs left alone, pickling, errors."""

import copy
import importlib.util
import pickle
from dataclasses import dataclass, field

import numpy as np
import pytest

import fastconv.nn as nn


@dataclass(frozen=True)
class Case:
    """A layer, made anew for each test, and an input it takes."""

    name: str
    arguments: tuple = ()
    options: dict = field(default_factory=dict)
    shape: tuple = (2, 4, 7, 6)
    linear: bool = False  # without its bias
    wrong: tuple | None = (2, 3, 7, 6)  # a shape that it refuses
    typed: bool = False  # whether it has a dtype of its own

    @property
    def id(self):
        return "-".join([self.name, *map(str, self.arguments), *(f"{k}={v}" for k, v in self.options.items())]).replace(" ", "")

    def make(self, dtype="float64"):
        """The layer, with parameters that hide nothing by being 0 or 1."""
        options = self.options | ({"dtype": dtype} if self.typed else {})
        layer = getattr(nn, self.name)(*self.arguments, **options)
        shake(layer)
        return layer

    def input(self, dtype="float64", seed=0):
        """Numbers away from 0, where rectifiers bend, and from each other, for maxima."""
        rng = np.random.default_rng(seed)
        size = int(np.prod(self.shape))
        values = (rng.permutation(size) - size / 2 + 0.25) / max(1, size) * 4
        return values.reshape(self.shape).astype(dtype)


def shake(layer):
    rng = np.random.default_rng(5)
    for parameter in layer.named_parameters():
        array = parameter.params[parameter.key]
        array += rng.uniform(-0.2, 0.2, array.shape).astype(array.dtype)


def conv(name, *arguments, **more):
    case = {key: more.pop(key) for key in ("shape", "wrong", "linear") if key in more}
    return Case(name, arguments, {"rng": 3, **more}, typed=True, **{"linear": True, **case})


def compound(builder):
    """A case whose layer is put together by a function of the dtype."""

    def made(*arguments, dtype, **options):
        return builder(dtype)

    return made


LINES, VOLUMES = {"shape": (2, 4, 9), "wrong": (2, 3, 9)}, {"shape": (2, 4, 5, 4, 3), "wrong": (2, 3, 5, 4, 3)}
LAST = {"shape": (2, 7, 6, 4), "wrong": (2, 7, 6, 3)}
CASES = [
    conv("Conv1d", 4, 3, 3, **LINES),
    conv("Conv2d", 4, 3, 3),
    conv("Conv2d", 4, 6, (3, 2), 2, (1, 0), 1, 2),
    conv("Conv2d", 4, 3, 3, padding="same", dilation=2),
    conv("Conv2d", 4, 3, 3, padding=[(1, 2), (0, 1)], padding_mode="circular", bias=False),
    conv("Conv2d", 4, 3, 3, layout="NHWC", **LAST),
    conv("Conv3d", 4, 3, (2, 3, 1), **VOLUMES),
    conv("ConvTranspose1d", 4, 3, 3, 2, **LINES),
    conv("ConvTranspose2d", 4, 6, 3, 2, 1, 1, 2),
    conv("ConvTranspose2d", 4, 3, 3, 2, layout="NHWC", **LAST),
    conv("ConvTranspose3d", 4, 2, 2, 2, **VOLUMES),
    conv("DepthwiseConv2d", 4, 3, padding=1, multiplier=2),
    conv("PointwiseConv2d", 4, 3),
    conv("SeparableConv2d", 4, 3, 3, padding=1),
    conv("Linear", 6, 5, wrong=(2, 3, 7, 5)),
    conv("Linear", 6, 5, False, shape=(3, 6), wrong=(3, 5)),
    Case("BatchNorm1d", (4,), typed=True, shape=(5, 4), wrong=(5, 3)),
    Case("BatchNorm1d", (4,), typed=True, **LINES),
    Case("BatchNorm2d", (4,), typed=True),
    Case("BatchNorm2d", (4,), {"layout": "NHWC"}, typed=True, **LAST),
    Case("BatchNorm2d", (4, 1e-3, None, False), typed=True),
    Case("BatchNorm2d", (4,), {"track_running_stats": False}, typed=True),
    Case("BatchNorm3d", (4,), typed=True, **VOLUMES),
    Case("LayerNorm", (6,), typed=True, wrong=(2, 4, 7, 5)),
    Case("LayerNorm", ((4, 7, 6),), {"bias": False}, typed=True),
    Case("LayerNorm", (6,), {"elementwise_affine": False}, typed=True, wrong=(2, 4, 7, 5)),
    Case("GroupNorm", (2, 4), typed=True),
    Case("GroupNorm", (2, 4), {"layout": "NHWC"}, typed=True, **LAST),
    Case("Dropout", (0.4,), {"rng": 1}, wrong=None),
    Case("Dropout", (1.0,), wrong=None),
    Case("Flatten", wrong=(), linear=True),
    Case("Flatten", (2, 3), wrong=(3, 2), linear=True),
    *(Case(name, wrong=None) for name in ("ReLU", "ReLU6", "LeakyReLU", "Sigmoid", "Tanh", "SiLU", "GELU")),
    Case("LeakyReLU", (0.3,), wrong=None),
    Case("Softmax", wrong=(3,)),
    Case("Softmax", (-1,), wrong=()),
]
POOLS = [
    Case("MaxPool1d", (3, 2), shape=(2, 4, 9), wrong=(4,)),
    Case("MaxPool2d", (2,), wrong=(4, 3)),
    Case("MaxPool2d", (3, 2, 1), {"ceil_mode": True}, wrong=(2, 3, 1, 1, 1)),
    Case("MaxPool2d", (2,), {"layout": "NHWC"}, shape=(2, 7, 6, 4), wrong=(4, 3)),
    Case("MaxPool3d", (2,), shape=(2, 4, 5, 4, 3), wrong=(4, 3)),
    Case("AvgPool1d", (3, 2), shape=(2, 4, 9), wrong=(4,), linear=True),
    Case("AvgPool2d", (3, 2, 1), wrong=(4, 3), linear=True),
    Case("AvgPool2d", (3, 2, 1, True, False), wrong=(4, 3), linear=True),
    Case("AvgPool3d", (2,), shape=(2, 4, 5, 4, 3), wrong=(4, 3), linear=True),
    Case("LPPool1d", (2, 2), shape=(2, 4, 9), wrong=(4,)),
    Case("LPPool2d", (2, 2), wrong=(4, 3)),
    Case("LPPool3d", (2, 2), shape=(2, 4, 5, 4, 3), wrong=(4, 3)),
    Case("AdaptiveAvgPool1d", (4,), shape=(2, 4, 9), wrong=(4,), linear=True),
    Case("AdaptiveAvgPool2d", ((3, 2),), wrong=(4, 3), linear=True),
    Case("AdaptiveAvgPool3d", (2,), shape=(2, 4, 5, 4, 3), wrong=(4, 3), linear=True),
    Case("AdaptiveMaxPool1d", (4,), shape=(2, 4, 9), wrong=(4,)),
    Case("AdaptiveMaxPool2d", ((3, 2),), wrong=(4, 3)),
    Case("AdaptiveMaxPool3d", (2,), shape=(2, 4, 5, 4, 3), wrong=(4, 3)),
    Case("GlobalAvgPool", wrong=(4,), linear=True),
    Case("GlobalMaxPool", wrong=(4,)),
]
LOCAL = [
    conv("LocallyConnected2d", 4, 3, (7, 6), 3, 2, 1, wrong=(2, 4, 6, 6)),
    conv("LocallyConnected2d", 4, 6, (7, 6), (3, 2), groups=2, layout="NHWC", **LAST),
]
if importlib.util.find_spec("fastconv.pool"):
    CASES += POOLS
if importlib.util.find_spec("fastconv.local"):
    CASES += LOCAL


@dataclass(frozen=True)
class Compound(Case):
    """A container: `build` makes it for a dtype."""

    build: object = None

    def make(self, dtype="float64"):
        layer = self.build(dtype)
        shake(layer)
        return layer


def block(dtype, shortcut=False, activation=None):
    branch = nn.Sequential(nn.Conv2d(4, 6 if shortcut else 4, 3, padding=1, bias=False, dtype=dtype, rng=1),
                           nn.BatchNorm2d(6 if shortcut else 4, dtype=dtype), nn.ReLU(),
                           nn.Conv2d(6 if shortcut else 4, 6 if shortcut else 4, 3, padding=1, dtype=dtype, rng=2))
    return nn.Residual(branch, nn.Conv2d(4, 6, 1, dtype=dtype, rng=3) if shortcut else None, activation)


CASES += [
    Compound("Sequential", options={"of": "convolutions"}, typed=True, build=lambda dtype: nn.Sequential(
        nn.Conv2d(4, 3, 3, dtype=dtype, rng=1), nn.ReLU(), nn.Conv2d(3, 2, 3, dtype=dtype, rng=2), nn.Tanh(), nn.Flatten(),
        nn.Linear(12, 3, dtype=dtype, rng=3), nn.ReLU6())),
    Compound("Sequential", options={"of": "norms"}, typed=True, build=lambda dtype: nn.Sequential(
        nn.BatchNorm2d(4, dtype=dtype), nn.LeakyReLU(), nn.SeparableConv2d(4, 3, 3, dtype=dtype, rng=1), nn.LeakyReLU())),
    Compound("Parallel", typed=True, build=lambda dtype: nn.Parallel(
        nn.Conv2d(4, 3, 1, dtype=dtype, rng=1), nn.Conv2d(4, 2, 3, padding=1, dtype=dtype, rng=2))),
    Compound("Residual", typed=True, build=block),
    Compound("Residual", options={"activation": "ReLU"}, typed=True, build=lambda dtype: block(dtype, True, nn.ReLU())),
    Compound("Residual", options={"activation": "SiLU"}, typed=True, build=lambda dtype: block(dtype, False, nn.SiLU())),
]
every_layer = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)


def gradients(layer):
    return {p.name: p.grads[p.key].copy() for p in layer.named_parameters()}


@every_layer
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_shapes_and_dtypes(case, dtype):
    """Output and gradients have the shapes and the dtype that they should; both dtypes give the same numbers."""
    layer, x = case.make(dtype), case.input(dtype)
    y, backprop = layer.forward(x)
    inferred = layer(x)
    assert type(y) is np.ndarray and y.dtype == inferred.dtype == dtype and y.shape == inferred.shape
    gx = backprop(np.ones_like(y))
    assert gx.shape == x.shape and gx.dtype == dtype
    for p in layer.named_parameters():
        assert p.grads[p.key].shape == p.params[p.key].shape and p.grads[p.key].dtype == dtype
    wide = case.make()
    y64, backprop64 = wide.forward(case.input())
    gx64 = backprop64(np.ones_like(y64))
    for got, wanted in ((y, y64), (gx, gx64), *zip(gradients(layer).values(), gradients(wide).values())):
        np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=5e-5 * max(1, np.abs(wanted).max(initial=0)))


@every_layer
def test_directional_derivative(case):
    """<gradient, direction> is the difference quotient, in the input and all parameters at once."""
    rng = np.random.default_rng(1)
    layer, x = case.make(), case.input()
    y, backprop = copy.deepcopy(layer).forward(x)
    weights = rng.normal(size=y.shape)
    run = copy.deepcopy(layer)
    _, backprop = run.forward(x)
    gx = backprop(weights)
    steps = {p.name: rng.normal(size=p.params[p.key].shape) for p in layer.named_parameters()}
    direction = rng.normal(size=x.shape)
    slope = (gx * direction).sum() + sum((gradients(run)[name] * step).sum() for name, step in steps.items())

    def value(h):
        moved = copy.deepcopy(layer)
        for p in moved.named_parameters():
            p.params[p.key] += h * steps[p.name]
        return (moved.forward(x + h * direction)[0] * weights).sum()

    h = 1e-6
    quotient = (value(h) - value(-h)) / (2 * h)
    assert slope == pytest.approx(quotient, rel=2e-6, abs=2e-6 * max(1.0, np.abs(weights).sum() / 50))


@pytest.mark.parametrize("case", [case for case in CASES if case.linear], ids=lambda case: case.id)
def test_adjoint(case):
    """<A x, g> = <x, A^T g> for layers that are linear without their bias."""
    layer, x = case.make(), case.input()
    for p in layer.named_parameters():
        if p.key == "bias":
            p.params[p.key][...] = 0
    y, backprop = layer.forward(x)
    g = np.random.default_rng(2).normal(size=y.shape)
    assert (y * g).sum() == pytest.approx((x * backprop(g)).sum(), rel=1e-10, abs=1e-10)


@every_layer
def test_inputs_are_left_alone(case):
    """Neither x nor gy is written, nor does a result share its memory; read-only and non-contiguous arrays work."""
    layer, x = case.make(), case.input()
    wanted_y, backprop = copy.deepcopy(layer).forward(x)
    gy = np.random.default_rng(3).normal(size=wanted_y.shape)
    wanted = backprop(gy)
    layer.zero_grad()
    before, gy_before = x.copy(), gy.copy()
    x.flags.writeable = gy.flags.writeable = False
    inferred = layer(x)
    run = copy.deepcopy(layer)
    y, backprop = run.forward(x)
    gx = backprop(gy)
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(gy, gy_before)
    for result in (inferred, y, gx):
        assert not np.shares_memory(result, x) and not np.shares_memory(result, gy)
    np.testing.assert_allclose(y, wanted_y, rtol=1e-12, atol=1e-12)
    spread = np.repeat(x, 2, axis=-1)[..., ::2], np.repeat(gy, 2, axis=-1)[..., ::2]
    y, backprop = copy.deepcopy(layer).forward(spread[0])
    np.testing.assert_allclose(y, wanted_y, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(backprop(spread[1]), wanted, rtol=1e-10, atol=1e-12)


@every_layer
def test_backprops_add_up(case):
    """Two backward passes leave the sum of their gradients, also on top of what was there; zero_grad clears it."""
    layer, x = case.make(), case.input()
    y, backprop = layer.forward(x)
    backprop(np.ones_like(y))
    once = gradients(layer)
    backprop(2 * np.ones_like(y))
    for name, gradient in gradients(layer).items():
        np.testing.assert_allclose(gradient, 3 * once[name], rtol=1e-9, atol=1e-9)
    layer.zero_grad()
    assert not any(gradient.any() for gradient in gradients(layer).values())
    for p in layer.named_parameters():
        p.grads[p.key] += 1
    backprop(np.ones_like(y))
    for name, gradient in gradients(layer).items():
        np.testing.assert_allclose(gradient, once[name] + 1, rtol=1e-9, atol=1e-9)


@every_layer
def test_pickling(case):
    """A layer comes back from a pickle with all it knows."""
    layer, x = case.make(), case.input()
    layer.forward(x)
    again = pickle.loads(pickle.dumps(layer))
    assert repr(again) == repr(layer)
    for p in again.named_parameters():
        assert p.params[p.key].dtype is p.grads[p.key].dtype is np.dtype(np.float64)
    np.testing.assert_array_equal(again(x), layer(x))
    assert list(again.state_dict()) == list(layer.state_dict())
    np.testing.assert_array_equal(again.forward(x)[0], layer.forward(x)[0])


@every_layer
def test_errors_name_the_layer_and_both_shapes(case):
    """A wrong input, and a gradient of a wrong shape, are refused, and nothing is changed."""
    layer, x = case.make(), case.input()
    y, backprop = layer.forward(x)
    before = layer.state_dict()
    if case.wrong is not None and not isinstance(case, Compound):
        for call in (layer, layer.forward):
            with pytest.raises(ValueError) as error:
                call(np.zeros(case.wrong))
            assert case.name.removeprefix("Separable").removeprefix("Depthwise").removeprefix("Pointwise") in str(error.value)
            assert str(tuple(case.wrong)) in str(error.value) and "must have shape" in str(error.value)
    with pytest.raises(ValueError) as error:
        backprop(np.zeros((*y.shape, 2)))
    assert str((*y.shape, 2)) in str(error.value) and str(y.shape) in str(error.value)
    assert not any(gradient.any() for gradient in gradients(layer).values())
    with pytest.raises(TypeError, match="real numbers"):
        layer(np.array(["a"]))
    for key, array in layer.state_dict().items():
        np.testing.assert_array_equal(array, before[key])


@every_layer
def test_no_samples(case):
    """An empty batch gives an empty result and gradients of zero."""
    if case.name in ("Linear", "Softmax") or case.shape[0] == 0:
        pytest.skip("tested with the others' shapes")
    layer = case.make()
    y, backprop = layer.forward(np.zeros((0, *case.shape[1:])))
    assert y.shape[0] == 0
    assert backprop(np.zeros_like(y)).shape == (0, *case.shape[1:])
    assert all(np.isfinite(array).all() for array in layer.state_dict().values())


PAIRS = [("Conv2d", (4, 6, 3), {"groups": 2, "rng": 0, "dtype": "float64"}),
         ("ConvTranspose2d", (4, 6, 3, 2), {"rng": 0, "dtype": "float64"}),
         ("BatchNorm2d", (4,), {"dtype": "float64"}), ("GroupNorm", (2, 4), {"dtype": "float64"})]


@pytest.mark.parametrize(("name", "arguments", "options"), PAIRS, ids=[name for name, *_ in PAIRS])
def test_layouts_agree(name, arguments, options):
    """Channels last give what channels first give, of the same state dict."""
    first = getattr(nn, name)(*arguments, **options)
    last = getattr(nn, name)(*arguments, **options, layout="NHWC")
    shake(first)
    last.load_state_dict(first.state_dict())
    x = np.random.default_rng(0).normal(size=(2, 4, 7, 6))
    y, backprop = first.forward(x)
    z, backprop_last = last.forward(np.moveaxis(x, 1, -1))
    np.testing.assert_allclose(np.moveaxis(z, -1, 1), y, rtol=1e-11, atol=1e-12)
    gy = np.random.default_rng(1).normal(size=y.shape)
    np.testing.assert_allclose(np.moveaxis(backprop_last(np.moveaxis(gy, 1, -1)), -1, 1), backprop(gy), rtol=1e-10, atol=1e-11)
    for key in first.grads:
        np.testing.assert_allclose(last.to_state(key, last.grads[key]), first.grads[key], rtol=1e-10, atol=1e-10)


def test_every_layer_is_tested():
    """No public layer without a case."""
    layers = {name for name in nn.__all__ if isinstance(getattr(nn, name), type) and issubclass(getattr(nn, name), nn.Layer)}
    assert layers - {"Layer"} == {case.name for case in CASES + POOLS + LOCAL}


def test_large_means_keep_their_variance():
    """One pass over x less its first element loses no digits to a mean of 10^4."""
    x = np.random.default_rng(0).normal(1e4, 1, (8, 2, 30, 30)).astype(np.float32)
    for layer, view in ((nn.BatchNorm2d(2), x), (nn.BatchNorm2d(2, layout="NHWC"), np.moveaxis(x, 1, -1))):
        y, _ = layer.forward(view)
        assert y.astype(float).std() == pytest.approx(1, abs=1e-3)


def test_running_statistics():
    """They move by the momentum, towards the unbiased variance; without one they average."""
    x = np.random.default_rng(0).normal(3, 2, (6, 2, 4, 4))
    layer = nn.BatchNorm2d(2, dtype="float64")
    layer.forward(x)
    np.testing.assert_allclose(layer.running_mean, 0.1 * x.mean((0, 2, 3)))
    np.testing.assert_allclose(layer.running_var, 0.9 + 0.1 * x.var((0, 2, 3), ddof=1))
    assert layer.num_batches_tracked == 1
    layer = nn.BatchNorm2d(2, momentum=None, dtype="float64")
    layer.forward(x)
    layer.forward(x + 1)
    np.testing.assert_allclose(layer.running_mean, x.mean((0, 2, 3)) + 0.5)
    with pytest.raises(ValueError, match="more than one value"):
        layer.forward(x[:1, :, :1, :1])


WRONG = {  # refused behind, beside or above layers that have moved something
    "behind": lambda moved: nn.Sequential(moved, nn.ReLU(), nn.Conv2d(3, 4, 3)),
    "in_a_block_behind": lambda moved: nn.Sequential(nn.Sequential(moved), nn.Residual(nn.Conv2d(3, 4, 1))),
    "beside": lambda moved: nn.Parallel(moved, nn.Conv2d(3, 4, 1)),
    "joined": lambda moved: nn.Parallel(moved, nn.MaxPool2d(2)),
    "shortcut": lambda moved: nn.Residual(moved, nn.Conv2d(3, 4, 1)),
    "summed": lambda moved: nn.Residual(moved, nn.MaxPool2d(2)),
    "activated": lambda moved: nn.Residual(moved, activation=nn.LayerNorm(7)),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_refused_forward_pass_changes_nothing(name):
    """Running statistics and the stream of dropout are those of the batches before, an empty one among them."""
    x = np.random.default_rng(0).normal(3, 2, (4, 2, 6, 6))
    norm, dropout, twin = nn.BatchNorm2d(2), nn.Dropout(rng=0), nn.Dropout(rng=0)
    norm.forward(x)
    before = norm.state_dict()
    model = WRONG[name](nn.Sequential(norm, dropout))
    for batch in (x, x[:0]):
        with pytest.raises(ValueError):
            model.forward(batch)
        for key, array in norm.state_dict().items():
            np.testing.assert_array_equal(array, before[key])
    np.testing.assert_array_equal(dropout.forward(x)[0], twin.forward(x)[0])


def test_input_gradients_can_be_left_out():
    """The parameters' gradients stay the same."""
    for model in (nn.Sequential(nn.Conv2d(2, 3, 3, rng=0), nn.ReLU(), nn.Conv2d(3, 2, 3, rng=1)), nn.Sequential(nn.Tanh()),
                  nn.Sequential(nn.Sequential(nn.Conv2d(2, 3, 3, rng=0), nn.Sigmoid()), nn.BatchNorm2d(3)), nn.Sequential()):
        y, backprop = model.forward(np.random.default_rng(0).normal(size=(2, 2, 6, 6)))
        gy = np.random.default_rng(1).normal(size=y.shape)
        backprop(gy)
        wanted = gradients(model)
        model.zero_grad()
        backprop(gy, input_gradient=False)
        for name, gradient in gradients(model).items():
            np.testing.assert_array_equal(gradient, wanted[name])


def test_residual_of_another_dtype():
    """The sum has the branch's dtype, whatever the input's."""
    for activation in (None, nn.ReLU(), nn.Tanh()):
        block = nn.Residual(nn.Linear(3, 3, rng=0), activation=activation)
        x = np.random.default_rng(0).normal(size=(5, 3))
        y, backprop = block.forward(x)
        assert y.dtype == block(x).dtype == block.fuse()(x).dtype == np.float32
        np.testing.assert_allclose(y, block.forward(x.astype(np.float32))[0], atol=1e-6)
        assert backprop(np.ones((5, 3))).shape == x.shape


def test_attributes_are_parameters():
    """Parameters are read and set as attributes; a wrong shape is refused."""
    layer = nn.Linear(2, 3)
    layer.bias = [1, 2, 3]
    assert layer.params["bias"].dtype == np.float32 and layer.bias is layer.params["bias"]
    with pytest.raises(ValueError, match=r"weight must have shape \(3, 2\), got \(2, 3\)"):
        layer.weight = np.zeros((2, 3))
    with pytest.raises(AttributeError, match="no attribute 'weights'"):
        _ = layer.weights


def test_initial_weights():
    """PyTorch's bounds: 1 / sqrt(fan); the same seed gives the same weights."""
    layer = nn.Conv2d(8, 16, 3, groups=2, rng=0)
    assert 0.9 / 6 < np.abs(layer.weight).max() <= 1 / 6 and np.abs(layer.bias).max() <= 1 / 6
    np.testing.assert_array_equal(layer.weight, nn.Conv2d(8, 16, 3, groups=2, rng=0).weight)
    normal = nn.initializers.kaiming_normal((64, 64, 3, 3), 576, nonlinearity="relu", rng=0)
    assert normal.std() == pytest.approx(np.sqrt(2 / 576), rel=0.02)
    assert nn.initializers.xavier_normal((300, 200), 200, 300, rng=0).std() == pytest.approx(np.sqrt(2 / 500), rel=0.02)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: nn.Conv2d(3, 4, 3, groups=2), "groups=2 must divide in_channels=3"),
    (lambda: nn.Conv2d(3, 4, 0), "kernel_size must be a positive integer"),
    (lambda: nn.Conv2d(3, 4, 3, layout="CHWN"), "layout must be"),
    (lambda: nn.GroupNorm(3, 4), "num_groups=3 must divide"),
    (lambda: nn.Dropout(1.5), "p must lie"),
    (lambda: nn.LeakyReLU(-1.0), "negative_slope"),
    (lambda: nn.Parallel(), "at least one layer"),
    (lambda: nn.Conv2d(3, 4, 3)(np.zeros((1, 3, 2, 2))), r"Conv2d\(3, 4.*\(1, 3, 2, 2\).*larger than the padded input"),
    (lambda: nn.Residual(nn.Linear(2, 3))(np.zeros((1, 2))), r"\(1, 3\).*\(1, 2\)"),
    (lambda: nn.Parallel(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 3))(np.zeros((1, 1, 5, 5))), r"\(1, 1, 5, 5\), \(1, 1, 3, 3\)"),
])
def test_bad_arguments(make, message):
    """One clear error each."""
    with pytest.raises(ValueError, match=message):
        make()
