"""Local response normalisation on the GPU.

The kernels are in ``kernels/local_response_norm.cu``.
"""

from __future__ import annotations

from tinyalex.backends.cuda.launch import launch, type_name
from tinyalex.backends.cuda.pool import THREADS, by_fours, quads_by_pixels, threads_for
from tinyalex.backends.geometry import NormOptions
from tinyalex.backends.gpu import cupy
from tinyalex.backends.layout import as_nchw, channels_last
from tinyalex.backends.types import Array

FILE = "local_response_norm.cu"


def in_quads(x: Array, groups: int) -> bool:
    """Return whether a block can read all channels of ``x`` by fours."""
    return by_fours(x, groups) and 0 < x.shape[1] <= 4 * THREADS


def numbers(x: Array, options: NormOptions) -> tuple[int, int, float, float, float]:
    """Return a group's channels and the options as kernel arguments."""
    size, alpha, beta, k, groups = options
    return x.shape[1] // groups, size, alpha / size, beta, k


def local_response_norm(x: Array, options: NormOptions, quads: bool | None = None) -> Array:
    """Return ``x_c * (k + alpha / size * sum of x_j ** 2) ** -beta``.

    The sum runs over the channels j = c - size // 2 .. c + (size - 1) // 2 of c's group. ``quads``
    asks for the version of four channels per thread, where `in_quads` holds, or not for it.
    """
    return _launch("local_response_norm", (x,), options, quads)


def local_response_norm_input_grad(
    grad: Array, x: Array, options: NormOptions, quads: bool | None = None
) -> Array:
    """Return dx of `local_response_norm`.

    ``dx_j = dy_j s_j ** -beta - 2 beta alpha / size * x_j * sum of dy_c x_c s_c ** (-beta - 1)``
    over all c whose window holds j.
    """
    return _launch("local_response_norm_grad", (grad, x), options, quads)


def _launch(
    operation: str, arrays: tuple[Array, ...], options: NormOptions, quads: bool | None
) -> Array:
    images = [channels_last(array) for array in arrays]
    result = cupy().empty(images[0].shape, images[0].dtype)
    width, *rest = numbers(arrays[0], options)
    (grid, block), count = threads_for(result.shape, False), result.size
    if in_quads(arrays[0], options.groups) if quads is None else quads:
        operation, count = f"{operation}_quads", result.size // width  # lines
        block = quads_by_pixels(width // 4, THREADS // (width // 4))
        grid = (-(-count // block[1]),)
    arguments = *images, result, count, width, *rest
    launch(FILE, f"{operation}<{type_name(result.dtype)}>", grid, block, arguments)
    return as_nchw(result)
