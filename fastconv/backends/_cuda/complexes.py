"""Complex numbers as pairs of real ones, and convolutions of them as real ones of twice the channels.

Letters as in `lowering.ComplexKernel`: the real weights of a group are [[wr, -wi], [wi, wr]], blocks of (outputs, inputs).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from . import SIMULATED, cuda, fetch, store
from .compiling import Code
from .driver import Launch, Stream

__all__ = ["Blocks", "codes", "join_weights", "split_weights", "to_complex"]

THREADS = 8 if SIMULATED else 256


class Pairs(NamedTuple):
    """Numbers that become complex, of 1 or 2 `parts` each, conjugated if so told."""

    length: int
    parts: int
    conjugate: int


@functools.cache
def _pairs_code(source: str, target: str) -> Code:
    element = np.dtype(target).type

    def complex_pairs(x, y, g):
        index = cuda.blockIdx.x * np.int64(THREADS) + cuda.threadIdx.x
        if index >= np.int64(2) * g.length:
            return
        value = element(0)
        if index % 2 == 0 or g.parts == 2:
            value = element(fetch(x, index // 2 * g.parts + index % 2))
        store(y, index, -value if index % 2 == 1 and g.conjugate else value)

    return Code(f"complex_pairs.{source}.{target}", complex_pairs, (source, target), Pairs, 0, THREADS)


def to_complex(stream: Stream, source: Any, count: int, dtypes: tuple[str, str], target: Any, *, parts: int = 2,
               conjugate: bool = False) -> None:
    """Write `count` numbers that lie in C order as complex ones; `dtypes` are those of the parts."""
    Launch(_pairs_code(*dtypes), (-(-2 * count // THREADS),), Pairs(count, parts, int(conjugate)))(stream, source, target)


# -- weights --------------------------------------------------------------------------------------------------------------


class Blocks(NamedTuple):
    """Complex weights: groups, output and input channels of a group, taps; channels last or first."""

    groups: int
    outputs: int
    inputs: int
    taps: int
    channels_last: int


@functools.cache
def _split_code(dtype: str) -> Code:
    def split_weights(w, y, g):
        index = cuda.blockIdx.x * np.int64(THREADS) + cuda.threadIdx.x
        rows, columns = 2 * g.groups * g.outputs, 2 * g.inputs
        if index >= np.int64(rows) * columns * g.taps:
            return
        if g.channels_last:
            row, column, tap = index % rows, index // rows % columns, index // rows // columns
        else:
            row, column, tap = index // g.taps // columns, index // g.taps % columns, index % g.taps
        output = row // (2 * g.outputs) * g.outputs + row % g.outputs
        imaginary_output, imaginary_input = row // g.outputs % 2, column // g.inputs
        if g.channels_last:
            at = (tap * g.inputs + column % g.inputs) * (g.groups * g.outputs) + output
        else:
            at = (output * g.inputs + column % g.inputs) * g.taps + tap
        value = fetch(w, 2 * at + (imaginary_output + imaginary_input) % 2)
        store(y, index, -value if imaginary_input and not imaginary_output else value)

    return Code(f"complex_split.{dtype}", split_weights, (dtype, dtype), Blocks, 0, THREADS)


@functools.cache
def _join_code(dtype: str) -> Code:
    def join_weights(w, y, g):
        index = cuda.blockIdx.x * np.int64(THREADS) + cuda.threadIdx.x
        outputs = g.groups * g.outputs
        if index >= np.int64(2) * outputs * g.inputs * g.taps:
            return
        part, at = index % 2, index // 2
        if g.channels_last:
            output, channel, tap = at % outputs, at // outputs % g.inputs, at // outputs // g.inputs
        else:
            output, channel, tap = at // g.taps // g.inputs, at // g.taps % g.inputs, at % g.taps
        row = output // g.outputs * 2 * g.outputs + output % g.outputs
        if g.channels_last:
            first = (tap * 2 * g.inputs + channel) * 2 * outputs + row
            down, along = g.outputs, g.inputs * 2 * outputs
        else:
            first = (row * 2 * g.inputs + channel) * g.taps + tap
            down, along = g.outputs * 2 * g.inputs * g.taps, g.inputs * g.taps
        if part == 0:
            store(y, index, fetch(w, first) + fetch(w, first + down + along))
        else:
            store(y, index, fetch(w, first + down) - fetch(w, first + along))

    return Code(f"complex_join.{dtype}", join_weights, (dtype, dtype), Blocks, 0, THREADS)


def split_weights(stream: Stream, dtype: str, blocks: Blocks, source: Any, target: Any) -> None:
    """Write complex weights as the real ones of twice the channels; `dtype` is that of the parts."""
    count = 4 * blocks.groups * blocks.outputs * blocks.inputs * blocks.taps
    Launch(_split_code(dtype), (-(-count // THREADS),), blocks)(stream, source, target)


def join_weights(stream: Stream, dtype: str, blocks: Blocks, source: Any, target: Any) -> None:
    """Write the gradient of such real weights as that of the complex ones."""
    count = 2 * blocks.groups * blocks.outputs * blocks.inputs * blocks.taps
    Launch(_join_code(dtype), (-(-count // THREADS),), blocks)(stream, source, target)


def codes(dtype: str) -> list[Code]:
    """Every kernel of this module for one type of the parts."""
    return [_pairs_code(dtype, dtype), _split_code(dtype), _join_code(dtype)]
