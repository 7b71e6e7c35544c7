"""The passes of a convolution on the engine: what its kernels are given, problem by problem."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ...problem import Problem
from .._boxes import strides_of
from .._gemm import epilogue_of
from .._jit import num_threads
from .._phases import GradInputByPhases
from .._scratch import operand, shared
from .._simd.threads import COUNTER_PITCH, BoundKernel, ParallelKernel
from .._weights import JointLayout, WeightLayout, forward_layout
from .codelets import SUM_COLUMNS, SUM_ROWS, sum_addresses
from .cutting import SERIAL_WORK, SHARES_PER_THREAD, cut_tiles, is_local, is_turned, tiled_axes
from .kernels import (
    Layout,
    Product,
    convolve_tiles,
    correlate_tiles,
    invert_sums,
    multiply_spectra,
    transform_grids,
    transform_inputs,
    turn_matrices,
)
from .tiles import Grid, Window
from .transform import make_transform

BLOCK_BYTES = 32 * 1024 * 1024  # of spectra of tiles at once: bounds scratch, and a 32 MiB last-level cache keeps them
BLOCKS_KEPT = 64  # bound kernels of a problem; those of more blocks are bound anew in each run
TASKS_PER_THREAD = 8  # of matrix products, whose factors are better read in long runs
SERIAL_TURN = 20_000  # elements that one thread turns sooner than a region starts: 2 us at 40 GB/s
TURNED_COLUMNS, TURNED_ELEMENTS = 1024, 8192  # of a block that is turned: within the first-level cache


def turned_layout(problem: Problem) -> WeightLayout:
    """Channels-last weights turned into (C/G, O, kd, kh, kw)."""
    p = problem
    kd, kh, kw = p.kernel_size
    points = kd * kh * kw
    return WeightLayout(0, p.group_out * points, points, p.out_channels * points, (kh * kw, kw, 1))


class _Engine:
    """What the forward pass and the weight gradient share: the tiles, their transform, the tiles of the input."""

    def __init__(self, problem: Problem):
        p = self.problem = problem
        cut = self.cut = cut_tiles(p)
        self.threads = num_threads()
        self.parallel, self.parallel_packing = cut.run > SERIAL_WORK, cut.pack > SERIAL_WORK
        self.transform, self.table = make_transform(cut.rows, cut.columns, cut.line, p.dtype)
        self.pair = 2 * self.transform.lanes
        self.local = is_local(p)
        sources = p.border_sources()
        self.borders = sources[cut.axes[0]], sources[cut.axes[1]]
        self.tiles = p.batch * math.prod(cut.tiles)
        self.blocks = -(-p.group_out // SUM_ROWS)
        self.frequencies = self.transform.blocks * self.transform.columns  # vectors of a tile
        self.epilogue = epilogue_of(p)
        self.no_bias = np.zeros(max(1, p.out_channels), p.dtype)
        self.window = self._window()
        self.grid = self._output_grid()

    def _window(self) -> Window:
        p, (h, w) = self.problem, self.cut.axes
        image, channel, *spatial = strides_of(p.in_channels, p.input_size, p.channels_last)
        numbers: tuple[int, ...] = (
            0, self.tiles, p.in_channels, *self.cut.tiles, *self.cut.step, image, channel, spatial[h], spatial[w], p.padding[w][0],
            p.input_size[w], int(p.padding_mode == "zeros"), p.padded_size[h], p.padded_size[w])
        return Window(*numbers)

    def _output_grid(self) -> Grid:
        """The tiles of y or gy."""
        p, (h, w) = self.problem, self.cut.axes
        image, channel, *spatial = strides_of(p.out_channels, p.output_size, p.channels_last)
        points = [-(-step // p.stride[axis]) for step, axis in zip(self.cut.step, (h, w), strict=True)]
        numbers: tuple[int, ...] = (
            0, self.tiles, p.groups, p.group_out, *self.cut.tiles, *points, p.output_size[h], p.output_size[w], p.stride[h], p.stride[w],
            0, image, p.group_out * channel, channel, spatial[h], spatial[w])
        return Grid(*numbers)

    def kernel_grid(self, layout: WeightLayout) -> Grid:
        """Kernels, or gw: one tile for each input channel."""
        p, (h, w) = self.problem, self.cut.axes
        size = p.kernel_size[h], p.kernel_size[w]
        numbers: tuple[int, ...] = (
            0, p.group_in, p.groups, p.group_out, 1, 1, *size, *size, p.dilation[h], p.dilation[w], layout.start, layout.channel,
            layout.group, layout.output, layout.taps[h], layout.taps[w])
        return Grid(*numbers)

    def bind(self, kernel: ParallelKernel, constants: tuple[Any, ...], tiles: int = 1, parallel: bool | None = None) -> BoundKernel:
        """A kernel that works on tiles, with so many transformed ones besides the staged one."""
        t = self.transform
        return kernel.bind(self.problem.dtype, (t, self.table, *constants), scratch=t.staged + t.strip + tiles * t.spectrum,
                           counters=self.threads * COUNTER_PITCH,
                           parallel=self.parallel if parallel is None else parallel)

    def matrices(self, depth: int, rows: int, block_rows: int) -> Layout:
        """Layout of a factor of the matrix products, a matrix of rows x depth for each group, in blocks of rows."""
        block = depth * block_rows * self.pair
        group = -(-rows // block_rows) * block
        return Layout(self.odd_lines(self.problem.groups * group), group, block, block_rows, block_rows * self.pair)

    def sums(self, columns: int) -> Layout:
        """Layout of the products: a matrix of outputs x columns for each group."""
        outputs = self.blocks * SUM_ROWS * columns * self.pair
        return Layout(self.odd_lines(self.problem.groups * outputs), outputs, columns * self.pair, 1, self.pair)

    def odd_lines(self, count: int) -> int:
        """A pitch that is no multiple of many cache sets."""
        return count + self.transform.lanes

    def product(self, depth: int, columns: int, x: Layout, w: Layout, y: Layout, going_on: bool) -> BoundKernel:
        """The matrix products over all frequencies."""
        groups = self.problem.groups
        shares = max(1, -(-TASKS_PER_THREAD * self.threads // (groups * self.frequencies)))
        product = Product(groups, self.frequencies, self.blocks, max(1, self.blocks // shares), depth, columns, x, w, y.frequency, y.group,
                          y.block, going_on)
        return multiply_spectra.bind(self.problem.dtype, (product, sum_addresses(self.problem.dtype)),
                                     counters=self.threads * COUNTER_PITCH, parallel=self.parallel)

    def most_tiles(self) -> int:
        """Tiles of all channels whose spectra are in memory at once."""
        p = self.problem
        channels = p.in_channels + p.groups * self.blocks * SUM_ROWS
        return min(self.tiles, max(1, BLOCK_BYTES // (channels * self.transform.spectrum * p.itemsize)))


class Block(NamedTuple):
    """The kernels of a block of tiles and the sizes of the spectra between them."""

    steps: tuple[BoundKernel, ...]
    sizes: tuple[int, ...]


class Forward(_Engine):
    """The forward pass; `pack` makes the kernels' spectra, from weights that lie anywhere."""

    def __init__(self, problem: Problem, weights: WeightLayout):
        super().__init__(problem)
        p, t = self.problem, self.transform
        kernels = self.kernel_grid(weights)
        if self.local:
            self.layout = Layout(self.pair, p.group_out * p.group_in * t.spectrum, p.group_in * t.spectrum, 1, t.spectrum)
            self.spectra = p.out_channels * p.group_in * t.spectrum
            many = 1 if p.group_in * p.group_out == 1 else 1 + p.group_in
            self.kernel = self.bind(convolve_tiles, (self.window, self.borders, self.grid, self.epilogue), many)
            self.scratch_bytes = self.kernel.scratch_bytes(self.threads)
        else:
            self.layout = self.matrices(p.group_in, p.group_out, SUM_ROWS)
            self.spectra = self.layout.frequency * self.frequencies
            most = self.most_tiles()
            self.blocks_of_tiles = [(first, min(most, self.tiles - first)) for first in range(0, self.tiles, most)]
            self.block = functools.lru_cache(BLOCKS_KEPT)(self._block)
            steps, sizes = self.block(*self.blocks_of_tiles[0])
            self.scratch_bytes = sum(sizes) * p.itemsize + steps[0].scratch_bytes(self.threads)
        self.transform_kernels = self.bind(transform_grids, (kernels, self.layout), parallel=self.parallel_packing)

    def _block(self, first: int, count: int) -> Block:
        p = self.problem
        x, y = self.matrices(p.group_in, count, _share_columns(count)), self.sums(count)
        window, grid = self.window._replace(begin=first, amount=count), self.grid._replace(begin=first, amount=count)
        steps = (self.bind(transform_inputs, (window, self.borders, x, p.group_in, False)),
                 self.product(p.group_in, count, x, self.layout, y, False), self.bind(invert_sums, (grid, y, self.epilogue)))
        return Block(steps, (x.frequency * self.frequencies, y.frequency * self.frequencies))

    def pack(self, w: np.ndarray) -> np.ndarray:
        spectra = operand(self.spectra, self.problem.dtype)
        self.transform_kernels(w.reshape(-1), self.no_bias, self.no_bias, spectra)
        return spectra

    def run(self, x: np.ndarray, packed: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> bool:
        bias = self.no_bias if bias is None else bias
        if self.local:
            return not self.kernel(x, packed, bias, out)
        x, out = x.reshape(-1), out.reshape(-1)
        finite = True
        for place in self.blocks_of_tiles:
            (to_spectra, product, from_spectra), sizes = self.block(*place)
            inputs, sums = between(sizes, self.problem.dtype)
            to_spectra(x, bias, bias, inputs)
            product(inputs, packed, bias, sums)
            finite &= not from_spectra(sums, bias, bias, out)
        return finite


class GradWeight(_Engine):
    """The weight gradient: gy's tiles are the kernels, gw the lags of their correlations with x's tiles."""

    def __init__(self, problem: Problem, weights: WeightLayout):
        super().__init__(problem)
        p = self.problem
        self.result = self.kernel_grid(weights)
        if self.local:
            self.shares = max(1, min(self.tiles, -(-SHARES_PER_THREAD * self.threads // p.groups)))
            size = math.prod(p.weight_shape)
            constants = self.window, self.borders, self.grid, self.result, self.epilogue, self.shares, size
            self.kernel = self.bind(correlate_tiles, constants, 3)
            self.scratch_bytes = self.kernel.scratch_bytes(self.threads) + (self.shares * size * p.itemsize if self.shares > 1 else 0)
        else:
            most = self.most_tiles()
            self.sum_layout = self.sums(p.group_in)
            self.blocks_of_tiles = [(first, min(most, self.tiles - first), most) for first in range(0, self.tiles, most)]
            self.block = functools.lru_cache(BLOCKS_KEPT)(self._block)
            _, sizes = self.block(*self.blocks_of_tiles[0])
            self.invert = self.bind(invert_sums, (self.result, self.sum_layout, self.epilogue))
            self.scratch_bytes = sum(sizes) * p.itemsize + self.invert.scratch_bytes(self.threads)

    def _block(self, first: int, count: int, most: int) -> Block:
        p = self.problem
        x, w = self.matrices(most, p.group_in, _share_columns(p.group_in)), self.matrices(most, p.group_out, SUM_ROWS)
        window, grid = self.window._replace(begin=first, amount=count), self.grid._replace(begin=first, amount=count)
        steps = (self.bind(transform_inputs, (window, self.borders, x, p.group_in, True)), self.bind(transform_grids, (grid, w)),
                 self.product(count, p.group_in, x, w, self.sum_layout, first > 0))
        return Block(steps, tuple(layout.frequency * self.frequencies for layout in (x, w, self.sum_layout)))

    def pack(self, gy: np.ndarray) -> np.ndarray:
        """Nothing: gy is new at each call."""
        return gy

    def run(self, x: np.ndarray, packed: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> bool:
        x, gy, gw = x.reshape(-1), packed.reshape(-1), out.reshape(-1)
        if self.local:
            return self._run_local(x, gy, gw)
        for place in self.blocks_of_tiles:
            (x_to_spectra, gy_to_spectra, product), sizes = self.block(*place)
            inputs, grids, sums = between(sizes, self.problem.dtype)
            x_to_spectra(x, self.no_bias, self.no_bias, inputs)
            gy_to_spectra(gy, self.no_bias, self.no_bias, grids)
            product(inputs, grids, self.no_bias, sums)
        return not self.invert(sums, self.no_bias, self.no_bias, gw)

    def _run_local(self, x: np.ndarray, gy: np.ndarray, gw: np.ndarray) -> bool:
        if self.shares == 1:
            return not self.kernel(x, gy, self.no_bias, gw)
        parts = np.empty(self.shares * gw.size, gw.dtype)
        if self.kernel(x, gy, self.no_bias, parts):
            return False
        with np.errstate(over="ignore"):
            np.sum(parts.reshape(self.shares, gw.size), axis=0, out=gw)
        return bool(np.isfinite(gw).all())


def _share_columns(columns: int) -> int:
    """Columns of a register tile of sums, so that all tiles have about as many."""
    return -(-columns // -(-columns // SUM_COLUMNS))


def between(sizes: tuple[int, ...], dtype: str) -> list[np.ndarray]:
    """Spectra that live from one kernel of a run to the next."""
    whole = shared("spectra", sum(sizes), dtype)
    ends = np.cumsum(sizes).tolist()
    return [whole[end - size:end] for size, end in zip(sizes, ends, strict=True)]


class Turned:
    """A channels-last problem as a channels-first one: images, and weights where they are the problem's own, are turned.

    Tiles of single channels would read every C-th element, and share cache lines with the other thread: 2.3 ms for a
    depthwise 31x31 of 128 channels at 56 x 56, where turning takes 0.1 ms.
    """

    def __init__(self, problem: Problem, weights: WeightLayout | None = None):
        p = self.problem = problem
        self.forward = p.pass_name == "forward"
        make = Forward if self.forward else GradWeight
        self.inner = make(replace(p, layout="NCHW"), turned_layout(p) if weights is None else weights)
        x, y, w = ((math.prod(p.input_size), p.in_channels), (math.prod(p.output_size), p.out_channels),
                   (math.prod(p.kernel_size), p.group_in * p.out_channels))
        self.turn_x = self._bind(p.batch, *x)
        self.turn_y = self._bind(p.batch, *(y[::-1] if self.forward else y))
        self.turn_w = self._bind(1, *(w if self.forward else w[::-1])) if weights is None else None
        self.sizes = p.batch * math.prod(x), p.batch * math.prod(y), math.prod(w)
        self.scratch_bytes = self.inner.scratch_bytes + sum(self.sizes) * p.itemsize

    def _bind(self, images: int, rows: int, columns: int) -> BoundKernel:
        wide = min(columns, TURNED_COLUMNS)
        high = max(1, TURNED_ELEMENTS // wide // self.inner.pair) * self.inner.pair
        return turn_matrices.bind(self.problem.dtype, (images, rows, columns, high, wide), counters=num_threads() * COUNTER_PITCH,
                                  parallel=images * rows * columns > SERIAL_TURN)

    def _turn(self, kernel: BoundKernel, array: np.ndarray, role: str, size: int) -> np.ndarray:
        turned = shared(role, size, array.dtype)
        kernel(array.reshape(-1), self.inner.no_bias, self.inner.no_bias, turned)
        return turned

    def pack(self, second: np.ndarray) -> np.ndarray:
        if self.forward and self.turn_w is not None:
            second = self._turn(self.turn_w, second, "turned w", self.sizes[2])
        return self.inner.pack(second)

    def run(self, x: np.ndarray, packed: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> bool:
        x_size, y_size, w_size = self.sizes
        x = self._turn(self.turn_x, x, "turned x", x_size)
        second = packed if self.forward else self._turn(self.turn_y, packed, "turned y", y_size)
        result = shared("turned result", y_size if self.forward else w_size, x.dtype)
        turn_back = self.turn_y if self.forward else self.turn_w
        assert turn_back is not None
        finite = self.inner.run(x, second, bias, result)
        turn_back(result, self.inner.no_bias, self.inner.no_bias, out.reshape(-1))
        return finite


def forward(problem: Problem, layout: WeightLayout | JointLayout | None = None) -> Forward | Turned:
    """The forward pass in either layout, with weights that `layout` finds."""
    assert not isinstance(layout, JointLayout)
    if is_turned(problem):
        return Turned(problem, layout)
    return Forward(problem, forward_layout(problem) if layout is None else layout)


def grad_weight(problem: Problem) -> GradWeight | Turned:
    """The weight gradient in either layout."""
    return Turned(problem) if is_turned(problem) else GradWeight(problem, forward_layout(problem))


def grad_input(problem: Problem) -> GradInputByPhases:
    """The input gradient: its phases read the weights in place."""
    return GradInputByPhases(problem, build_in_place=forward)


def takes(problem: Problem) -> bool:
    """Whether the engine has tiles for a problem: two axes at most, and kernels that leave room in the longest tile."""
    if problem.pass_name == "grad_input":
        return all(takes(phase.problem) for phase in problem.phases() if phase.problem)
    if len(tiled_axes(problem)) > 2:
        return False
    try:
        cut_tiles(problem)
    except ValueError:
        return False
    return True

