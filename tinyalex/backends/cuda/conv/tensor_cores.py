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

import math
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple

from tinyalex.backends.cuda.conv.shape import ConvShape
from tinyalex.backends.cuda.last_block import arrivals
from tinyalex.backends.cuda.launch import launch, type_name
from tinyalex.backends.gpu import cupy, most_shared_bytes, multiprocessors
from tinyalex.backends.types import Array

Pass = Literal["forward", "input_grad", "weight_grad"]
Tile = tuple[int, int]  # rows and columns of the result that a block computes

PRECISIONS = {"highest": "Tf32x3", "high": "Tf32", "medium": "Bf16"}
TALL: tuple[Tile, ...] = (128, 192), (128, 128), (128, 96), (64, 64)
TILES: dict[Pass, tuple[Tile, ...]] = {
    "forward": TALL,
    "input_grad": TALL,
    "weight_grad": tuple((rows, columns) for columns, rows in TALL),  # of few filters
}


def instance(which: Pass, precision: str, tile: Tile) -> str:
    """Return the name of a kernel's instance."""
    return f"conv_{which}<{PRECISIONS[precision]}, {tile[0]}, {tile[1]}>"


INSTANCES = {
    f"conv_{which}": tuple(
        instance(which, precision, tile) for precision in PRECISIONS for tile in tiles
    )
    for which, tiles in TILES.items()
}
K_TILE = 32  # of the reduction; as in tensor_tile.cuh
LEAST_K_TILES = 8  # of a part, lest its beginning and end outweigh them
# Estimates for Hopper, not yet measured, of one multiprocessor per cycle: multiply-adds of the
# tensor cores (of "highest", what splitting the factors leaves), and bytes from the L2 cache.
MULTIPLY_ADDS = {"highest": 200, "high": 640, "medium": 1280}
L2_BYTES = 26
ENDS = 4  # k-tiles' time to fill the ring and to store the result
ALONE = 0.6  # of the time of as many blocks as fit: what a block without neighbours takes
LAUNCH = 5000  # cycles: another kernel, which adds up the parts of a gradient


class Cut(NamedTuple):
    """Tile and splits of a product; None leaves the choice to `plan`."""

    tile: Tile | None = None
    splits: int | None = None  # parts of the reduction


CHOSEN = Cut()


class Sizes(NamedTuple):
    """Rows, columns and depth of a product, one per group."""

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


def plan(which: Pass, product: Sizes, precision: str, cut: Cut = CHOSEN) -> Plan:
    """Choose the tile and the splits that `estimate` finds fastest.

    Large tiles want more shared memory than GPUs outside of data centres have (99 KB).
    """
    return _plan(which, product, precision, cut, multiprocessors(), most_shared_bytes())


@lru_cache(maxsize=1024)
def _plan(
    which: Pass,
    product: Sizes,
    precision: str,
    cut: Cut,
    multiprocessors: int,
    most_shared: int,
) -> Plan:
    k_tiles = -(-product.depth // K_TILE)
    plans = []
    for tile in [cut.tile] if cut.tile else TILES[which]:
        slots = multiprocessors * blocks_that_fit(precision, tile, most_shared)
        useful = min(k_tiles // LEAST_K_TILES, 2 * slots // max(1, blocks(product, tile)))
        parts = [cut.splits] if cut.splits else range(1, max(1, useful) + 1)
        in_each = {max(1, -(-k_tiles // splits)) for splits in parts} if slots else ()
        plans += [Plan(tile, max(1, -(-k_tiles // each)), each) for each in sorted(in_each)]
    if not plans:
        least = shared_bytes(cut.tile or min(TILES[which]))
        raise RuntimeError(
            f"expected a GPU with {least} bytes of shared memory per block for convolutions on "
            f"tensor cores, but this one has {most_shared}; compute in float64, or on the CPU"
        )
    cycles = partial(estimate, which, product, precision)
    return min(plans, key=lambda plan: cycles(plan, multiprocessors, most_shared))


def estimate(
    which: Pass,
    product: Sizes,
    precision: str,
    plan: Plan,
    multiprocessors: int,
    most_shared: int,
) -> float:
    """Return the cycles that a plan takes, wave by wave.

    A last wave that is not full takes less, but no less than `ALONE` of it. A k-tile takes as long
    as its multiplications, or as its factors on their way from the L2 cache; of the shorter of the
    two a quarter shows. Parts of forward are added up by a block per tile, alone on its
    multiprocessor; those of a gradient by a kernel on all of them.
    """
    (rows, columns), splits, split_k_tiles = plan
    fit = blocks_that_fit(precision, plan.tile, most_shared)
    waves, left = divmod(blocks(product, plan.tile) * splits, multiprocessors * fit)
    turns = waves * fit + (max(-(-left // multiprocessors), ALONE * fit) if left else 0)
    multiplying = rows * columns * K_TILE / MULTIPLY_ADDS[precision]
    loading = 4 * (rows + columns) * K_TILE / L2_BYTES
    of_k_tile = max(multiplying, loading) + min(multiplying, loading) / 4
    cycles = turns * (split_k_tiles + ENDS) * of_k_tile
    if splits > 1 and which == "forward":
        cycles += splits * 4 * rows * columns / L2_BYTES
    elif splits > 1:
        result = 4 * product.rows * product.columns * product.groups
        cycles += LAUNCH + (splits + 1) * result / (L2_BYTES * multiprocessors)
    return cycles


def blocks_that_fit(precision: str, tile: Tile, most_shared: int) -> int:
    """Return how many blocks fit on a multiprocessor.

    Registers and shared memory limit them. Each block takes 1 KB of shared memory besides its own.
    """
    by_registers = 1 if threads(precision, tile) == 256 else 2 if math.prod(tile) > 64 * 64 else 3
    return min(by_registers, (most_shared + 1024) // (shared_bytes(tile) + 1024))


def blocks(product: Sizes, tile: Tile) -> int:
    """Return the tiles of all groups."""
    return -(-product.rows // tile[0]) * -(-product.columns // tile[1]) * product.groups


def threads(precision: str, tile: Tile) -> int:
    """Return the threads per block; 3xTF32 fragments need more registers."""
    sums = 4 * 64 * (32 if precision == "highest" else 64)
    return 256 if math.prod(tile) > sums else 128


def shared_bytes(tile: Tile) -> int:
    """Return a block's shared memory: the ring, and four numbers per row."""
    rows, columns = tile
    stages = 3 if rows * columns > 64 * 64 else 4
    line = K_TILE + 4  # floats; four in excess keep the banks apart
    return 4 * (stages * (rows + columns) * line + 4 * rows)


def _product(
    which: Pass,
    factors: tuple[Array, Array],
    result_shape: tuple[int, ...],
    shape: ConvShape,
    precision: str,
    cut: Cut,
    options: tuple[Any, ...] = (),
) -> Array:
    """Return a pass's result; ``options`` are bias and ReLU, of forward.

    There the last block to arrive adds the parts of a split sum.
    """
    product = sizes(shape, which)
    tile, splits, split_k_tiles = plan(which, product, precision, cut)
    tiles = blocks(product, tile)
    into = result = cupy().empty(result_shape, factors[0].dtype)
    if options and splits > 1:
        options = (*options, cupy().empty((tiles, splits, *tile), result.dtype), arrivals(tiles))
    elif options:
        options = (*options, None, None)
    elif splits > 1:
        into = cupy().empty((splits, *result_shape), result.dtype)
    launch(
        f"conv_{which}_tensor.cu",
        instance(which, precision, tile),
        grid=(tiles // shape.groups, shape.groups, splits),
        block=(threads(precision, tile),),
        args=(*factors, into, shape, split_k_tiles, *options),
        shared_bytes=shared_bytes(tile),
    )
    if into is not result:
        grid, args = (-(-result.size // 256),), (into, result, splits, result.size)
        entry = f"split_sum_{type_name(result.dtype, bfloat16=True)}"
        launch("split_sum.cu", entry, grid=grid, block=(256,), args=args)
    return result
