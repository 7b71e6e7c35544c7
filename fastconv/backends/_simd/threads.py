"""Threads: a kernel's work on Numba's thread pool, and the counter that hands out its tasks."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .vector import I64

MOST_THREADS = 1024  # of one region


@intrinsic
def next_task(typingctx, counter):
    """counter[0]++, atomically, returning the old value: how threads share tasks of unequal length on any layer."""

    def codegen(context, builder, signature, args):
        return builder.atomic_rmw("add", args[0], I64(1), "monotonic")

    return types.int64(types.CPointer(types.int64)), codegen


@intrinsic
def in_threads(typingctx, work, threads, args):
    """work(args, thread) for thread in range(threads), on Numba's thread pool; on the caller's thread alone if threads == 1.

    What `prange` does, without compiling the body three times over: the pool's entry point is called directly. `work`
    must not raise. The pool must have been started (`_jit.parallel_region`).
    """
    signature = typingctx.resolve_function_type(work, (args, types.int64), {})
    compiled = work.dispatcher.overloads[signature.args]

    def codegen(context, builder, _, values):
        _, threads, shared = values
        context.active_code_library.add_linking_library(compiled.library)
        data = cgutils.alloca_once_value(builder, shared)
        entry = _thread_entry(context, builder.module, compiled, signature, shared.type)
        byte = ir.IntType(8).as_pointer()
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

    return types.void(work, types.intp, args), codegen


def _thread_entry(context, module, compiled, signature, shared_type):
    """The function that the pool calls with a run of thread numbers: it calls `work` for each of them."""
    byte = ir.IntType(8).as_pointer()
    words = I64.as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte.as_pointer(), words, words, byte])
    function = ir.Function(module, kind, name=f"thread_entry.{compiled.fndesc.mangled_name}")
    function.linkage = "internal"
    builder = ir.IRBuilder(function.append_basic_block())
    arrays, count, _, data = function.args
    numbers = builder.bitcast(builder.load(arrays), words)
    callee = context.declare_function(module, compiled.fndesc)
    with cgutils.for_range(builder, builder.load(count)) as loop:
        thread = builder.load(builder.gep(numbers, [loop.index]))
        shared = builder.load(builder.bitcast(data, shared_type.as_pointer()))
        context.call_conv.call_function(builder, callee, signature.return_type, signature.args, [shared, thread])
    builder.ret_void()
    return function
