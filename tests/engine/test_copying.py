"""Copies and pickles of leaves, layers and optimisers, not of graphs."""

import copy
import pickle

import numpy as np
import pytest
from helpers import leaf

import tinyalex as ta
import tinyalex.functional as F
from tinyalex import nn, optim

WAYS = {
    "deepcopy": copy.deepcopy,
    **{
        f"pickle {protocol}": lambda x, p=protocol: pickle.loads(pickle.dumps(x, p))
        for protocol in (2, pickle.HIGHEST_PROTOCOL)
    },
}
"""Ways to a copy that shares nothing."""


def way(name):
    """Parametrise over ways to copy."""
    return pytest.mark.parametrize(name, WAYS.values(), ids=WAYS)


@way("duplicate")
@pytest.mark.parametrize("kind", [ta.Tensor, nn.Parameter])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "bool"])
def test_leaves(duplicate, kind, dtype):
    requires_grad = dtype.startswith("float")
    x = kind(np.arange(6).reshape(2, 3).T.astype(dtype), requires_grad=requires_grad)
    y = duplicate(x)
    assert type(y) is kind
    assert (y.dtype, y.requires_grad, y.is_leaf) == (x.dtype, requires_grad, True)
    np.testing.assert_array_equal(y.data, x.data)
    y.data[...] = 1
    assert x.tolist() == [[0, 3], [1, 4], [2, 5]] or dtype == "bool"
    assert not np.may_share_memory(x.data, y.data)


def test_gradients_are_copied_and_not_pickled_as_in_torch():
    x = leaf(1.0, 2.0)
    (x * x).sum().backward()
    y = copy.deepcopy(x)
    assert y.grad.tolist() == [2, 4]
    y.grad += 1
    (y * y).sum().backward()
    assert (x.grad.tolist(), y.grad.tolist()) == ([2, 4], [5, 9])
    assert pickle.loads(pickle.dumps(x)).grad is None


def test_a_shallow_copy_is_another_leaf_on_the_same_array():
    x = leaf(1.0, 2.0)
    y = copy.copy(x)
    assert y is not x
    assert y.data is x.data
    assert y.requires_grad
    (y * 3).sum().backward()
    assert x.grad is None


@pytest.mark.parametrize("duplicate", [copy.copy, *WAYS.values()])
def test_what_is_in_a_graph_is_refused(duplicate):
    x = leaf(1.0, 2.0)
    y = x
    for _ in range(2000):  # deep enough for a RecursionError
        y = y + 1
    for holder in (y, [y], {"loss": y}, y[0]):
        if duplicate is copy.copy and holder is not y:
            continue  # a shallow copy of a list copies no tensor
        with pytest.raises(RuntimeError, match=r"in a graph.*\.detach\(\)"):
            duplicate(holder)
    assert duplicate(y.detach()).tolist() == [2001, 2002]
    y.sum().backward()
    assert x.grad.tolist() == [1, 1]


def network():
    """Return layers with a hook, of which two share their weight."""
    first, second = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
    second.weight = first.weight
    layers = nn.Sequential(first, nn.ReLU(), nn.Dropout(0.5), second)
    first.register_forward_hook(halve)
    return layers.eval()


def halve(module, inputs, output):
    """Be a hook that a pickle can name."""
    return output * 0.5


@way("duplicate")
def test_modules(duplicate):
    model, x = network(), ta.Tensor(np.arange(6, dtype=np.float32).reshape(2, 3))
    model(x).sum().backward()
    before = [parameter.grad.copy() for parameter in model.parameters()]
    twin = duplicate(model)
    assert twin[0].weight is twin[3].weight
    assert [p.shape for p in twin.parameters()] == [p.shape for p in model.parameters()]
    assert not {*map(id, twin.parameters())} & {*map(id, model.parameters())}
    assert not twin.training
    np.testing.assert_array_equal(twin(x).data, model(x).data)
    twin[0].weight.data[...] = 0
    twin(x).sum().backward()
    assert model(x).data.any()
    for parameter, grad in zip(model.parameters(), before, strict=True):
        np.testing.assert_array_equal(parameter.grad, grad)


@way("duplicate")
def test_a_model_and_its_optimiser_go_on_together(duplicate):
    model = nn.Linear(3, 2)
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x, labels = ta.Tensor(np.eye(3, dtype=np.float32)), np.array([0, 1, 0])

    def step(model, optimizer):
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()

    step(model, optimizer)
    other_model, other_optimizer = duplicate((model, optimizer))
    for _ in range(2):
        step(model, optimizer)
    assert not np.array_equal(other_model.weight.data, model.weight.data)
    for _ in range(2):
        step(other_model, other_optimizer)
    np.testing.assert_array_equal(other_model.weight.data, model.weight.data)


@way("duplicate")
def test_a_module_that_holds_a_result_is_refused(duplicate):
    model = nn.Linear(1, 1)
    model.last = model(ta.ones(1, 1))
    with pytest.raises(RuntimeError, match=r"\.detach\(\)"):
        duplicate(model)


def test_on_a_gpu(cuda):
    x = ta.tensor(np.ones((2, 3), np.float32), device="cuda", requires_grad=True)
    (x * x).sum().backward()
    y = copy.deepcopy(x)
    assert (y.device, y.cpu().tolist()) == (x.device, x.cpu().tolist())
    y.data[...] = 0
    y.grad[...] = 0
    assert float(x.detach().sum()) == 6
    assert ta.Tensor(x.grad).cpu().tolist() == [[2] * 3] * 2
