"""Which images lie in class folders: listed in one pass, and remembered while the folders stay.

A list of many images goes to a file in the user's cache folder (`$XDG_CACHE_HOME/tinyalex`, or
`~/.cache/tinyalex`), together with the identity and the times of every folder that it was read
from. It counts only as long as these are what they were: a file that comes, goes or gets another
name changes the times of its folder.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np

from tinyalex.data.dataset import DataError
from tinyalex.data.image import EXTENSIONS
from tinyalex.files import FileError, load, save

FORMAT = "tinyalex-index-1"

WORTH_CACHING = 10_000
"""Images below which a list is read again each time, in a moment."""

SETTLED_SECONDS = 2.0
"""A folder that changed so shortly ago may change again without a change of its times."""


class Paths(Sequence[str]):
    """File paths below `root`: one array of bytes, a fifth of the memory of as many strings."""

    def __init__(self, root: str, text: np.ndarray) -> None:
        """`text` is uint8: the paths relative to `root`, each with a 0 behind it."""
        self._root = root
        self._text = text
        self._ends = np.flatnonzero(text == 0)
        self._starts = np.concatenate([[0], self._ends[:-1] + 1])[: len(self._ends)]

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        name = self._text[self._starts[index] : self._ends[index]].tobytes()
        return os.path.join(self._root, os.fsdecode(name))

    def take(self, chosen: np.ndarray) -> Paths:
        """Return those for which the bool array `chosen` is true."""
        part = object.__new__(Paths)
        part._root, part._text = self._root, self._text
        part._starts, part._ends = self._starts[chosen], self._ends[chosen]
        return part


@dataclass
class Index:
    """The images in class folders, class after class, sorted by path within each."""

    root: str
    classes: list[str]
    text: np.ndarray
    """As `Paths` takes it."""
    counts: np.ndarray
    """int64: how many images each class has."""
    ignored: int
    """How many files are no images by their names, or hidden."""

    @property
    def paths(self) -> Paths:
        """The paths of the images."""
        return Paths(self.root, self.text)


def index_images(root: str, classes: list[str], cache: bool = True) -> Index:
    """Return the images in the folders `classes` of `root`, read from the disk or from the cache.

    Folders inside a class folder belong to that class. Raises DataError for a folder that cannot be
    read, and for a link back to a folder above.
    """
    place = cache_file(root) if cache else None
    index = _index_in(remembered(place), root, classes)
    if index is None:
        scan = _Scan(root)
        texts, counts = [], []
        identity = scan.visit("")
        for name in classes:
            names = scan.images_in(name, (identity,))
            counts.append(len(names))
            texts.append(b"".join(os.fsencode(path) + b"\0" for path in names))
        text = np.frombuffer(b"".join(texts), np.uint8)
        index = Index(root, classes, text, np.array(counts, np.int64), scan.ignored)
        if len(index.paths) >= WORTH_CACHING and scan.is_settled():
            content = {
                **_key(root, classes),
                "folders": {folder: list(numbers) for folder, numbers in scan.visited.items()},
                "text": index.text,
                "counts": index.counts,
                "ignored": index.ignored,
            }
            remember(place, content)
    return index


@dataclass
class _Scan:
    """One reading of the folders below `root`, and what they were when it began."""

    root: str
    ignored: int = 0
    has_links: bool = False
    visited: dict[str, tuple[int, int, int, int]] = field(default_factory=dict)
    """By path below the root: what `fingerprint` says of it."""
    began: int = field(default_factory=time.time_ns)

    def visit(self, folder: str) -> tuple[int, int]:
        """Take down what a folder is now; return its device and inode."""
        self.visited[folder] = fingerprint(os.path.join(self.root, folder))
        return self.visited[folder][:2]

    def images_in(self, folder: str, above: tuple[tuple[int, int], ...]) -> list[str]:
        """Return the paths of the images in a folder and below, sorted; count what is passed over.

        `above` identifies the folders on the way down, so that a link back up is noticed.
        """
        full = os.path.join(self.root, folder)
        identity = self.visit(folder)
        if identity in above:
            raise DataError(f"{full} is a link to a folder that it lies in: remove the link")
        found = []
        for entry in entries_of(full):
            path = f"{folder}{os.sep}{entry.name}"
            self.has_links |= entry.is_symlink()
            if entry.name.startswith("."):
                self.ignored += 1
            elif is_folder(entry):
                below = self.images_in(path, (*above, identity))
                # A folder called x.jpg with no image in it: to be named, like any broken image.
                found += below or ([path] if has_image_name(entry) else [])
            elif has_image_name(entry):
                found.append(path)
            else:
                self.ignored += 1
        return sorted(found)

    def is_settled(self) -> bool:
        """Whether a later change of what was read would show in the folders' times.

        A link shows nothing when that changes to which it leads.
        """
        limit = self.began - int(SETTLED_SECONDS * 1e9)
        return not self.has_links and all(max(times[2:]) < limit for times in self.visited.values())


def entries_of(folder: str | Path) -> list[os.DirEntry[str]]:
    """Return what is in a folder. Raises DataError if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(f"{folder}: the folder cannot be read: {error.strerror}") from error


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def has_image_name(entry: os.DirEntry[str]) -> bool:
    """Whether its name ends as an image's does."""
    return entry.name.lower().endswith(EXTENSIONS)


def fingerprint(path: str) -> tuple[int, int, int, int]:
    """Return device, inode, and when content and inode changed last, in nanoseconds."""
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


# --- the cache ------------------------------------------------------------------------------------


def cache_file(root: str, kind: str = "index") -> Path | None:
    """Return the file for what is known of the images in `root`, None for a user without a place.

    There is a file for each kind of knowledge: their list is the `index`.
    """
    folder = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(folder):  # unset; or relative, which the XDG specification ignores
        folder = os.path.expanduser("~/.cache")
    name = hashlib.sha256(os.fsencode(os.path.abspath(root))).hexdigest()[:32]
    return Path(folder, "tinyalex", f"{kind}-{name}.safetensors") if os.path.isabs(folder) else None


def remember(place: Path | None, content: object) -> None:
    """Write what is known; where that cannot be, the next run finds it out again."""
    try:
        if place is not None:
            place.parent.mkdir(parents=True, exist_ok=True)
            save(content, place)
    except OSError:
        pass


def remembered(place: Path | None) -> Any:
    """Return what is known, whoever wrote it; None where there is nothing that can be read."""
    try:
        return None if place is None else load(place)
    except (OSError, FileError):
        return None


def _index_in(content: Any, root: str, classes: list[str]) -> Index | None:
    """Return the index in what was remembered, if it is that of the folders as they are now."""
    try:
        key = _key(root, classes)
        if {name: content.get(name) for name in key} != key:
            return None
        for folder, numbers in content["folders"].items():
            if list(fingerprint(os.path.join(root, folder))) != numbers:
                return None
        return Index(root, classes, content["text"], content["counts"], content["ignored"])
    except (OSError, KeyError, AttributeError, TypeError):  # a folder gone, or not one of ours
        return None


def _key(root: str, classes: Iterable[str]) -> dict[str, object]:
    """Return what an index must agree with."""
    return {
        "format": FORMAT,
        "root": os.path.abspath(root),
        "classes": list(classes),
        "extensions": list(EXTENSIONS),
    }
