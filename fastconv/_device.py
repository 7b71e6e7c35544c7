"""Arrays in a GPU's memory, whoever made them: what kernels need of them, and results of the same kind.

An array is taken through `__cuda_array_interface__` (Numba, CuPy, PyTorch and others), or else through DLPack. Its library is never
imported for it: it is there, or there would be no array of it.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

__all__ = ["DeviceArray", "as_device_array", "empty_like", "is_device_array"]

ON_GPU = (2, 13)  # DLPack's numbers of CUDA's memory and of managed memory
DEFAULT_STREAM = 0
LEGACY_STREAM = 1  # the same by its other name, which interfaces use since 0 is ambiguous there
DLPACK_KINDS = {0: "i", 1: "u", 2: "f", 5: "c", 6: "b"}


class DeviceArray(NamedTuple):
    """A view of an array in a GPU's memory."""

    owner: Any  # keeps the memory
    pointer: Any  # as launches take it
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None  # in elements; None where they lie in C order
    dtype: np.dtype
    stream: int  # on which its elements are ready
    device: int | None  # number of the GPU; None if its library does not say
    span: tuple[int, int]  # addresses of its first byte and beyond its last
    writable: bool = True
    capsule: Any = None  # must live until the work that reads the array is done

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
    def steps(self) -> tuple[int, ...]:
        """Elements between neighbours along each axis."""
        return _c_steps(self.shape) if self.strides is None else self.strides

    @property
    def library(self) -> str:
        """The package that made it."""
        return _library_of(self.owner)

    def overlaps(self, other: DeviceArray) -> bool:
        """Whether both may share memory."""
        return self.span[0] < other.span[1] and other.span[0] < self.span[1]


def is_device_array(array: Any) -> bool:
    """Whether an object is an array in a GPU's memory."""
    kind = type(array)
    if kind is np.ndarray or kind in (list, tuple, float, int):
        return False
    if kind.__module__.partition(".")[0] == "torch":
        return bool(getattr(array, "is_cuda", False))
    if hasattr(array, "__cuda_array_interface__") or hasattr(array, "__cuda_ndarray__"):
        return True
    return hasattr(array, "__dlpack_device__") and not isinstance(array, np.ndarray) and array.__dlpack_device__()[0] in ON_GPU


def as_device_array(name: str, array: Any) -> DeviceArray:
    """The view of a GPU's array of numbers."""
    if _library_of(array) == "torch":
        array = array.detach() if array.requires_grad else array
        array = array.resolve_conj().resolve_neg() if array.is_conj() or array.is_neg() else array  # which only mark the array
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is None and hasattr(array, "_ary"):  # the simulator's
        interface = {**array._ary.__array_interface__, "strides": array._ary.strides}
    if interface is None:
        return _from_dlpack(name, array)
    dtype = np.dtype(interface["typestr"])
    strides = interface.get("strides")
    if strides is not None and any(stride % dtype.itemsize for stride in strides):
        raise ValueError(f"{name} must lie on whole elements, got strides of {strides} bytes for {dtype}")
    steps = None if strides is None else tuple(stride // dtype.itemsize for stride in strides)
    address, read_only = interface["data"]
    return _view(name, array, address or 0, tuple(interface["shape"]), steps, dtype, _stream_of(array, interface), not read_only)


def _view(name: str, array: Any, address: int, shape: tuple[int, ...], steps: tuple[int, ...] | None, dtype: np.dtype, stream: int,
          writable: bool = True, device: int | None = None, capsule: Any = None) -> DeviceArray:
    from .backends._cuda.driver import pointer_at

    if dtype.kind not in "biufc" or not dtype.isnative:
        raise TypeError(f"{name} must be an array of numbers, got dtype {dtype}")
    if steps is not None and (steps == _c_steps(shape) or 0 in shape):
        steps = None
    moves = [(length - 1) * step for length, step in zip(shape, _c_steps(shape) if steps is None else steps, strict=True)]
    below, above = -sum(move for move in moves if move < 0), sum(move for move in moves if move > 0)
    count = 0 if 0 in shape else below + above + 1
    start = address - below * dtype.itemsize
    device = DEVICES.get(_library_of(array), lambda array: device)(array)
    return DeviceArray(array, pointer_at(address, dtype, below, count), shape, steps, dtype, stream, device,
                       (start, start + count * dtype.itemsize), writable, capsule)


def empty_like(array: DeviceArray, shape: tuple[int, ...], dtype: np.dtype) -> Any:
    """A new array of `array`'s library, on its GPU."""
    return EMPTY.get(array.library, _empty_numba)(array.owner, shape, dtype)


def _c_steps(shape: tuple[int, ...]) -> tuple[int, ...]:
    steps, step = [], 1
    for length in reversed(shape):
        steps.append(step)
        step *= max(1, length)
    return tuple(reversed(steps))


# -- libraries ------------------------------------------------------------------------------------------------------------


def _library_of(array: Any) -> str:
    return type(array).__module__.partition(".")[0]


def _stream_of(array: Any, interface: dict[str, Any]) -> int:
    library = _library_of(array)
    if library == "torch":
        return int(sys.modules["torch"].cuda.current_stream(array.device).cuda_stream)
    if library == "cupy":
        return int(sys.modules["cupy"].cuda.get_current_stream().ptr)
    stream = int(interface.get("stream") or DEFAULT_STREAM)
    return DEFAULT_STREAM if stream == LEGACY_STREAM else stream


def _device_of_numba(array: Any) -> int | None:
    context = getattr(getattr(array, "gpu_data", None), "context", None)
    return None if context is None else int(context.device.id)


def _empty_numba(owner: Any, shape: tuple[int, ...], dtype: np.dtype) -> Any:
    from .backends._cuda.driver import empty

    return empty(shape, dtype)


def _empty_cupy(owner: Any, shape: tuple[int, ...], dtype: np.dtype) -> Any:
    return sys.modules["cupy"].empty(shape, dtype)


def _empty_torch(owner: Any, shape: tuple[int, ...], dtype: np.dtype) -> Any:
    torch = sys.modules["torch"]
    return torch.empty(shape, dtype=getattr(torch, dtype.name), device=owner.device)


EMPTY: dict[str, Callable[..., Any]] = {"cupy": _empty_cupy, "torch": _empty_torch}
DEVICES: dict[str, Callable[[Any], int | None]] = {
    "cupy": lambda array: int(array.device.id), "torch": lambda array: int(array.device.index or 0),
    "numba": _device_of_numba, "numba_cuda": _device_of_numba}


# -- DLPack ---------------------------------------------------------------------------------------------------------------


class _Tensor(ctypes.Structure):
    """DLPack's DLTensor, with which a DLManagedTensor begins."""

    _fields_ = [("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32), ("ndim", ctypes.c_int32),
                ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
                ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)), ("byte_offset", ctypes.c_uint64)]


def _from_dlpack(name: str, array: Any) -> DeviceArray:
    """The view of an array that has nothing but DLPack's protocol; its elements are ready on the default stream."""
    capsule = array.__dlpack__(stream=LEGACY_STREAM)
    pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
    pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    tensor = ctypes.cast(pointer_of(capsule, b"dltensor"), ctypes.POINTER(_Tensor)).contents
    kind = DLPACK_KINDS.get(tensor.code)
    if kind is None or tensor.lanes != 1 or tensor.bits % 8:
        raise TypeError(f"{name} must be an array of numbers, got DLPack's type {tensor.code} of {tensor.bits} bits")
    shape = tuple(tensor.shape[:tensor.ndim])
    steps = tuple(tensor.strides[:tensor.ndim]) if tensor.strides else None
    return _view(name, array, (tensor.data or 0) + tensor.byte_offset, shape, steps, np.dtype(f"{kind}{tensor.bits // 8}"), DEFAULT_STREAM,
                 device=tensor.device_id, capsule=capsule)
