"""Local response normalisation on the GPU: memory, and which kernel to launch.

The kernels are in ``kernels/local_response_norm.cu``.
"""

from __future__ import annotations

import numpy as np

from tinyalex.backends.cuda.launch import launch, type_name
from tinyalex.backends.cuda.pool import THREADS, one_thread_each, quads_by_pixels
from tinyalex.backends.gpu import cupy
from tinyalex.backends.layout import as_nchw, channels_last
from tinyalex.backends.types import Array

FILE = "local_response_norm.cu"


def in_quads(x: Array, groups: int) -> bool:
    """Return whether kernels can take the channels of ``x`` by fours, each pixel in one block."""
    C = x.shape[1]
    return x.dtype == np.float32 and C // groups % 4 == 0 and 0 < C <= 4 * THREADS


def local_response_norm(
    x: Array, size: int, alpha: float, beta: float, k: float, groups: int
) -> Array:
    """Return ``x_c * (k + alpha / size * sum of x_j ** 2) ** -beta``, the sum over the ``size``
    channels j = c - size // 2 .. c + (size - 1) // 2 that are in c's group.
    """
    version = local_response_norm_quads if in_quads(x, groups) else local_response_norm_naive
    return version(x, size, alpha, beta, k, groups)


def local_response_norm_naive(
    x: Array, size: int, alpha: float, beta: float, k: float, groups: int
) -> Array:
    """`local_response_norm`, version 1: one thread a value."""
    images = channels_last(x)
    y = cupy().empty(images.shape, x.dtype)
    numbers = x.shape[1] // groups, size, alpha / size, beta, k
    entry = f"local_response_norm_{type_name(x.dtype)}"
    launch(FILE, entry, *one_thread_each(y.size), (images, y, y.size, *numbers))
    return as_nchw(y)


def local_response_norm_quads(
    x: Array, size: int, alpha: float, beta: float, k: float, groups: int
) -> Array:
    """`local_response_norm`, version 2: through shared memory, where `in_quads` holds."""
    images = channels_last(x)
    y = cupy().empty(images.shape, x.dtype)
    width = x.shape[1] // groups
    lines = y.size // width
    grid, block = _lines_a_block(lines, width)
    arguments = images, y, lines, width, size, alpha / size, beta, k
    launch(FILE, "local_response_norm_quads", grid, block, arguments)
    return as_nchw(y)


def _lines_a_block(lines: int, width: int) -> tuple[tuple[int], tuple[int, int]]:
    block = quads_by_pixels(width // 4, THREADS // (width // 4))
    return (-(-lines // block[1]),), block


def local_response_norm_input_grad(
    grad: Array, x: Array, size: int, alpha: float, beta: float, k: float, groups: int
) -> Array:
    """Return dx of `local_response_norm`.

    ``dx_j = dy_j s_j ** -beta - 2 beta alpha / size * x_j * sum of dy_c x_c s_c ** (-beta - 1)``
    over all c whose window holds j.
    """
    quads = in_quads(x, groups)
    version = (
        local_response_norm_input_grad_quads if quads else local_response_norm_input_grad_naive
    )
    return version(grad, x, size, alpha, beta, k, groups)


def local_response_norm_input_grad_naive(
    grad: Array, x: Array, size: int, alpha: float, beta: float, k: float, groups: int
) -> Array:
    """`local_response_norm_input_grad`, version 1: one thread a value."""
    images = channels_last(x)
    dx = cupy().empty(images.shape, x.dtype)
    numbers = x.shape[1] // groups, size, alpha / size, beta, k
    entry = f"local_response_norm_grad_{type_name(x.dtype)}"
    arguments = channels_last(grad), images, dx, dx.size, *numbers
    launch(FILE, entry, *one_thread_each(dx.size), arguments)
    return as_nchw(dx)


def local_response_norm_input_grad_quads(
    grad: Array, x: Array, size: int, alpha: float, beta: float, k: float, groups: int
) -> Array:
    """`local_response_norm_input_grad`, version 2: through shared memory, if `in_quads`."""
    images = channels_last(x)
    dx = cupy().empty(images.shape, x.dtype)
    width = x.shape[1] // groups
    lines = dx.size // width
    grid, block = _lines_a_block(lines, width)
    arguments = channels_last(grad), images, dx, lines, width, size, alpha / size, beta, k
    launch(FILE, "local_response_norm_grad_quads", grid, block, arguments)
    return as_nchw(dx)
