"""What a run has to know of its training images before it begins: their mean, how colours vary."""

from __future__ import annotations

import numpy as np

from tinyalex import models
from tinyalex.data import Dataset, ImageFolder, PixelStatistics, mean_colour, pixel_statistics
from tinyalex.data.index import cache_file
from tinyalex.data.known_statistics import (
    images_digest,
    keep_statistics,
    kept_statistics,
    prepared_statistics,
)
from tinyalex.data.manifest import STATISTICS
from tinyalex.data.unreadable import Unreadable
from tinyalex.files import FileError
from tinyalex.training.datasets import shorter_side_for
from tinyalex.training.progress import Progress
from tinyalex.training.settings import Settings

WORTH_KEEPING = 1000
"""Images below which statistics are measured again each time, in seconds."""

WHAT = "the mean and the colours of the training images"


def measure(
    settings: Settings, train: Dataset, progress: Progress
) -> tuple[tuple[float, ...] | np.ndarray, np.ndarray | None]:
    """Return the mean to subtract and, if the colour noise needs it, the covariance of colours.

    Both come from one pass over all training images, where that pass has not been made before; a
    mean colour alone takes a few of them. Raises DataError if too many images cannot be read,
    WorkerError for a disk that does not answer.
    """
    mean, found = models.VARIANTS[settings.variant].pixels.mean, None
    if settings.mean == "image" or settings.colour_noise != "none":
        found = _statistics(settings, train, progress)
    covariance = found.colour_covariance if found and settings.colour_noise != "none" else None
    if found and settings.mean == "image":
        return found.mean_image.astype(np.float32), covariance
    if mean is None:
        mean = tuple(found.mean_colour.tolist()) if found else mean_colour(train)
    return mean, covariance


def _statistics(settings: Settings, train: Dataset, progress: Progress) -> PixelStatistics:
    """Return the statistics prepared with the images, kept by an earlier run, or measured now."""
    size = shorter_side_for(settings.input_size)
    place, digest = None, ""
    if isinstance(train, ImageFolder):
        if found := _prepared(train, size, progress):
            return found
        if settings.index_cache and len(train) >= WORTH_KEEPING:
            place = cache_file(str(train.folder), "statistics")
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
            settings.workers,
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
    """Return the statistics in a folder of prepare_images.py, if they are of these images."""
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
