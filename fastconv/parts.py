"""Parts of a problem: the boxes of a result that hold what is not finite, each as a problem of its own on slices of the operands.

Axes are counted as (image, channel, depth, height, width) here, for weights (output channel, channel of a group, depth, height,
width), whatever the layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from .problem import Problem

__all__ = ["Part", "nonfinite_parts"]

Span = tuple[int, int]
IMAGE_ORDER, WEIGHT_ORDER = (0, 4, 1, 2, 3), (4, 3, 0, 1, 2)  # where those axes lie, channels last


class Part(NamedTuple):
    """A smaller problem, and the slices that are its operands, its bias and its result."""

    problem: Problem
    first: tuple[slice, ...]
    second: tuple[slice, ...]
    bias: slice
    result: tuple[slice, ...]


def nonfinite_parts(problem: Problem, result: np.ndarray) -> Iterator[Part]:
    """Parts that cover the non-finite elements of a result: a box for each run of images that have any, or one of the weights."""
    weights = problem.pass_name == "grad_weight"
    array = result.reshape(problem.shapes[2])
    if problem.channels_last:
        array = array.transpose(WEIGHT_ORDER if weights else IMAGE_ORDER)
    bad = ~np.isfinite(array)
    for low, high in [(0, len(bad))] if weights else _runs(bad.any(axis=(1, 2, 3, 4))):
        box = _bounds(bad[low:high])
        if box:
            yield _part(problem, [(box[0][0] + low, box[0][1] + low), *box[1:]])


def _runs(marks: np.ndarray) -> list[Span]:
    """First and one beyond the last of each run of marks."""
    edges = np.flatnonzero(np.diff(marks.astype(np.int8), prepend=0, append=0)).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def _bounds(bad: np.ndarray) -> list[Span]:
    """The least box that holds all marks; empty if there are none."""
    marks = [np.flatnonzero(bad.any(axis=tuple(other for other in range(bad.ndim) if other != axis))) for axis in range(bad.ndim)]
    return [(int(found[0]), int(found[-1]) + 1) for found in marks] if marks[0].size else []


def _part(problem: Problem, box: Sequence[Span]) -> Part:
    p = problem
    images, ins, outs = (0, p.batch), (0, p.in_channels), (0, p.out_channels)
    group_ins, groups = (0, p.group_in), p.groups
    channels = box[0] if p.pass_name == "grad_weight" else box[1]
    if p.groups > 1:
        size = p.group_in if p.pass_name == "grad_input" else p.group_out
        first, last = channels[0] // size, -(-channels[1] // size)
        groups, ins, outs = last - first, (first * p.group_in, last * p.group_in), (first * p.group_out, last * p.group_out)
    elif p.pass_name == "grad_input":
        ins = group_ins = channels
    else:
        outs = channels
    if p.pass_name == "grad_weight":
        inputs, outputs, padding = [(0, n) for n in p.input_size], [(0, n) for n in p.output_size], list(p.padding)
        if p.groups == 1:
            ins = group_ins = box[1]
    else:
        images = box[0]
        axes = [(_input_part if p.pass_name == "grad_input" else _output_part)(p, axis, span) for axis, span in enumerate(box[2:])]
        inputs, outputs, padding = ([axis[i] for axis in axes] for i in range(3))
    part = replace(p, batch=_size(images), in_channels=_size(ins), out_channels=_size(outs), groups=groups,
                   input_size=tuple(map(_size, inputs)), padding=tuple(padding))
    x, y = (_slices(p, (images, channels, *spans), IMAGE_ORDER) for channels, spans in ((ins, inputs), (outs, outputs)))
    w = _slices(p, (outs, group_ins, *((0, k) for k in p.kernel_size)), WEIGHT_ORDER)
    operands = {"forward": (x, w, y), "grad_input": (y, w, x), "grad_weight": (x, y, w)}[p.pass_name]
    return Part(part, operands[0], operands[1], slice(*(ins if p.pass_name == "grad_input" else outs)), operands[2])


def _size(span: Span) -> int:
    return span[1] - span[0]


def _slices(problem: Problem, spans: Sequence[Span], order: Sequence[int]) -> tuple[slice, ...]:
    """Slices of an array in the problem's layout."""
    slices = [slice(*span) for span in spans]
    if not problem.channels_last:
        return tuple(slices)
    return tuple(slices[order.index(axis)] for axis in range(len(order)))


def _output_part(problem: Problem, axis: int, span: Span) -> tuple[Span, Span, Span]:
    """The inputs that points [low, high) of y are made of, those points, and the padding around the inputs."""
    p = problem
    size, stride, reach, padding = p.input_size[axis], p.stride[axis], p.dilation[axis] * (p.kernel_size[axis] - 1), p.padding[axis]
    first, last = span[0] * stride - padding[0], (span[1] - 1) * stride + reach + 1 - padding[0]
    low, high = max(first, 0), min(last, size)
    if low >= high or (p.padding_mode != "zeros" and (first < 0 or last > size)):
        return (0, size), (0, p.output_size[axis]), padding
    return (low, high), span, (low - first, last - high)


def _input_part(problem: Problem, axis: int, span: Span) -> tuple[Span, Span, Span]:
    """Points [low, high) of gx, those of gy that they are made of, and the padding around gx."""
    p = problem
    size, stride, reach, padding = p.input_size[axis], p.stride[axis], p.dilation[axis] * (p.kernel_size[axis] - 1), p.padding[axis]
    first = max(0, (span[0] + padding[0] - reach) // stride)
    last = min(p.output_size[axis], (span[1] - 1 + padding[0]) // stride + 1)
    if first >= last:
        return (0, size), (0, p.output_size[axis]), padding
    low = padding[0] + span[0] - stride * first
    return span, (first, last), (low, (last - first - 1) * stride + reach + 1 - _size(span) - low)
