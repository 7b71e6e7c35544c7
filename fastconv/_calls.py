"""What every public function does with its arguments: check -> plan -> run.

The arguments of a call become a key of shapes, dtypes and options; the plan of a key is made once.
"""

from __future__ import annotations

import functools
import math
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import wisdom
from ._arrays import as_array, as_bias, as_operand, check_integer_range, check_out, common_dtype
from .backends._scratch import reused_operands
from .dispatcher import Choice, Plan, current_choice, plan
from .problem import ACCURACIES, Options, Problem

__all__ = ["Convolution", "batched", "bias_gradient", "check_shape", "frozen", "make_options", "run", "shape_of"]

CALLS_KEPT = 4096
SHAPES_KEPT = 16  # of one plan, each with its packed weights


# -- check ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Call:
    """What a call of given shapes, dtypes and options comes to."""

    plan: Plan
    computed: np.dtype
    result: np.dtype
    result_shape: tuple[int, ...]  # as the caller sees it, batched
    shapes: tuple[tuple[int, ...], ...]  # of the operands and the result, with three spatial axes


@functools.lru_cache(maxsize=CALLS_KEPT, typed=True)
def _prepare(kind: str, ndim: int, first: tuple[int, ...], second: tuple[int, ...], computed: np.dtype, result: np.dtype,
             options: Options, bias: bool, choice: Choice, extra: Any, prepacked: bool, threads: int, generation: int) -> _Call:
    """The plan of a call; `kind` is a pass name or "transposed"; `extra` the shape of the result or the output padding."""
    name = computed.name
    if kind == "transposed":
        problem = Problem.create_transposed(ndim, first, second, name, options, extra, bias=bias)
    elif kind == "grad_input":
        problem = Problem.create(kind, ndim, extra, second, name, options, bias=bias)
        check_shape("gy", first, problem.public_shape(problem.output_shape))
    elif kind == "grad_weight":
        problem = Problem.create(kind, ndim, first, extra, name, options)
        check_shape("gy", second, problem.public_shape(problem.output_shape))
    else:
        problem = Problem.create(kind, ndim, first, second, name, options, bias=bias)
    shapes = problem.shapes
    made = plan(problem, choice, prepacked=prepacked)
    return _Call(made, computed, result, problem.public_shape(shapes[2]), shapes)


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
    if array.ndim == ndim + 1:
        return array[np.newaxis], True
    if array.ndim != ndim + 2:
        raise ValueError(f"{name} must have {ndim + 2} dimensions, or {ndim + 1} for a single sample, got shape {array.shape}")
    return array, False


def shape_of(name: str, shape: Any) -> tuple[int, ...]:
    """A shape argument as a tuple of ints."""
    try:
        return tuple(int(n.__index__()) for n in shape)
    except (TypeError, AttributeError):
        raise TypeError(f"{name} must be a sequence of integers, got {shape!r}") from None


# -- run ------------------------------------------------------------------------------------------------------------------


def run(kind: str, ndim: int, names: tuple[str, str], first: Any, second: Any, bias: Any, options: Options, backend: str | None,
         out: Any, extra: Any = None) -> np.ndarray:
    """Check the operands, get the plan, run it; the first operand (and gy as the second) may be unbatched."""
    first, single = batched(names[0], as_array(names[0], first), ndim)
    second = as_array(names[1], second)
    if kind == "grad_weight":
        second, _ = batched(names[1], second, ndim)
        single = False
    computed, result = common_dtype(**{names[0]: first, names[1]: second})
    call = _lookup(kind, ndim, first.shape, second.shape, computed, result, options, bias is not None, backend, extra)
    return _execute(call, names, first, second, bias, out, single)


def _lookup(kind: str, ndim: int, first: tuple[int, ...], second: tuple[int, ...], computed: np.dtype, result: np.dtype,
            options: Options, bias: bool, backend: str | None, extra: Any, prepacked: bool = False) -> _Call:
    from .backends._jit import num_threads

    return _prepare(kind, ndim, first, second, computed, result, options, bias, current_choice(backend), extra, prepacked,
                    num_threads(), wisdom.store.generation)


def _execute(call: _Call, names: tuple[str, str], first: np.ndarray, second: np.ndarray, bias: Any, out: Any, single: bool,
             packed: Any = None) -> np.ndarray:
    problem = call.plan.problem
    shape = call.result_shape[1:] if single else call.result_shape
    if out is not None:
        check_out(out, shape, call.result)
    prepared_bias = None if bias is None else as_bias(bias, problem.epilogue_channels, call.computed)
    if call.computed.kind == "i":
        check_integer_range(call.computed, _terms(problem), prepared_bias, **{names[0]: first, names[1]: second})
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


def _target(out: Any, call: _Call, *inputs: Any) -> np.ndarray:
    """Where kernels write: `out` itself if they can, and if no input lies there."""
    if out is not None and out.dtype == call.computed and out.dtype.isnative and out.flags.c_contiguous and out.flags.aligned:
        if not any(isinstance(array, np.ndarray) and np.may_share_memory(out, array) for array in inputs):
            return np.asarray(out).reshape(call.shapes[2])
    return np.empty(call.shapes[2], call.computed)


def _terms(problem: Problem) -> int:
    """Products in the longest sum of a pass."""
    if problem.pass_name == "forward":
        return problem.taps
    if problem.pass_name == "grad_input":
        return problem.group_out * math.prod(problem.kernel_size)
    return problem.batch * math.prod(problem.output_size)


def bias_gradient(gy: np.ndarray, ndim: int, layout: str, dtype: np.dtype) -> np.ndarray:
    """The sum of gy over all but its channels."""
    axis = gy.ndim - 1 if str(layout).endswith("C") else gy.ndim - ndim - 1
    with np.errstate(invalid="ignore", over="ignore"):
        return gy.sum(axis=tuple(i for i in range(gy.ndim) if i != axis), dtype=dtype)


class Convolution:
    """A planned convolution: weights fixed and packed once, then called on any number of inputs.

    Made by `plan_conv1d`, `plan_conv2d` and `plan_conv3d`. Immutable, and safe to call from several threads.
    """

    def __init__(self, ndim: int, w: Any, bias: Any, options: Options, backend: str | None, input_shape: Sequence[int] | None):
        self._ndim = ndim
        self._w = as_array("w", w).copy()
        self._bias = None if bias is None else as_array("bias", bias).copy()
        self._options = options
        self._backend = backend
        self._packed: OrderedDict[Any, tuple[_Call, Any]] = OrderedDict()
        self._shape = None if input_shape is None else shape_of("input_shape", input_shape)
        if self._shape is not None:
            if len(self._shape) == ndim + 1:
                self._shape = (1, *self._shape)
            self._call_for(self._shape, self._w.dtype)

    def __call__(self, x: Any, out: np.ndarray | None = None) -> np.ndarray:
        """Convolve `x`, of the planned or any other shape."""
        x, single = batched("x", as_array("x", x), self._ndim)
        call, packed = self._call_for(x.shape, x.dtype)
        return _execute(call, ("x", "w"), x, self._w, self._bias, out, single, packed)

    def _call_for(self, shape: tuple[int, ...], dtype: np.dtype) -> tuple[_Call, Any]:
        key = (shape, dtype)
        made = self._packed.get(key)
        if made is None:
            computed, result = common_dtype(x=np.empty(0, dtype), w=self._w)
            call = _lookup("forward", self._ndim, shape, self._w.shape, computed, result, self._options, self._bias is not None,
                           self._backend, None, prepacked=True)
            if self._bias is not None:
                as_bias(self._bias, call.plan.problem.epilogue_channels, computed)
            packed = call.plan.pack(as_operand(self._w, computed, call.shapes[1]))
            made = self._packed[key] = (call, packed)
            while len(self._packed) > SHAPES_KEPT:
                self._packed.popitem(last=False)
        return made

    @property
    def plan(self) -> Plan:
        """The plan for the shape given to `plan_conv`, or else for the last shape seen first."""
        if not self._packed:
            raise ValueError("no input_shape was given and no input seen yet: there is no plan")
        return next(iter(self._packed.values()))[0].plan

    @property
    def backend(self) -> str:
        """Name of the backend chosen."""
        return self.plan.backend

    @property
    def problem(self) -> Problem:
        """The problem planned."""
        return self.plan.problem

    def __repr__(self) -> str:
        return repr(self.plan) if self._packed else f"{self._ndim}-D convolution, not planned yet: no input_shape given"
