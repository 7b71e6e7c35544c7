"""Convolutions and fully connected layers with what follows them, as steps of a fused model; several of them as one run."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from .. import conv
from ..asking import current_choice
from ..backends import _bottleneck, _expanded
from ..backends._activation import apply, rectifier, rectify_in_place
from ..backends._jit import num_threads
from ..problem import Options, Problem
from ._layer import Layer
from .activations import GELU, LeakyReLU, ReLU, ReLU6, Sigmoid, SiLU, Tanh, contiguous
from .convolutions import _Convolution
from .linear import Linear
from .normalization import _BatchNorm
from .reshaping import Dropout

__all__ = ["Run", "Step", "Unit", "activation_name", "are_bottleneck", "are_expansion", "bottleneck", "convolution", "expansion",
           "in_order", "linear", "residual_bottleneck", "unit_of", "units_of"]

Step = Callable[[np.ndarray], np.ndarray]
Run = Callable[[np.ndarray, np.ndarray], None]  # of an input and where its result goes
SHAPES_KEPT = 16  # of convolutions that are one run
SMOOTH = {Sigmoid: "sigmoid", Tanh: "tanh", SiLU: "silu", GELU: "gelu"}


def activation_name(layer: Layer | None) -> str | None:
    """The name by which a convolution computes an activation itself; None for other layers and slopes."""
    if isinstance(layer, (ReLU, ReLU6, LeakyReLU)):
        return layer.rectifier
    return SMOOTH.get(type(layer))  # type: ignore[arg-type]


class Unit(NamedTuple):
    """A layer with the norm and the activation that follow it and become part of it."""

    layer: Any
    norm: Layer | None
    activation: str | None

    def __str__(self) -> str:
        norm = type(self.norm).__name__ if self.norm else None
        return " + ".join(name for name in (repr(self.layer), norm, self.activation) if name)


def unit_of(chain: list[Layer]) -> tuple[Unit, int]:
    """The unit that a chain begins with, and how many of its layers that takes."""
    layer, rest = chain[0], [part for part in chain[1:4] if not isinstance(part, Dropout)]
    norm = rest[0] if rest and _folds(layer, rest[0]) else None
    following = rest[1:] if norm else rest
    name = activation_name(following[0] if following else None)
    last = following[0] if name else norm or layer
    return Unit(layer, norm, name), next(i for i, part in enumerate(chain) if part is last) + 1


def units_of(chain: list[Layer], most: int) -> tuple[list[Unit], int]:
    """The units of up to `most` convolutions that a chain begins with, and how many of its layers they take."""
    units: list[Unit] = []
    taken = 0
    while len(units) < most and taken < len(chain) and isinstance(chain[taken], _Convolution):
        unit, used = unit_of(chain[taken:])
        units.append(unit)
        taken += used
    return units, taken


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


def convolution(unit: Unit, cold: bool) -> Step:
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


def linear(layer: Linear, norm: Layer | None, activation: str | None) -> Step:
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


# -- convolutions that are one run ----------------------------------------------------------------------------------------


def are_expansion(units: Sequence[Unit]) -> bool:
    """Whether a convolution is one of 1 x 1, and the next a depthwise one; whether their sizes suit is found by shape."""
    if len(units) != 2:
        return False
    one, other = (unit.layer for unit in units)
    return (one.ndim == other.ndim == 2 and not one.transposed and not other.transposed and one.layout == other.layout == "NCHW"
            and one.kernel_size == (1, 1) and other.groups == other.in_channels == other.out_channels == one.out_channels)


def are_bottleneck(units: Sequence[Unit]) -> bool:
    """Whether three convolutions expand the channels, filter them and narrow them again."""
    last = units[-1].layer
    return (len(units) == 3 and are_expansion(units[:2]) and last.ndim == 2 and not last.transposed and last.layout == "NCHW"
            and last.kernel_size == (1, 1))


def expansion(units: Sequence[Unit], cold: bool) -> Step:
    """A 1 x 1 convolution and the depthwise one behind it: one run for shapes that suit, unless a backend is asked for, else two."""
    def prepare(problems: list[Problem]) -> Run | None:
        if not _expanded.fits(*problems):
            return None
        kernel = _expanded.ExpandedDepthwise(*problems)
        packed = kernel.pack(*zip(*map(_weights, units)))
        return lambda x, y: kernel.run(x, packed, y)

    return _by_shape(units, lambda: in_order([convolution(unit, cold) for unit in units]), prepare)


def bottleneck(units: Sequence[Unit], cold: bool) -> Step:
    """Three convolutions: one run for shapes that suit, else what `expansion` gives and the last by itself."""
    return _by_shape(units, lambda: in_order([expansion(units[:2], cold), convolution(units[2], cold)]),
                     lambda problems: _bottleneck_run(units, problems))


def residual_bottleneck(units: Sequence[Unit], activation: str | None, make_otherwise: Callable[[], Step]) -> Step:
    """The rectifier of the sum of x and three convolutions of it: one run for shapes that suit."""
    def prepare(problems: list[Problem]) -> Run | None:
        if problems[0].input_shape != problems[2].output_shape:
            return None
        return _bottleneck_run(units, [*problems[:2], replace(problems[2], activation=activation)], shortcut=True)

    return _by_shape(units, make_otherwise, prepare)


def _bottleneck_run(units: Sequence[Unit], problems: list[Problem], shortcut: bool = False) -> Run | None:
    if not _bottleneck.fits(*problems):
        return None
    expand, depthwise, project = problems
    kernel = _bottleneck.Bottleneck(expand, depthwise, project, shortcut)
    packed = kernel.pack(*zip(*map(_weights, units)))
    return lambda x, y: kernel.run(x, packed, y)


def in_order(steps: Sequence[Step]) -> Step:
    """The steps one after the other."""
    if len(steps) == 1:
        return steps[0]

    def run(x: np.ndarray) -> np.ndarray:
        for step in steps:
            x = step(x)
        return x

    return run


def _by_shape(units: Sequence[Unit], make_otherwise: Callable[[], Step], prepare: Callable[[list[Problem]], Run | None]) -> Step:
    """What `prepare` makes of the problems that the units are for an input, found once a shape; where that is nothing, another step."""
    made: dict[tuple[Any, ...], tuple[tuple[int, ...], Run] | None] = {}
    otherwise = functools.cache(make_otherwise)  # with weights of its own: made if it is needed

    def prepared(x: np.ndarray) -> tuple[tuple[int, ...], Run] | None:
        if x.ndim != 4 or x.dtype != units[0].layer.params["weight"].dtype or current_choice(None)[::2] != (None, "cpu"):
            return None
        try:
            problems = _problems(x, units)
        except ValueError:  # the other step says what is wrong
            return None
        run = prepare(problems)
        return None if run is None else (problems[-1].public_shape(problems[-1].output_shape), run)

    def step(x: np.ndarray) -> np.ndarray:
        key = (x.shape, x.dtype, num_threads())
        if key not in made:
            if len(made) >= SHAPES_KEPT:
                made.clear()
            made[key] = prepared(x)
        found = made[key]
        if found is None:
            return otherwise()(x)
        shape, run = found
        y = np.empty(shape, x.dtype)
        run(contiguous(x), y)
        return y

    return step


def _problems(x: np.ndarray, units: Sequence[Unit]) -> list[Problem]:
    """The problems of convolutions that follow each other."""
    problems: list[Problem] = []
    shape = x.shape
    for unit in units:
        options = Options(**unit.layer.options, activation=unit.activation)
        biased = unit.norm is not None or "bias" in unit.layer.params
        problems.append(Problem.create("forward", 2, shape, unit.layer.params["weight"].shape, x.dtype.name, options, bias=biased))
        shape = problems[-1].public_shape(problems[-1].output_shape)
    return problems
