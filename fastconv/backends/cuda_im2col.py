"""`im2col` on a GPU: convolution as an implicit matrix product (`_cuda.gemm`); the image's im2col matrix is never made.

    forward       rows = output channels   columns = output points   depth = taps
    grad_input    the forward convolutions of its phases (`Problem.phases`), all in one launch
    grad_weight   rows = output channels   columns = taps            depth = output points, in splits that are summed up after

Where there are too few tiles for the multiprocessors, the depth is split too, and the parts are added in a fixed order.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ..problem import Problem
from . import Backend
from ._cuda import SIMULATED
from ._cuda.compiling import Code
from ._cuda.driver import Gpu, Launch, Stream, address_of, gpu, resident, scratch
from ._cuda.gemm import BITS, FAR, Phase, Product, Tile, gemm_code, shared_bytes
from ._cuda.geometry import image_strides, index_refusal, weight_strides
from ._cuda.packing import SQUARE, Packed, Parts, Turned, pack_code, sum_parts_code, turn_code
from ._rectifiers import RECTIFIERS

# Tiles by descending size: the first that fills the multiprocessors is taken (benchmarks/gpu.py).
TILES = [Tile(16, 16, 4, 4, 4, 3)] if SIMULATED else [Tile(128, 128, 16, 16, 16, 3), Tile(64, 128, 16, 8, 16, 3), Tile(64, 64, 16, 8, 8, 3)]
TILES64 = TILES if SIMULATED else [Tile(64, 64, 8, 8, 8, 3)]  # float64: half the sums fit the registers
PADDING = 128  # entries that tables are filled up to, so that no tile reads beyond them
MOST_POINTS = 2**24  # of the table of an image's points: 256 MiB
MOST_SPLITS = 64
DEPTH_MULTIPLE = 16  # steps that depths are filled up to: every tile's
LEAST_DEPTH = 256  # steps that a split is worth (benchmarks/gpu.py)
EFFICIENCY = 0.6  # share of the peak in the products (benchmarks/gpu.py)
LAUNCH_SECONDS = 5e-6  # of a kernel (benchmarks/gpu.py, tiny)


class Operand(NamedTuple):
    """One phase: an image that is gathered from, by points and taps."""

    points: np.ndarray  # (points, 4): offset in the image, offset in the result, row, column
    taps: np.ndarray  # (taps, 4): offset in the image, offset in the weights, rows, columns


class Im2col:
    """Any pass of a problem with zero borders."""

    def __init__(self, problem: Problem):
        p = self.problem = problem
        self.gradient = p.pass_name == "grad_weight"
        operands = [_forward_operand(p)] if p.pass_name != "grad_input" else _phase_operands(p)
        tile, splits, chunk = choose(p, gpu())
        rows = p.group_in if p.pass_name == "grad_input" else p.group_out
        phases, points, taps = _tables(operands, p.groups, -(-rows // PADDING) * PADDING)
        self.splits = splits
        elements = math.prod(p.shapes[2])
        if self.gradient:  # its depth is the points, not the taps
            steps = -(-p.batch * len(operands[0].points) // DEPTH_MULTIPLE) * DEPTH_MULTIPLE
            phases[0, 5] = steps * -(-rows // PADDING) * PADDING
        self.packed = ((int(phases[-1, 4] + p.groups * phases[-1, 5]), p.dtype),)
        self.tables = [resident(table) for table in (taps, points, phases)]
        self.parts = (elements * splits, p.dtype)
        self.scratch_bytes = p.itemsize * (elements * splits if splits > 1 else 0)
        product = _product(p, splits, chunk, rows, elements)
        rectifier = RECTIFIERS[p.activation]
        columns = p.group_in * math.prod(p.kernel_size) if self.gradient else p.batch * max(len(operand.points) for operand in operands)
        grid = (-(-columns // tile.columns), -(-rows // tile.rows), splits * p.groups * len(operands))
        code = gemm_code(tile, p.dtype, self.gradient, self.gradient != p.channels_last, is_volume(p))
        alone = splits == 1
        self.multiply = Launch(code, grid, product, rectifier if alone else RECTIFIERS[None], shared_bytes(tile, p.dtype))
        self.pack_launch = self._turn_launch(phases) if self.gradient else self._pack_launch(phases, rows)
        channels = p.epilogue_channels if not self.gradient else 1
        inner = 1 if p.channels_last or self.gradient else math.prod(p.shapes[2][2:])
        parts = Parts(splits, elements // max(1, channels * inner), channels, inner, int(p.bias and not self.gradient))
        threads = sum_parts_code(p.dtype).threads
        self.add = Launch(sum_parts_code(p.dtype), (-(-elements // threads),), parts, rectifier)

    def _pack_launch(self, phases: np.ndarray, rows: int) -> Launch:
        p = self.problem
        w = weight_strides(p)
        pitch = -(-rows // PADDING) * PADDING
        row = w.in_channel if p.pass_name == "grad_input" else w.out_channel
        return Launch(pack_code(p.dtype), (int(phases[:, 5].max()) // pitch, p.groups, len(phases)),
                      Packed(p.groups, rows, pitch, p.group_out * w.out_channel, row))

    def _turn_launch(self, phases: np.ndarray) -> Launch:
        p = self.problem
        y = image_strides(p.out_channels, p.output_size, p.channels_last)
        pitch = -(-p.group_out // PADDING) * PADDING
        steps, points = int(phases[0, 5]) // pitch, math.prod(p.output_size)
        # The rows of all planes follow each other, in either layout.
        geometry = Turned(p.groups, p.group_out, points, p.output_size[2], p.batch * points, steps, pitch, y.batch, p.group_out * y.channel,
                          y.channel, y.row, y.column, int(p.channels_last))
        return Launch(turn_code(p.dtype), (-(-steps // SQUARE), pitch // SQUARE, p.groups), geometry,
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
        if self.splits == 1:
            self.multiply(stream, packed[0], first, *tables, bias, out)
            return
        with scratch(stream, self.parts) as (parts,):
            self.multiply(stream, packed[0], first, *tables, bias, parts)
            self.add(stream, parts, bias, out)


def codes(dtype: str) -> list[Code]:
    """Every kernel that a problem of floats may need."""
    tiles = TILES if np.dtype(dtype).itemsize == 4 else TILES64
    flags = (False, True)
    return [*(gemm_code(tile, dtype, gradient, along_depth, volume) for tile in tiles for gradient in flags for along_depth in flags
              for volume in flags), pack_code(dtype), turn_code(dtype), sum_parts_code(dtype)]


# -- tables ---------------------------------------------------------------------------------------------------------------


def _grid(*axes: np.ndarray) -> list[np.ndarray]:
    return [part.ravel() for part in np.meshgrid(*axes, indexing="ij")]


def _operand(problem: Problem, size: tuple[int, ...], strides: Any, channels: int, *, point_at: list[np.ndarray], result_at: np.ndarray,
             tap_at: list[np.ndarray], weights_at: np.ndarray) -> Operand:
    """Entries of the points, at positions along the axes of the image, and of the taps, at positions from them.

    `weights_at` has an offset for each channel and tap; the channels run fastest where the image's do.
    """
    volume = is_volume(problem)
    d, h, w = _grid(*point_at)
    rows = (d << BITS) + h if volume else h
    points = np.stack([d * strides.depth + h * strides.row + w * strides.column, result_at, rows, w], axis=1)
    td, th, tw = _grid(*tap_at)
    c, t = np.meshgrid(np.arange(channels), np.arange(td.size), indexing="ij")
    offsets = c * strides.channel + (td * strides.depth + th * strides.row + tw * strides.column)[t]
    taps = np.stack([offsets, weights_at, ((td << BITS) + th if volume else th)[t], tw[t]], axis=2)
    taps = taps.transpose(1, 0, 2) if problem.channels_last else taps
    return Operand(points.astype(np.int32), taps.reshape(-1, 4).astype(np.int32))


def _forward_operand(problem: Problem) -> Operand:
    """The image x by output points and taps; those of a weight gradient too."""
    p = problem
    x, y, w = _strides(p)
    point_at = [np.arange(n) * s - low for n, s, (low, _) in zip(p.output_size, p.stride, p.padding, strict=True)]
    tap_at = [np.arange(k) * d for k, d in zip(p.kernel_size, p.dilation, strict=True)]
    result_at = sum(q * s for q, s in zip(_grid(*map(np.arange, p.output_size)), y[2:], strict=True))
    taps_at = sum(t * s for t, s in zip(_grid(*map(np.arange, p.kernel_size)), w[2:], strict=True))
    return _operand(p, p.input_size, x, p.group_in, point_at=point_at, result_at=result_at, tap_at=tap_at,
                    weights_at=np.arange(p.group_in)[:, None] * w.in_channel + taps_at)


def _phase_operands(problem: Problem) -> list[Operand]:
    """The image gy, phase by phase; a phase that no tap reaches has points only."""
    p = problem
    x, y, w = _strides(p)
    operands = []
    for phase in p.phases():
        places = [np.arange(n)[target] for n, target in zip(p.input_size, phase.target, strict=True)]
        result_at = sum(i * s for i, s in zip(_grid(*places), x[2:], strict=True))
        forward = phase.problem
        counts = [len(part) for part in places]
        pads = forward.padding if forward else ((0, 0),) * 3
        point_at = [np.arange(n) - low for n, (low, _) in zip(counts, pads, strict=True)]
        taps = [np.arange(k)[part][::-1] if forward else np.arange(0) for k, part in zip(p.kernel_size, phase.taps, strict=True)]
        steps = forward.dilation if forward else (1, 1, 1)
        tap_at = [np.arange(part.size) * step for part, step in zip(taps, steps, strict=True)]
        taps_at = sum(t * s for t, s in zip(_grid(*taps), w[2:], strict=True))
        operands.append(_operand(p, p.output_size, y, p.group_out, point_at=point_at, result_at=result_at, tap_at=tap_at,
                                 weights_at=np.arange(p.group_out)[:, None] * w.out_channel + taps_at))
    return operands


def _tables(operands: list[Operand], groups: int, pitch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The phases' sizes and places, and all their points and taps, filled up with entries that are nowhere inside."""
    far = np.array([0, 0, 0, FAR], np.int32)
    phases, points, taps = [], [], []
    first_point = first_tap = first_packed = 0
    for operand in operands:
        steps = -(-len(operand.taps) // DEPTH_MULTIPLE) * DEPTH_MULTIPLE
        phases.append(Phase(len(operand.points), len(operand.taps), first_point, first_tap, first_packed, steps * pitch))
        filled = len(operand.taps) + PADDING
        taps += [operand.taps, np.tile(far, (filled - len(operand.taps), 1))]
        points += [operand.points, np.tile(far, (1, 1))]
        first_point, first_tap = first_point + len(operand.points) + 1, first_tap + filled
        first_packed += groups * steps * pitch
    return np.array(phases, np.int32), np.concatenate(points), np.concatenate(taps)


def _strides(problem: Problem) -> tuple[Any, Any, Any]:
    p = problem
    return (image_strides(p.in_channels, p.input_size, p.channels_last), image_strides(p.out_channels, p.output_size, p.channels_last),
            weight_strides(p))


def is_volume(problem: Problem) -> bool:
    """Whether planes must be told apart."""
    return problem.input_size[0] > 1 or problem.output_size[0] > 1 or problem.kernel_size[0] > 1


def _product(problem: Problem, splits: int, chunk: int, rows: int, elements: int) -> Product:
    p = problem
    x, y, w = _strides(p)
    pitch = -(-rows // PADDING) * PADDING
    bias = int(p.bias and splits == 1 and p.pass_name != "grad_weight")
    sizes = p.groups, splits, chunk, rows, p.batch
    if p.pass_name == "grad_input":
        places = *p.output_size, y.batch, p.group_out * y.channel, x.batch, p.group_in * x.channel, x.channel
    elif p.pass_name == "forward":
        places = *p.input_size, x.batch, p.group_in * x.channel, y.batch, p.group_out * y.channel, y.channel
    else:
        places = *p.input_size, x.batch, p.group_in * x.channel, y.batch, p.group_out * w.out_channel, w.out_channel
    return Product._make((*sizes, *places, pitch, elements, bias))


# -- choosing -------------------------------------------------------------------------------------------------------------


def choose(problem: Problem, machine: Gpu) -> tuple[Tile, int, int]:
    """The tile, the splits of the depth and the steps of each."""
    p = problem
    tiles = TILES if np.dtype(p.dtype).itemsize == 4 else TILES64
    gradient = p.pass_name == "grad_weight"
    points = p.batch * math.prod(p.input_size if p.pass_name == "grad_input" else p.output_size)
    depth = points if gradient else p.taps * p.group_out // max(1, p.group_in) if p.pass_name == "grad_input" else p.taps
    rows = p.group_in if p.pass_name == "grad_input" else p.group_out
    columns = p.taps if gradient else points
    blocks = {tile: p.groups * -(-rows // tile.rows) * -(-columns // tile.columns) for tile in tiles}
    tile = next((tile for tile in tiles if blocks[tile] >= machine.multiprocessors), tiles[-1])
    wanted = -(-2 * machine.multiprocessors // max(1, blocks[tile]))
    splits = max(1, min(wanted, depth // LEAST_DEPTH, MOST_SPLITS)) if blocks[tile] < machine.multiprocessors else 1
    chunk = -(-depth // splits // DEPTH_MULTIPLE) * DEPTH_MULTIPLE + (DEPTH_MULTIPLE if splits > 1 else 0)
    return tile, splits, max(chunk, DEPTH_MULTIPLE)


def refuses(problem: Problem) -> str | None:
    p = problem
    if np.dtype(p.dtype).kind != "f":
        return f"computes floating-point numbers, not {p.dtype}"
    if p.padding_mode != "zeros":
        return f"needs a border of zeros, not {p.padding_mode!r}"
    if not p.flops:
        return "there is nothing to sum"
    if is_volume(p) and max(*p.input_size[:2], *p.output_size[:2]) * 2 >= 2**BITS:
        return "planes or rows of a volume that 16 bits do not count"
    if max(math.prod(p.input_size), math.prod(p.output_size)) > MOST_POINTS:
        return f"needs a table of an image's points, at most {MOST_POINTS:,}"
    return index_refusal(p)


def seconds(problem: Problem, machine: Gpu) -> float:
    """Time of the tiles, those that are not full among them, by the waves in which the multiprocessors take them."""
    p = problem
    tile, splits, _ = choose(p, machine)
    points = p.batch * math.prod(p.input_size if p.pass_name == "grad_input" else p.output_size)
    rows, columns, depth = p.group_out, points, float(p.taps)
    if p.pass_name == "grad_weight":
        columns, depth = p.taps, float(points)
    if p.pass_name == "grad_input":
        rows, depth = p.group_in, p.group_out * math.prod(p.kernel_size) / math.prod(p.stride)
    blocks = p.groups * splits * -(-rows // tile.rows) * -(-columns // tile.columns)
    waves = -(-blocks // machine.multiprocessors)
    busy = waves * 2 * tile.rows * tile.columns * depth / splits / (EFFICIENCY * machine.flops(p.dtype) / machine.multiprocessors)
    return (2 + (splits > 1)) * LAUNCH_SECONDS + max(busy, p.bytes / machine.bandwidth)


def pack_seconds(problem: Problem, machine: Gpu) -> float:
    return LAUNCH_SECONDS + 2 * problem.itemsize * math.prod(problem.shapes[1]) / machine.bandwidth


BACKEND = Backend(refuses, seconds, Im2col, pack_seconds)
