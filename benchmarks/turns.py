"""Libraries side by side: each in a process of its own, because two thread pools in one process slow each other, and in turns,
so that a slow moment of the machine hits all."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Call", "Libraries", "Outcome", "start", "take_turns", "typical_seconds"]

Call = Callable[[], Any]
Libraries = dict[str, tuple[Callable[[Any, int], Call | None], tuple[str, ...]]]  # name: (task, threads -> call; modules it needs)
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "FASTCONV_NUM_THREADS")


class Outcome(NamedTuple):
    """What the libraries gave for a task, by their names, for those that can do it."""

    results: dict[str, list[np.ndarray]]  # of the first calls
    seconds: dict[str, list[float]]  # a turn
    problems: list[str]  # in words


def start(libraries: Libraries, threads: int, seconds: float) -> dict[str, Connection]:
    """A process for each library that is installed; `seconds` is the time of a turn."""
    for variable in THREAD_VARIABLES:  # read by the libraries when the processes import them
        os.environ[variable] = str(threads)
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for name, (prepare, modules) in libraries.items():
        if all(importlib.util.find_spec(module) for module in modules):
            pipes[name], there = context.Pipe()
            context.Process(target=_serve, args=(prepare, threads, seconds, there), daemon=True).start()
    return pipes


def _serve(prepare: Callable[[Any, int], Call | None], threads: int, seconds: float, pipe: Connection) -> None:
    """In a library's process: receive a task, send its first results or the reason there are none, then time it once a turn."""
    while True:
        try:
            task, calls = pipe.recv()
        except EOFError:
            return
        try:
            call = prepare(task, threads)
            results = None if call is None else [np.array(call()) for _ in range(calls)]
        except Exception as error:  # a library's failure must not end the comparison
            call, results = None, f"{type(error).__name__}: {error}".splitlines()[0]
        pipe.send(results)
        while call and pipe.recv():
            pipe.send(typical_seconds(call, seconds))


def typical_seconds(call: Call, seconds: float) -> float:
    """The median time of a call, called for so many seconds."""
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def take_turns(task: Any, title: str, pipes: dict[str, Connection], turns: int, calls: int = 1) -> Outcome:
    """Let the libraries do a task, by turns."""
    found = Outcome({}, {}, [])
    for name, pipe in pipes.items():
        pipe.send((task, calls))
        answer = pipe.recv()
        if isinstance(answer, str):
            found.problems.append(f"{name} on {title}: {answer}")
        elif answer is not None:
            found.results[name], found.seconds[name] = answer, []
    for _ in range(turns):
        for name in found.results:
            pipes[name].send(True)
            found.seconds[name].append(pipes[name].recv())
    for name in found.results:
        pipes[name].send(False)
    return found
