"""Softmax and cross-entropy: all of torch's options, and extreme numbers."""

import numpy as np
import oracles
import pytest
from helpers import assert_close, normal

import tinyalex as ta
import tinyalex.functional as F

SHAPES = {"one": (5,), "rows": (4, 5), "maps": (2, 5, 3), "images": (2, 5, 2, 3)}


def draw_target(rng, shape, kind):
    """Return class indices (one of them -7, to be ignored) or probabilities for these logits."""
    axis = min(1, len(shape) - 1)
    if kind == "indices":
        target = rng.integers(0, shape[axis], np.delete(shape, axis))
        if target.size > 1:
            target.flat[1] = -7
        return target
    p = rng.random(shape)
    return p / p.sum(axis, keepdims=True)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("kind", ["indices", "probabilities"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_cross_entropy(shape, kind, reduction, weighted, label_smoothing, rng, dtype):
    logits = normal(rng, shape, dtype) * 3
    target = draw_target(rng, shape, kind)
    if kind == "probabilities":
        target = target.astype(dtype)
    weight = rng.uniform(0.5, 2, 5).astype(dtype) if weighted else None
    options = {"reduction": reduction, "label_smoothing": label_smoothing}
    if kind == "indices":
        options["ignore_index"] = -7
    expected = oracles.cross_entropy(logits, target, weight, **options)
    loss = F.cross_entropy(ta.Tensor(logits), ta.Tensor(target), weight, **options)
    assert loss.dtype == dtype
    assert_close(loss.data, expected)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_probabilities_and_their_class_weights_have_gradients(
    shape, reduction, label_smoothing, rng, backend
):
    arrays = [normal(rng, shape), draw_target(rng, shape, "probabilities"), rng.uniform(0.5, 2, 5)]
    leaves = [ta.Tensor(a, requires_grad=True) for a in arrays]
    options = {"reduction": reduction, "label_smoothing": label_smoothing}
    assert ta.gradcheck(lambda x, p, w: F.cross_entropy(x, p, w, **options), leaves)


def test_probabilities_computed_by_another_network_pass_the_gradient_on(rng, dtype):
    """As in distillation; also where they are of the other precision."""
    logits = ta.Tensor(normal(rng, (4, 5), dtype), requires_grad=True)
    teacher = ta.Tensor(normal(rng, (4, 5), np.float32), requires_grad=True)
    F.cross_entropy(logits, F.softmax(teacher, 1)).backward()
    assert logits.grad.dtype == dtype
    assert teacher.grad.dtype == np.float32
    assert np.abs(teacher.grad).max() > 1e-3


def test_class_weights_that_want_a_gradient_beside_indices_are_refused():
    logits, target, weight = ta.randn(2, 5), np.array([1, 2]), ta.ones(5, requires_grad=True)
    with pytest.raises(ValueError, match=r"weights have no gradient .* use weight.detach\(\)"):
        F.cross_entropy(logits, target, weight)
    expected = F.cross_entropy(logits, target, weight.detach())
    with ta.no_grad():  # where none is asked for
        assert F.cross_entropy(logits, target, weight).item() == expected.item()


@pytest.mark.parametrize(
    ("error", "message", "target", "options"),
    [
        (ValueError, "ignore_index=1 is for class indices", np.ones((2, 5)), {"ignore_index": 1}),
        (TypeError, "ignore_index must be an integer", [1, 2], {"ignore_index": 1.0}),
        (TypeError, "label_smoothing must be a number", [1, 2], {"label_smoothing": ta.ones(())}),
        (TypeError, "label_smoothing must be a number", [1, 2], {"label_smoothing": True}),
        (ValueError, "label_smoothing must be a finite", [1, 2], {"label_smoothing": np.nan}),
        (TypeError, "targets must be integers", np.ones((2, 5), bool), {}),
        (TypeError, "targets must be integers", np.ones((2, 5), complex), {}),
        (ValueError, "class indices must be integers", np.ones(2), {}),
        (TypeError, "class weights must be numbers", [1, 2], {"weight": np.ones(5, complex)}),
    ],
)
def test_what_cross_entropy_refuses(error, message, target, options):
    with pytest.raises(error, match=message):
        F.cross_entropy(ta.randn(2, 5), target, **options)


def test_cross_entropy_takes_plain_arrays_and_small_integers():
    logits = np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    expected = oracles.cross_entropy(logits, np.array([2, 0]))
    for target in (np.array([2, 0]), np.array([2, 0], np.uint8), np.array([2, 0], np.int32)):
        assert_close(F.cross_entropy(ta.Tensor(logits), target).data, expected)


def test_cross_entropy_of_nothing_is_not_a_number():
    """The mean of no losses, as in torch; and no warning, for a batch may well be all ignored."""
    logits = ta.zeros(2, 5, requires_grad=True)
    loss = F.cross_entropy(logits, np.full(2, -100))
    loss.backward()
    assert np.isnan(loss.item())
    assert not logits.grad.any()
    assert F.cross_entropy(ta.zeros(0, 5), np.zeros(0, int), reduction="sum").item() == 0


def test_cross_entropy_of_uniform_logits_is_log_of_classes():
    loss = F.cross_entropy(ta.zeros((4, 1000)), np.arange(4))
    np.testing.assert_allclose(loss.item(), np.log(1000), rtol=1e-6)


@pytest.mark.parametrize("function", [F.softmax, F.log_softmax])
def test_softmax_of_huge_numbers(function, dtype):
    x = np.array([[1e4, 1e4 + 1, -1e4], [-np.inf, 0, 0]], dtype)
    expected = function(ta.Tensor(np.array([[0, 1, -2e4], [-2e4, 0, 0]])), dim=1).data
    y = function(ta.Tensor(x), dim=1).data
    np.testing.assert_allclose(np.exp(y), np.exp(expected), rtol=1e-6)


def test_cross_entropy_with_a_class_ruled_out():
    """Minus infinity on a wrong class (a mask) costs nothing, as in torch."""
    logits = ta.Tensor(np.array([[1.0, 2.0, -np.inf]]), requires_grad=True)
    loss = F.cross_entropy(logits, np.array([1]))
    np.testing.assert_allclose(loss.item(), np.log(1 + np.exp(-1)))
    loss.backward()
    p = 1 / (1 + np.exp(-1))
    np.testing.assert_allclose(logits.grad, [[1 - p, p - 1, 0]], atol=1e-15)


def test_cross_entropy_survives_confident_mistakes(dtype):
    logits = ta.Tensor(np.array([[1e4, 0.0]], dtype), requires_grad=True)
    loss = F.cross_entropy(logits, np.array([1]))
    assert loss.item() == 1e4
    loss.backward()
    np.testing.assert_array_equal(logits.grad, [[1, -1]])
