"""Steps of a network in words, of graphs and variants alike.

What has equal words computes the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from tinyalex.models import Variant, spec
from tinyalex.models.alexnet import output_shape
from tinyalex.text import counted


class Step(NamedTuple):
    """Step of a network: words for it, its node, and its arrays."""

    words: str
    node: str = ""
    weight: np.ndarray | None = None
    bias: np.ndarray | None = None

    @property
    def weighted(self) -> bool:
        """True for a convolution or linear layer."""
        return self.weight is not None and self.words != SCALE


SCALE = "normalisation of the input"
SOFTMAX = "softmax"
RELU = "ReLU"


def convolution(filters: int, kernel: int, stride: int, begin: int, groups: int, out: int) -> str:
    """Return words for a convolution."""
    return (
        f"a convolution of {counted(filters, 'filter')} of {kernel}x{kernel}, stride {stride}, "
        f"padding {begin}, groups {groups}, to maps of {out}x{out}"
    )


def pooling(kernel: int, stride: int, begin: int, out: int) -> str:
    """Return words for max-pooling."""
    window = f"{kernel}x{kernel}, stride {stride}, padding {begin}"
    return f"max-pooling of {window}, to maps of {out}x{out}"


def norm(size: int, alpha: float, beta: float, k: float, groups: int = 1) -> str:
    """Return words for a response normalisation across channels."""
    numbers = f"size {size}, alpha {alpha:.6g}, beta {beta:.6g}, k {k:.6g}"
    return f"LRN with {numbers}" + (f" in {groups} groups" if groups > 1 else "")


def steps_of(variant: Variant, size: int, num_classes: int) -> Iterator[str]:
    """Yield the steps of a variant for images of a size."""
    channels = variant.in_channels
    for layer in (*variant.features, *variant.classifier):
        before = size
        channels, size = output_shape(layer, channels, size)
        match layer:  # a Pad shows in the size of the maps that follow
            case spec.Conv(filters, kernel, stride, padding, groups):
                yield convolution(filters, kernel, stride, padding, groups, size)
            case spec.Pool(kernel, stride):
                yield pooling(kernel, stride, 0, size)
            case spec.AdaptivePool(cells) if cells != before:
                yield f"means over {cells}x{cells} cells"
            case spec.ReLU():
                yield RELU
            case spec.LRN(alpha, k, window, beta, groups):
                yield norm(window, alpha, beta, k, groups)
            case spec.WithinMapNorm(alpha, k, window, beta):
                yield norm(window, alpha, beta, k) + " within each map"
            case spec.Linear(features):
                yield f"a linear layer of {counted(features or num_classes, 'output')}"
