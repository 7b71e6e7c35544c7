"""What the tests share: the data of a case, one call for the three passes, and the tolerance of each backend."""

import functools
import math
import os
import subprocess
import sys
import zlib
from dataclasses import dataclass

import numpy as np
import reference

import fastconv as fc

PASSES = ("forward", "grad_input", "grad_weight")

# Error allowed in float32, relative to the largest result: a plain sum of a thousand terms, a transform of a tile.
FLOAT32_TOLERANCE = {"direct": 2e-6, "im2col": 2e-6, "separable": 2e-6, "fft": 3e-6, "winograd": 2e-5}
STRICT_TOLERANCE = 2e-6  # what accuracy="strict" promises, whatever the method
DEFAULT_TOLERANCE = 2e-5  # what accuracy="default" promises of a method that is not in the table
OTHER_TOLERANCE = {"float64": 1e-13, "complex64": 3e-6, "complex128": 1e-13, "float16": 1e-3}


@dataclass(frozen=True)
class Operands:
    """The arrays of a case in float64, each value exact in float32; read-only, as they are shared between tests."""

    x: np.ndarray
    w: np.ndarray
    gy: np.ndarray
    bias: np.ndarray

    def of(self, pass_name):
        """The pass's first and second operand."""
        return {"forward": (self.x, self.w), "grad_input": (self.gy, self.w), "grad_weight": (self.gy, self.x)}[pass_name]

    def target_shape(self, pass_name):
        """Shape of the pass's result."""
        return {"forward": self.gy, "grad_input": self.x, "grad_weight": self.w}[pass_name].shape


@functools.cache
def operands(case):
    """Standard normal arrays of the case's shapes, the same in each run."""
    rng = np.random.default_rng(zlib.crc32(case.name.encode()))
    gy_shape = reference.output_shape(case.input_shape, case.weight_shape, **case.options)
    outputs = case.weight_shape[-1] if case.options.get("layout") in reference.CHANNELS_LAST else case.weight_shape[0]
    arrays = [
        rng.standard_normal(shape, dtype=np.float32).astype(np.float64)
        for shape in (case.input_shape, case.weight_shape, gy_shape, (outputs,))
    ]
    for array in arrays:
        array.flags.writeable = False
    return Operands(*arrays)


@functools.cache
def expected(case, pass_name):
    """The reference's answer for the case's operands."""
    result = reference_pass(case, pass_name, *operands(case).of(pass_name))
    result.flags.writeable = False
    return result


def reference_pass(case, pass_name, first, second):
    """The pass by definition, in float64."""
    with np.errstate(invalid="ignore", over="ignore"):
        if pass_name == "forward":
            return reference.conv(first, second, **case.options)
        if pass_name == "grad_input":
            return reference.grad_input(first, second, case.input_shape, **case.options)
        return reference.grad_weight(first, second, case.weight_shape, **case.options)


def run_pass(case, pass_name, first, second, **how):
    """The pass by the package's public function; `how` is backend=, out= and the like."""
    if pass_name == "forward":
        return public("conv{}d", case.ndim)(first, second, **case.options, **how)
    shape = case.input_shape if pass_name == "grad_input" else case.weight_shape
    return public(f"conv{{}}d_{pass_name}", case.ndim)(first, second, shape, **case.options, **how)


def public(name, ndim):
    """A public function of the family, `public("conv{}d", 2)` is `fc.conv2d`."""
    return getattr(fc, name.format(ndim))


def tolerance(backend, dtype, terms=0):
    """Largest allowed error, relative to the largest absolute value of the result, where up to `terms` products are summed."""
    dtype = np.dtype(dtype).name
    plain = FLOAT32_TOLERANCE.get(backend, DEFAULT_TOLERANCE) if dtype == "float32" else OTHER_TOLERANCE[dtype]
    return plain * max(1.0, math.sqrt(terms / 1000))


def terms(case, pass_name):
    """Products in each sum of the pass."""
    data = operands(case)
    last = case.options.get("layout") in reference.CHANNELS_LAST
    outputs, kernel = (data.w.shape[-1], data.w.shape[:-2]) if last else (data.w.shape[0], data.w.shape[2:])
    if pass_name == "forward":
        return data.w.size // outputs
    return outputs // case.options.get("groups", 1) * math.prod(kernel) if pass_name == "grad_input" else data.gy.size // outputs


def assert_close(actual, desired, relative, scale=None):
    """Every element within `relative` times `scale`, by default the largest absolute value of what is desired."""
    assert actual.shape == desired.shape, f"shape {actual.shape}, expected {desired.shape}"
    if desired.size == 0:
        return
    error = np.abs(actual.astype(desired.dtype) - desired)
    assert not np.isnan(error).any(), (
        f"{np.isnan(error).sum()} of {error.size} elements are nan, the first at {_first(np.isnan(error))}"
    )
    scale = np.abs(desired).max() if scale is None else scale
    worst = np.unravel_index(error.argmax(), error.shape)
    assert error.max() <= relative * scale, (
        f"error {error.max() / (scale or 1):.2e} of the largest value, allowed {relative:.0e}; at {tuple(map(int, worst))} "
        f"got {actual[worst]!r} for {desired[worst]!r}; {(error > relative * scale).sum()} of {error.size} are off"
    )


def assert_same_nonfinite(actual, desired):
    """Non-finite where desired is and nowhere else, and of the same kind: nan, inf or -inf."""
    assert actual.shape == desired.shape
    wrong = np.isfinite(actual) != np.isfinite(desired)
    assert not wrong.any(), (
        f"{(wrong & np.isfinite(desired)).sum()} elements are not finite but should be, "
        f"{(wrong & ~np.isfinite(desired)).sum()} are finite but should not be; the first at {_first(wrong)}"
    )
    where = ~np.isfinite(desired)
    np.testing.assert_array_equal(actual[where], desired[where].astype(actual.dtype))


def _first(mask):
    return tuple(map(int, np.argwhere(mask)[0]))


def poisoned(shape, dtype, order="C"):
    """An array full of what no result is: nan, or a pattern of bits for integers."""
    dtype = np.dtype(dtype)
    return np.full(shape, np.nan if dtype.kind in "fc" else np.iinfo(dtype).min // 3, dtype=dtype, order=order)


def integers(rng, shape, dtype, bound=5):
    """Small whole numbers, so that every sum of their products is exact in float32 too."""
    low = 0 if np.dtype(dtype).kind == "u" else -bound
    return rng.integers(low, bound + 1, size=shape).astype(dtype)


def python(source, *, timeout=240, **variables):
    """Run `source` in a fresh interpreter with further environment variables; its standard output, or an assertion error."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("COV_CORE")}
    environment = inherited | {"PYTHONPATH": os.pathsep.join(filter(None, [root(), os.environ.get("PYTHONPATH")]))} | variables
    done = subprocess.run(
        [sys.executable, "-c", source], env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, (
        f"exit status {done.returncode}\n--- stdout\n{done.stdout[-2000:]}\n--- stderr\n{done.stderr[-4000:]}"
    )
    return done.stdout


def root():
    """The folder that `fastconv` was imported from, so that a fresh interpreter imports the same one."""
    return os.path.dirname(os.path.dirname(os.path.abspath(fc.__file__)))
