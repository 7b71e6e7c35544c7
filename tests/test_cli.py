"""The command: every subcommand and option, wrong usage in one line, exit codes."""

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

import fastconv as fc
from fastconv import cli, imaging
from fastconv.bench import measure, signals


def run(*arguments: str, **options) -> subprocess.CompletedProcess:
    """Run `python -m fastconv` in a process."""
    return subprocess.run([sys.executable, "-m", "fastconv", *arguments], capture_output=True, text=True, timeout=300, **options)


def fails(capsys, *arguments: str) -> str:
    """The one line of an error that must end with status 2."""
    try:
        status = cli.main(arguments)
    except SystemExit as end:  # argparse's way out
        status = end.code
    assert status == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert "error: " in lines[-1]
    assert "Traceback" not in "".join(lines)
    return lines[-1]


# -- bench ----------------------------------------------------------------------------------------------------------------


def test_bench_as_a_process_writes_table_json_and_page(tmp_path):
    done = run(
        "bench",
        "--suite",
        "lenet",
        "--layer",
        "c1",
        "--seconds",
        "1",
        "--threads",
        "1",
        "--json",
        str(tmp_path / "r.json"),
        "--html",
        str(tmp_path / "r.html"),
    )
    assert done.returncode == 0, done.stderr
    assert "[1/1] lenet C1" in done.stderr
    assert "lenet C1" in done.stdout
    assert "of NumPy/SciPy" in done.stdout
    loaded = json.loads((tmp_path / "r.json").read_text())
    assert loaded["threads"] == 1
    assert loaded["verified"] is True
    (item,) = loaded["items"]
    assert set(item["timings"]) | set(item["refusals"]) == set(loaded["backends"]) == set(fc.backends())
    assert item["chosen"] in item["timings"]
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    ElementTree.fromstring(text.split("\n", 1)[1])
    assert "http" not in text


def test_bench_of_chosen_backends(capsys, tmp_path):
    arguments = ("bench", "--suite", "lenet", "--layer", "C3", "--backend", "direct", "--backend", "im2col", "--seconds", "0.1")
    assert cli.main([*arguments, "--json", str(tmp_path / "r.json")]) == 0
    assert json.loads((tmp_path / "r.json").read_text())["backends"] == ["direct", "im2col"]


def test_bench_exits_with_1_where_results_disagree(capsys, monkeypatch):
    monkeypatch.setattr(measure, "TOLERANCE", -1.0)
    assert cli.main(["bench", "--suite", "lenet", "--layer", "C5", "--seconds", "0.1"]) == 1
    assert "WRONG lenet C5" in capsys.readouterr().out


def test_bench_threads_are_restored(capsys):
    before = fc.get_num_threads()
    assert cli.main(["bench", "--suite", "lenet", "--layer", "C1", "--seconds", "0.1", "--threads", "1"]) == 0
    assert fc.get_num_threads() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--suite", "nonsense"), "nonsense"),
        (("--suite", "lenet", "--layer", "nonsense"), "there are C1, C3, C5"),
        (("--backend", "nonsense"), "direct"),
        (("--threads", "0"), "positive integer"),
        (("--threads", "two"), "positive integer"),
        (("--threads", "100000"), "100000"),
        (("--seconds", "inf"), "positive number"),
        (("--json", "no/such/directory/r.json"), "no directory"),
        (("--html", "."), "directory"),
    ],
)
def test_bench_errors(arguments, message, capsys):
    assert message in fails(capsys, "bench", *arguments)


# -- explain, tune, warmup, info --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("1x8x16x16", "8x8x3x3"),
        ("1,8,16,16", "8,8,3,3", "--stride", "2,1", "--padding", "1", "--dilation", "2"),
        ("1x8x16x16", "8x1x3x3", "--groups", "8", "--padding", "same", "--padding-mode", "reflect"),
        ("1x16x16x8", "3x3x8x8", "--layout", "NHWC", "--padding", "0:1,1:0"),
        ("1x1x100", "1x1x9", "--padding", "causal", "--dtype", "float64", "--accuracy", "strict"),
        ("1x2x5x6x7", "4x2x3x3x3", "--padding", "1,1,0", "--activation", "relu"),
    ],
)
def test_explain(arguments, capsys):
    assert cli.main(["explain", *arguments]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in fc.backends())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("1x8x16", "8x8x3x3"), "x"),
        (("1x8xtwo", "8x8x3x3"), "1x64x56x56"),
        (("1x8x16x16", "8x8x3x3", "--stride", "0"), "stride"),
        (("1x8x16x16", "8x8x3x3", "--stride", "fast"), "--stride"),
        (("1x8x16x16", "8x8x3x3", "--groups", "3"), "groups"),
        (("1x8x16x16", "8x8x3x3", "--padding", "most"), "padding"),
        (("1x8x16x16", "8x8x3x3", "--padding", "1:x"), "pairs"),
        (("1x8x16x16", "8x8x3x3", "--dtype", "float31"), "float31"),
        (("1x8x2x2", "8x8x3x3"), "larger"),
        (("1x8x16x16",), "WEIGHT"),
    ],
)
def test_explain_errors(arguments, message, capsys):
    assert message in fails(capsys, "explain", *arguments)


def test_tune_shapes_and_suite(tmp_path):
    environment = {**os.environ, "FASTCONV_CACHE_DIR": str(tmp_path)}
    done = run("tune", "1x4x12x12", "4x4x3x3", "--padding", "1", env=environment)
    assert done.returncode == 0, done.stderr
    assert "[1/1] 1x4x12x12 * 4x4x3x3: " in done.stdout
    assert " ms" in done.stdout
    done = run("tune", "--suite", "lenet", "--layer", "C5", env=environment)
    assert done.returncode == 0, done.stderr
    assert "64x16x5x5 * 120x16x5x5" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--suite"),
        (("1x4x12x12",), "pairs"),
        (("1x4x12x12", "4x4x3x3", "--suite", "lenet"), "either"),
        (("1x4x12x12", "4x5x3x3"), "channels"),
        (("--suite", "lenet", "--layer", "no"), "C1"),
    ],
)
def test_tune_errors(arguments, message, capsys):
    assert message in fails(capsys, "tune", *arguments)


def test_warmup_prints_what_it_compiled(capsys, monkeypatch):
    """Compiling everything takes a minute, so only the command's own part is run."""
    asked = []
    monkeypatch.setattr(fc, "warmup", lambda dtypes, operations: asked.append((dtypes, operations)) or [("gemm", 1.5), ("fft", 0.25)])
    assert cli.main(["warmup"]) == 0
    assert cli.main(["warmup", "--convolutions", "--dtype", "float64", "--dtype", "float32"]) == 0
    assert asked == [(("float32",), True), (("float64", "float32"), False)]
    assert "2 kernels ready, 1.8 s" in capsys.readouterr().out


def test_info_names_versions_threads_and_cache(capsys):
    assert cli.main(["info"]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("numba", "numpy", "threads", "cache", np.__version__))


# -- filter ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", imaging.FILTERS)
def test_filter_on_npy(name, tmp_path):
    from scipy import ndimage

    source = signals.photograph()[100:160, 200:270]
    np.save(tmp_path / "in.npy", source)
    assert cli.main(["filter", str(tmp_path / "in.npy"), str(tmp_path / "out.npy"), "--kernel", name]) == 0
    result = np.load(tmp_path / "out.npy")
    exact = ndimage.correlate(source.astype(float), imaging.filter_kernel(name), mode="mirror")
    assert result.dtype == np.uint8
    assert np.abs(result - np.clip(exact, 0, 255)).max() <= 0.51


def test_filter_options(tmp_path):
    image = np.random.default_rng(0).standard_normal((20, 30))
    kernel = np.arange(6.0).reshape(2, 3)
    np.save(tmp_path / "in.npy", image)
    np.save(tmp_path / "kernel.npy", kernel)
    where = (str(tmp_path / "in.npy"), str(tmp_path / "out.npy"))
    for arguments in (
        ("gaussian", "--size", "5", "--sigma", "1.2", "--mode", "zeros"),
        ("box", "--size", "4"),
        ("motion", "--size", "9", "--angle", "45"),
        ("sobel-x", "--absolute"),
        (str(tmp_path / "kernel.npy"),),
    ):
        assert cli.main(["filter", *where, "--kernel", *arguments]) == 0
        result = np.load(where[1])
        assert result.shape == image.shape
        assert result.dtype == image.dtype
    padded = np.pad(image, ((0, 1), (1, 1)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2, 3))
    np.testing.assert_allclose(result, np.einsum("ijkl,kl->ij", windows, kernel), rtol=1e-10, atol=1e-12)


def test_filter_clips_and_keeps_transparency():
    image = np.zeros((6, 6, 4), dtype=np.uint8)
    image[..., 0], image[2:, 2:, 1], image[..., 3] = 255, 200, np.arange(6)
    result = imaging.filter_image(image, imaging.filter_kernel("sharpen"))
    np.testing.assert_array_equal(result[..., 3], image[..., 3])
    np.testing.assert_array_equal(result[..., 0], 255)
    assert result[2, 2, 1] == 255  # 5 * 200 - 2 * 200, clipped
    assert result[1, 3, 1] == 0  # -200, clipped


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.float16, np.float32, np.int32])
def test_filter_keeps_the_dtype(dtype):
    image = np.full((5, 5), 1000, dtype=dtype)
    result = imaging.filter_image(image, imaging.filter_kernel("box"))
    assert result.dtype == dtype
    np.testing.assert_allclose(result.astype(float), 1000, rtol=1e-6)


@pytest.mark.parametrize(
    ("mode", "extension"),
    [("L", "png"), ("RGB", "png"), ("RGBA", "png"), ("LA", "png"), ("RGB", "jpg"), ("P", "png"), ("1", "png")],
)
def test_filter_on_image_files(mode, extension, tmp_path):
    image_module = pytest.importorskip("PIL.Image")
    source, target = tmp_path / f"in.{extension}", tmp_path / f"out.{extension}"
    image_module.fromarray(signals.photograph()[:40, :50]).convert(mode).save(source)
    assert cli.main(["filter", str(source), str(target), "--kernel", "gaussian"]) == 0
    with image_module.open(target) as result:
        assert result.size == (50, 40)
        assert result.mode == {"P": "RGB", "1": "L"}.get(mode, mode)


def test_filter_on_16_bit_png(tmp_path):
    image_module = pytest.importorskip("PIL.Image")
    pixels = np.full((8, 8), 40_000, dtype=np.uint16)
    image_module.fromarray(pixels).save(tmp_path / "in.png")
    assert cli.main(["filter", str(tmp_path / "in.png"), str(tmp_path / "out.png"), "--kernel", "box"]) == 0
    with image_module.open(tmp_path / "out.png") as result:
        np.testing.assert_array_equal(np.asarray(result), pixels)


def test_filter_without_pillow(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    (tmp_path / "in.png").write_bytes(b"")
    assert "pip install pillow" in fails(capsys, "filter", str(tmp_path / "in.png"), str(tmp_path / "out.png"), "--kernel", "box")


@pytest.fixture
def picture(tmp_path):
    """A directory with in.npy, a two-dimensional image, and some files that are none."""
    np.save(tmp_path / "in.npy", np.zeros((8, 8), dtype=np.uint8))
    np.save(tmp_path / "line.npy", np.zeros(3))
    np.save(tmp_path / "text.npy", np.array(["a"]))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "broken.npy").write_bytes(b"nothing")
    (tmp_path / "broken.png").write_bytes(b"nothing")
    return tmp_path


@pytest.mark.parametrize(
    ("source", "target", "arguments", "message"),
    [
        ("missing.npy", "out.npy", ("box",), "missing.npy"),
        ("broken.npy", "out.npy", ("box",), "not a .npy file"),
        ("objects.npy", "out.npy", ("box",), "not a .npy file"),
        ("line.npy", "out.npy", ("box",), "(H, W)"),
        ("text.npy", "out.npy", ("box",), "real pixels"),
        ("in.npy", "out.npy", ("nonsense",), "gaussian, box"),
        ("in.npy", "out.npy", ("line.npy",), "two-dimensional"),
        ("in.npy", "out.npy", ("sharpen", "--size", "3"), "--size does not apply"),
        ("in.npy", "out.npy", ("gaussian", "--size", "0"), "positive integer"),
        ("in.npy", "out.npy", ("gaussian", "--mode", "mirror"), "mirror"),
        ("in.npy", "out.npy", ("gaussian", "--size", "99"), "padding"),
        ("in.npy", "no/directory/out.npy", ("box",), "no directory"),
    ],
)
def test_filter_errors(source, target, arguments, message, picture, capsys, monkeypatch):
    monkeypatch.chdir(picture)
    assert message in fails(capsys, "filter", source, target, "--kernel", *arguments)


@pytest.mark.parametrize(("source", "target"), [("broken.png", "out.png"), ("in.npy", "out.nonsense"), ("rgba.npy", "out.jpg")])
def test_filter_errors_of_image_files(source, target, picture, capsys, monkeypatch):
    pytest.importorskip("PIL")
    monkeypatch.chdir(picture)
    np.save("rgba.npy", np.zeros((8, 8, 4), dtype=np.uint8))
    fails(capsys, "filter", source, target, "--kernel", "box")
    assert not (picture / target).exists()


# -- train ----------------------------------------------------------------------------------------------------------------


def test_train_writes_page_model_and_checkpoint(tmp_path, capsys):
    names = {name: str(tmp_path / f"out.{name}") for name in ("html", "npz", "checkpoint.npz")}
    arguments = ("--html", names["html"], "--save", names["npz"], "--checkpoint", names["checkpoint.npz"], "--batch-size", "64")
    assert cli.main(["train", "--epochs", "2", *arguments]) == 0
    out, err = capsys.readouterr()
    assert "epoch 2/2" in err
    lines = out.splitlines()
    assert lines[0].startswith("accuracy ")
    assert sum(int(word) for line in lines[3:13] for word in line.split()[1:] if word != ".") == 359
    text = (tmp_path / "out.html").read_text(encoding="utf-8")
    ElementTree.fromstring(text.split("\n", 1)[1])
    assert "http" not in text
    assert all(words in text for words in ("Confusion matrix", "Learned filters", "Mistakes"))
    assert fc.nn.load(names["npz"])["0.weight"].shape == (32, 1, 3, 3)
    assert len(fc.nn.load_checkpoint(names["checkpoint.npz"])["history"]["loss"]) == 2


def test_train_draws_a_picture(tmp_path, capsys):
    image_module = pytest.importorskip("PIL.Image")
    assert cli.main(["train", "--epochs", "1", "--png", str(tmp_path / "out.png")]) == 0
    with image_module.open(tmp_path / "out.png") as image:
        assert image.size[0] > 800


@pytest.mark.parametrize(("arguments", "message"), [
    (("--epochs", "0"), "positive integer"), (("--held-out", "1"), "none for training"), (("--html", "no/such/x.html"), "no directory"),
    (("--png", "."), "directory"), (("--save", "model.bin"), ".npz or .safetensors"), (("--checkpoint", "run.ckpt"), ".npz"),
    (("--threads", "100000"), "100000")])
def test_train_errors(arguments, message, capsys):
    assert message in fails(capsys, "train", *arguments)


def test_train_without_pillow(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert "pip install pillow" in fails(capsys, "train", "--png", str(tmp_path / "out.png"))


def test_train_with_a_damaged_checkpoint(tmp_path, capsys):
    (tmp_path / "run.npz").write_bytes(b"PK nothing")
    assert "run.npz" in fails(capsys, "train", "--checkpoint", str(tmp_path / "run.npz"))


# -- the command as a whole -------------------------------------------------------------------------------------------------


def test_version_and_help():
    assert run("--version").stdout.startswith("fastconv ")
    help_text = run("--help").stdout
    assert all(name in help_text for name in cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_each_command(name, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([name, "--help"])
    assert end.value.code == 0
    assert "usage: fastconv" in capsys.readouterr().out


def test_no_command(capsys):
    fails(capsys)


def test_interrupt_is_one_line(capsys, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "run", interrupted)
    assert cli.main(["bench", "--suite", "lenet"]) == 130
    assert capsys.readouterr().err.strip().splitlines()[-1] == "fastconv: interrupted"


@pytest.mark.parametrize("arguments", [
    ("explain", "1x1x8x8", "1x1x3x3"), ("bench", "--suite", "lenet", "--layer", "C1", "--seconds", "0.1")])
def test_broken_pipe_is_silent(arguments):
    command = [sys.executable, "-m", "fastconv", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert [line for line in process.stderr if line != "[1/1] lenet C1\n"] == []
        assert process.wait(timeout=60) == 141


VARIABLES = {"FASTCONV_NUM_THREADS": "many", "FASTCONV_BACKEND": "nonsense", "FASTCONV_TUNE": "always"}


@pytest.mark.parametrize(("command", "name"), [
    *((command, name) for command in ("bench", "explain") for name in VARIABLES),
    ("warmup", "FASTCONV_NUM_THREADS"), ("info", "FASTCONV_NUM_THREADS")])
def test_wrong_variables_are_one_line(command, name):
    value = VARIABLES[name]
    done = run(command, *(("1x1x8x8", "1x1x3x3") if command == "explain" else ()), env={**os.environ, name: value})
    assert done.returncode == 2
    line, = done.stderr.splitlines()
    assert name in line
    assert value in line


def test_a_bug_shows_its_traceback(monkeypatch):
    """Only what the caller typed becomes one line: a failure inside the library must stay visible."""

    def bug(*args, **options):
        raise ValueError("a bug")

    monkeypatch.setattr(measure, "run", bug)
    with pytest.raises(ValueError, match="a bug"):
        cli.main(["bench", "--suite", "lenet"])


def test_the_command_itself_imports_no_optional_library():
    names = ("rich", "PIL", "matplotlib", "torch", "scipy.signal")
    code = f"import sys, fastconv.cli; print([name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
