"""Fully connected layers, as convolutions of one pixel with 1x1 filters.

So the tensor cores compute it by the kernels that they have for convolutions. These read weight
[O, I] along I in all three passes, as it lies: no pass needs it transposed. What they do not take
(float64, odd numbers of features) is a product for cuBLAS, which through CuPy rounds nothing beyond
float32: where less was asked for ("high", "medium"), it is slower than it could be.

The time goes into the weights. The paper's fc6 has 4096 x 9216 of them, 151 MB, which an H100 reads
in 151 MB / 3.35 TB/s = 45 us; at a batch of 128 its 9.7 GFLOP take 20 us at 495 TFLOP/s, the tensor
cores' full rate in TF32. But the result, 128 x 4096, has only 32 tiles of 128 x 128, and 32 blocks
on 132 multiprocessors do not ask for memory fast enough: so the kernels split the sum over I, and
more blocks read.

With a few images most of a tile is empty, but costs what a full one does, and with 3xTF32 that is
3 * 20 us, more than the reading. There ``kernels/few_rows.cu`` computes, which reads the weights
once and multiplies exactly, whatever precision was asked for; its shared first-level cache is what
ends its reach. Where the line is best drawn is not yet measured on hardware.
"""

from __future__ import annotations

import numpy as np

from tinyalex.backends.bfloat16 import as_float32, is_bfloat16
from tinyalex.backends.cuda.conv import products
from tinyalex.backends.cuda.conv.shape import ConvShape
from tinyalex.backends.cuda.conv.tiles import Pass
from tinyalex.backends.cuda.launch import launch, type_name
from tinyalex.backends.geometry import ConvOptions
from tinyalex.backends.gpu import contiguous, cupy
from tinyalex.backends.types import Array

FEW = 8  # images, in forward; as MOST in few_rows.cu
THREADS, OUTPUTS = 256, 16  # of a block of few_rows.cu


def linear(x: Array, weight: Array, bias: Array | None) -> Array:
    """Return ``x @ weight.T + bias``: x [N, I], weight [O, I], bias [O] -> [N, O]."""
    return _forward(x, weight, bias, relu=False)


def linear_relu(x: Array, weight: Array, bias: Array | None) -> Array:
    """Return max(y, 0) of `linear`: what is negative becomes 0 before it is stored."""
    return _forward(x, weight, bias, relu=True)


def _forward(x: Array, weight: Array, bias: Array | None, relu: bool) -> Array:
    shape = shape_of(len(x), weight.shape[1], len(weight))
    bias = None if bias is None else contiguous(bias)
    if _few(x, shape):
        return few_rows(x, weight, bias, relu)
    if _suits(x, shape, "forward"):
        y = products.forward(pixels(x), pixels(weight), bias, shape, relu)
        return y.reshape(shape.N, shape.K)
    if is_bfloat16(x.dtype):
        return _forward(as_float32(x), as_float32(weight), bias, relu).astype(x.dtype)
    y = x @ weight.T
    if bias is not None:
        y += bias
    return cupy().maximum(y, 0, out=y) if relu else y


def few_rows(x: Array, weight: Array, bias: Array | None, relu: bool = False) -> Array:
    """Return `linear` of up to `FEW` rows, or max(y, 0) of it.

    The number of inputs is a multiple of four.
    """
    (N, I), O = x.shape, len(weight)  # noqa: E741 (as the kernel names them)
    y = cupy().empty((N, O), x.dtype)
    args = contiguous(x), contiguous(weight), bias, y, N, I, O, relu
    launch("few_rows.cu", f"few_rows<{type_name(x.dtype)}>", (-(-O // OUTPUTS),), (THREADS,), args)
    return y


def linear_input_grad(grad: Array, weight: Array) -> Array:
    """Return dx = grad @ weight: [N, O] @ [O, I]."""
    shape = shape_of(len(grad), weight.shape[1], len(weight))
    if _suits(grad, shape, "input_grad"):
        return products.input_grad(pixels(grad), pixels(weight), shape).reshape(shape.N, shape.C)
    if is_bfloat16(grad.dtype):
        return linear_input_grad(as_float32(grad), as_float32(weight)).astype(grad.dtype)
    return grad @ weight


def linear_weight_grad(grad: Array, x: Array) -> Array:
    """Return dweight = grad.T @ x: [O, N] @ [N, I]."""
    shape = shape_of(len(x), x.shape[1], grad.shape[1])
    if _suits(grad, shape, "weight_grad"):
        dweight = products.weight_grad(pixels(grad), pixels(x), shape)
        return dweight.reshape(shape.K, shape.C)
    if is_bfloat16(grad.dtype):
        return linear_weight_grad(as_float32(grad), as_float32(x))
    return grad.T @ x


def _few(x: Array, shape: ConvShape) -> bool:
    return 0 < shape.N <= FEW and shape.C % 4 == 0 and x.dtype in (np.float32, np.float64)


def _suits(x: Array, shape: ConvShape, which: Pass) -> bool:
    return shape.N > FEW and products.applicable(shape.C, shape.K, which, x.dtype)


def shape_of(N: int, inputs: int, outputs: int) -> ConvShape:
    """Return the sizes of a linear layer."""
    return ConvShape.of((N, inputs, 1, 1), (outputs, inputs, 1, 1), ConvOptions())


def pixels(matrix: Array) -> Array:
    """Return a matrix [N, C] as images of one pixel, [N, 1, 1, C]."""
    return contiguous(matrix).reshape(len(matrix), 1, 1, -1)
