"""Response normalisation within each channel, on the GPU.

The kernels are in ``kernels/within_channel_norm.cu``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tinyalex.backends.cuda.launch import launch, type_name
from tinyalex.backends.cuda.pool import one_thread_each, quads_by_pixels
from tinyalex.backends.geometry import NormOptions
from tinyalex.backends.gpu import cupy
from tinyalex.backends.layout import as_nchw, channels_last
from tinyalex.backends.types import Array

FILE = "within_channel_norm.cu"


class Images(NamedTuple):
    """The fields of ``Images`` in the CUDA source, in its order."""

    N: int
    H: int
    W: int
    C: int


def _version(x: Array) -> str:
    """Return the ending of the fastest kernels' names."""
    return "_quads" if x.dtype == np.float32 and x.shape[1] % 4 == 0 else _typed(x)


def _typed(x: Array) -> str:
    return f"<{type_name(x.dtype)}>"


def _launch(operation: str, version: str, shape: Images, *arguments: Any) -> None:
    grid, block = one_thread_each(shape.N * shape.H * shape.W * shape.C)
    if version == "_quads":
        grid, block = (shape.N * shape.H,), quads_by_pixels(shape.C // 4, shape.W)
    launch(FILE, operation + version, grid, block, (*arguments, shape))


def _norm(version: str, x: Array, options: NormOptions) -> Array:
    size, alpha, beta, k, _ = options
    images = channels_last(x)
    y = cupy().empty(images.shape, x.dtype)
    shape = Images(*images.shape)
    _launch("within_channel_norm", version, shape, images, y, size, alpha / size**2, beta, k)
    return as_nchw(y)


def within_channel_response_norm(x: Array, options: NormOptions) -> Array:
    """Return ``x * (k + alpha / size ** 2 * sum of x ** 2 over the window) ** -beta``."""
    return _norm(_version(x), x, options)


def within_channel_response_norm_naive(x: Array, options: NormOptions) -> Array:
    """`within_channel_response_norm`, version 1: one thread per value."""
    return _norm(_typed(x), x, options)


def _grad(version: str, grad: Array, x: Array, options: NormOptions) -> Array:
    size, alpha, beta, k, _ = options
    images, slopes = channels_last(x), channels_last(grad)
    products, dx = (cupy().empty(images.shape, x.dtype) for _ in range(2))
    shape, ratio = Images(*images.shape), alpha / size**2
    arguments = slopes, images, products, dx, size, ratio, beta, k
    _launch("within_channel_products", version, shape, *arguments)
    _launch("within_channel_grad", version, shape, products, images, dx, size, 2 * beta * ratio)
    return as_nchw(dx)


def within_channel_response_norm_input_grad(grad: Array, x: Array, options: NormOptions) -> Array:
    """Return dx of `within_channel_response_norm`; the formula is in `reference`."""
    return _grad(_version(x), grad, x, options)


def within_channel_response_norm_input_grad_naive(
    grad: Array, x: Array, options: NormOptions
) -> Array:
    """`within_channel_response_norm_input_grad`, version 1: one thread per value."""
    return _grad(_typed(x), grad, x, options)
