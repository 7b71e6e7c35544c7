"""Minimal filtering on a GPU: both algorithms, chunks of tiles, parts of sums, and what is not finite. Runs where `test_cuda.py` does."""

import math

import numpy as np
import pytest
from cases import Case, channels_last, named
from helpers import (
    PASSES,
    assert_close,
    assert_same_nonfinite,
    expected,
    operands,
    poisoned,
    reference_pass,
    terms,
    tolerance,
)

from fastconv.backends import cuda_winograd
from fastconv.backends._cuda.context import SIMULATED_GPU, absence
from fastconv.backends._cuda.driver import address_of, resident, scratch
from fastconv.problem import Options, Problem

on_gpu = pytest.mark.skipif(absence() is not None, reason=str(absence()))

BOTH = list(cuda_winograd.ALGORITHMS)
ODD = Case("odd_everything", 2, (2, 6, 5, 11), (4, 3, 3, 3), {"padding": ((0, 2), (1, 3)), "groups": 2})
CROPPED = Case("output_larger_than_input", 2, (1, 2, 3, 4), (3, 2, 3, 3), {"padding": 5})
CASES = [ODD, channels_last(ODD), CROPPED, *named("single_output")]
LARGE = Case("many_tiles", 2, (2, 3, 13, 14), (5, 3, 3, 3), {"padding": 1})


def problem_of(case, pass_name, dtype="float32", **options):
    shapes = case.input_shape, case.weight_shape
    return Problem.create(pass_name, case.ndim, *shapes, dtype, Options(**case.options, **options), device="cuda")


def computed(case, pass_name, first, second):
    """A kernel's answer, built anew: with the algorithms and sizes that a test has set."""
    if pass_name == "grad_weight":  # the public function's order is another
        first, second = second, first
    kernel = cuda_winograd.build(problem_of(case, pass_name, first.dtype.name))
    arrays = [resident(array) for array in (first, second, poisoned(operands(case).target_shape(pass_name), first.dtype))]
    x, w, out = map(address_of, arrays)
    with scratch(0, *kernel.packed) as packed:
        kernel.pack(0, w, packed)
        kernel.run(0, x, w, packed, None, out)
    return arrays[2].copy_to_host()


def check(case, pass_name):
    first, second = (array.astype(np.float32) for array in operands(case).of(pass_name))
    result = computed(case, pass_name, first, second)
    assert_close(result, expected(case, pass_name), tolerance("winograd", "float32", terms(case, pass_name)))


@on_gpu
@pytest.mark.parametrize("algorithm", BOTH, ids=str)
@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_algorithm(case, pass_name, algorithm, monkeypatch):
    """Both algorithms compute every pass, whichever is chosen."""
    monkeypatch.setattr(cuda_winograd, "ALGORITHMS", (algorithm,))
    check(case, pass_name)


@on_gpu
@pytest.mark.parametrize("pass_name", PASSES)
def test_chunks_and_parts(pass_name, monkeypatch):
    """Tiles are done in chunks that end within an image, and sums over them in parts."""
    monkeypatch.setattr(cuda_winograd, "CHUNK_BYTES", 36 * 8 * 4 * 12)
    monkeypatch.setattr(cuda_winograd, "CHUNK_MULTIPLE", 4)
    monkeypatch.setattr(cuda_winograd, "LEAST_DEPTH", 4)
    monkeypatch.setattr(cuda_winograd, "DEPTH_MULTIPLE", 4)
    monkeypatch.setattr(cuda_winograd, "ALGORITHMS", BOTH[:1])
    kernel = cuda_winograd.build(problem_of(LARGE, pass_name))
    assert len(kernel.chunks) > 2
    check(LARGE, pass_name)


@on_gpu
@pytest.mark.parametrize("algorithm", BOTH, ids=str)
@pytest.mark.parametrize("operand", [0, 1])
@pytest.mark.parametrize("pass_name", PASSES)
def test_nonfinite(pass_name, operand, algorithm, monkeypatch):
    """NaN and Inf in a corner, and in the middle, of either operand reach the sums that they belong to and no others."""
    monkeypatch.setattr(cuda_winograd, "ALGORITHMS", (algorithm,))
    arrays = [array.astype(np.float32) for array in operands(ODD).of(pass_name)]
    arrays[operand].reshape(-1)[0] = np.nan
    arrays[operand][tuple(n // 2 for n in arrays[operand].shape)] = np.inf
    result = computed(ODD, pass_name, *arrays)
    desired = reference_pass(ODD, pass_name, *(array.astype(np.float64) for array in arrays))
    assert_same_nonfinite(result, desired)
    finite = np.isfinite(desired)
    assert finite.any()
    assert_close(np.where(finite, result, 0), np.where(finite, desired, 0), tolerance("winograd", "float32"))


@on_gpu
def test_overflow_is_summed_directly():
    """Transforms that overflow, where the sum does not, leave the sum as it is."""
    x, w = np.full((1, 1, 6, 6), 2e38, np.float32), np.zeros((1, 1, 3, 3), np.float32)
    w[0, 0, 1, 1] = 1.0
    case = Case("huge", 2, x.shape, w.shape, {"padding": 1})
    np.testing.assert_array_equal(computed(case, "forward", x, w), x)


@pytest.mark.parametrize("pass_name", PASSES)
def test_scratch_is_bounded(pass_name):
    """The transforms of a large problem stay within their share of memory."""
    case = Case("vgg", 2, (32, 64, 224, 224), (64, 64, 3, 3), {"padding": 1})
    for algorithm in BOTH:
        problem = problem_of(case, pass_name)
        chunks = cuda_winograd.chunks_of(problem, algorithm)
        tiles = problem.batch * math.prod(cuda_winograd.convolution_of(problem).tiles(algorithm))
        assert sum(count for _, count in chunks) == tiles
        assert [first for first, _ in chunks] == list(range(0, tiles, chunks[0][1]))
        assert 4 * algorithm.products * 128 * chunks[0][1] <= 1.01 * cuda_winograd.CHUNK_BYTES


def test_choice():
    """Large maps take large tiles; where these are mostly empty, small ones are taken."""
    large, small = (Case("choice", 2, (32, 256, n, n), (256, 256, 3, 3), {"padding": 1}) for n in (28, 2))
    chosen = [cuda_winograd.choose(problem_of(case, "forward"), SIMULATED_GPU).outputs for case in (large, small)]
    assert chosen == [4, 2]


@pytest.mark.parametrize(("options", "word"), [({"stride": 2}, "stride"), ({"dilation": 2}, "dilation"), ({"accuracy": "strict"}, "strict"),
                                               ({"padding": 1, "padding_mode": "reflect"}, "border")])
def test_refusals(options, word):
    """What it cannot do it refuses in words."""
    case = Case("refused", 2, (1, 8, 9, 9), (8, 8, 3, 3), {})
    assert word in cuda_winograd.refuses(problem_of(case, "forward", **options))
    assert cuda_winograd.refuses(problem_of(case, "forward")) is None
    wide = Case("wide", 2, (1, 8, 9, 9), (8, 8, 5, 5), {})
    assert "5x5" in cuda_winograd.refuses(problem_of(wide, "forward"))
