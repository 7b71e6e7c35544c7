"""The models: shapes, backward passes, names in the state dicts, directional derivatives."""

import numpy as np
import pytest

from fastconv import nn

SMALL = {
    "lenet5": (lambda: nn.lenet5(rng=0), (2, 1, 28, 28), (2, 10)),
    "small_vgg": (lambda: nn.small_vgg(widths=(4, 8), size=16, dropout=0, rng=0), (2, 3, 16, 16), (2, 10)),
    "small_vgg with norms": (lambda: nn.small_vgg(5, widths=(4, 8), size=16, batch_norm=True, dropout=0, rng=0), (4, 3, 16, 16), (4, 5)),
    "resnet18": (lambda: nn.resnet18(10, width=4, rng=0), (4, 3, 64, 64), (4, 10)),
    "mobilenet_v2": (lambda: nn.mobilenet_v2(7, blocks=[(1, 8, 1, 1), (6, 12, 2, 2)], last=32, dropout=0, rng=0), (4, 3, 32, 32), (4, 7)),
    "inception_block": (lambda: nn.inception_block(6, 4, 3, 5, 2, 3, 4, rng=0), (2, 6, 9, 9), (2, 16, 9, 9)),
}


@pytest.mark.parametrize("name", SMALL)
def test_forward_and_backward(name):
    """Every parameter gets a gradient, and a small step against all of them changes the loss by what they say."""
    make, shape, out = SMALL[name]
    model = make()
    rng = np.random.default_rng(1)
    x = rng.standard_normal(shape, dtype=np.float32)
    direction = rng.standard_normal(out, dtype=np.float32) / np.sqrt(np.prod(out))

    def loss():
        y, backprop = model.forward(x)
        assert y.shape == out and y.dtype == np.float32
        return float((y.astype(float) * direction).sum()), backprop

    model.zero_grad()
    value, backprop = loss()
    assert backprop(direction.astype(np.float32)).shape == shape
    parameters = list(model.named_parameters())
    squares = sum(float((p.grads[p.key].astype(float) ** 2).sum()) for p in parameters)
    assert all(np.isfinite(p.grads[p.key]).all() and p.grads[p.key].any() for p in parameters if p.key == "weight")
    step = 1e-3 * max(abs(value), 0.1) / squares  # the loss changes by about a thousandth
    values = []
    for sign in (1, -1):
        for p in parameters:
            p.params[p.key] += np.float32(sign * step) * p.grads[p.key]
        values.append(loss()[0])
        for p in parameters:
            p.params[p.key] -= np.float32(sign * step) * p.grads[p.key]
    assert (values[0] - values[1]) / (2 * step * squares) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("name", SMALL)
def test_inference_and_fused(name):
    make, shape, out = SMALL[name]
    model = make()
    x = np.random.default_rng(2).standard_normal(shape, dtype=np.float32)
    model.forward(x)  # the running statistics move
    y = model(x)
    assert y.shape == out
    scale = np.abs(y).max()
    assert np.abs(model.fuse()(x) - y).max() <= 1e-4 * scale


def count(model):
    return sum(p.params[p.key].size for p in model.named_parameters())


def test_sizes_and_names():
    """Parameters as counted by torchvision, and some of its names."""
    assert count(nn.lenet5()) == 61_706
    resnet = nn.resnet18()
    assert count(resnet) == 11_689_512
    keys = list(resnet.state_dict())
    assert len(keys) == 122
    assert keys[:6] == ["conv1.weight", "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var", "bn1.num_batches_tracked"]
    assert {"layer1.0.conv1.weight", "layer2.0.downsample.0.weight", "layer2.0.downsample.1.running_var", "layer4.1.bn2.bias",
            "fc.weight", "fc.bias"} <= set(keys)
    mobilenet = nn.mobilenet_v2()
    assert count(mobilenet) == 3_504_872
    keys = list(mobilenet.state_dict())
    assert len(keys) == 314
    assert {"features.0.0.weight", "features.1.conv.0.0.weight", "features.1.conv.1.weight", "features.2.conv.1.1.running_mean",
            "features.3.conv.2.weight", "features.3.conv.3.bias", "features.18.0.weight", "classifier.1.bias"} <= set(keys)
    keys = list(nn.inception_block(4, 1, 1, 1, 1, 1, 1).state_dict())
    assert {"branch1.conv.weight", "branch2.1.bn.bias", "branch4.1.conv.weight"} <= set(keys)


def test_state_dicts_go_round():
    for seed, make in enumerate((lambda rng: nn.resnet18(3, width=2, rng=rng), lambda rng: nn.small_vgg(widths=(2,), size=8, rng=rng))):
        model, other = make(seed), make(seed + 10)
        other.load_state_dict(model.state_dict())
        for key, array in model.state_dict().items():
            np.testing.assert_array_equal(array, other.state_dict()[key])


def test_seeds():
    a, b = (nn.lenet5(rng=4).state_dict() for _ in range(2))
    assert all((a[key] == b[key]).all() for key in a)
