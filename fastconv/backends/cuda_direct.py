"""`direct` on a GPU: the sum over the taps as it stands.

It refuses nothing. Its engines, the quickest of which is taken:

    Direct          everything: any border, type and layout, by a table of where each padded position comes from; a thread computes an
                    output element, a block a weight's gradient
    planes          single planes (depthwise layers, filters) with small kernels: rows are carried on in registers
    plane_gradients their weight gradients
    filters         single planes with kernels of any size: a tile in shared memory, a square of points a thread
    grouped         few channels a group (first layers, dilated and grouped ones): several channels of several points a thread
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..problem import Problem
from . import Backend
from ._cuda import SIMULATED, filters, grouped, plane_gradients, planes
from ._cuda.compiling import Code
from ._cuda.driver import Gpu, Launch, Stream, address_of, gpu, resident
from ._cuda.geometry import source_table, target_lists
from ._cuda.sums import forward_code, grad_input_code, grad_weight_code, sizes_of
from ._rectifiers import RECTIFIERS

THREADS = 8 if SIMULATED else 256
EFFICIENCY = 0.08  # share of the peak: each product loads both its factors (an estimate: benchmarks/gpu.py will measure it)
PLACE_INSTRUCTIONS = 300  # of finding a point's place by 64-bit divisions (counted in the machine code)
LAUNCH_SECONDS = 5e-6  # of a kernel (an estimate: benchmarks/gpu.py will measure it, tiny)


class Direct:
    """Any pass of any problem."""

    packed: tuple[tuple[int, str], ...] = ()
    scratch_bytes = 0

    def __init__(self, problem: Problem):
        p = problem
        table, starts = (target_lists if p.pass_name == "grad_input" else source_table)(p)
        self.table = resident(table)
        self.gradient = p.pass_name == "grad_weight"
        elements = math.prod(p.shapes[2])
        sizes = sizes_of(p, starts)
        if self.gradient:
            self.launch = Launch(grad_weight_code(p.dtype, THREADS), (elements,), sizes, shared_bytes=THREADS * p.itemsize)
        else:
            code = (forward_code if p.pass_name == "forward" else grad_input_code)(p.dtype, THREADS)
            self.launch = Launch(code, (-(-elements // THREADS),), sizes, RECTIFIERS[p.activation])

    def pack(self, stream: Stream, second: Any, target: Any) -> None:
        """Weights are read as they lie."""

    def run(self, stream: Stream, first: Any, second: Any, packed: Any, bias: Any, out: Any) -> None:
        """Launch the kernel."""
        if self.gradient:
            self.launch(stream, first, second, address_of(self.table), out)
        else:
            self.launch(stream, first, second, out if bias is None else bias, address_of(self.table), out)


def codes(dtype: str) -> list[Code]:
    """Every kernel that a problem may need."""
    return [*(make(dtype, THREADS) for make in (forward_code, grad_input_code, grad_weight_code)), *planes.codes(dtype),
            *plane_gradients.codes(dtype), *grouped.codes(dtype), *filters.codes(dtype)]


def refuses(problem: Problem) -> str | None:
    return None


def direct_seconds(problem: Problem, machine: Gpu) -> float:
    """Predicted time of the plain sum."""
    p = problem
    places = p.flops / 2 if p.pass_name == "grad_weight" else math.prod(p.shapes[2])
    work = p.flops / EFFICIENCY + 2 * PLACE_INSTRUCTIONS * places
    return LAUNCH_SECONDS + work / machine.flops(p.dtype) + p.bytes / machine.bandwidth


# pass -> (predicted time, kernel) of each engine
ENGINES: dict[str, list[tuple[Callable[[Problem, Gpu], float], Callable[[Problem], Any]]]] = {
    "forward": [(direct_seconds, Direct), (planes.seconds, planes.Planes), (grouped.seconds, grouped.Grouped),
                (filters.seconds, filters.Filters)],
    "grad_input": [(direct_seconds, Direct), (planes.seconds, planes.Planes), (grouped.seconds, grouped.Grouped),
                   (filters.seconds, filters.Filters)],
    "grad_weight": [(direct_seconds, Direct), (plane_gradients.seconds, plane_gradients.PlaneGradients)],
}


def _quickest(problem: Problem, machine: Gpu) -> tuple[float, Callable[[Problem], Any]]:
    return min(((predict(problem, machine), make) for predict, make in ENGINES[problem.pass_name]), key=lambda engine: engine[0])


def seconds(problem: Problem, machine: Gpu) -> float:
    """Time of the quickest engine."""
    return _quickest(problem, machine)[0]


def pack_seconds(problem: Problem, machine: Gpu) -> float:
    """Time of laying out the weights, where the quickest engine does that."""
    return grouped.pack_seconds(problem, machine) if _quickest(problem, machine)[1] is grouped.Grouped else 0.0


def build(problem: Problem) -> Any:
    """The kernel of the quickest engine."""
    return _quickest(problem, gpu())[1](problem)


BACKEND = Backend(refuses, seconds, build, pack_seconds)
