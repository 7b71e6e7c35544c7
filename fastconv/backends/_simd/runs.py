"""A run of a kernel as its threads see it: one record in memory, and the call of the bound kernel for one of its threads."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.extending import NativeValue, intrinsic, register_model, unbox

from .emit import I32, I64, emit_call

BYTE_POINTER = ir.IntType(8).as_pointer()
LINE = 64  # bytes: a cache line, and the widest vector
HEADER_WORDS = 4  # of a bound kernel's memory: its address, a thread's bytes of scratch, bytes of counters, unused
OPERANDS = 4
# x, w, bias, y, constants, scratch, counters, thread, threads
ENTRY_TYPES = (*[types.voidptr] * (OPERANDS + 3), types.int64, types.int64)
# The bound kernel, the operands, the scratch memory, the number of threads.
RECORD = ir.LiteralStructType([I64.as_pointer(), *[BYTE_POINTER] * OPERANDS, BYTE_POINTER, I64])


class MemoryType(types.Type):
    """The address of an array's first element, whatever its dtype and shape.

    Numba's own arrays would cost 0.1 us each, and a compilation of `launch` for each combination of ranks and dtypes.
    """

    def __init__(self) -> None:
        super().__init__(name="Memory")


@register_model(MemoryType)
class _MemoryModel(models.PrimitiveModel):
    def __init__(self, manager, memory):
        super().__init__(manager, memory, BYTE_POINTER)


@unbox(MemoryType)
def unbox_memory(kind, array, c):
    """The field behind the header that all objects have: `PyArray_DATA`."""
    fields = c.builder.bitcast(array, BYTE_POINTER.as_pointer())
    return NativeValue(c.builder.load(c.builder.gep(fields, [I64(object.__basicsize__ // 8)])))


@intrinsic
def begin_run(typingctx, x, w, bias, y, bound, scratch, threads):
    """Clear the counters and lay down a run on the caller's stack; the address of its record."""

    def codegen(context, builder, signature, args):
        *operands, bound, scratch, threads = args
        header = builder.inttoptr(bound, I64.as_pointer())
        memory = builder.inttoptr(scratch, BYTE_POINTER)
        cgutils.memset(builder, memory, builder.load(builder.gep(header, [I64(2)])), 0)
        record = cgutils.alloca_once(builder, RECORD)
        for i, value in enumerate([header, *operands, memory, threads]):
            builder.store(value, builder.gep(record, [I32(0), I32(i)]))
        return builder.ptrtoint(record, I64)

    return types.int64(x, w, bias, y, types.int64, types.int64, types.int64), codegen


@intrinsic
def run_thread(typingctx, run, thread):
    """Call the bound kernel of a run for one of its threads. The kernel must not raise exceptions."""

    def codegen(context, builder, signature, args):
        record = builder.load(builder.inttoptr(args[0], RECORD.as_pointer()))
        header, *operands, memory, threads = (builder.extract_value(record, i) for i in range(len(RECORD.elements)))
        address, pitch, counters = (builder.load(builder.gep(header, [I64(i)])) for i in range(3))
        constants = builder.bitcast(builder.gep(header, [I64(HEADER_WORDS)]), BYTE_POINTER)
        first_counter = builder.gep(memory, [I64(LINE)])  # behind the line of the flag
        scratch = builder.gep(memory, [builder.add(counters, builder.mul(args[1], pitch))])
        emit_call(context, builder, address, ENTRY_TYPES, [*operands, constants, scratch, first_counter, args[1], threads])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def flag_raised(typingctx, scratch):
    """Whether a thread of the run with this scratch memory has raised the flag, 1 or 0."""

    def codegen(context, builder, signature, args):
        return builder.load(builder.inttoptr(args[0], I64.as_pointer()))

    return types.int64(types.int64), codegen
