"""Small whole numbers, 0 to 255, computed with as floats and kept in a byte each."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .emit import emit_scale, mask_first
from .select import emit_compare

BYTE = ir.IntType(8)
LARGEST = 255.0


@intrinsic
def as_bytes(typingctx, p):
    """The same address as that of bytes."""
    return types.CPointer(types.uint8)(p), lambda context, builder, signature, args: builder.bitcast(args[0], BYTE.as_pointer())


@intrinsic
def store_bytes(typingctx, p, offset, value, count):
    """Write the first `count` lanes, those above 255 as 255, to the bytes p[offset:] and nothing beyond."""

    def codegen(context, builder, signature, args):
        p, offset, value, count = args
        most = emit_scale(signature.args[2], LARGEST)
        small = builder.select(emit_compare(builder, signature.args[2], "<", value, most), value, most)
        lanes = signature.args[2].lanes
        kind = ir.VectorType(BYTE, lanes)
        small, address = builder.fptoui(small, kind), builder.bitcast(builder.gep(p, [offset]), kind.as_pointer())
        with builder.if_else(builder.icmp_signed("<", count, count.type(lanes))) as (some, all_lanes):
            with some:
                function = builder.module.declare_intrinsic(
                    f"llvm.masked.store.v{lanes}i8.p0",
                    fnty=ir.FunctionType(ir.VoidType(), [kind, kind.as_pointer(), ir.IntType(32), ir.VectorType(ir.IntType(1), lanes)]))
                builder.call(function, [small, address, ir.IntType(32)(1), mask_first(builder, count, lanes)])
            with all_lanes:
                builder.store(small, address, align=1)
        return context.get_dummy_value()

    return types.void(p, types.intp, value, types.intp), codegen
