"""Response normalisation within each channel, on the GPU.

The kernels are in ``kernels/within_channel_norm.cu``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tinyalex.backends.cuda.launch import launch, type_name
from tinyalex.backends.cuda.pool import threads_for
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


def within_channel_response_norm(
    x: Array, options: NormOptions, quads: bool | None = None
) -> Array:
    """Return ``x * (k + alpha / size ** 2 * sum of x ** 2 over the window) ** -beta``.

    ``quads`` asks for the version of four channels per thread (float32, channels in fours), or not
    for it; it is chosen where it can be.
    """
    size, alpha, beta, k, _ = options
    images = channels_last(x)
    y = cupy().empty(images.shape, x.dtype)
    _launch("within_channel_norm", quads, images, y, size, alpha / size**2, beta, k)
    return as_nchw(y)


def within_channel_response_norm_input_grad(
    grad: Array, x: Array, options: NormOptions, quads: bool | None = None
) -> Array:
    """Return dx of `within_channel_response_norm`; the formula is in `reference`."""
    size, alpha, beta, k, _ = options
    images, slopes = channels_last(x), channels_last(grad)
    products, dx = (cupy().empty(images.shape, x.dtype) for _ in range(2))
    ratio = alpha / size**2
    arguments = slopes, images, products, dx, size, ratio, beta, k
    _launch("within_channel_products", quads, *arguments)
    _launch("within_channel_grad", quads, products, images, dx, size, 2 * beta * ratio)
    return as_nchw(dx)


def _launch(operation: str, quads: bool | None, images: Array, *arguments: Any) -> None:
    if quads is None:
        quads = images.dtype == np.float32 and images.shape[3] % 4 == 0
    version = "_quads" if quads else f"<{type_name(images.dtype)}>"
    grid, block = threads_for(images.shape, quads)
    launch(FILE, operation + version, grid, block, (images, *arguments, Images(*images.shape)))
