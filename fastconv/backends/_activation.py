"""The activations that are no rectifiers, as one pass over a finished result.

sigmoid 1 / (1 + exp(-v)), tanh, silu v * sigmoid(v), gelu v * Phi(v) with the exact error function; at minus infinity
the last two take their limit, 0.
"""

from __future__ import annotations

import math

import numpy as np

from ._jit import parallel_region
from ._simd import parallel_kernel

CODES = {"sigmoid": 0, "tanh": 1, "silu": 2, "gelu": 3}
SERIAL_ELEMENTS = 2000  # below which a region takes longer than the exponentials it shares out


@parallel_kernel
def activate(args, thread):
    """y = activation(y), in place, each thread its share."""
    y, code, threads = args
    half, one, root = y.dtype.type(0.5), y.dtype.type(1), y.dtype.type(math.sqrt(0.5))
    for i in range(y.size * thread // threads, y.size * (thread + 1) // threads):
        v = y[i]
        if code == 1:
            y[i] = math.tanh(v)
        elif code == 3:
            y[i] = y.dtype.type(0) if v == -math.inf else v * (half * (one + math.erf(v * root)))
        else:
            # exp of minus the magnitude cannot overflow
            e = math.exp(-abs(v))
            s = one / (one + e) if v >= 0 else e / (one + e)
            if code == 0:
                y[i] = s
            else:
                y[i] = y.dtype.type(0) if v == -math.inf else v * s


def apply(name: str, y: np.ndarray) -> None:
    """Apply an activation to a contiguous array, in place."""
    with parallel_region() as threads:
        share = threads if y.size > SERIAL_ELEMENTS else 1
        activate((y.reshape(-1), CODES[name], share), share)


