"""Gradients of maxima, and unpooling: values that go to a place of their own in each window.

The forward pass keeps each maximum's tap, its position in its window, in one byte (`_pooling`, place_rows and place_pixels).
Channels last, a vector of channels of each input pixel gathers from the windows which hold it the values whose taps are its
own, if it has no more windows than that pays for. Elsewhere planes are scattered into one by one, or where they are few in
bands, each by all outputs that reach it. With positions given, and for windows of more taps than a byte counts, these are
used instead; images are then cut into runs of channels.

Tried: channels first, rows of the input that gather in vectors from lines of places found again from x, 1.5 to 5 times as long.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ._jit import outlined
from ._pooling_pixels import clear_run
from ._pooling_rows import load_most, store_most
from ._pooling_tasks import next_row, row_at
from ._simd import (
    advance,
    as_bytes,
    as_int64,
    get,
    lanes_of,
    load,
    own_first,
    parallel_kernel,
    put,
    raise_flag,
    shared_out,
    store,
    thawed,
    where_byte,
    zero,
)

NO_TAP = 255  # of an empty window
NOWHERE = -(1 << 62)  # what it reaches


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
    plane, channels, bands, runs, length, edges, first_runs, end_runs, starts, ends, begins, reaches, columns, tasks = thawed(
        constants)
    taps = as_bytes(taps)
    for task in own_first(counters, thread, tasks.shares, tasks.number):
        for index in range(task * tasks.run, min(tasks.rows, (task + 1) * tasks.run)):
            image, band = (index, 0) if bands == 1 else (index // bands, index % bands)  # divisions take as long as a small plane
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


@parallel_kernel
def scatter_planes(gy, taps, bias, gx, constants, scratch, counters, thread, threads):
    """gx = planes of zeros but for gy at their tap: the gradient of maxima of whole planes, channels first."""
    size, tasks = thawed(constants)
    taps = as_bytes(taps)
    for task in own_first(counters, thread, tasks.shares, tasks.number):
        for plane in range(task * tasks.run, min(tasks.rows, (task + 1) * tasks.run)):
            clear_run(advance(gx, plane * size), size)
            put(gx, plane * size + taps[plane], get(gy, plane))


class Held(NamedTuple):
    """The windows that hold the points of an axis: those of i are outputs[offsets[i] : offsets[i + 1]], it being their tap taps[...]."""

    offsets: np.ndarray
    outputs: np.ndarray
    taps: np.ndarray


@outlined
def share_row(gy, taps, tap, g, channels, in_w, windows_w, gx):
    """A row of gx that a single row of gy looks at, by windows without a common column; `tap` is that of the row."""
    lanes, done = lanes_of(gy), 0
    for o in range(g.out_w):
        first, count = windows_w[2 * o], windows_w[2 * o + 1]
        if count == 0:
            continue
        if first > done:
            clear_run(advance(gx, done * channels), (first - done) * channels)
        done, at, first_tap = first + count, o * channels, tap + in_w.taps[in_w.offsets[first]]
        for c in range(0, channels, lanes):
            left = channels - c
            v = load_most(gy, at + c, left)
            for i in range(count):
                store_most(gx, (first + i) * channels + c, where_byte(taps, at + c, first_tap + i, v, left), left)
    clear_run(advance(gx, done * channels), (g.size_w - done) * channels)


@outlined
def gather_row(gy, taps, g, channels, d, h, in_d, in_h, in_w, gx):
    """A row of gx, each pixel the sum of gy over the windows that have its tap."""
    lanes = lanes_of(gy)
    first_d, end_d, first_h, end_h = in_d.offsets[d], in_d.offsets[d + 1], in_h.offsets[h], in_h.offsets[h + 1]
    for w in range(g.size_w):
        first_w, end_w = in_w.offsets[w], in_w.offsets[w + 1]
        target = advance(gx, w * channels)
        whole = channels - channels % (4 * lanes)
        for c in range(0, whole, 4 * lanes):
            p = q = r = s = zero(gy)
            for i in range(first_d, end_d):
                for j in range(first_h, end_h):
                    row = (in_d.outputs[i] * g.out_h + in_h.outputs[j]) * g.out_w
                    for k in range(first_w, end_w):
                        at, tap = (row + in_w.outputs[k]) * channels + c, in_d.taps[i] + in_h.taps[j] + in_w.taps[k]
                        p += where_byte(taps, at, tap, load(gy, at), lanes)
                        q += where_byte(taps, at + lanes, tap, load(gy, at + lanes), lanes)
                        r += where_byte(taps, at + 2 * lanes, tap, load(gy, at + 2 * lanes), lanes)
                        s += where_byte(taps, at + 3 * lanes, tap, load(gy, at + 3 * lanes), lanes)
            store(target, c, p)
            store(target, c + lanes, q)
            store(target, c + 2 * lanes, r)
            store(target, c + 3 * lanes, s)
        for c in range(whole, channels, lanes):
            p, left = zero(gy), channels - c
            for i in range(first_d, end_d):
                for j in range(first_h, end_h):
                    row = (in_d.outputs[i] * g.out_h + in_h.outputs[j]) * g.out_w
                    for k in range(first_w, end_w):
                        at, tap = (row + in_w.outputs[k]) * channels + c, in_d.taps[i] + in_h.taps[j] + in_w.taps[k]
                        p += where_byte(taps, at, tap, load_most(gy, at, left), left)
            store_most(target, c, p, left)


@parallel_kernel
def gather_taps(gy, taps, bias, gx, constants, scratch, counters, thread, threads):
    """gx = the gradient of maxima whose taps are known, channels last, row by row."""
    g, channels, in_d, in_h, in_w, windows_w, apart, tasks = thawed(constants)
    taps = as_bytes(taps)
    for task in own_first(counters, thread, tasks.shares, tasks.number):
        image, d, h = row_at(task * tasks.run, g.size_d, g.size_h)
        for index in range(task * tasks.run, min(tasks.rows, (task + 1) * tasks.run)):
            first_d, first_h = in_d.offsets[d], in_h.offsets[h]
            above, target = image * g.out_d * g.out_h, advance(gx, index * g.size_w * channels)
            if apart and (in_d.offsets[d + 1] - first_d) * (in_h.offsets[h + 1] - first_h) == 1:
                at = (above + in_d.outputs[first_d] * g.out_h + in_h.outputs[first_h]) * g.out_w * channels
                share_row(advance(gy, at), advance(taps, at), in_d.taps[first_d] + in_h.taps[first_h], g, channels, in_w, windows_w, target)
            else:
                at = above * g.out_w * channels
                gather_row(advance(gy, at), advance(taps, at), g, channels, d, h, in_d, in_h, in_w, target)
            image, d, h = next_row(image, d, h, g.size_d, g.size_h)


# -- positions ------------------------------------------------------------------------------------------------------------


@outlined
def scatter_line(gy, places, outputs, size, offset, adding, gx):
    """gx[places[o] - offset] = gy[o], or += gy[o], of a plane of one channel; returns whether a place lay outside."""
    bad = False
    for o in range(outputs):
        place = np.uint64(places[o] - offset)
        if place < np.uint64(size):
            at = np.int64(place)
            put(gx, at, get(gx, at) + get(gy, o) if adding else get(gy, o))
        elif not adding or places[o] != -1:
            bad = True
    return bad


@outlined
def scatter_channels(gy, places, outputs, size, channels, first, count, offset, flat, adding, gx):
    """`scatter_line` for `count` channels of an image with channels last."""
    bad = False
    for o in range(outputs):
        for c in range(first, first + count):
            index = places[o * channels + c]
            at, inside = index * channels + c, 0 <= index < size
            if flat:
                at = index - offset
                inside = 0 <= at < size * channels and at % channels == c
            if inside:
                value = get(gy, o * channels + c)
                put(gx, at, get(gx, at) + value if adding else value)
            elif not adding or index != -1:
                bad = True
    return bad


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
        offset, above = flat * image * plane * channels, image * outputs * channels
        source, there = advance(gy, above), advance(places, above)
        if channels == 1:
            bad = scatter_line(source, there, outputs, plane, offset, adding, target)
        else:
            bad = scatter_channels(source, there, outputs, plane, channels, c, count, offset, flat, adding, target)
        if bad:
            raise_flag(counters)


@outlined
def take_line(gy, places, count, size, gx):
    """gx[o] = gy[places[o]]; returns whether a place lay outside."""
    bad = False
    for o in range(count):
        place = np.uint64(places[o])
        if place < np.uint64(size):
            put(gx, o, get(gy, np.int64(place)))
        else:
            bad = True
    return bad


@outlined
def take_channels(gy, places, count, channels, size, gx):
    """gx[o, c] = gy[places[o, c], c]; returns whether a place lay outside."""
    bad = False
    for o in range(0, count * channels, channels):
        for c in range(channels):
            place = np.uint64(places[o + c])
            if place < np.uint64(size):
                put(gx, o + c, get(gy, np.int64(place) * channels + c))
            else:
                bad = True
    return bad


@parallel_kernel
def gather_places(gy, places, bias, gx, constants, scratch, counters, thread, threads):
    """gx[o] = gy at the place of o: the gradient of an unpooling. A place outside raises the flag."""
    images, plane, outputs, channels, flat, tasks = thawed(constants)
    places = as_int64(places)
    for task in own_first(counters, thread, tasks.shares, tasks.number):
        pixel, end = task * tasks.run, min(tasks.rows, (task + 1) * tasks.run)
        while pixel < end:
            image = pixel // outputs
            count = min(end, (image + 1) * outputs) - pixel
            at = pixel * channels
            target, there = advance(gx, at), advance(places, at)
            if flat:
                bad = take_line(gy, there, count * channels, images * plane * channels, target)
            elif channels == 1:
                bad = take_line(advance(gy, image * plane), there, count, plane, target)
            else:
                bad = take_channels(advance(gy, image * plane * channels), there, count, channels, plane, target)
            if bad:
                raise_flag(counters)
            pixel += count
