"""Losses against their formulas in float64, their gradients against differences, and both against PyTorch's."""

import numpy as np
import pytest

import fastconv.nn as nn

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(6, 4)) * 3
LABELS = np.array([0, 3, 1, 1, 2, 0])
WEIGHT = np.array([0.5, 2.0, 1.0, 3.0])
TARGET = RNG.random((6, 4))


def cross_entropy(logits, labels, weight=None, label_smoothing=0.0, reduction="mean"):
    """By definition, a label at a time."""
    classes = logits.shape[1]
    weight = np.ones(classes) if weight is None else weight
    logits = np.moveaxis(logits, 1, -1).reshape(-1, classes)
    total = 0.0
    for row, label in zip(logits, labels.reshape(-1)):
        log_p = row - np.log(np.exp(row).sum())
        q = (1 - label_smoothing) * (np.arange(classes) == label) + label_smoothing / classes
        total -= (q * weight * log_p).sum()
    return total / (weight[labels].sum() if reduction == "mean" else 1)


OPTIONS = [{}, {"label_smoothing": 0.2}, {"weight": WEIGHT}, {"weight": WEIGHT, "label_smoothing": 0.2}, {"reduction": "sum"},
           {"weight": WEIGHT, "reduction": "sum", "label_smoothing": 1.0}]


def check_gradient(function, x, gradient):
    """Each element against a difference quotient."""
    assert gradient.shape == x.shape and gradient.dtype == x.dtype
    for index in np.ndindex(x.shape):
        h = np.zeros_like(x)
        h[index] = 1e-6
        assert gradient[index] == pytest.approx((function(x + h) - function(x - h)) / 2e-6, abs=1e-6)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "plain")
@pytest.mark.parametrize("spatial", [(), (2, 3)], ids=["rows", "images"])
def test_softmax_cross_entropy(options, spatial):
    shape = (3, 4, *spatial) if spatial else LOGITS.shape
    logits = RNG.normal(size=shape) * 2
    labels = RNG.integers(0, 4, (shape[0], *spatial))
    before = logits.copy()
    loss, gradient = nn.softmax_cross_entropy(logits, labels, **options)
    np.testing.assert_array_equal(logits, before)
    assert loss == pytest.approx(cross_entropy(logits, labels, **options), rel=1e-12)
    check_gradient(lambda x: cross_entropy(x, labels, **options), logits, gradient)
    single, gradient32 = nn.softmax_cross_entropy(logits.astype(np.float32), labels, **options)
    assert single == pytest.approx(loss, rel=1e-5) and gradient32.dtype == np.float32
    np.testing.assert_allclose(gradient32, gradient, atol=1e-5)


def test_large_logits():
    """No exponential overflows."""
    loss, gradient = nn.softmax_cross_entropy(np.array([[1e4, -1e4]], np.float32), [1])
    assert loss == 2e4
    np.testing.assert_array_equal(gradient, [[1, -1]])
    loss, gradient = nn.binary_cross_entropy([1e4, -1e4], [0.0, 0.0])
    assert loss == 5e3
    np.testing.assert_array_equal(gradient, [0.5, 0])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_mse_and_binary_cross_entropy(reduction):
    def mse(y):
        return getattr(np, reduction)((y - TARGET) ** 2)

    def entropy(y):
        s = 1 / (1 + np.exp(-y))
        return getattr(np, reduction)(-WEIGHT * (TARGET * np.log(s) + (1 - TARGET) * np.log(1 - s)))

    loss, gradient = nn.mse(LOGITS, TARGET, reduction=reduction)
    assert loss == pytest.approx(mse(LOGITS), rel=1e-12)
    check_gradient(mse, LOGITS, gradient)
    loss, gradient = nn.binary_cross_entropy(LOGITS, TARGET, weight=WEIGHT, reduction=reduction)
    assert loss == pytest.approx(entropy(LOGITS), rel=1e-12)
    check_gradient(entropy, LOGITS, gradient)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "plain")
def test_as_pytorch(options):
    torch = pytest.importorskip("torch")
    converted = options | ({"weight": torch.tensor(WEIGHT)} if "weight" in options else {})
    x = torch.tensor(LOGITS, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(x, torch.tensor(LABELS), **converted)
    loss.backward()
    own, gradient = nn.softmax_cross_entropy(LOGITS, LABELS, **options)
    assert own == pytest.approx(loss.item(), rel=1e-12)
    np.testing.assert_allclose(gradient, x.grad.numpy(), atol=1e-12)


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: nn.softmax_cross_entropy(LOGITS, LABELS + 1), ValueError, r"labels must lie in 0 ... 3, got 4"),
    (lambda: nn.softmax_cross_entropy(LOGITS, LABELS - 1), ValueError, "got -1"),
    (lambda: nn.softmax_cross_entropy(LOGITS, LABELS[:5]), ValueError, r"\(6,\), got \(5,\)"),
    (lambda: nn.softmax_cross_entropy(LOGITS, LABELS + 0.5), TypeError, "labels must be integers"),
    (lambda: nn.softmax_cross_entropy(LOGITS[0], LABELS), ValueError, "logits must have shape"),
    (lambda: nn.softmax_cross_entropy(LOGITS, LABELS, weight=[1.0]), ValueError, r"weight must have shape \(4,\)"),
    (lambda: nn.softmax_cross_entropy(LOGITS, LABELS, label_smoothing=2), ValueError, "label_smoothing"),
    (lambda: nn.mse(LOGITS, TARGET[:3]), ValueError, r"\(6, 4\), got \(3, 4\)"),
    (lambda: nn.mse(LOGITS, TARGET, reduction="median"), ValueError, "reduction must be one of"),
    (lambda: nn.binary_cross_entropy(LOGITS, TARGET * 2), ValueError, r"target must lie in \[0, 1\]"),
])
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
