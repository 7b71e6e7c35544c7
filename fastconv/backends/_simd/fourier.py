"""Complex vectors and discrete Fourier transforms of small lengths ("radices"), generated as straight-line code.

A complex vector is two vectors, its real and its imaginary parts. In memory their distance is an argument, so swapping
the parts costs nothing, and a transform of swapped parts is the inverse transform: IDFT(x) = swap(DFT(swap(x))).
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .emit import I64, emit_fma, emit_load, emit_load_transposed, emit_scale, emit_splat, emit_store, vector_of, zero_of

PLAIN, BEFORE, AFTER = 0, 1, 2  # where a pass multiplies by its twiddle factors: nowhere, at its inputs, at its outputs
FACTORS = {6: (2, 3), 8: (2, 4), 9: (3, 3), 10: (2, 5), 12: (4, 3), 15: (3, 5), 16: (4, 4)}  # of composite radices

Complex = tuple[Any, Any]


class _ComplexEmitter:
    """Arithmetic of complex vectors."""

    def __init__(self, builder: Any, vector: Any):
        self.builder = builder
        self.vector = vector

    def load(self, pointer: Any, imaginary: Any) -> Complex:
        return emit_load(self.builder, self.vector, pointer), emit_load(self.builder, self.vector, pointer, imaginary)

    def store(self, value: Complex, pointer: Any, imaginary: Any) -> None:
        emit_store(self.builder, self.vector, value[0], pointer)
        emit_store(self.builder, self.vector, value[1], pointer, imaginary)

    def factor(self, twiddles: Any, index: int) -> Complex:
        """A scalar twiddle factor in every lane."""
        parts = [self.builder.load(self.builder.gep(twiddles, [I64(2 * index + part)])) for part in (0, 1)]
        return emit_splat(self.builder, parts[0], self.vector.lanes), emit_splat(self.builder, parts[1], self.vector.lanes)

    def constant(self, value: float) -> Any:
        return emit_scale(self.vector, value)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        return emit_fma(self.builder, self.vector, a, b, c)

    def negative(self, a: Any) -> Any:
        return self.builder.fneg(a)

    def plus(self, a: Any, b: Any) -> Any:
        return self.builder.fadd(a, b, flags=("contract",))

    def minus(self, a: Any, b: Any) -> Any:
        return self.builder.fsub(a, b, flags=("contract",))

    def times(self, a: Any, b: Any) -> Any:
        return self.builder.fmul(a, b, flags=("contract",))

    def add(self, x: Complex, y: Complex) -> Complex:
        return self.plus(x[0], y[0]), self.plus(x[1], y[1])

    def subtract(self, x: Complex, y: Complex) -> Complex:
        return self.minus(x[0], y[0]), self.minus(x[1], y[1])

    def multiply(self, x: Complex, w: Complex) -> Complex:
        """x * w."""
        return (self.fma(x[0], w[0], self.negative(self.times(x[1], w[1]))), self.fma(x[0], w[1], self.times(x[1], w[0])))

    def multiply_conjugate(self, x: Complex, w: Complex) -> Complex:
        """x * conj(w)."""
        return (self.fma(x[0], w[0], self.times(x[1], w[1])), self.fma(x[1], w[0], self.negative(self.times(x[0], w[1]))))

    def rotate(self, x: Complex, turn: Fraction) -> Complex:
        """x * exp(-2 pi i turn)."""
        turn %= 1
        quarters = {Fraction(0): lambda: x, Fraction(1, 4): lambda: (x[1], self.negative(x[0])),
                    Fraction(1, 2): lambda: (self.negative(x[0]), self.negative(x[1])), Fraction(3, 4): lambda: (self.negative(x[1]), x[0])}
        if turn in quarters:
            return quarters[turn]()
        root = self.constant(math.sqrt(0.5))
        if turn == Fraction(1, 8):
            return self.times(self.plus(x[0], x[1]), root), self.times(self.minus(x[1], x[0]), root)
        if turn == Fraction(3, 8):
            return self.times(self.minus(x[1], x[0]), root), self.times(self.plus(x[0], x[1]), self.constant(-math.sqrt(0.5)))
        angle = -2 * math.pi * float(turn)
        return self.multiply(x, (self.constant(math.cos(angle)), self.constant(math.sin(angle))))

    # -- transforms -------------------------------------------------------------------------------------------------

    def transform(self, x: list[Complex]) -> list[Complex]:
        """The DFT of len(x) points, in order."""
        n = len(x)
        if n == 1:
            return x
        if n in (2, 3, 4, 5):
            return {2: self._transform2, 3: self._transform3, 4: self._transform4, 5: self._transform5}[n](x)
        a, b = FACTORS[n]
        return self._coprime(x, a, b) if math.gcd(a, b) == 1 else self._common(x, a, b)

    def invert(self, x: list[Complex]) -> list[Complex]:
        """The inverse DFT, times its length."""
        return [(y[1], y[0]) for y in self.transform([(z[1], z[0]) for z in x])]

    def _coprime(self, x: list[Complex], a: int, b: int) -> list[Complex]:
        """Good and Thomas: a two-dimensional transform without twiddle factors."""
        n = a * b
        rows = [self.transform([x[(b * i + a * j) % n] for i in range(a)]) for j in range(b)]
        columns = [self.transform([rows[j][k] for j in range(b)]) for k in range(a)]
        return [columns[k % a][k % b] for k in range(n)]

    def _common(self, x: list[Complex], a: int, b: int) -> list[Complex]:
        """Cooley and Tukey: x[b i + j] -> X[k + a l]."""
        n = a * b
        rows = [self.transform([x[b * i + j] for i in range(a)]) for j in range(b)]
        turned = [[self.rotate(rows[j][k], Fraction(j * k, n)) for j in range(b)] for k in range(a)]
        columns = [self.transform(turned[k]) for k in range(a)]
        return [columns[k % a][k // a] for k in range(n)]

    def _transform2(self, x: list[Complex]) -> list[Complex]:
        return [self.add(x[0], x[1]), self.subtract(x[0], x[1])]

    def _transform3(self, x: list[Complex]) -> list[Complex]:
        total, difference = self.add(x[1], x[2]), self.subtract(x[1], x[2])
        half, sine = self.constant(-0.5), self.constant(math.sqrt(0.75))
        middle = self.fma(half, total[0], x[0][0]), self.fma(half, total[1], x[0][1])
        turned = self.times(sine, difference[1]), self.times(sine, difference[0])
        return [self.add(x[0], total), (self.plus(middle[0], turned[0]), self.minus(middle[1], turned[1])),
                (self.minus(middle[0], turned[0]), self.plus(middle[1], turned[1]))]

    def _transform4(self, x: list[Complex]) -> list[Complex]:
        a, b = self.add(x[0], x[2]), self.subtract(x[0], x[2])
        c, d = self.add(x[1], x[3]), self.subtract(x[1], x[3])
        return [self.add(a, c), (self.plus(b[0], d[1]), self.minus(b[1], d[0])),
                self.subtract(a, c), (self.minus(b[0], d[1]), self.plus(b[1], d[0]))]

    def _transform5(self, x: list[Complex]) -> list[Complex]:
        cosines = [self.constant(math.cos(2 * math.pi * k / 5)) for k in (1, 2)]
        sines = [self.constant(math.sin(2 * math.pi * k / 5)) for k in (1, 2)]
        totals = [self.add(x[1], x[4]), self.add(x[2], x[3])]
        differences = [self.subtract(x[1], x[4]), self.subtract(x[2], x[3])]
        results = [self.add(x[0], self.add(*totals))] + [x[0]] * 4
        for k in (1, 2):
            near, far = (0, 1) if k == 1 else (1, 0)
            middle = [self.fma(cosines[near], totals[0][part], self.fma(cosines[far], totals[1][part], x[0][part])) for part in (0, 1)]
            parts = [self.times(sines[far], differences[1][part]) for part in (0, 1)]
            if k == 2:
                parts = [self.negative(part) for part in parts]
            turned = [self.fma(sines[near], differences[0][part], parts[part]) for part in (0, 1)]
            results[k] = self.plus(middle[0], turned[1]), self.minus(middle[1], turned[0])
            results[5 - k] = self.minus(middle[0], turned[1]), self.plus(middle[1], turned[0])
        return results


def _addresses(builder: Any, pointer: Any, step: Any, count: int) -> list[Any]:
    return [builder.gep(pointer, [builder.mul(step, I64(i))]) for i in range(count)]


@intrinsic(prefer_literal=True)
def butterfly(typingctx, source, source_step, source_imaginary, target, target_step, target_imaginary, twiddles, radix, place):
    """target[k * target_step] = DFT of source[k * source_step], complex vectors, times twiddle factors before or after."""
    count, when = radix.literal_value, place.literal_value
    vector = vector_of(source)

    def codegen(context, builder, signature, args):
        source, source_step, source_imaginary, target, target_step, target_imaginary, twiddles = args[:7]
        emit = _ComplexEmitter(builder, vector)
        values = [emit.load(at, source_imaginary) for at in _addresses(builder, source, source_step, count)]
        if when == BEFORE:
            values = [emit.multiply(value, emit.factor(twiddles, k)) for k, value in enumerate(values)]
        values = emit.transform(values)
        if when == AFTER:
            values = [emit.multiply(value, emit.factor(twiddles, k)) for k, value in enumerate(values)]
        for at, value in zip(_addresses(builder, target, target_step, count), values, strict=True):
            emit.store(value, at, target_imaginary)
        return context.get_dummy_value()

    return types.void(source, types.intp, types.intp, target, types.intp, types.intp, twiddles, radix, place), codegen


@intrinsic(prefer_literal=True)
def product_butterfly(typingctx, source, spectrum, twiddles, radix):
    """The product with a conjugate spectrum and the first pass of the inverse, in place."""
    count = radix.literal_value
    vector = vector_of(source)

    def codegen(context, builder, signature, args):
        source, spectrum, twiddles = args[:3]
        emit = _ComplexEmitter(builder, vector)
        lanes, step = I64(vector.lanes), I64(2 * vector.lanes)
        places = _addresses(builder, source, step, count)
        values = [emit.multiply_conjugate(emit.load(at, lanes), emit.load(other, lanes))
                  for at, other in zip(places, _addresses(builder, spectrum, step, count), strict=True)]
        for k, (at, value) in enumerate(zip(places, emit.invert(values), strict=True)):
            emit.store(emit.multiply_conjugate(value, emit.factor(twiddles, k)), at, lanes)
        return context.get_dummy_value()

    return types.void(source, spectrum, twiddles, radix), codegen


@intrinsic
def turn_square(typingctx, source, source_pitch, target, target_pitch):
    """target[c * target_pitch + r] = source[r * source_pitch + c] for a square of as many rows as a vector has lanes."""
    vector = vector_of(source)

    def codegen(context, builder, signature, args):
        source, source_pitch, target, target_pitch = args
        rows = emit_load_transposed(builder, vector, _addresses(builder, source, source_pitch, vector.lanes))
        for at, row in zip(_addresses(builder, target, target_pitch, vector.lanes), rows, strict=True):
            emit_store(builder, vector, row, at)
        return context.get_dummy_value()

    return types.void(source, types.intp, target, types.intp), codegen


@intrinsic(prefer_literal=True)
def spectra_zeros(typingctx, p, rows, columns):
    """A tile of complex sums, zero: the real and the imaginary vectors of rows x columns."""
    tile = types.UniTuple(vector_of(p), 2 * rows.literal_value * columns.literal_value)

    def codegen(context, builder, signature, args):
        return context.make_tuple(builder, tile, [zero_of(tile.dtype)] * len(tile))

    return tile(p, rows, columns), codegen


@intrinsic(prefer_literal=True)
def spectra_load(typingctx, p, pitch, rows, columns):
    """A tile of complex sums from memory, its rows `pitch` apart."""
    tile = types.UniTuple(vector_of(p), 2 * rows.literal_value * columns.literal_value)

    def codegen(context, builder, signature, args):
        vectors = []
        for start in _addresses(builder, args[0], args[1], rows.literal_value):
            vectors += [emit_load(builder, tile.dtype, start, i * tile.dtype.lanes) for i in range(2 * columns.literal_value)]
        return context.make_tuple(builder, tile, vectors)

    return tile(p, types.intp, rows, columns), codegen


@intrinsic(prefer_literal=True)
def spectra_step(typingctx, tile, x, w, rows):
    """tile[r][c] += x[c] * conj(w[r]): one step of the product of spectra."""
    height = rows.literal_value
    width = len(tile) // (2 * height)
    vector = tile.dtype

    def codegen(context, builder, signature, args):
        tile, x, w = args[:3]
        emit = _ComplexEmitter(builder, vector)
        lanes, step = I64(vector.lanes), I64(2 * vector.lanes)
        values = cgutils.unpack_tuple(builder, tile)
        columns = [emit.load(at, lanes) for at in _addresses(builder, x, step, width)]
        new = []
        for r, at in enumerate(_addresses(builder, w, step, height)):
            real, imaginary = emit.load(at, lanes)
            negative = emit.negative(imaginary)
            for c, (a, b) in enumerate(columns):
                sums = values[2 * (r * width + c)], values[2 * (r * width + c) + 1]
                new.append(emit.fma(imaginary, b, emit.fma(real, a, sums[0])))
                new.append(emit.fma(negative, a, emit.fma(real, b, sums[1])))
        return context.make_tuple(builder, signature.return_type, new)

    return tile(tile, x, w, rows), codegen


@intrinsic(prefer_literal=True)
def spectra_store(typingctx, p, pitch, tile, rows):
    """Write a tile of complex sums to memory, its rows `pitch` apart."""
    height = rows.literal_value
    vector = tile.dtype

    def codegen(context, builder, signature, args):
        values = cgutils.unpack_tuple(builder, args[2])
        width = len(values) // height
        for r, start in enumerate(_addresses(builder, args[0], args[1], height)):
            for i in range(width):
                emit_store(builder, vector, values[r * width + i], start, i * vector.lanes)
        return context.get_dummy_value()

    return types.void(p, types.intp, tile, rows), codegen


__all__ = ["AFTER", "BEFORE", "FACTORS", "PLAIN", "butterfly", "product_butterfly", "spectra_load", "spectra_step", "spectra_store",
           "spectra_zeros", "turn_square"]
