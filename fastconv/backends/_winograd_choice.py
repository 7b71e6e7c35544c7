"""Which minimal-filtering algorithm a convolution gets: the algorithms there are, and their predicted times.

An algorithm is one axis of `_cook_toom` down and one across. A strided convolution has two kinds of them:

    polyphase   the axis algorithm is the sum of those of the stride's phases
    folded      space to depth: the s_h s_w phases of the image become channels, ceil(k / s) taps and stride 1 remain;
                where channels are few (a first layer's three become 12 or 48) this fills the lanes

Source: Lavin and Gray (2016), section 4; folding: Vaidyanathan, "Multirate Systems and Filter Banks" (1993), section 4.3.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

from ..problem import Problem
from . import Machine
from ._cook_toom import Axis, axis_algorithm
from ._jit import num_threads
from ._simd import TILE_COLUMNS, TILE_ROWS, VECTOR_REGISTERS, lane_count

# Outputs of a tile, down and across, of the algorithms there are by (taps, stride) of both axes, and by those of a line of taps.
# Oblong tiles waste less of small maps, and of weights' traffic and registers they take a middle course: 512 channels at 7 x 7
# take .53 ms in tiles of 4 x 2, .62 in 2 x 2, .75 in 4 x 4. Tiles of a line are one point high: with four, each transformed weight is
# there four times (1x7, 128 channels at 17 x 17: .28 ms, so .18).
SQUARES = {(2, 1): ((4, 4), (2, 2)), (3, 1): ((4, 4), (4, 2), (2, 2)), (4, 1): ((4, 4), (2, 2)), (5, 1): ((4, 4), (2, 2)),
           (7, 1): ((2, 2),), (3, 2): ((4, 4), (4, 2), (2, 2)), (5, 2): ((2, 2),)}
LINES = {(2, 1): 4, (3, 1): 4, (5, 1): 4, (7, 1): 4}
MIXED = {(2, 3): 4, (3, 2): 4}  # taps of the two axes: phases of a strided 5x5
NO_GRADIENT = {(7, 7)}  # taps of algorithms whose weight gradient errs by more than 1e-5 (tests/test_winograd.py)
SMALLEST_CHANNELS = 8  # of a group, in and out: fewer leave lanes of the transforms and the product empty
TRANSFORMED_BYTES = 768 * 1024  # of V and a panel's sums: three quarters of a 1 MiB L2 (benchmarks/bench_conv.py, 3x3 layers)
FEWEST_TILES, MOST_TILES = 2 * TILE_ROWS, 16 * TILE_ROWS  # of a box, where there are so many

SERIAL_FLOPS = 400_000  # below which one thread is done before a second has started (benchmarks/bench_conv.py, tiny)
PRODUCT_OVERHEAD = 12  # steps of the sum that filling and storing a register tile costs (bench_conv.py, 3x3 layers)
FEWEST_ROWS = 4  # of a register tile, as whose products fewer take as long: each waits for the last
EFFICIENCY = 0.9  # share of the peak in the products (bench_conv.py, 3x3 layers)
# Times a transformed element's bytes pass the second-level cache, where a tile's vectors stay in the registers, where they fill
# them twice, and beyond (bench_conv.py, 3x3_64@56 in tiles of 2 x 2 and 4 x 4; 3x3s2_128@56 in tiles of 2 x 2 and 4 x 4):
TRANSFORM_PASSES = (2.5, 4, 8)
# Times an element's bytes pass it while it is folded among many channels, each to a cache line of its own (bench_conv.py,
# 3x3s2_128@56 folded: 1.21 ms, predicted without .80); few channels share lines:
FOLD_PASSES = 40
FOLDED_VECTORS = 4
# Share of the products or of the streaming of weights from memory, whichever is shorter, that the other does not hide; all of it
# where one register tile has all rows, which then waits for each panel (cold plans of 3x3_512@7, 3x3_256@14):
EXPOSED = 0.25
# Of transformed weights, beyond which they come from the last-level cache, and all tiles of a product fetch the next one's (3x3_512@14:
# 1.58 ms without, 1.46 with; 384 channels .90, .82; 256, of 9 MB, .37, .38):
FETCHED_BYTES = 12 * 1024 * 1024
WEIGHT_READS = 4  # weights are fetched ahead, from the last-level cache or memory (bench_conv.py, 3x3_512@7, 3x3_512@14)
PACK_PASSES = 2  # times the weights' bytes pass memory, both threads together (bench_conv.py, 3x3 layers)
# Weights that are used once (bench_conv.py, backward and plain calls, 3x3 layers of 128 to 512 channels):
ONCE_BYTES = 384 * 1024  # of a panel's transformed weights; with the sums they fill most of a 1 MiB L2
ONCE_SUMS_BYTES = 512 * 1024
ONCE_TRANSFORMED_BYTES = 8 * 1024 * 1024  # of V at most: a quarter of a 32 MiB last-level cache (3x3_64@224: 6.7 ms with 29 MB, packed 4.2)
ONCE_PASSES = 1.5  # times the weights' bytes pass memory for each block of tiles
ONCE_TRANSFORM_PASSES = 2  # times their transforms' bytes pass the second-level cache
ONCE_OVERHEAD = 24  # PRODUCT_OVERHEAD for sums that are stored and gone on with, channels by channels
# Of weight gradients (bench_conv.py, grad_weight):
GRADIENT_SUMS_BYTES = 256 * 1024  # of a task's sums: a quarter of a 1 MiB L2
GRADIENT_EFFICIENCY = 0.8  # EFFICIENCY of products whose operands are transforms of other cores (3x3s2_128@56, 3x3_128@28, 3x3_512@8)
GRADIENT_READS = 3  # times what the products read passes the second-level cache: it comes from the last level, and from other cores'
LARGEST_SUMS = 2 * 1024 * 1024  # bytes of a thread's own: 3x3s2_128@56, 2 MB, 1.12 ms, sharing them 1.45; 3x3_128@28, 2.9 MB, .73 and .55
STRIPS_BYTES = 512 * 1024  # of the transforms of a task that has: with the sums, about a 1 MiB L2
SPILLED_BYTES = 768 * 1024  # of sums that, with the strips, leave a 1 MiB L2 ...
SPILLED_READS = 2  # ... and so take longer to read (3x3s2_128@56, 3x3s2_96@64)
FEWEST_STRIPS = 2  # of tiles a thread
CALL_SECONDS = 4e-6  # of Python around a run (bench_conv.py, tiny)


class Algorithm(NamedTuple):
    """One axis down, one across, and by how much the image is folded before."""

    high: Axis
    wide: Axis
    fold_h: int = 1
    fold_w: int = 1

    @property
    def products(self) -> int:
        """Multiplications of a tile."""
        return self.high.products * self.wide.products

    @property
    def keys(self) -> list[tuple[int, int, int]]:
        """What the transforms are known by."""
        return [(axis.outputs, axis.taps, axis.stride) for axis in (self.high, self.wide)]

    def channels(self, problem: Problem) -> int:
        """Channels of a group of the folded image."""
        return problem.group_in * self.fold_h * self.fold_w

    def tiles(self, problem: Problem) -> tuple[int, int]:
        """Tiles down and across an image, without the factors of the dilation."""
        (_, height, width), (_, dh, dw) = problem.output_size, problem.dilation
        return -(-height // (self.high.outputs * dh)), -(-width // (self.wide.outputs * dw))


def _pairs(high: tuple[int, int], wide: tuple[int, int]) -> list[tuple[Axis, Axis]]:
    """The pairs of axis algorithms for (taps, stride) down and across."""
    if high == wide:
        return [(axis_algorithm(down, *high), axis_algorithm(across, *wide)) for down, across in SQUARES.get(high, ())]
    if wide == (1, 1) and high in LINES:
        return [(axis_algorithm(LINES[high], *high), axis_algorithm(1, 1))]
    if high == (1, 1) and wide in LINES:
        return [(axis_algorithm(1, 1), axis_algorithm(LINES[wide], *wide))]
    taps = (high[0], wide[0])
    if high[1] == wide[1] == 1 and taps in MIXED:
        return [(axis_algorithm(MIXED[taps], high[0]), axis_algorithm(MIXED[taps], wide[0]))]
    return []


def algorithms(problem: Problem) -> list[Algorithm]:
    """The algorithms for a convolution, none where there are none."""
    p = problem
    (_, kh, kw), (_, sh, sw), (_, dh, dw) = p.kernel_size, p.stride, p.dilation
    found = [Algorithm(*pair) for pair in _pairs((kh, sh), (kw, sw))]
    if (sh > 1 or sw > 1) and (sh == 1 or dh == 1) and (sw == 1 or dw == 1):
        found += [Algorithm(*pair, sh, sw) for pair in _pairs((-(-kh // sh), 1), (-(-kw // sw), 1))]
    if p.pass_name == "grad_weight":
        found = [a for a in found if (a.high.taps, a.wide.taps) not in NO_GRADIENT]
    return [a for a in found if min(a.channels(p), p.group_out) >= SMALLEST_CHANNELS]


def transforms() -> list[tuple[tuple[int, int, int], tuple[int, int, int]]]:
    """The keys of every algorithm, for compiling ahead."""
    squares = [((taps, stride), (taps, stride)) for taps, stride in SQUARES]
    lines = [(line, (1, 1)) for line in LINES] + [((1, 1), line) for line in LINES]
    mixed = [((high, 1), (wide, 1)) for high, wide in MIXED]
    pairs = itertools.chain.from_iterable(_pairs(*axes) for axes in squares + lines + mixed)
    return [(high, wide) for high, wide in (Algorithm(*pair).keys for pair in pairs)]


def tiles_of_a_box(problem: Problem, algorithm: Algorithm) -> int:
    """Tiles that a box aims at: their transforms and a panel's sums within most of a second-level cache."""
    p = problem
    elements = vectors_of(algorithm.channels(p), p.dtype) * p.kernel_size[0] + TILE_COLUMNS * lane_count(p.dtype)
    fitting = TRANSFORMED_BYTES // (algorithm.products * elements * p.itemsize)
    return min(MOST_TILES, max(FEWEST_TILES, fitting))


def vectors_of(count: int, dtype: str) -> int:
    """`count` rounded up to whole vectors."""
    lanes = lane_count(dtype)
    return -(-count // lanes) * lanes


def odd_lines(count: int, lanes: int) -> int:
    """Elements, at least `count`, that are an odd number of vectors: planes so far apart fall on different cache sets."""
    return (-(-count // lanes) | 1) * lanes


def channels_at_once(problem: Problem, algorithm: Algorithm) -> int:
    """Channels of which `_winograd_once` transforms a panel's weights before it multiplies them: a share of the cache."""
    p, a = problem, algorithm
    columns = TILE_COLUMNS * lane_count(p.dtype) * p.itemsize
    return max(1, min(p.group_in, ONCE_BYTES // (a.products * p.kernel_size[0] * a.fold_h * a.fold_w * columns)))


def strips_at_once(problem: Problem, algorithm: Algorithm) -> int:
    """Strips of tiles that `_winograd_once` multiplies with them: as many as their sums leave room for."""
    p, a = problem, algorithm
    tiles_down, across = a.tiles(p)
    tiles = ONCE_SUMS_BYTES // (a.products * TILE_COLUMNS * lane_count(p.dtype) * p.itemsize)
    strips = max(1, p.batch * p.output_size[0] * tiles_down)
    blocks = -(-strips // max(1, tiles // (p.dilation[1] * across * p.dilation[2])))
    return -(-strips // blocks)


def transform_passes(algorithm: Algorithm) -> float:
    """Times the bytes of a tile's transforms pass the second-level cache."""
    return TRANSFORM_PASSES[min(2, (algorithm.products - 1) // VECTOR_REGISTERS)]


def folding_bytes(problem: Problem, algorithm: Algorithm) -> float:
    """What folding the input moves through the second-level cache."""
    p, a = problem, algorithm
    if a.fold_h * a.fold_w == 1 or a.channels(p) <= FOLDED_VECTORS * lane_count(p.dtype):
        return 0.0
    return FOLD_PASSES * p.batch * p.in_channels * math.prod(p.input_size) * p.itemsize


def forward_seconds(problem: Problem, algorithm: Algorithm, machine: Machine) -> float:
    """Time of the products, of both transforms, and of reading the weights once a box."""
    p = problem
    channels, depth = algorithm.channels(p), p.kernel_size[0]
    lines, columns = vectors_of(channels, p.dtype), vectors_of(p.group_out, p.dtype)
    out_d = p.output_size[0]
    image_tiles = math.prod(algorithm.tiles(p)) * p.dilation[1] * p.dilation[2]
    tiles = p.batch * p.groups * image_tiles
    products = algorithm.products
    boxes = max(1, p.batch * -(-image_tiles * out_d // tiles_of_a_box(p, algorithm)))
    rows = p.groups * boxes * max(FEWEST_ROWS, -(-p.batch * image_tiles * out_d // boxes))
    multiply = 2 * rows * products * columns * (channels * depth + PRODUCT_OVERHEAD) / (EFFICIENCY * machine.flops(p.dtype))
    depths = out_d * p.stride[0] + p.dilation[0] * (depth - 1)
    transformed = tiles * products * (depths * lines + out_d * columns) * p.itemsize * transform_passes(algorithm)
    weights = boxes * products * columns * p.groups * channels * depth * p.itemsize
    moved = (transformed + folding_bytes(p, algorithm) + 2 * p.bytes) / machine.cache_bandwidth
    if p.cold_weights:
        streamed = weights / boxes / machine.bandwidth
        exposed = EXPOSED if tiles * out_d > TILE_ROWS * boxes * p.groups else 1
        multiply = max(multiply, streamed) + exposed * min(multiply, streamed)
    else:
        moved += weights / (WEIGHT_READS * machine.bandwidth)
    threads = machine.threads if p.flops > SERIAL_FLOPS else 1
    return CALL_SECONDS + machine.region_seconds + (multiply + moved) / threads


def fetches_products(problem: Problem, algorithm: Algorithm) -> bool:
    """Whether the tiles of a product bring the next product's weights near."""
    p = problem
    size = algorithm.products * p.kernel_size[0] * algorithm.channels(p) * p.out_channels * p.itemsize
    return p.cold_weights or size > FETCHED_BYTES


def once_seconds(problem: Problem, algorithm: Algorithm, machine: Machine) -> float:
    """Time with weights that are used once, their transform included; infinite where V is too large."""
    p, a = problem, algorithm
    channels, depth = a.channels(p), p.kernel_size[0]
    lines, columns = vectors_of(channels, p.dtype), vectors_of(p.group_out, p.dtype)
    tiles_down, across = a.tiles(p)
    out_d, depths = p.output_size[0], (p.output_size[0] - 1) * p.stride[0] + p.dilation[0] * (depth - 1) + 1
    tiles = p.batch * p.groups * tiles_down * across * p.dilation[1] * p.dilation[2]
    if tiles * a.products * depths * lines * p.itemsize > ONCE_TRANSFORMED_BYTES:
        return math.inf
    sums = -(-p.group_in // channels_at_once(p, a)) * depth
    multiply = 2 * tiles * out_d * a.products * columns * (channels * depth + ONCE_OVERHEAD * sums)
    transformed = tiles * a.products * (depths * lines + out_d * columns) * p.itemsize
    blocks = p.batch * out_d * tiles_down / strips_at_once(p, a)
    weights = blocks * math.prod(p.weight_shape) * p.itemsize
    transformed_weights = blocks * a.products * p.groups * columns * channels * depth * p.itemsize
    threads = machine.threads if p.flops > SERIAL_FLOPS else 1
    return 2 * (CALL_SECONDS + machine.region_seconds) + (
        multiply / (EFFICIENCY * machine.flops(p.dtype)) + ONCE_PASSES * weights / machine.bandwidth
        + (transformed * transform_passes(a) + transformed_weights * ONCE_TRANSFORM_PASSES
           + folding_bytes(p, a) + 2 * p.bytes) / machine.cache_bandwidth
    ) / threads


def packing_seconds(problem: Problem, machine: Machine) -> float:
    """Packing weights into panels, and writing a few times as many transformed ones."""
    return CALL_SECONDS + PACK_PASSES * math.prod(problem.weight_shape) * problem.itemsize / machine.bandwidth


def sums_pitches(problem: Problem, algorithm: Algorithm) -> tuple[int, int]:
    """From one product's sums of a panel of the weights' gradient to the next, and from panel to panel."""
    lanes = lane_count(problem.dtype)
    product = odd_lines((algorithm.channels(problem) + TILE_ROWS) * TILE_COLUMNS * lanes, lanes)
    return product, algorithm.products * product


def splits_tiles(problem: Problem, algorithm: Algorithm) -> bool:
    """Whether the threads share the tiles of a weight gradient, each with sums of its own, and not the sums of all tiles."""
    p, a = problem, algorithm
    panels = p.groups * -(-p.group_out // (TILE_COLUMNS * lane_count(p.dtype)))
    strips = p.batch * p.output_size[0] * a.tiles(p)[0]
    return (p.kernel_size[0] == 1 and panels * sums_pitches(p, a)[1] * p.itemsize <= LARGEST_SUMS
            and strips >= FEWEST_STRIPS * num_threads())


def gradient_seconds(problem: Problem, algorithm: Algorithm, machine: Machine) -> float:
    """Time of the weight gradient: both transforms, the products, what they read, and the transform of their sums."""
    p, a = problem, algorithm
    channels = a.channels(p)
    lines, columns = vectors_of(channels, p.dtype), vectors_of(p.group_out, p.dtype)
    out_d, depth = p.output_size[0], p.kernel_size[0]
    tiles = p.batch * math.prod(a.tiles(p)) * p.dilation[1] * p.dilation[2]
    depths = (out_d - 1) * p.stride[0] + p.dilation[0] * (depth - 1) + 1
    sums = p.groups * depth * a.products * channels * columns
    multiply = 2 * sums * (tiles * out_d + PRODUCT_OVERHEAD) / (GRADIENT_EFFICIENCY * machine.flops(p.dtype))
    transformed = p.groups * tiles * a.products * (depths * lines + out_d * columns)
    if splits_tiles(p, a):
        read = 2 * sums * (1 + transformed * p.itemsize // STRIPS_BYTES)  # by every task
        read *= SPILLED_READS if sums * p.itemsize > SPILLED_BYTES else 1
    else:
        block = GRADIENT_SUMS_BYTES // (a.products * TILE_COLUMNS * lane_count(p.dtype) * p.itemsize)
        panels = -(-columns // (TILE_COLUMNS * lane_count(p.dtype)))
        read = GRADIENT_READS * p.groups * depth * tiles * out_d * a.products * (channels * panels + columns * -(-channels // block))
    moved = (p.itemsize * (transformed * transform_passes(a) + read + sums) + folding_bytes(p, a)) / machine.cache_bandwidth
    threads = machine.threads if p.flops > SERIAL_FLOPS else 1
    return 3 * (CALL_SECONDS + machine.region_seconds) + (multiply + moved) / threads


def best_algorithm(problem: Problem, machine: Machine) -> tuple[float, Algorithm]:
    """The fastest algorithm as predicted, and its time."""
    seconds = gradient_seconds if problem.pass_name == "grad_weight" else forward_seconds
    found = [(seconds(problem, algorithm, machine), algorithm) for algorithm in algorithms(problem)]
    return min(found, key=lambda item: item[0])


def best_once(problem: Problem, machine: Machine) -> tuple[float, Algorithm]:
    """The fastest algorithm for weights that are used once, as predicted, and its time."""
    return min(((once_seconds(problem, algorithm, machine), algorithm) for algorithm in algorithms(problem)), key=lambda item: item[0])
