"""Batch, group and layer normalisation: y = (x - mean) / sqrt(var + eps) * weight + bias, and its gradients.

An array is seen as (outer, channels, inner). With channels first a group's elements are runs of `inner`: those of one
channel in all images (batch norm), or of some channels of one image (group norm). A task is a group: one pass over
its runs for the statistics, one to write, by which time they lie in the nearer caches. Channels last are `_normalization_rows`.

Mean and variance come from one pass, of x less the group's first element: squares of such differences lose no digits to a
large mean. Blocks of some thousand elements are added in vectors, the blocks' sums in float64.

What a run leaves behind is a table of float64: weight, bias (a number a channel), mean, 1 / sqrt(var + eps), variance (a number
a group), and in the backward pass the sums of gy and of gy (x - mean) over each run.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from ._jit import inlined, outlined
from ._simd import (
    BoundKernel,
    advance,
    as_float64,
    first_lane,
    fma,
    gate,
    get,
    keep_first,
    lanes_of,
    load,
    load_first,
    next_task,
    parallel_kernel,
    put,
    rectify,
    shared_out,
    spread,
    store,
    store_first,
    thawed,
    total,
    zero,
)

BLOCK = 4096  # elements added in the array's own precision: 64 steps of a float32 sum
TASK = 2048  # elements of a task at least
SERIAL_ELEMENTS = 16384  # below which a region takes longer than the sums it shares out
NO_CEILING = math.nan


class Runs(NamedTuple):
    """The runs of each group: group g's run s starts at (g // parts) * outer + (g % parts) * part + s * step."""

    groups: int
    parts: int
    runs: int
    size: int  # elements of a run
    outer: int
    part: int
    step: int
    channel_part: int  # its channel is (g % parts) * channel_part + s * channel_step
    channel_step: int
    channels: int


def batch_runs(images: int, channels: int, inner: int) -> Runs:
    """Groups of a channel each, over all images."""
    return Runs(channels, channels, images, inner, 0, inner, channels * inner, 1, 0, channels)


def group_runs(images: int, channels: int, inner: int, groups: int) -> Runs:
    """Groups of `channels // groups` channels of an image."""
    each = channels // groups
    return Runs(images * groups, groups, each, inner, channels * inner, each * inner, inner, each, 1, channels)


# -- helpers --------------------------------------------------------------------------------------------------------------


@outlined
def moments(source, count, pivot):
    """Sums of source[:count] - pivot and of its squares."""
    lanes = lanes_of(source)
    k = spread(source, pivot)
    a = b = p = q = zero(source)
    whole = count - count % (2 * lanes)
    for i in range(0, whole, 2 * lanes):
        u, v = load(source, i) - k, load(source, i + lanes) - k
        a, b = a + u, b + v
        p, q = fma(u, u, p), fma(v, v, q)
    for i in range(whole, count, lanes):
        u = keep_first(load_first(source, i, count - i) - k, count - i)
        a, p = a + u, fma(u, u, p)
    return total(a + b), total(p + q)


@outlined
def gated_moments(source, gradient, count, mean, scale, shift, slope, ceiling):
    """Sums of gy and of gy (source - mean), gy the gradient through the rectifier of scale * source + shift."""
    lanes = lanes_of(source)
    m, f, s = spread(source, mean), spread(source, scale), spread(source, shift)
    a = b = p = q = zero(source)
    whole = count - count % (2 * lanes)
    for i in range(0, whole, 2 * lanes):
        u, v = load(source, i), load(source, i + lanes)
        g = gate(fma(u, f, s), load(gradient, i), slope, ceiling)
        h = gate(fma(v, f, s), load(gradient, i + lanes), slope, ceiling)
        a, b = a + g, b + h
        p, q = fma(g, u - m, p), fma(h, v - m, q)
    for i in range(whole, count, lanes):
        u = load_first(source, i, count - i)
        g = gate(fma(u, f, s), load_first(gradient, i, count - i), slope, ceiling)
        a, p = a + g, fma(g, u - m, p)
    return total(a + b), total(p + q)


@outlined
def scale_run(source, count, scale, shift, slope, ceiling, target):
    """target[:count] = the rectified scale * source + shift."""
    lanes = lanes_of(source)
    f, s = spread(source, scale), spread(source, shift)
    whole = count - count % lanes
    for i in range(0, whole, lanes):
        store(target, i, rectify(fma(load(source, i), f, s), slope, ceiling))
    if whole < count:
        store_first(target, whole, rectify(fma(load_first(source, whole, count - whole), f, s), slope, ceiling), count - whole)


@outlined
def gradient_run(source, gradient, count, scale, shift, slope, ceiling, by_gradient, by_source, constant, target):
    """target[:count] = by_gradient * gy + by_source * source + constant, with gy as in `gated_moments`."""
    lanes = lanes_of(source)
    f, s = spread(source, scale), spread(source, shift)
    a, b, c = spread(source, by_gradient), spread(source, by_source), spread(source, constant)
    for i in range(0, count, lanes):
        if i + lanes <= count:
            u = load(source, i)
            store(target, i, fma(gate(fma(u, f, s), load(gradient, i), slope, ceiling), a, fma(u, b, c)))
        else:
            u = load_first(source, i, count - i)
            g = gate(fma(u, f, s), load_first(gradient, i, count - i), slope, ceiling)
            store_first(target, i, fma(g, a, fma(u, b, c)), count - i)


@inlined
def run_start(r, g, s):
    """Offset of a group's run."""
    return g // r.parts * r.outer + g % r.parts * r.part + s * r.step


@inlined
def run_channel(r, g, s):
    """The channel that a group's run belongs to."""
    return g % r.parts * r.channel_part + s * r.channel_step


# -- kernels --------------------------------------------------------------------------------------------------------------


@parallel_kernel
def normalize(x, w, bias, y, constants, scratch, counters, thread, threads):
    """y, with the statistics of each group left in the table `bias`; w is weight and bias, one after the other."""
    r, at_once, eps, slope, ceiling = thawed(constants)
    table = as_float64(bias)
    means, scales, variances = advance(table, 2 * r.channels), advance(table, 2 * r.channels + r.groups), \
        advance(table, 2 * r.channels + 2 * r.groups)
    if thread == 0:
        for c in range(2 * r.channels):
            put(table, c, float(get(w, c)))
    for g in shared_out(counters, at_once, r.groups):
        pivot = get(x, run_start(r, g, 0))
        first = second = 0.0
        for s in range(r.runs):
            source = advance(x, run_start(r, g, s))
            for i in range(0, r.size, BLOCK):
                a, b = moments(advance(source, i), min(BLOCK, r.size - i), pivot)
                first, second = first + a, second + b
        count = float(r.runs * r.size)
        variance = max(0.0, (second - first * first / count) / count)
        mean = first / count + pivot
        # a NaN is lost by max
        if second != second:
            variance = second
        scale = 1.0 / math.sqrt(variance + eps)
        put(means, g, mean)
        put(scales, g, scale)
        put(variances, g, variance)
        for s in range(r.runs):
            c = run_channel(r, g, s)
            factor = scale * get(w, c)
            at = run_start(r, g, s)
            scale_run(advance(x, at), r.size, factor, get(w, r.channels + c) - mean * factor, slope, ceiling, advance(y, at))


@parallel_kernel
def normalize_backward(x, w, bias, y, constants, scratch, counters, thread, threads):
    """y = the gradient of x, from w, that of the output, and the table `bias`, where the sums over each run are left."""
    r, at_once, sums, slope, ceiling = thawed(constants)
    table = as_float64(bias)
    means, scales = advance(table, 2 * r.channels), advance(table, 2 * r.channels + r.groups)
    gradients = advance(table, sums)
    products = advance(gradients, r.groups * r.runs)
    for g in shared_out(counters, at_once, r.groups):
        mean, scale = get(means, g), get(scales, g)
        rounding = mean - float(first_lane(spread(x, mean)))  # what the vectors subtract is the rounded mean
        first = second = 0.0
        for s in range(r.runs):
            c = run_channel(r, g, s)
            at = run_start(r, g, s)
            factor = scale * get(table, c)
            shift = get(table, r.channels + c) - mean * factor
            a = b = 0.0
            for i in range(0, r.size, BLOCK):
                u, v = gated_moments(advance(x, at + i), advance(w, at + i), min(BLOCK, r.size - i), mean, factor, shift, slope, ceiling)
                a, b = a + u, b + v
            put(gradients, g * r.runs + s, a)
            b -= rounding * a
            put(products, g * r.runs + s, b * scale)
            first, second = first + a * get(table, c), second + b * get(table, c)
        count = float(r.runs * r.size)
        by_source = -scale * scale * scale * second / count
        constant = -scale * first / count - mean * by_source
        for s in range(r.runs):
            c = run_channel(r, g, s)
            at = run_start(r, g, s)
            factor = scale * get(table, c)
            gradient_run(advance(x, at), advance(w, at), r.size, factor, get(table, r.channels + c) - mean * factor, slope, ceiling,
                         factor, by_source, constant, advance(y, at))


@parallel_kernel
def scale_planes(x, w, bias, y, constants, scratch, counters, thread, threads):
    """y = the rectified scale * x + shift of fixed statistics: w is weight, bias, mean, variance, one after the other."""
    planes, channels, size, eps, run, slope, ceiling = thawed(constants)
    while True:
        first = next_task(counters) * run
        if first >= planes:
            break
        for plane in range(first, min(planes, first + run)):
            c = plane % channels
            factor = get(w, c) / math.sqrt(get(w, 3 * channels + c) + eps)
            shift = get(w, channels + c) - get(w, 2 * channels + c) * factor
            scale_run(advance(x, plane * size), size, factor, shift, slope, ceiling, advance(y, plane * size))


# -- calls ----------------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1024)
def _normalize(runs: Runs, eps: float, dtype: str, slope: float, ceiling: float) -> BoundKernel:
    scalar = np.dtype(dtype).type
    parallel = runs.groups * runs.runs * runs.size > SERIAL_ELEMENTS
    return normalize.bind(dtype, (runs, groups_at_once(runs), eps, scalar(slope), scalar(ceiling)), parallel=parallel)


@functools.lru_cache(maxsize=1024)
def _backward(runs: Runs, dtype: str, slope: float, ceiling: float | None) -> BoundKernel:
    scalar = np.dtype(dtype).type
    parallel = runs.groups * runs.runs * runs.size > SERIAL_ELEMENTS
    constants = (runs, groups_at_once(runs), sums_start(runs), scalar(slope), scalar(NO_CEILING if ceiling is None else ceiling))
    return normalize_backward.bind(dtype, constants, parallel=parallel)


@functools.lru_cache(maxsize=1024)
def _scale(planes: int, channels: int, size: int, eps: float, dtype: str, slope: float, ceiling: float) -> BoundKernel:
    scalar = np.dtype(dtype).type
    constants = (planes, channels, size, eps, max(1, -(-BLOCK // max(1, size))), scalar(slope), scalar(ceiling))
    return scale_planes.bind(dtype, constants, parallel=planes * size > SERIAL_ELEMENTS)


def groups_at_once(runs: Runs) -> int:
    """Groups of a task: of 49 elements each, two threads' counting takes longer than the sums."""
    return max(1, TASK // (runs.runs * max(1, runs.size)))


def sums_start(runs: Runs) -> int:
    """Where the backward pass's sums lie in the table."""
    return 2 * runs.channels + 3 * runs.groups


def normalized(x: np.ndarray, parameters: np.ndarray, runs: Runs, eps: float, rectifier: tuple[float, float],
               ) -> tuple[np.ndarray, np.ndarray]:
    """The normalised array, through a rectifier, and the table; `parameters` are weight and bias, one after the other."""
    y = np.empty(x.shape, x.dtype)
    table = np.empty(sums_start(runs) + 2 * runs.groups * runs.runs)
    _normalize(runs, eps, x.dtype.char, *rectifier)(x.reshape(-1), parameters, table.view(x.dtype), y.reshape(-1))
    return y, table


def normalized_gradient(x: np.ndarray, gy: np.ndarray, table: np.ndarray, runs: Runs, rectifier: tuple[float, float],
                        ) -> tuple[np.ndarray, np.ndarray]:
    """The gradient of x, and the sums over each run: (2, groups, runs), of gy for the bias, gy * normalised x for the weight."""
    gx = np.empty(x.shape, x.dtype)
    slope, ceiling = rectifier
    kernel = _backward(runs, x.dtype.char, slope, None if ceiling == math.inf else ceiling)
    kernel(x.reshape(-1), gy.reshape(-1), table.view(x.dtype), gx.reshape(-1))
    return gx, table[sums_start(runs):].reshape(2, runs.groups, runs.runs)


def scaled(x: np.ndarray, parameters: np.ndarray, channels: int, size: int, eps: float, rectifier: tuple[float, float]) -> np.ndarray:
    """Normalisation by fixed statistics, channels first: `parameters` are weight, bias, mean, variance, one after the other."""
    y = np.empty(x.shape, x.dtype)
    kernel = _scale(x.size // max(1, size), channels, size, eps, x.dtype.char, *rectifier)
    flat = x.reshape(-1)
    kernel(flat, parameters, flat, y.reshape(-1))
    return y
