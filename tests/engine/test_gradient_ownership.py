"""A leaf's .grad accumulates, and shares its memory with nothing."""

import numpy as np
import pytest
from helpers import leaf

import tinyalex as ta
import tinyalex.functional as F


def test_gradients_accumulate_over_calls():
    x = leaf(1.0, 2.0)
    for _ in range(2):
        (x * 3).sum().backward()
    np.testing.assert_array_equal(x.grad, [6, 6])


def test_gradient_of_a_leaf_itself():
    x = leaf(1.0, 2.0)
    x.backward(np.array([3.0, 4.0]))
    x.backward(np.array([3.0, 4.0]))
    np.testing.assert_array_equal(x.grad, [6, 8])


@pytest.mark.parametrize(
    "fn",
    [
        lambda a, b: a + b,
        lambda a, b: a.reshape(3) + b.T,
        lambda a, b: a,
        lambda a, b: ta.cat([a, b])[:3] + b,
        lambda a, b: F.adaptive_avg_pool2d((a + b).reshape(1, 1, 1, 3), (1, 3)).reshape(3),
    ],
)
def test_gradients_are_nobody_elses_array(fn):
    """Writing into one .grad must not show in another one, nor in the caller's gradient."""
    a, b, gradient = leaf(1.0, 2, 3), leaf(4.0, 5, 6), np.ones(3)
    fn(a, b).backward(gradient)
    others = [gradient, b.grad] if b.grad is not None else [gradient]
    a.grad[...] = 99
    assert all((other != 99).all() for other in others)


def test_gradient_may_be_a_tensor_or_numbers():
    for gradient in (ta.Tensor(np.array([1.0, 2.0])), np.array([1.0, 2.0]), [1.0, 2.0]):
        x = leaf(5.0, 6.0)
        (x * x).backward(gradient)
        np.testing.assert_array_equal(x.grad, [10, 24])


class ReturnsWhatItSaved(ta.Function):
    """The gradient of 3 x where all that it is multiplied with is 1."""

    def forward(self, x):
        self.save(np.full(x.shape, 3.0))
        return 3 * x

    def backward(self, grad):
        return self.saved[0]


class ReturnsOverlappingParts(ta.Function):
    """Two gradients in one array."""

    def forward(self, a, b):
        return a + b

    def backward(self, grad):
        both = np.ones((3, 3))
        return both[:2], both[1:]


class ReturnsAView(ta.Function):
    """The identity; its gradient is not contiguous."""

    def forward(self, x):
        return x + 0

    def backward(self, grad):
        return np.repeat(grad, 2, axis=1)[:, ::2]


CONDITION = np.array([[True, False, True], [False, False, True]])
FUNCTIONS = {
    "a": lambda a, b: a,
    "a + b": lambda a, b: a + b,
    "a - b": lambda a, b: a - b,
    "a + a": lambda a, b: a + a,
    "a + b + a": lambda a, b: a + b + a,
    "a * b": lambda a, b: a * b,
    "a * a": lambda a, b: a * a,
    "a / b": lambda a, b: a / b,
    "a + 1": lambda a, b: a + 1,
    "a * 1": lambda a, b: a * 1,
    "-a": lambda a, b: -a,
    "exp": lambda a, b: a.exp() + b,
    "reshape": lambda a, b: a.reshape(3, 2).reshape(6) + b.reshape(6),
    "reshape twice": lambda a, b: a.reshape(6) + a.reshape(6),
    "transpose": lambda a, b: a.T + b.T,
    "permute and reshape": lambda a, b: a.permute(1, 0).reshape(6),
    "unsqueeze and squeeze": lambda a, b: a.unsqueeze(0).squeeze(0) + b,
    "index": lambda a, b: a[1:, ::2] + b[:1, 1:],
    "index with everything": lambda a, b: a[...] + b,
    "sum": lambda a, b: a.sum(),
    "sum of one axis": lambda a, b: a.sum(0) + b.sum(0),
    "mean": lambda a, b: a.mean() + b.mean(1),
    "max": lambda a, b: a.max(1).values,
    "amax": lambda a, b: a.amax(1),
    "broadcast": lambda a, b: a[:1] + b,
    "broadcast to more axes": lambda a, b: a + b.reshape(2, 1, 1, 3),
    "where": lambda a, b: ta.where(CONDITION, a, b),
    "where everywhere": lambda a, b: ta.where(CONDITION | True, a, b),
    "cat": lambda a, b: ta.cat([a, b, a]),
    "stack": lambda a, b: ta.stack([a, b]),
    "pad by nothing": lambda a, b: F.pad(a, (0, 0)) + b,
    "matmul": lambda a, b: a @ b.T,
    "relu": lambda a, b: F.relu(a) + F.relu(b),
    "cast": lambda a, b: a.to(np.float32).to(np.float64) + b,
    "no dropout": lambda a, b: F.dropout(a, 0.5, training=False) + b,
    "pool of single pixels": lambda a, b: F.max_pool2d((a + b).reshape(1, 1, 2, 3), 1),
    "mean of single pixels": lambda a, b: F.adaptive_avg_pool2d(a.reshape(1, 1, 2, 3), (2, 3)),
    "cross-entropy": lambda a, b: F.cross_entropy(a, np.array([2, 0])) + b,
    "linear": lambda a, b: F.linear(a, b),
    "what was saved": lambda a, b: ReturnsWhatItSaved.apply(a) + b,
    "what was saved, in another shape": lambda a, b: ReturnsWhatItSaved.apply(a.T).T,
    "overlapping parts": lambda a, b: ReturnsOverlappingParts.apply(a, b),
    "a view": lambda a, b: ReturnsAView.apply(a) + b,
}


def saved_arrays(tensor):
    """Return every array that a node of this graph keeps."""
    arrays, nodes = [], [tensor.grad_fn]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ta.Function):
            arrays += [value for value in node.saved if isinstance(value, np.ndarray)]
            nodes += node.edges
    return arrays


@pytest.mark.parametrize("retain_graph", [False, True], ids=["freed", "retained"])
@pytest.mark.parametrize("fn", FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_a_leafs_gradient_is_its_own(backend, fn, retain_graph):
    a, b = (ta.Tensor(np.arange(1.0, 7).reshape(2, 3) + i, requires_grad=True) for i in range(2))
    y = fn(a, b)
    gradient = np.ones(y.shape)
    others = [a.data, b.data, y.data, gradient, *saved_arrays(y)]
    y.backward(gradient, retain_graph=retain_graph)
    for x in (a, b):
        if x.grad is not None:
            assert type(x.grad) is np.ndarray
            assert (x.grad.shape, x.grad.dtype) == (x.shape, x.dtype)
            assert x.grad.flags.writeable
            assert not any(np.shares_memory(x.grad, other) for other in others)
            others.append(x.grad)


@pytest.mark.parametrize("fn", FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_what_is_written_into_a_gradient_is_seen_nowhere_else(backend, fn):
    a, b = (ta.Tensor(np.arange(1.0, 7).reshape(2, 3) + i, requires_grad=True) for i in range(2))
    y = fn(a, b)
    gradient, results = np.ones(y.shape), []
    for _ in range(2):
        a.grad = b.grad = None
        y.backward(gradient, retain_graph=True)
        leaves = [x for x in (a, b) if x.grad is not None]
        results.append([x.grad.copy() for x in leaves])
        for x in leaves:
            x.grad[...] = 99
    for first, second in zip(*results, strict=True):
        np.testing.assert_array_equal(second, first)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x,
        lambda x: x + x,
        lambda x: x * x,
        lambda x: x.exp(),
        lambda x: (x * np.ones(3, x.dtype)).sum(),
        lambda x: x.reshape(1, 1).sum(),
    ],
)
def test_the_gradient_of_a_number_is_an_array_without_axes(fn, dtype):
    """Not a NumPy scalar, as arithmetic makes of such arrays: scalars cannot be written into."""
    x = ta.Tensor(np.array(2.0, dtype), requires_grad=True)
    for _ in range(2):
        fn(x).backward()
        assert type(x.grad) is np.ndarray
        assert (x.grad.shape, x.grad.dtype) == ((), dtype)
        x.grad[...] += 1
