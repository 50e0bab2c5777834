"""Convolution, version 1: one thread per element, float32 and float64."""

from __future__ import annotations

from tinyalex.backends.cuda.conv.shape import ConvShape
from tinyalex.backends.cuda.launch import launch, type_name
from tinyalex.backends.gpu import cupy
from tinyalex.backends.types import Array

THREADS = 256  # per block


def forward(x: Array, weight: Array, bias: Array | None, shape: ConvShape) -> Array:
    """Return y [N, Ho, Wo, K] of x [N, H, W, C] and weight [K, R, S, C/G]."""
    y = cupy().empty((shape.N, shape.Ho, shape.Wo, shape.K), x.dtype)
    _launch("conv_forward", y, (x, weight, bias, y, shape))
    return y


def input_grad(grad: Array, weight: Array, shape: ConvShape) -> Array:
    """Return dx [N, H, W, C] of dy [N, Ho, Wo, K] and weight [K, R, S, C/G]."""
    dx = cupy().empty((shape.N, shape.H, shape.W, shape.C), grad.dtype)
    _launch("conv_input_grad", dx, (grad, weight, dx, shape))
    return dx


def weight_grad(grad: Array, x: Array, shape: ConvShape) -> Array:
    """Return dweight [K, R, S, C/G] of dy [N, Ho, Wo, K] and x [N, H, W, C]."""
    dweight = cupy().empty((shape.K, shape.R, shape.S, shape.channels), grad.dtype)
    _launch("conv_weight_grad", dweight, (grad, x, dweight, shape))
    return dweight


def _launch(operation: str, result: Array, args: tuple[Array | ConvShape | None, ...]) -> None:
    entry = f"{operation}_naive<{type_name(result.dtype)}>"
    launch(f"{operation}.cu", entry, (-(-result.size // THREADS),), (THREADS,), args)
