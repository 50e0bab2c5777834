"""ReLU, dropout and the finiteness check, for any memory layout."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import prange

from tinyalex.backends import memory
from tinyalex.backends.cpu.runtime import num_threads, parallel_kernel, plain
from tinyalex.backends.layout import as_nchw, channels_last
from tinyalex.backends.reference import shifted
from tinyalex.backends.types import Array

BLOCK = 1 << 16  # elements that `all_finite` adds up in one go


def _as_lines(first: Array, *others: Array) -> tuple[list[Array], Callable[[Array], Array]]:
    """Return 1-D views in the first array's memory order, and the inverse.

    Arrays that lie otherwise are copied. The result of a kernel lies as the first array does.
    """
    arrays = (first, *others)
    if first.ndim == 4 and not first.flags.c_contiguous:
        N, C, H, W = first.shape
        lines = [plain(channels_last(a)).reshape(-1) for a in arrays]
        return lines, lambda line: as_nchw(line.reshape(N, H, W, C))
    return [plain(a).reshape(-1) for a in arrays], lambda line: line.reshape(first.shape)


@parallel_kernel
def _relu(x, y):
    for i in prange(x.size):
        y[i] = x.dtype.type(0) if x[i] <= 0 else x[i]  # NaN <= 0 is false, so NaN stays


@parallel_kernel
def _relu_input_grad(grad, y, dx):
    for i in prange(dx.size):
        dx[i] = dx.dtype.type(0) if y[i] <= 0 else grad[i]


def relu(x: Array) -> Array:
    """Return max(x, 0); NaN stays NaN."""
    (line,), restore = _as_lines(x)
    y = memory.empty_like(line)
    _relu(line, y)
    return restore(y)


def relu_input_grad(grad: Array, y: Array) -> Array:
    """Return dx = dy where y > 0, else 0; dx = dy where y is NaN.

    y > 0 exactly where x > 0.
    """
    (output, gradient), restore = _as_lines(y, grad)
    dx = memory.empty_like(gradient)
    _relu_input_grad(gradient, output, dx)
    return restore(dx)


@parallel_kernel
def _dropout(x, key, threshold, scale, y):
    for i in prange(x.size):
        # Number i + 1 of the SplitMix64 sequence that begins at ``key``, modulo 2 ** 64.
        z = key + np.uint64(i + 1) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
        keep = (z >> np.uint64(40)) >= threshold
        y[i] = x[i] * (scale if keep else x.dtype.type(0))


def dropout(x: Array, p: float, key: int, first: int = 0) -> Array:
    """Zero each element with probability ``p``, scale the others by 1 / (1 - p).

    ``first`` is the position of the first element, where ``x`` is a part of something longer.
    Zeroing is a product with 0: infinity and NaN become NaN, as in torch.

    A hash of (key, position) decides, so the mask is never stored: the gradient is the same
    function of the gradient, with the same key. `reference.random_bits` names the source.
    """
    if p == 1:
        return x * x.dtype.type(0)
    # The position counts in the order of the shape, so that layouts do not change the draw.
    line = plain(x).reshape(-1)
    y = memory.empty_like(line)
    key = shifted(key, first)
    _dropout(line, np.uint64(key), np.uint64(int(p * 2**24 + 0.5)), x.dtype.type(1 / (1 - p)), y)
    return y.reshape(x.shape)


@parallel_kernel
def _sums_of_squares(line, sums):
    for block in prange(sums.size):
        # Unsigned indices: signed ones could mean "from the end", and the loop would not vectorise.
        first = np.uintp(block) * np.uintp(BLOCK)
        total = line.dtype.type(0)
        for i in range(first, min(np.uintp(line.size), first + np.uintp(BLOCK))):
            total += line[i] * line[i]
        sums[block] = total


def all_finite(x: Array) -> bool:
    """Return whether no element is NaN or infinite.

    A sum of squares is finite only if all its terms are, and takes no memory. It may also overflow;
    then every element is looked at.
    """
    line = plain(x.ravel(order="K"))
    sums = np.zeros(-(-line.size // BLOCK), x.dtype)
    num_threads()
    _sums_of_squares(line, sums)
    return bool(np.isfinite(sums).all()) or bool(np.isfinite(line).all())
