"""Reductions over some or all axes."""

from __future__ import annotations

from collections.abc import Iterable

from tinyalex.autograd import Function
from tinyalex.backends import array_module
from tinyalex.backends.bfloat16 import as_float32
from tinyalex.backends.numerics import mean, total
from tinyalex.backends.types import Array

Axes = tuple[int, ...]


def _keepdims_shape(shape: tuple[int, ...], axes: Axes) -> tuple[int, ...]:
    return tuple(1 if i in axes else n for i, n in enumerate(shape))


class Sum(Function):
    """Sum over ``axes``, as int64 for integers and bools."""

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


class Extreme(Function):
    """Maximum (``name="max"``) or minimum over ``axes``; equal ones share the gradient evenly.

    A NaN is the extreme wherever there is one. With ``nan_shares`` NaNs share as equal numbers do
    (torch's ``max()``), else the gradient is NaN (torch's ``amax``).
    """

    def forward(self, x: Array, *, name: str, axes: Axes, keepdim: bool, nan_shares: bool) -> Array:
        _refuse_empty(name, x, axes)
        y = getattr(x, name)(axis=axes, keepdims=True)
        if any(self.needs_input_grad):
            holds = (x == y) | (x != x) & (y != y) if nan_shares else x == y
            self.save(holds, holds.sum(axis=axes, keepdims=True))
        return y if keepdim else y.squeeze(axes)

    def backward(self, grad: Array) -> Array:
        holds, count = self.saved
        return holds * (grad.reshape(count.shape) / count)


class Take(Function):
    """The element at ``index`` along ``axis``; all of the gradient goes there."""

    def forward(self, x: Array, *, index: Array, axis: int) -> Array:
        self.input_shape, self.axis = x.shape, axis
        self.save(index.copy())  # it is the caller's to change
        return array_module(x).take_along_axis(x, index, axis)

    def backward(self, grad: Array) -> Array:
        xp = array_module(grad)
        out = xp.zeros(self.input_shape, grad.dtype)
        xp.put_along_axis(out, *self.saved, grad, self.axis)
        return out


def index_of(name: str, x: Array, axis: int | None, keepdim: bool) -> Array:
    """Return the index of the first maximum (``name="argmax"``) or minimum.

    The first NaN is both.
    """
    _refuse_empty(name, x, range(x.ndim) if axis is None else (axis,))
    x = as_float32(x)
    return array_module(x).asarray(getattr(x, name)(axis=axis, keepdims=keepdim))


def _refuse_empty(name: str, x: Array, axes: Iterable[int]) -> None:
    if any(x.shape[axis] == 0 for axis in axes):
        raise ValueError(f"{name} over an empty axis: shape {x.shape}, axes {tuple(axes)}")
