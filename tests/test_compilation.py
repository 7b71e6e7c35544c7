"""What is compiled, and when: helpers with their kernels alone, everything by `warmup`."""

import ast

import numba
from helpers import python

from fastconv.backends._jit import inlined, outlined


@inlined
def twice(a):
    return a + a


@outlined
def fibonacci(count):
    a, b = 0, 1
    for _ in range(count):
        a, b = b, a + b
    return twice(a)


@numba.njit
def helped(count):
    return fibonacci(count) + twice(count)


def test_helpers_are_compiled_in_their_callers_alone():
    """A helper's library holds LLVM IR to be linked in, and no machine code: that took a third of a kernel's compile time."""
    assert helped(10) == 2 * 55 + 20
    libraries = {f.py_func.__name__: compiled.library for f in (twice, fibonacci, helped) for compiled in f.overloads.values()}
    with_code = {name for name, library in libraries.items() if getattr(library, "_compiled", False)}
    assert libraries.keys() == {"twice", "fibonacci", "helped"}
    assert with_code == {"helped"}


# Random convolutions, called by every backend in every pass: what kernels were compiled for them.
RANDOM_SHAPES = """
import numpy as np
import fastconv as fc
from numba.core import event

random = np.random.default_rng(SEED)

def one_of(*values):
    return values[random.integers(len(values))]

def shapes():
    ndim, groups = one_of(1, 2, 2, 2, 3), one_of(1, 1, 1, 2, 5)
    channels, outputs = groups * random.integers(1, one_of(4, 20, 70)), groups * random.integers(1, one_of(4, 20, 70))
    if random.random() < 0.2:
        groups = outputs = channels
    size = random.integers(1, {1: 2000, 2: 40, 3: 10}[ndim], ndim)
    kernel, stride, dilation = random.integers(1, one_of(2, 4, 4, 8, 14), ndim), one_of(1, 1, 2, 3), one_of(1, 1, 2)
    padding = dilation * (kernel - 1) - kernel // 3
    x = np.ones((one_of(1, 1, 2, 9), channels, *size), np.float32)
    w = np.ones((outputs, channels // groups, *kernel), np.float32)
    layout = "NHWC" if ndim == 2 and random.random() < 0.3 else "NCHW"
    if layout == "NHWC":
        x, w = x.transpose(0, 2, 3, 1).copy(), w.transpose(2, 3, 1, 0).copy()
    padding = [(int(p), int(p)) for p in padding]
    return ndim, x, w, {"stride": stride, "dilation": dilation, "groups": groups, "padding": padding, "layout": layout}

fc.warmup(operations=False)
runs = 0
with event.install_recorder("numba:compile") as recorder:
    for _ in range(COUNT):
        ndim, x, w, options = shapes()
        for backend in (*fc.backends(), None):
            try:
                y = getattr(fc, f"conv{ndim}d")(x, w, backend=backend, **options)
            except ValueError:  # a backend that refuses, an output without points
                continue
            runs += 1
            for gradient, arguments in (("input", (y, w, x.shape)), ("weight", (y, x, w.shape))):
                try:
                    getattr(fc, f"conv{ndim}d_grad_{gradient}")(*arguments, backend=backend, **options)
                except fc.BackendError:
                    continue
print({"runs": runs, "compiled": sorted({record.data["dispatcher"].py_func.__name__ for _, record in recorder.buffer})})
"""


def test_random_shapes_compile_nothing_after_warmup():
    """No shape, stride, dilation, group or layout needs a kernel, or a micro-kernel, that `warmup` did not compile."""
    found = ast.literal_eval(python(RANDOM_SHAPES.replace("SEED", "0").replace("COUNT", "40")))
    assert found["runs"] > 100
    assert found["compiled"] == []
