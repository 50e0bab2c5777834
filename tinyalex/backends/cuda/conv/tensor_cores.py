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
from typing import Literal, NamedTuple, get_args

from tinyalex.backends.cuda.conv.shape import ConvShape
from tinyalex.backends.cuda.launch import launch
from tinyalex.backends.gpu import cupy, most_shared_bytes, multiprocessors
from tinyalex.backends.types import Array

Pass = Literal["forward", "input_grad", "weight_grad"]
Tile = tuple[int, int]  # rows and columns of the result that a block computes

PRECISIONS = {"highest": "Tf32x3", "high": "Tf32", "medium": "Bf16"}
TILES: tuple[Tile, ...] = (128, 128), (64, 64)
INSTANCES = {
    f"conv_{which}": tuple(
        f"conv_{which}<{precision}, {rows}, {columns}>"
        for precision in PRECISIONS.values()
        for rows, columns in TILES
    )
    for which in get_args(Pass)
}
K_TILE = 32  # of the reduction; as in tensor_tile.cuh
LEAST_K_TILES = 8  # of a part, lest its beginning and end outweigh them


class Cut(NamedTuple):
    """Tile and splits of a product; None leaves the choice to `plan`."""

    tile: Tile | None = None
    splits: int | None = None  # parts of the reduction


CHOSEN = Cut()


class Sizes(NamedTuple):
    """A product of rows x columns, one for each group, of sums of ``depth`` terms."""

    rows: int
    columns: int
    depth: int
    groups: int


def applicable(shape: ConvShape, which: Pass) -> bool:
    """Return whether channels (or filters) are a multiple of four."""
    whole_channels = shape.C // shape.groups % 4 == 0
    whole_filters = shape.K // shape.groups % 4 == 0
    return whole_channels and (which == "forward" or whole_filters)


def sizes(shape: ConvShape, which: Pass) -> Sizes:
    """Return the product that a pass is."""
    filters, channels, taps = shape.K // shape.groups, shape.C // shape.groups, shape.R * shape.S
    outputs, pixels = shape.N * shape.Ho * shape.Wo, shape.N * shape.H * shape.W
    rows, columns, depth = {
        "forward": (outputs, filters, taps * channels),
        "input_grad": (pixels, channels, taps * filters),
        "weight_grad": (filters, taps * channels, outputs),
    }[which]
    return Sizes(rows, columns, depth, shape.groups)


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
    y = shape.N, shape.Ho, shape.Wo, shape.K
    return _product("forward", (x, weight), y, shape, precision, cut, (bias, relu))


def conv_input_grad_tensor(
    grad: Array, weight: Array, shape: ConvShape, precision: str, cut: Cut = CHOSEN
) -> Array:
    """Return dx: [N, Ho, Wo, K] -> [N, H, W, C].

    With strides it also multiplies the zeros between the pixels of the gradient: correct, wasteful.
    """
    dx = shape.N, shape.H, shape.W, shape.C
    return _product("input_grad", (grad, weight), dx, shape, precision, cut)


def conv_weight_grad_tensor(
    grad: Array, x: Array, shape: ConvShape, precision: str, cut: Cut = CHOSEN
) -> Array:
    """Return dweight: [N, Ho, Wo, K] and [N, H, W, C] -> [K, R, S, C/G]."""
    dweight = shape.K, shape.R, shape.S, shape.C // shape.groups
    return _product("weight_grad", (grad, x), dweight, shape, precision, cut)


class Plan(NamedTuple):
    """Tile and splits of a product."""

    tile: Tile
    splits: int  # parts of the reduction
    split_k_tiles: int  # in each part


def plan(product: Sizes, precision: str, cut: Cut = CHOSEN) -> Plan:
    """Choose the larger tile unless it leaves multiprocessors idle.

    Where there are fewer tiles than two for each multiprocessor, the reduction is split, as far as
    every part keeps `LEAST_K_TILES`. The larger tile wants more shared memory than GPUs outside of
    data centres have (99 KB).
    """
    return _plan(product, precision, cut, multiprocessors(), most_shared_bytes())


@lru_cache(maxsize=1024)
def _plan(product: Sizes, precision: str, cut: Cut, multiprocessors: int, most_shared: int) -> Plan:
    tiles = [cut.tile] if cut.tile else [t for t in TILES if shared_bytes(t) <= most_shared]
    k_tiles = -(-product.depth // K_TILE)
    wanted = 2 * multiprocessors
    for tile in tiles:
        blocks = max(1, _blocks(product, tile) * product.groups)
        parts = cut.splits or max(1, min(wanted // blocks, k_tiles // LEAST_K_TILES))
        wastes_half = min(product.rows, product.columns) <= tile[0] // 2
        if not wastes_half and 2 * blocks * parts >= wanted:
            break
    split_k_tiles = max(1, -(-k_tiles // parts))
    return Plan(tile, max(1, -(-k_tiles // split_k_tiles)), split_k_tiles)


def threads(precision: str, tile: Tile) -> int:
    """Return the threads per block; 3xTF32 fragments need more registers."""
    sums = 4 * 64 * (32 if precision == "highest" else 64)
    return 256 if tile[0] * tile[1] > sums else 128


def shared_bytes(tile: Tile) -> int:
    """Return a block's shared memory: the ring, and four numbers per row."""
    rows, columns = tile
    stages = 3 if rows * columns > 64 * 64 else 4
    line = K_TILE + 4  # floats; four in excess keep the banks apart
    return 4 * (stages * (rows + columns) * line + 4 * rows)


def _blocks(product: Sizes, tile: Tile) -> int:
    """Return the tiles of a group."""
    return -(-product.rows // tile[0]) * -(-product.columns // tile[1])


def _product(
    which: Pass,
    factors: tuple[Array, Array],
    result_shape: tuple[int, ...],
    shape: ConvShape,
    precision: str,
    cut: Cut,
    options: tuple[Array | None, bool] | tuple[()] = (),
) -> Array:
    """Return a pass's result; ``options`` are bias and ReLU."""
    product = sizes(shape, which)
    tile, splits, split_k_tiles = plan(product, precision, cut)
    parts = cupy().empty((splits, *result_shape), factors[0].dtype)
    at_once = options if splits == 1 or not options else (None, False)
    launch(
        f"conv_{which}_tensor.cu",
        f"conv_{which}<{PRECISIONS[precision]}, {tile[0]}, {tile[1]}>",
        grid=(_blocks(product, tile), shape.groups, splits),
        block=(threads(precision, tile),),
        args=(*factors, parts, shape, split_k_tiles, *at_once),
        shared_bytes=shared_bytes(tile),
    )
    if splits == 1:
        return parts[0]
    bias, relu = options or (None, False)
    result = cupy().empty(result_shape, parts.dtype)
    launch(
        "split_sum.cu",
        "split_sum",
        grid=(-(-result.size // 256),),
        block=(256,),
        args=(parts, bias, result, splits, result.size, result.shape[-1], relu),
    )
    return result
