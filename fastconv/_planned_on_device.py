"""A convolution on a GPU whose weights are fixed: packed once, kept in its memory."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ._arrays import batched_shape, common_dtype
from ._device import DeviceArray, is_device_array
from ._device_calls import check_bias, check_integers, compute, device_of, result_array
from ._device_operands import ALL_READY, Operands, host_copy, numbers
from .asking import Choice
from .dispatcher import Plan
from .problem import Options, Problem

__all__ = ["ConvolutionOnDevice"]

SHAPES_KEPT = 16  # of one plan, each with its packed weights


class _Made(NamedTuple):
    """What inputs of one shape and dtype need."""

    call: Any
    memories: list[Any]  # of the weights, the bias and what was packed of the weights
    ready: Any  # the place in a stream where they are


class ConvolutionOnDevice:
    """What `plan_conv{n}d` makes of a GPU's arrays, or of NumPy's that are to be convolved there.

    Called with NumPy's arrays it gives NumPy's, with a GPU's theirs, on the stream that their library uses.
    """

    def __init__(self, ndim: int, w: Any, bias: Any, options: Options, choice: Choice, input_shape: Sequence[int] | None,
                 prepare: Callable[..., Any]):
        from .backends._cuda.context import current_device, using

        self._ndim, self._options, self._choice, self._prepare = ndim, options, choice, prepare
        w, bias = numbers("w", w), None if bias is None else numbers("bias", bias)
        stream = next((array.stream for array in (w, bias) if isinstance(array, DeviceArray)), ALL_READY)
        with using(device_of(w=w, bias=bias)):
            self._device = current_device()
            self._w, self._bias = _Kept(w, stream), None if bias is None else _Kept(bias, stream)
            self._ready = _mark(stream)
            self._made: OrderedDict[Any, _Made] = OrderedDict()
            if input_shape is not None:
                self._made_for(batched_shape("input_shape", tuple(input_shape), ndim)[0], self._w.dtype, stream)

    def __call__(self, x: Any, out: Any = None) -> Any:
        """Convolve `x`, of the planned or any other shape."""
        from .backends._cuda.context import using

        on_device = is_device_array(x)
        x = numbers("x", x)
        if on_device and x.device not in (None, self._device):
            raise ValueError(f"x lies on GPU {x.device}, this plan's weights on GPU {self._device}")
        shape, single = batched_shape("x", tuple(x.shape), self._ndim)
        stream = x.stream if on_device else ALL_READY
        with using(self._device), contextlib.ExitStack() as stack:
            call, memories, ready = self._made_for(shape, x.dtype, stream)
            ready.before(stream)
            target = result_array(out, on_device, x, call.result_shape[1:] if single else call.result_shape, call.result)
            check_integers(call, self._bias and self._bias.host, x=x, w=self._w.host)
            operands = Operands(stream, stack)
            w, bias, *packed = (None if memory is None else _pointer(memory) for memory in memories)
            compute(call, operands, operands.pointer(x, call.computed), w, packed, bias, target, (x,))
            operands.keep(x)
        return target

    def _made_for(self, shape: tuple[int, ...], dtype: np.dtype, stream: int) -> _Made:
        """What is kept for inputs of a shape."""
        made = self._made.get((shape, dtype))
        if made is None:
            computed, result = common_dtype(x=np.empty(0, dtype), w=np.empty(0, self._w.dtype))
            call = self._prepare("forward", self._ndim, shape, self._w.shape, computed, result, self._options, self._bias is not None,
                                 self._choice, None, prepacked=True)
            check_bias(self._bias, call)
            self._ready.before(stream)
            memories = self._pack(call, computed, stream)
            made = self._made[shape, dtype] = _Made(call, memories, _mark(stream))
            while len(self._made) > SHAPES_KEPT:
                self._made.popitem(last=False)
        return made

    def _pack(self, call: Any, computed: np.dtype, stream: int) -> list[Any]:
        from .backends._cuda.driver import memory

        w, bias = self._w.converted(computed, stream), None if self._bias is None else self._bias.converted(computed, stream)
        packed = [memory(max(1, count), dtype) for count, dtype in call.plan.kernel.packed]
        call.plan.kernel.pack(stream, _pointer(w), [_pointer(part) for part in packed])
        return [w, bias, *packed]

    @property
    def plan(self) -> Plan:
        """The plan for the shape given to `plan_conv`, or else for the last shape seen first."""
        if not self._made:
            raise ValueError("no input_shape was given and no input seen yet: there is no plan")
        return next(iter(self._made.values())).call.plan

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


class _Kept:
    """A copy of an array in the GPU's memory; complex numbers as pairs."""

    def __init__(self, array: Any, stream: int):
        self.shape, self.dtype, self.size = tuple(array.shape), array.dtype, array.size
        on_device = isinstance(array, DeviceArray)
        self.host = None if array.dtype.kind in "fc" else host_copy(array.owner) if on_device else array.copy()  # whose range is checked
        self.memory = _memory(self.size, self.dtype)
        with contextlib.ExitStack() as stack:
            operands = Operands(stream, stack)
            operands.wait_for(array)
            operands.copy(array, array.dtype, _pointer(self.memory))
            operands.keep(array)

    def converted(self, dtype: np.dtype, stream: int) -> Any:
        """The memory of the same numbers as another type."""
        if dtype == self.dtype:
            return self.memory
        target = _memory(self.size, dtype)
        with contextlib.ExitStack() as stack:
            Operands(stream, stack).cast(_pointer(self.memory), self.size, self.dtype, dtype, _pointer(target))
        return target


def _memory(count: int, dtype: np.dtype) -> Any:
    from .backends._cuda.driver import memory

    return memory(max(1, count), dtype.name)


def _pointer(memory: Any) -> Any:
    from .backends._cuda.driver import address_of

    return address_of(memory)


def _mark(stream: int) -> Any:
    from .backends._cuda.events import Mark

    return Mark(stream)
