"""Saved values: writes into them are refused or have no effect."""

import sys
import threading

import numpy as np
import pytest
from helpers import leaf, normal

import tinyalex as ta
import tinyalex.functional as F
from tinyalex import nn, optim, random


def step(net):
    optim.SGD(net.parameters(), lr=0.1).step()


CHANGES = {
    "step": step,
    "load_state_dict": lambda net: net.load_state_dict(net.state_dict()),
    "init": lambda net: nn.init.ones_(net[0].weight),
    "to": lambda net: net.to(np.float64),
    "data": lambda net: setattr(net[0].weight, "data", net[0].weight.data + 1),
    "through an alias": lambda net: net[0].weight.detach().__setitem__(0, 1),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_weights_that_changed_since(change):
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    x = ta.ones((3, 2), requires_grad=True)
    loss = net(x).sum()
    loss.backward(retain_graph=True)
    change(net)
    with pytest.raises(RuntimeError, match="in-place operation"):
        loss.backward()


@pytest.mark.parametrize("function", [ta.Tensor.exp, ta.Tensor.relu, ta.Tensor.sqrt])
def test_outputs_that_changed_since(function):
    x = leaf(1.0, 2.0)
    y = function(x)
    loss = y.sum()
    y += 1  # what the function returned, it needs
    with pytest.raises(RuntimeError, match="in-place operation"):
        loss.backward()
    y = x * 2
    loss = y.sum()
    y += 1  # which nothing needs
    loss.backward()
    np.testing.assert_array_equal(x.grad, [2, 2])


def test_tensors_on_one_array_of_the_callers_count_apart():
    both = np.ones((2, 3))
    a, b = ta.Tensor(both[0], True), ta.Tensor(both[1], True)
    product = (a * b).sum()
    with ta.no_grad():
        b += 1
    with pytest.raises(RuntimeError, match="in-place operation"):
        product.backward()
    frozen = b.detach()
    product = (a * frozen).sum()
    with ta.no_grad():
        a += 1  # which nothing saved
    product.backward()
    np.testing.assert_array_equal(a.grad, frozen.data)


WRONG = {
    "data": [np.zeros(3), np.zeros(2, np.float32), [1.0, 2.0], None],
    "grad": [np.zeros(3), np.zeros(2, np.float32), 1.0],
    "requires_grad": [1, "yes", None],
    "grad_fn": [None],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, all_ in WRONG.items() for v in all_])
def test_what_does_not_fit_a_tensor_is_refused(name, value):
    x = leaf(1.0, 2.0)
    with pytest.raises((TypeError, ValueError, AttributeError)):
        setattr(x, name, value)
    np.testing.assert_array_equal(x.data, [1, 2])
    assert (x.grad, x.requires_grad, x.grad_fn) == (None, True, None)


def test_what_the_caller_changes_later(rng):
    x, target, indices = leaf(1.0, 2.0, 3.0), np.array([0]), [0, 2]
    condition, factor = np.array([True, False, True]), np.ones(3)
    loss = F.cross_entropy(x.reshape(1, 3), target) + x[indices].sum()
    loss = loss + ta.where(condition, x, x * 2).sum() + (x * factor).sum()
    loss.backward(retain_graph=True)
    first, x.grad = x.grad, None
    target[0], indices[0], condition[0], factor[0] = 2, 1, False, 5
    loss.backward()
    np.testing.assert_array_equal(x.grad, first)


def test_indices_of_maxima_are_the_callers():
    x = leaf(1.0, 3.0, 2.0)
    values, indices = x.max(0)
    indices[...] = 0
    values.backward()
    np.testing.assert_array_equal(x.grad, [0, 1, 0])


def test_a_model_that_is_there_already_is_not_written_to():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    loss = net(ta.ones(1, 2)).sum()
    net.to("cpu").to(np.float32)
    loss.backward()


def test_frozen_parameters_stay():
    net = nn.Linear(2, 1)
    net(ta.ones(1, 2)).sum().backward()
    net.weight.requires_grad = False
    before = net.state_dict()
    optim.SGD(net.parameters(), lr=1, momentum=0.9, weight_decay=0.1).step()
    np.testing.assert_array_equal(net.weight.data, before["weight"])
    assert net.bias.data != before["bias"]


def test_gradients_of_many_threads_add_up(rng):
    x = ta.Tensor(normal(rng, (100_000,)), requires_grad=True)

    def work():
        for _ in range(25):
            (x * 1).sum().backward()

    at_once(work)
    assert (x.grad == 100).all()


def at_once(work, threads=4):
    """Run ``work`` in several threads."""
    started = [threading.Thread(target=work) for _ in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()


def test_one_graph_is_walked_by_one_thread_or_refused(rng):
    for retain_graph in (False, True):
        x, refused = ta.Tensor(normal(rng, (1000,)), requires_grad=True), []
        y = x
        for _ in range(50):
            y = y * 1.0
        loss = y.sum()

        def walk(loss=loss, refused=refused, retain_graph=retain_graph):
            try:
                loss.backward(retain_graph=retain_graph)
            except RuntimeError as error:
                refused.append(str(error))

        at_once(walk)
        assert len(refused) == (0 if retain_graph else 3)
        assert all("a second time" in sentence for sentence in refused)
        assert (x.grad == (4 if retain_graph else 1)).all()


def test_a_model_serves_several_threads_at_once(rng):
    ta.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4096, 5))
    images = ta.Tensor(rng.standard_normal((2, 3, 16, 16), np.float32))
    expected, found = net(images).data, []

    def predict():
        for _ in range(5):
            with ta.no_grad():
                found.append(net(images).data)

    at_once(predict)
    assert len(found) == 20
    for got in found:
        np.testing.assert_array_equal(got, expected)


def test_views_of_several_threads_are_all_known():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(20):
            x, views, ready = ta.zeros(100), [], threading.Barrier(4)

            def work(x=x, views=views, ready=ready):
                ready.wait()
                views.extend([x[i] for i in range(100)])

            at_once(work)
            assert set(map(id, x._storage.others(x))) == set(map(id, views))
    finally:
        sys.setswitchinterval(before)


def test_given_keys_are_this_threads():
    found = []
    with random.keys_from([7]):
        thread = threading.Thread(target=lambda: found.append(random.next_key()))
        thread.start()
        thread.join()
        assert random.next_key() == 7
    assert found != [7]


def test_what_cannot_be_a_parameter_is_refused():
    layer = nn.Linear(2, 2, bias=False)
    for name in ("weight", "bias"):
        with pytest.raises(TypeError, match=f"as parameter '{name}'"):
            setattr(layer, name, ta.ones(2, 2))
    layer.weight = None
    with pytest.raises(TypeError, match="Parameter or None expected"):
        layer.weight = ta.ones(2, 2)
    layer.bias = nn.Parameter(np.ones(2, np.float32))
    layer.weight = nn.Parameter(np.ones((2, 2), np.float32))
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
    net = nn.Sequential(layer)
    with pytest.raises(TypeError, match="as child module '0'"):
        setattr(net, "0", 3)
