"""Scratch memory of a run: one aligned arena a Python thread, kept for the next call and bounded."""

from __future__ import annotations

import functools
import math
import threading

import numpy as np
import numpy.typing as npt

KEEP_BYTES = 64 * 1024 * 1024  # a larger buffer goes back to the system after its call
SMALLEST_BYTES = 4 * 1024 * 1024  # from which NumPy asks for huge pages: ResNet-18's training step 1 to 3 % faster
SMALL_BYTES = 256 * 1024  # up to which a named buffer is of its own size
ALIGNMENT = 64  # bytes: a cache line, and the widest vector
LARGE_BYTES = 1024 * 1024  # of a result that takes longer to write than to place


LARGEST_KEPT = (32 << 20) - (64 << 10)  # bytes: the largest block by which the C library learns, with its header


@functools.cache
def keep_freed_memory() -> None:
    """Let the C library keep blocks of megabytes that are freed, rather than give them back and fault their pages in again.

    GNU's takes the largest mapped block freed so far for one that will be asked for again, if it is of at most 32 MB; this
    one is never touched. A training step of the small VGG took 90 ms, 77 after it.
    """
    np.empty(LARGEST_KEPT, np.uint8)


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.size = 0
        self.arena: tuple[np.ndarray, int] = (np.empty(0, np.uint8), 0)
        self.held: dict[str | int, np.ndarray] = {}
        self.reused: int | None = None  # packed operands of this call so far, None where they are to be kept


_buffers = _Buffers()


def _aligned(size: int) -> tuple[np.ndarray, int]:
    """Uninitialised bytes that start at a cache line, and their address."""
    held = np.empty(size + ALIGNMENT, np.uint8)
    start = -held.ctypes.data % ALIGNMENT
    return held[start:start + size], held.ctypes.data + start


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array for a result, as `np.empty`'s; a large one begins at a cache line.

    NumPy's begin a quarter of a line behind one, where vectors are written to two lines each: a fourth more time.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < LARGE_BYTES:
        return np.empty(shape, dtype)
    keep_freed_memory()
    held = np.empty(size + ALIGNMENT, np.uint8)
    return np.ndarray(shape, dtype, held, -held.ctypes.data % ALIGNMENT)


def arena(size: int) -> tuple[np.ndarray, int]:
    """Uninitialised memory for one run, this thread's own until it asks again: what keeps it alive, and its address."""
    if size <= _buffers.size:
        return _buffers.arena
    made = _aligned(max(size, SMALLEST_BYTES))
    if size <= KEEP_BYTES:
        _buffers.size, _buffers.arena = len(made[0]), made
    return made


def shared(role: str, count: int, dtype: npt.DTypeLike) -> np.ndarray:
    """An uninitialised array that all threads of a run work on, this thread's own until it asks for `role` again."""
    dtype = np.dtype(dtype)
    return _held(role, count * dtype.itemsize).view(dtype)


def _held(name: str | int, size: int) -> np.ndarray:
    held = _buffers.held.get(name)
    if held is None or held.nbytes < size:
        held = _aligned(max(size, SMALLEST_BYTES) if size > SMALL_BYTES else size)[0]
        if size <= KEEP_BYTES:
            _buffers.held[name] = held
    return held[:size]


class ReusedOperands:
    """A context in which `operand` gives scratch: what a plain call packs is used once.

    Fresh memory of some megabytes is returned to the system after each call, and its page faults took 7 ms of a 512 x 512
    3x3 layer's call.
    """

    def __enter__(self) -> None:
        _buffers.reused = 0

    def __exit__(self, *exception: object) -> None:
        _buffers.reused = None


reused_operands = ReusedOperands()


def used_once() -> bool:
    """Whether what is packed now will be used by one run only."""
    return _buffers.reused is not None


def operand(count: int, dtype: npt.DTypeLike) -> np.ndarray:
    """An uninitialised, aligned array for a packed operand: the caller's to keep, or scratch within `reused_operands`."""
    dtype = np.dtype(dtype)
    size = count * dtype.itemsize
    if _buffers.reused is None:
        return _aligned(size)[0].view(dtype)
    number = _buffers.reused
    _buffers.reused += 1
    return _held(number, size).view(dtype)
