"""Wisdom: which backend was measured to be the fastest for a problem on this machine.

A small versioned JSON file in the cache directory, keyed by CPU, thread count, library version and problem. `tune` adds
to it, the dispatcher follows it. A damaged or foreign file is ignored with one warning.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ._version import __version__
from .problem import Problem

__all__ = ["clear", "load", "save"]

FORMAT = 1


class Store:
    """The measured times of this process, by problem key: {backend: seconds}."""

    def __init__(self) -> None:
        self.entries: dict[str, dict[str, float]] = {}
        self.generation = 0
        self._lock = threading.Lock()
        self._loaded = False

    def update(self, entries: Mapping[str, Mapping[str, float]]) -> None:
        """Add measurements; plans made before are made again."""
        self.load_stored()
        with self._lock:
            for key, times in entries.items():
                self.entries[key] = {**self.entries.get(key, {}), **times}
            self.generation += 1

    def measured(self, problem: Problem) -> dict[str, float]:
        """Measured seconds by backend, empty where none were."""
        self.load_stored()
        return self.entries.get(key_of(problem), {}) if self.entries else {}

    def load_stored(self) -> None:
        """Read the file in the cache directory, once a process."""
        if self._loaded:
            return
        self._loaded = True
        path = stored_path()
        if path is not None and path.exists():
            with contextlib.suppress(ValueError):
                self.update(read(path))

    def forget(self) -> None:
        """Drop everything."""
        with self._lock:
            self.entries.clear()
            self.generation += 1
            self._loaded = True


store = Store()


def key_of(problem: Problem) -> str:
    """CPU and threads, or the GPU, library version and the problem, as a line of text."""
    from .backends._jit import cpu_target, num_threads

    fields = ",".join(str(getattr(problem, field.name)).replace(" ", "") for field in dataclasses.fields(problem))
    if problem.device != "cpu":
        from .backends._cuda.driver import gpu

        return f"{gpu().name}|{__version__}|{fields}"
    return f"{cpu_target()[1]}|{num_threads()} threads|{__version__}|{fields}"


def stored_path() -> Path | None:
    """The file in the cache directory, None where that cannot be written."""
    from .backends._jit import cache_directory

    directory = cache_directory()
    return directory / "wisdom.json" if directory else None


def read(path: str | os.PathLike[str]) -> dict[str, dict[str, float]]:
    """The entries of a file; ValueError, after one warning, if it is no wisdom of this format."""
    try:
        content = json.loads(Path(path).read_text())
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}, expected {FORMAT}")
        return {str(key): {str(name): float(seconds) for name, seconds in times.items()} for key, times in content["entries"].items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        warnings.warn(f"fastconv ignores {os.fspath(path)!r}, which is no wisdom file it can read: {error}", RuntimeWarning, stacklevel=3)
        raise ValueError(str(error)) from None


def save(path: str | os.PathLike[str] | None = None) -> None:
    """Write all wisdom to `path` (by default the file in the cache directory), atomically.

    Parameters
    ----------
    path : path-like, optional
        Where to.

    Examples
    --------
    >>> import fastconv, tempfile, os
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     fastconv.wisdom.save(os.path.join(folder, "wisdom.json"))
    """
    from .backends._jit import write_atomically

    target = Path(path) if path is not None else stored_path()
    if target is not None:
        store.load_stored()
        content = {"format": FORMAT, "library": __version__, "entries": store.entries}
        write_atomically(target, json.dumps(content, indent=0, sort_keys=True).encode())


def load(path: str | os.PathLike[str]) -> int:
    """Add the wisdom in `path`; returns how many problems it knew.

    A damaged or foreign file adds nothing and warns once. A missing file raises FileNotFoundError.
    """
    try:
        entries: dict[str, Any] = read(path)
    except ValueError:
        return 0
    store.update(entries)
    return len(entries)


def clear() -> None:
    """Forget all wisdom, in memory and in the cache directory."""
    store.forget()
    path = stored_path()
    if path is not None:
        with contextlib.suppress(OSError):
            path.unlink()
