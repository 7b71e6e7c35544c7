"""Normalisation: over the batch, over groups of channels, over each sample's trailing axes. The kernels lie in `backends`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backends._activation import rectifier as rectifier_of
from ..backends._layer_norm import rows_normalized, rows_normalized_gradient
from ..backends._normalization import batch_runs, group_runs, normalized, normalized_gradient, scaled
from ..backends._normalization_rows import (
    row_normalized,
    row_normalized_gradient,
    scaled_rows,
)
from ._layer import Backprop, Layer, check_layout, documented

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "GroupNorm", "LayerNorm"]

IDENTITY = (1.0, math.inf)  # as a rectifier: slope below zero, ceiling


class _Norm(Layer):
    """A layer with a weight and a bias a channel, or neither."""

    def __init__(self, shape: tuple[int, ...], affine: bool, bias: bool, dtype: Any):
        super().__init__(dtype)
        if affine:
            self.add_parameter("weight", np.ones(shape))
            if bias:
                self.add_parameter("bias", np.zeros(shape))
        self._ones, self._zeros = np.ones(shape, self.dtype), np.zeros(shape, self.dtype)
        self._ones.flags.writeable = self._zeros.flags.writeable = False

    def _factors(self) -> tuple[np.ndarray, np.ndarray]:
        params = self.params
        return params.get("weight", self._ones), params.get("bias", self._zeros)

    def _contiguous(self, x: np.ndarray) -> np.ndarray:
        return x if x.flags.c_contiguous and x.flags.writeable else np.array(x, order="C")

    def _add(self, weight: np.ndarray, bias: np.ndarray) -> None:
        if "weight" in self.params:
            self.grads.add("weight", weight)
        if "bias" in self.params:
            self.grads.add("bias", bias)


class _BatchNorm(_Norm):
    ranks: tuple[int, ...] = ()
    takes_activation = True

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = True,
                 track_running_stats: bool = True, *, layout: str = "NCHW", dtype: Any = "float32"):
        super().__init__((num_features,), affine, True, dtype)
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.layout = check_layout(layout)
        if track_running_stats:
            self.buffers.update(running_mean=np.zeros(num_features, self.dtype), running_var=np.ones(num_features, self.dtype),
                                num_batches_tracked=np.array(0, np.int64))
        self._before: dict[str, np.ndarray] = {}  # the statistics before the last batch

    def arguments(self) -> str:
        """As torch's."""
        text = f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={'weight' in self.params}"
        text += f", track_running_stats={'running_mean' in self.buffers}"
        return text + (", layout='NHWC'" if self.layout == "NHWC" else "")

    def _split(self, x: Any) -> tuple[np.ndarray, int]:
        """The checked input, and the elements between two channels: 1 where channels lie last."""
        x = self.as_input(x)
        axis = 1 if self.layout == "NCHW" else x.ndim - 1
        if x.ndim not in self.ranks or x.shape[axis] != self.num_features:
            names = ["(N, C)"] if 2 in self.ranks else []
            sizes = ", ".join("DHW"[-(self.ranks[-1] - 2):]) if self.ranks[-1] > 3 else "L"
            names.append(f"(N, C, {sizes})" if self.layout == "NCHW" else f"(N, {sizes}, C)")
            raise self.wrong_input(x.shape, f"{' or '.join(names)} with C = {self.num_features}")
        x = self._contiguous(x)
        return x, math.prod(x.shape[2:]) if axis == 1 else 1

    # -- inference --------------------------------------------------------------------------------------------------------

    def __call__(self, x: Any) -> np.ndarray:
        """Normalised by the running statistics; by the batch's where none are kept."""
        return self._infer(x, IDENTITY)

    def activated(self, x: Any, name: str) -> np.ndarray:
        """A call and the rectifier of a name, in one pass."""
        return self._infer(x, rectifier_of(name))

    def _infer(self, x: Any, rectifier: tuple[float, float]) -> np.ndarray:
        if "running_mean" not in self.buffers:
            return self._train(x, rectifier)[0]
        x, inner = self._split(x)
        if x.size == 0:
            return np.empty_like(x)
        weight, bias = self._factors()
        mean, variance = self.buffers["running_mean"], self.buffers["running_var"]
        if inner > 1:
            return scaled(x, np.concatenate((weight, bias, mean, variance)), self.num_features, inner, self.eps, rectifier)
        table = np.empty((2, 1, self.num_features), x.dtype)
        np.divide(weight, np.sqrt(variance + x.dtype.type(self.eps)), out=table[0, 0])
        np.subtract(bias, mean * table[0, 0], out=table[1, 0])
        return scaled_rows(x, table, rectifier)

    # -- training ---------------------------------------------------------------------------------------------------------

    def forward(self, x: Any) -> tuple[np.ndarray, Backprop]:
        """Normalised by the batch's statistics, which move the running ones."""
        return self._train(x, IDENTITY)

    def forward_activated(self, x: Any, name: str) -> tuple[np.ndarray, Backprop]:
        """`forward` and the rectifier of a name, in one pass; so is their gradient."""
        return self._train(x, rectifier_of(name))

    def _train(self, x: Any, rectifier: tuple[float, float]) -> tuple[np.ndarray, Backprop]:
        x, inner = self._split(x)
        count = x.size // max(1, self.num_features)
        self._before.update(self.buffers)
        if x.size == 0:
            return np.empty_like(x), lambda gy: self.as_gradient(gy, x.shape, x.dtype).copy()
        if count == 1:
            raise ValueError(f"{self!r}: training needs more than one value a channel, got x of shape {x.shape}")
        y, backprop, mean, variance = (self._train_planes if inner > 1 else self._train_rows)(x, inner, rectifier)
        if "running_mean" in self.buffers:
            self._track(mean, variance, count / (count - 1))
        return y, backprop

    def _track(self, mean: np.ndarray, variance: np.ndarray, unbiased: float) -> None:
        """Move the running statistics towards a batch's, the variance times `unbiased`; momentum None averages all batches."""
        buffers = self.buffers
        batches = int(buffers["num_batches_tracked"]) + 1
        factor = 1.0 / batches if self.momentum is None else self.momentum
        for name, value, scale in (("running_mean", mean, factor), ("running_var", variance, factor * unbiased)):
            buffers[name] = moved = buffers[name] * (1.0 - factor)
            moved += scale * value
        buffers["num_batches_tracked"] = np.array(batches, np.int64)

    def undo(self) -> None:
        """Back to the running statistics before the last batch."""
        self.buffers.update(self._before)

    def _train_planes(self, x: np.ndarray, inner: int, rectifier: tuple[float, float],
                      ) -> tuple[np.ndarray, Backprop, np.ndarray, np.ndarray]:
        channels = self.num_features
        runs = batch_runs(x.shape[0], channels, inner)
        y, table = normalized(x, np.concatenate(self._factors()), runs, self.eps, rectifier)
        shape, dtype = x.shape, x.dtype

        def backprop(gy: Any) -> np.ndarray:
            gy = self._contiguous(self.as_gradient(gy, shape, dtype))
            gx, sums = normalized_gradient(x, gy, table, runs, rectifier)
            self._add(sums[1].sum(axis=1), sums[0].sum(axis=1))
            return gx

        return y, backprop, table[2 * channels:3 * channels], table[4 * channels:5 * channels]

    def _train_rows(self, x: np.ndarray, inner: int, rectifier: tuple[float, float],
                    ) -> tuple[np.ndarray, Backprop, np.ndarray, np.ndarray]:
        channels = self.num_features
        y, table = row_normalized(x, np.concatenate(self._factors()), 1, channels, channels, self.eps, rectifier)
        shape, dtype = x.shape, x.dtype

        def backprop(gy: Any) -> np.ndarray:
            gy = self._contiguous(self.as_gradient(gy, shape, dtype))
            gx, sums = row_normalized_gradient(x, gy, table, 1, channels, channels, rectifier)
            self._add(sums[1, 0], sums[0, 0])
            return gx

        return y, backprop, table[:channels], table[2 * channels:3 * channels]


_BATCH_NORM_DOC = """
    `forward` uses the statistics of the batch and moves the running ones by `momentum`; a call uses the running ones.

    Parameters
    ----------
    num_features : int
        Channels.
    eps : float
        Keeps the root away from zero.
    momentum : float or None
        How far each batch moves the running statistics; None averages all batches.
    affine : bool
        Whether weight and bias are learned.
    track_running_stats : bool
        Whether running statistics are kept.
    layout : {{"NCHW", "NHWC"}}
        Whether channels are the second axis or the last.
    dtype : {{"float32", "float64"}}
        What is computed in.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> layer = nn.{name}(2)
    >>> y, backprop = layer.forward(np.random.default_rng(0).normal(size={shape}))
    >>> y.shape, bool(abs(y.mean()) < 1e-6)
    ({shape}, True)

    References
    ----------
    Ioffe and Szegedy, "Batch normalization" (2015), algorithm 1 and section 3.
    """


@documented(_BATCH_NORM_DOC, name="BatchNorm1d", shape="(4, 2, 5)")
class BatchNorm1d(_BatchNorm):
    """Batch normalisation of features or lines: y = (x - mean) / sqrt(var + eps) * weight + bias, mean and variance a channel's."""

    ranks = (2, 3)


@documented(_BATCH_NORM_DOC, name="BatchNorm2d", shape="(4, 2, 5, 5)")
class BatchNorm2d(_BatchNorm):
    """Batch normalisation of images: y = (x - mean) / sqrt(var + eps) * weight + bias, mean and variance a channel's."""

    ranks = (4,)


@documented(_BATCH_NORM_DOC, name="BatchNorm3d", shape="(4, 2, 3, 5, 5)")
class BatchNorm3d(_BatchNorm):
    """Batch normalisation of volumes: y = (x - mean) / sqrt(var + eps) * weight + bias, mean and variance a channel's."""

    ranks = (5,)


class LayerNorm(_Norm):
    """Normalisation over the trailing axes of each sample: y = (x - mean) / sqrt(var + eps) * weight + bias.

    Parameters
    ----------
    normalized_shape : int or sequence of int
        Sizes of the trailing axes.
    eps : float
        Keeps the root away from zero.
    elementwise_affine, bias : bool
        Whether weight and bias, one for each element of those axes, are learned.
    dtype : {"float32", "float64"}
        What is computed in.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> y = nn.LayerNorm(4)(np.arange(8.0).reshape(2, 4))
    >>> bool(abs(y[0] - y[1]).max() < 1e-5)
    True

    References
    ----------
    Ba, Kiros, Hinton, "Layer normalization" (2016), equation 4.
    """

    def __init__(self, normalized_shape: int | Sequence[int], eps: float = 1e-5, elementwise_affine: bool = True, bias: bool = True, *,
                 dtype: Any = "float32"):
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        super().__init__(shape, elementwise_affine, bias, dtype)
        self.normalized_shape, self.eps = shape, eps

    def arguments(self) -> str:
        """As torch's."""
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={'weight' in self.params}"

    def __call__(self, x: Any) -> np.ndarray:
        """As `forward`: there are no running statistics."""
        return self._normalized(x)[1]

    def _normalized(self, x: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x = self.as_input(x)
        shape = self.normalized_shape
        if x.shape[x.ndim - len(shape):] != shape:
            raise self.wrong_input(x.shape, f"(..., {', '.join(map(str, shape))})")
        x = self._contiguous(x)
        if x.size == 0:
            return x, np.empty_like(x), np.empty(0)
        weight, bias = self._factors()
        return x, *rows_normalized(x, np.concatenate((weight.reshape(-1), bias.reshape(-1))), weight.size, self.eps)

    def forward(self, x: Any) -> tuple[np.ndarray, Backprop]:
        """The normalised array."""
        x, y, statistics = self._normalized(x)
        weight = self._factors()[0]

        def backprop(gy: Any) -> np.ndarray:
            gy = self._contiguous(self.as_gradient(gy, x.shape, x.dtype))
            if x.size == 0:
                return np.empty_like(x)
            gx, (gw, gb) = rows_normalized_gradient(x, gy, weight, statistics)
            self._add(gw.reshape(weight.shape), gb.reshape(weight.shape))
            return gx

        return y, backprop


class GroupNorm(_Norm):
    """Normalisation over groups of channels of each image: y = (x - mean) / sqrt(var + eps) * weight + bias.

    Parameters
    ----------
    num_groups, num_channels : int
        The channels are split into this many groups.
    eps : float
        Keeps the root away from zero.
    affine : bool
        Whether weight and bias are learned.
    layout : {"NCHW", "NHWC"}
        Whether channels are the second axis or the last.
    dtype : {"float32", "float64"}
        What is computed in.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> nn.GroupNorm(2, 4)(np.ones((1, 4, 3, 3))).shape
    (1, 4, 3, 3)

    References
    ----------
    Wu and He, "Group normalization" (2018), equation 7.
    """

    def __init__(self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True, *, layout: str = "NCHW",
                 dtype: Any = "float32"):
        if num_groups < 1 or num_channels % num_groups:
            raise ValueError(f"num_groups={num_groups} must divide num_channels={num_channels}")
        super().__init__((num_channels,), affine, True, dtype)
        self.num_groups, self.num_channels, self.eps = num_groups, num_channels, eps
        self.layout = check_layout(layout)

    def arguments(self) -> str:
        """As torch's."""
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={'weight' in self.params}"

    def __call__(self, x: Any) -> np.ndarray:
        """As `forward`: there are no running statistics."""
        return self.forward(x)[0]

    def forward(self, x: Any) -> tuple[np.ndarray, Backprop]:
        """The normalised array."""
        x = self.as_input(x)
        axis = 1 if self.layout == "NCHW" else x.ndim - 1
        if x.ndim < 2 or x.shape[axis] != self.num_channels:
            raise self.wrong_input(x.shape, f"(N, {self.num_channels}, ...)" if axis == 1 else f"(N, ..., {self.num_channels})")
        x = self._contiguous(x)
        if x.size == 0:
            return np.empty_like(x), lambda gy: self.as_gradient(gy, x.shape, x.dtype).copy()
        return self._planes(x) if axis == 1 else self._rows(x)

    def _planes(self, x: np.ndarray) -> tuple[np.ndarray, Backprop]:
        runs = group_runs(x.shape[0], self.num_channels, math.prod(x.shape[2:]), self.num_groups)
        y, table = normalized(x, np.concatenate(self._factors()), runs, self.eps, IDENTITY)

        def backprop(gy: Any) -> np.ndarray:
            gy = self._contiguous(self.as_gradient(gy, x.shape, x.dtype))
            gx, sums = normalized_gradient(x, gy, table, runs, IDENTITY)
            gb, gw = sums.reshape(2, -1, self.num_channels).sum(axis=1)
            self._add(gw, gb)
            return gx

        return y, backprop

    def _rows(self, x: np.ndarray) -> tuple[np.ndarray, Backprop]:
        images, channels = x.shape[0], self.num_channels
        y, table = row_normalized(x, np.concatenate(self._factors()), images, channels, self.num_groups, self.eps, IDENTITY)

        def backprop(gy: Any) -> np.ndarray:
            gy = self._contiguous(self.as_gradient(gy, x.shape, x.dtype))
            gx, sums = row_normalized_gradient(x, gy, table, images, channels, self.num_groups, IDENTITY)
            gb, gw = sums.sum(axis=1)
            self._add(gw, gb)
            return gx

        return y, backprop
