"""Checkpoints: all that a training run needs to go on where it was, in one .npz file, written whole or not at all.

The file holds the model's state dict as arrays named "model/<key>", every other array as "array/<number>", and under "record"
a text of JSON: the optimizer's and the schedule's state, the states of all random generators, and what the caller adds, with
references to the arrays.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ._layer import Layer
from .state import load, save

__all__ = ["load_checkpoint", "save_checkpoint"]

FORMAT = "fastconv checkpoint 1"


def save_checkpoint(path: str | os.PathLike[str], model: Layer, optimizer: Any = None, schedule: Any = None, **extra: Any) -> None:
    """Write the state of a training run to a file: other processes see the old file or the new one, whole.

    Parameters
    ----------
    path : str or path
        Ending in .npz.
    model : Layer
        Its parameters, buffers and random generators (those of dropout) are written.
    optimizer, schedule : optional
        What has a `state_dict`.
    **extra
        Whatever else: dictionaries, lists, texts, numbers, arrays, and random generators, of which the state is written.

    Examples
    --------
    >>> import tempfile, os, fastconv.nn as nn
    >>> model = nn.Linear(4, 2, rng=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "run.npz")
    ...     nn.save_checkpoint(path, model, epoch=3)
    ...     nn.load_checkpoint(path, nn.Linear(4, 2))
    {'epoch': 3}
    """
    path = check_path(path)
    arrays = {f"model/{key}": array for key, array in model.state_dict().items()}
    record = {"format": FORMAT, "optimizer": _state_of(optimizer), "schedule": _state_of(schedule), "generators": _generator_states(model),
              "extra": extra}
    text = json.dumps(_packed(record, arrays))
    save({**arrays, "record": np.array(text)}, path)


def load_checkpoint(path: str | os.PathLike[str], model: Layer | None = None, optimizer: Any = None, schedule: Any = None,
                    generators: Mapping[str, np.random.Generator] | None = None) -> dict[str, Any]:
    """Bring model, optimizer and schedule to the state in a file; if that fails, all are left as they were.

    Parameters
    ----------
    path : str or path
        What `save_checkpoint` wrote.
    model : Layer, optional
        Built as the one that was saved; without it, the extra values are read only.
    optimizer, schedule : optional
        As given to `save_checkpoint`.
    generators : mapping of str to numpy.random.Generator, optional
        Generators that were saved under these names, to be brought to their states.

    Returns
    -------
    dict
        The extra values that were saved, without the generators.

    Raises
    ------
    ValueError
        If the file is truncated, is no checkpoint, or does not fit the model, the optimizer or the schedule.
    FileNotFoundError
        If there is no such file.

    Examples
    --------
    >>> import tempfile, os, fastconv.nn as nn
    >>> model, other = nn.Linear(4, 2, rng=0), nn.Linear(4, 2, rng=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "run.npz")
    ...     nn.save_checkpoint(path, model, nn.SGD(model, lr=0.1), epoch=3)
    ...     extra = nn.load_checkpoint(path, other, nn.SGD(other, lr=0.5))
    >>> extra["epoch"], bool((model.weight == other.weight).all())
    (3, True)
    """
    path = check_path(path)
    arrays, record = _read(path)
    weights = {key.removeprefix("model/"): array for key, array in arrays.items() if key.startswith("model/")}
    extra = dict(record["extra"])
    if model is None:
        return extra
    wanted = {**dict(_generators(model)), **{f"extra: {name}": generator for name, generator in (generators or {}).items()}}
    states = {**record["generators"], **{f"extra: {name}": extra.pop(name, None) for name in generators or {}}}
    before = _snapshot(model, optimizer, schedule, wanted)
    try:
        _restore(model, optimizer, schedule, wanted, {**record, "model": weights, "generators": states})
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        _restore(model, optimizer, schedule, wanted, before)
        raise ValueError(f"the checkpoint {path} does not fit: {error}") from error
    return extra


def check_path(path: str | os.PathLike[str]) -> Path:
    """The path of a checkpoint."""
    path = Path(path)
    if path.suffix.lower() != ".npz":
        raise ValueError(f"a checkpoint's path must end in .npz, got {str(path)!r}")
    return path


def writable_path(path: str | os.PathLike[str]) -> Path:
    """A checkpoint's path, whose folder exists: complain before hours of work, not after."""
    path = check_path(path)
    if not path.parent.is_dir():
        raise ValueError(f"checkpoint: there is no directory {path.parent}")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(f"checkpoint: {path} cannot be written")
    return path


# -- states ---------------------------------------------------------------------------------------------------------------


def _generators(model: Layer) -> Iterator[tuple[str, np.random.Generator]]:
    """The random generators that a model's layers hold, by the names of the attributes."""
    for prefix, layer in model.named_layers():
        for name, value in vars(layer).items():
            if isinstance(value, np.random.Generator):
                yield f"{prefix}.{name}", value


def _generator_states(model: Layer) -> dict[str, Any]:
    return {name: generator.bit_generator.state for name, generator in _generators(model)}


def _state_of(part: Any) -> Any:
    return None if part is None else part.state_dict()


def _snapshot(model: Layer, optimizer: Any, schedule: Any, generators: Mapping[str, np.random.Generator]) -> dict[str, Any]:
    record = {"optimizer": _state_of(optimizer), "schedule": _state_of(schedule)}
    arrays: dict[str, np.ndarray] = {}
    copied = _unpacked(_packed(record, arrays), arrays)  # a state dict may share its arrays with what it is the state of
    return {"model": model.state_dict(), **copied, "generators": {name: g.bit_generator.state for name, g in generators.items()}}


def _restore(model: Layer, optimizer: Any, schedule: Any, generators: Mapping[str, np.random.Generator], state: Mapping[str, Any]) -> None:
    model.load_state_dict(state["model"])
    for name, part in (("optimizer", optimizer), ("schedule", schedule)):
        if part is not None:
            if state[name] is None:
                raise ValueError(f"it holds no {name}")
            part.load_state_dict(state[name])
    for name, generator in generators.items():
        if not isinstance(found := state["generators"].get(name), dict):
            raise ValueError(f"it holds no state of the random generator {name!r}")
        generator.bit_generator.state = found


# -- the file -------------------------------------------------------------------------------------------------------------


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    arrays = load(path)
    try:
        record = json.loads(str(arrays["record"]))
        record = _unpacked(record, arrays)
        if record["format"] != FORMAT:
            raise ValueError(f"its format is {record['format']!r}")
        record["extra"], record["generators"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no checkpoint of this version: {error}") from None
    return arrays, record


def _packed(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """A value as JSON can hold it; arrays go into `arrays`, and a reference takes their place."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        name = f"array/{len(arrays)}"
        arrays[name] = value.copy()
        return {"array": name}
    if isinstance(value, np.random.Generator):
        return _packed(value.bit_generator.state, arrays)
    if isinstance(value, Mapping):
        return {"items": [[_packed(key, arrays), _packed(item, arrays)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_packed(item, arrays) for item in value]
    raise TypeError(f"a checkpoint holds dictionaries, lists, texts, numbers, arrays and random generators, got {value!r}")


def _unpacked(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if isinstance(value, list):
        return [_unpacked(item, arrays) for item in value]
    if isinstance(value, dict):
        if "array" in value:
            return arrays[value["array"]]
        return {_unpacked(key, arrays): _unpacked(item, arrays) for key, item in value["items"]}
    return value
