"""Mean and colour covariance of the training images: prepared, cached or measured.

`tinyalex prepare` writes them beside the images. What was measured on another large folder is
cached (`data.cache`).
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from tinyalex.data.cache import cache_file, images_digest, keep, kept
from tinyalex.data.dataset import Dataset, Unreadable
from tinyalex.data.folder import ImageFolder
from tinyalex.data.manifest import (
    MANIFEST,
    STATISTICS,
    file_size,
    read_manifest,
    sha256,
    training_entries,
)
from tinyalex.data.statistics import Others, PixelStatistics, load_statistics, pixel_statistics
from tinyalex.files import FileError
from tinyalex.progress import Progress
from tinyalex.text import counted, printable

WORTH_KEEPING = 1000
"""Images below which statistics are measured again each time, in seconds."""

WHAT = "the mean and the colours of the training images"


def statistics_for(
    train: Dataset,
    size: int,
    workers: int,
    cache: bool,
    progress: Progress,
    others: Others | None = None,
) -> PixelStatistics:
    """Return statistics that are prepared, kept by an earlier run, or measured.

    They are of the central squares of `size` pixels; `cache` allows to look for kept ones and to
    keep new ones. `others` are processes that measure them together. Raises DataError if too many
    images cannot be read, WorkerError for a disk that does not answer.
    """
    place, digest, found = None, "", None
    if isinstance(train, ImageFolder):
        found = _prepared(train, size, progress)
        if found is None and cache and len(train) >= WORTH_KEEPING:
            place = cache_file(train.folder)
            digest = images_digest(train, size)
            if found := kept_statistics(place, digest):
                progress.say(f"{WHAT} are those measured before, in {place}")
    everywhere = others is None or others.have(found is not None)
    if found is not None and everywhere:
        return found
    progress.say(f"{WHAT} are measured now")
    unreadable = Unreadable(train)
    progress.start(f"measuring {WHAT}", len(train))
    try:
        found = pixel_statistics(
            train,
            size,
            workers,
            lambda done, total: progress.update(done, counted(done, "image")),
            unreadable,
            others,
        )
    finally:
        progress.stop()
    for path, reason in unreadable.listed():
        progress.say(f"left out of the mean: {printable(path)}: {reason}")
    if unreadable.lasting:  # else the next run may find these images, too
        keep_statistics(place, digest, found)
    return found


def _prepared(train: ImageFolder, size: int, progress: Progress) -> PixelStatistics | None:
    """Return the statistics of `tinyalex prepare`, if of these images."""
    path = train.root / STATISTICS
    if not path.exists():
        return None
    try:
        found = prepared_statistics(train, size)
    except (OSError, FileError) as error:
        progress.say(f"warning: {printable(path)} is not used: {error}")
        return None
    if found is None:
        which = (
            f"it is not of just the {counted(len(train), 'image')} to train on, or of another size"
        )
        progress.say(f"{printable(path)} is not used: {which}")
    else:
        progress.say(f"{WHAT} are those in {printable(path)}")
    return found


def prepared_statistics(images: ImageFolder, size: int) -> PixelStatistics | None:
    """Return what `tinyalex prepare` measured, None unless it is of exactly these images.

    That is so where the manifest lists the same files with the same sizes in bytes, and the squares
    have `size` pixels. Raises FileError for damaged files, OSError where one is missing.
    """
    statistics, notes = load_statistics(images.root / STATISTICS)
    _, entries, damaged = read_manifest(images.root / MANIFEST)
    if damaged:
        raise FileError(f"{printable(images.root / MANIFEST)} is damaged in line {damaged[0]}")
    if notes.get("manifest_sha256") != sha256(images.root / MANIFEST):
        return None
    folder = os.path.relpath(images.folder, images.root).removeprefix(".")
    if notes.get("images") != (folder or "all"):
        return None
    listed = {entry.path: entry.size for entry in training_entries(entries, folder)}
    if len(listed) != len(images) or len(statistics.mean_image) != size:
        return None
    there = {os.path.relpath(path, images.root): file_size(Path(path)) for path in images.paths}
    return statistics if there == listed else None


def kept_statistics(place: Path | None, digest: str) -> PixelStatistics | None:
    """Return what `keep_statistics` wrote, if the digest is the same."""
    with suppress(KeyError, TypeError, ValueError):  # none, or not one of ours
        return PixelStatistics.of(kept(place, digest)["statistics"])
    return None


def keep_statistics(place: Path | None, digest: str, statistics: PixelStatistics) -> None:
    """Cache the statistics of images with this digest."""
    keep(place, digest, {"statistics": vars(statistics)})
