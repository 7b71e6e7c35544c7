"""Convolutions of each channel on its own, and those followed by a mix of the channels: both are made of `conv2d`."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._arrays import as_array
from .conv import conv2d

__all__ = ["depthwise_conv2d", "separable_conv2d"]


def depthwise_conv2d(x: Any, w: Any, bias: Any = None, *, layout: str = "NCHW", **options: Any) -> np.ndarray:
    """Convolve each channel with kernels of its own: y[n, c m + j] = x[n, c] * w[c m + j].

    Parameters
    ----------
    x : array_like, shape (N, C, H, W) or (C, H, W)
        Input.
    w : array_like, shape (C m, 1, kh, kw), or (kh, kw, 1, C m) for layout "NHWC"
        Weights, m kernels a channel.
    bias : array_like, shape (C m,), optional
        Added to each output channel.
    layout : {"NCHW", "NHWC"}
        Channels first or last.
    **options
        stride, padding, dilation, padding_mode, activation, backend, accuracy, out as in `conv2d`.

    Returns
    -------
    ndarray, shape (N, C m, ...)

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> fc.depthwise_conv2d(np.ones((1, 3, 6, 6)), np.ones((6, 1, 3, 3))).shape
    (1, 6, 4, 4)

    References
    ----------
    Howard et al., "MobileNets" (2017), section 3.1.
    """
    if "groups" in options:
        raise TypeError("depthwise_conv2d takes no groups: there are as many as channels")
    x = as_array("x", x)
    if x.ndim not in (3, 4):
        raise ValueError(f"x must have 4 dimensions, or 3 for a single sample, got shape {x.shape}")
    channels = x.shape[-1] if layout == "NHWC" else x.shape[-3]
    return conv2d(x, w, bias, layout=layout, groups=max(1, channels), **options)


def separable_conv2d(x: Any, depthwise_w: Any, pointwise_w: Any, bias: Any = None, *, layout: str = "NCHW", activation: str | None = None,
                     backend: str | None = None, accuracy: str | None = None, out: np.ndarray | None = None, **options: Any) -> np.ndarray:
    """Depthwise-separable convolution: `depthwise_conv2d`, then a 1x1 convolution that mixes the channels.

    Parameters
    ----------
    x : array_like, shape (N, C, H, W) or (C, H, W)
        Input.
    depthwise_w : array_like, shape (C m, 1, kh, kw)
        Weights of the depthwise step.
    pointwise_w : array_like, shape (O, C m, 1, 1)
        Weights of the pointwise step.
    bias : array_like, shape (O,), optional
        Added to each output channel.
    layout, activation, backend, accuracy, out
        As in `conv2d`; activation and out concern the second step.
    **options
        stride, padding, dilation, padding_mode of the depthwise step.

    Returns
    -------
    ndarray, shape (N, O, ...)

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> fc.separable_conv2d(np.ones((1, 3, 6, 6)), np.ones((3, 1, 3, 3)), np.ones((8, 3, 1, 1)), padding=1).shape
    (1, 8, 6, 6)

    References
    ----------
    Chollet, "Xception: deep learning with depthwise separable convolutions" (2017), section 1.
    """
    pointwise_w = as_array("pointwise_w", pointwise_w)
    kernel = pointwise_w.shape[:2] if layout == "NHWC" else pointwise_w.shape[2:]
    if pointwise_w.ndim != 4 or kernel != (1, 1):
        raise ValueError(f"pointwise_w must have a 1x1 kernel, got shape {pointwise_w.shape}")
    spread = depthwise_conv2d(x, depthwise_w, layout=layout, backend=backend, accuracy=accuracy, **options)
    return conv2d(spread, pointwise_w, bias, layout=layout, activation=activation, backend=backend, accuracy=accuracy, out=out)
