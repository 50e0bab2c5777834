"""Fused ops: several in one pass over memory, where the backend can.

The mathematics is that of the two ops; only a backend that names the kernels in
`tinyalex.backends.FUSED_KERNELS` can run these.
"""

from __future__ import annotations

from tinyalex import backends
from tinyalex.autograd import Function
from tinyalex.backends.geometry import ConvOptions, NormOptions, PoolOptions
from tinyalex.backends.types import Array
from tinyalex.ops import conv, normalization, pool
from tinyalex.ops.matmul import Linear


def available(x: Array, kernel: str) -> bool:
    """Return whether the backend of ``x`` has this fused kernel.

    With it, it has its gradient.
    """
    return hasattr(backends.of(x), kernel)


class Conv2dReLU(Function):
    """``max(conv2d(x, weight, bias), 0)``; see `conv.Conv2d`. Kept: the input, the output."""

    takes_bfloat16 = True

    def forward(
        self, x: Array, weight: Array, bias: Array | None, *, options: ConvOptions
    ) -> Array:
        conv.check(x, weight, bias, options)
        x, weight, bias = backends.operands(x, weight, bias)
        self.options, self.shapes = options, (x.shape, weight.shape)
        need_x, need_weight, _ = self.needs_input_grad
        y = backends.of(x).conv2d_relu(x, weight, bias, options)
        self.save(x if need_weight else None, weight if need_x else None, y)
        return y

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        x, weight, y = self.saved
        kernel = backends.of(grad).conv2d_relu_grads
        return kernel(grad, y, x, weight, self.needs_input_grad, self.shapes, self.options)


class LinearReLU(Linear):
    """``max(linear(x, weight, bias), 0)``; see `matmul.Linear`. Kept: the input, the output."""

    def forward(self, x: Array, weight: Array, bias: Array | None) -> Array:
        x, weight, bias = backends.operands(x, weight, bias)
        y = backends.of(x).linear_relu(x, weight, bias)
        need_x, need_weight, _ = self.needs_input_grad
        self.save(x if need_weight else None, weight if need_x else None, y)
        return y

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        x, weight, y = self.saved
        return self.grads(backends.of(grad).relu_input_grad(grad, y), x, weight)


class LocalResponseNormMaxPool2d(Function):
    """``max_pool2d(local_response_norm(x))``, as in the paper's first two layers.

    Kept: the input, and which tap of each window won. Backward normalises anew.
    """

    takes_bfloat16 = True

    def forward(
        self, x: Array, *, norm: NormOptions, window: PoolOptions, ceil_mode: bool
    ) -> Array:
        normalization.check(x, norm.groups)
        size = pool.output_size("max_pool2d", x, window, ceil_mode)
        self.options = norm, window
        y, taps = backends.of(x).norm_max_pool2d(x, norm, window, size)
        self.save(x, taps)
        return y

    def backward(self, grad: Array) -> Array:
        x, taps = self.saved
        return backends.of(grad).norm_max_pool2d_input_grad(grad, taps, x, *self.options)


class Conv2dReLUNormMaxPool2d(Function):
    """A whole layer of the paper: convolution, ReLU, response normalisation, max-pooling.

    Backward, the gradient passes pooling, normalisation and ReLU in one kernel, which sums that of
    the bias on the way. Kept: the images, the ReLU's output, and which tap of each window won.
    """

    takes_bfloat16 = True

    def forward(
        self,
        x: Array,
        weight: Array,
        bias: Array,
        *,
        options: ConvOptions,
        norm: NormOptions,
        window: PoolOptions,
        ceil_mode: bool,
    ) -> Array:
        conv.check(x, weight, bias, options)
        x, weight, bias = backends.operands(x, weight, bias)
        self.options, self.norm_and_pool = options, (norm, window)
        self.input_shape, self.weight_shape = x.shape, weight.shape
        backend = backends.of(x)
        y = backend.conv2d_relu(x, weight, bias, options)
        normalization.check(y, norm.groups)
        size = pool.output_size("max_pool2d", y, window, ceil_mode)
        z, taps = backend.norm_max_pool2d(y, norm, window, size)
        need_x, need_weight, _ = self.needs_input_grad
        self.save(x if need_weight else None, weight if need_x else None, y, taps)
        return z

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        x, weight, y, taps = self.saved
        backend = backends.of(grad)
        need_x, need_weight, _ = self.needs_input_grad
        dy, dbias = backend.norm_max_pool2d_relu_bias_grad(grad, taps, y, *self.norm_and_pool)
        dx = dweight = None
        if need_x:
            dx = backend.conv2d_input_grad(dy, weight, self.input_shape, self.options)
        if need_weight:
            dweight = backend.conv2d_weight_grad(dy, x, self.weight_shape, self.options)
        return dx, dweight, dbias
