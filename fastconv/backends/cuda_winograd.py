"""`winograd` on a GPU: minimal filtering, F(4x4, 3x3) or F(2x2, 3x3), as transforms and a batch of matrix products.

    forward       V = B^T x B of every tile, M = U V for each of the transform's products, y = A^T M A; U = G w G^T is packed
    grad_input    the forward pass of gy with the weights turned round
    grad_weight   V = B^T x B, Z = A gy A^T, S = Z V^T over all tiles, gw = G^T S G

The tiles of all images are done in chunks, so that the transforms stay within CHUNK_BYTES. F(4x4) multiplies a quarter of the direct sum's
terms, F(2x2) four ninths; small images waste less of small tiles. Both err more than a plain sum, so "strict" has neither.

Source: Lavin and Gray, "Fast algorithms for convolutional neural networks" (2016), sections 4.1 and 4.2; Winograd (1980), theorem 5 of
chapter IV (the weight gradient is the transposed algorithm).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ..problem import Problem
from . import Backend
from ._cook_toom import INPUT, OUTPUT_GRADIENT, WEIGHTS
from ._cuda import SIMULATED
from ._cuda.batched_gemm import PITCH, Batch, batched_gemm_code, stage_bytes
from ._cuda.compiling import Code
from ._cuda.driver import Gpu, Launch, Stream, gpu, scratch
from ._cuda.fragments import Tile
from ._cuda.geometry import ImageStrides, WeightStrides, image_strides, index_refusal, weight_strides
from ._cuda.winograd import LANES, LINES, Algorithm, Gradient, Image, Sums, gradient_code, into_code, out_code
from ._rectifiers import RECTIFIERS

ALGORITHMS = (Algorithm(4, 3), Algorithm(2, 3))
# Tiles by descending size: the first that fills the multiprocessors is taken (an estimate: benchmarks/gpu.py will measure it).
TILES = [Tile(16, 16, 4, 4, 4, 3)] if SIMULATED else [Tile(128, 128, 16, 16, 16, 3), Tile(64, 128, 16, 8, 16, 3), Tile(64, 64, 16, 8, 8, 3)]
TILES64 = TILES if SIMULATED else [Tile(64, 64, 8, 8, 8, 3)]  # float64: half the sums fit the registers
CHUNK_BYTES = 256 * 1024 * 1024  # of both transforms
CHUNK_MULTIPLE = 128  # tiles: those of a block of threads
MOST_SPLITS = 64
LEAST_DEPTH = 256  # steps that a split is worth (an estimate: benchmarks/gpu.py will measure it)
DEPTH_MULTIPLE = 16  # steps of a split: every tile's
MOST_BLOCKS = 65535  # of a grid's third axis
EFFICIENCY = 0.6  # share of the peak in the products (an estimate: benchmarks/gpu.py will measure it)
TRANSFORM_PASSES = 2  # times the transforms' bytes pass the memory: written and read
LAUNCH_SECONDS = 5e-6  # of a kernel (an estimate: benchmarks/gpu.py will measure it, tiny)


class Convolution(NamedTuple):
    """A forward convolution, or the one that an input gradient is: sizes of an image, and strides of the weights."""

    groups: int
    channels: int  # of a group, in and out
    out_channels: int
    size: tuple[int, ...]
    out_size: tuple[int, ...]
    above: int
    left: int
    x: ImageStrides
    y: ImageStrides
    w: WeightStrides
    w_group: int
    w_start: int

    def tiles(self, algorithm: Algorithm) -> tuple[int, int]:
        """Tiles down and across an image."""
        return -(-self.out_size[1] // algorithm.outputs), -(-self.out_size[2] // algorithm.outputs)


def convolution_of(problem: Problem) -> Convolution:
    """The forward convolution of any pass; that of an input gradient has its weights' channels exchanged and their taps turned round."""
    p, w = problem, weight_strides(problem)
    forward = p.phases()[0].problem if p.pass_name == "grad_input" else p
    assert forward is not None
    w_group, w_start = p.group_out * w.out_channel, 0
    if p.pass_name == "grad_input":
        _, rows, columns = p.kernel_size
        w_start = (rows - 1) * w.row + (columns - 1) * w.column
        w = w._replace(out_channel=w.in_channel, in_channel=w.out_channel, row=-w.row, column=-w.column)
    return Convolution(p.groups, forward.group_in, forward.group_out, forward.input_size, forward.output_size, forward.padding[1][0],
                       forward.padding[2][0], image_strides(forward.in_channels, forward.input_size, p.channels_last),
                       image_strides(forward.out_channels, forward.output_size, p.channels_last), w, w_group, w_start)


class Layout(NamedTuple):
    """Where a transform's elements lie: product, group, step of the depth, lane."""

    groups: int
    steps: int
    pitch: int

    @property
    def elements(self) -> int:
        """Elements of a product."""
        return self.groups * self.steps * self.pitch

    def strides(self, along_channels: bool) -> tuple[int, int, int, int]:
        """From product to product, group to group, channel to channel, tile to tile."""
        return (self.elements, self.steps * self.pitch, *((1, self.pitch) if along_channels else (self.pitch, 1)))


def layout_of(groups: int, steps: int, lanes: int) -> Layout:
    return Layout(groups, steps, -(-lanes // PITCH) * PITCH)


class Winograd:
    """Forward passes and input gradients."""

    def __init__(self, problem: Problem):
        p = problem
        algorithm = choose(p, gpu())
        c = convolution_of(p)
        self.u = layout_of(c.groups, c.channels, c.out_channels)
        self.packed = ((algorithm.products * self.u.elements, p.dtype),)
        self.pack_launch = into_launch(WEIGHTS, algorithm, _weights(c, self.u), c.groups, along_channels=False, dtype=p.dtype)
        chunks = chunks_of(p, algorithm)
        self.v = layout_of(c.groups, c.channels, chunks[0][1])
        self.m = layout_of(c.groups, c.out_channels, chunks[0][1])
        self.parts = [(algorithm.products * layout.elements, p.dtype) for layout in (self.v, self.m)]
        self.scratch_bytes = p.itemsize * sum(count for count, _ in self.parts)
        self.chunks = [self._launches(p, algorithm, c, first, tiles) for first, tiles in chunks]

    def _launches(self, p: Problem, algorithm: Algorithm, c: Convolution, first: int, tiles: int) -> tuple[Launch, Launch, Launch]:
        """The three kernels of a chunk of tiles."""
        down, across = c.tiles(algorithm)
        image = _image(c, self.v.strides(along_channels=False), tiles, first, (down, across))
        into = into_launch(INPUT, algorithm, image, c.groups, along_channels=False, dtype=p.dtype)
        products = algorithm.products * c.groups
        batch = Batch(products, 1, c.channels, c.out_channels, tiles, c.channels, self.u.pitch, self.v.pitch, self.m.pitch, 0)
        multiply = product_launch(batch, p.dtype, gpu())
        sums = Sums._make((c.out_channels, tiles, first, down, across, *c.out_size[1:], int(p.bias), *self.m.strides(False)[:3], c.y.batch,
                           c.out_channels * c.y.channel, c.y.channel, c.y.row, c.y.column, c.channels, *c.size[1:], c.above, c.left,
                           c.x.batch, c.channels * c.x.channel, c.x.channel, c.x.row, c.x.column, c.w_start, c.w_group,
                           c.w.out_channel, c.w.in_channel, c.w.row, c.w.column))
        grid = -(-tiles // LANES), -(-c.out_channels // LINES), c.groups
        return into, multiply, Launch(out_code(algorithm, p.dtype), grid, sums, RECTIFIERS[p.activation])

    def pack(self, stream: Stream, second: Any, target: list[Any]) -> None:
        """Transform the weights."""
        self.pack_launch(stream, second, target[0])

    def run(self, stream: Stream, first: Any, second: Any, packed: list[Any], bias: Any, out: Any) -> None:
        """Transform, multiply and transform back, chunk by chunk."""
        with scratch(stream, *self.parts) as (v, m):
            for into, multiply, transform_out in self.chunks:
                into(stream, first, v)
                multiply(stream, packed[0], v, m)
                transform_out(stream, m, first, second, out if bias is None else bias, out)


class WinogradGradient:
    """Weight gradients."""

    packed: tuple[tuple[int, str], ...] = ()

    def __init__(self, problem: Problem):
        p = problem
        algorithm = choose(p, gpu())
        c = convolution_of(p)
        chunks = chunks_of(p, algorithm)
        v, z = (layout_of(c.groups, chunks[0][1], channels) for channels in (c.channels, c.out_channels))
        self.s = layout_of(c.groups, c.out_channels, c.channels)
        splits = splits_of(p, algorithm, chunks[0][1], gpu())
        counts = (algorithm.products * v.elements, algorithm.products * z.elements, splits * algorithm.products * self.s.elements)
        self.parts = [(count, p.dtype) for count in counts]
        self.scratch_bytes = p.itemsize * sum(counts)
        self.chunks = [self._launches(p, algorithm, c, splits, first, tiles) for first, tiles in chunks]

    def _launches(self, p: Problem, algorithm: Algorithm, c: Convolution, splits: int, first: int,
                  tiles: int) -> tuple[Launch, Launch, Launch, Launch]:
        """The four kernels of a chunk of tiles."""
        counts = c.tiles(algorithm)
        v, z = (layout_of(c.groups, tiles, channels) for channels in (c.channels, c.out_channels))
        image = _image(c, v.strides(along_channels=True), tiles, first, counts)
        into = into_launch(INPUT, algorithm, image, c.groups, along_channels=True, dtype=p.dtype)
        output = c._replace(channels=c.out_channels, size=c.out_size, above=0, left=0, x=c.y)
        gradient = _image(output, z.strides(along_channels=True), tiles, first, counts)
        gradient_into = into_launch(OUTPUT_GRADIENT, algorithm, gradient, c.groups, along_channels=True, dtype=p.dtype)
        chunk = -(-tiles // splits // DEPTH_MULTIPLE) * DEPTH_MULTIPLE + (DEPTH_MULTIPLE if splits > 1 else 0)
        part = algorithm.products * self.s.elements
        batch = Batch(algorithm.products * c.groups, splits, max(DEPTH_MULTIPLE, chunk), c.out_channels, c.channels, tiles, z.pitch,
                      v.pitch, self.s.pitch, part)
        geometry = Gradient._make((c.out_channels, c.channels, tiles, first, *counts, *c.out_size[1:], int(first > 0), splits, part,
                                   *self.s.strides(along_channels=False)[:3], c.w_group, c.w.out_channel, c.w.in_channel, c.w.row,
                                   c.w.column, *c.size[1:], c.above, c.left, c.x.batch, c.channels * c.x.channel, c.x.channel,
                                   c.x.row, c.x.column, c.y.batch, c.out_channels * c.y.channel, c.y.channel, c.y.row, c.y.column))
        grid = -(-c.channels // LANES), -(-c.out_channels // LINES), c.groups
        return into, gradient_into, product_launch(batch, p.dtype, gpu()), Launch(gradient_code(algorithm, p.dtype), grid, geometry)

    def pack(self, stream: Stream, second: Any, target: list[Any]) -> None:
        """The gradient of the output is transformed chunk by chunk."""

    def run(self, stream: Stream, first: Any, second: Any, packed: list[Any], bias: Any, out: Any) -> None:
        """Transform both, multiply and transform back, chunk by chunk."""
        with scratch(stream, *self.parts) as (v, z, s):
            for into, gradient_into, multiply, transform_out in self.chunks:
                into(stream, first, v)
                gradient_into(stream, second, z)
                multiply(stream, z, v, s)
                transform_out(stream, s, first, second, out)


def build(problem: Problem) -> Winograd | WinogradGradient:
    return WinogradGradient(problem) if problem.pass_name == "grad_weight" else Winograd(problem)


def codes(dtype: str) -> list[Code]:
    """Every kernel that a problem may need."""
    found = [batched_gemm_code(tile, dtype) for tile in tiles_of(dtype)]
    for algorithm in ALGORITHMS:
        found += [into_code(WEIGHTS, algorithm, False, dtype), out_code(algorithm, dtype), gradient_code(algorithm, dtype)]
        found += [into_code(INPUT, algorithm, along_channels, dtype) for along_channels in (False, True)]
        found.append(into_code(OUTPUT_GRADIENT, algorithm, True, dtype))
    return found


# -- launches -------------------------------------------------------------------------------------------------------------


def into_launch(kind: int, algorithm: Algorithm, image: Image, groups: int, *, along_channels: bool, dtype: str) -> Launch:
    """The transform of an image's tiles."""
    tiles, channels = (LINES, LANES) if along_channels else (LANES, LINES)
    grid = -(-image.tiles // tiles), -(-image.channels // channels), groups  # the first axis alone has no bound that tiles reach
    return Launch(into_code(kind, algorithm, along_channels, dtype), grid, image)


def product_launch(batch: Batch, dtype: str, machine: Gpu) -> Launch:
    """The products of a chunk."""
    tile = choose_tile(batch.rows, batch.columns, batch.batch * batch.splits, dtype, machine)
    grid = -(-batch.columns // tile.columns), -(-batch.rows // tile.rows), batch.batch * batch.splits
    return Launch(batched_gemm_code(tile, dtype), grid, batch, shared_bytes=stage_bytes(tile, dtype))


def _image(c: Convolution, to: tuple[int, int, int, int], tiles: int, first: int, counts: tuple[int, int]) -> Image:
    return Image._make((c.channels, tiles, first, *counts, *c.size[1:], c.above, c.left, 0, c.x.batch, c.channels * c.x.channel,
                        c.x.channel, c.x.row, c.x.column, *to))


def _weights(c: Convolution, layout: Layout) -> Image:
    """The weights as images of one tile, an output channel each."""
    return Image._make((c.channels, c.out_channels, 0, 1, 1, 3, 3, 0, 0, c.w_start, c.w.out_channel, c.w_group, c.w.in_channel, c.w.row,
                        c.w.column, *layout.strides(along_channels=False)))


# -- choosing -------------------------------------------------------------------------------------------------------------


def tiles_of(dtype: str) -> list[Tile]:
    """The tiles of the products."""
    return TILES if np.dtype(dtype).itemsize == 4 else TILES64


def choose_tile(rows: int, columns: int, batch: int, dtype: str, machine: Gpu) -> Tile:
    """The largest tile that fills the multiprocessors and is not mostly empty."""
    tiles = tiles_of(dtype)
    fitting = [tile for tile in tiles if tile.rows < 2 * rows and tile.columns < 2 * columns]
    return next((tile for tile in fitting if batch * -(-rows // tile.rows) * -(-columns // tile.columns) >= machine.multiprocessors),
                tiles[-1])


def chunks_of(problem: Problem, algorithm: Algorithm) -> list[tuple[int, int]]:
    """(first tile, tiles) of each chunk, about the same for all."""
    p = problem
    tiles = p.batch * math.prod(convolution_of(p).tiles(algorithm))
    of_tile = algorithm.products * (p.in_channels + p.out_channels) * p.itemsize
    chunks = -(-tiles * of_tile // CHUNK_BYTES)
    size = -(-tiles // chunks // CHUNK_MULTIPLE) * CHUNK_MULTIPLE if chunks > 1 else tiles
    return [(first, min(size, tiles - first)) for first in range(0, tiles, size)]


def splits_of(problem: Problem, algorithm: Algorithm, tiles: int, machine: Gpu) -> int:
    """Parts of the sum over the tiles, so that all multiprocessors have work."""
    p = problem
    batch = algorithm.products * p.groups
    tile = choose_tile(p.group_out, p.group_in, batch * MOST_SPLITS, p.dtype, machine)
    blocks = batch * -(-p.group_out // tile.rows) * -(-p.group_in // tile.columns)
    wanted = -(-2 * machine.multiprocessors // blocks) if blocks < 2 * machine.multiprocessors else 1
    return max(1, min(wanted, tiles // LEAST_DEPTH, MOST_SPLITS, MOST_BLOCKS // batch))


def choose(problem: Problem, machine: Gpu) -> Algorithm:
    """The algorithm that is faster as predicted."""
    return min(ALGORITHMS, key=lambda algorithm: algorithm_seconds(problem, algorithm, machine))


def refuses(problem: Problem) -> str | None:
    p = problem
    if np.dtype(p.dtype).kind != "f":
        return f"computes floating-point numbers, not {p.dtype}"
    if p.accuracy == "strict":
        return "errs more than accuracy='strict' allows"
    if p.kernel_size != (1, 3, 3) or p.input_size[0] != 1 or p.output_size[0] != 1:
        return f"has algorithms for planes and kernels of 3x3, not for a kernel of {'x'.join(map(str, p.kernel_size[-p.ndim:]))}"
    if p.stride != (1, 1, 1) or p.dilation != (1, 1, 1):
        return "needs stride 1 and dilation 1"
    if p.padding_mode != "zeros":
        return f"needs a border of zeros, not {p.padding_mode!r}"
    if not p.flops:
        return "there is nothing to sum"
    most = max(algorithm.products for algorithm in ALGORITHMS)
    if most * p.groups > MOST_BLOCKS:
        return f"{p.groups:,} groups, more than a grid takes"
    return index_refusal(p)


def algorithm_seconds(problem: Problem, algorithm: Algorithm, machine: Gpu) -> float:
    """Time of the products, by the waves in which the multiprocessors take their tiles, and of writing and reading the transforms."""
    p = problem
    chunks = chunks_of(p, algorithm)
    tiles, batch = chunks[0][1], algorithm.products * p.groups
    rows, columns, depth, splits = p.group_out, tiles, p.group_in, 1
    if p.pass_name == "grad_input":
        rows, depth = p.group_in, p.group_out
    if p.pass_name == "grad_weight":
        columns, depth, splits = p.group_in, tiles, splits_of(p, algorithm, tiles, machine)
    tile = choose_tile(rows, columns, batch * splits, p.dtype, machine)
    waves = -(-batch * splits * -(-rows // tile.rows) * -(-columns // tile.columns) // machine.multiprocessors)
    multiply = waves * 2 * tile.rows * tile.columns * depth / splits / (EFFICIENCY * machine.flops(p.dtype) / machine.multiprocessors)
    transforms = TRANSFORM_PASSES * batch * tiles * (p.group_in + p.group_out) * p.itemsize
    kernels = 4 if p.pass_name == "grad_weight" else 3
    return len(chunks) * (kernels * LAUNCH_SECONDS + multiply + transforms / machine.bandwidth) + p.bytes / machine.bandwidth


def seconds(problem: Problem, machine: Gpu) -> float:
    return min(algorithm_seconds(problem, algorithm, machine) for algorithm in ALGORITHMS)


def pack_seconds(problem: Problem, machine: Gpu) -> float:
    """The weights' transform."""
    if problem.pass_name == "grad_weight":
        return 0.0
    products = choose(problem, machine).products
    elements = (1 + products / math.prod(problem.kernel_size)) * math.prod(problem.weight_shape)
    return LAUNCH_SECONDS + elements * problem.itemsize / machine.bandwidth


BACKEND = Backend(refuses, seconds, build, pack_seconds)
