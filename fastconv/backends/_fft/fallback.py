"""What the engine does not take, through scipy.fft: three axes, kernels longer than any of its tiles.

The same overlap-save convolution, a transform of all tiles of a block at a time.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ...problem import Problem
from .. import Kernel, Machine
from .._jit import num_threads
from .._phases import GradInputByPhases, phase_seconds
from .._rectifiers import RECTIFIERS

LONGEST_TILE, LONGEST_LINE = 320, 16384  # lengths whose transforms stay in the second-level cache (bench_conv.py, filter_31x31)
SPECTRA_ELEMENTS = 16e6  # of all kernels' spectra, where the tiles can be made that small
MOST_SPECTRA_BYTES = 1024**3  # of the packed operand: beyond, memory costs more than any transform saves
BLOCK_BYTES = 32 * 1024 * 1024  # of tiles transformed at once: bounds scratch, and scipy.fft shares it among its workers
TRANSFORM_EFFICIENCY = 0.036  # of the multiply-add peak, scipy.fft in float32 (benchmarks/bench_conv.py, filter_31x31)
PRODUCT_EFFICIENCY = 0.12  # of the peak, complex products (bench_conv.py, large_15x15)
TURNS = 6  # times the spectra of channels pass memory to be turned for the product and back (bench_conv.py, large_15x15)
CALL_SECONDS = 60e-6  # of Python around a run (bench_conv.py, tiny)

AXES = (-3, -2, -1)


@functools.lru_cache(maxsize=4096)
def fast_length(n: int) -> int:
    """The next length of at least n whose only prime factors are 2, 3 and 5: their transforms are the fast ones.

    Written out because the cost model asks for it, and importing scipy.fft takes 0.1 s of a process's first call.
    """
    while True:
        rest = n
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return n
        n += 1


@functools.lru_cache(maxsize=1024)
def tile_lengths(problem: Problem) -> tuple[int, ...]:
    """Transform lengths per axis of a forward problem: those that transform the fewest points.

    Longer tiles overlap less; shorter ones stay in the cache, and the spectra of many pairs of channels stay small.
    """
    pairs = max(1, problem.out_channels * problem.group_in)
    longest = LONGEST_LINE if problem.ndim == 1 else int(min(LONGEST_TILE, max(16, (SPECTRA_ELEMENTS / pairs) ** 0.5)))
    return tuple(_axis_length((n - 1) * stride + 1, extent, stride, max(2 * extent, longest))
                 for n, stride, extent in zip(problem.output_size, problem.stride, extents(problem), strict=True))


def _axis_length(outputs: int, extent: int, stride: int, longest: int) -> int:
    """The length for which all tiles together are the shortest; a tile makes a multiple of the stride of outputs."""
    if outputs + extent == 2:
        return 1
    best = shortest = None
    for tiles in range(1, outputs + 1):
        each = -(-outputs // tiles)
        length = fast_length(-(-each // stride) * stride + extent - 1)
        total = -(-outputs // (-(-each // stride) * stride)) * length
        if (length <= longest or length < 2 * extent) and (shortest is None or total < shortest):
            best, shortest = length, total
        if length < max(2 * extent, longest // 2):
            break
    return best or fast_length(longest)


def extents(problem: Problem) -> tuple[int, ...]:
    """Points that a kernel reaches on each axis, dilation included."""
    return tuple(d * (k - 1) + 1 for d, k in zip(problem.dilation, problem.kernel_size, strict=True))


class _Spectral:
    """Transforms over the axes that are longer than 1."""

    def __init__(self, problem: Problem, lengths: tuple[int, ...]):
        self.problem = problem
        self.lengths = lengths
        self.axes = tuple(axis for axis, length in zip(AXES, lengths, strict=True) if length > 1) or (-1,)
        self.sizes = tuple(lengths[axis] for axis in self.axes)
        self.complex = np.dtype(np.complex64 if problem.dtype == "float32" else np.complex128)
        self.frequencies = math.prod(lengths[:2]) * (lengths[2] // 2 + 1) if self.axes[-1] == -1 else self._short_frequencies()

    def _short_frequencies(self) -> int:
        shape = list(self.lengths)
        shape[self.axes[-1]] = shape[self.axes[-1]] // 2 + 1
        return math.prod(shape)

    def transform(self, array: np.ndarray) -> np.ndarray:
        """Spectra over the last three axes, flattened into one."""
        from scipy.fft import rfftn

        spectra = rfftn(array, s=self.sizes, axes=self.axes, workers=num_threads())
        return spectra.reshape(*spectra.shape[:-3], self.frequencies)

    def invert(self, spectra: np.ndarray) -> np.ndarray:
        """The real arrays of flattened spectra."""
        from scipy.fft import irfftn

        shape = list(self.lengths)
        shape[self.axes[-1]] = self.lengths[self.axes[-1]] // 2 + 1
        return irfftn(spectra.reshape(*spectra.shape[:-1], *shape), s=self.sizes, axes=self.axes, workers=num_threads())


def channels_first(array: np.ndarray, problem: Problem) -> np.ndarray:
    """A view of x, y or gy as (N, C, D, H, W)."""
    return array.transpose(0, 4, 1, 2, 3) if problem.channels_last else array


def weights_first(array: np.ndarray, problem: Problem) -> np.ndarray:
    """A view of w or gw as (O, C/G, kd, kh, kw)."""
    return array.transpose(4, 3, 0, 1, 2) if problem.channels_last else array


def _every(steps: tuple[int, ...]) -> tuple[Any, ...]:
    """The index of every step-th element on the last three axes."""
    return (..., *(slice(None, None, step) for step in steps))


def take_padded(x: np.ndarray, sources: tuple[np.ndarray, ...], starts: tuple[int, ...], lengths: tuple[int, ...]) -> np.ndarray:
    """The padded input's window [start, start + length) on the last three axes; zeros beyond its end."""
    for axis, source, start, length in zip(AXES, sources, starts, lengths, strict=True):
        index = source[start:start + length]
        if index.size and index[0] >= 0 and index[-1] - index[0] == index.size - 1 and (np.diff(index) == 1).all():
            piece: list[slice] = [slice(None)] * x.ndim
            piece[axis] = slice(int(index[0]), int(index[-1]) + 1)
            x = x[tuple(piece)]
        elif x.shape[axis] == 0:
            x = np.zeros([index.size if at == x.ndim + axis else n for at, n in enumerate(x.shape)], x.dtype)
        else:
            x = x.take(np.maximum(index, 0), axis=axis)
            outside = np.flatnonzero(index < 0)
            if outside.size:
                np.moveaxis(x, axis, 0)[outside] = 0
    return x


class Forward(_Spectral):
    """The forward pass; `pack` makes the kernels' spectra."""

    def __init__(self, problem: Problem):
        p = problem
        self.extent = extents(p)
        self.dense = tuple((n - 1) * s + 1 for n, s in zip(p.output_size, p.stride, strict=True))
        super().__init__(p, tile_lengths(p))
        # A tile's first output is a multiple of the stride, so that its outputs are every stride-th one.
        self.step = tuple(max(s, (length - e + 1) // s * s) for length, e, s in zip(self.lengths, self.extent, p.stride, strict=True))
        self.tiles = tuple(-(-n // step) for n, step in zip(self.dense, self.step, strict=True))
        self.sources = p.border_sources()
        channels = max(p.in_channels, p.out_channels)
        self.block = max(1, BLOCK_BYTES // (channels * self.frequencies * self.complex.itemsize))

    def pack(self, w: np.ndarray) -> np.ndarray:
        """Conjugate spectra as (F, G, C/G, O/G), or (G, O/G, C/G, F) where a sum over channels is no matrix product."""
        p = self.problem
        w = w.reshape(p.shapes[1])
        kernels = np.zeros((p.out_channels, p.group_in, *self.extent), p.dtype)
        kernels[_every(p.dilation)] = weights_first(w, p)
        spectra = self.transform(kernels).conj().reshape(p.groups, p.group_out, p.group_in, self.frequencies)
        return spectra if p.group_in == 1 else np.ascontiguousarray(spectra.transpose(3, 0, 2, 1))

    @np.errstate(all="ignore")
    def run(self, x: np.ndarray, packed: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> bool:
        p = self.problem
        x, y = channels_first(x.reshape(p.shapes[0]), p), channels_first(out.reshape(p.shapes[2]), p)
        places = list(itertools.product(range(p.batch), *map(range, self.tiles)))
        for first in range(0, len(places), self.block):
            self._run_block(x, packed, places[first:first + self.block], y)
        finish(y, bias, p)
        return bool(np.isfinite(out).all())

    def _run_block(self, x: np.ndarray, packed: np.ndarray, places: list[tuple[int, ...]], y: np.ndarray) -> None:
        p = self.problem
        tiles = np.zeros((len(places), p.in_channels, *self.lengths), p.dtype)
        for tile, (n, *at) in zip(tiles, places, strict=True):
            starts = tuple(i * step for i, step in zip(at, self.step, strict=True))
            window = take_padded(x[n], self.sources, starts, self.lengths)
            tile[tuple(map(slice, window.shape))] = window
        sums = self.invert(self._multiply(self.transform(tiles), packed))
        for part, (n, *at) in zip(sums, places, strict=True):
            first = [i * step // s for i, step, s in zip(at, self.step, p.stride, strict=True)]
            last = [min(f + step // s, size) for f, step, s, size in zip(first, self.step, p.stride, p.output_size, strict=True)]
            taken = tuple(slice(0, (stop - start - 1) * s + 1, s) for start, stop, s in zip(first, last, p.stride, strict=True))
            y[n][(slice(None), *(slice(*pair) for pair in zip(first, last, strict=True)))] = part[(slice(None), *taken)]

    def _multiply(self, spectra: np.ndarray, packed: np.ndarray) -> np.ndarray:
        p, tiles = self.problem, len(spectra)
        if p.group_in == 1:
            product = spectra.reshape(tiles, p.groups, 1, self.frequencies) * packed[:, :, 0]
        else:
            left = np.ascontiguousarray(spectra.reshape(tiles, p.groups, p.group_in, self.frequencies).transpose(3, 1, 0, 2))
            sums = left @ packed
            product = np.ascontiguousarray(sums.transpose(2, 1, 3, 0))
        return product.reshape(tiles, p.out_channels, self.frequencies)

    @property
    def scratch_bytes(self) -> int:
        tiles = min(self.block, self.problem.batch * math.prod(self.tiles))
        return 4 * tiles * max(self.problem.in_channels, self.problem.out_channels) * self.frequencies * self.complex.itemsize


class GradWeight(_Spectral):
    """The weight gradient; `pack` makes the spectra of gy."""

    def __init__(self, problem: Problem):
        self.dense = tuple((n - 1) * s + 1 for n, s in zip(problem.output_size, problem.stride, strict=True))
        super().__init__(problem, tuple(fast_length(n) for n in problem.padded_size))
        self.sources = problem.border_sources()

    def pack(self, gy: np.ndarray) -> np.ndarray:
        p = self.problem
        gy = gy.reshape(p.shapes[1])
        stretched = np.zeros((p.batch, p.out_channels, *self.dense), p.dtype)
        stretched[_every(p.stride)] = channels_first(gy, p)
        return self.transform(stretched).conj()

    @np.errstate(all="ignore")
    def run(self, x: np.ndarray, packed: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> bool:
        p = self.problem
        padded = take_padded(channels_first(x.reshape(p.shapes[0]), p), self.sources, (0, 0, 0), p.padded_size)
        spectra = self.transform(padded).reshape(p.batch, p.groups, p.group_in, self.frequencies)
        gw = weights_first(out.reshape(p.shapes[2]), p)
        lags = tuple(slice(0, d * (k - 1) + 1, d) for d, k in zip(p.dilation, p.kernel_size, strict=True))
        block = max(1, BLOCK_BYTES // (p.batch * p.group_in * self.frequencies * self.complex.itemsize))
        for first in range(0, p.out_channels, block):
            outputs = np.arange(first, min(first + block, p.out_channels))
            product = np.einsum("nof,nocf->ocf", packed[:, outputs], spectra[:, outputs // p.group_out])
            index: tuple[Any, ...] = (..., *lags)
            gw[outputs] = self.invert(product)[index]
        return bool(np.isfinite(out).all())

    @property
    def scratch_bytes(self) -> int:
        p = self.problem
        return p.batch * (p.in_channels + p.out_channels) * self.frequencies * self.complex.itemsize


def finish(y: np.ndarray, bias: np.ndarray | None, problem: Problem) -> None:
    """Add the bias and apply a rectifier, in place; y has channels first."""
    if bias is not None:
        y += bias[:, None, None, None]
    if problem.activation is not None:
        slope, ceiling = RECTIFIERS[problem.activation]
        scalar = np.dtype(problem.dtype).type
        np.multiply(y, scalar(slope), out=y, where=y < 0)
        np.minimum(y, scalar(ceiling), out=y)


# -- as a backend ---------------------------------------------------------------------------------------------------------


def refuses(problem: Problem) -> str | None:
    if problem.pass_name != "grad_input" and (needed := spectra_bytes(problem)) > MOST_SPECTRA_BYTES:
        return f"its spectra would take {needed / 1e9:.1f} GB"
    if problem.pass_name == "grad_input":
        return next((reason for phase in problem.phases() if phase.problem and (reason := refuses(phase.problem))), None)
    return None


def spectra_bytes(problem: Problem) -> int:
    """Bytes of the packed second operand."""
    p = problem
    if p.pass_name == "grad_weight":
        return math.prod(map(fast_length, p.padded_size)) * p.batch * (p.out_channels + p.in_channels) * p.itemsize
    return math.prod(tile_lengths(p)) * p.out_channels * p.group_in * p.itemsize


def seconds(problem: Problem, machine: Machine) -> float:
    """Real transforms at 2.5 n log2 n operations each, and complex products at 8."""
    p = problem
    if p.pass_name == "grad_input":
        return phase_seconds(p, lambda phase: seconds(phase, machine), machine.bandwidth)
    if p.pass_name == "forward":
        lengths = tile_lengths(p)
        steps = (max(1, length - e + 1) for length, e in zip(lengths, extents(p), strict=True))
        tiles = p.batch * math.prod(-(-((n - 1) * s + 1) // step) for n, s, step in zip(p.output_size, p.stride, steps, strict=True))
        transforms = tiles * (p.in_channels + p.out_channels)
    else:
        lengths, tiles = tuple(fast_length(n) for n in p.padded_size), p.batch
        transforms = p.batch * p.in_channels + p.out_channels * p.group_in
    points = math.prod(lengths)
    peak = machine.flops(p.dtype)
    rate = TRANSFORM_EFFICIENCY * peak * min(machine.threads, max(1, transforms))
    transform = transforms * 2.5 * points * math.log2(max(2, points)) / rate
    products = tiles * p.out_channels * p.group_in * points / 2
    turned = TURNS * tiles * (p.in_channels + p.out_channels) * points * p.itemsize if p.group_in > 1 else 0
    return CALL_SECONDS * (1 + tiles / 16) + transform + 8 * products / (PRODUCT_EFFICIENCY * peak) + turned / machine.bandwidth


def pack_seconds(problem: Problem, machine: Machine) -> float:
    """The transforms of the second operand."""
    p = problem
    if p.pass_name == "grad_weight":
        lengths, transforms = tuple(fast_length(n) for n in p.padded_size), p.batch * p.out_channels
    else:
        lengths, transforms = tile_lengths(p), p.out_channels * p.group_in
    points = math.prod(lengths)
    rate = TRANSFORM_EFFICIENCY * machine.flops(p.dtype) * machine.threads
    return CALL_SECONDS + transforms * 2.5 * points * math.log2(max(2, points)) / rate


def build(problem: Problem) -> Kernel:
    passes: dict[str, Callable[[Problem], Kernel]] = {
        "forward": Forward, "grad_input": lambda p: GradInputByPhases(p, Forward), "grad_weight": GradWeight}
    return passes[problem.pass_name](problem)

