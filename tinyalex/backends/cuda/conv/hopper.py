"""Convolution with Hopper's tensor-core instructions (wgmma), forward only.

It is not chosen by itself; call `forward` where `available`.
"""

from __future__ import annotations

from tinyalex.backends.cuda.conv.shape import ConvShape
from tinyalex.backends.cuda.conv.tiles import WGMMA
from tinyalex.backends.cuda.launch import launch
from tinyalex.backends.gpu import cupy
from tinyalex.backends.types import Array

TILE = 128
THREADS = 128  # a warpgroup
STAGES = 3  # of the ring; as in conv_forward_hopper.cu
SHARED_BYTES = 16 * TILE + STAGES * 2 * TILE * WGMMA["float32"].line  # rows, and the ring


def available() -> bool:
    """Return whether the current device is a Hopper GPU."""
    return str(cupy().cuda.Device().compute_capability) == "90"


def forward(
    x: Array, weight: Array, bias: Array | None, shape: ConvShape, relu: bool = False
) -> Array:
    """Return ``x * weight + bias``, or the maximum of that and 0.

    x [N, H, W, C], weight [K, R, S, C/G] and the result [N, Ho, Wo, K] are float32, and the factors
    are cut to TF32. C/G must be a multiple of 4.
    """
    y = cupy().empty((shape.N, shape.Ho, shape.Wo, shape.K), x.dtype)
    rows, columns = shape.N * shape.Ho * shape.Wo, shape.K // shape.groups
    launch(
        "conv_forward_hopper.cu",
        "conv_forward_hopper",
        grid=(-(-rows // TILE) * -(-columns // TILE), shape.groups),
        block=(THREADS,),
        args=(x, weight, y, shape, bias, relu),
        shared_bytes=SHARED_BYTES,
    )
    return y
