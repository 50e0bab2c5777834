"""Unreadable images of a data set, and a limit for them."""

from __future__ import annotations

import threading

from tinyalex.data.dataset import DataError, Dataset
from tinyalex.data.workers import MAX_STUCK, disk_error, late


class Unreadable:
    """The images of ``dataset`` that turned out to be unreadable; threads may share it.

    More of them than the share ``max_bad`` of the data set (where that is above 0, one is always
    allowed), or nothing else, are too many.
    """

    def __init__(self, dataset: Dataset, max_bad: float = 0.01) -> None:
        self.max_bad = max_bad
        self.reasons: dict[int, str] = {}
        """By index."""
        self.stuck = 0
        """How many images took too long, since somebody set this to 0."""
        self.lasting = True
        """Whether all of them are unreadable for good, and none for the disk's sake."""
        self._dataset = dataset
        self._lock = threading.Lock()

    def add(self, index: int, reason: str, lasting: bool = True) -> None:
        """Take note of an image; raises DataError, which lists some, when they are too many."""
        with self._lock:
            self.lasting = self.lasting and lasting
            self.reasons[index] = reason
            count = len(self.reasons)
        size = len(self._dataset)
        allowed = max(1, int(self.max_bad * size)) if self.max_bad > 0 else 0
        if count > allowed or count == size:
            listed = "; ".join(f"{path}: {reason}" for path, reason in self.listed()[:10])
            more = f"; and {count - 10} more" if count > 10 else ""
            raise DataError(
                f"{count} of {size} images cannot be read, {allowed} are allowed: {listed}"
                f"{more} (examples/prepare_images.py names all, and makes a folder without them)"
            )

    def give_up(self, index: int, seconds: float) -> str:
        """Take note of an image that was not read within some seconds; return that reason.

        Raises WorkerError when they are too many: then it is the disk that does not answer.
        """
        with self._lock:
            self.stuck += 1
            count = self.stuck
        try:
            self.add(index, late(seconds), lasting=False)
        except DataError:
            count = max(count, MAX_STUCK)
        if count >= MAX_STUCK:
            raise disk_error(self.stuck, seconds, self._dataset.describe(index)) from None
        return self.reasons[index]

    def listed(self) -> list[tuple[str, str]]:
        """Return (path, reason) of each, in the data set's order."""
        with self._lock:
            return [(self._dataset.describe(i), self.reasons[i]) for i in sorted(self.reasons)]
