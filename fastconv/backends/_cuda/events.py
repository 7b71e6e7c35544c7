"""Order between streams, and time, by the GPU's events: nothing here waits for the GPU but `elapsed` and `finish`."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from . import SIMULATED
from .context import api, checked

__all__ = ["Mark", "elapsed", "finish", "follow", "keep"]


class Mark:
    """A place in a stream that others can wait for."""

    def __init__(self, stream: int):
        self.stream = stream
        self._done = SIMULATED
        self._event: Any = None
        if not SIMULATED:
            self._event = checked(api().cuEventCreate(int(api().CUevent_flags.CU_EVENT_DISABLE_TIMING)))
            checked(api().cuEventRecord(self._event, stream))

    def done(self) -> bool:
        """Whether all that was put on the stream before is done."""
        if not self._done:
            (status,) = api().cuEventQuery(self._event)
            if status == api().CUresult.CUDA_ERROR_NOT_READY:
                return False
            checked((status,))
            self._done = True
        return True

    def before(self, stream: int) -> None:
        """Let what is put on `stream` from now on wait for it."""
        if stream != self.stream and not self.done():
            checked(api().cuStreamWaitEvent(stream, self._event, 0))

    def __del__(self) -> None:
        if self._event is not None:
            with contextlib.suppress(Exception):  # the interpreter or the context may be ending
                api().cuEventDestroy(self._event)


def follow(stream: int, other: int) -> None:
    """Let what is put on `stream` from now on wait for what is on `other`."""
    if stream != other:
        Mark(other).before(stream)


class _Kept:
    """Objects that own memory which work on a stream still uses."""

    def __init__(self) -> None:
        self.entries: deque[tuple[Mark, Any]] = deque()

    def __call__(self, stream: int, owner: Any) -> None:
        """Keep `owner` until what is on the stream now is done."""
        self.entries.append((Mark(stream), owner))
        while self.entries and self.entries[0][0].done():
            self.entries.popleft()


keep = _Kept()


def finish(stream: int) -> None:
    """Wait for all that was put on the stream."""
    if not SIMULATED:
        checked(api().cuStreamSynchronize(stream))


def elapsed(stream: int, work: Callable[[], None]) -> float:
    """Seconds that the GPU takes for what `work` puts on the stream; waits for it."""
    if SIMULATED:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    first, last = (checked(api().cuEventCreate(0)) for _ in range(2))
    try:
        checked(api().cuEventRecord(first, stream))
        work()
        checked(api().cuEventRecord(last, stream))
        checked(api().cuEventSynchronize(last))
        return float(checked(api().cuEventElapsedTime(first, last))) * 1e-3
    finally:
        for event in (first, last):
            api().cuEventDestroy(event)
