"""Interface of a data set, its errors, its cache, and unreadable images."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np

from tinyalex.calls import call_of
from tinyalex.data.worker_processes import late
from tinyalex.text import counted, escaped, printable


class DataError(ValueError):
    """Unusable data set; the message says what to do."""


class ImageError(DataError):
    """Unreadable image, with its `path` and a `reason`.

    Without `lasting` it may be read another time: the disk stood in the way, not its content.
    """

    def __init__(self, path: str | Path, reason: str, lasting: bool = True) -> None:
        self.path, self.reason, self.lasting = str(path), escaped(reason), lasting
        super().__init__(f"{printable(self.path)}: {self.reason}")

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str, bool]]:
        return ImageError, (self.path, self.reason, self.lasting)  # what a worker process sends


class Dataset(Protocol):
    """Images with labels, as the loader needs them: `ImageFolder`, `Patterns`."""

    classes: list[str]
    labels: np.ndarray
    """int64 [len(self)], positions in `classes`."""

    def __len__(self) -> int:
        """Return the number of images, readable or not."""
        ...

    def load(self, index: int) -> np.ndarray:
        """Return image `index`, uint8 RGB [height, width, 3]; raises ImageError. Thread-safe."""
        ...

    def describe(self, index: int) -> str:
        """Return the name of image `index` for messages, such as its path."""
        ...


class Subset:
    """Images of a data set at some positions, as torch.utils.data.Subset."""

    def __init__(self, dataset: Dataset, indices: np.ndarray) -> None:
        self.dataset, self.indices = dataset, indices
        self.classes, self.labels = dataset.classes, dataset.labels[indices]

    def __len__(self) -> int:
        """Return the number of positions."""
        return len(self.indices)

    def load(self, index: int) -> np.ndarray:
        """Return the image at the position number `index`."""
        return self.dataset.load(int(self.indices[index]))

    def describe(self, index: int) -> str:
        """Return its name in the data set."""
        return self.dataset.describe(int(self.indices[index]))


class Unreadable:
    """Unreadable images of `dataset` found so far; thread-safe.

    More of them than the share ``max_bad`` of the data set (where that is above 0, one is always
    allowed), or nothing else, are too many.
    """

    def __init__(self, dataset: Dataset, max_bad: float = 0.01) -> None:
        self.max_bad = max_bad
        self.reasons: dict[int, str] = {}
        """By index."""
        self.stuck = 0
        """Images that took too long since this was set to 0."""
        self.lasting = True
        """True if all of them are unreadable for good, and none for the disk's sake."""
        self._dataset = dataset
        self._lock = threading.Lock()

    def add(self, index: int, reason: str, lasting: bool = True) -> None:
        """Add an image; raise DataError, which lists some, if too many."""
        with self._lock:
            self.lasting = self.lasting and lasting
            self.reasons[index] = reason
            count = len(self.reasons)
        self.check(count)

    def check(self, count: int) -> None:
        """Raise DataError, which lists some, if so many are too many."""
        size = len(self._dataset)
        allowed = max(1, int(self.max_bad * size)) if self.max_bad > 0 else 0
        if count > allowed or count == size:
            listed = "; ".join(
                f"{printable(path)}: {reason}" for path, reason in self.listed()[:10]
            )
            more = f"; and {count - 10} more" if count > 10 else ""
            raise DataError(
                f"{count} of {counted(size, 'image')} cannot be read, "
                f"{counted(allowed, 'is', 'are')} allowed: {listed}"
                f"{more} (`{call_of('prepare', 'PHOTOS', 'CLEAN')}` names all, and makes a folder "
                "without them)"
            )

    def give_up(self, index: int, seconds: float) -> str:
        """Add an image that was not read in time; return the reason.

        Raises WorkerError when they are too many: then it is the disk that does not answer.
        """
        with self._lock:
            self.stuck += 1
            count = self.stuck
        name = self._dataset.describe(index)
        with suppress(DataError):
            reason = late(seconds, count, name)
            self.add(index, reason, lasting=False)
            return reason
        return late(seconds, count, name, most=count)

    def listed(self) -> list[tuple[str, str]]:
        """Return (path, reason) of each, in the data set's order."""
        with self._lock:
            return [(self._dataset.describe(i), self.reasons[i]) for i in sorted(self.reasons)]


class CachedDataset:
    """`dataset` with its first decoded images cached, up to `max_bytes`.

    Decoding a JPEG takes several times as long as cropping and scaling its pixels, and training
    asks for every image once an epoch, so that any image is as good to keep as any other. Raises
    ValueError if ``max_bytes`` is negative.
    """

    def __init__(self, dataset: Dataset, max_bytes: int) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes must be at least 0, got {max_bytes}")
        self.max_bytes = max_bytes
        self.classes, self.labels, self.describe = dataset.classes, dataset.labels, dataset.describe
        self._dataset = dataset
        self._images: dict[int, np.ndarray] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._dataset)

    def __repr__(self) -> str:
        """Return what the data set says of itself."""
        return repr(self._dataset)

    @property
    def cached_bytes(self) -> int:
        """Bytes of pixels in the cache."""
        return self._bytes

    def load(self, index: int) -> np.ndarray:
        """Return image `index` of the data set, read-only if cached."""
        image = self._images.get(index)
        if image is None:
            image = self._dataset.load(index)
            with self._lock:
                if index not in self._images and self._bytes + image.nbytes <= self.max_bytes:
                    image = image.view()  # the data set may write again into its own array
                    image.flags.writeable = False
                    self._images[index] = image
                    self._bytes += image.nbytes
        return image
