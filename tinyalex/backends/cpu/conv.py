"""Convolution: which algorithm computes which shape.

An algorithm is a module with the functions ``forward``, ``input_grad`` and ``weight_grad``, which
take the arguments of `conv2d`, `conv2d_input_grad` and `conv2d_weight_grad`.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np
from numba import prange

from tinyalex.backends.cpu import im2col
from tinyalex.backends.cpu.runtime import parallel_kernel, plain
from tinyalex.backends.geometry import Padding, Pair
from tinyalex.backends.layout import channels_last
from tinyalex.backends.types import Array

Suits = Callable[[tuple[int, ...], Pair, Pair], bool]  # (weight's shape, stride, dilation)

# The first row that suits a convolution computes it.
ALGORITHMS: tuple[tuple[ModuleType, Suits, str], ...] = (
    (im2col, lambda weight_shape, stride, dilation: True, "any shape, at the speed of GEMM"),
)

BIAS_BLOCK = 256  # pixels that are summed in one go: short sums keep the rounding error small


def algorithm(weight_shape: tuple[int, ...], stride: Pair, dilation: Pair) -> ModuleType:
    """Return the module that computes convolutions of this shape."""
    return next(row[0] for row in ALGORITHMS if row[1](weight_shape, stride, dilation))


def conv2d(
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> Array:
    """Correlate ``x`` [N, C, H, W] with ``weight`` [K, C/G, R, S] and add ``bias`` [K]."""
    kernels = algorithm(weight.shape, stride, dilation)
    y: Array = kernels.forward(x, weight, bias, stride, padding, dilation, groups)
    return y


def conv2d_input_grad(
    grad: Array,
    weight: Array,
    input_shape: tuple[int, ...],
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> Array:
    """Return dx: each output's gradient times its kernel, added back to the window it came from."""
    kernels = algorithm(weight.shape, stride, dilation)
    dx: Array = kernels.input_grad(grad, weight, input_shape, stride, padding, dilation, groups)
    return dx


def conv2d_weight_grad(
    grad: Array,
    x: Array,
    weight_shape: tuple[int, ...],
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> Array:
    """Return dweight: each output's gradient times the window it saw, summed over all pixels."""
    kernels = algorithm(weight_shape, stride, dilation)
    dw: Array = kernels.weight_grad(grad, x, weight_shape, stride, padding, dilation, groups)
    return dw


@parallel_kernel
def _sum_blocks(pixels, sums):
    for block in prange(sums.shape[0]):
        total = sums[block]
        first = np.int64(block) * BIAS_BLOCK
        for p in range(first, min(pixels.shape[0], first + BIAS_BLOCK)):
            line = pixels[p]
            for k in range(total.size):
                total[k] += line[k]


def conv2d_bias_grad(grad: Array) -> Array:
    """Return dbias: the gradient summed over images and pixels."""
    K = grad.shape[1]
    pixels = plain(channels_last(grad)).reshape(-1, K)
    sums = np.zeros((-(-pixels.shape[0] // BIAS_BLOCK), K), grad.dtype)
    _sum_blocks(pixels, sums)
    total: Array = sums.sum(axis=0)
    return total
