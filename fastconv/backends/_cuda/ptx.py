"""The primitives of CUDA kernels as LLVM IR and PTX. All of CUDA's raw IR stays here.

A `Pointer` has an element type and a space, global or shared, so that loads and stores need no test of where they go. Indices reach
the address as they are, of 32 or 64 bits: no negative index is wrapped round. Numbered registers are tuples of one type.

Source: NVIDIA, "Parallel Thread Execution ISA", sections 5.1 (spaces), 9.7.9 (cp.async), 9.7.14 (mma).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import cuda
from numba.cuda import cgutils, types
from numba.cuda.extending import intrinsic, models, register_model

from .symbols import Symbol, outputs_of

__all__ = ["GLOBAL", "SHARED", "Pointer", "advance", "cast", "concatenate", "copy_async", "copy_commit", "copy_wait", "fetch", "fetch4",
           "fetch_apart", "fetch_between", "fetch_each", "fetch_grid", "fetch_patch", "fetch_window", "i32", "inlined", "is_aligned",
           "less_unsigned", "load", "load4", "load_each", "mma", "one", "ones_of", "opaque", "outer_product", "pack_halves", "pick",
           "pick4", "quotient", "rectify_each", "remainder", "round_tf32", "shared_memory", "store", "store4", "store_apart",
           "store_between", "store_each", "store_part", "sync_warp", "traced", "zero_of", "zeros"]

GLOBAL, SHARED = 1, 3  # address spaces
I1, I8, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 32, 64))
VOID = ir.VoidType()
WIDE = 4  # elements of the wide loads and stores
MOST_ASYNC_BYTES = 16  # of one asynchronous copy
SHARED_SYMBOL = "fastconv_shared_memory"
IR_OF = {types.float16: ir.IntType(16), types.float32: ir.FloatType(), types.float64: ir.DoubleType(),
         **{kind: ir.IntType(kind.bitwidth) for kind in (types.int8, types.int16, types.int32, types.int64,
                                                         types.uint8, types.uint16, types.uint32, types.uint64)}}
BYTES_OF = {kind: kind.bitwidth // 8 for kind in IR_OF}
SUFFIX_OF = {types.float32: "f32", types.float64: "f64"}
CONSTRAINT_OF = {types.float32: "f", types.float64: "d"}
inlined = cuda.jit(device=True, forceinline=True)


class Pointer(types.Type):
    """Numba's type of an address of elements in one space."""

    def __init__(self, element: Any, space: int = GLOBAL):
        super().__init__(name=f"Pointer({element}, {space})")
        self.element = element
        self.space = space


@register_model(Pointer)
class _PointerModel(models.PrimitiveModel):
    def __init__(self, manager: Any, pointer: Pointer):
        super().__init__(manager, pointer, IR_OF[pointer.element].as_pointer(pointer.space))


def _narrow(builder: Any, value: Any) -> Any:
    return builder.trunc(value, I32) if value.type.width > 32 else value


def _vector(builder: Any, pointer: Any, element: Any, space: int) -> Any:
    return builder.bitcast(pointer, ir.VectorType(IR_OF[element], WIDE).as_pointer(space))


def _call_assembly(builder: Any, result: Any, code: str, constraints: str, arguments: list[Any], *, effect: bool = True) -> Any:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(ir.InlineAsm(kind, code, constraints, side_effect=effect), arguments)


# -- pointers -------------------------------------------------------------------------------------------------------------


@intrinsic
def advance(typing, pointer, count):
    """The pointer `count` elements on."""
    return pointer(pointer, count), lambda context, builder, sig, args: builder.gep(args[0], [args[1]])


@intrinsic
def cast(typing, pointer, example):
    """The same address as a pointer to elements of the type of the pointer `example`'s."""
    result = Pointer(example.element, pointer.space)

    def emit(context, builder, sig, args):
        return builder.bitcast(args[0], context.get_value_type(result))

    return result(pointer, example), emit


@intrinsic
def shared_memory(typing, example):
    """The beginning of the block's shared memory, as a pointer to elements of the type of the pointer `example`'s."""
    result = Pointer(example.element, SHARED)

    def emit(context, builder, sig, args):
        module = builder.module
        memory = module.globals.get(SHARED_SYMBOL)
        if memory is None:
            memory = ir.GlobalVariable(module, ir.ArrayType(I8, 0), SHARED_SYMBOL, SHARED)
            memory.linkage, memory.align = "external", 16
        return builder.bitcast(memory, context.get_value_type(result))

    return result(example), emit


# -- loads and stores -----------------------------------------------------------------------------------------------------


def _emit_load(wide: bool, constant: bool) -> Callable[..., Any]:
    def emit(context, builder, sig, args):
        pointer = sig.args[0]
        address = builder.gep(args[0], [args[1]])
        if wide:
            address = _vector(builder, address, pointer.element, pointer.space)
        value = builder.load(address, align=BYTES_OF[pointer.element] * (WIDE if wide else 1))
        if constant:
            value.set_metadata("invariant.load", builder.module.add_metadata([]))
        if not wide:
            return value
        return context.make_tuple(builder, sig.return_type, [builder.extract_element(value, I32(j)) for j in range(WIDE)])

    return emit


@intrinsic
def load(typing, pointer, i):
    """The element at i."""
    return pointer.element(pointer, i), _emit_load(wide=False, constant=False)


@intrinsic
def load4(typing, pointer, i):
    """Four elements from i on, an address that is a multiple of theirs."""
    return types.UniTuple(pointer.element, WIDE)(pointer, i), _emit_load(wide=True, constant=False)


@intrinsic
def fetch(typing, pointer, i):
    """The element at i of global memory that no thread writes meanwhile."""
    return pointer.element(pointer, i), _emit_load(wide=False, constant=True)


@intrinsic
def fetch4(typing, pointer, i):
    """Four such elements."""
    return types.UniTuple(pointer.element, WIDE)(pointer, i), _emit_load(wide=True, constant=True)


def _emit_grid(context: Any, builder: Any, sig: Any, args: Any, bounds: Any = None) -> Any:
    """Loads of a grid of global memory, as `fetch_grid` and `fetch_window` describe them; `bounds` has row, column, height, width."""
    pointer, result = sig.args[0], sig.return_type
    base, at, pitch, step = (args[0], *(_narrow(builder, value) for value in args[1:4]))
    rows, columns = (kind.literal_value for kind in sig.args[-2:])
    suffix, letter = SUFFIX_OF[pointer.element], {4: "f", 8: "d"}[BYTES_OF[pointer.element]]
    zero = f"0{letter}{'0' * 2 * BYTES_OF[pointer.element]}"
    guarded = f"{{ .reg .pred p; setp.ne.b32 p, $2, 0; mov.{suffix} $0, {zero}; @p ld.global.nc.{suffix} $0, [$1]; }}"
    inside: list[list[Any]] = [[], []]
    if bounds:
        row, column, height, width = (_narrow(builder, value) for value in bounds)
        for axis, (count, first, size) in enumerate(((rows, row, height), (columns, column, width))):
            inside[axis] = [builder.icmp_unsigned("<", builder.add(first, I32(k)), size) for k in range(count)]
    values = []
    for i in range(rows):
        line = builder.gep(base, [builder.add(at, builder.mul(pitch, I32(i)))])
        for j in range(columns):
            address = builder.gep(line, [builder.mul(step, I32(j))])
            if not bounds:
                values.append(builder.load(address, align=BYTES_OF[pointer.element]))
                values[-1].set_metadata("invariant.load", builder.module.add_metadata([]))
                continue
            operands = [builder.ptrtoint(address, I64), builder.zext(builder.and_(inside[0][i], inside[1][j]), I32)]
            values.append(_call_assembly(builder, IR_OF[pointer.element], guarded, f"=&{letter},l,r", operands, effect=False))
    return context.make_tuple(builder, result, values)


def _grid_of(pointer: Any, rows: Any, columns: Any) -> Any:
    if isinstance(rows, types.IntegerLiteral) and isinstance(columns, types.IntegerLiteral):
        return types.UniTuple(pointer.element, rows.literal_value * columns.literal_value)
    return None


@intrinsic
def fetch_grid(typing, pointer, at, pitch, step, rows, columns):
    """The elements at + i * pitch + j * step of global memory that no thread writes, rows after rows; both counts are literals."""
    result = _grid_of(pointer, rows, columns)
    return result and (result(pointer, at, pitch, step, rows, columns), _emit_grid)


@intrinsic
def fetch_window(typing, pointer, at, pitch, step, row, column, height, width, rows, columns):
    """The same, of the points (row + i, column + j) of an image of `height` by `width`; zeros outside it."""
    result = _grid_of(pointer, rows, columns)

    def emit(context, builder, sig, args):
        return _emit_grid(context, builder, sig, args, bounds=args[4:8])

    return result and (result(pointer, at, pitch, step, row, column, height, width, rows, columns), emit)


@intrinsic
def fetch_apart(typing, pointer, i, pitch, count):
    """`count` (a literal) such elements, `pitch` apart."""
    if not isinstance(count, types.IntegerLiteral):
        return None
    result = types.UniTuple(pointer.element, count.literal_value)

    def emit(context, builder, sig, args):
        at, step, values = _narrow(builder, args[1]), _narrow(builder, args[2]), []
        for k in range(result.count):
            value = builder.load(builder.gep(args[0], [builder.add(at, builder.mul(step, I32(k)))]), align=BYTES_OF[pointer.element])
            value.set_metadata("invariant.load", builder.module.add_metadata([]))
            values.append(value)
        return context.make_tuple(builder, result, values)

    return result(pointer, i, pitch, count), emit


@intrinsic
def fetch_patch(typing, pointer, i, row, column, height, width, row_pitch, column_pitch, rows, columns):
    """Such elements of a patch of `rows` times `columns` (literals) that begins at (row, column) of an image; zeros outside.

    Were it inside, the first would be at i.
    """
    if not all(isinstance(number, types.IntegerLiteral) for number in (rows, columns)):
        return None
    element = IR_OF[pointer.element]
    result = types.UniTuple(pointer.element, rows.literal_value * columns.literal_value)
    letter, kind = CONSTRAINT_OF[pointer.element], SUFFIX_OF[pointer.element]
    code = f"{{ .reg .pred p; setp.ne.b32 p, $2, 0; mov.b{pointer.element.bitwidth} $0, 0; @p ld.global.nc.{kind} $0, [$1]; }}"

    def emit(context, builder, sig, args):
        at, row, column, height, width, row_pitch, column_pitch = (_narrow(builder, value) for value in args[1:8])
        inside = [[builder.icmp_unsigned("<", builder.add(first, I32(k)), size) for k in range(count.literal_value)]
                  for first, size, count in ((row, height, rows), (column, width, columns))]
        values = []
        for i, row_inside in enumerate(inside[0]):
            line = builder.add(at, builder.mul(row_pitch, I32(i)))
            for j, column_inside in enumerate(inside[1]):
                address = builder.ptrtoint(builder.gep(args[0], [builder.add(line, builder.mul(column_pitch, I32(j)))]), I64)
                flag = builder.zext(builder.and_(row_inside, column_inside), I32)
                values.append(_call_assembly(builder, element, code, f"={letter},l,r", [address, flag], effect=False))
        return context.make_tuple(builder, result, values)

    return result(pointer, i, row, column, height, width, row_pitch, column_pitch, rows, columns), emit


@intrinsic
def store(typing, pointer, i, value):
    """Write the element at i."""

    def emit(context, builder, sig, args):
        builder.store(args[2], builder.gep(args[0], [args[1]]), align=BYTES_OF[pointer.element])
        return context.get_dummy_value()

    return types.void(pointer, i, pointer.element), emit


@intrinsic
def store4(typing, pointer, i, values):
    """Write four elements from i on, an address that is a multiple of theirs."""

    def emit(context, builder, sig, args):
        vector = ir.Constant(ir.VectorType(IR_OF[pointer.element], WIDE), ir.Undefined)
        for j in range(WIDE):
            vector = builder.insert_element(vector, builder.extract_value(args[2], j), I32(j))
        address = _vector(builder, builder.gep(args[0], [args[1]]), pointer.element, pointer.space)
        builder.store(vector, address, align=BYTES_OF[pointer.element] * WIDE)
        return context.get_dummy_value()

    return types.void(pointer, i, types.UniTuple(pointer.element, WIDE)), emit


@intrinsic
def store_apart(typing, pointer, i, values, pitch):
    """Write the elements of a tuple from i on, `pitch` apart."""

    def emit(context, builder, sig, args):
        at, step = _narrow(builder, args[1]), _narrow(builder, args[3])
        for k in range(values.count):
            address = builder.gep(args[0], [builder.add(at, builder.mul(step, I32(k)))])
            builder.store(builder.extract_value(args[2], k), address, align=BYTES_OF[pointer.element])
        return context.get_dummy_value()

    return types.void(pointer, i, values, pitch), emit


@intrinsic
def is_aligned(typing, pointer, i):
    """Whether four elements can be written from i on at once."""

    def emit(context, builder, sig, args):
        address = builder.ptrtoint(builder.gep(args[0], [args[1]]), I64)
        return builder.icmp_unsigned("==", builder.and_(address, I64(BYTES_OF[pointer.element] * WIDE - 1)), I64(0))

    return types.boolean(pointer, i), emit


@intrinsic
def store_part(typing, pointer, tile, part, rows, groups, step, pitch):
    """Write rows of a tile, those of its `part`-th group of `rows`: groups of four columns `step` apart, rows `pitch` apart.

    All numbers but `part` are literals, and unrolling makes that a constant.
    """
    if not all(isinstance(number, types.IntegerLiteral) for number in (rows, groups, step, pitch)):
        return None
    count, columns, apart, line = (number.literal_value for number in (rows, groups, step, pitch))

    def emit(context, builder, sig, args):
        kept = cgutils.alloca_once(builder, args[1].type)  # LLVM takes it apart again
        builder.store(args[1], kept)
        first = builder.mul(_narrow(builder, args[2]), I32(count * columns * WIDE))
        for i in range(count):
            for b in range(columns):
                vector = ir.Constant(ir.VectorType(IR_OF[pointer.element], WIDE), ir.Undefined)
                for j in range(WIDE):
                    at = builder.add(first, I32((i * columns + b) * WIDE + j))
                    vector = builder.insert_element(vector, builder.load(builder.gep(kept, [I32(0), at])), I32(j))
                address = _vector(builder, builder.gep(args[0], [I32(i * line + b * apart)]), pointer.element, pointer.space)
                builder.store(vector, address, align=BYTES_OF[pointer.element] * WIDE)
        return context.get_dummy_value()

    return types.void(pointer, tile, part, rows, groups, step, pitch), emit


def _places(builder: Any, first: Any, step: Any, count: int) -> list[Any]:
    """first + k * step, of 32 bits."""
    first, step = _narrow(builder, first), _narrow(builder, step)
    return [builder.add(first, builder.mul(step, I32(k))) for k in range(count)]


def _emit_column(count: int, constant: bool) -> Callable[..., Any]:
    def emit(context, builder, sig, args):
        pointer = sig.args[0]
        values = []
        for place in _places(builder, args[1], args[2], count):
            value = builder.load(builder.gep(args[0], [place]), align=BYTES_OF[pointer.element])
            if constant:
                value.set_metadata("invariant.load", builder.module.add_metadata([]))
            values.append(value)
        return context.make_tuple(builder, sig.return_type, values)

    return emit


@intrinsic
def load_each(typing, pointer, first, step, count):
    """`count` elements (a literal) from `first` on, `step` apart."""
    if not isinstance(count, types.IntegerLiteral):
        return None
    result = types.UniTuple(pointer.element, count.literal_value)
    return result(pointer, first, step, count), _emit_column(result.count, constant=False)


@intrinsic
def fetch_each(typing, pointer, first, step, count):
    """The same from global memory that no thread writes meanwhile."""
    if not isinstance(count, types.IntegerLiteral):
        return None
    result = types.UniTuple(pointer.element, count.literal_value)
    return result(pointer, first, step, count), _emit_column(result.count, constant=True)


@intrinsic
def store_each(typing, pointer, first, step, values):
    """Write the elements of a tuple from `first` on, `step` apart."""

    def emit(context, builder, sig, args):
        for k, place in enumerate(_places(builder, args[1], args[2], values.count)):
            builder.store(builder.extract_value(args[3], k), builder.gep(args[0], [place]), align=BYTES_OF[pointer.element])
        return context.get_dummy_value()

    return types.void(pointer, first, step, values), emit


def _is_between(builder: Any, k: int, low: Any, inside: Any) -> Any:
    return builder.icmp_unsigned("<", builder.sub(I32(k), _narrow(builder, low)), _narrow(builder, inside))


@intrinsic
def fetch_between(typing, pointer, first, step, count, low, inside):
    """`fetch_each` of the elements k for which 0 <= k - low < inside, zeros for the others; the pointer's own element is there."""
    if not isinstance(count, types.IntegerLiteral):
        return None
    result = types.UniTuple(pointer.element, count.literal_value)

    def emit(context, builder, sig, args):
        values = []
        for k, place in enumerate(_places(builder, args[1], args[2], result.count)):
            is_inside = _is_between(builder, k, args[4], args[5])
            value = builder.load(builder.gep(args[0], [builder.select(is_inside, place, I32(0))]), align=BYTES_OF[pointer.element])
            value.set_metadata("invariant.load", builder.module.add_metadata([]))
            values.append(builder.select(is_inside, value, ir.Constant(IR_OF[pointer.element], 0)))
        return context.make_tuple(builder, result, values)

    return result(pointer, first, step, count, low, inside), emit


@intrinsic
def store_between(typing, pointer, first, step, values, low, inside):
    """`store_each` of the elements k for which 0 <= k - low < inside."""

    def emit(context, builder, sig, args):
        for k, place in enumerate(_places(builder, args[1], args[2], values.count)):
            with builder.if_then(_is_between(builder, k, args[4], args[5])):
                builder.store(builder.extract_value(args[3], k), builder.gep(args[0], [place]), align=BYTES_OF[pointer.element])
        return context.get_dummy_value()

    return types.void(pointer, first, step, values, low, inside), emit


@intrinsic
def copy_async(typing, target, i, source, j, count, inside):
    """Begin to copy `count` elements (a literal) of global memory to shared memory; zeros where not `inside`."""
    if not isinstance(count, types.IntegerLiteral):
        return None
    size = count.literal_value * BYTES_OF[target.element]

    def emit(context, builder, sig, args):
        to = builder.ptrtoint(builder.gep(args[0], [args[1]]), I32)
        at = builder.ptrtoint(builder.gep(args[2], [args[3]]), I64)
        part = min(size, MOST_ASYNC_BYTES)
        read = builder.select(args[5], I32(part), I32(0))
        cache = "cg" if part == MOST_ASYNC_BYTES else "ca"
        for start in range(0, size, part):
            code = f"cp.async.{cache}.shared.global [$0 + {start}], [$1 + {start}], {part}, $2;"
            _call_assembly(builder, VOID, code, "r,l,r,~{memory}", [to, at, read])
        return context.get_dummy_value()

    return types.void(target, i, source, j, count, types.boolean), emit


@intrinsic
def copy_commit(typing):
    """Make one group of the copies begun since the last."""

    def emit(context, builder, sig, args):
        _call_assembly(builder, VOID, "cp.async.commit_group;", "~{memory}", [])
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def copy_wait(typing, groups):
    """Wait until at most `groups` (a literal) of this thread's groups are under way."""
    if not isinstance(groups, types.IntegerLiteral):
        return None

    def emit(context, builder, sig, args):
        _call_assembly(builder, VOID, f"cp.async.wait_group {groups.literal_value};", "~{memory}", [])
        return context.get_dummy_value()

    return types.void(groups), emit


@intrinsic
def sync_warp(typing):
    """Wait for the threads of the warp, and see what they wrote."""

    def emit(context, builder, sig, args):
        _call_assembly(builder, VOID, "bar.warp.sync 0xffffffff;", "~{memory}", [])
        return context.get_dummy_value()

    return types.void(), emit


# -- integers -------------------------------------------------------------------------------------------------------------


@intrinsic
def i32(typing, value):
    """The low 32 bits."""
    return types.int32(value), lambda context, builder, sig, args: _narrow(builder, args[0])


@intrinsic
def quotient(typing, a, b):
    """a // b of 32 bits, neither negative."""

    def emit(context, builder, sig, args):
        return builder.udiv(*(_narrow(builder, value) for value in args))

    return types.int32(a, b), emit


@intrinsic
def remainder(typing, a, b):
    """a % b of 32 bits, neither negative."""

    def emit(context, builder, sig, args):
        return builder.urem(*(_narrow(builder, value) for value in args))

    return types.int32(a, b), emit


@intrinsic
def less_unsigned(typing, a, b):
    """Whether 0 <= a < b, of 32 bits."""

    def emit(context, builder, sig, args):
        return builder.icmp_unsigned("<", *(_narrow(builder, value) for value in args))

    return types.boolean(a, b), emit


@intrinsic
def opaque(typing, value):
    """The value, an integer of 32 bits or a pointer, computed here once: the compiler does not see what it is the sum of."""
    wide = isinstance(value, Pointer)

    def emit(context, builder, sig, args):
        code = "mov.u64 $0, $1;" if wide else "mov.u32 $0, $1;"
        return _call_assembly(builder, args[0].type, code, "=l,l" if wide else "=r,r", args)

    return value(value), emit


# -- registers ------------------------------------------------------------------------------------------------------------


@intrinsic
def zeros(typing, example, count):
    """`count` (a literal) zeros of the type of the pointer `example`'s elements."""
    if not isinstance(count, types.IntegerLiteral):
        return None
    result = types.UniTuple(example.element, count.literal_value)
    return result(example, count), lambda context, builder, sig, args: ir.Constant(context.get_value_type(result), None)


@intrinsic
def ones_of(typing, example, count):
    """`count` (a literal) ones of the type of the pointer `example`'s elements."""
    if not isinstance(count, types.IntegerLiteral):
        return None
    result = types.UniTuple(example.element, count.literal_value)

    def emit(context, builder, sig, args):
        return context.make_tuple(builder, result, [ir.Constant(IR_OF[example.element], 1)] * result.count)

    return result(example, count), emit


@intrinsic
def zero_of(typing, example):
    """A zero of the type of the pointer `example`'s elements."""
    return example.element(example), lambda context, builder, sig, args: ir.Constant(IR_OF[example.element], 0)


@intrinsic
def one(typing, value):
    """The value as a tuple of one."""
    result = types.UniTuple(value, 1)
    return result(value), lambda context, builder, sig, args: context.make_tuple(builder, result, args)


@intrinsic
def concatenate(typing, a, b):
    """The elements of both tuples."""
    result = types.UniTuple(a.dtype, a.count + b.count)

    def emit(context, builder, sig, args):
        values = [builder.extract_value(value, j) for value, kind in zip(args, sig.args, strict=True) for j in range(kind.count)]
        return context.make_tuple(builder, result, values)

    return result(a, b), emit


@intrinsic
def pick(typing, values, i):
    """The element i of a tuple, where unrolling makes i a constant."""

    def emit(context, builder, sig, args):
        kept = cgutils.alloca_once(builder, args[0].type)  # LLVM takes it apart again
        builder.store(args[0], kept)
        return builder.load(builder.gep(kept, [I32(0), args[1]]))

    return values.dtype(values, i), emit


@intrinsic
def pick4(typing, values, i):
    """Four elements of a tuple from i on, where unrolling makes i a constant."""
    result = types.UniTuple(values.dtype, WIDE)

    def emit(context, builder, sig, args):
        kept = cgutils.alloca_once(builder, args[0].type)  # LLVM takes it apart again
        builder.store(args[0], kept)
        first = _narrow(builder, args[1])
        found = [builder.load(builder.gep(kept, [I32(0), builder.add(first, I32(j))])) for j in range(WIDE)]
        return context.make_tuple(builder, result, found)

    return result(values, i), emit


@intrinsic
def outer_product(typing, tile, a, b):
    """tile[i, j] + a[i] * b[j], rows after rows."""

    def emit(context, builder, sig, args):
        total, left, right = args
        element = IR_OF[tile.dtype]
        name = f"llvm.fma.{SUFFIX_OF[tile.dtype]}"
        fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(element, [element] * 3), name)
        for i in range(a.count):
            for j in range(b.count):
                at = i * b.count + j
                factors = builder.extract_value(left, i), builder.extract_value(right, j)
                total = builder.insert_value(total, builder.call(fma, [*factors, builder.extract_value(total, at)]), at)
        return total

    return tile(tile, a, b), emit


# -- tensor cores ---------------------------------------------------------------------------------------------------------


@intrinsic
def round_tf32(typing, value):
    """The float32 rounded to a tf32, of 10 bits after the point."""

    def emit(context, builder, sig, args):
        rounded = _call_assembly(builder, I32, "cvt.rna.tf32.f32 $0, $1;", "=r,f", args, effect=False)
        return builder.bitcast(rounded, ir.FloatType())

    return types.float32(types.float32), emit


@intrinsic
def pack_halves(typing, low, high):
    """Two float32, rounded to float16, in one integer."""

    def emit(context, builder, sig, args):
        return _call_assembly(builder, I32, "cvt.rn.f16x2.f32 $0, $2, $1;", "=r,f,f", args, effect=False)

    return types.int32(types.float32, types.float32), emit


@intrinsic
def mma(typing, tiles, a, b):
    """The warp's tiles of 16x8 sums plus products of its fragments: four words of each row of tiles, two of each column.

    Words are tf32, of 8 steps of the depth, or pairs of float16, of 16.
    """
    shape = "m16n8k8.row.col.f32.tf32.tf32.f32" if a.dtype == types.float32 else "m16n8k16.row.col.f32.f16.f16.f32"
    code = f"mma.sync.aligned.{shape} {{$0, $1, $2, $3}}, {{$4, $5, $6, $7}}, {{$8, $9}}, {{$10, $11, $12, $13}};"
    constraints = ",".join(["=f"] * 4 + ["r"] * 6 + ["f"] * 4)
    four = ir.LiteralStructType([ir.FloatType()] * 4)

    def emit(context, builder, sig, args):
        total, left, right = args
        rows = [builder.bitcast(builder.extract_value(left, j), I32) for j in range(a.count)]
        columns = [builder.bitcast(builder.extract_value(right, j), I32) for j in range(b.count)]
        for at in range(0, tiles.count, 4):
            i, j = divmod(at // 4, b.count // 2)
            sums = [builder.extract_value(total, at + k) for k in range(4)]
            operands = [*rows[4 * i:4 * i + 4], *columns[2 * j:2 * j + 2], *sums]
            result = _call_assembly(builder, four, code, constraints, operands)  # all lanes together: nowhere else
            for k in range(4):
                total = builder.insert_value(total, builder.extract_value(result, k), at + k)
        return total

    return tiles(tiles, a, b), emit


@intrinsic
def rectify_each(typing, values, slope, ceiling):
    """Each value, times the slope where it is negative, cut at the ceiling."""

    def emit(context, builder, sig, args):
        element = values.dtype
        factor, most = (context.cast(builder, value, kind, element) for value, kind in zip(args[1:], sig.args[1:], strict=True))
        results = []
        for k in range(values.count):
            value = builder.extract_value(args[0], k)
            is_negative = builder.fcmp_ordered("<", value, ir.Constant(IR_OF[element], 0))
            value = builder.select(is_negative, builder.fmul(value, factor), value)
            results.append(builder.select(builder.fcmp_ordered(">", value, most), most, value))
        return context.make_tuple(builder, sig.return_type, results)

    return values(values, slope, ceiling), emit


# -- straight-line code ---------------------------------------------------------------------------------------------------


class _Emitter:
    """What symbols emit: sums and products of one type."""

    def __init__(self, builder: Any, element: Any):
        self.builder, self.element = builder, IR_OF[element]

    def constant(self, value: float) -> Any:
        return ir.Constant(self.element, float(value))

    def add(self, a: Any, b: Any) -> Any:
        return self.builder.fadd(a, b, flags=("contract",))

    def subtract(self, a: Any, b: Any) -> Any:
        return self.builder.fsub(a, b, flags=("contract",))

    def multiply(self, a: Any, b: Any) -> Any:
        return self.builder.fmul(a, b, flags=("contract",))


def traced(formula: Callable[..., list[Any]]) -> Any:
    """A primitive out of `formula`, which makes a list of sums and products out of tuples; it runs once, at compile time."""

    def trace(*operands: Any) -> Any:
        element = operands[0].dtype
        count = len(outputs_of(formula, [kind.count for kind in operands]))
        result = types.UniTuple(element, count)

        def emit(context, builder, sig, args):
            emitter = _Emitter(builder, element)
            symbols = [tuple(Symbol(emitter, builder.extract_value(value, j)) for j in range(kind.count))
                       for value, kind in zip(args, sig.args, strict=True)]
            values = [v.value if isinstance(v, Symbol) else emitter.constant(v) for v in formula(*symbols)]
            return context.make_tuple(builder, result, values)

        return result(*operands), emit

    # Numba reads an intrinsic's arguments off its signature.
    arguments = formula.__code__.co_argcount
    makers = {1: lambda typing, a: trace(a), 2: lambda typing, a, b: trace(a, b), 3: lambda typing, a, b, c: trace(a, b, c),
              4: lambda typing, a, b, c, d: trace(a, b, c, d)}
    return intrinsic(makers[arguments])
