"""Training: the loop against one written out, seeds, validation, early stop, checkpoints, a killed run, the digits."""

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastconv
from fastconv import nn
from fastconv.train import digits


def task(count=60, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, 6), dtype=np.float32)
    return x, (x[:, :3].sum(axis=1) > x[:, 3:].sum(axis=1)).astype(np.int64)


def network(seed=0):
    rng = np.random.default_rng(seed)
    return nn.Sequential(nn.Linear(6, 16, rng=rng), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2, rng=rng), nn.Linear(16, 2, rng=rng))


def fitted(epochs=3, seed=0, **options):
    model = network()
    optimizer = nn.Adam(model, lr=0.01)
    schedule = nn.CosineSchedule(optimizer, 100)
    x, y = task()
    history = nn.fit(model, x, y, optimizer=optimizer, schedule=schedule, epochs=epochs, batch_size=16, seed=seed, progress=False,
                     **options)
    return model, optimizer, history


def same(a, b):
    state, other = a.state_dict(), b.state_dict()
    assert list(state) == list(other)
    for key, array in state.items():
        np.testing.assert_array_equal(array, other[key], err_msg=key, strict=True)


def test_fit_is_the_loop_one_would_write():
    x, y = task()
    model = network()
    optimizer = nn.Adam(model, lr=0.01)
    schedule = nn.CosineSchedule(optimizer, 100)
    rng = np.random.default_rng(5)
    losses = []
    for _ in range(2):
        order = rng.permutation(len(x))
        total = 0.0
        for first in range(0, len(x), 16):
            picked = order[first:first + 16]
            model.zero_grad()
            outputs, backprop = model.forward(x[picked])
            loss, gradient = nn.softmax_cross_entropy(outputs, y[picked])
            backprop(gradient)
            optimizer.step()
            schedule.step()
            total += loss * len(picked)
        losses.append(total / len(x))
    other, _, history = fitted(epochs=2, seed=5)
    same(model, other)
    assert history.loss == pytest.approx(losses, rel=1e-12)
    assert len(history) == len(history.accuracy) == len(history.seconds) == 2
    assert history.lr[-1] == optimizer.lr
    assert history.val_loss == []


def test_seeds():
    same(fitted(seed=1)[0], fitted(seed=1)[0])
    same(fitted(seed=1)[0], fitted(seed=np.random.default_rng(1))[0])
    assert (fitted(seed=1)[0].state_dict()["0.weight"] != fitted(seed=2)[0].state_dict()["0.weight"]).any()


def test_validation_share_and_pair():
    x, y = task()
    _, _, history = fitted(validation=0.25)
    assert len(history.val_loss) == len(history.val_accuracy) == 3
    model, _, history = fitted(validation=(x, y))
    assert (history.val_loss[-1], history.val_accuracy[-1]) == nn.evaluate(model, x, y)


def test_other_targets_have_no_accuracy():
    x, _ = task()
    model = nn.Linear(6, 3, rng=0)
    history = nn.fit(model, x, x[:, :3], loss=nn.mse, optimizer=nn.SGD(model, lr=0.5), epochs=20, validation=0.2, progress=False)
    assert history.accuracy == history.val_accuracy == []
    assert history.val_loss[-1] < 0.01
    assert nn.evaluate(model, x, x[:, :3], loss=nn.mse).accuracy is None


def test_early_stop_and_callbacks():
    x, y = task()
    model = network()
    history = nn.fit(model, x, y, optimizer=nn.SGD(model, lr=0.0), epochs=50, validation=0.3, early_stop=2, progress=False)
    assert len(history) <= 8  # only the running statistics change
    assert history.stale() == 2
    seen = []
    fitted(epochs=9, callbacks=[lambda model, history: seen.append(len(history)), lambda model, history: len(history) == 4])
    assert seen == [1, 2, 3, 4]


def rising(model, history):
    """The third epoch ruins the model: the best one lies before."""
    if len(history) == 3:
        model.load_state_dict({key: array + 9 if array.dtype.kind == "f" else array for key, array in model.state_dict().items()})


def test_restore_best(tmp_path):
    """The state after the epoch of the smallest validation loss, statistics too; a resumed run knows it though its epochs were worse."""
    states = []
    options = {"validation": 0.2, "callbacks": [lambda model, history: states.append(model.state_dict()), rising]}
    path = tmp_path / "run.npz"
    _, _, history = fitted(epochs=6, **options)
    best = int(np.argmin(history.val_loss))
    assert best < 5  # else there is nothing to restore
    wanted = states[best]
    restored, _, _ = fitted(epochs=6, restore_best=True, **options)
    fitted(epochs=best + 2, restore_best=True, checkpoint=path, **options)
    resumed, _, _ = fitted(epochs=6, restore_best=True, checkpoint=path, **options)
    again, _, _ = fitted(epochs=6, restore_best=True, checkpoint=path, **options)
    for model in (restored, again):
        for key, array in model.state_dict().items():
            np.testing.assert_array_equal(array, wanted[key], err_msg=key)
    same(resumed, restored)
    continued, _, _ = fitted(epochs=6, checkpoint=path, **options)  # without the option: the last state
    assert any((continued.state_dict()[key] != wanted[key]).any() for key in wanted)
    with pytest.raises(ValueError, match="written without restore_best"):
        fitted(epochs=1, checkpoint=tmp_path / "other.npz", validation=0.2)
        fitted(epochs=2, checkpoint=tmp_path / "other.npz", validation=0.2, restore_best=True)


def test_the_best_epoch_is_a_number():
    assert nn.History(loss=[np.nan, 2.0, 1.0, np.nan]).stale() == 1
    assert nn.History(loss=[np.nan]).stale() == 0


def test_augment_is_seeded():
    def noisy(batch, rng):
        return batch + rng.standard_normal(batch.shape, dtype=np.float32)

    model = fitted(augment=noisy)[0]
    same(model, fitted(augment=noisy)[0])
    assert (model.state_dict()["0.weight"] != fitted()[0].state_dict()["0.weight"]).any()


def test_progress_is_a_line_an_epoch(capsys):
    model = network()
    nn.fit(model, *task(), optimizer=nn.SGD(model, lr=0.1), epochs=2, validation=0.2)
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split("  ")[0] for line in err.splitlines()] == ["epoch 1/2", "epoch 2/2"]
    assert all(f" {name} " in err for name in ("loss", "accuracy", "val_loss", "val_accuracy", "lr", "seconds"))


@pytest.mark.parametrize("library", ["rich", "tqdm", None])
def test_progress_in_a_terminal(library, capsys, monkeypatch):
    if library:
        pytest.importorskip(library)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    for other in ("rich.console", "tqdm"):
        if library is None or not other.startswith(library):
            monkeypatch.setitem(sys.modules, other, None)
    model = network()
    nn.fit(model, *task(), optimizer=nn.SGD(model, lr=0.1), epochs=2)
    assert "epoch 2/2" in capsys.readouterr().err


@pytest.mark.parametrize(("options", "message"), [
    ({"epochs": -1}, "epochs must"), ({"epochs": 1.5}, "epochs must"), ({"batch_size": 0}, "batch_size must"),
    ({"early_stop": 0}, "early_stop"),
    ({"validation": 1.5}, "validation must"), ({"validation": 0.001}, "none for validation"), ({"validation": 0.999}, "none for training"),
    ({"validation": (np.ones((2, 6)), np.ones(3))}, "same number"), ({"checkpoint": "run.ckpt"}, ".npz"),
    ({"checkpoint": "no/such/folder/run.npz"}, "no directory")])
def test_wrong_arguments(options, message):
    model = network()
    before = pickle.loads(pickle.dumps(model))
    with pytest.raises(ValueError, match=message):
        nn.fit(model, *task(), optimizer=nn.SGD(model, lr=0.1), progress=False, **options)
    same(model, before)


def test_wrong_data():
    model = network()
    x, y = task()
    for wrong_x, wrong_y in ((x, y[1:]), (x[:0], y[:0]), (1.0, y)):
        with pytest.raises(ValueError, match="same number of samples"):
            nn.fit(model, wrong_x, wrong_y, optimizer=nn.SGD(model, lr=0.1), progress=False)
    with pytest.raises(ValueError, match="labels"):
        nn.fit(model, x, y + 1, optimizer=nn.SGD(model, lr=0.1), progress=False)


@pytest.mark.parametrize("where", ["label", "validation label", "image", "validation image"])
def test_samples_that_do_not_fit_change_nothing(where):
    """A label out of range in the last batch of several, or images of a wrong size: found before parameters or statistics move."""
    model = nn.Sequential(nn.Conv2d(1, 3, 3, rng=0), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4, rng=1))
    before = pickle.loads(pickle.dumps(model))
    rng = np.random.default_rng(8)
    x, y = rng.standard_normal((12, 1, 6, 6), dtype=np.float32), rng.integers(0, 4, 12)
    bad = (rng.standard_normal((12, 1, 7, 7), dtype=np.float32), y) if "image" in where else (x, np.append(y[:-1], 4))
    fitted, held_out = ((x, y), bad) if "validation" in where else (bad, (x, y))
    with pytest.raises(ValueError, match="Linear.*must have shape" if "image" in where else "labels must lie in 0 ... 3, got 4"):
        nn.fit(model, *fitted, optimizer=nn.SGD(model, lr=0.1), validation=held_out, batch_size=4, epochs=1, progress=False)
    same(model, before)


def test_a_loss_that_is_not_finite_ends_the_run():
    model = nn.Linear(6, 2, rng=0)
    x, y = task()
    x[7] = np.nan
    with pytest.raises(FloatingPointError, match="epoch 1"):
        nn.fit(model, x, y, optimizer=nn.SGD(model, lr=0.1), progress=False, batch_size=60)
    same(model, nn.Linear(6, 2, rng=0))


# -- checkpoints ------------------------------------------------------------------------------------------------------------


def test_resume_ends_with_the_same_bits(tmp_path):
    """Two runs, one in two halves: parameters, statistics, moments, the dropout's and the order's generators, the schedule."""
    path = tmp_path / "run.npz"
    whole, optimizer, history = fitted(epochs=6, validation=0.2)
    fitted(epochs=3, validation=0.2, checkpoint=path)
    resumed, other, found = fitted(epochs=6, validation=0.2, checkpoint=path)
    same(whole, resumed)
    for key, array in optimizer.state_dict().items():
        np.testing.assert_array_equal(array, other.state_dict()[key])
    for name in ("loss", "accuracy", "val_loss", "val_accuracy", "lr"):
        assert getattr(found, name) == getattr(history, name)
    again = fitted(epochs=6, validation=0.2, checkpoint=path)
    same(whole, again[0])  # nothing is left to do
    assert len(fitted(epochs=1, validation=0.2, checkpoint=path, resume=False)[2]) == 1


KILLED = """
import sys, time
import numpy as np
from fastconv import nn
from fastconv.train.digits import digits_model, shifted

images, labels = nn.load_digits()
model = digits_model(0)
optimizer = nn.SGD(model, lr=0.05, momentum=0.9)
schedule = nn.CosineSchedule(optimizer, 40)
steps = [0]

def augment(batch, rng):
    steps[0] += 1
    if steps[0] == int(sys.argv[2]):
        print("now", flush=True)
        time.sleep(60)
    return shifted(batch, rng)

nn.fit(model, images[:160], labels[:160], optimizer=optimizer, schedule=schedule, epochs=4, batch_size=32, seed=3, validation=0.2,
       augment=augment, checkpoint=sys.argv[1], progress=False)
np.savez(sys.argv[1] + ".end.npz", **model.state_dict())
"""


def test_a_killed_run_goes_on_from_its_checkpoint(tmp_path):
    """Killed in the middle of its third epoch, then run again: the same bits as a run that was left alone."""
    script = tmp_path / "run.py"
    script.write_text(KILLED)

    environment = {**os.environ, "PYTHONPATH": str(Path(fastconv.__file__).parent.parent)}

    def command(name, step):
        return [sys.executable, str(script), str(tmp_path / name), str(step)]

    process = subprocess.Popen(command("killed.npz", 10), stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout.readline() == "now\n"
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert len(nn.load_checkpoint(tmp_path / "killed.npz")["history"]["loss"]) == 2
    subprocess.run(command("killed.npz", -1), check=True, env=environment)
    subprocess.run(command("alone.npz", -1), check=True, env=environment)
    ends = [np.load(tmp_path / f"{name}.npz.end.npz") for name in ("killed", "alone")]
    for key in ends[0].files:
        np.testing.assert_array_equal(ends[0][key], ends[1][key], err_msg=key, strict=True)


@pytest.fixture
def saved(tmp_path):
    model, optimizer, _ = fitted(epochs=1, checkpoint=tmp_path / "run.npz")
    return tmp_path / "run.npz", model, optimizer


@pytest.mark.parametrize("length", [0, 10, 500, -200, -1])
def test_truncated_checkpoints_change_nothing(length, saved):
    path, *_ = saved
    path.write_bytes(path.read_bytes()[:length])
    model = network(seed=7)
    optimizer = nn.Adam(model, lr=0.5)
    with pytest.raises(ValueError, match=r"run\.npz"):
        nn.load_checkpoint(path, model, optimizer)
    with pytest.raises(ValueError, match=r"run\.npz"):
        nn.fit(model, *task(), optimizer=optimizer, epochs=2, batch_size=16, checkpoint=path, progress=False)
    same(model, network(seed=7))
    assert (optimizer.lr, optimizer.steps) == (0.5, 0)


def test_checkpoints_of_something_else(saved, tmp_path):
    path, *_ = saved
    np.savez(tmp_path / "plain.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match="no checkpoint"):
        nn.load_checkpoint(tmp_path / "plain.npz", network())
    other = nn.Sequential(nn.Linear(6, 3, rng=0))
    with pytest.raises(ValueError, match="does not fit"):
        nn.load_checkpoint(path, other)
    same(other, nn.Sequential(nn.Linear(6, 3, rng=0)))
    model = network(seed=7)
    with pytest.raises(ValueError, match="does not fit"):  # the model fits, the optimizer does not
        nn.load_checkpoint(path, model, nn.RMSprop(model, lr=0.1))
    same(model, network(seed=7))
    with pytest.raises(ValueError, match="batch_size"):
        nn.fit(model, *task(), optimizer=nn.Adam(model, lr=0.1), batch_size=8, checkpoint=path, progress=False)
    with pytest.raises(FileNotFoundError):
        nn.load_checkpoint(tmp_path / "none.npz", model)


@pytest.mark.parametrize("kind", [np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64])
def test_checkpoints_hold_what_they_are_given(kind, tmp_path):
    generator = np.random.Generator(kind(3))
    generator.random(5)
    values = {"a": [1, 2.5, None, True, "text"], "b": {3: np.arange(4.0), "nested": {"x": np.float32(0.1)}}, "inf": float("inf")}
    nn.save_checkpoint(tmp_path / "x.npz", network(), values=values, generator=generator)
    expected = generator.random(3)
    other = np.random.Generator(kind(9))
    extra = nn.load_checkpoint(tmp_path / "x.npz", network(), generators={"generator": other})
    assert list(extra) == ["values"]
    found = extra["values"]
    assert found["a"] == values["a"] and found["inf"] == values["inf"]
    np.testing.assert_array_equal(found["b"][3], np.arange(4.0))
    assert np.float32(found["b"]["nested"]["x"]) == np.float32(0.1)
    np.testing.assert_array_equal(other.random(3), expected)
    with pytest.raises(TypeError, match="a checkpoint holds"):
        nn.save_checkpoint(tmp_path / "y.npz", network(), thing=object())
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]


# -- the rest -----------------------------------------------------------------------------------------------------------------


def test_predict_and_confusion():
    x, _ = task()
    model = network()
    np.testing.assert_allclose(nn.predict(model, x, batch_size=7), model(x), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="at least one"):
        nn.predict(model, x[:0])
    assert nn.confusion_matrix([0, 2, 2], [0, 2, 1], 4).tolist() == [[1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    assert nn.confusion_matrix([], []).shape == (0, 0)
    for labels, predicted, classes in (([0], [0, 1], None), ([5], [0], 3), ([-1], [0], 3)):
        with pytest.raises(ValueError, match="labels"):
            nn.confusion_matrix(labels, predicted, classes)


def test_the_digits_are_learned():
    outcome = digits.train(digits.Settings(epochs=8, progress=False))
    assert outcome.accuracy >= 0.97
    assert outcome.confusion.sum() == len(outcome.labels) == 359
    assert outcome.filters.shape == (32, 3, 3)
