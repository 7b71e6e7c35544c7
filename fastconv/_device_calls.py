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
from .asking import AUTO, Choice, backends, current_choice, warn_once
from .backends import BackendError
from .problem import Options

__all__ = ["device_bias_gradient", "device_choice", "run_on_device"]

ALL_READY = 0  # the stream that waits for what NumPy's arrays are copied by


def device_choice(backend: str | None, *arrays: Any) -> Choice | None:
    """Which of the GPU's backends is asked for, by name or by where the arrays lie; None if the processor's are to compute."""
    choice = current_choice(backend)
    if any(map(is_device_array, arrays)):
        return _choice_for_device_arrays(choice)
    if choice.device == "cpu":
        return None
    from .backends._cuda.driver import absence

    reason = absence()
    if reason is None:
        return choice
    message = f"backend {named(choice)!r} cannot compute this: {reason}"
    if choice.source != "FASTCONV_BACKEND":
        raise BackendError(message)
    warn_once(f"FASTCONV_BACKEND: {message}; using the processor")
    return None


def named(choice: Choice) -> str:
    """A choice as it was asked for."""
    return choice.device if choice.name is None else f"{choice.device}_{choice.name}"


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


class _Operands:
    """The arrays of one call on the GPU: contiguous, of one type; what had to be copied is freed when the call is on the stream."""

    def __init__(self, stream: int, stack: contextlib.ExitStack):
        self.stream, self.stack = stream, stack

    def pointer(self, array: Any, dtype: np.dtype) -> Any:
        """Where the array's elements lie in C order as `dtype`."""
        from .backends._cuda.copies import copy_strided
        from .backends._cuda.driver import copy_from_host, scratch

        if isinstance(array, DeviceArray):
            if array.dtype == dtype and array.strides is None:
                return array.pointer
            (target,) = self.stack.enter_context(scratch(self.stream, (max(1, array.size), dtype.name)))
            strides = array.strides or tuple(s for s in _element_strides(array.shape, array.dtype.itemsize))
            shape, steps = _folded(array.shape, tuple(s // array.dtype.itemsize for s in strides))
            copy_strided(self.stream, array.pointer, shape, steps, (array.dtype.name, dtype.name), target)
            return target
        array = np.ascontiguousarray(array, dtype)
        (target,) = self.stack.enter_context(scratch(self.stream, (max(1, array.size), dtype.name)))
        copy_from_host(array, target, self.stream)
        return target


def _element_strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    return tuple(itemsize * math.prod(shape[axis + 1:]) for axis in range(len(shape)))


def _folded(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The same elements with axes of one point left out."""
    kept = [(n, s) for n, s in zip(shape, strides, strict=True) if n != 1] or [(1, 0)]
    return tuple(n for n, _ in kept), tuple(s for _, s in kept)


def run_on_device(prepare: Callable[..., Any], kind: str, names: tuple[str, str], ndim: int, first: Any, second: Any, bias: Any, options: Options, choice: Choice,
                  out: Any, extra: Any) -> Any:
    """The result of a call, of the first operand's library, or NumPy's; `prepare` makes its plan."""
    on_device = is_device_array(first)
    first, second, bias = (None if a is None else as_device_array(n, a) if is_device_array(a) else as_array(n, a)
                           for n, a in ((names[0], first), (names[1], second), ("bias", bias)))
    shapes, single = _batched_shapes(kind, names, ndim, first, second)
    computed, result = common_dtype(**{names[0]: first, names[1]: second})
    call = prepare(kind, ndim, *shapes, computed, result, options, bias is not None, choice, extra)
    shape = call.result_shape[1:] if single else call.result_shape
    if bias is not None and bias.shape != (call.plan.problem.epilogue_channels,):
        raise ValueError(f"bias must have shape ({call.plan.problem.epilogue_channels},), one value per output channel, got {bias.shape}")
    target = _target(out, on_device, first, shape, result)
    stream = first.stream if on_device else ALL_READY
    with contextlib.ExitStack() as stack:
        operands = _Operands(stream, stack)
        pointers = [operands.pointer(array, computed) for array in (first, second)]
        bias_pointer = None if bias is None else operands.pointer(bias, computed)
        _compute(call, stream, pointers, bias_pointer, target, result, stack)
    return target


def _batched_shapes(kind: str, names: tuple[str, str], ndim: int, first: Any, second: Any) -> tuple[tuple[tuple[int, ...], ...], bool]:
    shape, single = batched_shape(names[0], first.shape, ndim)
    if kind == "grad_weight":
        return (shape, batched_shape(names[1], second.shape, ndim)[0]), False
    return (shape, tuple(second.shape)), single


def _target(out: Any, on_device: bool, first: Any, shape: tuple[int, ...], dtype: np.dtype) -> Any:
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


def _compute(call: Any, stream: int, pointers: list[Any], bias: Any, target: Any, result: np.dtype, stack: contextlib.ExitStack) -> None:
    """Pack, run, and bring the result where it belongs."""
    from .backends._cuda.copies import copy_strided
    from .backends._cuda.driver import copy_to_host, scratch

    kernel = call.plan.kernel
    elements = math.prod(call.result_shape)
    view = as_device_array("out", target) if is_device_array(target) else None
    direct = view is not None and result == call.computed
    place = view.pointer if direct and view is not None else stack.enter_context(scratch(stream, (max(1, elements), call.computed.name)))[0]
    packed = stack.enter_context(scratch(stream, *kernel.packed))
    kernel.pack(stream, pointers[1], packed)
    kernel.run(stream, pointers[0], pointers[1], packed, bias, place)
    if direct or not elements:
        return
    if result != call.computed:
        (cast,) = stack.enter_context(scratch(stream, (elements, result.name))) if view is None else (view.pointer,)
        copy_strided(stream, place, (elements,), (1,), (call.computed.name, result.name), cast)
        place = cast
    if view is None:
        if target.flags.c_contiguous:
            copy_to_host(place, target, stream)
        else:
            whole = np.empty(target.shape, target.dtype)
            copy_to_host(place, whole, stream)
            target[...] = whole


def device_bias_gradient(gy: Any, axis: int, dtype: np.dtype) -> Any:
    """The sum of gy over all but its channels, on the GPU."""
    from .backends._cuda.copies import sum_channels

    view = as_device_array("gy", gy)
    result = empty_like(view, (view.shape[axis],), dtype)
    with contextlib.ExitStack() as stack:
        pointer = _Operands(view.stream, stack).pointer(view, dtype)
        sum_channels(view.stream, pointer, view.shape, axis, dtype.name, as_device_array("gb", result).pointer)
    return result
