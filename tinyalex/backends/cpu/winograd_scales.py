"""Winograd's convolution: powers of two that bring the images of a batch to one magnitude.

A transform mixes all pixels of its tile, and rounds relative to the largest. Where a tile belongs
to two images, one that is a million times larger would leave nothing but its rounding errors in the
other. So each is multiplied on the way in by a power of two, which is exact, and by its inverse on
the way out.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from tinyalex.backends.cpu.runtime import num_threads, parallel_kernel
from tinyalex.backends.cpu.winograd_tiles import Canvas
from tinyalex.backends.types import Array

LEAST, MOST = -126, 126  # exponents: these powers and their inverses are normal float32 numbers


@parallel_kernel
def _largest_magnitudes(bits, mask, largest):
    """Find the largest |x| of each line, where ``mask``, unless it is empty, is positive or NaN.

    Without their signs, the bits of floating-point numbers are integers in the same order, and NaN
    comes last. ``bits`` [lines, numbers] int32.
    """
    for line in prange(bits.shape[0]):
        source, peak = bits[line], np.int32(0)
        if mask.size:
            where = mask[line]
            for c in range(source.size):
                value = source[c] & np.int32(0x7FFFFFFF)
                peak = max(peak, np.int32(0) if where[c] <= np.float32(0) else value)
        else:
            for c in range(source.size):
                peak = max(peak, source[c] & np.int32(0x7FFFFFFF))
        largest[line] = peak


def scales(images: Array, mask: Array, canvas: Canvas) -> Array:
    """Return for each image [N, H, W, C] the power of two that brings its largest |x| below 1.

    All are 1 where no tile belongs to two images. An image of zeros counts as a very small one, so
    that the inverse makes little of its gradient, with which only zeros are multiplied.
    """
    N, H, W, C = images.shape
    if canvas.down * canvas.across == 1:
        return np.ones(N, np.float32)
    largest = np.zeros((N, H), np.int32)
    num_threads()
    _largest_magnitudes(
        images.reshape(N * H, W * C).view(np.int32),
        mask.reshape(mask.shape[0] * mask.shape[1], mask.shape[2] * mask.shape[3]),
        largest.reshape(-1),
    )
    peaks = largest.max(axis=1, initial=0).view(np.float32)
    _, exponents = np.frexp(np.maximum(peaks, np.float32(2.0**LEAST)))
    return np.ldexp(np.float32(1), -exponents.clip(LEAST, MOST))
