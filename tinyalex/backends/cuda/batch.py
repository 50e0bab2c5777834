"""Crop, mirror and normalise a batch of uint8 images."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tinyalex.backends.cuda.launch import launch
from tinyalex.backends.geometry import BatchOptions
from tinyalex.backends.gpu import contiguous, cupy
from tinyalex.backends.layout import empty_images, in_fours, with_room
from tinyalex.backends.types import Array

BLOCK = 64  # threads


class BatchShape(NamedTuple):
    """The fields of ``BatchShape`` in kernels/batch.cu, in its order."""

    H: int
    W: int
    C: int
    crop: int
    channels: int
    stored: int


def prepare(
    images: Array,
    tops: np.ndarray,
    lefts: np.ndarray,
    flips: np.ndarray,
    options: BatchOptions,
    offsets: np.ndarray | None = None,
) -> Array:
    """Return float32 [N, channels, crop, crop], made by `empty_images`, as the transforms make it.

    ``y = (x - mean + offset) / std`` for the crop x of image n, mirrored where ``flips[n]``, that
    begins at row ``tops[n]`` and column ``lefts[n]``. The numbers are those of `TrainTransform` in
    `tinyalex.data`, bit for bit, except for lumas, which a host adds up in another order.

    ``images``: device array uint8 [N, H, W, 1 or 3]. All else is on the host: ``offsets``
    [N, channels] is the colour noise; a mean image is one of the same pixels as the images'. With
    ``channels=1`` three colours become their luma. A mean image is uploaded at every call: pass it
    as a device array to keep it there.

    Raises ValueError for shapes that do not fit, and for a crop that leaves its image.
    """
    N, H, W, C = images.shape
    crop, mean, std, channels = options
    channels = channels or C
    shape = BatchShape(H, W, C, crop, channels, in_fours(channels))
    places = _places(shape, N, tops, lefts, flips)
    shift = np.zeros((N, channels)) if offsets is None else np.asarray(offsets)
    if shift.shape != (N, channels):
        raise ValueError(f"the offsets must have shape {(N, channels)}, got {shift.shape}")
    if mean.ndim < 3:
        shift, mean_image = shift - mean, None
    elif mean.shape != (H, W, channels):
        raise ValueError(f"the mean image must have shape {(H, W, channels)}, got {mean.shape}")
    else:
        mean_image = contiguous(cupy().asarray(mean, np.float32))
    scale = np.broadcast_to(std, (channels,))
    y = empty_images((N, channels, crop, crop), np.float32)
    numbers = (cupy().asarray(a, np.float32) for a in (shift, scale))
    args = (contiguous(images), cupy().asarray(places), mean_image, *numbers, with_room(y), shape)
    launch("batch.cu", "prepare_rows", (N * crop,), (BLOCK,), args)
    return y


def _places(
    shape: BatchShape, N: int, tops: np.ndarray, lefts: np.ndarray, flips: np.ndarray
) -> np.ndarray:
    """Return int32 [N, 3] of top, left, mirrored; ValueError for crops outside."""
    if shape.C not in (1, 3) or shape.channels not in (1, shape.C):
        raise ValueError(f"cannot make {shape.channels} of {shape.C} channels")
    places = np.stack([np.broadcast_to(a, (N,)) for a in (tops, lefts, flips)], axis=1)
    room = np.array([shape.H, shape.W]) - shape.crop
    wrong = ((places[:, :2] < 0) | (places[:, :2] > room)).any(axis=1)
    if wrong.any():
        n = int(wrong.argmax())
        raise ValueError(
            f"a crop of {shape.crop} x {shape.crop} at {tuple(places[n, :2].tolist())} leaves the "
            f"{shape.H} x {shape.W} pixels of image {n}"
        )
    return places.astype(np.int32)
