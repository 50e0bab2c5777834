"""A folder of class folders of images."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tinyalex.data.dataset import DataError, printable
from tinyalex.data.image import EXTENSIONS, read_image

_LAYOUT = "expected one folder for each class, with its images inside"


class ImageFolder:
    """Images in class folders: `root/daisy/1.jpg`, `root/roses/2.png`, ...

    Where `root` holds `train/` and `val/`, those are the splits and must hold the same classes.
    Otherwise `split="val"` is a share `val_fraction` of every class, drawn with `seed`, and
    `split="train"` is the rest; `split=None` is everything.

    Classes are the folder names, sorted; images are sorted by path within each class. Folders
    inside a class folder belong to that class. Only names with an image extension count
    (`image.EXTENSIONS`, any case); other files, and names that begin with a dot, are counted in
    `ignored`. The class folders lie in `folder`. Nothing is decoded here: a broken image raises
    ImageError from `load`.

    Raises DataError for a folder that cannot be trained on.
    """

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        val_fraction: float = 0.2,
        seed: int = 0,
        shorter_side: int = 256,
    ) -> None:
        if split not in ("train", "val", None):
            raise ValueError(f"split must be 'train', 'val' or None, got {split!r}")
        if not 0 < val_fraction < 1:
            raise ValueError(f"val_fraction must lie between 0 and 1, got {val_fraction}")
        self.root = Path(root)
        self.split = split
        self.shorter_side = shorter_side
        self.ignored = 0

        folder, is_split = self._split_folder()
        self.folder = folder
        self.classes = self._class_names(folder)
        images = [self._images(f"{folder / name}", (_identity(folder),)) for name in self.classes]
        self._check_counts(folder, [len(paths) for paths in images])
        if split is not None and not is_split:
            images = [
                _part(paths, split, val_fraction, np.random.default_rng((seed, label)))
                for label, paths in enumerate(images)
            ]
        self.paths = [path for paths in images for path in paths]
        self.labels = np.repeat(np.arange(len(images)), [len(paths) for paths in images])

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
        folders = {entry.name for entry in _entries(self.root) if _is_folder(entry)}
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
        train, val = (set(self._class_names(self.root / name)) for name in ("train", "val"))
        if train != val:
            raise DataError(
                f"{self.root}: train and val must hold the same classes, but "
                f"{_names(train - val)} only in train, {_names(val - train)} only in val"
            )
        return self.root / self.split, True

    def _class_names(self, folder: Path) -> list[str]:
        names, loose_images = [], 0
        for entry in _entries(folder):
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                names.append(entry.name)
            elif entry.is_symlink() and not os.path.exists(entry.path):
                raise DataError(f"{entry.path} is a link that leads nowhere: mend or remove it")
            else:
                loose_images += _has_image_name(entry)
        if not names and loose_images:
            raise DataError(f"{folder}: {_LAYOUT}, found {loose_images} images and no folders")
        if not names:
            raise DataError(f"{folder}: {_LAYOUT}, found no folders")
        if len(names) == 1:
            raise DataError(f"{folder}: expected at least 2 classes, found only {names[0]!r}")
        return sorted(names)

    def _images(self, folder: str, above: tuple[tuple[int, int], ...]) -> list[str]:
        """Return the image paths below a folder, sorted; count what is passed over.

        `above` identifies the folders on the way down, so that a link back up is noticed.
        """
        identity = _identity(folder)
        if identity in above:
            raise DataError(f"{folder} is a link to a folder that it lies in: remove the link")
        found = []
        for entry in _entries(folder):
            if entry.name.startswith("."):
                self.ignored += 1
            elif _is_folder(entry):
                found += self._images(entry.path, (*above, identity))
            elif _has_image_name(entry):
                found.append(entry.path)
            else:
                self.ignored += 1
        return sorted(found)

    def _check_counts(self, folder: Path, counts: list[int]) -> None:
        empty = [name for name, count in zip(self.classes, counts, strict=True) if count == 0]
        if empty:
            raise DataError(
                f"{folder}: no images ({' '.join(EXTENSIONS)}) in {_names(empty)}: "
                "add some, or remove the folder"
            )


def _part(paths: list[str], split: str, val_fraction: float, rng: np.random.Generator) -> list[str]:
    """Return one class's share of a split; at least one image falls on either side."""
    if len(paths) == 1:
        raise DataError(f"{paths[0]} is the only image of its class: a split needs at least 2")
    held_out = min(max(1, round(val_fraction * len(paths))), len(paths) - 1)
    is_val = np.zeros(len(paths), bool)
    is_val[rng.permutation(len(paths))[:held_out]] = True
    return [path for path, val in zip(paths, is_val, strict=True) if val == (split == "val")]


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(f"{folder}: the folder cannot be read: {error.strerror}") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _identity(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _has_image_name(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower().endswith(EXTENSIONS)


def _names(names: Iterable[str], limit: int = 5) -> str:
    """Return at most `limit` names for a message."""
    ordered = sorted(names)
    shown = ", ".join(ordered[:limit]) or "none"
    return shown + (f" and {len(ordered) - limit} more" if len(ordered) > limit else "")
