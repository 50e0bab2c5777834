"""Activations of a layer: values, names, modes, batches."""

import numpy as np
import pytest
from commands import TINY
from helpers import assert_close

from tinyalex.models import VARIANTS, alexnet
from tinyalex.pictures.features import layer_outputs
from tinyalex.tensor import Tensor
from tinyalex.training import features

THIN = {name: VARIANTS[name].thinner(16, 67) for name in ("source2012", "torchvision", "paper")}


def images_for(variant, count=3):
    shape = count, variant.in_channels, variant.input_size, variant.input_size
    return np.random.default_rng(0).standard_normal(shape, np.float32)


@pytest.mark.parametrize("name", THIN)
def test_features_are_the_rectified_outputs_of_every_layer(name):
    model, images = alexnet(THIN[name], num_classes=4), images_for(THIN[name])
    outputs = layer_outputs(model, images)
    for layer, output in outputs.items():
        expected = output if layer == "fc8" else np.maximum(output, 0)
        assert_close(features(model, images, layer), expected.reshape(3, -1), what=layer)
    assert {"conv1", "conv5", "pool1", "pool2", "pool5", "fc6", "fc7", "fc8"} <= outputs.keys()


def test_a_convolution_is_rectified_once_and_its_maps_are_in_the_order_of_fc6():
    model, images = alexnet(THIN["torchvision"], num_classes=4), images_for(THIN["torchvision"])
    before = Tensor(features(model, images, "avgpool5"))
    assert_close(model.weight_layers["fc6"](before).data, layer_outputs(model, images)["fc6"])


@pytest.mark.parametrize("training", [True, False])
def test_dropout_does_nothing_and_the_mode_stays(training):
    model, images = alexnet(TINY, num_classes=3).train(training), images_for(TINY, 40)
    found = features(model, images, "fc3")
    assert all(module.training is training for module in model.modules())
    assert_close(found, model.eval()(Tensor(images)).data)


def test_nothing_behind_the_layer_runs_and_nothing_is_recorded(monkeypatch):
    model, images = alexnet(TINY, num_classes=3), images_for(TINY)
    seen = []
    for name, layer in model.layers.items():
        layer.register_forward_hook(
            lambda layer, args, output, name=name: seen.append((name, output.requires_grad))
        )
    features(model, images, "pool1")
    assert [name for name, _ in seen] == ["conv1", "relu1", "pool1"]
    assert not any(recorded for _, recorded in seen)


def test_batches_change_no_more_than_rounding():
    model, images = alexnet(TINY, num_classes=3), images_for(TINY, 7)
    whole = features(model, images, "fc2", batch_size=7)
    assert_close(features(model, images, "fc2", batch_size=3), whole)
    assert features(model, images[:0], "fc2").shape == (0, 64)


def test_features_on_a_gpu(cuda):
    model, images = alexnet(TINY, num_classes=3), images_for(TINY)
    expected = features(model, images, "fc2")
    assert_close(features(model.to("cuda"), images, "fc2"), expected)


def test_an_unknown_layer_is_refused_with_the_known_ones():
    model = alexnet(TINY, num_classes=3)
    with pytest.raises(ValueError, match=r"one of conv1, relu1, pool1, fc2, relu2, fc3; got 'fc7'"):
        features(model, images_for(TINY), "fc7")
    with pytest.raises(ValueError, match=r"expects a Tensor of images of shape \[N, 3, 28, 28\]"):
        features(model, np.zeros((1, 3, 20, 20), np.float32), "fc2")
