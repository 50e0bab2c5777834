"""Modules: tree, state, arguments, printed form, and initial weights."""

import copy
import math
import pickle
import weakref
from collections import OrderedDict

import numpy as np
import pytest
from helpers import assert_close, normal

import tinyalex as ta
import tinyalex.functional as F
from tinyalex import nn


class Net(nn.Module):
    """Two layers, one of them in a sub-module, and a parameter of its own."""

    def __init__(self):
        self.scale = nn.Parameter(np.ones(1, np.float32))
        self.body = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Dropout())
        self.head = nn.Linear(3, 4, bias=False)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)) * self.scale)


NAMES = ["scale", "body.0.weight", "body.0.bias", "head.weight"]


# --- the tree -----------------------------------------------------------------------------------


def test_names_follow_the_attributes_in_order():
    net = Net()
    assert [name for name, _ in net.named_parameters()] == NAMES
    assert [name for name, _ in net.named_parameters(prefix="net")] == [f"net.{n}" for n in NAMES]
    assert [name for name, _ in net.named_parameters(recurse=False)] == ["scale"]
    modules = ["", "body", "body.0", "body.1", "body.2", "head"]
    assert [name for name, _ in net.named_modules()] == modules
    assert [name for name, _ in net.named_children()] == ["body", "head"]
    assert list(net.children()) == [net.body, net.head]


def test_replacing_and_deleting_an_attribute_changes_the_tree():
    net = Net()
    net.head = nn.Linear(3, 2)
    assert [name for name, _ in net.named_parameters()] == [*NAMES, "head.bias"]
    del net.body
    assert [name for name, _ in net.named_parameters()] == ["scale", "head.weight", "head.bias"]


def test_a_shared_parameter_is_listed_once_and_saved_under_both_names():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    assert [name for name, _ in net.named_parameters()] == ["0.weight", "0.bias", "1.bias"]
    assert list(net.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    twice = nn.Sequential(net[0], net[0])
    assert len(list(twice.parameters())) == 2
    assert len(list(twice.modules())) == 2
    assert len(list(twice.named_modules(remove_duplicate=False))) == 3


def test_train_and_eval_reach_every_module():
    net = Net()
    assert all(m.training for m in net.modules())
    assert net.eval() is net
    assert not any(m.training for m in net.modules())
    assert all(m.training for m in net.train().modules())
    with pytest.raises(ValueError, match=r"True or False, got 'yes'"):
        net.train("yes")


def test_gradients_reach_parameters_and_are_dropped():
    net = Net().eval()
    net(ta.randn(2, 2, 5, 5)).sum().backward()
    assert all(p.grad.shape == p.shape and np.abs(p.grad).max() > 0 for p in net.parameters())
    net.zero_grad(set_to_none=False)
    assert all((p.grad == 0).all() for p in net.parameters())
    net.zero_grad()
    assert all(p.grad is None for p in net.parameters())


def test_frozen_parameters_get_no_gradient():
    net = Net().eval()
    net.body.requires_grad_(False)
    net(ta.randn(2, 2, 5, 5)).sum().backward()
    assert [n for n, p in net.named_parameters() if p.grad is not None] == ["scale", "head.weight"]


def test_to_converts_parameters_and_gradients_in_place():
    net = Net().eval()
    weight = net.head.weight
    net(ta.randn(2, 2, 5, 5)).sum().backward()
    before = weight.grad.copy()
    assert net.to(np.float64) is net
    assert net.head.weight is weight
    assert {(p.dtype, p.grad.dtype) for p in net.parameters()} == {(np.dtype(np.float64),) * 2}
    assert_close(weight.grad, before.astype(np.float64))
    assert net(ta.randn(1, 2, 5, 5, dtype=np.float64)).dtype == np.float64
    with pytest.raises(TypeError, match="int64"):
        net.to(np.int64)
    assert weight.dtype == np.float64


def test_apply_visits_children_first():
    visited = []
    net = Net()
    assert net.apply(lambda m: visited.append(type(m).__name__)) is net
    assert visited == ["Conv2d", "ReLU", "Dropout", "Sequential", "Linear", "Net"]


def test_forward_hooks_see_and_may_replace_the_output():
    layer, seen = nn.ReLU(), []
    x = ta.tensor([-1.0, 2.0])
    with layer.register_forward_hook(lambda m, args, out: seen.append((m, args[0], out.numpy()))):
        layer(x)
    layer(x)
    assert len(seen) == 1
    assert seen[0][0] is layer
    assert seen[0][1] is x
    assert seen[0][2].tolist() == [0, 2]

    first = layer.register_forward_hook(lambda m, args, out: out + 1)
    layer.register_forward_hook(lambda m, args, out: out * 10)
    assert layer(x).numpy().tolist() == [10, 30]
    first.remove()
    first.remove()
    assert layer(x).numpy().tolist() == [0, 20]
    assert nn.ReLU()(x).numpy().tolist() == [0, 2]
    with pytest.raises(TypeError, match="callable"):
        layer.register_forward_hook("print")


def add_one(module, args, output):
    return output + 1


def twice(module, args, output):
    return output * 2


def test_a_handle_removes_its_own_registration_and_no_other():
    layer, x = nn.ReLU(), ta.tensor([1.0])
    handles = [layer.register_forward_hook(hook) for hook in (add_one, twice, add_one, twice)]
    expected = {(): 10, (2,): 8, (2, 0): 4, (2, 0, 0): 4, (2, 0, 0, 3): 2, (2, 0, 0, 3, 1): 1}
    removed = ()
    for position in (None, 2, 0, 0, 3, 1):
        if position is not None:
            handles[position].remove()
            removed += (position,)
        assert layer(x).item() == expected[removed]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_has_registrations_of_its_own(copied):
    x, network = ta.tensor([1.0]), nn.Sequential(nn.ReLU())
    handles = [network[0].register_forward_hook(add_one) for _ in range(2)]
    other, other_handles = copied((network, handles))
    alone = copied(network)
    handles[0].remove()
    assert [net(x).item() for net in (network, other, alone)] == [2, 3, 3]
    other_handles[1].remove()
    other_handles[0].remove()
    assert [net(x).item() for net in (network, other, alone)] == [2, 1, 3]
    alone[0].register_forward_hook(add_one)  # is one more, whatever the copy brought along
    assert alone(x).item() == 4


def test_hooks_added_or_removed_by_a_hook_count_from_the_next_call():
    layer, x, handles = nn.ReLU(), ta.tensor([1.0]), []

    def replace(module, args, output):
        handles.pop().remove()
        module.register_forward_hook(twice)

    layer.register_forward_hook(replace)
    handles.append(layer.register_forward_hook(add_one))
    assert layer(x).item() == 2
    handles.append(layer.register_forward_hook(add_one))
    assert layer(x).item() == 3  # twice 1, plus one


def test_a_module_with_hooks_is_freed_at_once():
    layer = nn.ReLU()
    layer.register_forward_hook(add_one)
    alive = weakref.ref(layer)
    del layer
    assert alive() is None


def test_a_module_must_define_forward():
    with pytest.raises(NotImplementedError, match="Module must define forward"):
        nn.Module()(1)


# --- Sequential ---------------------------------------------------------------------------------


def test_sequential_is_a_list_of_layers():
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU()).append(nn.Linear(3, 1))
    x = ta.randn(4, 2)
    assert len(net) == 3
    assert [type(layer).__name__ for layer in net] == ["Linear", "ReLU", "Linear"]
    assert net[-1] is net[2]
    assert list(net[:2].state_dict()) == ["0.weight", "0.bias"]
    assert net[1:][1] is net[2]
    assert_close(net(x).data, net[2](F.relu(net[0](x))).data)
    named = nn.Sequential(OrderedDict(fc=nn.Linear(2, 3), act=nn.ReLU()))
    assert list(named.state_dict()) == ["fc.weight", "fc.bias"]
    assert named(x).shape == (4, 3)


@pytest.mark.parametrize(
    ("name", "module", "error", "message"),
    [
        ("a.b", nn.ReLU(), ValueError, "dot"),
        ("", nn.ReLU(), ValueError, "empty"),
        ("forward", nn.ReLU(), ValueError, "'forward'.*attribute"),
        ("act", np.tanh, TypeError, "Module for 'act', got ufunc"),
    ],
)
def test_add_module_refuses(name, module, error, message):
    with pytest.raises(error, match=message):
        nn.Module().add_module(name, module)


# --- weights in and out -------------------------------------------------------------------------


def test_state_dict_round_trip_copies():
    source, target = Net(), Net()
    state = source.state_dict()
    assert list(state) == NAMES
    assert target.load_state_dict(state) == ([], [])
    for name, p in target.named_parameters():
        assert_close(p.data, state[name], 0.0)
        assert not np.shares_memory(p.data, state[name])
    source.head.weight.data[...] = 7
    assert (state["head.weight"] != 7).all()


def test_load_state_dict_lists_all_that_is_wrong_and_changes_nothing():
    net = Net()
    before = net.state_dict()
    state = net.state_dict() | {
        "body.0.weight": np.zeros((3, 2, 5, 5), np.float32),
        "head.weight": np.full((4, 3), np.nan),
        "extra.weight": np.zeros(1),
    }
    del state["scale"]
    with pytest.raises(ValueError, match="do not fit this Net") as failure:
        net.load_state_dict(state)
    for part in (
        "missing: scale",
        "unexpected: extra.weight",
        "body.0.weight must have shape (3, 2, 3, 3), got (3, 2, 5, 5)",
        "head.weight has values that are not finite in float32",
    ):
        assert part in str(failure.value)
    for name, array in net.state_dict().items():
        assert_close(array, before[name], 0.0)


def test_load_state_dict_not_strict_takes_what_fits():
    net = Net()
    state = {"scale": np.array([3.0]), "other": np.zeros(2)}
    missing, unexpected = net.load_state_dict(state, strict=False)
    assert missing == NAMES[1:]
    assert unexpected == ["other"]
    assert net.scale.data.tolist() == [3]
    assert net.scale.dtype == np.float32
    with pytest.raises(ValueError, match="shape"):
        net.load_state_dict({"scale": np.zeros(2)}, strict=False)


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ([1, 2], TypeError, "mapping.*list"),
        ({"scale": np.array(["a"])}, TypeError, "numbers for scale"),
        ({"scale": np.array([None])}, TypeError, "numbers for scale"),
        ({"scale": np.array([1e300])}, ValueError, "scale.*not finite in float32"),
    ],
)
def test_load_state_dict_refuses(state, error, message):
    with pytest.raises(error, match=message):
        Net().load_state_dict(state, strict=False)


def test_weights_travel_to_torch_and_back():
    torch = pytest.importorskip("torch")
    arguments = (4, 6, 3, 2, 1, 1, 2)
    ours = nn.Sequential(nn.Conv2d(*arguments), nn.ReLU(), nn.Flatten(), nn.Linear(54, 5))
    theirs = torch.nn.Sequential(
        torch.nn.Conv2d(*arguments), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(54, 5)
    )
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    x = ta.randn(2, 4, 5, 6)
    assert_close(ours(x).data, theirs(torch.from_numpy(x.numpy())).detach().numpy())
    assert repr(ours) == repr(theirs)


# --- layers -------------------------------------------------------------------------------------

LAYERS = [
    (
        nn.Conv2d(4, 6, 3, stride=2, padding=(0, 1), dilation=(1, 2), groups=2),
        lambda x, m: F.conv2d(x, m.weight, m.bias, 2, (0, 1), (1, 2), 2),
        "Conv2d(4, 6, kernel_size=(3, 3), stride=(2, 2), padding=(0, 1), "
        "dilation=(1, 2), groups=2)",
    ),
    (
        nn.Conv2d(4, 2, 3, padding="same", bias=False),
        lambda x, m: F.conv2d(x, m.weight, padding=1),
        "Conv2d(4, 2, kernel_size=(3, 3), stride=(1, 1), padding=same, bias=False)",
    ),
    (
        nn.Conv2d(4, 2, 3, padding="valid"),
        lambda x, m: F.conv2d(x, m.weight, m.bias),
        "Conv2d(4, 2, kernel_size=(3, 3), stride=(1, 1), padding=valid)",
    ),
    (
        nn.MaxPool2d(3, 2, 1, 2, ceil_mode=True),
        lambda x, m: F.max_pool2d(x, 3, 2, 1, 2, True),
        "MaxPool2d(kernel_size=3, stride=2, padding=1, dilation=2, ceil_mode=True)",
    ),
    (
        nn.MaxPool2d((2, 3)),
        lambda x, m: F.max_pool2d(x, (2, 3), (2, 3)),
        "MaxPool2d(kernel_size=(2, 3), stride=(2, 3), padding=0, dilation=1, ceil_mode=False)",
    ),
    (
        nn.AvgPool2d(4, 3, 1, True, False),
        lambda x, m: F.avg_pool2d(x, 4, 3, 1, True, False),
        "AvgPool2d(kernel_size=4, stride=3, padding=1)",
    ),
    (
        nn.AvgPool2d(2, divisor_override=3),
        lambda x, m: F.avg_pool2d(x, 2, divisor_override=3),
        "AvgPool2d(kernel_size=2, stride=2, padding=0)",
    ),
    (
        nn.AdaptiveAvgPool2d((3, None)),
        lambda x, m: F.adaptive_avg_pool2d(x, (3, None)),
        "AdaptiveAvgPool2d(output_size=(3, None))",
    ),
    (
        nn.LocalResponseNorm(3, 0.9, 0.6, 1.5),
        lambda x, m: F.local_response_norm(x, 3, 0.9, 0.6, 1.5),
        "LocalResponseNorm(3, alpha=0.9, beta=0.6, k=1.5)",
    ),
    (
        nn.LocalResponseNorm(3, 0.9, groups=2),
        lambda x, m: F.local_response_norm(x, 3, 0.9, 0.75, 1.0, groups=2),
        "LocalResponseNorm(3, alpha=0.9, beta=0.75, k=1.0, groups=2)",
    ),
    (
        nn.WithinChannelResponseNorm(3, 0.9, 0.6, 1.5),
        lambda x, m: F.within_channel_response_norm(x, 3, 0.9, 0.6, 1.5),
        "WithinChannelResponseNorm(3, alpha=0.9, beta=0.6, k=1.5)",
    ),
    (nn.ReLU(), lambda x, m: F.relu(x), "ReLU()"),
    (nn.Dropout(0.3).eval(), lambda x, m: x, "Dropout(p=0.3, inplace=False)"),
    (
        nn.Linear(9, 5),
        lambda x, m: x @ m.weight.T + m.bias,
        "Linear(in_features=9, out_features=5, bias=True)",
    ),
    (
        nn.Linear(9, 5, bias=False),
        lambda x, m: x @ m.weight.T,
        "Linear(in_features=9, out_features=5, bias=False)",
    ),
    (nn.Flatten(), lambda x, m: x.reshape(2, -1), "Flatten(start_dim=1, end_dim=-1)"),
    (nn.Flatten(0, 2), lambda x, m: x.reshape(-1, 9), "Flatten(start_dim=0, end_dim=2)"),
    (
        nn.ZeroPad2d((1, 2, 3, -4)),
        lambda x, m: F.pad(x, (1, 2, 3, -4)),
        "ZeroPad2d((1, 2, 3, -4))",
    ),
    (nn.ZeroPad2d(2), lambda x, m: F.pad(x, (2, 2, 2, 2)), "ZeroPad2d((2, 2, 2, 2))"),
]


@pytest.mark.parametrize(("layer", "expected", "text"), LAYERS, ids=[t for *_, t in LAYERS])
def test_a_layer_hands_its_arguments_to_the_function(rng, layer, expected, text):
    x = ta.tensor(normal(rng, (2, 4, 8, 9), np.float32))
    assert_close(layer(x).data, expected(x, layer).data)
    assert repr(layer) == text


def test_dropout_drops_in_training_only():
    layer, x = nn.Dropout(0.25), ta.ones(100, 1000)
    y = layer(x).numpy()
    assert set(np.unique(y)) == {0, np.float32(1 / 0.75)}
    assert abs((y == 0).mean() - 0.25) < 0.005
    assert (layer(x).numpy() != y).any()
    assert (layer.eval()(x).numpy() == 1).all()


def test_cross_entropy_loss_hands_its_arguments_to_the_function(rng):
    logits, target = ta.tensor(normal(rng, (4, 3))), np.array([0, 2, 1, 2])
    options = {"weight": np.array([1.0, 2.0, 3.0]), "ignore_index": 1, "label_smoothing": 0.1}
    for reduction in ("mean", "sum", "none"):
        loss = nn.CrossEntropyLoss(**options, reduction=reduction)(logits, target)
        expected = F.cross_entropy(logits, target, **options, reduction=reduction)
        assert_close(loss.data, expected.data)


def test_repr_of_a_tree_is_indented():
    assert repr(nn.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU()))) == (
        "Sequential(\n  (0): ReLU()\n  (1): Sequential(\n    (0): ReLU()\n  )\n)"
    )
    assert repr(nn.Parameter(np.zeros(1))).startswith("Parameter containing:\ntensor([0.]")


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: nn.Conv2d(0, 4, 3), ValueError, "in_channels must be at least 1, got 0"),
        (lambda: nn.Conv2d(3, 4.0, 3), TypeError, "out_channels must be an integer, got 4.0"),
        (lambda: nn.Conv2d(3, 4, (3, 3, 3)), TypeError, "kernel_size.*pair"),
        (lambda: nn.Conv2d(3, 4, 3, stride=0), ValueError, "stride must be at least 1"),
        (lambda: nn.Conv2d(3, 4, 3, padding=-1), ValueError, "padding must be at least 0"),
        (lambda: nn.Conv2d(3, 4, 3, padding="full"), ValueError, "padding.*'full'"),
        (lambda: nn.Conv2d(3, 4, 3, 2, "same"), ValueError, "same.*stride 1"),
        (lambda: nn.Conv2d(3, 4, 3, groups=2), ValueError, "groups must divide.*in_channels=3"),
        (lambda: nn.Conv2d(4, 3, 3, groups=2), ValueError, "groups must divide.*out_channels=3"),
        (lambda: nn.Linear(3, True), TypeError, "out_features must be an integer"),
        (lambda: nn.Linear(-3, 2), ValueError, "in_features must be at least 1"),
        (lambda: nn.MaxPool2d(0), ValueError, "kernel_size must be at least 1"),
        (lambda: nn.MaxPool2d(3, padding=2), ValueError, "at most half"),
        (lambda: nn.MaxPool2d(3, return_indices=True), ValueError, "return_indices"),
        (lambda: nn.AvgPool2d(3, stride="2"), TypeError, "stride"),
        (lambda: nn.AvgPool2d(3, padding=2), ValueError, "at most half"),
        (lambda: nn.LocalResponseNorm(0), ValueError, "size must be at least 1"),
        (lambda: nn.LocalResponseNorm(5, groups=0), ValueError, "groups must be at least 1"),
        (lambda: nn.WithinChannelResponseNorm(2.5), TypeError, "size must be an integer"),
        (lambda: nn.Dropout(1.5), ValueError, "between 0 and 1, got 1.5"),
        (lambda: nn.Dropout(float("nan")), ValueError, "p must be a finite number, got nan"),
        (lambda: nn.Dropout("0.5"), TypeError, "p must be a number"),
        (lambda: nn.Dropout(0.5, inplace=True), ValueError, "Dropout.*inplace"),
        (lambda: nn.ReLU(inplace=True), ValueError, "ReLU.*inplace"),
        (lambda: nn.ZeroPad2d((1, 2)), ValueError, r"left, right, top, bottom.*\(1, 2\)"),
        (lambda: nn.ZeroPad2d((1, 2, 3, 0.5)), TypeError, "padding must be an integer"),
        (lambda: nn.Sequential(nn.ReLU(), np.tanh), TypeError, "Module for '1', got ufunc"),
        (lambda: nn.Parameter(np.zeros(3, int)), TypeError, "float"),
    ],
)
def test_bad_arguments_are_refused_when_the_layer_is_built(build, error, message):
    with pytest.raises(error, match=message):
        build()


# --- initial weights ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [(nn.Conv2d(32, 64, (3, 5), groups=2), 16 * 15), (nn.Linear(300, 200), 300)],
)
def test_layers_begin_as_torchs_do(layer, fan_in):
    bound = 1 / math.sqrt(fan_in)
    for values in (layer.weight.data, layer.bias.data):
        assert np.abs(values).max() <= bound
        assert np.abs(values).max() > 0.9 * bound
        assert abs(values.mean()) < 4 * bound / math.sqrt(3 * values.size)
    assert layer.weight.data.std() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert layer.weight.dtype == np.float32


def test_layers_can_be_float64():
    assert nn.Conv2d(3, 4, 3, dtype=np.float64).bias.dtype == np.float64
    assert nn.Linear(3, 4, dtype=np.float64).weight.dtype == np.float64


SHAPE = (80, 50, 3, 4)  # fan_in 600, fan_out 960


@pytest.mark.parametrize(
    ("fill", "std", "bound"),
    [
        (lambda p: nn.init.normal_(p, 0, 0.03), 0.03, None),
        (lambda p: nn.init.uniform_(p, -2, 2), 2 / 3**0.5, 2),
        (nn.init.xavier_uniform_, (2 / 1560) ** 0.5, (6 / 1560) ** 0.5),
        (lambda p: nn.init.xavier_normal_(p, gain=2), 2 * (2 / 1560) ** 0.5, None),
        (
            lambda p: nn.init.kaiming_uniform_(p, nonlinearity="relu"),
            (2 / 600) ** 0.5,
            (6 / 600) ** 0.5,
        ),
        (lambda p: nn.init.kaiming_uniform_(p, a=5**0.5), (1 / 1800) ** 0.5, (1 / 600) ** 0.5),
        (lambda p: nn.init.kaiming_normal_(p, mode="fan_out"), (2 / 960) ** 0.5, None),
        (lambda p: nn.init.kaiming_normal_(p, nonlinearity="tanh"), 5 / 3 / 600**0.5, None),
        (lambda p: nn.init.constant_(p, 0.5), 0, 0.5),
        (nn.init.zeros_, 0, 0),
        (nn.init.ones_, 0, 1),
    ],
)
def test_initialisers_have_the_spread_of_their_formula(fill, std, bound):
    p = nn.Parameter(np.full(SHAPE, np.nan, np.float32))
    array = p.data
    assert fill(p) is p
    assert p.data is array
    assert array.std(dtype=np.float64) == pytest.approx(std, rel=0.01)
    largest = np.abs(array).max()
    if bound is None:
        assert largest > 4 * std  # 192,000 normal draws
    else:
        assert largest == pytest.approx(bound, rel=1e-3)


class Extremes:
    """A generator that draws the smallest, a middle and the largest number of [0, 1)."""

    def random(self, shape, dtype):
        largest = np.nextafter(dtype.type(1), dtype.type(0))
        return np.resize(np.array([0, 0.5, largest], dtype), shape)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (0, 1),
        (100, 101),
        (-101, -100),
        (0.1, 0.3),
        (-0.3, -0.1),
        (1, 1 + 2**-23),
        (1, 1 + 2**-22),
        (1 - 2**-24, 1),
        (1e30, 1e30 + 1e24),
        (-3e38, 3e38),
        (0, 3e38),
        (-1e-45, 1e-45),
        (5, 5),
        (-0.1, -0.1),
        (0.1, 0.1 + 1e-12),
    ],
)
def test_uniform_is_half_open_whatever_is_rounded(a, b, dtype):
    values = nn.init.uniform_(ta.zeros(3000, dtype=dtype), a, b, Extremes()).data.astype(np.float64)
    inside = np.nextafter(dtype.type(b), dtype.type(-np.inf)) >= a
    if inside and float(dtype.type(a)) == a:
        assert values.min() == a
    assert (values >= a).all()
    if inside:
        assert (values < b).all()
    else:
        assert (values <= np.nextafter(dtype.type(a), dtype.type(np.inf))).all()


def test_uniform_over_all_numbers_of_float64(rng):
    most = np.finfo(np.float64).max
    values = nn.init.uniform_(ta.zeros(10000, dtype=np.float64), -most, most, rng).data
    assert np.isfinite(values).all()
    assert abs((values > 0).mean() - 0.5) < 0.03
    assert abs((values > most / 2).mean() - 0.25) < 0.03


def test_initialisers_draw_from_the_librarys_generator_or_from_the_given_one():
    def drawn(seed=None, generator=None):
        if seed is not None:
            ta.manual_seed(seed)
        return nn.init.normal_(nn.Parameter(np.zeros(5)), 3, 2, generator).data.tolist()

    assert drawn(1) == drawn(1) != drawn(2)
    state = ta.random.get_state()
    own = np.random.default_rng(5)
    assert drawn(generator=own) == (3 + 2 * np.random.default_rng(5).standard_normal(5)).tolist()
    assert ta.random.get_state() == state


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: nn.init.normal_(p, std=-1), ValueError, "std -1"),
        (lambda p: nn.init.normal_(p, std=float("nan")), ValueError, "std nan"),
        (lambda p: nn.init.uniform_(p, 2, 1), ValueError, "a 2, b 1"),
        (lambda p: nn.init.uniform_(ta.zeros(3), 0, 1e39), ValueError, "finite bounds.*b 1e\\+39"),
        (lambda p: nn.init.uniform_(p, np.nan, 1), ValueError, "a nan, b 1"),
        (lambda p: nn.init.uniform_(ta.arange(3)), TypeError, "float32 or all in float64"),
        (lambda p: nn.init.normal_(p.data), TypeError, "expected a Tensor.*ndarray"),
        (nn.init.xavier_uniform_, ValueError, r"fan_in.*shape \(3,\)"),
        (lambda p: nn.init.calculate_gain("gelu"), ValueError, "relu.*'gelu'"),
        (
            lambda p: nn.init.kaiming_normal_(ta.zeros(2, 2), mode="fan"),
            ValueError,
            "fan_in.*'fan'",
        ),
    ],
)
def test_initialisers_refuse(call, error, message):
    with pytest.raises(error, match=message):
        call(nn.Parameter(np.zeros(3)))


def test_gains_are_torchs():
    init = pytest.importorskip("torch").nn.init
    for name in ("linear", "conv2d", "sigmoid", "tanh", "relu", "leaky_relu"):
        assert nn.init.calculate_gain(name) == init.calculate_gain(name)
    assert nn.init.calculate_gain("leaky_relu", 0.2) == init.calculate_gain("leaky_relu", 0.2)


def test_a_slice_can_be_extended():
    tail = nn.Sequential(nn.ReLU(), nn.ReLU(), nn.Flatten(), nn.Dropout())[1:3]
    tail.append(nn.Linear(2, 2))
    assert [type(layer).__name__ for layer in tail] == ["ReLU", "Flatten", "Linear"]
