"""Speed of a run, results of its last steps, and time left."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence

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
        self._results: deque[Average] = deque(maxlen=window)
        self._times: deque[tuple[float, float, int]] = deque(maxlen=window)
        self._readings = 0
        self.validation_seconds = 0.0
        self.start_epoch()

    def start_epoch(self) -> None:
        """Begin to count an epoch."""
        self._waited = self._worked = 0.0
        self._steps = self._images = 0

    def add(self, waited: float, worked: float, results: Sequence[Average]) -> None:
        """Add steps: seconds waited for their images, seconds computed, loss and hits of each."""
        if self._readings == 1:
            self._times.clear()  # the first steps compile and warm up
        self._readings += 1
        for result in results:
            self._results.append(result)
            self._times.append((waited / len(results), worked / len(results), result.count))
            self._images += result.count
        self._waited += waited
        self._worked += worked
        self._steps += len(results)

    @property
    def average(self) -> Average:
        """Loss and accuracy of the last steps."""
        return sum(self._results, Average())

    @property
    def epoch_seconds(self) -> float:
        """Seconds that the epoch has taken, validation included."""
        return self._waited + self._worked + self.validation_seconds

    def _sums(self, whole_epoch: bool) -> tuple[float, float, int]:
        if whole_epoch:
            return self._waited, self._worked, self._images
        waited = sum(waited for waited, _, _ in self._times)
        worked = sum(worked for _, worked, _ in self._times)
        return waited, worked, sum(images for *_, images in self._times)

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
        """Median seconds of the last steps, now and then one of which saves."""
        return statistics.median(waited + worked for waited, worked, _ in self._times)

    def seconds_left(self, step: int, epoch: int) -> float | None:
        """Estimate the time from `step` and `epoch` to the end of the run, from the second on."""
        if self._readings < 2:
            return None
        rest = self._total_steps - step
        return rest * self.typical_step + (self._epochs - epoch) * self.validation_seconds
