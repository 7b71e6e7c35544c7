"""Single planes on a GPU: one input channel a group (depthwise layers, filters of images), small kernels, borders of zeros.

A thread walks down a column of the result, so that lanes read neighbours: columns, or channels where these come last. Each row of the
image is read once and added to all the sums that it reaches; those of the unfinished rows are carried on in registers:

    forward        y[q] = sum over t of  w[t] x[stride q + t - low]        stride 1 or 2; at stride 1 the gradient of the input too, with
                                                                           the weights turned round (negative strides)
    transposed     gx[i] = sum over t of  w[t] gy[(i + low - t) / stride]  stride 2: a column sees the taps of its parity
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from ...problem import Problem
from .._rectifiers import RECTIFIERS
from . import (
    SIMULATED,
    advance,
    cuda,
    fetch,
    fetch_grid,
    fetch_window,
    i32,
    inlined,
    less_unsigned,
    pick,
    quotient,
    remainder,
    store,
    traced,
    zero_of,
    zeros,
)
from .compiling import Code, repeated
from .driver import Gpu, Launch, Stream, gpu
from .geometry import image_strides, index_refusal, weight_strides
from .sums import rectifier

__all__ = ["Planes", "Shape", "Strips", "all_shapes", "codes", "seconds", "shape_of", "strips_of", "work_seconds"]

THREADS = 8 if SIMULATED else 128
SIZES = (3, 5, 7)  # of kernels along an axis; 1 goes with each of them
LOADS = 16  # that are under way at a time, at most
MOST_ROWS = 4  # of the result in one step
HEIGHTS = (64, 32, 16, 8, 4)  # of a thread's column
BANDWIDTH_SHARE = 0.85  # of the memory's peak; assumed, benchmarks/gpu.py measures it
LAUNCH_SECONDS = 5e-6  # of a kernel (an estimate: benchmarks/gpu.py will measure it, tiny)
FULL_THREADS = 1024  # of a multiprocessor, which hide the memory's latency; assumed


class Shape(NamedTuple):
    """A kernel's sizes and strides, which its code is made for."""

    rows: int
    columns: int
    row_stride: int
    column_stride: int

    @property
    def step(self) -> int:
        """Rows of the result in one step."""
        return max(1, min(MOST_ROWS, LOADS // (self.row_stride * self.columns)))

    @property
    def carried(self) -> int:
        """Rows of the result that have begun before a step."""
        return -(-(self.rows - self.row_stride) // self.row_stride)


def all_shapes() -> list[Shape]:
    """Every shape."""
    sizes = [(rows, columns) for rows in (1, *SIZES) for columns in (1, *SIZES) if rows * columns > 1]
    return [Shape(rows, columns, stride if rows > 1 else 1, stride if columns > 1 else 1) for rows, columns in sizes for stride in (1, 2)]


class Strips(NamedTuple):
    """A convolution of planes as the kernels take it; `from_` is what is read, `to_` the result. Strides count elements."""

    images: int
    channels: int  # of the result
    multiplier: int  # of them for one of what is read
    from_h: int
    from_w: int
    to_h: int
    to_w: int
    low_h: int
    low_w: int
    height: int  # of a strip
    strips: int
    from_n: int
    from_c: int
    from_row: int
    from_column: int
    w_first: int
    w_channel: int
    w_row: int
    w_column: int
    to_n: int
    to_c: int
    to_row: int
    to_column: int
    has_bias: int


def _place_of(index, g, columns, channels_last):
    """(image, channel, strip, column) of a thread."""
    if channels_last:
        channel, rest = remainder(index, g.channels), quotient(index, g.channels)
        column, rest = remainder(rest, columns), quotient(rest, columns)
        return quotient(rest, g.strips), channel, remainder(rest, g.strips), column
    column, rest = remainder(index, columns), quotient(index, columns)
    strip, rest = remainder(rest, g.strips), quotient(rest, g.strips)
    return quotient(rest, g.channels), remainder(rest, g.channels), strip, column


place_of = inlined(_place_of)


def _sums(shape: Shape, rows: range, outputs: int, carry: Any, values: Any, taps: Any) -> list[Any]:
    """The sums of `outputs` rows; `values` are the image's rows of the numbers `rows`, counted from the first output's first."""
    sums = []
    for output in range(outputs):
        total = carry[output] if output < len(carry) else 0.0
        for number, row in enumerate(rows):
            tap = row - output * shape.row_stride
            if 0 <= tap < shape.rows:
                for j in range(shape.columns):
                    total = values[number * shape.columns + j] * taps[tap * shape.columns + j] + total
        sums.append(total)
    return sums


def _tail(first: int, count: int) -> Callable:
    """The last elements of a tuple; one, where there are none."""
    return traced(lambda values: list(values[first:]) if count else [0.0])


def _storing(dtype: str, times: int) -> Callable:
    """Finish and write the first sums, those of the rows from `row` on that are inside."""
    finish = rectifier(dtype)

    def write(row, operands, k):
        y, at, pitch, rows, sums, bias, slope, ceiling = operands
        if less_unsigned(row + k, rows):
            store(y, i32(at + k * pitch), finish(pick(sums, k) + bias, slope, ceiling))
        return row

    return repeated(write, times)


@functools.cache
def forward_code(shape: Shape, channels_last: bool, dtype: str) -> Code:
    """y[q] = bias + sum over t of  w[t] x[stride q + t - low], for each plane."""
    rows, columns, row_stride, column_stride = shape
    step, carried = shape.step, shape.carried
    head_rows, fresh_rows, sums_count = rows - row_stride, row_stride * step, carried + step
    place, write, rest = place_of, _storing(dtype, step), _tail(step, carried)
    begin = traced(lambda values, taps: _sums(shape, range(head_rows), max(1, carried), (), values, taps))
    add = traced(lambda carry, values, taps: _sums(shape, range(head_rows, rows - row_stride + fresh_rows), sums_count,
                                                   carry[:carried], values, taps))

    def head_of_window(x, row, column, x_step, taps, g):
        at = i32(row * g.from_row + column * x_step)
        return begin(fetch_window(x, at, g.from_row, x_step, row, column, g.from_h, g.from_w, head_rows, columns), taps)

    head = inlined(head_of_window if head_rows else lambda x, row, column, x_step, taps, g: zeros(x, 1))

    def planes_forward(x, w, bias, y, g, slope, ceiling):
        index = i32(cuda.blockIdx.x * THREADS + cuda.threadIdx.x)
        n, o, strip, q_w = place(index, g, g.to_w, channels_last)
        if n >= g.images:
            return
        x_step = g.from_column if channels_last else 1
        y_step = g.to_column if channels_last else 1
        source = advance(x, i32(n * g.from_n + quotient(o, g.multiplier) * g.from_c))
        taps = fetch_grid(w, i32(g.w_first + o * g.w_channel), g.w_row, g.w_column, rows, columns)
        shift = fetch(bias, o) if g.has_bias else zero_of(x)
        q_h = i32(strip * g.height)
        end = i32(min(q_h + g.height, g.to_h))
        row, column = i32(q_h * row_stride - g.low_h), i32(q_w * column_stride - g.low_w)
        carry = head(source, row, column, x_step, taps, g)
        row = i32(row + head_rows)
        at = i32(n * g.to_n + o * g.to_c + q_h * g.to_row + q_w * y_step)
        while q_h < end:
            values = fetch_window(source, i32(row * g.from_row + column * x_step), g.from_row, x_step, row, column, g.from_h, g.from_w,
                                  fresh_rows, columns)
            sums = add(carry, values, taps)
            write(q_h, (y, at, g.to_row, g.to_h, sums, shift, slope, ceiling), 0)
            carry = rest(sums)
            q_h, row, at = i32(q_h + step), i32(row + fresh_rows), i32(at + step * g.to_row)

    name = f"planes_forward.{'x'.join(map(str, shape))}.{int(channels_last)}.{dtype}"
    return Code(name, planes_forward, (dtype,) * 4, Strips, 2, THREADS)


def _scattered(shape: Shape, first: int, rows: int, outputs: int, carry: Any, values: Any, taps: Any) -> list[Any]:
    """The sums of `outputs` rows of the gradient; `values` are rows of gy from the one that begins at output `first`."""
    columns = -(-shape.columns // shape.column_stride)
    sums = []
    for output in range(outputs):
        total = carry[output] if output < len(carry) else 0.0
        for number in range(rows):
            tap = output - first - number * shape.row_stride
            if 0 <= tap < shape.rows:
                for j in range(columns):
                    total = values[number * columns + j] * taps[tap * columns + columns - 1 - j] + total
        sums.append(total)
    return sums


@functools.cache
def transposed_code(shape: Shape, channels_last: bool, dtype: str) -> Code:
    """gx[i] = bias + sum over t of  w[t] gy[(i + low - t) / stride], where that is whole, for each plane."""
    rows, columns, row_stride, column_stride = shape
    step, carried = max(1, shape.step // 2), shape.rows - shape.row_stride
    head_rows, columns_seen = shape.carried, -(-columns // column_stride)
    place, write, rest = place_of, _storing(dtype, step * row_stride), _tail(step * row_stride, carried)
    begin = traced(lambda values, taps: _scattered(shape, -head_rows * row_stride, head_rows, max(1, carried), (), values, taps))
    add = traced(lambda carry, values, taps: _scattered(shape, 0, step, step * row_stride + carried, carry[:carried], values, taps))

    def head_of_window(gy, row, column, width, gy_step, taps, g):
        at = i32(row * g.from_row + column * gy_step)
        return begin(fetch_window(gy, at, g.from_row, gy_step, row, column, g.from_h, width, head_rows, columns_seen), taps)

    head = inlined(head_of_window if head_rows else lambda gy, row, column, width, gy_step, taps, g: zeros(gy, 1))

    def planes_transposed(gy, w, bias, gx, g, slope, ceiling):
        index = i32(cuda.blockIdx.x * THREADS + cuda.threadIdx.x)
        n, c, strip, i_w = place(index, g, g.to_w, channels_last)
        if n >= g.images:
            return
        gy_step = g.from_column if channels_last else 1
        gx_step = g.to_column if channels_last else 1
        source = advance(gy, i32(n * g.from_n + c * g.from_c))
        shift = fetch(bias, c) if g.has_bias else zero_of(gy)
        # The taps of the column's parity, those beyond the last as zeros, and the columns of gy that they meet.
        parity = remainder(i_w + g.low_w, column_stride)
        last = quotient(columns - 1 - parity, column_stride)
        taps = fetch_window(w, i32(g.w_first + c * g.w_channel + parity * g.w_column), g.w_row, i32(column_stride * g.w_column), 0, 0, rows,
                            i32(last + 1), rows, columns_seen)
        first = quotient(g.low_h, row_stride)
        row = i32(first + strip * quotient(g.height, row_stride))
        i_h = i32(row * row_stride - g.low_h)
        end = i32(min(i_h + g.height, g.to_h))
        # A tap beyond the last meets a column of gy that must not count: gy is taken to begin behind it.
        column = i32(quotient(i_w + g.low_w, column_stride) - (columns_seen - 1))
        begun = i32(max(column + (columns_seen - 1 - last), 0))
        source = advance(source, begun * gy_step)
        column, width = i32(column - begun), i32(max(g.from_w - begun, 0))
        carry = head(source, i32(row - head_rows), column, width, gy_step, taps, g)
        at = i32(n * g.to_n + c * g.to_c + i_h * g.to_row + i_w * gx_step)
        while i_h < end:
            values = fetch_window(source, i32(row * g.from_row + column * gy_step), g.from_row, gy_step, row, column, g.from_h, width, step,
                                  columns_seen)
            sums = add(carry, values, taps)
            write(i_h, (gx, at, g.to_row, g.to_h, sums, shift, slope, ceiling), 0)
            carry = rest(sums)
            i_h, row, at = i32(i_h + step * row_stride), i32(row + step), i32(at + step * row_stride * g.to_row)

    name = f"planes_transposed.{'x'.join(map(str, shape))}.{int(channels_last)}.{dtype}"
    return Code(name, planes_transposed, (dtype,) * 4, Strips, 2, THREADS)


# -- plans ----------------------------------------------------------------------------------------------------------------


def shape_of(problem: Problem) -> Shape | None:
    """The shape of the kernels for a problem, or None where they do not compute it."""
    p = problem
    (depth, *size), (_, *stride) = p.kernel_size, p.stride
    flat = p.input_size[0] == p.output_size[0] == depth == 1
    small = all(k in SIZES or (k == 1 and s == 1) for k, s in zip(size, stride, strict=True)) and max(size) > 1
    strides = {s for k, s in zip(size, stride, strict=True) if k > 1}
    plain = p.padding_mode == "zeros" and p.dtype in ("float32", "float64") and min(min(pads) for pads in p.padding[1:]) > -max(size)
    ones = all(d == 1 or k == 1 for d, k in zip(p.dilation[1:], size, strict=True))
    if not (flat and small and plain and ones and p.group_in == 1 and strides in ({1}, {2}) and p.flops) or index_refusal(p):
        return None
    if p.pass_name == "grad_input" and p.group_out > 1:
        return None
    return Shape(*size, *stride)


class Planes:
    """A forward convolution or a gradient of the input, by `Shape`."""

    packed: tuple[tuple[int, str], ...] = ()
    scratch_bytes = 0

    def __init__(self, problem: Problem):
        p = problem
        shape = shape_of(p)
        assert shape is not None
        transposed = p.pass_name == "grad_input" and strides_of(shape) == 2
        code = (transposed_code if transposed else forward_code)(shape, p.channels_last, p.dtype)
        geometry = strips_of(p, shape, gpu())
        columns = geometry.to_w * geometry.strips * geometry.images * geometry.channels
        self.launch = Launch(code, (-(-columns // THREADS),), geometry, RECTIFIERS[p.activation])

    def pack(self, stream: Stream, second: Any, target: list[Any]) -> None:
        """Weights are read as they lie."""

    def run(self, stream: Stream, first: Any, second: Any, packed: list[Any], bias: Any, out: Any) -> None:
        """Launch the kernel."""
        self.launch(stream, first, second, out if bias is None else bias, out)


def strides_of(shape: Shape) -> int:
    """The stride of the axes that have a kernel."""
    return max(shape.row_stride, shape.column_stride)


def strip_height(columns: int, rows: int, unit: int, machine: Gpu) -> int:
    """Rows of a thread's strip, a multiple of `unit`: the most that leave enough threads."""
    wanted = 2 * FULL_THREADS * machine.multiprocessors
    heights = [-(-height // unit) * unit for height in HEIGHTS]
    return next((height for height in heights if columns * -(-rows // height) >= wanted), heights[-1])


def strips_of(problem: Problem, shape: Shape, machine: Gpu) -> Strips:
    p = problem
    x, y = (image_strides(*sizes, p.channels_last) for sizes in ((p.in_channels, p.input_size), (p.out_channels, p.output_size)))
    w = weight_strides(p)
    (low_h, _), (low_w, _) = p.padding[1:]
    backward = p.pass_name == "grad_input"
    sizes, target, source = (p.output_size[1:], p.input_size[1:]), x, y
    if not backward:
        sizes, target, source = sizes[::-1], y, x
    weights = (0, w.out_channel, w.row, w.column)
    unit, skipped = shape.step, 0
    if backward and strides_of(shape) == 1:  # the weights turned round
        low_h, low_w = shape.rows - 1 - low_h, shape.columns - 1 - low_w
        weights = ((shape.rows - 1) * w.row + (shape.columns - 1) * w.column, w.out_channel, -w.row, -w.column)
    elif backward:
        unit, skipped = max(1, shape.step // 2) * shape.row_stride, low_h % shape.row_stride
    channels = p.in_channels if backward else p.out_channels
    rows = sizes[1][0] + skipped
    height = strip_height(p.batch * channels * sizes[1][1], rows, unit, machine)
    return Strips._make((p.batch, channels, 1 if backward else p.group_out, *sizes[0], *sizes[1], low_h, low_w, height, -(-rows // height),
                  source.batch, source.channel, source.row, source.column, *weights, target.batch, target.channel, target.row,
                  target.column, int(p.bias)))


def work_seconds(instructions: float, threads: int, moved: float, dtype: str, machine: Gpu) -> float:
    """Time of a kernel bound by its instructions, or by the memory, whose latency few threads do not hide."""
    filled = min(1.0, max(1, threads) / (FULL_THREADS * machine.multiprocessors))
    return LAUNCH_SECONDS + max(2 * instructions / machine.flops(dtype), moved / (BANDWIDTH_SHARE * machine.bandwidth)) / filled


def seconds(problem: Problem, machine: Gpu) -> float:
    """Predicted time; infinite for what the kernels do not compute."""
    p = problem
    shape = shape_of(p)
    if shape is None:
        return math.inf
    results = math.prod(p.shapes[2])
    g = strips_of(p, shape, machine)
    loads = 2.5 * shape.columns * shape.row_stride * (1 + shape.carried / g.height)
    products = shape.rows * shape.columns / (shape.row_stride * shape.column_stride if p.pass_name == "grad_input" else 1)
    return work_seconds(results * (products + loads + 6), results // g.height, p.bytes, p.dtype, machine)


def codes(dtype: str) -> list[Code]:
    """Every kernel that a problem may need."""
    shapes, flags = all_shapes(), (False, True)
    forward = [forward_code(shape, last, dtype) for shape in shapes for last in flags]
    return [*forward, *(transposed_code(shape, last, dtype) for shape in shapes if strides_of(shape) == 2 for last in flags)]
