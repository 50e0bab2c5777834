"""What training steps found out, kept on the device until somebody reads it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tinyalex.backends.cuda.launch import launch
from tinyalex.backends.gpu import contiguous, cupy
from tinyalex.backends.types import Array

BLOCK = 256  # threads
LOSSES = 4  # where they begin


class Reading(NamedTuple):
    """The losses of some steps, float32, and in how many images each was right, int32."""

    losses: np.ndarray
    hits: np.ndarray
    halted: float | None
    """None; or, after a step whose loss or gradients were not finite, the loss of that step.
    Neither it nor a step after it counts."""


class StepReport:
    """Room on the device for what at most `most` float32 steps found out, as `StepTable.launch`
    and kernels/step_report.cu read and write it.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.words = cupy().zeros(LOSSES + 2 * most, np.int32)

    def note(self, loss: Array, logits: Array, targets: Array, finite: Array) -> None:
        """Note a step: its loss, logits [N, C], int64 targets [N], whether gradients are finite."""
        rows, classes = logits.shape
        targets, flag = targets.view(np.uint64), finite.view(np.uint8)
        sizes = rows, classes, self.most
        args = (loss, contiguous(logits), targets, flag, self.words, *sizes)
        launch("step_report.cu", "report_step", (1,), (BLOCK,), args)

    def read(self) -> Reading:
        """Wait for the steps noted since the last time, and return what was found out."""
        words = cupy().asnumpy(self.words)
        self.words[1:2] = 0
        halted, taken = bool(words[0]), int(words[1])
        numbers = words.view(np.float32)
        hits = words[LOSSES + self.most :]
        return Reading(
            numbers[LOSSES : LOSSES + taken], hits[:taken], float(numbers[2]) if halted else None
        )
