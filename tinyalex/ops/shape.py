"""Moving elements about: reshape, permute, index, concatenate, pad."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinyalex.autograd import Function
from tinyalex.backends import array_module
from tinyalex.backends.bfloat16 import as_float32
from tinyalex.backends.devices import device_of, move, on_gpu
from tinyalex.backends.types import Array
from tinyalex.ops.arguments import is_integer
from tinyalex.ops.arithmetic import unbroadcast
from tinyalex.ops.promotion import promote


class Reshape(Function):
    """The same elements, in C order, in another shape."""

    takes_bfloat16 = True

    def forward(self, x: Array, *, shape: tuple[int, ...]) -> Array:
        self.input_shape = x.shape
        return x.reshape(shape)

    def backward(self, grad: Array) -> Array:
        return grad.reshape(self.input_shape)


class Permute(Function):
    """The axes in another order; the gradient takes the inverse order."""

    takes_bfloat16 = True

    def forward(self, x: Array, *, dims: tuple[int, ...]) -> Array:
        self.inverse = tuple(sorted(range(len(dims)), key=dims.__getitem__))
        return x.transpose(dims)

    def backward(self, grad: Array) -> Array:
        return grad.transpose(self.inverse)


def _own(index: Any) -> Any:
    """Return ``index`` with copies of the caller's arrays and lists."""
    if isinstance(index, (tuple, list)):
        return type(index)(map(_own, index))
    return index.copy() if isinstance(index, np.ndarray) or on_gpu(index) else index


def _takes_copies(item: Any) -> bool:
    return isinstance(item, bool) or hasattr(item, "ndim")


def in_steps(index: Any) -> tuple[Any, Any]:
    """Return two indices: ``x[index]`` is ``x[first][second]``, and the first makes a view.

    Integers come before arrays, as in torch: ``x[0, :, [1, 2]]`` is ``x[0][:, [1, 2]]``. NumPy
    would read the integer as one more array, and move the axes of arrays that lie apart in front.
    """
    items = index if isinstance(index, tuple) else ()
    if not any(map(is_integer, items)) or not any(map(_takes_copies, items)):
        return ..., index
    first: list[Any] = []
    second: list[Any] = []
    for item in items:
        if is_integer(item):
            first.append(item)
        elif _takes_copies(item):
            is_mask = isinstance(item, bool) or item.dtype.kind == "b"
            first += [slice(None)] * (getattr(item, "ndim", 0) if is_mask else 1)
            second.append(item)
        else:  # a slice, None or ...
            first.append(item)
            second.append(item if item is ... else slice(None))
    if ... not in first:
        first.append(...)  # so that one element is a view, too
    return tuple(first), tuple(second)


class Index(Function):
    """``x[index]`` as in torch; elements taken twice add their gradients."""

    takes_bfloat16 = True

    def forward(self, x: Array, *, index: Any) -> Array:
        self.input_shape = x.shape
        self.first, self.second = first, second = in_steps(_own(index))
        items = index if isinstance(index, tuple) else (index,)
        self.takes_view = not any(map(_takes_copies, items))
        try:
            y = x[first][second]
        except OverflowError as error:  # an integer of more than 64 bits
            raise IndexError(f"index out of range for shape {x.shape}: {error}") from None
        if isinstance(y, np.generic):  # one element is to be a view, too
            y = x[first][(*second, ...) if isinstance(second, tuple) else (second, ...)]
        return y

    def backward(self, grad: Array) -> Array:
        xp = array_module(grad)
        if self.takes_view:  # of each element once
            dx = xp.zeros(self.input_shape, grad.dtype)
            dx[self.first][self.second] = grad
            return dx
        # One element may be taken any number of times: float32 would not hold so long a sum.
        out = xp.zeros(self.input_shape, "float64")
        xp.add.at(out[self.first], self.second, as_float32(grad))
        return out.astype(grad.dtype, copy=False)


class Put(Function):
    """A copy of x with ``value``, broadcast, in the place of ``x[index]``."""

    def forward(self, x: Array, value: Array, *, index: Any) -> Array:
        self.value_shape = value.shape
        self.first, self.second = first, second = in_steps(_own(index))
        y = x.copy()
        y[first][second] = value
        return y

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        need_x, need_value = self.needs_input_grad
        dx = dvalue = None
        if need_x:
            dx = grad.copy()
            dx[self.first][self.second] = 0
        if need_value:
            dvalue = array_module(grad).asarray(grad[self.first][self.second])
            extra = max(0, len(self.value_shape) - dvalue.ndim)  # axes of length 1 in front
            dvalue = unbroadcast(dvalue, self.value_shape[extra:]).reshape(self.value_shape)
        return dx, dvalue


class Cast(Function):
    """The same values in another dtype; `backward` casts the gradient back."""

    takes_bfloat16 = True

    def forward(self, x: Array, *, dtype: Any) -> Array:
        return x.astype(dtype)

    def backward(self, grad: Array) -> Array:
        return grad


class Move(Function):
    """The same values on another device; `backward` moves the gradient back."""

    def forward(self, x: Array, *, device: str) -> Array:
        self.source = device_of(x)
        return move(x, device)

    def backward(self, grad: Array) -> Array:
        return move(grad, self.source)


class Cat(Function):
    """Tensors joined along one axis, in one dtype."""

    def forward(self, *arrays: Array, axis: int) -> Array:
        self.axis = axis
        self.sizes = [a.shape[axis] for a in arrays]
        return array_module(arrays[0]).concatenate(promote(*arrays), axis=axis)

    def backward(self, grad: Array) -> tuple[Array, ...]:
        ends = [sum(self.sizes[: i + 1]) for i in range(len(self.sizes) - 1)]
        return tuple(array_module(grad).split(grad, ends, axis=self.axis))


class Pad(Function):
    """A constant border around the tensor; ``widths``: (before, after) per axis.

    Negative widths cut off instead, as in torch.
    """

    def forward(self, x: Array, *, widths: tuple[tuple[int, int], ...], value: float) -> Array:
        xp = array_module(x)
        kept = [
            max(0, n + min(b, 0) + min(a, 0)) for n, (b, a) in zip(x.shape, widths, strict=True)
        ]
        starts = [max(0, -b) for b, _ in widths]
        cut = tuple(slice(start, start + size) for start, size in zip(starts, kept, strict=True))
        grow = [(max(0, b), max(0, a)) for b, a in widths]
        self.input_shape, self.cut = x.shape, cut
        self.inner = tuple(slice(b, b + size) for (b, _), size in zip(grow, kept, strict=True))
        return xp.pad(x[cut], grow, constant_values=value)

    def backward(self, grad: Array) -> Array:
        dx = array_module(grad).zeros(self.input_shape, grad.dtype)
        dx[self.cut] = grad[self.inner]
        return dx
