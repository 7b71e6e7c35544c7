"""`direct` on the CPU: the sum over the taps as it stands.

It refuses nothing. Its strengths are depthwise and grouped convolutions, images of few channels and small kernels, where
`im2col` has too few output channels to fill a vector. Its engines, the quickest of which is taken:

    _strips             single planes (depthwise layers, filters): lanes are pixels, read in place
    _padded_strips      the same of narrow planes: rows copied with their border of zeros
    _channels           depthwise: lanes are channels
    _lines              everything: lanes are pixels, rows copied with their borders
    _strip_gradients    weight gradients of few channels: pairs of planes, read in place
    _line_gradients     weight gradients of everything
    _transposed_strips  input gradients of single planes with stride 2

What they share is in `_planes`. Any other `grad_input` is the forward convolutions of its phases (`Problem.phases`).

Source: the definition; register blocking of direct convolution: Georganas et al., "Anatomy of high-performance deep
learning convolutions on SIMD architectures" (2018), section II.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from ..problem import Problem
from . import (
    CACHED_BYTES,
    Backend,
    Kernel,
    Machine,
    _channels,
    _line_choice,
    _line_gradients,
    _lines,
    _padded_strips,
    _strip_gradients,
    _strips,
    _transposed_strips,
)
from ._phases import GradInputByPhases, phase_seconds
from ._planes import uses_threads
from ._simd import lane_count

# pass -> (time in vector multiply-adds of one thread, kernel) of each engine
ENGINES: dict[str, list[tuple[Callable[[Problem], float], Callable[[Problem], Kernel]]]] = {
    "forward": [(_line_choice.slots, _lines.Forward), (_strips.slots, _strips.Strips),
                (_padded_strips.slots, _padded_strips.PaddedStrips), (_channels.slots, _channels.ByChannels)],
    "grad_input": [(_transposed_strips.slots, _transposed_strips.TransposedStrips)],
    "grad_weight": [(_line_gradients.slots, _line_gradients.GradWeight), (_strip_gradients.slots, _strip_gradients.StripGradients)],
}
CALL_SECONDS = 0.8e-6  # of Python around a run (bench_conv.py, tiny)
PICK_SECONDS, ELEMENT_SECONDS = 0.4e-6, 0.45e-9  # of picking a small kernel's weights by a table (the same)


def refuses(problem: Problem) -> str | None:
    return None


def seconds(problem: Problem, machine: Machine) -> float:
    """Time of the quickest engine, or of the memory where the arrays exceed the caches."""
    p = problem
    if by_phases(p):
        return phase_seconds(p, lambda phase: seconds(phase, machine), machine.bandwidth)
    compute = min(slots(p) for slots, _ in ENGINES[p.pass_name]) * 2 * lane_count(p.dtype) / machine.flops(p.dtype)
    moved = p.bytes / machine.bandwidth if p.bytes > CACHED_BYTES else 0.0
    if not uses_threads(p):
        return CALL_SECONDS + compute
    return CALL_SECONDS + machine.region_seconds + max(compute, moved) / machine.threads


def pack_seconds(problem: Problem, machine: Machine) -> float:
    """A copy by NumPy where output channels are interleaved or gy's channels come last, else nothing."""
    p = problem
    if not p.channels_last and (p.pass_name == "grad_weight" or (p.pass_name == "forward" and p.group_out == 1)):
        return 0.0
    size = math.prod(p.weight_shape)
    if p.pass_name != "grad_weight" and size <= _lines.SMALL_WEIGHTS:
        return PICK_SECONDS + ELEMENT_SECONDS * size
    return 4e-6 + 26 * math.prod(p.shapes[1]) * p.itemsize / machine.cache_bandwidth


def quickest(problem: Problem) -> Kernel:
    """The kernel of the quickest engine."""
    return min(ENGINES[problem.pass_name], key=lambda engine: engine[0](problem))[1](problem)


def by_phases(problem: Problem) -> bool:
    """Whether no engine computes a gradient of the input by itself."""
    return problem.pass_name == "grad_input" and not _transposed_strips.fits(problem)


def build(problem: Problem) -> Kernel:
    if by_phases(problem):
        return GradInputByPhases(problem, quickest, picked_weights=_lines.SMALL_WEIGHTS)
    return quickest(problem)


def prepare(dtype: str) -> None:
    """Compile the tiles and strips that the kernels call through their addresses."""
    for rows in _lines.TILES:
        _lines.tile_address(rows, dtype)
    for name in _strips.STRIPS:
        _strips.strips_address(name, dtype)
    for size in _padded_strips.SIZES:
        _padded_strips.padded_address(size, dtype)
    for part in _strip_gradients.GRADIENTS:
        _strip_gradients.gradients_address(*part, dtype)
    for size in _transposed_strips.SIZES:
        _transposed_strips.transposed_address(size, dtype)


BACKEND = Backend(refuses, seconds, build, pack_seconds, prepare)
