"""Convolutions on a GPU: check -> plan -> run, as `_calls` does it for NumPy's arrays.

Arrays of a GPU stay there: the result is of the first operand's library, and all work goes to the stream that this library uses now.
NumPy's arrays are copied there and the result back.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ._arrays import as_array, batched_shape, check_out, common_dtype
from ._device import DeviceArray, as_device_array, empty_like, is_device_array
from .asking import AUTO, Choice, backends, current_choice, possible_choice, warn_once
from .backends import BackendError
from .problem import Options

__all__ = ["ALL_READY", "Operands", "check_bias", "compute", "device_bias_gradient", "device_choice", "numbers", "result_array",
           "run_on_device"]

ALL_READY = 0  # the stream that waits for what NumPy's arrays are copied by


def device_choice(backend: str | None, *arrays: Any) -> Choice | None:
    """Which of the GPU's backends is asked for, by name or by where the arrays lie; None if the processor's are to compute."""
    if any(map(is_device_array, arrays)):
        return _choice_for_device_arrays(current_choice(backend))
    choice = possible_choice(backend)
    return None if choice.device == "cpu" else choice


def _choice_for_device_arrays(choice: Choice) -> Choice:
    if choice.device == "cuda":
        return choice
    if choice.name is not None:
        message = f"backend {choice.name!r} computes NumPy's arrays; those of a GPU are for {', '.join(backends('cuda'))}"
        if choice.source != "FASTCONV_BACKEND":
            raise BackendError(message)
        warn_once(f"FASTCONV_BACKEND: {message}")
        return Choice(None, AUTO.source, "cuda")
    return choice._replace(device="cuda")


class Operands:
    """The arrays of one call on the GPU: contiguous, of one type; what had to be copied is freed when the call is on the stream."""

    def __init__(self, stream: int, stack: contextlib.ExitStack):
        self.stream, self.stack = stream, stack

    def scratch(self, *parts: tuple[int, str]) -> list[Any]:
        """Memory for (count, dtype) each."""
        from .backends._cuda.driver import scratch

        return self.stack.enter_context(scratch(self.stream, *((max(1, count), dtype) for count, dtype in parts)))

    def cast(self, source: Any, count: int, before: np.dtype, after: np.dtype, target: Any = None) -> Any:
        """The same numbers as another type, at `target` or in memory of their own."""
        from .backends._cuda.copies import copy_strided

        target = self.scratch((count, after.name))[0] if target is None else target
        copy_strided(self.stream, source, (count,), (1,), (before.name, after.name), target)
        return target

    def pointer(self, array: Any, dtype: np.dtype) -> Any:
        """Where the array's elements lie in C order as `dtype`."""
        if isinstance(array, DeviceArray) and array.dtype == dtype and array.strides is None:
            return array.pointer
        (target,) = self.scratch((array.size, dtype.name))
        self.copy(array, dtype, target)
        return target

    def copy(self, array: Any, dtype: np.dtype, target: Any) -> None:
        """Copy a view or a NumPy array to memory that lies in C order."""
        from .backends._cuda.copies import copy_strided
        from .backends._cuda.driver import copy_from_host

        if not isinstance(array, DeviceArray):
            copy_from_host(np.ascontiguousarray(array, dtype), target, self.stream)
            return
        itemsize = array.dtype.itemsize
        strides = tuple(s // itemsize for s in array.strides) if array.strides else _c_strides(array.shape)
        copy_strided(self.stream, array.pointer, *_folded(array.shape, strides), (array.dtype.name, dtype.name), target)


def _c_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1:]) for axis in range(len(shape)))


def _folded(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The same elements with axes of one point left out."""
    kept = [(n, s) for n, s in zip(shape, strides, strict=True) if n != 1] or [(1, 0)]
    return tuple(n for n, _ in kept), tuple(s for _, s in kept)


def run_on_device(prepare: Callable[..., Any], kind: str, names: tuple[str, str], ndim: int, first: Any, second: Any, bias: Any,
                  options: Options, choice: Choice, out: Any, extra: Any) -> Any:
    """The result of a call, of the first operand's library, or NumPy's; `prepare` makes its plan."""
    on_device = is_device_array(first)
    first, second, bias = (None if a is None else numbers(n, a) for n, a in ((names[0], first), (names[1], second), ("bias", bias)))
    shapes, single = _batched_shapes(kind, names, ndim, first, second)
    computed, result = common_dtype(**{names[0]: first, names[1]: second})
    call = prepare(kind, ndim, *shapes, computed, result, options, bias is not None, choice, extra)
    shape = call.result_shape[1:] if single else call.result_shape
    check_bias(bias, call)
    target = result_array(out, on_device, first, shape, result)
    with contextlib.ExitStack() as stack:
        operands = Operands(first.stream if on_device else ALL_READY, stack)
        x, w = (operands.pointer(array, computed) for array in (first, second))
        b = None if bias is None else operands.pointer(bias, computed)
        packed = operands.scratch(*call.plan.kernel.packed)
        call.plan.kernel.pack(operands.stream, w, packed)
        compute(call, operands, x, w, packed, b, target)
    return target


def numbers(name: str, array: Any) -> Any:
    """A view of a GPU's array, or a NumPy array."""
    return as_device_array(name, array) if is_device_array(array) else as_array(name, array)


def check_bias(bias: Any, call: Any) -> None:
    """Refuse a bias of another length than the result's channels."""
    channels = call.plan.problem.epilogue_channels
    if bias is not None and tuple(bias.shape) != (channels,):
        raise ValueError(f"bias must have shape ({channels},), one value per output channel, got {tuple(bias.shape)}")


def _batched_shapes(kind: str, names: tuple[str, str], ndim: int, first: Any, second: Any) -> tuple[tuple[tuple[int, ...], ...], bool]:
    shape, single = batched_shape(names[0], first.shape, ndim)
    if kind == "grad_weight":
        return (shape, batched_shape(names[1], second.shape, ndim)[0]), False
    return (shape, tuple(second.shape)), single


def result_array(out: Any, on_device: bool, first: Any, shape: tuple[int, ...], dtype: np.dtype) -> Any:
    """Where the result goes: `out`, or a new array."""
    if out is None:
        return empty_like(first, shape, dtype) if on_device else np.empty(shape, dtype)
    if not is_device_array(out):
        if on_device:
            raise TypeError(f"out must be an array of the GPU's, as the operands are, got {type(out).__name__}")
        check_out(out, shape, dtype)
        return out
    view = as_device_array("out", out)
    if view.shape != shape:
        raise ValueError(f"out must have shape {shape}, got {view.shape}")
    if view.dtype != dtype:
        raise TypeError(f"out must have dtype {dtype}, got {view.dtype}")
    if view.strides is not None or not view.writable:
        raise ValueError("out must be writable and contiguous")
    return out


def compute(call: Any, operands: Operands, x: Any, w: Any, packed: list[Any], bias: Any, target: Any) -> None:
    """Run the kernel, and bring the result where it belongs."""
    from .backends._cuda.driver import copy_to_host

    elements = math.prod(call.result_shape)
    view = as_device_array("out", target) if is_device_array(target) else None
    in_place = view is not None and call.result == call.computed
    place = view.pointer if view is not None and in_place else operands.scratch((elements, call.computed.name))[0]
    call.plan.kernel.run(operands.stream, x, w, packed, bias, place)
    if in_place or not elements:
        return
    if call.result != call.computed:
        place = operands.cast(place, elements, call.computed, call.result, None if view is None else view.pointer)
    if view is None:
        whole = target if target.flags.c_contiguous else np.empty(target.shape, target.dtype)
        copy_to_host(place, whole, operands.stream)
        if whole is not target:
            target[...] = whole


def device_bias_gradient(gy: Any, axis: int, dtype: np.dtype) -> Any:
    """The sum of gy over all but its channels, on the GPU."""
    from .backends._cuda.copies import sum_channels

    view = as_device_array("gy", gy)
    result = empty_like(view, (view.shape[axis],), dtype)
    with contextlib.ExitStack() as stack:
        pointer = Operands(view.stream, stack).pointer(view, dtype)
        sum_channels(view.stream, pointer, view.shape, axis, dtype.name, as_device_array("gb", result).pointer)
    return result
