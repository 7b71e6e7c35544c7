"""Windows of an image as the columns of a matrix, and the sum of such columns back into an image."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ._arrays import as_array, as_operand, check_integer_range, is_plain
from ._calls import batched, check_shape, frozen, shape_of
from ._checks import check_axes, check_layout, join_shape
from .problem import Options, Problem, computing_dtype

__all__ = ["fold", "fold_backward", "unfold", "unfold_backward"]

MOVED_AS = {4: "float32", 8: "float64"}  # what is only moved is moved as a number of its size
READY = {"f": "float32", "d": "float64"}  # what needs no conversion
ONE = np.ones(1, bool)


# -- shapes ---------------------------------------------------------------------------------------------------------------


class _Sliding:
    """A forward problem of which only the input and the windows matter, the shape of the unfolded image, and its kernels."""

    def __init__(self, problem: Problem, columns_shape: tuple[int, ...]):
        self.problem = problem
        self.columns_shape = columns_shape

    @functools.cached_property
    def unfolding(self) -> Callable[..., int]:
        """The kernel that unfolds."""
        from .backends._unfolding import unfolding

        return unfolding(self.problem)

    @functools.cached_property
    def folding(self) -> Callable[..., int]:
        """The kernel that folds."""
        from .backends._folding import folding

        return folding(self.problem)


def _kernel_and_rank(kernel_size: Any, rank: int = 2) -> tuple[tuple[int, ...], int]:
    """The kernel's size, and the number of axes that it says; a single integer is for `rank` of them."""
    if isinstance(kernel_size, (tuple, list)):
        rank = len(kernel_size)
        if rank not in (1, 2, 3):
            raise ValueError(f"kernel_size must be an integer or a sequence of 1 to 3, got {kernel_size!r}")
    return check_axes("kernel_size", kernel_size, rank, 1), rank


@functools.lru_cache(maxsize=1024, typed=True)
def _sliding(shape: tuple[int, ...], kernel_size: Any, dilation: Any, padding: Any, stride: Any, layout: Any, dtype: str,
             rank: int) -> _Sliding:
    """The windows over a batched image of `shape`."""
    kernel, _ = _kernel_and_rank(kernel_size, rank)
    channels_last = check_layout(layout, rank) == "NHWC"
    channels = shape[-1] if channels_last else shape[1]
    weights = (*kernel, channels, 1) if channels_last else (1, channels, *kernel)
    problem = Problem.create("forward", rank, shape, weights, dtype, Options(stride, padding, dilation, layout=layout))
    rows, points = channels * math.prod(kernel), math.prod(problem.output_size)
    return _Sliding(problem, (shape[0], points, rows) if channels_last else (shape[0], rows, points))


def _options(kernel_size: Any, dilation: Any, padding: Any, stride: Any) -> tuple[Any, Any, Any, Any]:
    return frozen(kernel_size, "kernel_size"), frozen(dilation, "dilation"), frozen(padding, "padding"), frozen(stride, "stride")


def _rank(kernel_size: Any, output_size: Any = None) -> int:
    """The number of spatial axes: the length of the kernel's size, else of the output's, else 2."""
    if output_size is not None and not isinstance(output_size, int):
        return len(output_size)
    return _kernel_and_rank(kernel_size)[1]


# -- unfolding ------------------------------------------------------------------------------------------------------------


def unfold(x: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1, layout: str = "NCHW") -> np.ndarray:
    """Write the windows of an image side by side: y[n, (c, k), l] = x[n, c, stride p(l) + dilation k - low].

    A convolution is then a product with the matrix of its weights (im2col). Which of 1-D, 2-D and 3-D is meant the length
    of `kernel_size` says; a single integer is for 2-D, as in PyTorch.

    Parameters
    ----------
    x : array_like, shape (N, C, H, W) or (C, H, W)
        Input, of any number type; the result has the same.
    kernel_size : int or sequence of 1 to 3 ints
        Taps on each axis.
    dilation, padding, stride : int, sequence or name
        As in `conv2d`; padding also as (low, high) pairs. Beyond the border there are zeros.
    layout : {"NCHW", "NHWC"}
        Channels first or last.

    Returns
    -------
    ndarray, shape (N, C kh kw, L), or (N, L, kh kw C) for layout "NHWC"
        L is the number of windows, Ho Wo in C order. Without N if x has none.

    Raises
    ------
    ValueError, TypeError
        For wrong arguments, and windows larger than the padded input.

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> x, w = np.arange(32.0).reshape(1, 2, 4, 4), np.ones((3, 2, 3, 3))
    >>> columns = fc.unfold(x, 3)
    >>> columns.shape
    (1, 18, 4)
    >>> np.array_equal((w.reshape(3, 18) @ columns).reshape(1, 3, 2, 2), fc.conv2d(x, w))
    True

    References
    ----------
    Chellapilla, Puri, Simard, "High performance convolutional neural networks for document processing" (2006), section 3.
    """
    options = _options(kernel_size, dilation, padding, stride)
    rank = _rank(options[0])
    x, single = batched("x", as_array("x", x), rank)
    columns = _unfold(x, options, layout, rank)
    return columns[0] if single else columns


def _unfold(x: np.ndarray, options: tuple[Any, ...], layout: Any, rank: int) -> np.ndarray:
    if is_plain(x):
        made = _sliding(x.shape, *options, layout, READY[x.dtype.char], rank)
        columns = np.empty(made.columns_shape, x.dtype)
        if columns.size:
            made.unfolding(source := x.reshape(-1), source, source, columns.reshape(-1))
        return columns
    computing_dtype(x.dtype)
    if x.dtype == np.complex128:
        parts = _unfold(x.real, options, layout, rank), _unfold(x.imag, options, layout, rank)
        return parts[0] + 1j * parts[1]
    moved = MOVED_AS.get(x.dtype.itemsize)
    made = _sliding(x.shape, *options, layout, moved or "float32", rank)
    native = x.dtype.newbyteorder("=")
    operand = as_operand(x, native if moved else np.dtype(np.float32), x.shape).view(moved or "float32")
    columns = np.empty(made.columns_shape, operand.dtype)
    if columns.size:
        source, target = operand.reshape(-1), columns.reshape(-1)
        made.unfolding(source, source, source, target)
    return columns.view(native) if moved else columns.astype(native)


def unfold_backward(gy: Any, input_shape: Sequence[int], kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1,
                    layout: str = "NCHW") -> np.ndarray:
    """Gradient of `unfold` with respect to its input: each element of gy added to the point it was copied from.

    Parameters
    ----------
    gy : array_like, shape (N, C kh kw, L), or (N, L, kh kw C) for layout "NHWC"
        Gradient of the output.
    input_shape : sequence of int
        Shape of x.
    kernel_size, dilation, padding, stride, layout
        Those of the forward call.

    Returns
    -------
    ndarray of shape `input_shape`

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> fc.unfold_backward(np.ones((1, 4, 4)), (1, 1, 3, 3), 2)[0, 0]
    array([[1., 2., 1.],
           [2., 4., 2.],
           [1., 2., 1.]])
    """
    options = _options(kernel_size, dilation, padding, stride)
    rank = _rank(options[0])
    shape = shape_of("input_shape", input_shape)
    if len(shape) not in (rank + 1, rank + 2):
        raise ValueError(f"input_shape must have {rank + 2} items, or {rank + 1} for a single sample, got {shape}")
    gy = as_array("gy", gy)
    single = len(shape) == rank + 1
    return _fold("gy", gy[np.newaxis] if single else gy, (1, *shape) if single else shape, options, layout, rank).reshape(shape)


# -- folding --------------------------------------------------------------------------------------------------------------


def fold(x: Any, output_size: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1,
         layout: str = "NCHW") -> np.ndarray:
    """Add windows to where they lie in an image: y[n, c, stride p(l) + dilation k - low] += x[n, (c, k), l].

    The adjoint of `unfold` (col2im); not its inverse, as points that several windows share are summed.

    Parameters
    ----------
    x : array_like, shape (N, C kh kw, L) or (C kh kw, L); (N, L, kh kw C) for layout "NHWC"
        Windows. Integers give int32 (8 bits) or int64, as in a convolution.
    output_size : int or sequence of ints
        Spatial size of the image, (Ho, Wo).
    kernel_size, dilation, padding, stride, layout
        As in `unfold`.

    Returns
    -------
    ndarray, shape (N, C, Ho, Wo), or (N, Ho, Wo, C) for layout "NHWC"

    Raises
    ------
    ValueError, TypeError
        For wrong arguments; L must be the number of windows that `output_size` has.

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> x = np.arange(32.0).reshape(1, 2, 4, 4)
    >>> count = fc.fold(fc.unfold(np.ones_like(x), 3), (4, 4), 3)
    >>> np.array_equal(fc.fold(fc.unfold(x, 3), (4, 4), 3), count * x)
    True
    """
    options = _options(kernel_size, dilation, padding, stride)
    x, single = batched("x", as_array("x", x), 1)
    shape, rank = _image_shape(x.shape, frozen(output_size, "output_size"), options[0], layout)
    image = _fold("x", x, shape, options, layout, rank)
    return image[0] if single else image


@functools.lru_cache(maxsize=1024, typed=True)
def _image_shape(shape: tuple[int, ...], output_size: Any, kernel_size: Any, layout: Any) -> tuple[tuple[int, ...], int]:
    """The shape of the image that windows of a batched shape fold to, and its number of spatial axes."""
    rank = _rank(kernel_size, output_size)
    size = check_axes("output_size", output_size, rank, 1)
    check_axes("kernel_size", kernel_size, rank, 1)
    taps = math.prod(_kernel_and_rank(kernel_size, rank)[0])
    layout = check_layout(layout, rank)
    rows = shape[2] if layout == "NHWC" else shape[1]
    if rows % taps:
        raise ValueError(f"x of shape {shape} has {rows} rows of windows, which must be a multiple of the {taps} taps of "
                         f"kernel_size={kernel_size!r}")
    return join_shape(shape[0], rows // taps, size, layout), rank


def _fold(name: str, x: np.ndarray, shape: tuple[int, ...], options: tuple[Any, ...], layout: Any, rank: int) -> np.ndarray:
    """The image of a batched shape from windows."""
    if is_plain(x):
        made = _sliding(shape, *options, layout, READY[x.dtype.char], rank)
        if x.size and x.shape == made.columns_shape:
            image = np.empty(shape, x.dtype)
            if image.size:
                made.folding(source := x.reshape(-1), source, source, image.reshape(-1))
            return image
    if x.dtype.kind == "c":
        parts = (_fold(name, part, shape, options, layout, rank) for part in (x.real, x.imag))
        return (next(parts) + 1j * next(parts)).astype(x.dtype.newbyteorder("="))
    computed = np.dtype(computing_dtype(x.dtype))
    made = _sliding(shape, *options, layout, computed.name, rank)
    check_shape(name, x.shape, made.columns_shape)
    if computed.kind == "i":
        check_integer_range(computed, math.prod(made.problem.kernel_size), None, **{name: x, "weights": ONE})
    image = np.empty(shape, computed)
    if image.size:
        if x.size:
            source, target = as_operand(x, computed, (x.size,)), image.reshape(-1)
            made.folding(source, source, source, target)
        else:
            image.fill(0)
    return image if computed.kind == "i" else image.astype(x.dtype.newbyteorder("="), copy=False)


def fold_backward(gy: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1, layout: str = "NCHW") -> np.ndarray:
    """Gradient of `fold` with respect to its windows: the gradient of the image, unfolded.

    Parameters
    ----------
    gy : array_like, shape (N, C, Ho, Wo), or (N, Ho, Wo, C) for layout "NHWC"
        Gradient of the image.
    kernel_size, dilation, padding, stride, layout
        Those of the forward call.

    Returns
    -------
    ndarray, shape (N, C kh kw, L), or (N, L, kh kw C) for layout "NHWC"

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> fc.fold_backward(np.ones((1, 2, 4, 4)), 3).shape
    (1, 18, 4)
    """
    gy = as_array("gy", gy)
    options = _options(kernel_size, dilation, padding, stride)
    rank = _rank(options[0])
    gy, single = batched("gy", gy, rank)
    columns = _unfold(gy, options, layout, rank)
    return columns[0] if single else columns
