"""The primitives of CUDA kernels as plain Python, for Numba's simulator.

Every function has the meaning of its namesake in `ptx`. A pointer is a flat NumPy array and an offset; registers are NumPy scalars
and tuples of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types

from . import SIMULATED, cuda

__all__ = ["Pointer", "advance", "cast", "concatenate", "copy_async", "copy_commit", "copy_wait", "fetch", "fetch4", "fetch_apart",
           "fetch_patch", "i32", "inlined", "is_aligned", "less_unsigned", "load", "load4", "one", "ones_of", "outer_product", "pick",
           "pick4", "quotient", "remainder", "shared_memory", "store", "store4", "store_apart", "store_part", "traced", "zero_of", "zeros"]

WIDE = 4
UNSIGNED = 0xFFFFFFFF


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


def copy_async(target: Pointer, i: int, source: Pointer, j: int, count: int, inside: bool) -> None:
    for k in range(count):
        store(target, i + k, load(source, j + k) if inside else 0)


def copy_commit() -> None:
    """Copies are done at once."""


def copy_wait(groups: int) -> None:
    """The same."""


# -- integers -------------------------------------------------------------------------------------------------------------


def i32(value: int) -> int:
    return int(value)


def quotient(a: int, b: int) -> int:
    return int(a) // int(b)


def remainder(a: int, b: int) -> int:
    return int(a) % int(b)


def less_unsigned(a: int, b: int) -> bool:
    return (int(a) & UNSIGNED) < (int(b) & UNSIGNED)


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


def traced(formula: Callable[..., list[Any]]) -> Callable[..., tuple[Any, ...]]:
    def run(*operands: tuple[Any, ...]) -> tuple[Any, ...]:
        element = type(operands[0][0])
        return tuple(element(value) for value in formula(*operands))

    return run
