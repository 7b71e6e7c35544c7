"""Well-known networks as functions that return layers. Names in the state dicts are those of torchvision where it has the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from ._layer import Layer
from .activations import ReLU, ReLU6, Tanh
from .containers import Parallel, Residual, Sequential
from .convolutions import Conv2d
from .linear import Linear
from .normalization import BatchNorm2d
from .pooling import AdaptiveAvgPool2d, AvgPool2d, GlobalAvgPool, MaxPool2d
from .reshaping import Dropout, Flatten

__all__ = ["inception_block", "lenet5", "mobilenet_v2", "resnet18", "small_vgg"]


class _Block(Residual):
    """A residual block whose layers have other names in the state dict: an empty name leaves the layer's own children's."""

    names: ClassVar[dict[str, str]] = {"branch": "", "shortcut": "downsample", "activation": "relu"}

    def named_layers(self, prefix: str = "") -> Iterator[tuple[str, Layer]]:
        """Each layer by its name in the state dict, this one first."""
        yield prefix, self
        for key, child in self.children.items():
            name = self.names[key]
            layers = [(name, child)] if name else child.children.items()
            for key, layer in layers:
                yield from layer.named_layers(f"{prefix}.{key}" if prefix else key)


class _InvertedResidual(_Block):
    names: ClassVar[dict[str, str]] = {"branch": "conv"}


def lenet5(classes: int = 10, *, in_channels: int = 1, rng: Any = None) -> Sequential:
    """LeNet-5, for images of 28 x 28 or, as in the paper with its own border, of 32 x 32 cut by two on each side.

    Two rounds of 5 x 5 convolution, tanh and mean of 2 x 2, then three fully connected layers; names conv1, conv2, fc1, fc2, fc3.

    Parameters
    ----------
    classes, in_channels : int
        Numbers of outputs and of the images' channels.
    rng : int or numpy.random.Generator, optional
        Of the initial weights.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> nn.lenet5(rng=0)(np.zeros((2, 1, 28, 28), np.float32)).shape
    (2, 10)

    References
    ----------
    LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document recognition" (1998), section II.B.
    """
    rng = np.random.default_rng(rng)
    return Sequential({
        "conv1": Conv2d(in_channels, 6, 5, padding=2, rng=rng), "tanh1": Tanh(), "pool1": AvgPool2d(2),
        "conv2": Conv2d(6, 16, 5, rng=rng), "tanh2": Tanh(), "pool2": AvgPool2d(2),
        "flatten": Flatten(),
        "fc1": Linear(400, 120, rng=rng), "tanh3": Tanh(),
        "fc2": Linear(120, 84, rng=rng), "tanh4": Tanh(),
        "fc3": Linear(84, classes, rng=rng)})


def small_vgg(classes: int = 10, *, in_channels: int = 3, widths: Sequence[int] = (64, 128, 256), size: int = 32, batch_norm: bool = False,
              dropout: float = 0.5, rng: Any = None) -> Sequential:
    """A small VGG: for each width two 3 x 3 convolutions and a pool of 2 x 2, then two fully connected layers.

    Parameters
    ----------
    classes, in_channels : int
        Numbers of outputs and of the images' channels.
    widths : sequence of int
        Channels of each stage.
    size : int
        Height and width of the images.
    batch_norm : bool
        Whether each convolution is normalised over the batch.
    dropout : float
        The share of the hidden units that are dropped in training.
    rng : int or numpy.random.Generator, optional
        Of the initial weights and of the dropout.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> nn.small_vgg(widths=(8, 16), rng=0)(np.zeros((2, 3, 32, 32), np.float32)).shape
    (2, 10)

    References
    ----------
    Simonyan and Zisserman, "Very deep convolutional networks for large-scale image recognition" (2015), section 2.
    """
    rng = np.random.default_rng(rng)
    features: list[Layer] = []
    channels = in_channels
    for width in widths:
        for _ in range(2):
            features += [Conv2d(channels, width, 3, padding=1, rng=rng), *([BatchNorm2d(width)] if batch_norm else []), ReLU()]
            channels = width
        features.append(MaxPool2d(2))
        size //= 2
    hidden = widths[-1]
    classifier = Sequential(Linear(channels * size * size, hidden, rng=rng), ReLU(), Dropout(dropout, rng=rng),
                            Linear(hidden, classes, rng=rng))
    return Sequential({"features": Sequential(*features), "flatten": Flatten(), "classifier": classifier})


def _basic_block(in_channels: int, channels: int, stride: int, rng: np.random.Generator) -> Residual:
    """Two 3 x 3 convolutions around which the input is carried, through a 1 x 1 convolution where the shape changes."""
    branch = Sequential({
        "conv1": Conv2d(in_channels, channels, 3, stride, padding=1, bias=False, rng=rng), "bn1": BatchNorm2d(channels), "relu": ReLU(),
        "conv2": Conv2d(channels, channels, 3, padding=1, bias=False, rng=rng), "bn2": BatchNorm2d(channels)})
    shortcut = None
    if stride != 1 or in_channels != channels:
        shortcut = Sequential(Conv2d(in_channels, channels, 1, stride, bias=False, rng=rng), BatchNorm2d(channels))
    return _Block(branch, shortcut, ReLU())


def resnet18(classes: int = 1000, *, in_channels: int = 3, width: int = 64, rng: Any = None) -> Sequential:
    """ResNet-18, with the names of torchvision's.

    Parameters
    ----------
    classes, in_channels : int
        Numbers of outputs and of the images' channels.
    width : int
        Channels of the first stage; each of the three next has twice as many.
    rng : int or numpy.random.Generator, optional
        Of the initial weights.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> model = nn.resnet18(10, width=8, rng=0)
    >>> model(np.zeros((1, 3, 64, 64), np.float32)).shape
    (1, 10)
    >>> [key for key in model.state_dict() if key.startswith("layer2.0.downsample.0")]
    ['layer2.0.downsample.0.weight']

    References
    ----------
    He et al., "Deep residual learning for image recognition" (2016), table 1.
    """
    rng = np.random.default_rng(rng)
    layers: dict[str, Layer] = {
        "conv1": Conv2d(in_channels, width, 7, 2, padding=3, bias=False, rng=rng), "bn1": BatchNorm2d(width), "relu": ReLU(),
        "maxpool": MaxPool2d(3, 2, 1)}
    channels = width
    for i in range(4):
        out = width << i
        layers[f"layer{i + 1}"] = Sequential(_basic_block(channels, out, 1 if i == 0 else 2, rng), _basic_block(out, out, 1, rng))
        channels = out
    layers |= {"avgpool": AdaptiveAvgPool2d(1), "flatten": Flatten(), "fc": Linear(channels, classes, rng=rng)}
    return Sequential(layers)


def _conv_bn(in_channels: int, channels: int, kernel_size: int, stride: int = 1, groups: int = 1, *,
             rng: np.random.Generator) -> Sequential:
    """Convolution, normalisation, min(max(x, 0), 6)."""
    conv = Conv2d(in_channels, channels, kernel_size, stride, padding=kernel_size // 2, groups=groups, bias=False, rng=rng)
    return Sequential(conv, BatchNorm2d(channels), ReLU6())


def _inverted_residual(in_channels: int, channels: int, stride: int, expansion: int, rng: np.random.Generator) -> Layer:
    """Widen by 1 x 1, convolve each channel by 3 x 3, narrow by 1 x 1 without an activation; the input carried around it if it fits."""
    wide = in_channels * expansion
    widen = [_conv_bn(in_channels, wide, 1, rng=rng)] if expansion != 1 else []
    branch = Sequential(*widen, _conv_bn(wide, wide, 3, stride, wide, rng=rng),
                        Conv2d(wide, channels, 1, bias=False, rng=rng), BatchNorm2d(channels))
    return _InvertedResidual(branch) if stride == 1 and in_channels == channels else Sequential({"conv": branch})


MOBILENET_V2 = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def mobilenet_v2(classes: int = 1000, *, in_channels: int = 3, blocks: Sequence[tuple[int, int, int, int]] = MOBILENET_V2,
                 last: int = 1280, dropout: float = 0.2, rng: Any = None) -> Sequential:
    """MobileNetV2, with the names of torchvision's.

    Parameters
    ----------
    classes, in_channels : int
        Numbers of outputs and of the images' channels.
    blocks : sequence of (expansion, channels, repeats, stride)
        Stages of inverted residual blocks; the first block of each has the stride.
    last : int
        Channels before the classifier.
    dropout : float
        The share of them that is dropped in training.
    rng : int or numpy.random.Generator, optional
        Of the initial weights and of the dropout.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> model = nn.mobilenet_v2(10, blocks=[(1, 16, 1, 1), (6, 24, 2, 2)], last=64, rng=0)
    >>> model(np.zeros((1, 3, 32, 32), np.float32)).shape
    (1, 10)

    References
    ----------
    Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks" (2018), table 2.
    """
    rng = np.random.default_rng(rng)
    features: list[Layer] = [_conv_bn(in_channels, 32, 3, 2, rng=rng)]
    channels = 32
    for expansion, out, repeats, stride in blocks:
        for i in range(repeats):
            features.append(_inverted_residual(channels, out, stride if i == 0 else 1, expansion, rng))
            channels = out
    features.append(_conv_bn(channels, last, 1, rng=rng))
    classifier = Sequential(Dropout(dropout, rng=rng), Linear(last, classes, rng=rng))
    return Sequential({"features": Sequential(*features), "pool": GlobalAvgPool(), "flatten": Flatten(), "classifier": classifier})


def inception_block(in_channels: int, ch1x1: int, ch3x3_reduced: int, ch3x3: int, ch5x5_reduced: int, ch5x5: int, pool_channels: int, *,
                    rng: Any = None) -> Parallel:
    """GoogLeNet's block: convolutions of 1 x 1, 3 x 3, 5 x 5 and a pool side by side, each normalised, joined along the channels.

    Parameters
    ----------
    in_channels : int
        Channels of the input.
    ch1x1, ch3x3, ch5x5, pool_channels : int
        Channels that each branch gives.
    ch3x3_reduced, ch5x5_reduced : int
        Channels that 1 x 1 convolutions narrow the input to, before the larger kernels.
    rng : int or numpy.random.Generator, optional
        Of the initial weights.

    Examples
    --------
    >>> import numpy as np, fastconv.nn as nn
    >>> nn.inception_block(16, 8, 4, 12, 2, 4, 4, rng=0)(np.zeros((1, 16, 8, 8), np.float32)).shape
    (1, 28, 8, 8)

    References
    ----------
    Szegedy et al., "Going deeper with convolutions" (2015), section 4, figure 2b.
    """
    rng = np.random.default_rng(rng)

    def unit(channels: int, out: int, size: int) -> Sequential:
        return Sequential({"conv": Conv2d(channels, out, size, padding=size // 2, bias=False, rng=rng), "bn": BatchNorm2d(out, eps=1e-3),
                           "relu": ReLU()})

    return Parallel({"branch1": unit(in_channels, ch1x1, 1),
                     "branch2": Sequential(unit(in_channels, ch3x3_reduced, 1), unit(ch3x3_reduced, ch3x3, 3)),
                     "branch3": Sequential(unit(in_channels, ch5x5_reduced, 1), unit(ch5x5_reduced, ch5x5, 5)),
                     "branch4": Sequential(MaxPool2d(3, 1, 1), unit(in_channels, pool_channels, 1))})
