"""The machine constants of the cost models: measured once, in about half a second, and stored in the cache directory."""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np

from . import Machine
from ._jit import cache_directory, cpu_target, num_threads, source_digest, write_atomically
from ._simd import TILE_COLUMNS, TILE_ROWS, advance, lane_count, parallel_kernel, thawed, tile_outer, tile_store, tile_zeros

DEPTH = 256  # steps of the sum: x and w stay in the first-level cache
STREAM_BYTES = 64 * 1024 * 1024  # beyond a last-level cache's share of one thread
# Of that copy's rate is what the cost models reckon with: they were fitted to a copy to fresh pages, which is about half as fast but
# varies from run to run (benchmarks/bench_conv.py; an Intel Xeon's: 7.9 to 19.5 GB/s, to pages written before 27 to 30).
STREAM_SHARE = 0.5
REGION_REPEATS = 5  # tiles, some 10 us: a caller with less to do has done it all before another thread comes to help
RATES = ("flops32", "flops64", "bandwidth", "cache_bandwidth")
CACHE_BYTES = 256 * 1024  # within a second-level cache, beyond the first


@parallel_kernel
def multiply_add(x, w, bias, y, constants, scratch, counters, thread, threads):
    """`repeats` tiles of the GEMM micro-kernel on data that stays in the first-level cache, by each thread."""
    offsets, width, repeats = thawed(constants)
    for _ in range(repeats):
        acc = tile_zeros(x, TILE_ROWS, TILE_COLUMNS)
        for k in range(DEPTH):
            acc = tile_outer(acc, advance(x, k), offsets, advance(w, k * width), TILE_ROWS)
        tile_store(y, width, acc, TILE_ROWS)


def best_time(run: Callable[[], object], rounds: int, seconds: float = 0.05) -> float:
    """The shortest of some runs, and of more until a core that was idle has had time to raise its clock; seconds."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < rounds or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def measure(cpu: str) -> Machine:
    """Measure the constants of this machine."""
    width = TILE_COLUMNS * lane_count("float32")
    x = np.ones(DEPTH + TILE_ROWS, np.float32)
    w = np.ones(DEPTH * width, np.float32)
    y = np.empty(TILE_ROWS * width, np.float32)
    offsets = np.arange(TILE_ROWS, dtype=np.int32)
    repeats = 200
    many = multiply_add.bind("float32", (offsets, width, repeats), parallel=False)
    rate = 2 * TILE_ROWS * width * DEPTH * repeats / best_time(lambda: many(x, w, w, y), 20)
    few = [multiply_add.bind("float32", (offsets, width, REGION_REPEATS), parallel=parallel) for parallel in (False, True)]
    alone, together = (best_time(functools.partial(kernel, x, w, w, y), 50) for kernel in few)
    return Machine(
        cpu=cpu, flops32=rate, flops64=rate / 2, bandwidth=STREAM_SHARE * copy_rate(STREAM_BYTES), cache_bandwidth=copy_rate(CACHE_BYTES),
        region_seconds=max(together - alone, 1e-7))


def copy_rate(size: int) -> float:
    """Bytes read and written a second, of `size` bytes in all that were written before: page faults would vary it twofold."""
    source, target = np.ones(size // 2, np.uint8), np.ones(size // 2, np.uint8)
    return size / best_time(functools.partial(np.copyto, target, source), 5)


@functools.cache
def machine_constants() -> Machine:
    """The stored constants, or new ones where there are none for this CPU and these kernels."""
    machine = _stored()
    if machine is None:
        machine = measure(_cpu())
        _store(machine)
    return replace(machine, threads=num_threads())


def measure_again() -> Machine:
    """Measure once more and keep the better of each constant: a neighbour's load halves a machine's bandwidth for minutes."""
    machine, stored = measure(_cpu()), _stored()
    if stored is not None:
        rates = {name: max(getattr(machine, name), getattr(stored, name)) for name in RATES}
        machine = replace(machine, region_seconds=min(machine.region_seconds, stored.region_seconds), **rates)
    _store(machine)
    machine_constants.cache_clear()
    return machine_constants()


def _cpu() -> str:
    _, name, features = cpu_target()
    return f"{name}, {'AVX-512' if 'avx512f' in features else 'AVX2' if 'avx2' in features else 'baseline'}"


def _path() -> Path | None:
    directory = cache_directory()
    return directory / f"machine-{source_digest()}.json" if directory else None


def _stored() -> Machine | None:
    path = _path()
    if path is not None:
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            stored = json.loads(path.read_text())
            if stored["cpu"] == _cpu() and set(stored) == {field.name for field in fields(Machine)}:
                return Machine(**stored)
    return None


def _store(machine: Machine) -> None:
    path = _path()
    if path is not None:
        with contextlib.suppress(OSError):
            write_atomically(path, json.dumps(asdict(machine), indent=1).encode())
