"""fastconv: the fastest convolution for NumPy arrays that this machine can do.

Start with `conv2d`; `explain` tells which backend it uses and why, `backends` which there are.
"""

from typing import TYPE_CHECKING, Any

from . import wisdom
from ._version import __version__
from .asking import BackendFallbackWarning, backends, use_backend
from .backends import BackendError
from .config import get_num_threads, set_num_threads, show_config
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
from .deformable import deform_conv2d, deform_conv2d_backward
from .depthwise import depthwise_conv2d, separable_conv2d
from .dispatcher import explain, tune
from .linear import linear, linear_backward
from .local import (
    locally_connected1d,
    locally_connected1d_backward,
    locally_connected2d,
    locally_connected2d_backward,
)
from .pool import (
    adaptive_avg_pool1d,
    adaptive_avg_pool1d_backward,
    adaptive_avg_pool2d,
    adaptive_avg_pool2d_backward,
    adaptive_avg_pool3d,
    adaptive_avg_pool3d_backward,
    adaptive_max_pool1d,
    adaptive_max_pool1d_backward,
    adaptive_max_pool2d,
    adaptive_max_pool2d_backward,
    adaptive_max_pool3d,
    adaptive_max_pool3d_backward,
    avg_pool1d,
    avg_pool1d_backward,
    avg_pool2d,
    avg_pool2d_backward,
    avg_pool3d,
    avg_pool3d_backward,
    global_avg_pool,
    global_avg_pool_backward,
    global_max_pool,
    global_max_pool_backward,
    lp_pool1d,
    lp_pool1d_backward,
    lp_pool2d,
    lp_pool2d_backward,
    lp_pool3d,
    lp_pool3d_backward,
    max_pool1d,
    max_pool1d_backward,
    max_pool2d,
    max_pool2d_backward,
    max_pool3d,
    max_pool3d_backward,
    max_unpool1d,
    max_unpool1d_backward,
    max_unpool2d,
    max_unpool2d_backward,
    max_unpool3d,
    max_unpool3d_backward,
)
from .transfers import asarray, asnumpy
from .unfolding import fold, fold_backward, unfold, unfold_backward
from .warming import warmup

if TYPE_CHECKING:
    from . import linalg, nn

__all__ = [
    "BackendError",
    "BackendFallbackWarning",
    "Convolution",
    "__version__",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool1d_backward",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool2d_backward",
    "adaptive_avg_pool3d",
    "adaptive_avg_pool3d_backward",
    "adaptive_max_pool1d",
    "adaptive_max_pool1d_backward",
    "adaptive_max_pool2d",
    "adaptive_max_pool2d_backward",
    "adaptive_max_pool3d",
    "adaptive_max_pool3d_backward",
    "asarray",
    "asnumpy",
    "avg_pool1d",
    "avg_pool1d_backward",
    "avg_pool2d",
    "avg_pool2d_backward",
    "avg_pool3d",
    "avg_pool3d_backward",
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
    "deform_conv2d",
    "deform_conv2d_backward",
    "depthwise_conv2d",
    "explain",
    "fold",
    "fold_backward",
    "get_num_threads",
    "global_avg_pool",
    "global_avg_pool_backward",
    "global_max_pool",
    "global_max_pool_backward",
    "linalg",
    "linear",
    "linear_backward",
    "locally_connected1d",
    "locally_connected1d_backward",
    "locally_connected2d",
    "locally_connected2d_backward",
    "lp_pool1d",
    "lp_pool1d_backward",
    "lp_pool2d",
    "lp_pool2d_backward",
    "lp_pool3d",
    "lp_pool3d_backward",
    "max_pool1d",
    "max_pool1d_backward",
    "max_pool2d",
    "max_pool2d_backward",
    "max_pool3d",
    "max_pool3d_backward",
    "max_unpool1d",
    "max_unpool1d_backward",
    "max_unpool2d",
    "max_unpool2d_backward",
    "max_unpool3d",
    "max_unpool3d_backward",
    "nn",
    "plan_conv1d",
    "plan_conv2d",
    "plan_conv3d",
    "separable_conv2d",
    "set_num_threads",
    "show_config",
    "tune",
    "unfold",
    "unfold_backward",
    "use_backend",
    "warmup",
    "wisdom",
]

LAZY_MODULES = ("linalg", "nn")  # imported when they are first asked for


def __getattr__(name: str) -> Any:
    if name in LAZY_MODULES:
        import importlib

        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
