"""Parts of a problem: each computes its box of the result, whatever the pass, and the boxes hold what is not finite."""

import numpy as np
import pytest
from cases import CASES
from helpers import PASSES, operands

import fastconv as fc
from fastconv.backends import cpu_direct
from fastconv.lowering import lower
from fastconv.parts import nonfinite_parts
from fastconv.problem import Options, Problem


def direct(problem, first, second):
    """The result by a plain sum."""
    kernel = cpu_direct.build(problem)
    out = np.empty(problem.shapes[2])
    kernel.run(np.ascontiguousarray(first), kernel.pack(np.ascontiguousarray(second)), None, out)
    return out


@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_parts_agree_with_the_whole(case, pass_name):
    """Some elements of a result are lost; what is computed anew is as it was."""
    data = operands(case)
    if not data.gy.size or not data.w.size or not data.x.size:
        pytest.skip("empty")
    problem, _ = lower(Problem.create(pass_name, case.ndim, data.x.shape, data.w.shape, "float64", Options(**case.options)))
    rng = np.random.default_rng(10)
    first, second = (rng.standard_normal(shape) for shape in problem.shapes[:2])
    whole = direct(problem, first, second)
    for lost in ([0], [whole.size - 1], rng.integers(whole.size, size=2)):
        result = whole.copy()
        result.reshape(-1)[lost] = np.nan
        for part in nonfinite_parts(problem, result):
            result[part.result] = direct(part.problem, first[part.first], second[part.second])
        np.testing.assert_allclose(result, whole, rtol=0, atol=1e-12 * np.abs(whole).max())


def test_parts_are_small():
    """One element of one image of many costs its surroundings alone, two images two boxes."""
    problem = Problem.create("forward", 2, (9, 4, 50, 60), (8, 4, 3, 3), "float32", Options(padding=1))
    result = np.zeros(problem.shapes[2], np.float32)
    assert not list(nonfinite_parts(problem, result))
    result[3, 5, 0, 20, 30] = result[3, 6, 0, 22, 30] = np.inf
    (part,) = nonfinite_parts(problem, result)
    assert part.problem.shapes == ((1, 4, 1, 5, 3), (2, 4, 1, 3, 3), (1, 2, 1, 3, 1))
    assert part.bias == slice(5, 7)
    result[7, 0, 0, 0, 0] = np.nan
    assert [part.result[0] for part in nonfinite_parts(problem, result)] == [slice(3, 4), slice(7, 8)]


@pytest.mark.parametrize("backend", ["winograd", "fft"])
@pytest.mark.parametrize("activation", ["relu", "relu6", "leaky_relu", "tanh"])
def test_infinities_behind_an_activation(activation, backend):
    """What an activation makes finite is right where the transforms' infinities were smeared."""
    rng = np.random.default_rng(11)
    x, w, bias = (rng.standard_normal(shape, np.float32) for shape in ((3, 16, 20, 24), (32, 16, 3, 3), (32,)))
    x[1, 3, 7, 8], x[1, 5, 15, 15] = np.inf, -np.inf
    y = fc.conv2d(x, w, bias, padding=1, activation=activation, backend=backend)
    np.testing.assert_allclose(y, fc.conv2d(x, w, bias, padding=1, activation=activation, backend="direct"), rtol=1e-4, atol=1e-4)
