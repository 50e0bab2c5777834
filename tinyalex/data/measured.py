"""Statistics of a folder's images that need no new pass over them: prepared with them, or kept.

`prepare_images.py` writes them beside the images. What was measured on another large folder goes to
the user's cache folder, as its list of images does (`index.py`), together with a digest of the
names, identities and times of the files: it counts only as long as these are what they were.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import PIL

from tinyalex.data.folder import ImageFolder
from tinyalex.data.index import cache_file, fingerprint
from tinyalex.data.manifest import (
    MANIFEST,
    STATISTICS,
    file_size,
    read_manifest,
    sha256,
    training_entries,
)
from tinyalex.data.statistics import PixelStatistics, load_statistics
from tinyalex.files import FileError
from tinyalex.version import __version__

WORTH_KEEPING = 1000
"""Images below which statistics are measured again each time, in seconds."""


def prepared_statistics(images: ImageFolder, size: int) -> PixelStatistics | None:
    """Return what `prepare_images.py` measured, None unless it is of exactly these images.

    That is so where the manifest lists the same files with the same sizes in bytes, and the squares
    have `size` pixels. Raises FileError for damaged files, OSError where one is missing.
    """
    statistics, notes = load_statistics(images.root / STATISTICS)
    _, entries, damaged = read_manifest(images.root / MANIFEST)
    if damaged:
        raise FileError(f"{images.root / MANIFEST} is damaged in line {damaged[0]}")
    if notes.get("manifest_sha256") != sha256(images.root / MANIFEST):
        return None
    listed = {entry.path: entry.size for entry in training_entries(entries)}
    if len(listed) != len(images) or len(statistics.mean_image) != size:
        return None
    there = {os.path.relpath(path, images.root): file_size(Path(path)) for path in images.paths}
    return statistics if there == listed else None


class KeptStatistics:
    """The place in the cache for the statistics of the central `size` pixels of `images`."""

    def __init__(self, images: ImageFolder, size: int) -> None:
        self.place = cache_file(str(images.folder), "statistics")
        # Another Pillow, or another tinyalex, may decode and resize in another way.
        digest = hashlib.sha256(f"{__version__} {PIL.__version__} {size}\n".encode())
        for path in images.paths:
            digest.update(os.fsencode(path) + f"\0{_identity(path)}\n".encode())
        self._digest = digest.hexdigest()

    def load(self) -> PixelStatistics | None:
        """Return the statistics if they are those of the images as they are now."""
        try:
            if self.place is not None:
                statistics, notes = load_statistics(self.place)
                if notes["images_sha256"] == self._digest:
                    return statistics
        except (OSError, FileError, KeyError, TypeError):  # none, or not one of ours
            pass
        return None

    def save(self, statistics: PixelStatistics) -> None:
        """Keep the statistics; where that cannot be, the next run measures again."""
        try:
            if self.place is not None:
                self.place.parent.mkdir(parents=True, exist_ok=True)
                statistics.save(self.place, images_sha256=self._digest)
        except OSError:
            pass


def _identity(path: str) -> tuple[int, ...] | None:
    """Return what changes when an image does; None for a link that leads nowhere."""
    try:
        return fingerprint(path)
    except OSError:
        return None
