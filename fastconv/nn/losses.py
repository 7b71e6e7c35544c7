"""Losses: each returns its value and its gradient with respect to the first argument."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["binary_cross_entropy", "mse", "softmax_cross_entropy"]

REDUCTIONS = ("mean", "sum")


def _floats(name: str, value: Any) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must be an array of real numbers, got dtype {array.dtype}")
    if array.dtype.kind != "f" or array.dtype.itemsize < 4:
        return array.astype(np.float32)
    return array


def _check_reduction(reduction: str) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(map(repr, REDUCTIONS))}; got {reduction!r}")


def _labels(labels: Any, shape: tuple[int, ...], classes: int) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu":
        raise TypeError(f"labels must be integers, got dtype {labels.dtype}")
    if labels.shape != shape:
        raise ValueError(f"labels must have shape {shape}, got {labels.shape}")
    if labels.size and (labels.min() < 0 or labels.max() >= classes):
        wrong = labels[(labels < 0) | (labels >= classes)].flat[0]
        raise ValueError(f"labels must lie in 0 ... {classes - 1}, got {wrong}")
    return labels


def softmax_cross_entropy(logits: Any, labels: Any, *, weight: Any = None, label_smoothing: float = 0.0, reduction: str = "mean",
                          ) -> tuple[float, np.ndarray]:
    """The mean of -log(softmax(logits)[label]), and its gradient, (softmax(logits) - one-hot(label)) / N.

    Parameters
    ----------
    logits : array_like, shape (N, C) or (N, C, ...)
        Scores of the classes.
    labels : array_like of int, shape (N,) or (N, ...)
        The right classes.
    weight : array_like, shape (C,), optional
        Of each class; the mean is then that of PyTorch, by the weights of the labels.
    label_smoothing : float
        The share of each label that is spread over all classes.
    reduction : {"mean", "sum"}
        Over the labels.

    Returns
    -------
    loss : float
    gradient : ndarray, of the logits' shape

    Raises
    ------
    ValueError
        For a label outside 0 ... C - 1, or shapes that do not fit.

    Examples
    --------
    >>> import fastconv.nn as nn
    >>> loss, gradient = nn.softmax_cross_entropy([[0.0, 0.0]], [1])
    >>> round(loss, 4), gradient
    (0.6931, array([[ 0.5, -0.5]]))

    References
    ----------
    Goodfellow, Bengio, Courville, "Deep Learning" (2016), section 6.2.2.3; Szegedy et al., "Rethinking the Inception architecture"
    (2016), section 7, for the smoothing.
    """
    logits = _floats("logits", logits)
    _check_reduction(reduction)
    if logits.ndim < 2:
        raise ValueError(f"logits must have shape (N, C) or (N, C, ...), got {logits.shape}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must lie in [0, 1], got {label_smoothing!r}")
    classes = logits.shape[1]
    labels = _labels(labels, (logits.shape[0], *logits.shape[2:]), classes)
    scores = logits if logits.ndim == 2 else np.moveaxis(logits, 1, -1).reshape(-1, classes)
    loss, gradient = _cross_entropy(scores, labels.reshape(-1), weight, label_smoothing, reduction)
    if logits.ndim > 2:
        gradient = np.moveaxis(gradient.reshape(*labels.shape, classes), -1, 1)
    return loss, np.ascontiguousarray(gradient)


def _cross_entropy(scores: np.ndarray, labels: np.ndarray, weight: Any, smoothing: float, reduction: str) -> tuple[float, np.ndarray]:
    """Of rows of scores: -sum of q log p, with q the smoothed labels times the classes' weights."""
    count, classes = scores.shape
    if count == 0 or classes == 0:
        return 0.0, np.zeros_like(scores)
    rows = np.arange(count)
    p = scores - scores.max(axis=1, keepdims=True)
    picked = p[rows, labels].astype(np.float64)
    smooth = p.sum(axis=1, dtype=np.float64) if smoothing and weight is None else None
    shifted = p.copy() if smoothing and weight is not None else p
    np.exp(p, out=p)
    sums = p.sum(axis=1, keepdims=True)
    logs = np.log(sums[:, 0].astype(np.float64))
    p /= sums
    if weight is None:
        losses = (1 - smoothing) * (logs - picked)
        if smooth is not None:
            losses += smoothing * (logs - smooth / classes)
            p -= smoothing / classes
        p[rows, labels] -= p.dtype.type(1 - smoothing)
        scale = 1.0 / count if reduction == "mean" else 1.0
        p *= p.dtype.type(scale)
        return float(losses.sum() * scale), p
    weight = np.asarray(weight, np.float64)
    if weight.shape != (classes,):
        raise ValueError(f"weight must have shape ({classes},), one number a class, got {weight.shape}")
    own = weight[labels]
    scale = 1.0 / own.sum() if reduction == "mean" else 1.0
    losses = (1 - smoothing) * own * (logs - picked)
    total = (1 - smoothing) * own
    if smoothing:
        losses += smoothing / classes * ((logs[:, np.newaxis] - shifted) * weight).sum(axis=1)
        total = total + smoothing / classes * weight.sum()
    gradient = p * total[:, np.newaxis] - smoothing / classes * weight
    gradient[rows, labels] -= (1 - smoothing) * own
    return float(losses.sum() * scale), (gradient * scale).astype(scores.dtype)


def mse(y: Any, target: Any, *, reduction: str = "mean") -> tuple[float, np.ndarray]:
    """The mean of (y - target)^2, and its gradient, 2 (y - target) / size.

    Parameters
    ----------
    y, target : array_like
        Of one shape.
    reduction : {"mean", "sum"}
        Over all elements.

    Returns
    -------
    loss : float
    gradient : ndarray, of y's shape

    Examples
    --------
    >>> import fastconv.nn as nn
    >>> nn.mse([1.0, 3.0], [1.0, 1.0])
    (2.0, array([0., 2.]))

    References
    ----------
    Goodfellow, Bengio, Courville, "Deep Learning" (2016), equation 5.4.
    """
    y = _floats("y", y)
    _check_reduction(reduction)
    target = np.asarray(target)
    if target.shape != y.shape:
        raise ValueError(f"target must have y's shape {y.shape}, got {target.shape}")
    difference = np.subtract(y, target, dtype=y.dtype)
    scale = 1 / max(1, y.size) if reduction == "mean" else 1.0
    flat = difference.reshape(-1)
    loss = float(np.square(flat).sum(dtype=np.float64)) * scale
    difference *= y.dtype.type(2 * scale)
    return loss, difference


def binary_cross_entropy(logits: Any, target: Any, *, weight: Any = None, reduction: str = "mean") -> tuple[float, np.ndarray]:
    """The mean of -(t log s + (1 - t) log(1 - s)) with s = sigmoid(logits), and its gradient, (s - t) / size.

    Parameters
    ----------
    logits : array_like
        Scores before the sigmoid.
    target : array_like, of the same shape
        Probabilities in [0, 1].
    weight : array_like, optional
        Of each element, broadcast to the logits.
    reduction : {"mean", "sum"}
        Over all elements.

    Returns
    -------
    loss : float
    gradient : ndarray, of the logits' shape

    Examples
    --------
    >>> import fastconv.nn as nn
    >>> loss, gradient = nn.binary_cross_entropy([0.0, 0.0], [1.0, 0.0])
    >>> round(loss, 4), gradient
    (0.6931, array([-0.25,  0.25]))

    References
    ----------
    Goodfellow, Bengio, Courville, "Deep Learning" (2016), section 6.2.2.2.
    """
    logits = _floats("logits", logits)
    _check_reduction(reduction)
    target = np.asarray(target, logits.dtype)
    if target.shape != logits.shape:
        raise ValueError(f"target must have the logits' shape {logits.shape}, got {target.shape}")
    if target.size and not (target.min() >= 0 and target.max() <= 1):
        raise ValueError("target must lie in [0, 1]")
    factor = logits.dtype.type(1 / max(1, logits.size) if reduction == "mean" else 1)
    small = np.exp(-np.abs(logits))
    losses = np.maximum(logits, 0) - logits * target + np.log1p(small)  # no exponential of a positive number
    gradient = np.where(logits >= 0, 1, small) / (1 + small) - target
    if weight is not None:
        weight = np.broadcast_to(np.asarray(weight, logits.dtype), logits.shape)
        losses, gradient = losses * weight, gradient * weight
    return float(losses.sum(dtype=np.float64) * float(factor)), np.asarray(gradient * factor, logits.dtype)
