"""What the docstrings of the poolings share, and the names of functions made for each rank."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["RANKS", "named"]

RANKS = (1, 2, 3)
_OPTIONS_DOC = """kernel_size : int or sequence of {n} ints
        Points of a window on each axis.
    stride : int or sequence of {n} ints, optional
        Step from window to window; by default their size.
    padding : int, sequence of {n} ints or of {n} (low, high) pairs, or name
        "valid", "same" (ceil(n / stride) outputs, the odd pad at the end), "same_lower" (at the start).
    dilation : int or sequence of {n} ints
        Distance between the points of a window.
    ceil_mode : bool
        Round the number of windows up; one that would start in the padding behind the input is left out, as PyTorch does and
        ONNX from version 19 of its operators on."""
_GRADIENT_DOC = """gy : array_like, shape of the pooling's result
        Gradient with respect to it."""
_POOLED_DOC = """x : array_like, shape (N, C, {s}) or (C, {s})
        The pooling's input."""
_SHAPE_DOC = """input_shape : sequence of ints
        Shape of x."""
_RESULT_DOC = """Returns
    -------
    ndarray, shape (N, C, ...)

    {raises}"""
_LAYOUT_DOC = """layout : {"NCHW", "NHWC"}
        Channels first or last."""
_OUT_DOC = """out : ndarray, optional
        Where to write the result."""
_FLAT_DOC = """flat_indices : bool
        Count indices in the whole array, x.ravel(), as ONNX does, and not in the plane of an image's channel."""
_RAISES_DOC = """Raises
    ------
    ValueError, TypeError
        For wrong arguments, naming them."""


def named(function: Callable, name: str, ndim: int, doc: str) -> Callable:
    """Give a function made by a factory its name and its docstring, in which {n} is the rank and {s} the spatial axes."""
    stem = name.removesuffix("_backward")
    function.__name__ = function.__qualname__ = f"{stem}{ndim}d{name.removeprefix(stem)}"
    sizes = {1: "W", 2: "H, W", 3: "D, H, W"}[ndim]
    values = {"result": _RESULT_DOC, "gy": _GRADIENT_DOC, "pooled": _POOLED_DOC, "shape": _SHAPE_DOC, "options": _OPTIONS_DOC,
              "layout": _LAYOUT_DOC, "out": _OUT_DOC, "flat": _FLAT_DOC, "raises": _RAISES_DOC,
              "n": ndim, "s": sizes,
              **{str(size): "(1, 2" + f", {size}" * ndim + ")" for size in (1, 2, 3, 4, 7, 8)}}
    for key, value in values.items():
        doc = doc.replace("{" + key + "}", str(value))
    function.__doc__ = doc.lstrip()
    return function
