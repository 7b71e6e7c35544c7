"""Minimal-filtering algorithms, from interpolation points to vector code.

Along one axis, m outputs of a filter of r taps and stride s are

    y = AT ((G w) * (BT x))          with alpha products instead of m r

`axis_algorithm(m, r, s)` builds the three matrices from interpolation points (Cook-Toom, Winograd); a stride is the sum of
its polyphase components; dilation only changes addresses. A 2-D algorithm is one axis nested in the other. `transform`
turns (MH, MW) into straight-line vector code for out = MH in MW^T, with the even and odd parts of opposite points shared,
compiled once per algorithm and called through its address, so that one driver serves all of them.

The points were found by search for the least float32 error on random data: with 0, +-1/sqrt(2), +-sqrt(2) F(4, 3) errs by
1.4e-6 of the result's scale, with the usual 0, +-1, +-2 by 6.7e-6; +-0.4, +-1.2 (no zero) err a third of 0, +-1, 2.

Source: Winograd, "Arithmetic Complexity of Computations" (1980), chapter IV; Lavin and Gray, "Fast algorithms for
convolutional neural networks" (2016), section 4; choice of points: Barabasz et al., "Error analysis and improving the
accuracy of Winograd convolution for deep neural networks" (2020).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import intrinsic

from ._jit import address_of, addressed
from ._simd.emit import I64, call_by_address, emit_fma, emit_load, emit_scale, emit_store, vector_of, zero_of

ROOT = 2**0.5
# number of finite points -> points; the remaining one is infinity
POINTS: dict[int, tuple[float, ...]] = {
    1: (0,), 2: (0, 1), 3: (0, 1, -1), 4: (0.4, -0.4, 1.2, -1.2), 5: (0, 1 / ROOT, -1 / ROOT, ROOT, -ROOT),
    6: (0, 0.5, -0.5, 1.1, -1.1, 2.2), 7: (0, 0.5, -0.5, 1.1, -1.1, 1.8, -1.8), 8: (0, 0.5, -0.5, 0.8, -0.8, ROOT, -ROOT, 2.2),
    9: (0, 0.4, -0.4, 0.9, -0.9, 1.1, -1.1, 1.8, -1.8)}


class Axis(NamedTuple):
    """One axis of an algorithm: m outputs from `samples` inputs by `products` multiplications."""

    outputs: int
    taps: int
    stride: int
    BT: np.ndarray  # (products, samples)
    AT: np.ndarray  # (outputs, products)
    G: np.ndarray  # (products, taps)

    @property
    def products(self) -> int:
        """Multiplications of a tile."""
        return self.BT.shape[0]

    @property
    def samples(self) -> int:
        """Inputs of a tile."""
        return self.BT.shape[1]


def cook_toom(m: int, r: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """BT, AT, G of F(m, r) with m + r - 1 products."""
    if r == 1:
        return np.eye(m), np.eye(m), np.ones((m, 1))
    if m == 1:
        return np.eye(r), np.ones((1, r)), np.eye(r)
    n = m + r - 1
    points = POINTS[n - 1]
    BT, AT, G = np.zeros((n, n)), np.zeros((m, n)), np.zeros((n, r))
    for j, point in enumerate(points):
        others = [q for i, q in enumerate(points) if i != j]
        scale = np.prod([point - q for q in others])
        AT[:, j] = [point**i for i in range(m)]
        G[j] = [point**k / scale for k in range(r)]
        BT[j, :n - 1] = np.poly(others)[::-1]
        if point == 0 and scale < 0:
            BT[j] *= -1
            G[j] *= -1
    AT[m - 1, n - 1] = G[n - 1, r - 1] = 1
    BT[n - 1] = np.poly(points)[::-1]
    return BT, AT, G


@functools.cache
def axis_algorithm(outputs: int, taps: int, stride: int = 1) -> Axis:
    """F(outputs, taps) for a stride: the sum of its polyphase components, each a stride-1 algorithm."""
    samples = stride * (outputs - 1) + taps
    rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for phase in range(min(stride, taps)):
        b, a, g = cook_toom(outputs, len(range(phase, taps, stride)))
        wide = np.zeros((b.shape[0], samples))
        wide[:, phase:phase + stride * b.shape[1]:stride] = b
        spread = np.zeros((g.shape[0], taps))
        spread[:, phase::stride] = g
        rows.append((wide, a, spread))
    return Axis(outputs, taps, stride, np.vstack([b for b, _, _ in rows]), np.hstack([a for _, a, _ in rows]),
                np.vstack([g for _, _, g in rows]))


# -- vector code ----------------------------------------------------------------------------------------------------------


class _Emitter:
    """Linear combinations of vectors."""

    def __init__(self, builder: Any, vector: Any):
        self.builder = builder
        self.vector = vector

    def add(self, a: Any, b: Any) -> Any:
        return self.builder.fadd(a, b, flags=("contract",))

    def subtract(self, a: Any, b: Any) -> Any:
        return self.builder.fsub(a, b, flags=("contract",))

    def multiply_add(self, scale: float, a: Any, b: Any) -> Any:
        return emit_fma(self.builder, self.vector, emit_scale(self.vector, scale), a, b)

    def combine(self, terms: list[tuple[float, Any]]) -> Any:
        """Sum of scale * vector, the additions first."""
        total = None
        for scale, value in sorted(terms, key=lambda term: (term[0] != 1, term[0] != -1)):
            if total is None:
                total = value if scale == 1 else self.builder.fmul(emit_scale(self.vector, scale), value)
            elif scale == 1:
                total = self.add(total, value)
            elif scale == -1:
                total = self.subtract(total, value)
            else:
                total = self.multiply_add(scale, value, total)
        return total if total is not None else zero_of(self.vector)

    def apply(self, matrix: np.ndarray, values: list[Any]) -> list[Any]:
        """Matrix times vectors. Two columns, or two rows, that agree up to signs share their even and odd parts."""
        matrix, values = self._share_columns(matrix, values)
        results: list[Any] = []
        row = 0
        while row < len(matrix):
            pair = self._share_rows(matrix[row], matrix[row + 1], values) if row + 1 < len(matrix) else None
            results += pair or [self.combine([(c, v) for c, v in zip(matrix[row], values, strict=True) if c])]
            row += 2 if pair else 1
        return results

    def _share_columns(self, matrix: np.ndarray, values: list[Any]) -> tuple[np.ndarray, list[Any]]:
        columns, vectors = [], []
        j = 0
        while j < len(values):
            if j + 1 < len(values) and _opposite(matrix[:, j], matrix[:, j + 1]):
                same = np.isclose(matrix[:, j], matrix[:, j + 1])
                columns += [np.where(same, matrix[:, j], 0), np.where(same, 0, matrix[:, j])]
                vectors += [self.add(values[j], values[j + 1]), self.subtract(values[j], values[j + 1])]
                j += 2
            else:
                columns.append(matrix[:, j])
                vectors.append(values[j])
                j += 1
        return np.array(columns).T, vectors

    def _share_rows(self, first: np.ndarray, second: np.ndarray, values: list[Any]) -> list[Any] | None:
        if not _opposite(first, second):
            return None
        same = np.isclose(first, second) & (first != 0)
        opposite = ~same & (first != 0)
        even = self.combine([(c, v) for c, v, s in zip(first, values, same, strict=True) if s])
        scale = first[np.flatnonzero(opposite)[-1]]
        odd = self.combine([(c / scale, v) for c, v, o in zip(first, values, opposite, strict=True) if o])
        if scale == 1:
            return [self.add(even, odd), self.subtract(even, odd)]
        return [self.multiply_add(scale, odd, even), self.multiply_add(-scale, odd, even)]


def _opposite(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two rows agree up to signs, with some signs equal and some opposite."""
    if not np.allclose(np.abs(a), np.abs(b)) or np.count_nonzero(a) < 2:
        return False
    same = np.isclose(a, b)
    return bool((same & (a != 0)).any() and (~same).any())


INPUT, OUTPUT, WEIGHTS, OUTPUT_GRADIENT, WEIGHT_GRADIENT = range(5)  # BT, AT, G, and for the weights' gradient A, GT


def _matrices(kind: int, *axes: tuple[int, int, int]) -> list[np.ndarray]:
    """The matrix of each axis, its tiny coefficients cleaned."""
    found = []
    for axis in (axis_algorithm(*numbers) for numbers in axes):
        matrix = (axis.BT, axis.AT, axis.G, axis.AT.T, axis.G.T)[kind].copy()
        matrix[np.abs(matrix) < 1e-12] = 0
        ones = np.isclose(np.abs(matrix), 1, atol=1e-12)
        matrix[ones] = np.sign(matrix[ones])
        found.append(matrix)
    return found


@intrinsic(prefer_literal=True)
def emit_transform(typingctx, source, source_row, source_column, target, target_row, target_column, bias, kind, mh, rh, sh, mw, rw, sw):
    """Straight-line code for target = MH source MW^T (+ bias for the output transform), a vector an element."""
    numbers = [literal.literal_value for literal in (kind, mh, rh, sh, mw, rw, sw)]
    high, wide = _matrices(numbers[0], tuple(numbers[1:4]), tuple(numbers[4:]))
    vector = vector_of(source)

    def codegen(context, builder, signature, args):
        source, source_row, source_column, target, target_row, target_column, bias = args[:7]
        emit = _Emitter(builder, vector)
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
