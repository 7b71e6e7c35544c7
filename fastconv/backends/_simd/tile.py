"""Register tiles: tuples of rows * columns vectors, the sums that a micro-kernel keeps in registers."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .emit import (
    I32,
    I64,
    VECTOR_REGISTERS,
    VectorType,
    call_by_address,
    emit_epilogue,
    emit_fma,
    emit_in_order,
    emit_load,
    emit_load_masked,
    emit_load_transposed,
    emit_splat,
    emit_store,
    emit_store_masked,
    emit_store_streamed,
    emit_sum,
    emit_transpose,
    mask_first,
    vector_of,
    zero_of,
)

TILE_ROWS = 14 if VECTOR_REGISTERS == 32 else 6
TILE_SIZES = (14, 10, 8, 4, 2) if VECTOR_REGISTERS == 32 else (6, 4, 2)  # rows of the tiles there are, the largest first
TILE_COLUMNS = 2
# The same for tiles whose lanes are pixels: output channels at once -> vectors of pixels.
LANES_TILES = {1: 8, 2: 8, 3: 8, 4: 6, 6: 4} if VECTOR_REGISTERS == 32 else {1: 6, 2: 4, 3: 3, 4: 2, 6: 2}
LANES_TILE_ROWS, LANES_TILE_COLUMNS, LANES_TILE_SINGLE = 4, LANES_TILES[4], LANES_TILES[1]
DOT_TILE = 6  # taps of a weight gradient at once


def _tile_type(p: types.CPointer, rows: types.IntegerLiteral, columns: types.IntegerLiteral) -> types.UniTuple:
    return types.UniTuple(vector_of(p), rows.literal_value * columns.literal_value)


def _grid(tile: types.UniTuple, rows: types.IntegerLiteral) -> tuple[VectorType, int, int]:
    """Vector type, rows and columns of a tile."""
    return tile.dtype, rows.literal_value, len(tile) // rows.literal_value


@intrinsic(prefer_literal=True)
def tile_columns_of(typingctx, p, rows, columns):
    """A tile whose row r is the element p[r] in every lane."""
    tile = _tile_type(p, rows, columns)

    def codegen(context, builder, signature, args):
        vectors = []
        for r in range(rows.literal_value):
            vectors += [emit_splat(builder, builder.load(builder.gep(args[0], [I64(r)])), tile.dtype.lanes)] * columns.literal_value
        return context.make_tuple(builder, tile, vectors)

    return tile(p, rows, columns), codegen


@intrinsic(prefer_literal=True)
def tile_zeros(typingctx, p, rows, columns):
    """A tile of zeros."""
    tile = _tile_type(p, rows, columns)

    def codegen(context, builder, signature, args):
        return context.make_tuple(builder, tile, [zero_of(tile.dtype)] * len(tile))

    return tile(p, rows, columns), codegen


@intrinsic(prefer_literal=True)
def tile_load(typingctx, p, pitch, rows, columns):
    """A tile from memory; its rows are `pitch` elements apart."""
    tile = _tile_type(p, rows, columns)

    def codegen(context, builder, signature, args):
        vectors = []
        for r in range(rows.literal_value):
            start = builder.gep(args[0], [builder.mul(args[1], I64(r))])
            vectors += [emit_load(builder, tile.dtype, start, j * tile.dtype.lanes) for j in range(columns.literal_value)]
        return context.make_tuple(builder, tile, vectors)

    return tile(p, types.intp, rows, columns), codegen


@intrinsic(prefer_literal=True)
def tile_store(typingctx, p, pitch, tile, rows):
    """Write a tile to memory; its rows are `pitch` elements apart."""
    vector, height, width = _grid(tile, rows)

    def codegen(context, builder, signature, args):
        values = cgutils.unpack_tuple(builder, args[2])
        for r in range(height):
            start = builder.gep(args[0], [builder.mul(args[1], I64(r))])
            for j in range(width):
                emit_store(builder, vector, values[r * width + j], start, j * vector.lanes)
        return context.get_dummy_value()

    return types.void(p, types.intp, tile, rows), codegen


def _plus_outer(context, builder, tile, values, elements, columns):
    """The tile plus the products of the elements at some addresses, a row each, and vectors, a column each."""
    new = []
    for r, element in enumerate(elements):
        left = emit_splat(builder, builder.load(element), tile.dtype.lanes)
        row = values[r * len(columns):(r + 1) * len(columns)]
        new += emit_in_order(builder, [emit_fma(builder, tile.dtype, left, column, old) for column, old in zip(columns, row)])
    return context.make_tuple(builder, tile, new)


@intrinsic(prefer_literal=True)
def tile_outer(typingctx, tile, x, offsets, w, rows):
    """tile[r][c] += x[offsets[r]] * w[c * lanes:]: one step of the GEMM micro-kernel. `offsets` points to int32."""
    vector, height, width = _grid(tile, rows)

    def codegen(context, builder, signature, args):
        values = cgutils.unpack_tuple(builder, args[0])
        columns = [emit_load(builder, vector, args[3], j * vector.lanes) for j in range(width)]
        offsets = (builder.sext(builder.load(builder.gep(args[2], [I64(r)])), I64) for r in range(height))
        return _plus_outer(context, builder, tile, values, (builder.gep(args[1], [offset]) for offset in offsets), columns)

    return tile(tile, x, offsets, w, rows), codegen


@intrinsic(prefer_literal=True)
def tile_outer_packed(typingctx, tile, x, w, rows):
    """tile[r][c] += x[r] * w[c * lanes:]: the same with no offsets to load, which are half of what it loads."""
    vector, height, width = _grid(tile, rows)

    def codegen(context, builder, signature, args):
        values = cgutils.unpack_tuple(builder, args[0])
        columns = [emit_load(builder, vector, args[2], j * vector.lanes) for j in range(width)]
        return _plus_outer(context, builder, tile, values, (builder.gep(args[1], [I64(r)]) for r in range(height)), columns)

    return tile(tile, x, w, rows), codegen


@intrinsic(prefer_literal=True)
def tile_outer_rows(typingctx, tile, rows, offset, w):
    """tile[r][c] += rows[r][offset] * w[c * lanes:]: the same with a tuple of pointers, which stay in registers where rows are few."""
    vector = tile.dtype

    def codegen(context, builder, signature, args):
        values, pointers = (cgutils.unpack_tuple(builder, args[i]) for i in (0, 1))
        columns = [emit_load(builder, vector, args[3], j * vector.lanes) for j in range(len(values) // len(pointers))]
        return _plus_outer(context, builder, tile, values, (builder.gep(pointer, [args[2]]) for pointer in pointers), columns)

    return tile(tile, rows, types.intp, w), codegen


@intrinsic(prefer_literal=True)
def column_pointers(typingctx, x, offsets, columns):
    """The tuple of x + offsets[c]; `offsets` points to int32."""
    result = types.UniTuple(x, columns.literal_value)

    def codegen(context, builder, signature, args):
        offsets = [builder.sext(builder.load(builder.gep(args[1], [I64(c)])), I64) for c in range(columns.literal_value)]
        return context.make_tuple(builder, result, [builder.gep(args[0], [offset]) for offset in offsets])

    return result(x, offsets, columns), codegen


@intrinsic(prefer_literal=True)
def tile_lanes(typingctx, tile, columns, offset, w, rows):
    """tile[r][c] += w[r] * columns[c][offset:]: the step of the direct kernels, whose lanes are pixels."""
    vector, height, _ = _grid(tile, rows)

    def codegen(context, builder, signature, args):
        values = cgutils.unpack_tuple(builder, args[0])
        loaded = [emit_load(builder, vector, column, args[2]) for column in cgutils.unpack_tuple(builder, args[1])]
        return _plus_outer(context, builder, tile, values, (builder.gep(args[3], [I64(r)]) for r in range(height)), loaded)

    return tile(tile, columns, types.intp, w, rows), codegen


@intrinsic(prefer_literal=True)
def tile_store_lanes(typingctx, y, pitch, offsets, counts, tile, epilogue, rows):
    """y[r * pitch + offsets[c]:] = the first counts[c] lanes of epilogue(tile[r][c])."""
    vector, height, width = _grid(tile, rows)

    def codegen(context, builder, signature, args):
        y, pitch, offsets, counts, values, epilogue = args[:6]
        values = emit_epilogue(builder, vector, cgutils.unpack_tuple(builder, values), epilogue)
        for c in range(width):
            count = builder.sext(builder.load(builder.gep(counts, [I64(c)])), I64)
            start = builder.gep(y, [builder.load(builder.gep(offsets, [I64(c)]))])
            targets = [builder.gep(start, [builder.mul(pitch, I64(r))]) for r in range(height)]
            with builder.if_else(builder.icmp_signed("==", count, I64(vector.lanes)), likely=True) as (whole, cut):
                with whole:
                    for r, target in enumerate(targets):
                        emit_store(builder, vector, values[r * width + c], target)
                with cut:
                    mask = mask_first(builder, count, vector.lanes)
                    for r, target in enumerate(targets):
                        emit_store_masked(builder, vector, values[r * width + c], mask, target)
        return context.get_dummy_value()

    return types.void(y, types.intp, offsets, counts, tile, epilogue, rows), codegen


@intrinsic(prefer_literal=True)
def tile_slide(typingctx, tile, x, w, divisor):
    """tile[c] += the sum over k of w[k] * x[c * lanes + k:], for the lanes // divisor taps k from 0 on and a tile of one row.

    The vectors between two loaded ones are put together from both: on Zen 5, loads across cache lines run at a third of the rate.
    """
    vector = tile.dtype

    def codegen(context, builder, signature, args):
        values = cgutils.unpack_tuple(builder, args[0])
        loaded = [emit_load(builder, vector, args[1], c * vector.lanes) for c in range(len(values) + 1)]
        for k in range(vector.lanes // divisor.literal_value):
            left = emit_splat(builder, builder.load(builder.gep(args[2], [I64(k)])), vector.lanes)
            index = ir.Constant(ir.VectorType(I32, vector.lanes), list(range(k, k + vector.lanes)))
            values = [emit_fma(builder, vector, left, builder.shuffle_vector(*loaded[c:c + 2], index), value)
                      for c, value in enumerate(values)]
        return context.make_tuple(builder, tile, values)

    return tile(tile, x, w, divisor), codegen


@intrinsic(prefer_literal=True)
def tile_dot(typingctx, tile, x, offsets, g):
    """tile[r] += g[0:] * x[offsets[r]:]: the step of the direct weight gradient, one row a tap."""
    vector = tile.dtype

    def codegen(context, builder, signature, args):
        right = emit_load(builder, vector, args[3])
        new = []
        for r, value in enumerate(cgutils.unpack_tuple(builder, args[0])):
            offset = builder.sext(builder.load(builder.gep(args[2], [I64(r)])), I64)
            new.append(emit_fma(builder, vector, emit_load(builder, vector, args[1], offset), right, value))
        return context.make_tuple(builder, tile, new)

    return tile(tile, x, offsets, g), codegen


@intrinsic(prefer_literal=True)
def tile_dot_first(typingctx, tile, x, offsets, g, count):
    """The same with the first `count` lanes only."""
    vector = tile.dtype

    def codegen(context, builder, signature, args):
        mask = mask_first(builder, args[4], vector.lanes)
        right = emit_load_masked(builder, vector, mask, args[3])
        new = []
        for r, value in enumerate(cgutils.unpack_tuple(builder, args[0])):
            offset = builder.sext(builder.load(builder.gep(args[2], [I64(r)])), I64)
            new.append(emit_fma(builder, vector, emit_load_masked(builder, vector, mask, args[1], offset), right, value))
        return context.make_tuple(builder, tile, new)

    return tile(tile, x, offsets, g, types.intp), codegen


@intrinsic(prefer_literal=True)
def tile_pixels(typingctx, tile, x, w, taps):
    """tile[p] += sum over k < taps of x[p + k] * w[k], a vector a pixel: the step of the kernels whose lanes are channels."""
    vector = tile.dtype

    def codegen(context, builder, signature, args):
        values = cgutils.unpack_tuple(builder, args[0])
        scales = [emit_load(builder, vector, args[2], k * vector.lanes) for k in range(taps.literal_value)]
        for i in range(len(values) + taps.literal_value - 1):
            value = emit_load(builder, vector, args[1], i * vector.lanes)
            for k, scale in enumerate(scales):
                if 0 <= i - k < len(values):
                    values[i - k] = emit_fma(builder, vector, value, scale, values[i - k])
        return context.make_tuple(builder, tile, values)

    return tile(tile, x, w, taps), codegen


@intrinsic
def tile_store_pixels(typingctx, y, pitch, tile, count, channels, epilogue):
    """y[p * pitch:] = the first `channels` lanes of epilogue(tile[p]) for p < count."""
    vector = tile.dtype

    def codegen(context, builder, signature, args):
        y, pitch, values, count, channels, epilogue = args
        values = emit_epilogue(builder, vector, cgutils.unpack_tuple(builder, values), epilogue)
        mask = mask_first(builder, channels, vector.lanes)
        whole = builder.icmp_signed(">=", channels, I64(vector.lanes))
        for p, value in enumerate(values):
            with builder.if_then(builder.icmp_signed("<", I64(p), count), likely=True):
                target = builder.gep(y, [builder.mul(pitch, I64(p))])
                with builder.if_else(whole, likely=True) as (all_lanes, some):
                    with all_lanes:
                        emit_store(builder, vector, value, target)
                    with some:
                        emit_store_masked(builder, vector, value, mask, target)
        return context.get_dummy_value()

    return types.void(y, types.intp, tile, types.intp, types.intp, epilogue), codegen


def tile_signature(pointer: types.CPointer) -> tuple[types.Type, ...]:
    """Argument types of a GEMM micro-kernel: x, row offsets, k offsets, depth, w, width, what to fetch ahead, start, start pitch, sums."""
    offsets = types.CPointer(types.int32)
    return (pointer, offsets, offsets, types.int64, pointer, types.int64, types.int64, types.int64, pointer, types.int64, pointer)


@intrinsic
def call_tile(typingctx, address, x, row_offsets, k_offsets, depth, w, width, ahead, ahead_step, start, start_pitch, sums):
    """Call a GEMM micro-kernel through its address."""
    return call_by_address(tile_signature(x))


@intrinsic
def tile_totals(typingctx, tile, target):
    """target[r] += the sum of row r's lanes, for a tile of one column."""
    vector = tile.dtype

    def codegen(context, builder, signature, args):
        add = builder.fadd if vector.is_float else builder.add
        for r, value in enumerate(cgutils.unpack_tuple(builder, args[0])):
            address = builder.gep(args[1], [I64(r)])
            builder.store(add(builder.load(address), emit_sum(builder, vector, value)), address)
        return context.get_dummy_value()

    return types.void(tile, target), codegen


@intrinsic
def transpose_block(typingctx, source, source_pitch, rows, columns, target, target_pitch, width):
    """target[c * target_pitch + r] = source[r * source_pitch + c] for c < columns and r < width, both at most a vector's lanes.

    Source rows from `rows` on are taken as zero, and their memory is not touched.
    """
    vector = vector_of(source)

    def codegen(context, builder, signature, args):
        source, source_pitch, rows, columns, target, target_pitch, width = args
        read, write = (mask_first(builder, count, vector.lanes) for count in (columns, width))
        nothing = ir.Constant(read.type, [0] * vector.lanes)
        block = []
        for r in range(vector.lanes):
            there = builder.icmp_signed("<", I64(r), rows)
            # A load without lanes from a page that is not mapped takes hundreds of cycles.
            row = builder.select(there, builder.mul(source_pitch, I64(r)), I64(0))
            block.append(emit_load_masked(builder, vector, builder.select(there, read, nothing), source, row))
        for c, column in enumerate(emit_transpose(builder, block)):
            with builder.if_then(builder.icmp_signed("<", I64(c), columns), likely=True):
                emit_store_masked(builder, vector, column, write, target, builder.mul(target_pitch, I64(c)))
        return context.get_dummy_value()

    return types.void(source, types.intp, types.intp, types.intp, target, types.intp, types.intp), codegen


@intrinsic
def transpose_chosen(typingctx, source, source_pitch, rows, columns, offsets, count, first, target, target_pitch):
    """target[i * target_pitch + r] = source[r * source_pitch + offsets[i] - first] for i < count and every lane r.

    The offsets, int64, lie in [first, first + columns), which is at most a vector's lanes; source rows from `rows` on are
    taken as zero, and their memory is not touched.
    """
    vector = vector_of(source)

    def codegen(context, builder, signature, args):
        source, source_pitch, rows, columns, offsets, count, first, target, target_pitch = args
        read = mask_first(builder, columns, vector.lanes)
        nothing = ir.Constant(read.type, [0] * vector.lanes)
        block = []
        for r in range(vector.lanes):
            row_mask = builder.select(builder.icmp_signed("<", I64(r), rows), read, nothing)
            block.append(emit_load_masked(builder, vector, row_mask, source, builder.mul(source_pitch, I64(r))))
        columns_of_block = cgutils.alloca_once(builder, vector.ir, size=vector.lanes)
        for c, column in enumerate(emit_transpose(builder, block)):
            builder.store(column, builder.gep(columns_of_block, [I64(c)]))
        with cgutils.for_range(builder, count) as loop:
            chosen = builder.sub(builder.load(builder.gep(offsets, [loop.index])), first)
            value = builder.load(builder.gep(columns_of_block, [chosen]))
            emit_store(builder, vector, value, target, builder.mul(target_pitch, loop.index))
        return context.get_dummy_value()

    kinds = (types.intp,) * 3
    return types.void(source, *kinds, types.CPointer(types.int64), types.intp, types.intp, target, types.intp), codegen


@intrinsic
def transpose_whole(typingctx, source, source_pitch, target, target_pitch):
    """target[c * target_pitch + r] = source[r * source_pitch + c] for c and r below a vector's lanes."""
    vector = vector_of(source)

    def codegen(context, builder, signature, args):
        source, source_pitch, target, target_pitch = args
        rows = [builder.gep(source, [builder.mul(source_pitch, I64(r))]) for r in range(vector.lanes)]
        for c, column in enumerate(emit_load_transposed(builder, vector, rows)):
            emit_store(builder, vector, column, target, builder.mul(target_pitch, I64(c)))
        return context.get_dummy_value()

    return types.void(source, types.intp, target, types.intp), codegen


@intrinsic
def transpose_streamed(typingctx, source, source_pitch, target, target_pitch):
    """The same past the caches, whose lines are not read first: rows of the target start at a multiple of a vector's bytes."""
    vector = vector_of(source)

    def codegen(context, builder, signature, args):
        source, source_pitch, target, target_pitch = args
        rows = [builder.gep(source, [builder.mul(source_pitch, I64(r))]) for r in range(vector.lanes)]
        for c, column in enumerate(emit_load_transposed(builder, vector, rows)):
            emit_store_streamed(builder, vector, column, target, builder.mul(target_pitch, I64(c)))
        return context.get_dummy_value()

    return types.void(source, types.intp, target, types.intp), codegen
