"""`fft` on a GPU: convolution as a product of spectra, on overlapping tiles (overlap-save), whose transforms stay in registers.

    forward       y = IFFT(sum over channels and blocks of the kernel of  FFT(tile of x) conj(FFT(block of w)))
    grad_input    the forward convolution of gy with the kernel reversed
    grad_weight   gw = IFFT(sum over images and tiles of  FFT(tile of x) conj(FFT(tile of gy)))

A kernel larger than half a tile may be cut into blocks half a tile apart, so that tiles of 8 to 64 points do for any size. Where one
product is an output (depthwise, one channel, one block), a single kernel does it all; elsewhere spectra of the images go through
memory, a chunk of images at a time. The same kernels do all passes (`_cuda.fft`).

A rounding error is relative to the largest values of a pair of tiles. Tiles with a result that is not finite are summed again directly.

Source: Mathieu, Henaff, LeCun, "Fast training of convolutional networks through FFTs" (2014); Vasilache et al., "Fast convolutional
nets with fbfft" (2015); Wefers, "Partitioned convolution algorithms for real-time auralization" (2015), section 5 (blocks of the kernel).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..problem import Problem
from . import Backend
from ._cuda import SIMULATED
from ._cuda.compiling import Code
from ._cuda.driver import Gpu, Launch, Stream, address_of, gpu, resident, scratch
from ._cuda.fft import FUSED, READY, SUMMED, VECTOR, WHOLE, Cut, Joined, groups_of, join_code, shared_bytes, transform_code
from ._cuda.fourier import LANES
from ._cuda.geometry import ImageStrides, WeightStrides, image_strides, index_refusal, weight_strides
from ._cuda.packing import Parts, sum_parts_code
from ._cuda.spectra import COLUMNS, ROWS, Products, multiply_code
from ._cuda.spectra import shared_bytes as product_bytes
from ._rectifiers import RECTIFIERS

TILES = (8,) if SIMULATED else (8, 16, 32, 64)
TILES64 = (8,) if SIMULATED else (8, 16)  # float64: registers are pairs
SCRATCH_BYTES = 256 * 1024 * 1024  # of spectra, unless one image has more
MOST_ELEMENTS = 2**30  # of spectra that are indexed by 32 bits
MOST_GRID = 65535  # blocks along the second and third axis
MOST_SPLITS = 64
BUSY_WARPS = 8  # of a multiprocessor that hide their latency (an estimate: benchmarks/gpu.py will measure it)
# Share of the peak in transforms: a quarter of their operations are multiply-adds (an estimate: benchmarks/gpu.py will measure it).
EFFICIENCY = 0.25
PRODUCT_EFFICIENCY = 0.6  # the same in products of matrices (an estimate: benchmarks/gpu.py will measure it)
CACHE_SPEEDUP = 2.5  # of the last cache over the memory (an estimate: benchmarks/gpu.py will measure it)
LAUNCH_SECONDS = 5e-6  # of a kernel (an estimate: benchmarks/gpu.py will measure it, tiny)


class Form(NamedTuple):
    """How a problem is computed."""

    n: int  # points of a tile along each axis
    single: bool  # one block of the kernel, however few points of a tile it leaves
    source: str  # of `join_code`


@dataclass(frozen=True)
class Tiling:
    """Output tiles of one axis or both, in pairs, and blocks of the kernel, (rows, columns)."""

    step: tuple[int, int]  # points of an output tile
    blocks: tuple[int, int]
    pairs: tuple[int, int, int]  # images, rows, columns
    partner: tuple[int, int]  # images, rows

    @property
    def count(self) -> int:
        """Pairs of output tiles of a channel."""
        return math.prod(self.pairs)

    @property
    def image_pairs(self) -> tuple[int, int, int]:
        """Pairs of tiles of the image that they read."""
        return self.pairs[0], self.pairs[1] + self.blocks[0] - 1, self.pairs[2] + self.blocks[1] - 1


def reach(problem: Problem) -> tuple[int, int]:
    """Points that the kernel spans, gaps of its dilation and all."""
    _, h, w = ((k - 1) * d + 1 for k, d in zip(problem.kernel_size, problem.dilation, strict=True))
    return h, w


def tile(problem: Problem, form: Form, images: int) -> Tiling:
    """The tiles of so many images of a forward convolution; a tile's partner is in the other half of the rows, or of the images."""
    n = form.n
    cuts = [(n - k + 1, 1) if form.single or k <= n // 2 + 1 else (n // 2, -(-(k - 1) // (n // 2))) for k in reach(problem)]
    (step_h, blocks_h), (step_w, blocks_w) = cuts
    rows, columns = -(-problem.output_size[1] // step_h), -(-problem.output_size[2] // step_w)
    by_rows, by_images = images * -(-rows // 2), -(-images // 2) * rows
    if by_rows <= by_images:
        pairs, partner = (images, -(-rows // 2), columns), (0, -(-rows // 2))
    else:
        pairs, partner = (-(-images // 2), rows, columns), (-(-images // 2), 0)
    return Tiling((step_h, step_w), (blocks_h, blocks_w), pairs, partner)


@functools.cache
def forward_of(problem: Problem) -> Problem:
    """The forward convolution that a pass is, or is the gradient of."""
    phase = problem.phases()[0].problem if problem.pass_name == "grad_input" else problem
    assert phase is not None, "every tap reaches a gradient of stride 1"
    return phase


# -- geometry -------------------------------------------------------------------------------------------------------------


class Operands(NamedTuple):
    """Where the arrays of a forward convolution lie."""

    x: ImageStrides
    y: ImageStrides
    w: WeightStrides
    w_start: int  # of the first tap
    w_group: int


def operands_of(problem: Problem) -> Operands:
    p, f = problem, forward_of(problem)
    w = weight_strides(p)
    start, group = 0, p.group_out * w.out_channel
    if p.pass_name == "grad_input":
        start = (p.kernel_size[1] - 1) * w.row + (p.kernel_size[2] - 1) * w.column
        w = WeightStrides(w.in_channel, w.out_channel, w.depth, -w.row, -w.column)
    return Operands(image_strides(f.in_channels, f.input_size, p.channels_last),
                    image_strides(f.out_channels, f.output_size, p.channels_last), w, start, group)


def image_cut(problem: Problem, tiling: Tiling, images: int, first: int) -> Cut:
    """Tiles of x, which begin at each output tile."""
    f, o = forward_of(problem), operands_of(problem)
    pairs_n, pairs_h, pairs_w = pairs = tiling.image_pairs
    count = math.prod(pairs)
    gradient = problem.pass_name == "grad_weight"  # a product's columns are channels then, and images otherwise
    channel, item = (1, f.group_in) if gradient else (count, 1)
    return Cut(
        height=f.input_size[1], width=f.input_size[2], images=images, start=first * o.x.batch, group=f.group_in * o.x.channel,
        channel=o.x.channel, image=o.x.batch, row=o.x.row, column=o.x.column, first_h=-f.padding[1][0], first_w=-f.padding[2][0],
        step_h=tiling.step[0], step_w=tiling.step[1], last_h=0, last_w=0, spread_h=1, spread_w=1, pairs_n=pairs_n, pairs_h=pairs_h,
        pairs_w=pairs_w, partner_n=tiling.partner[0], partner_h=tiling.partner[1], item_group=f.group_in * count, item_channel=channel,
        item_n=pairs_h * pairs_w * item, item_h=pairs_w * item, item_w=item, items=f.in_channels * count)


def gradient_cut(problem: Problem, tiling: Tiling, images: int, first: int) -> Cut:
    """Tiles of gy, as many points as an output tile has."""
    f, o = forward_of(problem), operands_of(problem)
    pairs_n, pairs_h, pairs_w = tiling.pairs
    rows = f.group_out
    return Cut(
        height=f.output_size[1], width=f.output_size[2], images=images, start=first * o.y.batch, group=rows * o.y.channel,
        channel=o.y.channel, image=o.y.batch, row=o.y.row, column=o.y.column, first_h=0, first_w=0, step_h=tiling.step[0],
        step_w=tiling.step[1], last_h=WHOLE, last_w=WHOLE, spread_h=1, spread_w=1, pairs_n=pairs_n, pairs_h=pairs_h, pairs_w=pairs_w,
        partner_n=tiling.partner[0], partner_h=tiling.partner[1], item_group=tiling.count * rows, item_channel=1,
        item_n=pairs_h * pairs_w * rows, item_h=pairs_w * rows, item_w=rows, items=f.out_channels * tiling.count)


def weight_cut(problem: Problem, tiling: Tiling) -> Cut:
    """Blocks of the kernel, the last of all further points; the kernels of a group are its images, each tile without a partner."""
    f, o = forward_of(problem), operands_of(problem)
    blocks_h, blocks_w = tiling.blocks
    rows, terms = f.group_out, f.group_in * blocks_h * blocks_w
    height, width = reach(f)
    return Cut(
        height=height, width=width, images=rows, start=o.w_start, group=o.w_group, channel=o.w.in_channel, image=o.w.out_channel,
        row=o.w.row, column=o.w.column, first_h=0, first_w=0, step_h=tiling.step[0], step_w=tiling.step[1], last_h=blocks_h - 1,
        last_w=blocks_w - 1, spread_h=f.dilation[1], spread_w=f.dilation[2], pairs_n=rows, pairs_h=blocks_h, pairs_w=blocks_w,
        partner_n=rows, partner_h=0, item_group=terms * rows, item_channel=blocks_h * blocks_w * rows, item_n=1,
        item_h=blocks_w * rows, item_w=rows, items=f.groups * terms * rows)


def image_join(problem: Problem, tiling: Tiling, images: int, first: int) -> Joined:
    """Output tiles: sums over channels and blocks of the kernel."""
    f, o = forward_of(problem), operands_of(problem)
    x, w = image_cut(problem, tiling, images, first), weight_cut(problem, tiling)
    pairs_n, pairs_h, pairs_w = tiling.pairs
    return Joined(
        height=f.output_size[1], width=f.output_size[2], images=images, start=first * o.y.batch, group=f.group_out * o.y.channel,
        channel=o.y.channel, image=o.y.batch, row=o.y.row, column=o.y.column, step_h=tiling.step[0], step_w=tiling.step[1], last_h=WHOLE,
        last_w=WHOLE, spread_h=1, spread_w=1, pairs_n=pairs_n, pairs_h=pairs_h, pairs_w=pairs_w, partner_n=tiling.partner[0],
        partner_h=tiling.partner[1], rows=f.group_out, splits=1, chunk=f.group_in, part=0, terms_d=f.group_in, terms_h=tiling.blocks[0],
        terms_w=tiling.blocks[1], z_items=x.items, z_group=x.item_group, z_channel=0, z_n=x.item_n, z_d=x.item_channel, z_h=x.item_h,
        z_w=x.item_w, w_items=w.items, w_group=w.item_group, w_channel=w.item_n, w_d=w.item_channel, w_h=w.item_h, w_w=w.item_w,
        a_height=x.height, a_width=x.width, a_start=x.start, a_first_h=x.first_h, a_first_w=x.first_w, a_group=x.group, a_n=x.image,
        a_d=x.channel, a_row=x.row, a_column=x.column, count_d=f.group_in, count_h=f.kernel_size[1], count_w=f.kernel_size[2],
        partner_d=f.group_in, dilation_h=f.dilation[1], dilation_w=f.dilation[2], b_start=w.start, b_group=w.group, b_channel=w.image,
        b_d=w.channel, b_row=w.row, b_column=w.column, has_bias=int(problem.bias))


def weight_join(problem: Problem, tiling: Tiling, images: int, first: int, splits: int, first_part: int) -> Joined:
    """Blocks of the gradient of the weights: sums over images and tiles. The channels of a group are the target's images."""
    f, o = forward_of(problem), operands_of(problem)
    x, y, w = image_cut(problem, tiling, images, first), gradient_cut(problem, tiling, images, first), weight_cut(problem, tiling)
    elements = math.prod(problem.shapes[2])
    pairs_n, pairs_h, pairs_w = tiling.pairs
    return Joined(
        height=w.height, width=w.width, images=f.group_in, start=first_part * elements, group=o.w_group, channel=o.w.out_channel,
        image=o.w.in_channel, row=w.row, column=w.column, step_h=w.step_h, step_w=w.step_w, last_h=w.last_h, last_w=w.last_w,
        spread_h=w.spread_h, spread_w=w.spread_w, pairs_n=f.group_in, pairs_h=tiling.blocks[0], pairs_w=tiling.blocks[1],
        partner_n=f.group_in, partner_h=0, rows=f.group_out, splits=splits, chunk=-(-pairs_n // splits), part=elements, terms_d=pairs_n,
        terms_h=pairs_h, terms_w=pairs_w, z_items=x.items, z_group=x.item_group, z_channel=0, z_n=x.item_channel, z_d=x.item_n,
        z_h=x.item_h, z_w=x.item_w, w_items=y.items, w_group=y.item_group, w_channel=y.item_channel, w_d=y.item_n, w_h=y.item_h,
        w_w=y.item_w, a_height=x.height, a_width=x.width, a_start=x.start, a_first_h=x.first_h, a_first_w=x.first_w, a_group=x.group,
        a_n=x.channel, a_d=x.image, a_row=x.row, a_column=x.column, count_d=images, count_h=y.height, count_w=y.width,
        partner_d=tiling.partner[0] or images, dilation_h=1, dilation_w=1, b_start=y.start, b_group=y.group, b_channel=y.channel,
        b_d=y.image, b_row=y.row, b_column=y.column, has_bias=0)


# -- the kernel -----------------------------------------------------------------------------------------------------------


class Chunk(NamedTuple):
    """What is launched for some of the images; None is left out."""

    image: Launch | None  # x to spectra
    gradient: Launch | None  # gy to spectra
    multiply: Launch | None
    join: Launch
    tables: tuple[Any, Any] | None  # of the sums' terms and columns


class Fft:
    """Any pass of a problem of stride 1 with zero borders."""

    def __init__(self, problem: Problem):
        p = self.problem = problem
        self.form = choose(p, gpu())
        self.gradient = p.pass_name == "grad_weight"
        images = images_of_chunk(p, self.form)
        firsts = range(0, p.batch, images)
        last = p.batch - firsts[-1]
        sizes = Spectra(*map(max, zip(sizes_of(p, self.form, images), sizes_of(p, self.form, last), strict=True)))
        self.packed = () if self.gradient else ((sizes.weights, p.dtype),)
        self.splits = splits_of(p, self.form, images, gpu())
        parts = len(firsts) * self.splits if self.gradient else 1
        elements = math.prod(p.shapes[2])
        self.spectra = [(count, p.dtype) for count in (sizes.image, sizes.gradient, sizes.products, elements * (parts > 1) * parts)]
        self.scratch_bytes = p.itemsize * sum(count for count, _ in self.spectra)
        self.tables: dict[int, tuple[Any, Any]] = {}
        self.chunks = [self._chunk(first, min(images, p.batch - first), k) for k, first in enumerate(firsts)]
        weights = weight_cut(p, self._tiling(1))
        self.pack_launch = self._transform(weights, forward_of(p).group_in, spread=max(p.dilation) > 1)
        self.add = None
        if parts > 1:
            code = sum_parts_code(p.dtype)
            self.add = Launch(code, (-(-elements // code.threads),), Parts(parts, elements, 1, 1, 0), RECTIFIERS[None])

    def _tiling(self, images: int) -> Tiling:
        return tile(forward_of(self.problem), self.form, images)

    def _chunk(self, first: int, images: int, number: int) -> Chunk:
        p, f = self.problem, forward_of(self.problem)
        tiling = self._tiling(images)
        image = self._transform(image_cut(p, tiling, images, first), f.group_in) if self.form.source != FUSED else None
        gradient = self._transform(gradient_cut(p, tiling, images, first), f.group_out) if self.gradient else None
        if self.gradient:
            joined = weight_join(p, tiling, images, first, self.splits, number * self.splits)
        else:
            joined = image_join(p, tiling, images, first)
        if images not in self.tables and self.form.source != FUSED:
            self.tables[images] = resident(term_table(joined)), resident(column_table(joined))
        multiply = None
        if self.form.source == READY:
            multiply, joined = self._multiply(joined)
        return Chunk(image, gradient, multiply, self._join(joined), self.tables.get(images))

    def _transform(self, cut: Cut, channels: int, *, spread: bool = False) -> Launch:
        p, n = self.problem, self.form.n
        blocks = -(-cut.pairs_n * cut.pairs_h * cut.pairs_w // groups_of(n))
        return Launch(transform_code(n, p.dtype, spread), (blocks, channels, p.groups), cut, shared_bytes=shared_bytes(n, p.dtype))

    def _multiply(self, joined: Joined) -> tuple[Launch, Joined]:
        """The products, and the join of their results."""
        p, n, j = self.problem, self.form.n, joined
        columns, blocks = j.pairs_n * j.pairs_h * j.pairs_w, n * n // VECTOR
        items = p.groups * j.rows * columns
        products = Products(j.rows, columns, j.terms_d * j.terms_h * j.terms_w, blocks, j.w_items, j.w_group, j.w_channel, j.z_items,
                            j.z_group, items)
        launch = Launch(multiply_code(p.dtype), (-(-columns // COLUMNS), -(-j.rows // ROWS), p.groups * blocks), products,
                        shared_bytes=product_bytes(p.dtype))
        return launch, j._replace(z_items=items, z_group=j.rows * columns, z_channel=columns, z_n=j.pairs_h * j.pairs_w, z_h=j.pairs_w,
                                  z_w=1)

    def _join(self, joined: Joined) -> Launch:
        p, n = self.problem, self.form.n
        code = join_code(n, p.dtype, self.form.source, self.gradient and max(p.dilation) > 1)
        blocks = -(-joined.pairs_n * joined.pairs_h * joined.pairs_w // groups_of(n))
        rectifier = RECTIFIERS[None if self.gradient else p.activation]
        return Launch(code, (blocks, joined.rows, p.groups * joined.splits), joined, rectifier, shared_bytes(n, p.dtype))

    def pack(self, stream: Stream, second: Any, target: list[Any]) -> None:
        """Transform the weights; gy is transformed a chunk at a time."""
        if not self.gradient:
            self.pack_launch(stream, second, target[0])

    def run(self, stream: Stream, first: Any, second: Any, packed: list[Any], bias: Any, out: Any) -> None:
        """Launch the chunks' kernels, and add up the parts if there are several."""
        bias = out if bias is None else bias
        kept = [part for part in self.spectra if part[0]]
        with scratch(stream, *kept) as pointers:
            places = iter(pointers)
            image, gradient, products, parts = (next(places) if count else out for count, _ in self.spectra)
            factor = gradient if self.gradient else packed[0]
            target = out if self.add is None else parts
            for chunk in self.chunks:
                if chunk.image is not None:
                    chunk.image(stream, first, image)
                if chunk.gradient is not None:
                    chunk.gradient(stream, second, gradient)
                terms, columns = map(address_of, chunk.tables) if chunk.tables else (out, out)
                if chunk.multiply is not None:
                    chunk.multiply(stream, factor, image, terms, columns, products)
                chunk.join(stream, products if chunk.multiply else image, factor, terms, bias, first, second, target)
            if self.add is not None:
                self.add(stream, parts, bias, out)


def term_table(joined: Joined) -> np.ndarray:
    """The items of z and of w where each term of the sums begins."""
    j = joined
    d, h, v = (part.ravel() for part in np.meshgrid(np.arange(j.terms_d), np.arange(j.terms_h), np.arange(j.terms_w), indexing="ij"))
    return np.stack([d * j.z_d + h * j.z_h + v * j.z_w, d * j.w_d + h * j.w_h + v * j.w_w], axis=1).astype(np.int32)


def column_table(joined: Joined) -> np.ndarray:
    """The items of z where each column begins, filled up for a tile's last columns."""
    j = joined
    n, h, v = (part.ravel() for part in np.meshgrid(np.arange(j.pairs_n), np.arange(j.pairs_h), np.arange(j.pairs_w), indexing="ij"))
    return np.pad(n * j.z_n + h * j.z_h + v * j.z_w, (0, COLUMNS)).astype(np.int32)


# -- choosing -------------------------------------------------------------------------------------------------------------


class Spectra(NamedTuple):
    """Elements of the spectra of a chunk of images, and of the weights."""

    image: int
    gradient: int
    products: int
    weights: int


def sizes_of(problem: Problem, form: Form, images: int) -> Spectra:
    p, f = problem, forward_of(problem)
    tiling = tile(f, form, images)
    blocks, item = math.prod(tiling.blocks), 2 * form.n**2
    gradient = p.pass_name == "grad_weight"
    image = 0 if form.source == FUSED else f.in_channels * math.prod(tiling.image_pairs) * item
    weights = f.out_channels * f.group_in * blocks * item
    products = 0
    if form.source == READY:
        products = weights if gradient else f.out_channels * tiling.count * item
    return Spectra(image, f.out_channels * tiling.count * item if gradient else 0, products, 0 if gradient else weights)


def images_of_chunk(problem: Problem, form: Form) -> int:
    """Images whose spectra fit the scratch memory, one at least."""
    p = problem
    sizes = sizes_of(p, form, p.batch)
    each = -(-(sizes.image + sizes.gradient + sizes.products) * p.itemsize // p.batch)
    return max(1, min(p.batch, SCRATCH_BYTES // max(1, each)))


def splits_of(problem: Problem, form: Form, images: int, machine: Gpu) -> int:
    """Parts of the sum over images of a weight gradient that fill the multiprocessors."""
    f = forward_of(problem)
    if problem.pass_name != "grad_weight" or form.source != SUMMED:
        return 1
    tiling = tile(f, form, images)
    warps = f.out_channels * f.group_in * math.prod(tiling.blocks) * form.n / LANES
    return max(1, min(math.ceil(machine.multiprocessors * BUSY_WARPS / warps), tiling.pairs[0], MOST_SPLITS, MOST_GRID // f.groups))


@functools.cache
def forms(problem: Problem) -> tuple[Form, ...]:
    """The forms that the problem can be computed in."""
    p, f = problem, forward_of(problem)
    found = []
    for n in TILES if p.itemsize == 4 else TILES64:
        for single in (False, True):
            if single and (max(reach(f)) > n or max(reach(f)) <= n // 2 + 1):  # impossible, or the same as blocks
                continue
            tiling = tile(f, Form(n, single, SUMMED), 1)
            is_alone = p.pass_name != "grad_weight" and f.group_in == 1 and tiling.blocks == (1, 1)
            found += [Form(n, single, source) for source in ((FUSED,) if is_alone else (SUMMED, READY))]
    return tuple(form for form in found if _fits(p, form))


def _fits(problem: Problem, form: Form) -> bool:
    if max(sizes_of(problem, form, images_of_chunk(problem, form))) > MOST_ELEMENTS:
        return False
    return form.source != READY or problem.groups * form.n**2 // VECTOR <= MOST_GRID


def choose(problem: Problem, machine: Gpu) -> Form:
    """The form that takes the least time."""
    return min(forms(problem), key=lambda form: form_seconds(problem, form, machine))


def form_seconds(problem: Problem, form: Form, machine: Gpu) -> float:
    """Time of the transforms, of the products, of the spectra's ways through the memory and its cache, and of the launches."""
    p, f, n = problem, forward_of(problem), form.n
    tiling, item = tile(f, form, p.batch), 2 * form.n**2 * p.itemsize
    blocks = math.prod(tiling.blocks)
    gradient = p.pass_name == "grad_weight"
    inputs = f.in_channels * math.prod(tiling.image_pairs) + (f.out_channels * tiling.count if gradient else 0)
    rows, columns, terms = f.group_out, tiling.count, f.group_in * blocks
    if gradient:
        columns, terms = terms, columns
    outputs = f.groups * rows * columns
    chunks = -(-p.batch // images_of_chunk(p, form))
    peak = machine.flops(p.dtype)
    tiles_split = outputs * splits_of(p, form, p.batch, machine)
    fill = min(1.0, tiles_split * n / LANES / (machine.multiprocessors * BUSY_WARPS))
    if form.source == FUSED:
        busy = outputs * (2 * transform_flops(n) + 4 * item / p.itemsize) / (EFFICIENCY * peak * fill)
        return LAUNCH_SECONDS + max(busy, p.bytes / machine.bandwidth + 1.5 * outputs * item / (CACHE_SPEEDUP * machine.bandwidth))
    transforms = (inputs + outputs / fill) * transform_flops(n) / (EFFICIENCY * peak)
    through_memory = (p.bytes + inputs * item) / machine.bandwidth
    through_cache: float
    if form.source == SUMMED:
        products = outputs * terms * 4 * item / p.itemsize / (EFFICIENCY * peak * fill)
        through_cache = 2 * outputs * terms * item
        launches = 2 + 2 * gradient
    else:
        padded = f.groups * -(-rows // ROWS) * ROWS * -(-columns // COLUMNS) * COLUMNS
        fill = min(1.0, padded / (ROWS * COLUMNS) * (n * n // VECTOR) / machine.multiprocessors)
        products = padded * terms * 4 * item / p.itemsize / (PRODUCT_EFFICIENCY * peak * fill)
        through_memory += outputs * item / machine.bandwidth
        through_cache = int((padded * terms * (1 / ROWS + 1 / COLUMNS) + outputs) * item)
        launches = 3 + gradient
    moved = through_memory + through_cache / (CACHE_SPEEDUP * machine.bandwidth)
    return chunks * launches * LAUNCH_SECONDS + transforms + max(products, moved)


def transform_flops(n: int) -> int:
    """Operations of a complex transform of n x n points by split radix."""
    return 2 * n * (4 * n * (n.bit_length() - 1) - 6 * n + 8)


def refuses(problem: Problem) -> str | None:
    p = problem
    if np.dtype(p.dtype).kind != "f":
        return f"rounds, and {p.dtype} results are exact"
    if p.accuracy == "strict":
        return "its error is relative to the largest values nearby: accuracy='strict' asks for a plain sum's"
    if p.padding_mode != "zeros":
        return f"needs a border of zeros, not {p.padding_mode!r}"
    if not p.flops:
        return "there is nothing to sum"
    if max(p.input_size[0], p.output_size[0], p.kernel_size[0]) > 1:
        return "transforms planes, not volumes"
    if max(p.stride) > 1:
        return f"computes every point: stride={p.stride[3 - p.ndim:]} asks for fewer"
    if max(p.in_channels, p.out_channels) > MOST_GRID:
        return f"needs a block of threads a channel, at most {MOST_GRID:,}"
    return index_refusal(p) or (None if forms(p) else "needs spectra of more elements than 32-bit indices reach")


def seconds(problem: Problem, machine: Gpu) -> float:
    return form_seconds(problem, choose(problem, machine), machine)


def pack_seconds(problem: Problem, machine: Gpu) -> float:
    if problem.pass_name == "grad_weight":
        return 0.0
    form = choose(problem, machine)
    elements = sizes_of(problem, form, 1).weights
    busy = elements / (2 * form.n**2) * transform_flops(form.n) / (EFFICIENCY * machine.flops(problem.dtype))
    return LAUNCH_SECONDS + max(busy, elements * problem.itemsize / machine.bandwidth)


def codes(dtype: str) -> list[Code]:
    """Every kernel that a problem of floats may need."""
    tiles = TILES if np.dtype(dtype).itemsize == 4 else TILES64
    return [*(transform_code(n, dtype, spread) for n in tiles for spread in (False, True)),
            *(join_code(n, dtype, source, False) for n in tiles for source in (FUSED, SUMMED, READY)),
            *(join_code(n, dtype, source, True) for n in tiles for source in (SUMMED, READY)), multiply_code(dtype)]


BACKEND = Backend(refuses, seconds, Fft, pack_seconds)
