"""An explicit SIMD vector type for Numba: kernels read as formulas over vectors; all raw LLVM IR of the CPU stays here.

    v = load(p, i)                              # p: pointer, i: offset in elements
    store(p, j, fma(splat(p, k), v, v - load(p, m)))

A vector holds `VECTOR_BYTES` bytes: 16 float32 lanes with AVX-512, 8 with AVX2, 4 with SSE2 and NEON; float64 has half
as many. Everything here is generic in the element type, which the pointer carries.

A register tile is a tuple of rows * columns vectors. `tile_outer` is one step of the GEMM micro-kernel,

    tile[r][c] += x[offset[r]] * w[c]           (x broadcast, w one vector a column)

Its rows are addressed through a table of offsets, so the same code serves any stride, dilation, layout and image
border: no im2col matrix is ever made. `TILE_ROWS` x `TILE_COLUMNS` fills the register file: on Zen 5, 14 x 2 reaches
259 of 265 GFLOP/s on a core, and with AVX2 6 x 2 reaches 125 of 131.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.extending import intrinsic, overload, register_model

from ._jit import cpu_target

_TRIPLE, _, _FEATURES = cpu_target()
VECTOR_BYTES = 64 if "avx512f" in _FEATURES else 32 if "avx" in _FEATURES else 16
VECTOR_REGISTERS = 32 if "avx512f" in _FEATURES or _TRIPLE.startswith(("aarch64", "arm64")) else 16
TILE_ROWS = 14 if VECTOR_REGISTERS == 32 else 6
TILE_HALF_ROWS = TILE_ROWS // 2
TILE_COLUMNS = 2
# The same for tiles whose lanes are pixels: several output channels at once, or one with more pixels.
LANES_TILE_ROWS, LANES_TILE_COLUMNS = (4, 6) if VECTOR_REGISTERS == 32 else (4, 2)
LANES_TILE_SINGLE = 8 if VECTOR_REGISTERS == 32 else 6
DOT_TILE = 6  # taps of a weight gradient at once

MOST_THREADS = 1024  # of one region

_I1, _I32, _I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)


def lane_count(dtype: Any) -> int:
    """Elements of `dtype` in a vector."""
    return VECTOR_BYTES // np.dtype(dtype).itemsize


# -- the type -------------------------------------------------------------------------------------------------------------


class VectorType(types.Type):
    """`lanes` elements of a float or signed integer type, in one register."""

    def __init__(self, dtype: types.Number):
        self.dtype = dtype
        self.lanes = VECTOR_BYTES * 8 // dtype.bitwidth
        super().__init__(name=f"Vector[{dtype} x {self.lanes}]")

    @property
    def ir(self) -> ir.VectorType:
        """The LLVM type."""
        return ir.VectorType(self.element, self.lanes)

    @property
    def element(self) -> ir.Type:
        """The LLVM type of a lane."""
        if self.is_float:
            return ir.FloatType() if self.dtype == types.float32 else ir.DoubleType()
        return ir.IntType(self.dtype.bitwidth)

    @property
    def is_float(self) -> bool:
        """Whether lanes are floating-point numbers."""
        return isinstance(self.dtype, types.Float)

    @property
    def suffix(self) -> str:
        """Its name in LLVM's overloaded intrinsics."""
        return f"v{self.lanes}{'f' if self.is_float else 'i'}{self.dtype.bitwidth}"


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        super().__init__(manager, vector, vector.ir)


def _vector_of(pointer: types.CPointer) -> VectorType:
    return VectorType(pointer.dtype)


# -- IR helpers -----------------------------------------------------------------------------------------------------------


def _element_pointer(builder, pointer, offset=None):
    if offset is None:
        return pointer
    return builder.gep(pointer, [_I64(offset) if isinstance(offset, int) else offset])


def _vector_pointer(builder, vector, pointer, offset=None):
    return builder.bitcast(_element_pointer(builder, pointer, offset), vector.ir.as_pointer())


def _load(builder, vector, pointer, offset=None):
    return builder.load(_vector_pointer(builder, vector, pointer, offset), align=vector.dtype.bitwidth // 8)


def _store(builder, vector, value, pointer, offset=None):
    builder.store(value, _vector_pointer(builder, vector, pointer, offset), align=vector.dtype.bitwidth // 8)


def _splat(builder, value, lanes):
    vector = ir.VectorType(value.type, lanes)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, _I32(0))
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes))


def _zero(vector):
    return ir.Constant(vector.ir, [vector.element(0)] * vector.lanes)


def _call(builder, vector, name, result, arguments, overloads=""):
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.{vector.suffix}{overloads}")
    return builder.call(function, arguments)


def _fma(builder, vector, a, b, c):
    if not vector.is_float:
        return builder.add(builder.mul(a, b), c)
    return _call(builder, vector, "fmuladd", vector.ir, [a, b, c])


def _in_order(builder, values):
    """`values`, and a promise to LLVM that nothing after them may be loaded before they are known.

    Without it the scheduler loads the broadcasts of all rows of a tile first and spills the tile: 130 GFLOP/s, not 255.
    """
    register = "w" if _TRIPLE.startswith(("aarch64", "arm64")) else "v" if "avx512f" in _FEATURES else "x"
    kinds = [value.type for value in values]
    result = kinds[0] if len(kinds) == 1 else ir.LiteralStructType(kinds)
    constraints = [f"={register}"] * len(values) + [str(i) for i in range(len(values))] + ["~{memory}"]
    assembly = ir.InlineAsm(ir.FunctionType(result, kinds), "", ",".join(constraints), side_effect=True)
    ordered = builder.call(assembly, values)
    return [ordered] if len(kinds) == 1 else [builder.extract_value(ordered, i) for i in range(len(kinds))]


def _first_lanes(builder, count, lanes):
    """Mask of the lanes below `count`, a run-time int64 that may be negative or beyond the vector."""
    index = ir.Constant(ir.VectorType(_I64, lanes), list(range(lanes)))
    return builder.icmp_signed("<", index, _splat(builder, count, lanes))


def _load_masked(builder, vector, mask, pointer, offset=None):
    address = _vector_pointer(builder, vector, pointer, offset)
    return _call(builder, vector, "masked.load", vector.ir, [address, _I32(vector.dtype.bitwidth // 8), mask, _zero(vector)], ".p0")


def _store_masked(builder, vector, value, mask, pointer, offset=None):
    address = _vector_pointer(builder, vector, pointer, offset)
    _call(builder, vector, "masked.store", ir.VoidType(), [value, address, _I32(vector.dtype.bitwidth // 8), mask], ".p0")


def _sum_of_lanes(builder, vector, value):
    """The lanes added pairwise."""
    add = builder.fadd if vector.is_float else builder.add
    width = vector.lanes
    while width > 1:
        width //= 2
        halves = [ir.Constant(ir.VectorType(_I32, width), list(range(at, at + width))) for at in (0, width)]
        value = add(*(builder.shuffle_vector(value, value, half) for half in halves))
    return builder.extract_element(value, _I32(0))


def _transpose(builder, rows):
    """Rows to columns by log2(lanes) rounds of block exchanges: after the round of distance s, bit s of the row number
    and of the lane number have changed places."""
    lanes = len(rows)
    rows = list(rows)
    distance = 1
    while distance < lanes:
        low = [lane if not lane & distance else lanes + lane - distance for lane in range(lanes)]
        high = [lane + distance if not lane & distance else lanes + lane for lane in range(lanes)]
        indices = [ir.Constant(ir.VectorType(_I32, lanes), index) for index in (low, high)]
        for i in range(lanes):
            if not i & distance:
                a, b = rows[i], rows[i + distance]
                rows[i], rows[i + distance] = (builder.shuffle_vector(a, b, index) for index in indices)
        distance *= 2
    return rows


# -- pointers -------------------------------------------------------------------------------------------------------------


@intrinsic
def pointer(typingctx, array, offset):
    """The address of array's element `offset`, counted flat in C order."""
    signature = types.CPointer(array.dtype)(array, types.intp)

    def codegen(context, builder, signature, args):
        return builder.gep(context.make_array(signature.args[0])(context, builder, args[0]).data, [args[1]])

    return signature, codegen


@intrinsic
def advance(typingctx, p, offset):
    """The pointer `offset` elements further."""
    return p(p, types.intp), lambda context, builder, signature, args: builder.gep(args[0], [args[1]])


@intrinsic
def get(typingctx, p, offset):
    """The element at `offset`."""
    return p.dtype(p, types.intp), lambda context, builder, signature, args: builder.load(builder.gep(args[0], [args[1]]))


@intrinsic
def put(typingctx, p, offset, value):
    """Write the element at `offset`."""

    def codegen(context, builder, signature, args):
        builder.store(args[2], builder.gep(args[0], [args[1]]))
        return context.get_dummy_value()

    return types.void(p, types.intp, p.dtype), codegen


@intrinsic
def lanes_of(typingctx, p):
    """Lanes of a vector of p's element type, as a constant."""
    lanes = _vector_of(p).lanes
    return types.intp(p), lambda context, builder, signature, args: _I64(lanes)


@intrinsic
def prefetch_write(typingctx, p, offset):
    """Bring the cache line at `offset` near, to be written."""

    def codegen(context, builder, signature, args):
        byte = ir.IntType(8).as_pointer()
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), [byte, _I32, _I32, _I32]), "llvm.prefetch.p0")
        builder.call(function, [builder.bitcast(builder.gep(args[0], [args[1]]), byte), _I32(1), _I32(3), _I32(1)])
        return context.get_dummy_value()

    return types.void(p, types.intp), codegen


# -- vectors --------------------------------------------------------------------------------------------------------------


@intrinsic
def load(typingctx, p, offset):
    """A vector from p[offset:]."""
    vector = _vector_of(p)
    return vector(p, types.intp), lambda context, builder, signature, args: _load(builder, vector, *args)


@intrinsic
def store(typingctx, p, offset, value):
    """Write a vector to p[offset:]."""

    def codegen(context, builder, signature, args):
        _store(builder, value, args[2], args[0], args[1])
        return context.get_dummy_value()

    return types.void(p, types.intp, value), codegen


@intrinsic
def load_first(typingctx, p, offset, count):
    """The first `count` lanes from p[offset:], zero in the others, whose memory is not touched."""
    vector = _vector_of(p)

    def codegen(context, builder, signature, args):
        return _load_masked(builder, vector, _first_lanes(builder, args[2], vector.lanes), args[0], args[1])

    return vector(p, types.intp, types.intp), codegen


@intrinsic
def store_first(typingctx, p, offset, value, count):
    """Write the first `count` lanes to p[offset:] and nothing beyond."""

    def codegen(context, builder, signature, args):
        _store_masked(builder, value, args[2], _first_lanes(builder, args[3], value.lanes), args[0], args[1])
        return context.get_dummy_value()

    return types.void(p, types.intp, value, types.intp), codegen


@intrinsic
def splat(typingctx, p, offset):
    """The element at p[offset] in every lane."""
    vector = _vector_of(p)
    return vector(p, types.intp), lambda context, builder, signature, args: _splat(builder, builder.load(builder.gep(*[args[0], [args[1]]])), vector.lanes)


@intrinsic
def zero(typingctx, p):
    """A zero vector of p's element type."""
    vector = _vector_of(p)
    return vector(p), lambda context, builder, signature, args: _zero(vector)


@intrinsic
def fma(typingctx, a, b, c):
    """a * b + c."""
    return a(a, a, a), lambda context, builder, signature, args: _fma(builder, a, *args)


@intrinsic
def rectify(typingctx, value, slope, ceiling):
    """Lanes below zero times `slope` (0 makes them 0, infinities too), then cut at `ceiling`; NaN stays NaN."""
    vector = value

    def codegen(context, builder, signature, args):
        value, slope, ceiling = args
        multiply, compare = (builder.fmul, builder.fcmp_ordered) if vector.is_float else (builder.mul, builder.icmp_signed)
        below = multiply(value, _splat(builder, slope, vector.lanes))
        below = builder.select(compare("==", slope, vector.element(0)), _zero(vector), below)
        value = builder.select(compare("<", value, _zero(vector)), below, value)
        top = _splat(builder, ceiling, vector.lanes)
        return builder.select(compare(">", value, top), top, value)

    return value(value, value.dtype, value.dtype), codegen


def _binary(method: str, integer_method: str):
    @intrinsic
    def operation(typingctx, a, b):
        def codegen(context, builder, signature, args):
            if a.is_float:
                return getattr(builder, method)(*args, flags=("contract",))
            return getattr(builder, integer_method)(*args)

        return a(a, b), codegen

    return operation


_add, _subtract, _multiply = _binary("fadd", "add"), _binary("fsub", "sub"), _binary("fmul", "mul")


def _overload_operator(symbol, function):
    @overload(symbol)
    def implementation(x, y):
        if isinstance(x, VectorType) and x == y:
            return lambda x, y: function(x, y)
        return None


for _symbol, _function in ((operator.add, _add), (operator.sub, _subtract), (operator.mul, _multiply)):
    _overload_operator(_symbol, _function)


# -- register tiles -------------------------------------------------------------------------------------------------------


def _tile_type(p: types.CPointer, rows: types.IntegerLiteral, columns: types.IntegerLiteral) -> types.UniTuple:
    return types.UniTuple(_vector_of(p), rows.literal_value * columns.literal_value)


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
            vectors += [_splat(builder, builder.load(builder.gep(args[0], [_I64(r)])), tile.dtype.lanes)] * columns.literal_value
        return context.make_tuple(builder, tile, vectors)

    return tile(p, rows, columns), codegen


@intrinsic(prefer_literal=True)
def tile_zeros(typingctx, p, rows, columns):
    """A tile of zeros."""
    tile = _tile_type(p, rows, columns)
    return tile(p, rows, columns), lambda context, builder, signature, args: context.make_tuple(builder, tile, [_zero(tile.dtype)] * len(tile))


@intrinsic(prefer_literal=True)
def tile_load(typingctx, p, pitch, rows, columns):
    """A tile from memory; its rows are `pitch` elements apart."""
    tile = _tile_type(p, rows, columns)

    def codegen(context, builder, signature, args):
        vectors = []
        for r in range(rows.literal_value):
            start = builder.gep(args[0], [builder.mul(args[1], _I64(r))])
            vectors += [_load(builder, tile.dtype, start, j * tile.dtype.lanes) for j in range(columns.literal_value)]
        return context.make_tuple(builder, tile, vectors)

    return tile(p, types.intp, rows, columns), codegen


@intrinsic(prefer_literal=True)
def tile_store(typingctx, p, pitch, tile, rows):
    """Write a tile to memory; its rows are `pitch` elements apart."""
    vector, height, width = _grid(tile, rows)

    def codegen(context, builder, signature, args):
        values = cgutils.unpack_tuple(builder, args[2])
        for r in range(height):
            start = builder.gep(args[0], [builder.mul(args[1], _I64(r))])
            for j in range(width):
                _store(builder, vector, values[r * width + j], start, j * vector.lanes)
        return context.get_dummy_value()

    return types.void(p, types.intp, tile, rows), codegen


@intrinsic(prefer_literal=True)
def tile_outer(typingctx, tile, x, offsets, w, rows):
    """tile[r][c] += x[offsets[r]] * w[c * lanes:]: one step of the GEMM micro-kernel. `offsets` points to int32."""
    vector, height, width = _grid(tile, rows)

    def codegen(context, builder, signature, args):
        values = cgutils.unpack_tuple(builder, args[0])
        columns = [_load(builder, vector, args[3], j * vector.lanes) for j in range(width)]
        new = []
        for r in range(height):
            offset = builder.sext(builder.load(builder.gep(args[2], [_I64(r)])), _I64)
            left = _splat(builder, builder.load(builder.gep(args[1], [offset])), vector.lanes)
            new += _in_order(builder, [_fma(builder, vector, left, columns[j], values[r * width + j]) for j in range(width)])
        return context.make_tuple(builder, tile, new)

    return tile(tile, x, offsets, w, rows), codegen


@intrinsic(prefer_literal=True)
def tile_lanes(typingctx, tile, x, offsets, w, rows):
    """tile[r][c] += w[r] * x[offsets[c]:]: the step of the direct kernels, whose lanes are pixels."""
    vector, height, width = _grid(tile, rows)

    def codegen(context, builder, signature, args):
        values = cgutils.unpack_tuple(builder, args[0])
        columns = []
        for c in range(width):
            offset = builder.sext(builder.load(builder.gep(args[2], [_I64(c)])), _I64)
            columns.append(_load(builder, vector, args[1], offset))
        new = []
        for r in range(height):
            left = _splat(builder, builder.load(builder.gep(args[3], [_I64(r)])), vector.lanes)
            new += _in_order(builder, [_fma(builder, vector, left, columns[c], values[r * width + c]) for c in range(width)])
        return context.make_tuple(builder, tile, new)

    return tile(tile, x, offsets, w, rows), codegen


@intrinsic(prefer_literal=True)
def tile_dot(typingctx, tile, x, offsets, g):
    """tile[r] += g[0:] * x[offsets[r]:]: the step of the direct weight gradient, one row a tap."""
    vector = tile.dtype

    def codegen(context, builder, signature, args):
        right = _load(builder, vector, args[3])
        new = []
        for r, value in enumerate(cgutils.unpack_tuple(builder, args[0])):
            offset = builder.sext(builder.load(builder.gep(args[2], [_I64(r)])), _I64)
            new.append(_fma(builder, vector, _load(builder, vector, args[1], offset), right, value))
        return context.make_tuple(builder, tile, new)

    return tile(tile, x, offsets, g), codegen


@intrinsic(prefer_literal=True)
def tile_dot_first(typingctx, tile, x, offsets, g, count):
    """The same with the first `count` lanes only."""
    vector = tile.dtype

    def codegen(context, builder, signature, args):
        mask = _first_lanes(builder, args[4], vector.lanes)
        right = _load_masked(builder, vector, mask, args[3])
        new = []
        for r, value in enumerate(cgutils.unpack_tuple(builder, args[0])):
            offset = builder.sext(builder.load(builder.gep(args[2], [_I64(r)])), _I64)
            new.append(_fma(builder, vector, _load_masked(builder, vector, mask, args[1], offset), right, value))
        return context.make_tuple(builder, tile, new)

    return tile(tile, x, offsets, g, types.intp), codegen


@intrinsic
def tile_totals(typingctx, tile, target):
    """target[r] += the sum of row r's lanes, for a tile of one column."""
    vector = tile.dtype

    def codegen(context, builder, signature, args):
        add = builder.fadd if vector.is_float else builder.add
        for r, value in enumerate(cgutils.unpack_tuple(builder, args[0])):
            address = builder.gep(args[1], [_I64(r)])
            builder.store(add(builder.load(address), _sum_of_lanes(builder, vector, value)), address)
        return context.get_dummy_value()

    return types.void(tile, target), codegen


@intrinsic
def transpose_block(typingctx, source, source_pitch, rows, columns, target, target_pitch, width):
    """target[c * target_pitch + r] = source[r * source_pitch + c] for c < columns and r < width, both at most a vector's lanes.

    Source rows from `rows` on are taken as zero, and their memory is not touched.
    """
    vector = _vector_of(source)

    def codegen(context, builder, signature, args):
        source, source_pitch, rows, columns, target, target_pitch, width = args
        read, write = (_first_lanes(builder, count, vector.lanes) for count in (columns, width))
        nothing = ir.Constant(read.type, [0] * vector.lanes)
        block = []
        for r in range(vector.lanes):
            row_mask = builder.select(builder.icmp_signed("<", _I64(r), rows), read, nothing)
            block.append(_load_masked(builder, vector, row_mask, source, builder.mul(source_pitch, _I64(r))))
        for c, column in enumerate(_transpose(builder, block)):
            with builder.if_then(builder.icmp_signed("<", _I64(c), columns), likely=True):
                _store_masked(builder, vector, column, write, target, builder.mul(target_pitch, _I64(c)))
        return context.get_dummy_value()

    return types.void(source, types.intp, types.intp, types.intp, target, types.intp, types.intp), codegen


@intrinsic
def next_task(typingctx, counter):
    """counter[0]++, atomically, returning the old value: how threads share tasks of unequal length on any layer."""

    def codegen(context, builder, signature, args):
        return builder.atomic_rmw("add", args[0], _I64(1), "monotonic")

    return types.int64(types.CPointer(types.int64)), codegen


# -- threads --------------------------------------------------------------------------------------------------------------


@intrinsic
def in_threads(typingctx, work, threads, args):
    """work(args, thread) for thread in range(threads), on Numba's thread pool; on the caller's thread alone if threads == 1.

    What `prange` does, without compiling the body three times over: the pool's entry point is called directly. `work`
    must not raise. The pool must have been started (`_jit.parallel_region`).
    """
    signature = typingctx.resolve_function_type(work, (args, types.int64), {})
    compiled = work.dispatcher.overloads[signature.args]

    def codegen(context, builder, _, values):
        _, threads, shared = values
        context.active_code_library.add_linking_library(compiled.library)
        data = cgutils.alloca_once_value(builder, shared)
        entry = _thread_entry(context, builder.module, compiled, signature, shared.type)
        byte = ir.IntType(8).as_pointer()
        numbers = cgutils.alloca_once(builder, _I64, size=MOST_THREADS)
        with cgutils.for_range(builder, threads) as loop:
            builder.store(loop.index, builder.gep(numbers, [loop.index]))
        arrays = cgutils.alloca_once_value(builder, builder.bitcast(numbers, byte))
        count, step = cgutils.alloca_once_value(builder, threads), cgutils.alloca_once_value(builder, _I64(8))
        arguments = [arrays, count, step, builder.bitcast(data, byte)]
        with builder.if_else(builder.icmp_signed("==", threads, _I64(1))) as (alone, together):
            with alone:
                builder.call(entry, arguments)
            with together:
                pool = ir.FunctionType(ir.VoidType(), [byte] * 5 + [_I64] * 3)
                parallel_for = cgutils.get_or_insert_function(builder.module, pool, "numba_parallel_for")
                pointers = [builder.bitcast(value, byte) for value in (entry, *arguments)]
                builder.call(parallel_for, [*pointers, _I64(0), _I64(1), threads])
        return context.get_dummy_value()

    return types.void(work, types.intp, args), codegen


def _thread_entry(context, module, compiled, signature, shared_type):
    """The function that the pool calls with a run of thread numbers: it calls `work` for each of them."""
    byte = ir.IntType(8).as_pointer()
    words = _I64.as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte.as_pointer(), words, words, byte])
    function = ir.Function(module, kind, name=f"thread_entry.{compiled.fndesc.mangled_name}")
    function.linkage = "internal"
    builder = ir.IRBuilder(function.append_basic_block())
    arrays, count, _, data = function.args
    numbers = builder.bitcast(builder.load(arrays), words)
    callee = context.declare_function(module, compiled.fndesc)
    with cgutils.for_range(builder, builder.load(count)) as loop:
        thread = builder.load(builder.gep(numbers, [loop.index]))
        shared = builder.load(builder.bitcast(data, shared_type.as_pointer()))
        context.call_conv.call_function(builder, callee, signature.return_type, signature.args, [shared, thread])
    builder.ret_void()
    return function
