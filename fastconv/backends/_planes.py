"""What the engines of `direct` share: when a run uses threads, how planes become tasks, and how a kernel is bound and run."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..problem import Problem
from ._boxes import TASKS_PER_THREAD, speedup
from ._jit import num_threads
from ._simd import COUNTER_PITCH
from ._simd.threads import ParallelKernel

SERIAL_FLOPS = 800_000  # below which one thread is done before a second has started (bench_conv.py, tiny)
TASK_FLOPS = 100_000  # of a task at least: half a microsecond, ten times the cost of taking it (bench_conv.py, depthwise 14 x 14)

# Costs of planes read in place, in vector multiply-adds (bench_conv.py, depthwise)
PLANE_OVERHEAD = 100
STRIDE_FACTOR = 1.6  # of a stride of two


def uses_threads(problem: Problem) -> bool:
    """Whether a run is long enough for more than one thread."""
    return problem.flops > SERIAL_FLOPS


def threads_of(problem: Problem) -> int:
    """Threads of a run."""
    return num_threads() if uses_threads(problem) else 1


def with_waiting(problem: Problem, work: float, tasks: int) -> float:
    """Time of `work` on one thread, and that in which threads wait where there are too few equal tasks to share it evenly."""
    threads = threads_of(problem)
    return work * threads / speedup(tasks, threads)


def tasks_wanted() -> int:
    """Tasks of a run that has planes enough."""
    return 2 * TASKS_PER_THREAD * num_threads()


def planes_of_a_task(problem: Problem, planes: int, wanted: int) -> int:
    """Whole planes that one task computes: as many as make it worth taking, but few enough for the tasks wanted."""
    return max(1, min(planes // wanted, TASK_FLOPS * planes // max(1, problem.flops)))


def task_size(problem: Problem, planes: int, tiles: int, *, pieces: int = 1, most: int | None = None) -> tuple[int, int]:
    """(planes, rows of tiles) of a task: several planes, or a part of one where planes are too few.

    Each of `pieces` pieces of a plane has `tiles` rows of tiles, of which a task takes `most` at most.
    """
    wanted = tasks_wanted()
    rows = max(1, min(tiles, tiles * pieces * planes // wanted, tiles if most is None else most))
    return planes_of_a_task(problem, planes, wanted) if rows == tiles else 1, rows


class PlaneEngine:
    """A pass by a kernel that takes the operands as they lie and its tasks by `own_first`."""

    def __init__(self, problem: Problem, kernel: ParallelKernel, constants: tuple[Any, ...], *, scratch: int = 0):
        """Bind the kernel to `constants` and the number of shares, with `scratch` elements a thread."""
        p = self.problem = problem
        shares = num_threads()
        self.kernel = kernel.bind(p.dtype, (*constants, shares), scratch=scratch, counters=shares * COUNTER_PITCH,
                                  parallel=uses_threads(p))
        self.no_bias = np.zeros(p.epilogue_channels, p.dtype)

    def pack(self, second: np.ndarray) -> np.ndarray:
        return second.reshape(-1)

    def run(self, first: np.ndarray, packed: np.ndarray, bias: np.ndarray | None, out: np.ndarray) -> None:
        self.kernel(first, packed, self.no_bias if bias is None else bias, out)

    @property
    def scratch_bytes(self) -> int:
        return self.kernel.scratch_bytes(num_threads())
