"""The examples in the docstrings of the installed package run, and every public function has one."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import fastconv as fc

MODULES = ["fastconv", *(m.name for m in pkgutil.walk_packages(fc.__path__, "fastconv.") if not m.name.endswith("__main__"))]
FUNCTIONS = [name for name in fc.__all__ if inspect.isfunction(getattr(fc, name))]


@pytest.mark.parametrize("name", [m for m in MODULES if m != "fastconv.conv"])
def test_examples(name):
    if name.endswith("._cuda.ptx"):
        pytest.importorskip("numba_cuda", reason="the primitives of CUDA kernels need its compiler")
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert result.failed == 0


@pytest.mark.parametrize("name", FUNCTIONS)
def test_example_of_each_public_function(name):
    """Functions made by a factory do not belong to a module in doctest's eyes: their examples are run one by one."""
    function = getattr(fc, name)
    examples = doctest.DocTestParser().get_doctest(function.__doc__, {}, name, None, None)
    assert examples.examples, f"{name} has no example"
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    runner.run(examples)
    assert runner.failures == 0


# Bases, records, modules.
NOT_CALLED = {"Backprop", "Fused", "Gradients", "Layer", "LayerSummary", "Optimizer", "Parameter", "Schedule", "initializers"}


@pytest.mark.parametrize("name", sorted(set(fc.nn.__all__) - NOT_CALLED))
def test_example_of_each_name_of_nn(name):
    """Layers, losses, optimizers, schedules: each with an example, which `test_examples` runs."""
    assert ">>> " in getattr(fc.nn, name).__doc__, f"{name} has no example"
