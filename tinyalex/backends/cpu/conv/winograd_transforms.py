"""Winograd's transforms: a 1-D convolution as a product of polynomials.

With n = m + r - 1 points, m outputs of a convolution with r taps need n products instead of m * r:

    y = A^T ((G w) * (B^T d))        d: n inputs, w: r taps, y: m outputs, * element by element

Two polynomials are evaluated at the points, multiplied there, and interpolated (Toom and Cook);
transposing that algorithm gives a convolution. In 2-D every transform is applied to columns and to
rows, in any order: y = A^T ((G w G^T) * (B^T d B)) A, with n * n products for m * m * r * r.
Lavin and Gray: Fast Algorithms for Convolutional Neural Networks, CVPR 2016.

The points are 0, infinity and pairs +a, -a. In a pair everything even is equal and everything odd
opposite, which halves the work. How large the rounding errors become depends on the points, as
Barabasz, Anderson, Soodhalter and Gregg analysed (Error Analysis and Improving the Accuracy of
Winograd Convolution for Deep Neural Networks, 2020): for 3 taps and normal values, +-5/8 and +-3/2
leave half of what the usual +-1 and +-2 do (docs/winograd.md measures it). All constants but those
of the weights are exact in float32.

The transforms are written in vector instructions, made from the matrices: with loops over numbers,
which are short and take long to set up, much of a layer's time went there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tinyalex.backends.cpu.runtime import kernel
from tinyalex.backends.cpu.vectors import (
    FUSED,
    INTEGER,
    LANES,
    address,
    constant,
    element,
    load,
    pointer,
    store,
    stream,
)
from tinyalex.backends.types import Array

TILE = 4  # m: outputs that are computed together, along each axis
PAIRS = {3: (5 / 8, 3 / 2), 5: (1 / 2, 1, 2)}  # the points besides 0 and infinity, for r taps


class Matrices(NamedTuple):
    """``input`` = B^T [n, n], ``output`` = A^T [m, n], ``weight`` = G [n, r], in float64."""

    input: Array
    output: Array
    weight: Array


def matrices(taps: int) -> Matrices:
    """Return the matrices for ``taps`` taps; points: ``0, a, -a, b, -b, ..., infinity``.

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


def _combination(builder: Any, factors: Any, values: Any) -> Any:
    """Return the sum of ``factor * value``; nothing is done for factors of 0 and 1."""
    total = None
    for factor, value in zip(factors, values, strict=True):
        if factor == 0:
            continue
        term = value if factor == 1 else builder.fmul(constant(factor), value, flags=FUSED)
        total = term if total is None else builder.fadd(total, term, flags=FUSED)
    return total


def _rows_in_pairs(builder: Any, matrix: Array, x: list[Any]) -> list[Any]:
    """Return ``matrix @ x``; the rows of +a and -a share products.

    They differ in the signs of odd columns.
    """
    pairs = []
    for row in matrix[1:-1:2]:
        even = _combination(builder, row[::2], x[::2])
        odd = _combination(builder, row[1::2], x[1::2])
        pairs += [builder.fadd(even, odd, flags=FUSED), builder.fsub(even, odd, flags=FUSED)]
    return [_combination(builder, matrix[0], x), *pairs, _combination(builder, matrix[-1], x)]


def _columns_in_pairs(builder: Any, matrix: Array, x: list[Any]) -> list[Any]:
    """Return ``matrix @ x``; the columns of +a and -a share products.

    They differ in the signs of odd rows.
    """
    plus, minus = x[1:-1:2], x[2:-1:2]
    both = [
        [combine(p, m, flags=FUSED) for p, m in zip(plus, minus, strict=True)]
        for combine in (builder.fadd, builder.fsub)
    ]
    return [
        _combination(builder, [row[0], *row[1:-1:2], row[-1]], [x[0], *both[i % 2], x[-1]])
        for i, row in enumerate(matrix)
    ]


def _transform(
    matrix: Array, multiply: Callable[..., list[Any]], put: Callable[..., None] = store
) -> Callable[..., None]:
    """Return code for ``target = matrix @ source``, for all columns at once.

    Its arguments: the address of the source and the distance of its rows, the same of the target,
    and the number of columns, a multiple of `LANES`. ``put`` writes the result.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, source_row, target, target_row, columns = arguments
        source, target = pointer(builder, source), pointer(builder, target)
        with cgutils.for_range_slice(builder, INTEGER(0), columns, INTEGER(LANES)) as (column, _):
            x = [
                load(builder, element(builder, source, (j, source_row), (1, column)))
                for j in range(matrix.shape[1])
            ]
            for i, y in enumerate(multiply(builder, matrix, x)):
                put(builder, y, element(builder, target, (i, target_row), (1, column)))
        return context.get_dummy_value()

    @intrinsic
    def transform(typing: Any, a: Any, a_row: Any, b: Any, b_row: Any, columns: Any) -> Any:
        return types.void(*[types.intp] * 5), generate

    return transform


_3, _5 = matrices(3), matrices(5)
_input3, _input5 = (_transform(m.input, _rows_in_pairs) for m in (_3, _5))
_output3, _output5 = (_transform(m.output, _columns_in_pairs) for m in (_3, _5))
_gradient3, _gradient5 = (_transform(m.output.T, _rows_in_pairs) for m in (_3, _5))
_weight3, _weight5 = (_transform(m.weight, _rows_in_pairs) for m in (_3, _5))
_far_weight3, _far_weight5 = (_transform(m.weight, _rows_in_pairs, stream) for m in (_3, _5))
_from_weight3, _from_weight5 = (_transform(m.weight.T, _columns_in_pairs) for m in (_3, _5))

# The functions below take contiguous arrays and the offsets of the first elements: source with the
# distance of its rows, target likewise, and how many columns; n, 6 or 8, tells how many taps.


@kernel
def input_transform(n, d, at_d, row_d, v, at_v, row_v, columns):
    """``v = B^T d``: n rows to n rows."""
    if n == 6:
        _input3(address(d, at_d), row_d, address(v, at_v), row_v, columns)
    else:
        _input5(address(d, at_d), row_d, address(v, at_v), row_v, columns)


@kernel
def output_transform(n, m, at_m, row_m, y, at_y, row_y, columns):
    """``y = A^T m``: n rows to 4 rows."""
    if n == 6:
        _output3(address(m, at_m), row_m, address(y, at_y), row_y, columns)
    else:
        _output5(address(m, at_m), row_m, address(y, at_y), row_y, columns)


@kernel
def gradient_transform(n, dy, at_dy, row_dy, z, at_z, row_z, columns):
    """``z = A dy``, the transpose of `output_transform`: 4 rows to n rows."""
    if n == 6:
        _gradient3(address(dy, at_dy), row_dy, address(z, at_z), row_z, columns)
    else:
        _gradient5(address(dy, at_dy), row_dy, address(z, at_z), row_z, columns)


@kernel
def weight_transform(n, w, at_w, row_w, u, at_u, row_u, columns, far=False):
    """``u = G w``: n - 3 rows to n rows; with ``far`` past the caches (`vectors.stream`)."""
    source, target = address(w, at_w), address(u, at_u)
    if n == 6 and far:
        _far_weight3(source, row_w, target, row_u, columns)
    elif n == 6:
        _weight3(source, row_w, target, row_u, columns)
    elif far:
        _far_weight5(source, row_w, target, row_u, columns)
    else:
        _weight5(source, row_w, target, row_u, columns)


@kernel
def weight_gradient_transform(n, u, at_u, row_u, w, at_w, row_w, columns):
    """``w = G^T u``, the transpose of `weight_transform`: n rows to n - 3 rows."""
    if n == 6:
        _from_weight3(address(u, at_u), row_u, address(w, at_w), row_w, columns)
    else:
        _from_weight5(address(u, at_u), row_u, address(w, at_w), row_w, columns)
