"""Straight-line vector code for strips: some rows of one output plane by some vectors of its columns, all sums in registers.

Input rows are found by a table, so that a row outside the image is a row of zeros, and a border, a stride and a dilation
along the height are only other rows. Each vector of an input row is loaded once for each tap of a kernel row and then
meets all output rows of the strip that it reaches.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .emit import (
    I32,
    I64,
    emit_epilogue,
    emit_fma,
    emit_in_order,
    emit_interleaved,
    emit_load,
    emit_load_masked,
    emit_prefetch,
    emit_splat,
    emit_store,
    emit_store_masked,
    mask_between,
    mask_first,
    vector_of,
)


class _Reader:
    """The vectors of input rows that a strip's taps read; masks and shuffles of the stride are made once."""

    def __init__(self, builder, vector, stride, columns, dilation):
        self.builder, self.vector, self.stride, self.columns, self.dilation = builder, vector, stride, columns, dilation
        self.masks = {}

    def _load(self, row, tap, half):
        """One vector at `half` lanes from tap `tap`'s first column, lanes outside the image zero if there are masks."""
        offset = self.builder.add(self.builder.mul(self.dilation, I64(tap)), I64(half * self.vector.lanes))
        if not self.masks:
            return emit_load(self.builder, self.vector, row, offset)
        return emit_load_masked(self.builder, self.vector, self.masks[tap, half], row, offset)

    def make_masks(self, taps, start, end, width=None):
        """Masks of every vector that `read` may load: columns in [0, end), and of stride 1 only those of `width` outputs."""
        builder, lanes = self.builder, self.vector.lanes
        for tap in range(taps):
            for half in range(self.columns * self.stride):
                offset = builder.add(builder.mul(self.dilation, I64(tap)), I64(half * lanes))
                mask = mask_between(builder, builder.add(start, offset), end, lanes)
                if width is not None:
                    read = builder.sub(builder.mul(width, I64(self.stride)), I64(half * lanes))
                    mask = builder.and_(mask, mask_first(builder, read, lanes))
                self.masks[tap, half] = mask

    def read(self, row, taps):
        """For each tap in turn, the vectors of all columns that it meets; with stride 2 a pair of loads serves two taps."""
        if self.stride == 1:
            for tap in range(taps):
                yield tap, [self._load(row, tap, column) for column in range(self.columns)]
            return
        lanes = self.vector.lanes
        for tap in range(0, taps, 2):
            halves = [self._load(row, tap, half) for half in range(2 * self.columns)]
            for odd in range(min(2, taps - tap)):
                alternate = ir.Constant(ir.VectorType(I32, lanes), list(range(odd, 2 * lanes, 2)))
                yield tap + odd, [self.builder.shuffle_vector(*halves[i:i + 2], alternate) for i in range(0, len(halves), 2)]


@intrinsic(prefer_literal=True)
def tap_vectors(typingctx, w, taps):
    """A tuple of the elements w[0], w[1], ..., each in every lane."""
    vector = vector_of(w)
    result = types.UniTuple(vector, taps.literal_value)

    def codegen(context, builder, signature, args):
        values = [emit_splat(builder, builder.load(builder.gep(args[0], [I64(i)])), vector.lanes) for i in range(taps.literal_value)]
        return context.make_tuple(builder, result, values)

    return result(w, taps), codegen


@intrinsic(prefer_literal=True)
def strip_tile(typingctx, x, pitch, rows, step, zeros, start, in_w, dilation, w, bias, y, y_pitch, count, width, epilogue,
               kh, kw, stride, height, columns, masked):
    """y[r, :] = epilogue(bias + sum of w[ky, kx] x[row(r stride + ky), start + kx dilation + ...]) for r < height, over `columns` vectors.

    row(i) is rows[i step], where -1 stands for the row `zeros`; the rows of x are `pitch` elements apart. Only `count` rows
    and `width` columns are written. With `masked`, columns outside [0, in_w) are zeros that are not read; without, all of
    them must be readable. w is a pointer, or a tuple of vectors that were loaded before.
    """
    vector = vector_of(y)
    numbers = [literal.literal_value for literal in (kh, kw, stride, height, columns, masked)]

    def codegen(context, builder, signature, args):
        _emit_strip(context, builder, signature, vector, args, numbers)
        return context.get_dummy_value()

    word = types.intp
    return types.void(x, word, rows, word, zeros, word, word, word, w, bias, y, word, word, word, epilogue,
                      kh, kw, stride, height, columns, masked), codegen


def _emit_row(builder, x, pitch, rows, step, zeros, i):
    """The address of input row rows[i step]."""
    number = builder.sext(builder.load(builder.gep(rows, [builder.mul(step, I64(i))])), I64)
    outside = builder.icmp_signed("<", number, I64(0))
    return builder.select(outside, zeros, builder.gep(x, [builder.mul(number, pitch)]))


def _emit_strip(context, builder, signature, vector, args, numbers):
    x, pitch, rows, step, zeros, start, in_w, dilation, w, bias, y, y_pitch, count, width, epilogue = args[:15]
    kh, kw, stride, height, columns, masked = numbers
    reader = _Reader(builder, vector, stride, columns, dilation)
    if masked:
        reader.make_masks(kw, start, in_w)
    first = emit_splat(builder, builder.load(bias), vector.lanes)
    sums = [[first] * columns for _ in range(height)]
    hoisted = isinstance(signature.args[8], types.UniTuple)
    for i in range((height - 1) * stride + kh):
        row = builder.gep(_emit_row(builder, x, pitch, rows, step, zeros, i), [start])
        reached = [r for r in range(height) if 0 <= i - r * stride < kh]
        if i >= kh - stride:  # rows that the strip below reads first
            for line in range(columns * stride):
                emit_prefetch(builder, builder.gep(row, [builder.add(builder.mul(pitch, I64(height * stride)), I64(line * vector.lanes))]))
        for kx, values in reader.read(row, kw if reached else 0):
            for r in reached:
                tap = (i - r * stride) * kw + kx
                scale = builder.extract_value(w, tap) if hoisted else emit_splat(
                    builder, builder.load(builder.gep(w, [I64(tap)])), vector.lanes)
                sums[r] = [emit_fma(builder, vector, value, scale, total) for value, total in zip(values, sums[r], strict=True)]
                if not hoisted:
                    sums[r] = emit_in_order(builder, sums[r])
        if hoisted:
            ordered = emit_in_order(builder, [value for r in reached for value in sums[r]])
            for j, r in enumerate(reached):
                sums[r] = ordered[j * columns:(j + 1) * columns]
    finished = iter(emit_epilogue(builder, vector, [value for row in sums for value in row], epilogue))
    _emit_store_strip(builder, vector, [[next(finished) for _ in row] for row in sums], y, y_pitch, count, width)


def _emit_store_strip(builder, vector, sums, y, y_pitch, count, width):
    """Write the rows of a strip, cut to `count` rows and `width` columns."""
    columns = len(sums[0])
    with builder.if_else(builder.icmp_signed(">=", width, I64(columns * vector.lanes)), likely=True) as (whole, cut):
        for block, partial in ((whole, False), (cut, True)):
            with block:
                left = [builder.sub(width, I64(j * vector.lanes)) for j in range(columns if partial else 0)]
                masks = [mask_first(builder, count, vector.lanes) for count in left]
                for r, row in enumerate(sums):
                    with builder.if_then(builder.icmp_signed("<", I64(r), count), likely=True):
                        target = builder.gep(y, [builder.mul(y_pitch, I64(r))])
                        for j, value in enumerate(row):
                            if partial:
                                emit_store_masked(builder, vector, value, masks[j], target, j * vector.lanes)
                            else:
                                emit_store(builder, vector, value, target, j * vector.lanes)


@intrinsic(prefer_literal=True)
def gradient_tile(typingctx, sums, x, pitch, rows, step, zeros, start, in_w, dilation, gy, gy_pitch, width,
                  kh, kw, stride, height, masked):
    """sums[ky, kx] += gy[r, :] * x[row(r stride + ky), start + kx dilation + ...] for r < height, over one vector of columns.

    Rows are those of `strip_tile`. With `masked`, only `width` columns of gy and what of x they meet in [0, in_w) are read.
    """
    vector = vector_of(x)
    numbers = [literal.literal_value for literal in (kh, kw, stride, height, masked)]

    def codegen(context, builder, signature, args):
        values = _emit_gradient(builder, vector, cgutils.unpack_tuple(builder, args[0]), args[1:12], numbers)
        return context.make_tuple(builder, sums, values)

    word = types.intp
    return sums(sums, x, word, rows, word, zeros, word, word, word, gy, word, word, kh, kw, stride, height, masked), codegen


def _emit_gradient(builder, vector, sums, args, numbers):
    x, pitch, rows, step, zeros, start, in_w, dilation, gy, gy_pitch, width = args
    kh, kw, stride, height, masked = numbers
    reader = _Reader(builder, vector, stride, 1, dilation)
    gradients = [builder.gep(gy, [builder.mul(gy_pitch, I64(r))]) for r in range(height)]
    if masked:
        reader.make_masks(kw, start, in_w, width)
        mask = mask_first(builder, width, vector.lanes)
        gradients = [emit_load_masked(builder, vector, mask, gradient) for gradient in gradients]
    else:
        gradients = [emit_load(builder, vector, gradient) for gradient in gradients]
    for i in range((height - 1) * stride + kh):
        row = builder.gep(_emit_row(builder, x, pitch, rows, step, zeros, i), [start])
        met = {i - r * stride: gradient for r, gradient in enumerate(gradients) if 0 <= i - r * stride < kh}
        for kx, (value,) in reader.read(row, kw if met else 0):
            taps = [ky * kw + kx for ky in met]
            new = [emit_fma(builder, vector, value, gradient, sums[tap]) for tap, gradient in zip(taps, met.values(), strict=True)]
            for tap, total in zip(taps, emit_in_order(builder, new), strict=True):
                sums[tap] = total
    return sums


# -- transposed strips ----------------------------------------------------------------------------------------------------


@intrinsic(prefer_literal=True)
def transposed_tile(typingctx, gy, pitch, rows, zeros, start, odd, out_w, w, bias, gx, gx_pitch, first, in_h, column, in_w, epilogue,
                    size, height, masked):
    """Some rows of a gradient of stride 2: gx[2 a + i, 2 b + j] = epilogue(bias + sum of w[i + 2 m, j + 2 n] gy[a - m, b - n]).

    For `height` numbers a and the vector of b from `start` on; a square kernel of `size` taps a side. Row a - m of gy is
    rows[a - m + most m], where -1 stands for the row `zeros`. gx points to the tile's row `first`, column `column`; where `odd`,
    that is the odd column of a pair, and its neighbour is the next pair's even one. Rows outside [0, in_h) are not written.
    With `masked`, columns outside [0, out_w) are zeros that are not read, and those of gx outside [0, in_w) are not written.
    """
    vector = vector_of(gx)
    numbers = [literal.literal_value for literal in (size, height, masked)]

    def codegen(context, builder, signature, args):
        _emit_transposed(builder, vector, isinstance(signature.args[7], types.UniTuple), args[:16], numbers)
        return context.get_dummy_value()

    word = types.intp
    return types.void(gy, word, rows, zeros, word, word, word, w, bias, gx, word, word, word, word, word, epilogue,
                      size, height, masked), codegen


def _emit_transposed(builder, vector, hoisted, args, numbers):
    gy, pitch, rows, zeros, start, odd, out_w, w, bias = args[:9]
    size, height, masked = numbers
    reach = (size + 1) // 2
    # Taps that meet the same columns: the even ones, and the odd ones, a column to the left where pairs start odd.
    columns = [builder.sub(builder.sub(start, I64(tap // 2)), odd if tap % 2 else I64(0)) for tap in range(size)]
    masks = [mask_between(builder, column, out_w, vector.lanes) for column in columns] if masked else None
    first = emit_splat(builder, builder.load(bias), vector.lanes)
    sums = [[[first, first] for _ in (0, 1)] for _ in range(height)]
    for i in range(height + reach - 1):
        row = _emit_row(builder, gy, pitch, rows, I64(1), zeros, i)
        met = [(r, ky) for r in range(height) for ky in range(size) if i - r == reach - 1 - ky // 2]
        for kx, column in enumerate(columns):
            value = emit_load_masked(builder, vector, masks[kx], row, column) if masks else emit_load(builder, vector, row, column)
            for r, ky in met:
                tap = ky * size + kx
                scale = builder.extract_value(w, tap) if hoisted else emit_splat(
                    builder, builder.load(builder.gep(w, [I64(tap)])), vector.lanes)
                sums[r][ky % 2][kx % 2] = emit_fma(builder, vector, value, scale, sums[r][ky % 2][kx % 2])
            kept = iter(emit_in_order(builder, [sums[r][ky % 2][kx % 2] for r, ky in met]))
            for r, ky in met:
                sums[r][ky % 2][kx % 2] = next(kept)
    _emit_store_pairs(builder, vector, [pair for rows in sums for pair in rows], args[5], args[9:], masked)


def _emit_store_pairs(builder, vector, pairs, odd, args, masked):
    """Write rows of (even, odd) columns in turn, those inside the image."""
    gx, gx_pitch, first, in_h, column, in_w, epilogue = args
    finished = iter(emit_epilogue(builder, vector, [value for pair in pairs for value in pair], epilogue))
    swapped = builder.icmp_signed("!=", odd, I64(0))
    starts = [builder.add(column, I64(half * vector.lanes)) for half in (0, 1)]
    masks = [mask_between(builder, start, in_w, vector.lanes) for start in starts] if masked else None
    for r in range(len(pairs)):
        even, uneven = next(finished), next(finished)
        with builder.if_then(builder.icmp_unsigned("<", builder.add(first, I64(r)), in_h), likely=True):
            pair = [builder.select(swapped, uneven, even), builder.select(swapped, even, uneven)]
            target = builder.gep(gx, [builder.mul(gx_pitch, I64(r))])
            for half, value in enumerate(emit_interleaved(builder, *pair)):
                if masks:
                    emit_store_masked(builder, vector, value, masks[half], target, half * vector.lanes)
                else:
                    emit_store(builder, vector, value, target, half * vector.lanes)
