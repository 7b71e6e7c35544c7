"""The table of convolutions that every backend is run over, in all three passes. Each is named after its hazard.

`HAZARDS` are edge cases, `LAYERS` small versions of real networks' layers. An input that once gave a wrong answer joins
`PREVIOUSLY_FAILED`, so that it never does again. The arrays are tiny: the table is run hundreds of times.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, eq=False)
class Case:
    """One convolution: shapes in the layout of its options."""

    name: str
    ndim: int
    input_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)


def case(name: str, input_shape: tuple[int, ...], weight_shape: tuple[int, ...], **options: Any) -> Case:
    """A case whose number of spatial axes is read off the input's shape."""
    return Case(name, len(input_shape) - 2, input_shape, weight_shape, options)


def channels_last(case: Case) -> Case:
    """The same convolution with the channels at the end."""
    batch, channels, *size = case.input_shape
    outputs, group_channels, *kernel = case.weight_shape
    return Case(
        f"{case.name}_nhwc",
        case.ndim,
        (batch, *size, channels),
        (*kernel, group_channels, outputs),
        case.options | {"layout": "NHWC"},
    )


SMALL = (
    case("single_pixel", (1, 1, 1, 1), (1, 1, 1, 1)),
    case("single_pixel_padded", (1, 1, 1, 1), (1, 1, 3, 3), padding=1),
    case("single_output", (1, 3, 3, 3), (5, 3, 3, 3)),
    case("single_row", (1, 2, 1, 40), (4, 2, 1, 3), padding=(0, 1)),
    case("single_column", (1, 2, 40, 1), (4, 2, 3, 1), padding=(1, 0)),
    case("single_tile", (1, 16, 4, 16), (16, 16, 3, 3), padding=1),
    case("input_smaller_than_tile", (1, 2, 2, 3), (3, 2, 3, 3), padding=1),
    case("input_smaller_than_kernel", (1, 2, 3, 2), (3, 2, 5, 5), padding=2),
    case("kernel_as_large_as_input", (2, 3, 7, 6), (4, 3, 7, 6)),
    case("one_point_per_sample_large_batch", (19, 4, 2, 2), (5, 4, 2, 2)),
    case("large_batch_of_points_many_outputs", (19, 4, 2, 2), (70, 4, 2, 2)),
    case("large_batch_of_points_groups", (40, 6, 3, 3), (140, 3, 2, 2), groups=2),
    case("large_batch_of_points_3d_nhwc", (19, 2, 3, 2, 3), (2, 2, 2, 3, 66), layout="NHWC"),
    case("batch_of_3", (3, 4, 9, 10), (6, 4, 3, 3), padding=1),
    case("output_of_one_row", (1, 3, 3, 30), (4, 3, 3, 3)),
    case("border_wider_than_input", (1, 2, 2, 2), (3, 2, 3, 3), padding=4),
    case("wide_and_flat", (1, 2, 3, 300), (3, 2, 3, 3), padding=1),
    case("tall_and_narrow", (1, 2, 300, 3), (3, 2, 3, 3), padding=1),
)

WIDTHS = tuple(case(f"width_{n}", (1, 3, 5, n), (4, 3, 3, 3), padding=1) for n in (7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 65))

CHANNELS = (
    case("one_channel", (1, 1, 12, 13), (1, 1, 3, 3), padding=1),
    case("one_channel_to_many", (1, 1, 12, 13), (17, 1, 5, 5), padding=2),
    case("many_channels_to_one", (1, 19, 9, 8), (1, 19, 3, 3), padding=1),
    case("prime_channels", (1, 7, 9, 11), (13, 7, 3, 3), padding=1),
    case("prime_channels_1x1", (2, 37, 5, 7), (41, 37, 1, 1)),
    case("more_channels_than_a_panel", (1, 300, 4, 4), (5, 300, 3, 3), padding=1),
    *(case(f"out_channels_{n}", (1, 5, 6, 7), (n, 5, 3, 3), padding=1) for n in (3, 15, 16, 17, 31, 32, 33, 48, 64, 100)),
)

GROUPS = (
    case("groups_2", (1, 6, 8, 9), (10, 3, 3, 3), padding=1, groups=2),
    case("groups_3_odd_channels", (2, 15, 7, 7), (21, 5, 3, 3), padding=1, groups=3, stride=2),
    case("groups_of_16", (1, 32, 6, 6), (32, 16, 3, 3), padding=1, groups=2),
    case("groups_1x1", (1, 12, 5, 6), (8, 3, 1, 1), groups=4),
    case("groups_many_to_one", (1, 12, 6, 6), (4, 3, 3, 3), groups=4),
    case("depthwise", (2, 7, 9, 10), (7, 1, 3, 3), padding=1, groups=7),
    case("depthwise_stride_2", (1, 16, 11, 12), (16, 1, 3, 3), padding=1, groups=16, stride=2),
    case("depthwise_5x5_dilated", (1, 5, 14, 15), (5, 1, 5, 5), padding=4, groups=5, dilation=2),
    case("depthwise_multiplier_2", (1, 6, 8, 9), (12, 1, 3, 3), padding=1, groups=6),
    case("depthwise_reflect", (1, 3, 8, 9), (3, 1, 5, 5), padding=((2, 1), (3, 2)), groups=3, padding_mode="reflect"),
    case("depthwise_1d", (1, 5, 50), (5, 1, 7), padding=3, groups=5),
)

GEOMETRY = (
    case("asymmetric_pads", (1, 3, 8, 9), (4, 3, 3, 3), padding=((0, 2), (3, 1))),
    case("pads_on_one_side", (1, 3, 8, 9), (4, 3, 4, 4), padding=((3, 0), (0, 3))),
    case("pads_wider_than_kernel", (1, 2, 6, 6), (3, 2, 3, 3), padding=5),
    case("stride_2", (1, 3, 11, 12), (4, 3, 3, 3), padding=1, stride=2),
    case("stride_2_unread_tail", (1, 3, 12, 12), (4, 3, 3, 3), stride=2),
    case("stride_differs_by_axis", (1, 3, 12, 13), (4, 3, 3, 4), padding=1, stride=(1, 3)),
    case("stride_larger_than_kernel", (1, 3, 13, 14), (4, 3, 2, 2), stride=5),
    case("stride_larger_than_input", (1, 3, 4, 5), (4, 3, 3, 3), padding=1, stride=9),
    case("stride_3_dilation_2", (1, 3, 14, 15), (4, 3, 3, 3), padding=2, stride=3, dilation=2),
    case("stride_2_dilation_2_common_divisor", (1, 3, 13, 14), (4, 3, 3, 3), padding=2, stride=2, dilation=2),
    case("stride_4_dilation_6_common_divisor", (1, 2, 21, 22), (3, 2, 3, 4), padding=5, stride=4, dilation=6),
    case("dilation_2", (1, 3, 12, 13), (4, 3, 3, 3), padding=2, dilation=2),
    case("dilation_5", (1, 2, 14, 17), (3, 2, 3, 3), padding=5, dilation=5),
    case("dilation_differs_by_axis", (1, 2, 12, 17), (3, 2, 3, 3), padding=(1, 4), dilation=(1, 4)),
    case("dilated_beyond_input", (1, 2, 4, 5), (3, 2, 3, 3), padding=6, dilation=6),
)

KERNELS = (
    case("kernel_1x1", (2, 5, 6, 7), (9, 5, 1, 1)),
    case("kernel_1x1_stride_2", (1, 5, 7, 8), (9, 5, 1, 1), stride=2),
    case("kernel_1x1_planes_of_4_kib", (1, 6, 32, 32), (101, 6, 1, 1)),
    case("kernel_1x1_groups_batch", (3, 10, 7, 11), (26, 5, 1, 1), groups=2),
    case("kernel_1x1_3d", (2, 5, 3, 4, 5), (17, 5, 1, 1, 1)),
    case("kernel_1x1_padded", (1, 5, 6, 7), (3, 5, 1, 1), padding=1),
    case("kernel_2x2_even", (1, 3, 8, 9), (4, 3, 2, 2)),
    case("kernel_4x4_even_padded", (1, 3, 8, 9), (4, 3, 4, 4), padding=2),
    case("kernel_1x7", (1, 3, 8, 19), (4, 3, 1, 7), padding=(0, 3)),
    case("kernel_7x1", (1, 3, 19, 8), (4, 3, 7, 1), padding=(3, 0)),
    case("kernel_2x5", (1, 3, 9, 8), (4, 3, 2, 5), padding=(1, 2)),
    case("kernel_9x9", (1, 2, 16, 17), (3, 2, 9, 9), padding=4),
    case("kernel_31x31_small_image", (1, 2, 18, 20), (2, 2, 31, 31), padding=15),
    case("kernel_larger_than_fft_tile", (1, 1, 70, 75), (1, 1, 65, 66)),
)

BORDERS = (
    *(
        case(f"{mode}_asymmetric", (2, 3, 8, 9), (4, 3, 3, 4), padding=((1, 2), (3, 0)), padding_mode=mode)
        for mode in ("reflect", "symmetric", "replicate", "circular")
    ),
    *(
        case(
            f"{mode}_strided_dilated",
            (1, 3, 11, 12),
            (4, 3, 3, 3),
            padding=((2, 3), (1, 4)),
            padding_mode=mode,
            stride=2,
            dilation=2,
        )
        for mode in ("reflect", "symmetric", "replicate", "circular")
    ),
    case("reflect_widest", (1, 2, 5, 6), (3, 2, 3, 3), padding=(4, 5), padding_mode="reflect"),
    case("symmetric_widest", (1, 2, 5, 6), (3, 2, 3, 3), padding=(5, 6), padding_mode="symmetric"),
    case("circular_widest", (1, 2, 5, 6), (3, 2, 3, 3), padding=(5, 6), padding_mode="circular"),
    case("replicate_wider_than_input", (1, 2, 3, 1), (3, 2, 3, 3), padding=(7, 4), padding_mode="replicate"),
    case("circular_large_kernel", (1, 1, 20, 21), (2, 1, 15, 15), padding=7, padding_mode="circular"),
    case("reflect_1d", (1, 2, 20), (3, 2, 5), padding=((4, 1),), padding_mode="reflect"),
    case("circular_3d", (1, 2, 4, 5, 6), (3, 2, 3, 3, 3), padding=1, padding_mode="circular"),
    case("border_mode_without_pads", (1, 2, 5, 6), (3, 2, 3, 3), padding_mode="reflect"),
)

NAMED_PADDING = (
    *(
        case(f"{padding}_stride_2", (1, 3, 10, 13), (4, 3, 3, 4), padding=padding, stride=2)
        for padding in ("same", "same_lower", "valid")
    ),
    case("same_even_kernel", (1, 2, 7, 8), (3, 2, 4, 2), padding="same"),
    case("same_lower_dilated", (1, 2, 9, 10), (3, 2, 2, 4), padding="same_lower", dilation=(2, 3)),
    case("same_stride_larger_than_kernel", (1, 2, 10, 11), (3, 2, 2, 1), padding="same", stride=3),
    case("same_circular", (1, 2, 7, 8), (3, 2, 4, 3), padding="same", padding_mode="circular"),
    case("causal", (2, 3, 30), (4, 3, 5), padding="causal"),
    case("causal_stride_2_dilation_3", (1, 3, 31), (4, 3, 4), padding="causal", stride=2, dilation=3),
)

OTHER_RANKS = (
    case("1d", (2, 3, 37), (5, 3, 3), padding=1),
    case("1d_single_point", (1, 1, 1), (1, 1, 1)),
    case("1d_long", (1, 1, 5000), (1, 1, 64), padding=31),
    case("1d_long_kernel", (1, 1, 4000), (2, 1, 1025)),
    case("1d_stride_4", (2, 2, 101), (3, 2, 8), padding=((3, 2),), stride=4),
    case("1d_groups_dilated", (1, 6, 60), (9, 2, 3), padding=8, groups=3, dilation=8),
    case("3d", (1, 3, 5, 6, 7), (4, 3, 3, 3, 3), padding=1),
    case(
        "3d_stride_dilation",
        (2, 2, 7, 8, 9),
        (3, 2, 3, 2, 3),
        padding=((1, 0), (0, 2), (1, 1)),
        stride=(2, 1, 3),
        dilation=(1, 3, 2),
    ),
    case("3d_groups", (1, 4, 4, 5, 17), (6, 2, 2, 3, 3), groups=2),
    case("3d_one_slice", (1, 3, 1, 9, 10), (4, 3, 1, 3, 3), padding=(0, 1, 1)),
)

LAYERS = (
    case("resnet_stem", (1, 3, 33, 34), (16, 3, 7, 7), stride=2, padding=3),
    case("resnet_3x3", (1, 32, 14, 14), (32, 32, 3, 3), padding=1),
    case("resnet_3x3_stride_2", (1, 24, 14, 14), (40, 24, 3, 3), stride=2, padding=1),
    case("resnet_1x1", (2, 64, 7, 7), (48, 64, 1, 1)),
    case("resnet_downsample_1x1", (1, 32, 14, 14), (64, 32, 1, 1), stride=2),
    case("vgg_3x3", (1, 16, 28, 28), (16, 16, 3, 3), padding=1),
    case("mobilenet_depthwise", (1, 32, 14, 14), (32, 1, 3, 3), padding=1, groups=32),
    case("mobilenet_depthwise_stride_2", (1, 24, 15, 15), (24, 1, 3, 3), stride=2, padding=1, groups=24),
    case("mobilenet_pointwise", (1, 16, 14, 14), (96, 16, 1, 1)),
    case("resnext_grouped", (1, 32, 7, 7), (32, 4, 3, 3), padding=1, groups=8),
    case("convnext_depthwise_7x7", (1, 24, 14, 14), (24, 1, 7, 7), padding=3, groups=24),
    case("convnext_patchify", (1, 3, 32, 32), (24, 3, 4, 4), stride=4),
    case("alexnet_11x11_stride_4", (1, 3, 43, 43), (16, 3, 11, 11), stride=4, padding=2),
    case("lenet_conv1", (1, 1, 28, 28), (6, 1, 5, 5), padding=2),
    case("lenet_conv2", (2, 6, 14, 14), (16, 6, 5, 5)),
    case("wavenet_causal", (1, 16, 80), (16, 16, 2), padding="causal", dilation=16),
    case("video_3x3x3", (1, 4, 4, 8, 8), (8, 4, 3, 3, 3), padding=1),
)

PREVIOUSLY_FAILED = (
    # grad_input as one convolution of all phases: offsets of taps that are missing on three axes overflowed
    case("3d_stride_2_all_phases_at_once", (1, 12, 4, 6, 5), (10, 12, 3, 3, 3), padding=1, stride=2),
    case("3d_stride_2_all_phases_in_place", (1, 32, 3, 4, 5), (16, 32, 3, 3, 3), padding=1, stride=2),
)

_ALSO_CHANNELS_LAST = {
    "single_pixel",
    "input_smaller_than_tile",
    "batch_of_3",
    "width_17",
    "one_channel",
    "one_channel_to_many",
    "many_channels_to_one",
    "prime_channels",
    "more_channels_than_a_panel",
    "out_channels_33",
    "out_channels_100",
    "groups_2",
    "groups_3_odd_channels",
    "depthwise",
    "depthwise_stride_2",
    "depthwise_multiplier_2",
    "asymmetric_pads",
    "stride_larger_than_kernel",
    "stride_3_dilation_2",
    "stride_2_dilation_2_common_divisor",
    "dilation_5",
    "kernel_1x1",
    "kernel_1x1_stride_2",
    "kernel_4x4_even_padded",
    "kernel_31x31_small_image",
    "reflect_asymmetric",
    "circular_strided_dilated",
    "replicate_wider_than_input",
    "same_stride_2",
    "causal_stride_2_dilation_3",
    "1d",
    "1d_long_kernel",
    "3d_stride_dilation",
    "resnet_stem",
    "resnet_1x1",
    "mobilenet_depthwise",
    "convnext_depthwise_7x7",
}
_CHANNELS_FIRST = (*SMALL, *WIDTHS, *CHANNELS, *GROUPS, *GEOMETRY, *KERNELS, *BORDERS, *NAMED_PADDING, *OTHER_RANKS, *LAYERS)

HAZARDS = _CHANNELS_FIRST[: -len(LAYERS)]
CHANNELS_LAST = tuple(channels_last(one) for one in _CHANNELS_FIRST if one.name in _ALSO_CHANNELS_LAST)
CASES = (*PREVIOUSLY_FAILED, *HAZARDS, *CHANNELS_LAST, *LAYERS)
BY_NAME = {one.name: one for one in CASES}


def named(*names: str) -> tuple[Case, ...]:
    """The cases of these names: a slice of the table for tests that need not run over all of it."""
    return tuple(BY_NAME[name] for name in names)
