"""Data-dependent initial weights, so that training from scratch starts at once.

Random weights give every image nearly the same answer: what the images have in common outweighs
what tells them apart, layer after layer, and a small data set is over before training has dug out
the difference. Measuring a few dozen images and subtracting what they share removes that.
"""

from __future__ import annotations

import numpy as np

from tinyalex.backends import array_module
from tinyalex.backends.bfloat16 import as_float32
from tinyalex.backends.devices import using
from tinyalex.grad_mode import no_grad
from tinyalex.nn.conv import Conv2d
from tinyalex.nn.linear import Linear
from tinyalex.nn.module import Module
from tinyalex.tensor import Tensor

LOGIT_STD = 0.5  # a mild opinion: the first loss stays within a tenth of ln(classes)


@no_grad()
def data_dependent_(model: Module, images: Tensor) -> None:
    """Scale and shift all weight layers of ``model``, in place, by ``images``.

    Afterwards each output channel of each such layer has mean 0 and standard deviation 1 over these
    images (and positions): ``weight /= std``, ``bias = (bias - mean) / std``, layer by layer in one
    forward pass. The last layer's outputs get the standard deviation 0.5. The directions of the
    weights stay as they were drawn. A layer without a bias is scaled only; a channel that is the
    same everywhere is shifted only.

    This is the per-channel normalisation of Kraehenbuehl, Doersch, Donahue, Darrell: Data-dependent
    initializations of convolutional neural networks, ICLR 2016, section 3.1. Raises ValueError for
    fewer than two images.
    """
    if len(images) < 2:
        raise ValueError(f"data_dependent_ needs two images or more, got {len(images)}")
    layers = [layer for layer in model.modules() if isinstance(layer, (Conv2d, Linear))]

    def standardise(layer: Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, (Conv2d, Linear))
        positions = (0, *range(2, output.ndim))
        shape = (-1, *[1] * (output.ndim - 2))
        values = as_float32(output.data)
        xp = array_module(values)
        mean = values.mean(axis=positions, dtype=np.float64)
        std = values.std(axis=positions, dtype=np.float64)
        std = xp.where(std > 0, std, 1)
        if layer is layers[-1]:
            std /= LOGIT_STD
        weight = layer.weight
        weight /= std.reshape(-1, *[1] * (weight.ndim - 1)).astype(weight.dtype)
        if layer.bias is None:
            mean = xp.zeros_like(mean)
        else:
            layer.bias[...] = (layer.bias.data - mean) / std
        output.data = ((values - mean.reshape(shape)) / std.reshape(shape)).astype(output.dtype)

    mode = model.training
    handles = [layer.register_forward_hook(standardise) for layer in layers]
    try:
        model.eval()  # dropout would add its noise to what is measured
        with using(images.device):
            model(images)
    finally:
        model.train(mode)
        for handle in handles:
            handle.remove()
