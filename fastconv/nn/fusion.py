"""A trained model as a function for inference: norms and activations folded into convolutions, weights packed into plans.

    conv, batch norm, activation     ->  one plan: w' = w s, b' = (b - mean) s + shift, with s = weight / sqrt(var + eps)
    branch + shortcut, activation    ->  one pass over the branch's output, in place
    dropout                          ->  nothing

Other layers stay as they are. All works on a copy of the model, without gradients.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import conv
from ..asking import current_choice
from ..backends import CACHED_BYTES
from ..backends._activation import apply, rectifier, rectify_in_place
from ..backends._expanded import ExpandedDepthwise
from ..backends._expanded import fits as expanded_fits
from ..backends._jit import num_threads
from ..backends._scratch import keep_freed_memory
from ..problem import Options, Problem
from ._layer import Gradients, Layer
from .activations import GELU, LeakyReLU, ReLU, ReLU6, Sigmoid, SiLU, Tanh, contiguous
from .containers import Parallel, Residual, Sequential
from .convolutions import SeparableConv2d, _Convolution
from .linear import Linear
from .normalization import _BatchNorm
from .reshaping import Dropout, Flatten

__all__ = ["Fused", "fuse"]

Step = Callable[[np.ndarray], np.ndarray]
SHAPES_KEPT = 16  # of a pair of convolutions that is one run
SMOOTH = {Sigmoid: "sigmoid", Tanh: "tanh", SiLU: "silu", GELU: "gelu"}


def activation_name(layer: Layer | None) -> str | None:
    """The name by which a convolution computes an activation itself; None for other layers and slopes."""
    if isinstance(layer, (ReLU, ReLU6, LeakyReLU)):
        return layer.rectifier
    return SMOOTH.get(type(layer))  # type: ignore[arg-type]


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
    if len(steps) == 1:
        return steps[0], lines

    def run(x: np.ndarray) -> np.ndarray:
        for step in steps:
            x = step(x)
        return x

    return run, lines


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
    if isinstance(layer, (_Convolution, Linear)):
        unit, used = _unit(chain)
        if isinstance(layer, Linear):
            return _linear(layer, unit.norm, unit.activation), [str(unit)], used
        if used < len(chain) and isinstance(chain[used], _Convolution):
            second, more = _unit(chain[used:])
            if may_be_expanded(unit, second):
                return _expanded(unit, second, cold), [str(unit), str(second)], used + more
        return _convolution(unit, cold), [str(unit)], used
    if isinstance(layer, _BatchNorm) and rest and rest[0].rectifier and len(chain) > 1 and chain[1] is rest[0]:
        name = rest[0].rectifier
        return lambda x: layer.activated(x, name), [f"{layer!r} + {name}"], 2
    return layer, [repr(layer)], 1


# -- convolutions and fully connected layers ------------------------------------------------------------------------------


class Unit(NamedTuple):
    """A layer with the norm and the activation that follow it and become part of it."""

    layer: Any
    norm: Layer | None
    activation: str | None

    def __str__(self) -> str:
        norm = type(self.norm).__name__ if self.norm else None
        return " + ".join(name for name in (repr(self.layer), norm, self.activation) if name)


def _unit(chain: list[Layer]) -> tuple[Unit, int]:
    """The unit that a chain begins with, and how many of its layers that takes."""
    layer, rest = chain[0], [part for part in chain[1:4] if not isinstance(part, Dropout)]
    norm = rest[0] if rest and _folds(layer, rest[0]) else None
    following = rest[1:] if norm else rest
    name = activation_name(following[0] if following else None)
    last = following[0] if name else norm or layer
    return Unit(layer, norm, name), next(i for i, part in enumerate(chain) if part is last) + 1


def _folds(layer: Layer, norm: Layer) -> bool:
    """Whether a norm is that of the layer's output channels by fixed statistics."""
    if not isinstance(norm, _BatchNorm) or "running_mean" not in norm.buffers:
        return False
    if isinstance(layer, Linear):
        return norm.num_features == layer.out_features and 2 in norm.ranks
    assert isinstance(layer, _Convolution)
    return norm.num_features == layer.out_channels and layer.ndim + 2 in norm.ranks and norm.layout == layer.layout


def _folded(layer: _Convolution | Linear, norm: Layer | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Weights and bias with a norm's factors."""
    weight, bias = layer.params["weight"], layer.params.get("bias")
    if norm is None:
        return weight, bias
    assert isinstance(norm, _BatchNorm)
    factor = 1 / np.sqrt(norm.buffers["running_var"].astype(np.float64) + norm.eps)
    shift = -norm.buffers["running_mean"] * factor
    if "weight" in norm.params:
        gamma = norm.params["weight"].astype(np.float64)
        factor, shift = factor * gamma, shift * gamma + norm.params["bias"]
    if bias is not None:
        shift = shift + factor * bias
    return (layer.to_state("weight", weight) * _per_output(layer, factor)).astype(weight.dtype), shift.astype(weight.dtype)


def _per_output(layer: _Convolution | Linear, factor: np.ndarray) -> np.ndarray:
    """Factors of the output channels, in a shape that multiplies PyTorch's weights."""
    if isinstance(layer, Linear) or not layer.transposed:
        return factor.reshape(-1, *(1,) * (layer.params["weight"].ndim - 1))
    # input channels come first, those of a group together, and each group has its own outputs
    each = layer.in_channels // layer.groups
    return np.repeat(factor.reshape(layer.groups, -1), each, axis=0).reshape(layer.in_channels, -1, *(1,) * layer.ndim)


def _weights(unit: Unit) -> tuple[np.ndarray, np.ndarray | None]:
    """A convolution's weights and bias with its norm's factors, in its layout."""
    weight, bias = _folded(unit.layer, unit.norm)
    return (weight if unit.norm is None else unit.layer.from_state("weight", np.ascontiguousarray(weight))), bias


def _convolution(unit: Unit, cold: bool) -> Step:
    layer, activation = unit.layer, unit.activation
    weight, bias = _weights(unit)
    description = repr(layer)
    run: Step
    if layer.transposed:
        transpose = getattr(conv, f"conv_transpose{layer.ndim}d")
        options = layer.options

        def run(x: np.ndarray) -> np.ndarray:
            return transpose(x, weight, bias, activation=activation, **options)
    else:
        run = getattr(conv, f"plan_conv{layer.ndim}d")(weight, bias, activation=activation, cold_weights=cold, **layer.options)

    def step(x: np.ndarray) -> np.ndarray:
        try:
            return run(x)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{description}: x of shape {x.shape}: {error}") from None

    return step


def may_be_expanded(first: Unit, second: Unit) -> bool:
    """Whether a convolution is one of 1 x 1, and the next a depthwise one; whether their sizes suit is found by shape."""
    one, other = first.layer, second.layer
    return (one.ndim == other.ndim == 2 and not one.transposed and not other.transposed and one.layout == other.layout == "NCHW"
            and one.kernel_size == (1, 1) and other.groups == other.in_channels == other.out_channels == one.out_channels)


def _expanded(first: Unit, second: Unit, cold: bool) -> Step:
    """A 1 x 1 convolution and the depthwise one behind it: one run for shapes that suit, unless a backend is asked for, else two."""
    units = (first, second)
    steps = [_convolution(unit, cold) for unit in units]
    weights, biases = zip(*map(_weights, units))
    made: dict[tuple[Any, ...], tuple[tuple[int, ...], ExpandedDepthwise, Any] | None] = {}

    def prepared(x: np.ndarray) -> tuple[tuple[int, ...], ExpandedDepthwise, Any] | None:
        if x.ndim != 4 or x.dtype != weights[0].dtype or current_choice(None).name is not None:
            return None
        try:
            problems = pair_of_problems(x, units, weights, biases)
        except ValueError:  # the steps say what is wrong
            return None
        if not expanded_fits(*problems):
            return None
        kernel = ExpandedDepthwise(*problems)
        return problems[1].public_shape(problems[1].output_shape), kernel, kernel.pack(weights, biases)

    def step(x: np.ndarray) -> np.ndarray:
        key = (x.shape, x.dtype, num_threads())
        if key not in made:
            if len(made) >= SHAPES_KEPT:
                made.clear()
            made[key] = prepared(x)
        found = made[key]
        if found is None:
            return steps[1](steps[0](x))
        shape, kernel, packed = found
        y = np.empty(shape, x.dtype)
        kernel.run(contiguous(x), packed, y)
        return y

    return step


def pair_of_problems(x: np.ndarray, units: Sequence[Unit], weights: Sequence[np.ndarray], biases: Sequence[Any]) -> list[Problem]:
    """The problems of two convolutions that follow each other."""
    problems: list[Problem] = []
    shape = x.shape
    for unit, weight, bias in zip(units, weights, biases):
        options = Options(**unit.layer.options, activation=unit.activation)
        problems.append(Problem.create("forward", 2, shape, weight.shape, weight.dtype.name, options, bias=bias is not None))
        shape = problems[-1].public_shape(problems[-1].output_shape)
    return problems


def _linear(layer: Linear, norm: Layer | None, activation: str | None) -> Step:
    weight, bias = _folded(layer, norm)
    folded = copy.copy(layer)
    folded.params = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}

    def step(x: np.ndarray) -> np.ndarray:
        y = folded(x) if norm is None or x.ndim == 2 else norm(layer(x))  # with three axes the norm's channels are the second
        if activation is not None and activation in SMOOTH.values():
            apply(activation, y)
        elif activation is not None:
            rectify_in_place(y, *rectifier(activation))
        return y

    return step


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

    return step, [f"Residual{f' + {activation!r}' if activation else ''}", *text]


def _parallel(layer: Parallel, cold: bool) -> tuple[Step, list[str]]:
    fused = [_fused(child, cold) for child in layer.children.values()]
    steps = [step for step, _ in fused]
    text = [line for key, (_, lines) in zip(layer.children, fused) for line in _indented(key, lines)]
    axis = layer.axis

    def step(x: np.ndarray) -> np.ndarray:
        return np.concatenate([step(x) for step in steps], axis=axis)

    return step, ["Parallel", *text]
