"""Layers with hand-written backward passes, losses, optimizers: enough to build, read, train and run a CNN.

`y = layer(x)` infers; `y, backprop = layer.forward(x)` trains, and `gx = backprop(gy)` adds the parameters' gradients
into `layer.grads`.
"""

from . import initializers
from ._layer import Layer, Parameter
from .containers import Parallel, Residual, Sequential
from .linear import Linear
from .state import load, load_state_dict, save, state_dict

__all__ = [
    "Layer",
    "Linear",
    "Parallel",
    "Parameter",
    "Residual",
    "Sequential",
    "initializers",
    "load",
    "load_state_dict",
    "save",
    "state_dict",
]
