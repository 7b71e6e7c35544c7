"""Images with labels: the embedded digits, and readers of MNIST's and CIFAR's files from a local path. Nothing is downloaded."""

from __future__ import annotations

import gzip
import io
import math
import os
import tarfile
import zlib
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from ._pickled import load_plain

__all__ = ["load_cifar10", "load_cifar100", "load_digits", "load_mnist", "read_idx"]

AnyPath = str | os.PathLike[str]

IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
GZIP_MAGIC = b"\x1f\x8b"
CIFAR_PIXELS = 3 * 32 * 32


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """The 1797 handwritten digits of the UCI Machine Learning Repository that come with the package.

    Returns
    -------
    images : ndarray of float32, shape (1797, 1, 8, 8)
        Grey values from 0 to 1 in steps of 1/16.
    labels : ndarray of int64, shape (1797,)
        The digits.

    Examples
    --------
    >>> import fastconv.nn as nn
    >>> images, labels = nn.load_digits()
    >>> images.shape, images.max(), labels[:5]
    ((1797, 1, 8, 8), np.float32(1.0), array([0, 1, 2, 3, 4]))

    References
    ----------
    Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI Machine Learning Repository (1998),
    https://doi.org/10.24432/C50P49.
    """
    content = (resources.files("fastconv.nn") / "data" / "digits.npz").read_bytes()
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        images, labels = archive["images"], archive["labels"]
    return images[:, None].astype(np.float32) / np.float32(16), labels.astype(np.int64)


# -- MNIST ----------------------------------------------------------------------------------------------------------------


def read_idx(path: AnyPath) -> np.ndarray:
    """The array in an IDX file, compressed by gzip or not.

    Parameters
    ----------
    path : str or path
        A file such as "train-images-idx3-ubyte.gz".

    Returns
    -------
    ndarray
        In the shape and dtype that the file's head tells, in this machine's byte order.

    Raises
    ------
    ValueError
        If the file is truncated, longer than its head tells, or no IDX file.

    Examples
    --------
    >>> import tempfile, pathlib, fastconv.nn as nn
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "labels-idx1-ubyte"
    ...     _ = path.write_bytes(bytes([0, 0, 8, 1]) + bytes([0, 0, 0, 3]) + bytes([5, 0, 4]))
    ...     nn.read_idx(path)
    array([5, 0, 4], dtype=uint8)

    References
    ----------
    Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits": the IDX file format.
    """
    content = _content(Path(path))
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in IDX_TYPES:
        raise ValueError(f"{path} is no IDX file: it must begin with two zeros and the code of a type, "
                         f"got {content[:4].hex(' ') or 'nothing'}")
    dtype, start = np.dtype(IDX_TYPES[content[2]]), 4 + 4 * content[3]
    if len(content) < start:
        raise ValueError(f"{path} is truncated: its head takes {start} bytes, got {len(content)}")
    shape = tuple(int.from_bytes(content[i:i + 4], "big") for i in range(4, start, 4))
    expected = math.prod(shape) * dtype.itemsize
    if len(content) - start != expected:
        kind = "truncated" if len(content) - start < expected else "too long"
        raise ValueError(f"{path} is {kind}: an array of shape {shape} takes {expected} bytes, got {len(content) - start}")
    return np.frombuffer(content, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def load_mnist(folder: AnyPath, *, train: bool = True, dtype: Any = "float32") -> tuple[np.ndarray, np.ndarray]:
    """The images and labels of MNIST, or of a data set in its format such as Fashion-MNIST.

    Parameters
    ----------
    folder : str or path
        Where "train-images-idx3-ubyte", "train-labels-idx1-ubyte" and the two of "t10k" lie, with or without ".gz".
    train : bool
        Whether to read the training images or the test images.
    dtype : {"float32", "float64", "uint8"}
        Of the images: floats from 0 to 1, or the bytes as they are.

    Returns
    -------
    images : ndarray, shape (N, 1, H, W)
    labels : ndarray of int64, shape (N,)

    Raises
    ------
    FileNotFoundError
        If a file is not there; the names that were tried are listed.
    ValueError
        If a file is truncated or none of its kind, or the two files differ in their number of images.

    Examples
    --------
    >>> import tempfile, pathlib, fastconv.nn as nn
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     place = pathlib.Path(folder)
    ...     _ = (place / "t10k-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 2, 0, 255]))
    ...     _ = (place / "t10k-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 1, 7]))
    ...     nn.load_mnist(folder, train=False)
    (array([[[[0., 1.]]]], dtype=float32), array([7]))
    """
    part = "train" if train else "t10k"
    images_path, labels_path = (_one_of(Path(folder), [f"{part}-{kind}{mark}idx{rank}-ubyte{end}" for end in ("", ".gz") for mark in "-."])
                                for kind, rank in (("images", 3), ("labels", 1)))
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.ndim != 3 or images.dtype != np.uint8:
        raise ValueError(f"{images_path} must hold bytes of shape (N, H, W), got {images.dtype} of shape {images.shape}")
    if labels.shape != images.shape[:1] or labels.dtype != np.uint8:
        raise ValueError(f"{labels_path} must hold bytes of shape {images.shape[:1]}, one an image of {images_path.name}, "
                         f"got {labels.dtype} of shape {labels.shape}")
    return _scaled(images[:, None], dtype), labels.astype(np.int64)


# -- CIFAR ----------------------------------------------------------------------------------------------------------------


def load_cifar10(path: AnyPath, *, train: bool = True, dtype: Any = "float32") -> tuple[np.ndarray, np.ndarray]:
    """The images and labels of CIFAR-10, in its version for Python or its binary version.

    Pickles are read without running what they name: a file that is more than arrays, texts and numbers is refused.

    Parameters
    ----------
    path : str or path
        "cifar-10-python.tar.gz" or "cifar-10-binary.tar.gz", or the folder that was unpacked from it.
    train : bool
        Whether to read the five training batches or the test batch.
    dtype : {"float32", "float64", "uint8"}
        Of the images: floats from 0 to 1, or the bytes as they are.

    Returns
    -------
    images : ndarray, shape (N, 3, 32, 32)
    labels : ndarray of int64, shape (N,)

    Raises
    ------
    FileNotFoundError
        If there is no such file, or a batch is not in it.
    ValueError
        If the archive or a batch is truncated or none of its kind.

    Examples
    --------
    >>> import tempfile, pathlib, fastconv.nn as nn
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (pathlib.Path(folder) / "test_batch.bin").write_bytes(bytes([6]) + bytes(3072))
    ...     images, labels = nn.load_cifar10(folder, train=False)
    >>> images.shape, labels
    ((1, 3, 32, 32), array([6]))

    References
    ----------
    A. Krizhevsky, "Learning multiple layers of features from tiny images" (2009), chapter 3.
    """
    names = [f"data_batch_{i}" for i in range(1, 6)] if train else ["test_batch"]
    return _load_cifar(Path(path), names, b"labels", 10, 1, dtype)


def load_cifar100(path: AnyPath, *, train: bool = True, coarse: bool = False, dtype: Any = "float32") -> tuple[np.ndarray, np.ndarray]:
    """The images and labels of CIFAR-100; as `load_cifar10`.

    Parameters
    ----------
    path : str or path
        "cifar-100-python.tar.gz" or "cifar-100-binary.tar.gz", or the folder that was unpacked from it.
    train : bool
        Whether to read the training images or the test images.
    coarse : bool
        Whether the labels are those of the 20 superclasses, not of the 100 classes.
    dtype : {"float32", "float64", "uint8"}
        Of the images: floats from 0 to 1, or the bytes as they are.

    Examples
    --------
    >>> import tempfile, pathlib, fastconv.nn as nn
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (pathlib.Path(folder) / "test.bin").write_bytes(bytes([4, 73]) + bytes(3072))
    ...     nn.load_cifar100(folder, train=False)[1], nn.load_cifar100(folder, train=False, coarse=True)[1]
    (array([73]), array([4]))
    """
    return _load_cifar(Path(path), ["train" if train else "test"], b"coarse_labels" if coarse else b"fine_labels", 20 if coarse else 100, 2,
                       dtype)


def _load_cifar(path: Path, names: Sequence[str], key: bytes, classes: int, label_bytes: int, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    files = _archive_files(path, names) if path.is_file() else _folder_files(path, names)
    images, labels = [], []
    for name, content in files:
        if name.endswith(".bin"):
            found = _binary_batch(name, content, label_bytes, 1 if key == b"fine_labels" else 0)
        else:
            found = _pickled_batch(name, content, key.decode())
        if len(found[1]) and not 0 <= found[1].min() <= found[1].max() < classes:
            raise ValueError(f"{name}: labels must be from 0 to {classes - 1}, got {found[1].min()} to {found[1].max()}")
        images.append(found[0])
        labels.append(found[1])
    return _scaled(np.concatenate(images).reshape(-1, 3, 32, 32), dtype), np.concatenate(labels)


def _binary_batch(name: str, content: bytes, label_bytes: int, label: int) -> tuple[np.ndarray, np.ndarray]:
    record = label_bytes + CIFAR_PIXELS
    if not content or len(content) % record:
        raise ValueError(f"{name} is truncated or no batch of CIFAR: its length must be a multiple of {record} bytes, got {len(content)}")
    rows = np.frombuffer(content, np.uint8).reshape(-1, record)
    return rows[:, label_bytes:], rows[:, label].astype(np.int64)


def _pickled_batch(name: str, content: bytes, key: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        batch = load_plain(content)
    except ValueError as error:
        raise ValueError(f"{name} is damaged or no batch of CIFAR: {error}") from None
    images, labels = batch.get("data"), batch.get(key)
    if not isinstance(images, np.ndarray) or images.ndim != 2 or images.shape[1] != CIFAR_PIXELS:
        raise ValueError(f"{name} is no batch of CIFAR: 'data' must be bytes of shape (N, {CIFAR_PIXELS})")
    if not isinstance(labels, list) or len(labels) != len(images) or not all(type(label) is int for label in labels):
        raise ValueError(f"{name} is no batch of CIFAR: {key!r} must be a list of {len(images)} integers")
    return images, np.array(labels, np.int64)


# -- files ----------------------------------------------------------------------------------------------------------------


def _content(path: Path) -> bytes:
    """A file's bytes, decompressed."""
    content = path.read_bytes()
    if content[:2] != GZIP_MAGIC:
        return content
    return _decompressed(path, lambda: gzip.decompress(content))


def _decompressed(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError) as error:
        raise ValueError(f"{path} is truncated or damaged: {error}") from None


def _one_of(folder: Path, names: Sequence[str]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder} has none of {', '.join(names)}")


def _folder_files(folder: Path, names: Sequence[str]) -> list[tuple[str, bytes]]:
    paths = [_one_of(folder, [name, f"{name}.bin"]) for name in names]
    return [(str(path), path.read_bytes()) for path in paths]


def _archive_files(path: Path, names: Sequence[str]) -> list[tuple[str, bytes]]:
    """(name, content) of the members with these names, whatever folder they are in; nothing is unpacked to disk."""
    wanted = {candidate: name for name in names for candidate in (name, f"{name}.bin")}

    def read() -> dict[str, tuple[str, bytes]]:
        found = {}
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                name = wanted.get(Path(member.name).name)
                if name and member.isfile() and (file := archive.extractfile(member)):
                    found[name] = (f"{path}: {member.name}", file.read())
        return found

    found = _decompressed(path, read)
    if missing := [name for name in names if name not in found]:
        raise FileNotFoundError(f"{path} has no {', '.join(missing)}")
    return [found[name] for name in names]


def _scaled(images: np.ndarray, dtype: Any) -> np.ndarray:
    dtype = np.dtype(dtype)
    if dtype == np.uint8:
        return np.array(images)
    if dtype not in (np.float32, np.float64):
        raise ValueError(f"dtype must be float32, float64 or uint8, got {dtype}")
    scaled = images.astype(dtype)
    scaled /= dtype.type(255)
    return scaled
