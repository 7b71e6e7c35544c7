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

from fastconv.backends._cuda import SIMULATED, complexes, copies, has_compiler, pooling

pytestmark = pytest.mark.skipif(SIMULATED or not has_compiler(), reason="numba-cuda, which compiles kernels, is not installed")

ARCHITECTURES = [(8, 0), (9, 0)]
MOST_REGISTERS = 65536  # of a multiprocessor
LEAST_SHARE = 0.8  # of multiply-adds among the instructions of a product's main loop
MOST_SHARED = 163 * 1024  # bytes of a multiprocessor, the least of the architectures'


def tool(name):
    """Path of one of CUDA's programs, of a package of this environment or else of the system; None if there is none."""
    installed = sorted(pathlib.Path(sys.prefix).glob(f"lib/python*/site-packages/nvidia/*/bin/{name}"))
    return str(installed[0]) if installed else shutil.which(name)


def name_of(architecture):
    return "sm_" + "".join(map(str, architecture))


def all_codes():
    if SIMULATED or not has_compiler():
        return []
    from fastconv.backends import load

    modules = [sys.modules[backend.build.__module__] for backend in load("cuda").values()]
    codes = [code for module in [copies, complexes, pooling, *modules] for code in module.codes("float32")]
    return list({code.name: code for code in codes}.values())


def assembled(code, architecture, folder, target_name=None):
    """ptxas's report of a kernel, and the path of its machine code, by default for the architecture that it was compiled for."""
    from fastconv.backends._cuda.compiling import ptx_of

    ptxas = tool("ptxas")
    if ptxas is None:
        pytest.skip("ptxas is not installed")
    source, target = folder / "kernel.ptx", folder / "kernel.cubin"
    source.write_text(ptx_of(code, architecture))
    command = [ptxas, f"-arch={target_name or name_of(architecture)}", "-v", str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stderr, target


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=name_of)
@pytest.mark.parametrize("code", all_codes(), ids=lambda code: code.name)
def test_kernel(code, architecture, tmp_path):
    """No spills, registers for the blocks that were promised, and no double precision in a kernel of single."""
    from fastconv.backends._cuda.compiling import ptx_of

    report, _ = assembled(code, architecture, tmp_path)
    assert ".f64" not in ptx_of(code, architecture)
    assert int(re.search(r"(\d+) bytes spill stores", report)[1]) == 0, report
    registers = int(re.search(r"Used (\d+) registers", report)[1])
    assert registers * code.threads * code.blocks <= MOST_REGISTERS


@pytest.mark.parametrize("code", all_codes(), ids=lambda code: code.name)
def test_architecture_specific(code, tmp_path):
    """What is compiled for sm_90 assembles for sm_90a, of which a driver says no more than that it is 9.0."""
    report, _ = assembled(code, (9, 0), tmp_path, "sm_90a")
    assert int(re.search(r"(\d+) bytes spill stores", report)[1]) == 0, report


def test_compiles_for_an_architecture_alone():
    """The compiler takes an architecture's own features."""
    from fastconv.backends._cuda.compiling import ptx_of

    assert ".target sm_90a" in ptx_of(copies.codes("float32")[0], (9, 0, "a"))


def test_shared_memory_suffices():
    """So many blocks of a product as its registers are shared by find room in shared memory."""
    from fastconv.backends._cuda.gemm import gemm_code, shared_bytes
    from fastconv.backends.cuda_im2col import TILES

    for factors, tiles in TILES.items():
        for tile in tiles:
            assert shared_bytes(tile, factors) * gemm_code(tile, factors, False, "columns").blocks <= MOST_SHARED


def main_loop(sass):
    """Opcodes of the innermost loop with the most multiply-adds or products of tiles."""
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
    return max(loops, key=lambda ops: (sum(op.startswith(("FFMA", "HMMA")) for op in ops), -len(ops)))


PRODUCTS = [code for code in all_codes() if code.name.startswith(("im2col.", "batched_gemm."))]


def main_loop_of(code, folder):
    nvdisasm = tool("nvdisasm")
    if nvdisasm is None:
        pytest.skip("nvdisasm is not installed")
    _, target = assembled(code, (9, 0), folder)
    return main_loop(subprocess.run([nvdisasm, "-c", str(target)], capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("code", [code for code in PRODUCTS if code.name.endswith("float32")], ids=lambda code: code.name)
def test_products_are_mostly_multiply_adds(code, tmp_path):
    """The main loop of a product hides its copies behind the multiply-adds: these are most of its instructions."""
    loop = main_loop_of(code, tmp_path)
    assert sum(op.startswith("FFMA") for op in loop) / len(loop) >= LEAST_SHARE


@pytest.mark.parametrize("code", [code for code in PRODUCTS if code.name.endswith(("tf32", "float16"))], ids=lambda code: code.name)
def test_products_are_done_by_tensor_cores(code, tmp_path):
    """The main loop multiplies whole tiles of a warp; none of its values falls to the stack."""
    loop = main_loop_of(code, tmp_path)
    assert sum(op.startswith("HMMA") for op in loop) == (32 if code.name.endswith("tf32") else 16)
    assert not any(op.startswith(("LDL", "STL", "FFMA")) for op in loop)
