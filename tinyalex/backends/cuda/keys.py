"""Dropout keys in the device's memory, for steps that are recorded once and replayed often.

A CUDA graph repeats its launches with the arguments that were recorded, so a key among them would
be the same in every step. Recorded with the keys of `KeySlots`, the kernels read what lies in the
slots when they run::

    slots = KeySlots(2)                                   # the step calls dropout twice
    with random.keys_from(slots): ...                     # record forward and backward
    slots.fill([random.next_key() for _ in range(2)])     # before every replay

Forward and backward of one layer share its key, so they share its slot.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tinyalex.backends.gpu import cupy
from tinyalex.backends.types import Array


class SlotKey(int):
    """A key whose value is what lies in ``slot`` when the kernel runs; as a number it is 0."""

    slot: Array


class KeySlots:
    """Room for ``count`` keys; iterating yields each one's `SlotKey`, in order."""

    def __init__(self, count: int) -> None:
        # Kernels take pointers to multiples of 16 bytes: a key is 8, so every second word is one.
        self._words = cupy().zeros((count, 2), np.uint64)

    def __len__(self) -> int:
        return len(self._words)

    def __iter__(self) -> Iterator[SlotKey]:
        for slot in self._words:
            key = SlotKey()
            key.slot = slot
            yield key

    def fill(self, keys: Sequence[int]) -> None:
        """Put one key into each slot. Raises ValueError for more or fewer keys than slots."""
        if len(keys) != len(self):
            raise ValueError(f"there are {len(self)} slots for keys, got {len(keys)} keys")
        words = np.zeros((len(keys), 2), np.uint64)
        words[:, 0] = keys
        self._words[...] = cupy().asarray(words)  # .set() would wait
