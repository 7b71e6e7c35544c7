"""Convolution as a linear operator: matrices, adjoints, the convolution theorem, and the algebra that follows."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.sparse.linalg import lsqr

import fastconv as fc
from fastconv._receptive_field import _step_of
from fastconv.linalg import aslinearoperator, circulant, circular_convolve, receptive_field, shift_matrix, toeplitz_matrix

CONV = {1: fc.conv1d, 2: fc.conv2d, 3: fc.conv3d}
MAPS = [
    ((5,), (9,), {}),
    ((4,), (7,), {"stride": 2, "padding": [(1, 2)]}),
    ((3, 2), (5, 6), {"padding": "same"}),
    ((2, 3), (6, 5), {"padding": 1, "padding_mode": "reflect"}),
    ((3, 3), (4, 5), {"padding": 2, "padding_mode": "circular"}),
    ((4, 3, 5), (3, 8), {"padding": 2, "dilation": 2}),
    ((4, 2, 3, 2), (4, 5, 6), {"groups": 2, "stride": (1, 2), "padding": ((1, 0), (0, 2))}),
    ((3, 2, 2, 4), (5, 6, 2), {"layout": "NHWC"}),
    ((3, 2, 3, 3), (2, 2, 6, 5), {"stride": 2, "padding": 1}),
    ((2, 3, 2, 2, 2), (3, 3, 4, 3), {"padding": 1}),
]


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def weights_of(rng, shape, options):
    if options.get("layout") == "NHWC":
        shape = (shape[1], shape[2], shape[0] - 1, shape[3])  # kh, kw, C, O
    return rng.standard_normal(shape)


def convolve(x, w, options):
    """The convolution that a matrix or an operator stands for, of an input shaped as theirs."""
    if w.ndim <= 2:
        return CONV[w.ndim](x[None], w[None, None], **options)[0]
    return CONV[w.ndim - 2](x, w, **options)


@pytest.mark.parametrize(("w_shape", "shape", "options"), MAPS)
class TestAsMatrix:
    def test_toeplitz_matrix(self, rng, w_shape, shape, options):
        w, x = weights_of(rng, w_shape, options), rng.standard_normal(shape)
        assert_allclose(toeplitz_matrix(w, shape, **options) @ x.ravel(), convolve(x, w, options).ravel(), atol=1e-12)

    def test_operator(self, rng, w_shape, shape, options):
        w, x = weights_of(rng, w_shape, options), rng.standard_normal(shape)
        operator = aslinearoperator(w, shape, **options)
        assert_allclose(operator @ x.ravel(), convolve(x, w, options).ravel(), atol=1e-12)

    def test_adjoint(self, rng, w_shape, shape, options):
        operator = aslinearoperator(weights_of(rng, w_shape, options), shape, **options)
        x, y = rng.standard_normal(operator.shape[1]), rng.standard_normal(operator.shape[0])
        assert_allclose(y @ operator.matvec(x), operator.rmatvec(y) @ x, rtol=1e-11)

    def test_adjoint_is_the_transposed_matrix(self, rng, w_shape, shape, options):
        w = weights_of(rng, w_shape, options)
        matrix, operator = toeplitz_matrix(w, shape, **options), aslinearoperator(w, shape, **options)
        columns = rng.standard_normal((operator.shape[0], 3))
        assert_allclose(operator.rmatmat(columns), matrix.T @ columns, atol=1e-12)
        assert_allclose(operator.matmat(matrix.T @ columns), matrix @ (matrix.T @ columns), atol=1e-10)


def test_complex_adjoint(rng):
    w = rng.standard_normal((3, 2)) + 1j * rng.standard_normal((3, 2))
    operator = aslinearoperator(w, (5, 6), padding=1)
    x, y = (rng.standard_normal(n) + 1j * rng.standard_normal(n) for n in reversed(operator.shape))
    assert_allclose(np.vdot(y, operator.matvec(x)), np.vdot(operator.rmatvec(y), x), rtol=1e-11)
    assert_allclose(toeplitz_matrix(w, (5, 6), padding=1) @ x, operator.matvec(x), atol=1e-12)


def test_deblurring(rng):
    image = rng.random((24, 20))
    blur = aslinearoperator(np.outer([1, 3, 1], [1, 3, 1]) / 25, image.shape, padding="same")
    sharp = lsqr(blur, blur @ image.ravel(), atol=1e-13, btol=1e-13, iter_lim=2000)[0]
    assert_allclose(sharp, image.ravel(), atol=1e-6)


# -- circular convolution -------------------------------------------------------------------------------------------------

SHAPES = [((8,), (3,)), ((7,), (7,)), ((5,), (12,)), ((6, 5), (3, 4)), ((4, 3), (9, 2)), ((3, 4, 5), (2, 2, 3))]


@pytest.mark.parametrize(("shape", "kernel"), SHAPES)
class TestCircular:
    def test_definition(self, rng, shape, kernel):
        x, w = rng.standard_normal(shape), rng.standard_normal(kernel)
        expected = sum(w[k] * np.roll(x, k, range(x.ndim)) for k in np.ndindex(*kernel))
        for method in ("auto", "direct", "fft"):
            assert_allclose(circular_convolve(x, w, method), expected, atol=1e-12)
        assert_allclose(circulant(w, shape) @ x.ravel(), expected.ravel(), atol=1e-12)

    def test_commutes(self, rng, shape, kernel):
        x, w = rng.standard_normal(shape), rng.standard_normal(shape)
        assert_allclose(circular_convolve(x, w), circular_convolve(w, x), atol=1e-12)

    def test_is_associative(self, rng, shape, kernel):
        x, v, w = rng.standard_normal(shape), rng.standard_normal(kernel), rng.standard_normal(shape)
        assert_allclose(circular_convolve(circular_convolve(x, v), w), circular_convolve(x, circular_convolve(w, v)), atol=1e-11)

    def test_is_equivariant_to_shifts(self, rng, shape, kernel):
        x, w = rng.standard_normal(shape), rng.standard_normal(kernel)
        axes = tuple(range(x.ndim))
        assert_allclose(circular_convolve(np.roll(x, 2, axes), w), np.roll(circular_convolve(x, w), 2, axes), atol=1e-12)

    def test_fourier_makes_the_circulant_diagonal(self, rng, shape, kernel):
        x, w = rng.standard_normal(shape), rng.standard_normal(shape)
        assert_allclose(np.fft.fftn(circular_convolve(x, w, "direct")), np.fft.fftn(x) * np.fft.fftn(w), atol=1e-10)


def test_circulant_is_a_polynomial_of_the_shift(rng):
    w = rng.standard_normal(6)
    shift = shift_matrix(6)
    expected = sum(w[k] * np.linalg.matrix_power(shift.toarray(), k) for k in range(6))
    assert_allclose(circulant(w).toarray(), expected, atol=1e-12)
    assert_allclose((shift_matrix(6, -2) @ np.arange(6)), np.roll(np.arange(6), -2))


@pytest.mark.parametrize("method", ["auto", "direct", "fft"])
def test_circular_integers_and_complex(rng, method):
    x, w = rng.integers(-9, 9, 11), rng.integers(-9, 9, 4)
    y = circular_convolve(x, w, method)
    assert y.dtype.kind == "i"
    assert y.tolist() == (circulant(w.tolist() + [0] * 7) @ x).tolist()
    z = circular_convolve(x + 1j, w, method)
    assert_allclose(z, y + 1j * w.sum(), atol=1e-10)


# -- the algebra of convolutions ------------------------------------------------------------------------------------------


def test_two_convolutions_are_one_with_the_composed_kernel(rng):
    """Full convolution of the kernels, channels summed: w21[o, c] = sum over m of w2[o, m] * w1[m, c]."""
    x = rng.standard_normal((2, 3, 12, 11))
    first, second = rng.standard_normal((4, 3, 3, 2)), rng.standard_normal((5, 4, 2, 3))
    composed = fc.conv2d(first.swapaxes(0, 1), np.flip(second, (2, 3)), padding=((1, 1), (2, 2))).swapaxes(0, 1)
    assert_allclose(fc.conv2d(fc.conv2d(x, first), second), fc.conv2d(x, composed), atol=1e-10)


def test_one_by_one_is_a_linear_layer_for_each_pixel(rng):
    x, w = rng.standard_normal((2, 5, 6, 7)), rng.standard_normal((4, 5, 1, 1))
    assert_allclose(fc.conv2d(x, w), np.einsum("oc,nchw->nohw", w[..., 0, 0], x), atol=1e-12)


def test_full_convolution_commutes(rng):
    f, g = rng.standard_normal(9), rng.standard_normal(5)

    def full(a, b):
        return fc.conv1d(a[None, None], b[None, None, ::-1], padding=len(b) - 1)[0, 0]

    assert_allclose(full(f, g), full(g, f), atol=1e-12)
    assert_allclose(full(f, g), np.convolve(f, g), atol=1e-12)


def test_pooling_makes_the_convolution_nearly_invariant(rng):
    """A shift of the input moves the convolution's result, pools move less, and a global pool of them hardly at all."""
    x = np.zeros((1, 1, 48, 48))
    x[..., 16:32, 16:32] = rng.standard_normal((16, 16))
    w = rng.standard_normal((6, 1, 3, 3))
    shifted = np.roll(x, (1, 2), (2, 3))

    def change(features):
        before, after = features(x), features(shifted)
        return np.linalg.norm(after - before) / np.linalg.norm(before)

    def pooled(image):
        return fc.max_pool2d(fc.conv2d(image, w, padding=1, activation="relu"), 4)

    assert change(lambda image: fc.conv2d(image, w, padding=1)) > 0.5
    assert 0 < change(lambda image: fc.global_avg_pool(pooled(image))) < 0.2
    assert change(lambda image: fc.global_max_pool(pooled(image))) < 1e-12


# -- receptive fields -----------------------------------------------------------------------------------------------------


class Layer:
    def __init__(self, **attributes):
        self.__dict__ |= attributes


@pytest.mark.parametrize(
    "layers",
    [
        [3, 3],
        [(3, 2, 1, 1), (5, 1, 2, 3)],
        [{"kernel_size": 2, "stride": 3}, (4, 2, 1, (1,))],
        [Layer(kernel_size=(3,), stride=2, padding=((2, 0),)), Layer(slope=0.1), Layer(kernel_size=3, dilation=2)],
    ],
)
def test_receptive_field_is_what_an_output_depends_on(layers):
    """The input points that move the first and the second output, found by gradients."""
    field = receptive_field(layers)
    size, stride, start = (value[0] if isinstance(value, tuple) else value for value in field)
    margin = 40

    def forward(x):
        for step in (_step_of(layer) for layer in layers):
            if step is not None:
                kernel, s, d, low = (v[0] if isinstance(v, tuple) else v for v in step)
                x = fc.conv1d(x, np.ones((1, 1, kernel)), stride=s, dilation=d, padding=[(low, 0)])
        return x

    for output in (margin, margin + 1):
        touched = []
        for i in range(400):
            x = np.zeros((1, 1, 400))
            x[..., i] = 1
            if forward(x)[0, 0, output] != 0:
                touched.append(i)
        assert touched[0] == start + output * stride
        assert touched[-1] - touched[0] + 1 == size


def test_receptive_field_of_layers_with_axes():
    assert receptive_field([((3, 5), (1, 2)), 3]) == ((5, 9), (1, 2), (0, 0))


# -- wrong arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: toeplitz_matrix(np.ones(3), (4, 4)), "input_shape must have 1 axes"),
        (lambda: toeplitz_matrix(np.ones((2, 3, 3)), (4,)), "input_shape must have 2 or 3 axes"),
        (lambda: toeplitz_matrix(np.float64(3), (4,)), "w must be a kernel"),
        (lambda: toeplitz_matrix(np.ones(5), (4,)), "larger than the padded input"),
        (lambda: aslinearoperator(np.ones(3), (4,), activation="relu"), "not linear"),
        (lambda: aslinearoperator(np.ones(3), (4,), layout="NHWC"), "layout"),
        (lambda: circular_convolve(np.ones(3), np.ones((2, 2))), "as many axes"),
        (lambda: circular_convolve(np.ones(3), np.ones(2), "fast"), "method must be"),
        (lambda: circular_convolve(np.ones(0), np.ones(2)), "must not be empty"),
        (lambda: shift_matrix(-1), "negative"),
        (lambda: receptive_field([{"kernel_size": 3, "padding": "same"}]), "depends on the input's size"),
        (lambda: receptive_field([((3, 3),), ((3, 3, 3),)]), "number of axes"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
