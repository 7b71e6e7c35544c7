"""Arrays to a GPU's memory and back."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._arrays import as_array
from ._device import is_device_array
from ._device_operands import host_copy
from .asking import possible_choice

__all__ = ["asarray", "asnumpy"]


def asarray(x: Any, device: str = "cpu") -> Any:
    """Give an array in the memory of a device; no copy if it lies there.

    Parameters
    ----------
    x : array_like
        NumPy's or any library's array, of any shape.
    device : {"cpu", "cuda"}
        Where to: "cpu" for a NumPy array, "cuda" for one of the current GPU.

    Returns
    -------
    ndarray, or an array of the GPU
        On a GPU what its library made, or else an array of Numba's, which CuPy and PyTorch take through
        `__cuda_array_interface__` without a copy.

    Raises
    ------
    BackendError
        Where there is no GPU to compute on; the message says why.

    Examples
    --------
    >>> import numpy as np, fastconv as fc
    >>> fc.asarray([1.0, 2.0])
    array([1., 2.])
    """
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'cpu' or 'cuda', got {device!r}")
    if device == "cpu":
        return asnumpy(x)
    if is_device_array(x):
        return x
    possible_choice("cuda")
    from .backends._cuda.driver import resident

    array = as_array("x", x)
    return resident(np.asarray(array, array.dtype.newbyteorder("="), order="C"))


def asnumpy(x: Any) -> np.ndarray:
    """Give a NumPy array; one of a GPU is copied, which waits for the work that computes it.

    Parameters
    ----------
    x : array_like
        An array of Numba, CuPy, PyTorch or any library that speaks DLPack, or what `numpy.asarray` takes.

    Returns
    -------
    ndarray
        Of the same shape and dtype.

    Examples
    --------
    >>> import fastconv as fc
    >>> fc.asnumpy([[1, 2]]).shape
    (1, 2)
    """
    return host_copy(x) if is_device_array(x) else np.asarray(x)
