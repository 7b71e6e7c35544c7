"""The architecture: imports go downwards only, only `backends/` knows numba, and importing the package is light."""

import ast
import pathlib

import pytest
from helpers import python

import fastconv
from fastconv.backends import Backend, load

PACKAGE = pathlib.Path(fastconv.__file__).parent

# What the modules of a layer may import of the package, as layers; a layer is a module or a folder at the package's top.
HELPERS = {"backends/", "backends/_jit", "backends/_scratch", "backends/_simd", "backends/_*"}
ALLOWED = {
    "_version": set(),
    "_checks": set(),
    "_padding": {"_checks"},
    "problem": {"_checks", "_padding"},
    "_modes": set(),
    "_device": {"backends/_*"},
    "_arrays": {"problem", "_device"},
    "backends/": {"problem"},
    "backends/_jit": set(),
    "backends/_scratch": set(),
    "backends/_simd": {"backends/_jit", "backends/_scratch"},
    "backends/_*": {"problem", "_windows"} | HELPERS,
    "backends/*": {"problem"} | HELPERS,
    "lowering": {"problem", "lowering_on_device"} | HELPERS,
    "lowering_on_device": {"problem"} | HELPERS,
    "wisdom": {"problem", "_version"} | HELPERS,
    "asking": HELPERS,
    "dispatcher": {"problem", "wisdom", "asking", "lowering", "measuring", "explanation", "substitutes"} | HELPERS,
    "measuring": {"problem", "wisdom", "lowering"} | HELPERS,
    "explanation": {"problem"} | HELPERS,
    "parts": {"problem"},
    "substitutes": {"problem", "parts", "asking", "explanation", "backends/"},
    "_device_operands": {"_arrays", "_device"} | HELPERS,
    "_device_calls": {"problem", "asking", "_arrays", "_device", "_device_operands"} | HELPERS,
    "transfers": {"asking", "_arrays", "_device", "_device_operands"} | HELPERS,
    "_calls": {"problem", "wisdom", "asking", "dispatcher", "_arrays", "_device", "_device_calls", "_device_operands"} | HELPERS,
    "_planned": {"problem", "substitutes", "dispatcher", "_arrays", "_calls"},
    "_planned_on_device": {"problem", "asking", "dispatcher", "_arrays", "_device", "_device_calls", "_device_operands"} | HELPERS,
    "conv": {"problem", "dispatcher", "_arrays", "_calls", "_planned", "_device_calls", "_device_operands", "_planned_on_device"},
    "depthwise": {"_arrays", "conv"},
    "unfolding": {"problem", "_checks", "_arrays", "_calls"} | HELPERS,
    "local": {"problem", "_arrays", "_calls"} | HELPERS,
    "deformable": {"problem", "_arrays", "_calls", "conv"} | HELPERS,
    "linear": {"_checks", "_arrays", "_calls", "conv"} | HELPERS,
    "_receptive_field": set(),
    "_windows": {"_checks", "_padding"},
    "_pools_on_device": {"_device", "_device_calls", "_windows"} | HELPERS,
    "_pool_calls": {"_checks", "_arrays", "_calls", "_device", "_pools_on_device", "_windows"} | HELPERS,
    "_pool_docs": set(),
    "_max_pool": {"_arrays", "_calls", "_windows", "_pool_calls", "_pool_docs"},
    "_mean_pool": {"_checks", "_pool_calls", "_pool_docs"},
    "_adaptive_pool": {"_arrays", "_calls", "_pool_calls", "_pool_docs"},
    "pool": {"_max_pool", "_mean_pool", "_adaptive_pool"},
}
USERS = ("linalg", "signal", "ndimage", "nn", "dask")  # of the public functions
ALLOWED |= {name: {"_modes", "problem", "dispatcher", "_arrays", "_calls", "conv", "depthwise", "pool", "unfolding", "local",
                    "deformable", "linear", "_receptive_field", "linalg", "nn"} for name in USERS}
ALLOWED["nn"] |= {"asking", "_padding", "_planned", "_pool_calls", "local"} | HELPERS  # its kernels lie with the backends
TOP = ("__init__", "__main__", "cli", "bench", "train", "imaging", "config", "warming")  # these may import everything
SOURCES = sorted(PACKAGE.rglob("*.py"))


def dotted(path):
    """`backends/cpu_fft.py` as "backends.cpu_fft"; a folder's `__init__` as the folder."""
    parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imports(path):
    """(absolute name of the imported module or object, line) of every import statement, inside functions too."""
    package = ["fastconv", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((f"{prefix}.{alias.name}", node.lineno) for alias in node.names)


def layer(module):
    """The layer that a module belongs to: a key of ALLOWED, or one of TOP."""
    if module == "":
        return "__init__"
    folder, _, name = module.partition(".")
    if folder != "backends":
        return folder
    name = name.partition(".")[0]
    if name in ("", "_jit", "_scratch", "_simd"):
        return f"backends/{name}"
    return "backends/_*" if name.startswith("_") else "backends/*"


def own(name):
    """The part of an absolute name within the package, as far as it is a module; None for others."""
    parts = name.split(".")
    if parts[0] != "fastconv":
        return None
    while parts and not ((PACKAGE / "/".join(parts[1:])).is_dir() or (PACKAGE / ("/".join(parts[1:]) + ".py")).is_file()):
        parts.pop()
    return ".".join(parts[1:])


@pytest.mark.parametrize("path", SOURCES, ids=dotted)
def test_imports_go_downwards(path):
    """Each module imports only of the layers below its own."""
    module = dotted(path)
    mine = layer(module)
    if mine in TOP:
        return
    assert mine in ALLOWED, f"{module} is in no layer: give it one in {__file__}"
    for name, line in imports(path):
        target = own(name)
        if target is None or target == module or (mine not in ("backends/*", "backends/_*") and layer(target) == mine):
            continue
        assert layer(target) in ALLOWED[mine], f"{path}:{line}: {module} imports {target or 'fastconv'}"


@pytest.mark.parametrize("path", [p for p in SOURCES if not dotted(p).startswith("backends")], ids=dotted)
def test_only_backends_import_numba(path):
    """Kernels and everything of numba live in `backends/`."""
    assert not [line for name, line in imports(path) if name.split(".")[0] in ("numba", "llvmlite")]


@pytest.mark.parametrize("path", [p for p in SOURCES if dotted(p).startswith("backends.c")], ids=dotted)
def test_a_backend_is_one_file(path):
    """Its name is its module's, and it is in the registry without being listed anywhere."""
    device, _, name = path.stem.partition("_")
    if device != "cpu":
        pytest.skip("needs that device")
    assert name in fastconv.backends("cpu")
    mentions = [dotted(p) for p in SOURCES if any(n.split(".")[-1] == path.stem or f".{path.stem}." in n for n, _ in imports(p))]
    assert not mentions, f"{mentions} import {path.stem} by name"


def test_backend_records():
    """The record of each backend holds three functions and nothing inherits."""
    for name, backend in load("cpu").items():
        assert callable(backend.refuses) and callable(backend.seconds) and callable(backend.build), name
        assert isinstance(backend, Backend)


def test_import_is_light():
    """`import fastconv` starts no GPU and pulls in no optional or slow library."""
    heavy = ("scipy.signal", "scipy.ndimage", "torch", "rich", "matplotlib", "numba.cuda", "PIL", "dask", "hypothesis", "pytest")
    source = f"import sys, fastconv; print([name for name in {heavy!r} if name in sys.modules])"
    assert python(source).strip() == "[]"


def test_import_compiles_nothing():
    """Kernels are compiled by the first call that needs them; no threads are started before."""
    source = """
import threading
from numba.core import event
with event.install_recorder("numba:compile") as recorder:
    import fastconv
print(len(recorder.buffer), threading.active_count())
"""
    assert python(source).split() == ["0", "1"]


def test_public_names():
    """What `__all__` names exists, each function with a docstring."""
    for name in fastconv.__all__:
        value = getattr(fastconv, name)
        assert value.__doc__ or not callable(value), f"{name} has no docstring"


def test_design_names_are_there():
    """The interface of the issue, by name."""
    per_rank = (
        "conv{}d",
        "conv{}d_grad_input",
        "conv{}d_grad_weight",
        "conv{}d_backward",
        "conv_transpose{}d",
        "conv_transpose{}d_backward",
        "plan_conv{}d",
    )
    poolings = ("max_pool{}d", "max_unpool{}d", "avg_pool{}d", "lp_pool{}d", "adaptive_avg_pool{}d", "adaptive_max_pool{}d")
    per_rank += poolings + tuple(name + "_backward" for name in poolings)
    names = [name.format(n) for name in per_rank for n in (1, 2, 3)]
    names += [name + end for name in ("unfold", "fold", "linear", "deform_conv2d") for end in ("", "_backward")]
    names += [f"locally_connected{n}d{end}" for n in (1, 2) for end in ("", "_backward")]
    names += ["global_avg_pool", "global_max_pool", "global_avg_pool_backward", "global_max_pool_backward"]
    names += [
        "depthwise_conv2d",
        "separable_conv2d",
        "backends",
        "use_backend",
        "explain",
        "tune",
        "warmup",
        "wisdom",
        "set_num_threads",
        "get_num_threads",
        "show_config",
        "BackendError",
        "BackendFallbackWarning",
    ]
    missing = [name for name in names if not hasattr(fastconv, name) or name not in fastconv.__all__]
    assert not missing
    assert issubclass(fastconv.BackendError, ValueError)
    assert issubclass(fastconv.BackendFallbackWarning, UserWarning)
