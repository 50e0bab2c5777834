"""Tiles and splits of products on tensor cores, by estimated time.

A block computes a tile of the result, one k-tile of the reduction after the other; where tiles are
too few for all multiprocessors, the reduction is split among several blocks. Two kinds of kernels
do it: `MmaSync` on any GPU since Ampere, `Wgmma` on Hopper. All speeds here are estimates for
Hopper, not yet measured.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal, NamedTuple

from tinyalex.backends.cuda.conv.shape import ConvShape
from tinyalex.backends.gpu import most_shared_bytes, multiprocessors

Pass = Literal["forward", "input_grad", "weight_grad"]
Tile = tuple[int, int]  # rows and columns of the result that a block computes

LEAST_K_TILES = 8  # of a part, lest its beginning and end outweigh them
L2_BYTES = 26  # from the L2 cache, per cycle and multiprocessor
ENDS = 4  # k-tiles' time to fill the ring and to store the result
ALONE = 0.6  # of the time of as many blocks as fit: what a block without neighbours takes
LAUNCH = 5000  # cycles of another kernel, beside its work


class Sizes(NamedTuple):
    """Rows, columns and depth of a product, one per group."""

    rows: int
    columns: int
    depth: int
    groups: int


class Cut(NamedTuple):
    """Tile and splits of a product; None leaves the choice to `plan`."""

    tile: Tile | None = None
    splits: int | None = None  # parts of the reduction


CHOSEN = Cut()


class Plan(NamedTuple):
    """Tile and splits of a product."""

    tile: Tile
    splits: int  # parts of the reduction
    split_k_tiles: int  # in each part
    cycles: float = 0  # as `estimate` finds


class Block(NamedTuple):
    """Threads of a block, stages of its ring, blocks whose registers fit."""

    threads: int
    stages: int
    fit: int


@dataclass(frozen=True, eq=False)
class Kernels:
    """Kernels for one format of the factors: names, speed and resources."""

    name: str  # of the format, an argument of the tile's template
    multiply_adds: int  # per cycle and multiprocessor
    tiles: Mapping[Pass, tuple[Tile, ...]]
    itemsize: int = 4  # bytes of a number in memory

    file: ClassVar[str]
    template: ClassVar[str]  # of its tiles
    line: ClassVar[int]  # bytes of a row or column of a k-tile in shared memory
    add_parts: ClassVar[tuple[Pass, ...]] = ("forward",)
    """Passes whose last block adds the parts of a split sum; of others, another kernel does."""

    def along_k(self, tile: Tile) -> bool:
        """Return whether the input's gradient wants weights with the filters innermost."""
        return False

    @property
    def k_tile(self) -> int:
        """Return the k's of a k-tile: 128 bytes of each row and column."""
        return 128 // self.itemsize

    def block(self, tile: Tile) -> Block:
        """Return what the kernels' source says of a block."""
        raise NotImplementedError

    def instance(self, which: Pass, tile: Tile) -> str:
        """Return the name of the kernel for a pass and a tile."""
        arguments = self.name, *map(str, tile), *self.groups(which)
        return f"conv_{which}<{self.template}<{', '.join(arguments)}>>"

    def groups(self, which: Pass) -> tuple[str, ...]:
        """Return the numbers that a thread copies at once, per factor."""
        return ()

    def shared_bytes(self, tile: Tile) -> int:
        """Return a block's shared memory: the ring, and four numbers per row."""
        return self.block(tile).stages * sum(tile) * self.line + 16 * tile[0]

    def blocks_that_fit(self, tile: Tile, most_shared: int) -> int:
        """Return how many blocks fit on a multiprocessor.

        Registers and shared memory limit them. Each block takes 1 KB besides its own.
        """
        by_memory = (most_shared + 1024) // (self.shared_bytes(tile) + 1024)
        return min(self.block(tile).fit, by_memory)


@dataclass(frozen=True, eq=False)
class MmaSync(Kernels):
    """Kernels whose warps multiply fragments in registers (tensor_tile.cuh)."""

    sums: int = 128  # of a thread at most, in a block of four warps
    file = "conv_mma.cu"
    template = "Tile"
    line = 128 + 16  # 16 in excess keep the banks apart

    def block(self, tile: Tile) -> Block:
        """Return four warps, or eight where their registers would not do."""
        threads = 256 if math.prod(tile) > 128 * self.sums else 128
        small = math.prod(tile) <= 64 * 64
        return Block(threads, 4 if small else 3, 1 if threads == 256 else 3 if small else 2)


@dataclass(frozen=True, eq=False)
class Wgmma(Kernels):
    """Kernels whose warpgroups multiply from shared memory, on Hopper alone (conv_wgmma.cu)."""

    channels: int | None = None  # of images, all of which a thread copies at once
    file = "conv_wgmma.cu"
    template = "WarpgroupTile"
    line = 128
    add_parts = "forward", "input_grad"

    def groups(self, which: Pass) -> tuple[str, ...]:
        """Return the numbers that a thread copies at once, per factor."""
        if self.channels is None:
            return ()
        return (str(self.channels),) if which == "forward" else ("8", str(self.channels))

    def along_k(self, tile: Tile) -> bool:
        """Return whether the input's gradient wants weights with the filters innermost."""
        return self.itemsize == 4 or tile[1] % 64 != 0

    def block(self, tile: Tile) -> Block:
        """Return a warpgroup for 64 rows each."""
        return Block(2 * tile[0], 4, 1)


TALL: tuple[Tile, ...] = (128, 192), (128, 128), (128, 96), (64, 64)
TILES: dict[Pass, tuple[Tile, ...]] = {
    "forward": TALL,
    "input_grad": TALL,
    "weight_grad": tuple((rows, columns) for columns, rows in TALL),  # of few filters
}
# By the words of `tinyalex.set_float32_matmul_precision`. They reach 0.62 of Hopper's full rate; in
# "highest", what splitting the factors leaves.
MMA_SYNC = {
    "highest": MmaSync("Tf32x3", 200, TILES, sums=64),
    "high": MmaSync("Tf32", 640, TILES),
    "medium": MmaSync("Bf16", 1280, TILES),
}
# By the factors' dtype, 0.8 of the full rate. Products are tall, hence tiles of many rows: a
# larger tile has more products per byte, and smaller ones leave less of the last wave empty.
LARGE: tuple[Tile, ...] = (192, 256), (256, 128), (256, 96), (128, 128)
WGMMA = {
    "float32": Wgmma("float", 820, {"forward": LARGE, "input_grad": LARGE}),
    "bfloat16": Wgmma(
        "bfloat16",
        1640,
        {"forward": LARGE, "input_grad": LARGE, "weight_grad": ((192, 256), (128, 256))},
        itemsize=2,
    ),
}
# bfloat16 images with room for four channels, of which a thread copies 8 bytes.
IMAGES = Wgmma(
    "bfloat16",
    1640,
    {"forward": ((256, 96),), "weight_grad": ((128, 256),)},
    itemsize=2,
    channels=4,
)
INSTANCES: defaultdict[tuple[str, str], list[str]] = defaultdict(list)  # by file and template
for _kernels in (*MMA_SYNC.values(), *WGMMA.values(), IMAGES):
    for _which, _tiles in _kernels.tiles.items():
        INSTANCES[_kernels.file, f"conv_{_which}"] += [
            _kernels.instance(_which, tile) for tile in _tiles
        ]


def sizes(shape: ConvShape, which: Pass) -> Sizes:
    """Return the product that a pass is."""
    filters, channels, taps = shape.filters, shape.channels, shape.R * shape.S
    outputs, pixels = shape.N * shape.Ho * shape.Wo, shape.N * shape.H * shape.W
    rows, columns, depth = {
        "forward": (outputs, filters, taps * channels),
        "input_grad": (pixels, channels, taps * filters),
        "weight_grad": (filters, taps * channels, outputs),
    }[which]
    return Sizes(rows, columns, depth, shape.groups)


def plan(which: Pass, product: Sizes, kernels: Kernels, cut: Cut = CHOSEN) -> Plan:
    """Choose the tile and the splits that `estimate` finds fastest.

    Large tiles want more shared memory than GPUs outside of data centres have (99 KB).
    """
    return plan_for(which, product, kernels, cut, multiprocessors(), most_shared_bytes())


@lru_cache(maxsize=1024)
def plan_for(
    which: Pass,
    product: Sizes,
    kernels: Kernels,
    cut: Cut,
    multiprocessors: int,
    most_shared: int,
) -> Plan:
    """Return `plan` for a GPU with these numbers."""
    k_tiles = -(-product.depth // kernels.k_tile)
    plans = []
    for tile in [cut.tile] if cut.tile else kernels.tiles[which]:
        slots = multiprocessors * kernels.blocks_that_fit(tile, most_shared)
        useful = min(k_tiles // LEAST_K_TILES, 2 * slots // max(1, blocks(product, tile)))
        parts = [cut.splits] if cut.splits else range(1, max(1, useful) + 1)
        in_each = {max(1, -(-k_tiles // splits)) for splits in parts} if slots else ()
        plans += [Plan(tile, max(1, -(-k_tiles // each)), each) for each in sorted(in_each)]
    cycles = [estimate(which, product, kernels, p, multiprocessors, most_shared) for p in plans]
    if not plans:
        least = kernels.shared_bytes(cut.tile or min(kernels.tiles[which]))
        raise RuntimeError(
            f"expected a GPU with {least} bytes of shared memory per block for convolutions on "
            f"tensor cores, but this one has {most_shared}; compute in float64, or on the CPU"
        )
    best = cycles.index(min(cycles))
    return plans[best]._replace(cycles=cycles[best])


def estimate(
    which: Pass,
    product: Sizes,
    kernels: Kernels,
    plan: Plan,
    multiprocessors: int,
    most_shared: int,
) -> float:
    """Return the cycles that a plan takes, wave by wave.

    A last wave that is not full takes less, but no less than `ALONE` of it. A k-tile takes as long
    as its multiplications, or as its factors on their way from the L2 cache; of the shorter of the
    two a quarter shows. Parts are added up by a block per tile, alone on its multiprocessor, or by
    a kernel on all of them; another one transposes weights, at the L2 cache's rate even where
    they are too many for it.
    """
    (rows, columns), splits, split_k_tiles, _ = plan
    fit = kernels.blocks_that_fit(plan.tile, most_shared)
    waves, left = divmod(blocks(product, plan.tile) * splits, multiprocessors * fit)
    turns = waves * fit + (max(-(-left // multiprocessors), ALONE * fit) if left else 0)
    multiplying = rows * columns * kernels.k_tile / kernels.multiply_adds
    loading = kernels.itemsize * (rows + columns) * kernels.k_tile / L2_BYTES
    of_k_tile = max(multiplying, loading) + min(multiplying, loading) / 4
    cycles = turns * (split_k_tiles + ENDS) * of_k_tile
    if splits > 1 and which in kernels.add_parts:
        cycles += splits * 4 * rows * columns / L2_BYTES
    elif splits > 1:
        result = 4 * product.rows * product.columns * product.groups
        cycles += LAUNCH + (splits + 1) * result / (L2_BYTES * multiprocessors)
    if which == "input_grad" and kernels.along_k(plan.tile):
        weights = kernels.itemsize * product.depth * product.columns * product.groups
        cycles += LAUNCH + 2 * weights / (L2_BYTES * multiprocessors)
    return cycles


def faster(which: Pass, product: Sizes, one: Kernels, other: Kernels) -> bool:
    """Return whether the first kernels' plan takes fewer cycles than the others'."""
    return plan(which, product, one).cycles < plan(which, product, other).cycles


def blocks(product: Sizes, tile: Tile) -> int:
    """Return the tiles of all groups."""
    return -(-product.rows // tile[0]) * -(-product.columns // tile[1]) * product.groups
