"""Data sets: the embedded digits, and files of MNIST and CIFAR that the tests write, whole and damaged."""

import gzip
import io
import os
import pickle
import struct
import tarfile

import numpy as np
import pytest

from fastconv import nn

CODES = {"u1": 0x08, "i1": 0x09, ">i2": 0x0B, ">i4": 0x0C, ">f4": 0x0D, ">f8": 0x0E}


def test_digits():
    images, labels = nn.load_digits()
    assert images.shape == (1797, 1, 8, 8) and images.dtype == np.float32
    assert (images.min(), images.max()) == (0, 1)
    np.testing.assert_array_equal(images * 16, np.rint(images * 16))
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert (images[0, 0, 0] * 16).tolist() == [0, 0, 5, 13, 9, 1, 0, 0]


def test_digits_come_with_their_attribution_and_are_small():
    from importlib import resources

    folder = resources.files("fastconv.nn") / "data"
    assert "Alpaydin" in (folder / "digits.txt").read_text()
    assert len((folder / "digits.npz").read_bytes()) < 60_000


# -- IDX ------------------------------------------------------------------------------------------------------------------


def idx(array: np.ndarray, code: str = "u1") -> bytes:
    return bytes([0, 0, CODES[code], array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(code).tobytes()


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("compressed", [False, True])
def test_idx_of_every_type(code, compressed, tmp_path):
    array = np.arange(24).reshape(2, 3, 4)
    content = idx(array, code)
    (tmp_path / "file").write_bytes(gzip.compress(content) if compressed else content)
    found = nn.read_idx(tmp_path / "file")
    assert found.dtype == np.dtype(code).newbyteorder("=")
    assert found.flags.writeable
    np.testing.assert_array_equal(found, array)


GOOD = idx(np.arange(12).reshape(3, 4))


@pytest.mark.parametrize(("content", "message"), [
    (b"", "no IDX file"), (b"\x89PNG\r\n\x1a\n", "no IDX file"), (bytes([0, 0, 7, 1]), "no IDX file"), (GOOD[:6], "truncated"),
    (GOOD[:-1], "truncated"), (GOOD + b"x", "too long"), (gzip.compress(GOOD)[:-9], "truncated or damaged"),
    (b"\x1f\x8bnonsense", "truncated or damaged"), (bytes([0, 0, 8, 3]) + b"\xff" * 12, "truncated")])
def test_damaged_idx(content, message, tmp_path):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        nn.read_idx(tmp_path / "file")
    assert str(tmp_path / "file") in str(error.value)


@pytest.mark.parametrize(("train", "mark", "end"), [(True, "-", ""), (False, "-", ".gz"), (True, ".", ".gz")])
def test_mnist(train, mark, end, tmp_path):
    images, labels = np.random.default_rng(0).integers(0, 256, (5, 28, 28)), np.array([3, 0, 9, 1, 1])
    part = "train" if train else "t10k"
    for name, array in ((f"images{mark}idx3", images), (f"labels{mark}idx1", labels)):
        content = idx(array)
        (tmp_path / f"{part}-{name}-ubyte{end}").write_bytes(gzip.compress(content) if end else content)
    x, y = nn.load_mnist(tmp_path, train=train)
    assert x.shape == (5, 1, 28, 28) and x.dtype == np.float32 and y.dtype == np.int64
    np.testing.assert_allclose(x[:, 0], images / 255, rtol=1e-6)
    np.testing.assert_array_equal(y, labels)
    np.testing.assert_array_equal(nn.load_mnist(tmp_path, train=train, dtype="uint8")[0][:, 0], images)


def test_mnist_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte"):
        nn.load_mnist(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(np.zeros((3, 2, 2))))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(2)))
    with pytest.raises(ValueError, match=r"\(3,\)"):
        nn.load_mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(3)))
    with pytest.raises(ValueError, match="dtype"):
        nn.load_mnist(tmp_path, dtype="int8")
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(np.zeros(3)))
    with pytest.raises(ValueError, match=r"\(N, H, W\)"):
        nn.load_mnist(tmp_path)


# -- CIFAR ----------------------------------------------------------------------------------------------------------------


def batch(count: int, classes: int = 10, seed: int = 0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 3072), dtype=np.uint8), rng.integers(0, classes, count).tolist()


def write(path, files: dict[str, bytes], form: str) -> str:
    """The files as a folder, or in an archive with a folder of its own as the originals have."""
    if form == "folder":
        for name, content in files.items():
            (path / name).write_bytes(content)
        return path
    target = path / "cifar.tar.gz"
    with tarfile.open(target, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-batches/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return target


@pytest.mark.parametrize("form", ["folder", "archive"])
@pytest.mark.parametrize("protocol", [0, 2, 4, 5, None])
def test_cifar10(form, protocol, tmp_path):
    """Pickles of every protocol, and the binary version where there is none."""
    batches = {f"data_batch_{i}": batch(4, seed=i) for i in range(1, 6)}
    batches["test_batch"] = batch(3, seed=9)
    files = {}
    for name, (images, labels) in batches.items():
        if protocol is None:
            files[f"{name}.bin"] = b"".join(bytes([label]) + row.tobytes() for label, row in zip(labels, images))
        else:
            files[name] = pickle.dumps({b"data": images, b"labels": labels, b"batch_label": b"one"}, protocol=protocol)
    path = write(tmp_path, files, form)
    x, y = nn.load_cifar10(path)
    assert x.shape == (20, 3, 32, 32) and x.dtype == np.float32 and y.dtype == np.int64
    np.testing.assert_allclose(x[4:8].reshape(4, -1), batches["data_batch_2"][0] / 255, rtol=1e-6)
    assert y[-4:].tolist() == batches["data_batch_5"][1]
    x, y = nn.load_cifar10(path, train=False, dtype="uint8")
    np.testing.assert_array_equal(x.reshape(3, -1), batches["test_batch"][0])


# What Python 2 with NumPy 1 wrote: a dictionary of texts, the array by numpy.core's function.
PYTHON_2 = (b"(dp0\nS'data'\np1\ncnumpy.core.multiarray\n_reconstruct\np2\n(cnumpy\nndarray\np3\n(I0\ntp4\nS'b'\np5\ntp6\nRp7\n"
            b"(I1\n(I1\nI3072\n"
            b"tp8\ncnumpy\ndtype\np9\n(S'u1'\np10\nI0\nI1\ntp11\nRp12\n(I3\nS'|'\np13\nNNNI-1\nI-1\nI0\ntp14\nbI00\nS'" + b"a" * 3072
            + b"'\np15\ntp16\nbsS'labels'\np17\n(lp18\nI6\nas.")


def test_cifar_pickle_of_python_2(tmp_path):
    (tmp_path / "test_batch").write_bytes(PYTHON_2)
    x, y = nn.load_cifar10(tmp_path, train=False, dtype="uint8")
    assert x.shape == (1, 3, 32, 32) and (x == ord("a")).all() and y.tolist() == [6]


@pytest.mark.parametrize("binary", [False, True])
def test_cifar100(binary, tmp_path):
    images, fine = batch(6, 100)
    coarse = batch(6, 20, seed=1)[1]
    if binary:
        files = {"train.bin": b"".join(bytes([c, f]) + row.tobytes() for c, f, row in zip(coarse, fine, images))}
    else:
        files = {"train": pickle.dumps({"data": images, "fine_labels": fine, "coarse_labels": coarse})}
    path = write(tmp_path, files, "archive")
    x, y = nn.load_cifar100(path, dtype="uint8")
    np.testing.assert_array_equal(x.reshape(6, -1), images)
    assert y.tolist() == fine
    assert nn.load_cifar100(path, coarse=True)[1].tolist() == coarse
    with pytest.raises(FileNotFoundError, match="test"):
        nn.load_cifar100(path, train=False)


class Harm:
    """A pickle of it calls `os.mkdir` when it is loaded carelessly."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_pickles_run_nothing(tmp_path):
    images, labels = batch(2)
    for key, value in (("data", Harm(tmp_path / "harm")), ("other", Harm(tmp_path / "harm"))):
        (tmp_path / "test_batch").write_bytes(pickle.dumps({"data": images, "labels": labels, key: value}))
        with pytest.raises(ValueError, match="safety"):
            nn.load_cifar10(tmp_path, train=False)
        assert not (tmp_path / "harm").exists()


WHOLE = pickle.dumps({"data": batch(2)[0], "labels": batch(2)[1]})


@pytest.mark.parametrize("content", [
    b"", b"nonsense", WHOLE[:100], WHOLE[:-1], pickle.dumps([1, 2]), pickle.dumps({"data": 3, "labels": [1]}),
    pickle.dumps({"data": batch(2)[0], "labels": [1]}), pickle.dumps({"data": batch(2)[0], "labels": ["a", "b"]}),
    pickle.dumps({"data": batch(2)[0][:, :5], "labels": [1, 2]}), pickle.dumps({"data": np.zeros((2, 3072)), "labels": [1, 2]}),
    pickle.dumps({"data": batch(2)[0].astype(object), "labels": [1, 2]}), pickle.dumps({"data": batch(2)[0], "labels": [1, 10]})])
def test_damaged_pickles(content, tmp_path):
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(ValueError, match="test_batch"):
        nn.load_cifar10(tmp_path, train=False)


def test_other_damage(tmp_path):
    (tmp_path / "test_batch.bin").write_bytes(bytes(3072))
    with pytest.raises(ValueError, match="3073"):
        nn.load_cifar10(tmp_path, train=False)
    path = write(tmp_path, {"test_batch.bin": os.urandom(3073 * 9)}, "archive")
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(ValueError, match="truncated or damaged"):
        nn.load_cifar10(path, train=False)
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match="truncated or damaged"):
        nn.load_cifar10(path)
    with pytest.raises(FileNotFoundError):
        nn.load_cifar10(tmp_path / "nowhere")
