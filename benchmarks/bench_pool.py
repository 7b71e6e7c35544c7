"""Pooling: the layers of well-known networks, forward and backward, and calls too small to matter but for their overhead."""

import numpy as np

import fastconv as fc

LAYERS = {
    "max 3x3 /2 1x64x112x112": ("max_pool2d", (1, 64, 112, 112), (3, 2, 1)),
    "max 3x3 /2 32x64x56x56": ("max_pool2d", (32, 64, 56, 56), (3, 2, 1)),
    "max 2x2 1x64x112x112": ("max_pool2d", (1, 64, 112, 112), (2,)),
    "max 2x2 32x64x56x56": ("max_pool2d", (32, 64, 56, 56), (2,)),
    "avg 2x2 32x64x56x56": ("avg_pool2d", (32, 64, 56, 56), (2,)),
    "avg 3x3 32x64x56x56": ("avg_pool2d", (32, 64, 56, 56), (3, 1, 1)),
    "lp 2x2 32x64x56x56": ("lp_pool2d", (32, 64, 56, 56), (2, 2)),
    "max 2 32x64x3136": ("max_pool1d", (32, 64, 3136), (2,)),
    "avg 3 32x64x3136": ("avg_pool1d", (32, 64, 3136), (3, 1, 1)),
    "max 2x2x2 4x32x16x28x28": ("max_pool3d", (4, 32, 16, 28, 28), (2,)),
    "avg 2x2x2 4x32x16x28x28": ("avg_pool3d", (4, 32, 16, 28, 28), (2,)),
    "global 1x2048x7x7": ("global_avg_pool", (1, 2048, 7, 7), ()),
    "global 32x512x7x7": ("global_avg_pool", (32, 512, 7, 7), ()),
    "global max 32x512x7x7": ("global_max_pool", (32, 512, 7, 7), ()),
    "adaptive avg 6 8x256x13x13": ("adaptive_avg_pool2d", (8, 256, 13, 13), (6,)),
    "adaptive max 6 8x256x13x13": ("adaptive_max_pool2d", (8, 256, 13, 13), (6,)),
    "max 2x2 64x16x10x10": ("max_pool2d", (64, 16, 10, 10), (2,)),
    "avg 3x3 /2 1x64x112x112": ("avg_pool2d", (1, 64, 112, 112), (3, 2, 1)),
    "avg 2x2 1x128x56x56": ("avg_pool2d", (1, 128, 56, 56), (2,)),
    "max 5x5 1x256x20x20": ("max_pool2d", (1, 256, 20, 20), (5, 1, 2)),
    "lp 3 32x64x3136": ("lp_pool1d", (32, 64, 3136), (2, 3)),
    "lp 2x2x2 4x32x16x28x28": ("lp_pool3d", (4, 32, 16, 28, 28), (2, 2)),
    "max 3x3x3 /2 1x64x16x56x56": ("max_pool3d", (1, 64, 16, 56, 56), (3, 2, 1)),
    "avg 3x3x3 /2 1x64x16x56x56": ("avg_pool3d", (1, 64, 16, 56, 56), (3, 2, 1)),
    "adaptive avg 16 32x64x100": ("adaptive_avg_pool1d", (32, 64, 100), (16,)),
    "adaptive max 16 32x64x100": ("adaptive_max_pool1d", (32, 64, 100), (16,)),
    "adaptive avg 4 4x64x9x18x18": ("adaptive_avg_pool3d", (4, 64, 9, 18, 18), (4,)),
    "adaptive max 4 4x64x9x18x18": ("adaptive_max_pool3d", (4, 64, 9, 18, 18), (4,)),
    "adaptive avg 7 1x512x14x14": ("adaptive_avg_pool2d", (1, 512, 14, 14), (7,)),
    "tiny": ("max_pool2d", (1, 2, 4, 4), (2,)),
}


class Layers:
    """Seconds of a layer in each layout."""

    params = (list(LAYERS), ["NCHW", "NHWC"])
    param_names = ("layer", "layout")

    def setup(self, layer, layout):
        name, shape, self.options = LAYERS[layer]
        x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        self.x = x if layout == "NCHW" else np.ascontiguousarray(np.moveaxis(x, 1, -1))
        self.pool = getattr(fc, name)
        self.backward = getattr(fc, f"{name}_backward")
        self.second = self.x.shape if "avg" in name else self.x
        self.gy = self.pool(self.x, *self.options, layout=layout)
        self.options_back = () if "adaptive" in name else self.options  # an adaptive pool's is told by the gradient's shape
        self.backward(self.gy, self.second, *self.options_back, layout=layout)

    def time_forward(self, layer, layout):
        self.pool(self.x, *self.options, layout=layout)

    def time_backward(self, layer, layout):
        self.backward(self.gy, self.second, *self.options_back, layout=layout)
