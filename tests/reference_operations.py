"""The operations beside the convolutions, from their definitions: NumPy loops over taps or points, in float64.

Nothing here is shared with the package but what `reference` shares, which is nothing. Channels first throughout;
`reference.to_channels_first` turns other layouts.
"""

import itertools
import math

import numpy as np
from reference import padding_pairs, per_axis

# -- unfold and fold ------------------------------------------------------------------------------------------------------


def window_points(size, kernel, stride, padding, dilation):
    """For each tap and window, the index of the input point, an array (taps, L, axes), and which are inside the image."""
    pads = padding_pairs(padding, size, kernel, stride, dilation)
    counts = [
        (n + low + high - d * (k - 1) - 1) // s + 1 for n, k, s, d, (low, high) in zip(size, kernel, stride, dilation, pads, strict=True)
    ]
    taps = np.array(list(itertools.product(*map(range, kernel)))).reshape(-1, 1, len(size))
    windows = np.array(list(itertools.product(*map(range, counts)))).reshape(1, -1, len(size))
    points = windows * np.array(stride) + taps * np.array(dilation) - np.array([low for low, _ in pads])
    return points, ((points >= 0) & (points < np.array(size))).all(axis=-1), tuple(counts)


def unfold(x, kernel, *, stride=1, padding=0, dilation=1):
    """The windows of x (N, C, *size) as (N, C, taps, L)."""
    size = x.shape[2:]
    points, inside, _ = window_points(size, kernel, per_axis(stride, len(size)), padding, per_axis(dilation, len(size)))
    columns = np.zeros((*x.shape[:2], *inside.shape), x.dtype)
    for tap, window in np.argwhere(inside):
        columns[:, :, tap, window] = x[(slice(None), slice(None), *points[tap, window])]
    return columns


def fold(columns, size, kernel, *, stride=1, padding=0, dilation=1):
    """Windows (N, C, taps, L) added up in an image (N, C, *size)."""
    points, inside, _ = window_points(size, kernel, per_axis(stride, len(size)), padding, per_axis(dilation, len(size)))
    image = np.zeros((*columns.shape[:2], *size), columns.dtype)
    for tap, window in np.argwhere(inside):
        image[(slice(None), slice(None), *points[tap, window])] += columns[:, :, tap, window]
    return image


# -- locally connected layers ---------------------------------------------------------------------------------------------


def locally_connected(x, w, bias=None, *, stride=1, padding=0, dilation=1, groups=1):
    """y[n, o, p] = bias + sum over c, k of w[o, c, k, p] x[n, c, stride p + dilation k - low]; w is (O, C/G, *kernel, *out)."""
    rank = x.ndim - 2
    kernel, out = w.shape[2 : 2 + rank], w.shape[2 + rank :]
    columns = unfold(x, kernel, stride=stride, padding=padding, dilation=dilation)
    batch, channels, taps, points = columns.shape
    columns = columns.reshape(batch, groups, channels // groups, taps, points)
    weights = w.reshape(groups, w.shape[0] // groups, w.shape[1], taps, points)
    y = np.einsum("ngctl,goctl->ngol", columns, weights).reshape(batch, w.shape[0], *out)
    if bias is not None:
        y = y + bias.reshape(bias.shape + (1,) * (1 + rank - bias.ndim))
    return y


# -- deformable convolution -----------------------------------------------------------------------------------------------


def sample(plane, y, x):
    """The bilinear interpolation of a plane, zero outside."""
    if not (-1 < y < plane.shape[0] and -1 < x < plane.shape[1]):
        return 0.0
    top, left = math.floor(y), math.floor(x)
    value = 0.0
    for row, column in itertools.product((top, top + 1), (left, left + 1)):
        if 0 <= row < plane.shape[0] and 0 <= column < plane.shape[1]:
            value += (1 - abs(y - row)) * (1 - abs(x - column)) * plane[row, column]
    return value


def deform_conv2d(x, offset, w, bias=None, mask=None, *, stride=1, padding=0, dilation=1, groups=1, offset_groups=1):
    """Each tap of the convolution reads x at its own place moved by offset (N, 2 * offset_groups * taps, Ho, Wo), y before x."""
    stride, dilation = per_axis(stride, 2), per_axis(dilation, 2)
    kernel, channels = w.shape[2:], x.shape[1]
    points, _, out = window_points(x.shape[2:], kernel, stride, padding, dilation)
    taps, windows = points.shape[:2]
    moves = offset.reshape(len(x), offset_groups, taps, 2, windows)
    scale = np.ones((len(x), offset_groups, taps, windows)) if mask is None else mask.reshape(len(x), offset_groups, taps, windows)
    columns = np.zeros((len(x), channels, taps, windows))
    for n, c, tap, window in np.ndindex(columns.shape):
        group = c // (channels // offset_groups)
        row, column = points[tap, window] + moves[n, group, tap, :, window]
        columns[n, c, tap, window] = scale[n, group, tap, window] * sample(x[n, c], row, column)
    columns = columns.reshape(len(x), groups, channels // groups, taps, windows)
    weights = w.reshape(groups, w.shape[0] // groups, w.shape[1], taps)
    y = np.einsum("ngctl,goct->ngol", columns, weights).reshape(len(x), w.shape[0], *out)
    return y if bias is None else y + bias[:, None, None]
