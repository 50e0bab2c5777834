"""The network of every contestant: its weights, and its layers in order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

import tinyalex as ta
from tinyalex import nn
from tinyalex.models import AlexNet, Variant

KINDS = {nn.ReLU: "relu", nn.MaxPool2d: "pool", nn.LocalResponseNorm: "norm"}


class Step(NamedTuple):
    """A layer with its usual name, its input and its output."""

    name: str
    layer: nn.Module
    x: ta.Tensor
    y: ta.Tensor


def network(variant: str | Variant, classes: int = 1000) -> AlexNet:
    """Return the net with the weights that every contestant begins with.

    They are He's: the paper's own would need raw pixels for the losses to move at all. There is no
    dropout, since no two libraries draw the same masks.
    """
    ta.manual_seed(0)
    model = ta.models.alexnet(variant, classes, dropout=0.0)
    for layer in model.weight_layers.values():
        nn.init.kaiming_normal_(layer.weight)
        nn.init.zeros_(layer.bias)
    return model


def walk(model: AlexNet, images: np.ndarray) -> Iterator[Step]:
    """Yield the layers in the order in which they run.

    They are numbered as usual: pool2 and relu2 follow conv2.
    """
    names = {id(layer): name for name, layer in model.weight_layers.items()}
    number = ""
    x = ta.Tensor(images)
    with ta.no_grad():
        for layer in [*model.features, nn.Flatten(), *model.classifier]:
            kind = KINDS.get(type(layer), type(layer).__name__.lower())
            name = names.get(id(layer), kind + number)
            number = name[-1] if id(layer) in names else number
            y = layer(x)
            yield Step(name, layer, x, y)
            x = y


def walk_one_image(model: AlexNet, pixels: int) -> list[Step]:
    """Return the layers with the shapes of one image."""
    with ta.use_backend("reference"):  # for which Numba need not be woken
        return list(walk(model, np.zeros((1, 3, pixels, pixels), np.float32)))
