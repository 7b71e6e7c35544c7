"""fastconv: the fastest convolution for NumPy arrays that this machine can do.

Start with `conv2d`; `explain` tells which backend it uses and why, `backends` which there are.
"""

from typing import TYPE_CHECKING, Any

from . import wisdom
from ._version import __version__
from .asking import BackendFallbackWarning, backends, use_backend
from .backends import BackendError
from .config import get_num_threads, set_num_threads, show_config, warmup
from .conv import (
    Convolution,
    conv1d,
    conv1d_backward,
    conv1d_grad_input,
    conv1d_grad_weight,
    conv2d,
    conv2d_backward,
    conv2d_grad_input,
    conv2d_grad_weight,
    conv3d,
    conv3d_backward,
    conv3d_grad_input,
    conv3d_grad_weight,
    conv_transpose1d,
    conv_transpose1d_backward,
    conv_transpose2d,
    conv_transpose2d_backward,
    conv_transpose3d,
    conv_transpose3d_backward,
    plan_conv1d,
    plan_conv2d,
    plan_conv3d,
)
from .depthwise import depthwise_conv2d, separable_conv2d
from .dispatcher import explain, tune

if TYPE_CHECKING:
    from . import nn

__all__ = [
    "BackendError",
    "BackendFallbackWarning",
    "Convolution",
    "__version__",
    "backends",
    "conv1d",
    "conv1d_backward",
    "conv1d_grad_input",
    "conv1d_grad_weight",
    "conv2d",
    "conv2d_backward",
    "conv2d_grad_input",
    "conv2d_grad_weight",
    "conv3d",
    "conv3d_backward",
    "conv3d_grad_input",
    "conv3d_grad_weight",
    "conv_transpose1d",
    "conv_transpose1d_backward",
    "conv_transpose2d",
    "conv_transpose2d_backward",
    "conv_transpose3d",
    "conv_transpose3d_backward",
    "depthwise_conv2d",
    "explain",
    "get_num_threads",
    "nn",
    "plan_conv1d",
    "plan_conv2d",
    "plan_conv3d",
    "separable_conv2d",
    "set_num_threads",
    "show_config",
    "tune",
    "use_backend",
    "warmup",
    "wisdom",
]

LAZY_MODULES = ("nn",)  # imported when they are first asked for


def __getattr__(name: str) -> Any:
    if name in LAZY_MODULES:
        import importlib

        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
