"""The list of the images in class folders, and its cache.

A list of many images goes to a file in the user's cache folder (`$XDG_CACHE_HOME/tinyalex`, or
`~/.cache/tinyalex`), together with the identity and the times of every folder that it was read
from. It counts only as long as these are what they were: a file that comes, goes or gets another
name changes the times of its folder.
"""

from __future__ import annotations

import hashlib
import heapq
import os
import time
from array import array
from bisect import bisect, insort
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, overload

import numpy as np

from tinyalex.data.dataset import DataError
from tinyalex.data.image import EXTENSIONS
from tinyalex.files import FileError, load, save
from tinyalex.folders import make_folder
from tinyalex.schema import Each, array_of, check, whole
from tinyalex.text import printable

FORMAT = "tinyalex-index-3"

RULES = 2
"""The number of the rule for what is an image of a folder; a run keeps the one it began with."""

EXTENSIONS_BEFORE = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
"""`EXTENSIONS` under rule 1."""

LITTER = {
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
    *("icon\r", "__macosx", "@eadir", "#recycle", "lost+found"),
}
"""What Windows, macOS, Synology and Linux leave in folders; in lower case."""

OTHER_IMAGES = {
    **{".heic": "HEIC", ".heif": "HEIC", ".avif": "AVIF", ".tif": "TIFF", ".tiff": "TIFF"},
    **{".jxl": "JPEG XL", ".jp2": "JPEG 2000", ".svg": "SVG", ".psd": "PSD", ".tga": "TGA"},
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm"), "PNM"),
    **dict.fromkeys((".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"), "raw"),
}
"""Kinds of images that cannot be read, by the extensions of their names."""

WORTH_CACHING = 10_000
"""Images below which a list is read again each time, in a moment."""

CACHED = {
    "text": array_of("uint8", None),
    "counts": array_of("int64", None),
    "identities": array_of("int64", None),
    "passed_over": Each(whole()),
}
"""What is taken from a remembered list."""

SETTLED_SECONDS = 2.0
"""A folder that changed so shortly ago may change again without a change of its times."""


class Paths(Sequence[str]):
    """File paths below `root`: one array of bytes, a fifth of the memory of as many strings."""

    def __init__(self, root: str, text: np.ndarray) -> None:
        """`text` is uint8: the paths relative to `root`, each with a 0 behind it."""
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
    """The images in class folders, class after class, sorted by path within each."""

    root: str
    classes: list[str]
    text: np.ndarray
    """As `Paths` takes it."""
    counts: np.ndarray
    """int64: how many images each class has."""
    identities: np.ndarray
    """int64: the `identity` of each image's file."""
    passed_over: Counter[str]
    """As in `Scan`."""

    @property
    def paths(self) -> Paths:
        """The paths of the images."""
        return Paths(self.root, self.text)


def index_images(root: str, classes: list[str], cache: bool = True, rules: int = RULES) -> Index:
    """Return the images in the folders `classes` of `root`, read from the disk or from the cache.

    Folders inside a class folder belong to that class. Raises DataError for a folder that cannot be
    read.
    """
    place, key = cache_file(root) if cache else None, _key(root, classes, rules)
    index = _index_in(remembered(place), root, classes, key)
    if index is None:
        scan = Scan(root, rules)
        texts, sizes = [], []
        for paths in scan.images_in(classes):
            texts.append(b"".join(os.fsencode(path) + b"\0" for path in paths))
            sizes.append(len(paths))
        if scan.unreadable:
            raise DataError(scan.unreadable[0])
        text, counts = np.frombuffer(b"".join(texts), np.uint8), np.array(sizes, np.int64)
        identities = np.array(scan.identities, np.int64)
        index = Index(root, classes, text, counts, identities, scan.passed_over)
        if len(index.paths) >= WORTH_CACHING and scan.is_settled():
            content = {
                **key,
                "folders": {folder: list(numbers) for folder, numbers in scan.visited.items()},
                "text": index.text,
                "counts": index.counts,
                "identities": index.identities,
                "passed_over": dict(index.passed_over),
            }
            remember(place, content)
    return index


@dataclass
class Scan:
    """One reading of the folders below `root`: which images are there, and what is passed over.

    An image of a folder is a file whose name ends as an image's does. Hidden files and folders are
    passed over, and what systems leave behind (`LITTER`). Links are followed, but no folder and no
    linked image counts twice: the one that is no link is taken, else the first by path. `rules` is
    1 for runs that began before this was the rule.
    """

    root: str
    rules: int = RULES
    passed_over: Counter[str] = field(default_factory=Counter)
    """How many files and folders of each kind are no images; `in_words` says it."""
    unreadable: list[str] = field(default_factory=list)
    """A sentence for each folder that cannot be read."""
    visited: dict[str, tuple[int, int, int, int]] = field(default_factory=dict)
    """By path below the root: what `fingerprint` says of a folder that was read."""
    identities: array[int] = field(default_factory=lambda: array("q"))
    """The `identity` of each image's file, as far as they were yielded."""
    _has_links: bool = False
    _began: int = field(default_factory=time.time_ns)

    def images_in(self, folders: Sequence[str]) -> Iterator[list[str]]:
        """Read the folders, then yield the paths of the images in each and below it, sorted."""
        found: list[list[str]] = [[] for _ in folders]  # in few strings: they may be millions
        files = [array("q") for _ in folders]
        like_images: list[tuple[str, int]] = []
        linked: list[tuple[str, int]] = []
        seen = self._folders_above()
        # Links come after all other folders, in the order of their paths.
        waiting = [
            (os.path.islink(os.path.join(self.root, folder)), folder, number, frozenset(seen))
            for number, folder in enumerate(folders)
        ]
        heapq.heapify(waiting)
        while waiting:
            is_link, folder, number, above = heapq.heappop(waiting)
            self._has_links |= is_link
            full = os.path.join(self.root, folder)
            try:
                numbers, entries = fingerprint(full), entries_of(full)
            except DataError as error:
                self.unreadable.append(str(error))
                continue
            device, inode, *_ = numbers
            if is_link and (device, inode) in (seen if self.rules > 1 else above):
                self.passed_over["linked twice"] += 1
                continue
            seen.add((device, inode))
            self.visited[folder] = numbers
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
                    self._has_links |= is_link
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
                if other == number and folder in self.visited and is_empty:
                    own.insert(bisect(paths, folder), 0)
                    insort(paths, folder)
            self.identities.extend(own)
            yield paths

    def _folders_above(self) -> set[tuple[int, int]]:
        """Return device and inode of the root and of the folders that it lies in."""
        self.visited[""] = fingerprint(self.root)
        root = Path(self.root).resolve()
        above = set()
        for folder in (root, *root.parents):
            with suppress(DataError):
                above.add(fingerprint(str(folder))[:2])
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
        self._has_links = True
        there = set(chain.from_iterable(files))
        for path, number in sorted(linked):
            try:
                file = identity(*fingerprint(os.path.join(self.root, path))[:2])
            except DataError:  # it leads nowhere: to be named, like any broken image
                file = 0
            if file and file in there and self.rules > 1:
                self.passed_over["linked twice"] += 1
            else:
                found[number].append(path)
                files[number].append(file)
                there.add(file)

    def is_settled(self) -> bool:
        """Tell whether a later change of what was read would show in the folders' times.

        A link shows nothing when that changes to which it leads.
        """
        limit = self._began - int(SETTLED_SECONDS * 1e9)
        times = (max(numbers[2:]) for numbers in self.visited.values())
        return not self._has_links and all(time < limit for time in times)


def images_below(root: str) -> tuple[list[str], Scan]:
    """Return the paths of the images in a folder and below it, sorted, and how they were found."""
    scan = Scan(root)
    (found,) = scan.images_in([""])
    return [os.path.join(root, path) for path in found], scan


def entries_of(folder: str | Path) -> list[os.DirEntry[str]]:
    """Return what is in a folder. Raises DataError if it cannot be read."""
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
    """Tell whether a file or folder is hidden by its name, or left there by a system."""
    return name.startswith(".") or (rules > 1 and name.lower() in LITTER)


def _kind(entry: os.DirEntry[str]) -> str:
    """Return what to call a file that is no image of a folder."""
    if entry.is_symlink() and not os.path.exists(entry.path):
        return "linked to nothing"
    return OTHER_IMAGES.get(os.path.splitext(entry.name)[1].lower(), "other")


def in_words(passed_over: Counter[str]) -> str:
    """Say how many files and folders of each kind were passed over, and what to do about it.

    >>> in_words(Counter({"HEIC": 3, "hidden": 1}))
    'passed over: 3 HEIC, 1 hidden (to use HEIC, convert them to JPEG or PNG)'
    """
    kinds = sorted(passed_over, key=lambda kind: (-passed_over[kind], kind))
    listed = ", ".join(f"{passed_over[kind]} {kind}" for kind in kinds)
    images = ", ".join(kind for kind in kinds if kind in OTHER_IMAGES.values())
    advice = f" (to use {images}, convert them to JPEG or PNG)" if images else ""
    return f"passed over: {listed}{advice}" if listed else ""


def fingerprint(path: str) -> tuple[int, int, int, int]:
    """Return device, inode, and when content and inode changed last, in nanoseconds.

    Raises DataError for what is not there or cannot be reached.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def identity(device: int, inode: int) -> int:
    """Return a number that files share only if they are one file; 0 where that is not known."""
    if inode in (0, 0xFFFFFFFF):  # of file systems that do not number their files
        return 0
    return (inode ^ device * 0x9E3779B97F4A7C15) & 0x7FFFFFFFFFFFFFFF


def _unreadable(path: str | Path, error: OSError) -> DataError:
    return DataError(f"{printable(str(path))}: the folder cannot be read: {error.strerror}")


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
            make_folder(place.parent)
            save(content, place)
    except (OSError, ValueError):  # a ValueError: more folders than a file can list
        pass


def remembered(place: Path | None) -> Any:
    """Return what is known, whoever wrote it; None where there is nothing that can be read."""
    try:
        return None if place is None else load(place)
    except (OSError, FileError):
        return None


def _index_in(
    content: Any, root: str, classes: list[str], key: Mapping[str, object]
) -> Index | None:
    """Return the index in what was remembered, if it is that of the folders as they are now."""
    try:
        if {name: content.get(name) for name in key} != key:
            return None
        for folder, numbers in content["folders"].items():
            if list(fingerprint(os.path.join(root, folder))) != numbers:
                return None
        check(content, CACHED)
        text, counts, identities = (content[name] for name in ("text", "counts", "identities"))
        ends = int(np.count_nonzero(text == 0))
        if len(counts) != len(classes) or counts.min() < 0 or counts.sum() != ends or text[-1]:
            return None
        if len(identities) != ends or not _lists_classes(text, counts, classes):
            return None
        passed_over = Counter[str](content["passed_over"])
        return Index(root, classes, text, counts, identities, passed_over)
    except (DataError, LookupError, AttributeError, TypeError, ValueError):  # gone, or not ours
        return None


def _lists_classes(text: np.ndarray, counts: np.ndarray, classes: list[str]) -> bool:
    """Tell whether the paths are those of files in the folders of their classes."""
    step, whole_text = os.fsencode(os.sep), text.tobytes()
    if step + b".." + step in whole_text or step + b"..\0" in whole_text:
        return False
    begin, lasts = 0, np.flatnonzero(text == 0)[np.cumsum(counts) - 1] if len(text) else []
    for name, count, last in zip(classes, counts, lasts, strict=False):
        own = b"\0" + whole_text[begin : last + 1] if count else b""
        if own.count(b"\0" + os.fsencode(name) + step) != count:
            return False
        begin = last + 1 if count else begin
    return True


def _key(root: str, classes: Iterable[str], rules: int) -> dict[str, object]:
    """Return what an index must agree with."""
    return {
        "format": FORMAT,
        "root": os.path.abspath(root),
        "classes": list(classes),
        "extensions": list(EXTENSIONS),
        "rules": rules,
    }
