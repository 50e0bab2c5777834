"""Steps of ranks that have parts of the network: hybrid, and towers."""

import pytest
from ranks import said

from tinyalex.distributed import plan
from tinyalex.models import VARIANTS

CLASSES, IMAGES = 101, 10
SIZES = {"torchvision": (63, 8), "source2012": (224, 16)}
"""Pixels and divisors of thin variants."""
STEP = """
import tinyalex as ta
from tinyalex.data import Batch, EvalTransform, Loader, Patterns
from tinyalex.distributed.communicator import Single
from tinyalex.models import VARIANTS, alexnet
from tinyalex.optim import SGD
from tinyalex.training.ranks import Ranks
from tinyalex.training.sharded_step import ShardedSteps
from tinyalex.training.split_step import SplitSteps
parallel, variant, single, *numbers = sys.argv[1:]
classes, images, size, divisor = map(int, numbers)
thin = VARIANTS[variant].thinner(divisor, size)
rng = np.random.default_rng(0)
pixels = np.moveaxis(rng.normal(size=(images, size, size, 3)), -1, 1)
labels = rng.integers(0, classes, images)
data = Loader(Patterns("train", 64), images, EvalTransform(size, 125.0, 60.0))

def learned(kind, link, parallel, dtype=np.float64):
    "Return what two steps leave behind, and the bytes that the second sends."
    every = Ranks(link, 4, parallel)
    ta.manual_seed(3)
    model = alexnet(thin, classes, dropout=0.5).train().to(dtype)
    for layer in model.weight_layers.values():
        layer.weight.data *= 4  # so that gradients reach all layers
    optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9)
    steps = kind(model, optimizer, every, data)
    rows = every.rows(images)
    batch = Batch(pixels[rows].astype(dtype), labels[rows], np.arange(images)[rows])
    found = []
    for step in range(2):
        ta.random.start_step(step)
        sent = link.sent
        steps.take(batch)
        sent = link.sent - sent
        found += [result.loss_sum for result in steps.read()]
        steps.gather()
        if step == 0:  # velocities begin with gradients
            names = [f"the gradient of {name}" for name, _ in model.named_parameters()]
            gradients = [velocity.copy() for velocity in optimizer.velocities]
    arrays = {name: p.data for name, p in model.named_parameters()}
    return found, {**arrays, **dict(zip(names, gradients, strict=True))}, sent

def off(arrays):
    "Return how far arrays are from those of one process in float64, relative to the largest."
    assert all(np.abs(array).max() > 0 for array in expected.values())
    return {k: np.abs(arrays[k] - a).max() / np.abs(a).max() for k, a in expected.items()}

with ta.use_backend("reference"):  # which compiles nothing
    losses, expected, _ = learned(ShardedSteps, Single(), "data")
    others, arrays, sent = learned(SplitSteps, ranks, parallel)
    np.testing.assert_allclose(others, losses, rtol=1e-12)
    assert max(off(arrays).values()) <= 1e-12, (ranks.rank, off(arrays))
    if single == "True":
        one = off(learned(ShardedSteps, Single(), "data", np.float32)[1])
        for name, error in off(learned(SplitSteps, ranks, parallel, np.float32)[1]).items():
            if name.startswith("the gradient"):
                assert error <= max(1e-6, one[name]), (ranks.rank, name, error, one[name])
say(sent)
"""


@pytest.mark.parametrize(
    ("parallel", "variant", "count", "single"),
    [
        ("hybrid", "torchvision", 2, True),
        ("hybrid", "torchvision", 3, False),
        ("towers", "source2012", 2, True),
        ("towers", "source2012", 4, False),
    ],
)
def test_what_is_learned_is_that_of_one_process(parallel, variant, count, single):
    """So are losses, gradients, and weights; bytes are those of the plan, and words in JSON.

    In float64, where rounding hides no mistake. Where layers are parts, the gradient of their
    inputs is added over the filters of each part first, and one process adds all in a row: in
    float32 the two differ by their rounding, that of one process being the larger at times (of the
    whole `source2012` 1.1e-6 in one gradient). So there, parts are held to float64.
    """
    size, divisor = SIZES[variant]
    thin = VARIANTS[variant].thinner(divisor, size)
    sent = max(
        map(int, said(count, STEP, parallel, variant, single, CLASSES, IMAGES, size, divisor))
    )
    layers = plan.layers_of(thin, CLASSES, size)
    machine = plan.Machine(rate=1, link=1, latency=0)
    planned = plan.cost(layers, parallel, count, IMAGES, machine).sent
    assert sent == pytest.approx(2 * planned, rel=0.03)  # float64, not float32
