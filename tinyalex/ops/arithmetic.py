"""Elementwise arithmetic with broadcasting."""

from __future__ import annotations

from typing import Any

from tinyalex.autograd import Function
from tinyalex.backends import array_module
from tinyalex.backends.numerics import total
from tinyalex.backends.types import Array
from tinyalex.ops.promotion import as_floating, promote


def unbroadcast(grad: Array, shape: tuple[int, ...]) -> Array:
    """Sum ``grad`` over the axes that broadcasting added to ``shape``."""
    if grad.shape == shape:
        return grad
    extra = grad.ndim - len(shape)
    repeated = [i + extra for i, n in enumerate(shape) if n == 1 and grad.shape[i + extra] != 1]
    return total(grad, (*range(extra), *repeated)).reshape(shape)


def _refuse_bool(op: str) -> None:
    raise TypeError(
        f"{op} expects numbers, got bool; invert a mask with ~, or convert it with .to(np.int64)"
    )


class Binary(Function):
    """An elementwise function of two tensors, which meet in one dtype (`promote`).

    Gradients are summed back to the inputs' shapes; the walk casts them to the inputs' dtypes.
    """

    def forward(self, a: Array, b: Array) -> Array:
        """Return the result, and keep what `gradients` needs."""
        if a.dtype is not b.dtype or a.dtype.kind != "f":
            a, b = self.meet(a, b)
        self.shapes = a.shape, b.shape
        self.save_inputs(a, b)
        return self.compute(a, b)

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        """Return the gradients of the inputs that want one."""
        return tuple(
            unbroadcast(getattr(self, side)(grad), shape) if need else None
            for side, shape, need in zip(
                ("left", "right"), self.shapes, self.needs_input_grad, strict=True
            )
        )

    def meet(self, a: Array, b: Array) -> tuple[Array, ...]:
        """Return both in one dtype; called unless they share a floating dtype."""
        return promote(a, b)

    def save_inputs(self, a: Array, b: Array) -> None:
        """Keep of the inputs what `left` and `right` need; nothing by default."""

    def compute(self, a: Array, b: Array) -> Array:
        """Return the elementwise result."""
        raise TypeError(f"{type(self).__name__} must define compute(self, a, b)")

    def left(self, grad: Array) -> Array:
        """Return grad times d(result)/da, in the broadcast shape."""
        return grad

    def right(self, grad: Array) -> Array:
        """Return grad times d(result)/db, in the broadcast shape."""
        return grad


class Add(Binary):
    """a + b."""

    def compute(self, a: Array, b: Array) -> Array:
        return a + b


class Sub(Binary):
    """a - b; not of bools, as in torch."""

    def meet(self, a: Array, b: Array) -> tuple[Array, ...]:
        if a.dtype.kind == "b" or b.dtype.kind == "b":
            _refuse_bool("-")
        return promote(a, b)

    def compute(self, a: Array, b: Array) -> Array:
        return a - b

    def right(self, grad: Array) -> Array:
        return -grad


class Mul(Binary):
    """``a * b``; each factor is kept only if the other needs a gradient."""

    def save_inputs(self, a: Array, b: Array) -> None:
        need_a, need_b = self.needs_input_grad
        self.save(a if need_b else None, b if need_a else None)

    def compute(self, a: Array, b: Array) -> Array:
        return a * b

    def left(self, grad: Array) -> Array:
        return grad * self.saved[1]

    def right(self, grad: Array) -> Array:
        return grad * self.saved[0]


class Div(Binary):
    """a / b, floating point for integers too."""

    def meet(self, a: Array, b: Array) -> tuple[Array, ...]:
        if a.dtype.kind != "f" and b.dtype.kind != "f":
            return as_floating(a), as_floating(b)
        return promote(a, b)

    def save_inputs(self, a: Array, b: Array) -> None:
        self.save(a if self.needs_input_grad[1] else None, b)

    def compute(self, a: Array, b: Array) -> Array:
        return a / b

    def left(self, grad: Array) -> Array:
        return grad / self.saved[1]

    def right(self, grad: Array) -> Array:
        a, b = self.saved
        return -grad * (a / b / b)  # b * b would overflow, or vanish, before the quotient does


class Pow(Binary):
    """``a ** b``; ``d/da = b a ** (b - 1)``, ``d/db = a ** b ln a``, 0 where a = 0 and b >= 0.

    Integers stay integers: to negative powers they are cut off towards 0, as in torch.
    """

    def save_inputs(self, a: Array, b: Array) -> None:
        self.save(a, b)

    def compute(self, a: Array, b: Array) -> Array:
        if a.dtype.kind == "f":
            return a**b
        if a.dtype.kind == "b":
            _refuse_bool("**")
        xp = array_module(a)
        inverse = xp.where(abs(a) == 1, a ** (b % 2), 0)  # of 1 and -1; all others are below 1
        return xp.where(b < 0, inverse, a ** xp.maximum(b, 0)).astype(a.dtype, copy=False)

    def left(self, grad: Array) -> Array:
        a, b = self.saved
        xp = array_module(a)
        # The constant 1 has slope 0 everywhere, also at a = 0 where 0 ** -1 is infinite.
        return grad * b * xp.where(b == 0, 1, a) ** (b - 1)

    def right(self, grad: Array) -> Array:
        a, b = self.saved
        xp = array_module(a)
        return grad * xp.where((a == 0) & (b >= 0), 0, a**b * xp.log(a))


class Unary(Function):
    """An elementwise function of one tensor."""

    def backward(self, grad: Array) -> Array:
        """Return grad times the derivative."""
        return grad * self.derivative(*self.saved)

    def derivative(self, value: Array) -> Any:
        """Return d(output)/d(input) from the one array that was saved."""
        raise TypeError(f"{type(self).__name__} must define derivative(self, value)")


class Neg(Unary):
    """-x; not of bools, as in torch."""

    def forward(self, x: Array) -> Array:
        if x.dtype.kind == "b":
            _refuse_bool("-")
        return -x

    def backward(self, grad: Array) -> Array:
        return -grad


class Exp(Unary):
    """e ** x, which is its own derivative."""

    def forward(self, x: Array) -> Array:
        y = array_module(x).exp(as_floating(x))
        self.save(y)
        return y

    def derivative(self, value: Array) -> Array:
        return value


class Log(Unary):
    """Natural logarithm; derivative 1 / x."""

    def forward(self, x: Array) -> Array:
        self.save(x)
        return array_module(x).log(as_floating(x))

    def backward(self, grad: Array) -> Array:
        return grad / self.saved[0]  # 1 / x can overflow where this does not


class Sqrt(Unary):
    """Square root; derivative 1 / (2 sqrt(x))."""

    def forward(self, x: Array) -> Array:
        y = array_module(x).sqrt(as_floating(x))
        self.save(y)
        return y

    def derivative(self, value: Array) -> Array:
        return 0.5 / value


class Abs(Unary):
    """Absolute value, not of bools; derivative sign(x), 0 at 0."""

    def forward(self, x: Array) -> Array:
        if x.dtype.kind == "b":
            _refuse_bool("abs")
        self.save(x)
        return abs(x)

    def derivative(self, value: Array) -> Array:
        return array_module(value).sign(value)


class Sigmoid(Unary):
    """1 / (1 + e ** -x); derivative t / (1 + t) ** 2 with t = e ** -abs(x).

    t neither overflows nor is subtracted from 1: all digits are right, also where y is almost 0 or
    almost 1.
    """

    def forward(self, x: Array) -> Array:
        x = as_floating(x)
        self.save(x)
        xp = array_module(x)
        t = xp.exp(-abs(x))
        return xp.where(x < 0, t, 1) / (1 + t)

    def derivative(self, value: Array) -> Array:
        t = array_module(value).exp(-abs(value))
        return t / (1 + t) / (1 + t)


class Tanh(Sigmoid):
    """Hyperbolic tangent, 2 sigmoid(2 x) - 1; so its derivative is 4 times sigmoid's at 2 x."""

    def forward(self, x: Array) -> Array:
        self.save(x)
        return array_module(x).tanh(as_floating(x))

    def derivative(self, value: Array) -> Array:
        return 4 * super().derivative(2 * value)


class Where(Function):
    """a where the condition (a plain boolean array) holds, else b."""

    def forward(self, a: Array, b: Array, *, condition: Array) -> Array:
        self.shapes = a.shape, b.shape
        self.save(condition.copy())  # it is the caller's to change
        a, b = promote(a, b)
        return array_module(a).where(condition, a, b)

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        (condition,) = self.saved
        xp = array_module(grad)
        sides = xp.where(condition, grad, 0), xp.where(condition, 0, grad)
        return tuple(unbroadcast(g, s) for g, s in zip(sides, self.shapes, strict=True))
