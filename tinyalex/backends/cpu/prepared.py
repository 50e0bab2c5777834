"""What was made of weights, kept for as long as the weights are used and stay the same.

Nobody tells a kernel that weights have changed: they are plain arrays, and anyone may write into
them. So it looks: a fingerprint of all their bytes takes a fraction of the time of making anew what
was made of them. Something is kept when the same weights come a second time: for prediction, not
for training, which changes them at every step.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import NamedTuple

import numpy as np
from numba import prange

from tinyalex.backends import memory
from tinyalex.backends.cpu.runtime import num_threads, parallel_kernel, plain
from tinyalex.backends.types import Array

BLOCK = 1 << 13  # words that are folded into `STREAMS`
STREAMS = 32  # side by side: each multiplication would otherwise wait for the last
STALE = 64  # what so many requests have passed by is dropped


class _Kept(NamedTuple):
    made: Array | None  # None: seen once
    since: int


_lock = threading.Lock()
_kept: OrderedDict[Hashable, _Kept] = OrderedDict()  # in the order of their last use
_requests = 0


@parallel_kernel
def _fold(words, folded):
    for block in prange(folded.shape[0]):
        sums = folded[block]
        first = np.uintp(block) * np.uintp(BLOCK)
        stop = min(np.uintp(words.size), first + np.uintp(BLOCK))
        for i in range(first, stop, np.uintp(STREAMS)):
            for j in range(np.uintp(STREAMS)):
                # No step loses anything: a change of one word changes the result. The product
                # carries differences upward, the shift brings them down again.
                mixed = (sums[j] ^ words[i + j]) * np.uint64(0x9E3779B97F4A7C15)
                sums[j] = mixed ^ (mixed >> np.uint64(32))


def fingerprint(array: Array) -> bytes:
    """Return bytes that differ, but for one chance in 2 ** 64, when the array's contents do."""
    data = plain(array).reshape(-1).view(np.uint8)
    rest = -data.size % (8 * STREAMS)
    words = (np.pad(data, (0, rest)) if rest else data).view(np.uint64)
    folded = np.ones((-(-words.size // BLOCK), STREAMS), np.uint64)
    num_threads()
    _fold(words, folded)
    return folded.tobytes()


def reuse(weight: Array, name: Hashable, make: Callable[[], Array]) -> Array:
    """Return ``make()``, or what it returned before for equal ``weight`` and ``name``."""
    global _requests
    key = name, weight.shape, fingerprint(weight)
    with _lock:
        _requests += 1
        known = _kept.get(key)
        made = known.made if known else None
    if made is None:
        made = make()
    with _lock:
        _kept[key] = _Kept(made if known else None, _requests)
        _kept.move_to_end(key)
        while _requests - next(iter(_kept.values())).since > STALE:
            _kept.popitem(last=False)
    return made


def _forget() -> None:
    with _lock:
        _kept.clear()


memory.when_emptied(_forget)
