"""Poolings of images with channels first, row by row: what the forward passes and the gradients are put together from.

A row of the result takes two steps. Down the columns, whole rows of the input are reduced into one line, in vectors and
whatever the stride; the line has room on both sides for the padding, filled once with what changes no result. Along the
line, each output reduces its taps: vectors at stride 1, every other element at stride 2, one by one elsewhere. So no border
needs code of its own, and a window of kh x kw points costs kh + kw steps.

The place of a maximum travels beside it, as the position in its plane, a whole number in the float type of the image; of
equal values the first position wins, whichever step sees it first. Rows with NaN, where the last one's position counts as in
PyTorch, are done again one by one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .._windows import Windows
from ._jit import inlined, outlined
from ._simd import (
    advance,
    any_nan,
    as_int64,
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
    load_first,
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
    return Rows(windows.batch * windows.channels, size_h, size_w, size_d * size_h * size_w, *windows.output_size, *windows.dilation,
                k, stride, left, -(-length // lanes) * lanes)


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
    whole = size - size % (4 * lanes)
    for i in range(0, whole, 4 * lanes):
        a = b = c = e = lowest(x)
        for j in range(count_d):
            row = advance(x, j * pitch_d + i)
            for _ in range(count_h):
                a = greatest(load(row, 0), a)
                b = greatest(load(row, lanes), b)
                c = greatest(load(row, 2 * lanes), c)
                e = greatest(load(row, 3 * lanes), e)
                row = advance(row, pitch_h)
        store(line, i, a)
        store(line, i + lanes, b)
        store(line, i + 2 * lanes, c)
        store(line, i + 3 * lanes, e)
    for i in range(whole, size, lanes):
        a = lowest(x)
        for j in range(count_d):
            for k in range(count_h):
                a = greatest(load_first(x, j * pitch_d + k * pitch_h + i, size - i), a)
        store_most(line, i, a, size - i)


@outlined
def highest_columns(line, g, table_w, y):
    """y[o] = the largest of the line in each window."""
    lanes = lanes_of(line)
    if g.stride_w == 1:
        for o in range(0, g.out_w, lanes):
            a = load(line, o)
            for k in range(1, g.kernel_w):
                a = greatest(load(line, o + k * g.step_w), a)
            store_most(y, o, a, g.out_w - o)
    elif g.stride_w == 2:
        for o in range(0, g.out_w, lanes):
            a = load_alternate(line, 2 * o)
            for k in range(1, g.kernel_w):
                a = greatest(load_alternate(line, 2 * o + k * g.step_w), a)
            store_most(y, o, a, g.out_w - o)
    else:
        for o in range(g.out_w):
            best = lowest_element(line)
            first = g.left + table_w[2 * o]
            for k in range(table_w[2 * o + 1]):
                v = get(line, first + k * g.step_w)
                if v > best or v != v:
                    best = v
            put(y, o, best)


# -- sums -----------------------------------------------------------------------------------------------------------------


@outlined
def added_rows(x, count_d, pitch_d, count_h, pitch_h, size, squares, line):
    """line[i] = the sum of x[j pitch_d + k pitch_h + i], or of its squares, over j and k."""
    lanes = lanes_of(x)
    whole = size - size % (2 * lanes)
    for i in range(0, whole, 2 * lanes):
        a = b = zero(x)
        for j in range(count_d):
            row = advance(x, j * pitch_d + i)
            for _ in range(count_h):
                v, u = load(row, 0), load(row, lanes)
                if squares:
                    v, u = v * v, u * u
                a += v
                b += u
                row = advance(row, pitch_h)
        store(line, i, a)
        store(line, i + lanes, b)
    for i in range(whole, size, lanes):
        a = zero(x)
        for j in range(count_d):
            for k in range(count_h):
                v = load_first(x, j * pitch_d + k * pitch_h + i, size - i)
                if squares:
                    v = v * v
                a += v
        store_most(line, i, a, size - i)


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
    if g.stride_w == 1:
        for o in range(0, g.out_w, lanes):
            a = load(line, o)
            for k in range(1, g.kernel_w):
                a += load(line, o + k * g.step_w)
            store_most(y, o, finished(a, scale * load(divisors, o), roots), g.out_w - o)
    elif g.stride_w == 2:
        for o in range(0, g.out_w, lanes):
            a = load_alternate(line, 2 * o)
            for k in range(1, g.kernel_w):
                a += load_alternate(line, 2 * o + k * g.step_w)
            store_most(y, o, finished(a, scale * load(divisors, o), roots), g.out_w - o)
    else:
        for o in range(g.out_w):
            total = zero_element(line)
            first = g.left + table_w[2 * o]
            for k in range(table_w[2 * o + 1]):
                total += get(line, first + k * g.step_w)
            put(y, o, total)
        for o in range(0, g.out_w, lanes):
            a = finished(load_first(y, o, g.out_w - o), scale * load(divisors, o), roots)
            store_first(y, o, a, g.out_w - o)


# -- places of maxima -----------------------------------------------------------------------------------------------------


@outlined
def highest_places(x, start, count_d, pitch_d, count_h, pitch_h, size, ramp, line, places):
    """`highest_rows`, and places[i] = the position of the first of the largest; True, unfinished, if there is a NaN.

    The position of x[i] in its plane is start + i; `ramp` holds 0, 1, 2, ... a vector long.
    """
    lanes = lanes_of(x)
    for i in range(0, size, lanes):
        a = load_first(x, i, size - i)
        nan = keep_nan(a, zero(x))
        place = broadcast(x, start + i) + load(ramp, 0)
        for j in range(count_d):
            for k in range(count_h):
                at = j * pitch_d + k * pitch_h + i
                v = load_first(x, at, size - i)
                nan = keep_nan(v, nan)
                place = choose_greater(v, a, broadcast(x, start + at) + load(ramp, 0), place)
                a = larger(v, a)
        if any_nan(nan):
            return True
        store_most(line, i, a, size - i)
        store_most(places, i, place, size - i)
    return False


@outlined
def first_columns(line, places, g, table_w, y, chosen):
    """y[o] = the largest of the line in each window, chosen[o] its place."""
    lanes = lanes_of(line)
    if g.stride_w == 0:
        for o in range(g.out_w):
            best, place = lowest_element(line), -lowest_element(line)
            first = g.left + table_w[2 * o]
            for k in range(table_w[2 * o + 1]):
                v, p = get(line, first + k * g.step_w), get(places, first + k * g.step_w)
                if v > best or (v == best and p < place):
                    best, place = v, p
            put(y, o, best)
            put(chosen, o, place)
        return
    for o in range(0, g.out_w, lanes):
        a, place = lowest(line), broadcast(line, -lowest_element(line))
        for k in range(g.kernel_w):
            if g.stride_w == 1:
                v, p = load(line, o + k * g.step_w), load(places, o + k * g.step_w)
            else:
                v, p = load_alternate(line, 2 * o + k * g.step_w), load_alternate(places, 2 * o + k * g.step_w)
            place = choose_first(v, a, p, place)
            a = larger(v, a)
        store_most(y, o, a, g.out_w - o)
        store_most(chosen, o, place, g.out_w - o)


@outlined
def places_one_by_one(x, g, table_d, table_h, table_w, od, oh, y, chosen):
    """A row of maxima of a plane x into y, and of their places, int64, -1 where a window is empty; the last NaN's if there is one."""
    for o in range(g.out_w):
        best, place = lowest_element(x), -1
        for j in range(table_d[2 * od + 1]):
            for k in range(table_h[2 * oh + 1]):
                row = ((table_d[2 * od] + j * g.step_d) * g.size_h + table_h[2 * oh] + k * g.step_h) * g.size_w
                for i in range(table_w[2 * o + 1]):
                    at = row + table_w[2 * o] + i * g.step_w
                    v = get(x, at)
                    if place < 0 or v > best or v != v:
                        best, place = v, at
        put(y, o, best)
        put(chosen, o, place)


@outlined
def highest_row(x, g, table_d, table_h, table_w, od, oh, ramp, scratch, y, chosen):
    """A row of maxima of a plane x into y, and of their places into `chosen`; infinity where a window is empty.

    `scratch` holds three lines: the padded values, the padded places, and room for places one by one.
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
    if not highest_places(advance(x, start), start, count_d, pitch_d, count_h, pitch_h, g.size_w, ramp, advance(line, g.left),
                          advance(places, g.left)):
        first_columns(line, places, g, table_w, y, chosen)
        return
    exact = as_int64(advance(scratch, 2 * g.length))
    places_one_by_one(x, g, table_d, table_h, table_w, od, oh, y, exact)
    for o in range(g.out_w):
        put(chosen, o, -lowest_element(y) if get(exact, o) < 0 else get(exact, o))
