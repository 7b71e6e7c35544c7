"""Small whole numbers, 0 to 255, computed with as floats and kept in a byte each, where they choose lanes."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .emit import I1, I32, emit_scale, emit_splat, mask_first, zero_of
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
                    fnty=ir.FunctionType(ir.VoidType(), [kind, kind.as_pointer(), I32, ir.VectorType(I1, lanes)]))
                builder.call(function, [small, address, I32(1), mask_first(builder, count, lanes)])
            with all_lanes:
                builder.store(small, address, align=1)
        return context.get_dummy_value()

    return types.void(p, types.intp, value, types.intp), codegen


@intrinsic
def where_byte(typingctx, p, offset, byte, value, count):
    """Lanes of `value` whose byte in p[offset:] is `byte`, zero elsewhere; of lanes from `count` on no byte is looked at."""

    def codegen(context, builder, signature, args):
        p, offset, byte, value, count = args
        lanes = signature.args[3].lanes
        kind = ir.VectorType(BYTE, lanes)
        address = builder.bitcast(builder.gep(p, [offset]), kind.as_pointer())
        with builder.if_else(builder.icmp_signed("<", count, count.type(lanes))) as (some, all_lanes):
            with some:
                function = builder.module.declare_intrinsic(
                    f"llvm.masked.load.v{lanes}i8.p0",
                    fnty=ir.FunctionType(kind, [kind.as_pointer(), I32, ir.VectorType(I1, lanes), kind]))
                zeros = ir.Constant(kind, [0] * lanes)
                first = builder.call(function, [address, I32(1), mask_first(builder, count, lanes), zeros])
                after_some = builder.block
            with all_lanes:
                whole = builder.load(address, align=1)
                after_all = builder.block
        bytes_ = builder.phi(kind)
        bytes_.add_incoming(first, after_some)
        bytes_.add_incoming(whole, after_all)
        chosen = builder.icmp_unsigned("==", bytes_, emit_splat(builder, builder.trunc(byte, BYTE), lanes))
        return builder.select(chosen, value, zero_of(signature.args[3]))

    return value(p, types.intp, types.intp, value, types.intp), codegen
