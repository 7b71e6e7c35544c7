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

from ._arrays import batched_shape, check_integer_range, check_out, common_dtype
from ._device import DeviceArray, as_device_array, empty_like, is_device_array
from ._device_operands import ALL_READY, Operands, host_copy, numbers
from .asking import AUTO, Choice, backends, current_choice, possible_choice, warn_once
from .backends import BackendError
from .problem import Options

__all__ = ["check_bias", "check_integers", "compute", "device_choice", "device_of", "result_array", "run_on_device"]


def device_choice(backend: str | None, *arrays: Any) -> Choice | None:
    """Which of the GPU's backends is asked for, by name or by where the arrays lie; None if the processor's are to compute."""
    if any(map(is_device_array, arrays)):
        return _choice_for_device_arrays(current_choice(backend))
    choice = possible_choice(backend)
    return None if choice.device == "cpu" else choice


def _choice_for_device_arrays(choice: Choice) -> Choice:
    if choice.device == "cuda":
        return possible_choice(choice.name or choice.device)._replace(source=choice.source)
    if choice.name is not None:
        message = f"backend {choice.name!r} computes NumPy's arrays; those of a GPU are for {', '.join(backends('cuda'))}"
        if choice.source != "FASTCONV_BACKEND":
            raise BackendError(message)
        warn_once(f"FASTCONV_BACKEND: {message}")
        return possible_choice("cuda")._replace(source=AUTO.source)
    return possible_choice("cuda")._replace(source=choice.source)


def run_on_device(prepare: Callable[..., Any], kind: str, names: tuple[str, str], ndim: int, first: Any, second: Any, bias: Any,
                  options: Options, choice: Choice, out: Any, extra: Any) -> Any:
    """The result of a call, of the first operand's library, or NumPy's; `prepare` makes its plan."""
    from .backends._cuda.context import using

    on_device = is_device_array(first)
    first, second, bias = (None if a is None else numbers(n, a) for n, a in ((names[0], first), (names[1], second), ("bias", bias)))
    shapes, single = _batched_shapes(kind, names, ndim, first, second)
    computed, result = common_dtype(**{names[0]: first, names[1]: second})
    with using(device_of(**{names[0]: first, names[1]: second, "bias": bias})), contextlib.ExitStack() as stack:
        call = prepare(kind, ndim, *shapes, computed, result, options, bias is not None, choice, extra)
        shape = call.result_shape[1:] if single else call.result_shape
        check_bias(bias, call)
        check_integers(call, bias, **{names[0]: first, names[1]: second})
        target = result_array(out, on_device, first, shape, result)
        operands = Operands(first.stream if on_device else ALL_READY, stack)
        operands.wait_for(first, second, bias)
        x, w = (operands.pointer(array, computed) for array in (first, second))
        b = None if bias is None else operands.pointer(bias, computed)
        packed = operands.scratch(*call.plan.kernel.packed)
        call.plan.kernel.pack(operands.stream, w, packed)
        compute(call, operands, x, w, packed, b, target, (first, second, bias))
        operands.keep(first, second, bias)
    return target


def device_of(**arrays: Any) -> int | None:
    """The number of the GPU on which all arrays of GPUs lie; None where none says so."""
    devices = {name: array.device for name, array in arrays.items() if isinstance(array, DeviceArray) and array.device is not None}
    if len(set(devices.values())) > 1:
        raise ValueError("the arrays of a call must lie on one GPU, got " + ", ".join(f"{name} on {n}" for name, n in devices.items()))
    return next(iter(devices.values()), None)


def check_bias(bias: Any, call: Any) -> None:
    """Refuse a bias of another length than the result's channels, or of a kind that does not fit."""
    if bias is None:
        return
    channels = call.plan.problem.epilogue_channels
    if tuple(bias.shape) != (channels,):
        raise ValueError(f"bias must have shape ({channels},), one value per output channel, got {tuple(bias.shape)}")
    if not np.can_cast(bias.dtype, call.computed, "same_kind"):
        raise TypeError(f"bias of type {bias.dtype} cannot be cast to {call.computed}")


def check_integers(call: Any, bias: Any, **arrays: Any) -> None:
    """Refuse integers whose sums could leave the accumulator; waits for a GPU's arrays where their type alone does not tell."""
    if call.computed.kind != "i":
        return
    terms = call.plan.problem.longest_sum
    largest = [_largest(array.dtype) for array in arrays.values()]
    if terms * largest[0] * largest[1] + (0 if bias is None else _largest(bias.dtype)) <= np.iinfo(call.computed).max:
        return
    hosts = {name: host_copy(array.owner) if isinstance(array, DeviceArray) else array for name, array in arrays.items()}
    bias = host_copy(bias.owner) if isinstance(bias, DeviceArray) else bias
    check_integer_range(call.computed, terms, bias, **hosts)


def _largest(dtype: np.dtype) -> int:
    return 1 if dtype.kind == "b" else -int(np.iinfo(dtype).min) or int(np.iinfo(dtype).max)


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


def compute(call: Any, operands: Operands, x: Any, w: Any, packed: list[Any], bias: Any, target: Any, inputs: tuple[Any, ...]) -> None:
    """Run the kernel, and bring the result where it belongs, which may be where an input lies."""
    elements = math.prod(call.result_shape)
    view = as_device_array("out", target) if is_device_array(target) else None
    if view is not None and call.result == call.computed and not any(isinstance(a, DeviceArray) and view.overlaps(a) for a in inputs):
        call.plan.kernel.run(operands.stream, x, w, packed, bias, operands.pointer(view, call.computed))
        return
    place = operands.real_memory(elements, call.computed)
    call.plan.kernel.run(operands.stream, x, w, packed, bias, place)
    if not elements:
        return
    if view is not None:
        operands.cast(place, elements, call.computed, call.result, view.pointer)
        return
    if call.result != call.computed:
        place = operands.cast(place, elements, call.computed, call.result)
    operands.to_host(place, target)
