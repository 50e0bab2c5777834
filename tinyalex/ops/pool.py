"""Pooling: the maximum or the mean of each window."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from tinyalex import backends
from tinyalex.autograd import Function
from tinyalex.backends.bfloat16 import as_float32
from tinyalex.backends.geometry import Pair, PoolOptions, pool_output_size, window_slice
from tinyalex.backends.numerics import mean, quotient, sum_of
from tinyalex.backends.types import Array
from tinyalex.ops import arguments


def output_size(op: str, x: Array, options: PoolOptions, ceil_mode: bool) -> Pair:
    """Return the size of the pooled images; ValueError if no window fits."""
    arguments.images(x, op)
    arguments.half_at_most(options.padding, options.kernel_size)
    size = pool_output_size(x.shape[2:], options, ceil_mode)
    arguments.positive_output(op, size, x.shape, options.kernel_size, options)
    return size


class MaxPool2d(Function):
    """The maximum of each window; its gradient goes to that element.

    The paper pools 3x3 windows two pixels apart (section 3.4), so that neighbours overlap and an
    element that wins several windows collects all of their gradients. Kept for backward: which tap
    of the window won, one small integer an output.
    """

    takes_bfloat16 = True

    def forward(self, x: Array, *, options: PoolOptions, ceil_mode: bool) -> Array:
        size = output_size("max_pool2d", x, options, ceil_mode)
        self.input_shape, self.options = x.shape, options
        y, taps = backends.of(x).max_pool2d(x, options, size)
        self.save(taps)
        return y

    def backward(self, grad: Array) -> Array:
        (taps,) = self.saved
        kernel = backends.of(grad).max_pool2d_input_grad
        return kernel(grad, taps, self.input_shape, self.options)


class AvgPool2d(Function):
    """The sum of each window divided by the number of its elements.

    That number counts the padding unless ``count_include_pad`` is False, never counts what a window
    of ceil_mode covers beyond the padding, and is ``divisor_override`` where that is given.
    """

    def forward(
        self,
        x: Array,
        *,
        options: PoolOptions,
        ceil_mode: bool,
        count_include_pad: bool,
        divisor_override: int | None,
    ) -> Array:
        self.size = output_size("avg_pool2d", x, options, ceil_mode)
        self.input_shape, self.options = x.shape, options
        xp = backends.array_module(x)
        self.divisor = divisor_override or self._counts(xp, x.dtype, count_include_pad)
        padded = self._padded(xp, x.dtype)
        padded[self._inner()] = x
        return quotient(self._sums_of_windows, padded, math.prod(options.kernel_size), self.divisor)

    def _sums_of_windows(self, padded: Array) -> Array:
        return sum_of(padded[window] for window in self._taps())

    def backward(self, grad: Array) -> Array:
        grad = grad / self.divisor
        padded = self._padded(backends.array_module(grad), grad.dtype)
        for window in self._taps():
            padded[window] += grad
        return padded[self._inner()]

    def _padded(self, xp: Any, dtype: Any) -> Array:
        """Return zeros for the images, their padding and the last windows' overhang."""
        ((R, S), stride, padding, _), size = self.options, self.size
        height = max(self.input_shape[2] + 2 * padding[0], (size[0] - 1) * stride[0] + R)
        width = max(self.input_shape[3] + 2 * padding[1], (size[1] - 1) * stride[1] + S)
        return xp.zeros((*self.input_shape[:2], height, width), dtype)

    def _inner(self) -> tuple[Any, ...]:
        (top, left), (H, W) = self.options.padding, self.input_shape[2:]
        return ..., slice(top, top + H), slice(left, left + W)

    def _taps(self) -> Iterator[tuple[Any, ...]]:
        """Yield, for each tap, its elements at all output positions."""
        ((R, S), stride, _, _), (Ho, Wo) = self.options, self.size
        for r in range(R):
            for s in range(S):
                yield ..., window_slice(r, Ho, stride[0]), window_slice(s, Wo, stride[1])

    def _counts(self, xp: Any, dtype: Any, count_include_pad: bool) -> Array:
        """Return how many elements each window divides by, as an array [Ho, Wo]."""
        border = self.options.padding if count_include_pad else (0, 0)
        spans = []
        for i in range(2):
            kernel, stride, padding, _ = (option[i] for option in self.options)
            first, last = padding - border[i], padding + self.input_shape[2 + i] + border[i]
            starts = range(0, self.size[i] * stride, stride)
            spans.append([min(start + kernel, last) - max(start, first) for start in starts])
        rows, columns = (xp.asarray(span, dtype) for span in spans)
        return rows[:, None] * columns[None, :]


class AdaptiveAvgPool2d(Function):
    """The mean over each cell of an ``output_size`` grid over the images.

    Cell i of o covers rows floor(i H / o) up to ceil((i + 1) H / o); cells overlap where o does not
    divide H.
    """

    takes_bfloat16 = True

    def forward(self, x: Array, *, output_size: Pair) -> Array:
        arguments.images(x, "adaptive_avg_pool2d")
        if 0 in x.shape[2:]:
            raise ValueError(f"adaptive_avg_pool2d expects at least one pixel, got shape {x.shape}")
        self.input_shape, self.output_size = x.shape, output_size
        if x.shape[2:] == output_size:  # every cell is one pixel
            return x
        x = as_float32(x)
        y = backends.array_module(x).empty((*x.shape[:2], *output_size), x.dtype)
        for i, j, cell, _ in self._cells():
            y[:, :, i, j] = mean(x[cell], (2, 3))
        return y

    def backward(self, grad: Array) -> Array:
        if self.input_shape[2:] == self.output_size:
            return grad
        dx = backends.array_module(grad).zeros(self.input_shape, grad.dtype)
        for i, j, cell, area in self._cells():
            dx[cell] += grad[:, :, i, j, None, None] / area
        return dx

    def _cells(self) -> Iterator[tuple[int, int, tuple[Any, ...], int]]:
        (H, W), (Ho, Wo) = self.input_shape[2:], self.output_size
        for i in range(Ho):
            top, bottom = i * H // Ho, -(-(i + 1) * H // Ho)
            for j in range(Wo):
                left, right = j * W // Wo, -(-(j + 1) * W // Wo)
                cell = (..., slice(top, bottom), slice(left, right))
                yield i, j, cell, (bottom - top) * (right - left)
