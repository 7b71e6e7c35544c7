"""The sum over all but the channels: what a bias's gradient is."""

import numpy as np
import pytest
from helpers import assert_same_nonfinite

from fastconv.backends import load
from fastconv.backends._sums import BLOCK, TASK, channel_sums
from fastconv.problem import Options, Problem

SHAPES = [(2, 3, 7), (1, 1, 1), (3, 5, BLOCK + 17), (1, 2, 2 * TASK + 1), (4000, 3, 1), (BLOCK + 3, 70, 1), (9, 1, 1), (500, 7, 33)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_are_those_of_longer_numbers(shape, dtype):
    """Channels first and last, planes of one element and of several tasks."""
    image = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    exact = image.astype(np.longdouble).sum(axis=(0, 2))
    result = channel_sums(image.shape, 1, image.dtype)(image)
    assert result.dtype == image.dtype and result.shape == exact.shape
    allowed = 8 * np.finfo(dtype).eps * np.sqrt(image.size / shape[1])
    assert np.abs(result - exact).max() <= allowed


@pytest.mark.parametrize("shape", [(2, 3, 7000), (7000, 3, 1)], ids=str)
def test_nonfinite_values_reach_their_own_channel(shape):
    image = np.ones(shape, np.float32)
    image[1, 0, 0], image[0, 1, 0], image[1, 1, 0] = np.inf, np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        assert_same_nonfinite(channel_sums(image.shape, 1, image.dtype)(image), image.sum(axis=(0, 2)))


@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 40_000), (1, 1, 1, 600, 500), (30, 2, 1, 100, 100)], ids=str)
@pytest.mark.parametrize("name", [name for name in load("cpu") if name != "separable"])
def test_weight_gradients_are_sums_in_blocks(name, shape):
    """A float32 sum of 40 000 positive terms one after the other errs by 5e-6."""
    rng = np.random.default_rng(0)
    x, gy = rng.random(shape, np.float32), rng.random(shape, np.float32)
    problem = Problem.create("grad_weight", 3, shape, (shape[1], shape[1], 1, 1, 3), "float32", Options(padding=(0, 0, 1)))
    backend = load("cpu")[name]
    if backend.refuses(problem) is not None:
        pytest.skip("refused")
    kernel = backend.build(problem)
    gw = np.empty(problem.weight_shape, np.float32)
    kernel.run(x, kernel.pack(gy), None, gw)
    padded = np.pad(x, [(0, 0)] * 4 + [(1, 1)]).astype(float)
    exact = np.stack([np.einsum("nodhw,ncdhw->oc", gy.astype(float), padded[..., k:k + shape[-1]]) for k in range(3)], -1)
    assert np.abs(gw.reshape(exact.shape) - exact).max() <= 1e-6 * exact.max()
