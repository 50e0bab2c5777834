"""Which images a run learns from, which it is validated on, and which it is tested on."""

from __future__ import annotations

import numpy as np

from tinyalex.data import Dataset, ImageFolder, Patterns, resize_shorter_side
from tinyalex.training.settings import Settings

PATTERN_SIZES = {"train": 4000, "val": 500, "test": 1000}
"""Images in the splits of the embedded data set."""


def shorter_side_for(input_size: int) -> int:
    """Return the paper's 256 (section 2) for networks of 224 and 227 pixels, else in proportion."""
    return 256 if input_size in (224, 227) else round(input_size * 256 / 224)


def open_dataset(settings: Settings, split: str) -> Dataset | None:
    """Return the split "train", "val" or "test" of a run's data; a folder has no "test".

    Raises DataError for a folder that cannot be trained on.
    """
    shorter_side = shorter_side_for(settings.input_size)
    if settings.data is not None:
        if split == "test":
            return None
        return ImageFolder(
            settings.data,
            split,
            seed=settings.seed,
            shorter_side=shorter_side,
            cache=settings.index_cache,
        )
    patterns = Patterns(split, PATTERN_SIZES[split], settings.seed)
    return patterns if shorter_side == 256 else _Resized(patterns, shorter_side)


class _Resized:
    """A data set with its images scaled to another shorter side."""

    def __init__(self, dataset: Dataset, shorter_side: int) -> None:
        self._dataset, self._shorter_side = dataset, shorter_side
        self.classes, self.labels, self.describe = dataset.classes, dataset.labels, dataset.describe

    def __len__(self) -> int:
        return len(self._dataset)

    def __repr__(self) -> str:
        return f"{self._dataset!r}, {self._shorter_side} pixels"

    def load(self, index: int) -> np.ndarray:
        return resize_shorter_side(self._dataset.load(index), self._shorter_side)
