"""Counters of blocks, for kernels whose last block finishes the result.

See ``kernels/last_block.cuh``.
"""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

from tinyalex.backends.gpu import cupy
from tinyalex.backends.types import Array


def arrivals(count: int) -> Array:
    """Return at least ``count`` zeros of uint32 of this stream and thread.

    One kernel at a time counts in them, and leaves zeros behind. They are never freed, since a
    recorded graph may point to them; so a graph belongs on the stream that recorded it, or on one
    that waits for that. The thread counts, since all threads' own default streams
    (``CUPY_CUDA_PER_THREAD_DEFAULT_STREAM``) go by one pointer.
    """
    xp = cupy()
    room = max(1024, 1 << (count - 1).bit_length())
    queue = xp.cuda.get_device_id(), xp.cuda.get_current_stream().ptr, threading.get_ident()
    return _zeros(xp, room, queue)


@cache
def _zeros(xp: Any, count: int, queue: tuple[int, int, int]) -> Array:
    with xp.cuda.using_allocator(xp.get_default_memory_pool().malloc):  # not a graph's own
        return xp.zeros(count, "uint32")
