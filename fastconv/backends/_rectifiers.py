"""The activations that kernels apply themselves: values below zero times a slope, then a cut at a ceiling."""

import math

# activation -> (slope, ceiling)
RECTIFIERS = {None: (1.0, math.inf), "relu": (0.0, math.inf), "relu6": (0.0, 6.0), "leaky_relu": (0.01, math.inf)}
