"""Local response normalisation fused with max-pooling.

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
from tinyalex.backends.cpu.lrn import normalise, normalise_grad, numbers, scratch
from tinyalex.backends.cpu.pool import collect, outputs, pool_row
from tinyalex.backends.cpu.runtime import parallel_kernel, plain
from tinyalex.backends.geometry import NormOptions, Pair, PoolOptions, pool_window
from tinyalex.backends.layout import as_nchw, channels_last
from tinyalex.backends.types import Array

ROWS = 9  # of the output per task: the first window of each normalises some rows a second time


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
    x: Array, norm: NormOptions, pool: PoolOptions, output_size: Pair
) -> tuple[Array, Array]:
    """Return what `max_pool2d` makes of the output of `local_response_norm`."""
    images, window = plain(channels_last(x)), pool_window(pool)
    y, taps = outputs(x, pool, output_size)
    _forward(images, numbers(norm, x.dtype), norm.groups, window, y, taps)
    return as_nchw(y), as_nchw(taps)


def norm_max_pool2d_input_grad(
    grad: Array, taps: Array, x: Array, norm: NormOptions, pool: PoolOptions
) -> Array:
    """Return dx of `norm_max_pool2d`."""
    gradients, winners, images = (plain(channels_last(array)) for array in (grad, taps, x))
    dx, window = memory.empty_like(images), pool_window(pool)
    _input_grad(gradients, winners, images, numbers(norm, x.dtype), norm.groups, window, dx)
    return as_nchw(dx)
