"""Fully connected layers: matrix products, split into one part per task.

The weights are far larger than the activations, and with few images reading them is most of the
work. So they are read where they lie, once and in long runs, and it is the activations that are put
into the order in which `microkernel` wants them. What it does not take (float64, odd numbers of
features) is left to BLAS.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import prange

from tinyalex.backends import memory
from tinyalex.backends.cpu.gemm import gemm
from tinyalex.backends.cpu.microkernel import ROWS, TERM, WIDTH, View, add_terms, multiply
from tinyalex.backends.cpu.runtime import (
    kernel,
    num_threads,
    parallel_kernel,
    plain,
    thread_id,
    workspace,
)
from tinyalex.backends.cpu.vectors import FAR, LANES, fence
from tinyalex.backends.shards import additions
from tinyalex.backends.types import Array, Shape

MAX_COLUMNS = 1024  # of the result, a task: more leaves the threads unevenly loaded
TASK = 4 * ROWS[0]  # rows of the result for a task of `_multiply_weight`
PANELS = 1 << 17  # elements of panels that stay in the second-level cache
# Outputs that `_input_grad` takes at a time. Their weights are read in long runs, but the sums are
# read and written again each time: which costs more depends on the number of images.
DEPTH_OF_FEW, DEPTH, MANY = 32, 48, 64
COLUMNS = 512  # of the images, that a task of `_weight_grad` packs


# --- one image: every weight is used once ---------------------------------------------------------


@kernel
def _four_dots(x, weight, first, y):
    w0, w1, w2, w3 = weight[first], weight[first + 1], weight[first + 2], weight[first + 3]
    y0, y1, y2, y3 = y[first], y[first + 1], y[first + 2], y[first + 3]
    for i in range(x.size):
        y0 += x[i] * w0[i]
        y1 += x[i] * w1[i]
        y2 += x[i] * w2[i]
        y3 += x[i] * w3[i]
    y[first], y[first + 1], y[first + 2], y[first + 3] = y0, y1, y2, y3


@parallel_kernel
def _forward_one(x, weight, y):
    for task in prange((y.size + 3) // 4):
        first = np.int64(task) * 4
        if first + 4 <= y.size:
            _four_dots(x, weight, first, y)  # four streams of memory keep the processor supplied
        else:
            for o in range(first, y.size):
                for i in range(x.size):
                    y[o] += x[i] * weight[o, i]


# --- many images, float32 -------------------------------------------------------------------------


@parallel_kernel
def _transpose_into_panels(x, panels):
    # x [N, I] -> panels [N / WIDTH, I, WIDTH]; zeros for images that are not there
    N, inputs = x.shape
    for task in prange((inputs + LANES - 1) // LANES):
        first = np.int64(task) * LANES
        for panel in range(panels.shape[0]):
            for n in range(WIDTH):
                image = panel * WIDTH + n
                for i in range(first, min(inputs, first + LANES)):
                    panels[panel, i, n] = x[image, i] if image < N else np.float32(0)


@parallel_kernel
def _multiply_weight(weight, panels, depth, y):
    # y [O, columns] = weight [O, I] @ panels [columns / WIDTH, I, WIDTH], ``depth`` at a time
    outputs, inputs = weight.shape
    columns = y.shape[1]
    for task in prange((outputs + TASK - 1) // TASK):
        first = np.int64(task) * TASK
        rows = min(TASK, outputs - first)
        for i in range(0, inputs, depth):
            some = min(depth, inputs - i)
            left = View(weight, first * inputs + i, inputs, 1)
            right = View(panels, i * WIDTH, WIDTH, inputs * WIDTH)
            result = View(y, first * columns, columns, 1)
            multiply(left, right, result, rows, columns, some, i > 0)


@kernel
def _pack(x, column, columns, panels):
    """Copy some columns of ``x`` [N, I] to panels [columns / WIDTH, N, WIDTH].

    Half a panel may be left; the rest of it is filled with zeros.
    """
    # Unsigned indices: signed ones could mean "from the end", and the loop would not vectorise.
    width, begin, deep = np.uintp(WIDTH), np.uintp(column), np.uintp(x.shape[0])
    full = np.uintp(columns // WIDTH)
    for k in range(deep):
        for panel in range(full):
            for j in range(width):
                panels[(panel * deep + k) * width + j] = x[k, begin + panel * width + j]
        if columns % WIDTH:
            for j in range(width):
                inside = full * width + j < np.uintp(columns)
                value = x[k, begin + full * width + j] if inside else np.float32(0)
                panels[(full * deep + k) * width + j] = value


@parallel_kernel
def _input_grad(grad, weight, width, deep, dx):
    # dx [N, I] = grad [N, O] @ weight [O, I], N a multiple of ROWS[-1], ``width`` of WIDTH
    N, outputs = grad.shape
    inputs = weight.shape[1]
    for task in prange((inputs + width - 1) // width):
        first = np.int64(task) * width
        columns = min(width, inputs - first)
        for o in range(0, outputs, deep):
            left = View(grad, o, outputs, 1)
            right = View(weight, o * inputs + first, inputs, WIDTH)
            depth = min(deep, outputs - o)
            multiply(left, right, View(dx, first, inputs, 1), N, columns, depth, o > 0)


@parallel_kernel
def _weight_grad(grad, x, dweight, space):
    # dweight [O, I] = grad [N, O].T @ x [N, I]
    N, outputs = grad.shape
    inputs, far = x.shape[1], dweight.size > FAR
    for task in prange((inputs + COLUMNS - 1) // COLUMNS):
        first = np.int64(task) * COLUMNS
        columns = min(COLUMNS, inputs - first)
        panels = space[thread_id()]
        _pack(x, first, columns, panels)
        right = View(panels, 0, WIDTH, N * WIDTH)
        for o in range(0, outputs, TASK):
            left = View(grad, o, 1, outputs)
            result = View(dweight, o * inputs + first, inputs, 1)
            multiply(left, right, result, min(TASK, outputs - o), columns, N, False, far)
        fence()


@parallel_kernel
def _weight_grad_of_shards(grad, x, ends, additions, dweight, space):
    # dweight [O, I] = the sum of grad[shard].T @ x[shard], added in the tree
    N, outputs = grad.shape
    inputs, far = x.shape[1], dweight.size > FAR
    for task in prange((inputs + COLUMNS - 1) // COLUMNS):
        first = np.int64(task) * COLUMNS
        columns = min(COLUMNS, inputs - first)
        panels = space[thread_id()]
        _pack(x, first, columns, panels)
        right = View(panels, 0, WIDTH, N * WIDTH)
        sums = panels[N * COLUMNS :]
        for o in range(0, outputs, TASK):
            left = View(grad, o, 1, outputs)
            result = View(dweight, o * inputs + first, inputs, 1)
            rows = min(TASK, outputs - o)
            add_terms(left, right, result, rows, columns, ends, additions, sums, far)
        fence()


# --- everything else: BLAS ------------------------------------------------------------------------


@parallel_kernel
def _multiply(a, b, width, c, transpose_a, transpose_b):
    for task in prange((c.shape[1] + width - 1) // width):
        first = np.int64(task) * width
        stop = min(c.shape[1], first + width)
        right = b[first:stop] if transpose_b else b[:, first:stop]
        gemm(a, right, c[:, first:stop], transpose_a, transpose_b, False)


def _blas(
    a: Array, b: Array, shape: tuple[int, int], transpose_a: bool, transpose_b: bool
) -> Array:
    """Return ``op(a) @ op(b)`` from BLAS, equally many columns per task."""
    c = memory.empty(shape, a.dtype)
    tasks = num_threads() * max(1, -(-shape[1] // (num_threads() * MAX_COLUMNS)))
    width = max(1, -(-shape[1] // tasks))
    _multiply(plain(a), plain(b), width, c, transpose_a, transpose_b)
    return c


def suits(shape: Shape, dtype: Any) -> bool:
    """Return whether tiles fill such weights and their gradient without a rest."""
    outputs, inputs = shape
    fits = outputs % ROWS[-1] == 0 and inputs % LANES == 0
    return dtype == np.float32 and fits and outputs * inputs > 0


def linear(x: Array, weight: Array, bias: Array | None) -> Array:
    """Return ``x @ weight.T + bias``: x [N, I], weight [O, I], bias [O] -> [N, O]."""
    return linear_chosen_by(len(x), x, weight, bias)


def linear_chosen_by(rows: int, x: Array, weight: Array, bias: Array | None) -> Array:
    """Return what `linear` does, in the way for so many rows."""
    N, (outputs, inputs) = x.shape[0], weight.shape
    if N == 0:
        return np.empty((0, outputs), x.dtype)
    if rows == 1:
        y = np.zeros((1, outputs), x.dtype)
        _forward_one(plain(x[0]), plain(weight), y[0])
    elif suits(weight.shape, weight.dtype):
        panels = memory.empty((-(-N // WIDTH), inputs, WIDTH), np.float32)
        _transpose_into_panels(plain(x), panels)
        columns = -(-N // LANES) * LANES
        transposed = memory.empty((outputs, columns), np.float32)
        depth = max(LANES, PANELS // columns)
        _multiply_weight(plain(weight), panels, depth, transposed)
        y = np.ascontiguousarray(transposed[:, :N].T)
    else:
        y = _blas(x, weight, (N, outputs), False, True)
    if bias is not None:
        y += bias
    return y


def linear_input_grad(grad: Array, weight: Array) -> Array:
    """Return dx = grad @ weight: [N, O] @ [O, I]."""
    N, (outputs, inputs) = grad.shape[0], weight.shape
    if N == 0 or not suits(weight.shape, weight.dtype):
        return _blas(grad, weight, (N, inputs), False, False)
    rows = np.zeros((-(-N // ROWS[-1]) * ROWS[-1], outputs), np.float32)
    rows[:N] = grad
    dx = memory.empty((len(rows), inputs), np.float32)
    width = -(-inputs // (WIDTH * num_threads())) * WIDTH
    _input_grad(rows, plain(weight), width, DEPTH if N > MANY else DEPTH_OF_FEW, dx)
    return dx[:N]


def linear_weight_grad(grad: Array, x: Array) -> Array:
    """Return dweight = grad.T @ x: [O, N] @ [N, I]."""
    N, outputs = grad.shape
    shape = outputs, x.shape[1]
    if N == 0:
        return np.zeros(shape, grad.dtype)
    dweight = memory.empty(shape, grad.dtype)
    if not suits(shape, grad.dtype):
        return _blas(grad, x, shape, True, False)
    _weight_grad(plain(grad), plain(x), dweight, workspace(N * COLUMNS, np.dtype(np.float32)))
    return dweight


def sum_of_weight_grads(grad: Array, x: Array, sizes: Sequence[int]) -> Array:
    """Return the sum of the shards' `linear_weight_grad`, added in their tree.

    ``sizes`` are the rows of each shard, at least one. The weights' shape must be one that `suits`.
    """
    N, outputs = grad.shape
    ends = np.cumsum([0, *sizes])
    counts = np.array(additions(len(sizes)))
    dweight = memory.empty((outputs, x.shape[1]), np.float32)
    apart = 1 + len(sizes).bit_length()  # sums at a time, at most
    space = workspace(N * COLUMNS + apart * TERM, np.dtype(np.float32))
    _weight_grad_of_shards(plain(grad), plain(x), ends, counts, dweight, space)
    return dweight
