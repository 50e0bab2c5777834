"""SGD: by hand, against torch, its groups, its state, its refusals."""

import copy
import itertools

import numpy as np
import pytest
from helpers import LAYOUTS, assert_close, normal

import tinyalex as ta
from tinyalex import nn, optim
from tinyalex.models import VARIANTS


def parameter(values, dtype=np.float64):
    return nn.Parameter(np.array(values, dtype))


@pytest.mark.parametrize(
    ("update", "path"),
    [
        # v and w after each step; notes: v2 = -0.9 * 0.051 - 0.1 * 0.01 * 0.949 - 0.05
        ("paper", [(-0.051, 0.949), (-0.096849, 0.852151), (-0.138016251, 0.714134749)]),
        ("torch", [(0.51, 0.949), (0.96849, 0.852151), (1.38016251, 0.714134749)]),
    ],
)
def test_three_steps_by_hand(backend, update, path):
    w = parameter([1.0])
    sgd = optim.SGD([w], lr=0.1, momentum=0.9, weight_decay=0.01, update=update)
    for velocity, weight in path:
        w.grad = np.array([0.5])
        sgd.step()
        assert sgd.state_dict()["velocity"][0] == pytest.approx([velocity], rel=1e-12)
        assert w.data == pytest.approx([weight], rel=1e-12)
        assert w.grad == [0.5]  # the gradient is the caller's


def test_three_steps_of_a_bias_by_hand(backend):
    """In the 2012 source biases have twice the rate and no decay: v = 0.9 v - 2 * 0.01 * 0.5."""
    net = nn.Linear(1, 1).to(np.float64)
    net.weight.data[...] = net.bias.data[...] = 1.0
    sgd = VARIANTS["source2012"].recipe.optimizer(net)
    path = [
        # weight: v - 0.0005 * 0.01 * w - 0.01 * 0.5; bias: v - 0.02 * 0.5
        (0.994995, 0.99),
        (0.985485525025, 0.971),
        (0.971922070119874875, 0.9439),
    ]
    for weight, bias in path:
        net.weight.grad, net.bias.grad = np.array([[0.5]]), np.array([0.5])
        sgd.step()
        assert net.weight.data.ravel() == pytest.approx([weight], rel=1e-12)
        assert net.bias.data == pytest.approx([bias], rel=1e-12)


def test_the_two_forms_part_when_the_rate_changes():
    """After lr 1 -> 0.1 torch's old velocity counts for a tenth, the paper's in full."""
    found = {}
    for update in optim.UPDATES:
        w = parameter([0.0])
        sgd = optim.SGD([w], lr=1.0, momentum=0.5, update=update)
        for lr, grad in ((1.0, 1.0), (0.1, 0.0)):
            sgd.param_groups[0]["lr"] = lr
            w.grad = np.array([grad])
            sgd.step()
        found[update] = w.data[0]
    assert found == pytest.approx({"torch": -1.05, "paper": -1.5})


OPTIONS = [
    {"momentum": m, "dampening": d, "weight_decay": wd, "nesterov": n}
    for m, d, wd, n in itertools.product((0, 0.9), (0, 0.3), (0, 0.1), (False, True))
    if not n or (m and not d)
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_torch_takes_the_same_path(backend, dtype, rng, options):
    torch = pytest.importorskip("torch")
    start = [normal(rng, shape, dtype) for shape in ((3, 4), (5,), (2,))]
    ours = [nn.Parameter(w.copy()) for w in start]
    theirs = [torch.nn.Parameter(torch.from_numpy(w.copy())) for w in start]
    mine = optim.SGD(ours, lr=0.1, **options)
    reference = torch.optim.SGD(theirs, lr=0.1, **options)
    for step in range(5):
        for i, (p, q) in enumerate(zip(ours, theirs, strict=True)):
            grad = normal(rng, p.shape, dtype)
            absent = (i == 1 and step in (0, 3)) or i == 2  # late, interrupted, never
            p.grad = None if absent else grad
            q.grad = None if absent else torch.from_numpy(grad.copy())
        mine.step()
        reference.step()
        for p, q in zip(ours, theirs, strict=True):
            assert_close(p.data, q.detach().numpy(), 1e-14 if dtype == np.float64 else 1e-6)
    assert (ours[2].data == start[2]).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_gradients_layout_in_memory_does_not_matter(backend, rng, layout):
    grad = LAYOUTS[layout](normal(rng, (4, 3, 2, 5)))
    p, q = parameter(np.ones(grad.shape)), parameter(np.ones(grad.shape))
    p.grad, q.grad = grad, np.ascontiguousarray(grad)
    for each in (p, q):
        optim.SGD([each], 0.1, 0.9, weight_decay=0.1).step()
    assert_close(p.data, q.data)


def test_groups_have_their_own_options_and_factors():
    a, b, c = (parameter([1.0]) for _ in range(3))
    sgd = optim.SGD(
        [
            {"params": [a]},
            {"params": b, "lr": 0.5, "weight_decay": 0},
            {"params": [c], "lr_factor": 2, "decay_factor": 0.5},
        ],
        lr=0.1,
        weight_decay=0.2,
    )
    for p in (a, b, c):
        p.grad = np.array([1.0])
    sgd.step()
    assert a.data == pytest.approx([1 - 0.1 * (1 + 0.2)])
    assert b.data == pytest.approx([1 - 0.5 * 1])
    assert c.data == pytest.approx([1 - 0.2 * (1 + 0.1)])
    assert [group["lr"] for group in sgd.param_groups] == [0.1, 0.5, 0.1]


def test_parameter_groups_divide_weights_from_biases():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(2, 3, bias=False), nn.Linear(3, 1))
    weights, biases = optim.parameter_groups(net, bias_lr_factor=2, bias_decay_factor=0)
    assert [p.ndim for p in weights["params"]] == [4, 2, 2]
    assert [p.shape for p in biases["params"]] == [(2,), (1,)]
    groups = optim.SGD([weights, biases], lr=1).param_groups
    assert [(g["lr_factor"], g["decay_factor"]) for g in groups] == [(1, 1), (2, 0)]


def test_zero_grad():
    p = parameter([1.0])
    sgd = optim.SGD([p], lr=1)
    p.grad = np.array([3.0])
    sgd.zero_grad(set_to_none=False)
    assert p.grad == [0]
    sgd.zero_grad()
    assert p.grad is None


def test_it_learns():
    """A line through noiseless points is found exactly."""
    layer = nn.Linear(2, 1)
    x = ta.randn(64, 2)
    y = x @ ta.tensor([[2.0], [-1.0]]) + 0.5
    sgd = optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    for _ in range(200):
        sgd.zero_grad()
        ((layer(x) - y) ** 2).mean().backward()
        sgd.step()
    assert_close(layer.weight.data, [[2, -1]], 1e-4)
    assert_close(layer.bias.data, [0.5], 1e-4)


# --- state --------------------------------------------------------------------------------------


def steps(sgd, params, grads):
    for step in grads:
        for p, grad in zip(params, step, strict=True):
            p.grad = grad
        sgd.step()


@pytest.mark.parametrize("update", optim.UPDATES)
def test_resuming_equals_never_stopping(rng, tmp_path, update):
    start = [normal(rng, (3, 4), np.float32), normal(rng, (5,), np.float32)]
    grads = [[normal(rng, w.shape, np.float32) for w in start] for _ in range(6)]
    grads[2][1] = grads[0][1] = None  # the second parameter's velocity begins in step 1
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "update": update}
    whole = [nn.Parameter(w.copy()) for w in start]
    steps(optim.SGD(whole, **options), whole, grads)
    for cut in range(7):
        params = [nn.Parameter(w.copy()) for w in start]
        first = optim.SGD(params, **options)
        steps(first, params, grads[:cut])
        ta.save(first.state_dict(), tmp_path / "state")
        second = optim.SGD(params, lr=7, update=update)  # every option comes from the state
        second.load_state_dict(ta.load(tmp_path / "state"))
        steps(second, params, grads[cut:])
        for p, q in zip(params, whole, strict=True):
            assert p.data.tobytes() == q.data.tobytes()


def test_state_shares_no_memory(rng):
    p = parameter(normal(rng, (3,)))
    sgd = optim.SGD([p], lr=0.1, momentum=0.9)
    steps(sgd, [p], [[np.ones(3)]])
    state = sgd.state_dict()
    before = copy.deepcopy(state)
    steps(sgd, [p], [[np.ones(3)]])
    assert (state["velocity"][0] == before["velocity"][0]).all()
    sgd.load_state_dict(state)
    steps(sgd, [p], [[np.ones(3)]])
    assert (state["velocity"][0] == before["velocity"][0]).all()


def _without(key):
    return lambda state: state["param_groups"][0].pop(key)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s.pop("velocity"), "not the state of an SGD"),
        (_without("momentum"), "not the state of an SGD.*momentum"),
        (lambda s: s["velocity"].pop(), "groups of .2.*1 velocities"),
        (lambda s: s["param_groups"].append(s["param_groups"][0]), "groups of .2, 2"),
        (lambda s: s["velocity"].reverse(), r"velocity 0 .*\(2,\).*\(3,\)"),
        (lambda s: s["velocity"].__setitem__(0, np.zeros(3, np.float32)), "velocity 0 is float32"),
        (lambda s: s["param_groups"][0].update(lr=float("nan")), "lr.*nan"),
        (lambda s: s["param_groups"][0].update(update="adam"), "update.*'adam'"),
    ],
)
def test_another_optimisers_state_is_refused_and_changes_nothing(damage, message):
    params = [parameter([1.0, 2.0, 3.0]), parameter([4.0, 5.0])]
    sgd = optim.SGD(params, lr=0.1, momentum=0.9)
    steps(sgd, params, [[np.ones(3), np.ones(2)]])
    before = sgd.state_dict()
    state = copy.deepcopy(before)
    state["param_groups"][0]["lr"] = 0.7
    damage(state)
    with pytest.raises(ValueError, match=message):
        sgd.load_state_dict(state)
    after = sgd.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for v, w in zip(after["velocity"], before["velocity"], strict=True):
        assert (v == w).all()


# --- refusals -----------------------------------------------------------------------------------

W = parameter([1.0])


@pytest.mark.parametrize(
    ("params", "options", "error", "message"),
    [
        ([W], {"lr": -0.1}, ValueError, "lr must be a finite number >= 0, got -0.1"),
        ([W], {"lr": float("nan")}, ValueError, "lr.*nan"),
        ([W], {"lr": float("inf")}, ValueError, "lr.*inf"),
        ([W], {"lr": "0.1"}, TypeError, "lr must be a number, got '0.1'"),
        ([W], {"lr": 1, "momentum": -1}, ValueError, "momentum"),
        ([W], {"lr": 1, "momentum": float("nan")}, ValueError, "momentum"),
        ([W], {"lr": 1, "weight_decay": -1}, ValueError, "weight_decay"),
        ([W], {"lr": 1, "dampening": float("nan")}, ValueError, "dampening"),
        ([W], {"lr": 1, "nesterov": True}, ValueError, "nesterov needs a momentum"),
        (
            [W],
            {"lr": 1, "momentum": 0.9, "dampening": 0.1, "nesterov": True},
            ValueError,
            "nesterov needs a momentum.*dampening=0.1",
        ),
        ([W], {"lr": 1, "update": "adam"}, ValueError, "update must be one of.*'adam'"),
        (
            [W],
            {"lr": 1, "momentum": 0.9, "nesterov": True, "update": "paper"},
            ValueError,
            "neither nesterov nor dampening",
        ),
        ([], {"lr": 1}, ValueError, "params is empty"),
        (W, {"lr": 1}, TypeError, "list of parameters"),
        ([np.zeros(3)], {"lr": 1}, TypeError, "expected a parameter, got ndarray"),
        ([W, W], {"lr": 1}, ValueError, "given twice"),
        ([{"params": [W]}, {"params": [W]}], {"lr": 1}, ValueError, "given twice"),
        ([W * 2], {"lr": 1}, ValueError, "computed from others"),
        ([{"lr": 1}], {"lr": 1}, TypeError, "dictionary with 'params'"),
        ([{"params": [W], "rate": 1}], {"lr": 1}, ValueError, "unknown options.*rate"),
        ([{"params": [W], "lr_factor": -2}], {"lr": 1}, ValueError, "lr_factor"),
        ([{"params": [W], "lr": -2}], {"lr": 1}, ValueError, "lr must"),
    ],
)
def test_bad_options_are_refused(params, options, error, message):
    with pytest.raises(error, match=message):
        optim.SGD(params, **options)


def test_a_velocity_that_does_not_fit_is_refused():
    net = nn.Linear(2, 1, bias=False).to(np.float64)
    sgd = optim.SGD(net.parameters(), lr=1, momentum=0.9)
    steps(sgd, [net.weight], [[np.ones((1, 2))]])
    net.to(np.float32)
    with pytest.raises(ValueError, match="velocity is float64 and its parameter float32"):
        sgd.step()


def test_repr_names_the_options():
    text = repr(optim.SGD([W], lr=0.5, update="paper"))
    assert "group 0: 1 parameters, lr=0.5, momentum=0" in text
    assert "update=paper" in text


def test_a_refused_gradient_begins_no_velocity():
    """The first step after the mistake is mended is a first step still: without dampening."""
    good, bad = nn.Parameter(np.ones(2)), nn.Parameter(np.ones(2))
    sgd = optim.SGD([good, bad], lr=1.0, momentum=0.9, dampening=0.5)
    good.grad, bad.grad = np.ones(2), np.ones(2)
    bad.grad.shape = (2, 1)
    with pytest.raises(ValueError, match="has a gradient of shape"):
        sgd.step()
    bad.grad.shape = (2,)
    sgd.step()
    assert good.data.tolist() == bad.data.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("name", ["lr", "lr_factor", "weight_decay", "momentum", "dampening"])
def test_options_beyond_the_dtype(name):
    """What float32 cannot hold is refused before anything changes, as in torch, or rounds to 0."""
    p = nn.Parameter(np.ones(2, np.float32))
    p.grad = np.ones(2, np.float32)
    optimiser = optim.SGD([{"params": [p], name: 1e60}], lr=1)
    with pytest.raises(ValueError, match=f"{name}.* is 1e\\+60, but a parameter of float32"):
        optimiser.step()
    assert (p.data == 1).all()
    optimiser.param_groups[0][name] = 1e-60
    optimiser.step()
    assert np.isfinite(p.data).all()
    wide = nn.Parameter(np.ones(2))
    wide.grad = np.ones(2)
    optim.SGD([{"params": [wide], name: 1e60}], lr=1).step()
    assert np.isfinite(wide.data).all()
