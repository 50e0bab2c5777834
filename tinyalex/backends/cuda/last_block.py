"""Counters of blocks, for kernels whose last block finishes the result.

See ``kernels/last_block.cuh``.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from tinyalex.backends.gpu import cupy
from tinyalex.backends.types import Array


def arrivals(count: int) -> Array:
    """Return at least ``count`` zeros of uint32, of this stream alone.

    One kernel at a time counts in them, and leaves zeros behind. They are never freed, since a
    recorded graph may point to them; so a graph belongs on the stream that recorded it, or on one
    that waits for that.
    """
    xp = cupy()
    room = max(1024, 1 << (count - 1).bit_length())
    return _zeros(xp, room, xp.cuda.get_device_id(), xp.cuda.get_current_stream().ptr)


@cache
def _zeros(xp: Any, count: int, device: int, stream: int) -> Array:
    with xp.cuda.using_allocator(xp.get_default_memory_pool().malloc):  # not a graph's own
        return xp.zeros(count, "uint32")
