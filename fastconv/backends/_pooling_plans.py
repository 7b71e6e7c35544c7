"""From the windows of a pooling to a kernel with its constants, to be kept for the next call of the same shape."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from .._windows import Windows
from ._jit import num_threads
from ._max_gradients import NO_TAP, NOWHERE, gather_places, scatter_places, scatter_taps
from ._mean_gradients import covering_of, fill_images, spread_pixels, spread_rows
from ._pooling import (
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
from ._simd import BoundKernel, lane_count

TASK = 32 * 1024  # steps of elements in a task: some microseconds
SERIAL_STEPS = 24_000  # that one thread has done before a second has started (benchmarks/bench_pool.py, tiny)
FEW_OUTPUTS = 1024  # of a plane that are scattered in one run
Divisors = tuple[np.ndarray, np.ndarray, np.ndarray]


def divisors_of(windows: Windows, include_pad: bool, override: int | None = None) -> Divisors:
    """What a window's sum is divided by, as a product of one factor an axis; an empty window's by one."""
    if override is not None:
        lengths = windows.output_size
        return np.full(lengths[0], float(override)), np.ones(lengths[1]), np.ones(lengths[2])
    along = [np.maximum(windows.counts(axis, include_pad), 1).astype(float) for axis in range(3)]
    return along[0], along[1], along[2]


def _run(rows: int, steps: int) -> int:
    """Rows of a task."""
    return max(1, min(TASK // max(1, steps), -(-rows // 8)))


def _padded(factors: np.ndarray, dtype: str) -> np.ndarray:
    """Factors in the computing type, with ones up to a whole vector behind them."""
    lanes = lane_count(dtype)
    padded = np.ones(-(-len(factors) // lanes) * lanes + lanes, dtype)
    padded[:len(factors)] = factors
    return padded


def _ramp(dtype: str, slope: int) -> np.ndarray:
    """0, slope, 2 slope, ... a vector long."""
    return slope * np.arange(lane_count(dtype)).astype(dtype)


def _steps(windows: Windows, g: Rows) -> int:
    """Steps of elements for a row of the result."""
    kernel = [int(windows.inside(axis)[:, 1].max()) for axis in range(3)]
    return g.size_w * kernel[0] * kernel[1] + g.out_w * kernel[2]


def _images_of(windows: Windows, g: Rows) -> Rows:
    """The sizes where all channels of an image are one plane of pixels."""
    return g._replace(planes=windows.batch)


# -- forward --------------------------------------------------------------------------------------------------------------


def bind_max(windows: Windows, dtype: str) -> BoundKernel:
    """kernel(x, -, -, y)."""
    g = rows_of(windows, dtype)
    steps, lines = _steps(windows, g), g.out_d * g.out_h
    if windows.channels_last:
        steps *= windows.channels
        g = _images_of(windows, g)
        run = _run(g.planes * lines, steps)
        return max_pixels.bind(dtype, (g, windows.channels, *tables_of(windows), run), parallel=g.planes * lines * steps > SERIAL_STEPS)
    if windows.whole:
        return max_planes.bind(dtype, (g.planes, g.plane, _run(g.planes, g.plane)), parallel=g.planes * g.plane > SERIAL_STEPS)
    constants = (g, *tables_of(windows), _run(g.planes * lines, steps))
    return max_rows.bind(dtype, constants, scratch=g.length, parallel=g.planes * lines * steps > SERIAL_STEPS)


def bind_mean(windows: Windows, dtype: str, divisors: Divisors, squares: bool) -> BoundKernel:
    """kernel(x, -, -, y): sums over divisors, or the roots of sums of squares over divisors."""
    constants: tuple[Any, ...]
    g = rows_of(windows, dtype)
    steps, lines = _steps(windows, g), g.out_d * g.out_h
    divisor = np.dtype(dtype).type(math.prod(float(factors[0]) for factors in divisors))
    if windows.whole and not squares:
        parallel = g.planes * g.plane > SERIAL_STEPS
        if not windows.channels_last:
            return mean_planes.bind(dtype, (g.planes, g.plane, divisor, _run(g.planes, g.plane)), parallel=parallel)
        width = _width(windows, dtype)
        constants = (windows.batch, g.plane, windows.channels, divisor, width, -(-windows.channels // width))
        return mean_images.bind(dtype, constants, parallel=parallel)
    factors = tuple(_padded(values, dtype) for values in divisors)
    if windows.channels_last:
        steps *= windows.channels
        g = _images_of(windows, g)
        constants = (g, windows.channels, *tables_of(windows), *factors, int(squares), _run(g.planes * lines, steps))
        return mean_pixels.bind(dtype, constants, parallel=g.planes * lines * steps > SERIAL_STEPS)
    constants = (g, *tables_of(windows), *factors, int(squares), _run(g.planes * lines, steps))
    return mean_rows.bind(dtype, constants, scratch=g.length, parallel=g.planes * lines * steps > SERIAL_STEPS)


def bind_places(windows: Windows, dtype: str, flat: bool) -> BoundKernel:
    """kernel(x, positions, -, y), the positions int64 in memory of x's type."""
    g = rows_of(windows, dtype)
    if g.plane > LARGEST_PLANE.get(dtype, 0):
        steps, rows = _steps(windows, g), g.planes * g.out_d * g.out_h
        g = _images_of(windows, g)
        constants = (g, windows.channels, int(windows.channels_last), *tables_of(windows), int(flat), _run(rows, steps))
        return place_each.bind(dtype, constants, parallel=rows * steps > SERIAL_STEPS)
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
    steps, lines = _steps(windows, g), g.out_d * g.out_h
    parallel = g.planes * lines * steps > SERIAL_STEPS
    if windows.channels_last:
        g, channels = _images_of(windows, g), windows.channels
        constants: tuple[Any, ...] = (g, channels, *numbered, int(flat), _run(g.planes * lines, steps * channels))
        return place_pixels.bind(dtype, constants, scratch=channels + lane_count(dtype), parallel=parallel)
    constants = (g, *numbered, _ramp(dtype, numbering.by_column), int(flat), _run(g.planes * lines, steps))
    return place_rows.bind(dtype, constants, scratch=3 * g.length, parallel=parallel)


# -- backward -------------------------------------------------------------------------------------------------------------


def _width(windows: Windows, dtype: str) -> int:
    """Channels of a task where images are cut into runs of channels: enough tasks for all threads, whole cache lines."""
    parts = -(-4 * num_threads() // max(1, windows.batch))
    lanes = lane_count(dtype)
    return max(1, -(-windows.channels // parts // lanes)) * lanes


def bind_mean_gradient(windows: Windows, dtype: str, divisors: Divisors) -> BoundKernel:
    """kernel(gy, -, -, gx)."""
    constants: tuple[Any, ...]
    last, channels = windows.channels_last, windows.channels
    images = windows.batch if last else windows.batch * channels
    g = covering_of(windows, images, dtype)
    size = math.prod(windows.input_size)
    parallel = windows.batch * channels * size > SERIAL_STEPS
    if windows.whole:
        divisor = np.dtype(dtype).type(math.prod(float(factors[0]) for factors in divisors))
        constants = (images, size, channels, int(last), divisor, _run(images, size * channels if last else size))
        return fill_images.bind(dtype, constants, scratch=channels if last else 0, parallel=parallel)
    tables = tuple(table for axis in range(3) for table in windows.covering(axis))
    reciprocals = [_padded(1 / factors, dtype) for factors in divisors]
    rows = images * g.size_d * g.size_h
    if last:
        constants = (g, channels, tables, *reciprocals, _run(rows, g.size_w * channels))
        return spread_pixels.bind(dtype, constants, parallel=parallel)
    constants = (g, tables, *reciprocals[:2], _padded(divisors[2], dtype), _run(rows, 2 * g.size_w))
    return spread_rows.bind(dtype, constants, scratch=g.length + 2 * lane_count(dtype), parallel=parallel)


def bind_tap_gradient(windows: Windows, dtype: str) -> BoundKernel:
    """kernel(gy, taps, -, gx)."""
    size = math.prod(windows.input_size)
    images, channels = (windows.batch, windows.channels) if windows.channels_last else (windows.batch * windows.channels, 1)
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
    constants = (images, size, channels, bands, len(starts), len(begins[2]), edges * pitches[axis], first_runs, end_runs, starts,
                 ends * pitches[axis], begins[2], reaches, np.arange(channels), _run(images * bands, 2 * size * channels // bands))
    return scatter_taps.bind(dtype, constants, parallel=parallel)


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
    constants = (images, plane, outputs, channels, int(flat), _run(images * outputs, 2 * channels))
    return gather_places.bind(dtype, constants, parallel=images * channels * outputs > SERIAL_STEPS)
