"""From a kernel to PTX, kept on disk.

Numba serves as a compiler only: its launches take 5 us and 4 for each array, those of `driver` a few in all. Compiling needs neither a
GPU nor a driver, so that tests read the machine code of every kernel anywhere (`ptxas`).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from .._jit import cache_directory, source_digest, write_atomically
from . import inlined

__all__ = ["Code", "entry_of", "ptx_of", "repeated"]

Capability = tuple[int, int] | tuple[int, int, str]  # (9, 0, "a"): with what only that architecture has


@dataclass(frozen=True, eq=False)
class Code:
    """A kernel: a function of pointers, then a named tuple of 32-bit integers, then float32 numbers."""

    name: str  # of the template and its sizes; unique
    function: Callable[..., None]
    pointers: tuple[str, ...]  # the dtypes of their elements
    geometry: type[tuple[int, ...]]  # the class of the named tuple
    floats: int = 0
    threads: int = 256  # of a block
    blocks: int = 1  # of a multiprocessor, whose registers must do


def repeated(step: Callable, times: int) -> Callable:
    """`state = step(state, operands, k)` for k up to `times`, unrolled: a function of (state, operands, first k)."""
    if times == 1:
        return inlined(step)
    half = times // 2
    first, rest = repeated(step, half), repeated(step, times - half)

    def both(state, operands, k):
        return rest(first(state, operands, k), operands, k + half)

    return inlined(both)


def ptx_of(code: Code, capability: Capability) -> str:
    """The kernel's PTX for an architecture, from disk if it was compiled before."""
    path = _path(code, capability)
    if path is not None:
        with contextlib.suppress(OSError):
            return path.read_text()
    text = _compile(code, capability)
    if path is not None:
        with contextlib.suppress(OSError):
            write_atomically(path, text.encode())
    return text


def entry_of(ptx: str) -> str:
    """Name of the kernel in its PTX."""
    found = re.search(r"\.entry\s+([\w$.]+)", ptx)
    if found is None:
        raise RuntimeError("PTX without a kernel")
    return found[1]


def _path(code: Code, capability: Capability) -> Path | None:
    directory = cache_directory()
    if directory is None:
        return None
    return directory / "cuda" / _digest() / f"{code.name}.sm_{''.join(map(str, capability))}.ptx"


@functools.cache
def _digest() -> str:
    import numba_cuda

    return hashlib.sha256(f"{source_digest()} {numba_cuda.__version__}".encode()).hexdigest()[:20]


def _compile(code: Code, capability: Capability) -> str:
    from numba.cuda import compile as compile_kernel
    from numba.cuda import types

    from .ptx import Pointer

    pointers = [Pointer(getattr(types, dtype)) for dtype in code.pointers]
    fields: Any = code.geometry
    geometry = types.NamedUniTuple(types.int32, len(fields._fields), fields)
    signature = types.void(*pointers, geometry, *[types.float32] * code.floats)
    with _compiling_for(capability):
        text, _ = compile_kernel(code.function, signature, cc=capability, device=False, abi="numba", output="ptx",
                                 launch_bounds=(code.threads, code.blocks))
    return text.decode() if isinstance(text, bytes) else text


@contextlib.contextmanager
def _compiling_for(capability: Capability) -> Iterator[None]:
    """Device functions ask the current GPU for its architecture, even where there is none: they are told the kernel's."""
    from numba.core.compiler_lock import global_compiler_lock
    from numba.cuda import dispatcher

    with global_compiler_lock:
        asked: Any = dispatcher.get_current_device
        dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=capability)
        try:
            yield
        finally:
            dispatcher.get_current_device = asked
