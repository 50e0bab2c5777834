"""Max-pooling on the GPU, by the kernels in ``kernels/max_pool.cu``."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tinyalex.backends.bfloat16 import is_bfloat16
from tinyalex.backends.cuda.launch import launch, type_name
from tinyalex.backends.geometry import Pair, PoolOptions
from tinyalex.backends.gpu import cupy
from tinyalex.backends.layout import as_nchw, channels_last
from tinyalex.backends.types import Array, Shape

THREADS = 256  # per block, as in all kernels of pooling and normalisation


class PoolShape(NamedTuple):
    """The fields of ``PoolShape`` in ``kernels/window.cuh``, in its order."""

    N: int
    H: int
    W: int
    C: int
    Ho: int
    Wo: int
    R: int
    S: int
    stride_h: int
    stride_w: int
    top: int
    left: int
    dilation_h: int
    dilation_w: int

    @classmethod
    def of(cls, input_shape: Shape, options: PoolOptions, output_size: Pair) -> PoolShape:
        """Return the sizes for images [N, C, H, W]."""
        N, C, H, W = input_shape
        kernel_size, stride, padding, dilation = options
        return cls(N, H, W, C, *output_size, *kernel_size, *stride, *padding, *dilation)


def threads_for(images: Shape, quads: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return grid and block for images [N, H, W, C].

    A thread has one element, or four channels: then a block has one row of pixels.
    """
    N, H, W, C = images
    if quads and W:  # without pixels the other grid is empty
        return (N * H,), quads_by_pixels(C // 4, W)
    return (-(-N * H * W * C // THREADS),), (THREADS,)


def by_fours(x: Array, groups: int = 1) -> bool:
    """Return whether kernels can read each group's channels by fours."""
    known = x.dtype == np.float32 or is_bfloat16(x.dtype)
    return known and x.shape[1] // groups % 4 == 0


def quads_by_pixels(quads: int, pixels: int) -> tuple[int, int]:
    """Return a block with one thread per quad (x) and pixel (y).

    As many of ``pixels`` as there is room for, evenly spread over the rounds that they take.
    """
    quads = min(max(quads, 1), THREADS)
    rounds = -(-pixels // (THREADS // quads))
    return quads, -(-pixels // rounds)


def taps_dtype(kernel_size: Pair) -> np.dtype[Any]:
    """Return the smallest dtype for a window's taps.

    Raises ValueError for more taps than two bytes can number.
    """
    dtype = np.min_scalar_type(kernel_size[0] * kernel_size[1] - 1)
    if dtype.itemsize > 2:
        raise ValueError(f"max_pool2d on a GPU has at most 65,536 taps, got {kernel_size}")
    return dtype


def max_pool2d(
    x: Array, options: PoolOptions, output_size: Pair, quads: bool | None = None
) -> tuple[Array, Array]:
    """Return each window's maximum, and its tap: the number r * S + s.

    Padding never wins; the first of equal values wins; NaN wins over all. ``quads`` asks for the
    version of four channels per thread (`by_fours`, windows of at most 256 taps), or not for it.
    Raises ValueError for windows of more than 65,536 taps.
    """
    y, taps = outputs(x, options, output_size)
    if quads is None:
        quads = by_fours(x) and taps.itemsize == 1
    shape = PoolShape.of(x.shape, options, output_size)
    _launch("max_pool", quads, taps, y, (channels_last(x), y, taps, shape))
    return as_nchw(y), as_nchw(taps)


def outputs(x: Array, options: PoolOptions, output_size: Pair) -> tuple[Array, Array]:
    """Return new arrays [N, Ho, Wo, C] for the maxima and the taps."""
    y = cupy().empty((x.shape[0], *output_size, x.shape[1]), x.dtype)
    return y, cupy().empty(y.shape, taps_dtype(options.kernel_size))


def max_pool2d_input_grad(
    grad: Array, taps: Array, input_shape: Shape, options: PoolOptions, quads: bool | None = None
) -> Array:
    """Return dx: each window's gradient goes to its winning tap; overlaps add.

    ``quads`` as in `max_pool2d`, and without dilation.
    """
    if quads is None:
        quads = by_fours(grad) and taps.itemsize == 1 and options.dilation == (1, 1)
    shape = PoolShape.of(input_shape, options, grad.shape[2:])
    dx = cupy().empty((shape.N, shape.H, shape.W, shape.C), grad.dtype)
    arguments = channels_last(grad), channels_last(taps), dx, shape
    _launch("max_pool_grad", quads, taps, dx, arguments)
    return as_nchw(dx)


def _launch(
    operation: str, quads: bool, taps: Array, result: Array, arguments: tuple[Any, ...]
) -> None:
    version = "_quads" if quads else "" if taps.itemsize == 1 else "_large"
    entry = f"{operation}{version}<{type_name(result.dtype)}>"
    launch("max_pool.cu", entry, *threads_for(result.shape, quads), arguments)
