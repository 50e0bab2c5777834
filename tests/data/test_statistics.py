"""Mean image, mean colour and colour covariance: exact, in any order."""

import os
import signal
import threading
import time
from fractions import Fraction

import images as files
import numpy as np
import pytest
from helpers import finished

from tinyalex.data import (
    DataError,
    ImageError,
    ImageFolder,
    PixelStatistics,
    PixelSums,
    Unreadable,
    WorkerError,
    load_statistics,
    pixel_statistics,
    worker_processes,
)
from tinyalex.files import FileError, save


class Images:
    """Data set of images, some of which cannot be read."""

    def __init__(self, images, broken=()):
        self.images, self.broken = images, broken

    def __len__(self):
        return len(self.images)

    def load(self, index):
        if index in self.broken:
            raise ImageError("it", "is broken")
        return self.images[index]

    def describe(self, index):
        return f"image {index}"


@pytest.fixture
def images(rng):
    """Images of several shapes, and their central squares of 8 x 8."""
    squares = rng.integers(0, 256, (11, 8, 8, 3), np.uint8)
    margins = [((0, 0), (0, 0)), ((2, 2), (0, 0)), ((0, 0), (1, 2))]
    padded = [
        np.pad(square, (*margins[i % 3], (0, 0)), constant_values=255)
        for i, square in enumerate(squares)
    ]
    return padded, squares


def test_statistics_are_those_of_the_central_squares(images):
    padded, squares = images
    found = pixel_statistics(Images(padded), size=8)
    pixels = squares.reshape(-1, 3).astype(float)
    assert found.count == 11
    np.testing.assert_allclose(found.mean_image, squares.mean(axis=0), rtol=1e-15)
    np.testing.assert_allclose(found.mean_colour, pixels.mean(axis=0), rtol=1e-15)
    np.testing.assert_allclose(found.colour_covariance, np.cov(pixels.T, bias=True), rtol=1e-12)


def test_the_covariance_is_exact_where_rounding_would_swamp_it():
    """One value in 600,000 is off by one: a difference of sums in float64 loses its digits."""
    sums = PixelSums(256)
    white = np.full((256, 256, 3), 255, np.uint8)
    sums.add(white)
    sums.count, sums.image, sums.products = 10**6, sums.image * 10**6, sums.products * 10**6
    almost = white.copy()
    almost[0, 0] = (254, 255, 255)
    sums.add(almost)
    n = (10**6 + 1) * 256**2
    expected = np.zeros((3, 3))
    expected[0, 0] = Fraction(1, n) * (1 - Fraction(1, n))
    assert (sums.statistics().colour_covariance == expected).all()


def test_any_order_and_any_parts_give_the_same_bits(images, rng):
    padded, _ = images
    expected = pixel_statistics(Images(padded), size=8)
    order = rng.permutation(11)
    parts = [PixelSums(8) for _ in range(3)]
    for place, index in enumerate(order):
        parts[place % 3].add(padded[index])
    found = PixelSums(8).merge(parts).statistics()
    for name, value in vars(expected).items():
        np.testing.assert_array_equal(getattr(found, name), value, err_msg=name)


@pytest.mark.parametrize("workers", [1, 5])
def test_threads_change_nothing_and_progress_reaches_the_end(images, workers):
    padded, _ = images
    seen = []
    found = pixel_statistics(Images(padded * 14), 8, workers, lambda *now: seen.append(now))
    assert seen == [(64, 154), (128, 154), (154, 154)]
    expected = pixel_statistics(Images(padded), size=8)
    np.testing.assert_array_equal(found.mean_image, expected.mean_image)
    np.testing.assert_array_equal(found.colour_covariance, expected.colour_covariance)


def test_the_paper_s_256_pixels_come_from_a_folder(tmp_path):
    files.write(tmp_path / "a" / "1.png", colour=(0, 100, 200), size=(300, 400))
    files.write(tmp_path / "b" / "1.png", colour=(101, 0, 100), size=(50, 40))
    mean = pixel_statistics(ImageFolder(tmp_path)).mean_image
    assert mean.shape == (256, 256, 3)
    assert (mean == (50.5, 50, 150)).all()


def test_unreadable_images_are_left_out_and_noted(images):
    padded, squares = images
    dataset = Images(padded, broken=[4])
    unreadable = Unreadable(dataset)
    found = pixel_statistics(dataset, size=8, unreadable=unreadable)
    assert found.count == 10
    np.testing.assert_allclose(found.mean_image, np.delete(squares, 4, axis=0).mean(axis=0))
    assert unreadable.listed() == [("image 4", "is broken")]


def test_more_than_1_percent_of_unreadable_images_are_an_error(images):
    many = images[0] * 28  # 308
    assert pixel_statistics(Images(many, broken=[7, 70, 300]), size=8).count == 305
    with pytest.raises(DataError, match=r"^4 of 308 images cannot be read, 3 are") as caught:
        pixel_statistics(Images(many, broken=[7, 70, 200, 300]), size=8, workers=1)
    assert "; image 200: is broken; image 300: is broken (`" in str(caught.value)


def test_ctrl_c_waits_for_the_images_under_way_only(images):
    class Slow(Images):
        """A minute's work, which Ctrl-C interrupts at once."""

        loads = 0

        def load(self, index):
            self.loads += 1
            if index == 3:
                os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
            return super().load(index)

    dataset = Slow(images[0] * 100)
    with pytest.raises(KeyboardInterrupt):
        pixel_statistics(dataset, size=8)
    assert dataset.loads < 10


@pytest.mark.parametrize("stuck", [{2}, {2, 5}])
def test_a_stuck_image_is_left_out_and_a_stuck_disk_is_an_error(stuck, images, monkeypatch):
    class Stuck(Images):
        def load(self, index):
            return answer.wait() if index in stuck else super().load(index)

    monkeypatch.setattr(worker_processes, "PATIENCE", 1.0)
    answer = threading.Event()
    found = finished(pixel_statistics, Stuck(images[0]), 8)
    answer.set()
    if len(stuck) > 1:  # of 11 images, of which 1 is allowed
        assert isinstance(found, WorkerError)
        assert str(found).startswith("2 images were not read within 1 s, the last one image 5: the")
    else:
        expected = pixel_statistics(Images(images[0], broken=[2]), 8)
        np.testing.assert_array_equal(found.mean_image, expected.mean_image)
        assert found.count == 10


def test_nothing_to_measure_and_too_small_images_are_errors():
    with pytest.raises(DataError, match="1 of 1 image cannot be read, 1 is allowed: image 0"):
        pixel_statistics(Images([None], broken=[0]))
    with pytest.raises(DataError, match="no image could be read"):
        pixel_statistics(Images([]))
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        pixel_statistics(Images([]), workers=0)
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        pixel_statistics(Images([]), size=0)
    with pytest.raises(ValueError, match="256 x 256 pixels from an image of 8 x 300"):
        pixel_statistics(Images([np.zeros((8, 300, 3), np.uint8)]))


def test_saved_statistics_come_back(images, tmp_path):
    statistics = pixel_statistics(Images(images[0]), size=8)
    statistics.save(tmp_path / "statistics.safetensors", images="train")
    found, notes = load_statistics(tmp_path / "statistics.safetensors")
    assert notes == {"images": "train"}
    assert isinstance(found, PixelStatistics)
    for name, value in vars(statistics).items():
        np.testing.assert_array_equal(getattr(found, name), value, err_msg=name)


def test_another_file_is_refused(tmp_path):
    save({"weights": np.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(FileError, match=r"other\.safetensors holds no statistics"):
        load_statistics(tmp_path / "other.safetensors")
