"""Workers: threads of this package that wait for runs of kernels and help their callers with them.

A caller writes its run into a free slot, rings the bell, wakes workers that sleep, and begins with thread 0 of the run; workers
claim the other threads. What nobody has claimed when the caller is done it does itself: tasks are handed out by counters, so it
has then done all of them, and a worker that came late or lost its core costs nothing. A worker that finds nothing to do
waits for the bell: busily for `SPIN_SECONDS`, as the next layer of a network comes within some microseconds; then for
`YIELD_SECONDS` whenever no other thread wants its core, as a core that sleeps takes up to 0.2 ms to wake; then asleep.

Numba's own pools cost more: TBB's threads start 5 to 8 us after the call (plans of small layers took 1.1 to 1.4 times as long),
GNU's OpenMP wait busily for milliseconds and do not survive a fork, and the work queue aborts on a second caller. This one
takes any number of callers, of which those without a free slot work alone, and `Workers` starts it anew after a fork.

Sleep is by CPython's locks, which each platform has: a lock is held always, its owner sleeps by taking it once more, and whoever turns
the owner's status from ASLEEP to AWAKE frees it. A sleeper looks again after it has said that it sleeps, so no ring is missed.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import sys
import threading
import time
from typing import Any

import numpy as np
from numba import int64

from .._jit import available_cpus, cached, inlined, outlined
from .atomics import acquire, add, call, exchange, pause, read, release, words_at, write
from .runs import run_thread
from .vector import advance

SPIN_SECONDS = 2e-5
YIELD_SECONDS = 2e-3
MANY_TURNS = 1 << 20
WAKES = 4  # threads that one thread wakes: the others are woken by those
LINE = 8  # words of a cache line: what different threads write lies in different ones
SLOTS = 8  # callers at once

# Lines of the pool's memory: the bell, what never changes, then slots, then workers; and words of these.
BELL, SETTINGS, FIRST_SLOT, FIRST_WORKER = 0, LINE, 2 * LINE, (2 + SLOTS) * LINE
CLOSED, WORKERS, SPINS, TURNS, YIELD, ACQUIRE, RELEASE = range(SETTINGS, SETTINGS + 7)
STATUS, LOCK, OWNED, STATE, RUN = 0, 1, 2, 3, 4
AWAKE, WAITING, ASLEEP = 0, 1, 2
CLAIM = 1 << 32  # of a slot's state: threads that nobody has claimed, in units of this, and threads that run


@inlined
def take_turn(pool, turn):
    """Pass a little time: busily in the first turns, in the later ones leaving the core to others."""
    if turn < pool[SPINS]:
        pause()
    else:
        call(pool[YIELD])


@inlined
def sleep(pool, own, watched, value):
    """Sleep until somebody wakes the owner of the line `own`, unless the word `watched` is no longer `value`."""
    write(advance(own, STATUS), ASLEEP)
    if read(watched) != value and exchange(advance(own, STATUS), ASLEEP, AWAKE):
        return
    acquire(pool[ACQUIRE], own[LOCK])


@inlined
def wake(pool, other):
    """Wake the owner of the line `other`; whether it slept."""
    if read(advance(other, STATUS)) != ASLEEP or not exchange(advance(other, STATUS), ASLEEP, AWAKE):
        return False
    release(pool[RELEASE], other[LOCK])
    return True


@inlined
def wake_workers(pool, wanted):
    """See that `wanted` workers look for work: those that wait busily will, the rest are woken, at most WAKES here."""
    woken = 0
    for number in range(pool[WORKERS]):
        if wanted <= 0 or woken == WAKES:
            break
        worker = advance(pool, FIRST_WORKER + number * LINE)
        if read(advance(worker, STATUS)) == WAITING:
            wanted -= 1
        elif wake(pool, worker):
            wanted -= 1
            woken += 1


@inlined
def claim(slot):
    """The number of a thread of the slot's run that nobody had claimed; 0, which is the caller's, where there is none."""
    state = read(advance(slot, STATE))
    while state >= CLAIM:
        if exchange(advance(slot, STATE), state, state - CLAIM + 1):
            return state // CLAIM
        state = read(advance(slot, STATE))
    return 0


@inlined
def help_with(pool, slot, fresh):
    """Do a thread of the slot's run; whether there was one. Who has just been woken wakes others for the rest first."""
    number = claim(slot)
    if number == 0:
        return False
    if fresh:
        wake_workers(pool, number - 1)
    run_thread(slot[RUN], number)
    if add(advance(slot, STATE), -1) == 1:
        wake(pool, slot)
    return True


@inlined
def free_slot(pool):
    """The number of a slot that is now the caller's; SLOTS where all are taken."""
    number = 0
    while number < SLOTS and not exchange(advance(pool, FIRST_SLOT + number * LINE + OWNED), 0, 1):
        number += 1
    return number


@inlined
def wait_for(pool, slot):
    """Return when no thread of the slot's run is running any more."""
    turns = 0
    running = read(advance(slot, STATE))
    while running != 0:
        if turns < pool[TURNS]:
            take_turn(pool, turns)
            turns += 1
        else:
            sleep(pool, slot, advance(slot, STATE), running)
        running = read(advance(slot, STATE))


@outlined
def run_together(pool, run, threads):
    """Do all threads of a run, with the workers' help."""
    number = free_slot(pool)
    if number == SLOTS:
        for thread in range(threads):
            run_thread(run, thread)
        return
    slot = advance(pool, FIRST_SLOT + number * LINE)
    slot[RUN] = run
    write(advance(slot, STATE), (threads - 1) * CLAIM)
    add(advance(pool, BELL), 1)
    wake_workers(pool, threads - 1)
    run_thread(run, 0)
    while help_with(pool, slot, False):
        pass
    wait_for(pool, slot)
    write(advance(slot, OWNED), 0)


@cached
def serve(pool_address, number):
    """The life of a worker."""
    pool = words_at(pool_address)
    own = advance(pool, FIRST_WORKER + number * LINE)
    turns = 0
    fresh = False
    while True:
        bell = read(advance(pool, BELL))
        if read(advance(pool, CLOSED)) != 0:
            return
        for slot in range(SLOTS):
            while help_with(pool, advance(pool, FIRST_SLOT + slot * LINE), fresh):
                turns = 0
                fresh = False
        write(advance(own, STATUS), WAITING)
        while turns < pool[TURNS] and read(advance(pool, BELL)) == bell:
            take_turn(pool, turns)
            turns += 1
        fresh = turns >= pool[TURNS]
        if fresh:
            sleep(pool, own, advance(pool, BELL), bell)
            turns = 0
        write(advance(own, STATUS), AWAKE)


@cached
def close(pool_address):
    """Send all workers home."""
    pool = words_at(pool_address)
    write(advance(pool, CLOSED), 1)
    add(advance(pool, BELL), 1)
    for number in range(pool[WORKERS]):
        wake(pool, advance(pool, FIRST_WORKER + number * LINE))


@cached
def take_turns(pool_address, turns):
    """Pass the time of so many turns."""
    for turn in range(turns):
        take_turn(words_at(pool_address), turn)


# -- their memory and their life ------------------------------------------------------------------------------------------


def _lock() -> int:
    """The address of a new lock, held."""
    python = ctypes.pythonapi
    python.PyThread_allocate_lock.restype = ctypes.c_void_p
    lock = python.PyThread_allocate_lock()
    if not lock:
        raise MemoryError("no memory for a lock")
    python.PyThread_acquire_lock(ctypes.c_void_p(lock), 1)
    return int(lock)


def _python_function(name: str) -> int:
    """The address of one of CPython's functions."""
    return _address(getattr(ctypes.pythonapi, name))


def _yield_function() -> int:
    """The address of the system's function that lets another thread have this one's core."""
    if sys.platform == "win32":
        return _address(ctypes.windll.kernel32.SwitchToThread)
    return _address(ctypes.CDLL(None).sched_yield)


def _address(function: Any) -> int:
    return int(ctypes.cast(function, ctypes.c_void_p).value or 0)


def turns_of(pool: int, seconds: float) -> int:
    """Turns in so many seconds: a pause takes 5 to 50 ns, a system call a tenth of a microsecond and more."""
    turns = 200
    times = []
    for _ in range(5):
        start = time.perf_counter()
        take_turns(pool, turns)
        times.append(time.perf_counter() - start)
    return int(turns * seconds / min(times))


class Pool:
    """Some workers, and the memory that they share with their callers."""

    def __init__(self, workers: int):
        words = np.zeros(FIRST_WORKER + (workers + 1) * LINE, np.int64)
        self._words = words[-words.ctypes.data // 8 % LINE:]
        self.address = self._words.ctypes.data
        self._words[YIELD] = _yield_function()
        self._words[[ACQUIRE, RELEASE]] = _python_function("PyThread_acquire_lock"), _python_function("PyThread_release_lock")
        if workers < available_cpus():
            yields = turns_of(self.address, YIELD_SECONDS)
            self._words[SPINS] = MANY_TURNS
            spins = turns_of(self.address, SPIN_SECONDS)
            self._words[[SPINS, TURNS]] = spins, spins + yields
        self._words[FIRST_SLOT + LOCK:FIRST_WORKER + workers * LINE:LINE] = [_lock() for _ in range(SLOTS + workers)]
        self._threads: list[threading.Thread] = []
        for function, arguments in ((serve, 2), (close, 1)):  # now: a fork while a thread compiles would leave its lock to the child
            function.compile((int64,) * arguments)
        with contextlib.suppress(RuntimeError):  # no more threads: the callers do the work
            for number in range(workers):
                thread = threading.Thread(target=serve, args=(self.address, number), name=f"fastconv-{number + 1}", daemon=True)
                thread.start()
                self._threads.append(thread)
                self._words[WORKERS] = number + 1

    def close(self) -> None:
        """End the workers; the memory stays usable by callers, who then work alone."""
        close(self.address)
        for thread in self._threads:
            thread.join()


class _Pools:
    """The pool of this process; one instance, `_pools`."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew: a child has no workers after a fork."""
        self.lock = threading.Lock()
        self.threads = 0
        self.address = 0
        self.made: list[Pool] = []  # the last is in use; callers may still be in the ones before

    def grow(self, threads: int) -> int:
        with self.lock:
            if threads > self.threads:
                pool = Pool(threads - 1)
                if self.made:
                    self.made[-1].close()
                self.made.append(pool)
                self.address, self.threads = pool.address, threads
            return self.address

    def end(self) -> None:
        """Before the machine code goes: nobody may be in it."""
        if self.made:
            self.made[-1].close()


_pools = _Pools()
atexit.register(_pools.end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pools.forget)


def pool_for(threads: int) -> int:
    """The address of a pool for runs of so many threads."""
    return _pools.address if threads <= _pools.threads else _pools.grow(threads)
