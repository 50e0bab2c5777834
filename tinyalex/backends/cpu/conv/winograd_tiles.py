"""Winograd's convolution, step by step: from images to transformed tiles and back.

Images that are no multiple of 4 wide waste part of their last tiles. Therefore up to 2 x 2 images
are laid side by side on a canvas, with as much space between them as the filter needs, and the
canvas is cut into tiles: 28 x 28 outputs are four images of 13 x 13. What falls between the images
is computed and dropped. A tile may hold pixels of two images: all are brought to one magnitude on
the way in (`winograd_scales`), so that none is lost in another's rounding errors.

Transforms along the columns come first on the way in and last on the way out. They work on whole
lines of tiles; those along the rows work on one row of points k at a time, so that its part of the
tiles stays in the core's cache until the matrix products at these points are done.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tinyalex.backends.cpu.conv.winograd_transforms import (
    TILE,
    gradient_transform,
    input_transform,
    output_transform,
)
from tinyalex.backends.cpu.runtime import kernel
from tinyalex.backends.cpu.vectors import (
    FAR,
    FUSED,
    INTEGER,
    LANES,
    address,
    constant,
    element,
    load,
    pointer,
    spread,
    store,
    stream,
)
from tinyalex.backends.geometry import Pair

IMAGES = 4  # on the largest canvas; the smaller have a divisor of it


class Canvas(NamedTuple):
    """``down`` x ``across`` images, every ``height`` rows and ``width`` columns, in tiles."""

    down: int
    across: int
    height: int
    width: int
    lines: int  # of tiles
    tiles: int  # in a line


@lru_cache
def lay_out(images: int, output_size: Pair, taps: int) -> Canvas:
    """Choose the canvas that needs the fewest tiles for all images."""
    height, width = (size + taps - 1 for size in output_size)

    def of(down: int, across: int) -> Canvas:
        lines = -(-(down * height - taps + 1) // TILE)
        tiles = -(-(across * width - taps + 1) // TILE)
        return Canvas(down, across, height, width, lines, tiles)

    def cost(c: Canvas) -> int:
        return lines_of(c, images) * c.tiles

    return min((of(*grid) for grid in product((1, 2), (1, 2))), key=cost)


def lines_of(canvas: Canvas, images: int) -> int:
    """Return how many lines of tiles all images have."""
    return -(-images // (canvas.down * canvas.across)) * canvas.lines


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
def _multiply(factor, target):
    for c in range(target.size):
        target[c] *= factor


@kernel
def _gather(images, mask, scales, canvas, padding, line, rows, sums):
    """Copy the pixels under a line of tiles to ``rows`` [rows, columns, C].

    Between images it writes zeros.

    Where ``mask``, unless it is empty, is not positive, they are 0 too. They are added to ``sums``
    [columns * C], unless that is empty, and multiplied by the scale of their image.
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
                    if sums.size:
                        add(target[start:done], sums[start:done], sums[start:done])
                    if scales[n] != 1:
                        _multiply(scales[n], target[start:done])
        _clear(target[done:])


def _finish(put: Callable[..., None]) -> Callable[..., None]:
    """Return code for ``target = max(scale * a + b, least)``, written with ``put``.

    Its arguments: three addresses, the length, a multiple of `LANES`, and the numbers ``scale`` and
    ``least``. It returns whether ``scale * a + b`` is finite everywhere.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a, b, target, length, scale, least = arguments
        a, b, target = (pointer(builder, address) for address in (a, b, target))
        scale, least = spread(builder, scale), spread(builder, least)
        check = cgutils.alloca_once_value(builder, constant(0))  # 0 * infinity is NaN, and stays
        with cgutils.for_range_slice(builder, INTEGER(0), length, INTEGER(LANES)) as (i, _):
            x, y = (load(builder, element(builder, start, (i, 1))) for start in (a, b))
            total = builder.fadd(builder.fmul(scale, x, flags=FUSED), y, flags=FUSED)
            nothing = builder.fmul(constant(0), total, flags=FUSED)
            builder.store(builder.fadd(builder.load(check), nothing, flags=FUSED), check)
            low = builder.fcmp_ordered("<=", total, least)  # a NaN is not: it stays
            put(builder, builder.select(low, least, total), element(builder, target, (i, 1)))
        finite = builder.fcmp_ordered("==", builder.load(check), constant(0))
        every = ir.IntType(LANES)
        return builder.icmp_unsigned("==", builder.bitcast(finite, every), every(-1))

    @intrinsic
    def finish(
        typing: Any, a: Any, b: Any, target: Any, length: Any, scale: Any, least: Any
    ) -> Any:
        return types.boolean(*[types.intp] * 4, *[types.float32] * 2), generate

    return finish


_finish_near, _finish_far = _finish(store), _finish(stream)


@kernel
def _scatter(tile, canvas, line, column, bias, rectify, scales, images, spoilt):
    """Scale a tile [4, 4 * K], add the bias, ``rectify`` it, store it.

    Only what lies in an image is stored.

    ``bias`` [4 * K] is repeated for each pixel of a row. An image that gets a NaN or an infinity is
    marked as ``spoilt``.
    """
    N, H, W, K = images.shape
    least = np.float32(0 if rectify else -np.inf)
    number, row = divmod(line, canvas.lines)
    for a in range(TILE):
        i, h = divmod(row * TILE + a, canvas.height)
        if i >= canvas.down or h >= H:
            continue
        b = 0
        while b < TILE:  # a row of the tile may reach from one image into the next
            j, w = divmod(column * TILE + b, canvas.width)
            n = (number * canvas.down + i) * canvas.across + j
            count = min(TILE - b, canvas.width - w)
            inside = min(count, W - w)
            if j < canvas.across and n < N and inside > 0:
                source, terms = address(tile, (a * TILE + b) * K), address(bias, 0)
                target = address(images, ((n * H + h) * W + w) * K)
                if images.size > FAR:
                    finite = _finish_far(source, terms, target, inside * K, scales[n], least)
                else:
                    finite = _finish_near(source, terms, target, inside * K, scales[n], least)
                if not finite:
                    spoilt[n] = True
            b += count


@kernel
def take(space, start, shape):
    """Return the next part of the workspace, and the start after it."""
    size = 1
    for length in shape:
        size *= length
    return space[start : start + size].reshape(shape), start + size


@kernel
def input_columns(x, mask, scales, canvas, padding, first, rows, half):
    """Transform the columns of the inputs: x [N, H, W, C] to ``half`` [lines, n, columns, C].

    ``first`` is the first of the lines, ``padding`` (top, left), ``rows`` scratch for one line.
    """
    lines, n, columns, C = half.shape
    width = columns * C
    no_sums = np.empty(0, np.float32)
    for line in range(lines):
        _gather(x, mask, scales, canvas, padding, first + line, rows, no_sums)
        input_transform(n, rows, 0, width, half, line * n * width, width, width)


@kernel
def input_rows(half, k, tiles, V):
    """Transform the inputs' rows at points k: ``half`` to V [tile, n * C + margin]."""
    lines, n, columns, C = half.shape
    for line in range(lines):
        row = (line * n + k) * columns
        for tile in range(tiles):
            source, target = (row + tile * TILE) * C, (line * tiles + tile) * V.shape[1]
            input_transform(n, half, source, C, V, target, C, C)


@kernel
def gradient_columns(grad, mask, scales, canvas, first, rows, half, sums):
    """As `input_columns`, for the gradient [N, Ho, Wo, K]; unscaled, it is added to ``sums``.

    Tiles do not overlap here: every pixel is gathered once.
    """
    lines, n, columns, K = half.shape
    width = columns * K
    for line in range(lines):
        _gather(grad, mask, scales, canvas, (0, 0), first + line, rows, sums)
        gradient_transform(n, rows, 0, width, half, line * n * width, width, width)


@kernel
def gradient_rows(half, k, tiles, Z):
    """As `input_rows`, for the gradient: ``half`` to Z [tile, n * K + margin]."""
    lines, n, columns, K = half.shape
    for line in range(lines):
        row = (line * n + k) * columns
        for tile in range(tiles):
            source, target = (row + tile * TILE) * K, (line * tiles + tile) * Z.shape[1]
            gradient_transform(n, half, source, K, Z, target, K, K)


@kernel
def output_rows(M, half, k):
    """Transform the products' rows at points k: M [tile, n * K + margin] to half[:, k]."""
    tiles, n, _, K = half.shape
    for tile in range(tiles):
        target = (tile * n + k) * TILE * K
        output_transform(n, M, tile * M.shape[1], K, half, target, K, K)


@kernel
def output_columns(half, outputs, canvas, first, bias, rectify, scales, y, spoilt):
    """Transform the outputs' columns: ``half`` [tile, n, 4, K] to y.

    The task must end with a `vectors.fence`.
    """
    tiles, n, _, K = half.shape
    width = TILE * K
    for tile in range(tiles):
        output_transform(n, half, tile * n * width, width, outputs, 0, width, width)
        line, column = divmod(tile, canvas.tiles)
        _scatter(outputs, canvas, first + line, column, bias, rectify, scales, y, spoilt)
