"""Convolution with a stride: space to depth, then Winograd's algorithm.

A window that moves by s pixels sees blocks of s x s pixels. With a block as one pixel of s * s * C
channels, 11 x 11 taps at stride 4 become 3 x 3 taps at stride 1, over 16 times as many channels:

    x [N, C, H, W] -> blocks [N, s * s * C, H', W'],   channel (a * s + b) * C + c at (i, j)
                                                        = x[c, s * i + a - top, s * j + b - left]

The twelfth row and column of taps, which the filter does not have, are zeros. They cost 20 % more
products; Winograd then saves three of four.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from tinyalex.backends import memory
from tinyalex.backends.cpu.conv import im2col, winograd
from tinyalex.backends.cpu.conv.winograd_weights import points
from tinyalex.backends.cpu.runtime import kernel, parallel_kernel
from tinyalex.backends.cpu.weight_cache import reuse
from tinyalex.backends.geometry import ConvOptions, Pair, conv_output_size
from tinyalex.backends.layout import as_nchw, channels_last
from tinyalex.backends.types import Array, Shape


@kernel
def _copy_apart(source, at, step, line, first, stop, channel):
    """``line[j, channel] = source[at + (j - first) * step]`` for j from first to stop."""
    # Unsigned indices: signed ones could mean "from the end", and each would be checked for it.
    at, step, channel = np.uintp(at), np.uintp(step), np.uintp(channel)
    for j in range(np.uintp(first), np.uintp(max(first, stop))):
        line[j, channel] = source[at]
        at += step


@parallel_kernel
def _to_blocks(x, stride, top, left, blocks):
    # x [N, H, W, C] in any memory order, blocks [N, H', W', s * s * C]
    N, H, W, C = x.shape
    _, rows, columns, _ = blocks.shape
    for row in prange(N * rows):
        n, i = divmod(np.int64(row), rows)
        line = blocks[n, i]
        line[:] = 0
        for a in range(stride):
            h = i * stride + a - top
            if h < 0 or h >= H:
                continue
            for b in range(stride):
                # Pixels w = j * stride + b - left; the blocks j whose pixel lies in the image.
                shift = b - left
                first = max(0, (stride - 1 - shift) // stride)
                stop = min(columns, (W - shift + stride - 1) // stride)
                for c in range(C):
                    _copy_apart(x[n, h, :, c], first * stride + shift, stride, line, first, stop,
                                (a * stride + b) * C + c)  # fmt: skip


def taps_as_blocks(weight_shape: Shape, stride: int) -> int:
    """Return the blocks that a filter covers along each axis."""
    return -(-weight_shape[2] // stride)


def _blocks(x: Array, output_size: Pair, taps: int, options: ConvOptions) -> Array:
    N, C = x.shape[:2]
    (stride, _), ((top, _), (left, _)), _, _ = options
    rows, columns = (size + taps - 1 for size in output_size)
    blocks = memory.empty((N, rows, columns, stride * stride * C), np.float32)
    images = x if x.flags.writeable else x.copy()  # as in `runtime.plain`
    _to_blocks(images.transpose(0, 2, 3, 1), stride, top, left, blocks)
    return as_nchw(blocks)


def _weight_blocks(weight: Array, stride: int, taps: int) -> Array:
    """Return [K, C, R, R] as [K, s * s * C, taps, taps]."""
    K, C, R, _ = weight.shape
    margin = (0, taps * stride - R)
    full = np.pad(weight, ((0, 0), (0, 0), margin, margin))
    cells = full.reshape(K, C, taps, stride, taps, stride).transpose(0, 3, 5, 1, 2, 4)
    return cells.reshape(K, stride * stride * C, taps, taps)


def _from_weight_blocks(cells: Array, weight_shape: Shape, stride: int) -> Array:
    """Undo `_weight_blocks`; what stood for taps that are not there is dropped."""
    K, C, R, S = weight_shape
    taps = cells.shape[2]
    full = cells.reshape(K, stride, stride, C, taps, taps).transpose(0, 3, 4, 1, 5, 2)
    full = full.reshape(K, C, taps * stride, taps * stride)
    return np.ascontiguousarray(full[:, :, :R, :S])


def forward(
    x: Array,
    weight: Array,
    bias: Array | None,
    options: ConvOptions,
    rectify: bool = False,
    shard: int | None = None,
) -> Array:
    """Return y, or max(y, 0): blocks, then Winograd's convolution."""
    s = options.stride[0]
    taps = taps_as_blocks(weight.shape, s)
    size = conv_output_size(x.shape[2:], weight.shape[2:], options)
    cells = _blocks(x, size, taps, options)
    U = reuse(weight, ("strided", s), lambda: points(_weight_blocks(weight, s, taps), 1, False))
    shape = (x.shape[0], weight.shape[0], *size)
    y, spoilt = winograd.convolve(cells, None, U, bias, rectify, (0, 0), shape)
    winograd.redo(y, spoilt, shard, lambda n: im2col.forward(x[n], weight, bias, options, rectify))
    return y


def input_grad(
    grad: Array,
    weight: Array,
    input_shape: Shape,
    options: ConvOptions,
    mask: Array | None = None,
    shard: int | None = None,
) -> Array:
    """Return dx: the gradient of the blocks, scattered to their pixels."""
    (s, _), ((top, _), (left, _)), _, _ = options
    taps = taps_as_blocks(weight.shape, s)
    N, C, H, W = input_shape
    rows, columns = (size + taps - 1 for size in grad.shape[2:])
    U = points(_weight_blocks(weight, s, taps), 1, True)
    shape = (N, s * s * C, rows, columns)
    edge = taps - 1, taps - 1
    cells, spoilt = winograd.convolve(grad, mask, U, None, False, edge, shape)
    pixels = channels_last(cells).reshape(N, rows, columns, s, s, C).transpose(0, 1, 3, 2, 4, 5)
    pixels = pixels.reshape(N, rows * s, columns * s, C)
    dx = np.zeros((N, H, W, C), np.float32)
    seen = pixels[:, top : top + H, left : left + W]
    dx[:, : seen.shape[1], : seen.shape[2]] = seen
    dx = as_nchw(dx)
    again = winograd.im2col_input_grad(grad, weight, input_shape, options, mask)
    winograd.redo(dx, spoilt, shard, again)
    return dx


masked = winograd.masked


def weight_grad(grad: Array, x: Array, weight_shape: Shape, options: ConvOptions) -> Array:
    """Return dweight."""
    return weight_and_bias_grad(grad, x, weight_shape, options)[0]


def weight_and_bias_grad(
    grad: Array, x: Array, weight_shape: Shape, options: ConvOptions, mask: Array | None = None
) -> tuple[Array, Array]:
    """Return dweight and dbias, from blocks as in `forward`."""
    s = options.stride[0]
    taps = taps_as_blocks(weight_shape, s)
    cells = _blocks(x, grad.shape[2:], taps, options)
    shape = (weight_shape[0], s * s * weight_shape[1], taps, taps)
    dw, dbias = winograd.weight_and_bias_grad(grad, cells, shape, ConvOptions(), mask)
    return _from_weight_blocks(dw, weight_shape, s), dbias
