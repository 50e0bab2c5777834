"""Activations of a network's layers, as descriptions of images."""

from __future__ import annotations

import numpy as np

from tinyalex.backends.devices import host_copy
from tinyalex.backends.types import Array
from tinyalex.grad_mode import no_grad
from tinyalex.models import AlexNet
from tinyalex.tensor import Tensor
from tinyalex.training.evaluation import device_of_model


def features(model: AlexNet, images: Array, layer: str = "fc7", batch_size: int = 32) -> np.ndarray:
    """Return the activations [N, D] of a layer for images, after its ReLU.

    images [N, C, H, W] as the network takes them (`Classifier.inputs`), on any device; ``layer`` is
    a name in ``model.layers``: conv1 ... conv5, pool1, pool2, pool5, fc6, fc7, fc8 and others. Maps
    are flattened in the order C, H, W. fc8 has no ReLU: its activations are the logits. The network
    runs without dropout, whatever its mode, records nothing, and stops after the layer;
    `batch_size` images go through it at a time. Raises ValueError for an unknown layer.
    """
    device, found = device_of_model(model), []
    with no_grad():
        for start in range(0, max(1, len(images)), batch_size):
            some = Tensor(images[start : start + batch_size]).to(device)
            found.append(host_copy(model.activations(some, layer).data))
    return np.concatenate(found)
