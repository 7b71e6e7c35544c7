"""How time and memory grow with the size of a convolution.

    python benchmarks/growth.py [--seconds 0.3]

Nanoseconds a pixel of images of 256 to 8192 squared and of batches of 1 to 64, picoseconds an operation of 32 to 1024 channels in and
out, and what a call holds beyond its operands, its result and its packed weights, in MiB a thread. The last column is the figure over
the least of its rows. Results go to `out`: fresh memory beyond 32 MB costs as much again, which the operating system clears page by
page. Convolutions with few operations a byte are as fast as the cache, or the memory, that holds their arrays. Run nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from functools import partial

from shapes import call, convolution, explain
from turns import typical_seconds

import fastconv as fc
from fastconv.bench.report import milliseconds
from fastconv.bench.suite import Item

IMAGES, BATCHES, CHANNELS = (256, 512, 1024, 2048, 4096, 8192), (1, 2, 4, 8, 16, 32, 64), (32, 64, 128, 256, 512, 1024)


def series() -> Iterator[tuple[str, str, list[Item]]]:
    """What grows, the unit of its figure, and the convolutions."""
    for kernel in (3, 7, 31):
        yield f"filter {kernel}x{kernel}, image", "ns/pixel", [convolution(f"{n}^2", 1, 1, n, 1, kernel) for n in IMAGES]
    yield "3x3 3-16, image", "ns/pixel", [convolution(f"{n}^2", 1, 3, n, 16, 3) for n in IMAGES[:-1]]
    yield "3x3 64-64 @56, batch", "ns/pixel", [convolution(f"batch {n}", n, 64, 56, 64, 3) for n in BATCHES]
    yield "1x1 128-128 @28, batch", "ns/pixel", [convolution(f"batch {n}", n, 128, 28, 128, 1) for n in BATCHES]
    yield "depthwise 3x3 96 @56, batch", "ns/pixel", [convolution(f"batch {n}", n, 96, 56, 96, 3, groups=96) for n in BATCHES]
    for kernel in (1, 3, 5):
        yield f"{kernel}x{kernel} @28, channels in", "ps/FLOP", [convolution(f"{n}-128", 1, n, 28, 128, kernel) for n in CHANNELS]
        yield f"{kernel}x{kernel} @28, channels out", "ps/FLOP", [convolution(f"128-{n}", 1, 128, 28, n, kernel) for n in CHANNELS]


def figure(item: Item, unit: str, seconds: float) -> float:
    """Time over the pixels of all images, or over the operations."""
    count = explain(item).problem.flops if unit == "ps/FLOP" else item.input_shape[0] * math.prod(item.input_shape[2:])
    return seconds / count * (1e12 if unit == "ps/FLOP" else 1e9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.3, help="time of a row")
    options = parser.parse_args()
    for name, unit, items in series():
        found = []
        for item in items:
            run = call(item)
            found.append((item, typical_seconds(partial(run, out=run()), options.seconds)))
        least = min(figure(item, unit, seconds) for item, seconds in found)
        for item, seconds in found:
            explained = explain(item)
            scratch = explained.scratch_bytes / fc.get_num_threads() / 2**20
            value = figure(item, unit, seconds)
            print(f"{name:30s}{item.name:12s}{explained.chosen:10s}{milliseconds(seconds):>10s}{value:10.3g} {unit:10s}"
                  f"{scratch:6.1f} MiB{value / least:7.2f}", flush=True)


if __name__ == "__main__":
    main()
