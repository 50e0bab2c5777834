"""Passes on tensor cores, by kernels that suit, estimated fastest.

Arrays are channels last, as those of `tensor_cores` and `hopper`. bfloat16 is for Hopper's kernels
alone. float32 is multiplied as exactly as `tinyalex.set_float32_matmul_precision` says: "high", by
Hopper's kernels too, where they are faster.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tinyalex.backends.bfloat16 import is_bfloat16
from tinyalex.backends.cuda.conv import hopper, tensor_cores
from tinyalex.backends.cuda.conv.shape import ConvShape
from tinyalex.backends.cuda.conv.tiles import MMA_SYNC, WGMMA, Pass, faster, sizes
from tinyalex.backends.precision import get_float32_matmul_precision as precision
from tinyalex.backends.types import Array


def applicable(shape: ConvShape, which: Pass, dtype: np.dtype[Any]) -> bool:
    """Return whether a pass can be computed here."""
    if is_bfloat16(dtype):
        return hopper.applicable(shape, which)
    return dtype == np.float32 and tensor_cores.applicable(shape, which)


def forward(
    x: Array, weight: Array, bias: Array | None, shape: ConvShape, relu: bool = False
) -> Array:
    """Return ``y = x * weight + bias``, or ``max(y, 0)``: [N, H, W, C] -> [N, Ho, Wo, K]."""
    if _for_hopper(shape, "forward", x.dtype):
        return hopper.forward(x, weight, bias, shape, relu)
    return tensor_cores.conv_forward_tensor(x, weight, bias, shape, precision(), relu)


def input_grad(grad: Array, weight: Array, shape: ConvShape) -> Array:
    """Return dx: [N, Ho, Wo, K] -> [N, H, W, C]."""
    if _for_hopper(shape, "input_grad", grad.dtype):
        return hopper.input_grad(grad, weight, shape)
    return tensor_cores.conv_input_grad_tensor(grad, weight, shape, precision())


def weight_grad(grad: Array, x: Array, shape: ConvShape) -> Array:
    """Return dweight, float32: [N, Ho, Wo, K] and [N, H, W, C] -> [K, R, S, C/G]."""
    if _for_hopper(shape, "weight_grad", grad.dtype):
        return hopper.weight_grad(grad, x, shape)
    return tensor_cores.conv_weight_grad_tensor(grad, x, shape, precision())


def _for_hopper(shape: ConvShape, which: Pass, dtype: np.dtype[Any]) -> bool:
    if is_bfloat16(dtype):
        return True
    if precision() != "high" or which == "weight_grad" or not hopper.available():
        return False
    return faster(which, sizes(shape, which), WGMMA["float32"], MMA_SYNC["high"])
