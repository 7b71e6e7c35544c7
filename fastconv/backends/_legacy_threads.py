"""Until cpu_direct and cpu_fft are bound: a kernel's work on Numba's thread pool, and the counter that hands out its tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import int64, typeof, types
from numba.core import cgutils
from numba.extending import intrinsic

from ._jit import address_of, addressed, cached, threading_layer
from ._simd.vector import I64, emit_call

MOST_THREADS = 1024  # of one region


@intrinsic
def next_task(typingctx, counter):
    """counter[0]++, atomically, returning the old value: how threads share tasks of unequal length on any layer."""

    def codegen(context, builder, signature, args):
        return builder.atomic_rmw("add", args[0], I64(1), "monotonic")

    return types.int64(types.CPointer(types.int64)), codegen


@intrinsic
def in_threads(typingctx, work, args, threads):
    """Call the function `work(args, thread)`, given by its address, for thread in range(threads) on Numba's thread pool.

    On the caller's thread alone if threads == 1. The function must not raise. The pool must have been started.
    """
    argument_types = (args, types.int64)

    def codegen(context, builder, signature, values):
        work, shared, threads = values
        byte = ir.IntType(8).as_pointer()
        data = cgutils.alloca_once_value(builder, context.make_tuple(builder, types.Tuple((types.int64, args)), [work, shared]))
        entry = _thread_entry(context, builder.module, argument_types, data.type)
        numbers = cgutils.alloca_once(builder, I64, size=MOST_THREADS)
        with cgutils.for_range(builder, threads) as loop:
            builder.store(loop.index, builder.gep(numbers, [loop.index]))
        arrays = cgutils.alloca_once_value(builder, builder.bitcast(numbers, byte))
        count, step = cgutils.alloca_once_value(builder, threads), cgutils.alloca_once_value(builder, I64(8))
        arguments = [arrays, count, step, builder.bitcast(data, byte)]
        with builder.if_else(builder.icmp_signed("==", threads, I64(1))) as (alone, together):
            with alone:
                builder.call(entry, arguments)
            with together:
                pool = ir.FunctionType(ir.VoidType(), [byte] * 5 + [I64] * 3)
                parallel_for = cgutils.get_or_insert_function(builder.module, pool, "numba_parallel_for")
                pointers = [builder.bitcast(value, byte) for value in (entry, *arguments)]
                builder.call(parallel_for, [*pointers, I64(0), I64(1), threads])
        return context.get_dummy_value()

    return types.void(types.int64, args, types.intp), codegen


def _thread_entry(context, module, argument_types, data_type):
    """The function that the pool calls with a run of thread numbers: it calls `work` for each of them."""
    byte = ir.IntType(8).as_pointer()
    words = I64.as_pointer()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [byte.as_pointer(), words, words, byte]), name="thread_entry")
    function.linkage = "internal"
    builder = ir.IRBuilder(function.append_basic_block())
    arrays, count, _, data = function.args
    numbers = builder.bitcast(builder.load(arrays), words)
    with cgutils.for_range(builder, builder.load(count)) as loop:
        thread = builder.load(builder.gep(numbers, [loop.index]))
        address, shared = cgutils.unpack_tuple(builder, builder.load(builder.bitcast(data, data_type)), 2)
        emit_call(context, builder, address, argument_types, [shared, thread])
    builder.ret_void()
    return function


@cached
def launch(work, args, threads):
    """Run a kernel, given by its address; compiled once for the arguments of each kernel."""
    in_threads(work, args, threads)


class ParallelKernel:
    """A kernel as Python calls it: `kernel(arguments, threads)`, the first argument being an array of the kernel's dtype."""

    def __init__(self, function: Callable):
        self.dispatcher = addressed(function)
        self._addresses: dict[str, int] = {}

    def __call__(self, arguments: tuple[Any, ...], threads: int) -> None:
        dtype = arguments[0].dtype.char
        address = self._addresses.get(dtype)
        if address is None:
            threading_layer()  # starts the pool whose entry point the machine code refers to
            address = self._addresses[dtype] = address_of(self.dispatcher, (typeof(arguments), int64))
        launch(address, arguments, threads)


def parallel_kernel(function: Callable) -> ParallelKernel:
    """Compile `function(arguments, thread)` as a kernel, each dtype at its first call."""
    return ParallelKernel(function)




class _Old(__import__("threading").local):
    def __init__(self): self.kept={}
_old=_Old()
def scratch(role, count, dtype):
    dtype = np.dtype(dtype)
    needed = count * dtype.itemsize + 64
    held = _old.kept.get(role)
    if held is None or held.nbytes < needed:
        held = np.empty(max(needed, 4096), np.uint8)
        if needed <= 1<<26:
            _old.kept[role] = held
    start = -held.ctypes.data % 64
    stop = start + (held.nbytes - start) // dtype.itemsize * dtype.itemsize
    return held[start:stop].view(dtype)
