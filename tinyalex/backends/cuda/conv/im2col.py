"""Convolution by im2col and cuBLAS, float32 and float64.

The columns of a few images are made at a time, so that they take little memory however large the
batch is.
"""

from __future__ import annotations

from collections.abc import Iterator

from tinyalex.backends.cuda.conv.shape import ConvShape
from tinyalex.backends.cuda.launch import launch, type_name
from tinyalex.backends.gpu import cupy
from tinyalex.backends.types import Array

THREADS = 256  # per block
ELEMENTS = 1 << 25  # of columns at a time: 256 MB in float64


def forward(x: Array, weight: Array, bias: Array | None, shape: ConvShape) -> Array:
    """Return y [N, Ho, Wo, K] of x [N, H, W, C] and weight [K, R, S, C/G]."""
    y = cupy().empty((shape.N, shape.Ho, shape.Wo, shape.K), x.dtype)
    filters = _of_groups(weight, shape)
    for images, part in _parts(shape):
        columns = im2col(x[images], part)
        pixels = y[images].reshape(-1, shape.K)
        for group, of_group in enumerate(_groups(shape)):
            pixels[:, of_group] = columns[group] @ filters[group].T
    if bias is not None:
        y += bias
    return y


def input_grad(grad: Array, weight: Array, shape: ConvShape) -> Array:
    """Return dx [N, H, W, C] of dy [N, Ho, Wo, K] and weight [K, R, S, C/G]."""
    dx = cupy().empty((shape.N, shape.H, shape.W, shape.C), grad.dtype)
    filters = _of_groups(weight, shape)
    for images, part in _parts(shape):
        columns = cupy().empty(_columns_shape(part), grad.dtype)
        pixels = grad[images].reshape(-1, shape.K)
        for group, of_group in enumerate(_groups(shape)):
            columns[group] = pixels[:, of_group] @ filters[group]
        col2im(columns, part, dx[images])
    return dx


def weight_grad(grad: Array, x: Array, shape: ConvShape) -> Array:
    """Return dweight [K, R, S, C/G] of dy [N, Ho, Wo, K] and x [N, H, W, C]."""
    dweight = cupy().zeros((shape.K, shape.R, shape.S, shape.channels), grad.dtype)
    filters = _of_groups(dweight, shape)
    for images, part in _parts(shape):
        columns = im2col(x[images], part)
        pixels = grad[images].reshape(-1, shape.K)
        for group, of_group in enumerate(_groups(shape)):
            filters[group] += pixels[:, of_group].T @ columns[group]
    return dweight


def im2col(x: Array, shape: ConvShape) -> Array:
    """Return every window of x [N, H, W, C] as a row: [G, N * Ho * Wo, R * S * C/G]."""
    columns = cupy().empty(_columns_shape(shape), x.dtype)
    entry = f"im2col<{type_name(x.dtype)}>"
    launch("im2col.cu", entry, (-(-columns.size // THREADS),), (THREADS,), (x, columns, shape))
    return columns


def col2im(columns: Array, shape: ConvShape, dx: Array) -> None:
    """Set dx [N, H, W, C]: per pixel, the sum of its copies in `im2col`."""
    entry = f"col2im<{type_name(dx.dtype)}>"
    launch("im2col.cu", entry, (-(-dx.size // THREADS),), (THREADS,), (columns, dx, shape))


def _columns_shape(shape: ConvShape) -> tuple[int, int, int]:
    return shape.groups, shape.N * shape.Ho * shape.Wo, shape.R * shape.S * shape.channels


def _of_groups(weight: Array, shape: ConvShape) -> Array:
    """Return weight [K, R, S, C/G] as matrices [G, K/G, R * S * C/G]."""
    return weight.reshape(shape.groups, shape.filters, -1)


def _groups(shape: ConvShape) -> list[slice]:
    """Return each group's filters."""
    step = shape.filters
    return [slice(first, first + step) for first in range(0, shape.K, step)]


def _parts(shape: ConvShape) -> Iterator[tuple[slice, ConvShape]]:
    """Yield some images at a time, and the convolution of only these."""
    some = ELEMENTS // (shape.Ho * shape.Wo * shape.R * shape.S * shape.C)
    some = max(4, some // 4 * 4)  # parts of x must begin at a multiple of 16 bytes
    for first in range(0, shape.N, some):
        count = min(some, shape.N - first)
        yield slice(first, first + count), shape._replace(N=count)
