"""Gradients of maxima, and unpooling: values that go to a place of their own in each window.

The forward pass keeps each maximum's tap, its position in its window, in one byte (`_pooling`, place_rows and place_pixels).
Planes are then scattered into one by one, or where they are few in bands, each by all outputs that reach it. With positions
given, and for windows of more taps than a byte counts, these are used instead; images are then cut into runs of channels.

Tried: channels last, a vector of channels of each input pixel that gathers from the windows which hold it, 1.1 to 3 times as
long; channels first, rows of the input that gather in vectors from lines of places found again from x, 1.5 to 5 times.
"""

from __future__ import annotations

import numpy as np

from ._jit import outlined
from ._pooling_rows import store_most
from ._simd import (
    advance,
    as_bytes,
    as_int64,
    get,
    lanes_of,
    parallel_kernel,
    put,
    raise_flag,
    shared_out,
    thawed,
    zero,
    zero_element,
)

NO_TAP = 255  # of an empty window
NOWHERE = -(1 << 62)  # what it reaches


@outlined
def clear_run(target, size):
    """target[:size] = 0."""
    lanes = lanes_of(target)
    for i in range(0, size, lanes):
        store_most(target, i, zero(target), size - i)


# -- taps -----------------------------------------------------------------------------------------------------------------


@outlined
def scatter_run(gy, taps, count, begins, reaches, start, size, target):
    """Add gy[i] to target[start + begins[i] + reaches[taps[i]]] where that lies in target[:size]."""
    for i in range(count):
        place = start + begins[i] + reaches[taps[i]]
        if np.uint64(place) < np.uint64(size):
            put(target, place, get(target, place) + get(gy, i))


@parallel_kernel
def scatter_taps(gy, taps, bias, gx, constants, scratch, counters, thread, threads):
    """gx = the gradient of maxima whose taps are known, by bands of planes; a run of outputs finds what it reaches just zeroed."""
    images, plane, channels, bands, runs, length, edges, first_runs, end_runs, starts, ends, begins, reaches, columns, batch = thawed(
        constants)
    taps = as_bytes(taps)
    for task in shared_out(counters, batch, images * bands):
        image, band = task // bands, task % bands
        low, size, cleared = edges[band], edges[band + 1] - edges[band], 0
        target = advance(gx, image * plane * channels + low)
        for run in range(first_runs[band], end_runs[band]):
            reached = min(ends[run] - low, size)
            clear_run(advance(target, cleared), reached - cleared)
            cleared = max(cleared, reached)
            at, start = (image * runs + run) * length * channels, starts[run] - low
            if channels == 1:
                scatter_run(advance(gy, at), advance(taps, at), length, begins, reaches, start, size, target)
            else:
                for o in range(length):
                    scatter_run(advance(gy, at), advance(taps, at), channels, columns, reaches, start + begins[o], size, target)
                    at += channels
        clear_run(advance(target, cleared), size - cleared)


# -- positions ------------------------------------------------------------------------------------------------------------


@parallel_kernel
def scatter_places(gy, places, bias, gx, constants, scratch, counters, thread, threads):
    """gx = zeros but for gy at its places, int64: added there, or written. A place outside raises the flag."""
    images, plane, outputs, channels, width, flat, adding = thawed(constants)
    places = as_int64(places)
    parts = -(-channels // width)
    for task in shared_out(counters, 1, images * parts):
        image, c = task // parts, task % parts * width
        count = min(width, channels - c)
        target = advance(gx, image * plane * channels)
        if parts == 1:
            clear_run(target, plane * channels)
        else:
            for i in range(plane):
                clear_run(advance(target, i * channels + c), count)
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
    for pixel in shared_out(counters, run, images * outputs):
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
