"""Padding: how many points on each side of an axis, and which input points stand there."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from ._checks import Size, as_int, as_sequence, check_name

PADDING_MODES = ("zeros", "reflect", "symmetric", "replicate", "circular")
NAMED_PADDINGS = ("valid", "same", "same_lower", "causal")
NUMPY_PAD_MODE = {"reflect": "reflect", "symmetric": "symmetric", "replicate": "edge", "circular": "wrap"}

Pads = tuple[tuple[int, int], ...]


def resolve_padding(value: Any, size: Size, kernel: Size, stride: Size, dilation: Size) -> Pads:
    """(low, high) pads per axis from an integer, one per axis, a pair per axis or a name.

    "same" gives ceil(n / stride) outputs, the odd pad at the end; "same_lower" puts it at the start; "causal" (1-D)
    pads the past only.
    """
    ndim = len(size)
    if isinstance(value, str):
        check_name("padding", value, NAMED_PADDINGS)
        if value == "valid":
            return ((0, 0),) * ndim
        if value == "causal":
            if ndim != 1:
                raise ValueError(f"padding='causal' is for 1-D convolutions, this one is {ndim}-D")
            return ((dilation[0] * (kernel[0] - 1), 0),)
        totals = [max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0) for n, k, s, d in zip(size, kernel, stride, dilation, strict=True)]
        return tuple((t // 2, t - t // 2) if value == "same" else (t - t // 2, t // 2) for t in totals)
    pads = []
    for item in as_sequence("padding", value, ndim):
        pair = as_sequence("padding", item, 2)
        try:
            pads.append((as_int("padding", pair[0], 0), as_int("padding", pair[1], 0)))
        except (TypeError, ValueError) as error:
            raise type(error)(f"padding={value!r}: {error}") from None
    return tuple(pads)


def check_border(mode: str, padding: Pads, size: Size) -> None:
    """Refuse pads that are wider than what the border mode repeats."""
    for axis, (n, pads) in enumerate(zip(size, padding, strict=True)):
        limit = {"reflect": n - 1, "symmetric": n, "circular": n, "replicate": None if n else 0}.get(mode)
        if mode != "zeros" and limit is not None and max(pads) > limit:
            raise ValueError(f"padding {pads} on spatial axis {axis} is larger than padding_mode={mode!r} allows "
                             f"for size {n}: at most {max(limit, 0)}")


@lru_cache(maxsize=512)
def border_source(size: int, low: int, high: int, mode: str) -> np.ndarray:
    """The input index at each of the `low + size + high` positions of a padded axis, int32; -1 is a zero.

    Negative pads crop. The array is shared: it is read-only.
    """
    index = np.arange(-low, size + high, dtype=np.int32)
    if mode == "zeros":
        index[(index < 0) | (index >= size)] = -1
    else:
        line = np.pad(np.arange(size, dtype=np.int32), (max(low, 0), max(high, 0)), mode=NUMPY_PAD_MODE[mode])  # type: ignore[call-overload]
        index = line[max(-low, 0):line.size - max(-high, 0)]
    index.flags.writeable = False
    return index
