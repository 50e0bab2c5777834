"""Memory for large arrays, kept and handed out again.

The system hands out memory page by page, and fills each with zeros at its first use: for an array
that is written once, that takes about as long as the writing. But every training step asks for the
same arrays as the step before. So a block whose arrays are all gone is kept for the next array of
its size, as torch does on GPUs.

Nothing has to be given back: an array from `empty` is an ordinary NumPy array, and its block is
free when the last view of it is gone. What is kept has a bound: arrays in use and free blocks
together take at most twice the most that was in use at once during the last 1 to 2 times `STALE`
requests (calls of `empty`). Training and prediction take 1.1 to 1.5 times as much, so that they
find every block again, and images of ever other sizes leave no heap behind. What is too much goes
back to the system, blocks that have been free for longest first; so does a block that `STALE`
requests have passed by, and every free one with `empty_cache`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from ctypes import addressof, c_char
from typing import Any, NamedTuple

import numpy as np

from tinyalex.backends.types import Array
from tinyalex.locks import new_lock

SMALLEST = 1 << 16  # below, the C library recycles memory well by itself
MOST_WASTE = 1.5  # a block may be so many times as large as what it is used for
ALIGNMENT = 64  # a cache line, and the widest vector
STALE = 1000  # a block goes back to the system after so many requests that did not take it
MOST_HELD = 2  # times the peak of what was in use: in use and free together


class _Free(NamedTuple):
    size: int
    block: Array
    since: int  # the number of requests there had been


_lock = new_lock()
_events: deque[tuple[int, Array | None]] = deque()  # bytes more in use; the block that is free now
_free: list[_Free] = []  # in the order of their return
_in_use = 0  # bytes
_peaks = deque([0, 0], maxlen=2)  # of `_in_use`: within the last whole `STALE` requests, and since
_requests = 0
_actions: list[Callable[[], None]] = []


class _Lease:
    """Owner of a block in use, NumPy's base of its arrays."""

    _report = _events.append  # here, since at the end of the process the module's names go

    def __init__(self, block: Array, size: int) -> None:
        self._block, self._size = block, size
        self.__array_struct__ = block[:size].__array_struct__
        self._report((size, None))

    def __del__(self) -> None:
        # This may run at any moment, within `empty` too: so no lock, just one atomic operation.
        self._report((-self._size, self._block))


def empty(shape: tuple[int, ...], dtype: Any) -> Array:
    """Return an uninitialised array that begins at a whole cache line.

    Kernels that write past the caches (`vectors.stream`) rely on that, for small arrays too.
    """
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    block = _take(size)
    if size >= SMALLEST:
        block = np.asarray(_Lease(block, size))
    return np.ndarray(shape, dtype, block)


def empty_like(array: Array) -> Array:
    """Return an uninitialised C-contiguous array of the same shape and dtype."""
    return empty(array.shape, array.dtype)


def memory_of(array: Array) -> tuple[int, int]:
    """Return identity and bytes of the memory that an array keeps alive.

    A view keeps all that it is a view of; what `empty` adds to round up is left out.
    """
    owner, size = array, array.nbytes
    while (base := getattr(owner, "base", None)) is not None:
        owner, size = base, getattr(base, "nbytes", size)
    aligned = size == array.nbytes + ALIGNMENT and getattr(owner, "dtype", None) == np.uint8
    return id(owner), array.nbytes if aligned else size


def when_emptied(action: Callable[[], None]) -> None:
    """Call ``action`` whenever `empty_cache` is called, for what is kept elsewhere."""
    _actions.append(action)


def empty_cache() -> None:
    """Release all memory that is kept for reuse and not in use.

    The memory is the CPU's: what CuPy keeps on a GPU, its pool's ``free_all_blocks`` gives back.
    """
    for action in _actions:
        action()
    with _lock:
        _settle()
        _free.clear()
        _peaks.extend((_in_use, _in_use))


def cached_bytes() -> int:
    """Return how much memory is kept for reuse and not in use."""
    with _lock:
        _settle()
        return _drop_surplus(_in_use)


def _take(size: int) -> Array:
    global _requests
    block = None
    # A call that finds the list in use does not wait: a signal may have come in the midst of this.
    if _lock.acquire(blocking=False):
        try:
            _requests += 1  # by small arrays too, which may be all that there is from now on
            _settle()
            if _requests % STALE == 0:
                _peaks.append(_in_use)
            if size >= SMALLEST:
                fitting = [
                    (free.size, -index)
                    for index, free in enumerate(_free)
                    if size <= free.size <= MOST_WASTE * size
                ]
                if fitting:  # the smallest; of those, the last one used, which may be in the cache
                    block = _free.pop(-min(fitting)[1]).block
            _drop_surplus(_in_use + size)
        finally:
            _lock.release()
    return _allocate(size) if block is None else block


def _allocate(size: int) -> Array:
    block = np.empty(size + ALIGNMENT, np.uint8)
    start = -addressof(c_char.from_buffer(block.data)) % ALIGNMENT  # faster than block.ctypes
    return block[start : start + size]


def _settle() -> None:
    """Update the lists of blocks in use and free blocks."""
    global _in_use
    while _events:
        more, block = _events[0]
        _in_use += more
        del _events[0]  # popleft() could be interrupted before its event has counted
        _peaks[1] = max(_peaks[1], _in_use)
        if block is not None:
            _free.append(_Free(block.nbytes, block, _requests))


def _drop_surplus(in_use: int) -> int:
    """Release the oldest free blocks; return the bytes of the others."""
    most = MOST_HELD * max(*_peaks, in_use) - in_use
    kept = sum([free.size for free in _free])
    while _free and (_requests - _free[0].since > STALE or kept > most):
        kept -= _free.pop(0).size
    return kept
