"""Minimal-filtering algorithms as matrices, from interpolation points, and how to apply them with few operations.

Along one axis, m outputs of a filter of r taps and stride s are

    y = AT ((G w) * (BT x))          with alpha products instead of m r

`axis_algorithm(m, r, s)` builds the three matrices from interpolation points (Cook-Toom, Winograd); a stride is the sum of
its polyphase components; dilation only changes addresses. A 2-D algorithm is one axis nested in the other.

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

__all__ = ["INPUT", "OUTPUT", "OUTPUT_GRADIENT", "WEIGHTS", "WEIGHT_GRADIENT", "Axis", "Combinations", "axis_algorithm", "cook_toom",
           "matrices"]

ROOT = 2**0.5
INPUT, OUTPUT, WEIGHTS, OUTPUT_GRADIENT, WEIGHT_GRADIENT = range(5)  # BT, AT, G, and for the weights' gradient A, GT
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


def matrices(kind: int, *axes: tuple[int, int, int]) -> list[np.ndarray]:
    """The matrix of each axis, its tiny coefficients cleaned."""
    found = []
    for axis in (axis_algorithm(*numbers) for numbers in axes):
        matrix = (axis.BT, axis.AT, axis.G, axis.AT.T, axis.G.T)[kind].copy()
        matrix[np.abs(matrix) < 1e-12] = 0
        ones = np.isclose(np.abs(matrix), 1, atol=1e-12)
        matrix[ones] = np.sign(matrix[ones])
        found.append(matrix)
    return found


class Combinations:
    """Linear combinations of numbers, or of whatever is added and multiplied as these methods do it."""

    def add(self, a: Any, b: Any) -> Any:
        return a + b

    def subtract(self, a: Any, b: Any) -> Any:
        return a - b

    def multiply(self, scale: float, a: Any) -> Any:
        return a * float(scale)

    def multiply_add(self, scale: float, a: Any, b: Any) -> Any:
        return self.add(b, self.multiply(scale, a))

    def zero(self) -> Any:
        return 0.0

    def combine(self, terms: list[tuple[float, Any]]) -> Any:
        """Sum of scale * value, the additions first."""
        total = None
        for scale, value in sorted(terms, key=lambda term: (term[0] != 1, term[0] != -1)):
            if total is None:
                total = value if scale == 1 else self.multiply(scale, value)
            elif scale == 1:
                total = self.add(total, value)
            elif scale == -1:
                total = self.subtract(total, value)
            else:
                total = self.multiply_add(scale, value, total)
        return total if total is not None else self.zero()

    def apply(self, matrix: np.ndarray, values: list[Any]) -> list[Any]:
        """Matrix times values. Two columns, or two rows, that agree up to signs share their even and odd parts."""
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
