"""The list of images in a prepared folder, with sources and SHA-256.

`manifest.jsonl` has the options in its first line and an image in each of the others. While the
work is under way, a journal of the same form grows: a line is added once its file is there.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

from tinyalex.data.dataset import DataError
from tinyalex.data.image import FAULTS_OF_THE_MACHINE
from tinyalex.data.index import is_hidden
from tinyalex.data.statistics import load_statistics
from tinyalex.data.worker_processes import Work, Workers, late
from tinyalex.files import FileError
from tinyalex.folders import Folder, open_regular
from tinyalex.schema import Rule, check, whole
from tinyalex.text import printable

MANIFEST, JOURNAL = "manifest.jsonl", ".manifest-so-far.jsonl"
STATISTICS, LEFT_OUT = "statistics.safetensors", "left_out.jsonl"
OWN_FILES = {MANIFEST, JOURNAL, STATISTICS, LEFT_OUT, "run.lock"}

FORMAT = "tinyalex-manifest-1"

PATIENCE = 30.0
"""Seconds for one image, which it takes on no machine: then it is left out, and for good."""

CHUNK = 16
"""Images in one task of a process: a second of work at most, all that an interruption costs."""

LONGEST_LINE = 2**18
"""Bytes above which a line is none of a manifest, and neither is what follows."""

ENDINGS = {"jpeg": (".jpg", ".jpeg"), "png": (".png",)}

Show = Callable[[str, int, int], object]
"""Called as `show(what, done, total)` whenever a chunk is done."""

T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """Options of the prepared images. Raises ValueError for what cannot be."""

    shorter_side: int = 256
    format: str = "jpeg"
    quality: int = 95
    """Of a JPEG, in Pillow's measure."""

    def __post_init__(self) -> None:
        if not 1 <= self.shorter_side <= 10_000:
            raise ValueError(
                f"the shorter side must be 1 to 10,000 pixels, got {self.shorter_side}"
            )
        if self.format not in ENDINGS:
            raise ValueError(f"the format must be one of {', '.join(ENDINGS)}, got {self.format!r}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"the quality must be 1 to 100, got {self.quality}")

    def header(self) -> str:
        """Return the first line of a manifest."""
        return json.dumps({"format": FORMAT, **asdict(self)}) + "\n"

    def name_for(self, name: str) -> str:
        """Return the name of the prepared file; an ending that fits stays."""
        fits = name.lower().endswith(ENDINGS[self.format])
        return name if fits else name + ENDINGS[self.format][0]


class Entry(NamedTuple):
    """Image in a manifest: paths below TARGET and SOURCE, sizes in bytes."""

    path: str
    source: str
    sha256: str
    size: int
    source_size: int

    def line(self) -> str:
        """Return the entry as a line of a manifest."""
        return json.dumps(self._asdict()) + "\n"


def _leads_inside(path: Any) -> bool:
    """Tell whether a relative path stays below its folder."""
    try:
        os.fsencode(path)
    except (TypeError, ValueError):  # no text, or a surrogate that stands for no byte
        return False
    parts = path.replace(os.altsep or os.sep, os.sep).split(os.sep)
    return "\0" not in path and {"", ".", ".."}.isdisjoint(parts)


_INSIDE = Rule("the path of a file below the folder", _leads_inside)
_DIGEST = Rule(
    "a SHA-256 in hexadecimal",
    lambda value: type(value) is str and re.fullmatch("[0-9a-f]{64}", value) is not None,
)
LINE = {
    "path": _INSIDE,
    "source": _INSIDE,
    "sha256": _DIGEST,
    "size": whole(),
    "source_size": whole(),
}
"""Schema of a line of a manifest."""

_NO_LINE = (ValueError, TypeError, LookupError, RecursionError)
"""Errors that something else in the place of a line can raise."""


def _entry_in(line: bytes) -> Entry:
    content = json.loads(line)
    check(content, LINE)
    return Entry(**content)


def is_manifest(path: Path) -> bool:
    """Tell whether a file is a manifest or journal, even if damaged."""
    with suppress(OSError), open_regular(path) as file:
        first, second = (file.readline(LONGEST_LINE) for _ in range(2))
        with suppress(*_NO_LINE):
            if json.loads(first)["format"] == FORMAT:
                return True
        with suppress(*_NO_LINE):
            return bool(_entry_in(second))
    return False


def read_manifest(path: Path) -> tuple[str, list[Entry], list[int]]:
    """Return the first line, the entries, and the numbers of damaged lines.

    A power failure may leave such lines in a journal: what they were about is made again. Where the
    first line is damaged, "" stands in its place, and the entries of the others come all the same.
    """
    header, entries, damaged = "", [], []
    with open_regular(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), start=1):
            if number > 1 and not line.strip():
                continue
            try:
                if number == 1:
                    json.loads(line)
                    header = line.decode().rstrip("\n") + "\n"
                else:
                    entries.append(_entry_in(line))
            except _NO_LINE:
                damaged.append(number)
                if len(line) == LONGEST_LINE:  # and where the next one begins is not known
                    break
    return header, entries, damaged or ([] if header else [1])


def sources(root: Path) -> dict[bytes, tuple[bytes, int]]:
    """Map each prepared image to name and size of its source.

    {} for a folder that was not prepared.
    """
    try:
        if file_size(root / MANIFEST) < 0:
            return {}
        _, entries, _ = read_manifest(root / MANIFEST)
    except OSError:
        return {}
    found = {}
    for entry in entries:
        with suppress(UnicodeEncodeError):  # such names no file has
            found[os.fsencode(entry.path)] = os.fsencode(entry.source), entry.source_size
    return found


def training_entries(entries: Sequence[Entry], folder: str) -> list[Entry]:
    """Return the entries of the training images, which the statistics cover.

    That is "" where all of them may be.
    """
    below = os.path.join(folder, "")
    return [entry for entry in entries if entry.path.startswith(below)]


def open_journal(target: Folder, options: Options) -> BinaryIO:
    """Open the journal at its end, a new one for other options."""
    header = options.header()
    if not target.is_file(JOURNAL) or read_manifest(target.path / JOURNAL)[0] != header:
        target.write(JOURNAL, lambda file: file.write(header.encode()))
    file = target.open_own(JOURNAL)
    end = 0
    for line in iter(lambda: file.readline(LONGEST_LINE), b""):
        if not line.endswith(b"\n"):
            break
        end += len(line)
    file.truncate(end)
    file.seek(end)
    return file


def verify(target: Path, processes: int, show: Show = lambda what, done, total: None) -> list[str]:
    """Return a sentence per file that is wrong in a prepared folder.

    Every image is read and its SHA-256 compared with the manifest's, and the manifest's with the
    one in the statistics, which have a digest of their own. Raises DataError if `target` was not
    prepared to the end, FileError for a damaged manifest.
    """
    if not target.is_dir():
        raise DataError(f"{printable(target)}: expected a folder, made by `tinyalex prepare`")
    if (target / JOURNAL).exists():
        raise DataError(f"{printable(target)} is not finished: prepare it to the end first")
    if not (target / MANIFEST).is_file():
        raise DataError(
            f"{printable(target)} has no {MANIFEST}: it was not made by `tinyalex prepare`"
        )
    _, entries, damaged = read_manifest(target / MANIFEST)
    if damaged:
        raise FileError(
            f"{printable(target / MANIFEST)} is damaged in line {damaged[0]}: prepare again, which "
            "mends it"
        )
    wrong = []
    try:
        _, notes = load_statistics(target / STATISTICS)
        if notes.get("manifest_sha256") != sha256(target / MANIFEST):
            wrong.append(f"changed: {MANIFEST}")
    except (OSError, FileError) as error:
        wrong.append(f"changed: {STATISTICS} ({error})")

    paths = [entry.path for entry in entries]
    found: dict[str, tuple[str, str]] = {}
    stuck: dict[str, str] = {}

    def give_up(chunk: Sequence[str], position: int, seconds: float) -> Sequence[str]:
        return without(chunk, position, seconds, stuck, lambda path: printable(target / path))

    workers = Workers(processes, _hasher, target, patience=PATIENCE)
    try:
        for part in workers.map(chunks(paths), give_up):
            found.update(part)
            show("verifying", len(found), len(entries))
    finally:
        workers.close()
    found.update((path, ("", f"unreadable ({reason})")) for path, reason in stuck.items())
    for entry in entries:
        digest, what = found[entry.path]
        if digest != entry.sha256:
            wrong.append(f"{what}: {printable(entry.path)}")
    strangers = sorted(map(printable, files_below(target) - OWN_FILES.union(paths)))
    return wrong + [f"unexpected: {path}" for path in strangers]


def _hasher(memory: Any, target: Path) -> Work:
    def digests(paths: Sequence[str], alive: Callable[[int], object]) -> dict[str, tuple[str, str]]:
        """Return the digest of each file, and its state if that differs."""
        found = {}
        for position, path in enumerate(paths):
            alive(position)
            try:
                found[path] = sha256(target / path), "changed"
            except OSError as error:
                if error.errno in FAULTS_OF_THE_MACHINE:
                    raise
                gone = file_size(target / path) < 0
                found[path] = "", "missing" if gone else f"unreadable ({error.strerror})"
        return found

    return digests


def files_below(folder: Path, hidden: bool = False) -> set[str]:
    """Return the relative paths of all files and linked folders below.

    What is hidden, and what systems leave behind, belongs to them only on request.
    """
    found = set()
    for above, folders, files in os.walk(folder):
        if not hidden:
            folders[:] = [name for name in folders if not is_hidden(name)]
        links = [name for name in folders if os.path.islink(os.path.join(above, name))]
        for name in (*files, *links):
            if hidden or not is_hidden(name):
                found.add(os.path.relpath(os.path.join(above, name), folder))
    return found


def file_size(path: Path) -> int:
    """Return the size of a regular file, -1 where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return -1
    return status.st_size if stat.S_ISREG(status.st_mode) else -1


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with open_regular(path) as file:
        digest = hashlib.sha256()
        while piece := file.read(2**20):
            digest.update(piece)
        return digest.hexdigest()


def chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Yield the items, as many at a time as make a task."""
    for start in range(0, len(items), CHUNK):
        yield items[start : start + CHUNK]


def without(
    chunk: Sequence[T],
    position: int,
    seconds: float,
    stuck: dict[T, str],
    describe: Callable[[T], str],
) -> Sequence[T]:
    """Return a chunk without its stuck item.

    That goes to `stuck`, with the reason. Raises WorkerError where these are too many.
    """
    item = chunk[position]
    stuck[item] = late(seconds, len(stuck) + 1, describe(item))
    return [*chunk[:position], *chunk[position + 1 :]]
