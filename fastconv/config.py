"""What this installation is and has: versions, processor, threads, caches."""

from __future__ import annotations

import platform
from dataclasses import asdict
from typing import Any

from ._version import __version__

__all__ = ["describe", "get_num_threads", "kernels", "set_num_threads", "show_config"]


def set_num_threads(count: int) -> None:
    """Let later calls, in the whole process, use up to `count` threads.

    Parameters
    ----------
    count : int
        At least 1; more than Numba's pool has (the processors, or NUMBA_NUM_THREADS) come to as many as it has.

    Examples
    --------
    >>> import fastconv as fc
    >>> fc.set_num_threads(fc.get_num_threads())
    """
    from .backends import _jit

    _jit.set_num_threads(count)


def get_num_threads() -> int:
    """Threads a call may use: `set_num_threads`, else FASTCONV_NUM_THREADS, else the processors available.

    Examples
    --------
    >>> import fastconv as fc
    >>> fc.get_num_threads() >= 1
    True
    """
    from .backends import _jit

    return _jit.num_threads()


def kernels() -> dict[str, Any]:
    """Every compiled kernel of the CPU, by name."""
    from .backends import _jit, modules

    return _jit.compiled_kernels(modules("cpu"))


def describe() -> dict[str, Any]:
    """The facts that `fastconv info` prints, as plain data."""
    from importlib.metadata import version

    from .asking import backends
    from .backends import _jit, _simd
    from .dispatcher import machine

    triple, cpu, _ = _jit.cpu_target()
    states = {name: _jit.cache_state(dispatcher) for name, dispatcher in kernels().items()}
    return {
        "fastconv": __version__, "python": platform.python_version(),
        **{name: version(name) for name in ("numba", "llvmlite", "numpy", "scipy")},
        "platform": triple, "cpu": cpu, "float32 lanes": _simd.lane_count("float32"),
        "register tile": f"{_simd.TILE_ROWS} x {_simd.TILE_COLUMNS}", "threads": _jit.num_threads(),
        "cache directory": str(_jit.cache_directory()), "backends": backends(),
        "gpu": _gpu(), "gpu backends": backends("cuda"),
        "machine": asdict(machine()), "kernels": sorted(states.items()),
    }


def _gpu() -> str:
    """The GPU in a line, or why there is none."""
    from .backends._cuda.context import absence, gpu

    reason = absence()
    if reason is not None:
        return f"none: {reason}"
    found = gpu()
    major, minor = found.capability
    return (f"{found.name}, compute capability {major}.{minor}, {found.multiprocessors} multiprocessors, "
            f"{found.flops('float32') / 1e12:.1f} TFLOP/s in float32, {found.bandwidth / 1e9:.0f} GB/s")


def show_config() -> None:
    """Print what `fastconv info` prints.

    Examples
    --------
    >>> import fastconv as fc
    >>> fc.show_config()  # doctest: +ELLIPSIS
    fastconv...
    """
    for key, value in describe().items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {number:.3g}" if isinstance(number, float) else f"{name} {number}" for name, number in value.items())
        elif isinstance(value, list):
            value = ", ".join(f"{item[0]} ({item[1]})" if isinstance(item, tuple) else str(item) for item in value)
        print(f"{key:16s} {value}")
