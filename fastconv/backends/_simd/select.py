"""Comparisons of vectors: the larger lanes, and lanes chosen by comparing others. Floats and integers, signed or not."""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .emit import I1, VectorType, emit_scale, emit_splat, vector_of, zero_of


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


@intrinsic
def greatest(typingctx, a, b):
    """The larger of each pair of lanes; NaN where either is."""

    def codegen(context, builder, signature, args):
        x, y = args
        # A single instruction, which gives y where either is NaN; then x where x is.
        larger = builder.select(emit_compare(builder, a, ">", x, y), x, y)
        return builder.select(builder.fcmp_unordered("uno", x, x), x, larger) if a.is_float else larger

    return a(a, a), codegen


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
        result = builder.extract_element(args[0], ir.IntType(32)(0))
        for i in range(1, value.lanes):
            lane = builder.extract_element(args[0], ir.IntType(32)(i))
            if value.is_float:
                above = builder.or_(builder.fcmp_unordered("uno", lane, lane), builder.fcmp_ordered(">", lane, result))
            else:
                above = emit_compare(builder, value, ">", lane, result)
            result = builder.select(above, lane, result)
        return result

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
def square_root(typingctx, a):
    """The square root of each lane; floats."""

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(a.ir, [a.ir])
        return builder.call(builder.module.declare_intrinsic(f"llvm.sqrt.{a.suffix}", fnty=kind), args)

    return a(a), codegen
