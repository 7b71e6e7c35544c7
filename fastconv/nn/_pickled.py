"""Reading Python pickles of arrays without running what they name.

A pickle is a program: it names functions and calls them. Here the few names that an array's pickle needs stand for classes
of this module, which only remember what they are given; any other name is an error. No code of the file's choosing runs,
not even NumPy's.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["load_plain"]


class _Type:
    """Stands for `numpy.dtype`."""

    def __init__(self, name: Any, *_: Any):
        self.name = name.decode("latin-1") if isinstance(name, bytes) else name

    def __setstate__(self, state: Any) -> None:
        """The byte order and other details: bytes have none."""


class _Array:
    """Stands for `numpy.ndarray`, of bytes only."""

    def __init__(self, *_: Any):
        self.shape: Any = None
        self.kind: Any = None
        self.columns_first: Any = False
        self.content: Any = b""

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.kind, self.columns_first, self.content = state

    def array(self) -> np.ndarray:
        """The array that the pickle tells of."""
        shape = self.shape
        if not isinstance(self.kind, _Type) or self.kind.name not in ("u1", "B", "uint8"):
            raise pickle.UnpicklingError("an array whose elements are not bytes")
        if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
            raise pickle.UnpicklingError(f"an array of shape {shape!r}")
        content = self.content.encode("latin-1") if isinstance(self.content, str) else self.content
        if not isinstance(content, (bytes, bytearray)) or len(content) != math.prod(shape):
            raise pickle.UnpicklingError(f"an array of shape {shape} without as many bytes")
        return np.frombuffer(content, np.uint8).reshape(shape, order="F" if self.columns_first else "C")


def _from_buffer(content: Any, kind: Any, shape: Any, order: Any) -> _Array:
    """Stands for NumPy's function of that purpose, of the fifth protocol."""
    found = _Array()
    found.__setstate__((1, shape, kind, order == "F", content))
    return found


def _encoded(text: Any, encoding: Any = "latin1") -> bytes:
    """Stands for `codecs.encode`, by which Python 3 writes bytes in the second protocol."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"text encoded as {encoding!r}")
    return text.encode("latin-1")


KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): _Array,
    ("_codecs", "encode"): _encoded,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """What a name in the pickle stands for."""
        if (module, name) not in KNOWN:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not read for safety's sake")
        return KNOWN[module, name]

    def persistent_load(self, identifier: Any) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside the file")


def load_plain(content: bytes) -> dict[str, Any]:
    """The dictionary of a pickle of dictionaries, lists, texts, numbers and arrays of bytes.

    Parameters
    ----------
    content : bytes
        The pickle, of Python 2 or 3.

    Returns
    -------
    dict
        Its entries, with keys as text.

    Raises
    ------
    ValueError
        If the content is no such pickle.

    Examples
    --------
    >>> import pickle, numpy as np
    >>> from fastconv.nn._pickled import load_plain
    >>> load_plain(pickle.dumps({b"labels": [3], b"data": np.arange(4, dtype=np.uint8)}))
    {'labels': [3], 'data': array([0, 1, 2, 3], dtype=uint8)}
    """
    try:
        found = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        if not isinstance(found, dict):
            raise pickle.UnpicklingError(f"it holds a {type(found).__name__}, not a dictionary")
        return {_text(key): value.array() if isinstance(value, _Array) else value for key, value in found.items()}
    except Exception as error:  # a damaged pickle may fail in any way
        raise ValueError(str(error) or type(error).__name__) from None


def _text(key: Any) -> str:
    return key.decode("latin-1") if isinstance(key, bytes) else str(key)
