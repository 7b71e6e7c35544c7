"""Receptive fields: which input points an output point of a stack of layers sees."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["ReceptiveField", "receptive_field"]


class ReceptiveField(NamedTuple):
    """What an output point of a stack of layers sees: ints, or tuples of one per axis where a layer has such."""

    size: Any  # input points across
    stride: Any  # input points from one output point's field to the next one's
    start: Any  # where the first output's field begins in the input, negative in the padding


def receptive_field(layers: Iterable[Any]) -> ReceptiveField:
    """Compute the receptive field of layers applied one after the other.

    size += (kernel - 1) dilation stride_so_far;  start -= low stride_so_far;  stride_so_far *= stride

    Parameters
    ----------
    layers : iterable
        Kernel sizes, tuples or mappings of (kernel_size, stride, dilation, padding), or objects with such attributes, as the
        layers of `fastconv.nn` have. Each value is an int or one per axis; objects without a kernel see a single point.

    Returns
    -------
    ReceptiveField
        (size, stride, start).

    Raises
    ------
    ValueError
        If layers disagree about the number of axes, or a padding depends on the input's size.

    Examples
    --------
    >>> from fastconv.linalg import receptive_field
    >>> receptive_field([3, (3, 2), {"kernel_size": 3, "padding": 1}])
    ReceptiveField(size=9, stride=2, start=-2)

    References
    ----------
    Araujo, Norris, Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill (2019).
    """
    steps = [step for layer in layers if (step := _step_of(layer)) is not None]
    ranks = {len(value) for step in steps for value in step if isinstance(value, tuple)}
    if len(ranks) > 1:
        raise ValueError(f"layers must agree about the number of axes, got {sorted(ranks)}")
    axes = max(ranks, default=1)
    fields = []
    for axis in range(axes):
        size, jump, start = 1, 1, 0
        for step in steps:
            kernel, stride, dilation, low = (value[axis] if isinstance(value, tuple) else value for value in step)
            size += (kernel - 1) * dilation * jump
            start -= low * jump
            jump *= stride
        fields.append((size, jump, start))
    if not ranks:
        return ReceptiveField(*fields[0])
    return ReceptiveField(*(tuple(values) for values in zip(*fields, strict=True)))


class _Step(NamedTuple):
    kernel_size: Any
    stride: Any = 1
    dilation: Any = 1
    low: Any = 0


def _step_of(layer: Any) -> _Step | None:
    """Kernel size, stride, dilation and low padding of a layer, each an int or a tuple of one an axis."""
    names = ("kernel_size", "stride", "dilation", "padding")
    if isinstance(layer, int):
        values: Mapping[str, Any] = {"kernel_size": layer}
    elif isinstance(layer, (tuple, list)):
        values = dict(zip(names, layer, strict=False))
    elif isinstance(layer, Mapping):
        values = layer
    else:
        values = {name: getattr(layer, name) for name in names if getattr(layer, name, None) is not None}
    if values.get("kernel_size") is None:
        return None
    padding = values.get("padding", 0)
    if isinstance(padding, str):
        if padding != "valid":
            raise ValueError(f"padding {padding!r} depends on the input's size: give it as numbers")
        padding = 0
    if isinstance(padding, Sequence):
        padding = tuple(low[0] if isinstance(low, Sequence) else low for low in padding)
    kernel, stride, dilation = (tuple(value) if isinstance(value, Sequence) else value for value in (
        values["kernel_size"], values.get("stride", 1), values.get("dilation", 1)))
    return _Step(kernel, stride, dilation, padding)
