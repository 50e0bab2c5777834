"""The images of a run's splits, and image files to look at."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from tinyalex.data import (
    DataError,
    Dataset,
    ImageFolder,
    Patterns,
    read_image,
    resize_image,
)
from tinyalex.data.class_names import class_of
from tinyalex.data.kept import Kept, composed, mark, same_names
from tinyalex.data.layout import find_layout, split_of
from tinyalex.data.manifest import file_size, sources
from tinyalex.files import FileError
from tinyalex.progress import warn
from tinyalex.text import counted, listed, printable
from tinyalex.training.settings import Settings

PATTERN_SIZES = {"train": 4000, "val": 500, "test": 1000}
"""Images in the splits of the embedded data set."""


def shorter_side_for(input_size: int) -> int:
    """Return the paper's 256 (section 2) for networks of 224 and 227 pixels, else in proportion."""
    return 256 if input_size in (224, 227) else round(input_size * 256 / 224)


def open_dataset(
    settings: Settings, split: str, shorter_side: int = 0, resize: str = "shorter_side"
) -> Dataset | None:
    """Return a split of a run's data, None without such a folder.

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
            layout=settings.layout,
            resize=resize,
        )
    patterns = Patterns(split, PATTERN_SIZES[split], settings.seed)  # squares, whatever the rule
    return patterns if shorter_side == 256 else _Resized(patterns, shorter_side)


def what_changed(then: dict[str, int] | None, now: dict[str, int]) -> str:
    """Return a sentence on the classes whose image counts have changed."""
    if then is None:
        return "the classes or the number of images in one of them have changed"
    named = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    if not named:
        return "the images are split otherwise into those for training and for validation"
    more = f" and {counted(len(named) - 3, 'more class')}" if len(named) > 3 else ""
    changes = [
        f"{name!r} had {counted(then.get(name, 0), 'image')}, not {now.get(name, 0)}"
        for name in named
    ]
    return ", ".join(changes[:3]) + more


def kept_in(
    content: Mapping[str, Any], settings: Settings, path: str | os.PathLike[str]
) -> dict[str, Kept]:
    """Return the images that the run had, by split, from its checkpoint.

    `content` is what `load_checkpoint` read from `path`.

    Nothing of the embedded data set, which is drawn anew. For a run that began before this was
    kept, it is the images that are split so now. Raises DataError where a class has more or fewer,
    FileError for what no run wrote.
    """
    if settings.data is None:
        return {}
    classes = content["classifier"]["classes"]
    if "split" not in content:
        warn(
            f"note: {printable(path)} is from before runs kept the names of their images: whether "
            "one was renamed or exchanged since is not known"
        )
        return _split_now(content, settings, classes)
    try:
        kept = {split: Kept.from_state(classes, state) for split, state in content["split"].items()}
        if not {"train", "val"} <= kept.keys() <= {"train", "val", "test"}:
            raise ValueError(f"these are the splits {sorted(kept)}")
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise FileError(
            f"the names of images in {printable(path)} cannot be used: {error!r}"
        ) from error
    return kept


def _split_now(
    content: Mapping[str, Any], settings: Settings, classes: list[str]
) -> dict[str, Kept]:
    assert settings.data is not None
    folders = {
        split: ImageFolder(settings.data, split, seed=settings.seed, complete=False, rules=1)
        for split in ("train", "val")
    }
    labels, found = [folder.labels for folder in folders.values()], folders["train"].classes
    digest = data_digest(found, *labels)
    if content.get("data", digest) != digest or found != classes:
        changed = what_changed(content.get("images"), image_counts(found, *labels))
        raise other_data(f"in {printable(settings.data)} {changed}")
    return {split: folder.kept() for split, folder in folders.items()}


def in_both(splits: Mapping[str, Dataset | None]) -> str:
    """Return a sentence on image files in two splits, "" if none."""
    folders = {name: data for name, data in splits.items() if isinstance(data, ImageFolder)}
    for (one, images), (other, others) in combinations(folders.items(), 2):
        shared, here, there = np.intersect1d(
            images.identities, others.identities, return_indices=True
        )
        pairs = [(images.paths[i], others.paths[j]) for i, j in zip(here, there, strict=True)]
        if pairs := [
            pair for pair, file in zip(pairs, shared, strict=True) if file and _same(pair)
        ]:
            first, second = (printable(path) for path in pairs[0])
            return (
                f"{counted(len(pairs), 'image file belongs', 'image files belong')} to {one} "
                f"and to {other}, by links or as the same folder: {first} is {second}"
            )
    return ""


def _same(paths: tuple[str, str]) -> bool:
    try:
        return os.path.samefile(*paths)
    except OSError:
        return False


def other_data(what: str) -> DataError:
    """Return the error for another data set than the run's."""
    return DataError(
        f"the data set is not the one that this run began with: {what}; put the images back, or "
        "say with --data where they are"
    )


def open_kept(
    settings: Settings,
    kept: Mapping[str, Kept],
    split: str,
    shorter_side: int = 0,
    complete: bool = True,
    resize: str = "shorter_side",
) -> Dataset:
    """Return a split as the run had it, `kept_in` its checkpoint.

    Raises DataError where an image is gone, if it is to be `complete`, or the folder.
    """
    if settings.data is None:
        dataset = open_dataset(settings, split, shorter_side, resize)
        assert dataset is not None
        return dataset
    return ImageFolder(
        settings.data,
        split,
        shorter_side=shorter_side or shorter_side_for(settings.input_size),
        kept=kept[split],
        others=[part for name, part in kept.items() if name != split],
        complete=complete,
        resize=resize,
    )


_WAY_OUT = "put them back, or name other images"


class RunImages:
    """Images that a run had; `content` is its checkpoint, read from `path`.

    `data` is the folder in which they are now, if they were moved; `option` says how to name it.
    """

    def __init__(
        self,
        content: Mapping[str, Any],
        settings: Settings,
        path: str | os.PathLike[str],
        data: str | None = None,
        option: str = "--data DIR",
    ) -> None:
        if data is not None and settings.data is None:
            raise ValueError("this run drew its images itself, they lie in no folder")
        self.settings = settings if data is None else replace(settings, data=os.path.abspath(data))
        self._moved, self._option, self._path = data is not None, option, path
        self._content = {
            name: content[name] for name in ("split", "data", "images") if name in content
        }
        self._content["classifier"] = {"classes": content["classifier"]["classes"]}

    @cached_property
    def kept(self) -> dict[str, Kept]:
        """Those images, by split."""
        return kept_in(self._content, self.settings, self._path)

    def held_out(self, shorter_side: int = 0, resize: str = "shorter_side") -> Dataset:
        """Open the test split, else the validation split.

        Raises DataError as `open_kept` does, and for files that have other contents than then. A
        warning says if some are files that the run learned from, by links.
        """
        split = "test" if "test" in self.kept or self.settings.data is None else "val"
        images = self._open(split, shorter_side, resize)
        if isinstance(images, ImageFolder):
            kept = self.kept[split]
            if changed := kept.changed(kept.marked(images.paths)):
                raise DataError(
                    f"{printable(images.folder)}: of the {counted(len(images), 'image')} that the "
                    "run held "
                    f"out, {counted(len(changed), 'has', 'have')} other contents than then: "
                    f"{listed(changed)}; {_WAY_OUT}"
                )
            if count := self._learned_from(images).sum():
                warn(f"warning: {self._say(count, images)}")
        return images

    def training(self, shorter_side: int = 0, resize: str = "shorter_side") -> Dataset:
        """Open the training images; raises DataError as `open_kept` does."""
        return self._open("train", shorter_side, resize)

    def _open(self, split: str, shorter_side: int, resize: str) -> Dataset:
        self.check_there()
        kept = self.kept
        try:
            return open_kept(self.settings, kept, split, shorter_side, resize=resize)
        except DataError as error:
            raise DataError(f"{error}; {_WAY_OUT}") from error

    def check_there(self) -> None:
        """Raise DataError where the folder is gone."""
        data = self.settings.data
        if data is not None and not self._moved and not os.path.isdir(data):
            raise DataError(
                f"the images of this run were in {printable(data)}, which is no folder any more: "
                f"say with {self._option} where they are now"
            )

    def warning(self, images: ImageFolder) -> str:
        """Return a warning if the run learned from some images, else "".

        They are known by their files; elsewhere by their names and contents, and by names alone
        where those that the run learned from are gone. Of a prepared image, they are those of the
        image that it was made from, whose size stands for the contents.
        """
        if self.settings.data is None:
            return ""
        try:
            train = self.kept["train"]
        except DataError as error:
            return f"which of these images the run learned from is not known: {error}"
        home = self._home()
        (before, learned_part), (made, part) = _origins(home), _origins(images.folder)
        known = {composed(name): name for name in train.names}
        origins = {composed(before[name][0]): name for name in train.names if name in before}
        splits = {split_of(learned_part if before else os.path.basename(home)), split_of(part)}
        other_split = len(splits - {None}) > 1
        count, names = 0, images.kept().names
        is_file = self._learned_from(images)
        for path, name, same_file in zip(images.paths, names, is_file, strict=True):
            own = known.get(composed(name))
            if same_file or (own and mark(_below(home, own)) in (-1, mark(path))):
                count += 1
            elif (before or made) and not other_split:
                source, size = made.get(name, (name, file_size(Path(path))))
                form = composed(source)
                own = origins.get(form) or known.get(form)
                if own and (before or name in made):
                    there = before[own][1] if own in before else file_size(Path(_below(home, own)))
                    count += there in (-1, size)
        if not count:
            return ""
        others = {
            name for split, part in self.kept.items() if split != "train" for name in part.names
        }
        way_out = (
            ""
            if others.isdisjoint(names)
            else f"; {self._option} takes those alone that it held out"
        )
        return self._say(count, images) + way_out

    def _say(self, count: int, images: ImageFolder) -> str:
        known = "" if os.path.isdir(self._home()) else ", judging by their names"
        return (
            f"the run learned from {count} of {counted(len(images), 'image')} here{known}: "
            "that says nothing about others"
        )

    def _home(self) -> str:
        """Return the folder that holds the training images' class folders."""
        assert self.settings.data is not None
        root = os.path.realpath(self.settings.data)
        return os.path.normpath(os.path.join(root, self.kept["train"].folder))

    def _learned_from(self, images: ImageFolder) -> np.ndarray:
        """Return which of the images are files that the run learned from."""
        train = None
        if os.path.isdir(self._home()):  # else the images held out would be taken for these
            with suppress(DataError):
                train = open_kept(self.settings, self.kept, "train", complete=False)
        if not isinstance(train, ImageFolder):
            return np.zeros(len(images), bool)
        return np.isin(images.identities, train.identities) & (images.identities != 0)


def _below(folder: str, name: bytes) -> str:
    return os.path.join(folder, os.fsdecode(name))


def _origins(folder: str | Path) -> tuple[dict[bytes, tuple[bytes, int]], str]:
    """Map images in a prepared folder to name and size of sources.

    Names are those below the folder; beside them stands the name of the part, "" for the whole.
    """
    real = Path(os.path.realpath(folder))
    for root in (real, *real.parents):
        if made := sources(root):
            below = "" if real == root else os.path.join(real.relative_to(root), "")
            part = os.fsencode(below)
            found = {
                name.removeprefix(part): (source.removeprefix(part), size)
                for name, (source, size) in made.items()
                if name.startswith(part) and source.startswith(part)
            }
            return found, os.path.basename(os.path.dirname(below))
    return {}, ""


def data_digest(classes: Sequence[str], *labels: np.ndarray) -> str:
    """Return a digest of class names and labels, in order."""
    digest = hashlib.sha256("\n".join(classes).encode())
    for part in labels:
        digest.update(b"\n" + np.asarray(part, np.int64).tobytes())
    return digest.hexdigest()


def image_counts(classes: Sequence[str], *labels: np.ndarray) -> dict[str, int]:
    """Return how many images each class has in all splits together."""
    counts = np.bincount(np.concatenate(labels), minlength=len(classes))
    return dict(zip(classes, counts.tolist(), strict=True))


def open_folder(
    root: str,
    classes: list[str],
    shorter_side: int,
    resize: str = "shorter_side",
    layout: str | None = None,
) -> ImageFolder:
    """Return the images in a folder with some of the classes.

    Of splits, it is the test images, else those for validation. Raises DataError for a folder that
    has other classes, or images for training alone.
    """
    splits = find_layout(Path(root), layout, complete=False).splits
    split = next((name for name in ("test", "val") if name in splits), None)
    if splits and split is None:
        (train,) = splits.values()
        raise DataError(
            f"{printable(root)} has training images alone: name {printable(Path(root) / train)} to "
            "use those"
        )
    dataset = ImageFolder(
        root, split, shorter_side=shorter_side, complete=False, layout=layout, resize=resize
    )
    folders = [class_of(name, set(classes)) for name in dataset.classes]
    own, there = (list(map(os.fsencode, names)) for names in (classes, folders))
    called = same_names(there, own)
    unknown = [os.fsdecode(name) for name in there if name not in called]
    if unknown:
        raise DataError(
            f"{printable(root)} has classes that this network does not know: {listed(unknown)}; it "
            f"knows {listed(classes, 10)}"
        )
    found = np.array([own.index(called[name]) for name in there], np.int64)
    dataset.classes, dataset.labels = classes, found[dataset.labels]
    return dataset


def title(dataset: Dataset, index: int, between: str = ": ") -> str:
    """Return the caption of an image: its class, if known, and name."""
    label = int(dataset.labels[index])
    paths = getattr(dataset, "paths", None)
    if paths is None:
        return f"{printable(dataset.classes[label])} {index}"
    name = printable(Path(paths[index]).name)
    return name if label < 0 else f"{printable(dataset.classes[label])}{between}{name}"


class ImageFiles:
    """Data set of image files, to be looked at.

    The label of an image is the class after which its folder is called (`class_of`), else -1.
    """

    def __init__(
        self,
        paths: Sequence[str],
        classes: list[str],
        shorter_side: int = 256,
        resize: str = "shorter_side",
    ) -> None:
        self.paths, self.classes = list(paths), classes
        self.shorter_side, self.resize = shorter_side, resize
        places = {name: label for label, name in enumerate(classes)}
        folders = (Path(path).absolute().parent.name for path in self.paths)
        labels = [places.get(class_of(folder, places), -1) for folder in folders]
        self.labels = np.array(labels, np.int64)

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.paths)

    def load(self, index: int) -> np.ndarray:
        """Return image `index`, uint8 RGB [height, width, 3], resized."""
        return read_image(self.paths[index], self.shorter_side, self.resize)

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
        return resize_image(self._dataset.load(index), self._shorter_side)
