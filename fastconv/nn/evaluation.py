"""What a model makes of samples: its outputs, mean loss and right answers, and which classes it takes for which."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ._layer import Layer
from .losses import softmax_cross_entropy

__all__ = ["Evaluation", "confusion_matrix", "evaluate", "predict"]

Loss = Callable[[np.ndarray, np.ndarray], tuple[float, np.ndarray]]
EVALUATION_BATCH = 256


class Evaluation(NamedTuple):
    """Mean loss, and the share of right answers where the targets are labels, one a sample.

    Examples
    --------
    >>> import fastconv.nn as nn
    >>> nn.Evaluation(loss=0.1, accuracy=0.98).accuracy
    0.98
    """

    loss: float
    accuracy: float | None


def predict(model: Layer, x: Any, *, batch_size: int = EVALUATION_BATCH) -> np.ndarray:
    """A model's outputs for many inputs, batch by batch.

    Parameters
    ----------
    model : Layer
        What infers.
    x : array_like, shape (N, ...)
        Inputs; at least one.
    batch_size : int
        Samples at a time.

    Returns
    -------
    ndarray, shape (N, ...)

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> nn.predict(nn.Linear(4, 2), np.ones((1000, 4))).shape
    (1000, 2)
    """
    x = np.asarray(x)
    if x.ndim == 0 or len(x) == 0:
        raise ValueError(f"x must hold at least one sample, got shape {x.shape}")
    return np.concatenate([model(x[first:first + batch_size]) for first in range(0, len(x), batch_size)])


def evaluate(model: Layer, x: Any, y: Any, *, loss: Loss = softmax_cross_entropy, batch_size: int = EVALUATION_BATCH) -> Evaluation:
    """The mean loss of a model, and its share of right answers where y holds labels.

    Parameters
    ----------
    model : Layer
        What infers.
    x, y : array_like, shapes (N, ...)
        Inputs, and labels or targets.
    loss : callable
        As in `fit`.
    batch_size : int
        Samples at a time.

    Returns
    -------
    Evaluation

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> model = nn.Linear(1, 2, bias=False)
    >>> model.weight = [[0.0], [1.0]]
    >>> nn.evaluate(model, np.array([[3.0], [-3.0]]), np.array([1, 0])).accuracy
    1.0
    """
    x, y = as_samples("x", "y", x, y)
    total, right = 0.0, None
    for first in range(0, len(x), batch_size):
        outputs, targets = model(x[first:first + batch_size]), y[first:first + batch_size]
        total += loss(outputs, targets)[0] * len(targets)
        if (more := right_answers(outputs, targets)) is not None:
            right = (right or 0) + more
    return Evaluation(total / len(x), None if right is None else right / len(x))


def confusion_matrix(labels: Any, predicted: Any, classes: int | None = None) -> np.ndarray:
    """How often each class (row) was taken for each class (column).

    Parameters
    ----------
    labels, predicted : array_like of int, shape (N,)
        The right classes and those that the model gave.
    classes : int, optional
        Their number; one more than the largest label if not given.

    Returns
    -------
    ndarray of int64, shape (classes, classes)

    Raises
    ------
    ValueError
        For a label that is none of the classes, or shapes that differ.

    Examples
    --------
    >>> import fastconv.nn as nn
    >>> nn.confusion_matrix([0, 1, 1], [0, 1, 0])
    array([[1, 0],
           [1, 1]])
    """
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    if labels.shape != predicted.shape or labels.ndim != 1:
        raise ValueError(f"labels and predicted must have one shape (N,), got {labels.shape} and {predicted.shape}")
    both = np.concatenate([labels, predicted])
    if both.size and both.dtype.kind not in "iu":
        raise TypeError(f"labels must be integers, got dtype {both.dtype}")
    classes = int(both.max(initial=-1)) + 1 if classes is None else classes
    if both.size and not 0 <= both.min() <= both.max() < classes:
        raise ValueError(f"labels must lie in 0 ... {classes - 1}, got {both.min()} to {both.max()}")
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels.astype(np.int64), predicted.astype(np.int64)), 1)
    return counts


def right_answers(outputs: np.ndarray, targets: np.ndarray) -> int | None:
    """Right answers of a batch, or None where the targets are no labels."""
    if targets.ndim != 1 or targets.dtype.kind not in "iu" or outputs.ndim != 2:
        return None
    return int(np.count_nonzero(outputs.argmax(axis=1) == targets))


def as_samples(x_name: str, y_name: str, x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Two operands that hold the same number of samples, one at least."""
    x, y = np.asarray(x), np.asarray(y)
    if x.ndim == 0 or y.ndim == 0 or len(x) != len(y) or len(x) == 0:
        raise ValueError(f"{x_name} and {y_name} must hold the same number of samples, at least one, got shapes {x.shape} and {y.shape}")
    return x, y
