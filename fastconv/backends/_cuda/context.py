"""Which GPU there is: why there is none, its constants, its context in this thread, the driver's errors.

Contexts are the primary ones, which Numba, PyTorch and CuPy share. A thread that has none gets Numba's.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import SIMULATED, has_compiler

__all__ = ["Gpu", "absence", "api", "checked", "current_device", "gpu", "gpu_of", "using"]

INSTALL = "pip install 'fastconv[cuda]'"
OLDER = "or 'fastconv[cuda12]' for drivers of CUDA 12"


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
        return f"numba-cuda, which compiles kernels for NVIDIA's GPUs, is not installed: {INSTALL} ({OLDER})"
    from numba import cuda

    if cuda.is_available():
        return None
    try:
        found = cuda.cuda_error()
    except Exception as error:
        found = error
    found = " ".join(str(found or "no GPU").split()).rstrip(".:")
    return f"no NVIDIA GPU with a driver was found ({found}); for drivers of CUDA 13 {INSTALL}, {OLDER}"


@functools.cache
def api() -> Any:
    """The driver's functions."""
    from cuda.bindings import driver

    return driver


def checked(result: tuple[Any, ...], wanted: int = 0) -> Any:
    """What a driver's function returned, or its error; MemoryError with the bytes asked for."""
    status, *values = result
    if status == api().CUresult.CUDA_ERROR_OUT_OF_MEMORY:
        raise MemoryError(f"the GPU has no {wanted:,} bytes free")
    if status == api().CUresult.CUDA_ERROR_UNSUPPORTED_PTX_VERSION:
        raise RuntimeError(f"the GPU's driver is older than numba-cuda's compiler: update it, or {INSTALL}, {OLDER}")
    if status != api().CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"CUDA: {status.name}")
    return values[0] if values else None


def current_device() -> int:
    """Number of the GPU whose context this thread has, after giving it one if it has none."""
    if SIMULATED:
        return 0
    status, device = api().cuCtxGetDevice()
    if status == api().CUresult.CUDA_SUCCESS:
        return int(device)
    from numba import cuda

    return int(cuda.current_context().device.id)


@contextlib.contextmanager
def using(device: int | None) -> Iterator[None]:
    """Make a GPU the thread's current one for a while, as its arrays' calls need it; None keeps the one that is."""
    if SIMULATED or device is None or device == current_device():
        yield
        return
    checked(api().cuCtxPushCurrent(_primary_context(device)))
    try:
        yield
    finally:
        checked(api().cuCtxPopCurrent())


@functools.cache
def _primary_context(device: int) -> Any:
    return checked(api().cuDevicePrimaryCtxRetain(device))


def gpu() -> Gpu:
    """The GPU of the current context."""
    return SIMULATED_GPU if SIMULATED else gpu_of(current_device())


@functools.cache
def gpu_of(device: int) -> Gpu:
    """The GPU of a number."""
    def attribute(name: str) -> int:
        return int(checked(api().cuDeviceGetAttribute(getattr(api().CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}"), device)))

    name = checked(api().cuDeviceGetName(128, device)).split(b"\0")[0].decode()
    memory_clock, bus = attribute("MEMORY_CLOCK_RATE") * 1e3, attribute("GLOBAL_MEMORY_BUS_WIDTH") / 8
    return Gpu(name, (attribute("COMPUTE_CAPABILITY_MAJOR"), attribute("COMPUTE_CAPABILITY_MINOR")), attribute("MULTIPROCESSOR_COUNT"),
               attribute("CLOCK_RATE") * 1e3, 2 * memory_clock * bus, attribute("L2_CACHE_SIZE"))
