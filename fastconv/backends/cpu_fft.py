"""`fft` on the CPU: convolution as a product of spectra, on overlapping tiles (overlap-save).

    forward       y = IFFT(FFT(tile of xpad) * conj(FFT(w))), summed over the channels of a group; a stride subsamples
    grad_weight   gw = sum over tiles of IFFT(FFT(tile of xpad) * conj(FFT(tile of gy)))
    grad_input    the forward convolutions of its phases (`Problem.phases`), kernels read in place

The transforms are `_fft`'s. Groups of few channels keep a tile in the cache from its transform to its inverse; others
transform all tiles, then multiply matrices of channels, a vector of frequencies at a time. Convolutions along three axes
and kernels too long for any tile go through scipy.fft (`_fft.fallback`).

The cost does not depend on the kernel's size, so it wins from about 5x5 on single images and depthwise. A rounding error is relative
to the largest values of a tile, not to each output, and one NaN or Inf spoils its whole tile: `sums_directly` is False,
so the plan computes such results again by a direct sum.

Did not pay: the last pass of a transform, the product and the first pass of the inverse in one loop (spills: 3.6 us a tile
of 128 x 144, where two loops take 3.0); fetching the next tile's rows during a tile's product (5-10% slower); taking single
tasks of the matrix products in turn from two threads (each frequency's factors are better read in one run: 15% faster).

Source: Oppenheim and Schafer, "Discrete-Time Signal Processing" (3rd ed.), section 8.7 (overlap-save); Mathieu, Henaff,
LeCun, "Fast training of convolutional networks through FFTs" (2014).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ..problem import Options, Problem
from . import Backend, Kernel, Machine
from ._boxes import speedup
from ._fft import codelets, fallback
from ._fft.cutting import SERIAL_WORK, cut_tiles, is_local
from ._fft.engine import forward, grad_input, grad_weight, takes
from ._phases import phase_seconds

CALL_SECONDS, PACK_SECONDS = 0.9e-6, 1.9e-6  # of Python around a run, and around packing (bench_conv.py, tiny)
PARTS_SECONDS = 4e-6  # of adding partial weight gradients by NumPy (the same)
PREFERENCE_SECONDS = 1e-6  # charged besides: where less decides, a plain sum's accuracy does
MANY = 1 << 20  # tasks: enough for all threads


def refuses(problem: Problem) -> str | None:
    if np.dtype(problem.dtype).kind != "f":
        return f"rounds, and {problem.dtype} results are exact"
    if problem.accuracy == "strict":
        return "its error is relative to the largest values nearby: accuracy='strict' asks for a plain sum's"
    return None if takes(problem) else fallback.refuses(problem)


def seconds(problem: Problem, machine: Machine) -> float:
    if not takes(problem):
        return fallback.seconds(problem, machine)
    if problem.pass_name == "grad_input":
        return phase_seconds(problem, lambda phase: seconds(phase, machine), machine.bandwidth)
    cut, local = cut_tiles(problem), is_local(problem)
    tasks = problem.batch * problem.groups * math.prod(cut.tiles) if local and problem.pass_name == "forward" else MANY
    gradient = problem.pass_name == "grad_weight"
    summed = PARTS_SECONDS if gradient and local else 0.0
    regions = 1 if local else 4 if gradient else 3
    return CALL_SECONDS + PREFERENCE_SECONDS + summed + _shared_seconds(problem, machine, cut.run, tasks, regions)


def _shared_seconds(problem: Problem, machine: Machine, work: float, tasks: int, regions: int) -> float:
    """Time of so many operations, by one thread where they are few."""
    peak = machine.flops(problem.dtype)
    if work <= SERIAL_WORK:
        return work / peak
    return regions * machine.region_seconds + work / (peak * speedup(tasks, machine.threads))


def pack_seconds(problem: Problem, machine: Machine) -> float:
    if not takes(problem):
        return fallback.pack_seconds(problem, machine)
    if problem.pass_name == "grad_input":
        return sum(pack_seconds(phase.problem, machine) for phase in problem.phases() if phase.problem)
    if problem.pass_name == "grad_weight":
        return 0.0
    return PACK_SECONDS + _shared_seconds(problem, machine, cut_tiles(problem).pack, problem.out_channels * problem.group_in, 1)


def build(problem: Problem) -> Kernel:
    if not takes(problem):
        return fallback.build(problem)
    passes: dict[str, Callable[[Problem], Kernel]] = {"forward": forward, "grad_input": grad_input, "grad_weight": grad_weight}
    return passes[problem.pass_name](problem)


def prepare(dtype: str) -> None:
    """Compile the passes of every radix, and the kernels of both forms in both layouts."""
    if np.dtype(dtype).kind != "f":
        return
    codelets.prepare(dtype)
    for channels in (1, 8):
        options = Options(layout="NHWC")
        for pass_name in ("forward", "grad_weight"):
            build(Problem.create(pass_name, 2, (1, 20, 20, channels), (5, 5, channels, channels), dtype, options))


BACKEND = Backend(refuses, seconds, build, pack_seconds, prepare, sums_directly=False)
