"""What every layer is: parameters, their gradients, and a forward pass that returns its own backward pass.

    y = layer(x)                      # inference: nothing is kept
    y, backprop = layer.forward(x)    # training
    gx = backprop(gy)                 # adds the parameters' gradients into layer.grads

A `forward` that is refused changes nothing: containers `undo` what the layers before the refusing one have moved.

`backprop` is a closure over exactly what it needs. The rule of gradients: those of parameters are added (`+=`), those of
activations are returned. Layers have no mode: `forward` trains (statistics of the batch, dropout), a call infers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from .fusion import Fused

__all__ = ["Backprop", "Gradients", "Layer", "Parameter"]

Backprop = Callable[..., np.ndarray]
Trace = Callable[[str, "Layer", tuple[int, ...], tuple[int, ...]], None]
LARGE = 1 << 14  # elements from which a gradient is written in place: a sum through memory then takes longer than the checks of `out=`
FLOATS = {np.dtype(name): np.dtype(name) for name in ("float32", "float64")}


class Gradients(MutableMapping[str, np.ndarray]):
    """Gradients by the names of their parameters. `clear_all` only notes that they are zero: they become so when first read.

    A backward pass can then write the first gradient over the old one, rather than clear, write and add: a third of the
    memory traffic.
    """

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self._cleared: set[str] = set()

    def __getitem__(self, key: str) -> np.ndarray:
        array = self.arrays[key]
        if key in self._cleared:
            self._cleared.discard(key)
            array.fill(0)
        return array

    def __setitem__(self, key: str, value: np.ndarray) -> None:
        self._cleared.discard(key)
        self.arrays[key] = value

    def __delitem__(self, key: str) -> None:
        del self.arrays[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    def __repr__(self) -> str:
        return repr(dict(self))

    def clear_all(self) -> None:
        """Set all to zero."""
        self._cleared.update(self.arrays)

    def add(self, key: str, value: np.ndarray) -> None:
        """Add to a gradient."""
        if key in self._cleared:
            self._cleared.discard(key)
            self.arrays[key][...] = value
        else:
            self.arrays[key] += value

    def accumulate(self, key: str, compute: Callable[[np.ndarray | None], np.ndarray]) -> None:
        """Add `compute(None)`, or let `compute(out)` write where there is nothing to add to."""
        array = self.arrays[key]
        if key in self._cleared and array.size >= LARGE:
            compute(array)
            self._cleared.discard(key)
        else:
            self.add(key, compute(None))


class Parameter(NamedTuple):
    """Where one parameter of a model lies: `params[key]` is its array, `grads[key]` its gradient."""

    name: str
    params: dict[str, np.ndarray]
    grads: Gradients
    key: str


class Layer:
    """A layer: subclasses give it `forward` and `__call__`, and fill its dictionaries.

    Attributes
    ----------
    params, buffers : dict of str to ndarray
        What is learned, and what is kept besides (running statistics), by PyTorch's names; also readable as attributes.
    grads : Gradients
        The parameters' gradients, to which each backward pass adds.
    children : dict of str to Layer
        The layers this one is made of.
    dtype : numpy.dtype or None
        What the layer computes in: inputs are converted to it. None: in the input's own, float32 or float64.
    """

    takes_activation = False  # whether `activated` and `forward_activated` are there
    skips_input_gradient = False  # whether `backprop(gy, input_gradient=False)` saves the first layer's, which training has no use for
    rectifier: str | None = None  # name of the activation that this layer is, if its gradient can be told from its output

    def __init__(self, dtype: Any = None):
        self.params: dict[str, np.ndarray] = {}
        self.buffers: dict[str, np.ndarray] = {}
        self.grads = Gradients()
        self.children: dict[str, Layer] = {}
        self.dtype = None if dtype is None else _float_dtype(dtype)

    # -- the contract -----------------------------------------------------------------------------------------------------

    def __call__(self, x: Any) -> np.ndarray:
        """Infer: the layer's output, with nothing kept."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__")

    def forward(self, x: Any) -> tuple[np.ndarray, Backprop]:
        """Train: the layer's output, and the function from its gradient to that of `x`."""
        raise NotImplementedError(f"{type(self).__name__} must define forward")

    def undo(self) -> None:
        """Take back what the last `forward` moved in the layer (running statistics): one behind it has refused its output."""
        for child in self.children.values():
            child.undo()

    def activated(self, x: Any, name: str) -> np.ndarray:
        """A call followed by the rectifier of a name, in one pass."""
        raise NotImplementedError(f"{type(self).__name__} computes no activation")

    def forward_activated(self, x: Any, name: str) -> tuple[np.ndarray, Backprop]:
        """`forward` followed by the rectifier of a name, in one pass."""
        raise NotImplementedError(f"{type(self).__name__} computes no activation")

    def trace(self, x: np.ndarray, record: Trace, name: str = "") -> np.ndarray:
        """Infer, and call `record(name, layer, input shape, output shape)` for each layer that is not a container."""
        y = self(x)
        record(name, self, x.shape, y.shape)
        return y

    def arguments(self) -> str:
        """The constructor's arguments, for `repr`."""
        return ""

    def to_state(self, key: str, array: np.ndarray) -> np.ndarray:
        """A parameter in PyTorch's shape."""
        return array

    def from_state(self, key: str, array: np.ndarray) -> np.ndarray:
        """`to_state` undone."""
        return array

    # -- parameters -------------------------------------------------------------------------------------------------------

    def add_parameter(self, key: str, array: np.ndarray) -> None:
        """Give the layer a parameter, with a gradient of zeros."""
        self.params[key] = array = np.ascontiguousarray(array, self.dtype).reshape(array.shape)
        self.grads[key] = np.zeros_like(array)

    def named_layers(self, prefix: str = "") -> Iterator[tuple[str, Layer]]:
        """Each layer of the model by its dotted name, this one first."""
        yield prefix, self
        for key, child in self.children.items():
            yield from child.named_layers(f"{prefix}.{key}" if prefix else key)

    def named_parameters(self) -> Iterator[Parameter]:
        """Each parameter of the model, in PyTorch's order."""
        for prefix, layer in self.named_layers():
            for key in layer.params:
                yield Parameter(f"{prefix}.{key}" if prefix else key, layer.params, layer.grads, key)

    def zero_grad(self) -> None:
        """Set all gradients of the model to zero."""
        for _, layer in self.named_layers():
            layer.grads.clear_all()

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of all parameters and buffers, by PyTorch's keys and in its shapes."""
        from .state import state_dict

        return state_dict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave, or PyTorch's; nothing is changed if an entry is missing, unknown or misshapen."""
        from .state import load_state_dict

        load_state_dict(self, state)

    def fuse(self, input_shape: Sequence[int] | None = None) -> Fused:
        """The model as a function for inference: see `fastconv.nn.fuse`."""
        from .fusion import fuse

        return fuse(self, input_shape)

    def __getattr__(self, name: str) -> Any:
        for kind in ("params", "buffers"):
            found = self.__dict__.get(kind)
            if found is not None and name in found:
                return found[name]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        for kind in ("params", "buffers"):
            found = self.__dict__.get(kind)
            if found is not None and name in found:
                array = np.asarray(value)
                if array.shape != found[name].shape:
                    raise ValueError(f"{self!r}: {name} must have shape {found[name].shape}, got {array.shape}")
                found[name] = np.array(array, found[name].dtype, order="C")
                return
        object.__setattr__(self, name, value)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """From a pickle, where dtypes are equal to NumPy's own but other objects: calls seen before are told by their identity."""
        self.__dict__.update(state)
        if self.dtype is not None:
            self.__dict__["dtype"] = FLOATS[self.dtype]
        for arrays in (self.params, self.buffers, self.grads.arrays):
            for key, array in arrays.items():
                arrays[key] = array.view(np.dtype(array.dtype.str))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.arguments()})"

    # -- checks -----------------------------------------------------------------------------------------------------------

    def as_input(self, x: Any) -> np.ndarray:
        """`x` as an array of the layer's dtype."""
        if type(x) is np.ndarray and (x.dtype is self.dtype or (self.dtype is None and x.dtype in FLOATS)):
            return x
        array = np.asarray(x)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"{self!r}: x must be an array of real numbers, got dtype {array.dtype}")
        dtype = self.dtype
        if dtype is None:
            dtype = np.dtype(np.float64 if array.dtype.kind == "f" and array.dtype.itemsize >= 8 else np.float32)
        return array.astype(dtype, copy=False)

    def as_gradient(self, gy: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """`gy` as an array of the output's shape and dtype."""
        if type(gy) is np.ndarray and gy.shape == shape and gy.dtype is dtype:
            return gy
        array = np.asarray(gy)
        if array.shape != shape:
            raise ValueError(f"{self!r}: the gradient must have the output's shape {shape}, got {array.shape}")
        if array.dtype.kind not in "biuf":
            raise TypeError(f"{self!r}: the gradient must be an array of real numbers, got dtype {array.dtype}")
        return array.astype(dtype, copy=False)

    def wrong_input(self, got: tuple[int, ...], expected: str) -> ValueError:
        """The error for an input of a wrong shape."""
        return ValueError(f"{self!r}: x must have shape {expected}, got {got}")


def _float_dtype(dtype: Any) -> np.dtype:
    found = FLOATS.get(np.dtype(dtype))
    if found is None:
        raise TypeError(f"dtype must be float32 or float64, got {dtype!r}")
    return found


def check_layout(layout: str) -> str:
    """A layout's name."""
    if layout not in ("NCHW", "NHWC"):
        raise ValueError(f"layout must be 'NCHW' or 'NHWC', got {layout!r}")
    return layout


def documented(template: str, **values: Any) -> Callable[[type], type]:
    """A decorator that adds to a class's docstring what it shares with others."""

    def decorate(layer: type) -> type:
        layer.__doc__ = f"{layer.__doc__}\n{template.format(**values)}"
        return layer

    return decorate
