"""What `fastconv bench` convolves, as data: the layers of five networks, filters of a photograph and of an audio signal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from fastconv import imaging
from fastconv.bench import signals

__all__ = ["SUITES", "Item", "items", "select"]

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray | None]


@dataclass(frozen=True)
class Item:
    """One convolution of the suite. `arrays()` makes (x, w, bias); `count` is how often the network has this layer."""

    suite: str
    name: str
    input_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    options: dict[str, Any] = field(hash=False)
    arrays: Callable[[], Arrays]
    baseline: str
    count: int = 1

    @property
    def ndim(self) -> int:
        """Number of spatial axes."""
        return len(self.weight_shape) - 2

    @property
    def shape(self) -> str:
        """Shapes and what differs from a plain convolution, for a table: '1x3x224x224 * 64x3x7x7 s2'."""
        text = f"{'x'.join(map(str, self.input_shape))} * {'x'.join(map(str, self.weight_shape))}"
        stride, groups = self.options.get("stride", 1), self.options.get("groups", 1)
        return text + (f" s{stride}" if stride > 1 else "") + (f" g{groups}" if groups > 1 else "")


# -- networks: every convolution from input to output, in order -----------------------------------------------------------


class Layer(NamedTuple):
    """A square convolution: a `size` x `size` image of `channels` to `out` channels."""

    name: str
    channels: int
    out: int
    size: int
    kernel: int
    stride: int = 1
    padding: int = 0
    groups: int = 1


def resnet50() -> Iterator[Layer]:
    """ResNet-50 (He et al. 2015, table 1) with the stride in the 3x3 layer, as it is trained today."""
    yield Layer("conv1", 3, 64, 224, 7, 2, 3)
    channels, size = 64, 56
    for stage, (width, blocks) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)], start=2):
        for block in range(1, blocks + 1):
            stride = 2 if stage > 2 and block == 1 else 1
            name = f"conv{stage}_{block}"
            yield Layer(f"{name}.reduce", channels, width, size, 1)
            yield Layer(f"{name}.3x3", width, width, size, 3, stride, 1)
            yield Layer(f"{name}.expand", width, 4 * width, size // stride, 1)
            if block == 1:
                yield Layer(f"{name}.shortcut", channels, 4 * width, size, 1, stride)
            channels, size = 4 * width, size // stride


def vgg16() -> Iterator[Layer]:
    """VGG-16 (Simonyan and Zisserman 2014, configuration D)."""
    channels, size = 3, 224
    for stage, (width, layers) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)], start=1):
        for layer in range(1, layers + 1):
            yield Layer(f"conv{stage}_{layer}", channels, width, size, 3, 1, 1)
            channels = width
        size //= 2


def mobilenetv2() -> Iterator[Layer]:
    """MobileNetV2 (Sandler et al. 2018, table 2) of width 1."""
    yield Layer("stem", 3, 32, 224, 3, 2, 1)
    channels, size, block = 32, 112, 0
    for expansion, out, blocks, first_stride in [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
                                                 (6, 160, 3, 2), (6, 320, 1, 1)]:
        for stride in [first_stride] + [1] * (blocks - 1):
            block += 1
            width = channels * expansion
            if expansion > 1:
                yield Layer(f"block{block}.expand", channels, width, size, 1)
            yield Layer(f"block{block}.depthwise", width, width, size, 3, stride, 1, width)
            size //= stride
            yield Layer(f"block{block}.project", width, out, size, 1)
            channels = out
    yield Layer("head", channels, 1280, size, 1)


def convnext() -> Iterator[Layer]:
    """ConvNeXt-T (Liu et al. 2022, table 9), its linear layers as the 1x1 convolutions that they are."""
    yield Layer("stem", 3, 96, 224, 4, 4)
    size = 56
    for stage, (width, blocks) in enumerate([(96, 3), (192, 3), (384, 9), (768, 3)], start=1):
        if stage > 1:
            yield Layer(f"downsample{stage}", width // 2, width, size, 2, 2)
            size //= 2
        for block in range(1, blocks + 1):
            yield Layer(f"stage{stage}.{block}.depthwise", width, width, size, 7, 1, 3, width)
            yield Layer(f"stage{stage}.{block}.expand", width, 4 * width, size, 1)
            yield Layer(f"stage{stage}.{block}.project", 4 * width, width, size, 1)


def lenet() -> Iterator[Layer]:
    """LeNet-5 (LeCun et al. 1998, figure 2)."""
    yield Layer("C1", 1, 6, 32, 5)
    yield Layer("C3", 6, 16, 14, 5)
    yield Layer("C5", 16, 120, 5, 5)


NETWORKS: dict[str, tuple[Callable[[], Iterator[Layer]], int]] = {
    # name: (its convolutions, batch size)
    "resnet50": (resnet50, 1), "vgg16": (vgg16, 1), "mobilenetv2": (mobilenetv2, 1), "convnext": (convnext, 1),
    "lenet": (lenet, 64)}


def _network_items(suite: str) -> list[Item]:
    network, batch = NETWORKS[suite]
    names: dict[Layer, str] = {}
    counts: Counter[Layer] = Counter()
    for layer in network():
        shape = layer._replace(name="")
        names.setdefault(shape, layer.name)
        counts[shape] += 1
    return [_layer_item(suite, shape._replace(name=name), batch, counts[shape]) for shape, name in names.items()]


def _layer_item(suite: str, layer: Layer, batch: int, count: int) -> Item:
    input_shape = (batch, layer.channels, layer.size, layer.size)
    weight_shape = (layer.out, layer.channels // layer.groups, layer.kernel, layer.kernel)
    options = {"stride": layer.stride, "padding": layer.padding, "groups": layer.groups}
    return Item(suite, layer.name, input_shape, weight_shape, options, partial(_random_arrays, input_shape, weight_shape),
                "numpy im2col", count)


def _random_arrays(input_shape: tuple[int, ...], weight_shape: tuple[int, ...]) -> Arrays:
    random = np.random.default_rng(0)
    x = random.standard_normal(input_shape, dtype=np.float32)
    w = random.standard_normal(weight_shape, dtype=np.float32) / np.float32(math.sqrt(math.prod(weight_shape[1:])))
    return x, w, random.standard_normal(weight_shape[0], dtype=np.float32)


# -- filters ------------------------------------------------------------------------------------------------------------

PHOTO_FILTERS: list[tuple[str, Callable[[], np.ndarray], str]] = [
    ("gaussian 9x9", partial(imaging.gaussian, 9, 1.5), "scipy.ndimage.gaussian_filter"),
    ("sharpen 3x3", imaging.FILTERS["sharpen"], "scipy.ndimage.correlate"),
    ("sobel-x 3x3", imaging.FILTERS["sobel-x"], "scipy.ndimage.correlate"),
    ("laplacian 3x3", imaging.FILTERS["laplacian"], "scipy.ndimage.correlate"),
    ("motion blur 31x31", partial(imaging.motion, 31, 30.0), "scipy.signal.fftconvolve"),
    ("gabor 65x65", partial(imaging.gabor, 65, 16.0, 60.0), "scipy.signal.fftconvolve"),
]
AUDIO_FILTERS: list[tuple[str, Callable[[], np.ndarray]]] = [
    ("room reverb 4096", signals.room_response), ("low-pass 127", signals.low_pass)]


def _photo_items() -> list[Item]:
    options = {"padding": "same", "padding_mode": "symmetric"}
    made = [(name, np.asarray(kernel(), dtype=np.float32)[None, None], baseline) for name, kernel, baseline in PHOTO_FILTERS]
    return [Item("photo", name, (1, 1, 512, 512), kernel.shape, options, partial(_photo_arrays, kernel), baseline)
            for name, kernel, baseline in made]


def _photo_arrays(kernel: np.ndarray) -> Arrays:
    return signals.photograph().astype(np.float32)[None, None] / 255, kernel, None


def _audio_items() -> list[Item]:
    shape = (1, 1, 10 * signals.SAMPLE_RATE)
    # Correlation with the response reversed in time is the causal filter.
    made = [(name, np.ascontiguousarray(response()[::-1])[None, None]) for name, response in AUDIO_FILTERS]
    return [Item("audio", name, shape, kernel.shape, {"padding": "causal"}, partial(_audio_arrays, kernel),
                 "scipy.signal.oaconvolve") for name, kernel in made]


def _audio_arrays(kernel: np.ndarray) -> Arrays:
    return signals.chord()[None, None], kernel, None


# -- selection ----------------------------------------------------------------------------------------------------------

QUICK = {("resnet50", "conv1"), ("resnet50", "conv2_1.3x3"), ("resnet50", "conv4_1.expand"), ("vgg16", "conv3_2"),
         ("mobilenetv2", "block3.depthwise"), ("convnext", "stage2.1.depthwise"), ("lenet", "C3"), ("photo", "gaussian 9x9"),
         ("photo", "sharpen 3x3"), ("photo", "gabor 65x65"), ("audio", "room reverb 4096"), ("audio", "low-pass 127")}
SUITES = ("quick", "full", *NETWORKS, "photo", "audio")


def items(suite: str = "full") -> list[Item]:
    """The convolutions of a suite; "full" is all of them, "quick" a dozen that stand for the rest."""
    if suite in NETWORKS:
        return _network_items(suite)
    if suite == "photo":
        return _photo_items()
    if suite == "audio":
        return _audio_items()
    everything = [item for name in (*NETWORKS, "photo", "audio") for item in items(name)]
    return everything if suite == "full" else [item for item in everything if (item.suite, item.name) in QUICK]


def select(suite: str, layer: str = "") -> list[Item]:
    """The items of a suite whose "suite name" contains `layer`, whatever the case.

    Raises
    ------
    ValueError
        If no item is left; the message lists the names.
    """
    candidates = items(suite)
    chosen = [item for item in candidates if layer.lower() in f"{item.suite} {item.name}".lower()]
    if not chosen:
        names = ", ".join(item.name for item in candidates)
        raise ValueError(f"no layer of suite {suite!r} has {layer!r} in its name; there are {names}")
    return chosen
