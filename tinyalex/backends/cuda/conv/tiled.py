"""Convolution, version 2: implicit matrix product in tiles, forward, float32."""

from __future__ import annotations

from tinyalex.backends.cuda.conv.shape import ConvShape
from tinyalex.backends.cuda.launch import launch
from tinyalex.backends.gpu import cupy
from tinyalex.backends.types import Array

TILE, THREADS = 128, 256  # as in kernels/product_tile.cuh


def forward(
    x: Array, weight: Array, bias: Array | None, shape: ConvShape, relu: bool = False
) -> Array:
    """Return y [N, Ho, Wo, K] of x [N, H, W, C] and weight [K, R, S, C/G], max(y, 0) on demand.

    Channels and filters of a group are multiples of four.
    """
    y = cupy().empty((shape.N, shape.Ho, shape.Wo, shape.K), x.dtype)
    pixels, filters = shape.N * shape.Ho * shape.Wo, shape.filters
    grid = -(-pixels // TILE) * -(-filters // TILE), shape.groups
    args = x, weight, bias, y, shape, relu
    launch("conv_forward.cu", "conv_forward_tiled", grid, (THREADS,), args)
    return y
