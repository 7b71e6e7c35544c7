"""The language of the CUDA kernels: one source for the compiler and for the simulator.

A kernel is a Python function of pointers and numbers. Everything beyond Python's own operators is a primitive of this package:

    x = advance(x, image * stride)                # a pointer, of elements of one type
    tile = outer_product(tile, load4(a, i), load4(b, j))      # register tiles are tuples
    store(y, i, pick(tile, 3))

    ptx.py          the primitives as LLVM IR and PTX; all of CUDA's raw IR stays there
    simulated.py    the same for `NUMBA_ENABLE_CUDASIM=1`, as plain Python
    symbols.py      straight-line code (transforms, butterflies) traced from formulas over symbolic registers
    compiling.py    from a kernel to PTX, kept on disk
    driver.py       the GPU: why there is none, what it is, launches, scratch memory

Ways of writing that reach nvcc's code (numba-cuda 0.30, read in the machine code): register tiles are tuples, never local arrays,
which fall to the stack; loops around them are unrolled by composing functions (`compiling.repeated`), since LLVM does not unroll a body of
64 multiply-adds; indices that change in a main loop are 32 bits wide (`i32`); sizes of tiles are constants of a closure, geometry
comes as integers. Nothing here needs a GPU, its driver or numba-cuda until a kernel is compiled.
"""

from __future__ import annotations

from typing import Any

from numba.core import config

try:
    from numba import cuda
except ImportError:  # a Numba that has no CUDA of its own any more, and numba-cuda is not there
    cuda = None

SIMULATED = bool(config.ENABLE_CUDASIM)


def has_compiler() -> bool:
    """Whether numba-cuda is installed, which compiles kernels."""
    import importlib.util

    return importlib.util.find_spec("numba_cuda") is not None


_language: Any
if SIMULATED or not has_compiler():
    from . import simulated as _language
else:
    from . import ptx as _language

advance = _language.advance
cast = _language.cast
concatenate = _language.concatenate
copy_async = _language.copy_async
copy_commit = _language.copy_commit
copy_wait = _language.copy_wait
fetch = _language.fetch
fetch4 = _language.fetch4
fetch_between = _language.fetch_between
fetch_each = _language.fetch_each


fetch_grid = _language.fetch_grid
fetch_window = _language.fetch_window


fetch_apart = _language.fetch_apart
fetch_patch = _language.fetch_patch
i32 = _language.i32
inlined = _language.inlined
is_aligned = _language.is_aligned
less_unsigned = _language.less_unsigned
load = _language.load
load4 = _language.load4
load_each = _language.load_each
one = _language.one
ones_of = _language.ones_of
opaque = _language.opaque
outer_product = _language.outer_product
pick = _language.pick
pick4 = _language.pick4
quotient = _language.quotient
rectify_each = _language.rectify_each
remainder = _language.remainder
shared_memory = _language.shared_memory
store = _language.store
store4 = _language.store4
store_between = _language.store_between
store_each = _language.store_each


store_apart = _language.store_apart
store_part = _language.store_part
sync_warp = _language.sync_warp
traced = _language.traced
zero_of = _language.zero_of
zeros = _language.zeros
mma = _language.mma
pack_halves = _language.pack_halves
round_tf32 = _language.round_tf32

__all__ = ["SIMULATED", "advance", "cast", "concatenate", "copy_async", "copy_commit", "copy_wait", "cuda", "fetch", "fetch4",
           "fetch_apart", "fetch_between", "fetch_each", "fetch_grid", "fetch_patch", "fetch_window", "has_compiler", "i32", "inlined",
           "is_aligned", "less_unsigned", "load", "load4", "load_each", "mma", "one", "ones_of", "opaque", "outer_product",
           "pack_halves", "pick", "pick4", "quotient", "rectify_each", "remainder", "round_tf32", "shared_memory", "store", "store4",
           "store_apart", "store_between", "store_each", "store_part", "sync_warp", "traced", "zero_of", "zeros"]
