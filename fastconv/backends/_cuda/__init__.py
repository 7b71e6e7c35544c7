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
fetch_apart = _language.fetch_apart
fetch_patch = _language.fetch_patch
i32 = _language.i32
inlined = _language.inlined
is_aligned = _language.is_aligned
less_unsigned = _language.less_unsigned
load = _language.load
load4 = _language.load4
one = _language.one
ones_of = _language.ones_of
outer_product = _language.outer_product
pick = _language.pick
pick4 = _language.pick4
quotient = _language.quotient
remainder = _language.remainder
shared_memory = _language.shared_memory
store = _language.store
store4 = _language.store4
store_apart = _language.store_apart
store_part = _language.store_part
traced = _language.traced
zero_of = _language.zero_of
zeros = _language.zeros

__all__ = ["SIMULATED", "advance", "cast", "concatenate", "copy_async", "copy_commit", "copy_wait", "cuda", "fetch", "fetch4",
           "fetch_apart", "fetch_patch", "has_compiler", "i32", "inlined", "is_aligned", "less_unsigned", "load", "load4", "one",
           "ones_of", "outer_product", "pick", "pick4", "quotient", "remainder", "shared_memory", "store", "store4", "store_apart",
           "store_part", "traced", "zero_of", "zeros"]
