"""Local response normalisation on the GPU.

The kernels are in ``kernels/local_response_norm.cu``.
"""

from __future__ import annotations

from tinyalex.backends.cuda.launch import launch, type_name
from tinyalex.backends.cuda.pool import THREADS, by_fours, one_thread_each, quads_by_pixels
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


def local_response_norm(x: Array, options: NormOptions) -> Array:
    """Return ``x_c * (k + alpha / size * sum of x_j ** 2) ** -beta``.

    The sum runs over the channels j = c - size // 2 .. c + (size - 1) // 2 of c's group.
    """
    version = _quads if in_quads(x, options.groups) else _naive
    return version("local_response_norm", (x,), options)


def local_response_norm_naive(x: Array, options: NormOptions) -> Array:
    """`local_response_norm`, version 1: one thread per value."""
    return _naive("local_response_norm", (x,), options)


def local_response_norm_quads(x: Array, options: NormOptions) -> Array:
    """`local_response_norm`, version 2: through shared memory, where `in_quads` holds."""
    return _quads("local_response_norm", (x,), options)


def local_response_norm_input_grad(grad: Array, x: Array, options: NormOptions) -> Array:
    """Return dx of `local_response_norm`.

    ``dx_j = dy_j s_j ** -beta - 2 beta alpha / size * x_j * sum of dy_c x_c s_c ** (-beta - 1)``
    over all c whose window holds j.
    """
    version = _quads if in_quads(x, options.groups) else _naive
    return version("local_response_norm_grad", (grad, x), options)


def local_response_norm_input_grad_naive(grad: Array, x: Array, options: NormOptions) -> Array:
    """`local_response_norm_input_grad`, version 1: one thread per value."""
    return _naive("local_response_norm_grad", (grad, x), options)


def local_response_norm_input_grad_quads(grad: Array, x: Array, options: NormOptions) -> Array:
    """`local_response_norm_input_grad`, version 2: through shared memory, if `in_quads`."""
    return _quads("local_response_norm_grad", (grad, x), options)


def _naive(operation: str, arrays: tuple[Array, ...], options: NormOptions) -> Array:
    images = [channels_last(array) for array in arrays]
    result = cupy().empty(images[0].shape, images[0].dtype)
    arguments = *images, result, result.size, *numbers(arrays[0], options)
    entry = f"{operation}<{type_name(result.dtype)}>"
    launch(FILE, entry, *one_thread_each(result.size), arguments)
    return as_nchw(result)


def _quads(operation: str, arrays: tuple[Array, ...], options: NormOptions) -> Array:
    images = [channels_last(array) for array in arrays]
    result = cupy().empty(images[0].shape, images[0].dtype)
    width, *rest = numbers(arrays[0], options)
    lines = result.size // width
    block = quads_by_pixels(width // 4, THREADS // (width // 4))
    arguments = *images, result, lines, width, *rest
    entry = f"{operation}_quads<{type_name(result.dtype)}>"
    launch(FILE, entry, (-(-lines // block[1]),), block, arguments)
    return as_nchw(result)
