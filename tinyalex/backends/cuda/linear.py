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
3 * 20 us, more than the reading. There cuBLAS computes: it has kernels for matrices that
are almost vectors. Where the line is best drawn is not yet measured on hardware.
"""

from __future__ import annotations

import numpy as np

from tinyalex.backends.cuda.conv import tensor_cores
from tinyalex.backends.cuda.conv.shape import ConvShape
from tinyalex.backends.geometry import ConvOptions
from tinyalex.backends.gpu import contiguous
from tinyalex.backends.precision import get_float32_matmul_precision as precision
from tinyalex.backends.types import Array

FEW = 8  # images, up to which cuBLAS computes


def linear(x: Array, weight: Array, bias: Array | None) -> Array:
    """Return ``x @ weight.T + bias``: x [N, I], weight [O, I], bias [O] -> [N, O]."""
    shape = _shape(len(x), weight.shape[1], len(weight))
    if _suits(x, shape, "forward"):
        bias = None if bias is None else contiguous(bias)
        y = tensor_cores.conv_forward_tensor(_pixels(x), _pixels(weight), bias, shape, precision())
        return y.reshape(shape.N, shape.K)
    y = x @ weight.T
    if bias is not None:
        y += bias
    return y


def linear_input_grad(grad: Array, weight: Array) -> Array:
    """Return dx = grad @ weight: [N, O] @ [O, I]."""
    shape = _shape(len(grad), weight.shape[1], len(weight))
    if _suits(grad, shape, "input_grad"):
        dx = tensor_cores.conv_input_grad_tensor(_pixels(grad), _pixels(weight), shape, precision())
        return dx.reshape(shape.N, shape.C)
    return grad @ weight


def linear_weight_grad(grad: Array, x: Array) -> Array:
    """Return dweight = grad.T @ x: [O, N] @ [N, I]."""
    shape = _shape(len(x), x.shape[1], grad.shape[1])
    if _suits(grad, shape, "weight_grad"):
        pixels = _pixels(grad), _pixels(x)
        dweight = tensor_cores.conv_weight_grad_tensor(*pixels, shape, precision())
        return dweight.reshape(shape.K, shape.C)
    return grad.T @ x


def _suits(x: Array, shape: ConvShape, which: tensor_cores.Pass) -> bool:
    return x.dtype == np.float32 and shape.N > FEW and tensor_cores.applicable(shape, which)


def _shape(N: int, inputs: int, outputs: int) -> ConvShape:
    return ConvShape.of((N, inputs, 1, 1), (outputs, inputs, 1, 1), ConvOptions())


def _pixels(matrix: Array) -> Array:
    """Return a matrix [N, C] as images of one pixel, [N, 1, 1, C]."""
    return contiguous(matrix).reshape(len(matrix), 1, 1, -1)
