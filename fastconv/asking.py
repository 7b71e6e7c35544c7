"""Which backend the caller asks for: the `backend=` argument, the innermost `use_backend`, FASTCONV_BACKEND, else none."""

from __future__ import annotations

import functools
import os
import warnings
from contextlib import ContextDecorator
from contextvars import ContextVar
from typing import Any, NamedTuple

from .backends import load

__all__ = ["AUTO", "BackendFallbackWarning", "Choice", "asked_backend", "backends", "current_choice", "use_backend", "warn_once"]

WARNINGS_KEPT = 1024


class BackendFallbackWarning(UserWarning):
    """FASTCONV_BACKEND names a backend that cannot compute a problem; another one did."""


class Choice(NamedTuple):
    """Which backend was asked for, and by what; `name` None leaves it to the dispatcher."""

    name: str | None = None
    source: str = "auto"


AUTO = Choice()
_asked: ContextVar[Choice] = ContextVar("fastconv_backend", default=AUTO)


def backends(device: str = "cpu") -> list[str]:
    """Names of the backends of a device; those of CUDA carry the prefix "cuda_".

    Parameters
    ----------
    device : {"cpu", "cuda"}
        The device.

    Returns
    -------
    list of str
        Names that `backend=`, `use_backend` and FASTCONV_BACKEND take, besides "auto".

    Examples
    --------
    >>> import fastconv as fc
    >>> {"direct", "im2col", "fft"} <= set(fc.backends())
    True
    """
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'cpu' or 'cuda', got {device!r}")
    return [name if device == "cpu" else f"{device}_{name}" for name in load(device)]


def check_backend(name: Any, source: str) -> str | None:
    """A known backend's name, or None for "auto"."""
    if name == "auto":
        return None
    if not isinstance(name, str):
        raise TypeError(f"{source} must be a string, got {name!r}")
    if name not in load("cpu"):
        raise ValueError(f"{source}={name!r} is no backend; valid names: auto, {', '.join(load('cpu'))}")
    return name


def current_choice(argument: str | None) -> Choice:
    """The strongest wish: the argument, the innermost `use_backend`, FASTCONV_BACKEND, else none."""
    if argument is not None:
        return Choice(check_backend(argument, "backend"), "backend")
    asked = _asked.get()
    if asked is not AUTO:
        return asked
    name = os.environ.get("FASTCONV_BACKEND")
    return Choice(check_backend(name, "FASTCONV_BACKEND"), "FASTCONV_BACKEND") if name else AUTO


asked_backend = _asked.get  # the wish of the innermost `use_backend`


class use_backend(ContextDecorator):
    """Use one backend within a `with` block or a decorated function, in this thread or task.

    Parameters
    ----------
    name : str
        A name of `backends()`, or "auto" to leave the choice to the dispatcher again.

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> with fc.use_backend("direct"):
    ...     y = fc.conv1d(np.ones((1, 1, 5)), np.ones((1, 1, 3)))
    >>> y.ravel()
    array([3., 3., 3.])
    """

    def __init__(self, name: str):
        self._choice = Choice(check_backend(name, "backend"), "use_backend")
        self._tokens: list[Any] = []

    def __enter__(self) -> use_backend:
        self._tokens.append(_asked.set(self._choice))
        return self

    def __exit__(self, *exception: object) -> None:
        _asked.reset(self._tokens.pop())


@functools.lru_cache(maxsize=WARNINGS_KEPT)
def warn_once(message: str) -> None:
    """Say once that FASTCONV_BACKEND cannot be followed."""
    warnings.warn(message, BackendFallbackWarning, stacklevel=9)
