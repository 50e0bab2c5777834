"""Convolution and linear layers on tensor cores.

The kernels take arrays as they lie in memory, channels last: x [N, H, W, C], weight [K, R, S, C/G],
y [N, Ho, Wo, K], C-contiguous and on the device. A linear layer is a convolution with H = W = R = S
= 1. Those of Ampere's instruction (mma.sync) take float32. How they multiply is told by the words
of `tinyalex.set_float32_matmul_precision` (relative errors of convolutions of random numbers):

- ``"highest"``: every factor is the sum of two TF32 numbers, three products; 5e-7, where float32
  itself has 3e-7 (sums of 2400 products);
- ``"high"``: factors rounded to TF32 (10 bits of mantissa), 3e-4;
- ``"medium"``: factors rounded to bfloat16 (7 bits), 2e-3.

Sums are float32, and taken in the same order in every run on the same kind of GPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tinyalex.backends.cuda.conv.shape import ConvShape
from tinyalex.backends.cuda.conv.tiles import (
    CHOSEN,
    MMA_SYNC,
    Cut,
    Kernels,
    Pass,
    blocks,
    plan,
    sizes,
)
from tinyalex.backends.cuda.last_block import arrivals
from tinyalex.backends.cuda.launch import launch
from tinyalex.backends.gpu import cupy
from tinyalex.backends.types import Array


def applicable(shape: ConvShape, which: Pass) -> bool:
    """Return whether channels (or filters) are a multiple of four."""
    whole_channels = shape.C // shape.groups % 4 == 0
    whole_filters = shape.K // shape.groups % 4 == 0
    return whole_channels and (which == "forward" or whole_filters)


def conv_forward_tensor(
    x: Array,
    weight: Array,
    bias: Array | None,
    shape: ConvShape,
    precision: str,
    relu: bool = False,
    cut: Cut = CHOSEN,
) -> Array:
    """Return ``y = x * weight + bias``, or ``max(y, 0)``: [N, H, W, C] -> [N, Ho, Wo, K]."""
    y = cupy().empty((shape.N, shape.Ho, shape.Wo, shape.K), x.dtype)
    return product("forward", (x, weight), y, shape, MMA_SYNC[precision], cut, (bias, relu))


def conv_input_grad_tensor(
    grad: Array, weight: Array, shape: ConvShape, precision: str, cut: Cut = CHOSEN
) -> Array:
    """Return dx: [N, Ho, Wo, K] -> [N, H, W, C].

    With strides it also multiplies the zeros between the pixels of the gradient: correct, wasteful.
    """
    dx = cupy().empty((shape.N, shape.H, shape.W, shape.C), grad.dtype)
    return product("input_grad", (grad, weight), dx, shape, MMA_SYNC[precision], cut)


def conv_weight_grad_tensor(
    grad: Array, x: Array, shape: ConvShape, precision: str, cut: Cut = CHOSEN
) -> Array:
    """Return dweight: [N, Ho, Wo, K] and [N, H, W, C] -> [K, R, S, C/G]."""
    dweight = cupy().empty((shape.K, shape.R, shape.S, shape.C // shape.groups), np.float32)
    return product("weight_grad", (grad, x), dweight, shape, MMA_SYNC[precision], cut)


def product(
    which: Pass,
    factors: tuple[Array, Array],
    result: Array,
    shape: ConvShape,
    kernels: Kernels,
    cut: Cut = CHOSEN,
    options: tuple[Any, ...] = (),
) -> Array:
    """Compute a pass into ``result``, and return it.

    ``options`` are bias and ReLU, of forward. The last block to arrive adds the parts of a split
    sum, which are float32, if the kernels do that in this pass; else another kernel does.
    """
    whole = sizes(shape, which)
    tile, splits, split_k_tiles = plan(which, whole, kernels, cut)
    tiles = blocks(whole, tile)
    into = result
    if which in kernels.add_parts and splits > 1:
        options = (*options, cupy().empty((tiles, splits, *tile), np.float32), arrivals(tiles))
    elif which in kernels.add_parts:
        options = (*options, None, None)
    elif splits > 1:
        into = cupy().empty((splits, *result.shape), np.float32)
    launch(
        kernels.file.format(which),
        kernels.instance(which, tile),
        grid=(tiles // shape.groups, shape.groups, splits),
        block=(kernels.block(tile).threads,),
        args=(*factors, into, shape, split_k_tiles, *options),
        shared_bytes=kernels.shared_bytes(tile),
    )
    if into is not result:
        grid, args = (-(-result.size // 256),), (into, result, splits, result.size)
        launch("split_sum.cu", "split_sum", grid=grid, block=(256,), args=args)
    return result
