"""ReLU, softmax, dropout."""

from __future__ import annotations

from tinyalex import backends
from tinyalex.autograd import Function
from tinyalex.backends import array_module
from tinyalex.backends.numerics import total
from tinyalex.backends.types import Array
from tinyalex.ops.arguments import floating


class ReLU(Function):
    """max(x, 0) (paper section 3.1); the slope at 0 is 0. Only the output is kept."""

    takes_bfloat16 = True

    def forward(self, x: Array) -> Array:
        y = backends.of(x).relu(x)
        self.save(y)
        return y

    def backward(self, grad: Array) -> Array:
        (y,) = self.saved
        return backends.of(grad).relu_input_grad(grad, y)


class Dropout(Function):
    """Zero with probability p, else scale by 1 / (1 - p) (paper section 4.2).

    The paper halves all outputs at test time instead; scaling at training time has the same
    expectation and leaves nothing to do at test time. No mask is kept: it is a function of ``key``.
    """

    takes_bfloat16 = True

    def forward(self, x: Array, *, p: float, key: int) -> Array:
        floating("dropout", x)
        self.p, self.key = p, key
        return backends.of(x).dropout(x, p, key)

    def backward(self, grad: Array) -> Array:
        return backends.of(grad).dropout(grad, self.p, self.key)


def stable_log_softmax(x: Array, axis: int) -> Array:
    """Return ``x - log(sum(exp(x)))`` along ``axis``, shifted by the maximum against overflow."""
    if x.size == 0:
        return x
    xp = array_module(x)
    shifted = x - x.max(axis=axis, keepdims=True)
    return shifted - xp.log(total(xp.exp(shifted), (axis,), True))


class Softmax(Function):
    """``exp(x) / sum(exp(x))`` along one axis;  ``dx = y (dy - sum(dy y))``."""

    def forward(self, x: Array, *, axis: int) -> Array:
        floating("softmax", x)
        self.axis = axis
        y = x if x.size == 0 else array_module(x).exp(x - x.max(axis=axis, keepdims=True))
        y = y / total(y, (axis,), True)
        self.save(y)
        return y

    def backward(self, grad: Array) -> Array:
        (y,) = self.saved
        return y * (grad - total(grad * y, (self.axis,), True))


class LogSoftmax(Function):
    """``log(softmax(x))`` along one axis;  ``dx = dy - softmax(x) sum(dy)``."""

    def forward(self, x: Array, *, axis: int) -> Array:
        floating("log_softmax", x)
        self.axis = axis
        y = stable_log_softmax(x, axis)
        self.save(y)
        return y

    def backward(self, grad: Array) -> Array:
        (y,) = self.saved
        return grad - array_module(y).exp(y) * total(grad, (self.axis,), True)
