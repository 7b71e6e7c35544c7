"""Layers made of layers: one after the other, side by side, around a shortcut."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..backends._activation import rectified_sum
from ._layer import Backprop, Layer, Trace, check_layout
from .activations import Rectifier, contiguous

__all__ = ["Parallel", "Residual", "Sequential"]


def _sum(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x + y of one shape and dtype, on all threads."""
    return rectified_sum(contiguous(x), contiguous(y), 1.0, math.inf)


def _undo(layers: list[Layer]) -> None:
    """Take back what a forward pass moved in layers that it has gone through, the last one first."""
    for layer in reversed(layers):
        layer.undo()


class _Container(Layer):
    """Layers by their numbers, or by the names of a dictionary."""

    def __init__(self, *layers: Layer | Mapping[str, Layer]):
        super().__init__()
        if len(layers) == 1 and isinstance(layers[0], Mapping):
            named = dict(layers[0])
        else:
            named = {str(i): layer for i, layer in enumerate(layers)}  # type: ignore[misc]
        for key, layer in named.items():
            if not isinstance(layer, Layer):
                raise TypeError(f"{type(self).__name__} is made of layers, got {layer!r} as {key!r}")
        self.children.update(named)

    def __len__(self) -> int:
        return len(self.children)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.children.values())

    def __getitem__(self, index: int | str) -> Layer:
        return self.children[index] if isinstance(index, str) else list(self.children.values())[index]

    def __repr__(self) -> str:
        lines = [f"  ({key}): " + repr(child).replace("\n", "\n  ") for key, child in self.children.items()]
        return "\n".join([f"{type(self).__name__}({self.arguments()}", *lines, ")"]) if lines else super().__repr__()


class Sequential(_Container):
    """Layers one after the other.

    Parameters
    ----------
    *layers : Layer
        Named "0", "1", ... in the state dict; or one dictionary from names to layers.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> model = nn.Sequential(nn.Linear(4, 8, rng=0), nn.Linear(8, 2, rng=1))
    >>> y, backprop = model.forward(np.ones((3, 4), np.float32))
    >>> y.shape, backprop(np.ones_like(y)).shape
    ((3, 2), (3, 4))
    """

    skips_input_gradient = True

    def __call__(self, x: Any) -> np.ndarray:
        """The last layer's output; a rectifier is computed by the layer before it, where that can."""
        layers = list(self.children.values())
        i = 0
        while i < len(layers):
            layer = layers[i]
            name = layers[i + 1].rectifier if layer.takes_activation and i + 1 < len(layers) else None
            x = layer(x) if name is None else layer.activated(x, name)
            i += 1 if name is None else 2
        return x

    def forward(self, x: Any) -> tuple[np.ndarray, Backprop]:
        """As a call, with each layer's backward pass kept.

        `backprop(gy, input_gradient=False)` adds the parameters' gradients only: what it returns is of no use.
        """
        layers = list(self.children.values())
        backprops: list[Backprop] = []
        i = 0
        try:
            while i < len(layers):
                layer = layers[i]
                name = layers[i + 1].rectifier if layer.takes_activation and i + 1 < len(layers) else None
                x, backprop = layer.forward(x) if name is None else layer.forward_activated(x, name)
                backprops.append(backprop)
                i += 1 if name is None else 2
        except BaseException:
            _undo(layers[:i])
            raise
        backprops.reverse()
        skips = bool(layers) and layers[0].skips_input_gradient

        def backward(gy: Any, input_gradient: bool = True) -> np.ndarray:
            if input_gradient or not skips:
                for backprop in backprops:
                    gy = backprop(gy)
                return gy
            for backprop in backprops[:-1]:
                gy = backprop(gy)
            return backprops[-1](gy, input_gradient=False)

        return x, backward

    def trace(self, x: np.ndarray, record: Trace, name: str = "") -> np.ndarray:
        """Trace each layer in turn."""
        for key, child in self.children.items():
            x = child.trace(x, record, f"{name}.{key}" if name else key)
        return x

    def append(self, layer: Layer) -> Sequential:
        """Add a layer at the end, under the next free number."""
        if not isinstance(layer, Layer):
            raise TypeError(f"Sequential is made of layers, got {layer!r}")
        self.children[str(len(self.children))] = layer
        return self


class Parallel(_Container):
    """Layers side by side: each takes the input, their outputs are concatenated along the channels.

    y = [f_0(x), f_1(x), ...]

    Parameters
    ----------
    *layers : Layer
        The branches, whose outputs differ in their channels only; or one dictionary from names to layers.
    layout : {"NCHW", "NHWC"}
        Whether channels are the second axis or the last.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> nn.Parallel(nn.Linear(4, 8, rng=0), nn.Linear(4, 2, rng=1))(np.ones((3, 4))).shape
    (3, 10)

    References
    ----------
    Szegedy et al., "Going deeper with convolutions" (2015), section 4: the Inception block.
    """

    def __init__(self, *layers: Layer | Mapping[str, Layer], layout: str = "NCHW"):
        super().__init__(*layers)
        if not self.children:
            raise ValueError("Parallel needs at least one layer")
        self.layout = check_layout(layout)

    @property
    def axis(self) -> int:
        """The axis of the channels."""
        return 1 if self.layout == "NCHW" else -1

    def _joined(self, outputs: list[np.ndarray]) -> np.ndarray:
        try:
            return np.concatenate(outputs, axis=self.axis)
        except ValueError:
            shapes = ", ".join(str(y.shape) for y in outputs)
            raise ValueError(f"Parallel: the branches' outputs must differ in their channels (axis {self.axis}) only, "
                             f"got shapes {shapes}") from None

    def __call__(self, x: Any) -> np.ndarray:
        """All branches' outputs, joined."""
        return self._joined([child(x) for child in self.children.values()])

    def forward(self, x: Any) -> tuple[np.ndarray, Backprop]:
        """As a call; the gradient of `x` is the sum of the branches'."""
        outputs: list[np.ndarray] = []
        backprops: list[Backprop] = []
        try:
            for child in self.children.values():
                y, backprop = child.forward(x)
                outputs.append(y)
                backprops.append(backprop)
            y = self._joined(outputs)
        except BaseException:
            _undo(list(self.children.values())[:len(outputs)])
            raise
        axis = self.axis
        shape, dtype = y.shape, y.dtype
        ends = np.cumsum([output.shape[axis] for output in outputs])[:-1].tolist()

        def backward(gy: Any) -> np.ndarray:
            parts = np.split(self.as_gradient(gy, shape, dtype), ends, axis=axis)
            gx: np.ndarray | None = None
            for branch, part in zip(backprops, parts):
                more = branch(part)
                gx = more if gx is None else _sum(gx, more)
            assert gx is not None  # there is at least one branch
            return gx

        return y, backward

    def trace(self, x: np.ndarray, record: Trace, name: str = "") -> np.ndarray:
        """Trace each branch."""
        return self._joined([child.trace(x, record, f"{name}.{key}" if name else key) for key, child in self.children.items()])


class Residual(Layer):
    """A branch around which the input is carried: y = activation(branch(x) + shortcut(x)).

    Parameters
    ----------
    branch : Layer
        What is learned on top of the input.
    shortcut : Layer, optional
        Brings the input to the branch's shape; without it, the input itself is added.
    activation : Layer, optional
        Applied to the sum; a ReLU is computed with it, in one pass.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> block = nn.Residual(nn.Linear(4, 4, rng=0))
    >>> block(np.ones((3, 4))).shape, list(block.state_dict())
    ((3, 4), ['branch.weight', 'branch.bias'])

    References
    ----------
    He et al., "Deep residual learning for image recognition" (2016), equation 1.
    """

    def __init__(self, branch: Layer, shortcut: Layer | None = None, activation: Layer | None = None):
        super().__init__()
        for key, layer in {"branch": branch, "shortcut": shortcut, "activation": activation}.items():
            if isinstance(layer, Layer):
                self.children[key] = layer
            elif layer is not None or key == "branch":
                raise TypeError(f"Residual: {key} must be a layer, got {layer!r}")

    def fitting(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """What the shortcut gives, x, in the dtype of the branch's output y."""
        if y.shape != x.shape:
            raise ValueError(f"Residual: the branch gives shape {y.shape}, the shortcut {x.shape}: they must be equal")
        return x if x.dtype is y.dtype else x.astype(y.dtype)

    def __call__(self, x: Any) -> np.ndarray:
        """The activated sum."""
        children = self.children
        y, x = children["branch"](x), children["shortcut"](x) if "shortcut" in children else self.as_input(x)
        x = self.fitting(y, x)
        rectifier = self._rectifier()
        if rectifier is not None:
            return rectified_sum(contiguous(y), contiguous(x), *rectifier)
        y = _sum(y, x)
        return children["activation"](y) if "activation" in children else y

    def _rectifier(self) -> tuple[float, float] | None:
        """Slope and ceiling of the activation, if it is computed with the sum."""
        activation = self.children.get("activation")
        return (activation.slope, activation.ceiling) if isinstance(activation, Rectifier) else None

    def forward(self, x: Any) -> tuple[np.ndarray, Backprop]:
        """As a call; the gradient of `x` is the sum of the branch's and the shortcut's."""
        children = self.children
        x = self.as_input(x)
        y, through_branch = children["branch"].forward(x)
        done = [children["branch"]]
        carried, through_shortcut, through_activation = x, None, None
        rectifier = self._rectifier()
        try:
            if "shortcut" in children:
                carried, through_shortcut = children["shortcut"].forward(x)
                done.append(children["shortcut"])
            carried = self.fitting(y, carried)
            if rectifier is not None:
                y = rectified_sum(contiguous(y), contiguous(carried), *rectifier)
                through_activation = children["activation"].backward_from(y)
            else:
                y = _sum(y, carried)
                if "activation" in children:
                    y, through_activation = children["activation"].forward(y)
        except BaseException:
            _undo(done)
            raise
        shape, dtype = y.shape, y.dtype

        def backprop(gy: Any) -> np.ndarray:
            gy = self.as_gradient(gy, shape, dtype) if through_activation is None else through_activation(gy)
            gx = through_branch(gy)
            return _sum(gx, gy if through_shortcut is None else through_shortcut(gy))

        return y, backprop

    def trace(self, x: np.ndarray, record: Trace, name: str = "") -> np.ndarray:
        """Trace branch, shortcut and activation."""
        def traced(key: str, x: np.ndarray) -> np.ndarray:
            return self.children[key].trace(x, record, f"{name}.{key}" if name else key) if key in self.children else x

        y, x = traced("branch", x), traced("shortcut", x)
        return traced("activation", y + self.fitting(y, x))

    def __repr__(self) -> str:
        lines = [f"  ({key}): " + repr(child).replace("\n", "\n  ") for key, child in self.children.items()]
        return "\n".join(["Residual(", *lines, ")"])
