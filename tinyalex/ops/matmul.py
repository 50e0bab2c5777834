"""Matrix products: the general ``a @ b``, and the linear layer's."""

from __future__ import annotations

from tinyalex import backends
from tinyalex.autograd import Function
from tinyalex.backends.numerics import by_rows, pieces, product, sum_of
from tinyalex.backends.shards import current
from tinyalex.backends.types import Array
from tinyalex.ops.arguments import floating
from tinyalex.ops.arithmetic import unbroadcast


class MatMul(Function):
    """``a @ b`` of matrices in the last two axes; the others broadcast.

    A 1-D factor counts as a row (left) or a column (right), and that axis is dropped again.
    ``da = grad @ b.T``, ``db = a.T @ grad``.
    """

    def forward(self, a: Array, b: Array) -> Array:
        floating("matmul", a, b)
        if a.ndim == 0 or b.ndim == 0 or a.shape[-1] != b.shape[-2 if b.ndim > 1 else 0]:
            raise ValueError(
                f"matmul: the last axis of the left factor must equal the second last of the right "
                f"one, got shapes {a.shape} and {b.shape}"
            )
        need_a, need_b = self.needs_input_grad
        self.shapes = a.shape, b.shape
        self.save(a if need_b else None, b if need_a else None)
        return backends.array_module(a).asarray(product(a, b))

    def backward(self, grad: Array) -> tuple[Array | None, Array | None]:
        a, b = self.saved
        a_shape, b_shape = self.shapes
        rows = a_shape if len(a_shape) > 1 else (1, *a_shape)
        columns = b_shape if len(b_shape) > 1 else (*b_shape, 1)
        if len(b_shape) == 1:
            grad = grad[..., None]
        if len(a_shape) == 1:
            grad = grad[..., None, :]
        da = db = None
        if self.needs_input_grad[0]:
            right = b.reshape(columns).swapaxes(-1, -2)
            da = unbroadcast(product(grad, right), rows).reshape(a_shape)
        if self.needs_input_grad[1]:
            left = a.reshape(rows).swapaxes(-1, -2)
            db = unbroadcast(product(left, grad), columns).reshape(b_shape)
        return da, db


class Linear(Function):
    """``x @ weight.T + bias`` for rows x [N, I], weight [O, I], bias [O]."""

    takes_bfloat16 = True

    def forward(self, x: Array, weight: Array, bias: Array | None) -> Array:
        x, weight, bias = backends.operands(x, weight, bias)
        need_x, need_weight, _ = self.needs_input_grad
        self.save(x if need_weight else None, weight if need_x else None)
        linear = backends.of(x).linear
        return sum_of(
            linear(x[:, part], weight[:, part], None if part.start else bias)
            for part in pieces(x.shape[1])
        )

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        return self.grads(grad, *self.saved)

    def grads(self, grad: Array, x: Array, weight: Array) -> tuple[Array | None, ...]:
        """Return (dx, dweight, dbias), each only if needed."""
        kernels = backends.of(grad)
        need_x, need_weight, need_bias = self.needs_input_grad
        dx = dweight = None
        if need_x:
            dx = sum_of(
                kernels.linear_input_grad(grad[:, part], weight[part])
                for part in pieces(grad.shape[1])
            )
        if need_weight:
            sum_rows = kernels.linear_weight_grad  # which sees to the rows of shards itself
            dweight = by_rows(sum_rows, grad, x) if current() is None else sum_rows(grad, x)
        dbias = kernels.conv2d_bias_grad(grad[:, :, None, None]) if need_bias else None
        return dx, dweight, dbias


def check_linear(x: Array, weight: Array, bias: Array | None) -> None:
    """Raise ValueError or TypeError unless a linear layer's shapes and dtypes fit."""
    floating("linear", x, weight, bias)
    if weight.ndim != 2 or x.ndim < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"linear expects x [..., I] and weight [O, I], got shapes {x.shape} and {weight.shape}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"linear expects a bias of shape {weight.shape[:1]}, got {bias.shape}")
