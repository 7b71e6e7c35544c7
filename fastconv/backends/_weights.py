"""Where a forward convolution finds its weights: a view of some array by pitches, so that no pass turns its weights first.

The gradient of the input is forward convolutions with the same array, its channels exchanged and its taps reversed and
thinned: a view with other pitches, some of them negative.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..problem import Phase, Problem


class WeightLayout(NamedTuple):
    """Element (group, output, channel, d, h, w) lies at `start` plus each index times its pitch; output and channel within the group."""

    start: int
    group: int
    output: int
    channel: int
    taps: tuple[int, int, int]

    def offsets(self, problem: Problem) -> np.ndarray:
        """Offset of each term of a sum from the first weight of its output, in the order of the problem's own layout."""
        d, h, w = (np.arange(k, dtype=np.int64) * pitch for k, pitch in zip(problem.kernel_size, self.taps, strict=True))
        spatial = d[:, None, None] + h[:, None] + w
        channel = np.arange(problem.group_in, dtype=np.int64) * self.channel
        return (spatial[..., None] + channel if problem.channels_last else channel[:, None, None, None] + spatial).ravel()

    def array(self, problem: Problem, w: np.ndarray) -> np.ndarray:
        """The weights in an array of their own, of the problem's shape."""
        p = problem
        sizes = (p.groups, p.group_out, p.group_in, *p.kernel_size)
        pitches = [pitch * w.itemsize for pitch in (self.group, self.output, self.channel, *self.taps)]
        view = np.lib.stride_tricks.as_strided(w.reshape(-1)[self.start:], sizes, pitches, writeable=False)
        order = (3, 4, 5, 2, 0, 1) if p.channels_last else (0, 1, 2, 3, 4, 5)
        return np.ascontiguousarray(view.transpose(order)).reshape(p.weight_shape)


class JointLayout(NamedTuple):
    """The weights of several convolutions that differ in their taps alone, their outputs one block after the other."""

    start: int
    output: int
    blocks: np.ndarray  # offset of each term of a sum, a row for each block; NO_TERM for a zero

    def offsets(self, problem: Problem) -> np.ndarray:
        """Offset of each term of a sum, block by block."""
        return self.blocks

    def order(self, problem: Problem) -> np.ndarray:
        """Where each weight of the problem lies in the array, -1 for a zero; of the problem's shape."""
        blocks, terms = self.blocks.shape
        outputs = np.arange(problem.out_channels // blocks) * self.output
        index = np.maximum(self.blocks[:, None] + outputs[:, None], -1).reshape(problem.out_channels, terms)
        return np.ascontiguousarray(index.T if problem.channels_last else index).reshape(problem.weight_shape)


NO_TERM = -(1 << 60)  # the sum of three, a tap missing on each axis, is negative too


def joint_layout(problem: Problem, joint: Problem) -> JointLayout:
    """The weights of `joint`, the single convolution of a strided `grad_input`, among those of the gradient."""
    p, whole = problem, forward_layout(problem)
    axes = []  # for each axis (residue, tap of the joint kernel): the offset in w
    for k, s, (low, _), taps, pitch in zip(p.kernel_size, p.stride, p.padding, joint.kernel_size, whole.taps, strict=True):
        tap = s * np.arange(taps - 1, -1, -1, dtype=np.int64) + np.arange(s, dtype=np.int64)[:, None] - -low % s
        axes.append(np.where((tap >= 0) & (tap < k), tap * pitch, NO_TERM))
    d, h, w = axes
    spatial = d[:, None, None, :, None, None] + h[:, None, None, :, None] + w[:, None, None, :]
    points = np.where(spatial < 0, NO_TERM, spatial).reshape(math.prod(p.stride), -1)
    outputs = np.arange(p.out_channels, dtype=np.int64) * whole.output
    terms = points[:, :, None] + outputs if p.channels_last else points[:, None, :] + outputs[:, None]
    return JointLayout(0, whole.channel, np.where(terms < 0, NO_TERM, terms).reshape(len(points), -1))


def forward_layout(problem: Problem) -> WeightLayout:
    """Weights of the shape that the problem states."""
    p = problem
    _, kh, kw = p.kernel_size
    if p.channels_last:
        pixel = p.group_in * p.out_channels
        return WeightLayout(0, p.group_out, 1, p.out_channels, (kh * kw * pixel, kw * pixel, pixel))
    return WeightLayout(0, p.group_out * p.taps, p.taps, p.taps // p.group_in if p.group_in else 0, (kh * kw, kw, 1))


def phase_layout(problem: Problem, phase: Phase) -> WeightLayout:
    """The forward weights of a phase of a `grad_input` among those of the gradient: taps reversed, channels exchanged."""
    whole = forward_layout(problem)
    start = whole.start
    taps = []
    for pitch, kept, count in zip(whole.taps, phase.taps, problem.kernel_size, strict=True):
        first, _, step = kept.indices(count)
        last = first + (count - 1 - first) // step * step
        start += last * pitch
        taps.append(-step * pitch)
    return WeightLayout(start, whole.group, whole.channel, whole.output, (taps[0], taps[1], taps[2]))
