"""An explicit SIMD vector type for Numba: kernels read as formulas over vectors; all raw LLVM IR of the CPU stays here.

    v = load(p, i)                              # p: pointer, i: offset in elements
    store(p, j, fma(splat(p, k), v, v - load(p, m)))

A vector holds `VECTOR_BYTES` bytes: 16 float32 lanes with AVX-512, 8 with AVX2, 4 with SSE2 and NEON; float64 has half
as many. Everything is generic in the element type (float32, float64, int32, int64), which the pointer carries.

    emit.py       the type, and the LLVM IR that the rest is put together from
    vector.py     pointers, loads and stores, arithmetic
    tile.py       register tiles and the steps of the micro-kernels
    strip.py      strips of planes: straight-line code over the rows of an image
    threads.py    a kernel's work on Numba's thread pool

`tile_outer` is one step of the GEMM micro-kernel, tile[r][c] += x[offset[r]] * w[c] (x broadcast, w one vector a column).
Its rows are addressed through a table of offsets, so the same code serves any stride, dilation, layout and border, and no
im2col matrix is ever made. On Zen 5 its 14 x 2 tile reaches 258 of 265 GFLOP/s on a core.
"""

from .emit import VECTOR_BYTES, VECTOR_REGISTERS, lane_count
from .strip import gradient_tile, strip_tile, tap_vectors, transposed_tile
from .threads import COUNTER_PITCH, BoundKernel, next_own_task, next_task, parallel_kernel, raise_flag, thawed
from .tile import (
    DOT_TILE,
    LANES_TILE_COLUMNS,
    LANES_TILE_ROWS,
    LANES_TILE_SINGLE,
    LANES_TILES,
    TILE_COLUMNS,
    TILE_ROWS,
    TILE_SIZES,
    call_tile,
    column_pointers,
    tile_columns_of,
    tile_dot,
    tile_dot_first,
    tile_lanes,
    tile_load,
    tile_outer,
    tile_pixels,
    tile_signature,
    tile_slide,
    tile_store,
    tile_store_lanes,
    tile_store_pixels,
    tile_totals,
    tile_zeros,
    transpose_block,
    transpose_chosen,
    transpose_streamed,
    transpose_whole,
)
from .vector import (
    advance,
    as_float64,
    as_int32,
    as_int64,
    fma,
    get,
    lanes_of,
    load,
    load_alternate,
    load_between,
    load_first,
    misalignment,
    pointer,
    prefetch_read,
    prefetch_write,
    put,
    rectify,
    splat,
    store,
    store_first,
    store_interleaved,
    store_interleaved_first,
    total,
    zero,
    zero_element,
)

__all__ = [
    "COUNTER_PITCH",
    "DOT_TILE",
    "LANES_TILES",
    "LANES_TILE_COLUMNS",
    "LANES_TILE_ROWS",
    "LANES_TILE_SINGLE",
    "TILE_COLUMNS",
    "TILE_ROWS",
    "TILE_SIZES",
    "VECTOR_BYTES",
    "VECTOR_REGISTERS",
    "BoundKernel",
    "advance",
    "as_float64",
    "as_int32",
    "as_int64",
    "call_tile",
    "column_pointers",
    "fma",
    "get",
    "gradient_tile",
    "lane_count",
    "lanes_of",
    "load",
    "load_alternate",
    "load_between",
    "load_first",
    "misalignment",
    "next_own_task",
    "next_task",
    "parallel_kernel",
    "pointer",
    "prefetch_read",
    "prefetch_write",
    "put",
    "raise_flag",
    "rectify",
    "splat",
    "store",
    "store_first",
    "store_interleaved",
    "store_interleaved_first",
    "strip_tile",
    "tap_vectors",
    "thawed",
    "tile_columns_of",
    "tile_dot",
    "tile_dot_first",
    "tile_lanes",
    "tile_load",
    "tile_outer",
    "tile_pixels",
    "tile_signature",
    "tile_slide",
    "tile_store",
    "tile_store_lanes",
    "tile_store_pixels",
    "tile_totals",
    "tile_zeros",
    "total",
    "transpose_block",
    "transpose_chosen",
    "transpose_streamed",
    "transpose_whole",
    "transposed_tile",
    "zero",
    "zero_element",
]
