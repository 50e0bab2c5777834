"""The same network in PyTorch: the peer of every benchmark."""

from __future__ import annotations

import torch

from tinyalex import models, nn


def _layer(layer: nn.Module) -> torch.nn.Module:
    match layer:
        case nn.Conv2d():
            return torch.nn.Conv2d(
                layer.in_channels,
                layer.out_channels,
                layer.kernel_size,
                layer.stride,
                layer.padding,
                layer.dilation,
                layer.groups,
            )
        case nn.Linear():
            return torch.nn.Linear(layer.in_features, layer.out_features)
        case nn.MaxPool2d():
            return torch.nn.MaxPool2d(layer.kernel_size, layer.stride)
        case nn.AdaptiveAvgPool2d():
            return torch.nn.AdaptiveAvgPool2d(layer.output_size)
        case nn.LocalResponseNorm():
            return torch.nn.LocalResponseNorm(layer.size, layer.alpha, layer.beta, layer.k)
        case nn.ReLU():
            return torch.nn.ReLU(inplace=True)  # PyTorch's own AlexNet does, to save memory
        case nn.Dropout():
            return torch.nn.Dropout(layer.p)
    raise TypeError(f"no twin for {layer!r}")


def twin(model: models.AlexNet) -> torch.nn.Sequential:
    """Return a PyTorch network with the layers and the weights of ``model``."""
    leaves = [*model.features, torch.nn.Flatten(1), *model.classifier]
    network = torch.nn.Sequential(
        *(layer if isinstance(layer, torch.nn.Module) else _layer(layer) for layer in leaves)
    )
    pairs = zip(network.parameters(), model.parameters(), strict=True)
    with torch.no_grad():
        for theirs, ours in pairs:
            theirs.copy_(torch.from_numpy(ours.data))
    return network
