"""Factors of convolutions and linear layers, in bfloat16 or float32."""

from __future__ import annotations

from tinyalex.backends.bfloat16 import as_float32, bfloat16, computing
from tinyalex.backends.cuda.channels import widened
from tinyalex.backends.cuda.conv import products
from tinyalex.backends.cuda.linear import FEW
from tinyalex.backends.layout import as_nchw
from tinyalex.backends.numerics import LONG
from tinyalex.backends.precision import get_float32_matmul_precision
from tinyalex.backends.types import Array

FOUR = 4  # channels of an image with its room


def operands(x: Array, weight: Array, images: int | None = None) -> tuple[Array, Array]:
    """Return images and filters, or two matrices, both as bfloat16 or neither.

    It is bfloat16 for the precision "medium" on Hopper, where more than `FEW` images (those of x,
    or so many) make up for the copy of the weights and channels and filters of each group come in
    eights. What is float64 stays so.
    """
    if not (_suits(x, weight) and (len(x) if images is None else images) > FEW):
        return as_float32(x), as_float32(weight)
    return _in_bfloat16(x), _in_bfloat16(weight)


def _in_bfloat16(x: Array) -> Array:
    if x.ndim == 4 and x.shape[1] < FOUR:  # with the room that the kernels want, in one pass
        return as_nchw(widened(x, FOUR, bfloat16()))[:, : x.shape[1]]
    return x.astype(bfloat16(), copy=False)


def stores_bfloat16() -> bool:
    """Return whether activations of many images are bfloat16 in memory.

    For the precision "medium", on Hopper, with the package ml_dtypes.
    """
    medium = get_float32_matmul_precision() == "medium"
    return medium and bfloat16() is not None and products.on_hopper()


def _suits(x: Array, weight: Array) -> bool:
    half = bfloat16()
    if half is None or not x.size or not stores_bfloat16():
        return False
    if not computing(x.dtype) == computing(weight.dtype) == "float32":
        return False
    channels, filters = weight.shape[1], len(weight) * weight.shape[1] // x.shape[1]  # per group
    images = x.ndim == 4 and channels == x.shape[1] <= FOUR
    fits = products.applicable(
        FOUR if images else channels, filters, "forward" if images else "input_grad", half
    )
    # Longer sums are added up in pieces, which are to keep their digits.
    return fits and max(channels, filters) <= LONG
