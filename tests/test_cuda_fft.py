"""The forms of CUDA's fft, each by itself: the dispatcher's cost model takes one of them, and the tests over the registry see that one."""

import numpy as np
import pytest
from cases import named
from helpers import PASSES, assert_close, assert_same_nonfinite, expected, operands, reference_pass, terms, tolerance

from fastconv.backends import cuda_fft
from fastconv.backends._cuda.driver import absence, address_of, resident, scratch
from fastconv.backends._cuda.fft import FUSED, READY, SUMMED
from fastconv.problem import Options, Problem

pytestmark = pytest.mark.skipif(absence() is not None, reason=str(absence()))


def compute(case, pass_name, first, second, form, monkeypatch):
    """The pass in one form, by the kernel itself."""
    monkeypatch.setattr(cuda_fft, "choose", lambda problem, machine: form)
    problem = Problem.create(pass_name, case.ndim, case.input_shape, case.weight_shape, "float32", Options(**case.options), device="cuda")
    assert cuda_fft.refuses(problem) is None
    kernel = cuda_fft.Fft(problem)
    if pass_name == "grad_weight":
        first, second = second, first
    empty = np.full(operands(case).target_shape(pass_name), np.nan)
    arrays = [resident(np.ascontiguousarray(a, np.float32)) for a in (first, second, empty)]
    x, w, y = map(address_of, arrays)
    with scratch(0, *kernel.packed) as packed:
        kernel.pack(0, w, packed)
        kernel.run(0, x, w, packed, None, y)
    return arrays[2].copy_to_host()


CHECKED = [(name, cuda_fft.Form(8, single, source)) for name, single, source in (
    ("depthwise", False, FUSED), ("depthwise", False, READY), ("kernel_4x4_even_padded", False, SUMMED), ("groups_2", False, READY),
    ("kernel_2x5", False, READY), ("single_row", False, READY), ("asymmetric_pads", False, READY), ("dilation_2", False, READY),
    ("dilation_2", True, SUMMED), ("input_smaller_than_tile_nhwc", False, READY))]


@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize(("name", "form"), CHECKED, ids=[f"{name}-{form.source}{'-single' * form.single}" for name, form in CHECKED])
def test_form(name, form, pass_name, monkeypatch):
    """Every form gives the reference's answer, for one block of the kernel and for several."""
    case = named(name)[0]
    if form.source == FUSED and pass_name == "grad_weight":
        pytest.skip("a weight gradient sums over tiles")
    result = compute(case, pass_name, *operands(case).of(pass_name), form, monkeypatch)
    assert_close(result, expected(case, pass_name), tolerance("fft", "float32", terms(case, pass_name)))


@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("source", [SUMMED, READY])
def test_chunks(source, pass_name, monkeypatch):
    """Images go through a bounded scratch memory, a few at a time."""
    case = named("batch_of_3")[0]
    monkeypatch.setattr(cuda_fft, "SCRATCH_BYTES", 1)
    result = compute(case, pass_name, *operands(case).of(pass_name), cuda_fft.Form(8, False, source), monkeypatch)
    assert_close(result, expected(case, pass_name), tolerance("fft", "float32", terms(case, pass_name)))


@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_nonfinite(value, pass_name, monkeypatch):
    """Products of matrices of spectra carry no NaN further than the direct sum does, from either operand."""
    case = named("input_smaller_than_tile")[0]
    for spoiled in (0, 1):
        pair = [a.astype(np.float32) for a in operands(case).of(pass_name)]
        pair[spoiled].reshape(-1)[pair[spoiled].size // 3] = value
        result = compute(case, pass_name, *pair, cuda_fft.Form(8, False, READY), monkeypatch)
        assert_same_nonfinite(result, reference_pass(case, pass_name, *(a.astype(np.float64) for a in pair)))
