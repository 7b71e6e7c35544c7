"""A trained model as a function for inference: norms and activations folded into convolutions, weights packed into plans.

    conv, batch norm, activation     ->  one plan: w' = w s, b' = (b - mean) s + shift, with s = weight / sqrt(var + eps)
    1x1, depthwise, 1x1, shortcut    ->  one run, and so are the first two by themselves, for shapes that suit
    branch + shortcut, activation    ->  one pass over the branch's output, in place
    dropout                          ->  nothing

Other layers stay as they are. All works on a copy of the model, without gradients.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backends import CACHED_BYTES
from ..backends._activation import rectify_in_place
from ..backends._scratch import keep_freed_memory
from ._layer import Gradients, Layer
from ._units import (
    Step,
    activation_name,
    are_bottleneck,
    are_expansion,
    bottleneck,
    convolution,
    expansion,
    in_order,
    linear,
    residual_bottleneck,
    unit_of,
    units_of,
)
from .activations import LeakyReLU, ReLU, ReLU6, contiguous
from .containers import Parallel, Residual, Sequential
from .convolutions import SeparableConv2d, _Convolution
from .linear import Linear
from .normalization import _BatchNorm
from .reshaping import Dropout, Flatten

__all__ = ["Fused", "fuse"]


class Fused:
    """A model for inference, made by `fuse`: call it with an input. Later changes of the model do not reach it.

    Its pickle and its copies hold the model's layers and are fused again: which plans are fast is another machine's to say.
    """

    def __init__(self, model: Layer, input_shape: tuple[int, ...] | None):
        self._model, self._shape = model, input_shape
        self._step, lines = _fused(model, _weight_bytes(model) > CACHED_BYTES)
        self._text = "\n".join("  " + line for line in lines)
        self._dtype = next((p.params[p.key].dtype for p in model.named_parameters()), None)
        if input_shape is not None:
            self(np.zeros(input_shape, self._dtype or np.float32))

    def __reduce__(self) -> tuple[Any, ...]:
        return Fused, (self._model, self._shape)

    def __call__(self, x: Any) -> np.ndarray:
        """What the model gives for `x`, up to rounding."""
        if type(x) is not np.ndarray or (self._dtype is not None and x.dtype is not self._dtype):
            x = np.asarray(x, self._dtype)
        y = self._step(x)
        return y.copy() if np.may_share_memory(x, y) else y

    def __repr__(self) -> str:
        return f"Fused(\n{self._text}\n)"


def fuse(model: Layer, input_shape: Sequence[int] | None = None) -> Fused:
    """Fold a model's norms and activations into its convolutions, and pack their weights.

    Parameters
    ----------
    model : Layer
        Any layer; `Sequential`, `Residual` and `Parallel` are gone through.
    input_shape : sequence of int, optional
        Shape of inputs to come: convolutions are planned for it now. Others are planned when first seen.

    Returns
    -------
    Fused
        A function of the input; what it consists of is its `repr`.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3, rng=0), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout())
    >>> fused = nn.fuse(model)
    >>> fused
    Fused(
      Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1)) + BatchNorm2d + relu
    )
    >>> x = np.ones((1, 3, 5, 5), np.float32)
    >>> bool(abs(fused(x) - model(x)).max() < 1e-5)
    True

    References
    ----------
    Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only inference" (2018), section 3.2.
    """
    keep_freed_memory()
    own = copy.deepcopy(model)
    for _, layer in own.named_layers():
        layer.grads = Gradients()
    return Fused(own, None if input_shape is None else tuple(input_shape))


def _weight_bytes(model: Layer) -> int:
    return sum(p.params[p.key].nbytes for p in model.named_parameters())


def _fused(layer: Layer, cold: bool) -> tuple[Step, list[str]]:
    """A layer as a function, and what it consists of in words; the weights are `cold` where all of the model's exceed the caches."""
    steps, lines = [], []
    chain = _chain(layer)
    while chain:
        step, text, used = _step(chain, cold)
        del chain[:used]
        if step is not None:
            steps.append(step)
            lines += text
    return in_order(steps), lines


def _chain(layer: Layer) -> list[Layer]:
    """The layers that follow each other in a layer, those of sequences and separable convolutions one by one."""
    if isinstance(layer, (Sequential, SeparableConv2d)):
        return [part for child in layer.children.values() for part in _chain(child)]
    return [layer]


def _step(chain: list[Layer], cold: bool) -> tuple[Step | None, list[str], int]:
    """What the first layers of a chain become, in words too, and how many they are."""
    layer, rest = chain[0], [part for part in chain[1:4] if not isinstance(part, Dropout)]
    if isinstance(layer, Dropout):
        return None, [], 1
    if isinstance(layer, Residual):
        return (*_residual(layer, cold), 1)
    if isinstance(layer, Parallel):
        return (*_parallel(layer, cold), 1)
    if isinstance(layer, Flatten):
        return _flatten(layer), [repr(layer)], 1
    if isinstance(layer, Linear):
        unit, used = unit_of(chain)
        return linear(layer, unit.norm, unit.activation), [str(unit)], used
    if isinstance(layer, _Convolution):
        return _convolutions(chain, cold)
    if isinstance(layer, _BatchNorm) and rest and rest[0].rectifier and len(chain) > 1 and chain[1] is rest[0]:
        name = rest[0].rectifier
        return lambda x: layer.activated(x, name), [f"{layer!r} + {name}"], 2
    return layer, [repr(layer)], 1


def _convolutions(chain: list[Layer], cold: bool) -> tuple[Step, list[str], int]:
    """The same of a convolution, with those behind it that make one run with it."""
    for count, suits, make in ((3, are_bottleneck, bottleneck), (2, are_expansion, expansion)):
        units, used = units_of(chain, count)
        if suits(units):
            return make(units, cold), [str(unit) for unit in units], used
    unit, used = unit_of(chain)
    return convolution(unit, cold), [str(unit)], used


def _flatten(layer: Flatten) -> Step:
    start, end = layer.start_dim, layer.end_dim

    def step(x: np.ndarray) -> np.ndarray:
        first, last = start % x.ndim, end % x.ndim
        return contiguous(x).reshape(*x.shape[:first], math.prod(x.shape[first:last + 1]), *x.shape[last + 1:])

    return step


# -- containers -----------------------------------------------------------------------------------------------------------


def _indented(key: str, lines: list[str]) -> list[str]:
    return [f"  {key}:", *("    " + line for line in lines)]


def _residual(layer: Residual, cold: bool) -> tuple[Step, list[str]]:
    activation = layer.children.get("activation")
    title = f"Residual{f' + {activation!r}' if activation else ''}"
    chain = _chain(layer.children["branch"])
    units, used = units_of(chain, 3)
    rectified = activation is None or isinstance(activation, (ReLU, ReLU6, LeakyReLU))
    name = activation_name(activation)
    if (used == len(chain) and are_bottleneck(units) and units[-1].activation is None and "shortcut" not in layer.children
            and rectified and (name is None) == (activation is None)):
        return (residual_bottleneck(units, name, lambda: _sum(layer, cold)[0]),
                [title, *_indented("branch", [str(unit) for unit in units])])
    step, text = _sum(layer, cold)
    return step, [title, *text]


def _sum(layer: Residual, cold: bool) -> tuple[Step, list[str]]:
    """The sum of a branch and a shortcut, and what they consist of."""
    branch, lines = _fused(layer.children["branch"], cold)
    text = _indented("branch", lines)
    shortcut: Step | None = None
    if "shortcut" in layer.children:
        shortcut, lines = _fused(layer.children["shortcut"], cold)
        text += _indented("shortcut", lines)
    activation = layer.children.get("activation")
    after: Step | None = None
    slope, ceiling = 1.0, math.inf
    if isinstance(activation, (ReLU, ReLU6, LeakyReLU)):
        slope, ceiling = activation.slope, activation.ceiling
    elif activation is not None:
        after = _fused(activation, cold)[0]

    def step(x: np.ndarray) -> np.ndarray:
        y, carried = branch(x), x if shortcut is None else shortcut(x)
        carried = layer.fitting(y, carried)
        if np.may_share_memory(x, y) or not y.flags.c_contiguous:
            y = np.array(y, order="C")
        rectify_in_place(y, slope, ceiling, contiguous(carried))
        return y if after is None else after(y)

    return step, text


def _parallel(layer: Parallel, cold: bool) -> tuple[Step, list[str]]:
    fused = [_fused(child, cold) for child in layer.children.values()]
    steps = [step for step, _ in fused]
    text = [line for key, (_, lines) in zip(layer.children, fused) for line in _indented(key, lines)]
    axis = layer.axis

    def step(x: np.ndarray) -> np.ndarray:
        return np.concatenate([step(x) for step in steps], axis=axis)

    return step, ["Parallel", *text]
