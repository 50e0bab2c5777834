"""Convolution, version 2: implicit matrix product in tiles, float32, any shape."""

from __future__ import annotations

from tinyalex.backends.cuda.conv.shape import ConvShape
from tinyalex.backends.cuda.launch import launch
from tinyalex.backends.gpu import cupy, multiprocessors
from tinyalex.backends.types import Array

TILE, THREADS = 128, 256  # as in kernels/product_tile.cuh
BLOCKS = 2  # that fit on a multiprocessor at a time: each needs half of its registers
LEAST_PIXELS = 256  # that are worth a block of their own in a sum over all pixels


def forward(
    x: Array, weight: Array, bias: Array | None, shape: ConvShape, relu: bool = False
) -> Array:
    """Return y [N, Ho, Wo, K] of x [N, H, W, C] and weight [K, R, S, C/G], max(y, 0) on demand."""
    y = cupy().empty((shape.N, shape.Ho, shape.Wo, shape.K), x.dtype)
    tiles = _tiles(shape.N * shape.Ho * shape.Wo) * _tiles(shape.K // shape.groups)
    entry = _entry("conv_forward_tiled", shape)
    args = x, weight, bias, y, shape, relu
    launch("conv_forward.cu", entry, (tiles, shape.groups), (THREADS,), args)
    return y


def input_grad(grad: Array, weight: Array, shape: ConvShape) -> Array:
    """Return dx [N, H, W, C] of dy [N, Ho, Wo, K] and weight [K, R, S, C/G]."""
    dx = cupy().empty((shape.N, shape.H, shape.W, shape.C), grad.dtype)
    tiles = _tiles(shape.N * shape.H * shape.W) * _tiles(shape.C // shape.groups)
    entry = _entry("conv_input_grad_tiled", shape)
    args = grad, weight, dx, shape
    launch("conv_input_grad.cu", entry, (tiles, shape.groups), (THREADS,), args)
    return dx


def weight_grad(grad: Array, x: Array, shape: ConvShape, splits: int | None = None) -> Array:
    """Return dweight [K, R, S, C/G] of dy [N, Ho, Wo, K] and x [N, H, W, C].

    The pixels are summed in ``splits`` ranges, by default as many as keep the GPU busy, and then
    the ranges' sums are added in their order.
    """
    channels = shape.C // shape.groups
    tiles = _tiles(shape.K // shape.groups) * _tiles(shape.R * shape.S * channels)
    if splits is None:
        wanted = BLOCKS * multiprocessors() // (tiles * shape.groups)
        splits = max(1, min(wanted, shape.N * shape.Ho * shape.Wo // LEAST_PIXELS))
    dweight = cupy().empty((shape.K, shape.R, shape.S, channels), grad.dtype)
    partial = cupy().empty((splits, *dweight.shape), grad.dtype) if splits > 1 else dweight
    entry = _entry("conv_weight_grad_tiled", shape)
    args = grad, x, partial, shape, splits
    launch("conv_weight_grad.cu", entry, (tiles, shape.groups, splits), (THREADS,), args)
    if splits > 1:
        grid = (-(-dweight.size // THREADS),)
        sums = partial, None, dweight, splits, dweight.size, channels, False
        launch("split_sum.cu", "split_sum", grid, (THREADS,), sums)
    return dweight


def _tiles(size: int) -> int:
    return -(-size // TILE)


def _entry(name: str, shape: ConvShape) -> str:
    """Return the entry with 16-byte reads, if a group's channels allow it."""
    whole = shape.C // shape.groups % 4 == 0 and shape.K // shape.groups % 4 == 0
    return name + "_vector" * whole
