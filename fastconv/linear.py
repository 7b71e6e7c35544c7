"""Fully connected layers, on the fastest of three matrix products: the package's own for few rows, NumPy's BLAS, and convolutions.

Measured (benchmarks/bench_operations.py, 2 cores, AVX-512, OpenBLAS): up to 128 rows the products of
`backends/_products.py` are faster than BLAS (1024 -> 1000, the gradients of one row .13 ms against .52; 64 rows forward .57
against .72, the gradients 1.1 against 1.3), save where there are few outputs; from there to 512 rows BLAS is up to a tenth
faster; at 2048 rows 1024 -> 4096 it took 60 ms on one machine, the convolution 78, on another 77 and 53.
A network's layers, `nn.Linear`, do not come here: OpenBLAS's threads wait busily beside the convolutions'.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import numpy as np

from ._arrays import as_array, as_bias, as_operand, common_dtype, is_plain
from ._calls import check_shape
from ._checks import check_activation
from .backends._rectifiers import RECTIFIERS
from .conv import conv2d, conv2d_grad_input, conv2d_grad_weight

__all__ = ["linear", "linear_backward"]

FEW_ROWS = 8  # up to which nothing is packed
SOME_ROWS, SOME_COLUMNS = 128, 32  # up to, and from where on, strips are packed sooner than by BLAS
# From where on the convolution is faster (bench_operations.py, Linear): rows, and elements of the weights. The
# gradient of the weights packs both factors, which pays for large ones only.
OWN_ROWS = 2048
OWN_WEIGHTS = {"forward": 1 << 18, "grad_input": 1 << 18, "grad_weight": 1 << 20}


def _is_own(pass_name: str, rows: int, w_size: int, dtype: np.dtype) -> bool:
    """Whether a product is for the package's own kernels: large ones, and integers, which BLAS has not."""
    return dtype.kind == "i" or (dtype.kind == "f" and rows >= OWN_ROWS and w_size >= OWN_WEIGHTS[pass_name])


@functools.cache
def _products() -> ModuleType:
    """The products that pack nothing; importing them imports Numba."""
    from .backends import _products

    return _products


def _has_few(rows: int, w: np.ndarray, dtype: np.dtype) -> bool:
    """Whether a product of so many rows is for those."""
    few = rows <= FEW_ROWS or (rows <= SOME_ROWS and min(w.shape) >= SOME_COLUMNS)
    return few and rows > 0 and w.size > 0 and dtype.kind == "f"


def _operands(name: str, first: Any, w: Any, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Arrays whose last axis, and whose `axis`, fit each other."""
    first, w = as_array(name, first), as_array("w", w)
    if w.ndim != 2:
        raise ValueError(f"w must have 2 dimensions, (out, in), got shape {w.shape}")
    if first.ndim < 1 or first.shape[-1] != w.shape[axis]:
        raise ValueError(f"{name} must have shape (..., {w.shape[axis]}) for w of shape {w.shape}, got {first.shape}")
    return first, w


def _is_small(x: Any, w: Any, bias: Any) -> bool:
    """Whether matrices of one dtype fit each other, and BLAS is for them."""
    if not (is_plain(x) and is_plain(w) and x.dtype is w.dtype and x.ndim == 2 == w.ndim and x.shape[1] == w.shape[1]):
        return False
    if bias is not None and not (is_plain(bias) and bias.dtype is w.dtype and bias.shape == w.shape[:1]):
        return False
    return x.shape[0] < OWN_ROWS


def _pixels(matrix: np.ndarray) -> np.ndarray:
    """Rows as images of one pixel."""
    return matrix.reshape(*matrix.shape, 1, 1)


def _activate(y: np.ndarray, activation: str) -> None:
    """Apply an activation to a contiguous array of floats, in place."""
    if activation not in RECTIFIERS:
        from .backends._activation import apply

        apply(activation, y)
        return
    slope, ceiling = RECTIFIERS[activation]
    np.maximum(y, y * y.dtype.type(slope) if slope else 0, out=y)
    if ceiling != np.inf:
        np.minimum(y, y.dtype.type(ceiling), out=y)


def linear(x: Any, w: Any, bias: Any = None, activation: str | None = None) -> np.ndarray:
    """Multiply by a matrix of weights and add a bias: y = x w^T + b.

    Parameters
    ----------
    x : array_like, shape (..., in)
        Input; NumPy's number types. float16 computes in float32, integers as in `conv2d`.
    w : array_like, shape (out, in)
        Weights, as in PyTorch.
    bias : array_like, shape (out,), optional
        Added to each row of the result.
    activation : {"relu", "relu6", "leaky_relu", "sigmoid", "tanh", "silu", "gelu"}, optional
        Applied to the result.

    Returns
    -------
    ndarray, shape (..., out)

    Raises
    ------
    ValueError, TypeError
        For wrong arguments.

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> fc.linear([[1.0, 2.0]], [[1.0, 1.0], [0.0, -1.0]], [10.0, 0.0], activation="relu")
    array([[13.,  0.]])
    """
    if activation is None and _is_small(x, w, bias):  # half of a small layer's time is its checks
        if _has_few(len(x), w, w.dtype):
            return _products().layer_product(x, w, bias)
        y = np.dot(x, w.T)
        if bias is not None:
            y += bias
        return y
    x, w = _operands("x", x, w, 1)
    computed, result = common_dtype(x=x, w=w)
    activation = check_activation(activation, computed.name)
    outputs, inputs = w.shape
    added = None if bias is None else as_bias(bias, outputs, computed)
    shape = (*x.shape[:-1], outputs)
    rows = x.reshape(-1, inputs) if inputs else x.reshape(int(np.prod(x.shape[:-1])), 0)
    if _is_own("forward", len(rows), w.size, computed) and outputs and inputs and len(rows):
        y = conv2d(_pixels(rows), _pixels(w), added, activation=activation)
        return y.reshape(shape).astype(result, copy=False)
    if _has_few(len(rows), w, computed):
        y = _products().layer_product(as_operand(rows, computed, rows.shape), as_operand(w, computed, w.shape), added)
    else:
        y = np.matmul(rows.astype(computed, copy=False), w.astype(computed, copy=False).T)
        if added is not None:
            y += added
    if activation is not None:
        _activate(y, activation)
    return y.reshape(shape).astype(result, copy=False)


def linear_backward(gy: Any, x: Any, w: Any, *, bias: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """All gradients of `linear`, given that of its output: gx = gy w, gw = gy^T x, gb the sum of gy's rows.

    Parameters
    ----------
    gy : array_like, shape (..., out)
        Gradient of the output (before the activation, if there was one).
    x, w : array_like
        The operands of the forward call; conjugated if complex.
    bias : bool
        Whether to compute the bias's gradient.

    Returns
    -------
    gx, gw, gb : ndarray, ndarray, ndarray or None

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> gx, gw, gb = fc.linear_backward(np.ones((2, 3)), np.ones((2, 4)), np.ones((3, 4)))
    >>> gx.shape, gw.shape, gb
    ((2, 4), (3, 4), array([2., 2., 2.]))
    """
    x, w = _operands("x", x, w, 1)
    gy = as_array("gy", gy)
    outputs, inputs = w.shape
    check_shape("gy", gy.shape, (*x.shape[:-1], outputs))
    computed, result = common_dtype(gy=gy, x=x, w=w)
    count = gy.size // outputs if outputs else int(np.prod(x.shape[:-1]))
    g, rows = as_operand(gy, computed, (count, outputs)), as_operand(x, computed, (count, inputs))
    weights = w.astype(computed, copy=False)
    if computed.kind == "c":
        rows, weights = rows.conj(), weights.conj()
    gx, gw = _gradients(g, rows, weights)
    gb = g.sum(axis=0, dtype=computed).astype(result, copy=False) if bias else None
    return gx.reshape(x.shape).astype(result, copy=False), gw.astype(result, copy=False), gb


def _gradients(gy: np.ndarray, x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(gy w, gy^T x) of matrices of one dtype, the first two contiguous."""
    count, whole = len(gy), bool(gy.size and x.size)
    if _has_few(count, w, gy.dtype):
        return _products().product(gy, as_operand(w, w.dtype, w.shape)), _products().transposed_product(gy, x)
    if whole and _is_own("grad_input", count, w.size, gy.dtype):
        gx = conv2d_grad_input(_pixels(gy), _pixels(w), (*x.shape, 1, 1))
    else:
        gx = np.matmul(gy, w)
    if whole and _is_own("grad_weight", count, w.size, gy.dtype):
        gw = conv2d_grad_weight(_pixels(gy), _pixels(x), (*w.shape, 1, 1))
    else:
        gw = np.matmul(gy.T, x)
    return gx.reshape(x.shape), gw.reshape(w.shape)
