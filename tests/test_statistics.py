"""Mean image, colour covariance, and the colour noise that follows from it."""

import images
import numpy as np
import pytest

from tinyalex.data import (
    ColourNoise,
    DataError,
    ImageError,
    ImageFolder,
    PixelSums,
    TrainTransform,
    colour_covariance,
    mean_image,
    pixel_sums,
)

GREY = np.ones(3) / np.sqrt(3)
# Orthonormal, with grey as its first column and not as its first row.
AXES = np.stack([GREY, np.array([1, -1, 0]) / np.sqrt(2), np.array([1, 1, -2]) / np.sqrt(6)], 1)
EIGENVALUES = np.array([60.0, 20.0, 5.0]) ** 2
COVARIANCE = AXES @ np.diag(EIGENVALUES) @ AXES.T


class Colours:
    """Images whose pixels are drawn from N(120, COVARIANCE), wider than they are high."""

    def __init__(self, count=150, bad=()):
        self.bad = bad
        self.labels = np.zeros(count, np.int64)

    def __len__(self):
        return len(self.labels)

    def load(self, index):
        if index in self.bad:
            raise ImageError(f"image {index}", "the disk is gone")
        rng = np.random.default_rng(index)
        pixels = rng.standard_normal((16, 21, 3)) * np.sqrt(EIGENVALUES) @ AXES.T + 120
        return pixels.round().clip(0, 255).astype(np.uint8)


def squares(dataset):
    """Return the central 16 x 16 pixels of all images that can be read, in float64."""
    indices = [i for i in range(len(dataset)) if i not in dataset.bad]
    return np.stack([dataset.load(i)[:, 2:18] for i in indices]).astype(np.float64)


def test_mean_image_and_covariance_are_those_of_the_central_squares():
    dataset = Colours()
    expected = squares(dataset)
    mean = mean_image(dataset, size=16)
    assert mean.dtype == np.float32
    np.testing.assert_array_equal(mean, expected.mean(axis=0).astype(np.float32))
    covariance = np.cov(expected.reshape(-1, 3), rowvar=False, bias=True)
    np.testing.assert_allclose(colour_covariance(dataset, size=16), covariance, rtol=1e-12)


def test_neither_threads_nor_the_order_change_a_bit():
    dataset = Colours()
    one, many = pixel_sums(dataset, 16, workers=1), pixel_sums(dataset, 16, workers=5)
    backwards = PixelSums(16)
    for index in reversed(range(len(dataset))):
        backwards.add(dataset.load(index))
    for other in (many, backwards):
        assert one.count == other.count == len(dataset)
        assert one.mean_image.tobytes() == other.mean_image.tobytes()
        assert one.colour_covariance.tobytes() == other.colour_covariance.tobytes()


def test_progress_reaches_the_end():
    seen = []
    pixel_sums(Colours(), 16, progress=lambda *now: seen.append(now))
    assert seen == [(64, 150), (128, 150), (150, 150)]


def test_images_that_cannot_be_read_are_passed_over():
    dataset = Colours(bad=(0, 70))
    sums = pixel_sums(dataset, 16)
    assert sums.count == 148
    np.testing.assert_allclose(sums.mean_image, squares(dataset).mean(axis=0), rtol=1e-6)
    with pytest.raises(DataError, match="none of 3 images could be read"):
        mean_image(Colours(3, bad=(0, 1, 2)), 16)


def test_the_paper_s_256_pixels_come_from_a_folder(tmp_path):
    images.write(tmp_path / "a" / "1.png", colour=(0, 100, 200), size=(300, 400))
    images.write(tmp_path / "b" / "1.png", colour=(101, 0, 100), size=(50, 40))
    mean = mean_image(ImageFolder(tmp_path))
    assert mean.shape == (256, 256, 3)
    assert (mean == (50.5, 50, 150)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 17}, "cannot cut 17 x 17 pixels from an image of 16 x 21: load it larger"),
        ({"size": 0}, "size must be at least 1, got 0"),
        ({"workers": 0}, "workers must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        pixel_sums(Colours(), **options)


# --- colour noise -------------------------------------------------------------------------------

# The noise's own covariance: 0.1 ** 2 times the sum of s ** 2 p p', as the paper and the source
# have it, the paper's eigenvalues being those of values in 0..1.
NOISE = {
    "eigenvalues": 0.01 * AXES @ np.diag((EIGENVALUES / 255) ** 2) @ AXES.T,
    "deviations": 0.01 * COVARIANCE,
}


@pytest.mark.parametrize("kind", NOISE)
def test_noise_has_the_covariance_of_the_formula(kind, rng):
    """A transposed matrix of eigenvectors, and the wrong s, have another one."""
    noise = ColourNoise.of_kind(kind, COVARIANCE)
    np.testing.assert_allclose(noise.axes @ noise.axes.T, NOISE[kind], rtol=1e-9, atol=1e-9)
    draws = np.array([noise.draw(rng) for _ in range(40_000)])
    scale = NOISE[kind].max()
    np.testing.assert_allclose(draws.mean(axis=0), 0, atol=0.02 * np.sqrt(scale))
    np.testing.assert_allclose(np.cov(draws, rowvar=False), NOISE[kind], atol=0.02 * scale)


@pytest.mark.parametrize("kind", NOISE)
def test_the_first_component_of_images_that_differ_in_brightness_is_nearly_grey(kind):
    axes = ColourNoise.of_kind(kind, colour_covariance(Colours(), 16)).axes
    lengths = np.linalg.norm(axes, axis=0)
    assert lengths[0] > lengths[1] > lengths[2] > 0
    assert abs(axes[:, 0] @ GREY) / lengths[0] > 0.9999
    assert abs(axes[0] @ GREY) / np.linalg.norm(axes[0]) < 0.9  # its first row is not


def test_noise_of_grey_images_is_grey(rng):
    noise = ColourNoise.of_kind("deviations", np.full((3, 3), 2500.0))
    red, green, blue = noise.draw(rng)
    assert abs(red) > 0.01
    assert (green, blue) == pytest.approx((red, red))


@pytest.mark.parametrize(
    ("kind", "covariance", "message"),
    [
        ("variances", COVARIANCE, "one of eigenvalues, deviations; got 'variances'"),
        ("deviations", COVARIANCE[:2], "symmetric"),
        ("deviations", AXES, "symmetric"),
        ("deviations", COVARIANCE * np.nan, "symmetric"),
    ],
)
def test_what_is_no_noise_is_refused(kind, covariance, message):
    with pytest.raises(ValueError, match=message):
        ColourNoise.of_kind(kind, covariance)


@pytest.mark.parametrize("mean", [(100.0, 110.0, 120.0), np.full((16, 16, 3), 50, np.float32)])
@pytest.mark.parametrize(("kind", "divisor"), [("eigenvalues", 1), ("deviations", 1.1)])
def test_an_image_is_shifted_as_a_whole_and_lies_where_it_did_without_noise(kind, divisor, mean):
    image = Colours().load(3)
    noise = ColourNoise.of_kind(kind, COVARIANCE)
    shifts = []
    for seed in range(50):
        plain = TrainTransform(12, mean)(image, np.random.default_rng(seed))
        noisy = TrainTransform(12, mean, colour_noise=noise)(image, np.random.default_rng(seed))
        shift = noisy * divisor - plain
        np.testing.assert_allclose(shift, np.broadcast_to(shift[0, 0], shift.shape), atol=1e-3)
        shifts.append(shift[0, 0])
    assert len({tuple(shift) for shift in shifts}) == 50
    spread = np.std(np.array(shifts) @ AXES, axis=0)
    np.testing.assert_allclose(spread, np.sqrt(np.diag(AXES.T @ NOISE[kind] @ AXES)), rtol=0.3)


def test_noise_of_a_grey_input_is_the_luma_of_the_noise():
    image, noise = Colours().load(3), ColourNoise.of_kind("deviations", COVARIANCE)
    colour, grey = (
        TrainTransform(12, 90.0, channels=c, colour_noise=noise)(image, np.random.default_rng(5))
        for c in (3, 1)
    )
    luma = colour @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(grey[..., 0], luma, atol=1e-3)
