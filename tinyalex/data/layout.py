"""Layout of a data set: class folders, or splits of such."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tinyalex.data.dataset import DataError
from tinyalex.data.index import (
    RULES,
    entries_of,
    has_image_name,
    images_below,
    is_folder,
    is_hidden,
)
from tinyalex.text import listed, printable

LAYOUTS = ("classes", "splits")
"""Every folder is a class; or folders called train, val and test hold the class folders."""

_NAMES = re.compile(
    r"(?:(train|training)|(val|valid|validation)|(test|testing))(?:[-_ ]?(?:set|data|images))?",
    re.IGNORECASE,
)
_SPLITS = {"train": "training", "val": "validation", "test": "test"}
"""Names of the splits in sentences."""


class Layout(NamedTuple):
    """Folders of the splits, and the number of folders beside them."""

    splits: dict[str, str]
    """By "train", "val" and "test"; empty where the folders are classes."""
    beside: int = 0


def split_of(name: str) -> str | None:
    """Return the split that a folder's name stands for; case is ignored.

    >>> split_of("Training"), split_of("valid"), split_of("test_set"), split_of("trainer")
    ('train', 'val', 'test', None)
    """
    found = _NAMES.fullmatch(name)
    return list(_SPLITS)[found.lastindex - 1] if found and found.lastindex else None


def find_layout(
    root: Path, layout: str | None = None, complete: bool = True, rules: int = RULES
) -> Layout:
    """Return the layout of `root`; a given `layout` decides between two readings.

    A folder with the name of a split is none if only images lie in it, and in others beside it as
    well: a class called train. `complete` asks for training images, and for others with them; where
    `layout` is "splits", a part of the training images can be those. Test images count where their
    classes are those of the training images. Raises DataError for what can be read in two ways.
    """
    folders = sorted(visible_folders(root, rules))
    if rules == 1:  # which knew no other names, and no test images
        ready = {"train", "val"} <= set(folders)
        return Layout({name: name for name in ("train", "val")} if ready else {})
    named = [name for name in folders if split_of(name)]
    others = [name for name in folders if not split_of(name)]
    if layout == "classes" or (layout is None and not named):
        return Layout({})
    with_images = [name for name in others if _holds_images(root / name)] if named else []
    if layout is None and with_images and not any(map(visible_folders, map(root.joinpath, named))):
        return Layout({})

    as_classes = "give --layout classes if they are classes"
    splits: dict[str, str] = {}
    for name in named:
        split = split_of(name) or ""
        if splits.setdefault(split, name) != name:
            raise DataError(
                f"{printable(root)} has the folders {listed([splits[split], name])}, and either "
                f"could hold the {_SPLITS[split]} images: rename or remove one, or {as_classes}"
            )
    if layout is None and with_images and not {"train", "val"} <= splits.keys():
        hold = " and ".join(_SPLITS[split] for split in splits)
        if "train" in splits or not complete:
            way_out = "--layout classes or --layout splits"
        else:
            way_out = "give --layout classes, or put the others into a folder train"
        raise DataError(
            f"{printable(root)} has the folders {listed(named)}, which may be classes beside "
            f"{listed(with_images)}, or hold the {hold} images: say which, {way_out}"
        )
    if complete:
        _check_complete(root, splits, layout)
    if "test" in splits and len(splits) > 1:
        tested = visible_folders(root / splits["test"])
        if not tested or (complete and tested - visible_folders(root / splits["train"])):
            del splits["test"]
    return Layout(splits, len(folders) - len(splits))


def _check_complete(root: Path, splits: dict[str, str], layout: str | None) -> None:
    """Raise DataError unless training images and others are there as expected."""
    names = list(splits.values())
    if "train" not in splits:
        found = f"found only {listed(names)}" if names else "found none called train"
        part = (
            f", or give {printable(root / names[0])} to have a split made from that"
            if names
            else ""
        )
        raise DataError(
            f"{printable(root)}: expected a folder with the training images beside the others, "
            f"{found}: add "
            f"it{part}" + (", or give --layout classes if they are classes" if names else "")
        )
    if len(splits) == 1 and layout is None:
        raise DataError(
            f"{printable(root)} has a folder {names[0]} but no val: add it, or give "
            f"{printable(root / names[0])} to have "
            "a split made from it"
        )


def visible_folders(root: Path, rules: int = RULES) -> set[str]:
    """Return the names of the folders in a folder, without hidden ones."""
    entries = entries_of(root)
    return {
        entry.name for entry in entries if is_folder(entry) and not is_hidden(entry.name, rules)
    }


def image_folders(root: Path) -> Iterator[Path]:
    """Yield the root, and linked folders of splits and classes."""
    yield root
    for folder in (root, *(path for path in root.glob("*") if split_of(path.name))):
        yield from (path for path in folder.glob("*") if path.is_symlink() and path.is_dir())


def _holds_images(folder: Path) -> bool:
    """Tell whether a readable folder has images in or below it."""
    try:
        here = any(has_image_name(entry.name) for entry in entries_of(folder))
        return here or bool(images_below(str(folder))[0])
    except DataError:
        return False
