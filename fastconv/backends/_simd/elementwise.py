"""Vectors beyond sums and products: quotients, roots, exponentials, choices by sign. For activations, norms and optimizers."""

from __future__ import annotations

import math
import operator

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from .emit import I32, VectorType, emit_elementary, emit_fma, emit_scale, emit_splat, mask_first, vector_of, zero_of

LOG2_E, LN_2 = 1 / math.log(2), math.log(2)
# By the bits of a lane: (smallest argument with a normal result, mantissa bits, terms of the series, the leading part of
# ln 2, of which small multiples are exact)
EXPONENTIALS = {
    32: (-87.33654022216797, 23, 7, 0.693359375),
    64: (-708.3964185322641, 52, 13, 0.6931471803691238),
}


@intrinsic
def spread(typingctx, p, value):
    """A number in every lane, converted to p's element type."""
    vector = vector_of(p)

    def codegen(context, builder, signature, args):
        return emit_splat(builder, context.cast(builder, args[1], value, vector.dtype), vector.lanes)

    return vector(p, value), codegen


@intrinsic
def keep_first(typingctx, value, count):
    """The first `count` lanes, zero in the others."""

    def codegen(context, builder, signature, args):
        return builder.select(mask_first(builder, args[1], value.lanes), args[0], zero_of(value))

    return value(value, types.intp), codegen


@intrinsic
def gate(typingctx, y, gy, slope, ceiling):
    """The gradient through a rectifier whose output is y: lanes of gy times `slope` where y <= 0, zero where y >= ceiling.

    A ceiling of NaN is none.
    """

    def codegen(context, builder, signature, args):
        y, gy, slope, ceiling = args
        below = builder.fmul(gy, emit_splat(builder, slope, signature.args[0].lanes))
        below = builder.select(builder.fcmp_ordered("==", slope, signature.args[0].element(0)), zero_of(signature.args[0]), below)
        value = builder.select(builder.fcmp_ordered("<=", y, zero_of(signature.args[0])), below, gy)
        cut = builder.fcmp_ordered(">=", y, emit_splat(builder, ceiling, signature.args[0].lanes))
        return builder.select(cut, zero_of(signature.args[0]), value)

    return y(y, y, y.dtype, y.dtype), codegen


@intrinsic
def where_negative(typingctx, condition, a, b):
    """Lanes of a where `condition` is below zero, of b elsewhere."""

    def codegen(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered("<", args[0], zero_of(condition)), args[1], args[2])

    return a(condition, a, a), codegen


@intrinsic
def where_infinite_below(typingctx, condition, a, b):
    """Lanes of a where `condition` is minus infinity, of b elsewhere."""

    def codegen(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered("==", args[0], emit_scale(condition, -math.inf)), args[1], args[2])

    return a(condition, a, a), codegen


@intrinsic
def maximum(typingctx, a, b):
    """The larger of each two lanes; NaN where a is."""

    def codegen(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered(">", args[1], args[0]), args[1], args[0])

    return a(a, a), codegen


@intrinsic
def first_lane(typingctx, value):
    """The first lane."""
    return value.dtype(value), lambda context, builder, signature, args: builder.extract_element(args[0], I32(0))


def _elementary(name: str):
    @intrinsic
    def function(typingctx, value):
        return value(value), lambda context, builder, signature, args: emit_elementary(builder, value, name, args[0])

    return function


magnitude, square_root, floor = _elementary("fabs"), _elementary("sqrt"), _elementary("floor")


@intrinsic
def _divide(typingctx, a, b):
    return a(a, b), lambda context, builder, signature, args: builder.fdiv(*args)


@overload(operator.truediv)
def _quotient(x, y):
    if isinstance(x, VectorType) and x == y:
        return lambda x, y: _divide(x, y)
    return None


# -- exponentials ---------------------------------------------------------------------------------------------------------


def _emit_power(builder, vector, value):
    """(2^n, e^r - 1) with value = n ln 2 + r and |r| <= ln(2) / 2, where e^value is a normal number.

    The series of e^r - 1 keeps its relative precision near 0; n is read from the bits of a sum with 1.5 * 2^mantissa.
    """
    bits = vector.dtype.bitwidth
    _, mantissa, terms, leading = EXPONENTIALS[bits]

    def constant(number):
        return emit_scale(vector, number)

    shift = constant(1.5 * 2.0 ** mantissa)
    shifted = builder.fadd(builder.fmul(value, constant(LOG2_E)), shift)
    n = builder.fsub(shifted, shift)
    r = emit_fma(builder, vector, n, constant(-leading), value)
    r = emit_fma(builder, vector, n, constant(leading - LN_2), r)
    series = constant(1 / math.factorial(terms))
    for k in range(terms - 1, 0, -1):
        series = emit_fma(builder, vector, series, r, constant(1 / math.factorial(k)))
    series = builder.fmul(series, r)
    kind = ir.VectorType(ir.IntType(bits), vector.lanes)

    def whole(number):
        return ir.Constant(kind, [number] * vector.lanes)

    bias = (1 << (bits - mantissa - 2)) - 1
    # the low bits of `shifted` are n; adding the bias and moving them to the exponent drops the rest
    power = builder.bitcast(builder.shl(builder.add(builder.bitcast(shifted, kind), whole(bias)), whole(mantissa)), vector.ir)
    return power, series


@intrinsic
def exponential(typingctx, value):
    """e^value, of a value that is not positive, to about one unit in the last place; zero where it would not be a normal number."""
    smallest = EXPONENTIALS[value.dtype.bitwidth][0]

    def codegen(context, builder, signature, args):
        power, series = _emit_power(builder, value, args[0])
        below = builder.fcmp_ordered("<", args[0], emit_scale(value, smallest))
        return builder.select(below, zero_of(value), emit_fma(builder, value, power, series, power))

    return value(value), codegen


@intrinsic
def exponential_minus_one(typingctx, value):
    """e^value - 1 of a value that is not positive, precise near 0 too."""
    smallest = EXPONENTIALS[value.dtype.bitwidth][0]

    def codegen(context, builder, signature, args):
        power, series = _emit_power(builder, value, args[0])
        result = emit_fma(builder, value, power, series, builder.fsub(power, emit_scale(value, 1.0)))
        below = builder.fcmp_ordered("<", args[0], emit_scale(value, smallest))
        return builder.select(below, emit_scale(value, -1.0), result)

    return value(value), codegen
