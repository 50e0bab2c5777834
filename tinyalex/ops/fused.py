"""Two ops as one, where the backend can do both in a single pass over memory.

The mathematics is that of the two ops; only a backend that names the kernels in
`tinyalex.backends.FUSED_KERNELS` can run these.
"""

from __future__ import annotations

from tinyalex import backends
from tinyalex.autograd import Function
from tinyalex.backends.geometry import Padding, Pair
from tinyalex.backends.types import Array
from tinyalex.ops import conv, normalization, pool


def available(x: Array) -> bool:
    """Return whether the backend of ``x`` has the fused kernels."""
    kernels = backends.of(x)
    return all(hasattr(kernels, name) for name in backends.FUSED_KERNELS)


class Conv2dReLU(Function):
    """``max(conv2d(x, weight, bias), 0)``; see `conv.Conv2d`. Kept: the input, the output."""

    def forward(
        self,
        x: Array,
        weight: Array,
        bias: Array | None,
        *,
        stride: Pair,
        padding: Padding,
        dilation: Pair,
        groups: int,
    ) -> Array:
        conv.check(x, weight, bias, stride, padding, dilation, groups)
        self.options = (stride, padding, dilation, groups)
        self.input_shape, self.weight_shape = x.shape, weight.shape
        need_x, need_weight, _ = self.needs_input_grad
        y = backends.of(x).conv2d_relu(x, weight, bias, *self.options)
        self.save(x if need_weight else None, weight if need_x else None, y)
        return y

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        x, weight, y = self.saved
        shapes = self.input_shape, self.weight_shape
        kernel = backends.of(grad).conv2d_relu_grads
        return kernel(grad, y, x, weight, self.needs_input_grad, *shapes, *self.options)


class LocalResponseNormMaxPool2d(Function):
    """``max_pool2d(local_response_norm(x))``, as in the paper's first two layers.

    Kept: the input, and which tap of each window won. Backward normalises anew.
    """

    def forward(
        self,
        x: Array,
        *,
        size: int,
        alpha: float,
        beta: float,
        k: float,
        groups: int,
        kernel_size: Pair,
        stride: Pair,
        padding: Pair,
        ceil_mode: bool,
    ) -> Array:
        normalization.check(x, groups)
        windows = pool.output_size("max_pool2d", x, kernel_size, stride, padding, (1, 1), ceil_mode)
        self.options = (size, alpha, beta, k, groups, kernel_size, stride, padding)
        y, taps = backends.of(x).norm_max_pool2d(x, *self.options, windows)
        self.save(x, taps)
        return y

    def backward(self, grad: Array) -> Array:
        x, taps = self.saved
        return backends.of(grad).norm_max_pool2d_input_grad(grad, taps, x, *self.options)
