"""The backends: one file each, found by name, described by one `Backend` record.

How to add a backend
--------------------
Write `backends/<device>_<name>.py` and end it with

    BACKEND = Backend(refuses=..., seconds=..., pack_seconds=..., build=...)

- `refuses(problem)` returns None, or in words why it cannot compute the problem;
- `seconds(problem, machine)` predicts the time of `run`, `pack_seconds(problem, machine)` that of `pack`: only the
  ranking among backends matters;
- `build(problem)` returns a `Kernel`, whose `pack(second)` prepares the pass's second operand (the weights; gy for
  `grad_weight`) and whose `run(first, packed, bias, out)` writes every element of `out`.

Arrays come contiguous, aligned and in the problem's dtype, which is float32, float64, int32 or int64, with the elements of
`Problem.shapes` but of any rank (what indexes them reshapes them first);
other dtypes, and border modes of gradients, are lowered before (`fastconv.lowering`). Nothing else needs an edit:
the dispatcher, the tests, `fastconv bench` and the asv suite iterate over `load(device)`.

A backend of a GPU
------------------
`backends/cuda_<name>.py` ends with the same record; callers know it as "cuda_<name>". What differs:

- `seconds` and `pack_seconds` take the GPU (`_cuda.driver.Gpu`); `build` returns a `DeviceKernel`, whose arrays are pointers
  into the GPU's memory and whose first argument is a stream: it launches, and waits for nothing;
- the dispatcher allocates what `packed` asks for, so that `pack` writes to memory that it is given; `run` gets the second operand as it
  was, too, for kernels that recompute what is not finite;
- complex numbers and smooth activations are lowered before (`fastconv.lowering_on_device`), borders are not: a backend refuses those
  that it cannot do, and `cuda_direct` does them all;
- kernels are written in the language of `_cuda`, once for the compiler and the simulator; `codes(dtype)` lists them all, and
  `tests/test_cuda_code.py` reads the machine code of each.

A backend imports `problem`, `_jit`, `_simd` and this package's other underscored helpers, never another backend.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from ..problem import Problem

__all__ = ["CACHED_BYTES", "Backend", "BackendError", "DeviceKernel", "Kernel", "Machine", "load", "modules"]

# Of arrays that a last-level cache keeps from call to call (bench_conv.py, filters).
CACHED_BYTES = 16 * 1024 * 1024


class BackendError(ValueError):
    """A backend that was asked for by name cannot compute the problem; the message says why."""


@dataclass(frozen=True)
class Machine:
    """What the cost models know of the processor: measured once by `_machine.measure` and stored."""

    cpu: str
    flops32: float  # multiply-add peak of one thread in float32, FLOP/s
    flops64: float  # the same in float64
    bandwidth: float  # bytes/s that one thread streams from main memory
    cache_bandwidth: float  # bytes/s that one thread streams from its second-level cache
    region_seconds: float  # what a parallel region takes beyond its longest thread
    threads: int = 1

    def flops(self, dtype: str) -> float:
        """Peak of one thread for a dtype."""
        return self.flops32 if np.dtype(dtype).itemsize == 4 else self.flops64


class Kernel(Protocol):
    """One problem's code, ready to run; immutable, shared by threads."""

    def pack(self, second: np.ndarray) -> Any:
        """Prepare the second operand for any number of runs."""

    def run(self, first: np.ndarray, packed: Any, bias: np.ndarray | None, out: np.ndarray) -> bool | None:
        """Compute the problem into `out`; a kernel that does not sum directly returns whether all its sums were finite."""

    @property
    def scratch_bytes(self) -> int:
        """Scratch memory of a run, all threads together."""


class DeviceKernel(Protocol):
    """The same for a GPU: arrays are pointers to its memory, and everything is put on a stream; nothing waits."""

    packed: tuple[tuple[int, str], ...]  # (count, dtype) of the memories that `pack` writes
    scratch_bytes: int

    def pack(self, stream: int, second: Any, target: list[Any]) -> None:
        """Prepare the second operand for any number of runs, in `target`'s memories."""

    def run(self, stream: int, first: Any, second: Any, packed: list[Any], bias: Any, out: Any) -> None:
        """Compute the problem into `out`; `second` is there too, as it was."""


@dataclass(frozen=True)
class Backend:
    """A way to compute convolutions, as data."""

    refuses: Callable[[Problem], str | None]
    seconds: Callable[[Problem, Any], float]  # of a Machine, or of a Gpu
    build: Callable[[Problem], Any]  # a Kernel, or a DeviceKernel
    pack_seconds: Callable[[Problem, Any], float] = lambda problem, machine: 0.0
    prepare: Callable[[str], None] = lambda dtype: None  # compile what problems of a dtype may need beyond the kernels
    # Predicts `run` for what `pack` made of the weights at hand; given by backends that take some weights only, whose `seconds`
    # is for the best of them and whose `pack` raises BackendError for those it does not take.
    packed_seconds: Callable[[Problem, Machine, Any], float] | None = None
    sums_directly: bool = True  # False where one non-finite input reaches outputs that the direct sum keeps finite


@functools.cache
def load(device: str = "cpu") -> dict[str, Backend]:
    """The backends of a device by the names that callers use, from every module `<device>_*` of this package.

    The processor's need no prefix: "fft" is `cpu_fft`, "cuda_fft" is `cuda_fft`.
    """
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name.startswith(f"{device}_"))
    return {name.removeprefix("cpu_"): importlib.import_module(f"{__name__}.{name}").BACKEND for name in names}


def modules(device: str = "cpu") -> list[ModuleType]:
    """Every module of this package that a device may need: its backends and the helpers."""
    names = [module.name for module in pkgutil.walk_packages(__path__, f"{__name__}.") if not module.name.startswith(f"{__name__}._cuda")]
    return [importlib.import_module(name) for name in names if name.removeprefix(f"{__name__}.").startswith((f"{device}_", "_"))]
