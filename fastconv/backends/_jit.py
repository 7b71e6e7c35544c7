"""The one place for compilation: njit options, the on-disk cache and the number of threads.

Kernels are functions that take tasks with `_simd.next_task` until none is left, decorated with `_simd.parallel_kernel`; their
helpers are `outlined` (large ones, functions of their own) or `inlined` (part of their caller). Decorating compiles nothing; the
first call does, and keeps the machine code on disk. A kernel is compiled once and called through its address (`_simd.launch`)
on threads of our own (`_simd.workers`): Numba's own `prange` compiles a body three times over.

How compile time is kept down (seconds of a kernel with its helpers in a fresh process, Intel at 2.7 GHz; .3 of them Numba's rules):

- Helpers are LLVM IR only, optimised and made into machine code in the kernel's module (`_HelperLibrary`): the weights' gradient by
  strips of Winograd tiles 4.3 -> 2.5, the forward pass 3.6 -> 2.4, of most kernels a third.
- Micro-kernels are functions of their own, called through their address: one copy, whatever the kernels.
- A helper is compiled for each combination of types, and a literal has a type of its own, within tuples too: pass `np.int64(0)`, and
  tables of one dtype. So the strips above need one copy of their packing, not two: 2.5 -> 1.7.
- A kernel's constants are laid down by Python (`_simd.threads`): a compiled function to do it cost .1 for each kernel.

What is left is Numba's: inference, lowering and its other passes take 60 %, by the operations of the source, LLVM 40 %. Tried, and not
worth it: leaving out LLVM's passes over single functions (5 %) or the first of its two runs over the module (0-2 %).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import os
import pickle
import secrets
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numba
import platformdirs
from numba.core.caching import CompileResultCacheImpl, FunctionCache, _CacheLocator, dumps
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.runtime import rtsys

__all__ = ["address_of", "addressed", "atomic_file", "available_cpus", "cache_directory", "cache_state", "cached", "compiled_kernels",
           "cpu_target", "inlined", "num_threads", "outlined", "set_num_threads", "write_atomically"]

# Contraction into fused multiply-adds only: reassociation is written out where it is wanted, and NaN and Inf must survive.
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}, "boundscheck": False,
                           "no_cfunc_wrapper": True}
HELPER_OPTIONS: dict[str, Any] = {**OPTIONS, "no_cpython_wrapper": True}  # never called from Python: half the compile time


# -- helpers, compiled with their callers alone -----------------------------------------------------------------------------


class _HelperLibrary(JITCodeLibrary):
    """LLVM IR that callers link in; optimised and made into machine code in the kernel's module only.

    Numba's own libraries are compiled whole: a helper of a helper of a kernel three times over.
    """

    @property
    def codegen(self) -> Any:
        """Where Numba announces the function's environment; without machine code there is no place for it, and no use."""
        return _Nowhere

    def get_pointer_to_function(self, name: str) -> int:
        """No address: nothing but compiled code calls a helper."""
        self._ensure_finalized()
        return 0

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True


class _Nowhere:
    @staticmethod
    def set_env(env_name: str, env: Any) -> None:
        """Nothing to set."""


class _HelperCompiler(CompilerBase):
    """Numba's compiler, into a `_HelperLibrary`."""

    def define_pipelines(self) -> list[Any]:
        state = self.state
        state.library = _HelperLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        return [DefaultPassBuilder.define_nopython_pipeline(state)]


# -- decorators -----------------------------------------------------------------------------------------------------------


def cached(function: Callable) -> Any:
    """Compile `function` to be called from Python; its machine code is kept on disk."""
    return _on_disk(numba.njit(**OPTIONS)(function))


def addressed(function: Callable) -> Any:
    """Compile `function` to be called through its address; its machine code is kept on disk."""
    return _on_disk(numba.njit(**HELPER_OPTIONS)(function))


def _on_disk(dispatcher: Any) -> Any:
    if cache_directory() is not None:
        dispatcher._cache = _KernelCache(dispatcher.py_func)
    return dispatcher


def inlined(function: Callable) -> Any:
    """Compile `function` into its callers."""
    return numba.njit(forceinline=True, pipeline_class=_HelperCompiler, **HELPER_OPTIONS)(function)


def outlined(function: Callable) -> Any:
    """Compile `function` on its own, for callers to call: large helpers, so that LLVM sees each of them once."""
    return numba.njit(pipeline_class=_HelperCompiler, **HELPER_OPTIONS)(function)


def address_of(dispatcher: Any, signature: tuple[Any, ...]) -> int:
    """Address of the machine code for a signature, compiled or loaded now; valid while `dispatcher` lives."""
    dispatcher.compile(signature)
    compiled = dispatcher.overloads[signature]
    return int(compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name))


def compiled_kernels(modules: list[ModuleType]) -> dict[str, Any]:
    """The kernels defined in `modules`, by name: what `info` lists and `warmup` compiles."""
    found: dict[str, Any] = {}
    for module in modules:
        for value in vars(module).values():
            if getattr(getattr(value, "dispatcher", None), "__module__", None) == module.__name__:
                name = module.__name__.rpartition("backends.")[2].removeprefix("cpu_").lstrip("_")
                found[f"{name}.{value.dispatcher.py_func.__name__}"] = value.dispatcher
    return found


def cache_state(dispatcher: Any) -> str:
    """Whether an entry point is "in memory", "on disk" (for some dtype) or "not compiled"."""
    if dispatcher.signatures:
        return "in memory"
    if isinstance(dispatcher._cache, _KernelCache) and dispatcher._cache.has_files():
        return "on disk"
    return "not compiled"


@functools.cache
def cpu_target() -> tuple[str, str, frozenset[str]]:
    """(triple, CPU name, features) that kernels are compiled for, NUMBA_CPU_NAME and NUMBA_CPU_FEATURES included."""
    from numba.core.registry import cpu_target as target

    triple, name, features = target.target_context.codegen().magic_tuple()
    return triple, name, frozenset(f[1:] for f in features.split(",") if f.startswith("+"))


# -- the cache on disk ----------------------------------------------------------------------------------------------------


@functools.cache
def cache_directory() -> Path | None:
    """Where compiled kernels, machine constants and wisdom are kept: FASTCONV_CACHE_DIR or the user's cache directory.

    None, with one warning, where it cannot be written: everything then works, but each process compiles anew.
    """
    chosen = os.environ.get("FASTCONV_CACHE_DIR") or platformdirs.user_cache_dir("fastconv", appauthor=False)
    try:
        path = Path(chosen)
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        warnings.warn(f"fastconv cannot write its cache directory {chosen!r} ({error}): kernels are compiled anew in each "
                      "process. Set FASTCONV_CACHE_DIR to a writable directory.", RuntimeWarning, stacklevel=2)
        return None
    return path


@functools.cache
def source_digest() -> str:
    """Digest of every kernel source and of the options: the cache is stale as soon as any of them changes.

    Numba itself watches the decorated function's file alone, so an edited helper of another file would go unnoticed.
    """
    digest = hashlib.sha256(repr((sorted(OPTIONS, key=str), sorted(OPTIONS["fastmath"]), numba.__version__, sys.version)).encode())
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:20]


class _Locator(_CacheLocator):
    def __init__(self, py_func: Callable, py_file: str):
        self._py_file = py_file
        self._line = py_func.__code__.co_firstlineno

    def get_cache_path(self) -> str:
        return str((cache_directory() or Path()) / "kernels" / source_digest())

    def get_source_stamp(self) -> str:
        return source_digest()

    def get_disambiguator(self) -> str:
        return str(self._line)

    @classmethod
    def from_function(cls, py_func: Callable, py_file: str) -> _Locator:
        return cls(py_func, py_file)


class _CacheImpl(CompileResultCacheImpl):
    _locator_classes = [_Locator]  # noqa: RUF012 (Numba's name, Numba's type)


class _KernelFiles:
    """One file a (kernel, signature, CPU), named by the key's digest.

    Numba's own index file lets two processes that compile different signatures at once claim the same slot.
    """

    def __init__(self, directory: str, base: str):
        self._directory = Path(directory)
        self._base = base

    def _path(self, key: Any) -> Path:
        return self._directory / f"{self._base}.{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.nbc"

    def load(self, key: Any) -> Any:
        try:
            return pickle.loads(self._path(key).read_bytes())
        except FileNotFoundError:
            return None
        except Exception as error:
            warnings.warn(f"fastconv ignores a damaged kernel cache file {self._path(key)}: {error}", RuntimeWarning, stacklevel=2)
            return None

    def save(self, key: Any, data: Any) -> None:
        try:
            write_atomically(self._path(key), dumps(data))
        except OSError:  # a full or vanished disk costs the next process a compilation, not this one its result
            return


class _KernelCache(FunctionCache):
    _impl_class = _CacheImpl

    def __init__(self, py_func: Callable):
        super().__init__(py_func)
        self._cache_file = _KernelFiles(self._cache_path, self._impl.filename_base)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Machine code from disk, without the rules for compiling: Numba would import them all first, half of a first call."""
        rtsys.initialize(target_context)
        with self._guard_against_spurious_io_errors():
            return self._load_overload(sig, target_context)

    def has_files(self) -> bool:
        """Whether some signature was compiled before."""
        return any(Path(self._cache_path).glob(f"{self._impl.filename_base}.*.nbc"))

    def flush(self) -> None:
        """Nothing to flush: files of another source digest are never read."""


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file that other processes see whole or not at all."""
    with atomic_file(path) as file:
        file.write(data)


@contextlib.contextmanager
def atomic_file(path: Path, durable: bool = False) -> Iterator[BinaryIO]:
    """A file to write to, which takes its place at `path` when the block ends; `durable` says: on the disk, too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:  # not of `tempfile`, whose files are the owner's alone
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


# -- threads --------------------------------------------------------------------------------------------------------------


class _Threads:
    """The number of threads that was asked for; one instance, `_threads`."""

    count: int | None = None


_threads = _Threads()


def available_cpus() -> int:
    """Processors this process may use: its affinity mask, cut by a cgroup's quota."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cpus, _cgroup_quota(Path("/sys/fs/cgroup")))))


def _cgroup_quota(root: Path) -> float:
    """CPUs that a container's quota allows (cgroup v2, then v1); infinity where there is none."""
    for quota_file, period_file in (("cpu.max", None), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            words = (root / quota_file).read_text().split()
            if period_file is not None:
                words += (root / period_file).read_text().split()
            if words[0] not in ("max", "-1"):
                return int(words[0]) / int(words[1])
        except (OSError, ValueError, IndexError):
            continue
    return math.inf


def num_threads() -> int:
    """Threads a call may use: `set_num_threads`, else FASTCONV_NUM_THREADS, else the processors available.

    Never more than NUMBA_NUM_THREADS, which is as many as the machine has processors where it is not set.
    """
    if _threads.count is None:
        text = os.environ.get("FASTCONV_NUM_THREADS")
        if text is None:
            _threads.count = min(available_cpus(), numba.config.NUMBA_NUM_THREADS)
        else:
            if not text.isdigit() or int(text) < 1:
                raise ValueError(f"FASTCONV_NUM_THREADS must be a positive integer, got {text!r}")
            _threads.count = min(int(text), numba.config.NUMBA_NUM_THREADS)
    return _threads.count


def set_num_threads(count: int) -> None:
    """Let later calls use up to `count` threads, in the whole process."""
    if isinstance(count, bool) or not isinstance(count, int):
        raise TypeError(f"count must be an integer, got {count!r}")
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count!r}")
    _threads.count = min(count, numba.config.NUMBA_NUM_THREADS)
