"""Poolings of images with channels first, row by row: what the forward passes and the gradients are put together from.

A row of the result takes two steps. Down the columns, whole rows of the input are reduced into one line, in vectors and
whatever the stride; the line has room on both sides for the padding, filled once with what changes no result. Along the
line, each output reduces its taps: vectors at stride 1, every other element at stride 2, one by one elsewhere. So no border
needs code of its own, and a window of kh x kw points costs kh + kw steps.

The place of a maximum travels beside it, a whole number in the float type of the image: its position in the plane, or its tap,
the position in its window. Both grow along rows and columns, so of equal values the first place wins, whichever step sees it
first. Rows with NaN, where the last one's place counts as in PyTorch, are done again one by one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .._windows import Windows
from ._jit import inlined, outlined
from ._simd import (
    advance,
    any_nan,
    broadcast,
    choose_first,
    choose_greater,
    divide,
    get,
    greatest,
    keep_nan,
    lane_count,
    lanes_of,
    larger,
    load,
    load_alternate,
    load_between,
    lowest,
    lowest_element,
    put,
    square_root,
    store,
    store_first,
    zero,
    zero_element,
)

LARGEST_PLANE = {"float32": 1 << 24, "float64": 1 << 53}  # positions that are exact as floats


class Rows(NamedTuple):
    """Sizes of planes and of the windows in them."""

    planes: int
    size_h: int
    size_w: int
    plane: int
    out_d: int
    out_h: int
    out_w: int
    step_d: int
    step_h: int
    step_w: int
    kernel_w: int
    stride_w: int  # 1 or 2, or 0 where columns are taken from the table
    left: int  # padding before the line
    length: int  # of the line, in whole vectors


def rows_of(windows: Windows, dtype: str) -> Rows:
    """The sizes of a pooling of images with channels first."""
    lanes = lane_count(dtype)
    size_d, size_h, size_w = windows.input_size
    k, stride, d = windows.kernel_size[2], windows.stride[2], windows.dilation[2]
    stride = stride if k > 0 and stride <= 2 else 0
    left = windows.padding[2][0]
    reach = (windows.output_size[2] + lanes) * max(1, stride) + max(0, k - 1) * d + 2 * lanes
    length = max(left + size_w, reach)
    return Rows(windows.batch * windows.channels, size_h, size_w, size_d * size_h * size_w, *windows.output_size, *windows.dilation,  # type: ignore[call-arg]
                k, stride, left, -(-length // lanes) * lanes)


class Numbering(NamedTuple):
    """How places are numbered: that of a window's first point, from tables, and what each further point adds."""

    each_d: int
    each_h: int
    each_w: int
    by_column: int  # 1 where a column of the line has its number, 0 where a tap of each window has it


def numbering_of(windows: Windows, taps: bool) -> tuple[Numbering, tuple[np.ndarray, ...]]:
    """The numbers of taps in their windows, or of positions in the plane, and those of each window's first point inside."""
    if taps:
        pitches = (windows.largest[1] * windows.largest[2], windows.largest[2], 1)
        tables = [np.where(inside[:, 1] > 0, (inside[:, 0] - windows.begins(axis)) // windows.dilation[axis], 0)
                  for axis in range(3) for inside in [windows.inside(axis)]]
        return Numbering(*pitches, 0), tuple(table * pitch for table, pitch in zip(tables, pitches, strict=True))
    pitches = (windows.input_size[1] * windows.input_size[2], windows.input_size[2], 1)
    firsts = tuple(windows.inside(axis)[:, 0] * pitch for axis, pitch in enumerate(pitches))
    return Numbering(*(d * pitch for d, pitch in zip(windows.dilation, pitches, strict=True)), 1), firsts  # type: ignore[call-arg]


def tables_of(windows: Windows) -> tuple[np.ndarray, ...]:
    """(first point, number of points) of the windows along each axis."""
    return tuple(windows.inside(axis).reshape(-1) for axis in range(3))


@inlined
def store_most(target, offset, value, count):
    """Write a vector's first `count` lanes, all if there are so many."""
    if count >= lanes_of(target):
        store(target, offset, value)
    else:
        store_first(target, offset, value, count)


@inlined
def load_most(source, offset, count):
    """A vector's first `count` lanes, all if there are so many."""
    if count >= lanes_of(source):
        return load(source, offset)
    return load_between(source, offset, 0, count)


@outlined
def fill_line(line, length, value):
    """line[:length] = value, in whole vectors."""
    for i in range(0, length, lanes_of(line)):
        store(line, i, broadcast(line, value))


# -- maxima ---------------------------------------------------------------------------------------------------------------


@outlined
def highest_rows(x, count_d, pitch_d, count_h, pitch_h, size, line):
    """line[i] = the largest of x[j pitch_d + k pitch_h + i] over j and k."""
    lanes = lanes_of(x)
    last = size - lanes
    if last < 0:
        a = lowest(x)
        for j in range(count_d):
            for k in range(count_h):
                a = greatest(load_between(x, j * pitch_d + k * pitch_h, 0, size), a)
        store_first(line, 0, a, size)
    elif count_d == 1 and count_h == 2:
        for start in range(0, size, lanes):
            i = min(start, last)
            store(line, i, greatest(load(x, i), load(x, i + pitch_h)))
    elif count_d == 1 and count_h == 3:
        for start in range(0, size, lanes):
            i = min(start, last)
            store(line, i, greatest(greatest(load(x, i), load(x, i + pitch_h)), load(x, i + 2 * pitch_h)))
    else:
        for start in range(0, size, lanes):
            i = min(start, last)
            a = lowest(x)
            for j in range(count_d):
                for k in range(count_h):
                    a = greatest(load(x, j * pitch_d + k * pitch_h + i), a)
            store(line, i, a)


@inlined
def load_column(line, g, o, k):
    """The vector of tap k of the outputs from o on, at stride 1 or 2."""
    if g.stride_w == 1:
        return load(line, o + k * g.step_w)
    return load_alternate(line, 2 * o + k * g.step_w)


@outlined
def highest_columns(line, g, table_w, y):
    """y[o] = the largest of the line in each window."""
    lanes = lanes_of(line)
    last = max(0, g.out_w - lanes)
    if g.stride_w == 0:
        for o in range(g.out_w):
            best = lowest_element(line)
            first = g.left + table_w[2 * o]
            for k in range(table_w[2 * o + 1]):
                v = get(line, first + k * g.step_w)
                if v > best or v != v:
                    best = v
            put(y, o, best)
    elif g.kernel_w == 2:
        for start in range(0, g.out_w, lanes):
            o = min(start, last)
            store_most(y, o, greatest(load_column(line, g, o, 0), load_column(line, g, o, 1)), g.out_w - o)
    elif g.kernel_w == 3:
        for start in range(0, g.out_w, lanes):
            o = min(start, last)
            a = greatest(greatest(load_column(line, g, o, 0), load_column(line, g, o, 1)), load_column(line, g, o, 2))
            store_most(y, o, a, g.out_w - o)
    else:
        for start in range(0, g.out_w, lanes):
            o = min(start, last)
            a = load_column(line, g, o, 0)
            for k in range(1, g.kernel_w):
                a = greatest(load_column(line, g, o, k), a)
            store_most(y, o, a, g.out_w - o)


# -- sums -----------------------------------------------------------------------------------------------------------------


@inlined
def powered(v, squares):
    """A vector, or its square."""
    return v * v if squares else v


@outlined
def added_rows(x, count_d, pitch_d, count_h, pitch_h, size, squares, line):
    """line[i] = the sum of x[j pitch_d + k pitch_h + i], or of its squares, over j and k."""
    lanes = lanes_of(x)
    last = size - lanes
    if last < 0:
        a = zero(x)
        for j in range(count_d):
            for k in range(count_h):
                a += powered(load_between(x, j * pitch_d + k * pitch_h, 0, size), squares)
        store_first(line, 0, a, size)
    elif count_d == 1 and count_h == 2 and not squares:
        for start in range(0, size, lanes):
            i = min(start, last)
            store(line, i, load(x, i) + load(x, i + pitch_h))
    elif count_d == 1 and count_h == 3 and not squares:
        for start in range(0, size, lanes):
            i = min(start, last)
            store(line, i, load(x, i) + load(x, i + pitch_h) + load(x, i + 2 * pitch_h))
    else:
        for start in range(0, size, lanes):
            i = min(start, last)
            a = zero(x)
            for j in range(count_d):
                for k in range(count_h):
                    a += powered(load(x, j * pitch_d + k * pitch_h + i), squares)
            store(line, i, a)


@inlined
def finished(total, divisor, roots):
    """A vector of sums divided, and its square root if wanted."""
    mean = divide(total, divisor)
    return square_root(mean) if roots else mean


@outlined
def averaged_columns(line, g, table_w, row_divisor, divisors, roots, y):
    """y[o] = the sum of the line in each window / (row_divisor * divisors[o]), or the square root of that."""
    lanes = lanes_of(line)
    scale = broadcast(y, row_divisor)
    last = max(0, g.out_w - lanes)
    if g.stride_w == 0:
        for o in range(g.out_w):
            total = zero_element(line)
            first = g.left + table_w[2 * o]
            for k in range(table_w[2 * o + 1]):
                total += get(line, first + k * g.step_w)
            put(y, o, total)
        for o in range(0, g.out_w, lanes):
            a = finished(load_most(y, o, g.out_w - o), scale * load(divisors, o), roots)
            store_most(y, o, a, g.out_w - o)
    elif g.kernel_w == 2:
        for start in range(0, g.out_w, lanes):
            o = min(start, last)
            a = load_column(line, g, o, 0) + load_column(line, g, o, 1)
            store_most(y, o, finished(a, scale * load(divisors, o), roots), g.out_w - o)
    elif g.kernel_w == 3:
        for start in range(0, g.out_w, lanes):
            o = min(start, last)
            a = load_column(line, g, o, 0) + load_column(line, g, o, 1) + load_column(line, g, o, 2)
            store_most(y, o, finished(a, scale * load(divisors, o), roots), g.out_w - o)
    else:
        for start in range(0, g.out_w, lanes):
            o = min(start, last)
            a = load_column(line, g, o, 0)
            for k in range(1, g.kernel_w):
                a += load_column(line, g, o, k)
            store_most(y, o, finished(a, scale * load(divisors, o), roots), g.out_w - o)


# -- places of maxima -----------------------------------------------------------------------------------------------------


@inlined
def later_row(v, here, a, place):
    """The larger of the values a, at `place`, and v, at `here`, and its place; a where they are equal."""
    return larger(v, a), choose_greater(v, a, here, place)


@outlined
def highest_places(x, count_d, pitch_d, count_h, pitch_h, size, start, n, ramp, line, places):
    """`highest_rows`, and places[i] = the number of the first of the largest; True, unfinished, if there is a NaN.

    The number of x[i] is start + i where columns are numbered, else start; `ramp` holds 0, 1, 2, ... or zeros, a vector long.
    """
    lanes = lanes_of(x)
    last = max(0, size - lanes)
    nan = zero(x)
    first_place = broadcast(x, start) + load(ramp, 0)
    each = broadcast(x, n.each_h)
    for begin in range(0, size, lanes):
        i = min(begin, last)
        place = first_place + broadcast(x, i * n.by_column)
        a = load_most(x, i, size - i)
        nan = keep_nan(a, nan)
        if count_d == 1 and count_h <= 3:
            if count_h >= 2:
                v, here = load_most(x, i + pitch_h, size - i), place + each
                nan = keep_nan(v, nan)
                a, place = later_row(v, here, a, place)
                if count_h == 3:
                    v, here = load_most(x, i + 2 * pitch_h, size - i), here + each
                    nan = keep_nan(v, nan)
                    a, place = later_row(v, here, a, place)
        else:
            for j in range(count_d):
                for k in range(count_h):
                    v = load_most(x, j * pitch_d + k * pitch_h + i, size - i)
                    nan = keep_nan(v, nan)
                    here = first_place + broadcast(x, j * n.each_d + k * n.each_h + i * n.by_column)
                    a, place = later_row(v, here, a, place)
        store_most(line, i, a, size - i)
        store_most(places, i, place, size - i)
    return any_nan(nan)


@outlined
def first_columns(line, places, g, table_w, n, first_w, y, chosen):
    """y[o] = the largest of the line in each window, chosen[o] its place."""
    lanes = lanes_of(line)
    each = (1 - n.by_column) * n.each_w
    if g.stride_w == 0:
        for o in range(g.out_w):
            best, place = lowest_element(line), -lowest_element(line)
            first = g.left + table_w[2 * o]
            for k in range(table_w[2 * o + 1]):
                v = get(line, first + k * g.step_w)
                p = get(places, first + k * g.step_w)
                if n.by_column == 0:
                    p += first_w[o] + k * each
                if v > best or (v == best and p < place):
                    best, place = v, p
            put(y, o, best)
            put(chosen, o, place)
        return
    last = max(0, g.out_w - lanes)
    for start in range(0, g.out_w, lanes):
        o = min(start, last)
        a, place = load_column(line, g, o, 0), load_column(places, g, o, 0)
        for k in range(1, g.kernel_w):
            v = load_column(line, g, o, k)
            place = choose_first(v, a, load_column(places, g, o, k) + broadcast(line, k * each), place)
            a = larger(v, a)
        store_most(y, o, a, g.out_w - o)
        store_most(chosen, o, place, g.out_w - o)


@outlined
def places_one_by_one(x, g, table_d, table_h, table_w, n, first, first_w, od, oh, y, chosen):
    """A row of maxima of a plane x into y, and of their places, infinity where a window is empty; the last NaN's if there is one."""
    for o in range(g.out_w):
        best, empty = lowest_element(x), True
        for j in range(table_d[2 * od + 1]):
            for k in range(table_h[2 * oh + 1]):
                row = ((table_d[2 * od] + j * g.step_d) * g.size_h + table_h[2 * oh] + k * g.step_h) * g.size_w + table_w[2 * o]
                for i in range(table_w[2 * o + 1]):
                    v = get(x, row + i * g.step_w)
                    if empty or v > best or v != v:
                        empty, best = False, v
                        put(chosen, o, first + first_w[o] + j * n.each_d + k * n.each_h + i * n.each_w)
        put(y, o, best)
        if empty:
            put(chosen, o, -lowest_element(x))


@outlined
def highest_row(x, g, table_d, table_h, table_w, n, first, first_w, od, oh, ramp, scratch, y, chosen):
    """A row of maxima of a plane x into y, and of their places into `chosen`; infinity where a window is empty.

    `first` is the number of the first row's points. `scratch` holds two lines: the padded values and the padded places.
    """
    line, places = scratch, advance(scratch, g.length)
    count_d, count_h = table_d[2 * od + 1], table_h[2 * oh + 1]
    pitch_h, pitch_d = g.step_h * g.size_w, g.step_d * g.size_h * g.size_w
    if count_d * count_h == 0:
        for o in range(g.out_w):
            put(y, o, lowest_element(y))
            put(chosen, o, -lowest_element(y))
        return
    start = (table_d[2 * od] * g.size_h + table_h[2 * oh]) * g.size_w
    if highest_places(advance(x, start), count_d, pitch_d, count_h, pitch_h, g.size_w, first, n, ramp, advance(line, g.left),
                      advance(places, g.left)):
        places_one_by_one(x, g, table_d, table_h, table_w, n, first, first_w, od, oh, y, chosen)
    else:
        first_columns(line, places, g, table_w, n, first_w, y, chosen)
