"""Which backend the caller asks for: the `backend=` argument, the innermost `use_backend`, FASTCONV_BACKEND, else none."""

from __future__ import annotations

import functools
import os
import sys
import warnings
from contextlib import ContextDecorator
from contextvars import ContextVar
from types import FrameType
from typing import Any, NamedTuple

from .backends import BackendError, load

__all__ = ["AUTO", "BackendFallbackWarning", "Choice", "asked_backend", "backends", "current_choice", "possible_choice", "use_backend",
           "warn_once"]

WARNINGS_KEPT = 1024
CUDA = "cuda"


class BackendFallbackWarning(UserWarning):
    """FASTCONV_BACKEND names a backend that cannot compute a problem; another one did."""


class Choice(NamedTuple):
    """Which backend was asked for, and by what; `name` None leaves it to the dispatcher."""

    name: str | None = None
    source: str = "auto"
    device: str = "cpu"


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
    return list(load(device))


@functools.lru_cache(maxsize=WARNINGS_KEPT)
def check_backend(name: str, source: str) -> Choice:
    """The choice of a known backend, or of "auto" (whatever suits the arrays) or "cuda" (whatever of the GPU's suits)."""
    if name == "auto":
        return Choice(None, source)
    if name == CUDA:
        return Choice(None, source, CUDA)
    if name in load("cpu"):
        return Choice(name, source)
    if name.startswith(f"{CUDA}_") and name in load(CUDA):
        return Choice(name, source, CUDA)
    valid = ", ".join(["auto", *load("cpu"), CUDA, *load(CUDA)])
    raise ValueError(f"{source}={name!r} is no backend; valid names: {valid}")


def current_choice(argument: str | None) -> Choice:
    """The strongest wish: the argument, the innermost `use_backend`, FASTCONV_BACKEND, else none."""
    if argument is not None:
        return _checked(argument, "backend")
    asked = _asked.get()
    if asked is not AUTO:
        return asked
    name = os.environ.get("FASTCONV_BACKEND")
    return check_backend(name, "FASTCONV_BACKEND") if name else AUTO


def possible_choice(argument: str | None) -> Choice:
    """The same where there is no GPU to compute on: an error, or for FASTCONV_BACKEND a warning and the processor."""
    choice = current_choice(argument)
    if choice.device == "cpu":
        return choice
    from .backends._cuda.driver import absence

    reason = absence()
    if reason is None:
        return choice
    message = f"backend {choice.name or choice.device!r} cannot compute: {reason}"
    if choice.source != "FASTCONV_BACKEND":
        raise BackendError(message)
    warn_once(f"FASTCONV_BACKEND: {message}; using the processor")
    return AUTO


def _checked(name: Any, source: str) -> Choice:
    if not isinstance(name, str):  # before it is looked up, since it may have no hash
        raise TypeError(f"{source} must be a string, got {name!r}")
    return check_backend(name, source)


asked_backend = _asked.get  # the wish of the innermost `use_backend`


class use_backend(ContextDecorator):
    """Use one backend within a `with` block or a decorated function, in this thread or task.

    Parameters
    ----------
    name : str
        A name of `backends()` or of `backends("cuda")`, "cuda" for the GPU's best, or "auto" to leave the choice to the dispatcher again.

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> with fc.use_backend("direct"):
    ...     y = fc.conv1d(np.ones((1, 1, 5)), np.ones((1, 1, 3)))
    >>> y.ravel()
    array([3., 3., 3.])
    """

    def __init__(self, name: str):
        self._choice = _checked(name, "backend")._replace(source="use_backend")
        self._tokens: list[Any] = []

    def __enter__(self) -> use_backend:
        self._tokens.append(_asked.set(self._choice))
        return self

    def __exit__(self, *exception: object) -> None:
        _asked.reset(self._tokens.pop())


@functools.lru_cache(maxsize=WARNINGS_KEPT)
def warn_once(message: str) -> None:
    """Say once that FASTCONV_BACKEND cannot be followed."""
    level = 1
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == __package__:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, BackendFallbackWarning, stacklevel=level)
