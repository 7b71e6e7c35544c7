"""Comparisons of vectors: the larger lanes, and lanes chosen by comparing others. Floats and integers, signed or not."""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .emit import I1, VectorType, emit_scale, emit_splat, mask_between, vector_of, zero_of


def emit_compare(builder: Any, vector: VectorType, symbol: str, a: Any, b: Any) -> Any:
    """The mask of the lanes where `a symbol b`, false where either is NaN."""
    if vector.is_float:
        return builder.fcmp_ordered(symbol, a, b)
    signed = isinstance(vector.dtype, types.Integer) and vector.dtype.signed
    return (builder.icmp_signed if signed else builder.icmp_unsigned)(symbol, a, b)


def lowest_of(vector: VectorType) -> float:
    """The least number of the lanes' type."""
    if vector.is_float:
        return -math.inf
    return -(1 << (vector.dtype.bitwidth - 1)) if vector.dtype.signed else 0


@intrinsic
def lowest_element(typingctx, p):
    """The least number of p's element type: minus infinity, or the smallest integer."""
    vector = vector_of(p)
    return p.dtype(p), lambda context, builder, signature, args: vector.element(lowest_of(vector))


@intrinsic
def lowest(typingctx, p):
    """A vector of `lowest_element`."""
    vector = vector_of(p)
    return vector(p), lambda context, builder, signature, args: emit_scale(vector, lowest_of(vector))


@intrinsic
def broadcast(typingctx, p, value):
    """A number in every lane of a vector of p's element type."""
    vector = vector_of(p)
    return vector(p, p.dtype), lambda context, builder, signature, args: emit_splat(builder, args[1], vector.lanes)


def emit_greatest(builder: Any, vector: VectorType, x: Any, y: Any) -> Any:
    """The larger of each pair of lanes, of which there may be fewer than in a vector; NaN where either is."""
    # A single instruction, which gives y where either is NaN; then x where x is.
    larger = builder.select(emit_compare(builder, vector, ">", x, y), x, y)
    return builder.select(builder.fcmp_unordered("uno", x, x), x, larger) if vector.is_float else larger


@intrinsic
def greatest(typingctx, a, b):
    """The larger of each pair of lanes; NaN where either is."""
    return a(a, a), lambda context, builder, signature, args: emit_greatest(builder, a, *args)


@intrinsic
def larger(typingctx, a, b):
    """The larger of each pair of lanes: a where a > b, else b; one instruction, which knows no NaN."""

    def codegen(context, builder, signature, args):
        return builder.select(emit_compare(builder, a, ">", *args), *args)

    return a(a, a), codegen


@intrinsic
def greatest_lane(typingctx, value):
    """The largest lane, NaN if any is."""

    def codegen(context, builder, signature, args):
        best, width = args[0], value.lanes
        while width > 1:  # halves of the lanes, compared pairwise
            width //= 2
            halves = [builder.shuffle_vector(best, best, ir.Constant(ir.VectorType(ir.IntType(32), width), list(range(at, at + width))))
                      for at in (0, width)]
            best = emit_greatest(builder, value, *halves)
        return builder.extract_element(best, ir.IntType(32)(0))

    return value.dtype(value), codegen


@intrinsic
def keep_nan(typingctx, value, seen):
    """`seen`, with the lanes of `value` that are NaN."""

    def codegen(context, builder, signature, args):
        return builder.select(builder.fcmp_unordered("uno", args[0], args[0]), *args) if value.is_float else args[1]

    return value(value, value), codegen


@intrinsic
def any_nan(typingctx, value):
    """Whether a lane is NaN."""

    def codegen(context, builder, signature, args):
        if not value.is_float:
            return I1(0)
        bits = ir.IntType(value.lanes)
        return builder.icmp_unsigned("!=", builder.bitcast(builder.fcmp_unordered("uno", args[0], args[0]), bits), bits(0))

    return types.boolean(value), codegen


@intrinsic
def choose_above(typingctx, a, b, p, q):
    """Lanes of p where a > b or a is NaN, of q elsewhere."""

    def codegen(context, builder, signature, args):
        a_value, b_value, p_value, q_value = args
        above = emit_compare(builder, a, ">", a_value, b_value)
        if a.is_float:
            above = builder.or_(above, builder.fcmp_unordered("uno", a_value, a_value))
        return builder.select(above, p_value, q_value)

    return p(a, a, p, p), codegen


@intrinsic
def choose_greater(typingctx, a, b, p, q):
    """Lanes of p where a > b, of q elsewhere."""

    def codegen(context, builder, signature, args):
        return builder.select(emit_compare(builder, a, ">", *args[:2]), *args[2:])

    return p(a, a, p, p), codegen


@intrinsic
def choose_first(typingctx, a, b, p, q):
    """Lanes of p where a > b, or a == b and p < q; of q elsewhere: the place of the first of the largest."""

    def codegen(context, builder, signature, args):
        a_value, b_value, p_value, q_value = args
        tie = builder.and_(emit_compare(builder, a, "==", a_value, b_value), emit_compare(builder, p, "<", p_value, q_value))
        return builder.select(builder.or_(emit_compare(builder, a, ">", a_value, b_value), tie), p_value, q_value)

    return p(a, a, p, p), codegen


@intrinsic
def keep_between(typingctx, value, start, end):
    """The lanes from `start` up to `end`, zero in the others; any int32 numbers."""

    def codegen(context, builder, signature, args):
        kept, start, end = args
        mask = mask_between(builder, builder.neg(start), builder.sub(end, start), value.lanes)
        return builder.select(mask, kept, zero_of(value))

    return value(value, types.intp, types.intp), codegen


@intrinsic
def where_equal(typingctx, a, b, p):
    """Lanes of p where a == b, zero elsewhere."""

    def codegen(context, builder, signature, args):
        return builder.select(emit_compare(builder, a, "==", *args[:2]), args[2], zero_of(p))

    return p(a, a, p), codegen


@intrinsic
def divide(typingctx, a, b):
    """a / b, rounded once; floats."""
    return a(a, a), lambda context, builder, signature, args: builder.fdiv(*args)


@intrinsic
def quotient(typingctx, a, b):
    """a / b, and zero where b is; floats."""

    def codegen(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered("==", args[1], zero_of(a)), zero_of(a), builder.fdiv(*args))

    return a(a, a), codegen


@intrinsic
def square_root(typingctx, a):
    """The square root of each lane; floats."""

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(a.ir, [a.ir])
        return builder.call(builder.module.declare_intrinsic(f"llvm.sqrt.{a.suffix}", fnty=kind), args)

    return a(a), codegen
