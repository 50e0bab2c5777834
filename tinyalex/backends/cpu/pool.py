"""Max-pooling, a row of pixels at a time, all channels of a pixel in one vector loop.

The window's tap that won is stored in a byte; the backward pass *gathers*: each row of the input
collects from the windows that cover it, so every row is written by one task, whole and once.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from tinyalex.backends import memory
from tinyalex.backends.cpu.columns import Window, window
from tinyalex.backends.cpu.runtime import kernel, parallel_kernel, plain
from tinyalex.backends.geometry import Pair
from tinyalex.backends.layout import as_nchw, channels_last
from tinyalex.backends.types import Array


@kernel
def keep_larger(x, tap, y, taps):
    """Take over what is larger in ``x``, channel by channel, and that it came from ``tap``."""
    for c in range(y.size):
        # Not "x > y": a NaN wins over any number, and then nothing wins over it.
        wins = not (x[c] <= y[c]) and y[c] == y[c]
        y[c] = x[c] if wins else y[c]
        taps[c] = tap if wins else taps[c]


@kernel
def begin(x, tap, y, taps):
    """Take over ``x``, the first tap of a window."""
    for c in range(y.size):
        y[c] = x[c]
        taps[c] = tap


@parallel_kernel
def _max_pool(x, window, y, taps):
    N, H, W, _ = x.shape
    _, Ho, Wo, _ = y.shape
    for row in prange(N * Ho):
        n, i = divmod(np.int64(row), Ho)
        for j in range(Wo):
            output, winners = y[n, i, j], taps[n, i, j]
            empty = True
            for r in range(window.height):
                h = i * window.stride_h + r * window.dilation_h - window.top
                if h < 0 or h >= H:
                    continue
                for s in range(window.width):
                    w = j * window.stride_w + s * window.dilation_w - window.left
                    if w < 0 or w >= W:
                        continue
                    tap = taps.dtype.type(r * window.width + s)
                    if empty:
                        begin(x[n, h, w], tap, output, winners)
                        empty = False
                    else:
                        keep_larger(x[n, h, w], tap, output, winners)
            if empty:  # a dilated window can have all its taps in the padding
                output[:] = -np.inf
                winners[:] = 0


@kernel
def _add_where_won(grad, winners, tap, dx):
    for c in range(dx.size):
        dx[c] += grad[c] if winners[c] == tap else dx.dtype.type(0)


@kernel
def collect(grad, taps, window, h, line):
    """Set ``line`` [W, C], row h of an image, to the gradient of all windows it won in.

    ``grad`` and ``taps`` [Ho, Wo, C] are the image's.
    """
    line[:] = 0
    for r in range(window.height):
        i, rest = divmod(h + window.top - r * window.dilation_h, window.stride_h)
        if rest != 0 or i < 0 or i >= grad.shape[0]:
            continue
        for j in range(grad.shape[1]):
            for s in range(window.width):
                w = j * window.stride_w + s * window.dilation_w - window.left
                if w >= 0 and w < line.shape[0]:
                    tap = taps.dtype.type(r * window.width + s)
                    _add_where_won(grad[i, j], taps[i, j], tap, line[w])


@parallel_kernel
def _max_pool_input_grad(grad, taps, window, dx):
    N, H, _, _ = dx.shape
    for row in prange(N * H):
        n, h = divmod(np.int64(row), H)
        collect(grad[n], taps[n], window, h, dx[n, h])


def pooling_window(kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Window:
    """Return the geometry; padding is equal on opposite sides."""
    return window(kernel_size, stride, ((padding[0],) * 2, (padding[1],) * 2), dilation)


def max_pool2d(
    x: Array, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair, output_size: Pair
) -> tuple[Array, Array]:
    """Return the maximum of each window, and the number r * S + s of the tap that held it.

    Padding never wins; the first of equal values wins; NaN wins over all.
    """
    N, C = x.shape[:2]
    y = memory.empty((N, *output_size, C), x.dtype)
    taps = memory.empty(y.shape, np.min_scalar_type(kernel_size[0] * kernel_size[1] - 1))
    _max_pool(
        plain(channels_last(x)), pooling_window(kernel_size, stride, padding, dilation), y, taps
    )
    return as_nchw(y), as_nchw(taps)


def max_pool2d_input_grad(
    grad: Array,
    taps: Array,
    input_shape: tuple[int, ...],
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> Array:
    """Return dx: the gradient of each window goes to its winning tap; overlapping windows add."""
    N, C, H, W = input_shape
    dx = memory.empty((N, H, W, C), grad.dtype)
    winners = plain(channels_last(taps))
    shape = pooling_window(kernel_size, stride, padding, dilation)
    _max_pool_input_grad(plain(channels_last(grad)), winners, shape, dx)
    return as_nchw(dx)
