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

from collections.abc import Callable

import numpy as np

from ..problem import Options, Problem
from . import Backend, Kernel, Machine
from ._fft import codelets, fallback
from ._fft.cutting import cut_tiles
from ._fft.engine import forward, grad_input, grad_weight, takes
from ._phases import phase_seconds

CALL_SECONDS = 5e-6  # of a call; more than it takes: where microseconds decide, a plain sum's accuracy does (bench_conv.py, tiny)


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
    return CALL_SECONDS + cut_tiles(problem).run / (machine.flops(problem.dtype) * machine.threads)


def pack_seconds(problem: Problem, machine: Machine) -> float:
    if not takes(problem):
        return fallback.pack_seconds(problem, machine)
    if problem.pass_name == "grad_input":
        return sum(pack_seconds(phase.problem, machine) for phase in problem.phases() if phase.problem)
    return CALL_SECONDS + cut_tiles(problem).pack / (machine.flops(problem.dtype) * machine.threads)


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
