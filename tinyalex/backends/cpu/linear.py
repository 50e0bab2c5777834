"""Fully connected layers: matrix products, each task with its own columns of the result.

The weights are far larger than the activations, and with few images reading them is most of the
work. So what matters is the order in which they are read.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from tinyalex.backends.cpu.gemm import gemm
from tinyalex.backends.cpu.runtime import kernel, num_threads, parallel_kernel, plain
from tinyalex.backends.types import Array

MAX_COLUMNS = 1024  # of the result, a task: more leaves the threads unevenly loaded


@parallel_kernel
def _forward(x, weight, width, y):
    for task in prange((y.shape[1] + width - 1) // width):
        first = np.int64(task) * width
        stop = min(y.shape[1], first + width)
        gemm(x, weight[first:stop], y[:, first:stop], False, True, True)


@kernel
def _add_four_by_four(grad, weight, o, n, first, stop, dx):
    """Add to four rows of ``dx``, from ``n``, their share of four rows of ``weight``, from ``o``.

    Sixteen products for every eight values read: that is what BLAS's inner loop does, too. But
    BLAS first copies the weights, in strips of a few columns, each value from another page of
    memory, and with few images the copy takes longer than the product.
    """
    # Unsigned indices: signed ones could mean "from the end", and the loop would not vectorise.
    o, n, one, two, three = np.uintp(o), np.uintp(n), np.uintp(1), np.uintp(2), np.uintp(3)
    a0, a1, a2, a3 = grad[n, o : o + np.uintp(4)]
    b0, b1, b2, b3 = grad[n + one, o : o + np.uintp(4)]
    c0, c1, c2, c3 = grad[n + two, o : o + np.uintp(4)]
    d0, d1, d2, d3 = grad[n + three, o : o + np.uintp(4)]
    for i in range(np.uintp(first), np.uintp(stop)):
        w0, w1 = weight[o, i], weight[o + one, i]
        w2, w3 = weight[o + two, i], weight[o + three, i]
        dx[n, i] += a0 * w0 + a1 * w1 + a2 * w2 + a3 * w3
        dx[n + one, i] += b0 * w0 + b1 * w1 + b2 * w2 + b3 * w3
        dx[n + two, i] += c0 * w0 + c1 * w1 + c2 * w2 + c3 * w3
        dx[n + three, i] += d0 * w0 + d1 * w1 + d2 * w2 + d3 * w3


@parallel_kernel
def _input_grad(grad, weight, width, dx):
    # The number of images is a multiple of four; the last rows of the weights may be fewer.
    outputs, inputs = weight.shape
    in_fours = outputs - outputs % 4
    for task in prange((inputs + width - 1) // width):
        first = np.int64(task) * width
        stop = min(inputs, first + width)
        dx[:, first:stop] = 0
        for o in range(0, in_fours, 4):
            for n in range(0, dx.shape[0], 4):
                _add_four_by_four(grad, weight, o, n, first, stop, dx)
        gemm(
            grad[:, in_fours:], weight[in_fours:, first:stop], dx[:, first:stop], False, False, True
        )


@parallel_kernel
def _weight_grad(grad, x, width, dweight):
    for task in prange((x.shape[1] + width - 1) // width):
        first = np.int64(task) * width
        stop = min(x.shape[1], first + width)
        gemm(grad, x[:, first:stop], dweight[:, first:stop], True, False, False)


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


def _width(columns: int) -> int:
    """Return the columns of a task: as many for each thread."""
    tasks = num_threads() * max(1, -(-columns // (num_threads() * MAX_COLUMNS)))
    return max(1, -(-columns // tasks))


def linear(x: Array, weight: Array, bias: Array | None) -> Array:
    """Return ``x @ weight.T + bias``: x [N, I], weight [O, I], bias [O] -> [N, O]."""
    y = np.empty((x.shape[0], weight.shape[0]), x.dtype)
    y[:] = 0 if bias is None else bias
    if x.shape[0] == 1:
        # Each weight is used once; BLAS would copy it first.
        _forward_one(plain(x[0]), plain(weight), y[0])
    elif x.shape[0] > 1:
        _forward(plain(x), plain(weight), _width(y.shape[1]), y)
    return y


def linear_input_grad(grad: Array, weight: Array) -> Array:
    """Return dx = grad @ weight: [N, O] @ [O, I]."""
    N, outputs = grad.shape
    padded = np.zeros((-(-N // 4) * 4, outputs), grad.dtype)
    padded[:N] = grad
    dx = np.empty((padded.shape[0], weight.shape[1]), grad.dtype)
    _input_grad(padded, plain(weight), _width(dx.shape[1]), dx)
    return dx[:N]


def linear_weight_grad(grad: Array, x: Array) -> Array:
    """Return dweight = grad.T @ x: [O, N] @ [N, I]."""
    if not grad.shape[0]:
        return np.zeros((grad.shape[1], x.shape[1]), grad.dtype)
    dweight = np.empty((grad.shape[1], x.shape[1]), grad.dtype)
    _weight_grad(plain(grad), plain(x), _width(x.shape[1]), dweight)
    return dweight
