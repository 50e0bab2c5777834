"""How fast a run is, how well its last steps went, and how long the rest will take."""

from __future__ import annotations

import statistics
from collections import deque

from tinyalex.training.metrics import Average

MUCH_WAITING = 0.3
"""Share of the time spent waiting for images from which on it is remarked on."""
WORTH_A_WORD = 5.0
"""But not for fewer seconds than this."""
ENOUGH_STEPS = 20
"""Nor before so many steps: an epoch begins with waiting."""


class Pace:
    """The clock of a run: seconds that passed waiting for images and seconds that passed computing.

    Nothing here enters a checkpoint: it is about this process, and for showing.
    """

    def __init__(self, total_steps: int, epochs: int, window: int = 20) -> None:
        self._total_steps, self._epochs = total_steps, epochs
        self._recent: deque[tuple[float, float, Average]] = deque(maxlen=window)
        self.validation_seconds = 0.0
        self.start_epoch()

    def start_epoch(self) -> None:
        """Begin to count an epoch."""
        self._waited = self._worked = 0.0
        self._steps = self._images = 0

    def add(self, waited: float, worked: float, result: Average) -> None:
        """Add a step: seconds waited for its images, seconds computed, loss and hits."""
        self._recent.append((waited, worked, result))
        self._waited += waited
        self._worked += worked
        self._steps += 1
        self._images += result.count

    @property
    def average(self) -> Average:
        """Loss and accuracy of the last steps."""
        return sum((result for _, _, result in self._recent), Average())

    @property
    def epoch_seconds(self) -> float:
        """Seconds that the epoch has taken, validation included."""
        return self._waited + self._worked + self.validation_seconds

    def _sums(self, whole_epoch: bool) -> tuple[float, float, int]:
        if whole_epoch:
            return self._waited, self._worked, self._images
        waited = sum(waited for waited, _, _ in self._recent)
        worked = sum(worked for _, worked, _ in self._recent)
        return waited, worked, self.average.count

    def images_per_second(self, whole_epoch: bool = False) -> float:
        """Images learned from per second, waiting included."""
        waited, worked, images = self._sums(whole_epoch)
        return images / (waited + worked) if images else 0.0

    def data_share(self, whole_epoch: bool = False) -> float:
        """Share of the time that went by waiting for images, 0 to 1."""
        waited, worked, images = self._sums(whole_epoch)
        return waited / (waited + worked) if images else 0.0

    def waits(self, epoch_ends: bool) -> bool:
        """Tell whether much of the epoch, which may not be over, went by waiting for images."""
        enough = epoch_ends or self._steps >= ENOUGH_STEPS
        share = self.data_share(whole_epoch=True)
        return enough and share > MUCH_WAITING and self._waited > WORTH_A_WORD

    def as_row(self, whole_epoch: bool = False) -> dict[str, float]:
        """Return both figures for a row of metrics."""
        return {
            "images_per_second": round(self.images_per_second(whole_epoch), 2),
            "data_share": round(self.data_share(whole_epoch), 4),
        }

    @property
    def typical_step(self) -> float:
        """Median seconds of the last steps: the first one compiles, now and then one saves."""
        return statistics.median(waited + worked for waited, worked, _ in self._recent)

    def seconds_left(self, step: int, epoch: int) -> float:
        """Estimate the time from `step` and `epoch` to the end of the run."""
        rest = self._total_steps - step
        return rest * self.typical_step + (self._epochs - epoch) * self.validation_seconds
