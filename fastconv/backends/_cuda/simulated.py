"""The primitives of CUDA kernels as plain Python, for Numba's simulator.

Every function has the meaning of its namesake in `ptx`. A pointer is a flat NumPy array and an offset; registers are NumPy scalars
and tuples of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types

from . import SIMULATED, cuda

__all__ = ["Pointer", "advance", "cast", "concatenate", "copy_async", "copy_commit", "copy_wait", "fetch", "fetch4", "fetch_apart",
           "fetch_between", "fetch_each", "fetch_grid", "fetch_patch", "fetch_window", "i32", "inlined", "is_aligned", "less_unsigned",
           "load", "load4", "load_each", "mma", "one", "ones_of", "opaque", "outer_product", "pack_halves", "pick", "pick4", "quotient",
           "rectify_each", "remainder", "round_tf32", "shared_memory", "store", "store4", "store_apart", "store_between", "store_each",
           "store_part", "sync_warp", "traced", "zero_of", "zeros"]

WIDE = 4
UNSIGNED = 0xFFFFFFFF
WARP = 32
FIRST = threading.Lock()  # the simulator allocates where it finds nothing, and two threads at once find nothing
MOST_WORDS = 64  # numbers of a lane's fragments


class Pointer:
    """An address of elements: the flat array that they lie in, and an offset."""

    __slots__ = ("memory", "offset")

    def __init__(self, memory: np.ndarray, offset: int = 0):
        self.memory, self.offset = memory, offset

    def at(self, i: int) -> int:
        """The index of element i; one outside the array is a fault, as on the GPU."""
        index = self.offset + int(i)
        if not 0 <= index < self.memory.size:
            raise IndexError(f"element {index} of {self.memory.size}")
        return index


def inlined(function: Callable) -> Callable:
    return function


# -- pointers -------------------------------------------------------------------------------------------------------------


def advance(pointer: Pointer, count: int) -> Pointer:
    return Pointer(pointer.memory, pointer.offset + int(count))


def cast(pointer: Pointer, example: Pointer) -> Pointer:
    width = pointer.memory.itemsize, example.memory.itemsize
    return Pointer(pointer.memory.view(example.memory.dtype), pointer.offset * width[0] // width[1])


def _shared_bytes() -> Any:
    return cuda.shared.array(0, types.int8)


if SIMULATED:  # a function that the simulator shows the block to
    _shared_bytes = cuda.jit(device=True)(_shared_bytes)


def shared_memory(example: Pointer) -> Pointer:
    array = _shared_bytes()
    memory = getattr(array, "_item", array)
    memory = getattr(memory, "_ary", memory)
    return Pointer(memory.view(example.memory.dtype))


# -- loads and stores -----------------------------------------------------------------------------------------------------


def load(pointer: Pointer, i: int) -> Any:
    return pointer.memory[pointer.at(i)]


def load4(pointer: Pointer, i: int) -> tuple[Any, ...]:
    if pointer.at(i) % WIDE:
        raise IndexError(f"a wide load of element {pointer.at(i)}")
    return tuple(load(pointer, i + j) for j in range(WIDE))


fetch, fetch4 = load, load4


def fetch_grid(pointer: Pointer, at: int, pitch: int, step: int, rows: int, columns: int) -> tuple[Any, ...]:
    return tuple(load(pointer, at + i * pitch + j * step) for i in range(rows) for j in range(columns))


def fetch_window(pointer: Pointer, at: int, pitch: int, step: int, row: int, column: int, height: int, width: int, rows: int,
                 columns: int) -> tuple[Any, ...]:
    return tuple(load(pointer, at + i * pitch + j * step) if 0 <= row + i < height and 0 <= column + j < width else zero_of(pointer)
                 for i in range(rows) for j in range(columns))


def fetch_apart(pointer: Pointer, i: int, pitch: int, count: int) -> tuple[Any, ...]:
    return tuple(load(pointer, i + k * pitch) for k in range(count))


def fetch_patch(pointer: Pointer, i: int, row: int, column: int, height: int, width: int, row_pitch: int, column_pitch: int, rows: int,
                columns: int) -> tuple[Any, ...]:
    return tuple(load(pointer, i + r * row_pitch + c * column_pitch) if 0 <= row + r < height and 0 <= column + c < width
                 else zero_of(pointer) for r in range(rows) for c in range(columns))


def store(pointer: Pointer, i: int, value: Any) -> None:
    pointer.memory[pointer.at(i)] = value


def store4(pointer: Pointer, i: int, values: tuple[Any, ...]) -> None:
    if pointer.at(i) % WIDE:
        raise IndexError(f"a wide store of element {pointer.at(i)}")
    for j in range(WIDE):
        store(pointer, i + j, values[j])


def store_apart(pointer: Pointer, i: int, values: tuple[Any, ...], pitch: int) -> None:
    for k, value in enumerate(values):
        store(pointer, i + k * pitch, value)


def is_aligned(pointer: Pointer, i: int) -> bool:
    return pointer.at(i) % WIDE == 0


def store_part(pointer: Pointer, tile: tuple[Any, ...], part: int, rows: int, groups: int, step: int, pitch: int) -> None:
    for i in range(rows):
        for b in range(groups):
            first = ((part * rows + i) * groups + b) * WIDE
            store4(pointer, i * pitch + b * step, tile[first:first + WIDE])


def load_each(pointer: Pointer, first: int, step: int, count: int) -> tuple[Any, ...]:
    return tuple(load(pointer, first + k * step) for k in range(count))


fetch_each = load_each


def store_each(pointer: Pointer, first: int, step: int, values: tuple[Any, ...]) -> None:
    for k, value in enumerate(values):
        store(pointer, first + k * step, value)


def fetch_between(pointer: Pointer, first: int, step: int, count: int, low: int, inside: int) -> tuple[Any, ...]:
    load(pointer, 0)
    return tuple(load(pointer, first + k * step) if 0 <= k - low < inside else zero_of(pointer) for k in range(count))


def store_between(pointer: Pointer, first: int, step: int, values: tuple[Any, ...], low: int, inside: int) -> None:
    for k, value in enumerate(values):
        if 0 <= k - low < inside:
            store(pointer, first + k * step, value)


def copy_async(target: Pointer, i: int, source: Pointer, j: int, count: int, inside: bool) -> None:
    for k in range(count):
        store(target, i + k, load(source, j + k) if inside else 0)


def copy_commit() -> None:
    """Copies are done at once."""


def copy_wait(groups: int) -> None:
    """The same."""


def _wait_for_block() -> None:
    cuda.syncthreads()


if SIMULATED:
    _wait_for_block = cuda.jit(device=True)(_wait_for_block)


def sync_warp() -> None:
    """The whole block, as the simulator knows no warps: every thread of a block must come here equally often."""
    _wait_for_block()


# -- integers -------------------------------------------------------------------------------------------------------------


def i32(value: int) -> int:
    return int(value)


def quotient(a: int, b: int) -> int:
    return int(a) // int(b)


def remainder(a: int, b: int) -> int:
    return int(a) % int(b)


def less_unsigned(a: int, b: int) -> bool:
    return (int(a) & UNSIGNED) < (int(b) & UNSIGNED)


def opaque(value: Any) -> Any:
    return value


# -- registers ------------------------------------------------------------------------------------------------------------


def zeros(example: Pointer, count: int) -> tuple[Any, ...]:
    return (zero_of(example),) * count


def ones_of(example: Pointer, count: int) -> tuple[Any, ...]:
    return (example.memory.dtype.type(1),) * count


def zero_of(example: Pointer) -> Any:
    return example.memory.dtype.type(0)


def one(value: Any) -> tuple[Any, ...]:
    return (value,)


def concatenate(a: tuple[Any, ...], b: tuple[Any, ...]) -> tuple[Any, ...]:
    return a + b


def pick(values: tuple[Any, ...], i: int) -> Any:
    return values[i]


def pick4(values: tuple[Any, ...], i: int) -> tuple[Any, ...]:
    return values[i:i + WIDE]


def outer_product(tile: tuple[Any, ...], a: tuple[Any, ...], b: tuple[Any, ...]) -> tuple[Any, ...]:
    columns = len(b)
    return tuple(tile[i * columns + j] + a[i] * b[j] for i in range(len(a)) for j in range(columns))


# -- tensor cores ---------------------------------------------------------------------------------------------------------


def round_tf32(value: Any) -> Any:
    bits = np.float32(value).view(np.uint32)
    return value if not np.isfinite(value) else np.uint32((int(bits) + 0x1000) & 0xFFFFE000).view(np.float32)


def pack_halves(low: Any, high: Any) -> Any:
    return np.array([low, high], np.float16).view(np.int32)[0]


def _exchanged(words: np.ndarray) -> tuple[int, np.ndarray]:
    """The lane, and the words of all lanes of the only warp, (lanes, words)."""
    with FIRST:
        buffer = cuda.shared.array((WARP, MOST_WORDS), types.float64)
    cuda.syncthreads()
    buffer[cuda.threadIdx.x, :words.size] = words
    cuda.syncthreads()
    return int(cuda.threadIdx.x), np.array(buffer[:, :words.size])


if SIMULATED:
    _exchanged = cuda.jit(device=True)(_exchanged)


def _unpacked(words: tuple[Any, ...]) -> np.ndarray:
    """Each word's one or two numbers, (words, numbers)."""
    values = np.array(words)
    return values.view(np.float16).reshape(values.size, 2) if values.dtype == np.int32 else values.reshape(-1, 1)


def mma(tiles: tuple[Any, ...], a: tuple[Any, ...], b: tuple[Any, ...]) -> tuple[Any, ...]:
    left, right = _unpacked(a), _unpacked(b)
    lane, both = _exchanged(np.concatenate([left.ravel(), right.ravel()]).astype(np.float64))
    # (8 rows or columns, 4 lanes, tiles, their words, numbers); a lane's words follow (half of the depth, half of the rows).
    left_of = both[:, :left.size].reshape(8, 4, -1, 2, 2, left.shape[1])
    right_of = both[:, left.size:].reshape(8, 4, -1, 2, right.shape[1])
    rows = left_of.transpose(2, 4, 0, 3, 1, 5).reshape(len(a) // 4, 16, -1)  # (tiles, rows, depth)
    columns = right_of.transpose(2, 0, 3, 1, 4).reshape(len(b) // 2, 8, -1)
    row, column = divmod(lane, 4)
    results = []
    for at, total in enumerate(tiles):
        i, j = divmod(at // 4, len(columns))
        results.append(np.float32(total + rows[i, row + at % 4 // 2 * 8] @ columns[j, 2 * column + at % 2]))
    return tuple(results)


def rectify_each(values: tuple[Any, ...], slope: float, ceiling: float) -> tuple[Any, ...]:
    element = type(values[0])
    sloped = (value * element(slope) if value < 0 else value for value in values)
    return tuple(element(ceiling) if value > element(ceiling) else value for value in sloped)


def traced(formula: Callable[..., list[Any]]) -> Callable[..., tuple[Any, ...]]:
    def run(*operands: tuple[Any, ...]) -> tuple[Any, ...]:
        element = type(operands[0][0])
        return tuple(element(value) for value in formula(*operands))

    return run
