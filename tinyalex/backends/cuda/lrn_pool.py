"""Local response normalisation and the max-pooling after it, in one pass each way, on the GPU.

The kernels are in ``kernels/norm_pool.cu``. Windows of more than 256 taps, which no network has,
are left to the two kernels that these fuse.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tinyalex.backends.cuda import lrn, pool
from tinyalex.backends.cuda.device import cupy
from tinyalex.backends.cuda.launch import MOST_STATIC_SHARED, launch, type_name
from tinyalex.backends.cuda.pool import THREADS, PoolShape, one_thread_each, quads_by_pixels
from tinyalex.backends.geometry import Pair
from tinyalex.backends.layout import as_nchw, channels_last
from tinyalex.backends.types import Array

FILE = "norm_pool.cu"
TILE = 4  # windows along each side of a block's tile
SLICE = 32  # quads of channels that a block takes at most: 512 neighbouring bytes
SUM_CHANNELS, SUM_ROWS = 32, 8  # the block of sum_of_rows
# A block of sum_of_rows adds up this many rows or more, until at most MOST_PARTS are left for one.
ROWS_A_BLOCK, MOST_PARTS = 64, 256


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
    (height, width), quads, pixels = _tile(shape)
    slices = -(-shape.C // (4 * quads))
    tiles = shape.N * -(-shape.Ho // height) * -(-shape.Wo // width)
    block = quads, min(THREADS // quads, pixels)
    numbers = shape.C // groups, size, alpha / size, beta, k
    arguments = channels_last(x), y, taps, *numbers, height, width, shape
    launch(FILE, "norm_max_pool_quads", (tiles * slices,), block, arguments, 16 * pixels * quads)
    return as_nchw(y), as_nchw(taps)


def _outputs(x: Array, output_size: Pair) -> tuple[Array, Array]:
    y = cupy().empty((x.shape[0], *output_size, x.shape[1]), x.dtype)
    return y, cupy().empty(y.shape, np.uint8)


def _tile(shape: PoolShape) -> tuple[Pair, int, int]:
    """Return a block's tile of windows, its quads of channels, and the pixels under the tile: as
    large as static shared memory could hold, of which two or more blocks fit on a multiprocessor.
    """
    quads = shape.C // 4
    quads = -(-quads // -(-quads // SLICE))  # slices of equal size
    height, width = TILE, TILE
    while True:
        rows = (height - 1) * shape.stride_h + shape.R
        pixels = rows * ((width - 1) * shape.stride_w + shape.S)
        if 16 * pixels * quads <= MOST_STATIC_SHARED:
            return (height, width), quads, pixels
        if height * width == 1:
            quads = -(-quads // 2)
        elif height < width:
            width //= 2
        else:
            height //= 2


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
    return as_nchw(dx), _sum_of_rows(sums)


def _relu_bias_grad_in_steps(
    grad: Array, taps: Array, x: Array, *options: Any
) -> tuple[Array, Array]:
    """Do what the fused kernel does, one after the other."""
    images = channels_last(x)
    dx = channels_last(norm_max_pool2d_input_grad(grad, taps, x, *options))
    dx = cupy().where(images <= 0, dx.dtype.type(0), dx)  # written so that NaN lets it through
    return as_nchw(dx), _sum_of_rows(dx.reshape(-1, x.shape[1]))


def _sum_of_rows(values: Array) -> Array:
    """Return the sum of the rows of ``values`` [rows, C]: first in parts, then of the parts."""
    rows, C = values.shape
    across = -(-C // SUM_CHANNELS)
    while True:
        parts = min(rows // ROWS_A_BLOCK, MOST_PARTS) if rows > MOST_PARTS else 1
        sums = cupy().empty((parts, C), values.dtype)
        entry = f"sum_of_rows_{type_name(values.dtype)}"
        arguments = values, sums, rows, -(-rows // parts), C
        launch(FILE, entry, (across, parts), (SUM_CHANNELS, SUM_ROWS), arguments)
        if parts == 1:
            return sums[0]
        values, rows = sums, parts
