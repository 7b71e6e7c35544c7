"""Time of the operations beside the convolutions, forward and backward."""

from functools import partial
from typing import ClassVar

import numpy as np

import fastconv as fc


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32)


class _Operation:
    """A forward and a backward call, compiled in `setup`."""

    def time_forward(self, *case: object) -> None:
        self.forward()

    def time_backward(self, *case: object) -> None:
        self.backward()


class Unfold(_Operation):
    """Windows as columns, and their gradient."""

    cases: ClassVar = {"224_3x3": ((1, 3, 224, 224), 3, 1, 1), "56_3x3": ((1, 64, 56, 56), 3, 1, 1),
             "56_3x3_s2": ((1, 64, 56, 56), 3, 1, 2),
             "batch_32": ((32, 16, 32, 32), 3, 1, 1), "7_3x3": ((1, 512, 7, 7), 3, 1, 1), "patches_16": ((1, 3, 256, 256), 16, 0, 16),
             "tiny": ((1, 1, 16, 16), 3, 1, 1)}
    params = (list(cases), ["NCHW", "NHWC"])
    param_names = ("case", "layout")

    def setup(self, case: str, layout: str) -> None:
        shape, kernel, padding, stride = self.cases[case]
        x = normal(*shape) if layout == "NCHW" else normal(shape[0], *shape[2:], shape[1])
        options = {"padding": padding, "stride": stride, "layout": layout}
        self.forward = partial(fc.unfold, x, kernel, **options)
        self.backward = partial(fc.unfold_backward, self.forward(), x.shape, kernel, **options)
        self.backward()


class Linear(_Operation):
    """Fully connected layers: (rows, in, out)."""

    params = ("1_84_10", "1_4096_4096", "8_512_1000", "64_400_120", "256_512_512", "2048_1024_1024", "2048_1024_4096", "16384_64_64")
    param_names = ("case",)

    def setup(self, case: str) -> None:
        rows, inputs, outputs = map(int, case.split("_"))
        x, w = normal(rows, inputs), normal(outputs, inputs)
        self.forward = partial(fc.linear, x, w, normal(outputs))
        self.backward = partial(fc.linear_backward, self.forward(), x, w)
        self.backward()


class LocallyConnected(_Operation):
    """Unshared 3x3 weights: (N, C, size, O)."""

    params = (["1_16_28_32", "16_16_28_32", "1_64_14_64"], ["NCHW", "NHWC"])
    param_names = ("case", "layout")

    def setup(self, case: str, layout: str) -> None:
        batch, channels, size, outputs = map(int, case.split("_"))
        if layout == "NCHW":
            x, w = normal(batch, channels, size, size), normal(outputs, channels, 3, 3, size, size)
        else:
            x, w = normal(batch, size, size, channels), normal(size, size, 3, 3, channels, outputs)
        self.forward = partial(fc.locally_connected2d, x, w, padding=1, layout=layout)
        self.backward = partial(fc.locally_connected2d_backward, self.forward(), x, w, padding=1, layout=layout)
        self.backward()


class Deformable(_Operation):
    """Modulated 3x3 deformable convolutions: (N, C, size, O)."""

    params = ("1_64_56_64", "4_64_28_64")
    param_names = ("case",)

    def setup(self, case: str) -> None:
        batch, channels, size, outputs = map(int, case.split("_"))
        x, w, mask = normal(batch, channels, size, size), normal(outputs, channels, 3, 3), normal(batch, 9, size, size)
        offset = normal(batch, 18, size, size)
        self.forward = partial(fc.deform_conv2d, x, offset, w, mask=mask, padding=1)
        self.backward = partial(fc.deform_conv2d_backward, self.forward(), x, offset, w, mask=mask, padding=1)
        self.backward()
