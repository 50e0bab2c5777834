"""Reductions over some or all axes."""

from __future__ import annotations

from tinyalex.autograd import Function
from tinyalex.backends import array_module
from tinyalex.backends.numerics import mean, total
from tinyalex.backends.types import Array

Axes = tuple[int, ...]


def _keepdims_shape(shape: tuple[int, ...], axes: Axes) -> tuple[int, ...]:
    return tuple(1 if i in axes else n for i, n in enumerate(shape))


class Sum(Function):
    """Sum over ``axes``; the gradient is the same for every term. Integers, bools sum as int64."""

    def forward(self, x: Array, *, axes: Axes, keepdim: bool) -> Array:
        self.input_shape, self.axes = x.shape, axes
        if x.dtype.kind != "f":
            return x.sum(axis=axes, keepdims=keepdim, dtype="int64")
        return total(x, axes, keepdim)

    def backward(self, grad: Array) -> Array:
        grad = grad.reshape(_keepdims_shape(self.input_shape, self.axes))
        return array_module(grad).broadcast_to(grad, self.input_shape)


class Mean(Sum):
    """Arithmetic mean over ``axes``."""

    def forward(self, x: Array, *, axes: Axes, keepdim: bool) -> Array:
        self.input_shape, self.axes = x.shape, axes
        return mean(x, axes, keepdim)

    def backward(self, grad: Array) -> Array:
        count = 1
        for axis in self.axes:
            count *= self.input_shape[axis]
        return super().backward(grad / count)


class Max(Function):
    """Maximum over ``axes``; equal maxima share the gradient (torch's ``amax``)."""

    def forward(self, x: Array, *, axes: Axes, keepdim: bool) -> Array:
        if any(x.shape[axis] == 0 for axis in axes):
            raise ValueError(f"max over an empty axis: shape {x.shape}, axes {axes}")
        y = x.max(axis=axes, keepdims=True)
        holds = x == y
        self.save(holds, holds.sum(axis=axes, keepdims=True))
        return y if keepdim else y.squeeze(axes)

    def backward(self, grad: Array) -> Array:
        holds, count = self.saved
        return holds * (grad.reshape(count.shape) / count)
