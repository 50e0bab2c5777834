"""Soft targets: label smoothing, and mixup's blends of two images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tinyalex.backends import array_module
from tinyalex.backends.devices import device_of, move
from tinyalex.data import Batch


def partners(count: int) -> np.ndarray:
    """Return each image's partner in a pair; the last may be alone."""
    return np.minimum(np.arange(count) ^ 1, count - 1)


def mixed(batch: Batch, alpha: float, seed: int, epoch: int) -> tuple[Batch, np.ndarray]:
    """Return the batch with images blended in pairs, and their own shares.

    Zhang, Cisse, Dauphin, Lopez-Paz: mixup: beyond empirical risk minimization, ICLR 2018. Image i
    becomes ``l_i x_i + (1 - l_i) x_j``, where j is its neighbour (`partners`), and
    ``l_i = max(b, 1 - b)`` with b from Beta(alpha, alpha): the label of an image stays that of its
    larger part. b is drawn from (seed, epoch, image).
    """
    draws = [np.random.default_rng((seed, epoch, 1 + i, 1)) for i in batch.indices.tolist()]
    b = np.array([draw.beta(alpha, alpha) for draw in draws])
    shares = np.maximum(b, 1 - b).astype(np.float32)
    images, device = batch.images, device_of(batch.images)
    own = move(shares, device).reshape(-1, 1, 1, 1)
    # Channels last, as they lie in memory.
    x = array_module(images).moveaxis(images, 1, -1)
    blended = own * x
    blended += (1 - own) * x[move(partners(len(x)), device)]
    return replace(batch, images=array_module(images).moveaxis(blended, -1, 1)), shares


def with_soft_targets(
    batch: Batch, classes: int, label_smoothing: float, mixup: float, seed: int, epoch: int
) -> Batch:
    """Return the batch, perhaps mixed, with class probabilities to learn.

    The targets are ``(1 - e) q_i + e / classes`` with the label smoothing e and
    ``q_i = l_i y_i + (1 - l_i) y_j``, y being one-hot labels. Without either the batch is as it was
    and its labels are the targets.
    """
    if not (label_smoothing or mixup):
        return batch
    targets = np.eye(classes, dtype=np.float32)[batch.labels]
    if mixup:
        batch, shares = mixed(batch, mixup, seed, epoch)
        others = targets[partners(len(targets))]
        targets = shares[:, None] * targets + (1 - shares[:, None]) * others
    targets *= np.float32(1 - label_smoothing)
    targets += np.float32(label_smoothing / classes)
    return replace(batch, targets=targets)
