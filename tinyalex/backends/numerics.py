"""Sums without lost digits in any memory layout, and without warnings.

NumPy adds a long axis row by row where its rows lie apart: float32 then loses a digit with every
ten thousand rows, and all that comes after 2 ** 24. Sums of sums lose next to nothing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from tinyalex.backends import array_module
from tinyalex.backends.devices import on_gpu
from tinyalex.backends.types import Array

PARTS = 16  # of a long axis, which are added one to the next
# Kernels add the terms of inner products one to the next. Axes longer than LONG are cut into
# pieces; those of usual layers are not, since cutting costs copies and additions.
LONG, PIECE = 1 << 14, 1 << 9
MAX_ROWS = 1 << 10  # of a linear layer's batch, whose gradients one product sums

# A decorator. In what it decorates, infinity and NaN come as they do in torch: without warnings and
# errors, whatever the caller has set with `np.seterr`.
quiet = np.errstate(all="ignore")
as_array = quiet(np.asarray)  # what is too large for the dtype becomes infinite


def total(x: Array, axes: tuple[int, ...], keepdims: bool = False, divisor: Any = 1) -> Array:
    """Return the sum of floating-point ``x`` over ``axes``, divided by ``divisor``.

    The error is a few units in the last place, of the sum of magnitudes, at any length. The result
    is finite where the exact one is, even if a part of the sum, or all of it undivided, is not.
    """
    if x.ndim == 0:  # a number has no axes, though it may be summed over its 0th, as in torch
        axes = ()
    count = math.prod(x.shape[axis] for axis in axes)
    y = quotient(lambda x: _sum(x, axes), x, count, divisor)
    return y if keepdims else y.squeeze(axes)


def quotient(add: Callable[[Array], Array], x: Array, count: int, divisor: Any) -> Array:
    """Return ``add(x) / divisor``, where ``add`` makes sums of ``count`` elements.

    What overflows is summed once more, of numbers smaller by a power of two.
    """
    y = add(x) / divisor
    # On a GPU a look at the result would wait for it.
    if on_gpu(x) or not np.isfinite(y).all():
        xp = array_module(x)
        small = 0.5 ** count.bit_length()
        y = xp.where(xp.isfinite(y), y, add(x * small) / (small * divisor))
    return y


def sum_of(terms: Iterable[Array]) -> Array:
    """Return the sum of arrays, added in pairs, then pairs of pairs."""
    sums: list[Array] = []
    for count, term in enumerate(terms, 1):
        while count % 2 == 0:
            count //= 2
            term = sums.pop() + term
        sums.append(term)
    return functools.reduce(lambda later, earlier: earlier + later, reversed(sums))


def pieces(length: int, longest: int = LONG) -> Iterator[slice]:
    """Yield the pieces of an axis whose inner products `sum_of` adds.

    It is one piece up to the length ``longest``.
    """
    size = PIECE if length > longest else max(1, length)
    for first in range(0, max(1, length), size):
        yield slice(first, min(length, first + size))


def by_rows(kernel: Callable[[Array, Array], Array], grad: Array, x: Array) -> Array:
    """Return ``kernel(grad, x)``, a sum over rows, in pieces of a long batch."""
    return sum_of(kernel(grad[part], x[part]) for part in pieces(len(grad), MAX_ROWS))


def product(a: Array, b: Array) -> Array:
    """Return ``a @ b``, by BLAS in every memory layout.

    What BLAS cannot read, NumPy multiplies in plain loops, whose sums are as bad as they are slow.
    """
    a, b = _for_blas(a), _for_blas(b)
    return sum_of(
        a[..., part] @ (b[part] if b.ndim == 1 else b[..., part, :]) for part in pieces(a.shape[-1])
    )


def _for_blas(x: Array) -> Array:
    known = on_gpu(x) or x.flags.c_contiguous or x.swapaxes(-1, x.ndim // -2).flags.c_contiguous
    return x if known else np.ascontiguousarray(x)


def mean(x: Array, axes: tuple[int, ...], keepdims: bool = False) -> Array:
    """Return the mean over ``axes``, as exact as `total`; NaN for none."""
    return total(x, axes, keepdims, math.prod(x.shape[axis] for axis in axes))


def _sum(x: Array, axes: tuple[int, ...]) -> Array:
    """Return the sum over ``axes``, which stay with length 1."""
    inner = () if on_gpu(x) else _dense(x, axes)
    for axis in sorted(set(axes) - set(inner), key=lambda axis: -abs(x.strides[axis])):
        x = _fold(x, axis)
    return x.sum(axis=inner, keepdims=True) if inner else x


def _dense(x: Array, axes: tuple[int, ...]) -> tuple[int, ...]:
    """Return those of ``axes`` that are contiguous: NumPy adds them in pairs."""
    inner: tuple[int, ...] = ()
    run = 0
    for stride, axis in sorted((abs(s), i) for i, s in enumerate(x.strides) if x.shape[i] != 1):
        # Where elements were repeated by broadcasting, NumPy's order is another.
        if axis not in axes or stride == 0 or (inner and stride != run):
            break
        inner, run = (*inner, axis), stride * x.shape[axis]
    return inner


def _fold(x: Array, axis: int) -> Array:
    """Return the sum along ``axis``, adding equal parts again and again."""
    x = x.swapaxes(0, axis)
    rest: Any = 0
    while len(x) > 2 * PARTS:
        rows = len(x) // PARTS
        if len(x) % PARTS:
            rest = rest + x[PARTS * rows :].sum(axis=0, keepdims=True)
        x = x[: PARTS * rows].reshape(PARTS, rows, *x.shape[1:]).sum(axis=0)
    return (x.sum(axis=0, keepdims=True) + rest).swapaxes(0, axis)
