"""Gradients of maxima, and unpooling: values that go to a place of their own in each window.

The forward pass keeps each maximum's tap, its position in its window, in one byte (`_pooling`, place_rows and place_pixels).
Planes, or where channels come last images by runs of channels, are then scattered into one by one, so that no two threads write
to the same. With positions given, and for windows of more taps than a byte counts, these are used instead.

Tried: channels last, a vector of channels of each input pixel that gathers from the windows which hold it, 1.1 to 3 times as
long; channels first, rows of the input that gather in vectors from lines of places found again from x, 1.5 to 5 times.
"""

from __future__ import annotations

from ._jit import inlined, outlined
from ._pooling_rows import store_most
from ._simd import (
    advance,
    as_bytes,
    as_int64,
    get,
    lanes_of,
    next_task,
    parallel_kernel,
    put,
    raise_flag,
    thawed,
    zero,
    zero_element,
)

NO_TAP = 255  # of an empty window


@outlined
def clear_run(target, size):
    """target[:size] = 0."""
    lanes = lanes_of(target)
    for i in range(0, size, lanes):
        store_most(target, i, zero(target), size - i)


@inlined
def clear_part(target, plane, channels, count):
    """Zero the first `count` channels of all pixels of a plane."""
    if count == channels:
        clear_run(target, plane * channels)
    else:
        for i in range(plane):
            clear_run(advance(target, i * channels), count)


# -- taps -----------------------------------------------------------------------------------------------------------------


@outlined
def scatter_run(gy, taps, count, begins, reaches, target):
    """Add gy[i] to target[begins[i] + reaches[taps[i]]]."""
    for i in range(count):
        tap = taps[i]
        if tap != NO_TAP:
            place = begins[i] + reaches[tap]
            put(target, place, get(target, place) + get(gy, i))


@parallel_kernel
def scatter_taps(gy, taps, bias, gx, constants, scratch, counters, thread, threads):
    """gx = the gradient of maxima whose taps are known; each run of outputs finds what it reaches zeroed, not long ago."""
    images, plane, channels, width, runs, length, starts, ends, begins, reaches, columns, batch = thawed(constants)
    taps = as_bytes(taps)
    parts = -(-channels // width)
    tasks = images * parts
    while True:
        first = next_task(counters) * batch
        if first >= tasks:
            break
        for task in range(first, min(first + batch, tasks)):
            image, c = task // parts, task % parts * width
            count = min(width, channels - c)
            target = advance(gx, image * plane * channels + c)
            cleared = 0
            for run in range(runs):
                clear_part(advance(target, cleared * channels), ends[run] - cleared, channels, count)
                cleared = ends[run]
                at = (image * runs + run) * length * channels + c
                start = advance(target, starts[run])
                if channels == 1:
                    scatter_run(advance(gy, at), advance(taps, at), length, begins, reaches, start)
                else:
                    for o in range(length):
                        scatter_run(advance(gy, at), advance(taps, at), count, columns, reaches, advance(start, begins[o]))
                        at += channels
            clear_part(advance(target, cleared * channels), plane - cleared, channels, count)


# -- positions ------------------------------------------------------------------------------------------------------------


@parallel_kernel
def scatter_places(gy, places, bias, gx, constants, scratch, counters, thread, threads):
    """gx = zeros but for gy at its places, int64: added there, or written. A place outside raises the flag."""
    images, plane, outputs, channels, width, flat, adding = thawed(constants)
    places = as_int64(places)
    parts = -(-channels // width)
    while True:
        task = next_task(counters)
        if task >= images * parts:
            break
        image, c = task // parts, task % parts * width
        count = min(width, channels - c)
        target = advance(gx, image * plane * channels)
        clear_part(advance(target, c), plane, channels, count)
        offset = flat * image * plane * channels
        for o in range(outputs):
            source = (image * outputs + o) * channels + c
            for i in range(count):
                place = places[source + i]
                if flat:
                    place -= offset
                    bad = place < 0 or place >= plane * channels or place % channels != c + i
                else:
                    bad = place < 0 or place >= plane
                    place = place * channels + c + i
                if not bad:
                    value = get(gy, source + i)
                    put(target, place, get(target, place) + value if adding else value)
                elif not adding or places[source + i] != -1:
                    raise_flag(counters)


@parallel_kernel
def gather_places(gy, places, bias, gx, constants, scratch, counters, thread, threads):
    """gx[o] = gy at the place of o: the gradient of an unpooling."""
    images, plane, outputs, channels, flat, run = thawed(constants)
    places = as_int64(places)
    while True:
        first = next_task(counters) * run
        if first >= images * outputs:
            break
        for pixel in range(first, min(first + run, images * outputs)):
            image = pixel // outputs
            for c in range(channels):
                place = places[pixel * channels + c]
                if not flat:
                    place = (image * plane + place) * channels + c
                if place < 0 or place >= images * plane * channels:
                    raise_flag(counters)
                    put(gx, pixel * channels + c, zero_element(gx))
                else:
                    put(gx, pixel * channels + c, get(gy, place))
