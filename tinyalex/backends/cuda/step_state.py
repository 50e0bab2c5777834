"""State of training steps on the device: dropout keys, losses, finiteness.

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
from typing import NamedTuple

import numpy as np

from tinyalex.backends.cuda.launch import launch
from tinyalex.backends.gpu import contiguous, cupy
from tinyalex.backends.types import Array

BLOCK = 256  # threads
LOSSES = 4  # where they begin


class SlotKey(int):
    """A key that kernels read from ``slot`` when they run; otherwise 0."""

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
        """Write one key per slot; ValueError for another number of keys."""
        if len(keys) != len(self):
            raise ValueError(f"there are {len(self)} slots for keys, got {len(keys)} keys")
        words = np.zeros((len(keys), 2), np.uint64)
        words[:, 0] = keys
        self._words[...] = cupy().asarray(words)  # .set() would wait


class Reading(NamedTuple):
    """Losses (float32) and counts of right images (int32) of some steps."""

    losses: np.ndarray
    hits: np.ndarray
    halted: float | None
    """None; or, after a step whose loss or gradients were not finite, the loss of that step.
    Neither it nor a step after it counts."""


class StepReport:
    """Device memory for the results of at most `most` float32 steps.

    `StepTable.launch` and kernels/step_report.cu read and write it.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.words = cupy().zeros(LOSSES + 2 * most, np.int32)

    def note(self, loss: Array, logits: Array, targets: Array, finite: Array) -> None:
        """Record a step: loss, logits [N, C], int64 targets [N], finiteness of gradients."""
        rows, classes = logits.shape
        targets, flag = targets.view(np.uint64), finite.view(np.uint8)
        sizes = rows, classes, self.most
        args = (loss, contiguous(logits), targets, flag, self.words, *sizes)
        launch("step_report.cu", "report_step", (1,), (BLOCK,), args)

    def read(self) -> Reading:
        """Wait for the steps since the last reading; return their results."""
        words = cupy().asnumpy(self.words)
        self.words[1:2] = 0
        halted, taken = bool(words[0]), int(words[1])
        numbers = words.view(np.float32)
        hits = words[LOSSES + self.most :]
        return Reading(
            numbers[LOSSES : LOSSES + taken], hits[:taken], float(numbers[2]) if halted else None
        )
