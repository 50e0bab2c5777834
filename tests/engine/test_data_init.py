"""Data-dependent initial weights: promised statistics, and nothing else changed."""

import numpy as np
import pytest
from helpers import assert_close

import tinyalex as ta
from tinyalex import models, nn


def test_every_layer_has_mean_0_and_std_1_and_the_last_half_of_it(rng, backend):
    model = models.alexnet(models.VARIANTS["paper"].thinner(16, 67), num_classes=7)
    images = ta.Tensor(rng.uniform(-100, 150, (12, 3, 67, 67)).astype(np.float32))
    nn.data_dependent_(model, images)
    outputs = {}
    for name, layer in model.weight_layers.items():
        layer.register_forward_hook(lambda _, __, y, name=name: outputs.update({name: y.data}))
    model.eval()
    model(images)
    assert len(outputs) == 8
    for name, y in outputs.items():
        axes = (0, *range(2, y.ndim))
        std = 0.5 if name == "fc8" else 1.0
        np.testing.assert_allclose(y.mean(axes), 0, atol=1e-3, err_msg=name)
        np.testing.assert_allclose(y.std(axes), std, rtol=1e-3, err_msg=name)


def test_only_scales_and_biases_change_and_the_mode_stays(rng):
    layer = nn.Conv2d(3, 5, 3)
    model = nn.Sequential(layer, nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(5 * 16, 2))
    before = layer.weight.data.copy()
    nn.data_dependent_(model, ta.Tensor(rng.standard_normal((6, 3, 6, 6)).astype(np.float32)))
    ratio = layer.weight.data / before
    assert_close(ratio, np.broadcast_to(ratio[:, :1, :1, :1], ratio.shape), 1e-5)
    assert (ratio > 0).all()
    assert model.training
    assert not layer._forward_hooks
    assert layer.weight.dtype == np.float32


def test_channels_without_variation_stay_finite():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2, bias=False))
    nn.data_dependent_(model, ta.ones(5, 4))  # the same image five times
    assert all(np.isfinite(p.data).all() for p in model.parameters())


def test_refuses_a_single_image():
    with pytest.raises(ValueError, match="two images or more, got 1"):
        nn.data_dependent_(nn.Linear(4, 3), ta.ones(1, 4))
