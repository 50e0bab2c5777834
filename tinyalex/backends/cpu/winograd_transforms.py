"""The transforms of Winograd's convolution: a 1-D convolution as a product of polynomials.

With n = m + r - 1 points, m outputs of a convolution with r taps need n products instead of m * r:

    y = A^T ((G w) * (B^T d))        d: n inputs, w: r taps, y: m outputs, * element by element

Two polynomials are evaluated at the points, multiplied there, and interpolated (Toom and Cook);
transposing that algorithm gives a convolution. In 2-D every transform is applied to rows and then
to columns: y = A^T ((G w G^T) * (B^T d B)) A, with n * n products for m * m * r * r.
Lavin and Gray: Fast Algorithms for Convolutional Neural Networks, CVPR 2016.

The points are 0, infinity and pairs +a, -a. In a pair everything even is equal and everything odd
opposite, which halves the work. How large the rounding errors become depends on the points, as
Barabasz, Anderson, Soodhalter and Gregg analysed (Error Analysis and Improving the Accuracy of
Winograd Convolution for Deep Neural Networks, 2020): for 3 taps and normal values, +-5/8 and +-3/2
leave a sixth of what the usual +-1 and +-2 do. All constants but those of the weights are exact in
float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tinyalex.backends.cpu.runtime import kernel
from tinyalex.backends.types import Array

TILE = 4  # m: outputs that are computed together, along each axis
PAIRS = {3: (5 / 8, 3 / 2), 5: (1 / 2, 1, 2)}  # the points besides 0 and infinity, for r taps


class Matrices(NamedTuple):
    """``input`` = B^T [n, n], ``output`` = A^T [m, n], ``weight`` = G [n, r], in float64."""

    input: Array
    output: Array
    weight: Array


def matrices(taps: int) -> Matrices:
    """Return the matrices for ``taps`` taps; the points' order is 0, a, -a, b, -b, ..., infinity.

    Row i of B^T has the coefficients of the product of (x - q) over all other points q, row i of G
    the powers of point p over that product's value at p, column i of A^T the powers of p. Infinity
    stands for the highest power.
    """
    points = [0.0] + [sign * a for a in PAIRS[taps] for sign in (1, -1)]
    n = len(points) + 1
    result = Matrices(np.zeros((n, n)), np.zeros((TILE, n)), np.zeros((n, taps)))
    for i, p in enumerate(points):
        others = points[:i] + points[i + 1 :]
        result.input[i, :-1] = np.poly(others)[::-1]
        result.output[:, i] = p ** np.arange(TILE)
        result.weight[i] = p ** np.arange(taps) / np.prod([p - q for q in others])
    result.input[-1] = np.poly(points)[::-1]
    result.output[-1, -1] = result.weight[-1, -1] = 1
    return result


def _constants(matrix: Array) -> tuple[Any, ...]:
    """Return the numbers as nested tuples: constants, which the compiler unrolls loops over."""
    if matrix.ndim == 1:
        return tuple(np.float32(value) for value in matrix)
    return tuple(_constants(row) for row in matrix)


# The three kinds of functions below multiply a matrix with the n (or m) rows of a contiguous 2-D
# array, for all columns at once: that is the one form of loop for which Numba writes vector code.


def _input_transform(taps: int) -> Callable[[Array, Array], None]:
    matrix = matrices(taps).input
    zero, infinity = _constants(matrix[0, ::2]), _constants(matrix[-1, 1::2])
    even, odd = _constants(matrix[1:-1:2, 2::2]), _constants(matrix[1:-1:2, 1:-1:2])
    pairs = len(even)

    @kernel
    def transform(d, v):
        for c in range(d.shape[1]):
            first = np.float32(0)
            last = np.float32(0)
            for j in range(pairs + 1):
                first += zero[j] * d[2 * j, c]
                last += infinity[j] * d[2 * j + 1, c]
            v[0, c] = first
            v[2 * pairs + 1, c] = last
            for pair in range(pairs):
                same = np.float32(0)
                opposite = np.float32(0)
                for j in range(pairs):
                    same += even[pair][j] * d[2 * j + 2, c]
                    opposite += odd[pair][j] * d[2 * j + 1, c]
                v[2 * pair + 1, c] = same + opposite
                v[2 * pair + 2, c] = same - opposite

    return transform


def _output_transform(taps: int) -> Callable[[Array, Array], None]:
    powers = _constants(matrices(taps).output.T[1:-1:2])
    pairs = len(powers)

    @kernel
    def transform(m, y):
        for c in range(m.shape[1]):
            y0 = m[0, c]
            y1 = np.float32(0)
            y2 = np.float32(0)
            y3 = m[2 * pairs + 1, c]
            for pair in range(pairs):
                same = m[2 * pair + 1, c] + m[2 * pair + 2, c]
                opposite = m[2 * pair + 1, c] - m[2 * pair + 2, c]
                y0 += same
                y1 += powers[pair][1] * opposite
                y2 += powers[pair][2] * same
                y3 += powers[pair][3] * opposite
            y[0, c] = y0
            y[1, c] = y1
            y[2, c] = y2
            y[3, c] = y3

    return transform


def _gradient_transform(taps: int) -> Callable[[Array, Array], None]:
    powers = _constants(matrices(taps).output.T[1:-1:2])
    pairs = len(powers)

    @kernel
    def transform(dy, z):
        for c in range(dy.shape[1]):
            y0 = dy[0, c]
            y1 = dy[1, c]
            y2 = dy[2, c]
            y3 = dy[3, c]
            z[0, c] = y0
            z[2 * pairs + 1, c] = y3
            for pair in range(pairs):
                same = y0 + powers[pair][2] * y2
                opposite = powers[pair][1] * y1 + powers[pair][3] * y3
                z[2 * pair + 1, c] = same + opposite
                z[2 * pair + 2, c] = same - opposite

    return transform


def _weight_transform(taps: int) -> Callable[[Array, Array], None]:
    matrix = matrices(taps).weight
    first = np.float32(matrix[0, 0])
    rows = _constants(matrix[1:-1:2])
    pairs = len(rows)

    @kernel
    def transform(w, u):
        for c in range(w.shape[1]):
            u[0, c] = first * w[0, c]
            u[2 * pairs + 1, c] = w[taps - 1, c]
            for pair in range(pairs):
                same = np.float32(0)
                opposite = np.float32(0)
                for j in range(0, taps, 2):
                    same += rows[pair][j] * w[j, c]
                for j in range(1, taps, 2):
                    opposite += rows[pair][j] * w[j, c]
                u[2 * pair + 1, c] = same + opposite
                u[2 * pair + 2, c] = same - opposite

    return transform


def _weight_gradient_transform(taps: int) -> Callable[[Array, Array], None]:
    matrix = matrices(taps).weight
    first = np.float32(matrix[0, 0])
    rows = _constants(matrix[1:-1:2])
    pairs = len(rows)

    @kernel
    def transform(u, w):
        for c in range(w.shape[1]):
            w[0, c] = first * u[0, c]
            for j in range(1, taps):
                w[j, c] = 0
            w[taps - 1, c] += u[2 * pairs + 1, c]
            for pair in range(pairs):
                same = u[2 * pair + 1, c] + u[2 * pair + 2, c]
                opposite = u[2 * pair + 1, c] - u[2 * pair + 2, c]
                for j in range(0, taps, 2):
                    w[j, c] += rows[pair][j] * same
                for j in range(1, taps, 2):
                    w[j, c] += rows[pair][j] * opposite

    return transform


_input3, _input5 = _input_transform(3), _input_transform(5)
_output3, _output5 = _output_transform(3), _output_transform(5)
_gradient3, _gradient5 = _gradient_transform(3), _gradient_transform(5)
_weight3, _weight5 = _weight_transform(3), _weight_transform(5)
_weight_gradient3, _weight_gradient5 = _weight_gradient_transform(3), _weight_gradient_transform(5)


@kernel
def input_transform(d, v):
    """``v = B^T d`` for contiguous [n, columns]; n tells how many taps."""
    if d.shape[0] == 6:
        _input3(d, v)
    else:
        _input5(d, v)


@kernel
def output_transform(m, y):
    """``y = A^T m``: contiguous [n, columns] to [4, columns]."""
    if m.shape[0] == 6:
        _output3(m, y)
    else:
        _output5(m, y)


@kernel
def gradient_transform(dy, z):
    """``z = A dy``, the transpose of `output_transform`: [4, columns] to [n, columns]."""
    if z.shape[0] == 6:
        _gradient3(dy, z)
    else:
        _gradient5(dy, z)


@kernel
def weight_transform(w, u):
    """``u = G w``: contiguous [taps, columns] to [n, columns]."""
    if u.shape[0] == 6:
        _weight3(w, u)
    else:
        _weight5(w, u)


@kernel
def weight_gradient_transform(u, w):
    """``w = G^T u``, the transpose of `weight_transform`: [n, columns] to [taps, columns]."""
    if u.shape[0] == 6:
        _weight_gradient3(u, w)
    else:
        _weight_gradient5(u, w)
