"""Local response normalisation fused with max-pooling, on the GPU.

The kernels are in ``kernels/norm_pool.cu``. Windows of more than 256 taps, which no network has,
are left to the two kernels that these fuse.
"""

from __future__ import annotations

from typing import NamedTuple

from tinyalex.backends.bfloat16 import computing
from tinyalex.backends.cuda import lrn
from tinyalex.backends.cuda.bias_grad import bias_grad, relu_bias_grad
from tinyalex.backends.cuda.launch import launch, type_name
from tinyalex.backends.cuda.pool import (
    THREADS,
    PoolShape,
    max_pool2d,
    max_pool2d_input_grad,
    outputs,
    taps_dtype,
    threads_for,
)
from tinyalex.backends.geometry import NormOptions, Pair, PoolOptions
from tinyalex.backends.gpu import cupy
from tinyalex.backends.layout import as_nchw, channels_last
from tinyalex.backends.types import Array

FILE = "norm_pool.cu"
TILE_BYTES = 40 << 10  # of shared memory for a block's tile: five blocks per multiprocessor
SLICE = 8  # quads of channels that a block takes, as in the CUDA source


def _byte_taps(pool: PoolOptions) -> bool:
    return taps_dtype(pool.kernel_size).itemsize == 1


def norm_max_pool2d(
    x: Array, norm: NormOptions, pool: PoolOptions, output_size: Pair, quads: bool | None = None
) -> tuple[Array, Array]:
    """Return what `max_pool2d` makes of the output of `local_response_norm`.

    ``quads`` asks for the version of four channels per thread, a tile of windows per block,
    normalised in shared memory, or not for it. Where `lrn.in_quads` holds, it is chosen.
    """
    if not _byte_taps(pool):
        return max_pool2d(lrn.local_response_norm(x, norm), pool, output_size)
    y, taps = outputs(x, pool, output_size)
    shape = PoolShape.of(x.shape, pool, output_size)
    common = channels_last(x), y, taps, *lrn.numbers(x, norm)
    kind = type_name(x.dtype)
    if lrn.in_quads(x, norm.groups) if quads is None else quads:
        tile = _tile(shape)
        slices = -(-shape.C // (4 * SLICE))
        tiles = shape.N * -(-shape.Ho // tile.windows_h) * -(-shape.Wo // tile.windows_w)
        block = SLICE, min(THREADS // SLICE, tile.columns)
        arguments = *common, tile.windows_h, tile.windows_w, shape
        shared_bytes = 16 * tile.rows * tile.columns * SLICE
        entry = f"norm_max_pool_quads<{kind}>"
        launch(FILE, entry, (tiles * slices,), block, arguments, shared_bytes)
    else:
        entry = f"norm_max_pool<{kind}>"
        launch(FILE, entry, *threads_for(y.shape, False), (*common, shape))
    return as_nchw(y), as_nchw(taps)


class _Tile(NamedTuple):
    """The windows that a block pools, and the pixels under them."""

    windows_h: int
    windows_w: int
    rows: int
    columns: int


def _tile(shape: PoolShape) -> _Tile:
    """Return the tile size, limited by threads per block and `TILE_BYTES`.

    Tiles are spread evenly over the image.
    """
    columns = min(THREADS // SLICE, TILE_BYTES // (16 * SLICE * shape.R))
    windows_w = _even(shape.Wo, max(0, columns - shape.S) // shape.stride_w + 1)
    columns = (windows_w - 1) * shape.stride_w + shape.S
    rows = TILE_BYTES // (16 * SLICE * columns)
    windows_h = _even(shape.Ho, (rows - shape.R) // shape.stride_h + 1)
    rows = (windows_h - 1) * shape.stride_h + shape.R
    return _Tile(windows_h, windows_w, rows, columns)


def _even(count: int, most: int) -> int:
    """Return the size, at most ``most``, of equal parts of ``count``."""
    parts = -(-count // most)
    return -(-count // parts)


def norm_max_pool2d_input_grad(
    grad: Array,
    taps: Array,
    x: Array,
    norm: NormOptions,
    pool: PoolOptions,
    quads: bool | None = None,
) -> Array:
    """Return dx of `norm_max_pool2d`; ``quads`` as there."""
    if not _byte_taps(pool):
        grad = max_pool2d_input_grad(grad, taps, x.shape, pool)
        return lrn.local_response_norm_input_grad(grad, x, norm)
    quads = lrn.in_quads(x, norm.groups) if quads is None else quads
    operation = "norm_max_pool_grad_quads" if quads else "norm_max_pool_grad"
    return _grad(operation, quads, (grad, taps, x), norm, pool)


def _grad(
    operation: str,
    quads: bool,
    arrays: tuple[Array, Array, Array],
    norm: NormOptions,
    pool: PoolOptions,
    *sums: Array,
) -> Array:
    """Return dx; the kernel may also fill ``sums``."""
    grad, _, x = arrays
    shape = PoolShape.of(x.shape, pool, grad.shape[2:])
    images = [channels_last(array) for array in arrays]
    dx = cupy().empty(images[-1].shape, x.dtype)
    arguments = *images, dx, *sums, *lrn.numbers(x, norm), shape
    entry = f"{operation}<{type_name(x.dtype)}>"
    launch(FILE, entry, *threads_for(dx.shape, quads), arguments)
    return as_nchw(dx)


def norm_max_pool2d_relu_bias_grad(
    grad: Array, taps: Array, x: Array, norm: NormOptions, pool: PoolOptions
) -> tuple[Array, Array]:
    """Return the gradients of a bias and ReLU before `norm_max_pool2d`.

    ``x`` is the ReLU's output.

    The first is dx of `norm_max_pool2d` where not ``x <= 0``, else 0: that of the ReLU's input.
    The second, [C], is its sum over images and pixels, added up in the same order every time.
    """
    if not (lrn.in_quads(x, norm.groups) and _byte_taps(pool)):
        dx = channels_last(norm_max_pool2d_input_grad(grad, taps, x, norm, pool))
        masked, bias = relu_bias_grad(dx, channels_last(x))
        return as_nchw(masked), bias
    N, C, H, _ = x.shape
    sums = cupy().empty((N * H, C), computing(x.dtype))
    dx = _grad("norm_max_pool_relu_grad_quads", True, (grad, taps, x), norm, pool, sums)
    return dx, bias_grad(sums)
