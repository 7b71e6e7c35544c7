"""What every pooling does with its arguments: check -> kernel -> run. A kernel is bound to its windows once and remembered."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ._arrays import as_array, as_operand, check_out
from ._calls import CALLS_KEPT, FLOAT32, READY_FLAGS, check_shape, frozen, shape_of
from ._checks import check_name
from ._device import as_device_array, is_device_array
from ._pools_on_device import max_gradient_on_device, mean_gradient_on_device, pool_on_device, view_of
from ._windows import Windows
from .backends._scratch import empty

if TYPE_CHECKING:
    from .backends._simd import BoundKernel

__all__ = ["adaptive", "as_places", "check_gradient", "kept_gradient", "max_gradient", "maxima", "mean_gradient", "norm_gradient",
           "norms", "pool", "pool_with_places", "scattered", "sliding", "taken", "windows_of"]

INT64 = np.dtype(np.int64)
COMPUTED = {name: name for name in ("float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")}
COMPUTED |= {"float16": "float32", "bool": "uint8"}

# How windows lie, as part of a key: ("sliding", kernel_size, stride, padding, dilation, ceil_mode, layout) or
# ("adaptive", output_size, layout).
Geometry = tuple[Any, ...]


def sliding(kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: Any, layout: Any) -> Geometry:
    """The key of windows of one size."""
    if not (type(kernel_size) is int and stride is None and type(padding) is type(dilation) is int):
        kernel_size, stride = frozen(kernel_size, "kernel_size"), frozen(stride, "stride")
        padding, dilation = frozen(padding, "padding"), frozen(dilation, "dilation")
    return "sliding", kernel_size, stride, padding, dilation, ceil_mode, layout


def adaptive(output_size: Any, layout: Any) -> Geometry:
    """The key of windows that share the input out."""
    return "adaptive", frozen(output_size, "output_size"), layout


@functools.lru_cache(maxsize=CALLS_KEPT, typed=True)
def windows_of(ndim: int, shape: tuple[int, ...], kind: str, *options: Any, name: str = "x") -> Windows:
    """The windows of a geometry over an input of a shape."""
    make: Any = Windows.create if kind == "sliding" else Windows.create_adaptive
    return make(ndim, shape, *options, name=name)


def is_ready(array: Any, dtype: np.dtype) -> bool:
    """Whether kernels take an argument as it stands."""
    return type(array) is np.ndarray and array.dtype is dtype and array.flags.num & READY_FLAGS == READY_FLAGS


# -- kernels, remembered --------------------------------------------------------------------------------------------------


class Ready:
    """A kernel with the shape and the type of its result: allocate and run."""

    def __init__(self, kernel: BoundKernel | None, shape: tuple[int, ...], dtype: str, source: tuple[int, ...] = (),
                 places: Any = np.int64):
        self._kernel, self.shape, self.dtype = kernel, shape, np.dtype(dtype)
        self.source = source  # shape of the first operand
        self.places = np.dtype(places)  # type of the places of maxima
        self._unused = np.empty(1, dtype)

    def __call__(self, x: np.ndarray, w: np.ndarray | None = None, out: np.ndarray | None = None,
                 third: np.ndarray | None = None) -> np.ndarray:
        """`w` is the kernel's second operand, `third` the next; only their memory counts."""
        y = empty(self.shape, self.dtype) if out is None else out
        unused = self._unused
        if self._kernel is not None and self._kernel(x, unused if w is None else w, unused if third is None else third, y):
            raise ValueError("indices must lie in the plane, or for flat_indices=True in the array, that was pooled")
        return y


@functools.lru_cache(maxsize=CALLS_KEPT, typed=True)
def _forward(kind: str, ndim: int, shape: tuple[int, ...], dtype: np.dtype, extra: tuple[Any, ...], *geometry: Any) -> Ready | None:
    """The kernel of a forward pass; None for a dtype that no kernel takes as it is.

    `extra` is (include_pad, override) of a "mean" or of a "root" of a mean of squares, (flat,) of "places"; "kept" are the maxima
    with their taps, or with their places where a window has too many taps.
    """
    name = dtype.name
    if not dtype.isnative or COMPUTED.get(name) != name or (kind != "max" and kind != "places" and dtype.kind != "f"):
        return None
    windows = windows_of(ndim, shape, *geometry)
    if math.prod(windows.output_shape) == 0:
        return Ready(None, windows.output_shape, name)
    from .backends import _pooling_plans as plans

    if kind == "max":
        kernel = plans.bind_max(windows, name)
    elif kind == "kept" and plans.has_taps(windows):
        return Ready(plans.bind_taps(windows, name), windows.output_shape, name, places=np.uint8)
    elif kind in ("kept", "places"):
        kernel = plans.bind_places(windows, name, *(extra or (False,)))
    else:
        kernel = plans.bind_mean(windows, name, _divisors(windows, *extra), kind == "root")
    return Ready(kernel, windows.output_shape, name)


def _divisors(windows: Windows, include_pad: bool, override: Any) -> Any:
    """Divisors of an average; `override` may be a number, or "sum" or "scaled": a sum as such, or scaled up to a whole window."""
    from .backends._pooling_plans import divisors_of

    if override == "sum":
        return divisors_of(windows, include_pad, 1)
    if override == "scaled":
        counts = divisors_of(windows, include_pad)
        return tuple(count / k for count, k in zip(counts, windows.kernel_size, strict=True))
    return divisors_of(windows, include_pad, override)


@functools.lru_cache(maxsize=CALLS_KEPT, typed=True)
def _backward(kind: str, ndim: int, shape: tuple[int, ...], dtype: np.dtype, extra: tuple[Any, ...], *geometry: Any) -> Ready:
    """The kernel of a gradient: of a "mean" or a "root", of maxima with "taps" or with "places"."""
    windows = windows_of(ndim, shape, *geometry, name="input_shape" if kind == "mean" else "x")
    if 0 in (math.prod(windows.input_shape), math.prod(windows.output_shape)):
        return Ready(None, windows.input_shape, dtype.name, (-1,))
    from .backends import _pooling_plans as plans

    if kind in ("mean", "root"):
        kernel = plans.bind_mean_gradient(windows, dtype.name, _divisors(windows, *extra), rooted=kind == "root")
    elif kind == "taps":
        kernel = plans.bind_tap_gradient(windows, dtype.name)
    else:
        kernel = plans.bind_scatter(windows, dtype.name, flat=extra[0], adding=True)
    return Ready(kernel, windows.input_shape, dtype.name, windows.output_shape)


# -- forward --------------------------------------------------------------------------------------------------------------


def pool(kind: str, ndim: int, x: Any, extra: tuple[Any, ...], geometry: Geometry, out: Any = None) -> np.ndarray:
    """The maxima or averages of the windows of x; `kind` is "max", "mean" or "root"."""
    if out is None and type(x) is np.ndarray and x.flags.num & READY_FLAGS == READY_FLAGS:
        ready = _forward(kind, ndim, x.shape, x.dtype, extra, *geometry)
        if ready is not None:
            return ready(x)
    x = as_array("x", x)
    if is_device_array(x):
        return _pool_there(kind, ndim, x, (False,) if kind == "max" else extra, geometry, out)
    if x.dtype.kind == "c" and kind == "mean":
        result = pool(kind, ndim, x.real, extra, geometry) + 1j * pool(kind, ndim, x.imag, extra, geometry)
        return _deliver(result, result.astype(x.dtype.newbyteorder("="), copy=False).dtype, out)
    computed, result_dtype = _dtypes("x", x.dtype, averaged=kind != "max")
    ready = _forward(kind, ndim, x.shape, computed, extra, *geometry)
    assert ready is not None
    if out is not None:
        check_out(out, ready.shape, result_dtype)
    direct = out is not None and out.dtype == computed and out.flags.num & READY_FLAGS == READY_FLAGS and not np.may_share_memory(out, x)
    y = ready(as_operand(x, computed, x.shape), None, out if direct else None)
    return _deliver(y, result_dtype, out)


def _pool_there(kind: str, ndim: int, x: Any, extra: tuple[Any, ...], geometry: Geometry, out: Any) -> Any:
    """A pooling of a GPU's array, on the GPU."""
    view = as_device_array("x", x)
    return pool_on_device(kind, windows_of(ndim, view.shape, *geometry), x, *_dtypes("x", view.dtype, averaged=kind == "mean"), extra, out)


def _deliver(y: np.ndarray, dtype: np.dtype, out: Any) -> np.ndarray:
    """The result in its type, in `out` if that is given."""
    if out is None:
        return y.view(bool) if dtype.kind == "b" else y.astype(dtype, copy=False)
    if y is not out:
        check_out(out, y.shape, dtype)
        out[...] = y
    return out


def _dtypes(name: str, dtype: np.dtype, averaged: bool) -> tuple[np.dtype, np.dtype]:
    """The types that an array is pooled in, and that the result has: averages of integers are float64."""
    computed = COMPUTED.get(dtype.name)
    if computed is None:
        what = "averaged" if averaged else "compared"
        raise TypeError(f"{name} of type {dtype} cannot be {what}; supported: {', '.join(COMPUTED)}")
    if averaged and dtype.kind != "f":
        return np.dtype(np.float64), np.dtype(np.float64)
    return np.dtype(computed), dtype.newbyteorder("=")


def pool_with_places(ndim: int, x: Any, flat: bool, geometry: Geometry, out: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """The maxima of the windows of x, and where they are."""
    x = as_array("x", x)
    if is_device_array(x):
        return _pool_there("places", ndim, x, (bool(flat),), geometry, out)
    computed, result_dtype = _dtypes("x", x.dtype, averaged=False)
    ready = _forward("places", ndim, x.shape, computed, (bool(flat),), *geometry)
    assert ready is not None
    if out is not None:
        check_out(out, ready.shape, result_dtype)
    places = np.empty(ready.shape, np.int64)
    y = ready(as_operand(x, computed, x.shape), places.reshape(-1).view(computed))
    return _deliver(y, result_dtype, out), places


# -- backward -------------------------------------------------------------------------------------------------------------


def check_gradient(gy: Any, *others: np.ndarray) -> tuple[np.ndarray, np.dtype, np.dtype]:
    """Gy as an array, and the types that a gradient is computed in and that it has."""
    gy = as_array("gy", gy)
    dtype = np.result_type(*(view_of("gy", a).dtype if is_device_array(a) else a for a in (gy, *others)))
    if dtype.kind in "biu":
        dtype = np.dtype(np.float64)
    if dtype.name not in COMPUTED:
        raise TypeError(f"gy of type {gy.dtype} cannot be the gradient of a pooling of floats")
    return gy, np.dtype(COMPUTED[dtype.name]), dtype.newbyteorder("=")


def mean_gradient(ndim: int, gy: Any, shape: Any, extra: tuple[Any, ...], geometry: Geometry) -> np.ndarray:
    """The gradient of a "mean" of an input of a shape."""
    if type(shape) is tuple and is_ready(gy, FLOAT32):
        known = _backward("mean", ndim, shape, FLOAT32, extra, *geometry)
        if known.source == gy.shape:
            return known(gy)
    shape = shape_of("input_shape", shape)
    gy = as_array("gy", gy)
    if is_device_array(gy):
        windows = windows_of(ndim, shape, *geometry, name="input_shape")
        check_shape("gy", tuple(gy.shape), windows.output_shape)
        return mean_gradient_on_device(windows, gy, *check_gradient(gy)[1:], extra)
    if gy.dtype.kind == "c":
        parts = [mean_gradient(ndim, part, shape, extra, geometry) for part in (gy.real, gy.imag)]
        return parts[0] + 1j * parts[1]
    gy, computed, dtype = check_gradient(gy)
    check_shape("gy", gy.shape, windows_of(ndim, shape, *geometry, name="input_shape").output_shape)
    ready = _backward("mean", ndim, shape, computed, extra, *geometry)
    return _filled(ready, gy, computed).astype(dtype, copy=False)


def max_gradient(ndim: int, gy: Any, x: Any, places: Any, flat: bool, geometry: Geometry) -> np.ndarray:
    """The gradient of a "max"; the places are found again where they are not given."""
    x = as_array("x", x)
    gy, computed, dtype = check_gradient(gy, x)
    windows = windows_of(ndim, tuple(x.shape), *geometry)
    shape = windows.output_shape
    check_shape("gy", tuple(gy.shape), shape)
    if is_device_array(gy) or is_device_array(x):
        if places is not None:
            check_shape("indices", tuple(places.shape), shape)
        return max_gradient_on_device(windows, gy, x, places, computed, dtype, bool(flat))
    if places is None:
        _, kept = maxima(ndim, as_operand(x, computed, x.shape), geometry)
        return kept_gradient(ndim, as_operand(gy, computed, gy.shape), x.shape, kept, geometry).astype(dtype, copy=False)
    ready = _backward("places", ndim, x.shape, computed, (bool(flat),), *geometry)
    return _filled(ready, gy, computed, as_places(places, shape).view(computed)).astype(dtype, copy=False)


def maxima(ndim: int, x: np.ndarray, geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """The maxima of the windows of x, contiguous floats, and what `kept_gradient` has to know of where they are."""
    ready = _forward("kept", ndim, x.shape, x.dtype, (), *geometry)
    assert ready is not None
    kept = np.empty(math.prod(ready.shape), ready.places)
    return ready(x, kept), kept


def kept_gradient(ndim: int, gy: np.ndarray, shape: tuple[int, ...], kept: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The gradient of `maxima` of an input of a shape."""
    kind, extra = ("taps", ()) if kept.dtype != INT64 else ("places", (False,))
    return _filled(_backward(kind, ndim, shape, gy.dtype, extra, *geometry), gy, gy.dtype, kept)


def as_places(indices: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The argument `indices`, flat, of the shape of what was pooled."""
    indices = as_array("indices", indices)
    if indices.dtype.kind not in "iu":
        raise TypeError(f"indices must be integers, got dtype {indices.dtype}")
    check_shape("indices", indices.shape, shape)
    return as_operand(indices, INT64, (indices.size,))


def _filled(ready: Ready, gy: np.ndarray, computed: np.dtype, w: np.ndarray | None = None, third: np.ndarray | None = None) -> np.ndarray:
    if gy.size == 0:
        return np.zeros(ready.shape, ready.dtype)
    return ready(as_operand(gy, computed, gy.shape), w, None, third)


def _of_numpy(name: str, value: Any) -> np.ndarray:
    """An operand of what is computed by the processor only."""
    if is_device_array(value):
        raise TypeError(f"{name} must be an array of NumPy's: norms and unpoolings are not computed on a GPU")
    return as_array(name, value)


# -- norms ---------------------------------------------------------------------------------------------------------------


def _power(norm_type: Any, convention: Any) -> tuple[float, tuple[bool, str]]:
    """The exponent, and the extra of the mean that a norm comes from."""
    check_name("convention", convention, ("torch", "onnx"))
    try:
        p = float(norm_type)
    except (TypeError, ValueError):
        raise TypeError(f"norm_type must be a number, got {norm_type!r}") from None
    if not 0 < p < math.inf:
        raise ValueError(f"norm_type must be positive and finite, got {norm_type!r}")
    return p, (True, "scaled" if convention == "torch" else "sum")


def norms(ndim: int, x: Any, norm_type: Any, convention: Any, geometry: Geometry, out: Any = None) -> np.ndarray:
    """The norms of the windows of x."""
    p, extra = _power(norm_type, convention)
    x = _of_numpy("x", x)
    if p == 2 and x.dtype.kind != "c":
        return pool("root", ndim, x, extra, geometry, out)
    if x.dtype.kind == "c":
        raise TypeError(f"x of type {x.dtype} has no lp pooling: take its magnitude")
    x = x.astype(np.float64) if x.dtype.kind != "f" else x.astype(np.float32) if x.dtype == np.float16 else x
    with np.errstate(all="ignore"):
        y = pool("mean", ndim, (np.abs(x) if convention == "onnx" else x) ** p, extra, geometry) ** (1 / p)
    return _deliver(y, y.dtype, out)


def norm_gradient(ndim: int, gy: Any, x: Any, y: Any, norm_type: Any, convention: Any, geometry: Geometry) -> np.ndarray:
    """The gradient of the norms y of the windows of x; they are taken again where they are not given."""
    p, extra = _power(norm_type, convention)
    if p == 2 and is_ready(x, FLOAT32) and is_ready(y, FLOAT32) and is_ready(gy, FLOAT32):
        known = _backward("root", ndim, x.shape, FLOAT32, extra, *geometry)
        if known.source == gy.shape == y.shape:
            return known(gy, y, None, x)
    x = _of_numpy("x", x)
    y = norms(ndim, x, norm_type, convention, geometry) if y is None else y
    if p == 2:
        return _root_gradient(ndim, gy, x, y, extra, geometry)
    gy = as_array("gy", gy)
    check_shape("gy", gy.shape, y.shape)
    with np.errstate(all="ignore"):
        weighted = np.where(y == 0, 0, gy * y ** (1 - p))
        slope = np.sign(x) * np.abs(x) ** (p - 1) if convention == "onnx" else x.astype(y.dtype) ** (p - 1)
        slope = np.where(x == 0, 0, slope) if p < 1 else slope
        return mean_gradient(ndim, weighted, x.shape, extra, geometry) * slope


def _root_gradient(ndim: int, gy: Any, x: np.ndarray, y: np.ndarray, extra: tuple[Any, ...], geometry: Geometry) -> np.ndarray:
    gy, computed, dtype = check_gradient(gy, x)
    check_shape("gy", gy.shape, y.shape)
    ready = _backward("root", ndim, x.shape, computed, extra, *geometry)
    return _filled(ready, gy, computed, as_operand(y, computed, y.shape), as_operand(x, computed, x.shape)).astype(dtype, copy=False)


# -- unpooling ------------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=CALLS_KEPT, typed=True)
def _moved(kind: str, windows: Windows, dtype: str, flat: bool) -> Ready:
    """The kernel that scatters values to places, or takes them from there."""
    from .backends import _pooling_plans as plans

    shape = windows.input_shape if kind == "scatter" else windows.output_shape
    if 0 in (math.prod(windows.input_shape), math.prod(windows.output_shape)):
        return Ready(None, shape, dtype)
    kernel = plans.bind_scatter(windows, dtype, flat, False) if kind == "scatter" else plans.bind_gather(windows, dtype, flat)
    return Ready(kernel, shape, dtype)


def scattered(x: Any, indices: Any, windows: Windows, flat: bool) -> np.ndarray:
    """Zeros of the windows' input but for x at the indices."""
    return _move("x", "scatter", x, indices, windows, flat)


def taken(gy: Any, indices: Any, windows: Windows, flat: bool) -> np.ndarray:
    """The elements of gy at the indices."""
    return _move("gy", "gather", gy, indices, windows, flat)


def _move(name: str, kind: str, values: Any, indices: Any, windows: Windows, flat: bool) -> np.ndarray:
    values = _of_numpy(name, values)
    computed, dtype = _dtypes(name, values.dtype, averaged=False)
    check_shape(name, values.shape, windows.output_shape if kind == "scatter" else windows.input_shape)
    places = as_places(indices, windows.output_shape)
    ready = _moved(kind, windows, computed.name, bool(flat))
    if values.size == 0:
        return np.zeros(ready.shape, dtype)
    return _deliver(ready(as_operand(values, computed, values.shape), places.view(computed)), dtype, None)
