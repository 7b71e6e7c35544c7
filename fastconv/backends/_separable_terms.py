"""The terms of separable kernels: short sums of outer products, found in float64."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from ..problem import Problem

MOST_TERMS = 8
ACCURACY = 1e-6  # of a float32 kernel's norm, left out by default: a tenth of what the result may be off
ROUNDING = 4  # units of the last place of a kernel's norm that computing and rounding its elements may have cost
REMEMBERED_BYTES = 32 * 1024  # of weights whose terms plain calls find again by their bytes, in some 10 us


class Terms(NamedTuple):
    """Kernels (O, kh, kw) as sums of outer products: down (O, terms, kh) times along (O, terms, kw)."""

    down: np.ndarray
    along: np.ndarray


def terms_within(problem: Problem) -> float:
    """Share of a kernel's norm that its terms may leave out."""
    rounding = ROUNDING * float(np.finfo(problem.dtype).eps)
    return max(rounding, ACCURACY) if problem.accuracy != "strict" and problem.dtype == "float32" else rounding


def find_terms(kernels: np.ndarray, within: float) -> Terms | None:
    """The fewest terms that leave out at most `within` of each kernel's norm; None where there would be more than MOST_TERMS."""
    kernels = kernels.astype(np.float64)
    if len(kernels) > 1 and find_terms(kernels[:1], within) is None:  # most often all are alike, and one is soon tried
        return None
    norms = np.sqrt((kernels**2).sum(axis=(1, 2)))
    if not np.isfinite(norms).all():
        return None
    residual = kernels.copy()
    picked = np.arange(len(kernels))
    for count in range(1, MOST_TERMS + 1):
        # One step of elimination with the largest pivots: its count of steps is the rank, at a tenth of the cost of an SVD.
        at = np.abs(residual).reshape(len(kernels), -1).argmax(axis=1)
        i, j = at // kernels.shape[2], at % kernels.shape[2]
        pivot = residual[picked, i, j]
        column, row = residual[picked, :, j], residual[picked, i]
        residual -= column[:, :, None] * (row / np.where(pivot == 0, 1, pivot)[:, None])[:, None]
        if (np.sqrt((residual**2).sum(axis=(1, 2))) <= within * norms).all():
            return _outer_product(kernels, row) if count == 1 else _leading_terms(kernels, count)
    return None


def _outer_product(kernels: np.ndarray, row: np.ndarray) -> Terms:
    """The best single terms, by a step of the power iteration from a row of each kernel."""
    down = np.einsum("oij,oj->oi", kernels, row)
    square = (down**2).sum(axis=1, keepdims=True)
    along = np.einsum("oij,oi->oj", kernels, down) / np.where(square == 0, 1, square)
    # Both factors of a like size: neither overflows where their product does not.
    scale = np.sqrt(np.where(square == 0, 1, square) ** 0.5 / np.maximum(np.sqrt((along**2).sum(axis=1, keepdims=True)), 1e-300))
    return Terms((down / scale)[:, None], (along * scale)[:, None])


def _leading_terms(kernels: np.ndarray, count: int) -> Terms:
    left, values, right = np.linalg.svd(kernels)
    roots = np.sqrt(values[:, :count])
    return Terms((left[:, :, :count] * roots[:, None]).swapaxes(1, 2), right[:, :count] * roots[:, :, None])


@functools.lru_cache(maxsize=64)
def _remembered_terms(kernels: bytes, shape: tuple[int, ...], dtype: str, within: float) -> Terms | None:
    return find_terms(np.frombuffer(kernels, dtype).reshape(shape), within)


def terms_of(problem: Problem, w: np.ndarray) -> Terms | None:
    """The terms of a problem's weights, remembered where these are few."""
    p = problem
    shape = (p.out_channels, *p.kernel_size[1:])
    kernels = w.reshape(-1, p.out_channels).T if p.channels_last else w
    if w.nbytes <= REMEMBERED_BYTES:
        return _remembered_terms(np.ascontiguousarray(kernels).tobytes(), shape, p.dtype, terms_within(p))
    return find_terms(kernels.reshape(shape), terms_within(p))
