"""Sixty steps of a small network beside PyTorch's, where it is installed, and beside the numbers that PyTorch gave."""

import numpy as np
import pytest

import fastconv.nn as nn

LOSSES = [1.619316, 1.646163, 1.489637, 1.44486, 1.276423, 1.275665, 1.090497, 1.085502, 1.061568, 1.093519, 0.902424, 0.970211, 0.962325,
          0.919268, 0.81142, 0.872475, 0.850788, 0.770067, 0.748685, 0.753721, 0.746091, 0.71258, 0.671327, 0.679715, 0.675205, 0.651797,
          0.608902, 0.638428, 0.632988, 0.598183, 0.578166, 0.607147, 0.603986, 0.567078, 0.559062, 0.58277, 0.584144, 0.548923, 0.545523,
          0.565799, 0.570372, 0.537234, 0.53663, 0.554924, 0.561097, 0.529806, 0.531118, 0.548282, 0.555393, 0.525364, 0.527931, 0.544568,
          0.55236, 0.523046, 0.526352, 0.542844, 0.551124, 0.522136, 0.525801, 0.542331]
# key: sum of the parameter after the last step, and of its absolute values
PARAMETERS = {"0.weight": (0.985892, 9.342846), "0.bias": (0.222625, 1.217963), "1.weight": (6.820157, 6.820157),
              "1.bias": (0.378157, 0.48894), "1.running_mean": (0.201792, 1.201404), "1.running_var": (2.646901, 2.646901),
              "1.num_batches_tracked": (60.0, 60.0), "3.weight": (2.042669, 41.976101), "3.bias": (0.655413, 0.910919),
              "7.weight": (0.89738, 43.548815), "7.bias": (-0.259011, 0.559099)}
SHAPES = {"0.weight": (6, 1, 3, 3), "0.bias": (6,), "3.weight": (8, 6, 3, 3), "3.bias": (8,), "7.weight": (5, 72), "7.bias": (5,)}
FANS = {"0": 9, "3": 54, "7": 72}


def data():
    """Four batches of noise with a slope that tells the class."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 16, 1, 8, 8)).astype(np.float32)
    labels = rng.integers(0, 5, (4, 16))
    x += (np.arange(5)[labels] - 2)[:, :, None, None, None] * np.linspace(-1, 1, 8)[None, None, None, None, :].astype(np.float32)
    return x, labels


def weights():
    rng = np.random.default_rng(1)
    return {key: rng.uniform(-FANS[key[0]] ** -0.5, FANS[key[0]] ** -0.5, shape).astype(np.float32) for key, shape in SHAPES.items()}


def train():
    """The losses of the steps, and the model."""
    model = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2), nn.Tanh(),
                          nn.Flatten(), nn.Dropout(0.0), nn.Linear(72, 5))
    model.load_state_dict(model.state_dict() | weights())
    optimizer = nn.SGD(model, lr=0.05, momentum=0.9, weight_decay=1e-3, nesterov=True)
    schedule = nn.CosineSchedule(optimizer, 60)
    x, labels = data()
    losses = []
    for step in range(60):
        model.zero_grad()
        y, backprop = model.forward(x[step % 4])
        loss, gradient = nn.softmax_cross_entropy(y, labels[step % 4], label_smoothing=0.1)
        backprop(gradient)
        optimizer.step()
        schedule.step()
        losses.append(loss)
    return losses, model


def test_beside_stored_numbers():
    losses, model = train()
    np.testing.assert_allclose(losses, LOSSES, atol=1e-4)
    state = model.state_dict()
    for key, (total, size) in PARAMETERS.items():
        assert state[key].sum(dtype=float) == pytest.approx(total, abs=1e-4 * max(1, np.sqrt(state[key].size)))
        assert np.abs(state[key]).sum(dtype=float) == pytest.approx(size, abs=1e-4 * max(1, np.sqrt(state[key].size)))


def test_beside_pytorch():
    torch = pytest.importorskip("torch")
    peer = torch.nn.Sequential(torch.nn.Conv2d(1, 6, 3, padding=1), torch.nn.BatchNorm2d(6), torch.nn.ReLU(),
                               torch.nn.Conv2d(6, 8, 3, stride=2), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Dropout(0.0),
                               torch.nn.Linear(72, 5))
    state = peer.state_dict()
    state.update({key: torch.tensor(value) for key, value in weights().items()})
    peer.load_state_dict(state)
    optimizer = torch.optim.SGD(peer.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 60)
    x, labels = map(torch.tensor, data())
    theirs = []
    for step in range(60):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(peer(x[step % 4]), labels[step % 4], label_smoothing=0.1)
        loss.backward()
        optimizer.step()
        schedule.step()
        theirs.append(loss.item())
    losses, model = train()
    np.testing.assert_allclose(losses, theirs, atol=1e-4)
    for key, array in model.state_dict().items():
        np.testing.assert_allclose(array, peer.state_dict()[key].numpy(), atol=1e-4)
