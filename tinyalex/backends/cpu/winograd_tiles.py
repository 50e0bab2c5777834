"""Winograd's convolution, step by step: from images to transformed tiles and back.

Images that are no multiple of 4 wide waste part of their last tiles. Therefore up to 2 x 2 images
are laid side by side on a canvas, with as much space between them as the kernel needs, and the
canvas is cut into tiles: 28 x 28 outputs are four images of 13 x 13. What falls between the images
is computed and dropped.

Transforms along the columns come first on the way in and last on the way out. They work on whole
lines of tiles; those along the rows work on one row of points k at a time, so that its part of the
tiles stays in the core's cache until the matrix products at these points are done.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import numpy as np

from tinyalex.backends.cpu.runtime import kernel
from tinyalex.backends.cpu.winograd_transforms import (
    TILE,
    gradient_transform,
    input_transform,
    output_transform,
)
from tinyalex.backends.geometry import Pair


class Canvas(NamedTuple):
    """``down`` x ``across`` images, every ``height`` rows and ``width`` columns, in tiles."""

    down: int
    across: int
    height: int
    width: int
    lines: int  # of tiles
    tiles: int  # in a line


def lay_out(images: int, output_size: Pair, taps: int) -> Canvas:
    """Choose the canvas that needs the fewest tiles for all images."""
    height, width = (size + taps - 1 for size in output_size)

    def of(down: int, across: int) -> Canvas:
        lines = -(-(down * height - taps + 1) // TILE)
        tiles = -(-(across * width - taps + 1) // TILE)
        return Canvas(down, across, height, width, lines, tiles)

    def cost(c: Canvas) -> int:
        return -(-images // (c.down * c.across)) * c.lines * c.tiles

    return min((of(*grid) for grid in product((1, 2), (1, 2))), key=cost)


@kernel
def copy(source, target):
    """``target = source`` for vectors."""
    for c in range(target.size):
        target[c] = source[c]


@kernel
def _clear(target):
    for c in range(target.size):
        target[c] = 0


@kernel
def add(a, b, target):
    """``target = a + b`` for vectors; ``target`` may be ``b``."""
    for c in range(target.size):
        target[c] = a[c] + b[c]


@kernel
def _copy_where_positive(source, mask, target):
    zero = np.float32(0)
    for c in range(target.size):
        target[c] = zero if mask[c] <= zero else source[c]  # a NaN is not <= 0: it passes


@kernel
def _gather(images, mask, canvas, padding, line, rows):
    """Copy the pixels under a line of tiles to ``rows`` [rows, columns, C]; 0 between images.

    Where ``mask``, unless it is empty, is not positive, they are 0 too.
    """
    N, H, W, C = images.shape
    top, left = padding
    pixels = images.reshape(N * H, W * C)
    masks = mask.reshape(mask.shape[0] * mask.shape[1], mask.shape[2] * mask.shape[3])
    number, row = divmod(line, canvas.lines)
    first = max(0, -left)  # a negative padding cuts off the edge
    count = min(W, canvas.width - left) - first
    for k in range(rows.shape[0]):
        target = rows[k].reshape(rows.shape[1] * C)
        done = 0
        i, h = divmod(row * TILE + k, canvas.height)
        h -= top
        if i < canvas.down and h >= 0 and h < H:
            for j in range(canvas.across):
                n = (number * canvas.down + i) * canvas.across + j
                if n < N:
                    start = (j * canvas.width + left + first) * C
                    _clear(target[done:start])
                    done = start + count * C
                    source = pixels[n * H + h, first * C : (first + count) * C]
                    if mask.size:
                        where = masks[n * H + h, first * C : (first + count) * C]
                        _copy_where_positive(source, where, target[start:done])
                    else:
                        copy(source, target[start:done])
        _clear(target[done:])


@kernel
def _add_and_rectify(a, b, target):
    zero = np.float32(0)
    for c in range(target.size):
        total = a[c] + b[c]
        target[c] = zero if total <= zero else total


@kernel
def _scatter(tile, canvas, line, column, bias, rectify, images):
    """Add the bias to a tile [4, 4, K], ``rectify`` it, and store what of it lies in an image."""
    N, H, W, _ = images.shape
    number, row = divmod(line, canvas.lines)
    for a in range(TILE):
        i, h = divmod(row * TILE + a, canvas.height)
        for b in range(TILE):
            j, w = divmod(column * TILE + b, canvas.width)
            n = (number * canvas.down + i) * canvas.across + j
            if i < canvas.down and j < canvas.across and n < N and h < H and w < W:
                if rectify:
                    _add_and_rectify(tile[a, b], bias, images[n, h, w])
                else:
                    add(tile[a, b], bias, images[n, h, w])


@kernel
def take(space, start, shape):
    """Return the next part of the workspace as an array, and where the one after it starts."""
    size = 1
    for length in shape:
        size *= length
    return space[start : start + size].reshape(shape), start + size


@kernel
def input_columns(x, mask, canvas, padding, first, rows, half):
    """Transform the columns of the inputs: x [N, H, W, C] to ``half`` [lines, n, columns, C].

    ``first`` is the first of the lines, ``padding`` (top, left), ``rows`` scratch for one line.
    """
    shape = rows.shape[0], rows.shape[1] * rows.shape[2]
    for line in range(half.shape[0]):
        _gather(x, mask, canvas, padding, first + line, rows)
        input_transform(rows.reshape(shape), half[line].reshape(shape))


@kernel
def input_rows(half, k, V):
    """Transform the rows of the inputs, those of points k: ``half`` to V [tile, n, C]."""
    n = half.shape[1]
    tiles = V.shape[0] // half.shape[0]
    for tile in range(V.shape[0]):
        line, column = divmod(tile, tiles)
        start = column * TILE
        input_transform(half[line, k, start : start + n], V[tile])


@kernel
def gradient_columns(grad, mask, canvas, first, rows, half, sums):
    """As `input_columns`, for the gradient [N, Ho, Wo, K]; its pixels are added to ``sums`` [K].

    Tiles do not overlap here: every pixel is gathered once.
    """
    width = rows.shape[1] * rows.shape[2]
    for line in range(half.shape[0]):
        _gather(grad, mask, canvas, (0, 0), first + line, rows)
        for row in range(TILE):
            for column in range(rows.shape[1]):
                add(rows[row, column], sums, sums)
        target = half[line].reshape(half.shape[1], width)
        gradient_transform(rows.reshape(TILE, width), target)


@kernel
def gradient_rows(half, k, Z):
    """As `input_rows`, for the gradient: ``half`` to Z [tile, n, K]."""
    tiles = Z.shape[0] // half.shape[0]
    for tile in range(Z.shape[0]):
        line, column = divmod(tile, tiles)
        start = column * TILE
        gradient_transform(half[line, k, start : start + TILE], Z[tile])


@kernel
def output_rows(M, half, k):
    """Transform the rows of the products at points k: M [tile, n, K] to half[:, k]."""
    for tile in range(M.shape[0]):
        output_transform(M[tile], half[tile, k])


@kernel
def output_columns(half, outputs, canvas, first, bias, rectify, y):
    """Transform the columns of the outputs, ``half`` [tile, n, 4, K], and store them in y."""
    n, _, K = half.shape[1:]
    for tile in range(half.shape[0]):
        output_transform(half[tile].reshape(n, TILE * K), outputs.reshape(TILE, TILE * K))
        line, column = divmod(tile, canvas.tiles)
        _scatter(outputs, canvas, first + line, column, bias, rectify, y)
