"""Two-dimensional convolution (as everywhere in the field: cross-correlation)."""

from __future__ import annotations

from tinyalex import backends
from tinyalex.autograd import Function
from tinyalex.backends.geometry import ConvOptions, Padding, Pair, conv_output_size
from tinyalex.backends.types import Array
from tinyalex.ops import arguments


class Conv2d(Function):
    """``y[n,k,i,j] = bias[k] + sum_{c,r,s} weight[k,c,r,s] window(n,i,j)[c,r,s]``.

    ``window(n,i,j)[c,r,s] = x[n, c, i*stride + r*dilation - top, j*stride + s*dilation - left]``.

    Backward, with g = d(loss)/dy, is three more sums over the same index set, one per factor:

    - input:  ``dx[n,c,p,q] = sum of g[n,k,i,j] weight[k,c,r,s]`` over all k, i, j, r, s with
      ``p = i*stride + r*dilation - top`` and ``q = j*stride + s*dilation - left``;
    - weight: ``dweight[k,c,r,s] = sum over n, i, j of g[n,k,i,j] window(n,i,j)[c,r,s]``;
    - bias:   ``dbias[k] = sum over n, i, j of g[n,k,i,j]``.

    With groups, c runs over the channels of k's group only.

    Of the forward pass only the input and the weights are kept; columns are made again.
    """

    takes_bfloat16 = True

    def forward(
        self, x: Array, weight: Array, bias: Array | None, *, options: ConvOptions
    ) -> Array:
        """Check the shapes, and ask the backend for the convolution."""
        check(x, weight, bias, options)
        x, weight, bias = backends.operands(x, weight, bias)
        self.options = options
        self.input_shape, self.weight_shape = x.shape, weight.shape
        need_x, need_weight, _ = self.needs_input_grad
        self.save(x if need_weight else None, weight if need_x else None)
        return backends.of(x).conv2d(x, weight, bias, options)

    def backward(self, grad: Array) -> tuple[Array | None, ...]:
        """Return (dx, dweight, dbias), each only if needed."""
        x, weight = self.saved
        backend = backends.of(grad)
        need_x, need_weight, need_bias = self.needs_input_grad
        dx = dweight = dbias = None
        if need_x:  # not in the first layer: the gradient of the photograph is not needed
            dx = backend.conv2d_input_grad(grad, weight, self.input_shape, self.options)
        if need_weight:
            dweight = backend.conv2d_weight_grad(grad, x, self.weight_shape, self.options)
        if need_bias:
            dbias = backend.conv2d_bias_grad(grad)
        return dx, dweight, dbias


def check(x: Array, weight: Array, bias: Array | None, options: ConvOptions) -> None:
    """Raise ValueError or TypeError unless the shapes and dtypes fit together."""
    arguments.images(x, "conv2d")
    arguments.floating("conv2d", x, weight, bias)
    if weight.ndim != 4 or 0 in weight.shape:
        raise ValueError(f"conv2d expects weights of shape [K, C/groups, R, S], got {weight.shape}")
    channels, filters, groups = x.shape[1], weight.shape[0], options.groups
    if groups < 1 or channels % groups or filters % groups:
        raise ValueError(
            f"conv2d: groups must divide the input channels ({channels}) and the output channels "
            f"({filters}), got groups={groups}"
        )
    if weight.shape[1] * groups != channels:
        raise ValueError(
            f"conv2d: weights of shape {weight.shape} with groups={groups} expect "
            f"{weight.shape[1] * groups} input channels, got images of shape {x.shape}"
        )
    if bias is not None and bias.shape != (filters,):
        raise ValueError(f"conv2d expects a bias of shape ({filters},), got {bias.shape}")
    size = conv_output_size(x.shape[2:], weight.shape[2:], options)
    arguments.positive_output("conv2d", size, x.shape, weight.shape[2:], options)


def resolve_padding(padding: str, kernel_size: Pair, stride: Pair, dilation: Pair) -> Padding:
    """Return the widths of padding "valid" (none) or "same" (equal sizes).

    Where "same" needs an odd total, the extra row or column goes to the bottom or right (torch).
    """
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding != "same":
        raise ValueError(f'padding must be "same", "valid", an integer or a pair, got {padding!r}')
    if stride != (1, 1):
        raise ValueError(f'padding="same" needs stride 1, got stride {stride}')
    total = [d * (k - 1) for k, d in zip(kernel_size, dilation, strict=True)]
    (top, left), (bottom, right) = [t // 2 for t in total], [t - t // 2 for t in total]
    return (top, bottom), (left, right)
