"""Gradient of a convolution's bias, in blocks of pixels."""

from __future__ import annotations

import numpy as np
from numba import prange

from tinyalex.backends.cpu.runtime import parallel_kernel, plain
from tinyalex.backends.layout import channels_last
from tinyalex.backends.numerics import total
from tinyalex.backends.types import Array

BIAS_BLOCK = 64  # pixels that are summed in one go: short sums keep the rounding error small


@parallel_kernel
def _sum_blocks(pixels, sums):
    for block in prange(sums.shape[0]):
        sum_of_block = sums[block]
        first = np.int64(block) * BIAS_BLOCK
        for p in range(first, min(pixels.shape[0], first + BIAS_BLOCK)):
            line = pixels[p]
            for k in range(sum_of_block.size):
                sum_of_block[k] += line[k]


def conv2d_bias_grad(grad: Array) -> Array:
    """Return dbias: the gradient summed over images and pixels."""
    N, K, Ho, Wo = grad.shape
    pixels = plain(channels_last(grad)).reshape(N * Ho * Wo, K)
    sums = np.zeros((-(-pixels.shape[0] // BIAS_BLOCK), K), grad.dtype)
    _sum_blocks(pixels, sums)
    return total(sums, (0,))
