"""The activations that are no rectifiers, as one pass over a finished result.

sigmoid 1 / (1 + exp(-v)), tanh, silu v * sigmoid(v), gelu v * Phi(v) with the exact error function; at minus infinity
the last two take their limit, 0.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from ._simd import BoundKernel, get, parallel_kernel, put, thawed, zero_element

CODES = {"sigmoid": 0, "tanh": 1, "silu": 2, "gelu": 3}
SERIAL_ELEMENTS = 2000  # below which a region takes longer than the exponentials it shares out


@parallel_kernel
def activate(x, w, bias, y, constants, scratch, counters, thread, threads):
    """y = activation(y), in place, each thread its share."""
    code, size, half, one, root = thawed(constants)
    for i in range(size * thread // threads, size * (thread + 1) // threads):
        v = get(y, i)
        if code == 1:
            put(y, i, math.tanh(v))
        elif code == 3:
            put(y, i, zero_element(y) if v == -math.inf else v * (half * (one + math.erf(v * root))))
        else:
            # exp of minus the magnitude cannot overflow
            e = math.exp(-abs(v))
            s = one / (one + e) if v >= 0 else e / (one + e)
            if code == 0:
                put(y, i, s)
            else:
                put(y, i, zero_element(y) if v == -math.inf else v * s)


@functools.lru_cache(maxsize=1024)
def activation(name: str, size: int, dtype: str) -> BoundKernel:
    """The kernel that applies an activation to `size` elements."""
    scalar = np.dtype(dtype).type
    constants = (CODES[name], size, scalar(0.5), scalar(1), scalar(math.sqrt(0.5)))
    return activate.bind(dtype, constants, parallel=size > SERIAL_ELEMENTS)


def apply(name: str, y: np.ndarray) -> None:
    """Apply an activation to a contiguous array, in place."""
    y = y.reshape(-1)
    activation(name, y.size, y.dtype.name)(y, y, y, y)
