"""The reference itself: against SciPy, `np.pad`, sums written out by hand, and the adjoint identity."""

import numpy as np
import pytest
import reference
import scipy.signal
from cases import CASES


def test_forward_by_hand():
    """Two taps on four points, every term written out."""
    x = np.array([[[1.0, 2.0, 3.0, 4.0]]])
    w = np.array([[[10.0, 1.0]]])
    np.testing.assert_array_equal(reference.conv(x, w)[0, 0], [10 + 2, 20 + 3, 30 + 4])
    np.testing.assert_array_equal(reference.conv(x, w, padding=((1, 0),), stride=2)[0, 0], [0 + 1, 20 + 3])
    np.testing.assert_array_equal(reference.conv(x, w, np.array([5.0]), dilation=3)[0, 0], [10 + 4 + 5])


def test_gradients_by_hand():
    """Stride 2 leaves the middle point to one output, an end to none."""
    gy = np.array([[[1.0, 2.0]]])
    w = np.array([[[10.0, 100.0]]])
    x = np.array([[[1.0, 2.0, 3.0, 4.0, 5.0]]])
    np.testing.assert_array_equal(reference.grad_input(gy, w, (1, 1, 5), stride=2)[0, 0], [10, 100, 20, 200, 0])
    np.testing.assert_array_equal(reference.grad_weight(gy, x, (1, 1, 2), stride=2)[0, 0], [1 + 6, 2 + 8])
    np.testing.assert_array_equal(reference.conv_transpose(gy, w, stride=2, output_padding=1)[0, 0], [10, 100, 20, 200, 0])


def test_border_zeros_take_part():
    """An infinite tap over a border of zeros is nan in both directions."""
    w = np.array([[[np.inf, 1.0]]])
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(reference.conv(np.ones((1, 1, 2)), w, padding=1)[0, 0], [np.nan, np.inf, np.inf])
        np.testing.assert_array_equal(reference.grad_input(np.ones((1, 1, 1)), w, (1, 1, 2))[0, 0], [np.inf, np.nan])


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (4, 2), (3, 3)])
def test_forward_is_scipy_correlate(shape):
    """A plain convolution is SciPy's "valid" correlation."""
    rng = np.random.default_rng(3)
    x, w = rng.standard_normal((7, 8)), rng.standard_normal(shape)
    expected = scipy.signal.correlate(x, w, mode="valid", method="direct")
    np.testing.assert_allclose(reference.conv(x[None, None], w[None, None])[0, 0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("mode", "numpy_mode"),
    [("zeros", "constant"), ("reflect", "reflect"), ("symmetric", "symmetric"), ("replicate", "edge"), ("circular", "wrap")],
)
@pytest.mark.parametrize("pads", [(0, 0), (1, 0), (0, 3), (4, 2)])
def test_borders_are_numpy_pad(mode, numpy_mode, pads):
    """Border modes are those of `np.pad`."""
    line = np.arange(1.0, 6.0)
    np.testing.assert_array_equal(reference.pad(line[None, None], (pads,), mode)[0, 0], np.pad(line, pads, mode=numpy_mode))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_passes_are_adjoint(case):
    """<conv(x, w), gy> = <x, grad_input(gy, w)> = <w, grad_weight(gy, x)>, in complex numbers."""
    rng = np.random.default_rng(4)
    x, w = _complex(rng, case.input_shape), _complex(rng, case.weight_shape)
    y = reference.conv(x, w, **case.options)
    gy = _complex(rng, y.shape)
    product = np.vdot(y, gy)
    close = 1e-12 * np.linalg.norm(y) * np.linalg.norm(gy)
    assert abs(np.vdot(x, reference.grad_input(gy, w, x.shape, **case.options)) - product) <= close
    assert abs(np.vdot(w, reference.grad_weight(gy, x, w.shape, **case.options)) - product) <= close


def _complex(rng, shape):
    return rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
