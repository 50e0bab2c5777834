"""Convolution and linear layers on tensor cores, by kernels estimated fastest.

The kernels take arrays as they lie in memory, channels last: x [N, H, W, C], weight [K, R, S, C/G],
y [N, Ho, Wo, K], C-contiguous and on the device. A linear layer is a convolution with H = W = R = S
= 1. Those of Ampere's instruction (mma.sync) take float32. How they multiply is told by the words
of `tinyalex.set_float32_matmul_precision` (relative errors of convolutions of random numbers):

- ``"highest"``: every factor is the sum of two TF32 numbers, three products; 5e-7, where float32
  itself has 3e-7 (sums of 2400 products);
- ``"high"``: factors rounded to TF32 (10 bits of mantissa), 3e-4;
- ``"medium"``: factors rounded to bfloat16 (7 bits), 2e-3.

Those of Hopper's (wgmma) take bfloat16 (a weight's gradient is float32), or in "high", where they
are faster, float32, of which the tensor cores read the upper 10 bits of mantissa (8e-4): forward
and the input's gradient only.

Sums are float32, and taken in the same order in every run on the same kind of GPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tinyalex.backends.bfloat16 import is_bfloat16
from tinyalex.backends.cuda.conv.shape import ConvShape
from tinyalex.backends.cuda.conv.tiles import (
    CHOSEN,
    IMAGES,
    MMA_SYNC,
    WGMMA,
    Cut,
    Kernels,
    Pass,
    blocks,
    faster,
    plan,
    sizes,
)
from tinyalex.backends.cuda.last_block import arrivals
from tinyalex.backends.cuda.launch import launch, type_name
from tinyalex.backends.gpu import cupy
from tinyalex.backends.precision import get_float32_matmul_precision as precision
from tinyalex.backends.types import Array


def applicable(channels: int, filters: int, which: Pass, dtype: np.dtype[Any]) -> bool:
    """Return whether a group's channels and filters suit a pass.

    They are multiples of four in float32, of eight in bfloat16. Forward, filters of float32 may be
    any number; of bfloat16, channels may be four, those of images, but for the input's gradient.
    """
    if is_bfloat16(dtype):
        images = channels == 4 and which != "input_grad"
        return (channels % 8 == 0 or images) and filters % 8 == 0
    whole_filters = which == "forward" or filters % 4 == 0
    return dtype == np.float32 and channels % 4 == 0 and whole_filters


def on_hopper() -> bool:
    """Return whether the current device is a Hopper GPU."""
    return str(cupy().cuda.Device().compute_capability) == "90"


def wgmma(shape: ConvShape, dtype: np.dtype[Any]) -> Kernels:
    """Return Hopper's kernels for factors of this type."""
    return IMAGES if is_bfloat16(dtype) and shape.channels % 8 else WGMMA[dtype.name]


def fastest(shape: ConvShape, which: Pass, dtype: np.dtype[Any]) -> Kernels:
    """Return the kernels for a pass, as exact as asked for."""
    if is_bfloat16(dtype):
        return wgmma(shape, dtype)
    own, others = MMA_SYNC[precision()], WGMMA["float32"]
    possible = precision() == "high" and which in others.tiles and on_hopper()
    return others if possible and faster(which, sizes(shape, which), others, own) else own


def forward(
    x: Array,
    weight: Array,
    bias: Array | None,
    shape: ConvShape,
    relu: bool = False,
    kernels: Kernels | None = None,
    cut: Cut = CHOSEN,
) -> Array:
    """Return ``y = x * weight + bias``, or ``max(y, 0)``: [N, H, W, C] -> [N, Ho, Wo, K]."""
    y = cupy().empty((shape.N, shape.Ho, shape.Wo, shape.K), x.dtype)
    return _product("forward", (x, weight), y, shape, kernels, cut, (bias, relu))


def input_grad(
    grad: Array,
    weight: Array,
    shape: ConvShape,
    kernels: Kernels | None = None,
    cut: Cut = CHOSEN,
) -> Array:
    """Return dx: [N, Ho, Wo, K] -> [N, H, W, C].

    With strides it also multiplies the zeros between the pixels of the gradient: correct, wasteful.
    """
    dx = cupy().empty((shape.N, shape.H, shape.W, shape.C), grad.dtype)
    return _product("input_grad", (grad, weight), dx, shape, kernels, cut)


def weight_grad(
    grad: Array,
    x: Array,
    shape: ConvShape,
    kernels: Kernels | None = None,
    cut: Cut = CHOSEN,
) -> Array:
    """Return dweight, float32: [N, Ho, Wo, K] and [N, H, W, C] -> [K, R, S, C/G]."""
    dweight = cupy().empty((shape.K, shape.R, shape.S, shape.channels), np.float32)
    return _product("weight_grad", (grad, x), dweight, shape, kernels, cut)


def _product(
    which: Pass,
    factors: tuple[Array, Array],
    result: Array,
    shape: ConvShape,
    kernels: Kernels | None,
    cut: Cut,
    options: tuple[Any, ...] = (),
) -> Array:
    """Compute a pass into ``result``, and return it.

    ``options`` are bias and ReLU, of forward. The last block to arrive adds the parts of a split
    sum, which are float32, if the kernels do that in this pass; else another kernel does.
    """
    kernels = kernels or fastest(shape, which, factors[0].dtype)
    whole = sizes(shape, which)
    tile, splits, split_k_tiles, _ = plan(which, whole, kernels, cut)
    if which == "input_grad" and kernels.along_k(tile):
        factors = factors[0], transposed(factors[1], shape)
    tiles = blocks(whole, tile)
    into, parts = result, (None, None)
    if which in kernels.add_parts and splits > 1:
        parts = cupy().empty((tiles, splits, *tile), np.float32), arrivals(tiles)
    elif splits > 1:
        into = cupy().empty((splits, *result.shape), np.float32)
    if which != "weight_grad":
        options = (*options, *parts)
    launch(
        kernels.file,
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


def transposed(weight: Array, shape: ConvShape) -> Array:
    """Return weights [K, R, S, C/G] as [G, C/G, R, S, K/G]."""
    filters, channels, taps = shape.filters, shape.channels, shape.R * shape.S
    result = cupy().empty((shape.groups, channels, shape.R, shape.S, filters), weight.dtype)
    entry = f"transpose_filters<{type_name(weight.dtype)}>"
    grid = (-(-filters // 32) * -(-channels // 32) * shape.groups * taps,)
    launch("transpose_filters.cu", entry, grid, (256,), (weight, result, filters, channels, taps))
    return result
