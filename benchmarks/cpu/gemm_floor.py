"""Speed of a net whose only work is its matrix products.

The operations of all products, divided by the speed of one large product, are a time that a step
cannot go below by much. They are counted twice: with every convolution done directly, and done by
Winograd's algorithm in tiles of 4 x 4 outputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from shared.network import Step
from tinyalex import nn

SIZE = 2048  # of the large matrices
SIZE_OPERATIONS = 2 * SIZE**3  # a multiplication and an addition for each product


def operations(steps: Iterable[Step], batch_size: int, training: bool) -> dict[str, float]:
    """Return the floating-point operations of a net's products, "direct" and by "winograd".

    ``steps`` are the layers with their inputs and outputs. Training has three products a layer:
    forward, input gradient (not for the images) and weight gradient.
    """
    total = {"direct": 0.0, "winograd": 0.0}
    first = True
    for _, layer, x, y in steps:
        if not isinstance(layer, (nn.Conv2d, nn.Linear)):
            continue
        outputs = [y.shape[2:], y.shape[2:]] if training else [y.shape[2:]]
        if training and not first:
            outputs.append(x.shape[2:])  # the input gradient is a convolution, too
        first = False
        direct = 2.0 * batch_size * layer.weight.size * prod(y.shape[2:])  # 1 of a linear layer
        for output in outputs:
            total["direct"] += direct
            total["winograd"] += _winograd(layer, output, batch_size) or direct
    return total


def _winograd(layer: nn.Module, output: tuple[int, ...], images: int) -> float | None:
    """Return the operations by Winograd's algorithm, None where it does not apply."""
    from tinyalex.backends.cpu.conv.winograd_tiles import lay_out, lines_of
    from tinyalex.backends.cpu.conv.winograd_transforms import TILE

    if not isinstance(layer, nn.Conv2d):
        return None
    K, channels, taps, _ = layer.weight.shape
    stride = layer.stride[0]
    if stride > 1:  # a block of stride x stride pixels is one pixel with that many more channels
        channels, taps = channels * stride**2, -(-taps // stride)
    if taps not in (3, 5):
        return None
    canvas = lay_out(images, output, taps)
    tiles = lines_of(canvas, images) * canvas.tiles
    return 2.0 * (TILE + taps - 1) ** 2 * tiles * K * channels
