"""Launches on streams, and memory.

A `Launch` is a kernel with its grid and its numbers; it is called with a stream and with pointers. Nothing here waits for the GPU but
`copy_to_host` and, once a table, `resident`. In the simulator pointers are flat arrays (`simulated.Pointer`), and streams mean nothing.

A launch packs no arguments but its pointers: the numbers lie in memory that the driver reads at each launch, one for each thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from . import SIMULATED
from .compiling import Code, entry_of, ptx_of
from .context import Gpu, absence, api, checked, current_device, gpu, gpu_of

__all__ = ["DEFAULT_STREAM", "Gpu", "Launch", "Stream", "absence", "address_of", "copy_from_host", "copy_to_host", "current_device",
           "empty", "gpu", "is_aligned", "memory", "pointer_at", "resident", "same_memory", "scratch"]

POOL_BYTES = 512 * 1024 * 1024  # of scratch memory that stays allocated between calls
STATIC_SHARED_BYTES = 48 * 1024  # beyond which a kernel must be allowed its shared memory
ALIGNMENT = 256  # bytes
MOST_BLOCKS = (2**31 - 1, 65535, 65535)  # along each axis of a grid
INTEGERS = range(-2**31, 2**31)  # that a kernel's geometry holds
Stream = int
DEFAULT_STREAM: Stream = 0
SIMULATED_TURN = 1e-5  # seconds


# -- launches -------------------------------------------------------------------------------------------------------------


class Launch:
    """A kernel with its grid and its numbers."""

    def __init__(self, code: Code, grid: tuple[int, ...], geometry: tuple[int, ...], floats: tuple[float, ...] = (), shared_bytes: int = 0):
        if not isinstance(geometry, code.geometry) or len(floats) != code.floats:
            raise ValueError(f"{code.name} takes {code.geometry.__name__} and {code.floats} numbers, not {geometry!r} and {len(floats)}")
        if not all(value in INTEGERS for value in map(int, geometry)):
            raise ValueError(f"{code.name}: numbers of more than 32 bits in {geometry!r}")
        self.code = code
        self.grid = (*map(int, grid), 1, 1)[:3]
        if any(blocks > most for blocks, most in zip(self.grid, MOST_BLOCKS, strict=True)):
            raise ValueError(f"{code.name}: a grid of {self.grid} blocks")
        self.geometry = geometry
        self.floats = tuple(float(v) for v in floats)
        self.shared_bytes = shared_bytes
        self._arguments = _Arguments(self)

    def __call__(self, stream: Stream, *pointers: Any) -> None:
        """Put it on the stream."""
        if 0 in self.grid:
            return
        if SIMULATED:
            self._simulate(pointers)
            return
        function = _function(self.code, current_device(), self.shared_bytes > STATIC_SHARED_BYTES and self.shared_bytes)
        arguments = self._arguments
        arguments.pointers[:] = list(pointers)
        result = api().cuLaunchKernel(function, *self.grid, self.code.threads, 1, 1, self.shared_bytes, stream, arguments.address, 0)
        if result[0]:
            checked(result)

    def _simulate(self, pointers: tuple[Any, ...]) -> None:
        kernel = _simulated(self.code)
        floats = tuple(np.float32(v) for v in self.floats)
        with _short_turns():
            kernel[self.grid, self.code.threads, 0, self.shared_bytes](*pointers, self.geometry, *floats)


class _Arguments(threading.local):
    """A launch's arguments as the driver reads them: the addresses of pointers, integers and floats; a thread has its own."""

    def __init__(self, launch: Launch):
        pointers, numbers, floats = len(launch.code.pointers), len(launch.geometry), len(launch.floats)
        self.pointers = (ctypes.c_uint64 * pointers)()
        self.numbers = (ctypes.c_int32 * numbers)(*map(int, launch.geometry))
        self.floats = (ctypes.c_float * floats)(*launch.floats)
        places = [ctypes.addressof(part) + i * size for part, count, size
                  in ((self.pointers, pointers, 8), (self.numbers, numbers, 4), (self.floats, floats, 4)) for i in range(count)]
        self.places = (ctypes.c_void_p * len(places))(*places)
        self.address = ctypes.addressof(self.places)


@contextlib.contextmanager
def _short_turns() -> Iterator[None]:
    """The simulator's main thread polls the others at each barrier, for a whole turn at a time: short ones are 100 times faster."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(SIMULATED_TURN)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


@functools.cache
def _simulated(code: Code) -> Any:
    from . import cuda

    function = cuda.jit(device=True)(code.function)

    def quiet(*arguments: Any) -> None:
        with np.errstate(all="ignore"):  # of the thread that stands for one of the GPU's, which knows no warnings
            function(*arguments)

    return cuda.jit(quiet)


@functools.cache
def _function(code: Code, device: int, shared_bytes: int | bool) -> Any:
    """The driver's handle of a kernel, compiled or loaded now."""
    ptx = ptx_of(code, gpu_of(device).capability)
    library = checked(api().cuLibraryLoadData(ptx.encode() + b"\0", [], [], 0, [], [], 0))
    kernel = checked(api().cuLibraryGetKernel(library, entry_of(ptx).encode()))
    function = checked(api().cuKernelGetFunction(kernel))
    if shared_bytes:
        allowed = api().CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        checked(api().cuFuncSetAttribute(function, allowed, shared_bytes))
    return function


# -- memory ---------------------------------------------------------------------------------------------------------------


def address_of(array: Any) -> Any:
    """What a kernel takes as the pointer to a contiguous array of this module's or another library's."""
    if SIMULATED:
        from .simulated import Pointer

        return Pointer(np.asarray(getattr(array, "_ary", array)).reshape(-1))
    return array.__cuda_array_interface__["data"][0] or 0


def pointer_at(address: int, dtype: np.dtype, below: int, count: int) -> Any:
    """The pointer to an element of another library's memory, of whose `count` elements it has `below` before it."""
    if not SIMULATED:
        return address
    from .simulated import Pointer

    whole = (ctypes.c_char * (count * dtype.itemsize)).from_address(address - below * dtype.itemsize)
    return Pointer(np.frombuffer(memoryview(whole), dtype), below)


def same_memory(pointer: Any, dtype: str) -> Any:
    """The pointer as one of elements of another type."""
    if not SIMULATED:
        return pointer
    from .simulated import Pointer

    before, after = pointer.memory.itemsize, np.dtype(dtype).itemsize
    return Pointer(pointer.memory.view(dtype), pointer.offset * before // after)


def empty(shape: tuple[int, ...], dtype: np.dtype) -> Any:
    """A new array of Numba's."""
    from . import cuda

    with _named_shortage(int(np.prod(shape, dtype=object)) * dtype.itemsize):
        return cuda.device_array(shape, dtype)


def is_aligned(pointer: Any, size: int) -> bool:
    """Whether a pointer's address is a multiple of `size` bytes."""
    return (pointer.offset * pointer.memory.itemsize if SIMULATED else pointer) % size == 0


def memory(count: int, dtype: str) -> Any:
    """Memory for `count` elements that lives as long as the object returned; Numba frees it when no work can use it any more."""
    return empty((count,), np.dtype(dtype))


def resident(array: np.ndarray) -> Any:
    """A copy of `array` in the GPU's memory, there for every stream, which lives as long as the object returned."""
    from . import cuda

    with _named_shortage(array.nbytes):
        copy = cuda.to_device(np.asarray(array, order="C"))
    if not SIMULATED:  # such a copy may return when the numbers are on their way
        checked(api().cuStreamSynchronize(DEFAULT_STREAM))
    return copy


@contextlib.contextmanager
def _named_shortage(wanted: int) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if "OUT_OF_MEMORY" in str(error):
            raise MemoryError(f"the GPU has no {wanted:,} bytes free") from error
        raise


@contextlib.contextmanager
def scratch(stream: Stream, *parts: tuple[int, str]) -> Iterator[list[Any]]:
    """Memory for (count, dtype) each, as pointers; it is free again when what was put on the stream meanwhile is done."""
    if not parts:
        yield []
        return
    sizes = [-(-count * np.dtype(dtype).itemsize // ALIGNMENT) * ALIGNMENT for count, dtype in parts]
    if SIMULATED:
        from .simulated import Pointer

        yield [Pointer(np.full(max(1, size // np.dtype(dtype).itemsize), -7, dtype)) for size, (_, dtype) in zip(sizes, parts, strict=True)]
        return
    total = max(ALIGNMENT, sum(sizes))
    start = int(checked(api().cuMemAllocFromPoolAsync(total, _pool(current_device()), stream), total))
    try:
        yield [start + sum(sizes[:i]) for i in range(len(sizes))]
    finally:
        checked(api().cuMemFreeAsync(start, stream))


@functools.cache
def _pool(device: int) -> Any:
    """A pool of the driver's, which keeps up to POOL_BYTES between calls."""
    properties = api().CUmemPoolProps()
    properties.allocType = api().CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    properties.location.type = api().CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    properties.location.id = device
    pool = checked(api().cuMemPoolCreate(properties))
    threshold = api().CUmemPool_attribute.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD
    checked(api().cuMemPoolSetAttribute(pool, threshold, api().cuuint64_t(POOL_BYTES)))
    return pool


def copy_to_host(pointer: Any, out: np.ndarray, stream: Stream) -> None:
    """Copy the memory at `pointer` to `out`, and wait for it and for all that was put on the stream before."""
    if not out.size:
        return
    if SIMULATED:
        out.reshape(-1)[...] = pointer.memory[pointer.offset:pointer.offset + out.size]
        return
    checked(api().cuMemcpyDtoHAsync(out.ctypes.data, pointer, out.nbytes, stream))
    checked(api().cuStreamSynchronize(stream))


def copy_from_host(array: np.ndarray, pointer: Any, stream: Stream) -> None:
    """Copy a contiguous array to the memory at `pointer`; `array` may be changed when this returns."""
    if not array.size:
        return
    if SIMULATED:
        pointer.memory[pointer.offset:pointer.offset + array.size] = array.reshape(-1)
        return
    checked(api().cuMemcpyHtoDAsync(pointer, array.ctypes.data, array.nbytes, stream))
