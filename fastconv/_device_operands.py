"""What a call on a GPU makes of its arrays: contiguous copies of one type, in memory that is free again after the call.

Beside it what functions do to arrays of either kind, NumPy's and a GPU's: conjugates, leading parts, dtypes.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np

from ._arrays import as_array
from ._device import DeviceArray, as_device_array, empty_like, is_device_array

__all__ = ["ALL_READY", "Operands", "conjugated", "device_bias_gradient", "dtype_of", "host_copy", "leading_part", "numbers"]

ALL_READY = 0  # the stream that waits for what NumPy's arrays are copied by
WORDS = {1: "uint8", 2: "int16", 4: "int32", 8: "int64", 16: "int64"}  # that elements of so many bytes are copied as
REAL_OF = {"complex64": "float32", "complex128": "float64"}


def numbers(name: str, array: Any) -> Any:
    """A view of a GPU's array, or a NumPy array."""
    return as_device_array(name, array) if is_device_array(array) else as_array(name, array)


class Operands:
    """The arrays of one call on the GPU; what had to be copied is freed when the call is on the stream."""

    def __init__(self, stream: int, stack: contextlib.ExitStack):
        self.stream, self.stack = stream, stack

    def scratch(self, *parts: tuple[int, str]) -> list[Any]:
        """Memory for (count, dtype) each."""
        from .backends._cuda.driver import scratch

        return self.stack.enter_context(scratch(self.stream, *((max(1, count), dtype) for count, dtype in parts)))

    def wait_for(self, *arrays: Any) -> None:
        """Order the stream after those on which other libraries' arrays are ready; keep their memory until it is done with them."""
        from .backends._cuda.events import follow

        for array in arrays:
            if isinstance(array, DeviceArray):
                follow(self.stream, array.stream)

    def keep(self, *arrays: Any) -> None:
        """Keep what owns DLPack's memories until the stream is done with what was put on it."""
        from .backends._cuda.events import keep

        for array in arrays:
            if isinstance(array, DeviceArray) and array.capsule is not None:
                keep(self.stream, array.capsule)

    def pointer(self, array: Any, dtype: np.dtype) -> Any:
        """Where the array's elements lie in C order as `dtype`, complex ones as pairs."""
        if isinstance(array, DeviceArray) and array.dtype == dtype and array.strides is None:
            target = array.pointer
        else:
            target = self.real_memory(array.size, dtype)
            self.copy(array, dtype, target)
        return target if dtype.kind != "c" else _parts(target, dtype)

    def real_memory(self, count: int, dtype: np.dtype) -> Any:
        """Memory for numbers of a type, complex ones as pairs."""
        real = REAL_OF.get(dtype.name)
        return self.scratch((count, _plain(dtype)) if real is None else (2 * count, real))[0]

    def copy(self, array: Any, dtype: np.dtype, target: Any) -> None:
        """Copy a view or a NumPy array to memory that lies in C order."""
        from .backends._cuda.driver import copy_from_host

        if not isinstance(array, DeviceArray):
            host = np.ascontiguousarray(array, dtype)
            flat = host.reshape(-1).view(REAL_OF.get(dtype.name, _plain(dtype)))
            copy_from_host(flat, _parts(target, dtype) if dtype.kind == "c" else target, self.stream)
        elif array.dtype == dtype:
            self._copy_words(array, target)
        else:
            whole = array.pointer
            if array.strides is not None:
                whole = self.real_memory(array.size, array.dtype)
                self._copy_words(array, whole)
            self.cast(whole, array.size, array.dtype, dtype, target)

    def cast(self, source: Any, count: int, before: np.dtype, after: np.dtype, target: Any = None) -> Any:
        """The same numbers as another type, at `target` or in memory of their own."""
        from .backends._cuda.complexes import to_complex
        from .backends._cuda.copies import copy_strided

        target = self.real_memory(count, after) if target is None else target
        if after.name in REAL_OF:
            kinds = REAL_OF.get(before.name, _plain(before)), REAL_OF[after.name]
            source = _parts(source, before) if before.kind == "c" else source
            to_complex(self.stream, source, count, kinds, _parts(target, after), parts=2 if before.kind == "c" else 1)
        else:
            copy_strided(self.stream, source, (count,), (1,), (_plain(before), _plain(after)), target)
        return target

    def to_host(self, source: Any, target: np.ndarray) -> None:
        """Copy elements that lie in C order to a NumPy array, and wait for them."""
        from .backends._cuda.driver import copy_to_host

        whole = target if target.flags.c_contiguous and target.dtype.isnative else np.empty(target.shape, target.dtype.newbyteorder("="))
        copy_to_host(source, whole.reshape(-1).view(REAL_OF.get(whole.dtype.name, whole.dtype)), self.stream)
        if whole is not target:
            target[...] = whole

    def _copy_words(self, array: DeviceArray, target: Any) -> None:
        """Copy elements as they are."""
        from .backends._cuda.copies import copy_strided
        from .backends._cuda.driver import same_memory

        size = array.dtype.itemsize
        lanes = size // np.dtype(WORDS[size]).itemsize
        shape, steps = _folded(array.shape, array.steps)
        if lanes > 1:
            shape, steps = (*shape, lanes), (*(lanes * step for step in steps), 1)
        source, target = (same_memory(pointer, WORDS[size]) for pointer in (array.pointer, target))
        copy_strided(self.stream, source, shape, steps, (WORDS[size], WORDS[size]), target)


def _plain(dtype: np.dtype) -> str:
    """The type that kernels read a type's elements as."""
    return "uint8" if dtype.kind == "b" else dtype.name


def _folded(shape: tuple[int, ...], steps: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The same elements by as few axes as there can be."""
    folded: list[tuple[int, int]] = []
    for length, step in zip(shape, steps, strict=True):
        if length == 1:
            continue
        if folded and folded[-1][1] == length * step:
            folded[-1] = (folded[-1][0] * length, step)
        else:
            folded.append((length, step))
    folded = folded or [(1, 0)]
    return tuple(length for length, _ in folded), tuple(step for _, step in folded)


# -- arrays of either kind ------------------------------------------------------------------------------------------------


def dtype_of(array: Any) -> np.dtype:
    """An array's dtype as NumPy's, whatever its library calls it."""
    return as_device_array("array", array).dtype if is_device_array(array) else array.dtype


def conjugated(array: Any) -> Any:
    """The complex conjugate; a real array itself."""
    if dtype_of(array).kind != "c":
        return array
    if not is_device_array(array):
        return array.conj()
    from .backends._cuda.complexes import to_complex

    view = as_device_array("array", array)
    result = empty_like(view, view.shape, view.dtype)
    with contextlib.ExitStack() as stack:
        operands = Operands(view.stream, stack)
        real = REAL_OF[view.dtype.name]
        target = _parts(as_device_array("result", result).pointer, view.dtype)
        to_complex(view.stream, operands.pointer(view, view.dtype), view.size, (real, real), target, conjugate=True)
    return result


def leading_part(array: Any, shape: tuple[int, ...]) -> Any:
    """The elements whose indices are within `shape`; the array itself if that is all of them."""
    if tuple(array.shape) == shape:
        return array
    if not is_device_array(array):
        return array[tuple(slice(0, length) for length in shape)]
    view = as_device_array("array", array)
    result = empty_like(view, shape, view.dtype)
    with contextlib.ExitStack() as stack:
        part = view._replace(shape=shape, strides=view.steps)
        Operands(view.stream, stack).copy(part, view.dtype, as_device_array("out", result).pointer)
    return result


def host_copy(array: Any) -> np.ndarray:
    """The elements of a GPU's array as a NumPy array; waits for them."""
    view = as_device_array("x", array)
    result = np.empty(view.shape, view.dtype)
    with contextlib.ExitStack() as stack:
        operands = Operands(view.stream, stack)
        operands.to_host(operands.pointer(view, view.dtype), result)
    return result


def device_bias_gradient(gy: Any, axis: int, dtype: np.dtype) -> Any:
    """The sum of gy over all but its channels, on the GPU."""
    from .backends._cuda.copies import copy_strided, sum_channels

    view = as_device_array("gy", gy)
    computed = np.dtype(np.float32) if dtype == np.float16 else dtype
    result = empty_like(view, (view.shape[axis],), dtype)
    target = as_device_array("gb", result).pointer
    outer, channels, inner = math.prod(view.shape[:axis]), view.shape[axis], math.prod(view.shape[axis + 1:])
    with contextlib.ExitStack() as stack:
        operands = Operands(view.stream, stack)
        pointer = operands.pointer(view, computed)
        real = REAL_OF.get(computed.name)
        if real is not None:  # (outer, channels, inner, 2) with the parts before the inner axis: each is a channel
            (parts,) = operands.scratch((2 * view.size, real))
            steps = (2 * channels * inner, 2 * inner, 1, 2)
            copy_strided(view.stream, pointer, (outer, channels, 2, inner), steps, (real, real), parts)
            sum_channels(view.stream, parts, (outer, 2 * channels, inner), 1, real, _parts(target, computed))
            return result
        sums = target if computed == dtype else operands.scratch((channels, computed.name))[0]
        sum_channels(view.stream, pointer, (outer, channels, inner), 1, computed.name, sums)
        if computed != dtype:
            operands.cast(sums, channels, computed, dtype, target)
    return result


def _parts(pointer: Any, dtype: np.dtype) -> Any:
    """The pointer to complex numbers as one to their parts."""
    from .backends._cuda.driver import same_memory

    return same_memory(pointer, REAL_OF[dtype.name])
