"""Vectors and pointers in Numba kernels: loads and stores, arithmetic. Generic in the element type, which pointers carry."""

from __future__ import annotations

import operator

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from .emit import (
    I32,
    I64,
    VectorType,
    emit_fma,
    emit_interleaved,
    emit_load,
    emit_load_masked,
    emit_prefetch,
    emit_rectify,
    emit_splat,
    emit_store,
    emit_store_masked,
    emit_sum,
    mask_between,
    mask_first,
    vector_of,
    zero_of,
)

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


@intrinsic(prefer_literal=True)
def load_every_between(typingctx, p, offset, stride, start, end):
    """Every stride-th element of p[offset:], zero where its index from there on is not in [start, end); any int32 numbers.

    Only memory at such indices is touched. `stride` is a literal number.
    """
    vector = vector_of(p)
    lanes, step = vector.lanes, stride.literal_value

    def codegen(context, builder, signature, args):
        p, offset, _, start, end = args
        total = zero_of(vector)
        for piece in range(step):
            first = builder.sub(I64(piece * lanes), start)
            mask = mask_between(builder, first, builder.sub(end, start), lanes)
            value = emit_load_masked(builder, vector, mask, p, builder.add(offset, I64(piece * lanes)))
            picked = [lane * step - piece * lanes for lane in range(lanes)]  # in this piece, where it is in [0, lanes)
            order = [lanes + at if 0 <= at < lanes else lane for lane, at in enumerate(picked)]
            total = builder.shuffle_vector(total, value, ir.Constant(ir.VectorType(I32, lanes), order))
        return total

    return vector(p, types.intp, stride, types.intp, types.intp), codegen


@intrinsic
def store_interleaved(typingctx, p, offset, even, odd):
    """Write the lanes of two vectors in turn to p[offset : offset + 2 lanes]."""

    def codegen(context, builder, signature, args):
        for half, value in enumerate(emit_interleaved(builder, *args[2:])):
            emit_store(builder, even, value, args[0], builder.add(args[1], I64(half * even.lanes)))
        return context.get_dummy_value()

    return types.void(p, types.intp, even, even), codegen


@intrinsic
def store_interleaved_first(typingctx, p, offset, even, odd, count):
    """Write the lanes of two vectors in turn to p[offset : offset + count] and nothing beyond."""

    def codegen(context, builder, signature, args):
        for half, value in enumerate(emit_interleaved(builder, *args[2:4])):
            start = I64(half * even.lanes)
            mask = mask_first(builder, builder.sub(args[4], start), even.lanes)
            emit_store_masked(builder, even, value, mask, args[0], builder.add(args[1], start))
        return context.get_dummy_value()

    return types.void(p, types.intp, even, even, types.intp), codegen


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
