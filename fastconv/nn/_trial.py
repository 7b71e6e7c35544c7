"""What training would stumble over, found before it has changed anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ._layer import Layer

__all__ = ["try_samples"]


def try_samples(model: Layer, loss: Callable[[np.ndarray, Any], Any], x: np.ndarray, y: np.ndarray, batch_size: int,
                augment: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None) -> None:
    """Raise the errors of inputs that do not fit the model, and of any target that does not fit the loss.

    A wrong label in the last batch would otherwise be found when the batches before it were learned. The targets are held
    against the outputs of one batch, so that this takes a small part of an epoch.
    """
    batch = x[:batch_size]
    outputs = model(batch if augment is None else augment(batch, np.random.default_rng(0)))
    with np.errstate(all="ignore"):
        for first in range(0, len(y), len(batch)):
            targets = y[first:first + len(batch)]
            loss(outputs[:len(targets)], targets)
