"""The one place that knows how activations lie in memory.

Shapes are NCHW everywhere. In memory the fast kernels like channels last (NHWC): the channels of
one pixel are neighbours, so that a pixel's window is a few long runs. A transposed view turns one
into the other without moving a byte.
"""

from __future__ import annotations

import numpy as np

from tinyalex.backends.devices import device_of, on_gpu, using
from tinyalex.backends.gpu import contiguous
from tinyalex.backends.types import Array


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
