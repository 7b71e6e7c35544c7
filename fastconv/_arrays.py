"""From what a caller passes to arrays that kernels take: contiguous, aligned, writable, native, of one dtype."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._device import is_device_array
from .problem import computing_dtype

__all__ = ["as_array", "as_bias", "as_operand", "batched_shape", "check_integer_range", "check_out", "common_dtype", "is_plain"]

FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
PLAIN_FLAGS = 0x501  # of `ndarray.flags.num`: C-contiguous, aligned, writable


def as_array(name: str, value: Any) -> np.ndarray:
    """`value` as an array of numbers."""
    if type(value) is not np.ndarray:
        if is_device_array(value):
            return value
        try:
            value = np.asarray(value)
        except ValueError as error:
            raise ValueError(f"{name} must be an array of numbers: {error}") from None
    if value.dtype.kind not in "biufc":
        raise TypeError(f"{name} must be an array of numbers, got dtype {value.dtype}")
    return value


def common_dtype(**arrays: np.ndarray) -> tuple[np.dtype, np.dtype]:
    """The dtypes that the arrays are computed in, and that the result has: NumPy's promotion, integers widened."""
    try:
        promoted = np.result_type(*(array.dtype for array in arrays.values()))
        computed = np.dtype(computing_dtype(promoted))
    except TypeError as error:
        raise TypeError(f"{' and '.join(arrays)} of types {', '.join(str(a.dtype) for a in arrays.values())}: {error}") from None
    return computed, promoted if promoted.kind in "fc" else computed


def batched_shape(name: str, shape: tuple[int, ...], ndim: int) -> tuple[tuple[int, ...], bool]:
    """The shape with a batch axis, and whether it had none."""
    if len(shape) == ndim + 1:
        return (1, *shape), True
    if len(shape) != ndim + 2:
        raise ValueError(f"{name} must have {ndim + 2} dimensions, or {ndim + 1} for a single sample, got shape {shape}")
    return shape, False


class _Writable:
    """A view of a read-only array that is not marked so: Numba would compile every kernel once more for it.

    No kernel writes an input.
    """

    def __init__(self, array: np.ndarray):
        interface = array.__array_interface__
        self.owner = array
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}


def as_operand(array: np.ndarray, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """`array` as kernels take it; a view where it already is so."""
    if array.dtype != dtype or not array.dtype.isnative or not array.flags.c_contiguous or not array.flags.aligned:
        array = np.array(array, dtype, order="C", copy=True)
    if not array.flags.writeable:
        array = np.asarray(_Writable(array))
    return array.reshape(shape)


def as_bias(bias: Any, channels: int, dtype: np.dtype) -> np.ndarray:
    """A bias of one value a channel, cast within its kind."""
    array = as_array("bias", bias)
    if array.shape != (channels,):
        raise ValueError(f"bias must have shape ({channels},), one value per output channel, got {array.shape}")
    if not np.can_cast(array.dtype, dtype, "same_kind"):
        raise TypeError(f"bias of type {array.dtype} cannot be cast to {dtype}")
    return as_operand(array, dtype, array.shape)


def is_plain(array: Any) -> bool:
    """Whether kernels take an argument as it stands, of native float32 or float64."""
    return (type(array) is np.ndarray and (array.dtype is FLOAT32 or array.dtype is FLOAT64)
            and array.flags.num & PLAIN_FLAGS == PLAIN_FLAGS)


def check_out(out: Any, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Refuse an `out` that the result cannot be written to."""
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out must be a NumPy array, got {type(out).__name__}")
    if out.shape != shape:
        raise ValueError(f"out must have shape {shape}, got {out.shape}")
    if out.dtype != dtype:
        raise TypeError(f"out must have dtype {dtype}, got {out.dtype}")
    if not out.flags.writeable:
        raise ValueError("out must be writable, got a read-only array")


def check_integer_range(dtype: np.dtype, terms: int, bias: np.ndarray | None, **arrays: np.ndarray) -> None:
    """Refuse integers whose sum of `terms` products could leave the accumulator, judged by type, then by value."""
    limit = int(np.iinfo(dtype).max)
    start = 0 if bias is None or bias.size == 0 else max(abs(int(bias.max())), abs(int(bias.min())))
    by_type = [1 if a.dtype.kind == "b" else max(abs(int(np.iinfo(a.dtype).min)), int(np.iinfo(a.dtype).max)) for a in arrays.values()]
    if terms * by_type[0] * by_type[1] + start <= limit:
        return
    largest = [max(abs(int(a.max())), abs(int(a.min()))) if a.size else 0 for a in arrays.values()]
    bound = terms * largest[0] * largest[1] + start
    if bound > limit or max(largest) > limit:
        names = " and ".join(arrays)
        raise ValueError(f"{names}: sums of {terms} products of values up to {largest[0]} and {largest[1]} may exceed {dtype} "
                         f"({bound} > {limit}); convert them to float64, or to int64 if the sum fits there")
