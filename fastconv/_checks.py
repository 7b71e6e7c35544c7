"""Checks of single arguments of a convolution; an error names the argument, its value and what was expected."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

ACTIVATIONS = ("relu", "relu6", "leaky_relu", "sigmoid", "tanh", "silu", "gelu")
CHANNELS_FIRST = {1: ("NCHW", "NCL", "NCW"), 2: ("NCHW",), 3: ("NCHW", "NCDHW")}
CHANNELS_LAST = {1: ("NHWC", "NLC", "NWC"), 2: ("NHWC",), 3: ("NHWC", "NDHWC")}

Size = tuple[int, ...]


def as_int(name: str, value: Any, minimum: int) -> int:
    """An integer of at least `minimum`; a truth value is none."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if number < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value!r}")
    return number


def as_sequence(name: str, value: Any, ndim: int) -> list[Any]:
    """A sequence's `ndim` items, or a single value as often."""
    if isinstance(value, (str, bytes)):
        raise TypeError(f"{name} must be an integer or a sequence of {ndim}, got {value!r}")
    try:
        items = list(value)
    except TypeError:
        return [value] * ndim
    if len(items) != ndim:
        raise ValueError(f"{name} must be an integer or a sequence of {ndim}, got {value!r}")
    return items


def check_axes(name: str, value: Any, ndim: int, minimum: int) -> Size:
    """An integer for each axis, from one each or one for all."""
    try:
        return tuple(as_int(name, item, minimum) for item in as_sequence(name, value, ndim))
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}={value!r}: {error}") from None


def check_name(name: str, value: Any, valid: Sequence[str]) -> str:
    """A name that is among the valid ones."""
    if not isinstance(value, str) or value not in valid:
        kind = ValueError if isinstance(value, str) else TypeError
        raise kind(f"{name} must be one of {', '.join(map(repr, valid))}; got {value!r}")
    return value


def check_layout(value: Any, ndim: int) -> str:
    """Any rank's name of a layout as "NCHW" or "NHWC"."""
    check_name("layout", value, CHANNELS_FIRST[ndim] + CHANNELS_LAST[ndim])
    return "NCHW" if value in CHANNELS_FIRST[ndim] else "NHWC"


def check_groups(value: Any, in_channels: int, out_channels: int) -> int:
    """A number of groups that divides both numbers of channels."""
    groups = as_int("groups", value, 1)
    if in_channels % groups or out_channels % groups:
        raise ValueError(f"groups={groups} must divide the input channels ({in_channels}) and the output channels ({out_channels})")
    return groups


def check_activation(value: Any, dtype: str) -> str | None:
    """The name of an activation that the dtype has, or None."""
    if value is None:
        return None
    name = check_name("activation", value, ACTIVATIONS)
    kind = np.dtype(dtype).kind
    if kind == "c" or (kind in "iu" and name not in ("relu", "relu6")):
        raise TypeError(f"activation={name!r} is not defined for arrays of type {dtype}")
    return name


def split_shape(name: str, shape: Sequence[int], ndim: int, layout: str) -> tuple[int, int, Size]:
    """(batch, channels, spatial size) of an image's shape."""
    if len(shape) != ndim + 2:
        raise ValueError(f"{name} must have {ndim + 2} dimensions, or {ndim + 1} for a single sample, got shape {tuple(shape)}")
    shape = tuple(as_int(f"shape of {name}", n, 0) for n in shape)
    return (shape[0], shape[1], shape[2:]) if layout == "NCHW" else (shape[0], shape[-1], shape[1:-1])


def split_weight_shape(shape: Sequence[int], ndim: int, layout: str) -> tuple[int, int, Size]:
    """(output channels, input channels of a group, kernel size) of the weights' shape."""
    if len(shape) != ndim + 2:
        raise ValueError(f"w must have {ndim + 2} dimensions, got shape {tuple(shape)}")
    shape = tuple(as_int("shape of w", n, 0) for n in shape)
    outputs, channels, kernel = (shape[0], shape[1], shape[2:]) if layout == "NCHW" else (shape[-1], shape[-2], shape[:-2])
    if min(kernel) < 1:
        raise ValueError(f"w must have a kernel of at least one tap on each axis, got shape {tuple(shape)}")
    return outputs, channels, kernel


def join_shape(batch: int, channels: int, size: Size, layout: str) -> Size:
    """The shape of an image in a layout: `split_shape` undone."""
    return (batch, channels, *size) if layout == "NCHW" else (batch, *size, channels)
