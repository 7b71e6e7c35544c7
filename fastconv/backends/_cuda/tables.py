"""The tables of the implicit GEMM: where the points and the taps of each phase lie, in the image and in the result or the weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ...problem import Problem
from .geometry import ImageStrides, image_strides, weight_strides

__all__ = ["DEPTH_MULTIPLE", "ENTRY", "FAR", "PHASE", "Fields", "Phase", "fields_of", "operand_tables"]

ENTRY = 4  # integers of an entry: offset in the image, position, offset in the result or the weights, nothing
FAR = -(2**30)  # a position that no other brings inside
FIELD_BITS = 30  # of a position's fields together
PADDING = 128  # entries that tables are filled up by, so that no tile reads beyond them
DEPTH_MULTIPLE = 16  # steps that depths are filled up to: every tile's


class Phase(NamedTuple):
    """One of the products that are done at once: integers of the table of phases."""

    points: int  # of an image
    taps: int
    first_point: int  # entries of the tables
    first_tap: int
    first_packed: int  # elements of the packed left factor
    packed_group: int  # the same of a group


PHASE = len(Phase._fields)


@dataclass(frozen=True)
class Fields:
    """Where the coordinates d, h, w lie in a position: fields of so many bits, each with a guard bit above it.

    An axis on which every coordinate is 0 has no field.
    """

    bits: tuple[int, int, int]

    @property
    def shifts(self) -> tuple[int, int, int]:
        """The lowest bit of each."""
        _, h, w = (n + 1 if n else 0 for n in self.bits)
        return h + w, w, 0

    @property
    def fit(self) -> bool:
        """Whether an integer holds them."""
        return sum(n + 1 for n in self.bits if n) <= FIELD_BITS

    @property
    def guards(self) -> int:
        """The guard bits, and the sign, which FAR sets."""
        return sum(1 << (shift + n) for shift, n in zip(self.shifts, self.bits, strict=True) if n) - 2**31

    def position(self, coordinates: Sequence[Any]) -> Any:
        """The coordinates as one integer."""
        return sum(value * 2**shift for value, shift in zip(coordinates, self.shifts, strict=True))


class Operand(NamedTuple):
    """One phase: where its points and taps are, along each axis of the image that is gathered from, in steps of a pixel."""

    point_at: list[np.ndarray]
    tap_at: list[np.ndarray]
    result_at: list[np.ndarray]  # the points' places along each axis of the result
    weights_at: list[np.ndarray]  # the taps' places along each axis of the kernel


def _operands(problem: Problem) -> Iterator[Operand]:
    """The image x by output points and taps, those of a weight gradient too; or the image gy, phase by phase.

    A phase that no tap reaches has points only.
    """
    p = problem
    if p.pass_name != "grad_input":
        point_at = [np.arange(n) * s - low for n, s, (low, _) in zip(p.output_size, p.stride, p.padding, strict=True)]
        tap_at = [np.arange(k) * d for k, d in zip(p.kernel_size, p.dilation, strict=True)]
        yield Operand(point_at, tap_at, [np.arange(n) for n in p.output_size], [np.arange(k) for k in p.kernel_size])
        return
    for phase in p.phases():
        forward = phase.problem
        result_at = [np.arange(n)[target] for n, target in zip(p.input_size, phase.target, strict=True)]
        pads = forward.padding if forward else ((0, 0),) * 3
        steps = forward.dilation if forward else (1, 1, 1)
        point_at = [np.arange(part.size) - low for part, (low, _) in zip(result_at, pads, strict=True)]
        taps = [np.arange(k)[part][::-1] if forward else np.arange(0) for k, part in zip(p.kernel_size, phase.taps, strict=True)]
        yield Operand(point_at, [np.arange(part.size) * step for part, step in zip(taps, steps, strict=True)], result_at, taps)


def _gathered_size(problem: Problem) -> tuple[int, ...]:
    return problem.output_size if problem.pass_name == "grad_input" else problem.input_size


def fields_of(problem: Problem) -> Fields:
    """Fields for all sums of a point's and a tap's coordinates, and for what the image's last ones exceed them by."""
    bits = [0, 0, 0]
    for operand in _operands(problem):
        for axis, size in enumerate(_gathered_size(problem)):
            points, taps = operand.point_at[axis], operand.tap_at[axis]
            if points.size and taps.size:
                least, most = int(points[0] + taps[0]), int(points[-1] + taps[-1])
                reach = max(-least, most, size - 1, size - 1 - least, most - size + 1, int(taps[-1]), int(points[-1]))
                bits[axis] = max(bits[axis], reach.bit_length())
    return Fields((bits[0], bits[1], bits[2]))


def _grid(axes: list[np.ndarray]) -> list[np.ndarray]:
    return [part.ravel() for part in np.meshgrid(*axes, indexing="ij")]


def _offsets(axes: list[np.ndarray], strides: Sequence[int]) -> np.ndarray:
    return np.sum([part * stride for part, stride in zip(_grid(axes), strides, strict=True)], axis=0)


def _point_entries(operand: Operand, fields: Fields, gathered: ImageStrides, result: ImageStrides) -> np.ndarray:
    offsets = _offsets(operand.point_at, gathered[2:])
    return np.stack([offsets, fields.position(_grid(operand.point_at)), _offsets(operand.result_at, result[2:]), 0 * offsets], axis=1)


def _tap_entries(problem: Problem, operand: Operand, fields: Fields, gathered: ImageStrides) -> np.ndarray:
    """Entries of all channels' taps; the channels run fastest where the image's do."""
    p, w = problem, weight_strides(problem)
    of_gradient = p.pass_name == "grad_input"
    channels, stride = (p.group_out, w.out_channel) if of_gradient else (p.group_in, w.in_channel)
    c = np.arange(channels)[:, None]
    offsets = c * gathered.channel + _offsets(operand.tap_at, gathered[2:])
    positions = 0 * c + fields.position(_grid(operand.tap_at))
    entries = np.stack([offsets, positions, c * stride + _offsets(operand.weights_at, w[2:]), 0 * offsets], axis=2)
    return (entries.transpose(1, 0, 2) if p.channels_last else entries).reshape(-1, ENTRY)


def operand_tables(problem: Problem, pitch: int, together: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The phases' sizes and places, and all their points and taps, filled up with entries that are nowhere inside.

    The packed left factor has rows of `pitch` elements, one for each `together` steps of the depth.
    """
    p, fields = problem, fields_of(problem)
    x, y = (image_strides(*sizes, p.channels_last) for sizes in ((p.in_channels, p.input_size), (p.out_channels, p.output_size)))
    gathered, result = (y, x) if p.pass_name == "grad_input" else (x, y)
    far = np.array([[0, FAR, 0, 0]])
    phases, points, taps = [], [], []
    first_point = first_tap = first_packed = 0
    for operand in _operands(p):
        own_points, own_taps = _point_entries(operand, fields, gathered, result), _tap_entries(p, operand, fields, gathered)
        depth = p.batch * len(own_points) if p.pass_name == "grad_weight" else len(own_taps)
        lines = -(-depth // DEPTH_MULTIPLE) * DEPTH_MULTIPLE // together
        phases.append(Phase(len(own_points), len(own_taps), first_point, first_tap, first_packed, lines * pitch))
        points += [own_points, far]
        taps += [own_taps, np.repeat(far, PADDING, axis=0)]
        first_point, first_tap = first_point + len(own_points) + 1, first_tap + len(own_taps) + PADDING
        first_packed += p.groups * lines * pitch
    return np.array(phases, np.int32), np.concatenate(points).astype(np.int32), np.concatenate(taps).astype(np.int32)
