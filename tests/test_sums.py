"""The sum over all but the channels: what a bias's gradient is."""

import numpy as np
import pytest
from helpers import assert_same_nonfinite

from fastconv.backends._sums import BLOCK, TASK, channel_sums

SHAPES = [(2, 3, 7), (1, 1, 1), (3, 5, BLOCK + 17), (1, 2, 2 * TASK + 1), (4000, 3, 1), (BLOCK + 3, 70, 1), (9, 1, 1), (500, 7, 33)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_are_those_of_longer_numbers(shape, dtype):
    """Channels first and last, planes of one element and of several tasks."""
    image = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    exact = image.astype(np.longdouble).sum(axis=(0, 2))
    result = channel_sums(image, 1)
    assert result.dtype == image.dtype and result.shape == exact.shape
    allowed = 8 * np.finfo(dtype).eps * np.sqrt(image.size / shape[1])
    assert np.abs(result - exact).max() <= allowed


@pytest.mark.parametrize("shape", [(2, 3, 7000), (7000, 3, 1)], ids=str)
def test_nonfinite_values_reach_their_own_channel(shape):
    image = np.ones(shape, np.float32)
    image[1, 0, 0], image[0, 1, 0], image[1, 1, 0] = np.inf, np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        assert_same_nonfinite(channel_sums(image, 1), image.sum(axis=(0, 2)))
