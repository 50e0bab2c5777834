"""Which images a run learns from, is validated on and tested on, and files to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tinyalex.data import (
    DataError,
    Dataset,
    ImageFolder,
    Patterns,
    read_image,
    resize_shorter_side,
)
from tinyalex.data.dataset import printable
from tinyalex.data.layout import find_layout
from tinyalex.training.settings import Settings

PATTERN_SIZES = {"train": 4000, "val": 500, "test": 1000}
"""Images in the splits of the embedded data set."""


def shorter_side_for(input_size: int) -> int:
    """Return the paper's 256 (section 2) for networks of 224 and 227 pixels, else in proportion."""
    return 256 if input_size in (224, 227) else round(input_size * 256 / 224)


def open_dataset(settings: Settings, split: str, shorter_side: int = 0) -> Dataset | None:
    """Return the split "train", "val" or "test" of a run's data; None for no "test" in a folder.

    `shorter_side` is by default the usual one for the run's input size. Raises DataError for a
    folder that cannot be trained on.
    """
    shorter_side = shorter_side or shorter_side_for(settings.input_size)
    if settings.data is not None:
        root = Path(settings.data)
        if split == "test" and "test" not in find_layout(root, settings.layout).splits:
            return None
        return ImageFolder(
            settings.data,
            split,
            seed=settings.seed,
            shorter_side=shorter_side,
            cache=settings.index_cache,
            layout=settings.layout,
        )
    patterns = Patterns(split, PATTERN_SIZES[split], settings.seed)
    return patterns if shorter_side == 256 else _Resized(patterns, shorter_side)


def what_changed(then: dict[str, int] | None, now: dict[str, int]) -> str:
    """Say in which classes there are more or fewer images than there were; None is not known."""
    if then is None:
        return "the classes or the number of images in one of them have changed"
    named = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    if not named:
        return "the images are split otherwise into those for training and for validation"
    more = f" and {len(named) - 3} more classes" if len(named) > 3 else ""
    changes = [f"{name!r} had {then.get(name, 0)} images, not {now.get(name, 0)}" for name in named]
    return ", ".join(changes[:3]) + more


def open_held_out(settings: Settings, classes: list[str], shorter_side: int = 0) -> Dataset:
    """Return the images that a run did not learn from: its test split, else its validation split.

    Raises DataError as `open_dataset` does, and where the classes are not `classes` any more.
    """
    dataset = open_dataset(settings, "test", shorter_side)
    dataset = dataset or open_dataset(settings, "val", shorter_side)
    assert dataset is not None
    if dataset.classes != classes:
        raise DataError(
            f"the classes in {settings.data} are no longer those that the network learned: "
            f"{', '.join(dataset.classes[:10])}, not {', '.join(classes[:10])}; "
            "put the folders back, or name other images"
        )
    return dataset


def open_folder(
    root: str, classes: list[str], shorter_side: int, layout: str | None = None
) -> ImageFolder:
    """Return the images in a folder whose classes are some or all of `classes`.

    Of splits, it is the test images, else those for validation. Raises DataError for a folder that
    has other classes, or images for training alone.
    """
    splits = find_layout(Path(root), layout, complete=False).splits
    split = next((name for name in ("test", "val") if name in splits), None)
    if splits and split is None:
        (train,) = splits.values()
        raise DataError(f"{root} has training images alone: name {Path(root) / train} to use those")
    dataset = ImageFolder(root, split, shorter_side=shorter_side, complete=False, layout=layout)
    unknown = sorted(set(dataset.classes) - set(classes))
    if unknown:
        raise DataError(
            f"{printable(root)} has classes that this network does not know: "
            f"{', '.join(map(printable, unknown[:5]))}; it knows "
            f"{', '.join(map(printable, classes[:10]))}"
        )
    positions = np.array([classes.index(name) for name in dataset.classes])
    dataset.classes, dataset.labels = classes, positions[dataset.labels]
    return dataset


def title(dataset: Dataset, index: int) -> str:
    """Return what to write below an image: its class, if that is known, and its name."""
    label = int(dataset.labels[index])
    paths = getattr(dataset, "paths", None)
    if paths is None:
        return f"{printable(dataset.classes[label])} {index}"
    name = printable(Path(paths[index]).name)
    return name if label < 0 else f"{printable(dataset.classes[label])}: {name}"


class ImageFiles:
    """A list of image files as a data set, to be looked at.

    The label of an image is the class after which its folder is called, else -1.
    """

    def __init__(self, paths: Sequence[str], classes: list[str], shorter_side: int = 256) -> None:
        self.paths, self.classes, self.shorter_side = list(paths), classes, shorter_side
        places = {name: label for label, name in enumerate(classes)}
        folders = [Path(path).absolute().parent.name for path in self.paths]
        self.labels = np.array([places.get(name, -1) for name in folders], np.int64)

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.paths)

    def load(self, index: int) -> np.ndarray:
        """Return image `index`, uint8 RGB [height, width, 3] with the shorter side resized."""
        return read_image(self.paths[index], self.shorter_side)

    def describe(self, index: int) -> str:
        """Return the path of image `index`, in characters that can be printed."""
        return printable(self.paths[index])


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
