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

    Raises ValueError unless channels and filters of a group are multiples of four.
    """
    if shape.channels % 4 or shape.filters % 4:
        raise ValueError(
            "expected multiples of four channels and filters in each group, got "
            f"{shape.channels} and {shape.filters}; take im2col.forward"
        )
    y = cupy().empty((shape.N, shape.Ho, shape.Wo, shape.K), x.dtype)
    pixels, filters = shape.N * shape.Ho * shape.Wo, shape.filters
    grid = -(-pixels // TILE) * -(-filters // TILE), shape.groups
    args = x, weight, bias, y, shape, relu
    launch("conv_forward.cu", "conv_forward_tiled", grid, (THREADS,), args)
    return y
