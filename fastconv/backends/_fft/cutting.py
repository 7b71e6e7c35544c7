"""Which tiles: the lengths of their transforms, how many there are, and what they cost.

A tile of T positions makes T - extent + 1 outputs of a kernel that reaches over `extent`; one that holds the whole image makes
them all as soon as what wraps around is zero. Among all pairs of lengths the one of the least predicted work is taken.
Work is counted in floating-point operations at the multiply-add peak.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from ...problem import Problem
from .._jit import num_threads
from .._simd import lane_count
from .codelets import LENGTHS, SUM_ROWS

# Fitted together to 300 random problems' runs and packings, by least squares of the relative error; the rows named show each best.
TRANSFORM_WORK = 58  # of a complex point, an axis: both passes and half a transposition (benchmarks/bench_conv.py, filter_31x31)
STAGE_WORK = 18  # of a point staged or stored (bench_conv.py, filter_31x31)
SUM_WORK = 16  # of a complex product in register tiles (bench_conv.py, large_15x15)
LOCAL_WORK, FAR_LOCAL_WORK = 10, 100  # of one that is not, its kernels' spectra in a second-level cache or beyond (bench_conv.py, seed_5x5)
SCATTER_WORK = 10  # of a complex point written for, or read from, the matrix products (bench_conv.py, large_15x15)
READ_WORK, FAR_READ_WORK = 0.5, 12  # of a byte of the kernels' spectra within the last-level cache and beyond (bench_conv.py, large_15x15)
WRITE_WORK = 50  # of a byte of the tiles' spectra written beyond half that cache (bench_conv.py, large_15x15)
PACK_WORK = 18  # of a byte of the kernels' spectra written there (the same)
SUMS_WORK, FAR_SUMS_WORK = 3, 36  # of a byte of a weight gradient's spectra, within half that cache and beyond (400 of those)
SERIAL_WORK = 2_400_000  # below which one thread is done before a second has started (benchmarks/bench_conv.py, tiny)
SECOND_LEVEL_BYTES = 768 * 1024
LAST_LEVEL_BYTES = 24e6  # of spectra that a last-level cache of 32 MiB keeps from run to run
TILE_WORK = 16_000  # of a tile's calls (bench_conv.py, depthwise_31x31)
CACHED_BYTES = 1.5e6  # of tile, staged tile and kernel's spectrum that would double a tile's time (bench_conv.py, filter_65x65)
POWER_OF_TWO = 1.13  # columns of 128 or 256 meet in a few cache sets (bench_conv.py, filter_31x31)
PACKED_SHARE = 0.25  # of the kernels' transforms: plans make them once, plain calls at each call
MOST_TURNED_BYTES = 64 * 1024 * 1024  # of images in the other layout: bounds scratch
FEWEST_TURNED = 8  # channels of a result: fewer are sooner written one by one
TURN_WORK = 12  # of a byte turned (bench_conv.py, depthwise_31x31 with channels last)
SHARES_PER_THREAD = 4  # of a weight gradient's tiles
MOST_LOCAL = 4  # channels, in or out, up to which a group's products stay within the tile


class Axis(NamedTuple):
    """One axis as tiles see it."""

    outputs: int  # dense ones, before the stride
    extent: int  # positions that the kernel reaches over
    stride: int
    whole: int  # shortest tile that makes all outputs


class Cut(NamedTuple):
    """The tiles of a problem."""

    line: bool
    axes: tuple[int, int]  # of the three spatial ones, those that are tiled
    rows: int  # of the complex tile: half the real one's
    columns: int
    tiles: tuple[int, int]
    step: tuple[int, int]  # dense outputs of a tile
    run: float  # work of a run and of packing the second operand
    pack: float


def tiled_axes(problem: Problem) -> tuple[int, ...]:
    """The spatial axes with more than one point."""
    p = problem
    axes = zip(p.input_size, p.kernel_size, p.padding, strict=True)
    return tuple(axis for axis, (size, kernel, pads) in enumerate(axes) if size != 1 or kernel != 1 or any(pads))


def axis_of(problem: Problem, axis: int) -> Axis:
    """An axis of a forward problem or a weight gradient, whose tiles are subject to the same conditions."""
    p = problem
    low, _ = p.padding[axis]
    outputs = (p.output_size[axis] - 1) * p.stride[axis] + 1
    extent = p.dilation[axis] * (p.kernel_size[axis] - 1) + 1
    whole = outputs + extent - 1
    if p.padding_mode == "zeros":
        # Positions that wrap around are zeros of the border that fall on zeros of the other border.
        whole = min(whole, max(low + p.input_size[axis], whole - low))
    return Axis(outputs, extent, p.stride[axis], max(whole, outputs, extent))


def is_local(problem: Problem) -> bool:
    """Whether a tile's channels are multiplied while it is in the cache: no matrix products worth the name."""
    least, most = sorted((problem.group_in, problem.group_out))
    if problem.pass_name == "grad_weight":
        return most == 1
    return least < MOST_LOCAL and problem.group_in <= 4 * MOST_LOCAL


def is_turned(problem: Problem) -> bool:
    """Whether a channels-last problem is computed with channels first: copies small, and results of more than a few channels."""
    p = problem
    moved = (math.prod(p.input_shape) + math.prod(p.output_shape)) * p.itemsize
    channels = max(p.in_channels, p.out_channels) if p.pass_name == "grad_weight" else p.out_channels
    fewest = 2 if p.pass_name == "grad_weight" else FEWEST_TURNED
    return p.channels_last and channels >= fewest and moved <= MOST_TURNED_BYTES


@functools.lru_cache(maxsize=1024)
def cut_tiles(problem: Problem) -> Cut:
    """The cheapest tiles of a forward problem or a weight gradient."""
    p = problem
    found = tiled_axes(p)
    line = len(found) < 2
    w_axis = found[-1] if found else 2
    h_axis = found[0] if not line else next(axis for axis in range(3) if axis != w_axis)
    lanes = lane_count(p.dtype)
    rows = np.array(LENGTHS)[:, None]
    columns = np.array([n for n in LENGTHS if n >= lanes])[None, :]
    h, w = axis_of(p, h_axis), axis_of(p, w_axis)
    if line:
        step_w, fits = _steps(w, 2 * rows * columns)
        step_h = np.ones_like(step_w)
    else:
        (step_h, fits_h), (step_w, fits_w) = _steps(h, 2 * rows), _steps(w, columns + 0 * rows)
        fits = fits_h & fits_w
    step_h, step_w = np.maximum(step_h, 1), np.maximum(step_w, 1)
    tiles_h, tiles_w = -(-h.outputs // step_h), -(-w.outputs // step_w)
    run, pack = _work(p, rows, columns, tiles_h * tiles_w, w, step_w, line)
    total = np.where(fits, run + PACKED_SHARE * pack, np.inf)
    best = np.unravel_index(int(total.argmin()), total.shape)
    if not math.isfinite(total[best]):
        raise ValueError(f"no tile holds a kernel that reaches over {h.extent} x {w.extent} positions")
    down, across = (int(np.broadcast_to(tiles, total.shape)[best]) for tiles in (tiles_h, tiles_w))
    return Cut(line, (h_axis, w_axis), int(rows[best[0], 0]), int(columns[0, best[1]]), (down, across),
               (_even(h, down), _even(w, across)), float(run[best]), float(np.broadcast_to(pack, total.shape)[best]))


def _steps(axis: Axis, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Dense outputs of a tile by its length, a multiple of the stride where there are several, and whether there are any."""
    several = (lengths - axis.extent + 1) // axis.stride * axis.stride
    steps = np.where(lengths >= axis.whole, axis.outputs, several)
    return steps, (lengths >= axis.extent) & (steps > 0)


def _even(axis: Axis, tiles: int) -> int:
    """Outputs of a tile where `tiles` share them evenly."""
    each = -(-axis.outputs // tiles)
    return -(-each // axis.stride) * axis.stride


def _work(p: Problem, rows: np.ndarray, columns: np.ndarray, tiles: np.ndarray, axis: Axis, step: np.ndarray,
          line: bool) -> tuple[np.ndarray, np.ndarray]:
    """Operations of a run and of packing, of all threads together."""
    lanes = lane_count(p.dtype)
    padded = -(-rows // lanes) * lanes
    tiles = tiles * p.batch
    spectrum = padded * columns  # complex points

    def transform(width: np.ndarray | int) -> np.ndarray:
        """Work of transforming a tile of which `width` columns hold anything, staging included."""
        strips = -(-np.minimum(columns if line else width, columns) // lanes) * lanes
        return TRANSFORM_WORK * (padded * strips + spectrum) + STAGE_WORK * 2 * rows * strips + TILE_WORK

    local = is_local(p)
    pairs = p.out_channels * p.group_in
    products = pairs if local else p.groups * -(-p.group_out // SUM_ROWS) * SUM_ROWS * p.group_in
    bytes_near = (rows * columns * (2 if local and pairs > p.groups else 1) * 2 + 2 * rows * columns) * p.itemsize
    crowding = (1 + bytes_near / CACHED_BYTES) * np.where((columns & (columns - 1) == 0) & (columns >= 128), POWER_OF_TWO, 1)
    scatter = 0 if local else SCATTER_WORK * spectrum
    kernel_bytes = 2 * p.itemsize * spectrum * products
    columns_shared = np.clip(tiles if p.pass_name == "forward" else p.group_in, 1, 3)  # by each load of a register tile
    local_product = np.where(kernel_bytes > SECOND_LEVEL_BYTES, FAR_LOCAL_WORK, LOCAL_WORK) if pairs > p.groups else LOCAL_WORK
    product = spectrum * (local_product if local else SUM_WORK * (0.6 + 1.2 / columns_shared))
    reads = READ_WORK * kernel_bytes + FAR_READ_WORK * np.maximum(kernel_bytes - LAST_LEVEL_BYTES, 0)
    reads = reads + FAR_READ_WORK * max(0.0, p.bytes - LAST_LEVEL_BYTES / 2)
    if not local:
        tile_bytes = 2 * p.itemsize * spectrum * tiles * (p.in_channels + p.out_channels)
        reads = reads + WRITE_WORK * np.maximum(tile_bytes - LAST_LEVEL_BYTES / 2, 0)
    turned = TURN_WORK * p.itemsize * (math.prod(p.input_shape) + math.prod(p.output_shape)) if is_turned(p) else 0
    reads = reads + turned
    into = crowding * p.in_channels * (transform(columns) + scatter)
    if p.pass_name == "forward":
        run = tiles * (into + crowding * p.out_channels * (transform(step) + scatter) + products * product) + reads
        return run, pairs * (transform(axis.extent) + scatter) * crowding + PACK_WORK * np.maximum(kernel_bytes - LAST_LEVEL_BYTES / 2, 0)
    shares = np.minimum(tiles, SHARES_PER_THREAD * num_threads() / p.groups) if local else 1  # each of which transforms its sums back
    lags = np.maximum(1, shares) * pairs * crowding * (transform(axis.extent) + scatter)
    if not local:  # the products of all tiles are written, and read back
        lags = lags + SUMS_WORK * kernel_bytes + FAR_SUMS_WORK * np.maximum(kernel_bytes - LAST_LEVEL_BYTES / 2, 0)
    gradients = crowding * p.out_channels * (transform(step) + scatter)
    return tiles * (into + gradients + products * product) + lags + reads, 0 * spectrum
