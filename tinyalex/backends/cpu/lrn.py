"""Local response normalisation across channels (paper, section 3.3), one pass each way.

``y_c = x_c * s_c ** -beta``,  ``s_c = k + alpha / size * sum of x_j ** 2`` over c's neighbours j.

A pixel's channels are neighbours in memory, and so are the channels of a group: the array is a
list of independent lines. Forward reads x and writes y, backward reads dy and x and writes dx;
all else stays in the first-level cache, and nothing is kept between the two.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import prange

from tinyalex.backends import memory
from tinyalex.backends.cpu.runtime import kernel, parallel_kernel, plain
from tinyalex.backends.layout import as_nchw, channels_last
from tinyalex.backends.types import Array

LINES = 64  # lines a task takes at a time: enough to share the scratch arrays


@kernel
def _sum_of_neighbours(padded, size, total):
    """``total[c] = padded[c] + ... + padded[c + size - 1]``: one addition a tap, no running sum.

    Subtracting what was added would leave the rounding error of the largest value behind for good.
    """
    total[:] = 0
    for tap in range(size):
        shifted = padded[tap : tap + total.size]
        for c in range(total.size):
            total[c] += shifted[c]


@kernel
def _powers(x, size, ratio, beta, k, squares, power, scale):
    """Set ``scale`` to s and ``power`` to s ** -beta; ``squares`` has a margin of zeros."""
    middle = squares[size // 2 : size // 2 + x.size]
    for c in range(x.size):
        middle[c] = x[c] * x[c]
    _sum_of_neighbours(squares, size, scale)
    one = x.dtype.type(1)
    if beta == 0.75:  # two square roots, which the processor has, instead of a call a value
        for c in range(x.size):
            s = k + ratio * scale[c]
            root = np.sqrt(s)
            scale[c] = s
            power[c] = one / (root * np.sqrt(root))
    else:
        for c in range(x.size):
            s = k + ratio * scale[c]
            scale[c] = s
            power[c] = s**-beta


class Norm(NamedTuple):
    """The numbers of a normalisation, in the array's dtype: ``ratio`` is alpha / size."""

    size: int
    ratio: Any
    beta: Any
    k: Any


def norm(size: int, alpha: float, beta: float, k: float, dtype: np.dtype[Any]) -> Norm:
    """Return the numbers as kernels take them."""
    real = dtype.type
    return Norm(size, real(alpha / size), real(beta), real(k))


@kernel
def scratch(width, size, dtype):
    """Return working memory for lines of ``width`` channels: margins of zeros, two plain lines."""
    return (
        np.zeros(width + size - 1, dtype),
        np.zeros(width + size - 1, dtype),
        np.empty(width, dtype),
        np.empty(width, dtype),
    )


@kernel
def normalise(x, norm, space, y):
    """Compute one line, the channels of a pixel and group."""
    squares, _, power, scale = space
    _powers(x, norm.size, norm.ratio, norm.beta, norm.k, squares, power, scale)
    for c in range(x.size):
        y[c] = x[c] * power[c]


@kernel
def normalise_grad(grad, x, norm, space, dx):
    """Compute dx of one line; ``dx`` may be ``grad``."""
    squares, products, power, scale = space
    _powers(x, norm.size, norm.ratio, norm.beta, norm.k, squares, power, scale)
    # The window that holds j belongs to c = j - (size - 1) // 2 .. j + size // 2.
    before = (norm.size - 1) // 2
    middle = products[before : before + x.size]
    for c in range(x.size):
        middle[c] = grad[c] * x[c] * power[c] / scale[c]
    _sum_of_neighbours(products, norm.size, scale)
    factor = x.dtype.type(2) * norm.beta * norm.ratio
    for c in range(dx.size):
        dx[c] = grad[c] * power[c] - factor * x[c] * scale[c]


@parallel_kernel
def _forward(x, norm, y):
    count, width = x.shape
    for task in prange((count + LINES - 1) // LINES):
        first = np.int64(task) * LINES
        space = scratch(width, norm.size, x.dtype)
        for i in range(first, min(count, first + LINES)):
            normalise(x[i], norm, space, y[i])


@parallel_kernel
def _input_grad(grad, x, norm, dx):
    count, width = x.shape
    for task in prange((count + LINES - 1) // LINES):
        first = np.int64(task) * LINES
        space = scratch(width, norm.size, x.dtype)
        for i in range(first, min(count, first + LINES)):
            normalise_grad(grad[i], x[i], norm, space, dx[i])


def _lines(x: Array, groups: int) -> Array:
    return plain(channels_last(x)).reshape(-1, x.shape[1] // groups)


def local_response_norm(
    x: Array, size: int, alpha: float, beta: float, k: float, groups: int
) -> Array:
    """Return ``x_c * (k + alpha / size * sum of x_j ** 2) ** -beta``, the sum over the ``size``
    channels j = c - size // 2 .. c + (size - 1) // 2 that are in c's group.
    """
    lines = _lines(x, groups)
    y = memory.empty_like(lines)
    _forward(lines, norm(size, alpha, beta, k, x.dtype), y)
    N, C, H, W = x.shape
    return as_nchw(y.reshape(N, H, W, C))


def local_response_norm_input_grad(
    grad: Array, x: Array, size: int, alpha: float, beta: float, k: float, groups: int
) -> Array:
    """Return dx of `local_response_norm`.

    ``dx_j = dy_j s_j ** -beta - 2 beta alpha / size * x_j * sum of dy_c x_c s_c ** (-beta - 1)``
    over all c whose window holds j.
    """
    lines = _lines(x, groups)
    dx = memory.empty_like(lines)
    _input_grad(_lines(grad, groups), lines, norm(size, alpha, beta, k, x.dtype), dx)
    N, C, H, W = x.shape
    return as_nchw(dx.reshape(N, H, W, C))
