"""From the windows of a pooling to a kernel with its constants, to be kept for the next call of the same shape."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._windows import Windows
from ._jit import num_threads
from ._max_gradients import FAMILIES, gather_places, gather_rows, scatter_pixels, scatter_places, scatter_rows
from ._mean_gradients import Covering, covering_of, fill_images, spread_pixels, spread_rows
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
from ._pooling_rows import LARGEST_PLANE, Rows, rows_of, tables_of
from ._simd import BoundKernel, lane_count

TASK = 32 * 1024  # steps of elements in a task: some microseconds
SERIAL_STEPS = 24_000  # that one thread has done before a second has started (benchmarks/bench_pool.py, tiny)
BLOCK_BYTES = 64 * 1024  # of the places and values that a block of gathered rows keeps: they stay in the second-level cache
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


def _ramp(dtype: str, step: int) -> np.ndarray:
    """0, 1, 2, ... a vector long, then 0, step, 2 step, ..."""
    lanes = np.arange(lane_count(dtype))
    return np.concatenate([lanes, step * lanes]).astype(dtype)


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
    """kernel(x, places, -, y), the places int64 in memory of x's type."""
    g = rows_of(windows, dtype)
    steps, lines = _steps(windows, g), g.out_d * g.out_h
    parallel = g.planes * lines * steps > SERIAL_STEPS
    if g.plane > LARGEST_PLANE.get(dtype, 0):
        g = _images_of(windows, g)
        constants = (g, windows.channels, int(windows.channels_last), *tables_of(windows), int(flat), _run(g.planes * lines, steps))
        return place_each.bind(dtype, constants, parallel=parallel)
    if windows.channels_last:
        g = _images_of(windows, g)
        run = _run(g.planes * lines, steps * windows.channels)
        constants = (g, windows.channels, *tables_of(windows), int(flat), run)
        return place_pixels.bind(dtype, constants, scratch=windows.channels, parallel=parallel)
    constants = (g, *tables_of(windows), _ramp(dtype, 1), int(flat), _run(g.planes * lines, steps))
    return place_rows.bind(dtype, constants, scratch=5 * g.length, parallel=parallel)


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


def bind_max_gradient(windows: Windows, dtype: str) -> BoundKernel | None:
    """kernel(gy, x, -, gx); None for planes of more elements than the type counts."""
    r = rows_of(windows, dtype)
    if r.plane > LARGEST_PLANE[dtype]:
        return None
    parallel = r.planes * r.plane > SERIAL_STEPS
    tables = tables_of(windows)
    if windows.channels_last:
        constants = (_images_of(windows, r), windows.channels, _width(windows, dtype), *tables)
        return scatter_pixels.bind(dtype, constants, scratch=2 * lane_count(dtype), parallel=parallel)
    g = covering_of(windows, r.planes, dtype)
    if g.stride_w and windows.kernel_size[1] and g.size_d == g.out_d == 1:
        return _bind_gather(windows, r, g, dtype, parallel)
    constants = (r, *tables, _ramp(dtype, 1), _run(r.planes, 2 * r.plane))
    return scatter_rows.bind(dtype, constants, scratch=6 * r.length, parallel=parallel)


def _bind_gather(windows: Windows, r: Rows, g: Covering, dtype: str, parallel: bool) -> BoundKernel:
    offsets, outputs = windows.covering(1)
    stride, reach = windows.stride[1], windows.dilation[1] * (windows.kernel_size[1] - 1)
    rows = max(reach // stride + 1, BLOCK_BYTES // (2 * g.length * np.dtype(dtype).itemsize))
    block = min(g.size_h, rows * stride)
    if r.planes < 4 * num_threads():
        block = min(block, max(reach + 1, -(-g.size_h * r.planes // (4 * num_threads()))))
    most = min(g.out_h, (block + reach) // stride + 2)
    family = FAMILIES.get((g.kernel_w, g.stride_w, g.low_w), 0) if g.step_w == 1 else 0
    scratch = 5 * r.length + 2 * lane_count(dtype) + 2 * most * g.length
    constants = (r, g, *tables_of(windows), offsets, outputs, _ramp(dtype, g.stride_w), block, -(-g.size_h // block), most, family)
    return gather_rows.bind(dtype, constants, scratch=scratch, parallel=parallel)


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
