"""The separable backend: which kernels it takes, that it computes them, and that others go elsewhere."""

import numpy as np
import pytest
import reference
from helpers import assert_close, tolerance

import fastconv as fc
from fastconv.backends._separable_terms import MOST_TERMS, find_terms

SIZE = (1, 1, 61, 83)


def gaussian(kh, kw, dtype="float32", channels=1):
    """Kernels (channels, 1, kh, kw), each an outer product of its own."""
    i, j = np.arange(kh) - kh // 2, np.arange(kw) - kw // 2
    widths = 1 + np.arange(channels)[:, None, None]
    kernels = np.exp(-(i[:, None] ** 2 + j**2) / (2 * (kw / 5) ** 2 * widths))
    return (kernels / kernels.sum(axis=(1, 2), keepdims=True))[:, None].astype(dtype)


def several_terms(count, kh, kw, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((kh, count)) @ rng.standard_normal((count, kw)))[None, None].astype(dtype)


def check(x, w, dtype="float32", bias=None, **options):
    """The backend's answer is the definition's."""
    x, w = x.astype(dtype), w.astype(dtype)
    result = fc.conv2d(x, w, bias, backend="separable", **options)
    activation = options.pop("activation", None)
    expected = reference.conv(x.astype(np.float64), w.astype(np.float64), **options)
    if bias is not None:
        expected = expected + bias.astype(np.float64).reshape(-1, 1, 1)
    expected = np.maximum(expected, 0) if activation == "relu" else expected
    assert_close(result, expected, 2 * tolerance("separable", dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kernel", [(2, 2), (3, 3), (5, 4), (31, 31), (7, 40), (40, 3), (16, 17), (9, 33)], ids=str)
def test_kernels_of_one_term(kernel, dtype):
    rng = np.random.default_rng(0)
    check(rng.standard_normal(SIZE), several_terms(1, *kernel, "float64"), dtype, padding=min(kernel) // 2)


@pytest.mark.parametrize("terms", [2, 3, MOST_TERMS])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_kernels_of_several_terms(terms, dtype):
    rng = np.random.default_rng(1)
    check(rng.standard_normal(SIZE), several_terms(terms, 15, 12, "float64"), dtype, padding=6)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "symmetric", "replicate", "circular"])
@pytest.mark.parametrize("padding", [0, 3, ((5, 0), (1, 8)), ((0, 9), (12, 2)), "same"], ids=str)
def test_borders(mode, padding):
    x = np.random.default_rng(2).standard_normal(SIZE)
    check(x, gaussian(7, 9), padding=padding, padding_mode=mode)


STEPS = [
    dict(stride=(2, 1)),
    dict(stride=(3, 1), padding=4),
    dict(dilation=(1, 3)),
    dict(dilation=(2, 1), padding=3),
    dict(dilation=2, stride=(2, 1)),
]


@pytest.mark.parametrize("options", STEPS, ids=str)
def test_strides_and_dilation(options):
    check(np.random.default_rng(3).standard_normal(SIZE), gaussian(5, 7), **options)


@pytest.mark.parametrize("width", [16, 17, 31, 32, 127, 128, 129, 300])
@pytest.mark.parametrize("height", [1, 2, 3, 4, 5, 9])
def test_sizes(height, width):
    """Ragged tiles, rows that end within a vector, an image of fewer rows than a tile."""
    rng = np.random.default_rng(4)
    bias = rng.standard_normal(1).astype(np.float32)
    check(rng.standard_normal((1, 1, height, width)), gaussian(5, 5), bias=bias, padding=2, activation="relu")


def test_depthwise_batches_and_multipliers():
    """Each output channel has its own kernel, with terms of its own."""
    rng = np.random.default_rng(5)
    bias = rng.standard_normal(6).astype(np.float32)
    check(rng.standard_normal((3, 3, 20, 40)), gaussian(7, 5, channels=6), bias=bias, groups=3, padding=2)


def test_kernels_of_unequal_terms():
    """A kernel of zeros, one of one term and one of two side by side."""
    rng = np.random.default_rng(6)
    w = np.concatenate([np.zeros((1, 1, 9, 9)), several_terms(1, 9, 9), several_terms(2, 9, 9)])
    check(rng.standard_normal((1, 3, 30, 50)), w, groups=3, padding=4)


@pytest.mark.parametrize("padding", [0, 2, ((3, 1), (0, 4))], ids=str)
def test_input_gradients(padding):
    """The gradient of a filter is the reversed filter, as separable as it was."""
    rng = np.random.default_rng(7)
    w = gaussian(5, 6, channels=4)
    shape = (2, 4, 33, 47)
    gy = rng.standard_normal(reference.output_shape(shape, w.shape, groups=4, padding=padding)).astype(np.float32)
    result = fc.conv2d_grad_input(gy, w, shape, groups=4, padding=padding, backend="separable")
    assert_close(result, reference.grad_input(gy.astype(np.float64), w.astype(np.float64), shape, groups=4, padding=padding), 2e-6)


def test_other_kernels_are_refused_with_a_reason():
    x, w = np.ones(SIZE, np.float32), np.random.default_rng(8).standard_normal((1, 1, 11, 13)).astype(np.float32)
    out = np.full((1, 1, 51, 71), 7, np.float32)
    with pytest.raises(fc.BackendError, match=r"separable.*outer products"):
        fc.conv2d(x, w, backend="separable", out=out)
    assert (out == 7).all()
    with pytest.raises(fc.BackendError, match="outer products"):
        fc.plan_conv2d(w, input_shape=SIZE, backend="separable")


def test_the_variable_falls_back(monkeypatch):
    monkeypatch.setenv("FASTCONV_BACKEND", "separable")
    x, w = np.ones(SIZE), np.random.default_rng(9).standard_normal((1, 1, 11, 12))
    with pytest.warns(fc.BackendFallbackWarning, match="outer products"):
        result = fc.conv2d(x, w)
    assert_close(result, reference.conv(x, w), 1e-13)


def test_strict_takes_rounding_alone():
    """A part that the default accuracy leaves out is another term to "strict"."""
    w = gaussian(9, 9)[0]
    bent = (w + 3e-7 * np.linalg.norm(w) * several_terms(MOST_TERMS + 1, 9, 9)[0] / 9).astype(np.float32)[None]
    x = np.random.default_rng(10).standard_normal(SIZE).astype(np.float32)
    fc.conv2d(x, gaussian(9, 9), backend="separable", accuracy="strict")
    assert fc.plan_conv2d(bent, input_shape=SIZE, backend="separable").backend == "separable"


def test_the_dispatcher_takes_it_where_it_gains():
    """Chosen by itself for a large image and a Gaussian, not for a kernel without terms; `explain` says what it depends on."""
    shape = (1, 1, 1024, 1024)
    smooth, rough = gaussian(11, 11), np.random.default_rng(11).standard_normal((1, 1, 11, 11)).astype(np.float32)
    plan = fc.plan_conv2d(smooth, input_shape=shape, padding=5)
    assert plan.backend == "separable"
    assert "separable" in repr(plan)
    other = fc.plan_conv2d(rough, input_shape=shape, padding=5)
    assert other.backend != "separable"
    x = np.random.default_rng(12).standard_normal(shape).astype(np.float32)
    assert_close(plan(x), fc.conv2d(x, smooth, padding=5, backend="direct").astype(np.float64), 2e-6)
    assert_close(fc.conv2d(x, smooth, padding=5), plan(x), 1e-7)
    assert_close(fc.conv2d(x, rough, padding=5), other(x), 2e-6)
    candidate = next(c for c in fc.explain(shape, smooth.shape, padding=5).candidates if c.name == "separable")
    assert candidate.refusal and candidate.suited_seconds > 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nonfinite_values_stay_where_the_definition_puts_them(value):
    rng = np.random.default_rng(13)
    x, w = rng.standard_normal(SIZE).astype(np.float32), several_terms(2, 5, 7)
    x[0, 0, 30, 40] = value
    result, expected = (fc.conv2d(x, w, backend=backend) for backend in ("separable", "direct"))
    np.testing.assert_allclose(result, expected, rtol=0, atol=2e-5 * np.abs(expected[np.isfinite(expected)]).max())


@pytest.mark.parametrize("count", [1, 2, 5, MOST_TERMS])
def test_terms_are_as_few_as_possible(count):
    found = find_terms(several_terms(count, 17, 12, "float64")[:, 0], 1e-13)
    assert found.down.shape == (1, count, 17) and found.along.shape == (1, count, 12)
    assert find_terms(np.random.default_rng(14).standard_normal((1, 17, 12)), 1e-13) is None
    assert find_terms(np.full((1, 4, 4), np.nan), 1e-13) is None
