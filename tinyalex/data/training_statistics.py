"""Mean and colour covariance of the training images: prepared, cached or measured.

`tinyalex prepare` writes them beside the images. What was measured on another large folder goes to
the user's cache folder (`$XDG_CACHE_HOME/tinyalex`, or `~/.cache/tinyalex`), together with a digest
of the names, identities and times of the files: it counts only as long as these are what they were.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import PIL

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
from tinyalex.data.statistics import PixelStatistics, load_statistics, pixel_statistics
from tinyalex.files import FileError, load, save
from tinyalex.folders import make_folder
from tinyalex.progress import Progress
from tinyalex.version import __version__

WORTH_KEEPING = 1000
"""Images below which statistics are measured again each time, in seconds."""

WHAT = "the mean and the colours of the training images"


def statistics_for(
    train: Dataset, size: int, workers: int, cache: bool, progress: Progress
) -> PixelStatistics:
    """Return statistics that are prepared, kept by an earlier run, or measured.

    They are of the central squares of `size` pixels; `cache` allows to look for kept ones and to
    keep new ones. Raises DataError if too many images cannot be read, WorkerError for a disk that
    does not answer.
    """
    place, digest = None, ""
    if isinstance(train, ImageFolder):
        if found := _prepared(train, size, progress):
            return found
        if cache and len(train) >= WORTH_KEEPING:
            place = cache_file(train.folder)
            digest = images_digest(train, size)
            if found := kept_statistics(place, digest):
                progress.say(f"{WHAT} are those measured before, in {place}")
                return found
    progress.say(f"{WHAT} are measured now")
    unreadable = Unreadable(train)
    progress.start(f"measuring {WHAT}", len(train))
    try:
        found = pixel_statistics(
            train,
            size,
            workers,
            lambda done, total: progress.update(done, f"{done} images"),
            unreadable,
        )
    finally:
        progress.stop()
    for path, reason in unreadable.listed():
        progress.say(f"left out of the mean: {path}: {reason}")
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
        progress.say(f"warning: {path} is not used: {error}")
        return None
    if found is None:
        which = f"it is not of just the {len(train)} images to train on, or of another size"
        progress.say(f"{path} is not used: {which}")
    else:
        progress.say(f"{WHAT} are those in {path}")
    return found


def prepared_statistics(images: ImageFolder, size: int) -> PixelStatistics | None:
    """Return what `tinyalex prepare` measured, None unless it is of exactly these images.

    That is so where the manifest lists the same files with the same sizes in bytes, and the squares
    have `size` pixels. Raises FileError for damaged files, OSError where one is missing.
    """
    statistics, notes = load_statistics(images.root / STATISTICS)
    _, entries, damaged = read_manifest(images.root / MANIFEST)
    if damaged:
        raise FileError(f"{images.root / MANIFEST} is damaged in line {damaged[0]}")
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


def images_digest(images: ImageFolder, size: int) -> str:
    """Return a digest of the images and the kind of measurement.

    That is the mean of their central `size` pixels, with this Pillow and this tinyalex: another one
    may decode and resize in another way.
    """
    digest = hashlib.sha256(f"{__version__} {PIL.__version__} {size}\n".encode())
    for path in images.paths:
        digest.update(os.fsencode(path) + f"\0{_identity(path)}\n".encode())
    return digest.hexdigest()


def _identity(path: str) -> tuple[int, ...] | None:
    """Return the file's identity and times; None for a dangling link."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def cache_file(folder: str | Path) -> Path | None:
    """Return the cache file for images in `folder`; None without a home."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(cache):  # unset; or relative, which the XDG specification ignores
        cache = os.path.expanduser("~/.cache")
    name = hashlib.sha256(os.fsencode(os.path.abspath(folder))).hexdigest()[:32]
    return (
        Path(cache, "tinyalex", f"statistics-{name}.safetensors") if os.path.isabs(cache) else None
    )


def kept_statistics(place: Path | None, digest: str) -> PixelStatistics | None:
    """Return what `keep_statistics` wrote, if the digest is the same."""
    try:
        content: Any = load(place) if place else None
        if content["images_sha256"] == digest:
            return PixelStatistics.of(content["statistics"])
    except (OSError, FileError, KeyError, TypeError, ValueError):  # none, or not one of ours
        pass
    return None


def keep_statistics(place: Path | None, digest: str, statistics: PixelStatistics) -> None:
    """Cache the statistics of images with this digest.

    Where they cannot be written, the next run measures again.
    """
    if place is not None:
        with suppress(OSError):
            make_folder(place.parent)
            save({"images_sha256": digest, "statistics": vars(statistics)}, place)
