"""A folder of class folders of images."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tinyalex.data.dataset import UNPRINTABLE, DataError, printable
from tinyalex.data.image import EXTENSIONS, read_image
from tinyalex.data.index import (
    entries_of,
    has_image_name,
    in_words,
    index_images,
    is_folder,
    is_hidden,
)

_LAYOUT = "expected one folder for each class, with its images inside"


class ImageFolder:
    """Images in class folders: `root/daisy/1.jpg`, `root/roses/2.png`, ...

    Where `root` holds `train/` and `val/`, those are the splits and must hold the same classes.
    Otherwise `split="val"` is a share `val_fraction` of every class, drawn with `seed`, and
    `split="train"` is the rest; `split=None` is everything.

    Classes are the folder names, sorted; images are sorted by path within each class. Folders
    inside a class folder belong to that class. Only names with an image extension count
    (`image.EXTENSIONS`, any case); what is passed over is counted in `passed_over`, as `index.Scan`
    says. The class folders lie in `folder`. Nothing is decoded here: a broken image raises
    ImageError from `load`. The list of many images is remembered while the folders stay as they
    are (`index.py`); `cache=False` reads them in any case.

    Raises DataError for a folder that cannot be trained on: one with a single class, or with a
    class without images. With `complete=False` such a one is taken, too, unless it is empty, as an
    evaluation wants.
    """

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        val_fraction: float = 0.2,
        seed: int = 0,
        shorter_side: int = 256,
        cache: bool = True,
        complete: bool = True,
    ) -> None:
        if split not in ("train", "val", None):
            raise ValueError(f"split must be 'train', 'val' or None, got {split!r}")
        if not 0 < val_fraction < 1:
            raise ValueError(f"val_fraction must lie between 0 and 1, got {val_fraction}")
        self.root = Path(root)
        self.split = split
        self.shorter_side = shorter_side
        self._complete = complete

        folder, is_split = self._split_folder()
        self.folder = folder
        self.classes, loose_images = self._class_names(folder)
        index = index_images(str(folder), self.classes, cache)
        self.passed_over = index.passed_over + Counter({"beside the class folders": loose_images})
        self.paths = index.paths
        self.labels = np.repeat(np.arange(len(self.classes)), index.counts)
        self._check_counts(index.counts)
        if split is not None and not is_split:
            chosen = self._part(index.counts, split, val_fraction, seed)
            self.paths, self.labels = self.paths.take(chosen), self.labels[chosen]

    def __len__(self) -> int:
        """Return the number of image files."""
        return len(self.paths)

    def __repr__(self) -> str:
        """Return folder, split and sizes."""
        return (
            f"ImageFolder({str(self.root)!r}, split={self.split!r}): "
            f"{len(self)} images, {len(self.classes)} classes"
        )

    def load(self, index: int) -> np.ndarray:
        """Return image `index`, uint8 RGB [height, width, 3] with the shorter side resized."""
        return read_image(self.paths[index], self.shorter_side)

    def describe(self, index: int) -> str:
        """Return the path of image `index`, in characters that can be printed."""
        return printable(self.paths[index])

    def _split_folder(self) -> tuple[Path, bool]:
        """Return the folder that holds the class folders, and whether it is a ready split."""
        try:
            if not stat.S_ISDIR(os.stat(self.root).st_mode):
                raise DataError(f"{self.root}: expected a folder of class folders, found a file")
        except OSError as error:
            raise DataError(
                f"{self.root}: expected a folder of class folders: {error.strerror}"
            ) from error
        folders = {entry.name for entry in entries_of(self.root) if is_folder(entry)}
        if not {"train", "val"} & folders:
            return self.root, False
        if not {"train", "val"} <= folders:
            there, missing = ("train", "val") if "train" in folders else ("val", "train")
            raise DataError(
                f"{self.root} has a folder {there} but no {missing}: add it, "
                f"or give {self.root / there} to have a split made from it"
            )
        if self.split is None:
            raise DataError(f"{self.root} is split into train and val: say which, split='train'")
        train, val = (set(self._class_names(self.root / name)[0]) for name in ("train", "val"))
        if train != val:
            raise DataError(
                f"{self.root}: train and val must hold the same classes, but "
                f"{_names(train - val)} only in train, {_names(val - train)} only in val"
            )
        return self.root / self.split, True

    def _class_names(self, folder: Path) -> tuple[list[str], int]:
        """Return the names of the class folders, sorted, and how many images lie beside them."""
        names, loose_images = [], 0
        for entry in entries_of(folder):
            if is_hidden(entry.name):
                continue
            if is_folder(entry):
                if any(unicodedata.category(character) in UNPRINTABLE for character in entry.name):
                    raise DataError(
                        f"{folder}: the folder {entry.name!r} has control characters in its name, "
                        "or is not valid UTF-8: rename it"
                    )
                names.append(entry.name)
            elif entry.is_symlink() and not os.path.exists(entry.path):
                raise DataError(f"{entry.path} is a link that leads nowhere: mend or remove it")
            else:
                loose_images += has_image_name(entry.name)
        if not names and loose_images:
            raise DataError(f"{folder}: {_LAYOUT}, found {loose_images} images and no folders")
        if not names:
            raise DataError(f"{folder}: {_LAYOUT}, found no folders")
        if len(names) == 1 and self._complete:
            raise DataError(f"{folder}: expected at least 2 classes, found only {names[0]!r}")
        return sorted(names), loose_images

    def _check_counts(self, counts: np.ndarray) -> None:
        empty = [name for name, count in zip(self.classes, counts, strict=True) if count == 0]
        if empty and (self._complete or not counts.any()):
            raise DataError(
                f"{self.folder}: no images ({' '.join(EXTENSIONS)}) in {_names(empty)}: "
                "add some, or remove the folder"
                + (f"; {passed_over}" if (passed_over := in_words(self.passed_over)) else "")
            )

    def _part(self, counts: np.ndarray, split: str, val_fraction: float, seed: int) -> np.ndarray:
        """Return which images a split has; of each class at least one falls on either side."""
        is_val = np.zeros(len(self.paths), bool)
        start = 0
        for label, count in enumerate(counts.tolist()):
            if count == 0:
                continue
            if count == 1:
                raise DataError(
                    f"{self.paths[start]} is the only image of its class: a split needs at least 2"
                )
            held_out = min(max(1, round(val_fraction * count)), count - 1)
            rng = np.random.default_rng((seed, label))
            is_val[start + rng.permutation(count)[:held_out]] = True
            start += count
        return is_val if split == "val" else ~is_val


def _names(names: Iterable[str], limit: int = 5) -> str:
    """Return at most `limit` names for a message."""
    ordered = sorted(names)
    shown = ", ".join(ordered[:limit]) or "none"
    return shown + (f" and {len(ordered) - limit} more" if len(ordered) > limit else "")
