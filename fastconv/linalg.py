"""Convolution as a linear operator: its matrices, its adjoint, and circular convolution.

A convolution is linear in its input, so there is a matrix T with `conv(x).ravel() == T @ x.ravel()`. With zero borders T is
(block) Toeplitz, with circular borders and stride 1 it is (block) circulant and the discrete Fourier transform makes it
diagonal. Source: Gray, "Toeplitz and Circulant Matrices: A Review" (2006), chapters 3 and 4.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.fft
from scipy import sparse
from scipy.sparse.linalg import LinearOperator

from ._arrays import as_array
from ._calls import make_options, shape_of
from ._receptive_field import ReceptiveField, receptive_field
from .conv import (
    conv1d,
    conv1d_grad_input,
    conv2d,
    conv2d_grad_input,
    conv3d,
    conv3d_grad_input,
    plan_conv1d,
    plan_conv2d,
    plan_conv3d,
)
from .problem import Problem

__all__ = ["ReceptiveField", "aslinearoperator", "circulant", "circular_convolve", "receptive_field", "shift_matrix", "toeplitz_matrix"]

CONVOLUTIONS: dict[int, Callable[..., np.ndarray]] = {1: conv1d, 2: conv2d, 3: conv3d}
ADJOINTS: dict[int, Callable[..., np.ndarray]] = {1: conv1d_grad_input, 2: conv2d_grad_input, 3: conv3d_grad_input}
PLANS: dict[int, Callable[..., Any]] = {1: plan_conv1d, 2: plan_conv2d, 3: plan_conv3d}

_SHAPES_DOC = """w : array_like
        A kernel (k,) or (kh, kw) of a single channel, or weights (O, C/G, k...) of `conv1d`, `conv2d` or `conv3d`.
    input_shape : sequence of int
        Shape of x: (n,) or (h, w) for a kernel; (C, n...) or (N, C, n...) for weights.
    **options
        stride, padding, dilation, groups, padding_mode, layout as in `conv2d`."""


def _documented(function: Callable) -> Callable:
    function.__doc__ = (function.__doc__ or "").replace("{shapes}", _SHAPES_DOC)
    return function


# -- matrices -------------------------------------------------------------------------------------------------------------


class _Map(NamedTuple):
    """A convolution as a map between flattened arrays."""

    ndim: int
    weights: np.ndarray
    problem: Problem
    options: dict[str, Any]
    input_shape: tuple[int, ...]  # with the axes of images and channels
    output_shape: tuple[int, ...]


def _map_of(w: Any, input_shape: Sequence[int], options: dict[str, Any]) -> _Map:
    """Check the arguments; kernels of one or two axes get their channel axes."""
    w = as_array("w", w)
    shape = shape_of("input_shape", input_shape)
    if not 1 <= w.ndim <= 5:
        raise ValueError(f"w must be a kernel of 1 or 2 axes, or weights of 3 to 5, got shape {w.shape}")
    single = w.ndim <= 2
    ndim = w.ndim if single else w.ndim - 2
    expected = (ndim,) if single else (ndim + 1, ndim + 2)
    if len(shape) not in expected:
        raise ValueError(f"input_shape must have {' or '.join(map(str, expected))} axes for w of shape {w.shape}, got {shape}")
    if options.get("activation") is not None:
        raise ValueError(f"an activation is not linear: activation must be None, got {options['activation']!r}")
    if single:
        if options.get("layout", "NCHW") != "NCHW":
            raise ValueError(f"layout is for weights with channels, w has shape {w.shape}")
        w = w.reshape(1, 1, *w.shape)
    batched = (1, 1, *shape) if single else (1, *shape) if len(shape) == ndim + 1 else shape
    settings = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **options}
    problem = Problem.create("forward", ndim, batched, w.shape, w.dtype.name, make_options(**settings))
    size, channels = problem.output_size[-ndim:], problem.out_channels
    result = (*size, channels) if problem.channels_last else (channels, *size)
    return _Map(ndim, w, problem, options, batched, (problem.batch, *result))


def _axis_matrix(inputs: int, outputs: int, tap: int, stride: int, dilation: int, sources: np.ndarray) -> sparse.csr_array:
    """The 0-1 matrix of one tap along one axis: output i reads what stands at padded position stride * i + dilation * tap."""
    read = sources[np.arange(outputs) * stride + tap * dilation]
    rows = np.flatnonzero(read >= 0)
    return sparse.csr_array((np.ones(rows.size), (rows, read[rows])), shape=(outputs, inputs))


@_documented
def toeplitz_matrix(w: Any, input_shape: Sequence[int], **options: Any) -> sparse.csr_array:
    """Build the sparse matrix T of a convolution: ``conv(x, w).ravel() == T @ x.ravel()``.

    T[(o, p), (c, i)] = sum over taps k of  w[o, c, k]  where output p reads input i by tap k

    Every tap is a Kronecker product of 0-1 matrices, one an axis.

    Parameters
    ----------
    {shapes}

    Returns
    -------
    scipy.sparse.csr_array, shape (size of the output, size of the input)

    Raises
    ------
    ValueError, TypeError
        For wrong arguments.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv.linalg import toeplitz_matrix
    >>> toeplitz_matrix(np.array([1.0, 2.0, 3.0]), (4,), padding=1).toarray()
    array([[2., 3., 0., 0.],
           [1., 2., 3., 0.],
           [0., 1., 2., 3.],
           [0., 0., 1., 2.]])
    """
    mapped = _map_of(w, input_shape, options)
    p = mapped.problem
    axes = [[_axis_matrix(n, m, k, s, d, source) for k in range(taps)] for n, m, taps, s, d, source in zip(
        p.input_size, p.output_size, p.kernel_size, p.stride, p.dilation, p.border_sources(), strict=True)]
    weights = mapped.weights if not p.channels_last else np.moveaxis(mapped.weights, (-1, -2), (0, 1))
    weights = weights.reshape(p.groups, p.group_out, p.group_in, *p.kernel_size)
    images = sparse.eye_array(p.batch)
    total = sparse.csr_array((math.prod(p.output_shape), math.prod(p.input_shape)), dtype=weights.dtype)
    for d, h, r in itertools.product(*map(range, p.kernel_size)):
        points = functools.reduce(sparse.kron, (axes[0][d], axes[1][h], axes[2][r]))
        channels = sparse.block_diag(list(weights[..., d, h, r]))
        parts = (points, channels) if p.channels_last else (channels, points)
        total = total + sparse.kron(images, sparse.kron(*parts))
    return sparse.csr_array(total.astype(weights.dtype))


def shift_matrix(n: int, shift: int = 1) -> sparse.csr_array:
    """Build the matrix that rolls a vector of `n` elements: ``shift_matrix(n, s) @ x == np.roll(x, s)``.

    Parameters
    ----------
    n : int
        Elements of the vector.
    shift : int
        Positions that each element moves towards the end, around it.

    Returns
    -------
    scipy.sparse.csr_array, shape (n, n)

    Raises
    ------
    ValueError
        If `n` is negative.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv.linalg import shift_matrix
    >>> shift_matrix(4) @ np.array([1, 2, 3, 4])
    array([4, 1, 2, 3])
    """
    if n < 0:
        raise ValueError(f"n must not be negative, got {n}")
    rows = np.arange(n)
    return sparse.csr_array((np.ones(n, np.int64), (rows, (rows - shift) % max(n, 1))), shape=(n, n))


def circulant(w: Any, shape: int | Sequence[int] | None = None) -> sparse.csr_array:
    """Build the matrix C of a circular convolution: ``circular_convolve(x, w).ravel() == C @ x.ravel()``.

    C = sum over k of  w[k] S^k  with the shift matrix S, and Kronecker products of shifts for more axes

    Parameters
    ----------
    w : array_like, one to three axes
        The kernel; it may be longer than x, around which it is then wound.
    shape : int or sequence of int, optional
        Shape of x, by default that of `w`.

    Returns
    -------
    scipy.sparse.csr_array

    Raises
    ------
    ValueError, TypeError
        For wrong arguments.

    Examples
    --------
    >>> from fastconv.linalg import circulant
    >>> circulant([1, 2, 0, 0]).toarray()
    array([[1, 0, 0, 2],
           [2, 1, 0, 0],
           [0, 2, 1, 0],
           [0, 0, 2, 1]])
    """
    w = as_array("w", w)
    sizes = w.shape if shape is None else shape_of("shape", [shape] if isinstance(shape, int) else shape)
    w = _wound(w, sizes)
    total = sparse.csr_array((math.prod(sizes), math.prod(sizes)), dtype=w.dtype)
    for place in np.argwhere(w):
        shifts = [shift_matrix(n, int(k)) for n, k in zip(sizes, place, strict=True)]
        total = total + functools.reduce(sparse.kron, shifts) * w[tuple(place)]
    return sparse.csr_array(total)


# -- circular convolution -------------------------------------------------------------------------------------------------


def _wound(w: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """The kernel as an array of the input's shape, what is beyond added at the beginning."""
    if w.ndim != len(sizes):
        raise ValueError(f"w must have as many axes as x, got shapes {w.shape} and {tuple(sizes)}")
    for axis, n in enumerate(sizes):
        if n < 1:
            raise ValueError(f"x must not be empty, got shape {tuple(sizes)}")
        turns = -(-w.shape[axis] // n)
        padded = np.pad(w, [(0, turns * n - w.shape[axis] if a == axis else 0) for a in range(w.ndim)])
        w = padded.reshape(*w.shape[:axis], turns, n, *w.shape[axis + 1:]).sum(axis, dtype=w.dtype)
    return w


def circular_convolve(x: Any, w: Any, method: str = "auto") -> np.ndarray:
    """Convolve around the ends: y[i] = sum over k of  w[k] x[(i - k) mod n], on every axis.

    Parameters
    ----------
    x : array_like, one to three axes
        The signal.
    w : array_like, as many axes
        The kernel (flipped, as in signal processing), of any length.
    method : {"auto", "direct", "fft"}
        By this package's convolution, or by the convolution theorem, F(y) = F(w) F(x); "auto" takes the convolution, which
        chooses its own algorithm.

    Returns
    -------
    ndarray, of x's shape

    Raises
    ------
    ValueError, TypeError
        For wrong arguments.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv.linalg import circular_convolve
    >>> circular_convolve(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 1.0]))
    array([5., 3., 5., 7.])
    """
    if method not in ("auto", "direct", "fft"):
        raise ValueError(f"method must be 'auto', 'direct' or 'fft', got {method!r}")
    x, w = as_array("x", x), as_array("w", w)
    if not 1 <= x.ndim <= 3:
        raise ValueError(f"x must have one to three axes, got shape {x.shape}")
    longer = any(k > n for k, n in zip(w.shape, x.shape, strict=False))
    if longer or w.ndim != x.ndim or 0 in x.shape:
        w = _wound(w, x.shape)
    if method == "fft":
        return _by_theorem(x, w)
    padding = [(k - 1, 0) for k in w.shape]
    y = CONVOLUTIONS[x.ndim](x[None], np.flip(w)[None, None], padding=padding, padding_mode="circular",
                             backend="direct" if method == "direct" else None)
    return y[0]


def _by_theorem(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The convolution theorem, as it stands."""
    if np.iscomplexobj(x) or np.iscomplexobj(w):
        return np.asarray(scipy.fft.ifftn(scipy.fft.fftn(x) * scipy.fft.fftn(w, x.shape)))
    product = scipy.fft.rfftn(x) * scipy.fft.rfftn(w, x.shape)
    y = np.asarray(scipy.fft.irfftn(product, x.shape))
    dtype = np.result_type(x, w)
    return np.rint(y).astype(dtype) if dtype.kind in "iu" else y


# -- operators ------------------------------------------------------------------------------------------------------------


class _ConvolutionOperator(LinearOperator):
    """`matvec` convolves, `rmatvec` is the exact adjoint; several vectors are a batch."""

    def __init__(self, mapped: _Map):
        self._map = mapped
        dtype = np.result_type(mapped.weights.dtype, np.float32)
        self._weights = mapped.weights.astype(dtype)
        self._plan = PLANS[mapped.ndim](self._weights, **mapped.options)
        p = mapped.problem
        super().__init__(dtype, (math.prod(p.output_shape), math.prod(p.input_shape)))

    def _batch(self, columns: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The columns as images of a batch."""
        rows = np.ascontiguousarray(columns.T, np.result_type(columns.dtype, self.dtype))
        return rows.reshape(-1, *shape[1:])

    def _matmat(self, columns: np.ndarray) -> np.ndarray:
        y = self._plan(self._batch(columns, self._map.input_shape))
        return y.reshape(columns.shape[1], -1).T

    def _rmatmat(self, columns: np.ndarray) -> np.ndarray:
        gy = self._batch(columns, self._map.output_shape)
        shape = (gy.shape[0], *self._map.input_shape[1:])
        return ADJOINTS[self._map.ndim](gy, self._weights, shape, **self._map.options).reshape(columns.shape[1], -1).T

    def _matvec(self, vector: np.ndarray) -> np.ndarray:
        return self._matmat(vector.reshape(-1, 1)).reshape(-1)

    def _rmatvec(self, vector: np.ndarray) -> np.ndarray:
        return self._rmatmat(vector.reshape(-1, 1)).reshape(-1)


@_documented
def aslinearoperator(w: Any, input_shape: Sequence[int], **options: Any) -> LinearOperator:
    """Make a convolution a `scipy.sparse.linalg.LinearOperator`, for solvers that need only products.

    ``A.matvec(x.ravel())`` convolves, ``A.rmatvec`` is the gradient with respect to the input, which is the exact adjoint:
    <A x, y> = <x, A* y>.

    Parameters
    ----------
    {shapes}

    Returns
    -------
    scipy.sparse.linalg.LinearOperator, shape (size of the output, size of the input)

    Raises
    ------
    ValueError, TypeError
        For wrong arguments.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.sparse.linalg import lsqr
    >>> from fastconv.linalg import aslinearoperator
    >>> x = np.random.default_rng(0).random((16, 16))
    >>> blur = aslinearoperator(np.array([[0.0, 0.1, 0.0], [0.1, 0.6, 0.1], [0.0, 0.1, 0.0]]), x.shape, padding="same")
    >>> sharp = lsqr(blur, blur @ x.ravel(), atol=1e-12, btol=1e-12)[0]
    >>> bool(np.allclose(sharp, x.ravel(), atol=1e-6))
    True
    """
    return _ConvolutionOperator(_map_of(w, input_shape, options))
