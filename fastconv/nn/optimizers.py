"""Optimizers: `step` moves a model's parameters against their gradients, in place. Formulas and defaults are PyTorch's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..backends._scratch import keep_freed_memory
from ._layer import Layer

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "RMSprop"]


def _check(name: str, value: float, below: float = math.inf) -> float:
    if not 0 <= value < below:
        raise ValueError(f"{name} must be at least 0{'' if below == math.inf else f' and less than {below:g}'}, got {value!r}")
    return float(value)


class Optimizer:
    """What optimizers share: subclasses name their kernel and set its numbers.

    Attributes
    ----------
    lr : float
        The learning rate, which schedules set.
    steps : int
        Steps taken.
    """

    kernel = ""
    slots: tuple[str, ...] = ()  # what is kept of each parameter, of its shape

    def __init__(self, model: Layer, lr: float, weight_decay: float):
        self.model = model
        self.lr, self.weight_decay = _check("lr", lr), _check("weight_decay", weight_decay)
        self.steps = 0
        self._numbers = np.zeros(8)
        self._state: dict[str, list[np.ndarray]] = {}
        self._kernels: dict[str, tuple[Any, Any]] = {}
        keep_freed_memory()  # steps to come allocate what each step frees

    def _set_numbers(self, numbers: np.ndarray) -> None:
        raise NotImplementedError(f"{type(self).__name__} must set the numbers of its kernel")

    def step(self) -> None:
        """Move every parameter."""
        self.steps += 1
        self._set_numbers(self._numbers)
        for name, params, grads, key in self.model.named_parameters():
            array = params[key]
            if not array.flags.c_contiguous:
                array = params[key] = np.ascontiguousarray(array)
            state = self._state.get(name)
            if state is None or (state and state[0].size != array.size):
                state = self._state[name] = [np.zeros_like(array) for _ in self.slots]
            gradient = grads[key]
            first = (state[0] if state else gradient).reshape(-1)
            second = state[1].reshape(-1) if len(state) > 1 else first
            self._update(name, array)(gradient.reshape(-1), first, second, array.reshape(-1))

    def _update(self, name: str, array: np.ndarray) -> Any:
        kind = (array.size, array.dtype)
        known = self._kernels.get(name)
        if known is None or known[0] != kind:
            from ..backends._optimizers import bind

            known = self._kernels[name] = (kind, bind(self.kernel, array.size, array.dtype.name, self._numbers))
        return known[1]

    def zero_grad(self) -> None:
        """Set all gradients of the model to zero."""
        self.model.zero_grad()

    def state_dict(self) -> dict[str, np.ndarray]:
        """What a checkpoint must hold: the steps, the learning rate, copies of what is kept of each parameter."""
        state = {"steps": np.array(self.steps), "lr": np.array(self.lr)}
        for name, arrays in self._state.items():
            state |= {f"{slot}.{name}": array.copy() for slot, array in zip(self.slots, arrays)}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; nothing is changed if an entry is missing, unknown or misshapen."""
        shapes = {f"{slot}.{p.name}": p.params[p.key].shape for p in self.model.named_parameters() for slot in self.slots}
        started = any(key in shapes for key in state)
        expected = {"steps", "lr"} | (set(shapes) if started or int(np.asarray(state.get("steps", 0))) else set())
        problems = [f"missing: {key}" for key in sorted(expected - set(state))]
        problems += [f"unknown: {key}" for key in sorted(set(state) - expected)]
        problems += [f"misshapen: {key} must have shape {shapes[key]}, got {np.shape(state[key])}"
                     for key in shapes if key in state and np.shape(state[key]) != shapes[key]]
        if problems:
            raise ValueError("the state dict does not fit the optimizer:\n  " + "\n  ".join(problems))
        self.steps, self.lr = int(np.asarray(state["steps"])), float(np.asarray(state["lr"]))
        self._state = {p.name: [np.array(state[f"{slot}.{p.name}"], p.params[p.key].dtype, order="C") for slot in self.slots]
                       for p in self.model.named_parameters()} if started else {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kernels": {}}


class SGD(Optimizer):
    """Stochastic gradient descent: b = momentum b + g, p -= lr b, with g the gradient + weight_decay p.

    Parameters
    ----------
    model : Layer
        Whose parameters are moved.
    lr : float
        Learning rate.
    momentum, dampening : float
        b = momentum b + (1 - dampening) g.
    weight_decay : float
        Added to the gradient, times the parameter.
    nesterov : bool
        p -= lr (g + momentum b).

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> model = nn.Linear(1, 1, bias=False)
    >>> model.weight, model.grads["weight"] = [[1.0]], np.ones((1, 1), np.float32)
    >>> nn.SGD(model, lr=0.25).step()
    >>> model.weight
    array([[0.75]], dtype=float32)

    References
    ----------
    Sutskever et al., "On the importance of initialization and momentum in deep learning" (2013), equations 1 to 4.
    """

    def __init__(self, model: Layer, lr: float = 1e-3, momentum: float = 0.0, dampening: float = 0.0, weight_decay: float = 0.0,
                 nesterov: bool = False):
        super().__init__(model, lr, weight_decay)
        self.momentum, self.dampening, self.nesterov = _check("momentum", momentum), float(dampening), nesterov
        if nesterov and (momentum == 0 or dampening != 0):
            raise ValueError(f"nesterov needs a momentum and no dampening, got momentum={momentum} and dampening={dampening}")
        self.kernel, self.slots = ("sgd", ("momentum",)) if momentum else ("plain_sgd", ())

    def _set_numbers(self, numbers: np.ndarray) -> None:
        take = 1.0 if self.steps == 1 else 1.0 - self.dampening
        ahead = (1.0, self.momentum) if self.nesterov else (0.0, 1.0)
        numbers[:6] = self.lr, self.weight_decay, self.momentum, take, *ahead


class Adam(Optimizer):
    """Adam: p -= lr m' / (sqrt(v') + eps), m and v the running means of the gradient and its square, ' corrected for their start at 0.

    Parameters
    ----------
    model : Layer
        Whose parameters are moved.
    lr : float
        Learning rate.
    betas : (float, float)
        How much of m and of v stays at each step.
    eps : float
        Keeps the root away from zero.
    weight_decay : float
        Added to the gradient, times the parameter.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> model = nn.Linear(1, 1, bias=False)
    >>> model.weight, model.grads["weight"] = [[1.0]], np.full((1, 1), 5, np.float32)
    >>> nn.Adam(model, lr=0.25).step()
    >>> model.weight
    array([[0.75]], dtype=float32)

    References
    ----------
    Kingma and Ba, "Adam: a method for stochastic optimization" (2015), algorithm 1.
    """

    kernel, slots = "adam", ("mean", "square")
    decoupled = False

    def __init__(self, model: Layer, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 0.0):
        super().__init__(model, lr, weight_decay)
        self.betas, self.eps = (_check("betas[0]", betas[0], 1), _check("betas[1]", betas[1], 1)), _check("eps", eps)

    def _set_numbers(self, numbers: np.ndarray) -> None:
        beta1, beta2 = self.betas
        decay, shrink = (0.0, 1.0 - self.lr * self.weight_decay) if self.decoupled else (self.weight_decay, 1.0)
        rate, root = self.lr / (1 - beta1 ** self.steps), 1 / math.sqrt(1 - beta2 ** self.steps)
        numbers[:7] = rate, decay, shrink, beta1, beta2, root, self.eps


class AdamW(Adam):
    """Adam with the weight decay apart from the gradient: p shrinks by lr weight_decay p at each step.

    Parameters
    ----------
    model, lr, betas, eps
        As for `Adam`.
    weight_decay : float
        Share of the parameter, times lr.

    Examples
    --------
    >>> import fastconv.nn as nn
    >>> model = nn.Linear(1, 1, bias=False)
    >>> model.weight = [[1.0]]
    >>> nn.AdamW(model, lr=0.5, weight_decay=0.5).step()
    >>> model.weight
    array([[0.75]], dtype=float32)

    References
    ----------
    Loshchilov and Hutter, "Decoupled weight decay regularization" (2019), algorithm 2.
    """

    decoupled = True

    def __init__(self, model: Layer, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 0.01):
        super().__init__(model, lr, betas, eps, weight_decay)


class RMSprop(Optimizer):
    """RMSprop: b = momentum b + g / (sqrt(v) + eps), p -= lr b, with v the running mean of g^2.

    Parameters
    ----------
    model : Layer
        Whose parameters are moved.
    lr : float
        Learning rate.
    alpha : float
        How much of v stays at each step.
    eps : float
        Keeps the root away from zero.
    weight_decay : float
        Added to the gradient, times the parameter.
    momentum : float
        How much of b stays.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> model = nn.Linear(1, 1, bias=False)
    >>> model.weight, model.grads["weight"] = [[1.0]], np.full((1, 1), 5, np.float32)
    >>> nn.RMSprop(model, lr=0.25, alpha=0.0).step()
    >>> model.weight
    array([[0.75]], dtype=float32)

    References
    ----------
    Hinton, "Neural networks for machine learning" (2012), lecture 6.
    """

    kernel, slots = "rmsprop", ("momentum", "square")

    def __init__(self, model: Layer, lr: float = 1e-2, alpha: float = 0.99, eps: float = 1e-8, weight_decay: float = 0.0,
                 momentum: float = 0.0):
        super().__init__(model, lr, weight_decay)
        self.alpha, self.eps, self.momentum = _check("alpha", alpha), _check("eps", eps), _check("momentum", momentum)

    def _set_numbers(self, numbers: np.ndarray) -> None:
        numbers[:5] = self.lr, self.weight_decay, self.momentum, self.alpha, self.eps
