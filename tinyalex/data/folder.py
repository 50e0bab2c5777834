"""A folder of class folders of images."""

from __future__ import annotations

import os
import stat
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np

from tinyalex.data.dataset import DataError
from tinyalex.data.image import EXTENSIONS, check_resize, read_image
from tinyalex.data.index import (
    RULES,
    entries_of,
    has_image_name,
    images_below,
    in_words,
    index_images,
    is_folder,
    is_hidden,
)
from tinyalex.data.kept import Kept, same_names
from tinyalex.data.layout import LAYOUTS, Layout, find_layout, visible_folders
from tinyalex.text import UNPRINTABLE, counted, listed, printable

_LAYOUT = "expected one folder for each class, with its images inside"


def check_root(root: Path) -> None:
    """Raise DataError unless the root of a data set is a folder."""
    expected = f"{printable(root)}: expected a folder of class folders"
    try:
        if not stat.S_ISDIR(os.stat(root).st_mode):
            raise DataError(f"{expected}, found a file")
    except OSError as error:
        raise DataError(f"{expected}: {error.strerror}") from error


class ImageFolder:
    """Images in class folders: `root/daisy/1.jpg`, `root/roses/2.png`, ...

    Where `root` holds `train/` and `val/`, or other usual names (`layout.split_of`), those are the
    splits and must hold the same classes; `test/` may lie beside them. Otherwise `split="val"` is a
    share `val_fraction` of every class, drawn with `seed`, and `split="train"` is the rest, of
    `train/` where only `test/` lies beside that; `split=None` is everything. What can be read as
    splits and as classes is refused unless `layout` says which, "splits" or "classes". `kept` takes
    the place of all that: the images that a run had, wherever its data lie now, in their order,
    where `others` are those of its other splits; `beside` says how many others lie in the same
    class folders, and `new_classes` which other folders there are. `rules` is as in `Scan`.

    Classes are the folder names, sorted; images are sorted by path within each class. Folders
    inside a class folder belong to that class. Only names with an image extension count
    (`image.EXTENSIONS`, any case); what is skipped is counted in `passed_over`, as `index.Scan`
    says. The class folders lie in `folder`. Images are resized to `shorter_side` by the rule
    `resize` of `image.RESIZES`. Nothing is decoded here: a broken image raises ImageError from
    `load`.

    Raises DataError for a folder that cannot be trained on: one with a single class, or with a
    class without images. With `complete=False` such a one is taken, too, unless it is empty, as an
    evaluation wants; of `kept`, those that are still there.
    """

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        val_fraction: float = 0.2,
        seed: int = 0,
        shorter_side: int = 256,
        complete: bool = True,
        layout: str | None = None,
        rules: int = RULES,
        kept: Kept | None = None,
        others: Iterable[Kept] = (),
        resize: str = "shorter_side",
    ) -> None:
        if split not in ("train", "val", "test", None):
            raise ValueError(f"split must be 'train', 'val', 'test' or None, got {split!r}")
        if layout not in (*LAYOUTS, None):
            raise ValueError(f"layout must be 'classes', 'splits' or None, got {layout!r}")
        if not 0 < val_fraction < 1:
            raise ValueError(f"val_fraction must lie between 0 and 1, got {val_fraction}")
        check_resize(resize)
        self.root = Path(root)
        self.split = split
        self.shorter_side, self.resize = shorter_side, resize
        self._complete, self._rules = complete and (split != "test" or kept is not None), rules
        check_root(self.root)
        if kept is not None:
            self._open_kept(kept, others)
            return
        splits, beside = self._layout(layout, complete)
        self.folder = self._folder_of(splits)
        names, loose_images = self._class_names(self.folder)
        self.classes = names
        if split == "test" and complete:  # of the training images, of which it may lack some
            self.classes, _ = self._class_names(self.root / splits["train"])
        index = index_images(str(self.folder), names, rules)
        self.passed_over = index.passed_over + Counter(
            {
                "beside the class folders": loose_images,
                "beside the splits": beside if split == "train" else 0,
            }
        )
        self.paths, self.identities = index.paths, index.identities
        places = [self.classes.index(name) for name in names]
        self.labels = np.repeat(np.array(places, np.int64), index.counts)
        self._check_counts(names, index.counts)
        if split in ("train", "val") and "val" not in splits:
            chosen = self._part(index.counts, split, val_fraction, seed)
            self.paths, self.labels = self.paths.take(chosen), self.labels[chosen]
            self.identities = self.identities[chosen]
        self.beside, self.new_classes = len(index.paths) - len(self.paths), list[str]()

    def __len__(self) -> int:
        """Return the number of image files."""
        return len(self.paths)

    def __repr__(self) -> str:
        """Return folder, split and sizes."""
        return (
            f"ImageFolder({str(self.root)!r}, split={self.split!r}): "
            f"{counted(len(self), 'image')}, {counted(len(self.classes), 'class')}"
        )

    def load(self, index: int) -> np.ndarray:
        """Return image `index`, uint8 RGB [height, width, 3], resized."""
        return read_image(self.paths[index], self.shorter_side, self.resize)

    def describe(self, index: int) -> str:
        """Return the path of image `index`, in characters that can be printed."""
        return printable(self.paths[index])

    def kept(self) -> Kept:
        """Return which images these are, for a run to keep."""
        folder = os.path.relpath(self.folder, self.root).removeprefix(".")
        return Kept(folder, self.classes, self.paths.text, rules=self._rules)

    def new(self, known: Iterable[Kept]) -> list[bytes]:
        """Return the images in the same folder that no `known` part has."""
        names = [name for part in known for name in part.names]
        there, _ = images_below(str(self.folder))
        found = [os.fsencode(os.path.relpath(path, self.folder)) for path in there]
        own = set(same_names(names, found).values())
        return [name for name in found if name not in own]

    def _open_kept(self, kept: Kept, others: Iterable[Kept]) -> None:
        """Find the images that a run had."""
        self.folder = self.root / kept.folder
        if not self.folder.is_dir():  # the images of the split are all that was moved
            self.folder = self.root
        there = visible_folders(self.folder, kept.rules)
        called = {
            os.fsdecode(name): os.fsdecode(same)
            for name, same in same_names(
                map(os.fsencode, kept.classes), map(os.fsencode, there)
            ).items()
        }
        own = [kept.classes[label] for label in np.unique(kept.labels)]
        gone = [name for name in own if name not in called]
        if gone and (self._complete or len(gone) == len(own)):
            raise DataError(
                f"{printable(self.folder)} does not hold the classes of the run any more: "
                f"{listed(sorted(gone))} gone, {listed(sorted(there.difference(own)))} new"
            )
        names = [called[name] for name in own if name in called]
        self.new_classes = sorted(there.difference(called.values()))
        index = index_images(str(self.folder), names, kept.rules)
        self.classes, self.passed_over, self._rules = kept.classes, index.passed_over, kept.rules
        same_folder = (other for other in others if other.folder == kept.folder)
        places = kept.found_in(index.paths, same_folder)
        is_there = places >= 0
        if self._complete and not is_there.all():
            missing = [name for name, here in zip(kept.names, is_there, strict=True) if not here]
            raise DataError(
                f"{printable(self.folder)}: of the {counted(len(places), 'image')} of the run, "
                f"{counted(len(missing), 'is', 'are')} no longer there: {listed(missing)}"
            )
        places, self.labels = places[is_there], kept.labels[is_there]
        self.paths, self.identities = index.paths.at(places), index.identities[places]
        self.beside = len(index.paths) - len(self.paths)

    def _layout(self, layout: str | None, complete: bool) -> Layout:
        """Return the layout; raise DataError if its splits have different classes."""
        found = find_layout(self.root, layout, complete, self._rules)
        folders = {split: self.root / name for split, name in found.splits.items()}
        if complete and {"train", "val"} <= folders.keys():
            train, val = (set(self._class_names(folders[name])[0]) for name in ("train", "val"))
            if train != val:
                one, other = found.splits["train"], found.splits["val"]
                raise DataError(
                    f"{printable(self.root)}: {one} and {other} must hold the same classes, but "
                    f"{listed(sorted(train - val))} only in {one}, "
                    f"{listed(sorted(val - train))} only in {other}"
                )
        return found

    def _folder_of(self, splits: dict[str, str]) -> Path:
        """Return the folder that holds the class folders of the split."""
        if splits and self.split is None:
            names = " and ".join(splits.values())
            raise DataError(
                f"{printable(self.root)} is split into {names}: say which, split='train'"
            )
        if self.split == "test" and "test" not in splits:
            raise DataError(
                f"{printable(self.root)} has no folder of test images with the classes of train"
            )
        name = splits.get(self.split or "", splits.get("train", ""))
        return self.root / name

    def _class_names(self, folder: Path) -> tuple[list[str], int]:
        """Return the sorted names of class folders, and the images beside them."""
        names, loose_images = [], 0
        for entry in entries_of(folder):
            if is_hidden(entry.name, self._rules):
                continue
            if is_folder(entry):
                if any(unicodedata.category(character) in UNPRINTABLE for character in entry.name):
                    raise DataError(f"{printable(folder)}: the folder {_refusal(entry.name)}")
                names.append(entry.name)
            elif entry.is_symlink() and not os.path.exists(entry.path):
                raise DataError(
                    f"{printable(entry.path)} is a link that leads nowhere: mend or remove it"
                )
            else:
                loose_images += has_image_name(entry.name, self._rules)
        if not names and loose_images:
            way_out = "" if folder == self.root else "; if it is a class itself, --layout classes"
            found = f"found {counted(loose_images, 'image')} and no folders"
            raise DataError(f"{printable(folder)}: {_LAYOUT}, {found}{way_out}")
        if not names:
            raise DataError(f"{printable(folder)}: {_LAYOUT}, found no folders")
        if len(names) == 1 and self._complete:
            found = f"found only {names[0]!r}{_within(folder / names[0])}"
            raise DataError(f"{printable(folder)}: expected at least 2 classes, {found}")
        return sorted(names), loose_images

    def _check_counts(self, names: list[str], counts: np.ndarray) -> None:
        empty = [name for name, count in zip(names, counts, strict=True) if count == 0]
        if empty and (self._complete or not counts.any()):
            raise DataError(
                f"{printable(self.folder)}: no images ({' '.join(EXTENSIONS)}) in {listed(empty)}: "
                f"add some, or remove {'the folder' if len(empty) == 1 else 'these folders'}"
                + (f"; {passed_over}" if (passed_over := in_words(self.passed_over)) else "")
            )

    def _part(self, counts: np.ndarray, split: str, val_fraction: float, seed: int) -> np.ndarray:
        """Return which images a split has, at least one per class."""
        single = [name for name, count in zip(self.classes, counts, strict=True) if count == 1]
        if single:
            raise DataError(
                f"{printable(self.folder)}: one image in {listed(single)}, where training and "
                "validation need one each: add another, or remove the folder"
            )
        is_val = np.zeros(len(self.paths), bool)
        start = 0
        for label, count in enumerate(counts.tolist()):
            if count == 0:
                continue
            held_out = min(max(1, round(val_fraction * count)), count - 1)
            rng = np.random.default_rng((seed, label))
            is_val[start + rng.permutation(count)[:held_out]] = True
            start += count
        return is_val if split == "val" else ~is_val


def _within(folder: Path) -> str:
    """Return what the only class folder lacks, or has below."""
    images, _ = images_below(str(folder))
    if not images:
        return ", without images"
    folders = {os.path.dirname(path) for path in images}
    above = os.path.commonpath(folders)
    return "" if above in folders else f": give {printable(above)} if its folders are the classes"


def _refusal(name: str) -> str:
    """Return why a name cannot be a class's, and what to do."""
    with suppress(UnicodeDecodeError):
        readable, encoding = os.fsencode(name).decode(), sys.getfilesystemencoding()
        if readable != name:
            return (
                f"{readable!r} has letters in its name that the locale ({encoding}) does not have: "
                "choose another one, LC_ALL=C.UTF-8, or set PYTHONUTF8=1"
            )
    return f"{name!r} has control characters in its name, or is not valid UTF-8: rename it"
