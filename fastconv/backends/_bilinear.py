"""Minimal-filtering algorithms (`_cook_toom`) as vector code.

`emit_transform` turns (MH, MW) into straight-line vector code for out = MH in MW^T, with the even and odd parts of opposite points
shared, compiled once per algorithm and called through its address, so that one driver serves all of them.
"""

from __future__ import annotations

import functools
from typing import Any

from numba import types
from numba.extending import intrinsic

from ._cook_toom import OUTPUT, Combinations, matrices
from ._jit import address_of, addressed
from ._simd.emit import I64, call_by_address, emit_fma, emit_load, emit_scale, emit_store, vector_of, zero_of


class _Vectors(Combinations):
    """Linear combinations of vectors."""

    def __init__(self, builder: Any, vector: Any):
        self.builder = builder
        self.vector = vector

    def add(self, a: Any, b: Any) -> Any:
        return self.builder.fadd(a, b, flags=("contract",))

    def subtract(self, a: Any, b: Any) -> Any:
        return self.builder.fsub(a, b, flags=("contract",))

    def multiply(self, scale: float, a: Any) -> Any:
        return self.builder.fmul(emit_scale(self.vector, scale), a)

    def multiply_add(self, scale: float, a: Any, b: Any) -> Any:
        return emit_fma(self.builder, self.vector, emit_scale(self.vector, scale), a, b)

    def zero(self) -> Any:
        return zero_of(self.vector)


@intrinsic(prefer_literal=True)
def emit_transform(typingctx, source, source_row, source_column, target, target_row, target_column, bias, kind, mh, rh, sh, mw, rw, sw):
    """Straight-line code for target = MH source MW^T (+ bias for the output transform), a vector an element."""
    numbers = [literal.literal_value for literal in (kind, mh, rh, sh, mw, rw, sw)]
    high, wide = matrices(numbers[0], tuple(numbers[1:4]), tuple(numbers[4:]))
    vector = vector_of(source)

    def codegen(context, builder, signature, args):
        source, source_row, source_column, target, target_row, target_column, bias = args[:7]
        emit = _Vectors(builder, vector)
        rows = [builder.gep(source, [builder.mul(source_row, I64(i))]) for i in range(high.shape[1])]
        offsets = [builder.mul(source_column, I64(j)) for j in range(wide.shape[1])]
        columns = [emit.apply(high, [emit_load(builder, vector, row, offset) for row in rows]) for offset in offsets]
        added = emit_load(builder, vector, bias) if numbers[0] == OUTPUT else None
        for i in range(high.shape[0]):
            row = builder.gep(target, [builder.mul(target_row, I64(i))])
            for j, value in enumerate(emit.apply(wide, [column[i] for column in columns])):
                value = value if added is None else emit.add(value, added)
                emit_store(builder, vector, value, row, builder.mul(target_column, I64(j)))
        return context.get_dummy_value()

    words = [types.intp] * 2
    return types.void(source, *words, target, *words, bias, kind, mh, rh, sh, mw, rw, sw), codegen


def make_transform(kind: int, mh: int, rh: int, sh: int, mw: int, rw: int, sw: int):
    """The transform of one algorithm, to be called through its address."""

    @addressed
    def transform(source, source_row, source_column, target, target_row, target_column, bias):
        emit_transform(source, source_row, source_column, target, target_row, target_column, bias, kind, mh, rh, sh, mw, rw, sw)

    return transform


@functools.cache
def transform_address(kind: int, high: tuple[int, int, int], wide: tuple[int, int, int], dtype: str) -> int:
    """Address of a compiled transform; the function lives as long as the process."""
    pointer = types.CPointer(types.float32 if dtype == "float32" else types.float64)
    words = (types.intp, types.intp)
    return address_of(_transforms(kind, high, wide), (pointer, *words, pointer, *words, pointer))


@functools.cache
def _transforms(kind: int, high: tuple[int, int, int], wide: tuple[int, int, int]) -> Any:
    return make_transform(kind, *high, *wide)


@intrinsic
def call_transform(typingctx, address, source, source_row, source_column, target, target_row, target_column, bias):
    """Call a transform through its address, by Numba's calling convention."""
    words = (types.intp, types.intp)
    return call_by_address((source, *words, target, *words, bias))
