"""The tables of the CUDA implicit GEMM, which need no GPU: what their entries say of points and taps, in 32-bit integers."""

import math

import numpy as np
import pytest

from fastconv.backends._cuda.geometry import image_strides
from fastconv.backends._cuda.tables import FAR, fields_of, operand_tables
from fastconv.problem import Options, Problem

GEOMETRIES = [
    ((2, 3, 5, 7), (4, 3, 3, 3), {"padding": ((0, 2), (3, 1))}),
    ((1, 2, 9, 8), (2, 2, 4, 2), {"padding": 5, "stride": (3, 2), "dilation": (1, 3)}),
    ((1, 2, 1000), (3, 2, 9), {"padding": 4, "dilation": 7}),
    ((1, 2, 4, 5, 6), (3, 2, 2, 3, 3), {"padding": (1, 0, 2), "stride": 2}),
    ((1, 1, 1, 1), (1, 1, 3, 3), {"padding": 1}),
]


def problem_of(pass_name, input_shape, weight_shape, options, layout="NCHW"):
    if layout == "NHWC":
        input_shape = input_shape[0], *input_shape[2:], input_shape[1]
        weight_shape = *weight_shape[2:], weight_shape[1], weight_shape[0]
    return Problem.create(pass_name, len(input_shape) - 2, input_shape, weight_shape, "float32", Options(**options, layout=layout))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("pass_name", ["forward", "grad_input"])
@pytest.mark.parametrize(("input_shape", "weight_shape", "options"), GEOMETRIES)
def test_positions(pass_name, input_shape, weight_shape, options, layout):
    """A sum of positions has no guard bit exactly where the element at the sum of the offsets is the image's, in the place meant."""
    p = problem_of(pass_name, input_shape, weight_shape, options, layout)
    fields = fields_of(p)
    assert fields.fit
    channels, size = (p.out_channels, p.output_size) if pass_name == "grad_input" else (p.in_channels, p.input_size)
    strides = image_strides(channels, size, p.channels_last)
    last = np.int32(fields.position([n - 1 for n in size]))
    phases, points, taps = operand_tables(p, 32, 1)
    met = 0
    for phase in phases:
        own_points = points[phase[2]:phase[2] + phase[0]]
        own_taps = taps[phase[3]:phase[3] + phase[1]]
        sums = own_points[:, None, 1] + own_taps[None, :, 1]
        inside = (sums | (last - sums)) & np.int32(fields.guards) == 0
        offsets = (own_points[:, None, 0] + own_taps[None, :, 0])[inside]
        assert ((offsets >= 0) & (offsets < math.prod(size) * channels)).all()
        at = [(sums[inside] >> shift) % 2**bits if bits else 0 * offsets for shift, bits in zip(fields.shifts, fields.bits, strict=True)]
        assert all((place < n).all() for place, n in zip(at, size, strict=True))
        channel = offsets - sum(place * step for place, step in zip(at, strides[2:], strict=True))
        assert (channel % strides.channel == 0).all()
        met += inside.sum()
    assert met == pairs_inside(p)


def pairs_inside(problem):
    """Pairs of an output point and a tap that meet a pixel, by counting along each axis, times the channels summed over."""
    p, count = problem, 1
    axes = zip(p.input_size, p.output_size, p.kernel_size, p.stride, p.dilation, p.padding, strict=True)
    for size, outputs, kernel, stride, dilation, (low, _) in axes:
        at = np.arange(outputs)[:, None] * stride + np.arange(kernel) * dilation - low
        count *= np.count_nonzero((at >= 0) & (at < size))
    return count * (p.group_out if p.pass_name == "grad_input" else p.group_in)


@pytest.mark.parametrize(("input_shape", "weight_shape", "options"), GEOMETRIES)
def test_far_entries_are_outside(input_shape, weight_shape, options):
    """What tables are filled up with is outside together with every entry and with each other."""
    p = problem_of("forward", input_shape, weight_shape, options)
    fields = fields_of(p)
    _, points, taps = operand_tables(p, 32, 1)
    positions = np.concatenate([points[:, 1], taps[:, 1]])
    sums = positions + np.int32(FAR)
    assert ((sums & np.int32(fields.guards)) != 0).all()


def test_coordinates_that_do_not_fit():
    """A volume whose coordinates need more than an integer is told apart from one that fits."""
    assert fields_of(problem_of("forward", (1, 1, 256, 256, 256), (1, 1, 1, 1, 1), {})).fit
    assert not fields_of(problem_of("forward", (1, 1, 8, 8, 8), (1, 1, 3, 3, 3), {"padding": 2000})).fit
