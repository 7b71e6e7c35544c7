"""The benchmark: its suite is what it says, wrong results are found, and the page and the files are well-formed."""

import itertools
import json
import math
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import fastconv as fc
from fastconv.bench import measure, page, report, signals, suite
from fastconv.bench.baseline import baseline, im2col

PEAK = 100e9


def synthetic_result(item: suite.Item, **changes: object) -> measure.Result:
    """A result with made-up times: "direct" takes 2 ms, "fft" 1 ms and is chosen, "im2col" refuses."""
    timings = {"direct": measure.Timing(2e-3, 5, 1e-6), "fft": measure.Timing(1e-3, 5, 1e-6)}
    result = measure.Result(
        item=item,
        flops=10**7,
        bytes=10**6,
        timings=timings,
        refusals={"im2col": "not <this> & that"},
        failures={},
        baseline=measure.Timing(4e-3, 3, 0.0),
        chosen="fft",
        spread=1e-6,
        peak=PEAK,
    )
    return replace(result, **changes)


def synthetic_report(results: list[measure.Result]) -> measure.Report:
    """A report around made-up results."""
    return measure.Report(
        results=results,
        backends=["direct", "fft", "im2col"],
        threads=2,
        cpu="A CPU <1> & co",
        peak=PEAK,
        bandwidth=20e9,
        cache_bandwidth=80e9,
        seconds=12.0,
        date="today",
        versions={"python": "3"},
    )


# -- the suite ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layers", "unique"),
    [("resnet50", 53, 23), ("vgg16", 13, 9), ("mobilenetv2", 52, 30), ("convnext", 58, 16), ("lenet", 3, 3)],
)
def test_networks_have_their_published_number_of_convolutions(name, layers, unique):
    items = suite.items(name)
    assert sum(item.count for item in items) == layers
    assert len(items) == unique


@pytest.mark.parametrize(("name", "millions"), [("resnet50", 4089), ("vgg16", 15347), ("mobilenetv2", 300), ("convnext", 4454)])
def test_networks_have_their_published_multiply_adds(name, millions):
    """What the papers report, less the fully connected layers."""
    total = sum(item.count * multiply_adds(item) for item in suite.items(name))
    assert total / 1e6 == pytest.approx(millions, rel=0.01)


def multiply_adds(item: suite.Item) -> int:
    """Multiply-adds of a layer with integer padding."""
    stride, padding = item.options["stride"], item.options["padding"]
    size = [(n + 2 * padding - k) // stride + 1 for n, k in zip(item.input_shape[2:], item.weight_shape[2:], strict=True)]
    return item.input_shape[0] * item.weight_shape[0] * math.prod(size) * math.prod(item.weight_shape[1:])


def test_names_are_unique_and_quick_is_part_of_full():
    names = [(item.suite, item.name) for item in suite.items("full")]
    assert len(set(names)) == len(names)
    assert {(item.suite, item.name) for item in suite.items("quick")} == suite.QUICK


@pytest.mark.parametrize("name", suite.SUITES)
def test_arrays_have_the_announced_shapes(name):
    for item in suite.items(name)[:3]:
        x, w, bias = item.arrays()
        assert (x.shape, w.shape) == (item.input_shape, item.weight_shape)
        assert x.dtype == w.dtype == np.float32
        assert bias is None or bias.shape == w.shape[:1]


def test_select_by_name_and_its_error():
    assert [item.name for item in suite.select("lenet", "c3")] == ["C3"]
    with pytest.raises(ValueError, match="there are C1, C3, C5"):
        suite.select("lenet", "no such layer")


def test_photograph_is_a_real_image():
    pixels = signals.photograph()
    assert pixels.shape == (512, 512)
    assert pixels.dtype == np.uint8
    assert pixels.std() > 40
    assert not pixels.flags.writeable


def test_signals_are_deterministic_and_scaled():
    sound = signals.chord()
    assert sound.shape == (441_000,)
    assert np.abs(sound).max() == 1
    np.testing.assert_array_equal(signals.room_response(), signals.room_response())
    assert signals.low_pass().sum() == pytest.approx(1, abs=1e-6)
    spectrum = np.abs(np.fft.rfft(signals.low_pass(), 44_100))
    assert spectrum[10_000:].max() < 0.01 < 0.99 < spectrum[:2000].min()


# -- measuring and verifying ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("item", suite.items("quick"), ids=lambda item: f"{item.suite} {item.name}")
def test_baseline_computes_what_fastconv_computes(item):
    x, w, bias = item.arrays()
    expected = baseline(item, x, w, bias)()
    result = getattr(fc, f"conv{item.ndim}d")(x, w, bias, **item.options)
    assert measure.difference(result, expected) <= measure.TOLERANCE


def test_im2col_against_loops():
    random = np.random.default_rng(0)
    x, w, bias = random.standard_normal((2, 4, 5, 6)), random.standard_normal((6, 2, 3, 2)), random.standard_normal(6)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    expected = np.empty((2, 6, 3, 4))
    for n, o, i, j in np.ndindex(expected.shape):
        window = padded[n, 2 * (o // 3) : 2 * (o // 3) + 2, 2 * i : 2 * i + 3, 2 * j : 2 * j + 2]
        expected[n, o, i, j] = (window * w[o]).sum() + bias[o]
    np.testing.assert_allclose(im2col(x, w, bias, stride=2, padding=1, groups=2), expected, rtol=1e-12)


def test_every_backend_is_timed_refused_or_failed():
    item = suite.items("lenet")[1]
    result = measure.measure(item, list(fc.backends()), budget=0.02, peak=PEAK)
    assert not result.failures
    assert set(result.timings) | set(result.refusals) == set(fc.backends())
    assert all(timing.seconds > 0 and timing.error < measure.TOLERANCE for timing in result.timings.values())
    assert result.verified
    assert result.regret >= 1
    assert result.chosen in fc.backends()


def test_a_first_call_stands_if_it_exceeds_the_budget_and_compiled_nothing(monkeypatch):
    item = suite.items("lenet")[0]
    measure.measure(item, ["direct"], budget=0.02, peak=PEAK)
    assert measure.measure(item, ["direct"], budget=1e-9, peak=PEAK).timings["direct"].calls == 1
    counts = itertools.count()
    monkeypatch.setattr(measure, "_compiled_count", lambda: next(counts))
    monkeypatch.setattr(measure, "median_seconds", lambda calls, budget: dict.fromkeys(calls, (1.0, 2)))
    assert measure.measure(item, ["direct"], budget=1e-9, peak=PEAK).timings["direct"].calls == 2


def test_hopeless_backends_are_skipped_only_when_time_is_short(capsys):
    item = next(item for item in suite.items("photo") if "65" in item.name)
    explained = fc.explain(item.input_shape, item.weight_shape, bias=True, **item.options)
    skipped = measure.hopeless(explained, list(fc.backends()))
    assert "im2col" in skipped  # of one channel
    assert explained.chosen not in skipped
    assert measure.hopeless(explained, ["fft"]) == {}
    in_time = measure.run(suite.items("lenet")[:1], ["direct", "fft"], lambda item: None, seconds=10.0).results[0]
    assert set(in_time.timings) == {"direct", "fft"}
    short = measure.run([item], list(fc.backends()), lambda item: None, seconds=0.1)
    assert short.results[0].refusals["im2col"] == measure.SKIPPED
    assert "on 1 items hopeless backends were skipped" in "\n".join(report.summary(short))


def test_a_backend_that_raises_is_a_failure_not_the_end(monkeypatch):
    item = suite.items("lenet")[0]
    plan_conv2d = fc.plan_conv2d

    def broken(*args, backend=None, **options):
        if backend == "direct":
            raise RuntimeError("broken")
        return plan_conv2d(*args, backend=backend, **options)

    monkeypatch.setattr(fc, "plan_conv2d", broken)
    result = measure.measure(item, ["direct", "im2col"], budget=0.02, peak=PEAK)
    assert result.failures == {"direct": "RuntimeError: broken"}
    assert not result.verified


def test_difference_and_spread_find_wrong_results():
    expected = np.array([1.0, -2.0, 0.0])
    assert measure.difference(expected + 0.2, expected) == pytest.approx(0.1)
    assert measure.difference(expected[:2], expected) == math.inf
    assert math.isnan(measure.difference(np.array([1.0, math.nan, 0.0]), expected))
    assert measure.spread([expected, expected + 0.1, expected - 0.1]) == pytest.approx(0.1)
    assert measure.spread([expected, expected[:2]]) == math.inf


@pytest.mark.parametrize(
    "changes",
    [
        {"timings": {"fft": measure.Timing(1e-3, 5, 0.5)}},
        {"timings": {"fft": measure.Timing(1e-3, 5, math.nan)}},
        {"spread": 1.0},
        {"spread": math.nan},
        {"failures": {"im2col": "RuntimeError: no"}},
    ],
)
def test_wrong_results_are_flagged(changes):
    result = synthetic_result(suite.items("lenet")[0], **changes)
    assert not result.verified
    assert report.problems(synthetic_report([result]))


def test_rates_of_a_result():
    result = synthetic_result(suite.items("lenet")[0])
    assert result.rate == 1e10
    assert result.share == pytest.approx(0.1)
    assert result.speedup == 4
    assert result.regret == 1
    assert synthetic_result(suite.items("lenet")[0], chosen="direct").regret == 2
    assert synthetic_result(suite.items("lenet")[0], chosen="im2col").shown == "fft"


def test_median_seconds_takes_turns_and_keeps_to_the_budget(monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock) / 1024)  # exact sums
    order = []
    times = measure.median_seconds({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 12 / 1024)
    assert "".join(order) == "aabb" * measure.TURNS
    assert times == {name: (1 / 1024, 2 * measure.TURNS) for name in "ab"}


# -- table, files and page ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rich", [True, False])
def test_table(rich, monkeypatch, capsys):
    if rich:
        pytest.importorskip("rich")
    monkeypatch.setattr(report, "_has_rich", lambda: rich)
    wrong = {"timings": {"fft": measure.Timing(1e-3, 5, 0.5)}}
    items = suite.items("lenet")
    report.print_report(synthetic_report([synthetic_result(items[0]), synthetic_result(items[1], **wrong)]))
    text = capsys.readouterr().out
    assert "64x1x32x32 * 6x1x5x5" in text
    assert "WRONG lenet C3: fft differs by 5.0e-01" in text
    assert "geometric means over 2 items: 4.0x" in text
    assert "agree on 1 of 2 items" in text


def test_whole_networks_are_summed():
    results = [synthetic_result(item) for item in suite.items("resnet50")]
    assert report.network_seconds(synthetic_report(results))["resnet50"] == pytest.approx((53e-3, 53 * 4e-3))
    assert report.network_seconds(synthetic_report(results[1:])) == {}


def test_json_has_only_finite_numbers(tmp_path):
    nothing = synthetic_result(suite.items("lenet")[0], timings={}, refusals={"direct": "no"})
    report.write_json(synthetic_report([nothing]), tmp_path / "report.json")
    loaded = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert loaded["items"][0]["seconds"] is None


@pytest.mark.parametrize(
    "results",
    [
        [synthetic_result(item) for item in suite.items("full")],
        [synthetic_result(suite.items("lenet")[0], failures={"im2col": "<b>"}, spread=1.0)],
        [synthetic_result(suite.items("lenet")[0], timings={})],
    ],
)
def test_page_is_well_formed_and_self_contained(results, tmp_path):
    page.write_html(synthetic_report(results), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    root = ElementTree.fromstring(text.split("\n", 1)[1])
    assert not [word for word in ("http:", "https:", "<script", "url(", "@import", "src=") if word in text]
    assert "A CPU &lt;1&gt; &amp; co" in text
    marks = [node for node in root.iter() if node.get("class") == "dot"]
    assert len(marks) == sum(bool(result.timings) for result in results)
    assert all("GFLOP/s" in mark.findtext("title") for mark in marks)
    assert len(root.findall(".//tbody/tr")) == len(results)


IMPORT_ALL = """
import importlib, pkgutil, benchmarks
for module in pkgutil.iter_modules(benchmarks.__path__):
    print(importlib.import_module(f"benchmarks.{module.name}").__name__)
"""


def test_asv_can_import_every_module():
    """Asv imports the scripts beside its benchmarks too, as modules of one package, and finds nothing if one of them fails."""
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {"benchmarks.bench_conv", "benchmarks.regret"} <= set(done.stdout.split())
