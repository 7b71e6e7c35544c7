"""The vector type of Numba kernels: pointers, loads and stores, arithmetic. Generic in the element type, which pointers carry."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.extending import intrinsic, overload, register_model

from .._jit import cpu_target

_TRIPLE, _, _FEATURES = cpu_target()
VECTOR_BYTES = 64 if "avx512f" in _FEATURES else 32 if "avx" in _FEATURES else 16
VECTOR_REGISTERS = 32 if "avx512f" in _FEATURES or _TRIPLE.startswith(("aarch64", "arm64")) else 16
I1, I32, I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)


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
    def element(self) -> Any:
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


def vector_of(pointer: types.CPointer) -> VectorType:
    return VectorType(pointer.dtype)


# -- IR helpers -----------------------------------------------------------------------------------------------------------


def _element_pointer(builder, pointer, offset=None):
    if offset is None:
        return pointer
    return builder.gep(pointer, [I64(offset) if isinstance(offset, int) else offset])


def _vector_pointer(builder, vector, pointer, offset=None):
    return builder.bitcast(_element_pointer(builder, pointer, offset), vector.ir.as_pointer())


def emit_scale(vector, value: float):
    """A constant in every lane."""
    return ir.Constant(vector.ir, [vector.element(value)] * vector.lanes)


def emit_load(builder, vector, pointer, offset=None):
    return builder.load(_vector_pointer(builder, vector, pointer, offset), align=vector.dtype.bitwidth // 8)


def emit_store(builder, vector, value, pointer, offset=None):
    builder.store(value, _vector_pointer(builder, vector, pointer, offset), align=vector.dtype.bitwidth // 8)


def emit_splat(builder, value, lanes):
    vector = ir.VectorType(value.type, lanes)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, I32(0))
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))


def zero_of(vector):
    return ir.Constant(vector.ir, [vector.element(0)] * vector.lanes)


def _call(builder, vector, name, result, arguments, overloads=""):
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.{vector.suffix}{overloads}")
    return builder.call(function, arguments)


def emit_fma(builder, vector, a, b, c):
    if not vector.is_float:
        return builder.add(builder.mul(a, b), c)
    return _call(builder, vector, "fmuladd", vector.ir, [a, b, c])


def emit_in_order(builder, values):
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


def mask_first(builder, count, lanes):
    """Mask of the lanes below `count`, a run-time int64 that may be negative or beyond the vector."""
    index = ir.Constant(ir.VectorType(I64, lanes), list(range(lanes)))
    return builder.icmp_signed("<", index, emit_splat(builder, count, lanes))


def mask_between(builder, start, end, lanes):
    """Mask of the lanes whose position start + lane lies in [0, end): int32 arithmetic, a quarter of mask_first's."""
    kind = ir.VectorType(I32, lanes)
    position = builder.add(emit_splat(builder, builder.trunc(start, I32), lanes), ir.Constant(kind, list(range(lanes))))
    return builder.icmp_unsigned("<", position, emit_splat(builder, builder.trunc(end, I32), lanes))


def emit_load_masked(builder, vector, mask, pointer, offset=None):
    address = _vector_pointer(builder, vector, pointer, offset)
    return _call(builder, vector, "masked.load", vector.ir, [address, I32(vector.dtype.bitwidth // 8), mask, zero_of(vector)], ".p0")


def emit_store_masked(builder, vector, value, mask, pointer, offset=None):
    address = _vector_pointer(builder, vector, pointer, offset)
    _call(builder, vector, "masked.store", ir.VoidType(), [value, address, I32(vector.dtype.bitwidth // 8), mask], ".p0")


def emit_sum(builder, vector, value):
    """The lanes added pairwise."""
    add = builder.fadd if vector.is_float else builder.add
    width = vector.lanes
    while width > 1:
        width //= 2
        halves = [ir.Constant(ir.VectorType(I32, width), list(range(at, at + width))) for at in (0, width)]
        value = add(*(builder.shuffle_vector(value, value, half) for half in halves))
    return builder.extract_element(value, I32(0))


def emit_transpose(builder, rows):
    """Rows to columns by log2(lanes) rounds of block exchanges.

    After the round of distance s, bit s of the row number and of the lane number have changed places.
    """
    lanes = len(rows)
    rows = list(rows)
    distance = 1
    while distance < lanes:
        low = [lane if not lane & distance else lanes + lane - distance for lane in range(lanes)]
        high = [lane + distance if not lane & distance else lanes + lane for lane in range(lanes)]
        indices = [ir.Constant(ir.VectorType(I32, lanes), index) for index in (low, high)]
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


@overload(operator.getitem)
def _pointer_item(p, offset):
    """Tables read as arrays do: p[offset]."""
    if isinstance(p, types.CPointer):
        return lambda p, offset: get(p, offset)
    return None


@intrinsic
def zero_element(typingctx, p):
    """The number zero in p's element type."""
    vector = vector_of(p)
    return p.dtype(p), lambda context, builder, signature, args: vector.element(0)


@intrinsic
def as_int32(typingctx, p):
    """The same address as that of int32 numbers: tables in scratch."""
    table = types.CPointer(types.int32)
    return table(p), lambda context, builder, signature, args: builder.bitcast(args[0], I32.as_pointer())


@intrinsic
def as_int64(typingctx, p):
    """The same address as that of int64 numbers."""
    table = types.CPointer(types.int64)
    return table(p), lambda context, builder, signature, args: builder.bitcast(args[0], I64.as_pointer())


@intrinsic
def as_float64(typingctx, p):
    """The same address as that of float64 numbers: totals of float32 ones."""
    table = types.CPointer(types.float64)
    return table(p), lambda context, builder, signature, args: builder.bitcast(args[0], ir.DoubleType().as_pointer())


@intrinsic
def lanes_of(typingctx, p):
    """Lanes of a vector of p's element type, as a constant."""
    lanes = vector_of(p).lanes
    return types.intp(p), lambda context, builder, signature, args: I64(lanes)


@intrinsic
def misalignment(typingctx, p):
    """How many elements p stands behind the last address that a whole number of vectors precedes."""
    vector = vector_of(p)

    def codegen(context, builder, signature, args):
        element = builder.udiv(builder.ptrtoint(args[0], I64), I64(vector.dtype.bitwidth // 8))
        return builder.and_(element, I64(vector.lanes - 1))

    return types.intp(p), codegen


def emit_prefetch(builder, pointer, write=False):
    """Bring a cache line near, to be read or written; the address may be any."""
    byte = ir.IntType(8).as_pointer()
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32]), "llvm.prefetch.p0")
    builder.call(function, [builder.bitcast(pointer, byte), I32(int(write)), I32(3), I32(1)])


def _prefetch(writing: bool):
    @intrinsic
    def prefetch(typingctx, p, offset):
        def codegen(context, builder, signature, args):
            emit_prefetch(builder, builder.gep(args[0], [args[1]]), writing)
            return context.get_dummy_value()

        return types.void(p, types.intp), codegen

    return prefetch


prefetch_read, prefetch_write = _prefetch(False), _prefetch(True)  # bring the cache line at p + offset near


# -- vectors --------------------------------------------------------------------------------------------------------------


@intrinsic
def load(typingctx, p, offset):
    """A vector from p[offset:]."""
    vector = vector_of(p)
    return vector(p, types.intp), lambda context, builder, signature, args: emit_load(builder, vector, *args)


@intrinsic
def store(typingctx, p, offset, value):
    """Write a vector to p[offset:]."""

    def codegen(context, builder, signature, args):
        emit_store(builder, value, args[2], args[0], args[1])
        return context.get_dummy_value()

    return types.void(p, types.intp, value), codegen


@intrinsic
def load_first(typingctx, p, offset, count):
    """The first `count` lanes from p[offset:], zero in the others, whose memory is not touched."""
    vector = vector_of(p)

    def codegen(context, builder, signature, args):
        return emit_load_masked(builder, vector, mask_first(builder, args[2], vector.lanes), args[0], args[1])

    return vector(p, types.intp, types.intp), codegen


@intrinsic
def load_between(typingctx, p, offset, start, end):
    """The lanes from `start` up to `end` from p[offset:], zero in the others, whose memory is not touched; any int32 numbers."""
    vector = vector_of(p)

    def codegen(context, builder, signature, args):
        p, offset, start, end = args
        mask = mask_between(builder, builder.neg(start), builder.sub(end, start), vector.lanes)
        return emit_load_masked(builder, vector, mask, p, offset)

    return vector(p, types.intp, types.intp, types.intp), codegen


@intrinsic
def load_alternate(typingctx, p, offset):
    """Every other element of p[offset : offset + 2 lanes], from the first on."""
    vector = vector_of(p)

    def codegen(context, builder, signature, args):
        start = builder.gep(args[0], [args[1]])
        halves = [emit_load(builder, vector, start, at) for at in (0, vector.lanes)]
        even = ir.Constant(ir.VectorType(I32, vector.lanes), list(range(0, 2 * vector.lanes, 2)))
        return builder.shuffle_vector(*halves, even)

    return vector(p, types.intp), codegen


@intrinsic
def store_interleaved(typingctx, p, offset, even, odd):
    """Write the lanes of two vectors in turn to p[offset : offset + 2 lanes]."""

    def codegen(context, builder, signature, args):
        lanes = even.lanes
        for half in (0, 1):
            index = [half * lanes // 2 + i // 2 + i % 2 * lanes for i in range(lanes)]
            value = builder.shuffle_vector(args[2], args[3], ir.Constant(ir.VectorType(I32, lanes), index))
            emit_store(builder, even, value, args[0], builder.add(args[1], I64(half * lanes)))
        return context.get_dummy_value()

    return types.void(p, types.intp, even, even), codegen


@intrinsic
def store_first(typingctx, p, offset, value, count):
    """Write the first `count` lanes to p[offset:] and nothing beyond."""

    def codegen(context, builder, signature, args):
        emit_store_masked(builder, value, args[2], mask_first(builder, args[3], value.lanes), args[0], args[1])
        return context.get_dummy_value()

    return types.void(p, types.intp, value, types.intp), codegen


@intrinsic
def splat(typingctx, p, offset):
    """The element at p[offset] in every lane."""
    vector = vector_of(p)

    def codegen(context, builder, signature, args):
        return emit_splat(builder, builder.load(builder.gep(args[0], [args[1]])), vector.lanes)

    return vector(p, types.intp), codegen


@intrinsic
def zero(typingctx, p):
    """A zero vector of p's element type."""
    vector = vector_of(p)
    return vector(p), lambda context, builder, signature, args: zero_of(vector)


@intrinsic
def total(typingctx, value):
    """The sum of the lanes."""
    return value.dtype(value), lambda context, builder, signature, args: emit_sum(builder, value, args[0])


@intrinsic
def fma(typingctx, a, b, c):
    """a * b + c."""
    return a(a, a, a), lambda context, builder, signature, args: emit_fma(builder, a, *args)


def emit_rectify(builder, vector, value, slope, ceiling):
    """Lanes below zero times `slope` (0 makes them 0, infinities too), then cut at `ceiling`; NaN stays NaN."""
    multiply, compare = (builder.fmul, builder.fcmp_ordered) if vector.is_float else (builder.mul, builder.icmp_signed)
    below = multiply(value, emit_splat(builder, slope, vector.lanes))
    below = builder.select(compare("==", slope, vector.element(0)), zero_of(vector), below)
    value = builder.select(compare("<", value, zero_of(vector)), below, value)
    top = emit_splat(builder, ceiling, vector.lanes)
    return builder.select(compare(">", value, top), top, value)


def emit_epilogue(builder, vector, values, epilogue):
    """The vectors rectified, if the epilogue (flag, slope, ceiling) says so."""
    flag, slope, ceiling = (builder.extract_value(epilogue, i) for i in range(3))
    before = builder.block
    with builder.if_then(builder.trunc(flag, I1)):
        rectified = [emit_rectify(builder, vector, value, slope, ceiling) for value in values]
        after = builder.block
    merged = []
    for value, new in zip(values, rectified, strict=True):
        phi = builder.phi(vector.ir)
        phi.add_incoming(value, before)
        phi.add_incoming(new, after)
        merged.append(phi)
    return merged


@intrinsic
def rectify(typingctx, value, slope, ceiling):
    """Lanes below zero times `slope`, then cut at `ceiling`."""
    return value(value, value.dtype, value.dtype), lambda context, builder, signature, args: emit_rectify(builder, value, *args)


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


for _symbol, _function in ((operator.add, _add), (operator.iadd, _add), (operator.sub, _subtract), (operator.mul, _multiply)):
    _overload_operator(_symbol, _function)


# -- calls ----------------------------------------------------------------------------------------------------------------


def emit_call(context, builder, address, argument_types, arguments):
    """Call a compiled function without a result through its address, by Numba's calling convention."""
    kind = context.call_conv.get_function_type(types.none, argument_types)
    callee = builder.inttoptr(address, kind.as_pointer())
    context.call_conv.call_function(builder, callee, types.none, argument_types, arguments)
