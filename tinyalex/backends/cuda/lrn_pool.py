"""Local response normalisation and the max-pooling after it, in one pass each way, on the GPU.

The kernels are in ``kernels/norm_pool.cu``. Windows of more than 256 taps, which no network has,
are left to the two kernels that these fuse.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tinyalex.backends.cuda import lrn, pool
from tinyalex.backends.cuda.bias_grad import bias_grad, relu_bias_grad
from tinyalex.backends.cuda.launch import launch, type_name
from tinyalex.backends.cuda.pool import THREADS, PoolShape, one_thread_each, quads_by_pixels
from tinyalex.backends.geometry import Pair
from tinyalex.backends.gpu import cupy
from tinyalex.backends.layout import as_nchw, channels_last
from tinyalex.backends.types import Array

FILE = "norm_pool.cu"
TILE_BYTES = 40 << 10  # of shared memory for a block's tile: five blocks a multiprocessor
SLICE = 8  # quads of channels that a block takes, as in the CUDA source


def _in_quads(x: Array, groups: int, kernel_size: Pair) -> bool:
    return lrn.in_quads(x, groups) and _byte_taps(kernel_size)


def _byte_taps(kernel_size: Pair) -> bool:
    return pool.taps_dtype(kernel_size).itemsize == 1


def norm_max_pool2d(
    x: Array,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    groups: int,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    output_size: Pair,
) -> tuple[Array, Array]:
    """Return what `max_pool2d` makes of the output of `local_response_norm`."""
    if not _byte_taps(kernel_size):
        y = lrn.local_response_norm(x, size, alpha, beta, k, groups)
        return pool.max_pool2d(y, kernel_size, stride, padding, (1, 1), output_size)
    quads = _in_quads(x, groups, kernel_size)
    version = norm_max_pool2d_quads if quads else norm_max_pool2d_naive
    numbers = size, alpha, beta, k, groups
    return version(x, *numbers, kernel_size, stride, padding, output_size)


def norm_max_pool2d_naive(
    x: Array,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    groups: int,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    output_size: Pair,
) -> tuple[Array, Array]:
    """`norm_max_pool2d`, version 1: one thread an output."""
    shape = PoolShape.of(x.shape, output_size, kernel_size, stride, padding)
    y, taps = _outputs(x, output_size)
    numbers = shape.C // groups, size, alpha / size, beta, k
    arguments = channels_last(x), y, taps, *numbers, shape
    entry = f"norm_max_pool_{type_name(x.dtype)}"
    launch(FILE, entry, *one_thread_each(y.size), arguments)
    return as_nchw(y), as_nchw(taps)


def norm_max_pool2d_quads(
    x: Array,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    groups: int,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    output_size: Pair,
) -> tuple[Array, Array]:
    """`norm_max_pool2d`, version 2: a tile of windows a block, normalised in shared memory."""
    shape = PoolShape.of(x.shape, output_size, kernel_size, stride, padding)
    y, taps = _outputs(x, output_size)
    tile = _tile(shape)
    slices = -(-shape.C // (4 * SLICE))
    tiles = shape.N * -(-shape.Ho // tile.windows_h) * -(-shape.Wo // tile.windows_w)
    block = SLICE, min(THREADS // SLICE, tile.columns)
    numbers = shape.C // groups, size, alpha / size, beta, k
    arguments = channels_last(x), y, taps, *numbers, tile.windows_h, tile.windows_w, shape
    shared_bytes = 16 * tile.rows * tile.columns * SLICE
    launch(FILE, "norm_max_pool_quads", (tiles * slices,), block, arguments, shared_bytes)
    return as_nchw(y), as_nchw(taps)


def _outputs(x: Array, output_size: Pair) -> tuple[Array, Array]:
    y = cupy().empty((x.shape[0], *output_size, x.shape[1]), x.dtype)
    return y, cupy().empty(y.shape, np.uint8)


class _Tile(NamedTuple):
    """The windows that a block pools, and the pixels under them."""

    windows_h: int
    windows_w: int
    rows: int
    columns: int


def _tile(shape: PoolShape) -> _Tile:
    """Return tiles as wide as a block has threads for, and as high as `TILE_BYTES` let them be,
    but evenly spread over the image.
    """
    columns = min(THREADS // SLICE, TILE_BYTES // (16 * SLICE * shape.R))
    windows_w = _even(shape.Wo, max(0, columns - shape.S) // shape.stride_w + 1)
    columns = (windows_w - 1) * shape.stride_w + shape.S
    rows = TILE_BYTES // (16 * SLICE * columns)
    windows_h = _even(shape.Ho, (rows - shape.R) // shape.stride_h + 1)
    rows = (windows_h - 1) * shape.stride_h + shape.R
    return _Tile(windows_h, windows_w, rows, columns)


def _even(count: int, most: int) -> int:
    """Return the size of parts of ``count``, at most ``most``, of which all are equally large."""
    parts = -(-count // most)
    return -(-count // parts)


def norm_max_pool2d_input_grad(
    grad: Array,
    taps: Array,
    x: Array,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    groups: int,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
) -> Array:
    """Return dx of `norm_max_pool2d`."""
    numbers, window = (size, alpha, beta, k, groups), (kernel_size, stride, padding)
    if not _byte_taps(kernel_size):
        grad = pool.max_pool2d_input_grad(grad, taps, x.shape, *window, (1, 1))
        return lrn.local_response_norm_input_grad(grad, x, *numbers)
    quads = _in_quads(x, groups, kernel_size)
    version = norm_max_pool2d_input_grad_quads if quads else norm_max_pool2d_input_grad_naive
    return version(grad, taps, x, *numbers, *window)


def norm_max_pool2d_input_grad_naive(
    grad: Array,
    taps: Array,
    x: Array,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    groups: int,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
) -> Array:
    """`norm_max_pool2d_input_grad`, version 1: one thread a value."""
    shape = PoolShape.of(x.shape, grad.shape[2:], kernel_size, stride, padding)
    numbers = shape.C // groups, size, alpha / size, beta, k
    images, slopes, winners = channels_last(x), channels_last(grad), channels_last(taps)
    dx = cupy().empty(images.shape, x.dtype)
    arguments = slopes, winners, images, dx, *numbers, shape
    entry = f"norm_max_pool_grad_{type_name(x.dtype)}"
    launch(FILE, entry, *one_thread_each(dx.size), arguments)
    return as_nchw(dx)


def norm_max_pool2d_input_grad_quads(
    grad: Array,
    taps: Array,
    x: Array,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    groups: int,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
) -> Array:
    """`norm_max_pool2d_input_grad`, version 2: a row of an image a block, through shared memory."""
    shape = PoolShape.of(x.shape, grad.shape[2:], kernel_size, stride, padding)
    numbers = shape.C // groups, size, alpha / size, beta, k
    images, slopes, winners = channels_last(x), channels_last(grad), channels_last(taps)
    dx = cupy().empty(images.shape, x.dtype)
    block = quads_by_pixels(shape.C // 4, shape.W)
    arguments = slopes, winners, images, dx, *numbers, shape
    launch(FILE, "norm_max_pool_grad_quads", (shape.N * shape.H,), block, arguments)
    return as_nchw(dx)


def norm_max_pool2d_relu_bias_grad(
    grad: Array,
    taps: Array,
    x: Array,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    groups: int,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
) -> tuple[Array, Array]:
    """Return the gradients of what `norm_max_pool2d` followed: a ReLU, whose output is ``x``, and
    a bias before it.

    The first is dx of `norm_max_pool2d` where not ``x <= 0``, else 0: that of the ReLU's input.
    The second, [C], is its sum over images and pixels, added up in the same order every time.
    """
    numbers, window = (size, alpha, beta, k, groups), (kernel_size, stride, padding)
    quads = _in_quads(x, groups, kernel_size)
    version = norm_max_pool2d_relu_bias_grad_quads if quads else _relu_bias_grad_in_steps
    return version(grad, taps, x, *numbers, *window)


def norm_max_pool2d_relu_bias_grad_quads(
    grad: Array,
    taps: Array,
    x: Array,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    groups: int,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
) -> tuple[Array, Array]:
    """`norm_max_pool2d_relu_bias_grad`, all in one pass, and the last additions of the bias."""
    shape = PoolShape.of(x.shape, grad.shape[2:], kernel_size, stride, padding)
    numbers = shape.C // groups, size, alpha / size, beta, k
    images, slopes, winners = channels_last(x), channels_last(grad), channels_last(taps)
    dx = cupy().empty(images.shape, x.dtype)
    rows = shape.N * shape.H
    sums = cupy().empty((rows, shape.C), x.dtype)
    block = quads_by_pixels(shape.C // 4, shape.W)
    arguments = slopes, winners, images, dx, sums, *numbers, shape
    launch(FILE, "norm_max_pool_relu_grad_quads", (rows,), block, arguments)
    return as_nchw(dx), bias_grad(sums)


def _relu_bias_grad_in_steps(
    grad: Array, taps: Array, x: Array, *options: Any
) -> tuple[Array, Array]:
    """Do what the fused kernel does, one after the other."""
    dx = channels_last(norm_max_pool2d_input_grad(grad, taps, x, *options))
    masked, bias = relu_bias_grad(dx, channels_last(x))
    return as_nchw(masked), bias
