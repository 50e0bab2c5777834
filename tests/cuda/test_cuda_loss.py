"""Cross-entropy on a GPU through the engine: all cases and all errors."""

import numpy as np
import pytest
from helpers import assert_close, normal

import tinyalex as ta
import tinyalex.functional as F

SHAPES = {"one": (5,), "rows": (4, 5), "maps": (2, 5, 3)}


def loss_and_grad(device, logits, target, weight=None, **options):
    """Return the loss and the gradient of the logits as NumPy arrays."""
    x = ta.tensor(logits, device=device, requires_grad=True)
    target = ta.tensor(target, device=device)
    weight = None if weight is None else ta.tensor(weight, device=device)
    loss = F.cross_entropy(x, target, weight, **options)
    assert loss.device == x.device
    (loss * 3.0).sum().backward()
    return loss.detach().cpu().numpy(), ta.Tensor(x.grad).cpu().numpy()


def equal_on_both(*args, **options):
    here, there = (loss_and_grad(device, *args, **options) for device in ("cpu", "cuda"))
    for a, b in zip(there, here, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_class_indices(cuda, rng, dtype, shape, reduction, weighted, smoothing):
    logits = normal(rng, shape, dtype)
    target = rng.integers(0, 5, np.delete(shape, min(1, len(shape) - 1)))
    if target.size > 1:
        target.flat[1] = -7
    weight = rng.uniform(0.5, 2, 5).astype(dtype) if weighted else None
    equal_on_both(
        logits, target, weight, ignore_index=-7, reduction=reduction, label_smoothing=smoothing
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_class_probabilities(cuda, rng, reduction):
    logits, p = normal(rng, (4, 5)), rng.random((4, 5))
    equal_on_both(logits, p / p.sum(1, keepdims=True), reduction=reduction)


def test_small_integers_and_nothing_at_all(cuda, rng):
    equal_on_both(normal(rng, (3, 5)), np.array([0, 4, 2], np.uint8))
    equal_on_both(normal(rng, (0, 5)), np.zeros(0, np.int64), reduction="sum")
    for weight in (None, np.ones(5)):  # all of them ignored
        equal_on_both(normal(rng, (3, 5)), np.full(3, -100), weight)
    assert np.isnan(loss_and_grad("cuda", np.zeros((0, 5)), np.zeros(0, np.int64))[0])


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("index", [5, -1])
def test_an_index_that_is_no_class_is_nan_there_and_an_error_here(cuda, rng, index, weighted):
    """The host would have to wait for the GPU to look at the indices."""
    args = normal(rng, (3, 5)), np.array([0, index, 4]), np.ones(5) if weighted else None
    loss, dx = loss_and_grad("cuda", *args)
    assert np.isnan(loss)
    assert np.isnan(dx[1]).all()
    with pytest.raises(ValueError, match=rf"in \[0, 5\), got {index}"):
        loss_and_grad("cpu", *args)


def test_targets_on_the_host_are_refused(cuda, rng):
    x = ta.tensor(normal(rng, (2, 3)), device="cuda")
    with pytest.raises(ValueError, match=r"cross_entropy .*one device, got cuda:0 and cpu; move"):
        F.cross_entropy(x, np.array([0, 1]))
    with pytest.raises(ValueError, match=r"cross_entropy .*one device, got cuda:0 and cpu; move"):
        F.cross_entropy(x, ta.tensor([0, 1], device="cuda"), weight=np.ones(3))
