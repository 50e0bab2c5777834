"""Preparation of a folder of images: clean copies, a manifest and statistics.

    TARGET/roses/1.jpg              what SOURCE/roses/1.jpg became
    TARGET/roses/2.png.jpg          what SOURCE/roses/2.png became
    TARGET/manifest.jsonl           path, source and SHA-256 of each image
    TARGET/statistics.safetensors   mean image, mean colour, covariance of colours
    TARGET/left_out.jsonl           what could not be read, and why

Every file appears whole or not at all, so the work can stop at any moment and be resumed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from tinyalex.data.dataset import DataError, ImageError
from tinyalex.data.folder import ImageFolder
from tinyalex.data.image import decode_image, read_bytes, read_image
from tinyalex.data.layout import find_layout, image_folders
from tinyalex.data.manifest import (
    JOURNAL,
    LEFT_OUT,
    MANIFEST,
    OWN_FILES,
    PATIENCE,
    STATISTICS,
    Entry,
    Options,
    Show,
    chunks,
    file_size,
    files_below,
    is_manifest,
    open_journal,
    read_manifest,
    sha256,
    training_entries,
    without,
)
from tinyalex.data.statistics import PixelSums, load_statistics
from tinyalex.data.worker_processes import Work, Workers
from tinyalex.files import FileError
from tinyalex.folders import Folder, FolderLostError
from tinyalex.text import counted, printable


@dataclass
class Prepared:
    """The outcome of `prepare`, in numbers of images."""

    made: int = 0
    kept: int = 0
    """Those that were there from an earlier run."""
    removed: int = 0
    """Those from an earlier run whose source is no longer there."""
    left_out: list[tuple[str, str]] = field(default_factory=list)
    """(path below SOURCE, reason) of each image that could not be read, sorted."""


class Source(NamedTuple):
    """Paths of the images to prepare, and the number of skipped files."""

    names: list[str]
    training: str
    """The folder of the training images, "" where they are not apart."""
    passed_over: Counter[str]


def source_images(source: Path, target: Path, layout: str | None = None) -> Source:
    """Return the images below `source`.

    It holds class folders, or splits with such, as `ImageFolder` takes them. Raises DataError if it
    does not, and for a `target` that it would be wrong to write to.
    """
    _check_apart(image_folders(source), target)
    if not _is_ours(target):
        journal = {JOURNAL} if os.path.lexists(target / JOURNAL) else set()
        if (files_below(target) | journal) - {
            name for name in OWN_FILES if file_size(target / name) == 0
        }:
            raise DataError(
                f"{printable(target)} holds other files: give a folder that is empty or new"
            )
    splits, beside = find_layout(source, layout)
    if splits:
        ImageFolder(source, "train", layout=layout)  # which compares their classes
        folders = [
            ImageFolder(source / name, layout="classes", complete=split != "test")
            for split, name in splits.items()
        ]
    else:
        folders = [ImageFolder(source, layout=layout)]
    names = [os.path.relpath(path, source) for folder in folders for path in folder.paths]
    _check_apart(_folders_of(names, source), target)
    passed_over = Counter({"beside the splits": beside})
    passed_over = sum((folder.passed_over for folder in folders), passed_over)
    return Source(names, splits.get("train", ""), passed_over)


def _folders_of(names: Sequence[str], source: Path) -> set[Path]:
    """Return the folders below `source` that hold these files, with parents."""
    inner = map(Path, {os.path.dirname(name) for name in names})
    return {source / folder for path in inner for folder in (path, *path.parents)}


def _check_apart(folders: Iterable[Path], target: Path) -> None:
    """Raise DataError if target and a folder of images are nested."""
    there = target.resolve()
    for folder in folders:
        here = folder.resolve()
        if here.is_relative_to(there) or there.is_relative_to(here):
            raise DataError(
                f"{printable(folder)} and {printable(target)} must not lie in one another"
            )


def _is_ours(target: Path) -> bool:
    """Tell whether a manifest, journal or statistics mark a folder as prepared."""
    if is_manifest(target / MANIFEST) or is_manifest(target / JOURNAL):
        return True
    try:
        return "manifest_sha256" in load_statistics(target / STATISTICS)[1]
    except (OSError, FileError):
        return False


def prepare(
    source: Path,
    found: Source,
    target: Path,
    options: Options,
    processes: int,
    show: Show = lambda what, done, total: None,
    here: Callable[[], Path] | None = None,
) -> Prepared:
    """Make missing images, manifest and statistics in the existing folder `target`.

    `found` are the images in `source`. One is missing unless manifest or journal list it with the
    size that it has, and with its source and the size that this has. Those that they list and that
    come from no image in `source` any more are removed, if they are still as they were made.

    No link below `target` is followed. `here()` is asked for its path before it is written to, and
    raises FolderLostError where it is gone, or not ours any more.

    Raises DataError for a `target` made with other options or from nothing that `source` holds, and
    if no image can be read, WorkerError when a process dies or the disk does not answer, OSError
    and MemoryError when the machine does not play along. What was made until then stays.
    """
    with Folder(target) as root:
        return _prepare(source, found, root, options, processes, show, here or root.where)


def _prepare(
    source: Path,
    found: Source,
    root: Folder,
    options: Options,
    processes: int,
    show: Show,
    here: Callable[[], Path],
) -> Prepared:
    target, result = root.path, Prepared()

    def stay() -> None:
        if (now := here()) != target:
            raise FolderLostError(
                f"{printable(target)} is called {printable(now)} now: give it its name again"
            )

    jobs = _jobs(found.names, options, result)
    known = _find_known(target, options)
    if known and {entry.source for entry in known.values()}.isdisjoint(found.names):
        raise DataError(
            f"{printable(target)} was prepared from other images, of which none is in "
            f"{printable(source)}: give another "
            "TARGET, or empty it"
        )
    images = {path: known[path] for name, path in jobs if _is_there(known.get(path), name, source)}
    missing = [(name, path) for name, path in jobs if path not in images]
    result.kept = len(images)
    removed = _remove(root, [known[path] for path in known.keys() - images.keys()])
    result.removed = len(removed.difference(path for _, path in jobs))
    for folder in {os.path.dirname(path) for _, path in jobs}:  # of a class without images, too
        root.inside(folder).close()

    stuck: dict[tuple[str, str], str] = {}

    def give_up(task: Any, position: int, seconds: float) -> Any:
        function, chunk, *others = task
        rest = without(chunk, position, seconds, stuck, lambda job: printable(source / job[0]))
        return (function, rest, *others)

    workers = Workers(processes, _caller, patience=PATIENCE)
    try:
        with open_journal(root, options) as journal:
            place = (target, root.identity)
            tasks = ((_convert_all, chunk, source, place, options) for chunk in chunks(missing))
            done = 0
            for entries, left_out in workers.map(tasks, give_up):
                stay()
                journal.write("".join(entry.line() for entry in entries).encode())
                journal.flush()
                images.update((entry.path, entry) for entry in entries)
                result.left_out += left_out
                result.made += len(entries)
                done += len(entries) + len(left_out)
                show("preparing", done + len(stuck), len(missing))
        result.left_out += ((name, reason) for (name, _), reason in stuck.items())
        result.left_out.sort()
        if not images:
            raise DataError(
                f"none of the {counted(len(jobs), 'image')} in {printable(source)} could be read"
            )
        entries = [images[path] for path in sorted(images)]
        manifest = (options.header() + "".join(entry.line() for entry in entries)).encode()
        _write_statistics(root, entries, found.training, manifest, options, workers, show)
    finally:
        workers.close()
    stay()
    lines = [json.dumps({"source": name, "reason": why}) + "\n" for name, why in result.left_out]
    root.write(LEFT_OUT, lambda file: file.write("".join(lines).encode()))
    root.write(MANIFEST, lambda file: file.write(manifest))
    for folder in {os.path.dirname(path) for path in files_below(target, hidden=True)}:
        with root.inside(folder) as inside:
            inside.remove_temporaries()  # of a process that was killed
    root.remove(JOURNAL)
    return result


def _jobs(names: Sequence[str], options: Options, result: Prepared) -> list[tuple[str, str]]:
    """Return (path below SOURCE, path below TARGET) of each image, sorted."""
    taken: dict[str, str] = {}
    # Where 1.png and 1.png.jpg would both be called 1.png.jpg, the one that is called so stays.
    for name in sorted(names, key=lambda name: (options.name_for(name) != name, name)):
        path = options.name_for(name)
        if taken.setdefault(path, name) != name:
            reason = f"would be called {path}, as {taken[path]} is"
            result.left_out.append((name, printable(reason)))
    return sorted((name, path) for path, name in taken.items())


def _find_known(target: Path, options: Options) -> dict[str, Entry]:
    """Return images of earlier runs that are still there, by path."""
    known: dict[str, Entry] = {}
    for path in filter(Path.exists, (target / MANIFEST, target / JOURNAL)):
        header, entries, _ = read_manifest(path)
        if header not in ("", options.header()):
            raise DataError(
                f"{printable(target)} was prepared with other options ({header.strip()}): give the "
                "same, or another folder"
            )
        if header:  # else it is not known what they were made with
            known.update((entry.path, entry) for entry in entries)
    return {path: entry for path, entry in known.items() if file_size(target / path) == entry.size}


def _is_there(entry: Entry | None, name: str, source: Path) -> bool:
    if entry is None or entry.source != name:
        return False
    return file_size(source / name) == entry.source_size


def _remove(root: Folder, stale: Sequence[Entry]) -> set[str]:
    """Remove images with changed sources, and empty folders; return which.

    Only what lies below the folder and was made there, whatever a manifest from elsewhere says.
    """
    removed = set()
    there = files_below(root.path) if stale else set()
    for entry in stale:
        folder, name = os.path.split(entry.path)
        if entry.path not in there or sha256(root.path / entry.path) != entry.sha256:
            continue
        with root.inside(folder) as inside:
            if inside.is_file(name):
                inside.remove(name)
                removed.add(entry.path)
        with contextlib.suppress(OSError):  # other files are in there
            os.removedirs(root.path / folder)
    return removed


def _write_statistics(
    root: Folder,
    entries: Sequence[Entry],
    training: str,
    manifest: bytes,
    options: Options,
    workers: Workers,
    show: Show,
) -> None:
    """Write the statistics of the training images, unless they are there."""
    digest, target = hashlib.sha256(manifest).hexdigest(), root.path
    try:
        notes = load_statistics(target / STATISTICS)[1]
        if (notes["manifest_sha256"], notes["images"]) == (digest, training or "all"):
            return
    except (OSError, FileError, KeyError):
        pass
    paths = [entry.path for entry in training_entries(entries, training)]
    sums = PixelSums(options.shorter_side)
    tasks = ((_sum_up, chunk, target, options.shorter_side) for chunk in chunks(paths))
    for part in workers.map(tasks):
        sums.merge([part])
        show("measuring", sums.count, len(paths))
    images = training or "all"
    root.write(STATISTICS, sums.statistics().writer(images=images, manifest_sha256=digest))


# --- in the worker processes ----------------------------------------------------------------------


def _caller(memory: Any) -> Work:
    """Return the function that does a task: (function, arguments ...)."""
    return lambda task, alive: task[0](*task[1:], alive)


def _convert_all(
    jobs: Sequence[tuple[str, str]],
    source: Path,
    target: tuple[Path, tuple[int, int]],
    options: Options,
    alive: Callable[[int], object],
) -> tuple[list[Entry], list[tuple[str, str]]]:
    entries, left_out = [], []
    for position, (name, path) in enumerate(jobs):
        alive(position)
        try:
            entries.append(_convert(source, name, target, path, options))
        except ImageError as error:
            left_out.append((name, error.reason))
    return entries, left_out


def _convert(
    source: Path, name: str, target: tuple[Path, tuple[int, int]], path: str, options: Options
) -> Entry:
    """Make one image in `target`: a path and its `Folder.identity`.

    Raises ImageError if that is the image's fault.
    """
    original, status = read_bytes(source / name)
    pixels = decode_image(original, source / name, options.shorter_side)
    encoding = {"quality": options.quality} if options.format == "jpeg" else {}
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, options.format, **encoding)
    content = buffer.getvalue()
    try:
        folder, file_name = os.path.split(path)
        with Folder(*target) as root, root.inside(folder) as inside:
            inside.write(file_name, lambda file: file.write(content))
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ImageError(source / name, "the name is too long") from error
        raise
    digest = hashlib.sha256(content).hexdigest()
    return Entry(path, name, digest, len(content), status.st_size)


def _sum_up(
    paths: Sequence[str], target: Path, size: int, alive: Callable[[], object]
) -> PixelSums:
    sums = PixelSums(size)
    for path in paths:
        alive()
        sums.add(read_image(target / path))
    return sums
