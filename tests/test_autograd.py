"""The walk backwards: what it visits, what it computes, what it frees, what it refuses."""

import gc
import weakref

import numpy as np
import pytest
from helpers import normal

import tinyalex as ta
import tinyalex.functional as F
from tinyalex.backends import reference


def leaf(*values, dtype=np.float64):
    """Return a 1-D leaf that wants a gradient."""
    return ta.Tensor(np.array(values, dtype), requires_grad=True)


class Spy(ta.Function):
    """``y = 2 x``; remembers its nodes (weakly) and the gradients that visited them."""

    nodes, visits = [], []

    def forward(self, x):
        self.save(x)
        Spy.nodes.append(weakref.ref(self))
        return 2 * x

    def backward(self, grad):
        Spy.visits.append(grad.copy())
        return 2 * grad


@pytest.fixture(autouse=True)
def _fresh_spy():
    Spy.nodes, Spy.visits = [], []


# --- order and sums ------------------------------------------------------------------------------


def test_diamond():
    """Both ways from x to the loss count, and the node in front of the fork is visited once."""
    x = leaf(1.0, -2.0)
    y = Spy.apply(x)
    left, right = y * 3, y * y
    (left + right).sum().backward()
    np.testing.assert_array_equal(x.grad, 2 * (3 + 2 * 2 * x.data))
    assert len(Spy.visits) == 1


def test_newer_branch_first():
    """A node feeds an older and a newer node: it must wait for both."""
    x = leaf(3.0)
    y = Spy.apply(x)
    old = y * y
    new = (y + 1) * (y + 2)
    (new * old).sum().backward()
    s = 2 * x.data
    slope = (2 * s + 3) * s**2 + (s + 1) * (s + 2) * 2 * s
    np.testing.assert_allclose(x.grad, 2 * slope)
    assert len(Spy.visits) == 1


def test_node_used_many_times():
    x = leaf(1.5)
    y = Spy.apply(x)
    total = y
    for i in range(1, 100):
        total = total + y * i
    total.backward()
    np.testing.assert_allclose(x.grad, 2 * (1 + sum(range(1, 100))))
    assert len(Spy.visits) == 1


def test_gradients_that_share_an_array_do_not_mix():
    """Addition sends one array to both sides; what u collects later must not reach v."""
    x, y = leaf(1.0, 2.0), leaf(3.0, 4.0)
    u, v = Spy.apply(x), Spy.apply(y)
    older = u * 5
    newer = (u + v) * 1.0
    (older + newer).sum().backward()
    np.testing.assert_array_equal(x.grad, [12, 12])
    np.testing.assert_array_equal(y.grad, [2, 2])


def test_same_tensor_as_both_inputs():
    x = leaf(3.0, 4.0)
    (x * x - x / x).sum().backward()
    np.testing.assert_allclose(x.grad, 2 * x.data)


def test_deep_chain():
    """Fifty thousand nodes: neither the walk nor the release of the graph may recurse."""
    x = leaf(1.0)
    y = x
    for _ in range(50_000):
        y = y + 1
    y.backward()
    assert x.grad == 1
    assert y.item() == 50_001
    z = x
    for _ in range(50_000):
        z = z * 1.0
    del z  # a graph that nobody walks must also go quietly
    gc.collect()


def test_broadcast_gradients_are_summed():
    row, column, number = leaf(1.0, 2.0, 3.0), ta.ones((2, 1), requires_grad=True), leaf(5.0)
    (row * column * number[0]).sum().backward()
    np.testing.assert_array_equal(row.grad, [10, 10, 10])
    np.testing.assert_array_equal(column.grad, [[30], [30]])
    np.testing.assert_array_equal(number.grad, [12])
    assert column.grad.dtype == np.float32, "a gradient has its tensor's dtype"


def test_repeated_indices_add_up():
    x = leaf(1.0, 2.0, 3.0)
    x[np.array([0, 0, 2, 0])].backward(np.array([1.0, 10, 100, 1000]))
    np.testing.assert_array_equal(x.grad, [1011, 0, 100])


# --- accumulation and ownership ------------------------------------------------------------------


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
    "max": lambda a, b: a.max(1),
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
    for leaf in (a, b):
        if leaf.grad is not None:
            assert type(leaf.grad) is np.ndarray
            assert (leaf.grad.shape, leaf.grad.dtype) == (leaf.shape, leaf.dtype)
            assert leaf.grad.flags.writeable
            assert not any(np.shares_memory(leaf.grad, other) for other in others)
            others.append(leaf.grad)


@pytest.mark.parametrize("fn", FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_what_is_written_into_a_gradient_is_seen_nowhere_else(backend, fn):
    a, b = (ta.Tensor(np.arange(1.0, 7).reshape(2, 3) + i, requires_grad=True) for i in range(2))
    y = fn(a, b)
    gradient, results = np.ones(y.shape), []
    for _ in range(2):
        a.grad = b.grad = None
        y.backward(gradient, retain_graph=True)
        leaves = [leaf for leaf in (a, b) if leaf.grad is not None]
        results.append([leaf.grad.copy() for leaf in leaves])
        for leaf in leaves:
            leaf.grad[...] = 99
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
    """Not a NumPy scalar, as arithmetic makes of such arrays: nobody can write into that."""
    x = ta.Tensor(np.array(2.0, dtype), requires_grad=True)
    for _ in range(2):
        fn(x).backward()
        assert type(x.grad) is np.ndarray
        assert (x.grad.shape, x.grad.dtype) == ((), dtype)
        x.grad[...] += 1


# --- only what is needed -------------------------------------------------------------------------


class NeedsOnlySecond(ta.Function):
    """A product that reports which gradients it was asked for."""

    asked = None

    def forward(self, a, b):
        return a * b

    def backward(self, grad):
        NeedsOnlySecond.asked = self.needs_input_grad
        return None, grad


def test_function_is_told_what_is_needed():
    x, constant = leaf(2.0), ta.Tensor(np.array([3.0]))
    NeedsOnlySecond.apply(constant, x).backward()
    assert NeedsOnlySecond.asked == (False, True)
    assert constant.grad is None


def test_first_layer_computes_no_gradient_of_the_image(monkeypatch, rng):
    """The largest useless product of AlexNet's backward pass."""

    def forbidden(*args):
        raise AssertionError("nobody wants the gradient of the image")

    monkeypatch.setattr(reference, "conv2d_input_grad", forbidden)
    image = ta.Tensor(normal(rng, (2, 3, 8, 8)))
    weight = ta.Tensor(normal(rng, (4, 3, 3, 3)), requires_grad=True)
    with ta.use_backend("reference"):
        F.relu(F.conv2d(image, weight)).sum().backward()
        assert weight.grad is not None
        assert image.grad is None
        image.requires_grad = True
        with pytest.raises(AssertionError, match="nobody wants"):
            F.conv2d(image, weight).sum().backward()


def test_frozen_weights_are_not_differentiated(monkeypatch, rng):
    def forbidden(*args):
        raise AssertionError("the weights are frozen")

    for name in ("conv2d_weight_grad", "conv2d_bias_grad", "linear_weight_grad"):
        monkeypatch.setattr(reference, name, forbidden)
    x = ta.Tensor(normal(rng, (2, 3, 4, 4)), requires_grad=True)
    w, b, v = (ta.Tensor(normal(rng, s)) for s in ((2, 3, 4, 4), (2,), (5, 2)))
    with ta.use_backend("reference"):
        F.linear(F.conv2d(x, w, b).flatten(1), v).sum().backward()
    assert x.grad.shape == x.shape


def test_nothing_to_differentiate():
    with pytest.raises(RuntimeError, match="requires_grad"):
        (ta.ones(3) * 2).sum().backward()


def test_detach_cuts_the_graph():
    x = leaf(3.0)
    y = x * 2
    (y.detach() * x).sum().backward()
    np.testing.assert_array_equal(x.grad, [6])
    assert y.detach().data is y.data
    assert not y.detach().requires_grad


def test_comparisons_are_outside_the_graph():
    x = leaf(-1.0, 1.0)
    for answer in (x > 0, x == x, x <= 2.0, x.argmax()):
        assert not answer.requires_grad
    assert (x > 0).dtype == bool


# --- no_grad -------------------------------------------------------------------------------------


def test_no_grad_builds_no_graph():
    x = leaf(1.0)
    with ta.no_grad():
        y = Spy.apply(x)
        assert not ta.is_grad_enabled()
    assert ta.is_grad_enabled()
    assert not y.requires_grad
    assert y.is_leaf
    assert Spy.nodes[0]() is None, "the node, and what it saved, is gone"
    with pytest.raises(RuntimeError, match="no_grad"):
        y.backward()


def test_no_grad_nests_decorates_and_survives_errors():
    @ta.no_grad()
    def inside(depth):
        return inside(depth - 1) if depth else ta.is_grad_enabled()

    assert inside(3) is False
    assert ta.is_grad_enabled()
    with ta.no_grad():
        with ta.no_grad():
            pass
        assert not ta.is_grad_enabled()
    with pytest.raises(KeyError), ta.no_grad():
        raise KeyError
    assert ta.is_grad_enabled()


def test_no_grad_allows_changing_parameters():
    w = leaf(1.0, 2.0)
    with ta.no_grad():
        w.data -= 0.5
    (w * w).sum().backward()
    np.testing.assert_array_equal(w.grad, [1, 3])


# --- memory --------------------------------------------------------------------------------------


class Watched(ta.Function):
    """The identity; remembers, weakly, the gradient that it sends on and the array it saved."""

    sent, kept = None, None

    def forward(self, x):
        y = x + 0
        self.save(y)
        Watched.kept = weakref.ref(y)
        return y

    def backward(self, grad):
        out = grad + 0
        Watched.sent = weakref.ref(out)
        return out


class Witness(ta.Function):
    """The identity, nearer the leaf: looks at what is still alive when the walk passes."""

    alive = None

    def forward(self, x):
        return x + 0

    def backward(self, grad):
        Witness.alive = Watched.kept() is not None
        return grad + 0


def test_saved_arrays_and_interior_gradients_go_as_the_walk_passes():
    x = leaf(1.0, 2.0)
    loss = Watched.apply(Witness.apply(x) * 1.0).sum()
    assert Watched.kept() is not None
    loss.backward()
    assert Witness.alive is False, "saved arrays are freed during the walk, not after it"
    assert Watched.sent() is None, "the gradient of an interior node is freed"
    np.testing.assert_array_equal(x.grad, [1, 1])


def test_interior_arrays_that_nobody_saved_go_during_forward():
    x = leaf(1.0, 2.0)
    y = x + 1  # addition needs neither input nor output for its gradient
    array = weakref.ref(y.data)
    z = y + 1
    del y
    assert array() is None
    z.sum().backward()
    np.testing.assert_array_equal(x.grad, [1, 1])


def test_graph_goes_without_the_garbage_collector():
    """No reference cycles: AlexNet's activations must not wait for the collector."""
    gc.disable()
    try:
        x = leaf(1.0)
        y = Spy.apply(x) * 2
        node = Spy.nodes[0]
        assert node() is not None
        del y
        assert node() is None
    finally:
        gc.enable()


# --- what it refuses -----------------------------------------------------------------------------


def test_second_backward_is_refused():
    x = leaf(2.0)
    y = (x * x).sum()
    y.backward()
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        y.backward()
    np.testing.assert_array_equal(x.grad, [4])


def test_second_backward_through_a_shared_part_is_refused():
    x = leaf(2.0)
    shared = x * x
    first, second = shared.sum(), (shared * 3).sum()
    first.backward()
    with pytest.raises(RuntimeError, match="second time"):
        second.backward()


def test_retain_graph():
    x = leaf(2.0, 3.0)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward(retain_graph=True)
    y.backward()
    np.testing.assert_array_equal(x.grad, 3 * 2 * x.data)
    with pytest.raises(RuntimeError, match="retain_graph"):
        y.backward()


def test_backward_of_many_elements_needs_a_gradient():
    with pytest.raises(RuntimeError, match=r"\(3,\)"):
        (leaf(1.0, 2.0, 3.0) * 2).backward()


@pytest.mark.parametrize("shape", [(2,), (3, 1), (1, 3), ()], ids=str)
def test_gradient_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"\(3,\)"):
        (leaf(1.0, 2.0, 3.0) * 2).backward(np.ones(shape))


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, bool])
def test_only_floats_have_gradients(dtype):
    with pytest.raises(TypeError, match=np.dtype(dtype).name):
        ta.Tensor(np.ones(3, dtype), requires_grad=True)


def test_a_function_with_a_gradient_of_the_wrong_shape_is_named():
    class Careless(ta.Function):
        def forward(self, x):
            return x * 2

        def backward(self, grad):
            return grad.sum()

    with pytest.raises(ValueError, match=r"Careless.*\(2,\)"):
        Careless.apply(leaf(1.0, 2.0)).sum().backward()


def test_a_function_that_forgets_a_gradient_is_named():
    class Forgetful(ta.Function):
        def forward(self, x, y):
            return x * y

        def backward(self, grad):
            return grad, None

    with pytest.raises(ValueError, match="Forgetful"):
        Forgetful.apply(leaf(1.0), leaf(2.0)).sum().backward()


def test_leaves_do_not_share_a_gradient():
    """Not even when a Function returns one fresh array for both of its inputs."""

    class Twice(ta.Function):
        def forward(self, a, b):
            return a + b

        def backward(self, grad):
            both = 2 * grad
            return both, both

    a, b = ta.ones(3, requires_grad=True), ta.ones(3, requires_grad=True)
    Twice.apply(a, b).sum().backward()
    a.grad += 1
    assert b.grad.tolist() == [2, 2, 2]
