"""Convolution as matrix products with blocks of columns: any shape, little workspace.

A task takes a block of output pixels and one group. It gathers their columns (see `columns`) into
a buffer that stays in its core's cache, and multiplies them with the group's weights straight into
the output. Deep columns are cut between rows of taps, so that more pixels fit into the buffer:
BLAS re-packs the weights for every block, which costs as much as some 50 pixels of product.

Workspace: `BLOCK_BYTES` a thread (more only where `MIN_PIXELS` pixels of one row of taps need
more), the re-ordered weights, and in the weight gradient one sum of the weights for each thread and
for every `PARTIAL_PIXELS` pixels, `PARTIAL_BYTES` in all (or a single sum, if that is larger).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import prange

from tinyalex.backends import memory
from tinyalex.backends.cpu.conv.bias_grad import conv2d_bias_grad
from tinyalex.backends.cpu.conv.columns import clear, gather, scatter_add
from tinyalex.backends.cpu.elementwise import relu, relu_input_grad
from tinyalex.backends.cpu.gemm import gemm
from tinyalex.backends.cpu.runtime import (
    kernel,
    num_threads,
    parallel_kernel,
    plain,
    thread_id,
    workspace,
)
from tinyalex.backends.geometry import ConvOptions, conv_output_size, conv_window
from tinyalex.backends.layout import as_nchw, channels_last
from tinyalex.backends.types import Array, Shape

BLOCK_BYTES = 1 << 20  # half of a usual second-level cache: the weights pass through the rest
PARTIAL_BYTES = 1 << 26
PARTIAL_PIXELS = 1 << 16  # more of them in one sum lose digits
MIN_PIXELS = 32
# Columns are cut into parts of at least so many values: shorter ones leave BLAS below its speed.
# In the weight gradient depth costs nothing, since the pixels are what is summed over.
DEPTH, DEPTH_OF_WEIGHT_GRAD = 512, 4096


class Blocks(NamedTuple):
    """``number`` blocks, each of ``pixels`` output pixels and ``tap_rows`` rows of taps."""

    number: int
    pixels: int
    tap_rows: int


def cut(
    pixels: int, weight_shape: Shape, itemsize: int, workers: int, depth: int = DEPTH
) -> Blocks:
    """Choose the blocks for the columns of ``pixels`` pixels.

    The number of blocks is a multiple of ``workers``, so that they all have equally much to do.
    """
    _, Cg, R, S = weight_shape
    tap_rows = min(R, -(-depth // (S * Cg)))
    tap_rows = -(-R // -(-R // tap_rows))  # the same number of parts, of equal size
    most = max(MIN_PIXELS, BLOCK_BYTES // (tap_rows * S * Cg * itemsize))
    count = -(-pixels // (most * workers)) * workers
    size = max(1, -(-pixels // max(1, count)))
    return Blocks(-(-pixels // size), size, tap_rows)


@kernel
def _fill(output, bias):
    for p in range(output.shape[0]):
        for k in range(bias.size):
            output[p, k] = bias[k]


@parallel_kernel
def _forward(x, weight, bias, y, window, blocks, groups, space):
    N, Ho, Wo, K = y.shape
    Kg = K // groups
    Cg = x.shape[3] // groups
    row_depth = window.width * Cg
    pixels = y.reshape(N * Ho * Wo, K)
    for task in prange(groups * blocks.number):
        group, block = divmod(np.int64(task), blocks.number)
        k0, k1 = group * Kg, (group + 1) * Kg
        first = block * blocks.pixels
        output = pixels[first : first + blocks.pixels, k0:k1]
        _fill(output, bias[k0:k1])
        for r0 in range(0, window.height, blocks.tap_rows):
            r1 = min(window.height, r0 + blocks.tap_rows)
            d0, d1 = r0 * row_depth, r1 * row_depth
            count = output.shape[0]
            columns = space[thread_id(), : count * (d1 - d0)].reshape(count, d1 - d0)
            gather(x, window, (Ho, Wo), first, (group * Cg, (group + 1) * Cg), (r0, r1), columns)
            gemm(columns, weight[k0:k1, d0:d1], output, False, True, True)


@parallel_kernel
def _input_grad(grad, weight, dx, window, blocks, images, groups, space):
    # A task is one group of a few images: windows overlap, and no two tasks may add to one pixel.
    N, Ho, Wo, K = grad.shape
    Kg = K // groups
    _, H, W, C = dx.shape
    Cg = C // groups
    row_depth = window.width * Cg
    targets = dx.reshape(N * H * W, C)
    pixels = grad.reshape(N * Ho * Wo, K)
    for task in prange((N + images - 1) // images * groups):
        share, group = divmod(np.int64(task), groups)
        k0, k1 = group * Kg, (group + 1) * Kg
        channels = (group * Cg, (group + 1) * Cg)
        n0, n1 = share * images, min(N, (share + 1) * images)
        for pixel in range(n0 * H * W, n1 * H * W):
            clear(targets, pixel, channels[0], Cg)
        for first in range(n0 * Ho * Wo, n1 * Ho * Wo, blocks.pixels):
            source = pixels[first : min(first + blocks.pixels, n1 * Ho * Wo), k0:k1]
            count = source.shape[0]
            for r0 in range(0, window.height, blocks.tap_rows):
                r1 = min(window.height, r0 + blocks.tap_rows)
                d0, d1 = r0 * row_depth, r1 * row_depth
                columns = space[thread_id(), : count * (d1 - d0)].reshape(count, d1 - d0)
                gemm(source, weight[k0:k1, d0:d1], columns, False, False, False)
                scatter_add(columns, window, (Ho, Wo), first, channels, (r0, r1), dx)


@parallel_kernel
def _weight_grad(grad, x, partial, window, blocks, groups, space):
    # partial [parts, K, R * S * Cg]: part number ``part`` sums every block of its share of pixels.
    N, Ho, Wo, K = grad.shape
    Kg = K // groups
    Cg = x.shape[3] // groups
    row_depth = window.width * Cg
    pixels = grad.reshape(N * Ho * Wo, K)
    parts = partial.shape[0]
    for task in prange(parts * groups):
        part, group = divmod(np.int64(task), groups)
        k0, k1 = group * Kg, (group + 1) * Kg
        channels = (group * Cg, (group + 1) * Cg)
        for block in range(blocks.number * part // parts, blocks.number * (part + 1) // parts):
            first = block * blocks.pixels
            source = pixels[first : first + blocks.pixels, k0:k1]
            count = source.shape[0]
            for r0 in range(0, window.height, blocks.tap_rows):
                r1 = min(window.height, r0 + blocks.tap_rows)
                d0, d1 = r0 * row_depth, r1 * row_depth
                columns = space[thread_id(), : count * (d1 - d0)].reshape(count, d1 - d0)
                gather(x, window, (Ho, Wo), first, channels, (r0, r1), columns)
                gemm(source, columns, partial[part, k0:k1, d0:d1], True, False, True)


def _workers(groups: int) -> int:
    """Return the shares per group that give every thread equal work."""
    return num_threads() // math.gcd(num_threads(), groups)


def _space(blocks: Blocks, weight_shape: Shape, dtype: np.dtype[Any]) -> Array:
    _, Cg, _, S = weight_shape
    return workspace(blocks.pixels * blocks.tap_rows * S * Cg, dtype)


def _lines(weight: Array) -> Array:
    """Return OIHW weights as lines in the order of the columns: [K, R * S * Cg]."""
    return plain(channels_last(weight)).reshape(weight.shape[0], -1)


def forward(
    x: Array, weight: Array, bias: Array | None, options: ConvOptions, rectify: bool = False
) -> Array:
    """Return y, or max(y, 0): gather columns, multiply with the weights."""
    K, _, R, S = weight.shape
    Ho, Wo = conv_output_size(x.shape[2:], (R, S), options)
    N, groups = x.shape[0], options.groups
    y = memory.empty((N, Ho, Wo, K), x.dtype)
    blocks = cut(N * Ho * Wo, weight.shape, x.itemsize, _workers(groups))
    _forward(
        plain(channels_last(x)),
        _lines(weight),
        np.zeros(K, x.dtype) if bias is None else plain(bias),
        y,
        conv_window((R, S), options),
        blocks,
        groups,
        _space(blocks, weight.shape, x.dtype),
    )
    return relu(as_nchw(y)) if rectify else as_nchw(y)


def input_grad(
    grad: Array, weight: Array, input_shape: Shape, options: ConvOptions, mask: Array | None = None
) -> Array:
    """Return dx: the product with the weights, added back by `scatter_add`.

    ``grad`` counts where ``mask`` > 0.
    """
    N, C, H, W = input_shape
    if mask is not None:
        grad = relu_input_grad(grad, mask)
    pixels, groups = grad.shape[2] * grad.shape[3], options.groups
    dx = memory.empty((N, H, W, C), grad.dtype)
    blocks = cut(N * pixels, weight.shape, grad.itemsize, _workers(groups))
    images = max(1, blocks.pixels // max(1, pixels))
    blocks = cut(images * pixels, weight.shape, grad.itemsize, 1)
    _input_grad(
        plain(channels_last(grad)),
        _lines(weight),
        dx,
        conv_window(weight.shape[2:], options),
        blocks,
        images,
        groups,
        _space(blocks, weight.shape, grad.dtype),
    )
    return as_nchw(dx)


def weight_grad(grad: Array, x: Array, weight_shape: Shape, options: ConvOptions) -> Array:
    """Return dweight: gather columns, multiply with the gradient, in partial sums.

    The parts are added in order, so the result depends on the number of threads, but not on which
    of them was first.
    """
    K, Cg, R, S = weight_shape
    N, _, Ho, Wo = grad.shape
    size = K * Cg * R * S * grad.itemsize
    groups = options.groups
    workers = _workers(groups)
    parts = workers * max(1, -(-N * Ho * Wo // (workers * PARTIAL_PIXELS)))
    parts = max(1, min(parts, PARTIAL_BYTES // max(1, size)))
    partial = np.zeros((parts, K, R * S * Cg), grad.dtype)
    blocks = cut(N * Ho * Wo, weight_shape, grad.itemsize, parts, DEPTH_OF_WEIGHT_GRAD)
    _weight_grad(
        plain(channels_last(grad)),
        plain(channels_last(x)),
        partial,
        conv_window((R, S), options),
        blocks,
        groups,
        _space(blocks, weight_shape, grad.dtype),
    )
    total = partial[0]
    for part in partial[1:]:
        total += part
    return np.ascontiguousarray(as_nchw(total.reshape(K, R, S, Cg)))


def masked(grad: Array, y: Array) -> tuple[Array, None]:
    """Return the gradient of a ReLU's input, whose output is y.

    No mask is returned: the product reads the gradient twice.
    """
    return relu_input_grad(grad, y), None


def weight_and_bias_grad(
    grad: Array, x: Array, weight_shape: Shape, options: ConvOptions, mask: Array | None = None
) -> tuple[Array, Array]:
    """Return dweight and dbias; ``grad`` counts where ``mask`` > 0."""
    if mask is not None:
        grad = relu_input_grad(grad, mask)
    return weight_grad(grad, x, weight_shape, options), conv2d_bias_grad(grad)
