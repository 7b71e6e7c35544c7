"""Scratch memory of a run: one aligned buffer a Python thread, kept for the next call and bounded."""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

KEEP_BYTES = 64 * 1024 * 1024  # a larger buffer goes back to the system after its call
ALIGNMENT = 64  # bytes: a cache line, and the widest vector


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.kept: dict[str, np.ndarray] = {}
        self.operands: int | None = None  # packed operands of this call so far, None where they are to be kept


_buffers = _Buffers()


def scratch(role: str, count: int, dtype: npt.DTypeLike) -> np.ndarray:
    """A flat, uninitialised, aligned array of at least `count` elements, this thread's own until it asks for `role` again."""
    dtype = np.dtype(dtype)
    needed = count * dtype.itemsize + ALIGNMENT
    held = _buffers.kept.get(role)
    if held is None or held.nbytes < needed:
        held = np.empty(max(needed, 4096), np.uint8)
        if needed <= KEEP_BYTES:
            _buffers.kept[role] = held
    start = -held.ctypes.data % ALIGNMENT
    stop = start + (held.nbytes - start) // dtype.itemsize * dtype.itemsize
    return held[start:stop].view(dtype)


class ReusedOperands:
    """A context in which `operand` gives scratch: what a plain call packs is used once.

    Fresh memory of some megabytes is returned to the system after each call, and its page faults took 7 ms of a 512 x 512
    3x3 layer's call.
    """

    def __enter__(self) -> None:
        _buffers.operands = 0

    def __exit__(self, *exception: object) -> None:
        _buffers.operands = None


reused_operands = ReusedOperands()


def operand(count: int, dtype: npt.DTypeLike) -> np.ndarray:
    """An uninitialised array for a packed operand: the caller's to keep, or scratch within `reused_operands`."""
    if _buffers.operands is None:
        return np.empty(count, dtype)
    _buffers.operands += 1
    return scratch(f"operand {_buffers.operands}", count, dtype)[:count]
