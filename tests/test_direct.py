"""Every engine of `direct` on the shapes that it may take, whether or not it would be the quickest for them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import reference

from fastconv.backends import _transposed_strips, cpu_direct
from fastconv.problem import Options, Problem

# name: (batch, channels, size, outputs a group, kernel, options)
SHAPES = {
    "one_pixel": (1, 2, (1, 1), 1, (3, 3), {"padding": 1}),
    "narrower_than_a_vector": (2, 3, (9, 5), 1, (3, 3), {"padding": 1}),
    "whole_vectors": (1, 16, (12, 64), 1, (3, 3), {"padding": 1}),
    "wide_rows": (1, 1, (9, 300), 1, (3, 3), {"padding": 1}),
    "one_row_left": (1, 3, (15, 33), 1, (3, 3), {}),
    "stride_2": (1, 17, (21, 70), 1, (3, 3), {"padding": 1, "stride": 2}),
    "stride_2_no_border": (1, 3, (20, 67), 2, (5, 5), {"stride": 2}),
    "1x1": (1, 3, (15, 33), 1, (1, 1), {}),
    "1x2": (2, 3, (9, 20), 1, (1, 2), {"padding": 1}),
    "2x1": (1, 3, (15, 33), 1, (2, 1), {"padding": 1}),
    "2x2": (1, 3, (15, 33), 1, (2, 2), {}),
    "5x5": (2, 5, (14, 14), 1, (5, 5), {"padding": 2}),
    "7x7": (1, 3, (19, 131), 1, (7, 7), {"padding": 3}),
    "9x9_border_wider_than_the_kernel_needs": (1, 2, (10, 40), 1, (9, 9), {"padding": 6}),
    "narrow_planes": (1, 8, (56, 56), 1, (7, 7), {"padding": 3}),
    "narrow_planes_in_chunks": (1, 1, (150, 100), 1, (7, 7), {"padding": ((9, 2), (1, 18))}),
    "narrow_planes_shared": (2, 2, (9, 30), 3, (5, 5), {"padding": (4, 0)}),
    "dilated": (1, 3, (23, 50), 1, (3, 3), {"padding": (5, 2), "dilation": (3, 2)}),
    "one_residue_empty": (1, 3, (9, 20), 1, (3, 3), {"padding": 1, "dilation": (5, 1), "padding_mode": "zeros"}),
    "reflected": (1, 4, (11, 37), 1, (3, 3), {"padding": 2, "padding_mode": "reflect"}),
    "circular": (1, 4, (11, 37), 3, (5, 5), {"padding": 2, "padding_mode": "circular"}),
    "asymmetric": (1, 3, (13, 18), 1, (3, 3), {"padding": ((0, 3), (2, 0))}),
    "6_outputs": (3, 1, (12, 28), 6, (5, 5), {"padding": 2}),
    "11_outputs": (1, 2, (9, 20), 11, (3, 3), {"padding": 1}),
    "even_kernel": (1, 18, (12, 15), 1, (4, 4), {"padding": 1}),
    "channels_last": (1, 18, (12, 15), 1, (3, 3), {"padding": 1, "layout": "NHWC"}),
    "channels_last_strided": (2, 5, (12, 15), 1, (3, 3), {"padding": 1, "layout": "NHWC", "stride": 3, "dilation": 2}),
}


def case(shape, dtype, pass_name):
    """The problem of a shape, and its operands in the order of the pass."""
    batch, channels, size, outputs, kernel, options = shape
    last = options.get("layout") == "NHWC"
    input_shape = (batch, *size, channels) if last else (batch, channels, *size)
    weight_shape = (*kernel, 1, channels * outputs) if last else (channels * outputs, 1, *kernel)
    problem = Problem.create(pass_name, 2, input_shape, weight_shape, dtype, Options(groups=channels, **options))
    rng = np.random.default_rng(7)
    arrays = {"x": rng.integers(-9, 9, input_shape), "w": rng.integers(-9, 9, weight_shape),
              "gy": rng.integers(-9, 9, reference.output_shape(input_shape, weight_shape, groups=channels, **options))}
    return problem, {name: array.astype(dtype) for name, array in arrays.items()}, dict(options, groups=channels)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64"])
@pytest.mark.parametrize("pass_name", ["forward", "grad_weight"])
@pytest.mark.parametrize("name", SHAPES)
def test_every_engine_sums_exactly(name, pass_name, dtype):
    """Small integers leave no rounding, so that a single wrong tap or a pixel too many shows."""
    problem, arrays, options = case(SHAPES[name], dtype, pass_name)
    if pass_name == "forward":
        operands, wanted = (arrays["x"], arrays["w"]), reference.conv(arrays["x"], arrays["w"], **options)
    else:
        operands = (arrays["x"], arrays["gy"])
        wanted = reference.grad_weight(arrays["gy"], arrays["x"], arrays["w"].shape, **options)
    tried = 0
    for slots, engine in cpu_direct.ENGINES[pass_name]:
        if slots(problem) < math.inf:
            kernel = engine(problem)
            out = np.full(wanted.shape, -99, dtype)
            kernel.run(operands[0], kernel.pack(operands[1]), None, out)
            np.testing.assert_array_equal(out, wanted, err_msg=engine.__name__)
            tried += 1
    assert tried >= 1


# name: (batch, channels, size, kernel, options), with stride 2; a kernel of its own for each output of a channel
TRANSPOSED = {
    "one_pixel": (1, 2, (1, 1), (3, 3), {"padding": 1}),
    "pairs_start_odd": (2, 3, (22, 70), (3, 3), {"padding": 1}),
    "pairs_start_even": (1, 3, (21, 131), (3, 3), {}),
    "uneven": (1, 3, (19, 64), (3, 3), {"padding": ((0, 1), (1, 0))}),
    "unused_end": (1, 2, (20, 40), (3, 3), {}),
    "2x2": (1, 3, (16, 66), (2, 2), {"padding": ((0, 0), (1, 0))}),
    "4x4": (1, 3, (16, 66), (4, 4), {"padding": 1}),
    "5x5": (1, 3, (9, 97), (5, 5), {"padding": 2}),
    "7x7": (1, 2, (30, 33), (7, 7), {"padding": 3}),
    "padding_beyond_the_kernel": (1, 2, (12, 37), (3, 3), {"padding": 5}),
}


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
@pytest.mark.parametrize("grouped", [1, 3])
@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed_strips_sum_exactly(name, grouped, dtype):
    batch, groups, size, kernel, options = TRANSPOSED[name]
    options = dict(options, groups=groups, stride=2)
    shape, weight_shape = (batch, grouped * groups, *size), (groups, grouped, *kernel)
    problem = Problem.create("grad_input", 2, shape, weight_shape, dtype, Options(**options))
    assert _transposed_strips.fits(problem)
    rng = np.random.default_rng(8)
    gy = rng.integers(-9, 9, reference.output_shape(shape, weight_shape, **options)).astype(dtype)
    w, bias = rng.integers(-9, 9, weight_shape).astype(dtype), rng.integers(-9, 9, shape[1]).astype(dtype)
    engine = _transposed_strips.TransposedStrips(replace(problem, bias=True, activation="relu"))
    out = np.full(shape, -99, dtype)
    engine.run(gy, engine.pack(w), bias, out)
    wanted = reference.grad_input(gy, w, shape, **options) + bias[:, None, None]
    np.testing.assert_array_equal(out, np.maximum(wanted, 0))


@pytest.mark.parametrize("name", ["narrower_than_a_vector", "stride_2", "7x7", "narrow_planes_shared", "6_outputs", "channels_last"])
def test_every_engine_applies_bias_and_rectifier(name):
    problem, arrays, options = case(SHAPES[name], "float32", "forward")
    channels = problem.out_channels
    problem = replace(problem, activation="relu6", bias=True)
    bias = np.arange(channels, dtype=np.float32) - channels // 2
    wanted = reference.conv(arrays["x"], arrays["w"], bias, activation="relu6", **options)
    for slots, engine in cpu_direct.ENGINES["forward"]:
        if slots(problem) < math.inf:
            kernel = engine(problem)
            out = np.full(wanted.shape, np.nan, np.float32)
            kernel.run(arrays["x"], kernel.pack(arrays["w"]), bias, out)
            np.testing.assert_array_equal(out, wanted, err_msg=engine.__name__)


def test_the_quickest_engine_is_of_the_kind_its_shape_asks_for():
    kinds = {"wide_rows": "Strips", "channels_last": "ByChannels", "11_outputs": "Forward"}
    for name, kind in kinds.items():
        assert type(cpu_direct.build(case(SHAPES[name], "float32", "forward")[0])).__name__ == kind
