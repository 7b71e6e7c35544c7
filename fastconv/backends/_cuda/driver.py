"""The GPU as backends see it: whether there is one, its constants, launches on streams, memory.

A `Launch` is a kernel with its grid and its numbers; it is called with a stream and with pointers. Nothing here waits for the GPU but
`copy_to_host`. In the simulator pointers are flat arrays (`simulated.Pointer`), and streams mean nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import SIMULATED, has_compiler
from .compiling import Code, entry_of, ptx_of

__all__ = ["Gpu", "Launch", "absence", "address_of", "copy_from_host", "copy_to_host", "gpu", "is_aligned", "memory", "resident", "scratch"]

POOL_BYTES = 512 * 1024 * 1024  # of scratch memory that stays allocated between calls
STATIC_SHARED_BYTES = 48 * 1024  # beyond which a kernel must be allowed its shared memory
ALIGNMENT = 256  # bytes
Stream = int
DEFAULT_STREAM: Stream = 0
SIMULATED_TURN = 1e-5  # seconds
INSTALL = "pip install 'fastconv[cuda]'"


@dataclass(frozen=True)
class Gpu:
    """What the cost models know of a GPU, as its driver says."""

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    clock: float  # Hz
    bandwidth: float  # bytes/s of its memory
    cache_bytes: int  # of its last cache

    def flops(self, dtype: str) -> float:
        """Multiply-add peak without tensor cores, FLOP/s."""
        lanes = LANES32.get(self.capability, 128)
        if np.dtype(dtype).itemsize == 8:
            lanes = LANES64.get(self.capability, 2)
        return 2.0 * lanes * self.multiprocessors * self.clock


# Multiply-adds of a multiprocessor in a clock, "CUDA C++ Programming Guide", throughput of native arithmetic instructions.
LANES32 = {(7, 0): 64, (7, 5): 64, (8, 0): 64}
LANES64 = {(7, 0): 32, (8, 0): 32, (9, 0): 64, (10, 0): 64}
SIMULATED_GPU = Gpu("simulator", (9, 0), 132, 1.98e9, 4.8e12, 60 * 1024 * 1024)


@functools.cache
def absence() -> str | None:
    """Why no kernel can run, with what mends it; None if kernels can run."""
    if SIMULATED:
        return None
    if not has_compiler():
        return f"numba-cuda, which compiles kernels for NVIDIA's GPUs, is not installed: {INSTALL}"
    from numba import cuda

    if not cuda.is_available():
        try:
            found = str(cuda.cuda_error() or "no GPU was found")
        except Exception as error:
            found = str(error)
        return f"there is no NVIDIA GPU with a driver here ({' '.join(found.split())})"
    return None


def gpu() -> Gpu:
    """The GPU of the current context."""
    return SIMULATED_GPU if SIMULATED else _gpu(_current_device())


def _current_device() -> int:
    from numba import cuda

    return cuda.current_context().device.id


@functools.cache
def _gpu(device: int) -> Gpu:
    from cuda.bindings import driver

    def attribute(name: str) -> int:
        return int(_checked(driver.cuDeviceGetAttribute(getattr(driver.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}"), device)))

    name = _checked(driver.cuDeviceGetName(128, device)).split(b"\0")[0].decode()
    memory_clock, bus = attribute("MEMORY_CLOCK_RATE") * 1e3, attribute("GLOBAL_MEMORY_BUS_WIDTH") / 8
    return Gpu(name, (attribute("COMPUTE_CAPABILITY_MAJOR"), attribute("COMPUTE_CAPABILITY_MINOR")), attribute("MULTIPROCESSOR_COUNT"),
               attribute("CLOCK_RATE") * 1e3, 2 * memory_clock * bus, attribute("L2_CACHE_SIZE"))


def _checked(result: tuple[Any, ...], wanted: int = 0) -> Any:
    """What a driver's function returned, or its error; MemoryError with the bytes asked for."""
    from cuda.bindings import driver

    status, *values = result
    if status == driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
        raise MemoryError(f"the GPU has no {wanted:,} bytes free")
    if status != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"CUDA: {status.name}")
    return values[0] if values else None


# -- launches -------------------------------------------------------------------------------------------------------------


class Launch:
    """A kernel with its grid and its numbers."""

    def __init__(self, code: Code, grid: tuple[int, ...], geometry: tuple[int, ...], floats: tuple[float, ...] = (), shared_bytes: int = 0):
        if not isinstance(geometry, code.geometry) or len(floats) != code.floats:
            raise ValueError(f"{code.name} takes {code.geometry.__name__} and {code.floats} numbers, not {geometry!r} and {len(floats)}")
        self.code = code
        self.grid = (*grid, 1, 1)[:3]
        self.geometry = geometry
        self.floats = tuple(float(v) for v in floats)
        self.shared_bytes = shared_bytes
        self._kinds = (*[ctypes.c_void_p] * len(code.pointers), *[ctypes.c_int32] * len(geometry), *[ctypes.c_float] * code.floats)

    def __call__(self, stream: Stream, *pointers: Any) -> None:
        """Put it on the stream."""
        if 0 in self.grid:
            return
        if SIMULATED:
            self._simulate(pointers)
            return
        from cuda.bindings import driver

        function = _function(self.code, _current_device(), self.shared_bytes > STATIC_SHARED_BYTES and self.shared_bytes)
        values = (*pointers, *self.geometry, *self.floats)
        _checked(driver.cuLaunchKernel(function, *self.grid, self.code.threads, 1, 1, self.shared_bytes, stream, (values, self._kinds), 0))

    def _simulate(self, pointers: tuple[Any, ...]) -> None:
        kernel = _simulated(self.code)
        floats = tuple(np.float32(v) for v in self.floats)
        with _short_turns():
            kernel[self.grid, self.code.threads, 0, self.shared_bytes](*pointers, self.geometry, *floats)


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
    from cuda.bindings import driver

    ptx = ptx_of(code, _gpu(device).capability)
    library = _checked(driver.cuLibraryLoadData(ptx.encode() + b"\0", [], [], 0, [], [], 0))
    kernel = _checked(driver.cuLibraryGetKernel(library, entry_of(ptx).encode()))
    function = _checked(driver.cuKernelGetFunction(kernel))
    if shared_bytes:
        allowed = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        _checked(driver.cuFuncSetAttribute(function, allowed, shared_bytes))
    return function


# -- memory ---------------------------------------------------------------------------------------------------------------


def address_of(array: Any) -> Any:
    """What a kernel takes as the pointer to a contiguous array of this module's or another library's."""
    if SIMULATED:
        from .simulated import Pointer

        return Pointer(np.asarray(getattr(array, "_ary", array)).reshape(-1))
    return array.__cuda_array_interface__["data"][0]


def is_aligned(pointer: Any, size: int) -> bool:
    """Whether a pointer's address is a multiple of `size` bytes."""
    return (pointer.offset * pointer.memory.itemsize if SIMULATED else pointer) % size == 0


def memory(count: int, dtype: str) -> Any:
    """Memory for `count` elements that lives as long as the object returned."""
    from . import cuda

    with _named_shortage(count * np.dtype(dtype).itemsize):
        return cuda.device_array(count, np.dtype(dtype))


def resident(array: np.ndarray) -> Any:
    """A copy of `array` in the GPU's memory, which lives as long as the object returned."""
    from . import cuda

    with _named_shortage(array.nbytes):
        return cuda.to_device(np.ascontiguousarray(array))


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
    from cuda.bindings import driver

    total = max(ALIGNMENT, sum(sizes))
    start = int(_checked(driver.cuMemAllocFromPoolAsync(total, _pool(_current_device()), stream), total))
    try:
        yield [start + sum(sizes[:i]) for i in range(len(sizes))]
    finally:
        _checked(driver.cuMemFreeAsync(start, stream))


@functools.cache
def _pool(device: int) -> Any:
    """A pool of the driver's, which keeps up to POOL_BYTES between calls."""
    from cuda.bindings import driver

    properties = driver.CUmemPoolProps()
    properties.allocType = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    properties.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    properties.location.id = device
    pool = _checked(driver.cuMemPoolCreate(properties))
    threshold = driver.CUmemPool_attribute.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD
    _checked(driver.cuMemPoolSetAttribute(pool, threshold, driver.cuuint64_t(POOL_BYTES)))
    return pool


def copy_to_host(pointer: Any, out: np.ndarray, stream: Stream) -> None:
    """Copy the memory at `pointer` to `out`, and wait for it and for all that was put on the stream before."""
    if SIMULATED:
        out.reshape(-1)[...] = pointer.memory[pointer.offset:pointer.offset + out.size]
        return
    from cuda.bindings import driver

    _checked(driver.cuMemcpyDtoHAsync(out.ctypes.data, pointer, math.prod(out.shape) * out.itemsize, stream))
    _checked(driver.cuStreamSynchronize(stream))


def copy_from_host(array: np.ndarray, pointer: Any, stream: Stream) -> None:
    """Copy a contiguous array to the memory at `pointer`."""
    if SIMULATED:
        pointer.memory[pointer.offset:pointer.offset + array.size] = array.reshape(-1)
        return
    from cuda.bindings import driver

    _checked(driver.cuMemcpyHtoDAsync(pointer, array.ctypes.data, array.nbytes, stream))
