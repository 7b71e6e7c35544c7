"""Training: mini-batches in an order given by a seed, validation, early stop, checkpoints that a killed run goes on from."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from ._layer import Layer
from ._progress import Display, display
from ._trial import try_samples
from .checkpoint import load_checkpoint, save_checkpoint, writable_path
from .evaluation import Loss, as_samples, evaluate, right_answers
from .losses import softmax_cross_entropy

__all__ = ["History", "fit"]

Augment = Callable[[np.ndarray, np.random.Generator], np.ndarray]


@dataclass
class History:
    """What a training run saw: a number an epoch in each list.

    Attributes
    ----------
    loss, accuracy : list of float
        Means over the epoch's training batches, as they passed; accuracy only where the targets are labels.
    val_loss, val_accuracy : list of float
        Of the validation data after the epoch; empty without.
    lr : list of float
        Learning rate of the epoch's last step.
    seconds : list of float
        The epoch's duration, validation included.

    Examples
    --------
    >>> import fastconv.nn as nn
    >>> history = nn.History(loss=[0.7, 0.5, 0.6], lr=[0.1, 0.1, 0.1])
    >>> len(history), history.stale(), history.line()
    (3, 1, 'loss 0.6000  lr 0.1')
    """

    loss: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    val_loss: list[float] = field(default_factory=list)
    val_accuracy: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        """The number of epochs."""
        return len(self.loss)

    def line(self) -> str:
        """The last epoch in words."""
        forms = {"loss": ".4f", "accuracy": ".4f", "val_loss": ".4f", "val_accuracy": ".4f", "lr": ".3g", "seconds": ".2f"}
        return "  ".join(f"{name} {vars(self)[name][-1]:{form}}" for name, form in forms.items() if vars(self)[name])

    def stale(self) -> int:
        """The number of epochs since the best one, by the validation loss if there is one, else by the training loss."""
        losses = self.val_loss or self.loss
        return len(losses) - 1 - min(range(len(losses)), key=lambda i: (math.isnan(losses[i]), losses[i])) if losses else 0


def fit(model: Layer, x: Any, y: Any, *, optimizer: Any, loss: Loss = softmax_cross_entropy, epochs: int = 10, batch_size: int = 32,
        seed: int | np.random.Generator = 0, validation: tuple[Any, Any] | float | None = None, schedule: Any = None,
        augment: Augment | None = None, early_stop: int | None = None, restore_best: bool = False,
        checkpoint: str | os.PathLike[str] | None = None, resume: bool = True, progress: bool = True,
        callbacks: Iterable[Callable[[Layer, History], Any]] = ()) -> History:
    """Train a model on mini-batches.

    Each epoch passes over all samples once, in an order drawn from the seed; for each batch: forward, loss, backward, a step
    of the optimizer, a step of the schedule. With a checkpoint, the run's whole state is written after each epoch, and the
    same call in another process goes on from it: a killed run ends with the same parameters, bit by bit, as one that was not.

    Parameters
    ----------
    model : Layer
        What is trained.
    x, y : array_like, shapes (N, ...)
        Inputs, and what `loss` compares the outputs with: labels, or targets.
    optimizer : Optimizer
        Made for this model.
    loss : callable
        loss(outputs, targets) -> (mean over the batch, gradient of the outputs).
    epochs : int
        Number of passes in total, those before the checkpoint included.
    batch_size : int
        Samples a step; the last batch of an epoch may be smaller.
    seed : int or numpy.random.Generator
        Of the split, the order and the augmentation.
    validation : (x, y) or float, optional
        Samples to evaluate the model on after each epoch, or the share of the samples to set apart for that.
    schedule : Schedule, optional
        Its `step` is called after each step of the optimizer.
    augment : callable, optional
        augment(batch, rng) -> batch, applied to training inputs; must not write to the batch.
    early_stop : int, optional
        Stop after so many epochs without a smaller loss: that of validation if there is one.
    restore_best : bool
        Leave the model, at the end, with the parameters and statistics of the epoch that had the smallest of these losses, not
        with the last ones. The checkpoint keeps both, and a longer run goes on from the last.
    checkpoint : str or path, optional
        A file ending in .npz.
    resume : bool
        Go on from the checkpoint if the file exists; otherwise it is overwritten after the first epoch.
    progress : bool
        Show a bar (of rich or tqdm, if installed, in a terminal) and a line an epoch on standard error.
    callbacks : iterable of callables
        callback(model, history), called after each epoch; a true result ends the training.

    Returns
    -------
    History

    Raises
    ------
    ValueError
        For arguments that do not fit each other, a label out of range, or a checkpoint that is damaged or of another run:
        nothing is changed.
    FloatingPointError
        If the loss is not finite; the parameters are those before that step.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((200, 2), dtype=np.float32)
    >>> y = (x.sum(axis=1) > 0).astype(int)
    >>> model = nn.Linear(2, 2, rng=0)
    >>> history = nn.fit(model, x, y, optimizer=nn.SGD(model, lr=1.0), epochs=5, progress=False)
    >>> history.accuracy[-1] > 0.95
    True

    References
    ----------
    Goodfellow, Bengio, Courville, "Deep Learning" (2016), sections 7.8 and 8.1.3.
    """
    x, y = as_samples("x", "y", x, y)
    for name, value, least in (("epochs", epochs, 0), ("batch_size", batch_size, 1), ("early_stop", early_stop, 1)):
        if value is not None and (not isinstance(value, Integral) or isinstance(value, bool) or value < least):
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    rng = np.random.default_rng(seed)
    x, y, held_out = _split(x, y, validation, rng)
    run = _Run(model, optimizer, schedule, loss, augment, int(batch_size), rng, x, y)
    facts = {"samples": len(x), "batch_size": int(batch_size), "seed": int(seed) if isinstance(seed, Integral) else None}
    path = None if checkpoint is None else writable_path(checkpoint)
    try_samples(model, loss, x, y, int(batch_size), augment)
    if held_out is not None:
        try_samples(model, loss, *held_out, int(batch_size))
    history = run.resume(path, facts, restore_best) if path is not None and resume and path.exists() else History()
    callbacks = tuple(callbacks)
    with display(progress, epochs, math.ceil(len(x) / batch_size)) as shown:
        while len(history) < epochs and not (early_stop is not None and history.stale() >= early_stop):
            run.epoch(history, held_out, shown)
            shown.line(f"epoch {len(history)}/{epochs}  {history.line()}")
            if restore_best and history.stale() == 0:
                run.best = model.state_dict()
            if path is not None:
                save_checkpoint(path, model, optimizer, schedule, facts=facts, history=asdict(history), order=rng, best=run.best)
            if any([callback(model, history) for callback in callbacks]):
                break
    if run.best is not None:
        model.load_state_dict(run.best)
    return history


@dataclass
class _Run:
    """What an epoch needs."""

    model: Layer
    optimizer: Any
    schedule: Any
    loss: Loss
    augment: Augment | None
    batch_size: int
    rng: np.random.Generator
    x: np.ndarray
    y: np.ndarray
    best: dict[str, np.ndarray] | None = None  # the model's state after the best epoch, where that is to be restored

    def resume(self, path: Path, facts: dict[str, Any], restore_best: bool) -> History:
        """Go on from a checkpoint."""
        peeked = load_checkpoint(path)
        for name, value in facts.items():
            if (found := peeked.get("facts", {}).get(name)) != value:
                raise ValueError(f"the checkpoint {path} is of another run: its {name} is {found}, this run's {value}")
        if restore_best and peeked.get("best") is None:
            raise ValueError(f"the checkpoint {path} holds no best parameters: it was written without restore_best")
        extra = load_checkpoint(path, self.model, self.optimizer, self.schedule, {"order": self.rng})
        self.best = extra["best"] if restore_best else None
        return History(**extra["history"])

    def epoch(self, history: History, held_out: tuple[np.ndarray, np.ndarray] | None, shown: Display) -> None:
        """Pass over all samples once, evaluate, and note what was seen."""
        start = time.perf_counter()
        order = self.rng.permutation(len(self.x))
        total, right, seen = 0.0, None, 0
        for done, first in enumerate(range(0, len(order), self.batch_size), start=1):
            picked = order[first:first + self.batch_size]
            targets = self.y[picked]
            value, outputs = self.step(self.x[picked], targets)
            if not math.isfinite(value):
                raise FloatingPointError(f"the loss is {value} at step {done} of epoch {len(history) + 1}; "
                                         "a smaller learning rate may help")
            self.update()
            seen += len(picked)
            total += value * len(picked)
            if (more := right_answers(outputs, targets)) is not None:
                right = (right or 0) + more
            shown.step(len(history) + 1, done, total / seen)
        history.loss.append(total / seen)
        if right is not None:
            history.accuracy.append(right / seen)
        if held_out is not None:
            evaluation = evaluate(self.model, *held_out, loss=self.loss)
            history.val_loss.append(evaluation.loss)
            if evaluation.accuracy is not None:
                history.val_accuracy.append(evaluation.accuracy)
        history.lr.append(float(self.optimizer.lr))
        history.seconds.append(time.perf_counter() - start)

    def step(self, x: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
        """Gradients of one batch: the loss and the outputs."""
        if self.augment is not None:
            x = self.augment(x, self.rng)
        self.model.zero_grad()
        outputs, backprop = self.model.forward(x)
        value, gradient = self.loss(outputs, targets)
        if math.isfinite(value):
            backprop(gradient, **({"input_gradient": False} if self.model.skips_input_gradient else {}))
        return value, outputs

    def update(self) -> None:
        """Move the parameters, and the learning rate."""
        self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()


# -- arguments ------------------------------------------------------------------------------------------------------------


def _split(x: np.ndarray, y: np.ndarray, validation: Any, rng: np.random.Generator,
           ) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray] | None]:
    """Training inputs and targets, and the held-out ones."""
    if validation is None:
        return x, y, None
    if isinstance(validation, (tuple, list)):
        if len(validation) != 2:
            raise ValueError(f"validation must be a pair (x, y) or a share between 0 and 1, got {len(validation)} things")
        return x, y, as_samples("validation[0]", "validation[1]", *validation)
    if not isinstance(validation, float) or not 0 < validation < 1:
        raise ValueError(f"validation must be a pair (x, y) or a share between 0 and 1, got {validation!r}")
    count = round(validation * len(x))
    if not 0 < count < len(x):
        raise ValueError(f"validation={validation} of {len(x)} samples leaves none for {'training' if count else 'validation'}")
    order = rng.permutation(len(x))
    kept, apart = np.sort(order[count:]), order[:count]
    return x[kept], y[kept], (x[apart], y[apart])
