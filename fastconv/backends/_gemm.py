"""The register-tiled matrix product behind `im2col`, with both of its factors addressed in place.

    result[r, c] = start[r, c] + sum over k of  x[row_offset[r] + k_offset[k]] * w[k, c]

Rows are output points and k taps in the forward pass; rows are taps and k output points in the weight gradient. Columns
are output channels, one panel of `TILE_COLUMNS` vectors at a time; w is packed into such panels. The tile stays in
registers for the whole sum; what leaves it is written transposed (channels first), as rows (channels last), or as a
partial sum that a later call goes on with.

Tried, and did not pay: fetching x ahead as the panels are (no change at 1x1 and 7x7 maps, the hardware does it); results past
the caches (64 channels at 224 x 224: 5% faster, 56 x 56: 5% slower).
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
from numba import types

from ..problem import Problem
from ._boxes import copy_run
from ._jit import address_of, addressed, inlined, outlined
from ._rectifiers import RECTIFIERS
from ._scratch import operand
from ._simd import (
    TILE_COLUMNS,
    TILE_ROWS,
    TILE_SIZES,
    advance,
    call_tile,
    get,
    lane_count,
    lanes_of,
    load,
    misalignment,
    next_task,
    parallel_kernel,
    prefetch_read,
    put,
    rectify,
    store,
    thawed,
    tile_load,
    tile_outer,
    tile_outer_packed,
    tile_signature,
    tile_store,
    transpose_block,
    transpose_chosen,
    transpose_whole,
)
from ._simd.emit import pointer_to
from ._weights import NO_TERM, JointLayout, WeightLayout

PREFETCHED_ROWS = 64  # of a panel ahead of the sum: 8 KiB (bench_conv.py, 3x3_512@14: 1.12 ms without, .83 with)
FULL_ROWS = 4  # a tile of fewer rows takes as long: too few sums in flight for the multiply-adds' latency
RUN_ELEMENTS = 8192  # of weights that a task packs: 32 KiB, read in order (benchmarks/bench_conv.py, backward, 3x3_512@7)
RUN_OF_ROWS = 128  # the same, channels last, where a row is as long as there are channels
SERIAL_PACKING = 20_000  # elements that one thread packs sooner than a region starts: 2 us at 40 GB/s


def panel_width(dtype: str) -> int:
    """Output channels of a panel."""
    return TILE_COLUMNS * lane_count(dtype)


class Epilogue(NamedTuple):
    """What happens to a finished sum before it is written: values below zero times `slope`, then a cut at `ceiling`."""

    rectify: bool
    slope: float
    ceiling: float


def epilogue_of(problem: Problem) -> Epilogue:
    """The epilogue of a problem whose activation is none or a rectifier, its scalars in the problem's dtype."""
    slope, ceiling = RECTIFIERS[problem.activation]
    dtype = np.dtype(problem.dtype)
    if dtype.kind == "i":
        slope, ceiling = int(slope), min(ceiling, np.iinfo(dtype).max)
    return Epilogue(problem.activation is not None, dtype.type(slope), dtype.type(ceiling))


def epilogue_type(pointer: types.CPointer) -> types.NamedTuple:
    """The epilogue's type in compiled functions that are called through their address."""
    return types.NamedTuple((types.boolean, pointer.dtype, pointer.dtype), Epilogue)


def make_tile(rows: int, columns: int, packed: bool):
    """The micro-kernel of one tile size, to be called through its address.

    The sums of its rows start from `start`, whose rows are `start_pitch` apart (0 for a bias), and end in `sums`, whose
    rows are as wide as a panel. Panels of large layers come from the last-level cache or from memory, so memory is fetched
    ahead: from w + ahead on, `ahead_step` further at each step.

    x lies anywhere, or is `packed`: a term's elements for all rows, then those of the next.
    """

    @addressed
    def tile(x, row_offsets, k_offsets, depth, w, width, ahead, ahead_step, start, start_pitch, sums):
        acc = tile_load(start, start_pitch, rows, columns)
        for k in range(depth):
            if packed:
                acc = tile_outer_packed(acc, advance(x, k * rows), advance(w, k * width), rows)
            else:
                acc = tile_outer(acc, advance(x, get(k_offsets, k)), row_offsets, advance(w, k * width), rows)
            prefetch_read(w, ahead + k * ahead_step)
            prefetch_read(w, ahead + k * ahead_step + lanes_of(w))
        tile_store(sums, width, acc, rows)

    return tile


def _first_tiles() -> tuple[int, ...]:
    """For each number of rows left, up to two full tiles: the tile to take next so that the fewest rows are computed.

    A tile costs one row more than it has, for being filled and stored, and at least FULL_ROWS.
    """
    costs, takes = [0], [0]
    for left in range(1, 2 * TILE_ROWS + 1):
        cost, size = min((max(rows, FULL_ROWS) + 1 + costs[max(0, left - rows)], -rows) for rows in TILE_SIZES)
        costs.append(cost)
        takes.append(-size)
    return tuple(takes)


FIRST_TILES = _first_tiles()


def rows_computed(rows: int) -> int:
    """What a product of so many rows costs, in rows: those of all its register tiles, and one more each."""
    cost = 0
    while rows > 0:
        taken = FIRST_TILES[min(rows, 2 * TILE_ROWS)]
        cost += max(taken, FULL_ROWS) + 1
        rows -= taken
    return cost


TILES = {(rows, columns, packed): make_tile(rows, columns, packed)
         for rows in TILE_SIZES for columns in (1, TILE_COLUMNS) for packed in (False, True)}


@functools.cache
def tile_addresses(dtype: str, packed: bool = False) -> np.ndarray:
    """Addresses of the micro-kernels: those of full panels by their rows, then those of panels that one vector covers."""
    signature = tile_signature(pointer_to(dtype))
    table = np.zeros(2 * (TILE_ROWS + 1), np.int64)
    for (rows, columns, is_packed), tile in TILES.items():
        if is_packed == packed:
            table[rows + (TILE_ROWS + 1 if columns == 1 else 0)] = address_of(tile, signature)
    return table


@inlined
def multiply_fetching(tiles, left, x, row_offsets, k_offsets, depth, w, width, ahead, ahead_step, start, start_pitch, sums, count):
    """The next tile of at most `left` rows, by its entry of `tile_addresses`; returns how many rows it took."""
    rows = FIRST_TILES[min(left, 2 * TILE_ROWS)]
    address = tiles[rows if count > lanes_of(w) else TILE_ROWS + 1 + rows]
    call_tile(address, x, row_offsets, k_offsets, depth, w, width, ahead, ahead_step, start, start_pitch, sums)
    return min(left, rows)


@inlined
def multiply_tile(tiles, left, x, row_offsets, k_offsets, depth, w, width, start, start_pitch, sums, count):
    """The same, which fetches the panel's own rows ahead."""
    return multiply_fetching(tiles, left, x, row_offsets, k_offsets, depth, w, width, PREFETCHED_ROWS * width, width, start, start_pitch,
                             sums, count)


@inlined
def multiply_rows(tiles, rows, x, row_offsets, k_offsets, depth, w, width, start, start_pitch, sums, count, following):
    """All tiles of `rows` rows of a panel, whose sums start from rows `start_pitch` apart.

    `following` is from w to the panel that is multiplied next, which they fetch together, where weights come from memory:
    memory would rest while all but the first tile find their panel in the cache. It is 0 where they do not, or come in order.
    """
    ahead, step = PREFETCHED_ROWS * width, width
    shared = following > 0 and rows > FIRST_TILES[min(rows, 2 * TILE_ROWS)]
    row = 0
    while row < rows:
        if shared:
            ahead, step = following + depth * row // rows * width, lanes_of(w)
        row += multiply_fetching(tiles, rows - row, x, advance(row_offsets, row), k_offsets, depth, w, width, ahead, step,
                                 advance(start, row * start_pitch), start_pitch, advance(sums, row * width), count)


@outlined
def store_points(sums, width, rows, y, y_offsets, y_channel, count, epilogue):
    """Apply the epilogue to `rows` rows of sums and write their first `count` channels to y."""
    lanes = lanes_of(sums)
    if epilogue.rectify:
        for i in range(0, rows * width, lanes):
            store(sums, i, rectify(load(sums, i), epilogue.slope, epilogue.ceiling))
    if y_channel == 1:
        for r in range(rows):
            copy_run(advance(y, get(y_offsets, r)), advance(sums, r * width), count)
        return
    r = 0
    while r < rows:
        first = get(y_offsets, r)
        # Up to the next whole vector of y: where planes are a multiple of 4 KiB apart, the lines of all channels share one
        # cache set, and a line that is not written at once is written twice (224 x 224 took twice as long as 222 x 222).
        deep = min(lanes - misalignment(advance(y, first)), rows - r)
        if get(y_offsets, r + deep - 1) - first == deep - 1:
            for c in range(0, count, lanes):
                if deep == lanes and c + lanes <= count:
                    transpose_whole(advance(sums, r * width + c), width, advance(y, first + c * y_channel), y_channel)
                else:
                    transpose_block(advance(sums, r * width + c), width, deep, min(lanes, count - c),
                                    advance(y, first + c * y_channel), y_channel, deep)
        else:
            for i in range(r, r + deep):
                for c in range(count):
                    put(y, get(y_offsets, i) + c * y_channel, get(sums, i * width + c))
        r += deep


# -- packing of the second operand ----------------------------------------------------------------------------------------


@outlined
def pack_panel(source, column_pitch, k_pitch, columns, depth, target, width):
    """target[k * width + c] = source[c * column_pitch + k * k_pitch], columns beyond `columns` zero."""
    lanes = lanes_of(source)
    if column_pitch == 1:
        for k in range(depth):
            copy_run(advance(target, k * width), advance(source, k * k_pitch), columns)
            for c in range(columns, width):
                put(target, k * width + c, 0)
        return
    if k_pitch == 1:
        for c in range(0, width, lanes):
            for k in range(0, depth, lanes):
                transpose_block(advance(source, c * column_pitch + k), column_pitch, columns - c, min(lanes, depth - k),
                                advance(target, k * width + c), width, lanes)
        return
    for k in range(depth):
        for c in range(width):
            put(target, k * width + c, get(source, c * column_pitch + k * k_pitch) if c < columns else 0)


@outlined
def pack_panel_by_table(source, column_pitch, k_offsets, columns, depth, target, width):
    """target[k * width + c] = source[c * column_pitch + k_offsets[k]]; columns beyond `columns`, and rows of NO_TERM, zero."""
    lanes = lanes_of(source)
    k = 0
    while k < depth:
        low = high = get(k_offsets, k)
        if low == NO_TERM or column_pitch == 1:
            kept = columns if low != NO_TERM else 0
            copy_run(advance(target, k * width), advance(source, low), kept)
            for c in range(kept, width):
                put(target, k * width + c, 0)
            k += 1
            continue
        # As many terms as one block of a vector's elements spans, in whatever order: reversed taps, every other tap.
        count = 1
        while k + count < depth:
            offset = get(k_offsets, k + count)
            if offset == NO_TERM or max(high, offset) - min(low, offset) >= lanes:
                break
            low, high = min(low, offset), max(high, offset)
            count += 1
        for c in range(0, width, lanes):
            transpose_chosen(advance(source, c * column_pitch + low), column_pitch, columns - c, high - low + 1,
                             advance(k_offsets, k), count, low, advance(target, k * width + c), width)
        k += count


class Matrices(NamedTuple):
    """A stack of (images, groups) matrices of depth x columns, by their pitches in elements.

    Rows are `k_pitch` apart, or, where that is 0, lie at `k_offsets`, of which each group may have its own.
    """

    images: int
    groups: int
    columns: int
    depth: int
    start: int
    image_pitch: int
    group_pitch: int
    column_pitch: int
    k_pitch: int
    k_offsets: np.ndarray
    k_offsets_pitch: int  # of a group
    k_run: int  # rows of a task, which adjoin in memory as far as rows do


NO_OFFSETS = np.zeros(0, np.int64)


def weight_matrices(problem: Problem, layout: WeightLayout | JointLayout) -> Matrices:
    """The weights of a forward convolution as matrices of terms by output channels."""
    p = problem
    offsets = layout.offsets(p)
    points = math.prod(p.kernel_size)
    # Channels first, the weights of an output channel of the gradient's problem adjoin: whole kernels by all columns.
    run = RUN_OF_ROWS if p.channels_last else points * max(1, RUN_ELEMENTS // (points * p.group_out))
    if isinstance(layout, JointLayout):
        columns = p.out_channels // len(offsets)
        return Matrices(1, len(offsets), columns, p.taps, layout.start, 0, 0, layout.output, 0, offsets.ravel(), p.taps, run)
    pitch = int(offsets[1] - offsets[0]) if offsets.size > 1 else 1
    regular = pitch > 0 and (pitch == 1 or layout.output == 1) and bool((np.diff(offsets) == pitch).all())
    return Matrices(1, p.groups, p.group_out, p.taps, layout.start, 0, layout.group, layout.output, pitch if regular else 0,
                    NO_OFFSETS if regular else offsets, 0, run)


@outlined
def pack_rows(m, source, group, panel, k, count, target, width):
    """Pack rows k to k + count of a panel of a group's matrix, which begins at `source`."""
    columns = min(width, m.columns - panel * width)
    at = advance(source, panel * width * m.column_pitch)
    if m.k_pitch == 0:
        pack_panel_by_table(at, m.column_pitch, advance(m.k_offsets, group * m.k_offsets_pitch + k), columns, count, target, width)
    else:
        pack_panel(advance(at, k * m.k_pitch), m.column_pitch, m.k_pitch, columns, count, target, width)


@parallel_kernel
def pack_panels(source, w, bias, target, constants, scratch, counters, thread, threads):
    """Pack matrices into panels [group][panel][image][k][width], the last one's missing columns zero.

    The rows of all images follow each other, so that a sum may run through several.

    Tasks are panels, or, where rows lie scattered, runs of rows through all panels: either way memory is read in order.
    """
    m, width = thawed(constants)
    per_group = -(-m.columns // width)
    runs = -(-m.depth // m.k_run)
    tasks = runs if m.k_pitch == 0 else per_group
    while True:
        task = next_task(counters)
        if task >= m.images * m.groups * tasks:
            break
        matrix, part = task // tasks, task % tasks
        image, group = matrix // m.groups, matrix % m.groups
        at = advance(source, m.start + image * m.image_pitch + group * m.group_pitch)
        first = group * per_group * m.images + image
        if m.k_pitch == 0:
            k = part * m.k_run
            for panel in range(per_group):
                pack_rows(m, at, group, panel, k, min(m.k_run, m.depth - k),
                          advance(target, ((first + panel * m.images) * m.depth + k) * width), width)
        else:
            pack_rows(m, at, group, part, 0, m.depth, advance(target, (first + part * m.images) * m.depth * width), width)


class PanelPacking:
    """`packing(source)` gives matrices in panels."""

    def __init__(self, matrices: Matrices, width: int, dtype: str):
        columns = -(-matrices.columns // width) * width
        self.size = matrices.images * matrices.groups * columns * matrices.depth
        self.dtype = dtype
        self.kernel = pack_panels.bind(dtype, (matrices, width), parallel=self.size > SERIAL_PACKING)

    def __call__(self, source: np.ndarray) -> np.ndarray:
        target = operand(self.size, self.dtype)
        self.kernel(source.reshape(-1), target, target, target)
        return target


class PaddedBias:
    """`padded(bias)` gives the bias in panels: (groups * panels of a group * width), zero where there is none."""

    def __init__(self, problem: Problem, width: int):
        self.groups, self.columns = problem.groups, problem.group_out
        self.per_group = -(-self.columns // width) * width
        self.zeros = np.zeros(self.groups * self.per_group, problem.dtype)

    def __call__(self, bias: np.ndarray | None) -> np.ndarray:
        if bias is None:
            return self.zeros
        if self.per_group == self.columns:
            return bias
        padded = np.zeros((self.groups, self.per_group), bias.dtype)
        padded[:, :self.columns] = bias.reshape(self.groups, self.columns)
        return padded.reshape(-1)
