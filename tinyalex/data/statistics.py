"""What is measured over a whole training set: the mean image, and how the colours vary together.

Both are taken over the central squares of the images (the paper's section 2), and from sums of
integers: neither the order of the images nor the number of threads changes a bit of the result.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from tinyalex.data.dataset import DataError, Dataset, ImageError
from tinyalex.data.image import central_square

SIZE = 256
CHUNK = 64
"""How many images a thread adds up before it hands over its sums."""


class PixelSums:
    """Exact sums over the central `size` x `size` pixels of uint8 RGB images.

    `add` takes images one at a time, ``+=`` the sums of others; `mean_image` and
    `colour_covariance` describe the `count` images so far, at least one.
    """

    def __init__(self, size: int = SIZE) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        self.size = size
        self.count = 0
        self.values = np.zeros((size, size, 3), np.int64)
        self.products = np.zeros((3, 3), np.int64)

    def add(self, image: np.ndarray) -> None:
        """Add one image; ValueError if a side is shorter than `size`."""
        square = central_square(image, self.size)
        self.count += 1
        self.values += square
        # The products of an image add up to less than 2 ** 53: float64 is exact, and BLAS fast.
        colours = square.reshape(-1, 3).astype(np.float64)
        self.products += (colours.T @ colours).astype(np.int64)

    def __iadd__(self, other: PixelSums) -> PixelSums:
        self.count += other.count
        self.values += other.values
        self.products += other.products
        return self

    @property
    def mean_image(self) -> np.ndarray:
        """The mean of every pixel, float32 [size, size, 3] in 0..255."""
        return (self.values / self.count).astype(np.float32)

    @property
    def colour_covariance(self) -> np.ndarray:
        """Covariance of red, green and blue over all pixels, float64 [3, 3] in units of 0..255."""
        pixels = self.count * self.size**2
        mean = self.values.sum(axis=(0, 1)) / pixels
        return self.products / pixels - np.outer(mean, mean)


def pixel_sums(
    dataset: Dataset,
    size: int = SIZE,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> PixelSums:
    """Return the sums over all images of `dataset`; those that cannot be read are passed over.

    Every image is decoded once, by `workers` threads; memory does not grow with the data set.
    `progress(done, total)` is called now and then, in the thread that called. Raises DataError if
    not one image can be read, ValueError for images smaller than `size`.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")

    def sums_of(chunk: range) -> PixelSums:
        sums = PixelSums(size)
        for index in chunk:
            try:
                image = dataset.load(index)
            except ImageError:
                continue
            sums.add(image)
        return sums

    total = PixelSums(size)
    everything = range(len(dataset))
    chunks = [everything[start : start + CHUNK] for start in everything[::CHUNK]]
    with ThreadPoolExecutor(workers, thread_name_prefix="tinyalex-data") as pool:
        try:
            for chunk, sums in zip(chunks, pool.map(sums_of, chunks), strict=True):
                total += sums
                if progress is not None:
                    progress(chunk.stop, len(dataset))
        finally:  # after an error or Ctrl-C, nobody waits for the rest
            pool.shutdown(wait=False, cancel_futures=True)
    if total.count == 0:
        raise DataError(f"none of {len(dataset)} images could be read, so there is no mean of them")
    return total


def mean_image(
    dataset: Dataset,
    size: int = SIZE,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Return the mean of every pixel over the central squares, float32 [size, size, 3] in 0..255.

    This is what the paper subtracts (section 2). Arguments and errors are those of `pixel_sums`.
    """
    return pixel_sums(dataset, size, workers, progress).mean_image


def colour_covariance(
    dataset: Dataset,
    size: int = SIZE,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Return the covariance of red, green and blue over all pixels of the central squares.

    float64 [3, 3] in units of 0..255; the colour noise of the paper's section 4.1 follows its
    principal axes (`ColourNoise`). Arguments and errors are those of `pixel_sums`.
    """
    return pixel_sums(dataset, size, workers, progress).colour_covariance
