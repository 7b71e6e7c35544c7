"""What vectors are in LLVM: their Numba type, and the IR that the intrinsics of this folder are put together from."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.extending import register_model
from numba.np.numpy_support import from_dtype

from .._jit import cpu_target

TRIPLE, _CPU, _FEATURES = cpu_target()
VECTOR_BYTES = 64 if "avx512f" in _FEATURES else 32 if "avx" in _FEATURES else 16
VECTOR_REGISTERS = 32 if "avx512f" in _FEATURES or TRIPLE.startswith(("aarch64", "arm64")) else 16
# Cores with AVX-512 but Zen's shuffle whole vectors on one port, which products need too.
FEW_SHUFFLES = "avx512f" in _FEATURES and not _CPU.startswith("znver")
I1, I32, I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)


def lane_count(dtype: Any) -> int:
    """Elements of `dtype` in a vector."""
    return VECTOR_BYTES // np.dtype(dtype).itemsize


def pointer_to(dtype: Any) -> types.CPointer:
    """The type of a pointer to elements of `dtype`."""
    return types.CPointer(from_dtype(np.dtype(dtype)))


# -- the type -------------------------------------------------------------------------------------------------------------


class VectorType(types.Type):
    """`lanes` elements of a float or signed integer type, in one register."""

    def __init__(self, dtype: types.Number):
        self.dtype = dtype
        self.lanes = VECTOR_BYTES * 8 // dtype.bitwidth
        super().__init__(name=f"Vector[{dtype} x {self.lanes}]")

    @property
    def ir(self) -> ir.VectorType:
        """The LLVM type."""
        return ir.VectorType(self.element, self.lanes)

    @property
    def element(self) -> Any:
        """The LLVM type of a lane."""
        if self.is_float:
            return ir.FloatType() if self.dtype == types.float32 else ir.DoubleType()
        return ir.IntType(self.dtype.bitwidth)

    @property
    def is_float(self) -> bool:
        """Whether lanes are floating-point numbers."""
        return isinstance(self.dtype, types.Float)

    @property
    def suffix(self) -> str:
        """Its name in LLVM's overloaded intrinsics."""
        return f"v{self.lanes}{'f' if self.is_float else 'i'}{self.dtype.bitwidth}"


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        super().__init__(manager, vector, vector.ir)


def vector_of(pointer: types.CPointer) -> VectorType:
    return VectorType(pointer.dtype)


# -- constants and calls --------------------------------------------------------------------------------------------------


def emit_scale(vector, value: float):
    """A constant in every lane."""
    return ir.Constant(vector.ir, [vector.element(value)] * vector.lanes)


def zero_of(vector):
    return ir.Constant(vector.ir, [vector.element(0)] * vector.lanes)


def emit_splat(builder, value, lanes):
    vector = ir.VectorType(value.type, lanes)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, I32(0))
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))


def _call(builder, vector, name, result, arguments, overloads=""):
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.{vector.suffix}{overloads}")
    return builder.call(function, arguments)


def emit_call(context, builder, address, argument_types, arguments):
    """Call a compiled function without a result through its address, by Numba's calling convention."""
    kind = context.call_conv.get_function_type(types.none, argument_types)
    callee = builder.inttoptr(address, kind.as_pointer())
    context.call_conv.call_function(builder, callee, types.none, argument_types, arguments)


def call_by_address(arguments):
    """What an intrinsic that calls a compiled function returns: its signature, the address first, and its code generator."""

    def codegen(context, builder, signature, args):
        emit_call(context, builder, args[0], arguments, args[1:])
        return context.get_dummy_value()

    return types.void(types.int64, *arguments), codegen


# -- memory ---------------------------------------------------------------------------------------------------------------


def _element_pointer(builder, pointer, offset=None):
    if offset is None:
        return pointer
    return builder.gep(pointer, [I64(offset) if isinstance(offset, int) else offset])


def _vector_pointer(builder, vector, pointer, offset=None):
    return builder.bitcast(_element_pointer(builder, pointer, offset), vector.ir.as_pointer())


def emit_load(builder, vector, pointer, offset=None):
    return builder.load(_vector_pointer(builder, vector, pointer, offset), align=vector.dtype.bitwidth // 8)


def emit_store(builder, vector, value, pointer, offset=None):
    builder.store(value, _vector_pointer(builder, vector, pointer, offset), align=vector.dtype.bitwidth // 8)


def emit_store_streamed(builder, vector, value, pointer, offset):
    """Write past the caches to an address that is a multiple of the vector's bytes."""
    store = builder.store(value, _vector_pointer(builder, vector, pointer, offset), align=vector.lanes * vector.dtype.bitwidth // 8)
    store.set_metadata("nontemporal", builder.module.add_metadata([I32(1)]))


def mask_first(builder, count, lanes):
    """Mask of the lanes below `count`, a run-time int64 that may be negative or beyond the vector."""
    index = ir.Constant(ir.VectorType(I64, lanes), list(range(lanes)))
    return builder.icmp_signed("<", index, emit_splat(builder, count, lanes))


def mask_between(builder, start, end, lanes):
    """Mask of the lanes whose position start + lane lies in [0, end): int32 arithmetic, a quarter of mask_first's."""
    kind = ir.VectorType(I32, lanes)
    position = builder.add(emit_splat(builder, builder.trunc(start, I32), lanes), ir.Constant(kind, list(range(lanes))))
    return builder.icmp_unsigned("<", position, emit_splat(builder, builder.trunc(end, I32), lanes))


def emit_load_masked(builder, vector, mask, pointer, offset=None):
    address = _vector_pointer(builder, vector, pointer, offset)
    return _call(builder, vector, "masked.load", vector.ir, [address, I32(vector.dtype.bitwidth // 8), mask, zero_of(vector)], ".p0")


def emit_store_masked(builder, vector, value, mask, pointer, offset=None):
    address = _vector_pointer(builder, vector, pointer, offset)
    _call(builder, vector, "masked.store", ir.VoidType(), [value, address, I32(vector.dtype.bitwidth // 8), mask], ".p0")


def emit_prefetch(builder, pointer, write=False):
    """Bring a cache line near, to be read or written; the address may be any."""
    byte = ir.IntType(8).as_pointer()
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32]), "llvm.prefetch.p0")
    builder.call(function, [builder.bitcast(pointer, byte), I32(int(write)), I32(3), I32(1)])


# -- arithmetic -----------------------------------------------------------------------------------------------------------


def emit_fma(builder, vector, a, b, c):
    if not vector.is_float:
        return builder.add(builder.mul(a, b), c)
    return _call(builder, vector, "fmuladd", vector.ir, [a, b, c])


def emit_elementary(builder, vector, name, value):
    """A function of one argument that LLVM has: "fabs", "sqrt", "floor"."""
    return _call(builder, vector, name, vector.ir, [value])


def emit_sum(builder, vector, value):
    """The lanes added pairwise."""
    add = builder.fadd if vector.is_float else builder.add
    width = vector.lanes
    while width > 1:
        width //= 2
        halves = [ir.Constant(ir.VectorType(I32, width), list(range(at, at + width))) for at in (0, width)]
        value = add(*(builder.shuffle_vector(value, value, half) for half in halves))
    return builder.extract_element(value, I32(0))


def emit_load_transposed(builder, vector, addresses):
    """The columns of a square of as many rows as a vector has lanes, which begin at `addresses`.

    Where shuffles are few, blocks of 16 bytes change places as they are loaded: a fifth less time (37 of 45 cycles a square).
    """
    block = 16 * 8 // vector.dtype.bitwidth
    if FEW_SHUFFLES and vector.lanes > block:
        return _emit_blocks_transposed(builder, vector, addresses, block)
    return emit_transpose(builder, [emit_load(builder, vector, address) for address in addresses])


def _emit_blocks_transposed(builder, vector, addresses, block):
    """Columns of a square read by blocks: vector (q, b) holds block q of the rows b, block + b, 2 block + b, ..."""
    small = ir.VectorType(vector.element, block)
    count = vector.lanes // block
    columns = []
    for q in range(count):
        gathered = []
        for b in range(block):
            value = ir.Constant(vector.ir, ir.Undefined)
            for a in range(count):
                pointer = builder.bitcast(builder.gep(addresses[a * block + b], [I64(q * block)]), small.as_pointer())
                part = builder.load(pointer, align=vector.dtype.bitwidth // 8)
                wide = ir.Constant(ir.VectorType(I32, vector.lanes), [i % block for i in range(vector.lanes)])
                part = builder.shuffle_vector(part, ir.Constant(small, ir.Undefined), wide)
                index = [vector.lanes + i if i // block == a else i for i in range(vector.lanes)]
                value = builder.shuffle_vector(value, part, ir.Constant(ir.VectorType(I32, vector.lanes), index))
            gathered.append(value)
        columns += _emit_exchanges(builder, gathered, vector.lanes)
    return columns


def emit_transpose(builder, rows):
    """Rows to columns by log2(lanes) rounds of block exchanges.

    After the round of distance s, bit s of the row number and of the lane number have changed places.
    """
    return _emit_exchanges(builder, list(rows), len(rows))


def _emit_exchanges(builder, rows, lanes):
    """Transpose the squares of len(rows) lanes that lie side by side in as many vectors."""
    distance = 1
    while distance < len(rows):
        low = [lane if not lane & distance else lanes + lane - distance for lane in range(lanes)]
        high = [lane + distance if not lane & distance else lanes + lane for lane in range(lanes)]
        indices = [ir.Constant(ir.VectorType(I32, lanes), index) for index in (low, high)]
        for i in range(len(rows)):
            if not i & distance:
                a, b = rows[i], rows[i + distance]
                rows[i], rows[i + distance] = (builder.shuffle_vector(a, b, index) for index in indices)
        distance *= 2
    return rows


def emit_interleaved(builder, even, odd):
    """The lanes of two vectors in turn, as two vectors."""
    lanes = even.type.count
    indices = [[half * lanes // 2 + i // 2 + i % 2 * lanes for i in range(lanes)] for half in (0, 1)]
    return [builder.shuffle_vector(even, odd, ir.Constant(ir.VectorType(I32, lanes), index)) for index in indices]


def emit_rectify(builder, vector, value, slope, ceiling):
    """Lanes below zero times `slope` (0 makes them 0, infinities too), then cut at `ceiling`; NaN stays NaN."""
    multiply, compare = (builder.fmul, builder.fcmp_ordered) if vector.is_float else (builder.mul, builder.icmp_signed)
    below = multiply(value, emit_splat(builder, slope, vector.lanes))
    below = builder.select(compare("==", slope, vector.element(0)), zero_of(vector), below)
    value = builder.select(compare("<", value, zero_of(vector)), below, value)
    top = emit_splat(builder, ceiling, vector.lanes)
    return builder.select(compare(">", value, top), top, value)


def emit_epilogue(builder, vector, values, epilogue):
    """The vectors rectified, if the epilogue (flag, slope, ceiling) says so."""
    flag, slope, ceiling = (builder.extract_value(epilogue, i) for i in range(3))
    before = builder.block
    with builder.if_then(builder.trunc(flag, I1)):
        rectified = [emit_rectify(builder, vector, value, slope, ceiling) for value in values]
        after = builder.block
    merged = []
    for value, new in zip(values, rectified, strict=True):
        phi = builder.phi(vector.ir)
        phi.add_incoming(value, before)
        phi.add_incoming(new, after)
        merged.append(phi)
    return merged


def emit_in_order(builder, values):
    """`values`, and a promise to LLVM that nothing after them may be loaded before they are known.

    Without it the scheduler loads the broadcasts of all rows of a tile first and spills the tile: 130 GFLOP/s, not 255.
    """
    register = "w" if TRIPLE.startswith(("aarch64", "arm64")) else "v" if "avx512f" in _FEATURES else "x"
    kinds = [value.type for value in values]
    result = kinds[0] if len(kinds) == 1 else ir.LiteralStructType(kinds)
    constraints = [f"={register}"] * len(values) + [str(i) for i in range(len(values))] + ["~{memory}"]
    assembly = ir.InlineAsm(ir.FunctionType(result, kinds), "", ",".join(constraints), side_effect=True)
    ordered = builder.call(assembly, values)
    return [ordered] if len(kinds) == 1 else [builder.extract_value(ordered, i) for i in range(len(kinds))]
