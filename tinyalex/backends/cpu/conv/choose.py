"""Convolution on the CPU: an algorithm chosen by shape and dtype.

An algorithm is a module with the functions ``forward``, ``input_grad`` and ``weight_grad``, which
take the arguments of `conv2d`, `conv2d_input_grad` and `conv2d_weight_grad`. For a ReLU behind the
convolution ``forward`` takes ``rectify``; ``input_grad`` and ``weight_and_bias_grad`` take the
gradient and the mask that ``masked`` makes of a gradient and the ReLU's output.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from tinyalex.backends.cpu.conv import im2col, strided, winograd
from tinyalex.backends.cpu.conv.bias_grad import conv2d_bias_grad
from tinyalex.backends.cpu.elementwise import relu_input_grad
from tinyalex.backends.geometry import ConvOptions, conv_output_size
from tinyalex.backends.types import Array, Shape


class Problem(NamedTuple):
    """The shape, options and dtype that an algorithm is chosen by."""

    output_shape: Shape
    weight_shape: Shape
    options: ConvOptions
    dtype: np.dtype[Any]


MIN_CHANNELS, MIN_PIXELS = 16, 100  # for Winograd; channels of a group, pixels of the batch


def _suits_winograd(p: Problem, taps: Shape, channels: int) -> bool:
    return (
        p.dtype == np.float32
        and p.options.dilation == (1, 1)
        and taps in ((3, 3), (5, 5))
        and min(p.weight_shape[0] // p.options.groups, channels) >= MIN_CHANNELS
        and p.output_shape[0] * p.output_shape[2] * p.output_shape[3] >= MIN_PIXELS
    )


def _suits_unstrided(p: Problem) -> bool:
    return p.options.stride == (1, 1) and _suits_winograd(p, p.weight_shape[2:], p.weight_shape[1])


def _suits_strided(p: Problem) -> bool:
    R, S = p.weight_shape[2:]
    s = p.options.stride[0]
    blocks = strided.taps_as_blocks(p.weight_shape, s)
    square = R == S and p.options.stride == (s, s) and s > 1 and p.options.groups == 1
    return square and _suits_winograd(p, (blocks, blocks), s * s * p.weight_shape[1])


# The first row that suits a convolution computes it.
ALGORITHMS: tuple[tuple[ModuleType, Callable[[Problem], bool], str], ...] = (
    (
        winograd,
        _suits_unstrided,
        "a quarter of the products, where there are enough of them to pay for the transforms",
    ),
    (
        strided,
        _suits_strided,
        "the same for a stride s, with s x s pixels as the channels of one: 11x11 at stride 4",
    ),
    (im2col, lambda p: True, "any shape, at the speed of GEMM"),
)


def algorithm(problem: Problem) -> ModuleType:
    """Return the module that computes this convolution."""
    return next(module for module, suits, _ in ALGORITHMS if suits(problem))


def _forward(
    x: Array, weight: Array, bias: Array | None, options: ConvOptions, rectify: bool
) -> Array:
    size = conv_output_size(x.shape[2:], weight.shape[2:], options)
    shape = (x.shape[0], weight.shape[0], *size)
    chosen = algorithm(Problem(shape, weight.shape, options, x.dtype))
    y: Array = chosen.forward(x, weight, bias, options, rectify)
    return y


def conv2d(x: Array, weight: Array, bias: Array | None, options: ConvOptions) -> Array:
    """Correlate ``x`` [N, C, H, W] with ``weight`` [K, C/G, R, S] and add ``bias`` [K]."""
    return _forward(x, weight, bias, options, rectify=False)


def conv2d_relu(x: Array, weight: Array, bias: Array | None, options: ConvOptions) -> Array:
    """Return max(y, 0) of `conv2d`: what is negative becomes 0 before it is stored."""
    return _forward(x, weight, bias, options, rectify=True)


def conv2d_input_grad(
    grad: Array, weight: Array, input_shape: Shape, options: ConvOptions
) -> Array:
    """Return dx: each output's gradient times its filter, added over overlapping windows."""
    chosen = algorithm(Problem(grad.shape, weight.shape, options, grad.dtype))
    dx: Array = chosen.input_grad(grad, weight, input_shape, options)
    return dx


def conv2d_weight_grad(grad: Array, x: Array, weight_shape: Shape, options: ConvOptions) -> Array:
    """Return dweight: each output's gradient times its window, summed over outputs."""
    chosen = algorithm(Problem(grad.shape, weight_shape, options, grad.dtype))
    dweight: Array = chosen.weight_grad(grad, x, weight_shape, options)
    return dweight


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

    ``shapes`` are those of x and weight. Where y is 0, ``grad`` counts as 0. That is seen to where
    ``grad`` is read anyway.
    """
    need_x, need_weight, need_bias = needs
    input_shape, weight_shape = shapes
    chosen = algorithm(Problem(grad.shape, weight_shape, options, grad.dtype))
    dx = dweight = dbias = None
    grad, mask = chosen.masked(grad, y)
    if need_x:
        dx = chosen.input_grad(grad, weight, input_shape, options, mask)
    if need_weight:
        dweight, dbias = chosen.weight_and_bias_grad(grad, x, weight_shape, options, mask)
    elif need_bias:
        dbias = conv2d_bias_grad(relu_input_grad(grad, y))
    return dx, dweight, dbias if need_bias else None
