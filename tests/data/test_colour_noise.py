"""The paper's second augmentation: noise along the principal axes of the colours."""

import numpy as np
import pytest

from tinyalex.data import (
    ColourNoise,
    TrainTransform,
    pixel_statistics,
)

GREY = np.ones(3) / np.sqrt(3)
# Orthonormal, with grey as its first column and not as its first row.
AXES = np.stack([GREY, np.array([1, -1, 0]) / np.sqrt(2), np.array([1, 1, -2]) / np.sqrt(6)], 1)
EIGENVALUES = np.array([60.0, 20.0, 5.0]) ** 2
COVARIANCE = AXES @ np.diag(EIGENVALUES) @ AXES.T


class Colours:
    """Images whose pixels are drawn from N(120, COVARIANCE), wider than they are high."""

    def __len__(self):
        return 150

    def load(self, index):
        rng = np.random.default_rng(index)
        pixels = rng.standard_normal((16, 21, 3)) * np.sqrt(EIGENVALUES) @ AXES.T + 120
        return pixels.round().clip(0, 255).astype(np.uint8)

    def describe(self, index):
        return str(index)


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
    axes = ColourNoise.of_kind(kind, pixel_statistics(Colours(), 16).colour_covariance).axes
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
        rng = np.random.default_rng(seed)
        TrainTransform(12, mean)(image, rng)  # the noise is drawn after crop and reflection
        np.testing.assert_allclose(shift, np.broadcast_to(noise.draw(rng), shift.shape), atol=1e-3)
        shifts.append(shift[0, 0])
    assert len({tuple(shift) for shift in shifts}) == 50


def test_noise_of_a_grey_input_is_the_luma_of_the_noise():
    image, noise = Colours().load(3), ColourNoise.of_kind("deviations", COVARIANCE)
    colour, grey = (
        TrainTransform(12, 90.0, channels=c, colour_noise=noise)(image, np.random.default_rng(5))
        for c in (3, 1)
    )
    luma = colour @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(grey[..., 0], luma, atol=1e-3)
