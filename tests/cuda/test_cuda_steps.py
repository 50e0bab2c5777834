"""Steps on a GPU, with and without a graph, of small networks."""

import numpy as np
import pytest
from helpers import assert_close, normal

import tinyalex as ta
from tinyalex import nn, optim, random
from tinyalex.backends.devices import use
from tinyalex.data import Batch
from tinyalex.training import DivergedError
from tinyalex.training.gpu_steps import GPUSteps
from tinyalex.training.step import Steps


@pytest.fixture(autouse=True)
def _on_a_stream(cuda):
    """Let the GPU be the current device, with a stream that can be recorded."""
    use("cuda")


def two_layers(weights):
    """Return a network of two linear layers on the GPU, and what takes its steps."""
    model = nn.Sequential(*(nn.Linear(*w.shape[::-1], bias=False) for w in weights))
    for layer, array in zip(model, weights, strict=True):
        layer.weight.data[...] = array
    return model.to("cuda")


def test_gradients_that_are_not_finite_change_nothing(rng):
    """The loss is finite, but its gradient is beyond float32."""
    model = two_layers([np.full((4, 3), 1e-30), 1e20 * rng.standard_normal((2, 4))])
    steps = GPUSteps(model, optim.SGD(model.parameters(), lr=0.1), every=3)
    before = model.state_dict()
    images, labels = np.full((5, 3), 1e30, np.float32), np.array([0, 1, 0, 1, 0])
    on_gpu = ta.Tensor(images).to("cuda").data
    for _ in range(3):
        steps.take(Batch(on_gpu, labels, labels))
    with pytest.raises(DivergedError, match="a gradient has values that are not finite"):
        list(steps.read())
    for name, array in model.state_dict().items():
        assert np.array_equal(array, before[name])


@pytest.mark.parametrize("graph", [False, True])
def test_batches_of_other_sizes(rng, graph):
    """Those of the first size are replayed, before and after others."""
    weights = [normal(rng, shape, np.float32) for shape in ((6, 3), (2, 6))]
    batches = []
    for size in (8, 8, 8, 5, 8, 3, 8):
        labels = rng.integers(0, 2, size)
        batches.append(Batch(normal(rng, (size, 3), np.float32), labels, labels))

    def learn(model, steps, place):
        results = []
        for number, batch in enumerate(batches):
            random.start_step(number)
            steps.take(Batch(place(batch.images), batch.labels, batch.indices))
            results += steps.read() if number % 2 else []
        return [average.__dict__ for average in (*results, *steps.read())], model.state_dict()

    model = two_layers(weights)
    sgd = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    found = learn(model, GPUSteps(model, sgd, 2, graph), lambda x: ta.Tensor(x).to("cuda").data)
    model = two_layers(weights).to("cpu")
    sgd = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    expected = learn(model, Steps(model, sgd), lambda x: x)
    assert found[0] == [pytest.approx(average, rel=1e-5) for average in expected[0]]
    for name, array in expected[1].items():
        assert_close(found[1][name], array, 1e-5, name)


def test_a_graph_of_all_layers(rng):
    """Those of AlexNet, fused and alone, under the capture's rules: bit for bit as without."""

    def learn(graph):
        ta.manual_seed(3)
        model = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.LocalResponseNorm(5), nn.MaxPool2d(2)),
            *(nn.Conv2d(8, 8, 3, groups=2), nn.LocalResponseNorm(3), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.ZeroPad2d(1), nn.Conv2d(8, 6, 3, stride=2), nn.ReLU(), nn.Flatten()),
            *(nn.Dropout(0.3), nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 4)),
        ).to("cuda")
        sgd = optim.SGD(model.parameters(), lr=0.1, momentum=0.9, update="paper")
        steps = GPUSteps(model, sgd, 5, graph)
        for number, images in enumerate(batches):
            random.start_step(number)
            labels = np.array([0, 3])
            steps.take(Batch(ta.Tensor(images).to("cuda").data, labels, labels))
        return [*steps.read()], model.state_dict()

    batches = normal(rng, (5, 2, 3, 11, 13), np.float32)
    (results, weights), (expected, expected_weights) = learn(True), learn(False)
    assert results == expected
    for name, array in expected_weights.items():
        assert np.array_equal(weights[name], array), name
