"""Arrays in a GPU's memory, whoever made them: what kernels need of them, and results of the same kind.

An array is taken through `__cuda_array_interface__` (Numba, CuPy, PyTorch and others), or else through DLPack. Its library is never
imported for it: it is there, or there would be no array of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

__all__ = ["DeviceArray", "as_device_array", "empty_like", "is_device_array"]


class DeviceArray(NamedTuple):
    """A view of an array in a GPU's memory."""

    owner: Any  # keeps the memory
    pointer: Any  # as launches take it
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None  # in bytes; None where the elements lie in C order
    dtype: np.dtype
    stream: int  # on which its elements are ready
    writable: bool

    @property
    def size(self) -> int:
        """Number of elements."""
        count = 1
        for length in self.shape:
            count *= length
        return count

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def library(self) -> str:
        """The package that made it."""
        return _library_of(self.owner)


def is_device_array(array: Any) -> bool:
    """Whether an object is an array in a GPU's memory."""
    kind = type(array)
    if kind is np.ndarray or kind in (list, tuple, float, int):
        return False
    if kind.__module__.partition(".")[0] == "torch":
        return bool(getattr(array, "is_cuda", False))
    return hasattr(array, "__cuda_array_interface__") or hasattr(array, "__cuda_ndarray__")


def as_device_array(name: str, array: Any) -> DeviceArray:
    """The view of a GPU's array of numbers."""
    if getattr(array, "requires_grad", False):
        array = array.detach()
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is None:  # the simulator's
        from .backends._cuda.driver import address_of

        return DeviceArray(array, address_of(array), tuple(array.shape), None, np.dtype(array.dtype), 0, True)
    dtype = np.dtype(interface["typestr"])
    if dtype.kind not in "biufc":
        raise TypeError(f"{name} must be an array of numbers, got dtype {dtype}")
    shape = tuple(interface["shape"])
    pointer, read_only = interface["data"]
    strides = interface.get("strides")
    if strides is not None and tuple(strides) == _c_strides(shape, dtype.itemsize):
        strides = None
    return DeviceArray(array, pointer, shape, strides, dtype, _stream_of(array, interface), not read_only)


def empty_like(array: DeviceArray, shape: tuple[int, ...], dtype: np.dtype) -> Any:
    """A new array of `array`'s library, on its GPU."""
    return EMPTY.get(array.library, _empty_numba)(array.owner, shape, dtype)


def _c_strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    strides, step = [], itemsize
    for length in reversed(shape):
        strides.append(step)
        step *= max(1, length)
    return tuple(reversed(strides))


def _library_of(array: Any) -> str:
    return type(array).__module__.partition(".")[0]


def _stream_of(array: Any, interface: dict[str, Any]) -> int:
    library = _library_of(array)
    if library == "torch":
        return int(sys.modules["torch"].cuda.current_stream(array.device).cuda_stream)
    if library == "cupy":
        return int(sys.modules["cupy"].cuda.get_current_stream().ptr)
    return int(interface.get("stream") or 0)


def _empty_numba(owner: Any, shape: tuple[int, ...], dtype: np.dtype) -> Any:
    from .backends._cuda.driver import empty

    return empty(shape, dtype)


def _empty_cupy(owner: Any, shape: tuple[int, ...], dtype: np.dtype) -> Any:
    return sys.modules["cupy"].empty(shape, dtype)


def _empty_torch(owner: Any, shape: tuple[int, ...], dtype: np.dtype) -> Any:
    torch = sys.modules["torch"]
    return torch.empty(shape, dtype=getattr(torch, dtype.name), device=owner.device)


EMPTY: dict[str, Callable[..., Any]] = {"cupy": _empty_cupy, "torch": _empty_torch}
