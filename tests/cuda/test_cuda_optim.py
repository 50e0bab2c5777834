"""SGD on a GPU: all parameters in one launch, with their rates."""

import numpy as np
import pytest
from helpers import assert_close, normal

import tinyalex as ta
from tinyalex import nn, optim
from tinyalex.backends import cpu

SHAPES = (3, 4), (5,), (2, 3, 3, 2), ()
OPTIONS = [
    {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.9, "weight_decay": 0.1, "update": "paper"},
    {"weight_decay": 0.1},
]


def train(devices, arrays, **options):
    """Return the parameters after three steps, the n-th one on the n-th device."""
    starts, grads = arrays
    params = [
        nn.Parameter(ta.tensor(w, device=d).data) for w, d in zip(starts, devices, strict=True)
    ]
    sgd = optim.SGD(
        [
            {"params": params[:2], "lr": 0.5},
            {"params": params[2:], "lr_factor": 2, "decay_factor": 0},
        ],
        lr=0.1,
        **options,
    )
    for step in grads:
        sgd.param_groups[0]["lr"] /= 2
        for i, (p, grad) in enumerate(zip(params, step, strict=True)):
            p.grad = None if i == 1 and step is grads[0] else ta.tensor(grad, device=p.device).data
        sgd.step()
    return [p.detach().cpu().numpy() for p in params]


@pytest.fixture
def arrays(rng, dtype):
    """Return initial parameters and three steps of gradients."""
    draw = [[np.asarray(normal(rng, shape), dtype) for shape in SHAPES] for _ in range(4)]
    return draw[0], draw[1:]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("devices", [["cuda"] * 4, ["cuda", "cpu", "cpu", "cuda"]], ids=str)
def test_steps_are_those_on_the_cpu(cuda, arrays, dtype, devices, options):
    wanted = train(["cpu"] * 4, arrays, **options)
    for ours, theirs in zip(train(devices, arrays, **options), wanted, strict=True):
        assert_close(ours, theirs, 1e-6 if dtype == np.float32 else 1e-12)


def test_steps_on_another_device_than_the_current_one(standin, arrays, dtype):
    wanted = train(["cpu"] * 4, arrays, **OPTIONS[0])
    for ours, theirs in zip(train(["cuda:1"] * 4, arrays, **OPTIONS[0]), wanted, strict=True):
        assert_close(ours, theirs, 1e-6 if dtype == np.float32 else 1e-12)


def test_all_parameters_take_one_launch(cuda, arrays, monkeypatch):
    from tinyalex.backends.cuda import sgd

    launches = []
    real = sgd.launch
    monkeypatch.setattr(sgd, "launch", lambda *args: launches.append(args[1]) or real(*args))
    train(["cuda"] * 4, arrays, **OPTIONS[0])
    assert len(launches) == 3, "one for each of the three steps"


def test_a_refused_gradient_leaves_all_parameters_alone(cuda):
    for device in ("cpu", "cuda"):
        first, second = (nn.Parameter(ta.zeros(2).to(device).data) for _ in range(2))
        first.grad, second.grad = (ta.ones(2).to(device).data for _ in range(2))
        sgd = optim.SGD([first, second], lr=1)
        second._grad = ta.ones(3).to(device).data
        with pytest.raises(ValueError, match="gradient of shape"):
            sgd.step()
        assert first.detach().cpu().numpy().tolist() == [0, 0]


def test_the_cpu_updates_one_by_one(arrays, monkeypatch):
    """Its kernels run in parallel over one parameter's elements; there is no launch to save."""
    calls = []
    real = cpu.sgd_step
    monkeypatch.setattr(cpu, "sgd_step", lambda *args: calls.append(args[0].shape) or real(*args))
    train(["cpu"] * 4, arrays)
    assert calls[:3] == [SHAPES[0], *SHAPES[2:]]
