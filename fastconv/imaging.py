"""Named image filters, and reading, filtering and writing an image: what `fastconv filter` does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import fastconv as fc

__all__ = ["FILTERS", "filter_image", "filter_kernel", "read_image", "write_image"]

PILLOW_HINT = "reading and writing images other than .npy needs Pillow: pip install pillow"


class MissingPillowError(OSError):
    """Pillow is not installed."""


# -- kernels ------------------------------------------------------------------------------------------------------------


def gaussian(size: int = 9, sigma: float | None = None) -> np.ndarray:
    """Gaussian exp(-r^2 / (2 sigma^2)), sum 1; sigma is size / 6 unless given, which leaves three of them on each side."""
    offset = np.arange(size) - (size - 1) / 2
    line = np.exp(-0.5 * (offset / (size / 6 if sigma is None else sigma)) ** 2)
    kernel = np.outer(line, line)
    return kernel / kernel.sum()


def box(size: int = 3) -> np.ndarray:
    """Mean of size x size pixels."""
    return np.full((size, size), 1 / size**2)


def motion(size: int = 15, angle: float = 30.0) -> np.ndarray:
    """Blur along a line of length size at `angle` degrees from the horizontal, anti-aliased, sum 1."""
    offset = np.arange(size) - (size - 1) / 2
    right, up = np.meshgrid(offset, -offset)
    direction = np.deg2rad(angle)
    along = right * np.cos(direction) + up * np.sin(direction)
    across = up * np.cos(direction) - right * np.sin(direction)
    kernel = np.clip(1 - np.abs(across), 0, 1) * np.clip(size / 2 - np.abs(along), 0, 1)
    return kernel / kernel.sum()


def gabor(size: int, wavelength: float, angle: float) -> np.ndarray:
    """Gabor wavelet: a cosine of `wavelength` pixels at `angle` degrees under a Gaussian of sigma = size / 6."""
    offset = np.arange(size) - (size - 1) / 2
    right, up = np.meshgrid(offset, -offset)
    direction = np.deg2rad(angle)
    wave = np.cos(2 * np.pi / wavelength * (right * np.cos(direction) + up * np.sin(direction)))
    kernel = wave * gaussian(size)
    return kernel / np.abs(kernel).sum()


def _fixed(rows: list[list[float]]) -> Callable[[], np.ndarray]:
    return lambda: np.array(rows, dtype=np.float64)


# Correlation kernels: the upper left entry multiplies the pixel above and to the left.
FILTERS: dict[str, Callable[..., np.ndarray]] = {
    "gaussian": gaussian,
    "box": box,
    "sharpen": _fixed([[0, -1, 0], [-1, 5, -1], [0, -1, 0]]),
    "sobel-x": _fixed([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]),
    "sobel-y": _fixed([[-1, -2, -1], [0, 0, 0], [1, 2, 1]]),
    "laplacian": _fixed([[0, 1, 0], [1, -4, 1], [0, 1, 0]]),
    "emboss": _fixed([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]),
    "motion": motion,
}
PARAMETERS = {"gaussian": ("size", "sigma"), "box": ("size",), "motion": ("size", "angle")}


def filter_kernel(name: str, **parameters: Any) -> np.ndarray:
    """The float64 kernel (kh, kw) of a named filter or of a .npy file.

    Parameters
    ----------
    name : str
        A key of `FILTERS`, or the path of a .npy file with a two-dimensional array.
    **parameters
        `size`, `sigma` and `angle`; None stands for the filter's own default.

    Raises
    ------
    ValueError
        If there is no such filter, it has no such parameter, or the file holds no two-dimensional real array.
    """
    given = {key: value for key, value in parameters.items() if value is not None}
    if unknown := [key for key in given if key not in PARAMETERS.get(name, ())]:
        raise ValueError(f"--{unknown[0]} does not apply to --kernel {name}")
    if name in FILTERS:
        return FILTERS[name](**given)
    if not name.endswith(".npy"):
        raise ValueError(f"kernel must be one of {', '.join(FILTERS)} or a .npy file, got {name!r}")
    kernel = _load_array(name)
    if kernel.ndim != 2 or kernel.dtype.kind not in "fiub" or kernel.size == 0:
        raise ValueError(f"{name} must hold a two-dimensional array of real numbers, got {kernel.dtype} of shape {kernel.shape}")
    return kernel.astype(np.float64)


# -- filtering ----------------------------------------------------------------------------------------------------------


def filter_image(image: np.ndarray, kernel: np.ndarray, mode: str = "reflect", absolute: bool = False) -> np.ndarray:
    """Correlate every colour channel of an image with a kernel; the result has the image's shape and dtype.

    Integer images are rounded and clipped to the range of their dtype. The last of two or four channels is
    transparency and stays as it is.

    Parameters
    ----------
    image : ndarray, (H, W) or (H, W, channels)
        Real numbers.
    kernel : ndarray, (kh, kw)
        Real numbers.
    mode : str
        The border: `padding_mode` of `fastconv.conv2d`.
    absolute : bool
        Take the absolute value before clipping, which shows edges of both signs.

    Returns
    -------
    ndarray
        Shape and dtype of `image`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv.imaging import filter_image, filter_kernel
    >>> filter_image(np.full((4, 4), 7, dtype=np.uint8), filter_kernel("box"))[0]
    array([7, 7, 7, 7], dtype=uint8)
    """
    if image.ndim not in (2, 3) or image.dtype.kind not in "fiu":
        raise ValueError(f"an image has real pixels and shape (H, W) or (H, W, channels), "
                         f"got {image.dtype} of shape {image.shape}")
    pixels = image[..., None] if image.ndim == 2 else image
    colours = pixels.shape[2] - (pixels.shape[2] in (2, 4))
    # float32 holds 8- and 16-bit values exactly; wider integers and doubles are filtered in float64.
    working = np.float32 if image.dtype.itemsize <= 2 or image.dtype == np.float32 else np.float64
    planes = np.ascontiguousarray(pixels[..., :colours].transpose(2, 0, 1), dtype=working)[:, None]
    filtered = fc.conv2d(planes, kernel.astype(working)[None, None], padding="same", padding_mode=mode)
    if absolute:
        filtered = np.abs(filtered)
    result = pixels.copy()
    result[..., :colours] = _to_dtype(filtered[:, 0].transpose(1, 2, 0), image.dtype)
    return result.reshape(image.shape)


def _to_dtype(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if dtype.kind == "f":
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(values), limits.min, limits.max).astype(dtype)


# -- files --------------------------------------------------------------------------------------------------------------


def read_image(path: str | Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Pixels of an image file, (H, W) or (H, W, channels), and what to hand to `write_image` along with them."""
    if Path(path).suffix.lower() == ".npy":
        return _load_array(path), {}
    image_module, operations = _pillow()
    with image_module.open(path) as file:
        image = operations.exif_transpose(file)
        if image.mode not in ("L", "LA", "RGB", "RGBA", "I", "I;16", "F"):
            transparent = "transparency" in image.info or image.mode in ("PA", "La", "RGBa")
            image = image.convert("L" if image.mode == "1" else "RGBA" if transparent else "RGB")
        profile = image.info.get("icc_profile")
        return np.asarray(image), {"icc_profile": profile} if profile else {}


def write_image(path: str | Path, image: np.ndarray, details: dict[str, Any]) -> None:
    """Write pixels as .npy or, through Pillow, in the format of the path's extension."""
    if Path(path).suffix.lower() == ".npy":
        np.save(path, image)
        return
    try:
        picture = _pillow()[0].fromarray(image)
    except TypeError:
        raise ValueError(f"an image of type {image.dtype} and shape {image.shape} cannot be written as {path}: "
                         "use a .npy file") from None
    picture.save(path, **details)


def _load_array(path: str | Path) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError):
        raise ValueError(f"{path} is not a .npy file with an array of numbers") from None
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path} is not a .npy file with an array of numbers")
    return array


def _pillow() -> tuple[Any, Any]:
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise MissingPillowError(PILLOW_HINT) from None
    return Image, ImageOps
