"""Kernels of the poolings' forward passes: rows of the result shared out among the threads.

Images with channels first are done by `_pooling_rows`, with channels last by `_pooling_pixels`; where the only window of an
image is the image, it is one run of elements, or of pixels. Sums are divided, not multiplied by a reciprocal, so that an
exact sum of equal values gives that value.
"""

from __future__ import annotations

import numpy as np

from ._jit import inlined, outlined
from ._pooling_pixels import (
    averaged_pixels,
    head_of,
    highest_pixel,
    highest_pixel_places,
    highest_pixels,
    highest_run,
    mean_pixel,
)
from ._pooling_rows import (
    added_rows,
    averaged_columns,
    fill_line,
    highest_columns,
    highest_row,
    highest_rows,
    load_most,
)
from ._pooling_tasks import next_row, row_at
from ._simd import (
    advance,
    as_bytes,
    as_int64,
    get,
    lanes_of,
    load,
    load_between,
    lowest_element,
    own_first,
    parallel_kernel,
    put,
    store_bytes,
    thawed,
    total,
    zero_element,
)
from ._sums import BLOCK, sum_run

SHORT = 256  # elements of a plane that are added without further ado


@inlined
def write_taps(chosen, count, taps):
    """taps[:count] = chosen[:count] as bytes, 255 for infinity."""
    for i in range(0, count, lanes_of(chosen)):
        store_bytes(taps, i, load_most(chosen, i, count - i), count - i)


@inlined
def write_positions(chosen, count, offset, positions):
    """positions[:count] = chosen[:count] + offset as int64, -1 for infinity."""
    for i in range(count):
        place = get(chosen, i)
        put(positions, i, -1 if place == -lowest_element(chosen) else np.int64(place) + offset)


# -- channels first -------------------------------------------------------------------------------------------------------


@parallel_kernel
def max_rows(x, w, bias, y, constants, scratch, counters, thread, threads):
    """y = the maxima of windows, channels first."""
    g, table_d, table_h, table_w, tasks = thawed(constants)
    fill_line(scratch, g.length, lowest_element(x))
    for task in own_first(counters, thread, tasks.shares, tasks.number):
        plane, od, oh = row_at(task * tasks.run, g.out_d, g.out_h)
        for index in range(task * tasks.run, min(tasks.rows, (task + 1) * tasks.run)):
            start = plane * g.plane + (table_d[2 * od] * g.size_h + table_h[2 * oh]) * g.size_w
            highest_rows(advance(x, start), table_d[2 * od + 1], g.step_d * g.size_h * g.size_w, table_h[2 * oh + 1],
                         g.step_h * g.size_w, g.size_w, advance(scratch, g.left))
            highest_columns(scratch, g, table_w, advance(y, index * g.out_w))
            plane, od, oh = next_row(plane, od, oh, g.out_d, g.out_h)


@parallel_kernel
def mean_rows(x, w, bias, y, constants, scratch, counters, thread, threads):
    """y = the sums of windows over their divisors, channels first; or the roots of the sums of squares."""
    g, table_d, table_h, table_w, divisors_d, divisors_h, divisors_w, squares, tasks = thawed(constants)
    fill_line(scratch, g.length, zero_element(x))
    for task in own_first(counters, thread, tasks.shares, tasks.number):
        plane, od, oh = row_at(task * tasks.run, g.out_d, g.out_h)
        for index in range(task * tasks.run, min(tasks.rows, (task + 1) * tasks.run)):
            start = plane * g.plane + (table_d[2 * od] * g.size_h + table_h[2 * oh]) * g.size_w
            added_rows(advance(x, start), table_d[2 * od + 1], g.step_d * g.size_h * g.size_w, table_h[2 * oh + 1],
                       g.step_h * g.size_w, g.size_w, squares, advance(scratch, g.left))
            averaged_columns(scratch, g, table_w, divisors_d[od] * divisors_h[oh], divisors_w, squares, advance(y, index * g.out_w))
            plane, od, oh = next_row(plane, od, oh, g.out_d, g.out_h)


@parallel_kernel
def place_rows(x, w, bias, y, constants, scratch, counters, thread, threads):
    """y = the maxima of windows, w = their places, channels first; floats. Positions are int64, taps bytes."""
    g, table_d, table_h, table_w, n, first_d, first_h, first_w, ramp, flat, tasks = thawed(constants)
    positions, taps, chosen = as_int64(w), as_bytes(w), advance(scratch, 2 * g.length)
    fill_line(scratch, g.length, lowest_element(x))
    fill_line(advance(scratch, g.length), g.length, -lowest_element(x))
    for task in own_first(counters, thread, tasks.shares, tasks.number):
        plane, od, oh = row_at(task * tasks.run, g.out_d, g.out_h)
        for index in range(task * tasks.run, min(tasks.rows, (task + 1) * tasks.run)):
            at = index * g.out_w
            highest_row(advance(x, plane * g.plane), g, table_d, table_h, table_w, n, first_d[od] + first_h[oh], first_w, od, oh, ramp,
                        scratch, advance(y, at), chosen)
            if n.by_column == 0:
                write_taps(chosen, g.out_w, advance(taps, at))
            else:
                write_positions(chosen, g.out_w, flat * plane * g.plane, advance(positions, at))
            plane, od, oh = next_row(plane, od, oh, g.out_d, g.out_h)


# -- channels last --------------------------------------------------------------------------------------------------------


@parallel_kernel
def max_pixels(x, w, bias, y, constants, scratch, counters, thread, threads):
    """y = the maxima of windows, channels last."""
    g, channels, table_d, table_h, table_w, runs, tasks = thawed(constants)
    for task in own_first(counters, thread, tasks.shares, tasks.number):
        image, od, oh = row_at(task * tasks.run, g.out_d, g.out_h)
        for index in range(task * tasks.run, min(tasks.rows, (task + 1) * tasks.run)):
            start = image * g.plane + (table_d[2 * od] * g.size_h + table_h[2 * oh]) * g.size_w
            highest_pixels(advance(x, start * channels), g, table_d[2 * od + 1], table_h[2 * oh + 1], table_w, runs,
                           channels, advance(y, index * g.out_w * channels))
            image, od, oh = next_row(image, od, oh, g.out_d, g.out_h)


@parallel_kernel
def mean_pixels(x, w, bias, y, constants, scratch, counters, thread, threads):
    """y = the sums of windows over their divisors, channels last; or the roots of the sums of squares."""
    g, channels, table_d, table_h, table_w, runs, divisors_d, divisors_h, divisors_w, squares, tasks = thawed(constants)
    for task in own_first(counters, thread, tasks.shares, tasks.number):
        image, od, oh = row_at(task * tasks.run, g.out_d, g.out_h)
        for index in range(task * tasks.run, min(tasks.rows, (task + 1) * tasks.run)):
            start = image * g.plane + (table_d[2 * od] * g.size_h + table_h[2 * oh]) * g.size_w
            averaged_pixels(advance(x, start * channels), g, table_d[2 * od + 1], table_h[2 * oh + 1], table_w, runs, channels,
                            squares, divisors_d[od] * divisors_h[oh], divisors_w, advance(y, index * g.out_w * channels))
            image, od, oh = next_row(image, od, oh, g.out_d, g.out_h)


@parallel_kernel
def place_pixels(x, w, bias, y, constants, scratch, counters, thread, threads):
    """y = the maxima of windows, w = their places, channels last; floats. Positions are int64, taps bytes."""
    g, channels, table_d, table_h, table_w, n, first_d, first_h, first_w, flat, tasks = thawed(constants)
    positions, taps = as_int64(w), as_bytes(w)
    pitch_h, pitch_d = g.step_h * g.size_w * channels, g.step_d * g.size_h * g.size_w * channels
    for task in own_first(counters, thread, tasks.shares, tasks.number):
        image, od, oh = row_at(task * tasks.run, g.out_d, g.out_h)
        for index in range(task * tasks.run, min(tasks.rows, (task + 1) * tasks.run)):
            start = image * g.plane + (table_d[2 * od] * g.size_h + table_h[2 * oh]) * g.size_w
            for o in range(g.out_w):
                at = (index * g.out_w + o) * channels
                highest_pixel_places(advance(x, (start + table_w[2 * o]) * channels), table_d[2 * od + 1], pitch_d, table_h[2 * oh + 1],
                                     pitch_h, table_w[2 * o + 1], g.step_w * channels, channels,
                                     first_d[od] + first_h[oh] + first_w[o], n, advance(y, at), scratch)
                if n.by_column == 0:
                    write_taps(scratch, channels, advance(taps, at))
                    continue
                write_positions(scratch, channels, 0, advance(positions, at))
                for c in range(flat * channels):
                    place = positions[at + c]
                    put(positions, at + c, place if place < 0 else (image * g.plane + place) * channels + c)
            image, od, oh = next_row(image, od, oh, g.out_d, g.out_h)


# -- any type, any layout -------------------------------------------------------------------------------------------------


@outlined
def find_place(x, g, pitch, table_d, table_h, table_w, od, oh, o):
    """Position of the first of the largest in a window of a plane whose elements are `pitch` apart, the last NaN's; -1 if empty."""
    best, place = lowest_element(x), -1
    for j in range(table_d[2 * od + 1]):
        for k in range(table_h[2 * oh + 1]):
            row = ((table_d[2 * od] + j * g.step_d) * g.size_h + table_h[2 * oh] + k * g.step_h) * g.size_w + table_w[2 * o]
            for i in range(table_w[2 * o + 1]):
                v = get(x, (row + i * g.step_w) * pitch)
                if place < 0 or v > best or v != v:
                    best, place = v, row + i * g.step_w
    return place


@parallel_kernel
def place_each(x, w, bias, y, constants, scratch, counters, thread, threads):
    """y = the maxima of windows, w = their places as int64, one by one: integers, and planes of too many elements."""
    g, channels, last, table_d, table_h, table_w, flat, tasks = thawed(constants)
    places = as_int64(w)
    pitch = channels if last else 1
    for task in own_first(counters, thread, tasks.shares, tasks.number):
        plane, od, oh = row_at(task * tasks.run, g.out_d, g.out_h)
        for index in range(task * tasks.run, min(tasks.rows, (task + 1) * tasks.run)):
            image, c = plane // channels, plane % channels
            start = image * g.plane * channels + c if last else plane * g.plane
            for o in range(g.out_w):
                place = find_place(advance(x, start), g, pitch, table_d, table_h, table_w, od, oh, o)
                at = index * g.out_w + o
                if last:
                    at = (((image * g.out_d + od) * g.out_h + oh) * g.out_w + o) * channels + c
                put(y, at, lowest_element(x) if place < 0 else get(x, start + place * pitch))
                put(places, at, start + place * pitch if flat and place >= 0 else place)
            plane, od, oh = next_row(plane, od, oh, g.out_d, g.out_h)


# -- whole images ---------------------------------------------------------------------------------------------------------


@parallel_kernel
def max_planes(x, w, bias, y, constants, scratch, counters, thread, threads):
    """y[plane] = the maximum of a plane."""
    size, tasks = thawed(constants)
    for task in own_first(counters, thread, tasks.shares, tasks.number):
        for plane in range(task * tasks.run, min(tasks.rows, (task + 1) * tasks.run)):
            put(y, plane, highest_run(advance(x, plane * size), size))


@inlined
def short_sum(x, size):
    """A vector whose lanes add up to the sum of x[:size]."""
    lanes = lanes_of(x)
    whole = size & -lanes
    a = load_between(x, whole, 0, size - whole)
    for i in range(0, whole, lanes):
        a += load(x, i)
    return a


@parallel_kernel
def mean_planes(x, w, bias, y, constants, scratch, counters, thread, threads):
    """y[plane] = the mean of a plane."""
    size, divisor, tasks = thawed(constants)
    for task in own_first(counters, thread, tasks.shares, tasks.number):
        for plane in range(task * tasks.run, min(tasks.rows, (task + 1) * tasks.run)):
            if size <= SHORT:
                put(y, plane, total(short_sum(advance(x, plane * size), size)) / divisor)
            else:
                whole = 0.0
                for i in range(0, size, BLOCK):
                    whole += sum_run(advance(x, plane * size + i), min(BLOCK, size - i))
                put(y, plane, whole / divisor)


@parallel_kernel
def max_images(x, w, bias, y, constants, scratch, counters, thread, threads):
    """y[image][channel] = the maximum of an image's pixels, by runs of channels."""
    size, channels, width, parts, tasks = thawed(constants)
    for task in own_first(counters, thread, tasks.shares, tasks.number):
        for index in range(task * tasks.run, min(tasks.rows, (task + 1) * tasks.run)):
            image, start = index // parts, index % parts * width
            source, target = advance(x, image * size * channels + start), advance(y, image * channels + start)
            count = min(width, channels - start)
            at, end = 0, head_of(source, count)
            while at < count:
                highest_pixel(advance(source, at), 1, 0, 1, 0, size, channels, end - at, advance(target, at))
                at, end = end, count


@parallel_kernel
def mean_images(x, w, bias, y, constants, scratch, counters, thread, threads):
    """y[image][channel] = the mean of an image's pixels, by runs of channels."""
    size, channels, width, parts, divisor, tasks = thawed(constants)
    for task in own_first(counters, thread, tasks.shares, tasks.number):
        for index in range(task * tasks.run, min(tasks.rows, (task + 1) * tasks.run)):
            image, start = index // parts, index % parts * width
            source, target = advance(x, image * size * channels + start), advance(y, image * channels + start)
            count = min(width, channels - start)
            at, end = 0, head_of(source, count)
            while at < count:
                mean_pixel(advance(source, at), size, channels, end - at, divisor, advance(target, at))
                at, end = end, count
