"""The machine code of the CUDA kernels, without a GPU: every one compiles and assembles for each architecture, within its bounds.

Needs numba-cuda, and `ptxas` (of the package nvidia-cuda-nvcc, or on the path); the mix of instructions is read where there is
`nvdisasm` too.
"""

import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from fastconv.backends._cuda import SIMULATED, copies, has_compiler

pytestmark = pytest.mark.skipif(SIMULATED or not has_compiler(), reason="numba-cuda, which compiles kernels, is not installed")

ARCHITECTURES = [(8, 0), (9, 0)]
MOST_REGISTERS = 65536  # of a multiprocessor
LEAST_SHARE = 0.78  # of multiply-adds among the instructions of a product's main loop
PRODUCTS = ("im2col.", "batched_gemm.")  # names of matrix products begin so
MOST_SHARED = 163 * 1024  # bytes of a block, the smaller of the architectures'


def tool(name):
    """Path of one of CUDA's programs, of a package of this environment or else of the system; None if there is none."""
    installed = sorted(pathlib.Path(sys.prefix).glob(f"lib/python*/site-packages/nvidia/*/bin/{name}"))
    return str(installed[0]) if installed else shutil.which(name)


def all_codes():
    if SIMULATED or not has_compiler():
        return []
    from fastconv.backends import load

    modules = [sys.modules[backend.build.__module__] for backend in load("cuda").values()]
    codes = [code for module in [copies, *modules] for code in module.codes("float32")]
    return list({code.name: code for code in codes}.values())


def assembled(code, architecture, folder):
    """ptxas's report of a kernel, and the path of its machine code."""
    from fastconv.backends._cuda.compiling import ptx_of

    ptxas = tool("ptxas")
    if ptxas is None:
        pytest.skip("ptxas is not installed")
    source, target = folder / "kernel.ptx", folder / "kernel.cubin"
    source.write_text(ptx_of(code, architecture))
    command = [ptxas, f"-arch=sm_{architecture[0]}{architecture[1]}", "-v", str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stderr, target


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: f"sm_{a[0]}{a[1]}")
@pytest.mark.parametrize("code", all_codes(), ids=lambda code: code.name)
def test_kernel(code, architecture, tmp_path):
    """No spills, registers for the blocks that were promised, and no double precision in a kernel of single."""
    from fastconv.backends._cuda.compiling import ptx_of

    report, _ = assembled(code, architecture, tmp_path)
    assert ".f64" not in ptx_of(code, architecture)
    assert int(re.search(r"(\d+) bytes spill stores", report)[1]) == 0, report
    registers = int(re.search(r"Used (\d+) registers", report)[1])
    assert registers * code.threads * code.blocks <= MOST_REGISTERS


def main_loop(sass):
    """Opcodes of the innermost loop with the most multiply-adds."""
    lines, labels, waiting = [], {}, []
    for line in sass.splitlines():
        if label := re.match(r"\s*(\.L\w+):", line):
            waiting.append(label[1])
        elif found := re.match(r"\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?(\S+)(.*)", line):
            address = int(found[1], 16)
            labels |= dict.fromkeys(waiting, address)
            waiting = []
            lines.append((address, found[2].rstrip(";"), found[3]))
    loops = []
    for address, opcode, rest in lines:
        target = re.search(r"`\((\.L\w+)\)", rest)
        if opcode.startswith("BRA") and target and labels.get(target[1], address + 1) <= address:
            loops.append([op for at, op, _ in lines if labels[target[1]] <= at <= address and op != "NOP"])
    return max(loops, key=lambda ops: (sum(op.startswith("FFMA") for op in ops), -len(ops)))


@pytest.mark.parametrize("code", [code for code in all_codes() if code.name.startswith(PRODUCTS) and "x128x" in code.name],
                         ids=lambda code: code.name)
def test_products_are_mostly_multiply_adds(code, tmp_path):
    """The main loop of a product hides its copies behind the multiply-adds: these are most of its instructions."""
    nvdisasm = tool("nvdisasm")
    if nvdisasm is None:
        pytest.skip("nvdisasm is not installed")
    _, target = assembled(code, (9, 0), tmp_path)
    sass = subprocess.run([nvdisasm, "-c", str(target)], capture_output=True, text=True, check=True).stdout
    loop = main_loop(sass)
    assert sum(op.startswith("FFMA") for op in loop) / len(loop) >= LEAST_SHARE
