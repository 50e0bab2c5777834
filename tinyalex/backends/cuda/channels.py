"""Zeros beside the channels of images and weights, for tensor cores."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinyalex.backends.cuda.launch import launch, type_name
from tinyalex.backends.gpu import cupy
from tinyalex.backends.layout import channels_last, with_room
from tinyalex.backends.types import Array

THREADS = 256  # per block


def widened(x: Array, channels: int, dtype: Any = None) -> Array:
    """Return x [N, C, H, W] as [N, H, W, channels], with zeros for what it lacks.

    Of ``dtype``, float32 or bfloat16, that of x if None, in one pass from float32 in any layout.
    """
    (N, C, H, W), dtype = x.shape, dtype or x.dtype
    if channels == C:
        return channels_last(x).astype(dtype, copy=False)
    x = x.astype(np.float32, copy=False)
    lines = with_room(x)
    if lines is None:
        lines = x if x.flags.c_contiguous else channels_last(x)
    room = lines.shape[-1]
    steps = (C * H * W, H * W, 1) if lines is x else (room * H * W, 1, room)
    wide = cupy().empty((N, H, W, channels), dtype)
    args = lines, wide, wide.size, C, channels, H * W, *steps
    entry = f"pad_channels<{type_name(dtype)}>"
    launch("pad_channels.cu", entry, (-(-wide.size // THREADS),), (THREADS,), args)
    return wide
