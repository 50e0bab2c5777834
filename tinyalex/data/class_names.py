"""Names of classes from the files that list them, and ImageNet's own."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from tinyalex.data.layout import visible_folders
from tinyalex.files import DAMAGE, FileError
from tinyalex.folders import open_regular
from tinyalex.text import listed, printable

LONGEST = 2_000_000
"""Bytes of a list of names: that of ImageNet's 21,843 classes has a quarter."""

_ID = re.compile(r"(n\d{8})(?!\d)[\s:,_-]*(.*)")
_NUMBER_LAST = re.compile(r"(?P<name>.*\S)[\s,:]+(?P<number>\d+)")
_NUMBER_FIRST = re.compile(r"(?P<number>\d+)[\s,:]+(?P<name>.*\S)")


@cache
def imagenet() -> dict[str, str]:
    """Return the names of ImageNet's 1,000 classes by WordNet id, in order."""
    text = files("tinyalex.data").joinpath("imagenet.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return dict(line.split(" ", 1) for line in lines)


def without_ids(names: Iterable[str]) -> list[str]:
    """Return names with those that begin with a WordNet id replaced.

    By ImageNet's name where it is one of its classes, else by what follows the id.

    >>> without_ids(["n01440764", "n00004475 organism, being", "rose"])
    ['tench', 'organism, being', 'rose']
    """
    found = []
    for name in names:
        match = _ID.fullmatch(name)
        found.append(imagenet().get(match[1], match[2] or name) if match else name)
    return found


def class_of(folder: str, classes: Collection[str]) -> str:
    """Return a folder's name, or the class of its WordNet id."""
    (name,) = without_ids([folder])
    return name if name in classes and folder not in classes else folder


def distinct(names: Iterable[str]) -> list[str]:
    """Return names with numbers behind those that occur more than once.

    >>> distinct(["crane", "elm", "crane"])
    ['crane (0)', 'elm', 'crane (2)']
    """
    names = list(names)
    counts = Counter(names)
    return [f"{one} ({place})" if counts[one] > 1 else one for place, one in enumerate(names)]


def read_class_names(path: str | Path) -> list[str]:
    """Return the names of classes in the order of the outputs.

    A text file has one name per line, perhaps behind a WordNet id (synset_words.txt) or beside its
    number (categories_places365.txt); a JSON file has a list, or pairs of a number and a name in
    either order, perhaps with the id (imagenet_class_index.json) or inside "id2label"
    (config.json); in a folder, the folders are the classes, sorted as in training. Raises FileError
    for what is none of these, OSError for what cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        names = sorted(visible_folders(path))
    else:
        with open_regular(path) as file:
            content = file.read(LONGEST + 1) or b""
        try:
            if len(content) > LONGEST:
                raise ValueError(f"it has more than {LONGEST:,} bytes")
            text = content.decode("utf-8-sig").strip()
            names = _structured(text) if text[:1] in ("{", "[") else _lines(text)
        except (*DAMAGE, MemoryError, SyntaxError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise FileError(
                f"{printable(path)} is no list of names of classes: {reason}"
            ) from error
    if not names:
        raise FileError(f"{printable(path)} has no names of classes: expected one per line")
    return without_ids(names)


def _lines(text: str) -> list[str]:
    if "\0" in text:
        raise ValueError("it is no text")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for numbered in (_NUMBER_LAST, _NUMBER_FIRST):
        found = [numbered.fullmatch(line) for line in lines]
        numbers = [int(match["number"]) for match in found if match]
        if len(lines) > 1 and numbers == list(range(len(lines))):
            return [match["name"] for match in found if match]
    return lines


def _structured(text: str) -> list[str]:
    """Return the names in JSON or in a Python literal."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        found = ast.literal_eval(text)
    if isinstance(found, dict):
        pairs = list(found.get("id2label", found).items())
        if all(isinstance(number, int) for _, number in pairs):  # as torchvision's class_to_idx
            pairs = [(number, name) for name, number in pairs]
        by_number = {int(number): name for number, name in pairs}
        numbers = range(len(pairs))
        if missing := [str(number) for number in numbers if number not in by_number]:
            raise ValueError(f"it has no name for the number {listed(missing)}")
        found = [by_number[number] for number in numbers]
    return [_name(value) for value in found]


def _name(value: Any) -> str:
    parts = value if isinstance(value, list) else [value]
    if not all(isinstance(part, str) for part in parts):
        raise ValueError(f"expected names, found {value!r:.80}")
    return " ".join(parts)
