"""Where there is no GPU, no driver or no numba-cuda: everything else works, and what asks for one hears why and what mends it."""

import warnings

import numpy as np
import pytest
from helpers import python

import fastconv as fc
from fastconv.backends._cuda.driver import absence

pytestmark = pytest.mark.skipif(absence() is None, reason="there is a GPU, or the simulator")
INSTALL = "pip install 'fastconv[cuda]'"
NAMES = ("cuda", "cuda_direct", "cuda_im2col")


def arrays(dtype=np.float32):
    rng = np.random.default_rng(0)
    return rng.standard_normal((1, 3, 6, 7)).astype(dtype), rng.standard_normal((4, 3, 3, 3)).astype(dtype)


def test_names():
    """The GPU's backends are known everywhere, by the names that choose them."""
    names = fc.backends("cuda")
    assert {"cuda_direct", "cuda_im2col"} <= set(names) and all(name.startswith("cuda_") for name in names)
    assert not set(names) & set(fc.backends())
    with pytest.raises(ValueError, match=r"'cuda_none'.*valid names: auto, direct.*cuda, cuda_direct"):
        fc.conv2d(*arrays(), backend="cuda_none")


@pytest.mark.parametrize("name", NAMES)
def test_argument_says_why_and_what_mends_it(name):
    """The name as asked, the reason, and the line to type; whatever the function."""
    x, w = arrays()
    calls = {"conv2d": lambda: fc.conv2d(x, w, backend=name),
             "float16": lambda: fc.conv2d(x.astype(np.float16), w.astype(np.float16), backend=name),
             "conv_transpose2d": lambda: fc.conv_transpose2d(x, w.transpose(1, 0, 2, 3), backend=name),
             "conv2d_backward": lambda: fc.conv2d_backward(fc.conv2d(x, w), x, w, backend=name),
             "plan_conv2d": lambda: fc.plan_conv2d(w, backend=name),
             "explain": lambda: fc.explain(x.shape, w.shape, backend=name)}
    for function, call in calls.items():
        with pytest.raises(fc.BackendError) as refused:
            call()
        assert repr(name) in str(refused.value) and INSTALL in str(refused.value), function


@pytest.mark.parametrize("name", NAMES)
def test_use_backend_says_so_at_the_call(name):
    """The block itself may be entered: only a call needs the GPU."""
    with fc.use_backend(name), pytest.raises(fc.BackendError, match=f"'{name}'"):
        fc.conv2d(*arrays())
    fc.conv2d(*arrays())


@pytest.mark.parametrize("name", NAMES)
def test_variable_falls_back_with_one_warning(name, monkeypatch):
    """FASTCONV_BACKEND is a wish: the processor's answer, bit for bit, and one warning that points at the caller."""
    x, w = arrays()
    desired = fc.conv2d(x, w)
    monkeypatch.setenv("FASTCONV_BACKEND", name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            np.testing.assert_array_equal(fc.conv2d(x, w), desired)
        np.testing.assert_array_equal(fc.plan_conv2d(w)(x), desired)
        assert fc.explain(x.shape, w.shape).chosen in fc.backends()
        fc.conv2d_backward(desired, x, w)
    (warning,) = caught
    assert warning.category is fc.BackendFallbackWarning
    assert repr(name) in str(warning.message) and "processor" in str(warning.message)
    assert warning.filename == __file__


def test_argument_is_stronger_than_the_variable(monkeypatch):
    """A backend of the processor that is asked for is used, without a word on the variable."""
    monkeypatch.setenv("FASTCONV_BACKEND", "cuda")
    x, w = arrays()
    np.testing.assert_array_equal(fc.conv2d(x, w, backend="direct"), fc.plan_conv2d(w, backend="direct")(x))


def test_nothing_of_cuda_is_imported():
    """A call on NumPy's arrays does not look for a GPU."""
    source = """
import sys, numpy as np, fastconv as fc
fc.conv2d(np.ones((1, 1, 4, 4), np.float32), np.ones((1, 1, 3, 3), np.float32))
fc.explain((1, 1, 4, 4), (1, 1, 3, 3))
print([name for name in sys.modules if name.startswith(("numba.cuda", "numba_cuda", "cuda.", "fastconv.backends.cuda_"))])
"""
    assert python(source).strip() == "[]"


def test_info_and_bench_say_why(capsys):
    """One line each."""
    from fastconv import cli

    assert cli.main(["info"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("gpu  ")]
    assert "none: " in line and INSTALL in line
    for arguments in (["bench", "--device", "cuda"], ["bench", "--device", "cuda", "--backend", "cuda_direct"]):
        assert cli.main(arguments) == 2
        assert INSTALL in capsys.readouterr().err
    assert cli.main(["bench", "--backend", "cuda_direct"]) == 2
    assert "there is no backend 'cuda_direct'" in capsys.readouterr().err


def test_moving_and_tuning_say_why():
    """Arrays stay where they are."""
    x, w = arrays()
    with pytest.raises(fc.BackendError, match="pip install"):
        fc.asarray(x, device="cuda")
    with pytest.raises(fc.BackendError, match="pip install"):
        fc.tune([(x.shape, w.shape, {"device": "cuda"})], save=False)
    assert fc.asarray(x) is x and fc.asnumpy(x) is x
