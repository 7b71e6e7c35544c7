"""Optimizers against their published formulas in float64, and schedules; both against PyTorch's where it is installed."""

import math

import numpy as np
import pytest

import fastconv.nn as nn

STEPS = 7


def sgd(p, gradients, lr=1e-3, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False):
    b = None
    for g in gradients:
        g = g + weight_decay * p
        b = g if b is None else momentum * b + (1 - dampening) * g
        p = p - lr * (g + momentum * b if nesterov else b)
    return p


def adam(p, gradients, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, decoupled=False):
    m = v = 0
    for t, g in enumerate(gradients, 1):
        if decoupled:
            p = p - lr * weight_decay * p
        else:
            g = g + weight_decay * p
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
        p = p - lr * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
    return p


def adamw(p, gradients, weight_decay=0.01, **options):
    return adam(p, gradients, weight_decay=weight_decay, decoupled=True, **options)


def rmsprop(p, gradients, lr=1e-2, alpha=0.99, eps=1e-8, weight_decay=0.0, momentum=0.0):
    v = b = 0
    for g in gradients:
        g = g + weight_decay * p
        v = alpha * v + (1 - alpha) * g * g
        b = momentum * b + g / (np.sqrt(v) + eps)
        p = p - lr * b
    return p


CASES = [
    (nn.SGD, sgd, {"lr": 0.1}),
    (nn.SGD, sgd, {"lr": 0.1, "weight_decay": 0.2}),
    (nn.SGD, sgd, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    (nn.SGD, sgd, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    (nn.Adam, adam, {"lr": 0.1, "weight_decay": 0.1}),
    (nn.Adam, adam, {"betas": (0.5, 0.7), "eps": 1e-3}),
    (nn.AdamW, adamw, {"lr": 0.1}),
    (nn.RMSprop, rmsprop, {"weight_decay": 0.1}),
    (nn.RMSprop, rmsprop, {"lr": 0.1, "alpha": 0.5, "momentum": 0.8}),
]
ids = [f"{kind.__name__}-{'-'.join(options)}" for kind, _, options in CASES]


def run(kind, options, dtype, shape=(37, 11)):
    """A parameter before and after some steps, in place, and its gradients."""
    rng = np.random.default_rng(0)
    model = nn.Linear(shape[1], shape[0], bias=False, dtype=dtype, rng=1)
    array = model.weight
    start = array.astype(float)
    gradients = [rng.normal(size=shape).astype(dtype) for _ in range(STEPS)]
    optimizer = kind(model, **options)
    for gradient in gradients:
        model.zero_grad()
        model.grads["weight"] += gradient
        optimizer.step()
    assert model.weight is array
    return start, array, gradients


@pytest.mark.parametrize(("kind", "formula", "options"), CASES, ids=ids)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_formulas(kind, formula, options, dtype):
    start, array, gradients = run(kind, options, dtype)
    wanted = formula(start, [g.astype(float) for g in gradients], **options)
    np.testing.assert_allclose(array, wanted, rtol=0, atol=2e-5 if dtype == "float32" else 1e-13)


def test_large_parameters_in_threads():
    start, array, gradients = run(nn.Adam, {}, "float64", (301, 401))
    np.testing.assert_allclose(array, adam(start, gradients), atol=1e-13)


@pytest.mark.parametrize(("kind", "formula", "options"), CASES, ids=ids)
def test_as_pytorch(kind, formula, options):
    torch = pytest.importorskip("torch")
    start, array, gradients = run(kind, options, "float64")
    parameter = torch.nn.Parameter(torch.tensor(start))
    optimizer = getattr(torch.optim, kind.__name__)([parameter], **options)
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
    np.testing.assert_allclose(array, parameter.detach().numpy(), atol=1e-12)


@pytest.mark.parametrize(("kind", "formula", "options"), CASES, ids=ids)
def test_state_goes_on(kind, formula, options):
    """From a checkpoint, the next steps are those of a run without a break."""

    def stepped(optimizer, model, count, rng):
        for _ in range(count):
            model.grads["weight"] = rng.normal(size=(3, 2))
            model.grads["bias"] = rng.normal(size=3)
            optimizer.step()

    whole, first, second = (nn.Linear(2, 3, dtype="float64", rng=0) for _ in range(3))
    stepped(kind(whole, **options), whole, 6, np.random.default_rng(0))
    rng = np.random.default_rng(0)
    before = kind(first, **options)
    stepped(before, first, 3, rng)
    after = kind(second, **options)
    second.load_state_dict(first.state_dict())
    after.load_state_dict(before.state_dict())
    stepped(after, second, 3, rng)
    np.testing.assert_array_equal(second.weight, whole.weight)


def test_bad_state():
    model = nn.Linear(2, 3)
    optimizer = nn.Adam(model)
    model.grads["weight"] += 1
    optimizer.step()
    state = optimizer.state_dict()
    state["mean.weight"] = np.zeros((2, 2))
    del state["square.bias"]
    state["extra"] = 1
    with pytest.raises(ValueError, match=r"(?s)missing: square.bias.*unknown: extra.*mean.weight must have shape \(3, 2\), got \(2, 2\)"):
        optimizer.load_state_dict(state)
    assert optimizer.steps == 1


@pytest.mark.parametrize(("make", "message"), [
    (lambda model: nn.SGD(model, lr=-1), "lr must be at least 0"),
    (lambda model: nn.SGD(model, nesterov=True), "nesterov needs a momentum"),
    (lambda model: nn.Adam(model, betas=(1.0, 0.9)), r"betas\[0\] must be at least 0 and less than 1"),
    (lambda model: nn.Adam(model, weight_decay=math.nan), "weight_decay"),
])
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make(nn.Linear(1, 1))


SCHEDULES = [
    (lambda o: nn.StepSchedule(o, 3, 0.5), lambda t, o: t.StepLR(o, 3, 0.5)),
    (lambda o: nn.ExponentialSchedule(o, 0.9), lambda t, o: t.ExponentialLR(o, 0.9)),
    (lambda o: nn.CosineSchedule(o, 20, 0.01), lambda t, o: t.CosineAnnealingLR(o, 20, 0.01)),
    (lambda o: nn.WarmUpSchedule(o, 5, 0.1), lambda t, o: t.LinearLR(o, 0.1, 1.0, 5)),
    (lambda o: nn.OneCycleSchedule(o, 0.7, 20), lambda t, o: t.OneCycleLR(o, 0.7, 20)),
    (lambda o: nn.OneCycleSchedule(o, 0.7, 20, 0.5, 10, 100),
     lambda t, o: t.OneCycleLR(o, 0.7, 20, pct_start=0.5, div_factor=10, final_div_factor=100)),
]


@pytest.mark.parametrize(("own", "theirs"), SCHEDULES)
def test_schedules_as_pytorch(own, theirs):
    torch = pytest.importorskip("torch")
    optimizer = nn.SGD(nn.Linear(1, 1), lr=0.4)
    other = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4)
    schedule, peer = own(optimizer), theirs(torch.optim.lr_scheduler, other)
    for _ in range(19):
        assert optimizer.lr == pytest.approx(other.param_groups[0]["lr"], rel=1e-9)
        other.step()
        schedule.step()
        peer.step()


def test_schedule_goes_on():
    optimizer = nn.SGD(nn.Linear(1, 1), lr=0.4)
    schedule = nn.CosineSchedule(optimizer, 10)
    for _ in range(4):
        schedule.step()
    other = nn.SGD(nn.Linear(1, 1), lr=0.1)
    again = nn.CosineSchedule(other, 10)
    again.load_state_dict(schedule.state_dict())
    assert other.lr == optimizer.lr == pytest.approx(0.2 * (1 + math.cos(0.4 * math.pi)))
