"""What every public function does with its arguments: check -> plan -> run.

The arguments of a call become a key of shapes, dtypes and options; the plan of a key is made once.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import wisdom
from ._arrays import as_array, as_bias, as_operand, batched_shape, check_integer_range, check_out, common_dtype, is_plain
from ._device import is_device_array
from ._device_calls import device_choice, run_on_device
from ._device_operands import device_bias_gradient
from .asking import AUTO, Choice, asked_backend, current_choice, possible_choice
from .backends._scratch import empty, reused_operands
from .dispatcher import Plan, plan
from .problem import ACCURACIES, Options, Problem

__all__ = ["READY_FLAGS", "Call", "batched", "bias_gradient", "check_shape", "empty", "execute", "frozen", "lookup", "make_options",
           "prepare_on_device", "remembered", "run", "shape_of"]

CALLS_KEPT = 4096
SMALL_OPERAND = 1024  # elements for which fresh memory costs less than asking for scratch (the same)


# -- check ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """What a call of given shapes, dtypes and options comes to."""

    plan: Plan
    computed: np.dtype
    result: np.dtype
    result_shape: tuple[int, ...]  # as the caller sees it, batched
    shapes: tuple[tuple[int, ...], ...]  # of the operands and the result, with three spatial axes


@functools.lru_cache(maxsize=CALLS_KEPT, typed=True)
def _prepare(kind: str, ndim: int, first: tuple[int, ...], second: tuple[int, ...], computed: np.dtype, result: np.dtype,
             options: Options, bias: bool, choice: Choice, extra: Any, prepacked: bool, executor: int, generation: int) -> Call:
    """The plan of a call; `kind` is a pass name or "transposed"; `extra` the shape of the result or the output padding.

    `executor` is what else it depends on: the number of threads, or which GPU.
    """
    name = computed.name
    if kind == "transposed":
        problem = Problem.create_transposed(ndim, first, second, name, options, extra, bias=bias, device=choice.device)
    elif kind == "grad_input":
        problem = Problem.create(kind, ndim, extra, second, name, options, bias=bias, device=choice.device)
        check_shape("gy", first, problem.public_shape(problem.output_shape))
    elif kind == "grad_weight":
        problem = Problem.create(kind, ndim, first, extra, name, options, device=choice.device)
        check_shape("gy", second, problem.public_shape(problem.output_shape))
    else:
        problem = Problem.create(kind, ndim, first, second, name, options, bias=bias, device=choice.device)
    shapes = problem.shapes
    made = plan(problem, choice, prepacked=prepacked)
    return Call(made, computed, result, problem.public_shape(shapes[2]), shapes)


def check_shape(name: str, got: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Refuse an operand whose shape does not fit the others."""
    if got != expected:
        raise ValueError(f"{name} must have shape {expected} for these operands and options, got {got}")


def make_options(stride: Any, padding: Any, dilation: Any, groups: Any, padding_mode: Any = "zeros", layout: Any = "NCHW",
                 activation: Any = None, accuracy: Any = None) -> Options:
    """The options of a call, hashable; the accuracy defaults to FASTCONV_ACCURACY."""
    if accuracy is None:
        accuracy = os.environ.get("FASTCONV_ACCURACY") or "default"
        if accuracy not in ACCURACIES:
            raise ValueError(f"FASTCONV_ACCURACY must be one of {', '.join(ACCURACIES)}; got {accuracy!r}")
    return Options(frozen(stride, "stride"), frozen(padding, "padding"), frozen(dilation, "dilation"), frozen(groups, "groups"),
                   _named(padding_mode, "padding_mode"), _named(layout, "layout"), _named(activation, "activation"), accuracy)


def frozen(value: Any, name: str) -> Any:
    """An option as part of a key: integers as int, sequences as tuples; what else equals an integer is refused.

    True and 1.0 would find the key of 1.
    """
    if type(value) is int or value is None or type(value) is str:
        return value
    if type(value) is tuple or type(value) is list:
        for item in value:  # ints and pairs of them, as they mostly are, without a call each
            if type(item) is not int and not (type(item) is tuple and len(item) == 2 and type(item[0]) is type(item[1]) is int):
                return tuple(frozen(item, name) for item in value)
        return tuple(value)
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return tuple(frozen(item, name) for item in value)
    if not isinstance(value, (bool, np.bool_)) and hasattr(value, "__index__"):
        return value.__index__()
    raise TypeError(f"{name} must be an integer, a name or a sequence of integers, got {value!r}")


def _named(value: Any, name: str) -> Any:
    """A name as part of a key; `Problem` says which names there are."""
    try:
        hash(value)
    except TypeError:
        raise TypeError(f"{name} must be a name, got {value!r}") from None
    return value


def batched(name: str, array: np.ndarray, ndim: int) -> tuple[np.ndarray, bool]:
    """The array with a batch axis, and whether it had none."""
    single = batched_shape(name, array.shape, ndim)[1]
    return (array[np.newaxis] if single else array), single


def shape_of(name: str, shape: Any) -> tuple[int, ...]:
    """A shape argument as a tuple of ints."""
    if type(shape) is tuple:
        for size in shape:
            if type(size) is not int:
                break
        else:
            return shape
    try:
        return tuple(int(n.__index__()) for n in shape)
    except (TypeError, AttributeError):
        raise TypeError(f"{name} must be a sequence of integers, got {shape!r}") from None


# -- run ------------------------------------------------------------------------------------------------------------------


OPERANDS = {"forward": ("x", "w"), "transposed": ("x", "w"), "grad_input": ("gy", "w"), "grad_weight": ("x", "gy")}


def run(kind: str, ndim: int, first: Any, second: Any, bias: Any, settings: tuple[Any, ...], backend: str | None, out: Any,
        extra: Any = None) -> np.ndarray:
    """Check the operands, get the plan, run it; the first operand (and gy as the second) may be unbatched.

    `settings` are the arguments of `make_options`.
    """
    names = OPERANDS[kind]
    options = make_options(*settings)
    choice = device_choice(backend, first, second)
    if choice is not None:
        return run_on_device(prepare_on_device, kind, names, ndim, first, second, bias, options, choice, out, extra)
    first, single = batched(names[0], as_array(names[0], first), ndim)
    second = as_array(names[1], second)
    if kind == "grad_weight":
        second, _ = batched(names[1], second, ndim)
        single = False
    computed, result = common_dtype(**{names[0]: first, names[1]: second})
    call = lookup(kind, ndim, first.shape, second.shape, computed, result, options, bias is not None, backend, extra)
    return execute(call, names, first, second, bias, out, single)


@functools.cache
def _thread_counter() -> Callable[[], int]:
    """The function `num_threads`; importing it imports Numba."""
    from .backends._jit import num_threads

    return num_threads


def lookup(kind: str, ndim: int, first: tuple[int, ...], second: tuple[int, ...], computed: np.dtype, result: np.dtype,
            options: Options, bias: bool, backend: str | None, extra: Any, prepacked: bool = False) -> Call:
    choice = current_choice(backend)
    choice = choice if choice.device == "cpu" else AUTO
    return _prepare(kind, ndim, first, second, computed, result, options, bias, choice, extra, prepacked, _thread_counter()(),
                    wisdom.store.generation)


def prepare_on_device(kind: str, ndim: int, first: tuple[int, ...], second: tuple[int, ...], computed: np.dtype, result: np.dtype,
                      options: Options, bias: bool, choice: Choice, extra: Any, prepacked: bool = False) -> Call:
    """The same for a GPU's backends."""
    from .backends._cuda.context import current_device

    return _prepare(kind, ndim, first, second, computed, result, options, bias, choice, extra, prepacked, current_device(),
                    wisdom.store.generation)


def execute(call: Call, names: tuple[str, str], first: np.ndarray, second: np.ndarray, bias: Any, out: Any, single: bool,
             packed: Any = None) -> np.ndarray:
    problem = call.plan.problem
    shape = call.result_shape[1:] if single else call.result_shape
    if out is not None:
        check_out(out, shape, call.result)
    prepared_bias = None if bias is None else as_bias(bias, problem.epilogue_channels, call.computed)
    if call.computed.kind == "i":
        check_integer_range(call.computed, problem.longest_sum, prepared_bias, **{names[0]: first, names[1]: second})
    target = _target(out, call, first, second, bias)
    x = as_operand(first, call.computed, call.shapes[0])
    if packed is None:
        with reused_operands:
            call.plan.run(x, call.plan.pack(as_operand(second, call.computed, call.shapes[1])), prepared_bias, target)
    else:
        call.plan.run(x, packed, prepared_bias, target)
    result = target.reshape(shape)
    if out is None:
        return result if result.dtype == call.result else result.astype(call.result)
    if not np.may_share_memory(out, target):
        out[...] = result
    return out


def _target(out: Any, call: Call, *inputs: Any) -> np.ndarray:
    """Where kernels write: `out` itself if they can, and if no input lies there."""
    if out is not None and out.dtype == call.computed and out.dtype.isnative and out.flags.c_contiguous and out.flags.aligned:
        if not any(isinstance(array, np.ndarray) and np.may_share_memory(out, array) for array in inputs):
            return np.asarray(out).reshape(call.shapes[2])
    return np.empty(call.shapes[2], call.computed)


@functools.cache
def _channel_sums() -> Callable[..., Any]:
    """The function `channel_sums`; importing it imports Numba."""
    from .backends._sums import channel_sums

    return channel_sums


def bias_gradient(gy: np.ndarray, ndim: int, layout: str, dtype: np.dtype) -> np.ndarray:
    """The sum of gy over all but its channels."""
    axis = _channel_axis(gy.shape, ndim, layout)
    if is_device_array(gy):
        return device_bias_gradient(gy, axis, dtype)
    if gy.size and dtype in (FLOAT32, FLOAT64) and (gy.dtype == dtype or gy.dtype == dtype.newbyteorder()):
        sums = _channel_sums()(gy.shape, axis, dtype)
        return sums(gy if is_plain(gy) else as_operand(gy, dtype, gy.shape))
    with np.errstate(invalid="ignore", over="ignore"):
        return gy.sum(axis=tuple(i for i in range(gy.ndim) if i != axis), dtype=dtype)


def _channel_axis(shape: tuple[int, ...], ndim: int, layout: str) -> int:
    return len(shape) - 1 if str(layout).endswith("C") else len(shape) - ndim - 1


# -- a call seen before ---------------------------------------------------------------------------------------------------

FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
READY_FLAGS = 0x501  # of `ndarray.flags.num`, where kernels take an array as it stands: C-contiguous, aligned, writable
# The variables as `os.environ` keeps them, if it does: its own conversions take 0.5 us each.
_kept: dict[Any, Any] | None = getattr(os.environ, "_data", None)
_read: Callable[[Any], Any] = os.environ.get if _kept is None else _kept.get
_BACKEND, _ACCURACY = (name if _kept is None else os.environ.encodekey(name) for name in ("FASTCONV_BACKEND", "FASTCONV_ACCURACY"))


def remembered(kind: str, ndim: int, first: Any, second: Any, third: Any, settings: tuple[Any, ...], backend: str | None,
               extra: Any) -> Callable[..., Any] | None:
    """What runs a call whose arrays need no conversion; else None, also where the options are wrong.

    `third` is the bias, or the weights of a "backward" call; either may be None. The key holds values, never objects, since a
    list may change in place; and of the types whose values may be equal, those of one kind only.
    """
    try:
        dtype = first.dtype
        if not (type(first) is type(second) is np.ndarray and (dtype is FLOAT32 or dtype is FLOAT64) and dtype is second.dtype
                and first.flags.num & second.flags.num & READY_FLAGS == READY_FLAGS):
            return None
        if not (third is None or (type(third) is np.ndarray and third.dtype is dtype and third.flags.num & READY_FLAGS == READY_FLAGS)):
            return None
        stride, padding, dilation, groups, mode, layout, activation, accuracy = settings
        if type(padding) is not int:
            padding = frozen(padding, "")
        if not type(stride) is type(dilation) is type(groups) is int:
            stride, dilation, groups = frozen(stride, ""), frozen(dilation, ""), frozen(groups, "")
        settings = (stride, padding, dilation, groups, mode, layout, activation, accuracy)
        return _ready_call(kind, ndim, first.shape, second.shape, None if third is None else third.shape, dtype, settings, backend, extra,
                           asked_backend(), _thread_counter()(), wisdom.store.generation, _read(_BACKEND), _read(_ACCURACY))
    except (AttributeError, TypeError):  # no array, an option of a wrong type or that cannot be hashed: the checks of a first call name it
        return None


@functools.lru_cache(maxsize=CALLS_KEPT)
def _ready_call(kind: str, ndim: int, first: tuple[int, ...], second: tuple[int, ...], third: tuple[int, ...] | None, dtype: np.dtype,
                settings: tuple[Any, ...], backend: str | None, extra: Any, *surroundings: Any) -> Callable[..., Any] | None:
    """A call without conversions, checked once; None where a first call would raise, which it then does.

    `surroundings` are what else the choice depends on.
    """
    try:
        options = make_options(*settings)
        if kind == "backward":
            return ReadyBackward(ndim, first, second, third, dtype, options, backend, *extra)
        return _single_call(kind, ndim, first, second, third, dtype, options, backend, extra)
    except (TypeError, ValueError):
        return None


def _single_call(kind: str, ndim: int, first: tuple[int, ...], second: tuple[int, ...], bias: tuple[int, ...] | None, dtype: np.dtype,
                 options: Options, backend: str | None, extra: Any) -> ReadyCall:
    """The ready call of one pass; the checks of shapes raise as those of a first call do, if with other words."""
    if possible_choice(backend).device != "cpu":
        raise ValueError("not by the processor")
    single = len(first) == ndim + 1
    if kind == "grad_weight":
        second = _batched_shape(second, ndim)
    call = lookup(kind, ndim, _batched_shape(first, ndim), second, dtype, dtype, options, bias is not None, backend, extra)
    if bias is not None and bias != (call.plan.problem.epilogue_channels,):
        raise ValueError("bias")
    return ReadyCall(call.plan, call.result_shape[1:] if single and kind != "grad_weight" else call.result_shape, dtype)


def _batched_shape(shape: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    return (1, *shape) if len(shape) == ndim + 1 else shape


class ReadyCall:
    """A call that was checked before: allocate, pack, run."""

    def __init__(self, made: Plan, shape: tuple[int, ...], dtype: np.dtype):
        self._pack, self._run, self._shape, self._dtype = made.kernel.pack, made.kernel.run, shape, dtype
        self._small = math.prod(made.problem.shapes[1]) <= SMALL_OPERAND

    def __call__(self, first: np.ndarray, second: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        out = empty(self._shape, self._dtype)
        if self._small:
            self._run(first, self._pack(second), bias, out)
        else:
            with reused_operands:
                self._run(first, self._pack(second), bias, out)
        return out


class ReadyBackward:
    """The gradients of a call that was checked before: those of the input and the weights, and the bias's if wanted.

    Those of a transposed convolution are the forward pass, and the gradient of the weights with the arrays exchanged.
    """

    def __init__(self, ndim: int, gy: tuple[int, ...], x: tuple[int, ...], w: tuple[int, ...] | None, dtype: np.dtype, options: Options,
                 backend: str | None, bias: bool, transposed: tuple[Any] | None):
        if w is None or (bias and 0 in gy):
            raise ValueError("w or gy")
        shape = _batched_shape(x, ndim)
        self._exchanged = transposed is not None
        if transposed is not None:
            problem = Problem.create_transposed(ndim, shape, w, dtype.name, options, *transposed)
            check_shape("gy", _batched_shape(gy, ndim), problem.public_shape(problem.input_shape))
            if any(-high >= stride for (_, high), stride in zip(problem.padding, problem.stride, strict=True)):
                raise ValueError("output_padding")  # no tap reaches the end of gy
            self._grad_input = _single_call("forward", ndim, gy, w, None, dtype, options, backend, None)
            self._grad_weight = _single_call("grad_weight", ndim, gy, x, None, dtype, options, backend, w)
        else:
            self._grad_input = _single_call("grad_input", ndim, gy, w, None, dtype, options, backend, shape)
            self._grad_weight = _single_call("grad_weight", ndim, x, gy, None, dtype, options, backend, w)
        self._sums = _channel_sums()(gy, _channel_axis(gy, ndim, options.layout), dtype) if bias else None

    def __call__(self, gy: np.ndarray, x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        gx = self._grad_input(gy, w, None)
        gw = self._grad_weight(gy, x, None) if self._exchanged else self._grad_weight(x, gy, None)
        return gx, gw, None if self._sums is None else self._sums(gy)
