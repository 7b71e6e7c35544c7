"""What a model consists of: layers, shapes, parameters, operations, receptive field, chosen backends."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from .._calls import frozen, lookup, make_options
from ._layer import Layer
from .containers import Parallel, Residual, Sequential
from .convolutions import SeparableConv2d, _Convolution
from .linear import Linear
from .normalization import _Norm
from .pooling import GlobalAvgPool, GlobalMaxPool, _Adaptive, _Pool
from .reshaping import Dropout, Flatten

__all__ = ["LayerSummary", "summarize", "summary"]


@dataclass(frozen=True)
class LayerSummary:
    """One layer of a model, for an input of a given shape."""

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    flops: int  # a multiply-add counts as two
    receptive_field: tuple[int, ...] | None  # of an output point, in input points; None: all of it
    backend: str


def summarize(model: Layer, input_shape: Sequence[int], dtype: Any = None) -> list[LayerSummary]:
    """What `summary` prints, a record for each layer that is not a container.

    Examples
    --------
    >>> import fastconv.nn as nn
    >>> nn.summarize(nn.Sequential(nn.Linear(4, 2)), (8, 4))[0].flops
    128
    """
    shape = tuple(int(n) for n in input_shape)
    if dtype is None:
        dtype = next((p.params[p.key].dtype for p in model.named_parameters()), np.dtype(np.float32))
    fields: dict[str, tuple[int, ...] | None] = {}
    _follow(model, "", _Field(), fields)
    found: list[LayerSummary] = []

    def record(name: str, layer: Layer, before: tuple[int, ...], after: tuple[int, ...]) -> None:
        count = sum(array.size for array in layer.params.values())
        found.append(LayerSummary(name, type(layer).__name__, after, count, _flops(layer, before, after), fields.get(name),
                                  _backend(layer, before)))

    model.trace(np.zeros(shape, dtype), record)
    return found


def _flops(layer: Layer, before: tuple[int, ...], after: tuple[int, ...]) -> int:
    size = math.prod(after)
    if isinstance(layer, (_Convolution, Linear)):
        weight = layer.params["weight"]
        # each output of a convolution, and each input of a transposed one, meets the weights of a channel
        if isinstance(layer, _Convolution) and layer.transposed:
            return 2 * math.prod(before) * (weight.size // layer.in_channels)
        outputs = layer.out_features if isinstance(layer, Linear) else layer.out_channels
        return 2 * size * (weight.size // max(1, outputs))
    if isinstance(layer, _Pool):
        windows = layer.values[-1:] if not isinstance(layer, (_Adaptive, GlobalAvgPool, GlobalMaxPool)) else ()
        return size * math.prod(_axes(windows[0], layer.ndim)) if windows else math.prod(before)
    if isinstance(layer, (Flatten, Dropout)):
        return 0
    return size * (2 if isinstance(layer, _Norm) else 1)


def _backend(layer: Layer, before: tuple[int, ...]) -> str:
    if not isinstance(layer, _Convolution):
        return ""
    options = dict(layer.options)
    extra = frozen(options.pop("output_padding", None), "output_padding")
    batch = before if len(before) == layer.ndim + 2 else (1, *before)
    dtype = layer.params["weight"].dtype
    kind = "transposed" if layer.transposed else "forward"
    return lookup(kind, layer.ndim, batch, layer.params["weight"].shape, dtype, dtype, make_options(**options), "bias" in layer.params,
                  None, extra, prepacked=not layer.transposed).plan.backend


# -- receptive field ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Field:
    """Input points that an output point sees along each axis, and how far apart neighbours are; None: all of them."""

    size: tuple[Fraction, ...] | None = ()
    step: tuple[Fraction, ...] = ()

    def through(self, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...], transposed: bool = False) -> _Field:
        if self.size is None:
            return self
        size, step = self.size or (Fraction(1),) * len(kernel), self.step or (Fraction(1),) * len(kernel)
        if len(size) != len(kernel):
            return _Field(None)
        if transposed:
            grown = tuple(n + ((k - 1) * d // s) * j for n, j, k, s, d in zip(size, step, kernel, stride, dilation))
            return _Field(grown, tuple(j / s for j, s in zip(step, stride)))
        grown = tuple(n + (k - 1) * d * j for n, j, k, d in zip(size, step, kernel, dilation))
        return _Field(grown, tuple(j * s for j, s in zip(step, stride)))

    def joined(self, other: _Field) -> _Field:
        if self.size is None or other.size is None:
            return _Field(None)
        if not self.size or not other.size:
            return self if self.size else other
        return _Field(tuple(map(max, self.size, other.size)), tuple(map(max, self.step, other.step)))


def _axes(value: Any, ndim: int) -> tuple[int, ...]:
    return (int(value),) * ndim if isinstance(value, (int, np.integer)) else tuple(int(v) for v in value)


def _follow(layer: Layer, name: str, field: _Field, fields: dict[str, tuple[int, ...] | None]) -> _Field:
    """The receptive field after a layer, and those of all its parts in `fields`."""
    def dotted(key: str) -> str:
        return f"{name}.{key}" if name else key

    children = layer.children
    if isinstance(layer, (Sequential, SeparableConv2d)):
        for key, child in children.items():
            field = _follow(child, dotted(key), field, fields)
    elif isinstance(layer, Parallel):
        ends = [_follow(child, dotted(key), field, fields) for key, child in children.items()]
        for end in ends:
            field = field.joined(end) if end is not ends[0] else end
    elif isinstance(layer, Residual):
        carried = _follow(children["shortcut"], dotted("shortcut"), field, fields) if "shortcut" in children else field
        field = _follow(children["branch"], dotted("branch"), field, fields).joined(carried)
        if "activation" in children:
            field = _follow(children["activation"], dotted("activation"), field, fields)
    else:
        field = _through_leaf(layer, field)
        fields[name] = None if field.size is None else tuple(math.ceil(n) for n in field.size)
    return field


def _through_leaf(layer: Layer, field: _Field) -> _Field:
    if isinstance(layer, _Convolution):
        return field.through(layer.kernel_size, layer.stride, layer.dilation, layer.transposed)
    if isinstance(layer, _Pool) and layer.values and not isinstance(layer, _Adaptive):
        kernel = _axes(layer.values[-1], layer.ndim)
        stride = layer.options["stride"]
        return field.through(kernel, kernel if stride is None else _axes(stride, layer.ndim), _axes(layer.options["dilation"], layer.ndim))
    if isinstance(layer, (_Pool, Linear, Flatten)):
        return _Field(None)
    return field


# -- text -----------------------------------------------------------------------------------------------------------------


def summary(model: Layer, input_shape: Sequence[int], *, dtype: Any = None, write: Callable[[str], Any] | None = None) -> None:
    """Print a model's layers: output shapes, parameters, operations, receptive field, chosen backend.

    Parameters
    ----------
    model : Layer
        What is printed.
    input_shape : sequence of int
        Shape of an input, its batch included.
    dtype : dtype, optional
        Of the input; by default that of the parameters.
    write : function of str, optional
        Where the text goes; by default to the screen, as a table of `rich` where that is installed.

    Examples
    --------
    >>> import fastconv.nn as nn
    >>> nn.summary(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), (16, 4), write=print)
    Layer  Kind    Output   Parameters  FLOPs  Receptive field  Backend
    0      Linear  (16, 8)          40  1,024  all
    1      ReLU    (16, 8)           0    128  all
    2      Linear  (16, 2)          18    512  all
    total                           58  1,664
    """
    rows = summarize(model, input_shape, dtype)
    head = ("Layer", "Kind", "Output", "Parameters", "FLOPs", "Receptive field", "Backend")
    lines = [head, *_texts(rows)]
    if write is None:
        if _rich_table(lines):
            return
        write = print
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    for line in lines:
        cells = (text.rjust(width) if i in (3, 4) else text.ljust(width) for i, (text, width) in enumerate(zip(line, widths)))
        write("  ".join(cells).rstrip())


def _texts(rows: list[LayerSummary]) -> Iterator[tuple[str, ...]]:
    for row in rows:
        field = "all" if row.receptive_field is None else " x ".join(map(str, row.receptive_field)) or "1"
        yield row.name, row.kind, str(row.output_shape), f"{row.parameters:,}", f"{row.flops:,}", field, row.backend
    yield "total", "", "", f"{sum(row.parameters for row in rows):,}", f"{sum(row.flops for row in rows):,}", "", ""


def _rich_table(lines: list[tuple[str, ...]]) -> bool:
    """Print a table with `rich`; whether that is installed."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        return False
    table = Table(*lines[0])
    for i in (3, 4):
        table.columns[i].justify = "right"
    for line in lines[1:]:
        table.add_row(*line, end_section=line is lines[-2])
    Console().print(table)
    return True
