"""Convolutions written from their definitions: plain NumPy loops over the kernel's taps, in float64.

Nothing here is shared with the package, shape arithmetic included. Complex numbers are computed in complex128, integers
in int64. Dimension letters: N batch, C input channels, O output channels, G groups; arrays are turned to (N, C, *spatial)
and weights to (O, C/G, *kernel) first, so that the formulas are written once.

    xpad[n, c, p]  = x[n, c, border(p - low)]                                             0 outside for padding_mode="zeros"
    y[n, o, q]     = sum over c, t  of  w[o, c, t] * xpad[n, c, stride * q + dilation * t]
    gxpad[n, c, p] = sum over o, t with q = (p - dilation * t) / stride whole  of  conj(w[o, c, t]) * gy[n, o, q]
    gw[o, c, t]    = sum over n, q  of  gy[n, o, q] * conj(xpad[n, c, stride * q + dilation * t])

gy is extended by zeros beyond its ends, and zeros of a border are real ones: 0 * inf is nan in every pass.
"""

import math

import numpy as np

CHANNELS_LAST = ("NHWC", "NLC", "NWC", "NDHWC")


# -- the three passes -----------------------------------------------------------------------------------------------------


def conv(x, w, bias=None, *, stride=1, padding=0, dilation=1, groups=1, padding_mode="zeros", layout="NCHW", activation=None):
    """Cross-correlation of the padded x with w."""
    x, w = to_channels_first(wide(x), layout), weights_first(wide(w), layout)
    size, kernel = x.shape[2:], w.shape[2:]
    stride, dilation = per_axis(stride, len(size)), per_axis(dilation, len(size))
    pads = padding_pairs(padding, size, kernel, stride, dilation)
    y = _correlate(pad(x, pads, padding_mode), w, stride, dilation, groups)
    return from_channels_first(_epilogue(y, bias, activation), layout)


def grad_input(gy, w, input_shape, *, stride=1, padding=0, dilation=1, groups=1, padding_mode="zeros", layout="NCHW"):
    """Gradient of <y, gy> with respect to x: the adjoint of `conv` for fixed w."""
    gy, w = to_channels_first(wide(gy), layout), weights_first(wide(w), layout)
    size, kernel = spatial_size(input_shape, layout), w.shape[2:]
    stride, dilation = per_axis(stride, len(size)), per_axis(dilation, len(size))
    pads = padding_pairs(padding, size, kernel, stride, dilation)
    padded = tuple(n + low + high for n, (low, high) in zip(size, pads, strict=True))
    gx = unpad(_spread(gy, w.conj(), padded, stride, dilation, groups), size, pads, padding_mode)
    return from_channels_first(gx, layout)


def grad_weight(gy, x, weight_shape, *, stride=1, padding=0, dilation=1, groups=1, padding_mode="zeros", layout="NCHW"):
    """Gradient of <y, gy> with respect to w: the adjoint of `conv` for fixed x."""
    gy, x = to_channels_first(wide(gy), layout), to_channels_first(wide(x), layout)
    last = layout in CHANNELS_LAST
    kernel = tuple(weight_shape[:-2] if last else weight_shape[2:])
    size = x.shape[2:]
    stride, dilation = per_axis(stride, len(size)), per_axis(dilation, len(size))
    xpad = pad(x, padding_pairs(padding, size, kernel, stride, dilation), padding_mode)
    gw = _tap_products(gy, xpad.conj(), kernel, stride, dilation, groups)
    return np.moveaxis(gw, (0, 1), (-1, -2)) if last else gw


def grad_bias(gy, *, layout="NCHW"):
    """Gradient of <y, gy> with respect to the bias: the sum of gy over all but the channels."""
    gy = to_channels_first(wide(gy), layout)
    return gy.sum(axis=tuple(i for i in range(gy.ndim) if i != 1))


# -- the transposed convolution -------------------------------------------------------------------------------------------


def conv_transpose(
    x, w, bias=None, *, stride=1, padding=0, output_padding=0, dilation=1, groups=1, layout="NCHW", activation=None
):
    """The transpose of `conv` as a matrix (not conjugated); w is that convolution's, x has its output channels."""
    x, w = to_channels_first(wide(x), layout), weights_first(wide(w), layout)
    stride, dilation = per_axis(stride, x.ndim - 2), per_axis(dilation, x.ndim - 2)
    pads, target = transposed_geometry(x.shape[2:], w.shape[2:], stride, padding, output_padding, dilation)
    padded = tuple(n + low + high for n, (low, high) in zip(target, pads, strict=True))
    y = unpad(_spread(x, w, padded, stride, dilation, groups), target, pads, "zeros")
    return from_channels_first(_epilogue(y, bias, activation), layout)


def conv_transpose_backward(gy, x, w, *, stride=1, padding=0, output_padding=0, dilation=1, groups=1, layout="NCHW"):
    """(gx, gw, gb) of `conv_transpose`: it is linear in both, so these are its adjoints."""
    gy, x, w = to_channels_first(wide(gy), layout), to_channels_first(wide(x), layout), weights_first(wide(w), layout)
    stride, dilation = per_axis(stride, x.ndim - 2), per_axis(dilation, x.ndim - 2)
    pads, _ = transposed_geometry(x.shape[2:], w.shape[2:], stride, padding, output_padding, dilation)
    gypad = pad(gy, pads, "zeros")
    gx = _correlate(gypad, w.conj(), stride, dilation, groups)[(..., *map(slice, x.shape[2:]))]  # no x is at output padding
    gw = _tap_products(x.conj(), gypad, w.shape[2:], stride, dilation, groups)
    if layout in CHANNELS_LAST:
        gw = np.moveaxis(gw, (0, 1), (-1, -2))
    return from_channels_first(gx, layout), gw, grad_bias(gy)


def transposed_geometry(size, kernel, stride, padding, output_padding, dilation):
    """(pads, output size); "same" is the transpose of the "same" convolution of an input of size * stride points."""
    if padding in ("same", "same_lower"):
        target = tuple(n * s for n, s in zip(size, stride, strict=True))
        return padding_pairs(padding, target, kernel, stride, dilation), target
    pads = padding_pairs(padding, size, kernel, stride, dilation)
    axes = zip(size, kernel, stride, dilation, pads, per_axis(output_padding, len(size)), strict=True)
    return pads, tuple((n - 1) * s - low - high + d * (k - 1) + 1 + extra for n, k, s, d, (low, high), extra in axes)


# -- the sums over taps ---------------------------------------------------------------------------------------------------


def _correlate(xpad, w, stride, dilation, groups):
    """Result y (N, O, *out) from xpad (N, C, *padded) and w (O, C/G, *kernel)."""
    kernel = w.shape[2:]
    out = output_size(xpad.shape[2:], kernel, stride, dilation)
    y = np.zeros((len(xpad), len(w), *out), np.result_type(xpad, w))
    for channels, outputs in _groups(xpad.shape[1], len(w), groups):
        for tap in np.ndindex(kernel):
            y[:, outputs] += np.einsum(
                "nc...,oc->no...", xpad[:, channels][_window(tap, out, stride, dilation)], w[(outputs, slice(None), *tap)]
            )
    return y


def _spread(gy, w, padded, stride, dilation, groups):
    """Result gxpad (N, C, *padded) from gy (N, O, *out) and w (O, C/G, *kernel): a sum over the taps aligned with the stride."""
    gxpad = np.zeros((len(gy), w.shape[1] * groups, *padded), np.result_type(gy, w))
    reach = [n + d * k for n, k, d in zip(padded, w.shape[2:], dilation, strict=True)]  # as far as any tap looks beyond gy
    zero_extended = np.pad(gy, [(0, 0), (0, 0), *((r, r) for r in reach)])
    for channels, outputs in _groups(gxpad.shape[1], len(w), groups):
        for tap in np.ndindex(w.shape[2:]):
            target, source = [], []
            for t, n, s, d, r in zip(tap, padded, stride, dilation, reach, strict=True):
                first = d * t % s  # the smallest p >= 0 with p - d * t divisible by s
                count = len(range(first, n, s))
                q = (first - d * t) // s
                target.append(slice(first, n, s))
                source.append(slice(r + q, r + q + count))
            terms = np.einsum("no...,oc->nc...", zero_extended[(slice(None), outputs, *source)], w[(outputs, slice(None), *tap)])
            gxpad[(slice(None), channels, *target)] += terms
    return gxpad


def _tap_products(gy, xpad, kernel, stride, dilation, groups):
    """Result gw (O, C/G, *kernel): for each tap the sum over samples and positions of gy times the window of xpad."""
    out = gy.shape[2:]
    gw = np.zeros((gy.shape[1], xpad.shape[1] // groups, *kernel), np.result_type(gy, xpad))
    for channels, outputs in _groups(xpad.shape[1], gy.shape[1], groups):
        for tap in np.ndindex(kernel):
            window = xpad[:, channels][_window(tap, out, stride, dilation)]
            gw[(outputs, slice(None), *tap)] = np.einsum("nop,ncp->oc", _flat(gy[:, outputs]), _flat(window))
    return gw


def _window(tap, out, stride, dilation):
    """Index of what the tap meets at each output position: dilation * tap + stride * q."""
    return (..., *(slice(d * t, d * t + s * (n - 1) + 1, s) for t, n, s, d in zip(tap, out, stride, dilation, strict=True)))


def _groups(channels, outputs, groups):
    """Slices of the input and output channels of each group."""
    c, o = channels // groups, outputs // groups
    return [(slice(g * c, (g + 1) * c), slice(g * o, (g + 1) * o)) for g in range(groups)]


def _flat(array):
    return array.reshape(*array.shape[:2], math.prod(array.shape[2:]))


# -- borders --------------------------------------------------------------------------------------------------------------


def border(i, n, mode):
    """The index in 0..n-1 that stands at position i of the line extended beyond both ends; None is a zero."""
    if mode == "zeros":
        return i if 0 <= i < n else None
    if mode == "replicate":
        return min(max(i, 0), n - 1)
    if mode == "circular":
        return i % n
    if mode == "symmetric":  # d c b a | a b c d | d c b a
        i %= 2 * n
        return i if i < n else 2 * n - 1 - i
    if mode == "reflect":  # d c b | a b c d | c b a
        i %= max(2 * n - 2, 1)
        return i if i < n else 2 * n - 2 - i
    raise ValueError(mode)


def pad(x, pads, mode):
    """Input x (N, C, *size) extended by `pads` on its spatial axes."""
    for axis, (low, high) in enumerate(pads, start=2):
        n = x.shape[axis]
        padded = np.zeros((*x.shape[:axis], low + n + high, *x.shape[axis + 1 :]), x.dtype)
        line, padded_line = np.moveaxis(x, axis, 0), np.moveaxis(padded, axis, 0)
        for p in range(low + n + high):
            source = border(p - low, n, mode)
            if source is not None:
                padded_line[p] = line[source]
        x = padded
    return x


def unpad(gxpad, size, pads, mode):
    """The adjoint of `pad`: what stands at a padded position is added to the point it was copied from."""
    for axis, (n, (low, high)) in enumerate(zip(size, pads, strict=True), start=2):
        gx = np.zeros((*gxpad.shape[:axis], n, *gxpad.shape[axis + 1 :]), gxpad.dtype)
        line, padded_line = np.moveaxis(gx, axis, 0), np.moveaxis(gxpad, axis, 0)
        for p in range(low + n + high):
            source = border(p - low, n, mode)
            if source is not None:
                line[source] += padded_line[p]
        gxpad = gx
    return gxpad


# -- shapes ---------------------------------------------------------------------------------------------------------------


def per_axis(value, ndim):
    """A tuple of one integer per axis."""
    return (value,) * ndim if np.ndim(value) == 0 else tuple(value)


def padding_pairs(padding, size, kernel, stride, dilation):
    """(low, high) per axis."""
    ndim = len(size)
    if padding == "valid":
        return ((0, 0),) * ndim
    if padding == "causal":
        return ((dilation[0] * (kernel[0] - 1), 0),)
    if padding in ("same", "same_lower"):
        pairs = []
        for n, k, s, d in zip(size, kernel, stride, dilation, strict=True):
            outputs = math.ceil(n / s)
            total = max((outputs - 1) * s + d * (k - 1) + 1 - n, 0)
            less, more = total // 2, total - total // 2
            pairs.append((less, more) if padding == "same" else (more, less))
        return tuple(pairs)
    return tuple((p, p) if np.ndim(p) == 0 else tuple(p) for p in per_axis(padding, ndim))


def output_size(padded, kernel, stride, dilation):
    """How many windows of extent dilation * (kernel - 1) + 1 start at multiples of the stride inside the padded input."""
    return tuple((n - (d * (k - 1) + 1)) // s + 1 for n, k, s, d in zip(padded, kernel, stride, dilation, strict=True))


def output_shape(input_shape, weight_shape, *, stride=1, padding=0, dilation=1, layout="NCHW", **_):
    """Shape of y in the caller's layout."""
    last = layout in CHANNELS_LAST
    size = spatial_size(input_shape, layout)
    kernel = tuple(weight_shape[:-2] if last else weight_shape[2:])
    stride, dilation = per_axis(stride, len(size)), per_axis(dilation, len(size))
    pads = padding_pairs(padding, size, kernel, stride, dilation)
    padded = tuple(n + low + high for n, (low, high) in zip(size, pads, strict=True))
    out = output_size(padded, kernel, stride, dilation)
    return (input_shape[0], *out, weight_shape[-1]) if last else (input_shape[0], weight_shape[0], *out)


def spatial_size(shape, layout):
    """The spatial part of the shape of x."""
    return tuple(shape[1:-1] if layout in CHANNELS_LAST else shape[2:])


def to_channels_first(x, layout):
    """(N, *size, C) or (N, C, *size) to (N, C, *size)."""
    return np.moveaxis(x, -1, 1) if layout in CHANNELS_LAST else x


def from_channels_first(x, layout):
    """(N, C, *size) to the caller's layout."""
    return np.moveaxis(x, 1, -1) if layout in CHANNELS_LAST else x


def weights_first(w, layout):
    """(*kernel, C/G, O) or (O, C/G, *kernel) to (O, C/G, *kernel)."""
    return np.moveaxis(w, (-1, -2), (0, 1)) if layout in CHANNELS_LAST else w


def wide(array):
    """The array in the widest type of its kind: complex128, int64 or float64."""
    array = np.asarray(array)
    return array.astype({"c": np.complex128, "i": np.int64, "u": np.int64, "f": np.float64}[array.dtype.kind])


# -- epilogue -------------------------------------------------------------------------------------------------------------


ACTIVATIONS = {
    "relu": lambda y: np.maximum(y, 0),
    "relu6": lambda y: np.minimum(np.maximum(y, 0), 6),
    "leaky_relu": lambda y: np.where(y >= 0, y, 0.01 * y),
    "sigmoid": lambda y: 1 / (1 + np.exp(-y)),
    "tanh": np.tanh,
    "silu": lambda y: y / (1 + np.exp(-y)),
    "gelu": lambda y: y / 2 * (1 + np.vectorize(math.erf, otypes=[float])(y / math.sqrt(2))),
}


def _epilogue(y, bias, activation):
    """Bias and activation of y (N, O, *out)."""
    if bias is not None:
        y = y + wide(bias).reshape(-1, *(1,) * (y.ndim - 2))
    return y if activation is None else ACTIVATIONS[activation](y)
