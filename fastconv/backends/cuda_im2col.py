"""`im2col` on a GPU: convolution as an implicit matrix product (`_cuda.gemm`); the image's im2col matrix is never made.

    forward       rows = output channels   columns = output points   depth = taps
    grad_input    the forward convolutions of its phases (`Problem.phases`), all in one launch
    grad_weight   rows = output channels   columns = taps            depth = output points, in splits that are summed up after

Where there are too few tiles for the multiprocessors, the depth is split too, and the parts are added in a fixed order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ..problem import Problem
from . import Backend
from ._cuda import SIMULATED
from ._cuda.compiling import Code
from ._cuda.driver import Gpu, Launch, Stream, address_of, gpu, is_aligned, resident, scratch
from ._cuda.fragments import Tile
from ._cuda.gemm import WIDE, Product, gemm_code, shared_bytes
from ._cuda.geometry import INDEX_LIMIT, image_strides, index_refusal, weight_strides
from ._cuda.packing import SQUARE, Packed, Parts, Turned, pack_code, packed_word, sum_parts_code, turn_code
from ._cuda.tables import DEPTH_MULTIPLE, fields_of, operand_tables
from ._rectifiers import RECTIFIERS

TILES = {
    "float32": [Tile(128, 128, 16, 16, 16, 3), Tile(64, 128, 16, 8, 16, 3), Tile(32, 128, 16, 4, 16, 3)],
    "float64": [Tile(64, 64, 8, 8, 8, 3)],  # half the sums fit the registers
    "tf32": [Tile(128, 128, 16, 16, 16, 3), Tile(64, 128, 16, 8, 16, 3)],
    "float16": [Tile(128, 128, 16, 16, 16, 3), Tile(64, 128, 16, 8, 16, 3)],
}
if SIMULATED:
    TILES = {"float32": [Tile(16, 16, 8, 4, 4, 3)], "float64": [Tile(16, 16, 8, 4, 4, 3)], "tf32": [Tile(16, 16, 16, 8, 4, 3)],
             "float16": [Tile(16, 16, 16, 8, 4, 3)]}
ASYNCHRONOUS_COPIES = TENSOR_CORES = (8, 0)  # the least capability that has those used here
TENSOR_SPEED = {"tf32": 4.0, "float16": 8.0}  # times multiply-adds' (an estimate: benchmarks/gpu.py will measure it)
MOST_LAYERS = 2**16 - 1  # of a grid of blocks
MOST_POINTS = 2**24  # of the table of an image's points: 256 MiB
SPLITS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
LEAST_DEPTH = 128  # steps that a split is worth (an estimate: benchmarks/gpu.py will measure it)
BUSY_THREADS = 512  # that hide a multiprocessor's latencies
EFFICIENCY = 0.7  # share of the peak in the products (an estimate: benchmarks/gpu.py will measure it)
BLOCK_SECONDS = 2e-6  # of a block before its first product and after its last (an estimate: benchmarks/gpu.py will measure it)
LAUNCH_SECONDS = 5e-6  # of a kernel (an estimate: benchmarks/gpu.py will measure it, tiny)


class Division(NamedTuple):
    """How the multiprocessors share the work."""

    tile: Tile
    splits: int  # of the depth
    chunk: int  # steps of a split


class Im2col:
    """Any pass of a problem with zero borders."""

    def __init__(self, problem: Problem):
        p = self.problem = problem
        self.gradient = p.pass_name == "grad_weight"
        self.tile, self.splits, self.chunk = choose(p, gpu())
        self.pitch = _pitch(p, self.tile)
        self.factors = factors_of(p)
        together, packed_dtype, _ = packed_word(self.factors)
        phases, points, taps = operand_tables(p, self.pitch, together)
        self.packed = ((int(phases[-1, 4] + p.groups * phases[-1, 5]), packed_dtype),)
        self.tables = [resident(table) for table in (taps, points, phases)]
        elements = math.prod(p.shapes[2])
        self.parts = (elements * self.splits, p.dtype)
        self.scratch_bytes = p.itemsize * elements * self.splits if self.splits > 1 else 0
        self.multiply = self._multiply_launch(phases, _lanes(p))
        self.multiply_singly = self._multiply_launch(phases, "columns") if copied_by_fours(p) else self.multiply
        self.pack_launch = self._turn_launch(together * int(phases[0, 5]) // self.pitch) if self.gradient else self._pack_launch(phases)
        channels = p.epilogue_channels if not self.gradient else 1
        inner = 1 if p.channels_last or self.gradient else math.prod(p.shapes[2][2:])
        parts = Parts(self.splits, elements // max(1, channels * inner), channels, inner, int(p.bias and not self.gradient))
        threads = sum_parts_code(p.dtype).threads
        self.add = Launch(sum_parts_code(p.dtype), (-(-elements // threads),), parts, RECTIFIERS[p.activation])

    def _multiply_launch(self, phases: np.ndarray, lanes: str) -> Launch:
        p, tile = self.problem, self.tile
        columns = phases[0, 1] if self.gradient else p.batch * phases[:, 0].max()
        grid = (int(-(-columns // tile.columns)), -(-_rows(p) // tile.rows), self.splits * p.groups * len(phases))
        rectifier = RECTIFIERS[p.activation if self.splits == 1 else None]
        product = _product(p, Division(tile, self.splits, self.chunk))
        return Launch(gemm_code(tile, self.factors, self.gradient, lanes), grid, product, rectifier, shared_bytes(tile, self.factors))

    def _pack_launch(self, phases: np.ndarray) -> Launch:
        p, w = self.problem, weight_strides(self.problem)
        row = w.in_channel if p.pass_name == "grad_input" else w.out_channel
        return Launch(pack_code(self.factors), (int(phases[:, 5].max()) // self.pitch, p.groups, len(phases)),
                      Packed(p.groups, _rows(p), self.pitch, p.group_out * w.out_channel, row))

    def _turn_launch(self, steps: int) -> Launch:
        p = self.problem
        y = image_strides(p.out_channels, p.output_size, p.channels_last)
        points = math.prod(p.output_size)
        # The rows of all planes follow each other, in either layout.
        geometry = Turned(p.groups, p.group_out, points, p.output_size[2], p.batch * points, steps, self.pitch, y.batch,
                          p.group_out * y.channel, y.channel, y.row, y.column, int(p.channels_last))
        return Launch(turn_code(self.factors), (-(-steps // SQUARE), self.pitch // SQUARE, p.groups), geometry,
                      shared_bytes=SQUARE * (SQUARE + 1) * p.itemsize)

    def pack(self, stream: Stream, second: Any, target: list[Any]) -> None:
        """Lay the weights out in rows of taps, or the gradient of the output in rows of points."""
        if self.gradient:
            self.pack_launch(stream, second, target[0])
            return
        taps, _, phases = map(address_of, self.tables)
        self.pack_launch(stream, second, taps, phases, target[0])

    def run(self, stream: Stream, first: Any, second: Any, packed: list[Any], bias: Any, out: Any) -> None:
        """Multiply; add up the parts if there are several."""
        tables = list(map(address_of, self.tables))
        bias = out if bias is None else bias
        multiply = self.multiply if is_aligned(first, WIDE * self.problem.itemsize) else self.multiply_singly
        if self.splits == 1:
            multiply(stream, packed[0], first, *tables, bias, out)
            return
        with scratch(stream, self.parts) as (parts,):
            multiply(stream, packed[0], first, *tables, bias, parts)
            self.add(stream, parts, bias, out)


def codes(dtype: str) -> list[Code]:
    """Every kernel that a problem of floats may need."""
    variants = [(False, "columns"), (False, "depth"), (True, "columns"), (True, "depth")]
    variants += [(False, "fours")] if dtype == "float32" else []
    kinds = [dtype, *TENSOR_SPEED] if dtype == "float32" else [dtype]
    products = [gemm_code(tile, factors, *variant) for factors in kinds for tile in TILES[factors] for variant in variants]
    return [*products, *(make(factors) for factors in kinds for make in (pack_code, turn_code)), sum_parts_code(dtype)]


# -- sizes ----------------------------------------------------------------------------------------------------------------


def factors_of(problem: Problem) -> str:
    """What the factors are rounded to: tensor cores serve single precision where its accuracy is not asked for."""
    p = problem
    return p.accuracy if p.accuracy in TENSOR_SPEED and p.dtype == "float32" and gpu().capability >= TENSOR_CORES else p.dtype


def _rows(problem: Problem) -> int:
    return problem.group_in if problem.pass_name == "grad_input" else problem.group_out


def _pitch(problem: Problem, tile: Tile) -> int:
    """Elements of a step of the packed left factor."""
    return -(-_rows(problem) // tile.rows) * tile.rows


def copied_by_fours(problem: Problem) -> bool:
    """Whether four points of the result, from a multiple of four on, lie side by side in the image too, with each tap."""
    p = problem
    if p.pass_name == "grad_weight" or p.channels_last or p.itemsize != 4:
        return False
    line = p.kernel_size[2] == p.stride[2] == 1 and p.padding[2] == (0, 0) and p.input_size[2] % WIDE == 0
    plain = max(*p.kernel_size, *p.stride) == 1 and not any(map(any, p.padding)) and math.prod(p.input_size) % WIDE == 0
    return plain or (line and (p.pass_name == "forward" or max(p.stride) == 1))


def _lanes(problem: Problem) -> str:
    if problem.channels_last:
        return "depth"
    return "fours" if copied_by_fours(problem) else "columns"


def _product(problem: Problem, division: Division) -> Product:
    p, fields, (tile, splits, chunk) = problem, fields_of(problem), division
    w = weight_strides(p)
    x, y = (image_strides(*sizes, p.channels_last) for sizes in ((p.in_channels, p.input_size), (p.out_channels, p.output_size)))
    bias = int(p.bias and splits == 1 and p.pass_name != "grad_weight")
    last = p.output_size if p.pass_name == "grad_input" else p.input_size
    if p.pass_name == "grad_input":
        places = y.batch, p.group_out * y.channel, p.batch * y.batch, x.batch, p.group_in * x.channel, x.channel
    elif p.pass_name == "forward":
        places = x.batch, p.group_in * x.channel, p.batch * x.batch, y.batch, p.group_out * y.channel, y.channel
    else:
        places = x.batch, p.group_in * x.channel, p.batch * x.batch, y.batch, p.group_out * w.out_channel, w.out_channel
    points = math.prod(p.output_size)
    sizes = p.groups, splits, chunk, _rows(p), p.batch, points, tile.depth % points, tile.depth // points * x.batch
    position = fields.position([n - 1 for n in last])
    return Product._make((*sizes, *places, _pitch(p, tile), math.prod(p.shapes[2]), bias, position, fields.guards))


# -- choosing -------------------------------------------------------------------------------------------------------------


class _Shape(NamedTuple):
    """The products of a problem; a strided input gradient's phases count as alike."""

    products: int
    rows: int
    columns: int
    depth: int  # the largest


def _shape(problem: Problem) -> _Shape:
    p = problem
    if p.pass_name == "forward":
        return _Shape(p.groups, p.group_out, p.batch * math.prod(p.output_size), p.taps)
    if p.pass_name == "grad_weight":
        return _Shape(p.groups, p.group_out, p.taps, p.batch * math.prod(p.output_size))
    phases = math.prod(min(s, n) for s, n in zip(p.stride, p.input_size, strict=True))
    points = -(-p.batch * math.prod(p.input_size) // phases)
    taps = math.prod(-(-k * math.gcd(s, d) // s) for k, s, d in zip(p.kernel_size, p.stride, p.dilation, strict=True))
    return _Shape(p.groups * phases, p.group_in, points, p.group_out * taps)


def _divisions(shape: _Shape, factors: str) -> Iterator[Division]:
    """Every tile, with the depth as it is or split evenly."""
    for tile in TILES[factors]:
        for splits in SPLITS:
            if splits == 1 or (shape.depth >= splits * LEAST_DEPTH and splits * shape.products <= MOST_LAYERS):
                chunk = -(-shape.depth // (splits * DEPTH_MULTIPLE)) * DEPTH_MULTIPLE
                yield Division(tile, splits, chunk)


def _division_seconds(problem: Problem, division: Division, machine: Gpu) -> float:
    """Time of the products and of adding the parts.

    A multiprocessor computes whole tiles, those that are not full among them, and needs some warps to be busy.
    """
    p, shape, (tile, splits, chunk) = problem, _shape(problem), division
    blocks = splits * shape.products * -(-shape.rows // tile.rows) * -(-shape.columns // tile.columns)
    most = -(-blocks // machine.multiprocessors)  # of a multiprocessor
    warps = min(most * tile.threads, BUSY_THREADS) / BUSY_THREADS
    rate = EFFICIENCY * warps * TENSOR_SPEED.get(factors_of(p), 1.0) * machine.flops(p.dtype) / machine.multiprocessors
    parts = (2 * splits + 1) * p.itemsize * math.prod(p.shapes[2]) / machine.bandwidth + LAUNCH_SECONDS if splits > 1 else 0.0
    return BLOCK_SECONDS * -(-most * tile.threads // BUSY_THREADS) + most * 2 * tile.rows * tile.columns * chunk / rate + parts


def choose(problem: Problem, machine: Gpu) -> Division:
    """The division of the least time."""
    return min(_divisions(_shape(problem), factors_of(problem)), key=lambda division: _division_seconds(problem, division, machine))


def refuses(problem: Problem) -> str | None:
    p = problem
    if p.dtype not in ("float32", "float64"):
        return f"computes float32 and float64, not {p.dtype}"
    if p.padding_mode != "zeros":
        return f"needs a border of zeros, not {p.padding_mode!r}"
    if not p.flops:
        return "there is nothing to sum"
    if max(math.prod(p.input_size), math.prod(p.output_size)) > MOST_POINTS:
        return f"needs a table of an image's points, at most {MOST_POINTS:,}"
    if not fields_of(p).fit:
        return "an image whose borders reach too far for its coordinates to fit an integer"
    if _shape(p).products > MOST_LAYERS:
        return f"more groups than the {MOST_LAYERS:,} that a grid has layers for"
    return index_refusal(p) or (_depth_refusal(p) if p.pass_name == "grad_weight" else None)


def _depth_refusal(problem: Problem) -> str | None:
    """Why 32-bit indices do not walk along the points of a weight gradient, some of which lie beyond the last image."""
    p, points = problem, math.prod(problem.output_size)
    image = p.in_channels * math.prod(p.input_size)
    beyond = DEPTH_MULTIPLE // points
    packed = p.groups * (p.batch * points + DEPTH_MULTIPLE) * max(_pitch(p, tile) for tile in TILES[factors_of(p)])
    if packed > INDEX_LIMIT or beyond * image > INDEX_LIMIT or (p.batch + beyond + 1) * image > 2 * INDEX_LIMIT:
        return "points that 32-bit indices do not reach"
    return None


def seconds(problem: Problem, machine: Gpu) -> float:
    """Time of the products by the division chosen, or that of the memory's traffic."""
    p = problem
    if machine.capability < ASYNCHRONOUS_COPIES:
        return math.inf
    return LAUNCH_SECONDS + max(_division_seconds(p, choose(p, machine), machine), p.bytes / machine.bandwidth)


def pack_seconds(problem: Problem, machine: Gpu) -> float:
    p = problem
    padded = _pitch(p, choose(p, machine).tile) / max(1, _rows(p))
    return LAUNCH_SECONDS + (1 + padded) * p.itemsize * math.prod(p.shapes[1]) / machine.bandwidth


BACKEND = Backend(refuses, seconds, Im2col, pack_seconds)
