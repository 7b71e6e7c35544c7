"""Poolings of a GPU's arrays: they stay there, and results are of the same library, on its stream."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ._device import DeviceArray, as_device_array, empty_like, is_device_array
from ._device_calls import Operands, result_array
from ._windows import Windows

__all__ = ["max_gradient_on_device", "mean_gradient_on_device", "pool_on_device", "view_of"]

KERNELS_KEPT = 256
BYTE, INT64 = np.dtype(np.uint8), np.dtype(np.int64)


def view_of(name: str, array: Any) -> DeviceArray:
    """The view of a GPU's array; truth values as bytes."""
    if not is_device_array(array):
        raise TypeError(f"{name} must be an array of the GPU's, as the other operand is, got {type(array).__name__}")
    view = as_device_array(name, array)
    return view._replace(dtype=BYTE) if view.dtype.kind == "b" else view


@functools.lru_cache(maxsize=KERNELS_KEPT)
def _kernel(kind: str, windows: Windows, dtype: str, extra: tuple[Any, ...]) -> Any:
    """The kernel of a pooling: `extra` is (include_pad, override) of averages, (flat,) of maxima."""
    from .backends._cuda import pooling
    from .backends._pooling_plans import divisors_of

    if kind in ("mean", "mean_gradient"):
        make: Any = pooling.Means if kind == "mean" else pooling.MeanGradient
        return make(windows, dtype, divisors_of(windows, *extra))
    if kind == "max_gradient":
        return pooling.MaxGradient(windows, dtype, *extra)
    return pooling.Maxima(windows, dtype, kind == "places", *extra)


def _run(operands: Operands, target: Any, computed: np.dtype, launch: Callable[[Any], None]) -> None:
    """Have a kernel write its result, in the type that it computes in, and bring it into the target's."""
    view = view_of("out", target)
    if not view.size:
        return
    if view.dtype == computed:
        launch(view.pointer)
        return
    (place,) = operands.scratch((view.size, computed.name))
    launch(place)
    operands.cast(place, view.size, computed, view.dtype, view.pointer)


def pool_on_device(kind: str, windows: Windows, x: Any, computed: np.dtype, result: np.dtype, extra: tuple[Any, ...], out: Any) -> Any:
    """The result of a "mean" or a "max"; of "places" with the places."""
    view = view_of("x", x)
    target = result_array(out, True, view, windows.output_shape, result)
    places = empty_like(view, windows.output_shape, INT64) if kind == "places" else None
    with contextlib.ExitStack() as stack:
        operands = Operands(view.stream, stack)
        source = operands.pointer(view, computed)
        more = () if places is None else (as_device_array("indices", places).pointer,)
        if math.prod(windows.output_shape):
            kernel = _kernel(kind, windows, computed.name, extra)
            _run(operands, target, computed, lambda place: kernel.run(operands.stream, source, place, *more))
    return target if places is None else (target, places)


def mean_gradient_on_device(windows: Windows, gy: Any, computed: np.dtype, result: np.dtype, extra: tuple[Any, ...]) -> Any:
    """The gradient of averages."""
    view = view_of("gy", gy)
    target = empty_like(view, windows.input_shape, result)
    with contextlib.ExitStack() as stack:
        operands = Operands(view.stream, stack)
        gradient = operands.pointer(view, computed)
        if math.prod(windows.input_shape):
            kernel = _kernel("mean_gradient", windows, computed.name, extra)
            _run(operands, target, computed, lambda place: kernel.run(operands.stream, gradient, place))
    return target


def max_gradient_on_device(windows: Windows, gy: Any, x: Any, places: Any, computed: np.dtype, result: np.dtype, flat: bool) -> Any:
    """The gradient of maxima; their places are found again where they are not given."""
    view = view_of("gy", gy)
    target = empty_like(view, windows.input_shape, result)
    count = math.prod(windows.output_shape)
    with contextlib.ExitStack() as stack:
        operands = Operands(view.stream, stack)
        gradient = operands.pointer(view, computed)
        if places is not None:
            found = operands.pointer(view_of("indices", places), INT64)
        elif count:
            flat = False
            found, unused = operands.scratch((count, INT64.name), (count, computed.name))
            source = operands.pointer(view_of("x", x), computed)
            _kernel("places", windows, computed.name, (False,)).run(operands.stream, source, unused, found)
        if math.prod(windows.input_shape):
            kernel = _kernel("max_gradient", windows, computed.name, (flat,))
            _run(operands, target, computed, lambda place: kernel.run(operands.stream, gradient, found, place))
    return target
