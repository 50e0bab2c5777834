"""Max-pooling, one pixel row at a time, channels in one vector loop.

The window's tap that won is stored in a byte; the backward pass *gathers*: each row of the input
collects from the windows that cover it, so every row is written by one task, whole and once.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from tinyalex.backends import memory
from tinyalex.backends.cpu.runtime import kernel, parallel_kernel, plain
from tinyalex.backends.geometry import Pair, PoolOptions, pool_window
from tinyalex.backends.layout import as_nchw, channels_last
from tinyalex.backends.types import Array, Shape


@kernel
def _begin(x, start, step, tap, first, stop, y, taps):
    """Initialise windows ``first`` to ``stop`` with pixels of the row ``x``.

    Window j begins with pixel ``start + j * step``.
    """
    # Unsigned indices: signed ones could mean "from the end", and the loop would not vectorise.
    for j in range(np.uintp(first), np.uintp(max(first, stop))):
        pixel = np.uintp(start + np.int64(j) * step)
        for c in range(np.uintp(y.shape[1])):
            y[j, c] = x[pixel, c]
            taps[j, c] = tap


@kernel
def _keep_larger(x, start, step, tap, first, stop, y, taps):
    """As `_begin`, where the pixel is larger than what there is."""
    for j in range(np.uintp(first), np.uintp(max(first, stop))):
        pixel = np.uintp(start + np.int64(j) * step)
        for c in range(np.uintp(y.shape[1])):
            # Not "x > y": a NaN wins over any number, and then nothing wins over it.
            wins = not (x[pixel, c] <= y[j, c]) and y[j, c] == y[j, c]
            y[j, c] = x[pixel, c] if wins else y[j, c]
            taps[j, c] = tap if wins else taps[j, c]


@kernel
def _windows_over(window, s, windows, pixels):
    """Return the range of windows whose tap s lies in the image.

    Also the pixel under that tap of window 0, which may be outside.

    Also the pixel under that tap of window 0, which may be outside.
    """
    start = s * window.dilation_w - window.left
    first = max(0, -(start // window.stride_w))
    return first, min(windows, (pixels - 1 - start) // window.stride_w + 1), start


@kernel
def pool_row(x, window, r, fresh, y, taps):
    """Pool ``x`` [W, C], the pixels under tap row r, into ``y`` [Wo, C].

    If ``fresh``, these are the first pixels of the windows.
    """
    begun = y.shape[0] if fresh else 0  # this window and those behind it have a first pixel
    for s in range(window.width):
        first, stop, start = _windows_over(window, s, y.shape[0], x.shape[0])
        tap = taps.dtype.type(r * window.width + s)
        step = window.stride_w
        _begin(x, start, step, tap, first, min(stop, begun), y, taps)
        _keep_larger(x, start, step, tap, max(first, begun), stop, y, taps)
        begun = min(begun, first)


@parallel_kernel
def _max_pool(x, window, y, taps):
    N, H, _, _ = x.shape
    Ho = y.shape[1]
    for row in prange(N * Ho):
        n, i = divmod(np.int64(row), Ho)
        if window.dilation_h > 1 or window.dilation_w > 1:
            y[n, i] = -np.inf  # a dilated window can have all its taps in the padding
            taps[n, i] = 0
        fresh = True
        for r in range(window.height):
            h = i * window.stride_h + r * window.dilation_h - window.top
            if h >= 0 and h < H:
                pool_row(x[n, h], window, r, fresh, y[n, i], taps[n, i])
                fresh = False


@kernel
def _add_where_won(grad, taps, tap, first, stop, start, step, dx):
    for j in range(np.uintp(first), np.uintp(max(first, stop))):
        pixel = np.uintp(start + np.int64(j) * step)
        for c in range(np.uintp(dx.shape[1])):
            dx[pixel, c] += grad[j, c] if taps[j, c] == tap else dx.dtype.type(0)


@kernel
def collect(grad, taps, window, h, line):
    """Set ``line`` [W, C] to the input gradient of image row h.

    ``grad`` and ``taps`` [Ho, Wo, C] are the image's.
    """
    line[:] = 0
    for r in range(window.height):
        i, rest = divmod(h + window.top - r * window.dilation_h, window.stride_h)
        if rest == 0 and i >= 0 and i < grad.shape[0]:
            for s in range(window.width):
                first, stop, start = _windows_over(window, s, grad.shape[1], line.shape[0])
                tap = taps.dtype.type(r * window.width + s)
                _add_where_won(grad[i], taps[i], tap, first, stop, start, window.stride_w, line)


@parallel_kernel
def _max_pool_input_grad(grad, taps, window, dx):
    N, H, _, _ = dx.shape
    for row in prange(N * H):
        n, h = divmod(np.int64(row), H)
        collect(grad[n], taps[n], window, h, dx[n, h])


def outputs(x: Array, options: PoolOptions, output_size: Pair) -> tuple[Array, Array]:
    """Return new arrays [N, Ho, Wo, C] for the maxima and the taps."""
    y = memory.empty((x.shape[0], *output_size, x.shape[1]), x.dtype)
    return y, memory.empty(y.shape, np.min_scalar_type(math.prod(options.kernel_size) - 1))


def max_pool2d(x: Array, options: PoolOptions, output_size: Pair) -> tuple[Array, Array]:
    """Return each window's maximum, and its tap: the number r * S + s.

    Padding never wins; the first of equal values wins; NaN wins over all.
    """
    y, taps = outputs(x, options, output_size)
    _max_pool(plain(channels_last(x)), pool_window(options), y, taps)
    return as_nchw(y), as_nchw(taps)


def max_pool2d_input_grad(
    grad: Array, taps: Array, input_shape: Shape, options: PoolOptions
) -> Array:
    """Return dx: each window's gradient goes to its winning tap; overlaps add."""
    N, C, H, W = input_shape
    dx = memory.empty((N, H, W, C), grad.dtype)
    gradients, winners = plain(channels_last(grad)), plain(channels_last(taps))
    _max_pool_input_grad(gradients, winners, pool_window(options), dx)
    return as_nchw(dx)
