"""Layers with hand-written backward passes, losses, optimizers: enough to build, read, train and run a CNN.

`y = layer(x)` infers; `y, backprop = layer.forward(x)` trains, and `gx = backprop(gy)` adds the parameters' gradients
into `layer.grads`.
"""

from . import initializers
from ._layer import Backprop, Gradients, Layer, Parameter
from .activations import GELU, LeakyReLU, ReLU, ReLU6, Sigmoid, SiLU, Softmax, Tanh
from .checkpoint import load_checkpoint, save_checkpoint
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
from .datasets import load_cifar10, load_cifar100, load_digits, load_mnist, read_idx
from .evaluation import Evaluation, confusion_matrix, evaluate, predict
from .fusion import Fused, fuse
from .linear import Linear
from .local import LocallyConnected2d
from .losses import binary_cross_entropy, mse, softmax_cross_entropy
from .models import inception_block, lenet5, mobilenet_v2, resnet18, small_vgg
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
from .training import History, fit

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
    "Evaluation",
    "ExponentialSchedule",
    "Flatten",
    "Fused",
    "GlobalAvgPool",
    "GlobalMaxPool",
    "Gradients",
    "GroupNorm",
    "History",
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
    "confusion_matrix",
    "evaluate",
    "fit",
    "fuse",
    "inception_block",
    "initializers",
    "lenet5",
    "load",
    "load_checkpoint",
    "load_cifar10",
    "load_cifar100",
    "load_digits",
    "load_mnist",
    "load_state_dict",
    "mobilenet_v2",
    "mse",
    "predict",
    "read_idx",
    "resnet18",
    "save",
    "save_checkpoint",
    "small_vgg",
    "softmax_cross_entropy",
    "state_dict",
    "summarize",
    "summary",
]
