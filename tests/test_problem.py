"""`Problem`: shape arithmetic, resolved options, phases and borders, without any kernel."""

import dataclasses
import itertools
from dataclasses import replace

import numpy as np
import pytest
import reference
from cases import CASES, named

from fastconv.problem import Options, Problem, border_source, resolve_padding


def create(case, pass_name="forward", **more):
    """The Problem of a case."""
    return Problem.create(pass_name, case.ndim, case.input_shape, case.weight_shape, "float32", Options(**case.options), **more)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_shapes(case):
    """Shapes of every operand, in the caller's rank and layout."""
    problem = create(case)
    output_shape = reference.output_shape(case.input_shape, case.weight_shape, **case.options)
    assert [problem.public_shape(shape) for shape in problem.shapes] == [case.input_shape, case.weight_shape, output_shape]
    assert len(problem.input_size) == len(problem.kernel_size) == len(problem.output_size) == 3


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_passes_share_one_problem(case):
    """The operands of a gradient are the forward convolution's arrays."""
    forward = create(case)
    x, w, y = forward.shapes
    assert create(case, "grad_input").shapes == (y, w, x)
    assert create(case, "grad_weight").shapes == (x, y, w)
    for pass_name in ("grad_input", "grad_weight"):
        assert replace(create(case, pass_name), pass_name="forward") == forward
        assert create(case, pass_name).flops == forward.flops


def test_costs_by_hand():
    """2 outputs channels x 4 positions x 3 channels x 2 taps, each two operations; bytes of the three arrays."""
    problem = Problem.create("forward", 1, (5, 3, 5), (2, 3, 2), "float32", Options())
    assert problem.flops == 2 * 5 * 2 * 4 * 3 * 2
    assert problem.taps == 6
    assert problem.bytes == 4 * (5 * 3 * 5 + 2 * 3 * 2 + 5 * 2 * 4)


def test_hashable_and_frozen():
    """A problem is a key: equal when everything is, and unchangeable."""
    case = named("reflect_asymmetric")[0]
    assert create(case) == create(case)
    assert hash(create(case)) == hash(create(case))
    assert len({create(case), create(case), create(case, bias=True), create(case, "grad_input")}) == 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        create(case).batch = 7


def test_equivalent_options_are_one_problem():
    """Spellings of the same convolution share a plan."""
    shapes = (1, 2, 9, 9), (3, 2, 3, 3)
    spellings = [
        Options(padding=1, stride=2),
        Options(padding=(1, 1), stride=(2, 2)),
        Options(padding=((1, 1), [1, 1]), stride=np.int64(2)),
        Options(padding=np.array([1, 1]), stride=[2, 2], dilation=(1, 1), groups=np.int32(1)),
    ]
    assert len({Problem.create("forward", 2, *shapes, "float32", options) for options in spellings}) == 1


def test_border_mode_without_pads_is_zeros():
    """Nothing is read beyond the border, so the mode does not matter and does not split plans."""
    case = named("border_mode_without_pads")[0]
    assert create(case).padding_mode == "zeros"


@pytest.mark.parametrize("padding", ["valid", "same", "same_lower"])
@pytest.mark.parametrize(("n", "k", "s", "d"), tuple(itertools.product((1, 5, 8), (1, 2, 5), (1, 2, 3), (1, 3))))
def test_named_padding(padding, n, k, s, d):
    """Names resolve to the reference's pairs."""
    assert resolve_padding(padding, (n,), (k,), (s,), (d,)) == reference.padding_pairs(padding, (n,), (k,), (s,), (d,))


@pytest.mark.parametrize("mode", ["zeros", "reflect", "symmetric", "replicate", "circular"])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_border_source(mode, size):
    """The index that stands at each padded position, -1 for a zero, and nothing that a caller can change."""
    widest = {"reflect": size - 1, "symmetric": size, "circular": size}.get(mode, 2 * size)
    for low, high in itertools.product(range(widest + 1), repeat=2):
        source = border_source(size, low, high, mode)
        expected = [reference.border(p - low, size, mode) for p in range(low + size + high)]
        assert source.tolist() == [-1 if p is None else p for p in expected]
        assert not source.flags.writeable


@pytest.mark.parametrize("mode", ["zeros", "symmetric", "circular"])
def test_border_source_crops(mode):
    """Negative pads take points away."""
    assert border_source(6, -2, 1, mode).tolist() == border_source(6, 0, 1, mode).tolist()[2:]
    assert border_source(6, 1, -2, mode).tolist() == border_source(6, 1, 0, mode).tolist()[:-2]


PHASED = [
    case
    for case in CASES
    if case.options.get("padding_mode", "zeros") == "zeros" and case.options.get("layout", "NCHW") == "NCHW"
]


@pytest.mark.parametrize("case", PHASED, ids=lambda case: case.name)
def test_phases_tile_the_gradient(case):
    """Forward convolutions of gy with the reversed taps of each phase, written into its target, are the gradient."""
    problem = create(case, "grad_input")
    x, w, y = (problem.shapes[2], problem.shapes[1], problem.shapes[0])
    rng = np.random.default_rng(1)
    gy, weights = rng.integers(-5, 6, y).astype(float), rng.integers(-5, 6, w).astype(float)
    covered, gx = np.zeros(x), np.zeros(x)
    for phase in problem.phases():
        target = (slice(None), slice(None), *phase.target)
        covered[target] += 1
        if phase.problem is not None:
            gx[target] = _phase_by_reference(phase, gy, weights, problem.groups)
    np.testing.assert_array_equal(covered, 1)
    desired = reference.grad_input(
        gy.reshape(problem.public_shape(y)), weights.reshape(case.weight_shape), case.input_shape, **case.options
    )
    np.testing.assert_array_equal(gx.reshape(case.input_shape), desired)


def _phase_by_reference(phase, gy, w, groups):
    """The phase's forward convolution: channels swapped, taps reversed; its negative pads crop."""
    w = w[(slice(None), slice(None), *phase.taps)][:, :, ::-1, ::-1, ::-1]
    outputs, channels = w.shape[:2]
    swapped = (
        w.reshape(groups, outputs // groups, channels, *w.shape[2:])
        .swapaxes(1, 2)
        .reshape(groups * channels, outputs // groups, *w.shape[2:])
    )
    problem = phase.problem
    assert problem.weight_shape == swapped.shape
    for axis, (low, high) in enumerate(problem.padding, start=2):
        gy = np.moveaxis(gy, axis, 0)
        gy = gy[max(-low, 0) : len(gy) - max(-high, 0)]
        gy = np.moveaxis(gy, 0, axis)
    pads = [(max(low, 0), max(high, 0)) for low, high in problem.padding]
    return reference.conv(gy, swapped, padding=pads, dilation=problem.dilation, groups=groups)


def test_phases_of_a_border_are_refused():
    """Phases are for zero borders."""
    with pytest.raises(ValueError, match="border"):
        create(named("circular_asymmetric")[0], "grad_input").phases()


def test_without_border_is_the_padded_convolution():
    """The same outputs from an input that already holds its border."""
    problem = create(named("reflect_asymmetric")[0])
    inner = problem.without_border()
    assert inner.output_size == problem.output_size
    assert inner.input_size == problem.padded_size
    assert (inner.padding, inner.padding_mode) == (((0, 0),) * 3, "zeros")


@pytest.mark.parametrize(
    ("options", "extra", "target"),
    [
        ({}, 0, (7, 8)),
        ({"stride": 2}, 0, (11, 13)),
        ({"stride": 2, "padding": 1}, 1, (10, 12)),
        ({"stride": 2, "padding": "same"}, 0, (10, 12)),
        ({"dilation": 2}, 0, (9, 10)),
        ({"stride": (3, 1), "padding": ((0, 1), (2, 0))}, (2, 0), (16, 6)),
    ],
)
def test_transposed_shapes(options, extra, target):
    """(n - 1) stride - pads + dilation (k - 1) + 1 + output_padding."""
    problem = Problem.create_transposed(2, (1, 4, 5, 6), (4, 3, 3, 3), "float32", Options(**options), extra)
    assert problem.pass_name == "grad_input"
    assert problem.public_shape(problem.shapes[2]) == (1, 3, *target)
    assert problem.epilogue_channels == 3
