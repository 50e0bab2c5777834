"""Convolution and linear layers with Hopper's tensor-core instructions (wgmma).

The arrays are those of `tensor_cores`: all bfloat16 (a weight's gradient is float32), or all
float32, forward and the input's gradient only, of which the tensor cores read the upper 10 bits of
mantissa (an error of 8e-4). Channels and filters of a group are multiples of 8 in bfloat16 (4
channels, of images) and of 4 in float32; forward, filters may be any number. Sums are float32, and
taken in the same order in every run on the same kind of GPU.
"""

from __future__ import annotations

import numpy as np

from tinyalex.backends.bfloat16 import is_bfloat16
from tinyalex.backends.cuda.conv.shape import ConvShape
from tinyalex.backends.cuda.conv.tensor_cores import product
from tinyalex.backends.cuda.conv.tiles import CHOSEN, IMAGES, WGMMA, Cut, Pass, Wgmma, plan, sizes
from tinyalex.backends.cuda.launch import launch, type_name
from tinyalex.backends.gpu import cupy
from tinyalex.backends.types import Array


def available() -> bool:
    """Return whether the current device is a Hopper GPU."""
    return str(cupy().cuda.Device().compute_capability) == "90"


def applicable(shape: ConvShape, which: Pass) -> bool:
    """Return whether a group's bfloat16 channels and filters are multiples of eight.

    Channels may be four, those of images, but for the input's gradient.
    """
    channels, filters = shape.C // shape.groups, shape.K // shape.groups
    images = channels == 4 and which != "input_grad"
    return (channels % 8 == 0 or images) and filters % 8 == 0


def forward(
    x: Array,
    weight: Array,
    bias: Array | None,
    shape: ConvShape,
    relu: bool = False,
    cut: Cut = CHOSEN,
) -> Array:
    """Return ``y = x * weight + bias``, or ``max(y, 0)``: [N, H, W, C] -> [N, Ho, Wo, K]."""
    y = cupy().empty((shape.N, shape.Ho, shape.Wo, shape.K), x.dtype)
    return product("forward", (x, weight), y, shape, kernels(x, shape), cut, (bias, relu))


def input_grad(grad: Array, weight: Array, shape: ConvShape, cut: Cut = CHOSEN) -> Array:
    """Return dx: [N, Ho, Wo, K] -> [N, H, W, C].

    With strides it also multiplies the zeros between the pixels of the gradient: correct, wasteful.
    """
    own = kernels(grad, shape)
    tile, splits, _ = plan("input_grad", sizes(shape, "input_grad"), own, cut)
    if own.along_k(tile):
        weight = transposed(weight, shape)
    dx = cupy().empty((shape.N, shape.H, shape.W, shape.C), grad.dtype)
    return product("input_grad", (grad, weight), dx, shape, own, Cut(tile, splits))


def weight_grad(grad: Array, x: Array, shape: ConvShape, cut: Cut = CHOSEN) -> Array:
    """Return dweight, float32, of bfloat16: [N, Ho, Wo, K] and [N, H, W, C] -> [K, R, S, C/G]."""
    dweight = cupy().empty((shape.K, shape.R, shape.S, shape.C // shape.groups), np.float32)
    return product("weight_grad", (grad, x), dweight, shape, kernels(x, shape), cut)


def kernels(factor: Array, shape: ConvShape) -> Wgmma:
    """Return the kernels for factors like this one."""
    if is_bfloat16(factor.dtype) and shape.C // shape.groups % 8:
        return IMAGES
    return WGMMA[factor.dtype.name]


def transposed(weight: Array, shape: ConvShape) -> Array:
    """Return weights [K, R, S, C/G] as [G, C/G, R, S, K/G]."""
    filters, channels = shape.K // shape.groups, shape.C // shape.groups
    result = cupy().empty((shape.groups, channels, shape.R, shape.S, filters), weight.dtype)
    taps = shape.R * shape.S
    entry = f"transpose_filters_{type_name(weight.dtype, bfloat16=True)}"
    grid = (-(-filters // 32) * -(-channels // 32) * shape.groups * taps,)
    launch("transpose_filters.cu", entry, grid, (256,), (weight, result, filters, channels, taps))
    return result
