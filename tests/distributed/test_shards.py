"""Steps on parts of a batch."""

import numpy as np
import pytest

import tinyalex as ta
import tinyalex.functional as F
from tinyalex import models, random
from tinyalex.backends.cpu import elementwise
from tinyalex.backends.sharded import sharded
from tinyalex.backends.shards import part_of, spans_of_ranks, tree_of_ranks


def gradients(model, images, labels, part):
    """Return the losses and gradients of a rank's part of a batch."""
    rows = part.rows
    model.zero_grad()
    random.manual_seed(3)
    random.start_step(7)
    with sharded(part):
        logits = model(ta.Tensor(images[rows]))
        losses = F.cross_entropy(logits, ta.Tensor(labels[rows]), reduction="none")
        losses.backward(np.full(len(losses), 1 / len(images), np.float32))
    return losses.detach().numpy(), {name: p.grad for name, p in model.named_parameters()}


def summed(tree, terms):
    """Return the sum over ranks."""
    return terms[tree] if isinstance(tree, int) else summed(tree[0], terms) + summed(tree[1], terms)


def of_ranks(model, images, labels, shards, ranks):
    """Return the losses and gradients that so many ranks find."""
    spans = spans_of_ranks(shards, ranks)
    found = [gradients(model, images, labels, part_of(len(images), shards, span)) for span in spans]
    tree = tree_of_ranks(spans)
    losses = np.concatenate([losses for losses, _ in found])
    return losses, {name: summed(tree, [grads[name] for _, grads in found]) for name in found[0][1]}


def problem(variant, count, divisor=8):
    """Return a thin network in training mode, images and labels."""
    size = 67 if variant == "torchvision" else models.VARIANTS[variant].input_size
    thin = models.VARIANTS[variant].thinner(divisor, size)
    random.manual_seed(1)
    model = models.AlexNet(thin, 10, dropout=0.5).train()
    rng = np.random.default_rng(0)
    images = rng.standard_normal((count, size, size, 3)).astype(np.float32)
    return model, np.moveaxis(images, -1, 1), rng.integers(0, 10, count)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(
    ("variant", "count", "shards"),
    [("torchvision", 16, 8), ("torchvision", 13, 8), ("paper", 8, 8), ("source2012", 9, 4)],
)
def test_the_bits_are_those_of_one_rank(variant, count, shards, backend):
    with ta.use_backend(backend):
        # The kernels that the layers of AlexNet have need so many channels; the plain ones do not.
        arguments = problem(variant, count, 8 if backend == "cpu" else 16)
        losses, expected = of_ranks(*arguments, shards, 1)
        for ranks in (2, 3, 4, 8, 11)[: 5 if backend == "cpu" else 2]:
            others, found = of_ranks(*arguments, shards, ranks)
            np.testing.assert_array_equal(losses, others)
            for name, gradient in expected.items():
                np.testing.assert_array_equal(gradient, found[name], err_msg=f"{name}, {ranks}")


def differ(first, second):
    """Return the names of gradients that differ."""
    return [name for name, gradient in first[1].items() if (gradient != second[1][name]).any()]


def test_dropout_that_is_not_shifted_gives_another_network(monkeypatch):
    arguments = problem("torchvision", 16)
    expected = of_ranks(*arguments, 8, 1)
    monkeypatch.setattr(elementwise, "shifted", lambda key, first: key)
    # Each rank then begins with the draws of the first image.
    assert len(differ(expected, of_ranks(*arguments, 8, 2))) == len(expected[1])


def test_sums_in_another_order_give_other_bits():
    arguments = problem("torchvision", 16)
    found = [gradients(*arguments, part_of(16, 8, (i, i + 1))) for i in range(8)]
    one_by_one = {name: sum(grads[name] for _, grads in found[1:]) for name in found[0][1]}
    for name, gradient in found[0][1].items():
        one_by_one[name] = gradient + one_by_one[name]
    assert len(differ(of_ranks(*arguments, 8, 1), (None, one_by_one))) > 4
