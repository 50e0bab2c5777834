"""Memory for large arrays, kept and handed out again.

The system hands out memory page by page, and fills each with zeros at its first use: for an array
that is written once, that takes about as long as the writing. But every training step asks for the
same arrays as the step before. So a block whose arrays are all gone is kept for the next array of
its size, as torch does on GPUs; it goes back to the system when nothing has wanted it for a while,
or with `empty_cache`.

Nobody has to give anything back: an array from `empty` is an ordinary NumPy array, and its block is
free when the last view of it is.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tinyalex.backends.types import Array

SMALLEST = 1 << 16  # below, the C library recycles memory well by itself
MOST_WASTE = 1.5  # a block may be so many times as large as what it is used for
ALIGNMENT = 64  # a cache line, and the widest vector
STALE = 1000  # a block goes back to the system after so many requests that did not take it


class _Free(NamedTuple):
    block: Array
    since: int  # the number of requests there had been


_lock = threading.Lock()
_returned: deque[Array] = deque()
_free: list[_Free] = []  # in the order of their return
_requests = 0
_actions: list[Callable[[], None]] = []


class _Lease:
    """Owns a block while arrays use it: NumPy makes it the base of them all."""

    _give_back = _returned.append  # here, since at the end of the process the module's names go

    def __init__(self, block: Array) -> None:
        self._block = block
        self.__array_interface__ = block.__array_interface__

    def __del__(self) -> None:
        # This may run at any moment, within `empty` too: so no lock, just one atomic operation.
        self._give_back(self._block)


def empty(shape: tuple[int, ...], dtype: Any) -> Array:
    """Return an uninitialised array, as ``np.empty``; its memory begins at a whole cache line.

    Kernels that write past the caches (`vectors.stream`) rely on that, for small arrays too.
    """
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    block = _allocate(size) if size < SMALLEST else np.asarray(_Lease(_take(size)))[:size]
    return block.view(dtype).reshape(shape)


def empty_like(array: Array) -> Array:
    """Return an uninitialised C-contiguous array of the same shape and dtype."""
    return empty(array.shape, array.dtype)


def when_emptied(action: Callable[[], None]) -> None:
    """Call ``action`` whenever `empty_cache` is called, for what is kept elsewhere."""
    _actions.append(action)


def empty_cache() -> None:
    """Give all memory back to the system that is kept for reuse and not in use."""
    for action in _actions:
        action()
    with _lock:
        _collect()
        _free.clear()


def cached_bytes() -> int:
    """Return how much memory is kept for reuse and not in use."""
    with _lock:
        _collect()
        return sum(free.block.nbytes for free in _free)


def _take(size: int) -> Array:
    global _requests
    # Whoever finds the list in use does not wait: it may be a signal in the midst of this function.
    if not _lock.acquire(blocking=False):
        return _allocate(size)
    try:
        _requests += 1
        _collect()
        fitting = [
            (free.block.nbytes, -index)
            for index, free in enumerate(_free)
            if size <= free.block.nbytes <= MOST_WASTE * size
        ]
        if fitting:  # the smallest; of those, the one used last, which may still be in the cache
            return _free.pop(-min(fitting)[1]).block
    finally:
        _lock.release()
    return _allocate(size)


def _allocate(size: int) -> Array:
    block = np.empty(size + ALIGNMENT, np.uint8)
    start = -block.ctypes.data % ALIGNMENT
    return block[start : start + size]


def _collect() -> None:
    while _returned:
        _free.append(_Free(_returned.popleft(), _requests))
    while _free and _requests - _free[0].since > STALE:
        del _free[0]
