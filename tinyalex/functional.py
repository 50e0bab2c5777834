"""Functions on tensors, under torch's names and defaults.

These functions read their arguments and hand them to the Functions of `tinyalex.ops`, which own
the mathematics. Arrays are float32 or float64; images are [N, C, H, W].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tinyalex import random
from tinyalex.autograd import Function
from tinyalex.backends.bfloat16 import is_bfloat16
from tinyalex.backends.devices import device_of, using
from tinyalex.backends.geometry import ConvOptions, NormOptions, PoolOptions
from tinyalex.backends.numerics import LONG
from tinyalex.grad_mode import is_grad_enabled
from tinyalex.ops import activation, conv, fused, loss, matmul, normalization, pool, shape
from tinyalex.ops.arguments import (
    dimension,
    finite,
    flag,
    integer,
    is_integer,
    number,
    pair,
    probability,
)
from tinyalex.tensor import Tensor, as_array

Size = int | Sequence[int]
Convolution = tuple[Size, Size | str, Size, int]  # stride, padding, dilation, groups


def _tensor(value: Any, name: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} must be a Tensor, got {type(value).__name__}; wrap it in Tensor(...)"
        )
    return value


def _array_or_none(value: Any) -> Any:
    return None if value is None else as_array(value)


def _in_float32(value: Any) -> Any:
    """Return a Tensor of bfloat16 in float32, anything else as it is."""
    stored = isinstance(value, Tensor) and is_bfloat16(value.dtype)
    return value.to(np.float32) if stored else value


def _in(dtype: Any, value: Any) -> Tensor:
    """Return ``value``, a Tensor or array-like, as a Tensor of this dtype.

    Arrays are copied: backward may want them, and they are the caller's to change.
    """
    if isinstance(value, Tensor):
        return value.to(dtype)
    array = as_array(value, dtype)
    with using(device_of(array)):
        return Tensor(array.astype(dtype))


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    """Cross-correlate images with kernels.

    ``y[n, k, i, j] = bias[k] + sum over c, r, s of
    weight[k, c, r, s] * x[n, c, i * stride + r * dilation - padding, ...]``

    x [N, C, H, W], weight [K, C/groups, R, S], bias [K] -> [N, K, Ho, Wo] with
    ``Ho = floor((H + 2 padding - dilation (R - 1) - 1) / stride) + 1``. ``padding`` is a number, a
    (height, width) pair, "valid" (0) or "same" (output as large as the input; stride 1). With
    ``groups`` G, output channels k belong to input channels of the same G-th part: the two GPUs of
    the paper (section 3.2) are G = 2.

    A single image [C, H, W] works as well, here and in the poolings. Raises ValueError or TypeError
    when shapes, dtypes or numbers do not fit.
    """
    return _conv2d(conv.Conv2d, x, weight, bias, (stride, padding, dilation, groups))


def conv2d_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    """``relu(conv2d(...))``, in one pass where the backend can.

    A `tinyalex.nn.Sequential` calls this for a Conv2d that is followed by a ReLU.
    """
    if fused.available(_tensor(x, "x").data, "conv2d_relu"):
        options = stride, padding, dilation, groups
        return _conv2d(fused.Conv2dReLU, x, weight, bias, options)
    return relu(conv2d(x, weight, bias, stride, padding, dilation, groups))


def _conv2d(
    function: type[Function],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    convolution: Convolution,
    **more: Any,
) -> Tensor:
    if _tensor(x, "x").ndim == 3:  # one image
        return _conv2d(function, x.unsqueeze(0), weight, bias, convolution, **more).squeeze(0)
    stride, padding, dilation, groups = convolution
    steps, spread = pair(stride, "stride"), pair(dilation, "dilation")
    if x.ndim == _tensor(weight, "weight").ndim == 4 and x.shape[1] == weight.shape[1] == 0:
        # Without channels only the bias is left, as with one channel of zeros.
        one = (0, 0, 0, 0, 0, integer(groups, "groups", minimum=1))
        x, weight = pad(x, one), pad(weight, (0, 0, 0, 0, 0, 1))
    kernel = weight.shape[-2:]
    if bias is not None:
        _tensor(bias, "bias")
    if isinstance(padding, str):
        border = conv.resolve_padding(padding, (kernel[0], kernel[-1]), steps, spread)
    else:
        height, width = pair(padding, "padding", minimum=0)
        border = (height, height), (width, width)
    options = ConvOptions(steps, border, spread, integer(groups, "groups", minimum=1))
    return function.apply(x, weight, bias, options=options, **more)


def _pool_options(
    kernel_size: Size, stride: Size | None, padding: Size, dilation: Size = 1
) -> PoolOptions:
    kernel = pair(kernel_size, "kernel_size")
    return PoolOptions(
        kernel,
        kernel if stride is None else pair(stride, "stride"),
        pair(padding, "padding", minimum=0),
        pair(dilation, "dilation"),
    )


def max_pool2d(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """Take the maximum of each window; ``stride`` defaults to the window's size.

    The paper's overlapping pooling (section 3.4) is ``max_pool2d(x, 3, 2)``. Padding is minus
    infinity; ``ceil_mode`` rounds the output size up, so that last windows may reach over the edge.
    Of equal values the first takes the gradient.
    """
    if _tensor(x, "x").ndim == 3:
        one = x.unsqueeze(0)
        return max_pool2d(one, kernel_size, stride, padding, dilation, ceil_mode).squeeze(0)
    options = _pool_options(kernel_size, stride, padding, dilation)
    return pool.MaxPool2d.apply(x, options=options, ceil_mode=flag(ceil_mode, "ceil_mode"))


def avg_pool2d(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Take the mean of each window; ``stride`` defaults to the window's size.

    The zeros of the padding count as elements unless ``count_include_pad`` is False;
    ``divisor_override`` replaces the count.
    """
    if divisor_override is not None and integer(divisor_override, "divisor_override") == 0:
        raise ValueError("divisor_override must not be 0")
    if _tensor(x, "x").ndim == 3:
        options = (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
        return avg_pool2d(x.unsqueeze(0), *options).squeeze(0)
    return pool.AvgPool2d.apply(
        x,
        options=_pool_options(kernel_size, stride, padding),
        ceil_mode=flag(ceil_mode, "ceil_mode"),
        count_include_pad=flag(count_include_pad, "count_include_pad"),
        divisor_override=divisor_override,
    )


def adaptive_avg_pool2d(x: Tensor, output_size: Size | tuple[int | None, ...] | None) -> Tensor:
    """Average over the cells of an ``output_size`` grid; None keeps that axis.

    Cell i of o covers rows floor(i H / o) .. ceil((i + 1) H / o) - 1.
    """
    if _tensor(x, "x").ndim == 3:
        return adaptive_avg_pool2d(x.unsqueeze(0), output_size).squeeze(0)
    wanted = output_size if isinstance(output_size, (tuple, list)) else (output_size, output_size)
    if len(wanted) == 2 and x.ndim == 4:
        wanted = tuple(n if w is None else w for w, n in zip(wanted, x.shape[2:], strict=True))
    return pool.AdaptiveAvgPool2d.apply(x, output_size=pair(wanted, "output_size"))  # type: ignore[arg-type]


def local_response_norm(
    x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0, groups: int = 1
) -> Tensor:
    """Normalise each value by its neighbour channels (paper section 3.3).

    ``y_c = x_c / (k + alpha / size * sum of x_j ** 2) ** beta`` over the ``size`` channels
    ``j = c - size // 2 .. c + (size - 1) // 2`` that exist, x [N, C, ...]. With ``groups``, windows
    end at the borders of the groups, as in the two towers of 2012.

    ``alpha`` is divided by ``size``, as in torch, Caffe and the 2012 source. The paper's formula
    does not divide. So, for n = 5 neighbours:

    ==============  ====================================  ==========================
    convention      what it writes                        arguments here
    ==============  ====================================  ==========================
    paper           k = 2, alpha = 1e-4, plain sum        ``size=5, alpha=5e-4, k=2``
    2012 source     scale = 1e-4, divided by size, k = 2  ``size=5, alpha=1e-4, k=2``
    Caffe           alpha = 1e-4, divided by size, k = 1  ``size=5, alpha=1e-4, k=1``
    torch           as here                               the defaults have k = 1
    ==============  ====================================  ==========================

    Raises ValueError for a size or groups below 1, or groups that do not divide the channels.
    """
    options = _norm_options(size, alpha, beta, k, groups)
    return normalization.LocalResponseNorm.apply(_tensor(x, "x"), options=options)


def _norm_options(size: int, alpha: float, beta: float, k: float, groups: int = 1) -> NormOptions:
    return NormOptions(
        integer(size, "size", minimum=1),
        finite(alpha, "alpha"),
        finite(beta, "beta"),
        finite(k, "k"),
        integer(groups, "groups", minimum=1),
    )


def local_response_norm_max_pool2d(
    x: Tensor,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    groups: int,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
) -> Tensor:
    """``max_pool2d(local_response_norm(...))``, in one pass where the backend can.

    A `tinyalex.nn.Sequential` calls this for such a pair of layers.
    """
    if _tensor(x, "x").ndim != 4 or x.size == 0 or not fused.available(x.data, "norm_max_pool2d"):
        y = local_response_norm(x, size, alpha, beta, k, groups)
        return max_pool2d(y, kernel_size, stride, padding, 1, ceil_mode)
    return fused.LocalResponseNormMaxPool2d.apply(
        x,
        norm=_norm_options(size, alpha, beta, k, groups),
        window=_pool_options(kernel_size, stride, padding),
        ceil_mode=flag(ceil_mode, "ceil_mode"),
    )


def conv2d_relu_norm_max_pool2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    convolution: Convolution,
    norm: tuple[int, float, float, float, int],
    window: tuple[Size, Size | None, Size, bool],
) -> Tensor:
    """Return a whole layer of the paper: `conv2d_relu`, then `local_response_norm_max_pool2d`.

    ``convolution`` is (stride, padding, dilation, groups), ``norm`` (size, alpha, beta, k, groups)
    and ``window`` (kernel_size, stride, padding, ceil_mode). A `tinyalex.nn.Sequential` calls this
    for four such layers; where the backend can, their backward is one pass up to the convolution.
    """
    whole = fused.available(_tensor(x, "x").data, "norm_max_pool2d_relu_bias_grad")
    if x.ndim != 4 or x.size == 0 or bias is None or not whole:
        y = conv2d_relu(x, weight, bias, *convolution)
        return local_response_norm_max_pool2d(y, *norm, *window)
    kernel_size, stride, padding, ceil_mode = window
    return _conv2d(
        fused.Conv2dReLUNormMaxPool2d,
        x,
        weight,
        bias,
        convolution,
        norm=_norm_options(*norm),
        window=_pool_options(kernel_size, stride, padding),
        ceil_mode=flag(ceil_mode, "ceil_mode"),
    )


def within_channel_response_norm(
    x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Tensor:
    """Normalise each value by its neighbourhood in its own channel.

    ``y = x / (k + alpha / size**2 * sum of x ** 2 over a size x size window) ** beta``, the window
    centred, with zeros beyond the border. This is the layer ``rnorm`` that the 2012 source has
    after conv2 and the paper does not mention; Caffe calls it WITHIN_CHANNEL. ``size`` must be odd.
    """
    if integer(size, "size", minimum=1) % 2 == 0:
        raise ValueError(f"size must be odd, got {size}")
    if _tensor(x, "x").ndim == 3:
        return within_channel_response_norm(x.unsqueeze(0), size, alpha, beta, k).squeeze(0)
    options = _norm_options(size, alpha, beta, k)
    return normalization.WithinChannelResponseNorm.apply(x, options=options)


def relu(x: Tensor) -> Tensor:
    """Return max(x, 0)."""
    return activation.ReLU.apply(_tensor(x, "x"))


def dropout(x: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    """Zero each element with probability ``p``, scale the others by 1 / (1 - p).

    Outside training it returns ``x`` itself. Draws follow `tinyalex.manual_seed`; every call takes
    new ones, of 24 bits (``p`` counts to the nearest multiple of 2**-24); from the same seed a GPU
    draws others than the CPU. Raises ValueError unless 0 <= p <= 1.
    """
    p = probability(p, "the dropout probability")
    _tensor(x, "x")
    if not flag(training, "training") or p == 0:
        return x
    return activation.Dropout.apply(x, p=p, key=random.next_key())


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x @ weight.T + bias``: x [..., I], weight [O, I], bias [O] -> [..., O]."""
    return _linear(matmul.Linear, x, weight, bias)


def linear_relu(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``relu(linear(...))``, in one pass where the backend can.

    A `tinyalex.nn.Sequential` calls this for a Linear that is followed by a ReLU.
    """
    short = math.prod(_tensor(x, "x").shape[-1:]) <= LONG  # else it is summed in pieces
    if short and fused.available(x.data, "linear_relu"):
        return _linear(fused.LinearReLU, x, weight, bias)
    return relu(linear(x, weight, bias))


def _linear(function: type[Function], x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    bias_data = None if bias is None else _tensor(bias, "bias").data
    matmul.check_linear(_tensor(x, "x").data, _tensor(weight, "weight").data, bias_data)
    if x.ndim == 2:
        return function.apply(x, weight, bias)
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return function.apply(rows, weight, bias).reshape(*x.shape[:-1], weight.shape[0])


def pad(x: Tensor, pad: Sequence[int], mode: str = "constant", value: float = 0.0) -> Tensor:
    """Put a constant border around ``x``.

    ``pad`` lists (before, after) for the last axis, then for the one before it, and so on: for
    images (left, right, top, bottom). Negative numbers cut off. Only mode "constant" exists.
    """
    if mode != "constant":
        raise ValueError(f'pad knows the mode "constant", got {mode!r}')
    sizes = [integer(size, "pad") for size in ((pad,) if is_integer(pad) else pad)]
    if len(sizes) > 2 * _tensor(x, "x").ndim or len(sizes) % 2:
        raise ValueError(
            f"pad expects pairs (before, after), at most one per axis of shape {x.shape}, got {pad}"
        )
    pairs = [(sizes[i], sizes[i + 1]) for i in range(0, len(sizes), 2)]
    widths = [(0, 0)] * (x.ndim - len(pairs)) + pairs[::-1]
    if any(n + before + after < 0 for n, (before, after) in zip(x.shape, widths, strict=True)):
        raise ValueError(f"pad {tuple(sizes)} cuts off more than there is of shape {x.shape}")
    return shape.Pad.apply(x, widths=tuple(widths), value=number(value, "value"))


def softmax(x: Tensor, dim: int) -> Tensor:
    """Return ``exp(x) / sum(exp(x))`` along ``dim``."""
    return activation.Softmax.apply(x, axis=dimension(dim, _tensor(x, "x").ndim))


def log_softmax(x: Tensor, dim: int) -> Tensor:
    """Return ``x - log(sum(exp(x)))`` along ``dim``."""
    return activation.LogSoftmax.apply(x, axis=dimension(dim, _tensor(x, "x").ndim))


def cross_entropy(
    input: Tensor,
    target: Any,
    weight: Any = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return ``-log(softmax(input))[target]``, averaged (or "sum", or "none": one loss per target).

    ``input`` holds logits [N, C], or [C], or [N, C, d1, ...]. ``target`` holds either class indices
    ([N], or [], or [N, d1, ...]; those equal to ``ignore_index`` do not count) or class
    probabilities, floating point in the shape of ``input``. ``weight`` [C] rescales the classes;
    with indices the mean divides by the sum of the weights of the targets. ``label_smoothing`` e
    mixes the target with the uniform distribution: (1 - e) target + e / C. Probabilities get their
    gradient, and beside them so do the weights. Torch's function.

    Raises ValueError for shapes that do not fit, indices out of range, an unknown reduction,
    weights that want a gradient beside indices, an ``ignore_index`` >= 0 beside probabilities;
    TypeError for dtypes. On a GPU, where a look at the indices would have to wait, the loss of one
    out of range is NaN instead.
    """
    smoothing = probability(label_smoothing, "label_smoothing")
    ignored = integer(ignore_index, "ignore_index")
    input, target, weight = map(_in_float32, (_tensor(input, "input"), target, weight))
    if target is None:
        raise TypeError("target must hold class indices or class probabilities, got None")
    labels, weights = _array_or_none(target), _array_or_none(weight)
    loss.check(input.data, labels, weights, ignored, reduction)
    of_indices = labels.dtype.kind != "f"
    if of_indices and isinstance(weight, Tensor) and weight.requires_grad and is_grad_enabled():
        raise ValueError(
            "class weights have no gradient beside class indices, as in torch, only beside class "
            "probabilities; use weight.detach()"
        )
    return loss.CrossEntropy.apply(
        input,
        None if of_indices else _in(input.dtype, target),
        None if weight is None else _in(input.dtype, weight),
        indices=labels if of_indices else None,
        ignore_index=ignored,
        reduction=reduction,
        label_smoothing=smoothing,
    )
