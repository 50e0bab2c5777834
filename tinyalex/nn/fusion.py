"""Runs of layers in a `Sequential` that are computed in one pass.

A layer that is followed by a cheap one can apply that to each value while it still has it, and save
a journey to memory and back. Nothing changes but the time and the last bits of some sums, and on a
backend without the fused kernels the layers run one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tinyalex.functional as F
from tinyalex.choices import Choice
from tinyalex.nn.activation import ReLU
from tinyalex.nn.conv import Conv2d
from tinyalex.nn.linear import Linear
from tinyalex.nn.module import Module
from tinyalex.nn.normalization import LocalResponseNorm
from tinyalex.nn.pooling import MaxPool2d
from tinyalex.tensor import Tensor


def _convolution(conv: Any) -> tuple[Any, ...]:
    return conv.stride, conv.padding, conv.dilation, conv.groups


def _numbers(norm: Any) -> tuple[Any, ...]:
    return norm.size, norm.alpha, norm.beta, norm.k, norm.groups


def _window(pool: Any) -> tuple[Any, ...]:
    return pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode


def _conv2d_relu(layers: Sequence[Any], x: Tensor) -> Tensor:
    conv = layers[0]
    return F.conv2d_relu(x, conv.weight, conv.bias, *_convolution(conv))


def _linear_relu(layers: Sequence[Any], x: Tensor) -> Tensor:
    return F.linear_relu(x, layers[0].weight, layers[0].bias)


def _norm_max_pool2d(layers: Sequence[Any], x: Tensor) -> Tensor:
    norm, pool = layers
    return F.local_response_norm_max_pool2d(x, *_numbers(norm), *_window(pool))


def _conv2d_relu_norm_max_pool2d(layers: Sequence[Any], x: Tensor) -> Tensor:
    conv, _, norm, pool = layers
    options: Any = (_convolution(conv), _numbers(norm), _window(pool))
    return F.conv2d_relu_norm_max_pool2d(x, conv.weight, conv.bias, *options)


# Types of layers, and the function that computes them all; the longest first.
RUNS: tuple[tuple[tuple[type[Module], ...], Callable[[Sequence[Any], Tensor], Tensor]], ...] = (
    ((Conv2d, ReLU, LocalResponseNorm, MaxPool2d), _conv2d_relu_norm_max_pool2d),
    ((Conv2d, ReLU), _conv2d_relu),
    ((Linear, ReLU), _linear_relu),
    ((LocalResponseNorm, MaxPool2d), _norm_max_pool2d),
)


class use_fusion(Choice, default=True):  # noqa: N801 (reads as a verb)
    """Turn the fusion of layers in `Sequential` on or off.

    For good, or for a ``with`` block.

    >>> import tinyalex as ta
    >>> with ta.use_fusion(False):
    ...     pass  # each layer runs its own op, whose backward a breakpoint reaches

    Results differ by rounding only. It holds for all threads; of several blocks that are open, the
    last counts. Raises TypeError for anything but a bool.
    """

    def __init__(self, enabled: bool) -> None:
        if not isinstance(enabled, bool):
            raise TypeError(f"use_fusion expects True or False, got {enabled!r}")
        super().__init__(enabled)


def run(layers: Sequence[Module], x: Tensor) -> Tensor:
    """Feed ``x`` through all layers, fused where the table says so."""
    position, kinds = 0, tuple(map(type, layers))
    runs = RUNS if use_fusion.current else ()
    while position < len(layers):
        for types, function in runs:
            end = position + len(types)
            if kinds[position:end] == types and all(map(_may_be_fused, layers[position:end])):
                x = function(layers[position:end], x)
                position = end
                break
        else:
            x = layers[position](x)
            position += 1
    return x


FUNCTIONS: dict[type[Module], str] = {
    Conv2d: "conv2d",
    Linear: "linear",
    LocalResponseNorm: "local_response_norm",
    MaxPool2d: "max_pool2d",
    ReLU: "relu",
}


def _definition(kind: type[Module]) -> tuple[Any, ...]:
    """Return the current functions that compute a layer of this kind."""
    return kind.__call__, kind.forward, getattr(F, FUNCTIONS[kind])


ORIGINALS = {kind: _definition(kind) for kind in FUNCTIONS}


def _may_be_fused(layer: Any) -> bool:
    kind = type(layer)
    if kind is MaxPool2d and (layer.dilation not in (1, (1, 1)) or layer.return_indices):
        return False  # the kernel has no dilated windows
    # A hook must see what goes through its layer; so must a function that was replaced, in the
    # layer, in its class, in a base of that, or in `tinyalex.functional`.
    changed = layer._forward_hooks or "forward" in vars(layer)
    return not changed and _definition(kind) == ORIGINALS[kind]
