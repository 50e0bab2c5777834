"""The images that a run keeps for each split, by their names."""

from __future__ import annotations

import os
import unicodedata
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tinyalex.data.index import RULES, Paths
from tinyalex.data.manifest import file_size
from tinyalex.folders import open_regular

WORTH_READING = 10_000
"""Images of which parts are read for their marks, in seconds; of more, the sizes have to do."""
PART = 4096
MOST_TEXT = 2**30
"""Bytes of names that are unpacked: those of twenty million images."""


@dataclass(frozen=True)
class Kept:
    """The images that a split had.

    `get_state` and `from_state` carry them in a checkpoint.
    """

    folder: str
    """The name of the split's folder, "" where the class folders lie in the root."""
    classes: list[str]
    text: np.ndarray
    """The paths below the folder, as `Paths` takes them."""
    marks: np.ndarray | None = None
    """int64: the mark of each file, by which other contents show; of images held out only."""
    rules: int = RULES
    """Which rule they were found by, as in `Scan`."""

    @property
    def names(self) -> list[bytes]:
        """Paths below the folder; not stored, as there may be a million."""
        return self.text.tobytes().split(b"\0")[:-1]

    @cached_property
    def labels(self) -> np.ndarray:
        """Class of each image, by its folder; KeyError for an unknown one."""
        places = {os.fsencode(name): label for label, name in enumerate(self.classes)}
        separator = os.fsencode(os.sep)
        return np.array([places[name.partition(separator)[0]] for name in self.names], np.int64)

    def found_in(self, there: Paths, others: Iterable[Kept] = ()) -> np.ndarray:
        """Return the place of each image in `there`, -1 if gone.

        Names that differ in nothing but the Unicode form of their accents are the same, if no other
        image has such a name, nor is one of the `others`.
        """
        if np.array_equal(self.text, there.text):
            return np.arange(len(there))
        own, names = self.names, there.text.tobytes().split(b"\0")[:-1]
        called = same_names(own, names, (name for other in others for name in other.names))
        places = {name: place for place, name in enumerate(names)}
        return np.array([places[called[name]] if name in called else -1 for name in own], np.int64)

    def marked(self, paths: Paths) -> Kept:
        """Return this with the marks of the files."""
        read = len(paths) <= WORTH_READING
        return replace(self, marks=np.array([mark(path, read) for path in paths], np.int64))

    def changed(self, now: Kept) -> list[bytes]:
        """Return the names of readable files whose marks have changed."""
        if self.marks is None or now.marks is None:
            return []
        names, known = self.names, (self.marks != -1) & (now.marks != -1)
        return [names[place] for place in np.flatnonzero((self.marks != now.marks) & known)]

    def get_state(self) -> dict[str, Any]:
        """Return everything but the classes as plain values and arrays."""
        return {
            "folder": self.folder,
            "names": self._packed,
            "marks": self.marks,
            "rules": self.rules,
        }

    @cached_property
    def _packed(self) -> np.ndarray:
        return np.frombuffer(zlib.compress(self.text.tobytes(), 1), np.uint8)

    @classmethod
    def from_state(cls, classes: list[str], state: dict[str, Any]) -> Kept:
        """Return what `get_state` took apart. Raises ValueError, LookupError or TypeError."""
        folder, marks = state["folder"], state["marks"]
        if (
            not isinstance(folder, str)
            or folder in (".", "..")
            or os.path.basename(folder) != folder
        ):
            raise ValueError(f"{folder!r} is no name for the folder of a split")
        try:
            unpacking = zlib.decompressobj()
            text = np.frombuffer(
                unpacking.decompress(state["names"].tobytes(), MOST_TEXT), np.uint8
            )
            if not unpacking.eof:
                raise ValueError(
                    f"the names of the images are cut short, or above {MOST_TEXT} bytes"
                )
        except (AttributeError, zlib.error) as error:
            raise ValueError(f"the names of the images are damaged: {error}") from error
        kept = cls(folder, classes, text, marks, int(state["rules"]))
        if not len(kept.labels) or (marks is not None and marks.shape != kept.labels.shape):
            raise ValueError("the names of the images do not fit their marks")
        return kept


def mark(path: str, read: bool = True) -> int:
    """Return a checksum of a file's size and two parts of it.

    With the size alone, where it is not `read`. -1 for what is no file that can be read.
    """
    try:
        if not read:
            return file_size(Path(path))
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            found = size
            for start in (size // 2, max(size - PART, 0)):
                file.seek(start)
                found = zlib.crc32(file.read(PART), found & 0xFFFFFFFF)
            return found
    except OSError:
        return -1


def composed(name: bytes) -> str:
    """Return a name in Unicode form NFC."""
    return unicodedata.normalize("NFC", os.fsdecode(name))


def same_names(
    names: Iterable[bytes], there: Iterable[bytes], taken: Iterable[bytes] = ()
) -> dict[bytes, bytes]:
    """Map each name to the one that is there, if any.

    That is the same name, or the only one that differs in nothing but its Unicode form, unless it
    is `taken`.
    """
    own, found = set(names), set(there)
    same = {name: name for name in own & found}
    if missing := own.difference(found):
        forms, wanted = _by_form(found.difference(own, taken)), _by_form(missing)
        for form, (name, *more) in wanted.items():
            if not more and len(forms.get(form, ())) == 1:
                same[name] = forms[form][0]
    return same


def _by_form(names: Iterable[bytes]) -> dict[str, list[bytes]]:
    forms: dict[str, list[bytes]] = {}
    for name in names:
        forms.setdefault(composed(name), []).append(name)
    return forms
