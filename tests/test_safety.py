"""Threads, forks, caches and limits: each in a fresh interpreter, as users meet them."""

import ast
import os

import numpy as np
import pytest
from helpers import python

import fastconv as fc
from fastconv import warming

START = """
import os, sys, threading, time, warnings
import numpy as np
import fastconv as fc

def make(seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(-4, 5, (1, 16, 40, 40 + seed)).astype(np.float32)
    w = rng.integers(-4, 5, (32, 16, 3, 3)).astype(np.float32)
    return x, w

def run(data, backend=None):
    return np.rint(fc.conv2d(*data, padding=1, backend=backend))
"""

CONCURRENT = (
    START
    + """
callers = int(os.environ["CALLERS"])
inputs = [make(seed) for seed in range(callers)]
expected = [run(data, "direct") for data in inputs]
backends = [None, *fc.backends()]
failures = []

def work(seed):
    try:
        for repeat in range(3):
            for backend in backends:
                try:
                    y = run(inputs[seed], backend)
                except fc.BackendError:
                    continue
                if not np.array_equal(y, expected[seed]):
                    failures.append((seed, backend, repeat))
    except BaseException as error:
        failures.append((seed, repr(error)))

threads = [threading.Thread(target=work, args=(seed,)) for seed in range(callers)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not failures, failures
print("done")
"""
)

FORKED = (
    START
    + """
warnings.simplefilter("ignore", DeprecationWarning)  # Python's about forks in a process with threads: that is the point
data = make(1)
expected = run(data)

def child():
    for backend in (None, *fc.backends()):
        try:
            if not np.array_equal(run(data, backend), expected): return 3
        except fc.BackendError:
            pass
    return 0

def fork_and_wait():
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(child())
        finally:
            os._exit(4)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

assert fork_and_wait() == 0, "fork of the main thread"
statuses = []
thread = threading.Thread(target=lambda: statuses.append(fork_and_wait()))
thread.start(); thread.join()
assert statuses == [0], f"fork of another thread: {statuses}"
assert np.array_equal(run(data), expected), "the parent afterwards"
print("done")
"""
)


def run_with_threads(source, threads, **environment):
    """Run with so many threads, whatever the processors there are."""
    output = python(source, NUMBA_NUM_THREADS=str(threads), FASTCONV_NUM_THREADS=str(threads), timeout=300, **environment)
    assert output.strip() == "done"


@pytest.mark.parametrize(("callers", "threads"), [(4, 2), (12, 2), (3, 9)], ids=["few", "more-than-slots", "more-than-cores"])
def test_concurrent_python_threads(callers, threads):
    """Python threads that call at once, on all backends: right answers, no abort."""
    run_with_threads(CONCURRENT, threads, CALLERS=str(callers))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_use_after_fork():
    """A child forked after use, from the main thread and from another, computes as its parent does."""
    run_with_threads(FORKED, 2)


@pytest.mark.parametrize("threads", [2, 7])
def test_workers_sleep_and_wake(threads):
    """Calls after pauses that are shorter and longer than workers wait awake; each thread's number is run once."""
    source = (
        START
        + """
from fastconv.backends._simd import workers
data = make(0)
fc.set_num_threads(1)
expected = run(data)
fc.set_num_threads(THREADS)
for pause in [0, workers.SPIN_SECONDS, workers.YIELD_SECONDS, 3 * workers.YIELD_SECONDS] * 8:
    time.sleep(pause)
    assert np.array_equal(run(data), expected)
names = [thread.name for thread in threading.enumerate()]
assert len(names) == THREADS, names
print("done")
"""
    )
    run_with_threads(source.replace("THREADS", str(threads)), threads)


def test_more_threads_later():
    """The pool grows when more threads are asked for; the workers that it had go home."""
    source = (
        START
        + """
data = make(0)
expected = run(data)
for count in (2, 3, 1, 6, 4):
    fc.set_num_threads(count)
    assert np.array_equal(run(data), expected)
assert threading.active_count() == 6, threading.enumerate()
print("done")
"""
    )
    run_with_threads(source, 6)


def test_no_more_threads_to_be_had():
    """Where the system refuses threads, the caller does the work."""
    source = (
        START
        + """
def refuse(self):
    raise RuntimeError("can't start new thread")
threading.Thread.start = refuse
assert np.array_equal(run(make(0)), run(make(0), "direct"))
print("done")
"""
    )
    run_with_threads(source, 4)


def test_multiprocessing_pool():
    """A pool of forked workers, the usual way to meet the same hazard."""
    source = (
        START
        + """
import multiprocessing
warnings.simplefilter("ignore", DeprecationWarning)
data = make(0)
expected = run(data)
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert all(np.array_equal(y, expected) for y in pool.map(run, [data] * 4))
print("done")
"""
    )
    assert python(source).strip() == "done"


def test_unwritable_cache_directory(tmp_path):
    """One warning, then a correct result, compiled anew."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    source = """
import warnings, numpy as np
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import fastconv as fc
    y = fc.conv1d(np.ones((1, 1, 5)), np.ones((1, 1, 3)), backend="direct")
    fc.conv1d(np.ones((1, 1, 6)), np.ones((1, 1, 3)), backend="direct")
    fc.explain((1, 1, 5), (1, 1, 3))
assert y.tolist() == [[[3.0] * 3]], y
print(len(caught), *[str(w.message) for w in caught])
"""
    count, *message = python(source, FASTCONV_CACHE_DIR=str(blocked / "cache")).split()
    assert count == "1", message
    assert "FASTCONV_CACHE_DIR" in " ".join(message)


CACHED = """
import sys, warnings, numpy as np
from numba.core import event
with warnings.catch_warnings(record=True) as caught, event.install_recorder("numba:compile") as recorder:
    warnings.simplefilter("always")
    import fastconv as fc
    y = fc.conv1d(np.ones((1, 1, 5), np.float32), np.ones((1, 1, 3), np.float32), backend="direct")
    fc.explain((1, 1, 5), (1, 1, 3))
    fc.wisdom.save()
assert y.tolist() == [[[3.0] * 3]], y
assert all(issubclass(w.category, RuntimeWarning) for w in caught), caught
print(len(recorder.buffer), "numba.np.arraymath" in sys.modules, *[str(w.message) for w in caught])
"""


def test_cache_between_processes(tmp_path):
    """What one process compiled the next one loads, without Numba's rules for compiling; files cut short or full of rubbish
    cost a warning and a compilation, no more.
    """
    cache = tmp_path / "cache"

    def run():
        compiled, rules_loaded, *messages = python(CACHED, FASTCONV_CACHE_DIR=str(cache)).split()
        assert (rules_loaded == "True") == (int(compiled) > 0)
        return int(compiled), " ".join(messages)

    compiled, messages = run()
    assert compiled > 0
    assert not messages
    assert run() == (0, "")
    files = [path for path in cache.rglob("*") if path.is_file()]
    assert "wisdom.json" in [path.name for path in files]
    for path in files:
        path.write_bytes(b"rubbish" if path.suffix == ".json" else path.read_bytes()[: path.stat().st_size // 2])
    compiled, messages = run()
    assert compiled > 0
    assert messages.count("wisdom.json") == 1
    assert run() == (0, "")


def test_tuning_adds_to_the_wisdom_of_earlier_processes():
    """What one process has measured is neither lost nor overwritten by what the next measures."""
    source = """
import fastconv as fc
shapes = [((1, 1, n), (1, 1, 3)) for n in (50, 60)]
fc.tune([shapes[NUMBER]])
print([any(c.measured_seconds is not None for c in fc.explain(*s).candidates) for s in shapes])
"""
    try:
        assert python(source.replace("NUMBER", "0")).strip() == "[True, False]"
        assert python(source.replace("NUMBER", "1")).strip() == "[True, True]"
    finally:
        fc.wisdom.clear()


def test_number_of_threads_by_variable():
    """FASTCONV_NUM_THREADS sets it; nonsense is one clear error."""
    assert python("import fastconv as fc; print(fc.get_num_threads())", FASTCONV_NUM_THREADS="1").strip() == "1"
    source = """
import numpy as np, fastconv as fc
try:
    fc.conv1d(np.ones((1, 1, 5)), np.ones((1, 1, 3)))
except ValueError as error:
    print(error)
"""
    assert "FASTCONV_NUM_THREADS" in python(source, FASTCONV_NUM_THREADS="many")


def test_cgroup_quota(tmp_path):
    """A container's quota caps the number of threads, in both versions of the files."""
    from fastconv.backends import _jit

    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert _jit._cgroup_quota(tmp_path) == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert _jit._cgroup_quota(tmp_path) == float("inf")
    old = tmp_path / "old" / "cpu"
    old.mkdir(parents=True)
    (old / "cpu.cfs_quota_us").write_text("200000\n")
    (old / "cpu.cfs_period_us").write_text("100000\n")
    assert _jit._cgroup_quota(tmp_path / "old") == 2.0


def test_cache_key_covers_every_source_file(tmp_path):
    """The digest changes with any file of `backends/`, helpers included."""
    source = """
import os, pathlib, shutil
import fastconv
copy = pathlib.Path(os.environ["COPY"])
shutil.copytree(pathlib.Path(fastconv.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
from fastconv.backends import _jit
digests = {_jit.source_digest()}
real = _jit.__file__
_jit.__file__ = str(copy / "backends" / "_jit.py")
for path in sorted((copy / "backends").rglob("*.py")):
    path.write_text(path.read_text() + "\\n# changed\\n")
    _jit.source_digest.cache_clear()
    digests.add(_jit.source_digest())
print(len(digests) - 1 == len(list((copy / "backends").rglob("*.py"))))
"""
    assert python(source, COPY=str(tmp_path / "fastconv")).strip() == "True"


NEW_SHAPES = (
    START
    + """
from numba.core import event

WARM = [
    ((1, 16, 24, 24), (32, 16, 3, 3), {}),
    ((2, 3, 20, 21), (8, 3, 3, 3), {"padding": 1}),
    ((1, 64, 9, 9), (64, 64, 3, 3), {"padding": 1}),
    ((1, 8, 30, 31), (8, 8, 3, 3), {"stride": 2}),
]
NEW = [
    ((1, 20, 33, 29), (40, 20, 3, 3), {}),
    ((3, 5, 17, 40), (11, 5, 3, 3), {"padding": 1}),
    ((1, 48, 12, 10), (96, 48, 3, 3), {"padding": 1}),
    ((1, 9, 41, 22), (10, 9, 3, 3), {"stride": 2}),
    ((2, 33, 16, 16), (17, 33, 3, 3), {"padding": ((1, 2), (0, 1))}),
]

def passes(shapes, backend):
    for x_shape, w_shape, options in shapes:
        x, w = np.ones(x_shape, np.float32), np.ones(w_shape, np.float32)
        try:
            y = fc.conv2d(x, w, backend=backend, **options)
            fc.conv2d_grad_input(y, w, x.shape, backend=backend, **options)
            fc.conv2d_grad_weight(y, x, w.shape, backend=backend, **options)
        except fc.BackendError:
            pass

for backend in (*fc.backends(), None):
    passes(WARM, backend)
fc.warmup()
with event.install_recorder("numba:compile") as recorder:
    for backend in (*fc.backends(), None):
        passes(NEW, backend)
names = sorted({str(record.data.get("dispatcher", record.data)) for _, record in recorder.buffer})
assert not names, names
print("done")
"""
)


def test_new_shapes_of_a_warm_family_compile_nothing():
    """Sizes, strides and pads are run-time arguments: other 3x3 layers need no new kernel, on any backend, in any pass."""
    assert python(NEW_SHAPES).strip() == "done"


def test_machine_constants_measured_in_a_bad_moment(tmp_path):
    """What another measurement finds better takes the place of what was stored; what it finds worse does not."""
    source = """
import json, pathlib, os
import fastconv as fc
from fastconv.backends import _machine
first = _machine.machine_constants()
path, = pathlib.Path(os.environ["FASTCONV_CACHE_DIR"]).glob("machine-*.json")
stored = json.loads(path.read_text())
path.write_text(json.dumps({**stored, "bandwidth": 1.0, "flops32": 1e18}))
again = _machine.measure_again()
assert again == _machine.machine_constants() != first
print(again.bandwidth > 1e6, again.flops32 == 1e18, json.loads(path.read_text())["flops32"] == 1e18, again.threads == fc.get_num_threads())
"""
    assert python(source, FASTCONV_CACHE_DIR=str(tmp_path)).split() == ["True"] * 4


def test_warmup_leaves_nothing_to_compile():
    """Every kernel that `info` lists; those of one dtype only are known by name."""
    source = """
import fastconv as fc
from fastconv import config
from fastconv.backends import _jit
fc.warmup()
print({name for name, kernel in config.kernels().items() if _jit.cache_state(kernel) != "in memory"})
"""
    left = ast.literal_eval(python(source)) - {"machine.multiply_add"}  # whose answer is stored
    assert left == {"activation.gelu_scalars"}  # float64


def test_warmup_of_convolutions_and_of_integers(monkeypatch):
    """Integers have no means and no layers; what they have can be warmed."""
    monkeypatch.setattr(warming, "_timed", lambda name, *rest: (name, 0.0))
    both = [name for name, _ in fc.warmup(["float32", "int32"])]
    assert "layers float32" in both and "max pools int32" in both and "mean pools int32" not in both and "layers int32" not in both
    assert not any("pools" in name for name, _ in fc.warmup(operations=False))
    for step in (warming._max_pools, warming._unfolding, warming._local):
        step("int32")


def test_new_shapes_add_no_signatures():
    """The same counted another way: the kernels' compiled signatures, those loaded from the cache included."""
    source = NEW_SHAPES.replace(
        "with event.install_recorder",
        """
from fastconv.backends import _jit
modules = [module for name, module in sys.modules.items() if name.startswith("fastconv.backends")]
def count():
    return {name: len(kernel.signatures) for name, kernel in _jit.compiled_kernels(modules).items()}
before = count()
assert sum(before.values()) > 0
with event.install_recorder""",
    ).replace('print("done")', 'assert count() == before\nprint("done")')
    assert "before" in source and "count() == before" in source
    assert python(source).strip() == "done"


def test_many_shapes_do_not_grow_memory():
    """Scratch is bounded: 300 shapes later the process has not grown by as many buffers."""
    pytest.importorskip("resource")
    source = (
        START
        + """
import resource
fc.set_num_threads(1)
def shapes(start):
    for size in range(start, start + 150):
        fc.conv2d(np.ones((1, 8, 40, size), np.float32), np.ones((8, 8, 3, 3), np.float32))
shapes(40)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
shapes(41)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
assert grown < 40_000, f"{grown} KiB"
print("done")
"""
    )
    assert python(source).strip() == "done"


@pytest.mark.parametrize("backend", fc.backends())
@pytest.mark.parametrize("channels", [16, 160])  # threads share the tiles of a gradient of weights, or its channels
def test_same_bits_in_every_run(backend, channels):
    """Whichever thread takes which task, sums are taken in one order."""
    rng = np.random.default_rng(5)
    x, w = rng.standard_normal((3, channels, 33, 34), np.float32), rng.standard_normal((channels, channels, 3, 3), np.float32)
    gy = rng.standard_normal(x.shape, np.float32)
    runs = [
        lambda: fc.conv2d(x, w, padding=1, backend=backend),
        lambda: fc.conv2d_grad_input(gy, w, x.shape, padding=1, backend=backend),
        lambda: fc.conv2d_grad_weight(gy, x, w.shape, padding=1, backend=backend),
    ]
    for run in runs:
        try:
            first = run()
        except fc.BackendError:
            continue  # separable takes no such weights, and no gradient of them
        for _ in range(5):
            np.testing.assert_array_equal(run(), first)
