"""Pooling layers: the package's pooling functions with their options fixed."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .._pool_calls import adaptive, kept_gradient, maxima, norm_gradient, sliding
from ._layer import Backprop, Layer, check_layout, documented
from .activations import contiguous

__all__ = ["AdaptiveAvgPool1d", "AdaptiveAvgPool2d", "AdaptiveAvgPool3d", "AdaptiveMaxPool1d", "AdaptiveMaxPool2d", "AdaptiveMaxPool3d",
           "AvgPool1d", "AvgPool2d", "AvgPool3d", "GlobalAvgPool", "GlobalMaxPool", "LPPool1d", "LPPool2d", "LPPool3d", "MaxPool1d",
           "MaxPool2d", "MaxPool3d"]


@functools.cache
def _function(name: str) -> Any:
    """A function of `fastconv.pool`, which is imported with the first of them."""
    from .. import pool

    return getattr(pool, name)


class _Pool(Layer):
    """A pooling whose gradient needs the shape of the input only; `name` is its function's."""

    ndim = 0  # any number of spatial axes
    name = ""

    def __init__(self, values: tuple[Any, ...], options: dict[str, Any], layout: str):
        super().__init__()
        self.values, self.options, self.layout = values, {**options, "layout": check_layout(layout)}, layout

    def arguments(self) -> str:
        """What differs from the defaults."""
        options = {"layout": "NCHW", "padding": 0, "dilation": 1, "stride": None, "ceil_mode": False, "count_include_pad": True,
                   "divisor_override": None}
        return ", ".join([*map(repr, self.values), *(f"{k}={v!r}" for k, v in self.options.items() if v != options[k])])

    def _checked(self, x: Any) -> np.ndarray:
        x = self.as_input(x)
        if (x.ndim not in (self.ndim + 1, self.ndim + 2)) if self.ndim else x.ndim < 3:
            sizes = ", ".join("DHW"[3 - self.ndim:]) if self.ndim else "..."
            raise self.wrong_input(x.shape, f"(N, C, {sizes})" if self.layout == "NCHW" else f"(N, {sizes}, C)")
        return x

    def __call__(self, x: Any) -> np.ndarray:
        """The output."""
        x = self._checked(x)
        try:
            return _function(self.name)(x, *self.values, **self.options)
        except ValueError as error:
            raise ValueError(f"{self!r}: x of shape {x.shape}: {error}") from None

    def forward(self, x: Any) -> tuple[np.ndarray, Backprop]:
        """The output and the function of its gradient."""
        x = self._checked(x)
        y = self(x)
        input_shape, shape, dtype = x.shape, y.shape, y.dtype
        backward = _function(f"{self.name}_backward")

        def backprop(gy: Any) -> np.ndarray:
            return backward(self.as_gradient(gy, shape, dtype), input_shape, *self._backward_values(), **self.options)

        return y, backprop

    def _backward_values(self) -> tuple[Any, ...]:
        return self.values


class _Maxima(_Pool):
    """A pooling whose forward pass keeps where the maxima are, in a byte each where that is enough."""

    def _geometry(self) -> tuple[Any, ...]:
        raise NotImplementedError

    def forward(self, x: Any) -> tuple[np.ndarray, Backprop]:
        """The output and the function of its gradient."""
        x = contiguous(self._checked(x))
        ndim, shape, geometry = self.ndim or x.ndim - 2, x.shape, self._geometry()
        try:
            y, kept = maxima(ndim, x, geometry)
        except ValueError as error:
            raise ValueError(f"{self!r}: x of shape {x.shape}: {error}") from None
        result_shape, dtype = y.shape, y.dtype

        def backprop(gy: Any) -> np.ndarray:
            return kept_gradient(ndim, self.as_gradient(gy, result_shape, dtype), shape, kept, geometry)

        return y, backprop


class _MaxPool(_Maxima):
    def __init__(self, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, *, ceil_mode: bool = False,
                 layout: str = "NCHW"):
        super().__init__((kernel_size,), {"stride": stride, "padding": padding, "dilation": dilation, "ceil_mode": ceil_mode}, layout)

    def _geometry(self) -> tuple[Any, ...]:
        return sliding(*self.values, *_sliding_options(self.options))


def _sliding_options(options: dict[str, Any]) -> list[Any]:
    return [options[name] for name in ("stride", "padding", "dilation", "ceil_mode", "layout")]


class _AvgPool(_Pool):
    def __init__(self, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False, count_include_pad: bool = True,
                 divisor_override: int | None = None, *, dilation: Any = 1, layout: str = "NCHW"):
        super().__init__((kernel_size,), {"stride": stride, "padding": padding, "dilation": dilation, "ceil_mode": ceil_mode,
                                          "count_include_pad": count_include_pad, "divisor_override": divisor_override}, layout)


class _LPPool(_Pool):
    def __init__(self, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False, *, padding: Any = 0,
                 dilation: Any = 1, layout: str = "NCHW"):
        super().__init__((norm_type, kernel_size), {"stride": stride, "padding": padding, "dilation": dilation, "ceil_mode": ceil_mode},
                         layout)

    def forward(self, x: Any) -> tuple[np.ndarray, Backprop]:
        """The output and the function of its gradient."""
        x = self._checked(x)
        y, geometry = self(x), sliding(self.values[1], *_sliding_options(self.options))
        shape, dtype = y.shape, y.dtype

        def backprop(gy: Any) -> np.ndarray:
            return norm_gradient(self.ndim, self.as_gradient(gy, shape, dtype), x, y, self.values[0], "torch", geometry)

        return y, backprop


class _Adaptive(_Pool):
    def __init__(self, output_size: Any, *, layout: str = "NCHW"):
        super().__init__((output_size,), {}, layout)

    def _backward_values(self) -> tuple[Any, ...]:
        return ()  # the gradient's shape tells the output's


class _AdaptiveMax(_Maxima):
    def __init__(self, output_size: Any, *, layout: str = "NCHW"):
        super().__init__((output_size,), {}, layout)

    def _geometry(self) -> tuple[Any, ...]:
        return adaptive(self.values[0], self.layout)


class GlobalAvgPool(_Pool):
    """The mean of each channel; its spatial axes stay, as 1.

    Parameters
    ----------
    layout : {"NCHW", "NHWC"}
        Whether channels are the second axis or the last.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> nn.GlobalAvgPool()(np.ones((2, 3, 5, 5))).shape
    (2, 3, 1, 1)
    """

    name = "global_avg_pool"

    def __init__(self, *, layout: str = "NCHW"):
        super().__init__((), {}, layout)


class GlobalMaxPool(_Maxima):
    """The largest value of each channel; its spatial axes stay, as 1.

    Parameters
    ----------
    layout : {"NCHW", "NHWC"}
        Whether channels are the second axis or the last.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> nn.GlobalMaxPool()(np.ones((2, 3, 5, 5))).shape
    (2, 3, 1, 1)
    """

    name = "global_max_pool"

    def __init__(self, *, layout: str = "NCHW"):
        super().__init__((), {}, layout)

    def _geometry(self) -> tuple[Any, ...]:
        return adaptive(1, self.layout)


_DOC = """
    Parameters
    ----------
    {arguments}
        As in `fastconv.{function}`.
    layout : {{"NCHW", "NHWC"}}
        Whether channels are the second axis or the last.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> y, backprop = nn.{name}({values}).forward(np.ones({shape}))
    >>> y.shape, backprop(np.ones_like(y)).shape
    ({result}, {shape})
    """


def _values(kind: str, ndim: int) -> dict[str, str]:
    function = {"Max": "max_pool", "Avg": "avg_pool", "LP": "lp_pool", "AdaptiveAvg": "adaptive_avg_pool",
                "AdaptiveMax": "adaptive_max_pool"}[kind]
    arguments = {"Max": "kernel_size, stride, padding, dilation, ceil_mode",
                 "Avg": "kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, dilation",
                 "LP": "norm_type, kernel_size, stride, ceil_mode, padding, dilation"}.get(kind, "output_size")
    return {"name": f"{kind}Pool{ndim}d", "function": f"{function}{ndim}d", "arguments": arguments,
            "values": "2, 2" if kind == "LP" else "2" if "Adaptive" not in kind else "3", "shape": "(1, 2" + ", 6" * ndim + ")",
            "result": "(1, 2" + ", 3" * ndim + ")"}


@documented(_DOC, **_values("Max", 1))
class MaxPool1d(_MaxPool):
    """The largest value of each window, in 1-D."""

    ndim, name = 1, "max_pool1d"


@documented(_DOC, **_values("Max", 2))
class MaxPool2d(_MaxPool):
    """The largest value of each window, in 2-D."""

    ndim, name = 2, "max_pool2d"


@documented(_DOC, **_values("Max", 3))
class MaxPool3d(_MaxPool):
    """The largest value of each window, in 3-D."""

    ndim, name = 3, "max_pool3d"


@documented(_DOC, **_values("Avg", 1))
class AvgPool1d(_AvgPool):
    """The mean of each window, in 1-D."""

    ndim, name = 1, "avg_pool1d"


@documented(_DOC, **_values("Avg", 2))
class AvgPool2d(_AvgPool):
    """The mean of each window, in 2-D."""

    ndim, name = 2, "avg_pool2d"


@documented(_DOC, **_values("Avg", 3))
class AvgPool3d(_AvgPool):
    """The mean of each window, in 3-D."""

    ndim, name = 3, "avg_pool3d"


@documented(_DOC, **_values("LP", 1))
class LPPool1d(_LPPool):
    """The norm (sum of |x|^p)^(1/p) of each window, in 1-D."""

    ndim, name = 1, "lp_pool1d"


@documented(_DOC, **_values("LP", 2))
class LPPool2d(_LPPool):
    """The norm (sum of |x|^p)^(1/p) of each window, in 2-D."""

    ndim, name = 2, "lp_pool2d"


@documented(_DOC, **_values("LP", 3))
class LPPool3d(_LPPool):
    """The norm (sum of |x|^p)^(1/p) of each window, in 3-D."""

    ndim, name = 3, "lp_pool3d"


@documented(_DOC, **_values("AdaptiveAvg", 1))
class AdaptiveAvgPool1d(_Adaptive):
    """Means of windows that share the input out, in 1-D."""

    ndim, name = 1, "adaptive_avg_pool1d"


@documented(_DOC, **_values("AdaptiveAvg", 2))
class AdaptiveAvgPool2d(_Adaptive):
    """Means of windows that share the input out, in 2-D."""

    ndim, name = 2, "adaptive_avg_pool2d"


@documented(_DOC, **_values("AdaptiveAvg", 3))
class AdaptiveAvgPool3d(_Adaptive):
    """Means of windows that share the input out, in 3-D."""

    ndim, name = 3, "adaptive_avg_pool3d"


@documented(_DOC, **_values("AdaptiveMax", 1))
class AdaptiveMaxPool1d(_AdaptiveMax):
    """Largest values of windows that share the input out, in 1-D."""

    ndim, name = 1, "adaptive_max_pool1d"


@documented(_DOC, **_values("AdaptiveMax", 2))
class AdaptiveMaxPool2d(_AdaptiveMax):
    """Largest values of windows that share the input out, in 2-D."""

    ndim, name = 2, "adaptive_max_pool2d"


@documented(_DOC, **_values("AdaptiveMax", 3))
class AdaptiveMaxPool3d(_AdaptiveMax):
    """Largest values of windows that share the input out, in 3-D."""

    ndim, name = 3, "adaptive_max_pool3d"
