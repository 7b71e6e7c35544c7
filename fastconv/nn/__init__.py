"""Layers with hand-written backward passes, losses, optimizers: enough to build, read, train and run a CNN.

`y = layer(x)` infers; `y, backprop = layer.forward(x)` trains, and `gx = backprop(gy)` adds the parameters' gradients
into `layer.grads`.
"""

from . import initializers
from ._layer import Backprop, Gradients, Layer, Parameter
from .activations import GELU, LeakyReLU, ReLU, ReLU6, Sigmoid, SiLU, Softmax, Tanh
from .containers import Parallel, Residual, Sequential
from .convolutions import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    DepthwiseConv2d,
    PointwiseConv2d,
    SeparableConv2d,
)
from .fusion import Fused, fuse
from .linear import Linear
from .local import LocallyConnected2d
from .losses import binary_cross_entropy, mse, softmax_cross_entropy
from .normalization import BatchNorm1d, BatchNorm2d, BatchNorm3d, GroupNorm, LayerNorm
from .optimizers import SGD, Adam, AdamW, Optimizer, RMSprop
from .pooling import (
    AdaptiveAvgPool1d,
    AdaptiveAvgPool2d,
    AdaptiveAvgPool3d,
    AdaptiveMaxPool1d,
    AdaptiveMaxPool2d,
    AdaptiveMaxPool3d,
    AvgPool1d,
    AvgPool2d,
    AvgPool3d,
    GlobalAvgPool,
    GlobalMaxPool,
    LPPool1d,
    LPPool2d,
    LPPool3d,
    MaxPool1d,
    MaxPool2d,
    MaxPool3d,
)
from .reshaping import Dropout, Flatten
from .schedules import CosineSchedule, ExponentialSchedule, OneCycleSchedule, Schedule, StepSchedule, WarmUpSchedule
from .state import load, load_state_dict, save, state_dict
from .summary import LayerSummary, summarize, summary

__all__ = [
    "GELU",
    "SGD",
    "Adam",
    "AdamW",
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveAvgPool3d",
    "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d",
    "AdaptiveMaxPool3d",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "Backprop",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "CosineSchedule",
    "DepthwiseConv2d",
    "Dropout",
    "ExponentialSchedule",
    "Flatten",
    "Fused",
    "GlobalAvgPool",
    "GlobalMaxPool",
    "Gradients",
    "GroupNorm",
    "LPPool1d",
    "LPPool2d",
    "LPPool3d",
    "Layer",
    "LayerNorm",
    "LayerSummary",
    "LeakyReLU",
    "Linear",
    "LocallyConnected2d",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "OneCycleSchedule",
    "Optimizer",
    "Parallel",
    "Parameter",
    "PointwiseConv2d",
    "RMSprop",
    "ReLU",
    "ReLU6",
    "Residual",
    "Schedule",
    "SeparableConv2d",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "StepSchedule",
    "Tanh",
    "WarmUpSchedule",
    "binary_cross_entropy",
    "fuse",
    "initializers",
    "load",
    "load_state_dict",
    "mse",
    "save",
    "softmax_cross_entropy",
    "state_dict",
    "summarize",
    "summary",
]
