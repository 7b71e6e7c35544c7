"""Convolutions on a GPU beside whichever of PyTorch (cuDNN) and CuPy are installed.

    python benchmarks/gpu.py [--layer TEXT] [--batch 32] [--turns 7] [--json FILE]

Microseconds of the GPU's clock (events round a few calls, medians of the turns, libraries in turns), arrays on the GPU before and
results written to memory that is there. Forward passes of fastconv are those of a plan; PyTorch chooses with `cudnn.benchmark`.
"torch" and "tf32" are PyTorch without and with TF32, the figures behind them its time over fastconv's. "peak" is the share of the float32
multiply-add peak (more than 1: fewer products than the sum has), "copy" that of the measured copy bandwidth. Run nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from shapes import convolution

import fastconv as fc
from fastconv.backends._cuda import SIMULATED
from fastconv.backends._cuda.context import absence, api, checked, gpu
from fastconv.backends._cuda.driver import address_of, memory
from fastconv.backends._cuda.events import elapsed
from fastconv.bench.measure import TOLERANCE, difference, geometric_mean
from fastconv.bench.suite import Item

PASSES = ("forward", "grad_input", "grad_weight")
LEAST_SECONDS = 2e-3  # between two events
COPIED_BYTES = 1 << 29
Call = Callable[[], Any]


def items(batch: int) -> list[Item]:
    """Layers of ResNet-50, VGG-16, AlexNet, MobileNetV2, ConvNeXt and ResNeXt, and filters of images; the suite says of what kind."""
    def layer(kind: str, name: str, channels: int, size: int, outputs: int, kernel: int, **options: Any) -> Item:
        return convolution(name, batch, channels, size, outputs, kernel, suite=kind, **options)

    return [
        layer("dense", "alexnet 11x11s4", 3, 224, 64, 11, stride=4), layer("dense", "alexnet 5x5", 64, 27, 192, 5),
        layer("dense", "resnet 7x7s2", 3, 224, 64, 7, stride=2),
        layer("winograd", "resnet 3x3 64 @56", 64, 56, 64, 3), layer("winograd", "resnet 3x3 128 @28", 128, 28, 128, 3),
        layer("winograd", "resnet 3x3 256 @14", 256, 14, 256, 3), layer("winograd", "resnet 3x3 512 @7", 512, 7, 512, 3),
        layer("dense", "resnet 3x3s2 128 @56", 128, 56, 128, 3, stride=2), layer("dense", "resnet 1x1 64-256 @56", 64, 56, 256, 1),
        layer("dense", "resnet 1x1 1024-256 @14", 1024, 14, 256, 1),
        layer("winograd", "vgg 3x3 64 @224", 64, 224, 64, 3), layer("winograd", "vgg 3x3 256 @56", 256, 56, 256, 3),
        layer("winograd", "vgg 3x3 512 @28", 512, 28, 512, 3),
        layer("depthwise", "mobilenet 3x3 32 @112", 32, 112, 32, 3, groups=32),
        layer("depthwise", "mobilenet 3x3s2 96 @112", 96, 112, 96, 3, stride=2, groups=96),
        layer("depthwise", "convnext 7x7 96 @56", 96, 56, 96, 7, groups=96),
        layer("grouped", "resnext 3x3 32x4 @56", 128, 56, 128, 3, groups=32),
        layer("large", "15x15 64 @64", 64, 64, 64, 15), layer("large", "31x31 depthwise 64 @56", 64, 56, 64, 31, groups=64),
        *(convolution(f"filter {k}x{k} @1024", 1, 1, 1024, 1, k, suite="filter") for k in (3, 7, 15, 31)),
    ]


def seconds_of(calls: dict[str, Call], turns: int) -> dict[str, float]:
    """Median seconds of each call by the GPU's clock, in turns; the first calls compile and choose."""
    counts = {}
    for name, call in calls.items():
        for _ in range(3):
            call()
        counts[name] = max(1, round(LEAST_SECONDS / max(elapsed(0, call), 1e-6)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            times[name].append(elapsed(0, lambda call=call, name=name: [call() for _ in range(counts[name])]) / counts[name])
    return {name: statistics.median(values) for name, values in times.items()}


def copy_bandwidth() -> float:
    """Bytes that a copy within the GPU's memory reads and writes in a second."""
    memories = [memory(COPIED_BYTES, "uint8") for _ in range(2)]
    source, target = map(address_of, memories)
    times = seconds_of({"copy": lambda: checked(api().cuMemcpyDtoDAsync(target, source, COPIED_BYTES, 0))}, 5)
    return 2 * COPIED_BYTES / times["copy"]


def fastconv_call(item: Item, pass_name: str, arrays: dict[str, Any]) -> Call:
    """A pass by fastconv, of arrays that lie on the GPU."""
    x, w, gy = arrays["x"], arrays["w"], arrays["gy"]
    out = fc.asarray(np.empty({"forward": gy, "grad_input": x, "grad_weight": w}[pass_name].shape, np.float32), device="cuda")
    if pass_name == "forward":
        plan = fc.plan_conv2d(w, input_shape=item.input_shape, **item.options)
        return lambda: plan(x, out=out)
    if pass_name == "grad_input":
        return lambda: fc.conv2d_grad_input(gy, w, item.input_shape, out=out, **item.options)
    return lambda: fc.conv2d_grad_weight(gy, x, item.weight_shape, out=out, **item.options)


def torch_calls(item: Item, pass_name: str, arrays: dict[str, Any]) -> dict[str, Call]:
    """The same by PyTorch, without and with TF32."""
    import torch

    torch.backends.cudnn.benchmark = True
    x, w, gy = (torch.as_tensor(arrays[name], device="cuda") for name in ("x", "w", "gy"))
    o = item.options
    wanted = [pass_name == "grad_input", pass_name == "grad_weight", False]

    def call(tf32: bool) -> Call:
        def run() -> Any:
            torch.backends.cudnn.allow_tf32 = tf32
            if pass_name == "forward":
                return torch.nn.functional.conv2d(x, w, None, o["stride"], o["padding"], o["dilation"], o["groups"])
            axes = ([o["stride"]] * 2, list(o["padding"]), [o["dilation"]] * 2)
            return next(g for g in torch.ops.aten.convolution_backward(gy, x, w, None, *axes, False, [0, 0], o["groups"], wanted)
                        if g is not None)
        return run

    return {"torch": call(False), "tf32": call(True)}


def cupy_call(item: Item, pass_name: str, arrays: dict[str, Any]) -> dict[str, Call]:
    """Filters by cupyx.scipy.ndimage."""
    if item.suite != "filter" or pass_name != "forward":
        return {}
    import cupy
    from cupyx.scipy import ndimage

    x, w = cupy.asarray(arrays["x"])[0, 0], cupy.asarray(arrays["w"])[0, 0]
    return {"cupy": lambda: ndimage.correlate(x, w, mode="constant")}


def measured(item: Item, pass_name: str, turns: int, copy: float) -> dict[str, Any]:
    """A row of the table."""
    x, w, _ = item.arrays()
    shape = fc.explain(item.input_shape, item.weight_shape, backend="cuda", pass_name=pass_name, **item.options).problem
    gy = np.random.default_rng(1).standard_normal(shape.public_shape(shape.output_shape), np.float32)
    arrays = {name: fc.asarray(array, device="cuda") for name, array in (("x", x), ("w", w), ("gy", gy))}
    calls = {"fastconv": fastconv_call(item, pass_name, arrays)}
    if importlib.util.find_spec("torch") is not None:
        calls |= torch_calls(item, pass_name, arrays)
    if importlib.util.find_spec("cupyx") is not None:
        calls |= cupy_call(item, pass_name, arrays)
    error = float("nan")
    if "torch" in calls:
        error = difference(fc.asnumpy(calls["fastconv"]()), fc.asnumpy(calls["torch"]()))
    times = seconds_of(calls, turns)
    own = times["fastconv"]
    chosen = fc.explain(item.input_shape, item.weight_shape, backend="cuda", pass_name=pass_name, **item.options).chosen
    return {"name": item.name, "kind": item.suite, "pass": pass_name, "backend": chosen, "error": error, "seconds": times,
            "peak": shape.flops / own / gpu().flops("float32"), "copy": shape.bytes / own / copy}


def line(row: dict[str, Any]) -> str:
    """A row as text."""
    times = row["seconds"]
    own = times["fastconv"]
    others = "".join(f"{times[name] * 1e6:10.1f} {times[name] / own:5.2f}" if name in times else f"{'-':>10s} {'-':>5s}"
                     for name in ("torch", "tf32", "cupy"))
    wrong = "" if not row["error"] > TOLERANCE else f"  WRONG: differs by {row['error']:.1e}"
    return f"{row['name']:26s} {row['pass']:12s} {row['backend']:14s}{own * 1e6:10.1f} {row['peak']:5.2f} {row['copy']:5.2f}{others}{wrong}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layer", default="")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    reason = absence() if not SIMULATED else "the simulator's times mean nothing: unset NUMBA_ENABLE_CUDASIM"
    if reason is not None:
        print(f"nothing to measure: {reason}", file=sys.stderr)
        return 1
    copy = copy_bandwidth()
    print(f"{gpu().name}: {gpu().flops('float32') / 1e12:.1f} TFLOP/s in float32, copies {copy / 1e9:.0f} GB/s; batch {options.batch}")
    print(f"{'':26s} {'':12s} {'':14s}{'fastconv':>10s} {'peak':>5s} {'copy':>5s}{'torch':>10s} {'x':>5s}{'tf32':>10s} {'x':>5s}"
          f"{'cupy':>10s} {'x':>5s}")
    rows = []
    for item in items(options.batch):
        for pass_name in PASSES if options.layer in item.name else ():
            rows.append(measured(item, pass_name, options.turns, copy))
            print(line(rows[-1]), flush=True)
    for kind in dict.fromkeys(row["kind"] for row in rows):
        for name in ("torch", "tf32", "cupy"):
            ratios = [row["seconds"][name] / row["seconds"]["fastconv"] for row in rows if row["kind"] == kind and name in row["seconds"]]
            if ratios:
                print(f"{kind}: {geometric_mean(ratios):.2f} times as fast as {name} (geometric mean of {len(ratios)})")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    return 0 if not any(row["error"] > TOLERANCE for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
