"""Poolings of images with channels last, pixel by pixel: vectors hold neighbouring channels of a window's pixels."""

from __future__ import annotations

from ._jit import outlined
from ._pooling_rows import finished, load_most, store_most
from ._simd import (
    advance,
    broadcast,
    choose_above,
    get,
    greatest,
    greatest_lane,
    lanes_of,
    load,
    lowest,
    lowest_element,
    put,
    zero,
)


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


@outlined
def highest_pixel_places(x, count_d, pitch_d, count_h, pitch_h, count_w, pitch_w, channels, first, n, y, places):
    """`highest_pixel`, and places[c] = the number of the first of the largest, or of the last NaN; infinity for an empty window.

    `first` is the number of the window's first point.
    """
    for at in range(0, channels, lanes_of(x)):
        a, place = lowest(x), broadcast(x, -lowest_element(x))
        for j in range(count_d):
            for k in range(count_h):
                tap, number = j * pitch_d + k * pitch_h + at, first + j * n.each_d + k * n.each_h
                for _ in range(count_w):
                    v, here = load_most(x, tap, channels - at), broadcast(x, number)
                    place = here if number == first else choose_above(v, a, here, place)
                    a = v if number == first else greatest(v, a)
                    tap += pitch_w
                    number += n.each_w
        store_most(y, at, a, channels - at)
        store_most(places, at, place, channels - at)


@outlined
def highest_run(x, size):
    """The largest of x[:size], NaN if one is."""
    lanes = lanes_of(x)
    a = b = lowest(x)
    whole = size - size % (2 * lanes)
    for i in range(0, whole, 2 * lanes):
        a = greatest(load(x, i), a)
        b = greatest(load(x, i + lanes), b)
    best = greatest_lane(greatest(a, b))
    for i in range(whole, size):
        v = get(x, i)
        if v > best or v != v:
            best = v
    return best


@outlined
def copy_pixel(source, channels, target):
    """target[:channels] = source[:channels]."""
    lanes = lanes_of(source)
    whole = channels - channels % lanes
    for c in range(0, whole, lanes):
        store_most(target, c, load(source, c), lanes)
    for c in range(whole, channels):
        put(target, c, get(source, c))
