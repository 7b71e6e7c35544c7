"""Every minimal-filtering algorithm by itself: its matrices are exact, and its float32 error keeps within what is promised."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from helpers import poisoned

from fastconv.backends import Machine, _winograd_blocks, _winograd_choice, _winograd_gradient, _winograd_strips, cpu_im2col, cpu_winograd
from fastconv.backends._cook_toom import axis_algorithm
from fastconv.backends._scratch import reused_operands
from fastconv.problem import Options, Problem

AXES = sorted(
    {(m, *key) for key, tiles in _winograd_choice.SQUARES.items() for tile in tiles for m in tile}
    | {(m, *key) for key, m in _winograd_choice.LINES.items()}
)
SMALL_TILES, LARGE_TILES = 4e-6, 1e-5  # error of the result's scale: two outputs a tile, and more
SHAPES = {  # (kernel, stride, dilation, channels), one of each kind of algorithm
    "2x2": ((2, 2), 1, 1, 16),
    "3x3": ((3, 3), 1, 1, 16),
    "3x3 dilated": ((3, 3), 1, 2, 9),
    "4x4": ((4, 4), 1, 1, 16),
    "5x5": ((5, 5), 1, 1, 17),
    "7x7": ((7, 7), 1, 1, 8),
    "1x7": ((1, 7), 1, 1, 16),
    "5x1": ((5, 1), 1, 1, 16),
    "2x3": ((2, 3), 1, 1, 16),
    "3x3 stride 2": ((3, 3), 2, 1, 16),
    "5x5 stride 2": ((5, 5), 2, 1, 12),
    "7x7 stride 2": ((7, 7), 2, 1, 3),
    "11x11 stride 4": ((11, 11), 4, 1, 3),
}


def problem_of(shape, pass_name, dtype="float32", layout="NCHW"):
    """Two odd-sized images, borders on each side."""
    kernel, stride, dilation, channels = SHAPES[shape]
    image, weights = (2, channels, 37, 29), (24, channels, *kernel)
    if layout == "NHWC":
        image, weights = (2, 37, 29, channels), (*kernel, channels, 24)
    options = Options(stride=stride, dilation=dilation, padding=tuple((k // 2, k // 3) for k in kernel), layout=layout)
    return Problem.create(pass_name, 2, image, weights, dtype, options)


ALGORITHMS = [
    pytest.param(shape, i, id=f"{shape}-F{a.high.outputs}x{a.wide.outputs}{'-folded' if a.fold_h > 1 else ''}")
    for shape in SHAPES
    for i, a in enumerate(_winograd_choice.algorithms(problem_of(shape, "forward")))
]


def run_once(problem, first, second):
    """What winograd makes of weights that are used once."""
    with reused_operands:
        return run(cpu_winograd, problem, first, second)


def run(module, problem, first, second):
    """A backend's result for a problem, and what its run returned."""
    kernel = module.build(problem)
    out = poisoned(problem.shapes[2], problem.dtype)
    return out, kernel.run(first, kernel.pack(second), None, out)


def chosen(monkeypatch, algorithm):
    """Let the backend take this algorithm."""
    for module in (cpu_winograd, _winograd_gradient):
        monkeypatch.setattr(module, "best_algorithm", lambda problem, machine: (0.0, algorithm))
    monkeypatch.setattr(cpu_winograd, "best_once", lambda problem, machine: (0.0, algorithm))


@pytest.mark.parametrize(("outputs", "taps", "stride"), AXES)
def test_axis_is_exact(outputs, taps, stride):
    """AT ((G w) * (BT x)) is the sum by definition, for every unit x and w."""
    axis = axis_algorithm(outputs, taps, stride)
    for i, k in itertools.product(range(axis.samples), range(taps)):
        result = axis.AT @ (axis.G[:, k] * axis.BT[:, i])
        np.testing.assert_allclose(result, [float(i == stride * m + k) for m in range(outputs)], atol=1e-12)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("pass_name", ["forward", "grad_weight"])
@pytest.mark.parametrize(("shape", "number"), ALGORITHMS)
def test_error(shape, number, pass_name, layout, monkeypatch):
    """The error in float32, against im2col in float64, of the algorithm itself."""
    problem = problem_of(shape, pass_name, layout=layout)
    algorithm = _winograd_choice.algorithms(problem_of(shape, "forward"))[number]
    if algorithm not in _winograd_choice.algorithms(problem):
        pytest.skip("refused for this pass")
    rng = np.random.default_rng(7)
    first, second = (rng.standard_normal(s, np.float32) for s in problem.shapes[:2])
    exact, _ = run(cpu_im2col, problem_of(shape, pass_name, "float64", layout), first.astype(float), second.astype(float))
    chosen(monkeypatch, algorithm)
    largest = max(algorithm.high.outputs, algorithm.wide.outputs)
    for result, finite in (run(cpu_winograd, problem, first, second), run_once(problem, first, second)):
        assert finite
        assert np.abs(result - exact).max() <= (SMALL_TILES if largest == 2 else LARGE_TILES) * np.abs(exact).max()


@pytest.mark.parametrize("limits", [(1, 1), (4000, 30_000), (60_000, 1 << 20)])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("pass_name", ["forward", "grad_input"])
@pytest.mark.parametrize("shape", [*SHAPES, "3-D"])
def test_weights_used_once(shape, pass_name, layout, limits, monkeypatch):
    """However few channels are transformed at once, and however few strips of tiles multiplied with them; groups, 3-D."""
    monkeypatch.setattr(_winograd_choice, "ONCE_BYTES", limits[0])
    monkeypatch.setattr(_winograd_choice, "ONCE_SUMS_BYTES", limits[1])
    monkeypatch.setattr(cpu_winograd, "packing_seconds", lambda problem, machine: 1.0)
    if shape == "3-D":
        channels = ((2, 18, 5, 9, 11), (40, 9, 3, 3, 3)) if layout == "NCHW" else ((2, 5, 9, 11, 18), (3, 3, 3, 9, 40))
        problem = Problem.create(pass_name, 3, *channels, "float64", Options(padding=1, groups=2, stride=(2, 1, 1), layout=layout))
    else:
        problem = problem_of(shape, pass_name, "float64", layout)
    if cpu_winograd.refuses(problem):
        pytest.skip("refused")
    rng = np.random.default_rng(9)
    first, second = (rng.standard_normal(s) for s in problem.shapes[:2])
    exact, _ = run(cpu_im2col, problem, first, second)
    result, finite = run_once(problem, first, second)
    assert finite
    np.testing.assert_allclose(result, exact, rtol=0, atol=1e-12 * np.abs(exact).max())


@pytest.mark.parametrize("streamed_bytes", [0, 1 << 30])
@pytest.mark.parametrize("chunk_bytes", [1, 60_000, 300_000])
@pytest.mark.parametrize("shape", ["3x3", "7x7 stride 2", "3x3 dilated"])
def test_gradients_of_chunks_add_up(shape, chunk_bytes, streamed_bytes, monkeypatch):
    """However few strips of tiles the memory holds at once, and whether gw goes past the caches."""
    monkeypatch.setattr(_winograd_choice, "LARGEST_SUMS", 0)  # threads share the sums
    monkeypatch.setattr(_winograd_gradient, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(_winograd_blocks, "STREAMED_BYTES", streamed_bytes)
    check_gradient(problem_of(shape, "grad_weight", "float64"))


@pytest.mark.parametrize("threads", [1, 2, 5])  # whose number says how many shares there are
@pytest.mark.parametrize("strips_bytes", [1, 60_000, 1 << 30])
@pytest.mark.parametrize("shape", [*SHAPES, "1x3 in depth"])
def test_gradients_of_strips_add_up(shape, strips_bytes, threads, monkeypatch):
    """However few strips of tiles a thread takes at once, and however many shares there are."""
    monkeypatch.setattr(_winograd_strips, "STRIPS_BYTES", strips_bytes)
    monkeypatch.setattr(_winograd_strips, "num_threads", lambda: threads)
    if shape == "1x3 in depth":
        options = Options(padding=(2, 1, 1), groups=2, stride=(3, 1, 1))
        problem = Problem.create("grad_weight", 3, (2, 18, 5, 19, 11), (40, 9, 1, 3, 3), "float64", options)
    else:
        problem = problem_of(shape, "grad_weight", "float64")
    if cpu_winograd.refuses(problem):
        pytest.skip("refused")
    check_gradient(problem)


def check_gradient(problem):
    rng = np.random.default_rng(8)
    first, second = (rng.standard_normal(s) for s in problem.shapes[:2])
    exact, _ = run(cpu_im2col, problem, first, second)
    result, finite = run(cpu_winograd, problem, first, second)
    assert finite
    np.testing.assert_allclose(result, exact, rtol=0, atol=1e-12 * np.abs(exact).max())


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("size", [5, 20, 37])  # tiles fewer than a register tile's rows, a few of them, and several boxes
def test_cold_weights_change_no_bit(size, layout, monkeypatch):
    """What the products fetch ahead is never used by them."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 24, size, size) if layout == "NCHW" else (2, size, size, 24), np.float32)
    w = rng.standard_normal((70, 24, 3, 3) if layout == "NCHW" else (3, 3, 24, 70), np.float32)
    warm = Problem.create("forward", 2, x.shape, w.shape, "float32", Options(padding=1, layout=layout))
    for algorithm in _winograd_choice.algorithms(warm):
        chosen(monkeypatch, algorithm)
        results = [run(cpu_winograd, problem, x, w)[0] for problem in (warm, replace(warm, cold_weights=True))]
        np.testing.assert_array_equal(*results)


def test_cold_weights_are_fewer():
    """Of 512 channels at 7 x 7 the quickest algorithm reads more bytes than a memory gives in that time."""
    machine = Machine("", 150e9, 75e9, 15e9, 90e9, 2e-6, threads=2)
    warm = Problem.create("forward", 2, (1, 512, 7, 7), (512, 512, 3, 3), "float32", Options(padding=1))
    _, quick = _winograd_choice.best_algorithm(warm, machine)
    seconds, small = _winograd_choice.best_algorithm(replace(warm, cold_weights=True), machine)
    assert small.products < quick.products
    assert seconds > small.products * 512 * 512 * 4 / (machine.bandwidth * machine.threads)


@pytest.mark.parametrize("pass_name", ["forward", "grad_weight"])
def test_non_finite_sums_are_noticed(pass_name):
    """`run` returns False, so that the dispatcher computes the result again by plain sums."""
    problem = problem_of("3x3", pass_name)
    first, second = (np.ones(s, np.float32) for s in problem.shapes[:2])
    assert run(cpu_winograd, problem, first, second)[1]
    first.reshape(-1)[first.size // 2] = np.inf
    assert not run(cpu_winograd, problem, first, second)[1]
    assert not run_once(problem, first, second)[1]
