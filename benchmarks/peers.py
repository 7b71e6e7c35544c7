"""Speed of fastconv beside whichever of PyTorch, ONNX Runtime, OpenCV and SciPy are installed.

    python benchmarks/peers.py [--suite quick] [--layer NAME] [--threads 2] [--seconds 0.2] [--turns 3]

Every library runs in a process of its own, and they take turns. The figure is the median of the best turn, in milliseconds.
Libraries that cannot do an item (OpenCV filters images only, SciPy has no layers) show a dash. Run nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from turns import Call, Libraries, start, take_turns

from fastconv.bench.baseline import baseline
from fastconv.bench.measure import TOLERANCE, difference, geometric_mean
from fastconv.bench.report import milliseconds
from fastconv.bench.suite import SUITES, Item, select
from fastconv.explanation import machine

BORDERS = {"symmetric": "symmetric", "zeros": "constant"}  # fastconv's padding_mode -> numpy.pad's


# -- one function per library: the item as a call of no arguments, or None -------------------------------------------------


def _fastconv(item: Item, threads: int) -> Call | None:
    import fastconv as fc

    fc.set_num_threads(threads)
    x, w, bias = item.arrays()
    plan = getattr(fc, f"plan_conv{item.ndim}d")(w, bias, input_shape=item.input_shape, **item.options)
    return lambda: plan(x)


def _torch(item: Item, threads: int) -> Call | None:
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    x, w, bias = item.arrays()
    x, padding = _padded(item, x)
    tensors = [torch.from_numpy(array) if array is not None else None for array in (x, w, bias)]
    function = torch.conv1d if item.ndim == 1 else torch.conv2d
    stride, groups = item.options.get("stride", 1), item.options.get("groups", 1)
    return lambda: function(*tensors, stride, padding, 1, groups).numpy()


def _onnxruntime(item: Item, threads: int) -> Call | None:
    import onnxruntime

    x, w, bias = item.arrays()
    x, padding = _padded(item, x)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(_onnx_model(item, x, w, bias, padding), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": x})[0]


def _onnx_model(item: Item, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None, padding: int) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    constants = [numpy_helper.from_array(w, "w")] + ([numpy_helper.from_array(bias, "bias")] if bias is not None else [])
    node = helper.make_node("Conv", ["x", *(constant.name for constant in constants)], ["y"], kernel_shape=list(w.shape[2:]),
                            strides=[item.options.get("stride", 1)] * item.ndim, pads=[padding] * 2 * item.ndim,
                            group=item.options.get("groups", 1))
    graph = helper.make_graph([node], "conv", [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8  # what opset 17 came with: older runtimes refuse newer ones
    return model.SerializeToString()


def _opencv(item: Item, threads: int) -> Call | None:
    if item.suite != "photo":
        return None
    import cv2

    cv2.setNumThreads(threads)
    x, w, _ = item.arrays()
    return lambda: cv2.filter2D(x[0, 0], -1, w[0, 0], borderType=cv2.BORDER_REFLECT)[None, None]


def _scipy(item: Item, threads: int) -> Call | None:
    return baseline(item, *item.arrays()) if item.baseline.startswith("scipy") else None


def _padded(item: Item, x: np.ndarray) -> tuple[np.ndarray, int]:
    """The input as libraries with zero borders alone want it: padded ahead and untimed where the item asks for more."""
    padding = item.options["padding"]
    if isinstance(padding, int):
        return x, padding
    taps = item.weight_shape[2:]
    pads = [(k - 1, 0) if padding == "causal" else ((k - 1) // 2, k // 2) for k in taps]
    mode: Any = BORDERS[item.options.get("padding_mode", "zeros")]
    return np.pad(x, [(0, 0), (0, 0), *pads], mode=mode), 0


LIBRARIES: Libraries = {
    # name: (function, modules it needs)
    "fastconv": (_fastconv, ()),
    "torch": (_torch, ("torch",)),
    "onnxruntime": (_onnxruntime, ("onnxruntime", "onnx")),
    "opencv": (_opencv, ("cv2",)),
    "scipy": (_scipy, ("scipy",)),
}


# -- comparing ------------------------------------------------------------------------------------------------------------


def compare(item: Item, pipes: dict[str, Connection], turns: int) -> tuple[dict[str, float], list[str]]:
    """Best median seconds of each library that can do the item, and what went wrong, in words."""
    title = f"{item.suite} {item.name}"
    results, seconds, problems = take_turns(item, title, pipes, turns)
    for name, (result,) in results.items():
        if "fastconv" in results and not (error := difference(results["fastconv"][0], result)) <= TOLERANCE:
            problems.append(f"{name} on {title}: results differ by {error:.1e}")
    return {name: min(times) for name, times in seconds.items()}, problems


def main() -> int:
    """Compare and print the table; the status is 1 where results differ or a library failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=SUITES, default="quick")
    parser.add_argument("--layer", default="", help="only items whose name contains this")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, default=0.2, help="time of a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", metavar="FILE", help="also write the figures, for picture.py")
    options = parser.parse_args()
    try:
        items = select(options.suite, options.layer)
    except ValueError as error:
        parser.error(str(error))
    pipes = start(LIBRARIES, options.threads, options.seconds)
    rows, problems = _table(items, pipes, options.turns)
    if options.json:
        facts = {"date": datetime.date.today().isoformat(), "cpu": machine().cpu, "threads": options.threads,
                 "versions": {name: _version(name) for name in pipes}, "rows": rows}
        Path(options.json).write_text(json.dumps(facts, indent=1) + "\n")
    return 1 if problems else 0


def _version(library: str) -> str:
    return importlib.metadata.version({"opencv": "opencv-python-headless"}.get(library, library))


def _table(items: list[Item], pipes: dict[str, Connection], turns: int) -> tuple[list[dict[str, Any]], list[str]]:
    print(f"{'milliseconds':34s}" + "".join(f"{name:>13s}" for name in pipes) + "   peer / fastconv")
    ratios, problems, rows = [], [], []
    for item in items:
        best, found = compare(item, pipes, turns)
        problems += found
        rows.append({"name": f"{item.suite} {item.name}", "milliseconds": {name: seconds * 1e3 for name, seconds in best.items()}})
        peers = [seconds for name, seconds in best.items() if name != "fastconv"]
        text = "".join(f"{milliseconds(best[name]) if name in best else '-':>13s}" for name in pipes)
        if peers and "fastconv" in best:
            ratios.append(min(peers) / best["fastconv"])
            text += f"   {ratios[-1]:.2f}x"
        print(f"{item.suite + ' ' + item.name:34s}{text}", flush=True)
    if ratios:
        print(f"geometric mean of (fastest peer / fastconv) over {len(ratios)} items: {geometric_mean(ratios):.2f}x")
    else:
        print("none of the installed libraries can do these items: install torch, or onnxruntime and onnx")
    for line in problems:
        print(line)
    return rows, problems


if __name__ == "__main__":
    sys.exit(main())
