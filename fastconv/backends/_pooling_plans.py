"""From the windows of a pooling to a kernel with its constants, to be kept for the next call of the same shape."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from .._windows import Windows
from ._jit import num_threads
from ._max_gradients import NO_TAP, NOWHERE, Held, gather_places, gather_taps, scatter_places, scatter_planes, scatter_taps
from ._mean_gradients import Covered, covering_of, fill_pixels, fill_planes, spread_pixels, spread_rows
from ._pooling import (
    max_images,
    max_pixels,
    max_planes,
    max_rows,
    mean_images,
    mean_pixels,
    mean_planes,
    mean_rows,
    place_each,
    place_pixels,
    place_rows,
)
from ._pooling_rows import LARGEST_PLANE, Rows, numbering_of, rows_of, tables_of
from ._pooling_tasks import SERIAL_STEPS, bind_rows
from ._simd import BoundKernel, lane_count
from ._simd.threads import ParallelKernel

ROW_STEPS = 160  # that a row with channels first takes besides: 20 ns
FEW_OUTPUTS = 1024  # of a plane that are scattered in one run
Divisors = tuple[np.ndarray, np.ndarray, np.ndarray]


def divisors_of(windows: Windows, include_pad: bool, override: int | None = None) -> Divisors:
    """What a window's sum is divided by, as a product of one factor an axis; an empty window's by one."""
    if override is not None:
        lengths = windows.output_size
        return np.full(lengths[0], float(override)), np.ones(lengths[1]), np.ones(lengths[2])
    along = [np.maximum(windows.counts(axis, include_pad), 1).astype(float) for axis in range(3)]
    return along[0], along[1], along[2]


def _padded(factors: np.ndarray, dtype: str) -> np.ndarray:
    """Factors in the computing type, with ones up to a whole vector behind them."""
    lanes = lane_count(dtype)
    padded = np.ones(-(-len(factors) // lanes) * lanes + lanes, dtype)
    padded[:len(factors)] = factors
    return padded


def _ramp(dtype: str, slope: int) -> np.ndarray:
    """0, slope, 2 slope, ... a vector long."""
    return slope * np.arange(lane_count(dtype)).astype(dtype)


def _lines(g: Rows) -> int:
    """Rows of the result."""
    return g.planes * g.out_d * g.out_h


def _steps(windows: Windows, g: Rows) -> int:
    """Steps of elements for a row of the result."""
    kernel = [int(windows.inside(axis)[:, 1].max()) for axis in range(3)]
    steps = g.size_w * kernel[0] * kernel[1] + g.out_w * kernel[2]
    return steps * windows.channels if windows.channels_last else steps + ROW_STEPS


def _images_of(windows: Windows, g: Rows) -> Rows:
    """The sizes where all channels of an image are one plane of pixels."""
    return g._replace(planes=windows.batch)


# -- forward --------------------------------------------------------------------------------------------------------------


def bind_max(windows: Windows, dtype: str) -> BoundKernel:
    """kernel(x, -, -, y)."""
    g = rows_of(windows, dtype)
    if windows.whole:
        if windows.channels_last:
            return _bind_images(max_images, windows, dtype)
        return bind_rows(max_planes, dtype, (g.plane,), g.planes, g.plane)
    if windows.channels_last:
        g = _images_of(windows, g)
        return bind_rows(max_pixels, dtype, (g, windows.channels, *tables_of(windows), _runs(windows)), _lines(g), _steps(windows, g))
    return bind_rows(max_rows, dtype, (g, *tables_of(windows)), _lines(g), _steps(windows, g), scratch=g.length)


def bind_mean(windows: Windows, dtype: str, divisors: Divisors, squares: bool) -> BoundKernel:
    """kernel(x, -, -, y): sums over divisors, or the roots of sums of squares over divisors."""
    g = rows_of(windows, dtype)
    if windows.whole and not squares:
        divisor = np.dtype(dtype).type(math.prod(float(factors[0]) for factors in divisors))
        if windows.channels_last:
            return _bind_images(mean_images, windows, dtype, divisor)
        return bind_rows(mean_planes, dtype, (g.plane, divisor), g.planes, g.plane)
    factors = (*(_padded(values, dtype) for values in divisors), int(squares))
    if windows.channels_last:
        g = _images_of(windows, g)
        constants = (g, windows.channels, *tables_of(windows), _runs(windows, divisors[2]), *factors)
        return bind_rows(mean_pixels, dtype, constants, _lines(g), _steps(windows, g))
    return bind_rows(mean_rows, dtype, (g, *tables_of(windows), *factors), _lines(g), _steps(windows, g), scratch=g.length)


def _runs(windows: Windows, divisors: np.ndarray | None = None) -> np.ndarray:
    """Of each window along a row, how many from it on are a point from each other, of one width and one divisor."""
    first, count = windows.inside(2).T
    like = (np.diff(first) == 1) & (np.diff(count) == 0)
    if divisors is not None:
        like &= np.diff(divisors) == 0
    ends = np.flatnonzero(np.append(~like, True))  # of the runs, whose last window is not like the next
    return ends[np.searchsorted(ends, np.arange(len(first)))] + 1 - np.arange(len(first))


def _bind_images(kernel: ParallelKernel, windows: Windows, dtype: str, *divisor: Any) -> BoundKernel:
    """A kernel of whole images with channels last, cut into runs of channels where images are few."""
    size, width = math.prod(windows.input_size), _width(windows, dtype)
    parts = -(-windows.channels // width)
    return bind_rows(kernel, dtype, (size, windows.channels, width, parts, *divisor), windows.batch * parts, size * width)


def bind_places(windows: Windows, dtype: str, flat: bool) -> BoundKernel:
    """kernel(x, positions, -, y), the positions int64 in memory of x's type."""
    g = rows_of(windows, dtype)
    if g.plane > LARGEST_PLANE.get(dtype, 0):
        rows, steps = _lines(g), _steps(windows, g)
        constants = (_images_of(windows, g), windows.channels, int(windows.channels_last), *tables_of(windows), int(flat))
        return bind_rows(place_each, dtype, constants, rows, steps)
    return _bind_numbered(windows, g, dtype, taps=False, flat=flat)


def has_taps(windows: Windows) -> bool:
    """Whether a byte tells the points of a window apart."""
    return math.prod(windows.largest) <= NO_TAP


def bind_taps(windows: Windows, dtype: str) -> BoundKernel:
    """kernel(x, taps, -, y), the taps in bytes."""
    return _bind_numbered(windows, rows_of(windows, dtype), dtype, taps=True, flat=False)


def _bind_numbered(windows: Windows, g: Rows, dtype: str, taps: bool, flat: bool) -> BoundKernel:
    numbering, firsts = numbering_of(windows, taps)
    numbered = (*tables_of(windows), numbering, *firsts)
    if windows.channels_last:
        g, channels = _images_of(windows, g), windows.channels
        return bind_rows(place_pixels, dtype, (g, channels, *numbered, int(flat)), _lines(g), _steps(windows, g),
                         scratch=channels + lane_count(dtype))
    constants = (g, *numbered, _ramp(dtype, numbering.by_column), int(flat))
    return bind_rows(place_rows, dtype, constants, _lines(g), _steps(windows, g), scratch=3 * g.length)


# -- backward -------------------------------------------------------------------------------------------------------------


def _width(windows: Windows, dtype: str) -> int:
    """Channels of a task where images are cut into runs of channels: enough tasks for all threads, whole cache lines."""
    parts = -(-4 * num_threads() // max(1, windows.batch))
    lanes = lane_count(dtype)
    return max(1, -(-windows.channels // parts // lanes)) * lanes


def bind_mean_gradient(windows: Windows, dtype: str, divisors: Divisors, rooted: bool = False) -> BoundKernel:
    """kernel(gy, -, -, gx), or kernel(gy, y, x, gx) of the roots y of means of squares of x."""
    last, channels = windows.channels_last, windows.channels
    planes = windows.batch if last else windows.batch * channels
    size = math.prod(windows.input_size)
    if windows.whole and not rooted:
        divisor = np.dtype(dtype).type(math.prod(float(factors[0]) for factors in divisors))
        if last:
            return bind_rows(fill_pixels, dtype, (size, channels, divisor), planes * size, channels, scratch=channels)
        return bind_rows(fill_planes, dtype, (size, divisor), planes, size)
    g = covering_of(windows, planes, dtype)
    covered = tuple(Covered(*windows.covering(axis)) for axis in range(3))
    rates = [_padded(1 / factors, dtype) for factors in divisors]
    rows = planes * g.size_d * g.size_h
    if last:
        constants: tuple[Any, ...] = (g, channels, covered, *_columns(windows, dtype), *rates, np.dtype(dtype).type(1), int(rooted))
        return bind_rows(spread_pixels, dtype, constants, rows, 2 * g.size_w * channels, scratch=g.out_w * channels)
    inside = windows.inside(2)
    alike = [_alike(axis) if not rooted else np.zeros(len(axis.offsets) - 1, np.int64) for axis in covered[:2]]
    constants = (g, covered, *alike, inside.reshape(-1), _reaching(inside, g.size_w, lane_count(dtype)), *rates, int(rooted))
    return bind_rows(spread_rows, dtype, constants, rows, 2 * g.size_w + ROW_STEPS, scratch=g.length + 2 * lane_count(dtype))


def _alike(covered: Covered) -> np.ndarray:
    """Of each point of an axis, whether the outputs that look at it are those of the point before: so is the gradient."""
    seen = np.split(covered.outputs, covered.offsets[1:-1])
    return np.array([i > 0 and np.array_equal(seen[i], seen[i - 1]) for i in range(len(seen))], np.int64)


def _columns(windows: Windows, dtype: str) -> tuple[np.ndarray, int]:
    """(first column, number of columns) of the windows of a row, and whether outputs are best taken one by one.

    They are where no two windows have a column in common and channels are few; many are written in their order.
    """
    inside = windows.inside(2)
    first, count = inside[inside[:, 1] > 0].T
    apart = (windows.dilation[2] == 1 or windows.largest[2] == 1) and bool((np.diff(first) >= count[:-1]).all())
    return inside.reshape(-1), int(apart and windows.channels < 4 * lane_count(dtype))


def _reaching(inside: np.ndarray, size: int, lanes: int) -> np.ndarray:
    """(first, end) of the outputs with points in each vector of input columns, and perhaps some without between them."""
    first, count = inside.T
    low = np.arange(0, size, lanes)[:, np.newaxis]
    there = (first < low + lanes) & (first + count > low) & (count > 0)
    end = np.where(there.any(1), len(inside) - there[:, ::-1].argmax(1), 0)
    return np.stack([np.where(end > 0, there.argmax(1), 0), end], axis=1).reshape(-1)


def bind_tap_gradient(windows: Windows, dtype: str) -> BoundKernel:
    """kernel(gy, taps, -, gx)."""
    size = math.prod(windows.input_size)
    images, channels = (windows.batch, windows.channels) if windows.channels_last else (windows.batch * windows.channels, 1)
    if windows.channels_last and 2 * math.prod(windows.output_size) * math.prod(windows.largest) <= min(channels, lane_count(dtype)) * size:
        return _bind_gathered(windows, dtype)
    if windows.whole and not windows.channels_last:
        return bind_rows(scatter_planes, dtype, (size,), images, size)
    parallel = images * channels * size > SERIAL_STEPS
    pitches = [pitch * channels for pitch in (windows.input_size[1] * windows.input_size[2], windows.input_size[2], 1)]
    begins = [windows.begins(axis) * pitch for axis, pitch in enumerate(pitches)]
    steps = [np.arange(k) * d * pitch for k, d, pitch in zip(windows.largest, windows.dilation, pitches, strict=True)]
    reaches = np.full(NO_TAP + 1, NOWHERE)
    reaches[:math.prod(windows.largest)] = _sums(*steps)
    axis = 0 if windows.input_size[0] > 1 else 1  # along which runs of outputs follow each other, and bands
    bands = min(-(-4 * num_threads() // max(1, images)), windows.input_size[axis]) if parallel else 1
    edges, first_runs, end_runs, ends = _bands(windows, axis, bands)
    starts = _sums(*begins[:2])
    if bands == 1 and math.prod(windows.output_size) <= FEW_OUTPUTS:
        starts, begins[2] = np.zeros(1, np.int64), _sums(starts, begins[2])
        ends, first_runs, end_runs = ends[-1:], starts, starts + 1
    constants = (size, channels, bands, len(starts), len(begins[2]), edges * pitches[axis], first_runs, end_runs, starts,
                 ends * pitches[axis], begins[2], reaches, np.arange(channels))
    return bind_rows(scatter_taps, dtype, constants, images * bands, 2 * size * channels // bands)


def _bind_gathered(windows: Windows, dtype: str) -> BoundKernel:
    """The gradient by pixels, which look at all windows that hold them."""
    g = covering_of(windows, windows.batch, dtype)
    held = []
    for axis, pitch in enumerate((windows.largest[1] * windows.largest[2], windows.largest[2], 1)):
        offsets, outputs = windows.covering(axis)
        points = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        held.append(Held(offsets, outputs, (points - windows.begins(axis)[outputs]) // windows.dilation[axis] * pitch))
    rows, steps = g.planes * g.size_d * g.size_h, 2 * g.size_w * windows.channels
    return bind_rows(gather_taps, dtype, (g, windows.channels, *held, *_columns(windows, dtype)), rows, steps)


def _sums(*tables: np.ndarray) -> np.ndarray:
    """The sums of an element of each table, for all choices of them."""
    return functools.reduce(np.add.outer, tables).ravel()


def _bands(windows: Windows, axis: int, bands: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Edges of bands along an axis, the range of the rows of outputs that reach each, and where the reach of each row ends."""
    n, rows = windows.input_size[axis], windows.output_size[1] if axis == 0 else 1
    begins = windows.begins(axis)
    ends = begins + windows.dilation[axis] * (windows.largest[axis] - 1) + 1
    edges = np.arange(bands + 1) * n // bands
    first, end = np.searchsorted(ends, edges[:-1], side="right"), np.searchsorted(begins, edges[1:], side="left")
    return edges, first * rows, end * rows, np.repeat(np.clip(ends, 0, n), rows)


def bind_scatter(windows: Windows, dtype: str, flat: bool, adding: bool) -> BoundKernel:
    """kernel(gy, places, -, gx), which returns 1 if a place lies outside."""
    last, plane, outputs = windows.channels_last, math.prod(windows.input_size), math.prod(windows.output_size)
    images, channels = (windows.batch, windows.channels) if last else (windows.batch * windows.channels, 1)
    width = _width(windows, dtype) if last else 1
    constants = (images, plane, outputs, channels, width, int(flat), int(adding))
    return scatter_places.bind(dtype, constants, parallel=images * channels * plane > SERIAL_STEPS)


def bind_gather(windows: Windows, dtype: str, flat: bool) -> BoundKernel:
    """kernel(gy, places, -, gx), which returns 1 if a place lies outside."""
    last, plane, outputs = windows.channels_last, math.prod(windows.input_size), math.prod(windows.output_size)
    images, channels = (windows.batch, windows.channels) if last else (windows.batch * windows.channels, 1)
    return bind_rows(gather_places, dtype, (images, plane, outputs, channels, int(flat)), images * outputs, 2 * channels)
