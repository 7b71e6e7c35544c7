"""A convolution whose weights are fixed: packed once, then called on any number of inputs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ._arrays import as_array, as_bias, as_operand, common_dtype
from ._calls import READY_FLAGS, Call, batched, empty, execute, lookup, shape_of
from .dispatcher import Plan
from .problem import Options, Problem
from .substitutes import PackedBy

__all__ = ["Convolution"]

SHAPES_KEPT = 16  # of one plan, each with its packed weights


class _Ready(NamedTuple):
    """What an input like the last one needs."""

    shape: tuple[int, ...]
    result_shape: tuple[int, ...]
    dtype: np.dtype
    run: Callable[..., bool | None]
    packed: Any
    bias: np.ndarray | None


def _takes(out: Any, shape: tuple[int, ...], dtype: np.dtype, x: np.ndarray) -> bool:
    """Whether kernels can write the result for `x` to `out` as it is."""
    return (type(out) is np.ndarray and out.dtype is dtype and out.flags.num & READY_FLAGS == READY_FLAGS and out.shape == shape
            and not np.may_share_memory(out, x))


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
        self._packed: OrderedDict[Any, tuple[Call, Any]] = OrderedDict()
        self._fast: _Ready | None = None
        self._shape = None if input_shape is None else shape_of("input_shape", input_shape)
        if self._shape is not None:
            if len(self._shape) == ndim + 1:
                self._shape = (1, *self._shape)
            self._call_for(self._shape, self._w.dtype)

    def __call__(self, x: Any, out: np.ndarray | None = None) -> np.ndarray:
        """Convolve `x`, of the planned or any other shape."""
        fast = self._fast
        if fast is not None:
            shape, result_shape, dtype, run, packed, bias = fast
            if (type(x) is np.ndarray and x.dtype is dtype and x.flags.num & READY_FLAGS == READY_FLAGS and x.shape == shape
                    and (out is None or _takes(out, result_shape, dtype, x))):
                result = empty(result_shape, dtype) if out is None else out
                run(x, packed, bias, result)
                return result
        x, single = batched("x", as_array("x", x), self._ndim)
        call, packed = self._call_for(x.shape, x.dtype)
        if call.computed == call.result == self._w.dtype == x.dtype and call.computed.kind == "f":
            bias = None if self._bias is None else as_bias(self._bias, call.plan.problem.epilogue_channels, call.computed)
            self._fast = _Ready(x.shape[1:] if single else x.shape, call.result_shape[1:] if single else call.result_shape, call.computed,
                                call.plan.kernel.run, packed, bias)
        return execute(call, ("x", "w"), x, self._w, self._bias, out, single, packed)

    def _call_for(self, shape: tuple[int, ...], dtype: np.dtype) -> tuple[Call, Any]:
        key = (shape, dtype)
        made = self._packed.get(key)
        if made is None:
            computed, result = common_dtype(x=np.empty(0, dtype), w=self._w)
            call = lookup("forward", self._ndim, shape, self._w.shape, computed, result, self._options, self._bias is not None,
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
        """Name of the backend chosen for these weights."""
        plan = self.plan
        packed = next(iter(self._packed.values()))[1]
        return packed.backend if isinstance(packed, PackedBy) else plan.backend

    @property
    def problem(self) -> Problem:
        """The problem planned."""
        return self.plan.problem

    def __repr__(self) -> str:
        if self._packed and self.backend != self.plan.backend:
            return f"{self.plan!r}\nfor these weights: {self.backend}"
        return repr(self.plan) if self._packed else f"{self._ndim}-D convolution, not planned yet: no input_shape given"
