"""Winograd's weights: transforms, and channels padded to whole vectors."""

from __future__ import annotations

import numpy as np
from numba import prange

from tinyalex.backends import memory
from tinyalex.backends.cpu.conv.winograd_tiles import add
from tinyalex.backends.cpu.conv.winograd_transforms import (
    TILE,
    weight_gradient_transform,
    weight_transform,
)
from tinyalex.backends.cpu.microkernel import WIDTH
from tinyalex.backends.cpu.runtime import parallel_kernel, plain
from tinyalex.backends.cpu.vectors import FAR, LANES, fence
from tinyalex.backends.types import Array


@parallel_kernel
def _transform_weights(taps, rotated, U):
    """Compute U = G w G^T, of the ``rotated`` filters if asked.

    ``rotated``: turned by 180 degrees, outputs as inputs.

    taps [groups, Kg, Cg, r * r] -> U [n, n, groups, panels, channels in, `WIDTH` channels out].
    """
    n, _, groups, panels, depth, _ = U.shape
    r = n + 1 - TILE
    outputs = taps.shape[2] if rotated else taps.shape[1]
    width, point = r * WIDTH, groups * panels * depth * WIDTH
    for number in prange(groups * panels):
        g, panel = divmod(np.int64(number), panels)
        lines = np.zeros((r * r, WIDTH), np.float32)
        half = np.empty((n, width), np.float32)
        first = panel * WIDTH
        for i in range(depth):
            for j in range(min(WIDTH, outputs - first)):
                filter_taps = taps[g, i, first + j] if rotated else taps[g, first + j, i]
                for tap in range(r * r):
                    lines[tap, j] = filter_taps[r * r - 1 - tap] if rotated else filter_taps[tap]
            weight_transform(n, lines, 0, width, half, 0, width, width)
            for k in range(n):
                target = k * n * point + (np.int64(number) * depth + i) * WIDTH
                weight_transform(n, half, k * width, WIDTH, U, target, point, WIDTH, U.size > FAR)
        fence()


@parallel_kernel
def gather_weight_grad(dU, dw):
    """Compute dw = G^T (sum of the parts) G.

    dU [parts, n, n, groups, Cg, Kg] -> dw [groups, Kg, Cg, r * r].
    """
    parts, n, _, groups, Cg, Kg = dU.shape
    r = n + 1 - TILE
    blocks = Cg // LANES
    point = groups * Cg * Kg
    for block in prange(groups * blocks):
        g, number = divmod(np.int64(block), blocks)
        one = np.empty((r, n * Kg), np.float32)
        half = np.empty((r, n * Kg), np.float32)
        line = np.empty((r, Kg), np.float32)
        for c in range(number * LANES, (number + 1) * LANES):
            half[:] = 0
            for part in range(parts):
                for column in range(n):
                    source = (part * n * n + column) * point + (g * Cg + c) * Kg
                    weight_gradient_transform(
                        n, dU, source, n * point, one, column * Kg, n * Kg, Kg
                    )
                add(one.reshape(one.size), half.reshape(one.size), half.reshape(one.size))
            for a in range(r):
                weight_gradient_transform(n, half, a * n * Kg, Kg, line, 0, Kg, Kg)
                for o in range(Kg):
                    for b in range(r):
                        dw[g, o, c, a * r + b] = line[b, o]


def padded(channels: int, groups: int) -> int:
    """Return the channels of a group, filled up to whole vectors."""
    return -(-channels // groups // LANES) * LANES


def _resize(array: Array, groups: int, axis: int, channels: int) -> Array:
    """Return ``array`` with ``channels`` in each group: zeros added, or some dropped."""
    shape = array.shape
    old = shape[axis] // groups
    if channels == old:
        return plain(array)
    result = memory.empty(
        (*shape[:axis], groups, channels, *shape[axis + 1 :]), np.dtype(np.float32)
    )
    kept = min(old, channels)
    some, others = [
        (slice(None),) * (axis + 1) + (part,) for part in (slice(kept), slice(kept, None))
    ]
    result[some] = array.reshape(*shape[:axis], groups, old, *shape[axis + 1 :])[some]
    result[others] = 0
    return result.reshape(*shape[:axis], groups * channels, *shape[axis + 1 :])


def fill(array: Array, groups: int, axis: int) -> Array:
    """Return ``array`` with each channel group zero-padded to whole vectors."""
    return _resize(array, groups, axis, padded(array.shape[axis], groups))


def strip(array: Array, groups: int, axis: int, channels: int) -> Array:
    """Undo `fill`."""
    return _resize(array, groups, axis, channels // groups)


def points(weight: Array, groups: int, rotated: bool) -> Array:
    """Return U, the transformed weights; ``rotated``: of the transpose, rotated by 180 degrees."""
    taps = weight.shape[2]
    n = TILE + taps - 1
    filters = fill(fill(weight, groups, 0), 1, 1)
    Kg, Cg = filters.shape[0] // groups, filters.shape[1]
    outputs, depth = (Cg, Kg) if rotated else (Kg, Cg)
    U = memory.empty((n, n, groups, -(-outputs // WIDTH), depth, WIDTH), np.float32)
    _transform_weights(filters.reshape(groups, Kg, Cg, taps * taps), rotated, U)
    return U
