"""How `im2col` is shared out among threads, and its cost model."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

from ..problem import Problem
from . import CACHED_BYTES, Machine
from ._boxes import TASKS_PER_THREAD, Geometry, cut, speedup
from ._col2im import col2im_seconds
from ._forward_rows import rows_seconds as forward_rows_seconds
from ._gemm import panel_width, rows_computed
from ._gradient_rows import rows_seconds
from ._phases import phase_seconds
from ._pointwise import PointwiseForward, product_seconds
from ._simd import TILE_COLUMNS, TILE_ROWS, TILE_SIZES, lane_count

CHUNK_TAPS = 288  # rows of a weight gradient's task: 32 channels 3x3 (benchmarks/bench_conv.py, grad_weight, 3x3s2_256@28)
PARTS_BYTES = 16 * 1024 * 1024  # of partial weight gradients that are added up at the end
SERIAL_FLOPS = 1_500_000  # below which one thread is done before a second has started (benchmarks/bench_conv.py, tiny)
TILE_OVERHEAD = 18  # steps of k that filling and storing a tile costs (bench_conv.py, 1x1 against 3x3)
STRAIGHT_OVERHEAD = 8  # the same where a weight gradient's tiles are written as they are (bench_conv.py, 1x1 at 7x7)
RESUMED_OVERHEAD = 8  # of going on with a weight gradient's sums in the next box (bench_conv.py, grad_weight, 3x3s2_128@56)
ALIASED_OVERHEAD = 25  # the same, further, where planes of y are a multiple of 4 KiB apart (bench_conv.py, 224 against 222)
ROW_COST, COPY_COST = 15, 10  # vector multiply-adds of copying a row of a box, and a vector of it (bench_conv.py, 3x3 layers)
EFFICIENCY = 0.91  # share of the peak in the main loop (bench_conv.py, 3x3 layers)
SINGLE_EFFICIENCY = 0.62  # the same of tiles one vector wide, where a channel or sixteen are left over: loads limit it
PASSED_FACTOR = 1.3  # of products with points read in place between which a stride passes others over (bench_conv.py, 1x1s2)
MOVED_PASSES = 1.0  # times operands and result pass the second-level cache (bench_conv.py, 1x1)
PARTS_SECONDS = 6e-6  # of allocating and adding partial gradients by NumPy (bench_conv.py, tiny)
PACK_SPEED = 1.3  # times the bandwidth at which one thread writes panels (bench_conv.py, plain calls, 3x3_512@7, 3x3s2_512@14)
PACK_SECONDS = 1.6e-6  # of Python around packing (bench_conv.py, tiny)
HANDED_SECONDS = 13e-6  # of panels that another core has just written (bench_conv.py, plain calls, 1x1 at 7 x 7 and 14 x 14)
EXPOSED = 0.75  # share of the time of weights from memory that the products do not hide (cold plans of 3x3_512@7, 3x3s2_512@14)
CALL_SECONDS = 1e-6  # of Python around a run (bench_conv.py, tiny)


def forward_boxes(problem: Problem, threads: int) -> Geometry:
    """The boxes of a forward pass."""
    panels = problem.groups * -(-problem.group_out // panel_width(problem.dtype))
    return cut(problem, threads if problem.flops > SERIAL_FLOPS else 1, tasks_per_box=max(1, panels))


class GradientTasks(NamedTuple):
    """How a weight gradient is shared out."""

    geometry: Geometry
    chunk: int  # channels of a task
    splits: int  # tasks that share the panels
    shares: int  # tasks that share the boxes, each with a gradient of its own


def gradient_tasks(problem: Problem, threads: int) -> GradientTasks:
    """Tasks enough for the threads: of fewer channels, then of fewer panels, then of fewer boxes."""
    p = problem
    wanted = TASKS_PER_THREAD * threads if p.flops > SERIAL_FLOPS else 1
    chunk = _chunk(p, threads, wanted)
    tasks = max(1, p.groups * -(-p.group_in // chunk))
    splits = max(1, min(_panels(p), -(-wanted // tasks)))
    g = cut(p, 1, channels=chunk, column_multiple=max(p.output_size[2], 1))
    most_parts = max(1, PARTS_BYTES // (p.itemsize * max(1, math.prod(p.weight_shape))))
    return GradientTasks(g, chunk, splits, max(1, min(-(-wanted // (tasks * splits)), g.boxes, most_parts)))


def _panels(problem: Problem) -> int:
    return -(-problem.group_out // panel_width(problem.dtype))


def _chunk(problem: Problem, threads: int, wanted: int) -> int:
    """Channels of a task, so that the thread with the most tasks is done soonest.

    128 channels 3x3 in nine chunks of 14 and one of 2 took .94 ms, in eight of 16 .86. Tasks that share the panels of a chunk would
    each copy its channels, where they are copied.
    """
    p, points, panels = problem, math.prod(problem.kernel_size), _panels(problem)
    copied = any(max(pad) > 0 for pad in p.padding)
    fewest = max(1, min(p.group_in, -(-2 * TILE_ROWS // points)))
    most = max(fewest, min(p.group_in, CHUNK_TAPS // points, p.groups * p.group_in // wanted if copied else p.group_in))

    def cost(chunk: int) -> tuple[bool, int, int, int]:
        tasks = max(1, p.groups * -(-p.group_in // chunk))
        splits = max(1, min(panels, -(-wanted // tasks)))
        longest = -(-tasks * splits // threads) * -(-panels // splits) * rows_computed(chunk * points)
        return tasks * splits < wanted, longest, splits, -chunk

    return min(range(fewest, most + 1), key=cost)


# -- cost model -----------------------------------------------------------------------------------------------------------


def seconds(problem: Problem, machine: Machine) -> float:
    """Time of the register tiles, columns beyond the channels included, plus what enters and leaves them."""
    p = problem
    if p.pass_name == "grad_input":
        return col2im_seconds(p, machine) if takes_col2im(p, machine) else _turned_seconds(p, machine)
    if p.pass_name == "forward":
        return CALL_SECONDS + min(_forward_seconds(p, machine), _product_seconds(p, machine), forward_rows_seconds(p, machine))
    if is_turned(p, machine):
        return _turned_gradient_seconds(p, machine)
    return min(rows_seconds(p, machine), _panels_seconds(p, machine))


def is_rows(problem: Problem, machine: Machine) -> bool:
    """Whether a weight gradient is faster with the taps of x as its columns than as its rows."""
    return rows_seconds(problem, machine) < _panels_seconds(problem, machine)


def is_turned(problem: Problem, machine: Machine) -> bool:
    """Whether the weight gradient of a kernel of one tap is faster from panels of x than from panels of gy."""
    p = problem
    if (p.channels_last or p.groups > 1 or math.prod(p.kernel_size) * math.prod(p.stride) > 1 or any(map(any, p.padding))
            or 0 in p.output_shape or p.in_channels == 0):
        return False
    return _turned_gradient_seconds(p, machine) < _panels_seconds(p, machine) + _panel_seconds(p, machine)


def turned_gradient(problem: Problem) -> Problem:
    """The problem whose x is gy and whose gy is x: its weight gradient is the transpose."""
    p = problem
    return replace(p, in_channels=p.out_channels, out_channels=p.in_channels, input_size=p.output_size)


def _turned_gradient_seconds(problem: Problem, machine: Machine) -> float:
    """Time from panels of x, packed in the run; gw is written as it is."""
    turned = turned_gradient(problem)
    return _panels_seconds(turned, machine, STRAIGHT_OVERHEAD) + _panel_seconds(turned, machine)


def _panels_seconds(problem: Problem, machine: Machine, overhead: int = TILE_OVERHEAD) -> float:
    """Time of a weight gradient from panels of gy."""
    p = problem
    points = p.batch * math.prod(p.output_size)
    moved = MOVED_PASSES * _touched_bytes(p) / machine.cache_bandwidth
    g, chunk, splits, shares = gradient_tasks(p, machine.threads)
    chunks = -(-p.group_in // chunk)
    sizes = [chunk] * (p.group_in // chunk) + [p.group_in % chunk]
    rows = sum(-(-size * math.prod(p.kernel_size) // TILE_SIZES[-2]) * TILE_SIZES[-2] for size in sizes)
    multiply = 2 * rows * _columns(p) * (points + overhead + RESUMED_OVERHEAD * (g.boxes - 1)) / machine.flops(p.dtype)
    work = multiply + moved + splits * _copy_seconds(p, g, machine)
    if p.flops <= SERIAL_FLOPS:
        return CALL_SECONDS + work
    summed = (shares > 1) * (PARTS_SECONDS + shares * math.prod(p.weight_shape) * p.itemsize / machine.cache_bandwidth)
    tasks = shares * p.groups * chunks * splits
    return CALL_SECONDS + machine.region_seconds + work / speedup(tasks, machine.threads) + summed


def _copy_seconds(problem: Problem, g: Geometry, machine: Machine) -> float:
    """Time in which one thread copies all boxes' inputs, if they are not read in place."""
    p = problem
    if g.in_place:
        return 0.0
    depths, rows, columns = g.input_extents
    lines = g.boxes * g.box_n * depths * rows * (1 if p.channels_last else p.in_channels)
    vectors = -(-columns * (p.in_channels if p.channels_last else 1) // lane_count(p.dtype))
    return lines * (ROW_COST + COPY_COST * vectors) * 2 * lane_count(p.dtype) / machine.flops(p.dtype)


def _touched_bytes(problem: Problem) -> float:
    """Bytes of the operands and the result without the rows that a stride passes over."""
    p = problem
    skipped = math.prod(min(1.0, k / s) for k, s in zip(p.kernel_size[:2], p.stride[:2], strict=True))
    return p.bytes - (1 - skipped) * math.prod(p.input_shape) * p.itemsize


def _columns(problem: Problem) -> float:
    """Output channels, as if all tiles were done at the peak."""
    lanes = panel_width(problem.dtype) // TILE_COLUMNS
    vectors = -(-problem.group_out // lanes)
    single = vectors % TILE_COLUMNS
    return problem.groups * lanes * ((vectors - single) / EFFICIENCY + single / SINGLE_EFFICIENCY)


def is_product(problem: Problem, machine: Machine) -> bool:
    """Whether a forward convolution is faster as a product that is written as it is than with packed weights."""
    return _product_seconds(problem, machine) < _forward_seconds(problem, machine)


def is_forward_rows(problem: Problem, machine: Machine) -> bool:
    """Whether a forward convolution is faster with its weights' rows as they lie than with packed weights, or as that product."""
    return forward_rows_seconds(problem, machine) < min(_forward_seconds(problem, machine), _product_seconds(problem, machine))


def _product_seconds(problem: Problem, machine: Machine) -> float:
    """Time of the product whose lanes are pixels; infinite where it is none."""
    p = problem
    if not PointwiseForward.takes(p):
        return math.inf
    work = product_seconds(p, machine) + p.bytes / machine.cache_bandwidth
    if p.flops <= SERIAL_FLOPS:
        return work
    far = p.bytes / machine.bandwidth if p.bytes > CACHED_BYTES else 0.0
    return machine.region_seconds + max(far, work) / machine.threads + cold_seconds(p, machine)


def _forward_seconds(problem: Problem, machine: Machine) -> float:
    """Time of the tiles, of the boxes' copies, of which every thread that takes a box's panels makes one, and of threads without tasks."""
    p = problem
    aliased = not p.channels_last and math.prod(p.output_size) * p.itemsize % 4096 == 0
    depth = p.taps + TILE_OVERHEAD + (ALIASED_OVERHEAD if aliased else 0)
    multiply = 2 * p.batch * math.prod(p.output_size) * _columns(p) * depth / machine.flops(p.dtype)
    moved = MOVED_PASSES * _touched_bytes(p) / machine.cache_bandwidth
    g = forward_boxes(p, machine.threads)
    if g.in_place and p.stride[2] > p.kernel_size[2]:
        multiply *= PASSED_FACTOR
    copies = _copy_seconds(p, g, machine)
    if p.flops <= SERIAL_FLOPS:
        return copies + multiply + moved
    panels = p.groups * -(-p.group_out // panel_width(p.dtype))
    touched = _touched_bytes(p)
    far = touched / (machine.bandwidth * machine.threads) if touched > CACHED_BYTES else 0.0
    near = copies / speedup(g.boxes, machine.threads) + (multiply + moved) / speedup(g.boxes * panels, machine.threads)
    return machine.region_seconds + max(far, near) + cold_seconds(p, machine)


def cold_seconds(problem: Problem, machine: Machine) -> float:
    """What weights from memory add."""
    p = problem
    streamed = math.prod(p.weight_shape) * p.itemsize / (machine.bandwidth * machine.threads)
    return EXPOSED * streamed if p.cold_weights else 0.0


def takes_col2im(problem: Problem, machine: Machine) -> bool:
    """Whether a `grad_input` is faster with its weights as they lie than as forward convolutions, whose weights are turned first."""
    return col2im_seconds(problem, machine) < _turned_seconds(problem, machine) + _turning_seconds(problem, machine)


def phase_forward_seconds(problem: Problem, machine: Machine) -> float:
    """Time of a phase of a `grad_input`, whose weights lie turned."""
    return CALL_SECONDS + min(_forward_seconds(problem, machine), _product_seconds(problem, machine))


def _turned_seconds(problem: Problem, machine: Machine) -> float:
    return phase_seconds(problem, lambda phase: phase_forward_seconds(phase, machine), machine.bandwidth)


def pack_seconds(problem: Problem, machine: Machine) -> float:
    """Time of packing what `pack` is given."""
    p = problem
    if p.pass_name == "grad_input":
        return 0.0 if takes_col2im(p, machine) else _turning_seconds(p, machine)
    if p.pass_name == "grad_weight":
        return 0.0 if is_turned(p, machine) or is_rows(p, machine) else _panel_seconds(p, machine)
    if is_product(p, machine) or is_forward_rows(p, machine):
        return 0.0
    return min(_panel_seconds(p, machine), CALL_SECONDS + forward_rows_seconds(p, machine) - seconds(p, machine))


def runs_unpacked(problem: Problem, machine: Machine) -> bool:
    """Whether a forward convolution is faster with weights as they lie than with panels made for one run."""
    packed = _forward_seconds(problem, machine) + _panel_seconds(problem, machine)
    return forward_rows_seconds(problem, machine) < min(packed, _product_seconds(problem, machine))


def _turning_seconds(problem: Problem, machine: Machine) -> float:
    """Packing the weights of all phases, each of which reads every line of them."""
    p = problem
    reads = math.prod(p.stride) * math.prod(p.weight_shape) * p.itemsize / machine.bandwidth
    return _panel_seconds(p, machine) + reads / machine.threads


def _panel_seconds(problem: Problem, machine: Machine) -> float:
    """Both sides of the copy into panels, whose missing columns are written too."""
    second = math.prod(problem.shapes[1]) * problem.itemsize
    panels = second // max(1, problem.out_channels) * problem.groups * -(-problem.group_out // panel_width(problem.dtype))
    written = panels * panel_width(problem.dtype)
    shared = speedup(problem.groups * -(-problem.group_out // panel_width(problem.dtype)), machine.threads)
    handed = HANDED_SECONDS if problem.flops > SERIAL_FLOPS and machine.threads > 1 else 0.0
    return PACK_SECONDS + handed + (second / machine.cache_bandwidth + written / (PACK_SPEED * machine.bandwidth)) / shared
