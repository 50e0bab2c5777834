"""Kernels for several shards at once, with the bits of each alone.

That is decided by what all ranks know alike: the sizes of all shards, not those of a rank's.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from tinyalex.backends.cpu.conv import im2col
from tinyalex.backends.cpu.conv.choose import Problem, algorithm, conv2d_relu_grads
from tinyalex.backends.cpu.conv.winograd_tiles import IMAGES
from tinyalex.backends.cpu.linear import (
    linear_chosen_by,
    linear_input_grad,
    suits,
    sum_of_weight_grads,
)
from tinyalex.backends.geometry import ConvOptions, conv_output_size
from tinyalex.backends.numerics import MAX_ROWS
from tinyalex.backends.sharded import added
from tinyalex.backends.shards import Part
from tinyalex.backends.types import Array, Shape

# --- linear layers: `microkernel` adds along an axis in one order, whatever is beside it ----------


def _linear(part: Part, x: Array, weight: Array, bias: Array | None) -> Array | None:
    rows = max(part.sizes)  # a single row has a way of its own
    fits = suits(weight.shape, x.dtype) and rows > 1
    return linear_chosen_by(rows, x, weight, bias) if fits else None


def _linear_input_grad(part: Part, grad: Array, weight: Array) -> Array | None:
    return linear_input_grad(grad, weight) if suits(weight.shape, grad.dtype) else None


def _linear_weight_grad(part: Part, grad: Array, x: Array) -> Array | None:
    sizes = part.sizes[slice(*part.span)]
    fits = suits((grad.shape[1], x.shape[1]), grad.dtype) and max(sizes) <= MAX_ROWS
    return sum_of_weight_grads(grad, x, sizes) if fits and min(sizes) > 0 else None


# --- convolutions: Winograd's computes whole canvases of images -----------------------------------


def _chosen(
    part: Part, output: Shape, weight: Shape, options: ConvOptions, dtype: np.dtype[Any]
) -> tuple[ModuleType, int] | None:
    """Return the algorithm and the images of a shard, or None.

    Where each shard has whole canvases, however large they are, the same size of canvas needs the
    fewest tiles for one shard and for all, and no canvas has images of two.
    """
    images, *others = set(part.sizes)
    if others or images % IMAGES:
        return None
    module = algorithm(Problem((images, *output[1:]), weight, options, dtype))
    return None if module is im2col else (module, images)


def _forward(rectify: bool) -> Callable[..., Array | None]:
    def forward(
        part: Part, x: Array, weight: Array, bias: Array | None, options: ConvOptions
    ) -> Array | None:
        size = conv_output_size(x.shape[2:], weight.shape[2:], options)
        shape = len(x), len(weight), *size
        if (chosen := _chosen(part, shape, weight.shape, options, x.dtype)) is None:
            return None
        module, images = chosen
        y: Array = module.forward(x, weight, bias, options, rectify, images)
        return y

    return forward


def _input_grad(
    part: Part, grad: Array, weight: Array, input_shape: Shape, options: ConvOptions
) -> Array | None:
    if (chosen := _chosen(part, grad.shape, weight.shape, options, grad.dtype)) is None:
        return None
    module, images = chosen
    dx: Array = module.input_grad(grad, weight, input_shape, options, None, images)
    return dx


def _relu_grads(
    part: Part, grad: Array, y: Array, x: Array | None, weight: Array | None, *rest: Any
) -> tuple[Array | None, ...] | None:
    needs, shapes, options = rest
    if (chosen := _chosen(part, grad.shape, shapes[1], options, grad.dtype)) is None:
        return None
    module, images = chosen
    dx = module.input_grad(grad, weight, shapes[0], options, y, images) if needs[0] else None
    sums = [
        conv2d_relu_grads(
            grad[rows],
            y[rows],
            None if x is None else x[rows],
            weight,
            (False, *needs[1:]),
            shapes,
            options,
        )
        for rows in part.slices()
    ]
    _, dweight, dbias = zip(*sums, strict=True)
    return dx, added(dweight) if needs[1] else None, added(dbias) if needs[2] else None


SHARD_KERNELS: dict[str, Callable[..., Any]] = {
    "conv2d": _forward(rectify=False),
    "conv2d_input_grad": _input_grad,
    "conv2d_relu": _forward(rectify=True),
    "conv2d_relu_grads": _relu_grads,
    "linear": _linear,
    "linear_input_grad": _linear_input_grad,
    "linear_weight_grad": _linear_weight_grad,
}
