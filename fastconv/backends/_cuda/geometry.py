"""Where elements lie: strides of images and weights in either layout, and the tables that borders come from."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ...problem import Problem

__all__ = ["INDEX_LIMIT", "ImageStrides", "WeightStrides", "image_strides", "index_refusal", "source_table", "target_lists",
           "weight_strides"]

INDEX_LIMIT = 2**31 - 1  # of the elements of an array that is indexed by 32 bits


class ImageStrides(NamedTuple):
    """Elements between neighbours of an image along each axis."""

    batch: int
    channel: int
    depth: int
    row: int
    column: int


class WeightStrides(NamedTuple):
    """Elements between neighbours of weights along each axis."""

    out_channel: int
    in_channel: int
    depth: int
    row: int
    column: int


def image_strides(channels: int, size: tuple[int, ...], channels_last: bool) -> ImageStrides:
    """The strides of a contiguous image of three spatial axes."""
    depth, rows, columns = size
    if channels_last:
        return ImageStrides(channels * depth * rows * columns, 1, channels * rows * columns, channels * columns, channels)
    return ImageStrides(channels * depth * rows * columns, depth * rows * columns, rows * columns, columns, 1)


def weight_strides(problem: Problem) -> WeightStrides:
    """The strides of contiguous weights."""
    p = problem
    depth, rows, columns = p.kernel_size
    if p.channels_last:
        per_tap = p.group_in * p.out_channels
        return WeightStrides(1, p.out_channels, per_tap * rows * columns, per_tap * columns, per_tap)
    return WeightStrides(p.group_in * depth * rows * columns, depth * rows * columns, rows * columns, columns, 1)


def index_refusal(problem: Problem) -> str | None:
    """Why 32-bit indices do not reach all elements of the problem's arrays."""
    largest = max(math.prod(shape) for shape in problem.shapes)
    return f"arrays of {largest:,} elements, more than 32-bit indices reach" if largest > INDEX_LIMIT else None


def source_table(problem: Problem) -> tuple[np.ndarray, tuple[int, int, int]]:
    """For each axis in turn, the input index at each padded position, -1 for a zero; and where each axis begins."""
    sources = [np.ascontiguousarray(source, np.int32) for source in problem.border_sources()]
    starts = (0, sources[0].size, sources[0].size + sources[1].size)
    return np.concatenate(sources), starts


def target_lists(problem: Problem) -> tuple[np.ndarray, tuple[int, int, int]]:
    """The inverse of `source_table`: for each axis the padded positions that show each input index.

    An axis of n points is n + 1 places where the points' lists begin, counted from the axis's own beginning, and the lists.
    """
    parts, starts, at = [], [], 0
    for source, size in zip(problem.border_sources(), problem.input_size, strict=True):
        shown = np.flatnonzero(source >= 0)
        order = shown[np.argsort(source[shown], kind="stable")]
        begins = np.searchsorted(source[order], np.arange(size + 1)) + size + 1
        parts += [begins.astype(np.int32), order.astype(np.int32)]
        starts.append(at)
        at += size + 1 + order.size
    return np.concatenate(parts), (starts[0], starts[1], starts[2])
