"""Data set that keeps decoded images in memory."""

from __future__ import annotations

import threading

import numpy as np

from tinyalex.data.dataset import Dataset


class CachedDataset:
    """``dataset``, with its first decoded images kept in memory, up to ``max_bytes`` of them.

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
        """How many bytes of pixels are kept."""
        return self._bytes

    def load(self, index: int) -> np.ndarray:
        """Return image ``index`` as the data set does; what is kept cannot be written to."""
        image = self._images.get(index)
        if image is None:
            image = self._dataset.load(index)
            with self._lock:
                if index not in self._images and self._bytes + image.nbytes <= self.max_bytes:
                    image = image.view()  # the data set may go on writing into its own array
                    image.flags.writeable = False
                    self._images[index] = image
                    self._bytes += image.nbytes
        return image
