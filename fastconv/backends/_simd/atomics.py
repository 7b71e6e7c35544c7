"""Words that threads share, read and written in one order for all; and ways to wait: a pause, C functions, CPython's locks."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .emit import I32, I64, TRIPLE

ORDER = "seq_cst"
WORD_BYTES = 8
POINTER = types.CPointer(types.int64)
VOID, BYTE_POINTER = ir.VoidType(), ir.IntType(8).as_pointer()


@intrinsic
def words_at(typingctx, address):
    """A pointer to the words at an address."""
    return POINTER(types.int64), lambda context, builder, signature, args: builder.inttoptr(args[0], I64.as_pointer())


@intrinsic
def read(typingctx, word):
    """word[0]."""

    def codegen(context, builder, signature, args):
        return builder.load_atomic(args[0], ORDER, WORD_BYTES)

    return types.int64(POINTER), codegen


@intrinsic
def write(typingctx, word, value):
    """word[0] = value."""

    def codegen(context, builder, signature, args):
        builder.store_atomic(args[1], args[0], ORDER, WORD_BYTES)
        return context.get_dummy_value()

    return types.void(POINTER, types.int64), codegen


@intrinsic
def add(typingctx, word, value):
    """word[0] += value, returning the old value."""

    def codegen(context, builder, signature, args):
        return builder.atomic_rmw("add", args[0], args[1], ORDER)

    return types.int64(POINTER, types.int64), codegen


@intrinsic
def exchange(typingctx, word, expected, value):
    """word[0] = value where it was `expected`; whether it was."""

    def codegen(context, builder, signature, args):
        return builder.extract_value(builder.cmpxchg(*args, ORDER, ORDER), 1)

    return types.boolean(POINTER, types.int64, types.int64), codegen


@intrinsic
def pause(typingctx):
    """Tell the processor that this thread waits in a loop."""

    def codegen(context, builder, signature, args):
        if TRIPLE.startswith(("x86_64", "i686")):
            builder.call(cgutils.get_or_insert_function(builder.module, ir.FunctionType(VOID, []), "llvm.x86.sse2.pause"), [])
        elif TRIPLE.startswith(("aarch64", "arm64")):
            hint = cgutils.get_or_insert_function(builder.module, ir.FunctionType(VOID, [I32]), "llvm.aarch64.hint")
            builder.call(hint, [I32(1)])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def call(typingctx, function):
    """Call a C function without arguments by its address."""

    def codegen(context, builder, signature, args):
        builder.call(builder.inttoptr(args[0], ir.FunctionType(I32, []).as_pointer()), [])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def acquire(typingctx, function, lock):
    """Sleep until the lock is free and take it, by the address of CPython's `PyThread_acquire_lock`."""

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(I32, [BYTE_POINTER, I32])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), [builder.inttoptr(args[1], BYTE_POINTER), I32(1)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def release(typingctx, function, lock):
    """Free the lock, by the address of CPython's `PyThread_release_lock`."""

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(VOID, [BYTE_POINTER])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), [builder.inttoptr(args[1], BYTE_POINTER)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen
