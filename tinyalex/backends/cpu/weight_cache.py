"""Cache of transformed weights, keyed by a fingerprint of their bytes.

Kernels are not told of changed weights: they are plain arrays, which any code may write into. A
fingerprint of all bytes takes a fraction of the time of the transform. A result is kept when the
same weights come a second time: in prediction, not in training, which changes them at every step.
It is dropped when the weights have changed or are gone, or when other weights have been asked for
`STALE` times since.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import prange, types
from numba.extending import intrinsic

from tinyalex.backends import memory
from tinyalex.backends.cpu.runtime import num_threads, parallel_kernel, plain
from tinyalex.backends.cpu.vectors import (
    LANES,
    WORDS,
    address,
    constant,
    element,
    load,
    pointer,
    prefetch,
    repeat,
    store,
)
from tinyalex.backends.types import Array
from tinyalex.locks import new_lock

VECTORS = 8  # side by side: each multiplication would otherwise wait for the last
STREAMS = VECTORS * LANES // 2  # words of 64 bits in a round
ROUNDS = 128  # that one task folds, 64 kB
AHEAD = 4  # rounds from the one being folded to the one asked for
STALE = 64  # what so many requests have passed by is dropped


class _Kept(NamedTuple):
    mark: bytes  # of the weights
    made: list[Array]  # one; none where the weights were seen once, or are gone
    since: int
    weights: weakref.ref[Array] | None = None


_lock = new_lock()
_kept: OrderedDict[Hashable, _Kept] = OrderedDict()  # in the order of their last use
_requests = 0


def _code_of_folding(typing: Any, words: Any, rounds: Any, sums: Any) -> Any:
    """Return code that folds `STREAMS` words into the sums, ``rounds`` times.

    No step loses anything: a change of one word changes the result. The product carries differences
    upward, the shift brings them down again.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        words, rounds, sums = arguments
        words, sums = pointer(builder, words), pointer(builder, sums)
        places = [element(builder, sums, (j, LANES)) for j in range(VECTORS)]
        begin = [load(builder, place, WORDS) for place in places]

        def fold(index: Any, values: Sequence[Any]) -> list[Any]:
            after = []
            for j, value in enumerate(values):
                place = element(builder, words, (index, VECTORS * LANES), (j, LANES))
                prefetch(builder, element(builder, place, (AHEAD, VECTORS * LANES)))
                mixed = builder.xor(value, load(builder, place, WORDS))
                mixed = builder.mul(mixed, constant(0x9E3779B97F4A7C15, WORDS))
                after.append(builder.xor(mixed, builder.lshr(mixed, constant(32, WORDS))))
            return after

        after = repeat(builder, rounds, begin, fold)
        for place, value in zip(places, after, strict=True):
            store(builder, value, place)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 3), generate


_fold_rounds: Callable[..., None] = intrinsic(_code_of_folding)


@parallel_kernel
def _fold(data, folded):
    # data [floats], folded [blocks, VECTORS * LANES]
    width = folded.shape[1]
    rounds = data.size // width
    for block in prange(folded.shape[0]):
        first = np.int64(block) * ROUNDS
        some = min(ROUNDS, rounds - first)
        _fold_rounds(address(data, first * width), some, address(folded, block * width))


def fingerprint(array: Array) -> bytes:
    """Return bytes that differ, but for 1 chance in ``2 ** 64``, for different contents."""
    data = plain(array).reshape(-1).view(np.uint8)
    rest = data.size % (8 * STREAMS)
    # What fills no round counts as it is.
    words, last = data[: data.size - rest].view(np.float32), data[data.size - rest :]
    rounds = words.size // (2 * STREAMS)
    folded = np.ones((-(-rounds // ROUNDS), STREAMS), np.uint64)
    num_threads()
    _fold(words, folded.view(np.float32))
    return folded.tobytes() + last.tobytes()


def reuse(weight: Array, name: Hashable, make: Callable[[], Array]) -> Array:
    """Return ``make()``, or what it returned before for this ``weight`` and ``name``."""
    global _requests
    key, mark = (name, weight.shape, weight.ctypes.data), fingerprint(weight)
    known = _kept.get(key)
    if known is None or known.mark != mark:
        known, made = _Kept(mark, [], 0), make()
    elif (made := next(iter(known.made), None)) is None:
        made = make()
        known = _tied(mark, [made], weight)
    # A call that finds the list in use does not wait: a signal may have come in the midst of this.
    if _lock.acquire(blocking=False):
        try:
            _requests += 1
            _kept[key] = known._replace(since=_requests)
            _kept.move_to_end(key)
            while _requests - next(iter(_kept.values())).since > STALE:
                _kept.popitem(last=False)
        finally:
            _lock.release()
    return made


def _tied(mark: bytes, made: list[Array], weight: Array) -> _Kept:
    """Keep ``made`` for as long as the memory of ``weight`` lives."""
    while isinstance(weight.base, np.ndarray):
        weight = weight.base
    # The callback may run at any moment: so no lock, just one atomic operation.
    return _Kept(mark, made, 0, weakref.ref(weight, lambda _: made.clear()))


def _forget() -> None:
    with _lock:
        _kept.clear()


memory.when_emptied(_forget)
