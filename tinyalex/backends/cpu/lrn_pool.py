"""Local response normalisation and the max-pooling after it, in one pass each way.

The normalised images are as large as all that a layer of the paper keeps otherwise, and pooling
throws most of them away. Forward, a task normalises rows into a ring of as many as a window has,
and pools from there. Backward, every row collects its gradient from the windows in which it won,
and goes through the normalisation while it is still in the cache. The normalised images exist
nowhere.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from tinyalex.backends import memory
from tinyalex.backends.cpu.lrn import norm, normalise, normalise_grad, scratch
from tinyalex.backends.cpu.pool import collect, pool_row, pooling_window
from tinyalex.backends.cpu.runtime import parallel_kernel, plain
from tinyalex.backends.geometry import Pair
from tinyalex.backends.layout import as_nchw, channels_last
from tinyalex.backends.types import Array

ROWS = 9  # of the output, a task: the first window of each normalises some rows a second time


@parallel_kernel
def _forward(x, norm, groups, window, y, taps):
    N, H, W, C = x.shape
    Ho = y.shape[1]
    stripes = (Ho + ROWS - 1) // ROWS
    for task in prange(N * stripes):
        n, stripe = divmod(np.int64(task), stripes)
        space = scratch(C // groups, norm.size, x.dtype)
        ring = np.empty((window.height, W, C), x.dtype)
        done = stripe * ROWS * window.stride_h - window.top  # the next row to normalise
        for i in range(stripe * ROWS, min(Ho, (stripe + 1) * ROWS)):
            stop = i * window.stride_h - window.top + window.height
            for h in range(max(0, done), min(H, stop)):
                target = ring[h % window.height].reshape(W * C)
                normalise(x[n, h].reshape(W * C), norm, space, target)
            done = stop
            fresh = True
            for r in range(window.height):
                h = i * window.stride_h + r - window.top
                if h >= 0 and h < H:
                    pool_row(ring[h % window.height], window, r, fresh, y[n, i], taps[n, i])
                    fresh = False


@parallel_kernel
def _input_grad(grad, taps, x, norm, groups, window, dx):
    N, H, W, C = x.shape
    for row in prange(N * H):
        n, h = divmod(np.int64(row), H)
        space = scratch(C // groups, norm.size, x.dtype)
        collect(grad[n], taps[n], window, h, dx[n, h])
        line = dx[n, h].reshape(W * C)
        normalise_grad(line, x[n, h].reshape(W * C), norm, space, line)


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
    y = memory.empty((x.shape[0], *output_size, x.shape[1]), x.dtype)
    taps = memory.empty(y.shape, np.min_scalar_type(kernel_size[0] * kernel_size[1] - 1))
    numbers = norm(size, alpha, beta, k, x.dtype)
    window = pooling_window(kernel_size, stride, padding, (1, 1))
    _forward(plain(channels_last(x)), numbers, groups, window, y, taps)
    return as_nchw(y), as_nchw(taps)


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
    images = plain(channels_last(x))
    dx = memory.empty_like(images)
    numbers = norm(size, alpha, beta, k, x.dtype)
    window = pooling_window(kernel_size, stride, padding, (1, 1))
    gradients, winners = plain(channels_last(grad)), plain(channels_last(taps))
    _input_grad(gradients, winners, images, numbers, groups, window, dx)
    return as_nchw(dx)
