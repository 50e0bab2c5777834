"""Winograd's convolution F(4x4, 3x3) and F(4x4, 5x5): stride 1, float32, many channels.

Every 4x4 tile of outputs is computed by way of n x n points, n = 6 or 8 (`winograd_transforms`):
2.25 products an output instead of 9, or 4 instead of 25. At each point (k, l) the products over all
tiles and channels are one matrix product. A task takes a few lines of tiles through all steps
(`winograd_tiles`), one row of points k at a time:

    V [tile, l, C]   inputs      M [tile, l, K]   outputs = V U[k, l]      U [k, l, C, K]   weights

The order [tile, l, channel] lets every transform go from one contiguous matrix to another; BLAS
gets by with strides, so that a group is a pointer to its first channel.

Rounding errors are some ten to thirty times those of `im2col`: 4e-6 of the largest value with 3
taps, 1e-5 with 5. A NaN or an infinity spoils all outputs of the tiles that see it, not only those
of the windows that do.
"""

from __future__ import annotations

import numpy as np
from numba import prange
from numba.np.ufunc.parallel import get_thread_id

from tinyalex.backends.cpu.gemm import gemm
from tinyalex.backends.cpu.runtime import num_threads, parallel_kernel, plain, workspace
from tinyalex.backends.cpu.winograd_tiles import (
    Canvas,
    add,
    copy,
    gradient_columns,
    gradient_rows,
    input_columns,
    input_rows,
    lay_out,
    output_columns,
    output_rows,
    take,
)
from tinyalex.backends.cpu.winograd_transforms import TILE, both_sides, matrices
from tinyalex.backends.geometry import Padding, Pair, conv_output_size
from tinyalex.backends.layout import as_nchw, channels_last
from tinyalex.backends.types import Array

# A task has so many tiles, for 3 and for 5 taps: enough that BLAS, which packs all weights anew for
# each task, is busy with products, and few enough that V and M stay in the core's cache.
TILES = {3: 196, 5: 49}
TILES_OF_WEIGHT_GRAD = {3: 98, 5: 49}
# From this size on BLAS packs a matrix of weights faster as [outputs, inputs], below it slower.
LARGE = 1 << 16
PARTIAL_BYTES = 1 << 28


@parallel_kernel
def _convolve(x, U, transposed, bias, y, canvas, padding, lines, lines_per_task, space):
    n, _, groups, Cg, Kg = U.shape
    if transposed:
        Cg, Kg = Kg, Cg
    C, K = groups * Cg, groups * Kg
    columns = canvas.tiles * TILE + n - TILE
    for task in prange((lines + lines_per_task - 1) // lines_per_task):
        first = np.int64(task) * lines_per_task
        count = min(lines, first + lines_per_task) - first
        tiles = count * canvas.tiles
        mine = space[get_thread_id()]
        rows, end = take(mine, 0, (n, columns, C))
        half, end = take(mine, end, (count, n, columns, C))
        V, end = take(mine, end, (tiles, n, C))
        M, end = take(mine, end, (tiles, n, K))
        half_done, end = take(mine, end, (tiles, n, TILE, K))
        outputs, end = take(mine, end, (TILE, TILE, K))
        input_columns(x, canvas, padding, first, rows, half)
        for k in range(n):
            input_rows(half, k, V)
            for point in range(n):
                for g in range(groups):
                    source = V[:, point, g * Cg : (g + 1) * Cg]
                    target = M[:, point, g * Kg : (g + 1) * Kg]
                    gemm(source, U[k, point, g], target, False, transposed, False)
            output_rows(M, half_done, k)
        output_columns(half_done, outputs, canvas, first, bias, y)


@parallel_kernel
def _weight_grad(grad, x, dU, canvas, padding, lines, lines_per_task, space):
    # dU [parts, n, n, groups, Kg, Cg]: each part sums a fixed share of the lines, in order.
    parts, n, _, groups, Kg, Cg = dU.shape
    C, K = groups * Cg, groups * Kg
    width = canvas.tiles * TILE
    columns = width + n - TILE
    for number in prange(parts):
        part = np.int64(number)
        mine = space[get_thread_id()]
        begin, stop = lines * part // parts, lines * (part + 1) // parts
        for first in range(begin, stop, lines_per_task):
            count = min(stop, first + lines_per_task) - first
            tiles = count * canvas.tiles
            rows, end = take(mine, 0, (n, columns, C))
            half, end = take(mine, end, (count, n, columns, C))
            V, end = take(mine, end, (tiles, n, C))
            grad_rows, end = take(mine, end, (TILE, width, K))
            grad_half, end = take(mine, end, (count, n, width, K))
            Z, end = take(mine, end, (tiles, n, K))
            input_columns(x, canvas, padding, first, rows, half)
            gradient_columns(grad, canvas, first, grad_rows, grad_half)
            for k in range(n):
                input_rows(half, k, V)
                gradient_rows(grad_half, k, Z)
                for point in range(n):
                    for g in range(groups):
                        inputs = V[:, point, g * Cg : (g + 1) * Cg]
                        grads = Z[:, point, g * Kg : (g + 1) * Kg]
                        total = dU[part, k, point, g]
                        gemm(grads, inputs, total, True, False, first > begin)


@parallel_kernel
def _transform_weight(taps, G, U, by_channel):
    # taps [groups, Kg, Cg, r * r] -> U [n, n, groups, Cg, Kg] if by_channel, else [..., Kg, Cg]
    n, r = G.shape
    _, _, groups, rows, columns = U.shape
    for row in prange(groups * rows):
        g, i = divmod(np.int64(row), rows)
        lines = np.empty((r, r, columns), np.float32)
        for j in range(columns):
            for a in range(r):
                for b in range(r):
                    tap = a * r + b
                    lines[a, b, j] = taps[g, j, i, tap] if by_channel else taps[g, i, j, tap]
        points = np.empty((n, n, columns), np.float32)
        both_sides(G, lines, np.empty((n, r, columns), np.float32), points)
        for k in range(n):
            for point in range(n):
                copy(points[k, point], U[k, point, g, i])


@parallel_kernel
def _gather_weight_grad(dU, G_t, dw):
    # dw [groups, Kg, Cg, r * r] = G^T (sum of the parts) G
    parts, n, _, groups, Kg, Cg = dU.shape
    r = G_t.shape[0]
    for row in prange(groups * Kg):
        g, o = divmod(np.int64(row), Kg)
        points = np.empty((n, n, Cg), np.float32)
        for k in range(n):
            for point in range(n):
                copy(dU[0, k, point, g, o], points[k, point])
                for part in range(1, parts):
                    add(dU[part, k, point, g, o], points[k, point], points[k, point])
        lines = np.empty((r, r, Cg), np.float32)
        both_sides(G_t, points, np.empty((r, n, Cg), np.float32), lines)
        for c in range(Cg):
            for a in range(r):
                for b in range(r):
                    dw[g, o, c, a * r + b] = lines[a, b, c]


def _space(lines: int, canvas: Canvas, taps: int, channels: int) -> Array:
    """Return room for the tiles of so many lines, on all stages of their way."""
    n = TILE + taps - 1
    columns = canvas.tiles * TILE + taps - 1
    size = n * channels * ((lines + 1) * columns + lines * canvas.tiles * n)
    return workspace(size, np.dtype(np.float32))


def _convolution(
    x: Array, weight: Array, bias: Array | None, padding: Pair, y_shape: tuple[int, ...],
    groups: int, rotated: bool,
) -> Array:  # fmt: skip
    """Return y, or with ``rotated`` the convolution with the weight's transpose, turned by 180."""
    K, Cg, taps, _ = weight.shape
    N, Ko, Ho, Wo = y_shape
    G = matrices(taps).weight.astype(np.float32)
    if rotated:
        G = np.ascontiguousarray(G[:, ::-1])
    transposed = K // groups * Cg >= LARGE
    by_channel = rotated == transposed  # the channels are what goes in, or after a rotation out
    sides = (Cg, K // groups) if by_channel else (K // groups, Cg)
    U = np.empty((len(G), len(G), groups, *sides), np.float32)
    _transform_weight(plain(weight).reshape(groups, -1, Cg, taps * taps), G, U, by_channel)
    canvas = lay_out(N, (Ho, Wo), taps)
    lines = -(-N // (canvas.down * canvas.across)) * canvas.lines
    tasks = -(-lines * canvas.tiles // (TILES[taps] * num_threads())) * num_threads()
    per_task = max(1, -(-lines // max(1, tasks)))
    y = np.empty((N, Ho, Wo, Ko), np.float32)
    _convolve(
        plain(channels_last(x)),
        U,
        transposed,
        np.zeros(Ko, np.float32) if bias is None else plain(bias),
        y,
        canvas,
        padding,
        lines,
        per_task,
        _space(per_task, canvas, taps, x.shape[1] + Ko),
    )
    return as_nchw(y)


def forward(
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> Array:
    """Return y: transform the input, multiply point by point, transform the products back."""
    size = conv_output_size(x.shape[2:], weight.shape[2:], stride, padding, dilation)
    shape = (x.shape[0], weight.shape[0], *size)
    return _convolution(x, weight, bias, (padding[0][0], padding[1][0]), shape, groups, False)


def input_grad(
    grad: Array,
    weight: Array,
    input_shape: tuple[int, ...],
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> Array:
    """Return dx: the convolution of ``grad`` with the rotated kernels.

    A padding of p in the forward direction is one of r - 1 - p here, or cuts off if p is larger.
    """
    edge = weight.shape[2] - 1
    padding_of_grad = edge - padding[0][0], edge - padding[1][0]
    return _convolution(grad, weight, None, padding_of_grad, input_shape, groups, True)


def weight_grad(
    grad: Array,
    x: Array,
    weight_shape: tuple[int, ...],
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> Array:
    """Return dweight: the products of transformed inputs and gradients, summed over all tiles.

    Every thread has a sum of its own, as in `im2col.weight_grad`.
    """
    K, Cg, taps, _ = weight_shape
    G_t = np.ascontiguousarray(matrices(taps).weight.T, dtype=np.float32)
    n = G_t.shape[1]
    canvas = lay_out(grad.shape[0], grad.shape[2:], taps)
    lines = -(-grad.shape[0] // (canvas.down * canvas.across)) * canvas.lines
    dw = np.zeros(weight_shape, np.float32)
    if lines == 0:
        return dw
    most = max(1, PARTIAL_BYTES // (n * n * K * Cg * 4))
    dU = np.empty((min(num_threads(), lines, most), n, n, groups, K // groups, Cg), np.float32)
    per_task = max(1, TILES_OF_WEIGHT_GRAD[taps] // canvas.tiles)
    _weight_grad(
        plain(channels_last(grad)),
        plain(channels_last(x)),
        dU,
        canvas,
        (padding[0][0], padding[1][0]),
        lines,
        per_task,
        _space(per_task, canvas, taps, x.shape[1] + K),
    )
    _gather_weight_grad(dU, G_t, dw.reshape(groups, K // groups, Cg, taps * taps))
    return dw
