"""Deformable convolutions: each tap of each output point reads the image at a place of its own."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ._arrays import as_array, as_bias, as_operand, common_dtype
from ._calls import batched, bias_gradient, check_shape, frozen, make_options
from .backends._scratch import empty
from .conv import conv2d, conv2d_grad_input, conv2d_grad_weight
from .problem import Options, Problem

__all__ = ["deform_conv2d", "deform_conv2d_backward"]

COLUMNS_BYTES = 8 << 20  # of the samples of the images taken at once: they stay in the last-level cache for the product


class _Deformable:
    """The convolution that a deformable one has the shapes of, its offset groups, and the kernels of its samples."""

    def __init__(self, problem: Problem, groups: int, masked: bool):
        self.problem = problem
        self.groups = groups
        self.masked = masked
        self.taps = math.prod(problem.kernel_size)
        self.points = math.prod(problem.output_size)
        image = problem.in_channels * self.taps * self.points * problem.itemsize
        samples = problem.in_channels * self.taps
        self.planes = problem.groups > 1  # whether the samples come channels first: see `backends._deformable`
        self.weight_shape = ((problem.out_channels, samples // problem.groups, 1, 1) if self.planes
                             else (1, 1, samples, problem.out_channels))
        self.layout = "NCHW" if self.planes else "NHWC"
        self.options: dict[str, Any] = {"groups": problem.groups, "layout": self.layout}
        self.images = max(1, min(problem.batch, COLUMNS_BYTES // max(1, image)))

    def kernels(self, images: int) -> Any:
        """The kernels for so many images."""
        return _kernels(self.problem, images, self.groups, self.masked)

    def matrix(self, images: int, channels: int) -> tuple[int, ...]:
        """The shape of so many images of a convolution of the samples."""
        return (images, channels, 1, self.points) if self.planes else (images, self.points, 1, channels)

    def columns_shape(self, images: int) -> tuple[int, ...]:
        """That of the samples of so many images."""
        return self.matrix(images, self.problem.in_channels * self.taps)

    def chunks(self) -> Iterator[slice]:
        """The images, a few at a time."""
        for first in range(0, self.problem.batch, self.images):
            yield slice(first, min(first + self.images, self.problem.batch))


@functools.lru_cache(maxsize=1024)
def _kernels(problem: Problem, images: int, groups: int, masked: bool) -> Any:
    from .backends._deformable import deformable_kernels

    return deformable_kernels(replace(problem, batch=images), groups, masked)


class _Operands(NamedTuple):
    """The operands of a call, computed in one dtype: x with channels last, the offset and the mask with channels first.

    w are the weights of a 1x1 convolution of the samples.
    """

    made: _Deformable
    x: np.ndarray
    offset: np.ndarray
    w: np.ndarray
    mask: np.ndarray | None
    result: np.dtype
    single: bool


@functools.lru_cache(maxsize=1024)
def _deformable(x_shape: tuple[int, ...], w_shape: tuple[int, ...], offset_shape: tuple[int, ...], mask_shape: tuple[int, ...] | None,
                dtype: str, options: Options, offset_groups: int | None) -> _Deformable:
    if len(w_shape) != 4:
        raise ValueError(f"w must have 4 dimensions, got shape {w_shape}")
    groups = options.groups
    if groups is None:
        groups = max(1, x_shape[1] // max(1, w_shape[1]))
    problem = Problem.create("forward", 2, x_shape, w_shape, dtype, Options(options.stride, options.padding, options.dilation, groups))
    if np.dtype(dtype).kind != "f":
        raise TypeError(f"deform_conv2d takes real floating-point numbers, got {dtype}")
    taps = math.prod(w_shape[2:])
    if len(offset_shape) != 4 or offset_shape[1] % (2 * taps) or offset_shape[1] == 0:
        raise ValueError(f"offset must have 4 dimensions and a multiple of {2 * taps} channels (two a tap), got shape {offset_shape}")
    sharing = offset_shape[1] // (2 * taps)
    if offset_groups not in (None, sharing) or problem.in_channels % sharing:
        raise ValueError(f"offset of {offset_shape[1]} channels is for {sharing} offset groups, which must "
                         + (f"divide the {problem.in_channels} input channels" if offset_groups in (None, sharing)
                            else f"be offset_groups={offset_groups}"))
    out = problem.output_size[1:]
    check_shape("offset", offset_shape, (x_shape[0], 2 * sharing * taps, *out))
    if mask_shape is not None:
        check_shape("mask", mask_shape, (x_shape[0], sharing * taps, *out))
    return _Deformable(problem, sharing, mask_shape is not None)


def _operands(x: Any, offset: Any, w: Any, mask: Any, stride: Any, padding: Any, dilation: Any, groups: Any, offset_groups: Any,
              layout: str, **more: np.ndarray) -> _Operands:
    """Check the operands of a call and bring them to their forms."""
    x, single = batched("x", as_array("x", x), 2)
    offset, w = as_array("offset", offset), as_array("w", w)
    mask = None if mask is None else as_array("mask", mask)
    options = make_options(stride, padding, dilation, groups)
    if single:
        offset, mask = offset[np.newaxis], None if mask is None else mask[np.newaxis]
    if layout not in ("NCHW", "NHWC"):
        raise ValueError(f"layout must be one of 'NCHW', 'NHWC'; got {layout!r}")
    if layout == "NHWC":
        x, offset, mask = (None if a is None else np.moveaxis(a, -1, 1) for a in (x, offset, mask))
        w = w.transpose(3, 2, 0, 1) if w.ndim == 4 else w
    computed, result = common_dtype(x=x, offset=offset, w=w, **({} if mask is None else {"mask": mask}), **more)
    made = _deformable(x.shape, w.shape, offset.shape, None if mask is None else mask.shape, computed.name, options,
                       frozen(offset_groups, "offset_groups"))
    return _Operands(made, np.moveaxis(x, 1, -1).astype(computed, copy=False), as_operand(offset, computed, offset.shape),
                     as_operand(w if made.planes else w.transpose(2, 3, 1, 0), computed, made.weight_shape),
                     None if mask is None else as_operand(mask, computed, mask.shape), result, single)


def _moves(operands: _Operands, images: slice) -> np.ndarray:
    """The offsets and the mask of some images in one array."""
    if operands.mask is None:
        return operands.offset[images].reshape(-1)
    return np.concatenate([operands.offset[images].reshape(-1), operands.mask[images].reshape(-1)])


def _padded(x: np.ndarray) -> np.ndarray:
    """Pixels in a border of one, with two rows of zeros behind it where samples outside lie; flat."""
    batch, height, width, channels = x.shape
    padded = np.zeros((batch, height + 4, width + 2, channels), x.dtype)
    padded[:, 1:height + 1, 1:width + 1] = x
    return padded.reshape(-1)


def _table(operands: _Operands, images: slice) -> np.ndarray:
    """Where the samples of some images lie."""
    kernels, moves = operands.made.kernels(images.stop - images.start), _moves(operands, images)
    table = empty((kernels.table_size,), moves.dtype)
    kernels.tabulate(kernels.places, kernels.places, moves, table)
    return table


def _samples(made: _Deformable, padded: np.ndarray, table: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The samples of some images, written to as many of `columns`."""
    made.kernels(len(columns)).sample(padded, padded, table, columns.reshape(-1))
    return columns


def deform_conv2d(x: Any, offset: Any, w: Any, bias: Any = None, *, stride: Any = 1, padding: Any = 0, dilation: Any = 1, mask: Any = None,
                  groups: int | None = None, offset_groups: int | None = None, layout: str = "NCHW") -> np.ndarray:
    """Convolve where each tap is moved by an offset of its own, and scaled by a mask (deformable convolution v1, v2).

    y[n, o, p] = b[o] + sum over c, k of  w[o, c, k] mask[n, k, p] x[n, c, stride p + dilation k - low + offset[n, k, p]]

    with x interpolated bilinearly, and zero outside.

    Parameters
    ----------
    x : array_like, shape (N, C, H, W) or (C, H, W); (N, H, W, C) for layout "NHWC"
        Input, of floating-point numbers; float16 computes in float32.
    offset : array_like, shape (N, 2 og kh kw, Ho, Wo)
        For each offset group and tap, y before x, in points of the input; the channels last for layout "NHWC".
    w : array_like, shape (O, C/G, kh, kw), or (kh, kw, C/G, O) for layout "NHWC"
        Weights.
    bias : array_like, shape (O,), optional
        Added to each output channel.
    stride, padding, dilation
        As in `conv2d`.
    mask : array_like, shape (N, og kh kw, Ho, Wo), optional
        Factor of each sample.
    groups, offset_groups : int, optional
        Groups of channels that share weights' outputs, and offsets; the shapes of w and offset say both.
    layout : {"NCHW", "NHWC"}
        Channels first or last; x and the result of the former are copied from and to the latter.

    Returns
    -------
    ndarray, shape (N, O, Ho, Wo), or (N, Ho, Wo, O) for layout "NHWC"

    Raises
    ------
    ValueError, TypeError
        For wrong arguments.

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> x, w = np.arange(16.0).reshape(1, 1, 4, 4), np.ones((1, 1, 1, 1))
    >>> offset = np.zeros((1, 2, 4, 4))
    >>> offset[:, 1] = 0.5
    >>> fc.deform_conv2d(x, offset, w)[0, 0, 0]
    array([0.5, 1.5, 2.5, 1.5])

    References
    ----------
    Dai et al., "Deformable convolutional networks" (2017), equations 2 to 4; Zhu et al., "Deformable ConvNets v2" (2019),
    equation 1, for the mask. The arguments are torchvision's.
    """
    operands = _operands(x, offset, w, mask, stride, padding, dilation, groups, offset_groups, layout)
    made, p = operands.made, operands.made.problem
    added = None if bias is None else as_bias(bias, p.out_channels, operands.x.dtype)
    y = np.empty(made.matrix(p.batch, p.out_channels), operands.x.dtype)
    if operands.x.size == 0 or operands.w.size == 0:
        y[...] = 0 if added is None else added.reshape(-1, 1, 1) if made.planes else added
    else:
        columns = empty(made.columns_shape(made.images), y.dtype)
        for images in made.chunks():
            samples = _samples(made, _padded(operands.x[images]), _table(operands, images), columns[:images.stop - images.start])
            conv2d(samples, operands.w, added, out=y[images], **made.options)
    y = y.reshape(p.batch, p.out_channels, *p.output_size[1:]) if made.planes else y.reshape(p.batch, *p.output_size[1:], p.out_channels)
    if made.planes != (layout == "NCHW"):
        y = np.ascontiguousarray(np.moveaxis(y, *((1, -1) if made.planes else (-1, 1))))
    return (y[0] if operands.single else y).astype(operands.result, copy=False)


def deform_conv2d_backward(gy: Any, x: Any, offset: Any, w: Any, *, bias: bool = True, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
                           mask: Any = None, groups: int | None = None, offset_groups: int | None = None, layout: str = "NCHW",
                           ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
    """All gradients of `deform_conv2d`, given that of its output.

    Parameters
    ----------
    gy : array_like, shape (N, O, Ho, Wo), or (N, Ho, Wo, O) for layout "NHWC"
        Gradient of the output.
    x, offset, w, mask : array_like
        The operands of the forward call.
    bias : bool
        Whether to compute the bias's gradient.
    stride, padding, dilation, groups, offset_groups, layout
        Those of the forward call.

    Returns
    -------
    gx, goffset, gw, gb, gmask : ndarray, or None for gb without bias and gmask without mask
        Where a sample lies on a point of the input, goffset is the slope towards the next point, as in torchvision.

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> x, offset, w = np.ones((1, 2, 4, 4)), np.zeros((1, 18, 2, 2)), np.ones((3, 2, 3, 3))
    >>> gx, goffset, gw, gb, gmask = fc.deform_conv2d_backward(np.ones((1, 3, 2, 2)), x, offset, w)
    >>> gx.shape, goffset.shape, gw.shape, gb, gmask
    ((1, 2, 4, 4), (1, 18, 2, 2), (3, 2, 3, 3), array([4., 4., 4.]), None)
    """
    gy = as_array("gy", gy)
    operands = _operands(x, offset, w, mask, stride, padding, dilation, groups, offset_groups, layout, gy=gy)
    made, x, weights = operands.made, operands.x, operands.w
    p = made.problem
    gy = gy[np.newaxis] if operands.single else gy
    gy = np.moveaxis(gy, -1, 1) if layout == "NHWC" and gy.ndim == 4 else gy
    check_shape("gy", gy.shape, p.public_shape(p.output_shape))
    gy = np.ascontiguousarray(gy if made.planes else np.moveaxis(gy, 1, -1), x.dtype)
    gx, goffset, gw = np.zeros(x.shape, x.dtype), np.zeros_like(operands.offset), np.zeros_like(weights)
    gmask = None if operands.mask is None else np.zeros_like(operands.mask)
    if gy.size and x.size:
        columns, spread = (empty(made.columns_shape(made.images), x.dtype) for _ in range(2))
        for images in made.chunks():
            count = images.stop - images.start
            _backward_images(operands, gy, images, (columns[:count], spread[:count]), gx, goffset, gw, gmask)
    gw = gw.reshape(p.weight_shape[:2] + p.kernel_size[1:]) if made.planes else gw.reshape(
        *p.kernel_size[1:], p.group_in, p.out_channels).transpose(3, 2, 0, 1)
    gb = bias_gradient(gy, 2, made.layout, x.dtype) if bias else None
    if layout == "NCHW":
        gx = np.moveaxis(gx, -1, 1)
    else:
        goffset, gmask, gw = np.moveaxis(goffset, 1, -1), None if gmask is None else np.moveaxis(gmask, 1, -1), gw.transpose(2, 3, 1, 0)

    def as_given(gradient: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(gradient[0] if operands.single else gradient, operands.result)

    return (as_given(gx), as_given(goffset), np.ascontiguousarray(gw, operands.result),
            None if gb is None else gb.astype(operands.result, copy=False), None if gmask is None else as_given(gmask))


def _backward_images(operands: _Operands, gy: np.ndarray, images: slice, columns: tuple[np.ndarray, np.ndarray], gx: np.ndarray,
                     goffset: np.ndarray, gw: np.ndarray, gmask: np.ndarray | None) -> None:
    """The gradients of some images; that of the weights is added to. `columns` take the samples and their gradient."""
    made, weights = operands.made, operands.w
    p, kernels = made.problem, made.kernels(images.stop - images.start)
    padded, table = _padded(operands.x[images]), _table(operands, images)
    samples, gy = _samples(made, padded, table, columns[0]), gy[images].reshape(made.matrix(len(columns[0]), p.out_channels))
    gw += conv2d_grad_weight(gy, samples, weights.shape, **made.options)
    spread = conv2d_grad_input(gy, weights, samples.shape, out=columns[1], **made.options).reshape(-1)
    height, width = p.input_size[1:]
    count = goffset[images].size
    gpadded, gmoves = np.zeros_like(padded), np.empty(count + (0 if gmask is None else gmask[images].size), padded.dtype)
    kernels.spread(spread, spread, table, gpadded)
    kernels.slopes(spread, padded, table, gmoves)
    gx[images] = gpadded.reshape(-1, height + 4, width + 2, p.in_channels)[:, 1:height + 1, 1:width + 1]
    goffset[images] = gmoves[:count].reshape(goffset[images].shape)
    if gmask is not None:
        gmask[images] = gmoves[count:].reshape(gmask[images].shape)
