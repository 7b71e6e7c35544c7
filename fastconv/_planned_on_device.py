"""A convolution on a GPU whose weights are fixed: packed once, kept in its memory."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ._arrays import batched_shape, common_dtype
from ._device import is_device_array
from ._device_calls import ALL_READY, Operands, check_bias, compute, numbers, result_array
from .asking import Choice
from .dispatcher import Plan
from .problem import Options, Problem

__all__ = ["ConvolutionOnDevice"]

SHAPES_KEPT = 16  # of one plan, each with its packed weights


class ConvolutionOnDevice:
    """What `plan_conv{n}d` makes of a GPU's arrays, or of NumPy's that are to be convolved there.

    Called with NumPy's arrays it gives NumPy's, with a GPU's theirs. Calls on several streams need weights that are packed: make the
    plan with an `input_shape`, and wait for it once.
    """

    def __init__(self, ndim: int, w: Any, bias: Any, options: Options, choice: Choice, input_shape: Sequence[int] | None,
                 prepare: Callable[..., Any]):
        self._ndim, self._options, self._choice, self._prepare = ndim, options, choice, prepare
        w, bias = numbers("w", w), None if bias is None else numbers("bias", bias)
        self._w_shape, self._w_dtype, self._bias_shape = tuple(w.shape), w.dtype, None if bias is None else tuple(bias.shape)
        self._weights, self._bias = _kept(w), None if bias is None else _kept(bias)
        self._bias_dtype = None if bias is None else bias.dtype
        self._made: OrderedDict[Any, tuple[Any, list[Any]]] = OrderedDict()
        if input_shape is not None:
            self._call_for(batched_shape("input_shape", tuple(input_shape), ndim)[0], self._w_dtype, ALL_READY)

    def __call__(self, x: Any, out: Any = None) -> Any:
        """Convolve `x`, of the planned or any other shape."""
        on_device = is_device_array(x)
        x = numbers("x", x)
        shape, single = batched_shape("x", tuple(x.shape), self._ndim)
        stream = x.stream if on_device else ALL_READY
        call, memories = self._call_for(shape, x.dtype, stream)
        target = result_array(out, on_device, x, call.result_shape[1:] if single else call.result_shape, call.result)
        with contextlib.ExitStack() as stack:
            operands = Operands(stream, stack)
            w, bias, *packed = (None if memory is None else _pointer(memory) for memory in memories)
            compute(call, operands, operands.pointer(x, call.computed), w, packed, bias, target)
        return target

    def _call_for(self, shape: tuple[int, ...], dtype: np.dtype, stream: int) -> tuple[Any, list[Any]]:
        """The call of a shape, and the memory of its weights, its bias and what was packed of the weights."""
        made = self._made.get((shape, dtype))
        if made is None:
            computed, result = common_dtype(x=np.empty(0, dtype), w=np.empty(0, self._w_dtype))
            call = self._prepare("forward", self._ndim, shape, self._w_shape, computed, result, self._options, self._bias is not None,
                                 self._choice, None, prepacked=True)
            if self._bias_shape is not None:
                check_bias(np.empty(self._bias_shape), call)
            made = self._made[shape, dtype] = call, self._pack(call, computed, stream)
            while len(self._made) > SHAPES_KEPT:
                self._made.popitem(last=False)
        return made

    def _pack(self, call: Any, computed: np.dtype, stream: int) -> list[Any]:
        from .backends._cuda.driver import memory

        with contextlib.ExitStack() as stack:
            operands = Operands(stream, stack)
            w = self._converted(operands, self._weights, self._w_dtype, computed)
            bias = None if self._bias_dtype is None else self._converted(operands, self._bias, self._bias_dtype, computed)
            packed = [memory(count, dtype) for count, dtype in call.plan.kernel.packed]
            call.plan.kernel.pack(stream, _pointer(w), [_pointer(part) for part in packed])
        return [w, bias, *packed]

    def _converted(self, operands: Operands, kept: Any, dtype: np.dtype, computed: np.dtype) -> Any:
        from .backends._cuda.driver import memory

        if dtype == computed:
            return kept
        target = memory(kept.size, computed.name)
        operands.cast(_pointer(kept), kept.size, dtype, computed, _pointer(target))
        return target

    @property
    def plan(self) -> Plan:
        """The plan for the shape given to `plan_conv`, or else for the last shape seen first."""
        if not self._made:
            raise ValueError("no input_shape was given and no input seen yet: there is no plan")
        return next(iter(self._made.values()))[0].plan

    @property
    def backend(self) -> str:
        """Name of the backend chosen."""
        return self.plan.backend

    @property
    def problem(self) -> Problem:
        """The problem planned."""
        return self.plan.problem

    def __repr__(self) -> str:
        return repr(self.plan) if self._made else f"{self._ndim}-D convolution on a GPU, not planned yet: no input_shape given"


def _kept(array: Any) -> Any:
    """A copy in the GPU's memory."""
    from .backends._cuda.driver import memory

    target = memory(max(1, array.size), array.dtype.name)
    with contextlib.ExitStack() as stack:
        Operands(getattr(array, "stream", ALL_READY), stack).copy(array, array.dtype, _pointer(target))
    return target


def _pointer(memory: Any) -> Any:
    from .backends._cuda.driver import address_of

    return address_of(memory)
