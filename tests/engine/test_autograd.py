"""backward(): order, values, freed memory, and errors."""

import gc
import weakref

import numpy as np
import pytest
from helpers import leaf, normal

import tinyalex as ta
import tinyalex.functional as F
from tinyalex.backends import reference


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
    del z  # a graph that is never walked must also be freed quietly
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
        raise AssertionError("the gradient of the image is not needed")

    monkeypatch.setattr(reference, "conv2d_input_grad", forbidden)
    image = ta.Tensor(normal(rng, (2, 3, 8, 8)))
    weight = ta.Tensor(normal(rng, (4, 3, 3, 3)), requires_grad=True)
    with ta.use_backend("reference"):
        F.relu(F.conv2d(image, weight)).sum().backward()
        assert weight.grad is not None
        assert image.grad is None
        image.requires_grad = True
        with pytest.raises(AssertionError, match="not needed"):
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


def test_a_function_of_what_is_no_tensor_is_refused():
    with pytest.raises(TypeError, match=r"NeedsOnlySecond.apply .* got Tensor, int.* keywords"):
        NeedsOnlySecond.apply(leaf(1.0), 2)


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


def test_hooks_see_complete_gradients():
    """Also of leaves that are used several times, in one node and in several."""
    w, b, frozen = leaf(3.0), leaf(1.0), leaf(2.0)
    seen = []
    for tensor in (w, b, frozen):
        tensor.register_post_accumulate_grad_hook(lambda t: seen.append((t, t.grad.item())))
    y = (w * w + b) * w * frozen
    frozen.requires_grad_(False)
    y.backward()
    assert seen == [(b, 6.0), (w, 56.0)]
    b.register_post_accumulate_grad_hook(lambda t: seen.append("second"))
    b.backward()
    assert seen[2:] == [(b, 7.0), "second"]


def test_hooks_come_before_the_gradients_below():
    below, above = leaf(2.0), leaf(3.0)
    found = []
    with above.register_post_accumulate_grad_hook(lambda t: found.append((t.grad, below.grad))):
        (below * 5 * above).backward()
    (below * 5 * above).backward()
    assert found == [(10.0, None)]


def test_only_leaves_that_learn_take_hooks():
    learns = leaf(1.0)
    for tensor in (learns * 2, ta.ones(1)):
        with pytest.raises(RuntimeError, match="leaf that requires a gradient"):
            tensor.register_post_accumulate_grad_hook(print)
    with pytest.raises(TypeError, match=r"hook\(tensor\), got 3"):
        learns.register_post_accumulate_grad_hook(3)
