"""Gradients of maxima, and unpooling: values that go to a place of their own in each window.

The places are found again from x, which costs what the forward pass does and no memory between the passes. Channels first, at
stride 1 or 2 along rows, a block of the input's rows then gathers: it takes gy where the place is its own, in vectors. At
other strides, and in volumes, the outputs of a plane scatter into it. Channels last, vectors of neighbouring channels
add to every tap of a window, nothing where the place is another.

With places given, planes (channels last: images by runs of channels) are scattered into one by one; no two threads
write to the same.
"""

from __future__ import annotations

from ._jit import inlined, outlined
from ._pooling_pixels import copy_pixel, highest_pixel_places
from ._pooling_rows import fill_line, highest_row, load_most, store_most
from ._simd import (
    advance,
    as_int64,
    broadcast,
    get,
    lanes_of,
    load,
    lowest_element,
    next_task,
    parallel_kernel,
    put,
    raise_flag,
    store_interleaved,
    thawed,
    where_equal,
    zero,
    zero_element,
)


@inlined
def taken_vector(places, values, i, here):
    """The outputs from i on whose place is `here`, zero in the other lanes."""
    return where_equal(load(places, i), here, load(values, i))


@outlined
def gather_row(places, values, first, end, outputs, skipped, g, start, ramp, spare, gx):
    """A row of gx, whose first position in the plane is `start`, from the padded rows of places and values of its outputs."""
    lanes = lanes_of(gx)
    step = g.stride_w * lanes
    one = broadcast(gx, 1)
    for w in range(0, g.size_w, step):
        even = odd = zero(gx)
        here = broadcast(gx, start + w) + load(ramp, 0)
        for i in range(first, end):
            row = (outputs[i] - skipped) * g.length + g.left
            p, v = advance(places, row), advance(values, row)
            for k in range(g.kernel_w):
                reach = g.low_w - k * g.step_w
                if g.stride_w == 1:
                    even += taken_vector(p, v, w + reach, here)
                elif reach & 1 == 0:
                    even += taken_vector(p, v, (w + reach) >> 1, here)
                else:
                    odd += taken_vector(p, v, (w + 1 + reach) >> 1, here + one)
        if g.stride_w == 1:
            store_most(gx, w, even, g.size_w - w)
        else:
            store_phases(gx, w, even, odd, g.size_w - w, spare)


@inlined
def store_phases(gx, w, even, odd, count, spare):
    """Write the first `count` of the lanes of two vectors in turn."""
    lanes = lanes_of(gx)
    if count >= 2 * lanes:
        store_interleaved(gx, w, even, odd)
    else:
        store_interleaved(spare, 0, even, odd)
        store_most(gx, w, load(spare, 0), count)
        if count > lanes:
            store_most(gx, w + lanes, load(spare, lanes), count - lanes)


def make_gather(kernel: int, stride: int, low: int):
    """`gather_row` for one kernel size, stride and padding along rows: straight-line code, where loops of so few taps cost most."""

    @outlined
    def gather(places, values, first, end, outputs, skipped, pitch, size, start, ramp, spare, gx):
        lanes = lanes_of(gx)
        here, one = broadcast(gx, start) + load(ramp, 0), broadcast(gx, 1)
        step = broadcast(gx, stride * lanes)
        w = at = 0
        while w < size:
            even = odd = zero(gx)
            for i in range(first, end):
                row = (outputs[i] - skipped) * pitch + at
                for k in range(kernel):
                    if stride == 1:
                        even += taken_vector(places, values, row + low - k, here)
                    elif (low - k) % 2 == 0:
                        even += taken_vector(places, values, row + (low - k) // 2, here)
                    else:
                        odd += taken_vector(places, values, row + (low - k + 1) // 2, here + one)
            if stride == 1:
                store_most(gx, w, even, size - w)
            else:
                store_phases(gx, w, even, odd, size - w, spare)
            here += step
            w += stride * lanes
            at += lanes

    return gather


gather_220, gather_320, gather_321, gather_311 = make_gather(2, 2, 0), make_gather(3, 2, 0), make_gather(3, 2, 1), make_gather(3, 1, 1)
FAMILIES = {(2, 2, 0): 1, (3, 2, 0): 2, (3, 2, 1): 3, (3, 1, 1): 4}  # (kernel, stride, padding) along rows, dilation 1


@inlined
def gather_known(family, places, values, first, end, outputs, skipped, g, start, ramp, spare, gx):
    """`gather_row`, by straight-line code where there is some."""
    p, v = advance(places, g.left), advance(values, g.left)
    if family == 1:
        gather_220(p, v, first, end, outputs, skipped, g.length, g.size_w, start, ramp, spare, gx)
    elif family == 2:
        gather_320(p, v, first, end, outputs, skipped, g.length, g.size_w, start, ramp, spare, gx)
    elif family == 3:
        gather_321(p, v, first, end, outputs, skipped, g.length, g.size_w, start, ramp, spare, gx)
    elif family == 4:
        gather_311(p, v, first, end, outputs, skipped, g.length, g.size_w, start, ramp, spare, gx)
    else:
        gather_row(places, values, first, end, outputs, skipped, g, start, ramp, spare, gx)


@parallel_kernel
def gather_rows(gy, x, bias, gx, constants, scratch, counters, thread, threads):
    """gx = the gradient of `max_rows` of planes, by blocks of rows; strides 1 and 2 along rows."""
    r, g, table_d, table_h, table_w, offsets_h, outputs_h, ramp, block, blocks, most, family = thawed(constants)
    spare = advance(scratch, 5 * r.length)
    unused = advance(scratch, 4 * r.length)
    places, values = advance(spare, 2 * lanes_of(gx)), advance(spare, 2 * lanes_of(gx) + most * g.length)
    fill_line(scratch, r.length, lowest_element(gx))
    fill_line(advance(scratch, r.length), r.length, -lowest_element(gx))
    fill_line(places, most * g.length, lowest_element(gx))
    fill_line(values, most * g.length, zero_element(gx))
    while True:
        task = next_task(counters)
        if task >= g.planes * blocks:
            break
        plane, h_first = task // blocks, task % blocks * block
        h_end = min(g.size_h, h_first + block)
        first, end = offsets_h[h_first], offsets_h[h_end]
        if first < end:
            skipped, last = outputs_h[first], outputs_h[first]
            for i in range(first, end):
                skipped, last = min(skipped, outputs_h[i]), max(last, outputs_h[i])
            for oh in range(skipped, last + 1):
                row = (oh - skipped) * g.length + g.left
                highest_row(advance(x, plane * r.plane), r, table_d, table_h, table_w, 0, oh, ramp, scratch, unused, advance(places, row))
                copy_pixel(advance(gy, (plane * g.out_h + oh) * g.out_w), g.out_w, advance(values, row))
        else:
            skipped = 0
        for h in range(h_first, h_end):
            gather_known(family, places, values, offsets_h[h], offsets_h[h + 1], outputs_h, skipped, g, h * g.size_w,
                         advance(ramp, lanes_of(gx)), spare, advance(gx, plane * r.plane + h * g.size_w))


@outlined
def clear_run(target, size):
    """target[:size] = 0."""
    lanes = lanes_of(target)
    for i in range(0, size, lanes):
        store_most(target, i, zero(target), size - i)


@parallel_kernel
def scatter_rows(gy, x, bias, gx, constants, scratch, counters, thread, threads):
    """gx = the gradient of `max_rows`, plane by plane."""
    g, table_d, table_h, table_w, ramp, run = thawed(constants)
    unused, chosen = advance(scratch, 4 * g.length), advance(scratch, 5 * g.length)
    fill_line(scratch, g.length, lowest_element(gx))
    fill_line(advance(scratch, g.length), g.length, -lowest_element(gx))
    while True:
        first = next_task(counters) * run
        if first >= g.planes:
            break
        for plane in range(first, min(first + run, g.planes)):
            target = advance(gx, plane * g.plane)
            clear_run(target, g.plane)
            for row in range(g.out_d * g.out_h):
                highest_row(advance(x, plane * g.plane), g, table_d, table_h, table_w, row // g.out_h, row % g.out_h, ramp, scratch, unused,
                            chosen)
                source = (plane * g.out_d * g.out_h + row) * g.out_w
                for o in range(g.out_w):
                    if get(chosen, o) != -lowest_element(gx):
                        place = int(get(chosen, o))
                        put(target, place, get(target, place) + get(gy, source + o))


@outlined
def scatter_pixel(x, gy, g, start_d, count_d, start_h, count_h, start_w, count_w, pitch, channels, values, places, gx):
    """Add a pixel of gy, `channels` wide, to the places of the maxima of its window of the image x, whose pixels are `pitch` apart."""
    for at in range(0, channels, lanes_of(x)):
        count = channels - at
        highest_pixel_places(advance(x, at), g, start_d, count_d, start_h, count_h, start_w, count_w, pitch,
                             min(count, lanes_of(x)), values, places)
        value, place = load_most(gy, at, count), load(places, 0)
        for j in range(count_d):
            for k in range(count_h):
                row = ((start_d + j * g.step_d) * g.size_h + start_h + k * g.step_h) * g.size_w + start_w
                for i in range(count_w):
                    position = row + i * g.step_w
                    target = advance(gx, position * pitch + at)
                    v = load_most(target, 0, count) + where_equal(place, broadcast(x, position), value)
                    store_most(target, 0, v, count)


@parallel_kernel
def scatter_pixels(gy, x, bias, gx, constants, scratch, counters, thread, threads):
    """gx = the gradient of `max_pixels`, image by image and by runs of channels."""
    g, channels, width, table_d, table_h, table_w = thawed(constants)
    parts = -(-channels // width)
    places = advance(scratch, lanes_of(x))
    while True:
        task = next_task(counters)
        if task >= g.planes * parts:
            break
        image, c = task // parts, task % parts * width
        count = min(width, channels - c)
        target = advance(gx, image * g.plane * channels + c)
        for i in range(g.plane):
            clear_run(advance(target, i * channels), count)
        for od in range(g.out_d):
            for oh in range(g.out_h):
                for o in range(g.out_w):
                    source = (((image * g.out_d + od) * g.out_h + oh) * g.out_w + o) * channels + c
                    scatter_pixel(advance(x, image * g.plane * channels + c), advance(gy, source), g, table_d[2 * od],
                                  table_d[2 * od + 1], table_h[2 * oh], table_h[2 * oh + 1], table_w[2 * o], table_w[2 * o + 1],
                                  channels, count, scratch, places, target)


# -- places given ---------------------------------------------------------------------------------------------------------


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
