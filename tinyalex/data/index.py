"""Image files below class folders, found and sorted."""

from __future__ import annotations

import heapq
import os
from array import array
from bisect import bisect, insort
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import overload

import numpy as np

from tinyalex.data.dataset import DataError
from tinyalex.data.image import EXTENSIONS
from tinyalex.text import printable

RULES = 2
"""The number of the rule for what is an image of a folder; a run keeps the one it began with."""

EXTENSIONS_BEFORE = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
"""`EXTENSIONS` under rule 1."""

LITTER = {
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
    *("icon\r", "__macosx", "@eadir", "#recycle", "lost+found"),
}
"""Names that Windows, macOS, Synology and Linux leave in folders; in lower case."""

OTHER_IMAGES = {
    **{".heic": "HEIC", ".heif": "HEIC", ".avif": "AVIF", ".tif": "TIFF", ".tiff": "TIFF"},
    **{".jxl": "JPEG XL", ".jp2": "JPEG 2000", ".svg": "SVG", ".psd": "PSD", ".tga": "TGA"},
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm"), "PNM"),
    **dict.fromkeys((".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"), "raw"),
}
"""Kinds of images that cannot be read, by the extensions of their names."""


class Paths(Sequence[str]):
    """File paths below `root` in one array of bytes.

    It takes a fifth of the memory of as many strings.
    """

    def __init__(self, root: str, text: np.ndarray) -> None:
        """Take uint8 `text`: paths relative to `root`, each followed by a 0."""
        self._root = root
        self.text = text
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
        name = self.text[self._starts[index] : self._ends[index]].tobytes()
        return os.path.join(self._root, os.fsdecode(name))

    def take(self, chosen: np.ndarray) -> Paths:
        """Return those for which the bool array `chosen` is true."""
        lengths = self._ends + 1 - self._starts
        return Paths(self._root, self.text[np.repeat(chosen, lengths)])

    def at(self, places: np.ndarray) -> Paths:
        """Return those at the places, in their order."""
        if np.array_equal(places, np.arange(len(self))):
            return self
        names = self.text.tobytes().split(b"\0")
        found = b"".join(names[place] + b"\0" for place in places.tolist())
        return Paths(self._root, np.frombuffer(found, np.uint8))


@dataclass
class Index:
    """Images in class folders, class after class, sorted by path within each."""

    paths: Paths
    counts: np.ndarray
    """int64: the number of images per class."""
    identities: np.ndarray
    """int64: the `identity` of each image's file."""
    passed_over: Counter[str]
    """As in `Scan`."""


def index_images(root: str, classes: list[str], rules: int = RULES) -> Index:
    """Return the images in the folders `classes` of `root`.

    Folders inside a class folder belong to that class. Raises DataError for a folder that cannot be
    read.
    """
    scan, texts, counts = Scan(root, rules), [], []
    for found in scan.images_in(classes):
        texts.append(b"".join(os.fsencode(path) + b"\0" for path in found))
        counts.append(len(found))
    if scan.unreadable:
        raise DataError(scan.unreadable[0])
    paths = Paths(root, np.frombuffer(b"".join(texts), np.uint8))
    identities = np.array(scan.identities, np.int64)
    return Index(paths, np.array(counts, np.int64), identities, scan.passed_over)


@dataclass
class Scan:
    """Image files below `root`, and the number of skipped files per kind.

    An image of a folder is a file whose name ends as an image's does. Hidden files and folders are
    skipped, and what systems leave behind (`LITTER`). Links are followed, but no folder and no
    linked image counts twice: the one that is no link is taken, else the first by path. `rules` is
    1 for runs that began before this was the rule.
    """

    root: str
    rules: int = RULES
    passed_over: Counter[str] = field(default_factory=Counter)
    """Number of files and folders of each kind that are no images; for `in_words`."""
    unreadable: list[str] = field(default_factory=list)
    """A sentence for each folder that cannot be read."""
    identities: array[int] = field(default_factory=lambda: array("q"))
    """The `identity` of each image's file, as far as they were yielded."""

    def images_in(self, folders: Sequence[str]) -> Iterator[list[str]]:
        """Read the folders; yield the sorted paths of the images in each."""
        found: list[list[str]] = [[] for _ in folders]  # in few strings: they may be millions
        files = [array("q") for _ in folders]
        like_images: list[tuple[str, int]] = []
        linked: list[tuple[str, int]] = []
        seen, read = self._folders_above(), set[str]()
        # Links come after all other folders, in the order of their paths.
        waiting = [
            (os.path.islink(os.path.join(self.root, folder)), folder, number, frozenset(seen))
            for number, folder in enumerate(folders)
        ]
        heapq.heapify(waiting)
        while waiting:
            is_link, folder, number, above = heapq.heappop(waiting)
            full = os.path.join(self.root, folder)
            try:
                (device, inode), entries = _device_and_inode(full), entries_of(full)
            except DataError as error:
                self.unreadable.append(str(error))
                continue
            if is_link and (device, inode) in (seen if self.rules > 1 else above):
                self.passed_over["linked twice"] += 1
                continue
            seen.add((device, inode))
            read.add(folder)
            here, images = os.path.join(folder, ""), []
            for entry in entries:
                name, is_link = entry.name, entry.is_symlink()
                if is_hidden(name, self.rules):
                    self.passed_over["hidden"] += 1
                elif is_folder(entry):
                    below = above | {(device, inode)} if self.rules == 1 else above
                    heapq.heappush(waiting, (is_link, here + name, number, below))
                    if has_image_name(name, self.rules):
                        like_images.append((here + name, number))
                elif not has_image_name(name, self.rules):
                    self.passed_over[_kind(entry)] += 1
                elif is_link:
                    linked.append((here + name, number))
                else:
                    images.append(here + name)
                    files[number].append(identity(device, entry.inode()))
            if images:
                found[number].append("\0".join(images))
        self._add_linked(linked, files, found)
        for number, parts in enumerate(found):
            paths = "\0".join(parts).split("\0") if parts else []
            order = sorted(range(len(paths)), key=paths.__getitem__)
            paths, own = [paths[i] for i in order], array("q", [files[number][i] for i in order])
            for folder, other in sorted(like_images, reverse=True):  # the innermost comes first
                # A folder called x.jpg with no image in it: to be named, like any broken image.
                place = bisect(paths, folder + os.sep)
                is_empty = not "".join(paths[place : place + 1]).startswith(folder + os.sep)
                if other == number and folder in read and is_empty:
                    own.insert(bisect(paths, folder), 0)
                    insort(paths, folder)
            self.identities.extend(own)
            yield paths

    def _folders_above(self) -> set[tuple[int, int]]:
        """Return device and inode of the root and its parents."""
        above = {_device_and_inode(self.root)}
        for folder in Path(self.root).resolve().parents:
            with suppress(DataError):
                above.add(_device_and_inode(folder))
        return above

    def _add_linked(
        self,
        linked: list[tuple[str, int]],
        files: list[array[int]],
        found: list[list[str]],
    ) -> None:
        """Add the images that are links to files, each file once."""
        if not linked:
            return
        there = set(chain.from_iterable(files))
        for path, number in sorted(linked):
            try:
                file = identity(*_device_and_inode(os.path.join(self.root, path)))
            except DataError:  # it leads nowhere: to be named, like any broken image
                file = 0
            if file and file in there and self.rules > 1:
                self.passed_over["linked twice"] += 1
            else:
                found[number].append(path)
                files[number].append(file)
                there.add(file)


def images_below(root: str) -> tuple[list[str], Scan]:
    """Return the sorted paths of images below a folder, and the scan."""
    scan = Scan(root)
    (found,) = scan.images_in([""])
    return [os.path.join(root, path) for path in found], scan


def entries_of(folder: str | Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder; DataError if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise _unreadable(folder, error) from error


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Tell whether it is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def has_image_name(name: str, rules: int = RULES) -> bool:
    """Tell whether a name ends as an image's does."""
    return name.lower().endswith(EXTENSIONS if rules > 1 else EXTENSIONS_BEFORE)


def is_hidden(name: str, rules: int = RULES) -> bool:
    """Tell whether a name is hidden, or one of a system's litter."""
    return name.startswith(".") or (rules > 1 and name.lower() in LITTER)


def _kind(entry: os.DirEntry[str]) -> str:
    """Return the kind of a file that is skipped."""
    if entry.is_symlink() and not os.path.exists(entry.path):
        return "linked to nothing"
    return OTHER_IMAGES.get(os.path.splitext(entry.name)[1].lower(), "other")


def in_words(passed_over: Counter[str]) -> str:
    """Return a sentence on the skipped files of each kind, with advice.

    >>> in_words(Counter({"HEIC": 3, "hidden": 1}))
    'skipped: 3 HEIC, 1 hidden (to use HEIC, convert them to JPEG or PNG)'
    """
    kinds = sorted(passed_over, key=lambda kind: (-passed_over[kind], kind))
    listed = ", ".join(f"{passed_over[kind]} {kind}" for kind in kinds)
    images = ", ".join(kind for kind in kinds if kind in OTHER_IMAGES.values())
    advice = f" (to use {images}, convert them to JPEG or PNG)" if images else ""
    return f"skipped: {listed}{advice}" if listed else ""


def _device_and_inode(path: str | Path) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    return status.st_dev, status.st_ino


def identity(device: int, inode: int) -> int:
    """Return a number that identifies a file; 0 if unknown."""
    if inode in (0, 0xFFFFFFFF):  # of file systems that do not number their files
        return 0
    return (inode ^ device * 0x9E3779B97F4A7C15) & 0x7FFFFFFFFFFFFFFF


def _unreadable(path: str | Path, error: OSError) -> DataError:
    return DataError(f"{printable(str(path))}: the folder cannot be read: {error.strerror}")
