"""The work of a suite item done with NumPy and SciPy, the way a careful user would write it: what the speed-up is over."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from fastconv.bench.suite import Item

__all__ = ["baseline"]


def baseline(item: Item, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None) -> Callable[[], np.ndarray]:
    """A function of no arguments that computes the item's result with the library that `item.baseline` names."""
    if item.baseline == "numpy im2col":
        options = item.options
        return partial(im2col, x, w, bias, options["stride"], options["padding"], options["groups"])
    # Imported here: scipy.signal takes longer to import than fastconv.
    from scipy import ndimage, signal

    kernel = w[0, 0]
    if item.suite == "audio":
        return lambda: signal.oaconvolve(x[0, 0], kernel[::-1])[:x.shape[2]][None, None]
    image = x[0, 0]
    if item.baseline == "scipy.ndimage.gaussian_filter":
        return lambda: ndimage.gaussian_filter(image, 1.5, radius=kernel.shape[0] // 2)[None, None]
    if item.baseline == "scipy.ndimage.correlate":
        return lambda: ndimage.correlate(image, kernel)[None, None]  # its default border is fastconv's "symmetric"
    pads = [((k - 1) // 2, k // 2) for k in kernel.shape]
    return lambda: signal.fftconvolve(np.pad(image, pads, mode="symmetric"), kernel[::-1, ::-1], "valid")[None, None]


def im2col(x: np.ndarray, w: np.ndarray, bias: np.ndarray | None, stride: int, padding: int, groups: int) -> np.ndarray:
    """conv2d of (N, C, H, W) with (O, C/G, kh, kw): windows gathered into a matrix, then one matrix product a group."""
    batch = x.shape[0]
    out_channels, _, *kernel = w.shape
    padded = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding))) if padding else x
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=(2, 3))[:, :, ::stride, ::stride]
    size = windows.shape[2:4]
    columns = windows.transpose(0, 1, 4, 5, 2, 3).reshape(batch, groups, -1, size[0] * size[1])
    result = np.matmul(w.reshape(groups, out_channels // groups, -1), columns).reshape(batch, out_channels, *size)
    return result if bias is None else result + bias[:, None, None]
