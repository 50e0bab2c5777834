"""Exact mean image and colour covariance of a data set.

The paper subtracts the mean of every pixel (section 2) and shifts colours along the principal
components of all RGB values (section 4.1). Both are sums over the images. The sums are integers, so
they are exact, and equal whatever the order of the images or the number of processes.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

import numpy as np

from tinyalex.data.dataset import DataError, Dataset, ImageError, Unreadable
from tinyalex.data.image import central_square
from tinyalex.data.worker_threads import WORKERS, Task, Threads, readable
from tinyalex.files import FileError, load, writer_of
from tinyalex.folders import write_atomically
from tinyalex.schema import TEXT, Each, array_of, check, whole
from tinyalex.text import counted, printable

FORMAT = "tinyalex-statistics-1"

CHUNK = 64
"""Images that a thread adds up before it hands over its sums."""


SCHEMA = {
    "count": whole(1),
    "mean_image": array_of("float64", None, None, 3),
    "mean_colour": array_of("float64", 3),
    "colour_covariance": array_of("float64", 3, 3),
}
"""Schema of `PixelStatistics`."""


@dataclass(frozen=True)
class PixelStatistics:
    """Means and covariance of `count` images' central squares, in 0..255."""

    count: int
    mean_image: np.ndarray
    """float64 [size, size, 3]: the mean over the images, pixel by pixel, RGB."""
    mean_colour: np.ndarray
    """float64 [3]: the mean of `mean_image`."""
    colour_covariance: np.ndarray
    """float64 [3, 3]: the covariance of red, green and blue over all pixels of all images."""

    def save(self, path: str | os.PathLike[str], **notes: str) -> None:
        """Write a file for `load_statistics`, with notes on the images."""
        write_atomically(path, self.writer(**notes))

    def writer(self, **notes: str) -> Callable[[BinaryIO], None]:
        """Return the function that writes to a file what `save` does."""
        return writer_of({"format": FORMAT, "notes": notes, **vars(self)})

    @classmethod
    def of(cls, content: Any) -> PixelStatistics:
        """Rebuild the statistics from their `vars`; ValueError for anything else."""
        check(content, SCHEMA)
        found = cls(**{name: content[name] for name in SCHEMA})
        arrays = (found.mean_image, found.mean_colour, found.colour_covariance)
        if found.mean_image.shape[:1] != found.mean_image.shape[1:2]:
            raise ValueError(f"the mean image is no square: {found.mean_image.shape}")
        if not all(np.isfinite(array).all() for array in arrays):
            raise ValueError("some of the numbers are not finite")
        if not all(((array >= 0) & (array <= 255)).all() for array in arrays[:2]):
            raise ValueError("the means are not in 0..255")
        covariance = found.colour_covariance
        if (abs(covariance) > 255**2).any() or not np.allclose(covariance, covariance.T):
            raise ValueError("the covariance is not one of colours in 0..255")
        return found


def load_statistics(path: str | os.PathLike[str]) -> tuple[PixelStatistics, dict[str, str]]:
    """Return what `PixelStatistics.save` wrote: the statistics and the notes.

    Raises FileError for a file that is damaged or of another kind.
    """

    def look(content: Any) -> None:
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise FileError(f"{printable(path)} holds no statistics of images")
        check(content, {**SCHEMA, "notes": Each(TEXT)})

    content = load(path, look)
    try:
        return PixelStatistics.of(content), content["notes"]
    except ValueError as error:
        raise FileError(f"{printable(path)} cannot be used: {error}") from error


class Others(Protocol):
    """Processes that share the work with this one."""

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        ...

    @property
    def size(self) -> int:
        """Number of processes."""
        ...

    def have(self, mine: bool) -> bool:
        """Return whether `mine` is true in all of them."""
        ...

    def add_up(self, sums: PixelSums, bad: Unreadable, problem: Exception | None) -> None:
        """Replace sums by those of all, or raise the problem of any."""
        ...


def pixel_statistics(
    dataset: Dataset,
    size: int = 256,
    workers: int = WORKERS,
    progress: Callable[[int, int], None] = lambda done, total: None,
    unreadable: Unreadable | None = None,
    others: Others | None = None,
) -> PixelStatistics:
    """Measure the central `size x size` pixels of all images.

    Every image is decoded once, by `workers` threads; memory does not grow with the data set.
    Images that cannot be read are left out and noted in `unreadable`. `progress(done, total)` is
    called now and then, in the thread that called. With `others` this process reads its share of
    the images, and the result is that of all. Raises DataError if too many images cannot be
    read (by default more than 1 %, as in `Loader`), or take 8 seconds: then WorkerError; ValueError
    if one is too small.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    bad = Unreadable(dataset) if unreadable is None else unreadable

    def sums_of(begin: Callable[[int], bool], chunk: range) -> PixelSums:
        sums = PixelSums(size)
        for index in chunk:
            if index in bad.reasons:
                continue
            if begin(index):
                break
            try:
                image = dataset.load(index)
            except ImageError as error:
                bad.add(index, error.reason, error.lasting)
                continue
            sums.add(image)
        return sums

    total = PixelSums(size)
    everything = range(len(dataset))
    chunks = [everything[start : start + CHUNK] for start in everything[::CHUNK]]
    if others is not None:
        chunks = chunks[others.rank :: others.size]
    problem: Exception | None = None
    threads = Threads(workers)
    try:
        pending: deque[Task] = deque(threads.submit(sums_of, chunk) for chunk in chunks)
        for chunk in chunks:
            total.merge([threads.result(pending.popleft(), bad.give_up)])
            progress(chunk.stop, len(dataset))
    except Exception as error:
        if others is None:
            raise
        problem = error
    finally:  # after an error or Ctrl-C, only the images under way are waited for
        threads.close()
    if others is not None:
        others.add_up(total, bad, problem)
    return total.statistics()


class PixelSums:
    """Running sums for `PixelStatistics`; 3 MB for any number of images.

    int64 holds the sums of two billion images of 256 x 256.
    """

    def __init__(self, size: int = 256) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        self.size = size
        self.count = 0
        self.image = np.zeros((size, size, 3), np.int64)
        """The sum of the images."""
        self.products = np.zeros((3, 3), np.int64)
        """The sums of red x red, red x green, ... over all pixels."""

    def add(self, image: np.ndarray) -> None:
        """Take in the central square of a uint8 RGB image [height, width, 3].

        Raises ValueError if a side is shorter than the square's.
        """
        square = central_square(image, self.size)
        pixels = square.reshape(-1, 3).astype(np.float64)
        self.count += 1
        self.image += square
        # Whole numbers below 2 ** 53: the sums of one image are exact in float64, and fast.
        self.products += (pixels.T @ pixels).astype(np.int64)

    def merge(self, others: Iterable[PixelSums]) -> PixelSums:
        """Take in what others have summed up; return this."""
        for other in others:
            self.count += other.count
            self.image += other.image
            self.products += other.products
        return self

    def statistics(self) -> PixelStatistics:
        """Return means and covariance, each rounded once. Raises DataError without any image."""
        if self.count == 0:
            raise DataError("no image could be read: there is nothing to take a mean of")
        pixels = self.count * self.size**2
        colour = [int(value) for value in self.image.sum(axis=(0, 1))]
        # E[xy] - E[x] E[y] over Python's integers, which cancel nothing and do not overflow.
        covariance = [
            [
                (pixels * int(self.products[i, j]) - colour[i] * colour[j]) / pixels**2
                for j in range(3)
            ]
            for i in range(3)
        ]
        return PixelStatistics(
            count=self.count,
            mean_image=self.image / self.count,
            mean_colour=np.array([value / pixels for value in colour]),
            colour_covariance=np.array(covariance),
        )


def mean_colour(dataset: Dataset, samples: int = 256) -> tuple[float, float, float]:
    """Return the mean colour, in 0..255, of `samples` evenly spread images.

    Every image counts the same, whatever its size. Those that cannot be read are skipped.
    The paper subtracts the mean of every pixel (section 2); the mean colour differs from it by
    little, survives any crop, and is what Caffe and torchvision subtract. Raises DataError if none
    can be read, WorkerError if the disk does not answer.
    """
    if not len(dataset):
        raise DataError("there are no images to take the mean colour of")
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(samples, len(dataset)), dtype=np.int64))
    skipped: list[str] = []

    def skip(index: int, reason: str) -> None:
        skipped.append(f"{dataset.describe(index)}: {reason}")

    images = readable(dataset.load, chosen.tolist(), skip, dataset.describe)
    colours = [image.mean(axis=(0, 1), dtype=np.float64) for _, image in images]
    if not colours:
        raise DataError(
            f"none of {counted(len(chosen), 'image')} could be read; the last one: {skipped[-1]}"
        )
    red, green, blue = np.mean(colours, axis=0)
    return float(red), float(green), float(blue)
