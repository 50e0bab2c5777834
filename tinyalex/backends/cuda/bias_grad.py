"""Gradient of a bias, alone or with a ReLU's mask."""

from __future__ import annotations

from tinyalex.backends.bfloat16 import computing
from tinyalex.backends.cuda.launch import MOST_ROWS, launch, type_name
from tinyalex.backends.gpu import cupy
from tinyalex.backends.types import Array

LANES, THREADS = 32, 256  # as in kernels/bias_grad.cu
# Pixels are summed in so many ranges, or fewer where they would be short, or
# more where long, up to a grid's second side.
RANGES, SHORT, LONG = 256, 64, 4096


def bias_grad(grad: Array) -> Array:
    """Return dbias [K], the sum of dy [..., K] over the other axes."""
    if grad.size == 0:
        return cupy().zeros(grad.shape[-1], computing(grad.dtype))
    sums = _sums(grad)
    _launch("bias_grad", (grad, sums))
    return _total(sums)


def relu_bias_grad(grad: Array, y: Array) -> tuple[Array, Array]:
    """Return dy [..., K], 0 where y <= 0, and its `bias_grad`."""
    if grad.size == 0:
        return grad, bias_grad(grad)
    masked, sums = cupy().empty(grad.shape, grad.dtype), _sums(grad)
    _launch("relu_bias_grad", (grad, y, masked, sums))
    return masked, _total(sums)


def _sums(grad: Array) -> Array:
    K = grad.shape[-1]
    return cupy().empty((ranges(grad.size // K), K), computing(grad.dtype))


def ranges(pixels: int) -> int:
    """Return how many sums take these pixels; one more launch adds several."""
    return max(min(RANGES, pixels // SHORT), min(pixels // LONG, MOST_ROWS), 1)


def _total(sums: Array) -> Array:
    """Return the sum of the sums [ranges, K], by the same kernel."""
    if len(sums) == 1:
        return sums[0]
    total = cupy().empty((1, sums.shape[1]), sums.dtype)
    _launch("bias_grad", (sums, total))
    return total[0]


def _launch(operation: str, arrays: tuple[Array, ...]) -> None:
    """Sum the first of the arrays into the last."""
    grad, (ranges, K) = arrays[0], arrays[-1].shape
    entry = f"{operation}<{type_name(grad.dtype)}>"
    args = *arrays, grad.size // K, K
    launch("bias_grad.cu", entry, (-(-K // LANES), ranges), (THREADS,), args)
