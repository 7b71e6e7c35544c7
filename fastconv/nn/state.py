"""A model's parameters and buffers as a dictionary with PyTorch's keys, and that dictionary in a file (.npz, .safetensors)."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..backends._jit import atomic_file
from ._layer import Layer

__all__ = ["load", "load_state_dict", "save", "state_dict"]


def state_dict(model: Layer) -> dict[str, np.ndarray]:
    """Copies of all parameters and buffers of a model, by PyTorch's keys and in its shapes, whatever the layout.

    Examples
    --------
    >>> import fastconv.nn as nn
    >>> {key: array.shape for key, array in nn.state_dict(nn.Sequential(nn.Linear(4, 2))).items()}
    {'0.weight': (2, 4), '0.bias': (2,)}
    """
    return {name: np.array(layer.to_state(key, kind[key]), order="C") for name, layer, kind, key in _entries(model)}


def _entries(model: Layer) -> list[tuple[str, Layer, dict[str, np.ndarray], str]]:
    """(dotted name, layer, the layer's dictionary, key in it) of every parameter and buffer."""
    return [(f"{prefix}.{key}" if prefix else key, layer, kind, key) for prefix, layer in model.named_layers()
            for kind in (layer.params, layer.buffers) for key in kind]


def load_state_dict(model: Layer, state: Mapping[str, Any]) -> None:
    """Take over the arrays of a state dict, of this package's or PyTorch's.

    Parameters
    ----------
    model : Layer
        Whose parameters and buffers are replaced.
    state : mapping of str to array_like
        What `state_dict` gave.

    Raises
    ------
    ValueError
        If entries are missing, unknown or of a wrong shape or dtype: all are listed, and nothing is changed.

    Examples
    --------
    >>> import fastconv.nn as nn
    >>> a, b = nn.Linear(4, 2, rng=0), nn.Linear(4, 2, rng=1)
    >>> nn.load_state_dict(b, a.state_dict())
    >>> bool((a.weight == b.weight).all())
    True
    """
    entries = _entries(model)
    names = {name for name, *_ in entries}
    problems = [f"missing: {name}" for name, *_ in entries if name not in state]
    problems += [f"unknown: {name}" for name in state if name not in names]
    found = []
    for name, layer, kind, key in entries:
        if name not in state:
            continue
        array, expected = np.asarray(state[name]), layer.to_state(key, kind[key])
        if array.shape != expected.shape:
            problems.append(f"misshapen: {name} must have shape {expected.shape}, got {array.shape}")
        elif array.dtype.kind not in "biuf":
            problems.append(f"not real numbers: {name} has dtype {array.dtype}")
        else:
            found.append((kind, key, np.array(layer.from_state(key, array), expected.dtype, order="C")))
    if problems:
        raise ValueError("the state dict does not fit the model:\n  " + "\n  ".join(problems))
    for kind, key, array in found:
        kind[key] = array


def save(model: Layer | Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a model's state dict, or any dictionary of arrays, to a file: other processes see it whole or not at all.

    Parameters
    ----------
    model : Layer or mapping of str to array_like
        What is written.
    path : str or path
        Ending in .npz, or in .safetensors (which needs the package of that name).

    Examples
    --------
    >>> import tempfile, os, fastconv.nn as nn
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "model.npz")
    ...     nn.save(nn.Linear(4, 2), path)
    ...     sorted(nn.load(path))
    ['bias', 'weight']
    """
    path = Path(path)
    state = model.state_dict() if isinstance(model, Layer) else {key: np.asarray(value) for key, value in model.items()}
    kind = _kind(path)
    with atomic_file(path, durable=True) as file:
        if kind == "npz":
            np.savez(file, **state)  # type: ignore[arg-type]
        else:
            file.write(_safetensors().save({key: np.ascontiguousarray(array).reshape(array.shape) for key, array in state.items()}))


def load(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The dictionary of arrays in a file that `save` or another program wrote.

    Raises
    ------
    ValueError
        If the file is truncated or is none of its kind.

    Examples
    --------
    >>> import tempfile, os, numpy as np, fastconv.nn as nn
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "state.npz")
    ...     nn.save({"a": np.arange(3)}, path)
    ...     nn.load(path)
    {'a': array([0, 1, 2])}
    """
    path = Path(path)
    kind = _kind(path)
    content = path.read_bytes()
    if kind == "npz":
        return _read_npz(path, content)
    module = _safetensors()
    try:
        return dict(module.load(content))
    except Exception as error:
        raise ValueError(f"{path} is damaged or no .safetensors file: {error}") from None


def _read_npz(path: Path, content: bytes) -> dict[str, np.ndarray]:
    import io

    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (zipfile.BadZipFile, ValueError, EOFError, KeyError, OSError, AttributeError) as error:
        raise ValueError(f"{path} is damaged or no .npz file: {error}") from None


def _kind(path: Path) -> str:
    kind = path.suffix.lower().lstrip(".")
    if kind not in ("npz", "safetensors"):
        raise ValueError(f"path must end in .npz or .safetensors, got {str(path)!r}")
    return kind


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError("files ending in .safetensors need the package safetensors: pip install 'fastconv[safetensors]'") from None
    return safetensors.numpy
