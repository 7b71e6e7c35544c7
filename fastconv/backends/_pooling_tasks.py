"""How the rows of a pooling are shared out: runs of them as tasks, and a share of the tasks for each thread.

A thread that starts with a share of its own finds in its caches what it wrote there in the run before: the mean of 32 x 512
planes of 7 x 7 takes 55 us, 85 where tasks go to whoever comes first (2 threads).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ._jit import inlined, num_threads
from ._simd import COUNTER_PITCH, BoundKernel

TASK = 32 * 1024  # steps of elements in a task: some microseconds
TASKS_OF_SHARE = 4  # at least, where there are rows enough: the last ones even out
SERIAL_STEPS = 128 * 1024  # that one thread has done before two have shared them (benchmarks/bench_pool.py, tiny and its neighbours)


class Tasks(NamedTuple):
    """A task is `run` rows."""

    rows: int
    run: int
    number: int
    shares: int


def tasks_of(rows: int, steps: int) -> Tasks:
    """The tasks of a kernel whose rows take so many steps of elements each."""
    shares = num_threads()
    run = max(1, min(TASK // max(1, steps), -(-rows // (TASKS_OF_SHARE * shares))))
    return Tasks(rows, run, -(-rows // run), shares)


def bind_rows(kernel: Any, dtype: str, constants: tuple[Any, ...], rows: int, steps: int, scratch: int = 0) -> BoundKernel:
    """A kernel bound to its constants and, behind them, its tasks."""
    tasks = tasks_of(rows, steps)
    return kernel.bind(dtype, (*constants, tasks), scratch=scratch, counters=tasks.shares * COUNTER_PITCH,
                       parallel=rows * steps > SERIAL_STEPS)


@inlined
def row_at(index, size_d, size_h):
    """(plane, d, h) of a row."""
    above = index // size_h
    plane = above // size_d
    return plane, above - plane * size_d, index - above * size_h


@inlined
def next_row(plane, d, h, size_d, size_h):
    """(plane, d, h) of the row after: divisions take longer than a short row's maxima."""
    h += 1
    if h < size_h:
        return plane, d, h
    d += 1
    if d < size_d:
        return plane, d, 0
    return plane + 1, 0, 0
