"""Softmax cross-entropy and its gradient, without waiting for the GPU."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tinyalex.backends.cuda.launch import launch, type_name
from tinyalex.backends.gpu import contiguous, cupy
from tinyalex.backends.types import Array

WARP = 32
BLOCK = 128  # threads


class Rows(NamedTuple):
    """Values that backward needs of forward: options, and results per row."""

    ignored: int
    smoothing: float
    targets: Array  # uint64 [rows]
    maxima: Array  # [rows], as are
    log_sums: Array
    divisor: Array  # without axes: by what the sum of the losses was divided


def cross_entropy(
    logits: Array, target: Array, ignore_index: int, mean: bool, label_smoothing: float
) -> tuple[Array, Rows]:
    """Return the loss, without axes, and the `Rows` for `cross_entropy_input_grad`.

    ``loss_i = -sum_c q_ic log(softmax(x_i))_c`` with q = 1 - e at the target, and e / C more at
    every class. ``logits`` are [N, C, ...] or [C], ``target`` integers [N, ...] or []. Rows whose
    target is ``ignore_index`` do not count. The mean of no rows is NaN, as in torch, and the loss
    is NaN where a target is no class: looking at the targets here would wait for the GPU.
    """
    rows = _classes_last(logits)
    rows = contiguous(rows).reshape(-1, rows.shape[-1])
    count, classes = rows.shape
    xp, dtype, name = cupy(), logits.dtype, type_name(logits.dtype)
    targets = contiguous(target.astype(np.int64, copy=False)).reshape(-1).view(np.uint64)
    ignored = int(ignore_index) % 2**64  # the same bits, unsigned
    losses, maxima, log_sums = (xp.empty(count, dtype) for _ in range(3))
    loss, divisor = (xp.empty((), dtype) for _ in range(2))
    of_rows = (rows, targets, losses, maxima, log_sums, classes, ignored, label_smoothing)
    launch("cross_entropy.cu", f"row_losses<{name}>", (count,), (WARP,), of_rows)
    of_all = (losses, targets, loss, divisor, count, ignored, mean)
    launch("cross_entropy.cu", f"total_loss<{name}>", (1,), (BLOCK,), of_all)
    return loss, Rows(ignored, label_smoothing, targets, maxima, log_sums, divisor)


def cross_entropy_input_grad(grad: Array, logits: Array, found: Rows) -> Array:
    """Return ``dx = (softmax(x) - q) * grad / divisor``; ``grad`` is an array without axes."""
    last = _classes_last(logits)
    rows = contiguous(last).reshape(-1, last.shape[-1])
    count, classes = rows.shape
    dx = cupy().empty(rows.shape, rows.dtype)
    statistics = (found.targets, found.maxima, found.log_sums, found.divisor)
    args = (contiguous(grad), rows, *statistics, dx, classes, found.ignored, found.smoothing)
    entry = f"row_grads<{type_name(logits.dtype)}>"
    launch("cross_entropy.cu", entry, (count,), (BLOCK,), args)
    return cupy().moveaxis(dx.reshape(last.shape), -1, min(1, logits.ndim - 1))


def _classes_last(logits: Array) -> Array:
    """Return logits [N, C, ...] as [N, ..., C]."""
    return cupy().moveaxis(logits, min(1, logits.ndim - 1), -1)
