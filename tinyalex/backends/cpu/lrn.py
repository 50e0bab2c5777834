"""Local response normalisation across channels (paper, section 3.3), one pass each way.

``y_c = x_c * s_c ** -beta``,  ``s_c = k + alpha / size * sum of x_j ** 2`` over c's neighbours j.

A pixel's channels are neighbours in memory, and so are the channels of a group: the array is a
list of independent lines. Forward reads x and writes y, backward reads dy and x and writes dx;
all else stays in the first-level cache, and nothing is kept between the two.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import prange

from tinyalex.backends import memory
from tinyalex.backends.cpu.runtime import kernel, parallel_kernel, plain, quick_kernel
from tinyalex.backends.geometry import NormOptions
from tinyalex.backends.layout import as_nchw, channels_last
from tinyalex.backends.types import Array

LINES = 64  # lines a task takes at a time: enough to share the scratch arrays


class Norm(NamedTuple):
    """Numbers of a normalisation, in the array's dtype; ``ratio`` is alpha / size.

    ``limit`` is the largest sum of squares for which no intermediate result overflows or vanishes;
    beyond it, what takes care of that takes over.
    """

    size: int
    ratio: Any
    beta: Any
    k: Any
    limit: Any


def numbers(options: NormOptions, dtype: np.dtype[Any]) -> Norm:
    """Return the numbers as kernels take them."""
    size, alpha, beta, k, _ = options
    real, ratio = dtype.type, alpha / size
    return Norm(size, real(ratio), real(beta), real(k), real(_limit(size, ratio, beta, k, dtype)))


def _limit(size: int, ratio: float, beta: float, k: float, dtype: np.dtype[Any]) -> float:
    number = np.finfo(dtype)
    smallest, largest = float(number.tiny), float(number.max)
    if k < 0 or ratio < 0:
        return math.inf  # s may be anything, and has the power of its sign
    # Powers of s up to this one occur; a factor of 256 is left for what they are multiplied with.
    most = largest ** (1 / max(1, abs(beta), abs(beta + 1))) / 256
    if not max(1 / most, size * ratio * smallest / float(number.eps)) <= k <= most:
        return -1
    return min(most / max(ratio, smallest), largest / 256)


@kernel
def scratch(width, size, dtype):
    """Return working memory for a line of ``width`` channels, with zero margins."""
    return (
        np.zeros(width + size - 1, dtype),
        np.zeros(width + size - 1, dtype),
        np.empty(width, dtype),
        np.empty(width, dtype),
    )


@kernel
def _sum_of_neighbours(padded, size, total):
    """``total[c] = padded[c] + ... + padded[c + size - 1]``: all additions anew, no running sum.

    Subtracting what was added would leave the rounding error of the largest value behind for good.
    """
    # Unsigned indices: signed ones could mean "from the end", and the loop would not vectorise.
    one, two, three, four = np.uintp(1), np.uintp(2), np.uintp(3), np.uintp(4)
    if size == 5:  # the paper's, in one pass
        for c in range(np.uintp(total.size)):
            left, right = padded[c] + padded[c + one], padded[c + three] + padded[c + four]
            total[c] = left + padded[c + two] + right
    else:
        total[:] = 0
        for tap in range(np.uintp(size)):
            for c in range(np.uintp(total.size)):
                total[c] += padded[c + tap]


@quick_kernel
def _three_quarters(k, ratio, sums, power):
    """With s = k + ratio * sums: ``power = s ** -0.75``, and sums becomes 1 / s."""
    one = sums.dtype.type(1)
    for c in range(np.uintp(power.size)):
        root = one / np.sqrt(k + ratio * sums[c])
        power[c] = root * np.sqrt(root)
        sums[c] = root * root


@kernel
def powers_of_sums(norm, sums, power):
    """Set ``power`` to s ** -beta and ``sums`` to 1 / s, with ``s = k + ratio * sums``."""
    one = sums.dtype.type(1)
    if norm.beta == 0.75:  # two square roots, which the processor has, instead of a call per value
        _three_quarters(norm.k, norm.ratio, sums, power)
    else:
        for c in range(np.uintp(power.size)):
            s = norm.k + norm.ratio * sums[c]
            sums[c] = one / s
            power[c] = s**-norm.beta


@kernel
def _powers(x, start, norm, squares, power, inverse):
    """Set ``inverse`` to 1 / s and ``power`` to s ** -beta for one line.

    Return False, and set nothing, where the numbers are too large or k too small for that.

    Return False, and do not, where the numbers are too large or k too small for that.
    """
    margin = np.uintp(norm.size // 2)
    energy = x.dtype.type(0)
    for c in range(np.uintp(power.size)):
        square = x[start + c] * x[start + c]
        squares[c + margin] = square
        energy += square
    if not energy <= norm.limit:
        return False
    _sum_of_neighbours(squares, norm.size, inverse)
    powers_of_sums(norm, inverse, power)
    return True


@kernel
def unit(largest, k):
    """Return a power of two near the larger of ``largest`` and ``sqrt(k)``."""
    return math.ldexp(1.0, math.frexp(max(float(largest), math.sqrt(k)))[1] - 1)


@kernel
def _energy(x, start, c, norm, width):
    """Return m and t with ``s = m ** 2 * t`` for channel c, as `reference` does."""
    first, stop = max(0, c - norm.size // 2), min(width, c + (norm.size - 1) // 2 + 1)
    largest, t = 0.0, 0.0
    for j in range(first, stop):
        largest = max(largest, abs(float(x[start + j])))
    m = unit(largest, norm.k)
    for j in range(first, stop):
        t += (x[start + j] / m) ** 2
    return m, norm.k / m / m + norm.ratio * t


@kernel
def _normalise_with_care(x, start, norm, width, y):
    """Compute y for one line in float64, for any magnitudes."""
    for c in range(width):
        m, t = _energy(x, start, c, norm, width)
        y[start + c] = x[start + c] / m * t**-norm.beta * m ** (1 - 2 * norm.beta)


@kernel
def _normalise_grad_with_care(grad, x, start, norm, width, dx):
    """Compute dx for one line as `_normalise_with_care`; ``dx`` may be ``grad``."""
    directs, pulls, units = np.empty(width), np.empty(width), np.empty(width)
    for c in range(width):
        m, t = _energy(x, start, c, norm, width)
        direct = grad[start + c] * (t**-norm.beta * m ** (-2 * norm.beta))
        directs[c], units[c] = direct, m
        pulls[c] = direct * (x[start + c] / m) / t
    for j in range(width):
        spread = 0.0
        for c in range(max(0, j - (norm.size - 1) // 2), min(width, j + norm.size // 2 + 1)):
            spread += pulls[c] * (x[start + j] / units[c])
        dx[start + j] = directs[j] - 2 * norm.beta * norm.ratio * spread


@kernel
def normalise(x, norm, space, y):
    """Compute y for consecutive lines, each as long as the scratch."""
    squares, _, power, inverse = space
    width = np.uintp(power.size)
    for line in range(np.uintp(x.size) // width):
        start = line * width
        if _powers(x, start, norm, squares, power, inverse):
            for c in range(width):
                y[start + c] = x[start + c] * power[c]
        else:
            _normalise_with_care(x, np.int64(start), norm, power.size, y)


@kernel
def normalise_grad(grad, x, norm, space, dx):
    """Compute dx for consecutive lines, as `normalise`; ``dx`` may be ``grad``."""
    squares, products, power, inverse = space
    width = np.uintp(power.size)
    # The window that holds j belongs to c = j - (size - 1) // 2 .. j + size // 2.
    before = np.uintp((norm.size - 1) // 2)
    factor = x.dtype.type(2) * norm.beta * norm.ratio
    for line in range(np.uintp(x.size) // width):
        start = line * width
        if not _powers(x, start, norm, squares, power, inverse):
            _normalise_grad_with_care(grad, x, np.int64(start), norm, power.size, dx)
            continue
        for c in range(width):
            products[c + before] = grad[start + c] * x[start + c] * (power[c] * inverse[c])
        _sum_of_neighbours(products, norm.size, inverse)
        for c in range(width):
            dx[start + c] = grad[start + c] * power[c] - factor * x[start + c] * inverse[c]


@parallel_kernel
def _forward(x, norm, y):
    count, width = x.shape
    for task in prange((count + LINES - 1) // LINES):
        first, stop = np.int64(task) * LINES, min(count, (np.int64(task) + 1) * LINES)
        space = scratch(width, norm.size, x.dtype)
        normalise(x[first:stop].reshape(-1), norm, space, y[first:stop].reshape(-1))


@parallel_kernel
def _input_grad(grad, x, norm, dx):
    count, width = x.shape
    for task in prange((count + LINES - 1) // LINES):
        first, stop = np.int64(task) * LINES, min(count, (np.int64(task) + 1) * LINES)
        space = scratch(width, norm.size, x.dtype)
        source, target = x[first:stop].reshape(-1), dx[first:stop].reshape(-1)
        normalise_grad(grad[first:stop].reshape(-1), source, norm, space, target)


def _lines(x: Array, groups: int) -> Array:
    return plain(channels_last(x)).reshape(-1, x.shape[1] // groups)


def local_response_norm(x: Array, options: NormOptions) -> Array:
    """Return ``x_c * (k + alpha / size * sum of x_j ** 2) ** -beta``.

    The sum runs over the channels j = c - size // 2 .. c + (size - 1) // 2 of c's group.
    """
    lines = _lines(x, options.groups)
    y = memory.empty_like(lines)
    _forward(lines, numbers(options, x.dtype), y)
    N, C, H, W = x.shape
    return as_nchw(y.reshape(N, H, W, C))


def local_response_norm_input_grad(grad: Array, x: Array, options: NormOptions) -> Array:
    """Return dx of `local_response_norm`.

    ``dx_j = dy_j s_j ** -beta - 2 beta alpha / size * x_j * sum of dy_c x_c s_c ** (-beta - 1)``
    over all c whose window holds j.
    """
    lines = _lines(x, options.groups)
    dx = memory.empty_like(lines)
    _input_grad(_lines(grad, options.groups), lines, numbers(options, x.dtype), dx)
    N, C, H, W = x.shape
    return as_nchw(dx.reshape(N, H, W, C))
