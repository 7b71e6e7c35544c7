"""Copies between layouts and types, sums over all but the channels, and activations in place: what goes round a convolution."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from . import SIMULATED, cuda, fetch, inlined, load, shared_memory, store, zero_of
from .compiling import Code
from .driver import Launch, Stream

__all__ = ["apply_activation", "codes", "copy_strided", "sum_channels"]

AXES = 6
SMOOTH = ("sigmoid", "tanh", "silu", "gelu")
THREADS = 8 if SIMULATED else 256


class Copied(NamedTuple):
    """The shape of what is copied, and the strides that it is read by, in elements."""

    n0: int
    n1: int
    n2: int
    n3: int
    n4: int
    n5: int
    s0: int
    s1: int
    s2: int
    s3: int
    s4: int
    s5: int


@functools.cache
def _copy_code(source: str, target: str) -> Code:
    element = np.dtype(target).type

    def copy(x, y, g):
        index = cuda.blockIdx.x * np.int64(THREADS) + cuda.threadIdx.x
        if index >= np.int64(g.n0) * g.n1 * g.n2 * g.n3 * g.n4 * g.n5:
            return
        a, at = index // g.n5, index % g.n5 * g.s5
        a, at = a // g.n4, at + a % g.n4 * g.s4
        a, at = a // g.n3, at + a % g.n3 * g.s3
        a, at = a // g.n2, at + a % g.n2 * g.s2
        store(y, index, element(fetch(x, at + a % g.n1 * g.s1 + a // g.n1 * g.s0)))

    return Code(f"copy.{source}.{target}", copy, (source, target), Copied, 0, THREADS)


def copy_strided(stream: Stream, source: Any, shape: tuple[int, ...], strides: tuple[int, ...], dtypes: tuple[str, str],
                 target: Any) -> None:
    """Copy elements of up to six axes, read by `strides` (in elements), to contiguous ones of another type."""
    missing = AXES - len(shape)
    geometry = Copied(*(1,) * missing, *shape, *(0,) * missing, *strides)
    Launch(_copy_code(*dtypes), (-(-math.prod(shape) // THREADS),), geometry)(stream, source, target)


# -- sums -----------------------------------------------------------------------------------------------------------------


class Summed(NamedTuple):
    """(outer, channels, inner) of the array."""

    outer: int
    channels: int
    inner: int


@functools.cache
def _sum_code(dtype: str) -> Code:
    def channel_sums(x, y, g):
        channel = cuda.blockIdx.x
        thread = cuda.threadIdx.x
        total = zero_of(x)
        for index in range(thread, np.int64(g.outer) * g.inner, THREADS):
            total += fetch(x, (index // g.inner * g.channels + channel) * g.inner + index % g.inner)
        sums = shared_memory(x)
        store(sums, thread, total)
        width = THREADS // 2
        while width:
            cuda.syncthreads()
            if thread < width:
                store(sums, thread, load(sums, thread) + load(sums, thread + width))
            width //= 2
        if thread == 0:
            store(y, channel, load(sums, 0))

    return Code(f"channel_sums.{dtype}", channel_sums, (dtype, dtype), Summed, 0, THREADS)


def sum_channels(stream: Stream, source: Any, shape: tuple[int, ...], axis: int, dtype: str, target: Any) -> None:
    """The sums of a contiguous array over all axes but one."""
    geometry = Summed(math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1:]))
    Launch(_sum_code(dtype), (shape[axis],), geometry, shared_bytes=THREADS * np.dtype(dtype).itemsize)(stream, source, target)


# -- activations ----------------------------------------------------------------------------------------------------------


class Length(NamedTuple):
    """Elements of an array: high * CHUNK + low."""

    high: int
    low: int


CHUNK = 2**30


@functools.cache
def _activation_code(name: str, dtype: str) -> Code:
    element = np.dtype(dtype).type
    one, half, root = element(1), element(0.5), element(math.sqrt(0.5))

    def sigmoid(v):
        return one / (one + math.exp(-v))

    formulas = {"sigmoid": sigmoid, "tanh": lambda v: math.tanh(v), "silu": lambda v: v / (one + math.exp(-v)),
                "gelu": lambda v: half * v * (one + math.erf(v * root))}
    formula = inlined(formulas[name])

    def activation(y, g):
        index = cuda.blockIdx.x * np.int64(THREADS) + cuda.threadIdx.x
        if index < np.int64(g.high) * CHUNK + g.low:
            store(y, index, element(formula(load(y, index))))

    return Code(f"{name}.{dtype}", activation, (dtype,), Length, 0, THREADS)


def apply_activation(stream: Stream, name: str, dtype: str, count: int, pointer: Any) -> None:
    """Apply a smooth activation in place."""
    Launch(_activation_code(name, dtype), (-(-count // THREADS),), Length(*divmod(count, CHUNK)))(stream, pointer)


def codes(dtype: str) -> list[Code]:
    """Every kernel of this module for one type, and the copies from and to those that are computed in it."""
    others = ("float16", "uint8", "int16", "int32", "int64") if dtype == "float32" else ()
    casts = [_copy_code(*pair) for other in others for pair in ((other, dtype), (dtype, other))]
    words = [_copy_code(word, word) for word in ("uint8", "int16", "int32", "int64")]
    return [_copy_code(dtype, dtype), *casts, *words, _sum_code(dtype), *(_activation_code(name, dtype) for name in SMOOTH)]
