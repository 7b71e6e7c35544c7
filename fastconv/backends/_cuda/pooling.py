"""Pooling on a GPU: maxima and averages of any windows in any layout, and their gradients; a thread an element of the result.

Windows come as tables, so that sliding and adaptive ones are the same to a kernel. A gradient's thread looks at all the windows that hold
its point, which needs no atomics and adds in a fixed order. Windows that are a whole image, channels first, are left to a block each.

Dimension letters: n image, c channel, o window, i point of x; d h w the three axes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..._windows import Windows
from . import SIMULATED, cuda, fetch, i32, inlined, load, quotient, remainder, shared_memory, store, zero_of
from .compiling import Code
from .driver import Launch, Stream, address_of, resident
from .geometry import INDEX_LIMIT

__all__ = ["MaxGradient", "Maxima", "MeanGradient", "Means", "codes"]

THREADS = 8 if SIMULATED else 256
MOST_GRID = 65535  # blocks along the second axis of a grid
TABLES_KEPT = 256


class Pooled(NamedTuple):
    """A pooling as the kernels take it; the starts are those of an axis's part of the table."""

    images: int
    channels: int
    in_d: int
    in_h: int
    in_w: int
    out_d: int
    out_h: int
    out_w: int
    dilation_d: int
    dilation_h: int
    dilation_w: int
    start_h: int
    start_w: int
    channels_last: int
    flat: int  # whether places count the whole array's elements rather than a plane's


def _element_of(index, g, depths, rows, columns):
    """(channel, d, h, w) of an element of an image."""
    points = depths * rows * columns
    c = remainder(index, g.channels) if g.channels_last else quotient(index, points)
    point = quotient(index, g.channels) if g.channels_last else remainder(index, points)
    line = quotient(point, columns)
    return c, quotient(line, rows), remainder(line, rows), remainder(point, columns)


element_of = inlined(_element_of)


def _plane_of(n, c, points, g):
    """Where a channel of an image begins in an array, and the elements from one of its points to the next."""
    if g.channels_last:
        return n * np.int64(points) * g.channels + c, i32(g.channels)
    return (n * np.int64(g.channels) + c) * points, i32(1)


plane_of = inlined(_plane_of)


@functools.cache
def max_code(dtype: str, with_places: bool) -> Code:
    """y[o] = the largest in the window, places[o] = where: the first of equals, of NaNs the last, -1 in an empty window."""
    element = np.dtype(dtype).type
    lowest = -math.inf if np.dtype(dtype).kind == "f" else int(np.iinfo(dtype).min)

    def maxima(x, table, y, places, g):
        index = i32(cuda.blockIdx.x * THREADS + cuda.threadIdx.x)
        outputs = i32(g.channels * g.out_d * g.out_h * g.out_w)
        if index >= outputs:
            return
        c, o_d, o_h, o_w = element_of(index, g, g.out_d, g.out_h, g.out_w)
        first_d, first_h, first_w = fetch(table, 2 * o_d), fetch(table, g.start_h + 2 * o_h), fetch(table, g.start_w + 2 * o_w)
        count_d, count_h = fetch(table, 2 * o_d + 1), fetch(table, g.start_h + 2 * o_h + 1)
        count_w = fetch(table, g.start_w + 2 * o_w + 1)
        for n in range(cuda.blockIdx.y, g.images, cuda.gridDim.y):
            start, step = plane_of(n, c, i32(g.in_d * g.in_h * g.in_w), g)
            best, place = element(lowest), i32(-1)
            for d in range(count_d):
                for h in range(count_h):
                    line = i32((first_d + d * g.dilation_d) * g.in_h + first_h + h * g.dilation_h)
                    for v in range(count_w):
                        at = i32(line * g.in_w + first_w + v * g.dilation_w)
                        value = fetch(x, start + np.int64(at) * step)
                        if place < 0 or value > best or value != value:
                            best, place = value, at
            target = n * np.int64(outputs) + index
            store(y, target, best)
            if with_places:
                store(places, target, start + np.int64(place) * step if g.flat and place >= 0 else np.int64(place))

    name = f"{'places' if with_places else 'maxima'}.{dtype}"
    return Code(name, maxima, (dtype, "int32", dtype, "int64"), Pooled, 0, THREADS)


@functools.cache
def mean_code(dtype: str) -> Code:
    """y[o] = the sum of the window over its divisor, a product of a factor an axis; `factors` has those of d, h and w in turn."""

    def means(x, table, factors, y, g):
        index = i32(cuda.blockIdx.x * THREADS + cuda.threadIdx.x)
        outputs = i32(g.channels * g.out_d * g.out_h * g.out_w)
        if index >= outputs:
            return
        c, o_d, o_h, o_w = element_of(index, g, g.out_d, g.out_h, g.out_w)
        first_d, first_h, first_w = fetch(table, 2 * o_d), fetch(table, g.start_h + 2 * o_h), fetch(table, g.start_w + 2 * o_w)
        count_d, count_h = fetch(table, 2 * o_d + 1), fetch(table, g.start_h + 2 * o_h + 1)
        count_w = fetch(table, g.start_w + 2 * o_w + 1)
        divisor = fetch(factors, o_d) * fetch(factors, g.out_d + o_h) * fetch(factors, g.out_d + g.out_h + o_w)
        for n in range(cuda.blockIdx.y, g.images, cuda.gridDim.y):
            start, step = plane_of(n, c, i32(g.in_d * g.in_h * g.in_w), g)
            total = zero_of(x)
            for d in range(count_d):
                for h in range(count_h):
                    line = i32((first_d + d * g.dilation_d) * g.in_h + first_h + h * g.dilation_h)
                    for v in range(count_w):
                        at = i32(line * g.in_w + first_w + v * g.dilation_w)
                        total += fetch(x, start + np.int64(at) * step)
            store(y, n * np.int64(outputs) + index, total / divisor)

    return Code(f"means.{dtype}", means, (dtype, "int32", dtype, dtype), Pooled, 0, THREADS)


@functools.cache
def plane_mean_code(dtype: str) -> Code:
    """y = the mean of each plane, a block each: windows that are whole images, channels first."""

    def plane_means(x, table, factors, y, g):
        thread = i32(cuda.threadIdx.x)
        points = i32(g.in_d * g.in_h * g.in_w)
        total = zero_of(x)
        for i in range(thread, points, THREADS):
            total += fetch(x, cuda.blockIdx.x * np.int64(points) + i)
        sums = shared_memory(x)
        store(sums, thread, total)
        width = THREADS // 2
        while width:
            cuda.syncthreads()
            if thread < width:
                store(sums, thread, load(sums, thread) + load(sums, thread + width))
            width //= 2
        if thread == 0:
            store(y, cuda.blockIdx.x, load(sums, 0) / (fetch(factors, 0) * fetch(factors, 1) * fetch(factors, 2)))

    return Code(f"plane_means.{dtype}", plane_means, (dtype, "int32", dtype, dtype), Pooled, 0, THREADS)


@functools.cache
def max_gradient_code(dtype: str) -> Code:
    """gx[i] = the sum of gy[o] over the windows that hold i and whose place it is."""

    def max_gradient(gy, places, table, gx, g):
        index = i32(cuda.blockIdx.x * THREADS + cuda.threadIdx.x)
        points = i32(g.in_d * g.in_h * g.in_w)
        if index >= i32(g.channels * points):
            return
        c, i_d, i_h, i_w = element_of(index, g, g.in_d, g.in_h, g.in_w)
        own = i32((i_d * g.in_h + i_h) * g.in_w + i_w)
        for n in range(cuda.blockIdx.y, g.images, cuda.gridDim.y):
            above, pitch = plane_of(n, c, points, g)
            wanted = above + np.int64(own) * pitch if g.flat else np.int64(own)
            start, step = plane_of(n, c, i32(g.out_d * g.out_h * g.out_w), g)
            total = zero_of(gy)
            for d in range(fetch(table, i_d), fetch(table, i_d + 1)):
                for h in range(fetch(table, g.start_h + i_h), fetch(table, g.start_h + i_h + 1)):
                    line = i32(fetch(table, d) * g.out_h + fetch(table, g.start_h + h))
                    for v in range(fetch(table, g.start_w + i_w), fetch(table, g.start_w + i_w + 1)):
                        at = start + np.int64(i32(line * g.out_w + fetch(table, g.start_w + v))) * step
                        if fetch(places, at) == wanted:
                            total += fetch(gy, at)
            store(gx, n * np.int64(g.channels) * points + index, total)

    return Code(f"max_gradient.{dtype}", max_gradient, (dtype, "int64", "int32", dtype), Pooled, 0, THREADS)


@functools.cache
def mean_gradient_code(dtype: str) -> Code:
    """gx[i] = the sum of gy[o] times its factors, one over a divisor along each axis, over the windows that hold i."""

    def mean_gradient(gy, table, factors, gx, g):
        index = i32(cuda.blockIdx.x * THREADS + cuda.threadIdx.x)
        points = i32(g.in_d * g.in_h * g.in_w)
        if index >= i32(g.channels * points):
            return
        c, i_d, i_h, i_w = element_of(index, g, g.in_d, g.in_h, g.in_w)
        for n in range(cuda.blockIdx.y, g.images, cuda.gridDim.y):
            start, step = plane_of(n, c, i32(g.out_d * g.out_h * g.out_w), g)
            total = zero_of(gy)
            for d in range(fetch(table, i_d), fetch(table, i_d + 1)):
                o_d = fetch(table, d)
                for h in range(fetch(table, g.start_h + i_h), fetch(table, g.start_h + i_h + 1)):
                    o_h = fetch(table, g.start_h + h)
                    factor = fetch(factors, o_d) * fetch(factors, g.out_d + o_h)
                    line = i32(o_d * g.out_h + o_h)
                    for v in range(fetch(table, g.start_w + i_w), fetch(table, g.start_w + i_w + 1)):
                        o_w = fetch(table, g.start_w + v)
                        at = start + np.int64(i32(line * g.out_w + o_w)) * step
                        total += fetch(gy, at) * (factor * fetch(factors, g.out_d + g.out_h + o_w))
            store(gx, n * np.int64(g.channels) * points + index, total)

    return Code(f"mean_gradient.{dtype}", mean_gradient, (dtype, "int32", dtype, dtype), Pooled, 0, THREADS)


# -- plans ----------------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=TABLES_KEPT)
def _window_table(windows: Windows) -> tuple[Any, tuple[int, int]]:
    """The first point of each window along each axis and how many it has; and where h and w begin."""
    parts = [windows.inside(axis).ravel() for axis in range(3)]
    return resident(np.concatenate(parts).astype(np.int32)), (parts[0].size, parts[0].size + parts[1].size)


@functools.lru_cache(maxsize=TABLES_KEPT)
def _covering_table(windows: Windows) -> tuple[Any, tuple[int, int]]:
    """For each axis where the lists of the windows begin that hold a point, counted from the axis's own beginning, and the lists."""
    parts = []
    for axis in range(3):
        offsets, outputs = windows.covering(axis)
        parts.append(np.concatenate([offsets + len(offsets), outputs]))
    return resident(np.concatenate(parts).astype(np.int32)), (parts[0].size, parts[0].size + parts[1].size)


def _pooled(windows: Windows, starts: tuple[int, int], flat: bool) -> Pooled:
    w = windows
    return Pooled._make((w.batch, w.channels, *w.input_size, *w.output_size, *w.dilation, *starts, int(w.channels_last), int(flat)))


def _launch(code: Code, windows: Windows, size: tuple[int, ...], geometry: Pooled) -> Launch:
    """A thread for each element of an image of a size; images in the second axis of the grid, or in turn."""
    largest = windows.channels * max(math.prod(windows.input_size), math.prod(windows.output_size))
    if largest > INDEX_LIMIT:
        raise ValueError(f"images of {largest:,} elements are more than 32-bit indices reach")
    return Launch(code, (-(-windows.channels * math.prod(size) // THREADS), min(windows.batch, MOST_GRID)), geometry)


class Maxima:
    """The maxima of windows, with their places or without."""

    def __init__(self, windows: Windows, dtype: str, with_places: bool, flat: bool):
        self.table, starts = _window_table(windows)
        self.launch = _launch(max_code(dtype, with_places), windows, windows.output_size, _pooled(windows, starts, flat))

    def run(self, stream: Stream, x: Any, y: Any, places: Any = None) -> None:
        """Launch the kernel."""
        self.launch(stream, x, address_of(self.table), y, y if places is None else places)


class Means:
    """The averages of windows; `divisors` are factors along the three axes."""

    def __init__(self, windows: Windows, dtype: str, divisors: Sequence[np.ndarray]):
        self.table, starts = _window_table(windows)
        self.factors = resident(np.concatenate(divisors).astype(dtype))
        geometry = _pooled(windows, starts, False)
        if windows.whole and not windows.channels_last and windows.batch * windows.channels <= INDEX_LIMIT:
            self.launch = Launch(plane_mean_code(dtype), (windows.batch * windows.channels,), geometry, (),
                                 THREADS * np.dtype(dtype).itemsize)
        else:
            self.launch = _launch(mean_code(dtype), windows, windows.output_size, geometry)

    def run(self, stream: Stream, x: Any, y: Any) -> None:
        """Launch the kernel."""
        self.launch(stream, x, address_of(self.table), address_of(self.factors), y)


class MaxGradient:
    """The gradient of maxima whose places are known. A place outside its window counts for nothing."""

    def __init__(self, windows: Windows, dtype: str, flat: bool):
        self.table, starts = _covering_table(windows)
        self.launch = _launch(max_gradient_code(dtype), windows, windows.input_size, _pooled(windows, starts, flat))

    def run(self, stream: Stream, gy: Any, places: Any, gx: Any) -> None:
        """Launch the kernel."""
        self.launch(stream, gy, places, address_of(self.table), gx)


class MeanGradient:
    """The gradient of averages."""

    def __init__(self, windows: Windows, dtype: str, divisors: Sequence[np.ndarray]):
        self.table, starts = _covering_table(windows)
        self.factors = resident((1 / np.concatenate(divisors)).astype(dtype))
        self.launch = _launch(mean_gradient_code(dtype), windows, windows.input_size, _pooled(windows, starts, False))

    def run(self, stream: Stream, gy: Any, gx: Any) -> None:
        """Launch the kernel."""
        self.launch(stream, gy, address_of(self.table), address_of(self.factors), gx)


def codes(dtype: str) -> list[Code]:
    """Every kernel of a type of floats."""
    return [max_code(dtype, False), max_code(dtype, True), mean_code(dtype), plane_mean_code(dtype), max_gradient_code(dtype),
            mean_gradient_code(dtype)]
