"""Who computes: the order of the choices, fallbacks, `explain`, wisdom and plans."""

import dataclasses
import json
import sys
import threading
import tracemalloc
import warnings

import numpy as np
import pytest
import reference
from cases import CASES
from helpers import assert_close, public

import fastconv as fc

SHAPES = ((1, 8, 20, 21), (16, 8, 3, 3))
OTHERS = [name for name in fc.backends() if name != "direct"]


@pytest.fixture(autouse=True)
def no_wisdom():
    """Each test starts and ends without wisdom."""
    fc.wisdom.clear()
    yield
    fc.wisdom.clear()


def chosen(**options):
    """The backend that a plan for SHAPES takes."""
    return fc.plan_conv2d(np.ones(SHAPES[1], np.float32), input_shape=SHAPES[0], **options).backend


def refused(seed):
    """(backend, x, w, options) that the backend refuses: a case of its own for each seed, as warnings come once a problem."""
    for case in CASES:
        for backend in OTHERS:
            batch = 100 + seed
            x, w = np.ones((batch, *case.input_shape[1:]), np.int8), np.ones(case.weight_shape, np.int8)
            try:
                public("conv{}d", case.ndim)(x, w, backend=backend, **case.options)
            except fc.BackendError:
                return backend, case, x, w
    pytest.skip("no backend refuses anything")


# -- the order of choices -------------------------------------------------------------------------------------------------


def test_order_of_choices(monkeypatch):
    """backend= over use_backend over FASTCONV_BACKEND over auto; the innermost use_backend counts."""
    auto = chosen()
    assert auto in fc.backends()
    first, second, third = "direct", "im2col", "fft"
    monkeypatch.setenv("FASTCONV_BACKEND", first)
    assert chosen() == first
    with fc.use_backend(second):
        assert chosen() == second
        assert chosen(backend=third) == third
        with fc.use_backend(third):
            assert chosen() == third
        assert chosen() == second
    assert chosen() == first
    monkeypatch.delenv("FASTCONV_BACKEND")
    assert chosen() == auto


def test_auto_is_a_name_too(monkeypatch):
    """An outer choice is undone by "auto"."""
    auto = chosen()
    monkeypatch.setenv("FASTCONV_BACKEND", "direct")
    assert chosen(backend="auto") == auto
    with fc.use_backend("auto"):
        assert chosen() == auto


def test_use_backend_as_decorator():
    """The same object decorates."""

    @fc.use_backend("direct")
    def inside():
        return chosen()

    assert inside() == "direct"
    with fc.use_backend("im2col"):
        assert inside() == "direct"
        assert chosen() == "im2col"


def test_use_backend_ends_with_an_error():
    """The choice does not outlive an exception."""
    auto = chosen()
    with pytest.raises(RuntimeError), fc.use_backend("direct"):
        raise RuntimeError
    assert chosen() == auto


def test_use_backend_is_per_thread():
    """Another thread is not affected."""
    auto, seen = chosen(), []
    with fc.use_backend("direct"):
        thread = threading.Thread(target=lambda: seen.append(chosen()))
        thread.start()
        thread.join()
    assert seen == [auto]


@pytest.mark.parametrize("how", ["argument", "context", "variable"])
def test_unknown_name_lists_the_valid_ones(how, monkeypatch):
    """One ValueError with the name and the names to choose from."""
    x, w = np.ones(SHAPES[0]), np.ones(SHAPES[1])
    with pytest.raises(ValueError, match="fastest") as caught:
        if how == "argument":
            fc.conv2d(x, w, backend="fastest")
        elif how == "context":
            with fc.use_backend("fastest"):
                fc.conv2d(x, w)
        else:
            monkeypatch.setenv("FASTCONV_BACKEND", "fastest")
            fc.conv2d(x, w)
    for name in fc.backends():
        assert name in str(caught.value)


def test_refusal_of_the_argument_is_an_error():
    """backend= means that one: BackendError with the reason, which is a ValueError."""
    backend, case, x, w = refused(0)
    with pytest.raises(fc.BackendError, match=backend) as caught:
        public("conv{}d", case.ndim)(x, w, backend=backend, **case.options)
    assert isinstance(caught.value, ValueError)


def test_refusal_of_the_variable_falls_back_with_one_warning(monkeypatch):
    """One BackendFallbackWarning per problem, and auto's answer."""
    backend, case, x, w = refused(1)
    expected = reference.conv(x, w, **case.options)
    monkeypatch.setenv("FASTCONV_BACKEND", backend)
    with pytest.warns(fc.BackendFallbackWarning, match=backend) as caught:
        np.testing.assert_array_equal(public("conv{}d", case.ndim)(x, w, **case.options), expected)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(public("conv{}d", case.ndim)(x, w, **case.options), expected)
    with pytest.warns(fc.BackendFallbackWarning):
        public("conv{}d", case.ndim)(np.concatenate([x, x]), w, **case.options)


def test_refusal_inside_use_backend_is_not_silent():
    """A context that cannot be honoured says so, as an error or a warning."""
    backend, case, x, w = refused(2)
    with warnings.catch_warnings(record=True) as caught, fc.use_backend(backend):
        warnings.simplefilter("always")
        try:
            public("conv{}d", case.ndim)(x, w, **case.options)
        except fc.BackendError:
            return
    assert [w.category for w in caught] == [fc.BackendFallbackWarning]


@pytest.mark.parametrize("variable", ["FASTCONV_ACCURACY", "FASTCONV_TUNE"])
def test_nonsense_in_other_variables(variable, monkeypatch):
    """A value that means nothing is an error that names the variable."""
    monkeypatch.setenv(variable, "nonsense")
    with pytest.raises(ValueError, match=f"{variable}.*nonsense|nonsense.*{variable}"):
        fc.conv2d(np.ones((1, 1, 11, 7)), np.ones((1, 1, 2, 5)))


# -- explain --------------------------------------------------------------------------------------------------------------


def test_explain_contents():
    """Every backend is a candidate, with a prediction or a reason; the chosen has the least."""
    table = fc.explain(*SHAPES, padding=1)
    assert [c.name for c in sorted(table.candidates, key=lambda c: c.name)] == sorted(fc.backends())
    for candidate in table.candidates:
        assert (candidate.predicted_seconds is None) != (candidate.refusal is None)
        assert candidate.measured_seconds is None
    able = {c.name: c.predicted_seconds for c in table.candidates if c.refusal is None}
    assert all(seconds > 0 for seconds in able.values())
    assert table.chosen == min(able, key=able.get) == chosen(padding=1)


def test_explain_is_readable():
    """The text names the candidates and the quantities a person asks for."""
    text = str(fc.explain(*SHAPES, padding=1))
    for word in (*fc.backends(), "FLOP", "B of arrays", "scratch", "peak", "predicted", "measured"):
        assert word.lower() in text.lower(), f"{word} is not in\n{text}"
    assert max(map(len, text.splitlines())) <= 160


def test_explain_gives_reasons():
    """The reason of a refusal is in the table and in the text."""
    backend, case, _, _ = refused(3)
    table = fc.explain(case.input_shape, case.weight_shape, dtype="int8", **case.options)
    candidate = next(c for c in table.candidates if c.name == backend)
    assert candidate.refusal
    assert candidate.refusal in str(table)
    assert table.chosen != backend


def test_explain_takes_the_options_of_a_convolution():
    """Types, passes of other ranks, activation, backend."""
    assert fc.explain((1, 8, 100), (4, 8, 9), dtype=np.float64, padding="same", activation="relu").chosen in fc.backends()
    assert fc.explain((1, 5, 6, 7, 3), (3, 3, 3, 3, 4), layout="NHWC").chosen in fc.backends()
    assert fc.explain(*SHAPES, backend="direct").chosen == "direct"


def test_explain_allocates_no_operands():
    """Shapes alone: a problem of terabytes can be asked about."""
    assert fc.explain((10_000, 1000, 1000, 1000), (1000, 1000, 3, 3)).chosen in fc.backends()


def test_strict_accuracy_refuses_winograd():
    """Only methods with a plain sum's error are candidates."""
    candidates = fc.explain((1, 64, 56, 56), (64, 64, 3, 3), padding=1, accuracy="strict").candidates
    assert next(c for c in candidates if c.name == "direct").refusal is None
    assert all(c.refusal for c in candidates if c.name == "winograd")


# -- wisdom ---------------------------------------------------------------------------------------------------------------


def measured(**options):
    """Measured seconds of the candidates for SHAPES."""
    return {c.name: c.measured_seconds for c in fc.explain(*SHAPES, **options).candidates if c.measured_seconds is not None}


def test_tune_measures_and_decides():
    """After `tune` the table has measured times, and the fastest is chosen."""
    fc.tune([(*SHAPES, {"padding": 1})])
    times = measured(padding=1)
    assert set(times) == {c.name for c in fc.explain(*SHAPES, padding=1).candidates if c.refusal is None}
    assert chosen(padding=1) == fc.explain(*SHAPES, padding=1).chosen == min(times, key=times.get)
    assert not measured(padding=2), "another problem"


def test_wisdom_survives_a_file(tmp_path):
    """save, clear, load."""
    fc.tune([(*SHAPES, {})])
    times, path = measured(), tmp_path / "wisdom.json"
    fc.wisdom.save(path)
    fc.wisdom.clear()
    assert not measured()
    fc.wisdom.load(path)
    assert measured() == pytest.approx(times)
    assert isinstance(json.loads(path.read_text()), dict)
    assert [p.name for p in tmp_path.iterdir()] == ["wisdom.json"], "nothing temporary is left"


@pytest.mark.parametrize(
    "content",
    ["", "{", "null", "[]", "{}", '{"version": 999}', "\x00\x01", '{"version": 1, "entries": 5}'],
    ids=["empty", "truncated", "null", "list", "object", "future", "binary", "nonsense"],
)
def test_damaged_file_is_ignored_with_one_warning(content, tmp_path):
    """A damaged or foreign file changes nothing."""
    path = tmp_path / "wisdom.json"
    path.write_text(content)
    before = chosen()
    with pytest.warns(Warning, match="wisdom") as caught:
        fc.wisdom.load(path)
    assert len(caught) == 1
    assert chosen() == before
    assert not measured()


def test_every_truncation_of_a_file(tmp_path):
    """A file cut anywhere is damaged, not a crash; an entry that names no backend is not believed."""
    fc.tune([(*SHAPES, {})])
    path = tmp_path / "wisdom.json"
    fc.wisdom.save(path)
    whole = path.read_text()
    for cut in range(0, len(whole) - 2, max(1, len(whole) // 40)):
        fc.wisdom.clear()
        path.write_text(whole[:cut])
        with pytest.warns(Warning, match="wisdom"):
            fc.wisdom.load(path)
        assert not measured()
    path.write_text(whole.replace('"direct"', '"indirect"'))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fc.wisdom.load(path)
    assert chosen() in fc.backends()


def test_missing_file(tmp_path):
    """A file that is not there is an error: the caller named it."""
    with pytest.raises(OSError, match="nothing"):
        fc.wisdom.load(tmp_path / "nothing.json")


def test_tune_by_variable(monkeypatch):
    """FASTCONV_TUNE=measure times the candidates at the first call of a problem; "off" does not."""
    w = np.ones((5, 3, 3, 3), np.float32)
    for mode, height in (("off", 13), ("measure", 14)):
        x = np.ones((1, 3, height, 14), np.float32)
        monkeypatch.setenv("FASTCONV_TUNE", mode)
        np.testing.assert_array_equal(np.rint(fc.conv2d(x, w)), np.full((1, 5, height - 2, 12), 27))
        times = [c.measured_seconds for c in fc.explain(x.shape, w.shape).candidates if c.measured_seconds is not None]
        assert bool(times) == (mode == "measure")


# -- plans ----------------------------------------------------------------------------------------------------------------


def test_plan_is_immutable():
    """Attributes cannot be set, added or deleted."""
    plan = fc.plan_conv2d(np.ones(SHAPES[1], np.float32), input_shape=SHAPES[0])
    for change in (
        lambda: setattr(plan, "backend", "fft"),
        lambda: setattr(plan, "problem", None),
        lambda: delattr(plan, "backend"),
    ):
        with pytest.raises((AttributeError, dataclasses.FrozenInstanceError)):
            change()
    assert plan.problem.output_size == (1, 18, 19)
    assert hash(plan.problem) == hash(plan.problem)


def test_plan_repr_says_why():
    """What was chosen, the rivals, and the costs."""
    text = repr(fc.plan_conv2d(np.ones(SHAPES[1], np.float32), input_shape=SHAPES[0]))
    for name in fc.backends():
        assert name in text


@pytest.mark.parametrize("backend", fc.backends())
def test_plan_is_shared_between_threads(backend):
    """Eight threads run one plan on inputs of their own, many times: scratch belongs to the run."""
    rng = np.random.default_rng(2)
    w = rng.standard_normal(SHAPES[1]).astype(np.float32)
    inputs = [rng.standard_normal(SHAPES[0]).astype(np.float32) for _ in range(8)]
    try:
        plan = fc.plan_conv2d(w, input_shape=SHAPES[0], padding=1, backend=backend)
    except fc.BackendError:
        assert backend != "direct"
        pytest.skip(f"{backend} refuses")
    expected = [plan(x) for x in inputs]
    assert_close(expected[0], reference.conv(inputs[0], w, padding=1), 2e-5)
    failures = []

    def work(i):
        try:
            for _ in range(10):
                if not np.array_equal(plan(inputs[i]), expected[i]):
                    failures.append(i)
        except BaseException as error:
            failures.append(repr(error))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def caches():
    """Every function of the package that keeps its results."""
    modules = [module for name, module in sys.modules.items() if name.split(".")[0] == "fastconv"]
    return {f"{m.__name__}.{name}": f for m in modules for name, f in vars(m).items() if hasattr(f, "cache_info")}


def test_caches_are_bounded():
    """Thousands of shapes do not stay for ever: what grows with the shapes seen has an end."""
    before = {name: f.cache_info().misses for name, f in caches().items()}
    for size in range(50, 53):
        fc.conv1d(np.ones((7, 1, size), np.float32), np.ones((1, 1, 3), np.float32))
    by_shape = {name: f.cache_info() for name, f in caches().items() if f.cache_info().misses >= before.get(name, 0) + 3}
    assert by_shape, "nothing is cached by shape"
    for name, info in by_shape.items():
        assert info.maxsize is not None, f"{name} grows without end"
        assert info.maxsize <= 10_000, name


def test_same_problem_is_planned_once():
    """The second call of a problem is a dictionary hit, another problem is not."""
    w = np.ones((2, 2, 3), np.float32)

    def misses(size):
        before = sum(f.cache_info().misses for f in caches().values())
        fc.conv1d(np.ones((1, 2, size), np.float32), w)
        return sum(f.cache_info().misses for f in caches().values()) - before

    misses(37)
    assert misses(38) > 0
    assert misses(37) == misses(38) == 0


def test_plan_of_many_shapes_is_bounded():
    """A plan without an input shape does not keep packed weights for every shape it has ever seen."""
    w = np.ones((64, 64, 3), np.float32)
    plan = fc.plan_conv1d(w, backend="im2col")
    for size in range(10, 20):
        plan(np.ones((1, 64, size), np.float32))
    tracemalloc.start()
    try:
        for size in range(20, 320):
            plan(np.ones((1, 64, size), np.float32))
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert kept < 100 * w.nbytes, f"{kept / w.nbytes:.0f} times the weights are kept"


def test_show_config(capsys):
    """Versions, the machine, threads and the cache directory."""
    result = fc.show_config()
    text = capsys.readouterr().out or str(result)
    for word in ("numba", "numpy", "thread", "cache"):
        assert word in text.lower()
