"""Threads: kernels on Numba's thread pool, the constants they are bound to, and the counter that hands out their tasks.

A kernel is a function

    kernel(x, w, bias, y, constants, scratch, counters, thread, threads)

of four operands, the constants it was bound to, this thread's share of the scratch memory, and counters that are zero
when the run starts. Everything but the operands is laid down in memory once, by `bind`; a run then passes the memory of four
arrays and two addresses through one function, `launch`, that is the same for all kernels: a quarter of a microsecond.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import int64, typeof, types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.extending import NativeValue, intrinsic, register_model, unbox
from numba.np.numpy_support import from_dtype

from .._jit import address_of, addressed, cached, inlined, parallel_region, threading_layer
from .._scratch import arena
from .emit import I64, emit_call
from .vector import advance

MOST_THREADS = 1024  # of one region
LINE = 64  # bytes: a cache line, and the widest vector
COUNTER_PITCH = LINE // 8  # from one thread's counter to the next: each has a cache line
HEADER_WORDS = 4  # of a bound kernel's memory: its address, a thread's bytes of scratch, bytes of counters, unused
LARGEST_CONSTANTS = 1 << 14  # bytes
BYTE_POINTER = ir.IntType(8).as_pointer()


@intrinsic
def raise_flag(typingctx, counters):
    """Let the run's call return True."""

    def codegen(context, builder, signature, args):
        builder.store(I64(1), builder.gep(args[0], [I64(-LINE // 8)]))
        return context.get_dummy_value()

    return types.void(types.CPointer(types.int64)), codegen


@intrinsic
def next_task(typingctx, counter):
    """counter[0]++, atomically, returning the old value: how threads share tasks of unequal length on any layer.

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
    """The address of a tuple laid down by `freeze`."""

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


def emit_frozen(context, builder, kind, value):
    if isinstance(kind, types.Array):
        return context.make_array(kind)(context, builder, value).data
    if isinstance(kind, types.BaseTuple):
        items = [emit_frozen(context, builder, item, part) for item, part in zip(kind, cgutils.unpack_tuple(builder, value), strict=True)]
        return context.make_tuple(builder, frozen_type(kind), items)
    return value


@intrinsic
def store_constants(typingctx, constants, target):
    """Write a tuple of constants as kernels read it to `target`; returns its bytes."""

    def codegen(context, builder, signature, args):
        value = emit_frozen(context, builder, constants, args[0])
        builder.store(value, builder.bitcast(args[1], value.type.as_pointer()), align=8)
        return I64(context.get_abi_sizeof(value.type))

    return types.int64(constants, types.CPointer(types.int64)), codegen


@intrinsic
def array_address(typingctx, array):
    """The address of an array's first element."""

    def codegen(context, builder, signature, args):
        return context.make_array(array)(context, builder, args[0]).data

    return types.CPointer(array.dtype)(array), codegen


@cached
def freeze(constants, target):
    """Lay constants down in `target`; compiled once for the constants of each kernel."""
    return store_constants(constants, array_address(target))


@intrinsic
def thawed(typingctx, constants):
    """The tuple that a kernel was bound to, with pointers in place of arrays."""
    contents = constants.contents

    def codegen(context, builder, signature, args):
        return builder.load(builder.bitcast(args[0], context.get_value_type(contents).as_pointer()), align=8)

    return contents(constants), codegen


# -- operands -------------------------------------------------------------------------------------------------------------


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


# -- running --------------------------------------------------------------------------------------------------------------

OPERANDS = 4
# x, w, bias, y, constants, scratch, counters, thread, threads
ENTRY_TYPES = (*[types.voidptr] * (OPERANDS + 3), types.int64, types.int64)


def _run_type() -> ir.LiteralStructType:
    """What the threads of a run share: the bound kernel, the operands, the scratch memory, the number of threads."""
    return ir.LiteralStructType([I64.as_pointer(), *[BYTE_POINTER] * OPERANDS, BYTE_POINTER, I64])


@intrinsic
def in_threads(typingctx, x, w, bias, y, bound, scratch, threads):
    """Call a bound kernel for thread in range(threads) on Numba's pool, or on the caller's thread alone if threads == 1.

    Returns whether a thread has raised the flag. The kernel must not raise exceptions. The pool must have been started.
    """

    def codegen(context, builder, signature, args):
        *operands, bound, scratch, threads = args
        header = builder.inttoptr(bound, I64.as_pointer())
        memory = builder.inttoptr(scratch, BYTE_POINTER)
        cgutils.memset(builder, memory, builder.load(builder.gep(header, [I64(2)])), 0)
        data = cgutils.alloca_once(builder, _run_type())
        for i, value in enumerate([header, *operands, memory, threads]):
            builder.store(value, builder.gep(data, [ir.IntType(32)(0), ir.IntType(32)(i)]))
        entry = _thread_entry(context, builder.module)
        with builder.if_else(builder.icmp_signed("==", threads, I64(1))) as (alone, together):
            with alone:
                number = cgutils.alloca_once_value(builder, I64(0))
                _call_entry(builder, builder.call, entry, number, I64(1), data)
            with together:
                numbers = cgutils.alloca_once(builder, I64, size=MOST_THREADS)
                with cgutils.for_range(builder, threads) as loop:
                    builder.store(loop.index, builder.gep(numbers, [loop.index]))
                kind = ir.FunctionType(ir.VoidType(), [BYTE_POINTER] * 5 + [I64] * 3)
                parallel_for = cgutils.get_or_insert_function(builder.module, kind, "numba_parallel_for")

                def on_pool(entry, arguments):
                    pointers = [builder.bitcast(value, BYTE_POINTER) for value in (entry, *arguments)]
                    builder.call(parallel_for, [*pointers, I64(0), I64(1), threads])

                _call_entry(builder, on_pool, entry, numbers, threads, data)
        return builder.load(builder.bitcast(memory, I64.as_pointer()))

    return types.int64(x, w, bias, y, types.int64, types.int64, types.int64), codegen


def _call_entry(builder, call, entry, numbers, count, data):
    """Call what the pool calls with a run of thread numbers: (arrays, their dimension, their steps, shared data)."""
    arrays = cgutils.alloca_once_value(builder, builder.bitcast(numbers, BYTE_POINTER))
    dimension, step = cgutils.alloca_once_value(builder, count), cgutils.alloca_once_value(builder, I64(8))
    call(entry, [arrays, dimension, step, builder.bitcast(data, BYTE_POINTER)])


def _thread_entry(context, module):
    """The function that the pool calls with a run of thread numbers: it calls the kernel for each of them."""
    words = I64.as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [BYTE_POINTER.as_pointer(), words, words, BYTE_POINTER])
    function = ir.Function(module, kind, name="thread_entry")
    function.linkage = "internal"
    builder = ir.IRBuilder(function.append_basic_block())
    arrays, count, _, data = function.args
    numbers = builder.bitcast(builder.load(arrays), words)
    run = builder.load(builder.bitcast(data, _run_type().as_pointer()))
    header, *operands, memory, threads = (builder.extract_value(run, i) for i in range(len(_run_type().elements)))
    address, pitch, counters = (builder.load(builder.gep(header, [I64(i)])) for i in range(3))
    constants = builder.bitcast(builder.gep(header, [I64(HEADER_WORDS)]), BYTE_POINTER)
    first_counter = builder.gep(memory, [I64(LINE)])  # behind the line of the flag
    with cgutils.for_range(builder, builder.load(count)) as loop:
        thread = builder.load(builder.gep(numbers, [loop.index]))
        scratch = builder.gep(memory, [builder.add(counters, builder.mul(thread, pitch))])
        emit_call(context, builder, address, ENTRY_TYPES, [*operands, constants, scratch, first_counter, thread, threads])
    builder.ret_void()
    return function


@cached
def launch(x, w, bias, y, bound, scratch, threads):
    """Run a bound kernel, given by the address of its memory."""
    return in_threads(x, w, bias, y, bound, scratch, threads)


@functools.cache
def launcher() -> Callable[..., int]:
    """The compiled `launch`, without Numba's look at the types of its arguments: four arrays and three ints, unchecked."""
    threading_layer()  # starts the pool whose entry point the machine code refers to
    signature = (*[MemoryType()] * OPERANDS, *[int64] * 3)
    launch.compile(signature)
    return launch.overloads[signature].entry_point


class BoundKernel:
    """A kernel with its constants: `kernel(x, w, bias, y)` runs it on contiguous arrays, of which only their memory counts."""

    def __init__(self, address: int, constants: tuple[Any, ...], scratch_bytes: int, counters: int, parallel: bool):
        self._constants = constants  # keeps alive the arrays that the memory points to
        self._pitch = _whole_lines(scratch_bytes)
        self._counter_bytes = LINE + _whole_lines(8 * counters)
        memory = np.zeros(LARGEST_CONSTANTS, np.int64)
        size = freeze(constants, memory[HEADER_WORDS:])
        self._memory = memory[:HEADER_WORDS - (-size // 8)].copy()
        self._memory[:3] = address, self._pitch, self._counter_bytes
        self._bound = self._memory.ctypes.data
        self._parallel = parallel
        self._alone = self._counter_bytes + self._pitch
        self._launch = launcher()

    def __call__(self, x: np.ndarray, w: np.ndarray, bias: np.ndarray, y: np.ndarray) -> int:
        """Run it; 1 if a thread has raised the flag, else 0."""
        if self._parallel:
            with parallel_region() as threads:
                _held, address = arena(self._counter_bytes + threads * self._pitch)
                return self._launch(x, w, bias, y, self._bound, address, threads)
        _held, address = arena(self._alone)
        return self._launch(x, w, bias, y, self._bound, address, 1)

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
            threading_layer()  # starts the pool whose entry point the machine code refers to
            element = types.CPointer(from_dtype(dtype))
            signature = (*[element] * OPERANDS, ConstantsType(key[1]), element, types.CPointer(types.int64), int64, int64)
            address = self._addresses[key] = address_of(self.dispatcher, signature)
        return BoundKernel(address, constants, scratch * dtype.itemsize, counters, parallel)


def parallel_kernel(function: Callable) -> ParallelKernel:
    """Compile `function` as a kernel, each dtype when it is first bound."""
    return ParallelKernel(function)
