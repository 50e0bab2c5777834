"""Response normalisation within each channel (the 2012 source's rnorm).

``y = x * s ** -beta``,  ``s = k + alpha / size ** 2 * sum of x ** 2`` over the size x size window.

A row of pixels, all their channels one behind the other, is a line of W C numbers: the sum over the
window's rows adds whole lines, the sum over its columns adds the result to itself, moved by C, 2 C
and so on. Both are long loops over neighbours in memory, and stay in the first caches. Backward
goes over an image twice, as the second sum needs the first one's results of all rows around.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from tinyalex.backends import memory
from tinyalex.backends.cpu.lrn import Norm, numbers, powers_of_sums, unit
from tinyalex.backends.cpu.runtime import kernel, parallel_kernel, plain
from tinyalex.backends.geometry import NormOptions
from tinyalex.backends.layout import as_nchw, channels_last
from tinyalex.backends.types import Array


@kernel
def _scratch(image, size):
    """Return working memory for a row: one zero-padded, two plain."""
    width, channels = image.shape[1:]
    line = width * channels
    padded = np.zeros(line + (size - 1) * channels, image.dtype)
    return padded, np.empty(line, image.dtype), np.empty(line, image.dtype)


@kernel
def _sum_around(image, y, size, squared, padded, total):
    """Set ``total`` to the sum, perhaps of squares, around row ``y``'s values."""
    height, width, channels = image.shape
    line, reach = np.uintp(width * channels), size // 2
    values, margin = image.reshape(-1), np.uintp(reach * channels)
    first = max(0, y - reach)
    for row in range(first, min(height, y + reach + 1)):
        start = np.uintp(row) * line
        if row == first:
            for i in range(line):
                padded[margin + i] = 0
        if squared:
            for i in range(line):
                padded[margin + i] += values[start + i] * values[start + i]
        else:
            for i in range(line):
                padded[margin + i] += values[start + i]
    total[:] = 0
    for tap in range(size):
        moved = np.uintp(tap * channels)
        for i in range(line):
            total[i] += padded[moved + i]


@kernel
def _energy(image, y, w, c, norm):
    """Return m and t with ``s = m ** 2 * t`` for one value, as `reference`."""
    height, width, _ = image.shape
    reach, largest, t = norm.size // 2, 0.0, 0.0
    first, stop = max(0, w - reach), min(width, w + reach + 1)
    for row in range(max(0, y - reach), min(height, y + reach + 1)):
        for column in range(first, stop):
            largest = max(largest, abs(float(image[row, column, c])))
    m = unit(largest, norm.k)
    for row in range(max(0, y - reach), min(height, y + reach + 1)):
        for column in range(first, stop):
            t += (image[row, column, c] / m) ** 2
    return m, norm.k / m / m + norm.ratio * t


@kernel
def _row_with_care(image, y, norm, target):
    """Compute row ``y`` of the result in float64, for any magnitudes."""
    _, width, channels = image.shape
    for w in range(width):
        for c in range(channels):
            m, t = _energy(image, y, w, c, norm)
            power = t**-norm.beta * m ** (1 - 2 * norm.beta)
            target[y, w, c] = image[y, w, c] / m * power


@kernel
def _grad_with_care(grad, image, norm, target):
    """Compute the gradient of an image, as `_row_with_care`."""
    height, width, channels = image.shape
    reach = norm.size // 2
    target[:] = 0
    for y in range(height):
        for w in range(width):
            for c in range(channels):
                m, t = _energy(image, y, w, c, norm)
                direct = grad[y, w, c] * (t**-norm.beta * m ** (-2 * norm.beta))
                target[y, w, c] += direct
                pull = 2 * norm.beta * norm.ratio * direct * (image[y, w, c] / m) / t
                for row in range(max(0, y - reach), min(height, y + reach + 1)):
                    for column in range(max(0, w - reach), min(width, w + reach + 1)):
                        target[row, column, c] -= pull * (image[row, column, c] / m)


@parallel_kernel
def _forward(x, norm, y):
    count, height, width, channels = x.shape
    line = np.uintp(width * channels)
    for task in prange(count * height):
        n, row = divmod(np.int64(task), height)
        source, target = x[n].reshape(-1), y[n].reshape(-1)
        padded, total, power = _scratch(x[n], norm.size)
        _sum_around(x[n], row, norm.size, True, padded, total)
        energy = x.dtype.type(0)
        for i in range(line):
            energy += total[i]
        if not energy <= norm.limit:
            _row_with_care(x[n], row, norm, y[n])
            continue
        powers_of_sums(norm, total, power)
        start = np.uintp(row) * line
        for i in range(line):
            target[start + i] = source[start + i] * power[i]


@parallel_kernel
def _input_grad(grad, x, norm, products, dx):
    count, height, width, channels = x.shape
    line = np.uintp(width * channels)
    factor = x.dtype.type(2) * norm.beta * norm.ratio
    for n in prange(count):
        source, slope, target = x[n].reshape(-1), grad[n].reshape(-1), dx[n].reshape(-1)
        product = products[n].reshape(-1)
        padded, total, power = _scratch(x[n], norm.size)
        energy = x.dtype.type(0)
        for row in range(height):
            _sum_around(x[n], row, norm.size, True, padded, total)
            for i in range(line):
                energy += total[i]
            powers_of_sums(norm, total, power)
            start = np.uintp(row) * line
            for i in range(line):
                direct = slope[start + i] * power[i]
                target[start + i] = direct
                product[start + i] = direct * source[start + i] * total[i]
        if not energy <= norm.limit:
            _grad_with_care(grad[n], x[n], norm, dx[n])
            continue
        for row in range(height):
            _sum_around(products[n], row, norm.size, False, padded, total)
            start = np.uintp(row) * line
            for i in range(line):
                target[start + i] -= factor * source[start + i] * total[i]


def _numbers(x: Array, options: NormOptions) -> Norm:
    """Return the numbers of windows of size x size places."""
    return numbers(options._replace(alpha=options.alpha / options.size), x.dtype)


def within_channel_response_norm(x: Array, options: NormOptions) -> Array:
    """Return ``x * (k + alpha / size ** 2 * sum of x ** 2 over the window) ** -beta``."""
    pixels = plain(channels_last(x))
    y = memory.empty_like(pixels)
    _forward(pixels, _numbers(x, options), y)
    return as_nchw(y)


def within_channel_response_norm_input_grad(grad: Array, x: Array, options: NormOptions) -> Array:
    """Return dx of `within_channel_response_norm`; the formula is in `reference`."""
    pixels, slopes = plain(channels_last(x)), plain(channels_last(grad))
    products, dx = memory.empty_like(pixels), memory.empty_like(pixels)
    _input_grad(slopes, pixels, _numbers(x, options), products, dx)
    return as_nchw(dx)
