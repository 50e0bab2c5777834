"""Winograd's convolution F(4x4, 3x3) and F(4x4, 5x5): stride 1, float32, many channels.

Every 4x4 tile of outputs is computed by way of n x n points, n = 6 or 8 (`winograd_transforms`):
2.25 products per output instead of 9, or 4 instead of 25. At each point (k, l) products over all
tiles and channels are one matrix product. A task takes a few lines of tiles through all steps
(`winograd_tiles`), one row of points k at a time:

    V [tile, l, C]   inputs      M [tile, l, K]   outputs = V U[k, l]      U [k, l, C, K]   weights

The order [tile, l, channel] lets every transform go from one contiguous matrix to another, and the
matrix product (`microkernel`) takes V as it is. U is made in the order in which it is read: panels
of a few outputs, for which all channels lie together.

Rounding errors are four times (3 taps) and eight times (5 taps) those of `im2col`, root mean square
at the depth of AlexNet's layers; docs/winograd.md derives and measures them. A NaN or an infinity
spoils all outputs of its tiles, and very large numbers overflow on the way where the outputs would
not. So images with an output that is not finite are computed again, by `im2col`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import prange

from tinyalex.backends import memory
from tinyalex.backends.cpu.conv import im2col
from tinyalex.backends.cpu.conv.winograd_scales import find_scales
from tinyalex.backends.cpu.conv.winograd_tiles import (
    Canvas,
    gradient_columns,
    gradient_rows,
    input_columns,
    input_rows,
    lay_out,
    lines_of,
    output_columns,
    output_rows,
    take,
)
from tinyalex.backends.cpu.conv.winograd_transforms import TILE
from tinyalex.backends.cpu.conv.winograd_weights import (
    fill,
    gather_weight_grad,
    padded,
    points,
    strip,
)
from tinyalex.backends.cpu.elementwise import all_finite, relu_input_grad
from tinyalex.backends.cpu.microkernel import ROWS, WIDTH, View, multiply
from tinyalex.backends.cpu.runtime import num_threads, parallel_kernel, thread_id, workspace
from tinyalex.backends.cpu.vectors import LANES, fence
from tinyalex.backends.cpu.weight_cache import reuse
from tinyalex.backends.geometry import ConvOptions, Pair, conv_output_size
from tinyalex.backends.layout import as_nchw, channels_last
from tinyalex.backends.numerics import total
from tinyalex.backends.types import Array, Shape

# A task has about so many tiles, in whole lines. Every task reads all transformed weights (14 MB in
# the paper's conv3): few large tasks share the reading. But V and M (0.3 and 0.45 MB there) must
# stay in the core's cache.
TILES = 49
PARTIAL_BYTES = 1 << 28  # for sums of dU: where they are large, there are fewer
# One vector more in each row of V and M. Rows a power of two apart would compete for the same
# places in the cache; an odd number of its lines apart, they use them all.
MARGIN = LANES
NOTHING = np.zeros((0, 0, 0, 0), np.float32)


@parallel_kernel
def _convolve(
    x, mask, U, bias, rectify, y, spoilt, canvas, scales, padding, lines, per_task, space
):
    n, _, groups, panels, Cg, _ = U.shape
    C, K = x.shape[3], y.shape[3]
    Kg = K // groups
    columns = canvas.tiles * TILE + n - TILE
    for task in prange((lines + per_task - 1) // per_task):
        first = np.int64(task) * per_task
        count = min(lines, first + per_task) - first
        tiles = count * canvas.tiles
        mine = space[thread_id()]
        rows, end = take(mine, 0, (n, columns, C))
        half, end = take(mine, end, (count, n, columns, C))
        V, end = take(mine, end, (tiles + ROWS[-1], n * C + MARGIN))
        M, end = take(mine, end, (tiles + ROWS[-1], n * K + MARGIN))
        half_done, end = take(mine, end, (tiles, n, TILE, K))
        outputs, end = take(mine, end, (TILE, TILE * K))
        find_scales(x, mask, canvas, first, count, scales)
        input_columns(x, mask, scales[0], canvas, padding, first, rows, half)
        for k in range(n):
            input_rows(half, k, canvas.tiles, V)
            for point in range(n):
                for g in range(groups):
                    source = View(V, point * C + g * Cg, V.shape[1], 1)
                    offset = ((k * n + point) * groups + g) * panels * Cg * WIDTH
                    weights = View(U, offset, WIDTH, Cg * WIDTH)
                    target = View(M, point * K + g * Kg, M.shape[1], 1)
                    multiply(source, weights, target, tiles, Kg, Cg, False)
            output_rows(M, half_done, k)
        output_columns(half_done, outputs, canvas, first, bias, rectify, scales[1], y, spoilt)
        fence()


@parallel_kernel
def _weight_grad(grad, mask, x, dU, sums, canvas, scales, padding, lines, per_task, space):
    # dU [parts, n, n, groups, Cg, Kg], sums [parts, width * K]: each part has its share of lines.
    parts, n, _, groups, Cg, Kg = dU.shape
    C, K = groups * Cg, groups * Kg
    width = canvas.tiles * TILE
    columns = width + n - TILE
    for number in prange(parts):
        part = np.int64(number)
        mine = space[thread_id()]
        begin, stop = lines * part // parts, lines * (part + 1) // parts
        for first in range(begin, stop, per_task):
            count = min(stop, first + per_task) - first
            tiles = count * canvas.tiles
            rows, end = take(mine, 0, (n, columns, C))
            half, end = take(mine, end, (count, n, columns, C))
            V, end = take(mine, end, (tiles, n * C + MARGIN))
            grad_rows, end = take(mine, end, (TILE, width, K))
            grad_half, end = take(mine, end, (count, n, width, K))
            Z, end = take(mine, end, (tiles, n * K + MARGIN))
            find_scales(x, NOTHING, canvas, first, count, scales)
            input_columns(x, NOTHING, scales[0], canvas, padding, first, rows, half)
            gradient_columns(grad, mask, scales[1], canvas, first, grad_rows, grad_half, sums[part])
            for k in range(n):
                input_rows(half, k, canvas.tiles, V)
                gradient_rows(grad_half, k, canvas.tiles, Z)
                for point in range(n):
                    for g in range(groups):
                        inputs = View(V, point * C + g * Cg, 1, V.shape[1])
                        grads = View(Z, point * K + g * Kg, Z.shape[1], WIDTH)
                        offset = (((part * n + k) * n + point) * groups + g) * Cg * Kg
                        result = View(dU, offset, Kg, 1)
                        multiply(inputs, grads, result, Cg, Kg, tiles, first > begin)


def _space(lines: int, canvas: Canvas, taps: int, channels: int) -> Array:
    """Return workspace for the tiles of ``lines`` lines, at all stages.

    Rows and half-done columns, then half-done tiles (4 <= n) and one row of points with its margin.
    """
    n = TILE + taps - 1
    columns = canvas.tiles * TILE + taps - 1
    size = n * channels * ((lines + 1) * columns + lines * canvas.tiles * (n + 1) + ROWS[-1])
    return workspace(size, np.dtype(np.float32))


def convolve(
    x: Array,
    mask: Array | None,
    U: Array,
    bias: Array | None,
    rectify: bool,
    padding: Pair,
    y_shape: Shape,
) -> tuple[Array, Array]:
    """Return y, where ``U`` are the `points` of the weights.

    The second result are the numbers of the images whose y is not finite, and not to be used.
    """
    taps, groups = U.shape[0] - TILE + 1, U.shape[2]
    N, K, Ho, Wo = y_shape
    canvas = lay_out(N, (Ho, Wo), taps)
    lines = lines_of(canvas, N)
    tasks = -(-lines * canvas.tiles // (TILES * num_threads())) * num_threads()
    per_task = max(1, -(-lines // max(1, tasks)))
    y = memory.empty((N, Ho, Wo, groups * padded(K, groups)), np.float32)
    spoilt = np.zeros(N, np.bool_)
    images = fill(channels_last(x), groups, 3)
    biases = np.zeros(y.shape[3], np.float32) if bias is None else fill(bias, groups, 0)
    _convolve(
        images,
        NOTHING if mask is None else fill(channels_last(mask), groups, 3),
        U,
        np.concatenate([biases] * TILE),
        rectify,
        y,
        spoilt,
        canvas,
        np.ones((2, N), np.float32),
        padding,
        lines,
        per_task,
        _space(per_task, canvas, taps, images.shape[3] + y.shape[3]),
    )
    return as_nchw(strip(y, groups, 3, K)), spoilt.nonzero()[0]


def redo(y: Array, images: Array, shard: int | None, make: Callable[[Array], Array]) -> None:
    """Write what ``make`` returns for some images, those of each shard together."""
    shards = images // (shard or len(y) or 1)
    for number in sorted(set(shards.tolist())):
        some = images[shards == number]
        y[some] = make(some)


def forward(
    x: Array,
    weight: Array,
    bias: Array | None,
    options: ConvOptions,
    rectify: bool = False,
    shard: int | None = None,
) -> Array:
    """Return y, or max(y, 0): transform, multiply point by point, transform back."""
    size = conv_output_size(x.shape[2:], weight.shape[2:], options)
    shape = (x.shape[0], weight.shape[0], *size)
    _, ((top, _), (left, _)), _, groups = options
    U = reuse(weight, ("winograd", groups), lambda: points(weight, groups, False))
    y, spoilt = convolve(x, None, U, bias, rectify, (top, left), shape)
    redo(y, spoilt, shard, lambda n: im2col.forward(x[n], weight, bias, options, rectify))
    return y


def input_grad(
    grad: Array,
    weight: Array,
    input_shape: Shape,
    options: ConvOptions,
    mask: Array | None = None,
    shard: int | None = None,
) -> Array:
    """Return dx: the convolution of ``grad`` (where ``mask`` > 0) with the rotated filters.

    A padding of p in the forward direction is one of r - 1 - p here, or cuts off if p is larger.
    """
    _, ((top, _), (left, _)), _, groups = options
    edge = weight.shape[2] - 1
    edges = edge - top, edge - left
    U = reuse(weight, ("winograd of dx", groups), lambda: points(weight, groups, True))
    dx, spoilt = convolve(grad, mask, U, None, False, edges, input_shape)
    redo(dx, spoilt, shard, im2col_input_grad(grad, weight, input_shape, options, mask))
    return dx


def im2col_input_grad(
    grad: Array, weight: Array, input_shape: Shape, options: ConvOptions, mask: Array | None
) -> Callable[[Array], Array]:
    """Return a function of numbers of images, which returns their dx."""

    def of(images: Array) -> Array:
        shape = len(images), *input_shape[1:]
        masks = None if mask is None else mask[images]
        return im2col.input_grad(grad[images], weight, shape, options, masks)

    return of


def masked(grad: Array, y: Array) -> tuple[Array, Array]:
    """Return the gradient and its mask unchanged: reading applies the mask."""
    return grad, y


def weight_grad(grad: Array, x: Array, weight_shape: Shape, options: ConvOptions) -> Array:
    """Return dweight."""
    return weight_and_bias_grad(grad, x, weight_shape, options)[0]


def weight_and_bias_grad(
    grad: Array, x: Array, weight_shape: Shape, options: ConvOptions, mask: Array | None = None
) -> tuple[Array, Array]:
    """Return dweight and dbias: transformed inputs times transformed gradients, over all tiles.

    ``grad`` counts where ``mask`` > 0. There are as many partial sums as in `im2col`. An
    image's scale and that of its gradient cancel in the products.
    """
    K, C, taps, _ = weight_shape
    _, ((top, _), (left, _)), _, groups = options
    n = TILE + taps - 1
    Kg, Cg = padded(K, groups), padded(C, 1)
    canvas = lay_out(grad.shape[0], grad.shape[2:], taps)
    lines = lines_of(canvas, grad.shape[0])
    if lines == 0:
        return np.zeros(weight_shape, np.float32), np.zeros(K, np.float32)
    most = max(1, PARTIAL_BYTES // (n * n * groups * Kg * Cg * 4))
    threads, pixels = num_threads(), lines * canvas.tiles * TILE**2
    parts = min(threads * -(-pixels // (threads * im2col.PARTIAL_PIXELS)), lines, most)
    dU = memory.empty((parts, n, n, groups, Cg, Kg), np.float32)
    sums = np.zeros((parts, canvas.tiles * TILE * groups * Kg), np.float32)
    dw = memory.empty((groups, Kg, Cg, taps * taps), np.float32)
    per_task = max(1, TILES // canvas.tiles)
    _weight_grad(
        fill(channels_last(grad), groups, 3),
        NOTHING if mask is None else fill(channels_last(mask), groups, 3),
        fill(channels_last(x), groups, 3),
        dU,
        sums,
        canvas,
        np.ones((2, grad.shape[0]), np.float32),
        (top, left),
        lines,
        per_task,
        _space(per_task, canvas, taps, groups * (Kg + Cg)),
    )
    gather_weight_grad(dU, dw)
    dw = strip(strip(dw.reshape(groups * Kg, Cg, taps, taps), groups, 0, K), 1, 1, C)
    if not all_finite(dw):
        masked = grad if mask is None else relu_input_grad(grad, mask)
        dw = im2col.weight_grad(masked, x, weight_shape, options)
    dbias = total(sums.reshape(-1, groups * Kg), (0,))
    return dw, strip(dbias, groups, 0, K)
