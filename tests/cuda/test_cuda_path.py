"""The whole GPU path, forward, backward and update, against plain NumPy."""

import numpy as np
import oracles_random
import pytest
from helpers import normal

import tinyalex as ta
import tinyalex.functional as F
from tinyalex import nn, optim
from tinyalex.backends.devices import move
from tinyalex.backends.layout import copy_with_room

CLASSES = 10


class PhiloxDropout(nn.Dropout):
    """Dropout on the CPU with the GPU's masks."""

    def forward(self, x):
        if not self.training or x.device != "cpu":
            return super().forward(x)
        factors = oracles_random.dropout(np.ones(x.shape), self.p, ta.random.next_key())
        return x * ta.Tensor(factors.astype(np.float32))


def small_alexnet():
    """Return a network of the paper's kinds of layers, with few channels."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 11, stride=4, padding=2),
        nn.ReLU(),
        nn.LocalResponseNorm(5, alpha=0.5, k=2.0),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(16, 24, 5, padding=2, groups=2),
        nn.ReLU(),
        nn.LocalResponseNorm(5, alpha=0.5, k=2.0),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(24, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 16, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Flatten(),
        PhiloxDropout(0.5),
        nn.Linear(16, 32),
        nn.ReLU(),
        nn.Linear(32, CLASSES),
    )


def trained(device, steps, batch=5, size=67, place=lambda images: images):
    """Return losses of some steps, and the weights and velocities after them."""
    ta.manual_seed(7)
    rng = np.random.default_rng(7)
    model = small_alexnet()
    nn.init.kaiming_uniform_(model[0].weight)
    model.to(device)
    groups = optim.parameter_groups(model, bias_lr_factor=2, bias_decay_factor=0)
    optimizer = optim.SGD(groups, lr=0.02, momentum=0.9, weight_decay=5e-4)
    losses = []
    for _ in range(steps):
        images = ta.tensor(normal(rng, (batch, 3, size, size), np.float32), device=device)
        images = ta.Tensor(place(images.data))
        labels = ta.tensor(rng.integers(0, CLASSES, batch), device=device)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    velocities = dict(enumerate(optimizer.state_dict()["velocity"]))
    return np.array(losses), {**model.state_dict(), **velocities}


def test_five_steps_are_those_of_the_reference(cuda):
    losses, arrays = trained("cuda", 5, place=copy_with_room)  # as the loader places them
    with ta.use_backend("reference"):
        wanted_losses, wanted = trained("cpu", 5)
    # Rounding of float32 alone: the CPU's kernels are as far from the reference as these.
    np.testing.assert_allclose(losses, wanted_losses, rtol=1e-5)
    for name, array in arrays.items():
        error = np.linalg.norm(array - wanted[name]) / np.linalg.norm(wanted[name])
        assert error < 2e-5, f"{name}: {error}"


def test_twice_the_same_bits(cuda):
    first, second = trained("cuda", 2), trained("cuda", 2, place=copy_with_room)
    assert np.array_equal(first[0], second[0])
    assert all(np.array_equal(first[1][name], second[1][name]) for name in first[1])


@pytest.mark.parametrize(("precision", "error"), [("high", 2e-3), ("medium", 2e-2)])
def test_coarser_products(cuda, precision, error):
    """The output is off by the rounding of TF32 or bfloat16, and by no more than that."""
    ta.manual_seed(3)
    model = small_alexnet().eval()
    for name, parameter in model.named_parameters():  # without biases, which are never rounded
        fill = nn.init.zeros_ if name.endswith("bias") else nn.init.kaiming_normal_
        fill(parameter)
    images = normal(np.random.default_rng(3), (2, 3, 67, 67), np.float32)
    with ta.no_grad():
        wanted = model(ta.tensor(images)).data
        model.to("cuda")
        exact = model(ta.tensor(images, device="cuda"))
        ta.set_float32_matmul_precision(precision)
        try:
            coarse = model(ta.tensor(images, device="cuda"))
        finally:
            ta.set_float32_matmul_precision("highest")
    scale = np.linalg.norm(wanted)
    assert np.linalg.norm(move(exact.data, "cpu") - wanted) < 1e-5 * scale
    off = np.linalg.norm(move(coarse.data, "cpu") - wanted)
    assert error / 20 * scale < off < error * scale


def test_one_image_through_the_network_of_the_paper(cuda):
    """AlexNet as it is, 61 million weights: the same ten best classes as on the CPU."""
    ta.manual_seed(1)
    model = ta.models.alexnet("paper").eval()
    image = normal(np.random.default_rng(1), (1, 3, 224, 224), np.float32) * 50
    with ta.no_grad():
        wanted = model(ta.tensor(image)).data
        got = move(model.to("cuda")(ta.tensor(image, device="cuda")).data, "cpu")
    assert np.linalg.norm(got - wanted) < 1e-5 * np.linalg.norm(wanted)
    assert np.array_equal(np.argsort(got)[0, -10:], np.argsort(wanted)[0, -10:])
