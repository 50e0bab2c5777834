"""Convolution on the GPU: a version chosen by shape, dtype and precision.

A version is a module with a function for each pass, on arrays as they lie in memory: images
[N, H, W, C], weights [K, R, S, C/G]. From the first to the last: `naive`, `im2col`, `tiled`,
`products`. Each can be called by name. The functions here take the arrays that users have, and
choose:

- float32 with a multiple of four channels (and, for gradients, of filters) in each group, bfloat16
  with a multiple of eight: tensor cores (`products`);
- any other bfloat16: as float32, and the result rounded (not that of a weight's gradient);
- all else: columns and cuBLAS.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tinyalex.backends.bfloat16 import as_float32, is_bfloat16
from tinyalex.backends.cuda.bias_grad import bias_grad, relu_bias_grad
from tinyalex.backends.cuda.channels import widened
from tinyalex.backends.cuda.conv import im2col, products
from tinyalex.backends.cuda.conv.shape import ConvShape
from tinyalex.backends.cuda.conv.tiles import Pass
from tinyalex.backends.geometry import ConvOptions
from tinyalex.backends.gpu import contiguous, cupy
from tinyalex.backends.layout import as_nchw, channels_last, in_fours, with_room
from tinyalex.backends.types import Array, Shape


def conv2d(x: Array, weight: Array, bias: Array | None, options: ConvOptions) -> Array:
    """Correlate ``x`` [N, C, H, W] with ``weight`` [K, C/G, R, S] and add ``bias`` [K]."""
    return _forward(x, weight, bias, ConvShape.of(x.shape, weight.shape, options), relu=False)


def conv2d_relu(x: Array, weight: Array, bias: Array | None, options: ConvOptions) -> Array:
    """Return max(y, 0) of `conv2d`: what is negative becomes 0 before it is stored."""
    return _forward(x, weight, bias, ConvShape.of(x.shape, weight.shape, options), relu=True)


def conv2d_input_grad(
    grad: Array, weight: Array, input_shape: Shape, options: ConvOptions
) -> Array:
    """Return dx: each output's gradient times its filter, added over overlapping windows."""
    shape = ConvShape.of(input_shape, weight.shape, options)
    return _input_grad(channels_last(grad), weight, shape)


def conv2d_weight_grad(grad: Array, x: Array, weight_shape: Shape, options: ConvOptions) -> Array:
    """Return dweight: each output's gradient times its window, summed over outputs."""
    shape = ConvShape.of(x.shape, weight_shape, options)
    return _weight_grad(channels_last(grad), x, shape)


def conv2d_bias_grad(grad: Array) -> Array:
    """Return dbias: the gradient summed over images and pixels."""
    return bias_grad(channels_last(grad))


def conv2d_relu_grads(
    grad: Array,
    y: Array,
    x: Array | None,
    weight: Array | None,
    needs: tuple[bool, ...],
    shapes: tuple[Shape, Shape],
    options: ConvOptions,
) -> tuple[Array | None, Array | None, Array | None]:
    """Return (dx, dweight, dbias) of `conv2d_relu`, each only if it is needed.

    ``shapes`` are those of x and weight. Where y is 0, ``grad`` counts as 0. The pass that sees to
    that sums the bias's gradient too.
    """
    need_x, need_weight, need_bias = needs
    shape = ConvShape.of(*shapes, options)
    grad, dbias = relu_bias_grad(channels_last(grad), channels_last(y))
    dx = _input_grad(grad, weight, shape) if need_x else None
    dweight = _weight_grad(grad, x, shape) if need_weight else None
    return dx, dweight, dbias if need_bias else None


# --- the choice -----------------------------------------------------------------------------------


def _tensor_shape(shape: ConvShape, dtype: np.dtype[Any], which: Pass) -> ConvShape | None:
    """Return the convolution for the tensor cores, None if they cannot.

    They read four channels at a time. Photographs have three: they get a fourth, which the kernels
    take for zeros.
    """
    if shape.groups == 1:
        shape = shape._replace(C=in_fours(shape.C))
    fits = products.applicable(shape.channels, shape.filters, which, dtype)
    return shape if fits else None


def _forward(x: Array, weight: Array, bias: Array | None, shape: ConvShape, relu: bool) -> Array:
    bias = None if bias is None else contiguous(bias)
    padded = _tensor_shape(shape, x.dtype, "forward")
    if padded:
        # Weights in bfloat16 have room too, with zeros (`operands`).
        wide = _images if is_bfloat16(weight.dtype) else widened
        x, weight = _images(x, padded.C), wide(weight, padded.channels)
        y = products.forward(x, weight, bias, padded, relu)
    elif is_bfloat16(x.dtype):
        return _forward(as_float32(x), as_float32(weight), bias, shape, relu).astype(x.dtype)
    else:
        y = im2col.forward(channels_last(x), channels_last(weight), bias, shape)
        y = cupy().maximum(y, 0) if relu else y
    return as_nchw(y)


def _input_grad(grad: Array, weight: Array, shape: ConvShape) -> Array:
    padded = _tensor_shape(shape, grad.dtype, "input_grad")
    if padded:
        weight = widened(weight, padded.channels)
        dx = products.input_grad(grad, weight, padded)[..., : shape.C]
    elif is_bfloat16(grad.dtype):
        return _input_grad(as_float32(grad), as_float32(weight), shape).astype(grad.dtype)
    else:
        dx = im2col.input_grad(grad, channels_last(weight), shape)
    return as_nchw(dx)


def _weight_grad(grad: Array, x: Array, shape: ConvShape) -> Array:
    padded = _tensor_shape(shape, grad.dtype, "weight_grad")
    if padded:
        dweight = products.weight_grad(grad, _images(x, padded.C), padded)
        dweight = contiguous(dweight[..., : shape.channels])
    elif is_bfloat16(grad.dtype):
        return _weight_grad(as_float32(grad), as_float32(x), shape)
    else:
        dweight = im2col.weight_grad(grad, channels_last(x), shape)
    return as_nchw(dweight)


def _images(x: Array, channels: int) -> Array:
    """Return x [N, C, H, W] as [N, H, W, channels]; what lies beyond C may be anything."""
    images = with_room(x)
    return widened(x, channels) if images is None else images
