"""Convolution and linear layers on tensor cores (mma.sync).

The kernels take arrays as they lie in memory, channels last: x [N, H, W, C], weight [K, R, S, C/G],
y [N, Ho, Wo, K], all float32, C-contiguous and on the device. A linear layer is a convolution with
H = W = R = S = 1. How they multiply is told by the words of `tinyalex.set_float32_matmul_precision`
(relative errors of convolutions of random numbers):

- ``"highest"``: every factor is the sum of two TF32 numbers, three products; 5e-7, where float32
  itself has 3e-7 (sums of 2400 products);
- ``"high"``: factors rounded to TF32 (10 bits of mantissa), 3e-4;
- ``"medium"``: factors rounded to bfloat16 (7 bits), 2e-3.

Sums are float32, and taken in the same order in every run on the same kind of GPU.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple

from tinyalex.backends.cuda.conv.shape import ConvShape
from tinyalex.backends.cuda.launch import launch
from tinyalex.backends.gpu import cupy, most_shared_bytes, multiprocessors
from tinyalex.backends.types import Array

Pass = Literal["forward", "input_grad", "weight_grad"]

PRECISIONS = {"highest": "tf32x3", "high": "tf32", "medium": "bf16"}
K_TILE = 32  # of the reduction; as in tensor_tile.cuh
STAGES = {128: 3, 64: 4}  # of the ring, by the side of a tile; as there
LEAST_K_TILES = 8  # of a part, lest its beginning and end outweigh them


class Cut(NamedTuple):
    """Tile and splits of a product; None leaves the choice to `plan`."""

    tile: int | None = None  # side of the square that a block computes
    splits: int | None = None  # parts of the reduction


CHOSEN = Cut()


def applicable(shape: ConvShape, which: Pass) -> bool:
    """Return whether channels (or filters) are a multiple of four."""
    whole_channels = shape.C // shape.groups % 4 == 0
    whole_filters = shape.K // shape.groups % 4 == 0
    return whole_channels and (which == "forward" or whole_filters)


def conv_forward_tensor(
    x: Array,
    weight: Array,
    bias: Array | None,
    shape: ConvShape,
    precision: str,
    relu: bool = False,
    cut: Cut = CHOSEN,
) -> Array:
    """Return ``y = x * weight + bias``, or ``max(y, 0)``: [N, H, W, C] -> [N, Ho, Wo, K]."""
    rows, columns = shape.N * shape.Ho * shape.Wo, shape.K // shape.groups
    depth = shape.R * shape.S * (shape.C // shape.groups)
    chosen = plan(rows, columns, shape.groups, depth, cut)
    parts = _product(
        f"conv_forward_{PRECISIONS[precision]}",
        chosen,
        _blocks(rows, columns, chosen.tile),
        (x, weight),
        shape,
        (shape.N, shape.Ho, shape.Wo, shape.K),
        (bias, relu) if chosen.splits == 1 else (None, False),
    )
    return _sum(parts, bias, relu)


def conv_input_grad_tensor(
    grad: Array, weight: Array, shape: ConvShape, precision: str, cut: Cut = CHOSEN
) -> Array:
    """Return dx: [N, Ho, Wo, K] -> [N, H, W, C].

    With strides it also multiplies the zeros between the pixels of the gradient: correct, wasteful.
    """
    rows, columns = shape.N * shape.H * shape.W, shape.C // shape.groups
    depth = shape.R * shape.S * (shape.K // shape.groups)
    chosen = plan(rows, columns, shape.groups, depth, cut)
    parts = _product(
        f"conv_input_grad_{PRECISIONS[precision]}",
        chosen,
        _blocks(rows, columns, chosen.tile),
        (grad, weight),
        shape,
        (shape.N, shape.H, shape.W, shape.C),
    )
    return _sum(parts)


def conv_weight_grad_tensor(
    grad: Array, x: Array, shape: ConvShape, precision: str, cut: Cut = CHOSEN
) -> Array:
    """Return dweight: [N, Ho, Wo, K] and [N, H, W, C] -> [K, R, S, C/G]."""
    rows, channels = shape.K // shape.groups, shape.C // shape.groups
    columns, pixels = shape.R * shape.S * channels, shape.N * shape.Ho * shape.Wo
    chosen = plan(rows, columns, shape.groups, pixels, cut)
    parts = _product(
        f"conv_weight_grad_{PRECISIONS[precision]}",
        chosen,
        _blocks(rows, columns, chosen.tile),
        (grad, x),
        shape,
        (shape.K, shape.R, shape.S, channels),
    )
    return _sum(parts)


class Plan(NamedTuple):
    """Tiles and splits of a product of rows x columns."""

    tile: int  # side of the square that a block computes
    splits: int  # parts of the reduction
    split_k_tiles: int  # in each part


def plan(rows: int, columns: int, groups: int, reduction: int, cut: Cut = CHOSEN) -> Plan:
    """Choose the larger tile unless it leaves multiprocessors idle.

    Where there are fewer tiles than two for each multiprocessor, the reduction is split, as far as
    every part keeps `LEAST_K_TILES`. The larger tile wants more shared memory than GPUs outside of
    data centres have (99 KB).
    """
    return _plan(rows, columns, groups, reduction, cut, multiprocessors(), most_shared_bytes())


@lru_cache(maxsize=1024)
def _plan(
    rows: int,
    columns: int,
    groups: int,
    reduction: int,
    cut: Cut,
    multiprocessors: int,
    most_shared: int,
) -> Plan:
    sides = [cut.tile] if cut.tile else [s for s in STAGES if shared_bytes(s) <= most_shared]
    k_tiles = -(-reduction // K_TILE)
    wanted = 2 * multiprocessors
    for side in sides:
        blocks = max(1, _blocks(rows, columns, side) * groups)
        parts = cut.splits or max(1, min(wanted // blocks, k_tiles // LEAST_K_TILES))
        wastes_half = min(rows, columns) <= side // 2
        if not wastes_half and 2 * blocks * parts >= wanted:
            break
    split_k_tiles = max(1, -(-k_tiles // parts))
    return Plan(side, max(1, -(-k_tiles // split_k_tiles)), split_k_tiles)


def threads(kernel: str, tile: int) -> int:
    """Return the threads per block; 3xTF32 factors need more registers."""
    return 256 if tile == 128 and kernel.endswith("tf32x3") else 128


def shared_bytes(tile: int) -> int:
    """Return a block's shared memory: the ring, and four numbers per row."""
    line = K_TILE + 4  # floats; four in excess keep the banks apart
    return 4 * (STAGES[tile] * 2 * tile * line + 4 * tile)


def _blocks(rows: int, columns: int, tile: int) -> int:
    return -(-rows // tile) * -(-columns // tile)


def _product(
    kernel: str,
    chosen: Plan,
    blocks: int,
    factors: tuple[Array, Array],
    shape: ConvShape,
    result_shape: tuple[int, ...],
    options: tuple[Array | None, bool] | tuple[()] = (),
) -> Array:
    """Return [splits, *result_shape]: what each part of the reduction found."""
    name, tile = kernel.rpartition("_")[0], chosen.tile
    parts = cupy().empty((chosen.splits, *result_shape), factors[0].dtype)
    launch(
        f"{name}_tensor.cu",
        f"{kernel}_{tile}",
        grid=(blocks, shape.groups, chosen.splits),
        block=(threads(kernel, tile),),
        args=(*factors, parts, shape, chosen.split_k_tiles, *options),
        shared_bytes=shared_bytes(tile),
    )
    return parts


def _sum(parts: Array, bias: Array | None = None, relu: bool = False) -> Array:
    """Return the sum of the parts, in order, with bias and ReLU.

    A single part has them already.
    """
    if len(parts) == 1:
        return parts[0]
    result = cupy().empty(parts.shape[1:], parts.dtype)
    launch(
        "split_sum.cu",
        "split_sum",
        grid=(-(-result.size // 256),),
        block=(256,),
        args=(parts, bias, result, len(parts), result.size, result.shape[-1], relu),
    )
    return result
