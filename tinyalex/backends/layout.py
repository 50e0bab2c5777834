"""The one place that knows how activations lie in memory.

Shapes are NCHW everywhere. In memory the fast kernels like channels last (NHWC): the channels of
one pixel are neighbours, so that a pixel's window is a few long runs. A transposed view turns one
into the other without moving a byte.

A GPU's tensor cores read four channels at a time. So batches of images are made with room for a
multiple of four in each pixel, of which the array that all others see is a view.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tinyalex.backends.devices import device_of, on_gpu, using
from tinyalex.backends.gpu import contiguous, cupy
from tinyalex.backends.types import Array, Shape

ALIGNMENT = 16  # bytes: the widest single load


def channels_last(x: Array) -> Array:
    """Return NCHW-shaped ``x`` as a contiguous NHWC array: a view, if possible."""
    pixels = x.transpose(0, 2, 3, 1)
    if not on_gpu(x):
        return np.ascontiguousarray(pixels)

    return contiguous(pixels)


def for_device(array: Array) -> Array:
    """Return ``array`` as kernels read it: on a GPU, channels last."""
    if array.ndim != 4 or not on_gpu(array):
        return array
    with using(device_of(array)):
        return as_nchw(channels_last(array))


def as_nchw(x: Array) -> Array:
    """Return an NHWC array as an NCHW-shaped view of the same memory."""
    return x.transpose(0, 3, 1, 2)


def in_fours(channels: int) -> int:
    """Return the least multiple of four with room for all channels."""
    return -(-channels // 4) * 4


def empty_images(shape: Shape, dtype: Any) -> Array:
    """Return uninitialised images [N, C, H, W] with room `in_fours` per pixel."""
    N, C, H, W = shape
    return as_nchw(cupy().empty((N, H, W, in_fours(C)), dtype))[:, :C]


def copy_with_room(images: Array) -> Array:
    """Return a copy on the GPU, images laid out as by `empty_images`."""
    if images.ndim != 4:
        return images.copy(order="K")
    copy = empty_images(images.shape, images.dtype)
    copy[...] = images
    return copy


def copy_images(images: Array, target: Array) -> None:
    """Copy images to others of their shape, with the room beside them."""
    wide, wide_target = with_room(images), with_room(target)
    if wide is None or wide_target is None:
        target[...] = images
    else:
        wide_target[...] = wide


def with_room(images: Array) -> Array | None:
    """Return images [N, C, H, W] as [N, H, W, in_fours(C)] without a copy.

    What lies in the channels beyond C may be anything. None for images that lie otherwise.
    """
    if images.ndim != 4:
        return None
    N, C, H, W = images.shape
    room = in_fours(C)
    step = images.itemsize * room
    wanted = H * W * step, W * step, step, images.itemsize
    pixels = images.transpose(0, 2, 3, 1)
    lies_so = all(
        length == 1 or have == want
        for length, have, want in zip(pixels.shape, pixels.strides, wanted, strict=True)
    )
    if N * H * W < 2 or C == 0 or not lies_so or images.data.ptr % ALIGNMENT:
        return None
    return cupy().lib.stride_tricks.as_strided(images, (N, H, W, room), wanted)
