"""Fused models give what the models give; what was folded shows in their text; summaries count what they should."""

import copy
import importlib.util
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastconv as fc
import fastconv.nn as nn
from fastconv import conv
from fastconv.backends import _bottleneck, _expanded
from fastconv.nn import fusion


def shaken(model, seed=0):
    """All parameters and statistics away from where they start."""
    rng = np.random.default_rng(seed)
    for _, layer in model.named_layers():
        for kind in (layer.params, layer.buffers):
            for array in kind.values():
                if array.dtype.kind == "f":
                    array += rng.uniform(0, 0.3, array.shape).astype(array.dtype)
    return model


F64 = {"dtype": "float64"}


def chain(convolution, norm, *more):
    return lambda: nn.Sequential(convolution(), norm(), *more)


MODELS = {
    "conv": (lambda: nn.Sequential(nn.Conv2d(3, 6, 3, groups=3, **F64), nn.BatchNorm2d(6, **F64), nn.ReLU6(), nn.Dropout(),
                                   nn.Conv2d(6, 4, 1, bias=False, **F64), nn.BatchNorm2d(4, affine=False, **F64), nn.GELU()),
             (2, 3, 7, 6), 2),
    "nhwc": (lambda: nn.Sequential(nn.Conv2d(3, 6, 3, layout="NHWC", **F64), nn.BatchNorm2d(6, layout="NHWC", **F64), nn.SiLU()),
             (2, 7, 6, 3), 1),
    "transpose": (lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, 2, **F64), nn.BatchNorm2d(6, **F64), nn.LeakyReLU(),
                                        nn.ConvTranspose2d(6, 4, 3, groups=2, layout="NCHW", **F64), nn.BatchNorm2d(4, **F64)),
                  (2, 4, 5, 4), 2),
    "transpose-nhwc": (lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2, layout="NHWC", **F64),
                                             nn.BatchNorm2d(6, layout="NHWC", **F64)), (2, 5, 4, 4), 1),
    "lines": (lambda: nn.Sequential(nn.Conv1d(3, 4, 3, **F64), nn.Dropout(), nn.BatchNorm1d(4, **F64), nn.Sigmoid()), (2, 3, 9), 1),
    "volumes": (lambda: nn.Sequential(nn.Conv3d(2, 4, 3, **F64), nn.BatchNorm3d(4, **F64), nn.Tanh()), (1, 2, 4, 5, 4), 1),
    "linear": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 5, **F64), nn.BatchNorm1d(5, **F64), nn.ReLU(),
                                     nn.Linear(5, 2, bias=False, **F64), nn.Tanh()), (3, 4, 3), 3),
    "linear-rows": (lambda: nn.Sequential(nn.Linear(3, 4, **F64), nn.BatchNorm1d(4, **F64)), (3, 4, 3), 1),
    "separable": (lambda: nn.Sequential(nn.Sequential(nn.SeparableConv2d(3, 4, 3, **F64)), nn.BatchNorm2d(4, **F64), nn.ReLU()),
                  (2, 3, 6, 6), 2),
    "residual": (lambda: nn.Sequential(nn.Conv2d(3, 4, 1, **F64), nn.Residual(
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, **F64), nn.BatchNorm2d(4, **F64), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, **F64)),
        nn.Sequential(nn.Conv2d(4, 4, 1, **F64), nn.BatchNorm2d(4, **F64)), nn.ReLU())), (2, 3, 6, 6), None),
    "identity": (lambda: nn.Residual(nn.Dropout(), activation=nn.Sigmoid()), (2, 3), None),
    "empty": (lambda: nn.Sequential(nn.Dropout()), (2, 3), 0),
    "parallel": (lambda: nn.Parallel(nn.Sequential(nn.Conv2d(3, 4, 1, **F64), nn.ReLU()), nn.Conv2d(3, 2, 3, padding=1, **F64)),
                 (2, 3, 6, 6), None),
    "norm-first": (lambda: nn.Sequential(nn.BatchNorm2d(3, **F64), nn.ReLU(), nn.Conv2d(3, 4, 3, **F64), nn.LeakyReLU(0.3)),
                   (2, 3, 6, 6), 3),
    "norms": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, **F64), nn.GroupNorm(2, 4, **F64), nn.ReLU(), nn.BatchNorm2d(4, **F64),
                                    nn.Softmax()), (2, 3, 6, 6), 5),
}


@pytest.mark.parametrize("name", MODELS)
def test_fused_gives_the_same(name):
    make, shape, steps = MODELS[name]
    model = shaken(make())
    x = np.random.default_rng(1).normal(size=shape)
    wanted, before = model(x), x.copy()
    fused = model.fuse(shape)
    for _ in range(2):
        y = fused(x)
        np.testing.assert_allclose(y, wanted, rtol=1e-9, atol=1e-10)
        assert y.dtype == wanted.dtype and not np.shares_memory(x, y)
    np.testing.assert_array_equal(x, before)
    if steps is not None:
        assert len(repr(fused).splitlines()) - 2 == max(steps, 1)  # an empty line stands for nothing
    shaken(model)
    np.testing.assert_array_equal(fused(x), y)
    for again in (pickle.loads(pickle.dumps(fused)), copy.deepcopy(fused)):
        np.testing.assert_array_equal(again(x), y)
        assert repr(again) == repr(fused)


@pytest.mark.parametrize("name", ["conv", "nhwc", "residual", "parallel"])
def test_weights_beyond_the_caches(name, monkeypatch):
    """Are planned as such in all layers of a model, however small each is, and the result is the same."""
    make, shape, _ = MODELS[name]
    planned = []
    plan_conv2d = conv.plan_conv2d

    def noted(*arrays, cold_weights, **options):
        planned.append(cold_weights)
        return plan_conv2d(*arrays, cold_weights=cold_weights, **options)

    monkeypatch.setattr(conv, "plan_conv2d", noted)
    model = shaken(make())
    x = np.random.default_rng(1).normal(size=shape)
    wanted = model(x)
    convolutions = sum(isinstance(layer, nn.Conv2d) for _, layer in model.named_layers())
    model.fuse(shape)
    assert planned == [False] * convolutions
    monkeypatch.setattr(fusion, "CACHED_BYTES", 10)
    np.testing.assert_allclose(model.fuse(shape)(x), wanted, rtol=1e-9, atol=1e-10)
    assert planned[convolutions:] == [True] * convolutions


EXPANDED = {  # channels of x and of what lies between, size, kernel, stride, padding
    "few channels, wide": (3, 61, (40, 53), 3, 1, 1),
    "short last panel": (5, 64, (11, 9), 3, 2, 1),
    "one panel and one pixel": (8, 70, (3, 11), 5, 1, 2),
    "whole panels": (16, 66, (8, 16), 3, 2, (0, 1)),
    "large kernel": (4, 90, (13, 17), 7, 1, (3, 5)),
    "no border": (4, 90, (13, 17), 3, 1, 0),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", EXPANDED)
def test_expansion_and_depthwise_as_one(name, dtype, threads, monkeypatch):
    """The same as one after the other, also of inputs that are not contiguous, of NaN, and by a backend that is asked for."""
    channels, between, size, kernel, stride, padding = EXPANDED[name]
    runs = []
    run = _expanded.ExpandedDepthwise.run
    monkeypatch.setattr(_expanded.ExpandedDepthwise, "run", lambda self, *operands: runs.append(self) or run(self, *operands))
    model = shaken(nn.Sequential(nn.Conv2d(channels, between, 1, bias=False, dtype=dtype), nn.BatchNorm2d(between, dtype=dtype), nn.ReLU6(),
                                 nn.Conv2d(between, between, kernel, stride, padding, groups=between, dtype=dtype), nn.LeakyReLU()))
    fused = model.fuse()
    x = np.random.default_rng(2).normal(size=(2, channels, *size)).astype(dtype)
    x[1, -1, 2, 3] = np.nan
    wanted, tolerance = model(x), 1e-12 if dtype == "float64" else 1e-5
    np.testing.assert_allclose(fused(x), wanted, rtol=tolerance, atol=tolerance)
    assert len(runs) == 1
    np.testing.assert_array_equal(fused(np.asfortranarray(x)), fused(x))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fused))(x), fused(x))
    assert len(runs) == 5
    with fc.use_backend("direct"):
        np.testing.assert_allclose(model.fuse()(x), wanted, rtol=tolerance, atol=tolerance)
    assert len(runs) == 5
    assert np.isnan(wanted).any() and not np.isnan(wanted).all()


def test_expansion_that_is_two_runs():
    """Where planes are too large, lie in the same cache sets, or have too few channels; single samples; wrong shapes."""
    model = nn.Sequential(nn.Conv2d(3, 66, 1), nn.ReLU6(), nn.Conv2d(66, 66, 3, groups=66))
    fused = model.fuse()
    for shape in ((1, 3, 32, 32), (1, 3, 200, 170), (3, 20, 21), (1, 3, 4, 4)):
        x = np.random.default_rng(3).normal(size=shape).astype(np.float32)
        np.testing.assert_allclose(fused(x), model(x), rtol=1e-5, atol=1e-5)
    for shape in ((1, 4, 20, 20), (1, 3, 2, 2), (3, 3)):
        with pytest.raises(ValueError, match="Conv2d"):
            fused(np.zeros(shape, np.float32))


def block(channels, between, kernel, stride, padding, out, dtype, activation=None):
    """Expansion, depthwise convolution and projection."""
    return nn.Sequential(nn.Conv2d(channels, between, 1, bias=False, dtype=dtype), nn.BatchNorm2d(between, dtype=dtype), nn.ReLU6(),
                         nn.Conv2d(between, between, kernel, stride, padding, groups=between, dtype=dtype), nn.LeakyReLU(),
                         nn.Conv2d(between, out, 1, dtype=dtype), *([activation] if activation else []))


@pytest.fixture
def bottlenecks(monkeypatch):
    """The blocks that were one run so far, wherever they suit."""
    runs = []
    run = _bottleneck.Bottleneck.run
    monkeypatch.setattr(_bottleneck.Bottleneck, "run", lambda self, *operands: runs.append(self) or run(self, *operands))
    monkeypatch.setattr(_bottleneck, "_saves", lambda problem: True)
    return runs


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = fc.get_num_threads()
    fc.set_num_threads(request.param)
    yield request.param
    fc.set_num_threads(before)


@pytest.mark.parametrize("group_bytes", [1, 1 << 20])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", EXPANDED)
def test_bottleneck_as_one(name, dtype, group_bytes, threads, bottlenecks, monkeypatch):
    """Three convolutions by themselves, and with a shortcut where the shapes are equal; twice the same bits."""
    monkeypatch.setattr(_bottleneck, "GROUP_BYTES", group_bytes)
    monkeypatch.setattr(_bottleneck, "SCRATCH_BYTES", 1 << 22)
    channels, between, size, kernel, stride, padding = EXPANDED[name]
    x = np.random.default_rng(2).normal(size=(2, channels, *size)).astype(dtype)
    x[1, -1, 2, 3] = np.nan
    models = [block(channels, between, kernel, stride, padding, 17, dtype, nn.ReLU())]
    if models[0](x).shape[2:] == size:
        branch = block(channels, between, kernel, stride, padding, channels, dtype)
        models += [nn.Residual(branch), nn.Residual(branch, activation=nn.ReLU6())]
    tolerance = 1e-11 if dtype == "float64" else 1e-4
    for count, model in enumerate(map(shaken, models)):
        wanted, fused = model(x), model.fuse()
        y = fused(x)
        assert len(bottlenecks) == 4 * count + 1
        np.testing.assert_allclose(y, wanted, rtol=tolerance, atol=tolerance * np.nanmax(np.abs(wanted)))
        for again in (fused, pickle.loads(pickle.dumps(fused)), copy.deepcopy(fused)):
            np.testing.assert_array_equal(again(x), y)
        assert repr(fused).count("Conv2d") == 3
        assert np.isnan(wanted).any() and not np.isnan(wanted).all()


def test_bottleneck_that_is_several_runs(bottlenecks):
    """Activations that are no rectifiers, shapes that differ, sums that are too large; errors are those of the layers."""
    plain = block(3, 66, 3, 1, 1, 3, "float32")
    shapes = ((1, 3, 20, 21), (1, 3, 64, 64), (1, 3, 4, 4))
    models = [nn.Residual(plain, activation=nn.Sigmoid()), nn.Residual(plain, activation=nn.LeakyReLU(0.3)),
              nn.Residual(plain, nn.Conv2d(3, 3, 1)), nn.Residual(block(3, 66, 3, 1, 1, 3, "float32", nn.ReLU())),
              block(3, 66, 3, 1, 1, 3, "float32", nn.SiLU()), block(3, 66, 3, 1, 1, 300, "float32")]
    for model in map(shaken, models):
        fused = model.fuse()
        for shape in shapes:
            x = np.random.default_rng(3).normal(size=shape).astype(np.float32)
            wanted = model(x)
            np.testing.assert_allclose(fused(x), wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
    ones = len(bottlenecks)
    with fc.use_backend("direct"):
        nn.Residual(plain).fuse()(np.ones((1, 3, 20, 21), np.float32))
    assert len(bottlenecks) == ones
    with pytest.raises(ValueError, match="the branch gives shape"):
        nn.Residual(block(3, 66, 3, 2, 1, 3, "float32")).fuse()(np.ones((1, 3, 20, 21), np.float32))
    with pytest.raises(ValueError, match="Conv2d"):
        nn.Residual(plain).fuse()(np.ones((1, 4, 20, 21), np.float32))


def test_bottlenecks_in_several_threads(bottlenecks):
    """Their sums are each caller's own."""
    model = shaken(nn.Residual(block(8, 96, 3, 1, 1, 8, "float32")))
    fused = model.fuse()
    inputs = [np.random.default_rng(i).normal(size=(1, 8, 15, 14)).astype(np.float32) for i in range(4)]
    wanted = [fused(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            for y, expected in zip(pool.map(fused, inputs), wanted, strict=True):
                np.testing.assert_array_equal(y, expected)
    assert len(bottlenecks) == 44


def test_pickles_of_fused_models_hold_no_gradients():
    """As long as the parameters and little more."""
    model = nn.Linear(100, 100)
    model.forward(np.ones((1, 100)))[1](np.ones((1, 100)))
    size = model.weight.nbytes
    assert size < len(pickle.dumps(model.fuse())) < 1.5 * size < len(pickle.dumps(model))
    assert model.grads["weight"].any()


def test_fused_errors():
    fused = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).fuse()
    with pytest.raises(ValueError, match=r"Conv2d\(3, 4.*\(1, 2, 5, 5\)"):
        fused(np.zeros((1, 2, 5, 5)))
    with pytest.raises(ValueError, match=r"the branch gives shape \(1, 4\), the shortcut \(1, 3\)"):
        nn.Residual(nn.Linear(3, 4)).fuse()(np.zeros((1, 3)))


def test_summary(capsys):
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3, stride=2, padding=1),
                          nn.Residual(nn.Conv2d(4, 4, 5, padding=2), nn.Conv2d(4, 4, 1)),
                          nn.Parallel(nn.Conv2d(4, 2, 1), nn.Conv2d(4, 3, 1)),
                          nn.Flatten(), nn.Linear(5 * 16, 10))
    rows = nn.summarize(model, (2, 3, 8, 8))
    assert [row.name for row in rows] == ["0", "1", "2", "3", "4.branch", "4.shortcut", "5.0", "5.1", "6", "7"]
    assert [row.receptive_field for row in rows] == [(3, 3)] * 3 + [(5, 5), (13, 13), (5, 5), (13, 13), (13, 13), None, None]
    assert rows[0].flops == 2 * 27 * 2 * 8 * 64 and rows[-1].flops == 2 * 80 * 10 * 2
    assert sum(row.parameters for row in rows) == sum(p.params[p.key].size for p in model.named_parameters())
    assert rows[3].output_shape == (2, 4, 4, 4) and rows[3].backend and not rows[2].backend
    nn.summary(model, (2, 3, 8, 8))
    printed = capsys.readouterr().out
    assert "4.branch" in printed and "13 x 13" in printed and f"{sum(row.flops for row in rows):,}" in printed
    lines = []
    nn.summary(model, (2, 3, 8, 8), write=lines.append)
    assert lines[0].split()[:3] == ["Layer", "Kind", "Output"] and len(lines) == len(rows) + 2


def test_summary_of_transposed():
    row = nn.summarize(nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (1, 4, 5, 5))[0]
    assert row.output_shape == (1, 6, 11, 11) and row.flops == 2 * 4 * 25 * 3 * 9


@pytest.mark.skipif(importlib.util.find_spec("fastconv.pool") is None, reason="no pools")
def test_summary_of_pools():
    rows = nn.summarize(nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(1, 1, 3), nn.AvgPool2d(3, 1), nn.GlobalAvgPool()), (1, 1, 12, 12))
    assert [row.receptive_field for row in rows] == [(2, 2), (6, 6), (10, 10), None]
