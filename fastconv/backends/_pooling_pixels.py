"""Poolings of images with channels last, pixel by pixel: vectors hold neighbouring channels of a window's pixels.

Windows of 2 x 2 and 3 x 3 points inside the image are straight-line code: 64 x 16 x 10 x 10 at 2 x 2 takes one thread 12 us, 23
by the loops that do all others. Neighbouring windows a pixel from each other, of one size, are one window of as many times the
channels. NumPy's large arrays begin a quarter of a cache line behind one, where each vector takes two: long runs of channels
begin with a part of a vector (the mean of 1 x 2048 x 7 x 7 takes 3.4 us so, 6.6 without).

Larger images are read as fast as the cache behind gives them: 2 x 2 averages of 32 x 64 x 56 x 56, 32 MB in .60 ms, 54 GB/s,
where two threads that only read get 57 to 61.
"""

from __future__ import annotations

from ._jit import inlined, outlined
from ._pooling_rows import finished, load_most, store_most
from ._simd import (
    advance,
    broadcast,
    choose_above,
    divide,
    get,
    greatest,
    greatest_lane,
    lanes_of,
    load,
    lowest,
    lowest_element,
    misalignment,
    put,
    zero,
)

PIXEL_BLOCK = 64  # pixels that are added before their sum joins a total
LONG = 8  # vectors from which on it pays to begin with a part of one


@outlined
def highest_pixel(x, count_d, pitch_d, count_h, pitch_h, count_w, pitch_w, channels, y):
    """y[c] = the largest of x[j pitch_d + k pitch_h + i pitch_w + c] over j, k and i."""
    lanes = lanes_of(x)
    whole = channels - channels % (4 * lanes)
    for at in range(0, whole, 4 * lanes):
        a = b = c = e = lowest(x)
        for j in range(count_d):
            for k in range(count_h):
                tap = advance(x, j * pitch_d + k * pitch_h + at)
                for _ in range(count_w):
                    a = greatest(load(tap, 0), a)
                    b = greatest(load(tap, lanes), b)
                    c = greatest(load(tap, 2 * lanes), c)
                    e = greatest(load(tap, 3 * lanes), e)
                    tap = advance(tap, pitch_w)
        store_most(y, at, a, lanes)
        store_most(y, at + lanes, b, lanes)
        store_most(y, at + 2 * lanes, c, lanes)
        store_most(y, at + 3 * lanes, e, lanes)
    for at in range(whole, channels, lanes):
        a = lowest(x)
        for j in range(count_d):
            for k in range(count_h):
                for i in range(count_w):
                    a = greatest(load_most(x, j * pitch_d + k * pitch_h + i * pitch_w + at, channels - at), a)
        store_most(y, at, a, channels - at)


@outlined
def averaged_pixel(x, count_d, pitch_d, count_h, pitch_h, count_w, pitch_w, channels, squares, divisor, roots, y):
    """y[c] = the sum over a window of x, or of its squares, / divisor, or the square root of that."""
    lanes = lanes_of(x)
    scale = broadcast(y, divisor)
    whole = channels - channels % (2 * lanes)
    for at in range(0, whole, 2 * lanes):
        a = b = zero(x)
        for j in range(count_d):
            for k in range(count_h):
                tap = advance(x, j * pitch_d + k * pitch_h + at)
                for _ in range(count_w):
                    v, u = load(tap, 0), load(tap, lanes)
                    if squares:
                        v, u = v * v, u * u
                    a += v
                    b += u
                    tap = advance(tap, pitch_w)
        store_most(y, at, finished(a, scale, roots), lanes)
        store_most(y, at + lanes, finished(b, scale, roots), lanes)
    for at in range(whole, channels, lanes):
        a = zero(x)
        for j in range(count_d):
            for k in range(count_h):
                for i in range(count_w):
                    v = load_most(x, j * pitch_d + k * pitch_h + i * pitch_w + at, channels - at)
                    if squares:
                        v = v * v
                    a += v
        store_most(y, at, finished(a, scale, roots), channels - at)


# -- rows of windows ------------------------------------------------------------------------------------------------------


@inlined
def head_of(x, count):
    """Elements to be done first, so that the vectors of the others lie in a cache line each; all of them if they are few."""
    lanes = lanes_of(x)
    ahead = lanes - misalignment(x)
    return ahead if ahead < lanes and count >= LONG * lanes else count


def make_highest_window(points: int):
    """`highest_pixel` of a square window of points x points."""

    @inlined
    def highest_window(x, pitch_h, pitch_w, channels, y):
        lanes = lanes_of(x)
        for at in range(0, channels, lanes):
            left = channels - at
            a = load_most(x, at, left)
            for k in range(points):
                for i in range(points):
                    a = greatest(load_most(x, k * pitch_h + i * pitch_w + at, left), a) if k + i > 0 else a
            store_most(y, at, a, left)

    return highest_window


def make_averaged_window(points: int):
    """`averaged_pixel` of a square window of points x points, without squares and roots."""

    @inlined
    def averaged_window(x, pitch_h, pitch_w, channels, divisor, y):
        lanes = lanes_of(x)
        scale = broadcast(y, divisor)
        for at in range(0, channels, lanes):
            left = channels - at
            a = load_most(x, at, left)
            for k in range(points):
                for i in range(points):
                    a = a + load_most(x, k * pitch_h + i * pitch_w + at, left) if k + i > 0 else a
            store_most(y, at, divide(a, scale), left)

    return averaged_window


highest_of_two, highest_of_three = make_highest_window(2), make_highest_window(3)
averaged_of_two, averaged_of_three = make_averaged_window(2), make_averaged_window(3)


@outlined
def highest_pixels(x, g, count_d, count_h, table_w, runs, channels, y):
    """A row of maxima: of windows of count_d x count_h rows from x on, whose columns are in the table."""
    pitch_d, pitch_h, pitch_w = g.step_d * g.size_h * g.size_w * channels, g.step_h * g.size_w * channels, g.step_w * channels
    square = count_h if count_d == 1 else 0
    o = 0
    while o < g.out_w:
        count_w, size = table_w[2 * o + 1], runs[o] * channels
        source, target = advance(x, table_w[2 * o] * channels), advance(y, o * channels)
        at, end = 0, head_of(source, size)
        while at < size:
            if square == 2 and count_w == 2:
                highest_of_two(advance(source, at), pitch_h, pitch_w, end - at, advance(target, at))
            elif square == 3 and count_w == 3:
                highest_of_three(advance(source, at), pitch_h, pitch_w, end - at, advance(target, at))
            else:
                highest_pixel(advance(source, at), count_d, pitch_d, count_h, pitch_h, count_w, pitch_w, end - at, advance(target, at))
            at, end = end, size
        o += runs[o]


@outlined
def averaged_pixels(x, g, count_d, count_h, table_w, runs, channels, squares, row_divisor, divisors_w, y):
    """A row of sums over row_divisor * divisors_w, or of the roots of sums of squares over that; windows as in `highest_pixels`."""
    pitch_d, pitch_h, pitch_w = g.step_d * g.size_h * g.size_w * channels, g.step_h * g.size_w * channels, g.step_w * channels
    square = count_h if count_d == 1 and not squares else 0
    o = 0
    while o < g.out_w:
        count_w, size, divisor = table_w[2 * o + 1], runs[o] * channels, row_divisor * divisors_w[o]
        source, target = advance(x, table_w[2 * o] * channels), advance(y, o * channels)
        at, end = 0, head_of(source, size)
        while at < size:
            if square == 2 and count_w == 2:
                averaged_of_two(advance(source, at), pitch_h, pitch_w, end - at, divisor, advance(target, at))
            elif square == 3 and count_w == 3:
                averaged_of_three(advance(source, at), pitch_h, pitch_w, end - at, divisor, advance(target, at))
            else:
                averaged_pixel(advance(source, at), count_d, pitch_d, count_h, pitch_h, count_w, pitch_w, end - at, squares, divisor,
                               squares, advance(target, at))
            at, end = end, size
        o += runs[o]


# -- places, and whole images -----------------------------------------------------------------------------------------------


@inlined
def later_point(v, here, a, place):
    """The larger of the values a, at `place`, and v, at `here`, and its place; a where they are equal, v where it is NaN."""
    return choose_above(v, a, v, a), choose_above(v, a, here, place)


@outlined
def highest_pixel_places(x, count_d, pitch_d, count_h, pitch_h, count_w, pitch_w, channels, first, n, y, places):
    """`highest_pixel`, and places[c] = the number of the first of the largest, or of the last NaN; infinity for an empty window.

    `first` is the number of the window's first point, which is the place where all are minus infinity.
    """
    lanes = lanes_of(x)
    nowhere = broadcast(x, -lowest_element(x) if count_d * count_h * count_w == 0 else first)
    whole = channels - channels % (2 * lanes)
    for at in range(0, whole, 2 * lanes):
        a = b = lowest(x)
        p = q = nowhere
        for j in range(count_d):
            for k in range(count_h):
                tap, number = advance(x, j * pitch_d + k * pitch_h + at), first + j * n.each_d + k * n.each_h
                for _ in range(count_w):
                    here = broadcast(x, number)
                    a, p = later_point(load(tap, 0), here, a, p)
                    b, q = later_point(load(tap, lanes), here, b, q)
                    tap = advance(tap, pitch_w)
                    number += n.each_w
        store_most(y, at, a, lanes)
        store_most(y, at + lanes, b, lanes)
        store_most(places, at, p, lanes)
        store_most(places, at + lanes, q, lanes)
    for at in range(whole, channels, lanes):
        a, p = lowest(x), nowhere
        for j in range(count_d):
            for k in range(count_h):
                tap, number = j * pitch_d + k * pitch_h + at, first + j * n.each_d + k * n.each_h
                for _ in range(count_w):
                    a, p = later_point(load_most(x, tap, channels - at), broadcast(x, number), a, p)
                    tap += pitch_w
                    number += n.each_w
        store_most(y, at, a, channels - at)
        store_most(places, at, p, channels - at)


@outlined
def highest_run(x, size):
    """The largest of x[:size], NaN if one is."""
    lanes = lanes_of(x)
    a = b = lowest(x)
    whole = size - size % (2 * lanes)
    for i in range(0, whole, 2 * lanes):
        a = greatest(load(x, i), a)
        b = greatest(load(x, i + lanes), b)
    a = greatest(a, b)
    if size >= lanes:  # the last vectors again, whose elements may have been seen
        for i in range(whole, size, lanes):
            a = greatest(load(x, min(i, size - lanes)), a)
        return greatest_lane(a)
    best = lowest_element(x)
    for i in range(size):
        v = get(x, i)
        if v > best or v != v:
            best = v
    return best


@outlined
def mean_pixel(x, size, pitch, channels, divisor, y):
    """y[c] = the sum of x[i pitch + c] over i < size, / divisor, in blocks of pixels."""
    lanes = lanes_of(x)
    scale = broadcast(y, divisor)
    whole = channels - channels % (4 * lanes)
    for at in range(0, whole, 4 * lanes):
        p = q = r = s = zero(x)
        for block in range(0, size, PIXEL_BLOCK):
            a = b = c = e = zero(x)
            for i in range(block, min(size, block + PIXEL_BLOCK)):
                pixel = advance(x, i * pitch + at)
                a += load(pixel, 0)
                b += load(pixel, lanes)
                c += load(pixel, 2 * lanes)
                e += load(pixel, 3 * lanes)
            p += a
            q += b
            r += c
            s += e
        store_most(y, at, divide(p, scale), lanes)
        store_most(y, at + lanes, divide(q, scale), lanes)
        store_most(y, at + 2 * lanes, divide(r, scale), lanes)
        store_most(y, at + 3 * lanes, divide(s, scale), lanes)
    for at in range(whole, channels, lanes):
        p = zero(x)
        for block in range(0, size, PIXEL_BLOCK):
            a = zero(x)
            for i in range(block, min(size, block + PIXEL_BLOCK)):
                a += load_most(x, i * pitch + at, channels - at)
            p += a
        store_most(y, at, divide(p, scale), channels - at)


@outlined
def copy_pixel(source, channels, target):
    """target[:channels] = source[:channels]."""
    lanes = lanes_of(source)
    whole = channels - channels % lanes
    for c in range(0, whole, lanes):
        store_most(target, c, load(source, c), lanes)
    for c in range(whole, channels):
        put(target, c, get(source, c))


@outlined
def clear_run(target, size):
    """target[:size] = 0."""
    lanes = lanes_of(target)
    for i in range(0, size, lanes):
        store_most(target, i, zero(target), size - i)
