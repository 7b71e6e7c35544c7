"""Fourier transforms of square tiles: a column of complex numbers in each thread's registers, transposed through shared memory.

Registers are tuples of n real parts, then n imaginary ones. The butterflies are straight-line code, split radix. A transposition
writes and reads each number once (4 n instructions); warp shuffles would take n log2(n) exchanges and twice as many selections.

Source: Duhamel and Hollmann, "Split radix FFT algorithm" (1984); Vasilache et al., "Fast convolutional nets with fbfft" (2015).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from . import advance, concatenate, cuda, inlined, load_each, store_each, sync_warp, traced

__all__ = ["LANES", "conjugate_product", "conjugate_sum", "group_elements", "inverse", "part_of", "tile_transforms", "transform",
           "waiting"]

LANES = 32  # of a warp
Points = list[tuple[Any, Any]]


def transform(points: Points) -> Points:
    """sum over j of  points[j] exp(-2 pi i j k / n)."""
    n = len(points)
    if n == 1:
        return points
    if n == 2:
        (ar, ai), (br, bi) = points
        return [(ar + br, ai + bi), (ar - br, ai - bi)]
    even, once, thrice = transform(points[::2]), transform(points[1::4]), transform(points[3::4])
    result: Points = [(0.0, 0.0)] * n
    quarter = n // 4
    for k in range(quarter):
        (ar, ai), (br, bi) = _turned(once[k], k / n), _turned(thrice[k], 3 * k / n)
        plus, minus = (ar + br, ai + bi), (ai - bi, br - ar)  # minus is -i times the difference
        for first, (tr, ti) in ((k, plus), (k + quarter, minus)):
            er, ei = even[first]
            result[first], result[first + n // 2] = (er + tr, ei + ti), (er - tr, ei - ti)
    return result


def _turned(point: tuple[Any, Any], turns: float) -> tuple[Any, Any]:
    """The point times exp(-2 pi i turns)."""
    if turns == 0:
        return point
    c, s = math.cos(2 * math.pi * turns), math.sin(2 * math.pi * turns)
    return point[0] * c + point[1] * s, point[1] * c - point[0] * s


def inverse(points: Points) -> Points:
    """sum over k of  points[k] exp(2 pi i j k / n): the transform, with real and imaginary parts exchanged before and after."""
    return [(re, im) for im, re in transform([(im, re) for re, im in points])]


def _on_registers(formula: Callable[[Points], Points], n: int) -> Any:
    def run(values):
        points = formula(list(zip(values[:n], values[n:], strict=True)))
        return [re for re, _ in points] + [im for _, im in points]

    return traced(run)


@functools.cache
def part_of(first: int, count: int) -> Any:
    """Some of the values: the first half of a column's are the real parts."""
    return traced(lambda values: list(values[first:first + count]))


@functools.cache
def conjugate_product(n: int) -> Any:
    """a * conj(b) of n complex numbers."""
    return traced(lambda a, b: [a[k] * b[k] + a[n + k] * b[n + k] for k in range(n)] +
                               [a[n + k] * b[k] - a[k] * b[n + k] for k in range(n)])


@functools.cache
def conjugate_sum(n: int, first: int, count: int) -> Any:
    """total + a * conj(b) for `count` of n complex numbers, from `first` on."""

    def add(total, a, b):
        result = list(total)
        for k in range(count):
            result[first + k] += a[k] * b[k] + a[count + k] * b[count + k]
            result[n + first + k] += a[count + k] * b[k] - a[k] * b[count + k]
        return result

    return traced(add)


def group_elements(n: int) -> int:
    """Shared memory of the n threads that hold a tile: both parts, rows an element apart more, and groups apart by n banks."""
    return 2 * n * (n + 1) + n


def waiting(n: int) -> Callable:
    """What makes the threads of a tile wait for each other."""
    return sync_warp if n <= LANES else inlined(lambda: cuda.syncthreads())


@functools.cache
def tile_transforms(n: int) -> tuple[Callable, Callable]:
    """Functions (values, memory, lane) for tiles of n x n: lane = column, register = row, and lane = row, register = column after."""
    wait = waiting(n)
    real, imaginary = part_of(0, n), part_of(n, n)
    forth, back = _on_registers(transform, n), _on_registers(inverse, n)

    def transpose(values, memory, lane):
        other = advance(memory, n * (n + 1))
        wait()
        store_each(memory, lane * (n + 1), 1, real(values))
        store_each(other, lane * (n + 1), 1, imaginary(values))
        wait()
        return concatenate(load_each(memory, lane, n + 1, n), load_each(other, lane, n + 1, n))

    transpose = inlined(transpose)

    def to_spectrum(values, memory, lane):
        return forth(transpose(forth(values), memory, lane))

    def from_spectrum(values, memory, lane):
        return back(transpose(back(values), memory, lane))

    return inlined(to_spectrum), inlined(from_spectrum)
