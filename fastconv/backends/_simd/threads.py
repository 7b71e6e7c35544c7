"""Threads: kernels on the threads of `workers`, the constants they are bound to, and the counter that hands out their tasks.

A kernel is a function

    kernel(x, w, bias, y, constants, scratch, counters, thread, threads)

of four operands, the constants it was bound to, this thread's share of the scratch memory, and counters that are zero
when the run starts. Everything but the operands is laid down in memory once, by `bind`; a run then passes the memory of four
arrays and two addresses through one function, `launch`, that is the same for all kernels: a quarter of a microsecond.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import int64, typeof, types
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model
from numba.np.numpy_support import from_dtype

from .._jit import address_of, addressed, cached, inlined, num_threads
from .._scratch import arena
from .atomics import words_at
from .emit import I64
from .runs import BYTE_POINTER, HEADER_WORDS, LINE, OPERANDS, MemoryType, begin_run, flag_raised, run_thread
from .vector import advance
from .workers import pool_for, run_together

COUNTER_PITCH = LINE // 8  # from one thread's counter to the next: each has a cache line


@intrinsic
def raise_flag(typingctx, counters):
    """Let the run's call return True."""

    def codegen(context, builder, signature, args):
        builder.store(I64(1), builder.gep(args[0], [I64(-LINE // 8)]))
        return context.get_dummy_value()

    return types.void(types.CPointer(types.int64)), codegen


@intrinsic
def next_task(typingctx, counter):
    """counter[0]++, atomically, returning the old value: how threads share tasks of unequal length.

    What a thread wrote before is seen by those that count later.
    """

    def codegen(context, builder, signature, args):
        return builder.atomic_rmw("add", args[0], I64(1), "acq_rel")

    return types.int64(types.CPointer(types.int64)), codegen


@inlined
def shared_out(counter, run, count):
    """The numbers below `count` that fall to this thread, `run` of them at a time."""
    while True:
        first = next_task(counter) * run
        if first >= count:
            break
        for number in range(first, min(first + run, count)):  # noqa: UP028 (Numba knows no `yield from`)
            yield number


@inlined
def own_first(counters, thread, shares, tasks):
    """The tasks below `tasks` that fall to this thread: of its own share first, then of the others', which it helps with.

    The shares are runs of tasks as long as each other, so a thread finds in its caches what it read and wrote in the last run.
    """
    for turn in range(shares):
        owner = (thread + turn) % shares
        while True:
            task = tasks * owner // shares + next_task(advance(counters, owner * COUNTER_PITCH))
            if task >= tasks * (owner + 1) // shares:
                break
            yield task


# -- constants ------------------------------------------------------------------------------------------------------------


class ConstantsType(types.Type):
    """The address of a tuple laid down as `words_of` says."""

    def __init__(self, contents: types.BaseTuple):
        self.contents = contents
        super().__init__(name=f"Constants[{contents}]")


@register_model(ConstantsType)
class _ConstantsModel(models.PrimitiveModel):
    def __init__(self, manager, constants):
        super().__init__(manager, constants, BYTE_POINTER)


def frozen_type(kind: types.Type) -> types.Type:
    """What a constant of a type is inside a kernel: an array is a pointer to its elements, of which nobody counts the references."""
    if isinstance(kind, types.Array):
        return types.CPointer(kind.dtype)
    if isinstance(kind, types.BaseTuple):
        return types.BaseTuple.from_types([frozen_type(item) for item in kind], getattr(kind, "instance_class", None))
    return kind


def words_of(value: Any) -> list[int]:
    """A constant as kernels read it, eight bytes a number: an integer, a float's bits, an array's address; of a tuple, its items'."""
    if isinstance(value, tuple):
        return [word for item in value for word in words_of(item)]
    if isinstance(value, np.ndarray):
        return [value.ctypes.data]
    if type(value) is int:
        return [value]
    number = np.asarray(value)
    word = np.zeros(1, np.int64)
    word.view(number.dtype)[0] = number
    return word.tolist()


def emit_thawed(context, builder, kind, words):
    """The constant of a type that the next of `words`, an iterator of pointers, hold."""
    if isinstance(kind, types.BaseTuple):
        return context.make_tuple(builder, kind, [emit_thawed(context, builder, item, words) for item in kind])
    return context.unpack_value(builder, kind, builder.bitcast(next(words), context.get_data_type(kind).as_pointer()))


@intrinsic
def thawed(typingctx, constants):
    """The tuple that a kernel was bound to, with pointers in place of arrays."""
    contents = constants.contents

    def codegen(context, builder, signature, args):
        first = builder.bitcast(args[0], I64.as_pointer())
        return emit_thawed(context, builder, contents, (builder.gep(first, [I64(i)]) for i in itertools.count()))

    return contents(constants), codegen


# -- running --------------------------------------------------------------------------------------------------------------


@cached
def launch(x, w, bias, y, bound, scratch, threads, pool):
    """Run a bound kernel, given by the address of its memory; whether a thread has raised the flag."""
    run = begin_run(x, w, bias, y, bound, scratch, threads)
    if threads == 1:
        run_thread(run, 0)
    else:
        run_together(words_at(pool), run, threads)
    return flag_raised(scratch)


@functools.cache
def launcher() -> Callable[..., int]:
    """The compiled `launch`, without Numba's look at the types of its arguments: four arrays and four ints, unchecked."""
    signature = (*[MemoryType()] * OPERANDS, *[int64] * 4)
    launch.compile(signature)
    return launch.overloads[signature].entry_point


class BoundKernel:
    """A kernel with its constants: `kernel(x, w, bias, y)` runs it on contiguous arrays, of which only their memory counts."""

    def __init__(self, address: int, constants: tuple[Any, ...], scratch_bytes: int, counters: int, parallel: bool):
        self._constants = constants  # keeps alive the arrays that the memory points to
        self._pitch = _whole_lines(scratch_bytes)
        self._counter_bytes = LINE + _whole_lines(8 * counters)
        header = address, self._pitch, self._counter_bytes, *[0] * (HEADER_WORDS - 3)
        self._memory = np.array([*header, *words_of(constants)], np.int64)
        self._bound = self._memory.ctypes.data
        self._parallel = parallel
        self._alone = self._counter_bytes + self._pitch
        self._launch = launcher()

    def __call__(self, x: np.ndarray, w: np.ndarray, bias: np.ndarray, y: np.ndarray) -> int:
        """Run it; 1 if a thread has raised the flag, else 0."""
        threads = num_threads() if self._parallel else 1
        if threads == 1:
            _held, address = arena(self._alone)
            return self._launch(x, w, bias, y, self._bound, address, 1, 0)
        _held, address = arena(self._counter_bytes + threads * self._pitch)
        return self._launch(x, w, bias, y, self._bound, address, threads, pool_for(threads))

    def scratch_bytes(self, threads: int) -> int:
        """Scratch memory of a run with that many threads."""
        return self._counter_bytes + (threads if self._parallel else 1) * self._pitch


def _whole_lines(size: int) -> int:
    return -(-size // LINE) * LINE


class ParallelKernel:
    """A kernel to be bound to its constants."""

    def __init__(self, function: Callable):
        self.dispatcher = addressed(function)
        self._addresses: dict[tuple[str, types.Type], int] = {}

    def bind(self, dtype: Any, constants: tuple[Any, ...], *, scratch: int = 0, counters: int = 1, parallel: bool = True) -> BoundKernel:
        """The kernel for operands of `dtype`, with `scratch` elements a thread; compiled at the first binding of a dtype."""
        dtype = np.dtype(dtype)
        key = (dtype.char, frozen_type(typeof(constants)))
        address = self._addresses.get(key)
        if address is None:
            element = types.CPointer(from_dtype(dtype))
            signature = (*[element] * OPERANDS, ConstantsType(key[1]), element, types.CPointer(types.int64), int64, int64)
            address = self._addresses[key] = address_of(self.dispatcher, signature)
        return BoundKernel(address, constants, scratch * dtype.itemsize, counters, parallel)


def parallel_kernel(function: Callable) -> ParallelKernel:
    """Compile `function` as a kernel, each dtype when it is first bound."""
    return ParallelKernel(function)
