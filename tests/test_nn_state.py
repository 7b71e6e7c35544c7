"""State dicts: PyTorch's keys and shapes, files, and errors that list everything and change nothing."""

import importlib.util
import os

import numpy as np
import pytest

import fastconv.nn as nn

NEEDED = pytest.mark.skipif(importlib.util.find_spec("safetensors") is None, reason="safetensors is not installed")
FORMATS = ["npz", pytest.param("safetensors", marks=NEEDED)]


def model(seed=0, layout="NCHW"):
    return nn.Sequential(nn.Conv2d(3, 4, (3, 2), rng=seed, layout=layout), nn.BatchNorm2d(4, layout=layout), nn.ReLU(),
                         nn.ConvTranspose2d(4, 2, 3, rng=seed, layout=layout), nn.Residual(nn.Linear(4, 4, rng=seed)))


def trained():
    made = model()
    made.forward(np.random.default_rng(0).normal(size=(2, 3, 4, 3)))
    return made


def test_keys_and_shapes():
    """As PyTorch's, in both layouts."""
    wanted = {"0.weight": (4, 3, 3, 2), "0.bias": (4,), "1.weight": (4,), "1.bias": (4,), "1.running_mean": (4,), "1.running_var": (4,),
              "1.num_batches_tracked": (), "3.weight": (4, 2, 3, 3), "3.bias": (2,), "4.branch.weight": (4, 4), "4.branch.bias": (4,)}
    for layout in ("NCHW", "NHWC"):
        assert {key: array.shape for key, array in model(layout=layout).state_dict().items()} == wanted


def test_round_trip():
    source, target = trained(), model(1, "NHWC")
    state = source.state_dict()
    target.load_state_dict(state)
    for key, array in target.state_dict().items():
        np.testing.assert_array_equal(array, state[key])
    state["0.weight"][:] = 7
    assert not (source[0].weight == 7).any() and not (target[0].weight == 7).any()


@pytest.mark.parametrize("kind", FORMATS)
def test_files(kind, tmp_path):
    path = tmp_path / "folder" / f"model.{kind}"
    nn.save(trained(), path)
    nn.save(trained(), str(path))
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    again = model(1)
    again.load_state_dict(nn.load(path))
    for key, array in trained().state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[key], array)
        assert again.state_dict()[key].dtype == array.dtype


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("keep", [0, 5, 100, -50])
def test_truncated_files(kind, keep, tmp_path):
    path = tmp_path / f"model.{kind}"
    nn.save(trained(), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=f"damaged or no .{kind} file"):
        nn.load(path)


def test_failed_saves_leave_the_old_file(tmp_path):
    path = tmp_path / "model.npz"
    nn.save(trained(), path)
    before = path.read_bytes()

    class Bad:
        def __array__(self, *arguments, **options):
            raise RuntimeError("no array")

    with pytest.raises(RuntimeError):
        nn.save({"a": Bad()}, path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ValueError, match=r"must end in .npz or .safetensors"):
        nn.save(trained(), tmp_path / "model.pt")
    with pytest.raises(FileNotFoundError):
        nn.load(tmp_path / "none.npz")


def test_everything_wrong_is_listed_and_nothing_changed():
    target = trained()
    before = target.state_dict()
    state = target.state_dict()
    del state["0.bias"], state["1.running_var"]
    state |= {"9.weight": np.zeros(1), "0.weight": np.zeros((4, 3, 3, 3)), "3.bias": np.array(["a", "b"])}
    with pytest.raises(ValueError) as error:
        target.load_state_dict(state)
    for line in ("missing: 0.bias", "missing: 1.running_var", "unknown: 9.weight", "misshapen: 0.weight must have shape (4, 3, 3, 2), got "
                 "(4, 3, 3, 3)", "not real numbers: 3.bias"):
        assert line in str(error.value)
    for key, array in target.state_dict().items():
        np.testing.assert_array_equal(array, before[key])


def test_pytorch_state_dict():
    torch = pytest.importorskip("torch")
    peer = torch.nn.Sequential(torch.nn.Conv2d(3, 4, (3, 2)), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.ConvTranspose2d(4, 2, 3))
    own = nn.Sequential(*list(model())[:4])
    own.load_state_dict(peer.state_dict())
    x = np.random.default_rng(0).normal(size=(2, 3, 6, 5)).astype(np.float32)
    np.testing.assert_allclose(own.forward(x)[0], peer(torch.tensor(x)).detach(), atol=1e-5)


@pytest.mark.skipif(os.name != "posix", reason="has no such permissions")
def test_files_may_be_read_by_whom_the_user_lets(tmp_path):
    """As any file that the process creates."""
    (tmp_path / "plain").touch()
    nn.save(trained(), tmp_path / "model.npz")
    assert (tmp_path / "model.npz").stat().st_mode == (tmp_path / "plain").stat().st_mode
