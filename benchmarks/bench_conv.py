"""Time of every backend on a dozen convolutions that stand for the whole suite, forward and backward."""

from functools import partial

import numpy as np

import fastconv as fc
from fastconv.bench.suite import items

CASES = {f"{item.suite} {item.name}": item for item in items("quick")}


class Forward:
    """A plan with packed weights applied to an input, and the plain call that packs them every time."""

    params = (list(CASES), list(fc.backends()))
    param_names = ("case", "backend")

    def setup(self, case: str, backend: str) -> None:
        """Build the plan and compile its kernels; NotImplementedError makes asv skip what the backend refuses."""
        item = CASES[case]
        self.x, w, bias = item.arrays()
        options = {"backend": backend, **item.options}
        try:
            self.plan = getattr(fc, f"plan_conv{item.ndim}d")(w, bias, input_shape=item.input_shape, **options)
        except fc.BackendError as error:
            raise NotImplementedError(str(error)) from None
        self.call = partial(getattr(fc, f"conv{item.ndim}d"), self.x, w, bias, **options)
        self.plan(self.x)
        self.call()

    def time_plan(self, case: str, backend: str) -> None:
        """Apply the plan."""
        self.plan(self.x)

    def time_call(self, case: str, backend: str) -> None:
        """Call conv1d or conv2d."""
        self.call()


class Backward:
    """Gradients with respect to input, weights and bias; only networks are trained, so filters are left out."""

    params = ([name for name, item in CASES.items() if item.suite not in ("photo", "audio")], list(fc.backends()))
    param_names = ("case", "backend")

    def setup(self, case: str, backend: str) -> None:
        """Make a gradient of the output's shape and compile the kernels."""
        item = CASES[case]
        x, w, _ = item.arrays()
        shape = fc.conv2d(x, w, **item.options).shape
        gradient = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
        self.call = partial(fc.conv2d_backward, gradient, x, w, backend=backend, **item.options)
        try:
            self.call()
        except fc.BackendError as error:
            raise NotImplementedError(str(error)) from None

    def time_backward(self, case: str, backend: str) -> None:
        """Call conv2d_backward."""
        self.call()
