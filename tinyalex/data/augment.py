"""Random changes of pixels and colours: crops, jitter, noise of principal components."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

STRENGTH = 0.1
"""Standard deviation of the paper's alphas; the 2012 source's --color-noise."""

KINDS = ("eigenvalues", "deviations")


@dataclass(frozen=True)
class ColourNoise:
    """``[p1 p2 p3] [a1 s1, a2 s2, a3 s3]``, each a from N(0, 0.1**2): one draw for a whole image.

    p1, p2, p3 are the eigenvectors of the covariance of the training set's colours, the largest
    eigenvalue l1 first. Colours differ most in brightness, so p1 is nearly grey ((0.60, 0.57, 0.56)
    for the photographs of flowers of docs/recipe.md). What s is:

    - "eigenvalues": l, as the paper says. It does not say in which unit, and that matters: in
      0..255, l1 is in the thousands and the noise would drown every image. So values in 0..1.
    - "deviations": the square root of l, the same in any unit, as in the 2012 source
      (convdata_jpeg.py), which divides training images, and only those, by 1.1 afterwards, so that
      the noise does not make them larger than test images.
    """

    axes: np.ndarray
    """float64 [3, 3] in units of 0..255; column j is p_j times the noise's deviation along it."""
    divisor: float = 1.0
    """Divisor of the image, after its mean is subtracted and noise added."""

    @classmethod
    def of_kind(cls, kind: str, covariance: np.ndarray) -> ColourNoise:
        """Return the noise for colours with this covariance [3, 3], in units of 0..255.

        Raises ValueError for an unknown kind, and for what is no covariance.
        """
        covariance = np.asarray(covariance, np.float64)
        if kind not in KINDS:
            raise ValueError(f"the colour noise must be one of {', '.join(KINDS)}; got {kind!r}")
        if covariance.shape != (3, 3) or not np.allclose(covariance, covariance.T):
            raise ValueError(
                f"expected a covariance of colours, symmetric [3, 3], got {covariance.tolist()}"
            )
        rising, vectors = np.linalg.eigh(covariance)
        # Of grey images two eigenvalues are 0, or by rounding a little less.
        eigenvalues, vectors = rising[::-1].clip(min=0), vectors[:, ::-1]
        if kind == "eigenvalues":
            return cls(vectors * (STRENGTH * 255 * (eigenvalues / 255**2)))
        return cls(vectors * (STRENGTH * np.sqrt(eigenvalues)), divisor=1 + STRENGTH)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Draw what to add to each colour of an image, in 0..255."""
        return self.axes @ rng.standard_normal(3)


LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of red, green and blue in a grey value (ITU-R BT.601)."""

Box = tuple[float, float, float, float]


def random_box(image: np.ndarray, rng: np.random.Generator, scale: tuple[float, float]) -> Box:
    """Draw a part of the image: left, top, right and bottom edge."""
    height, width = image.shape[:2]
    area = rng.uniform(*scale) * height * width
    aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    part_width = min(float(np.sqrt(area * aspect)), width)
    part_height = min(float(np.sqrt(area / aspect)), height)
    left = rng.uniform(0, width - part_width)
    top = rng.uniform(0, height - part_height)
    return (left, top, left + part_width, top + part_height)


def resized(image: np.ndarray, box: Box, size: int) -> np.ndarray:
    """Resize a part of an image to `size x size` pixels.

    `image` is uint8 RGB [H, W, 3], or float32.
    """
    if image.dtype == np.uint8:
        picture = Image.fromarray(image)
        return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR, box))
    planes = (Image.fromarray(np.ascontiguousarray(plane)) for plane in image.transpose(2, 0, 1))
    parts = [plane.resize((size, size), Image.Resampling.BILINEAR, box) for plane in planes]
    return np.stack([np.asarray(part) for part in parts], axis=2)


def jittered(
    pixels: np.ndarray, brightness: float, contrast: float, saturation: float
) -> np.ndarray:
    """Return float32 pixels with changed brightness, contrast and saturation, in this order.

    Together that is ``b c (s p + (1 - s) l) + b (1 - c) m`` for a value p, the luma l of its pixel
    and the mean m of all lumas.
    """
    # Colour by colour: one expression over the three numbers of a pixel takes several times as
    # long, and a product with LUMA goes to a BLAS, whose threads get into each other's way.
    luma = np.zeros(pixels.shape[:2], np.float32)
    for i in range(3):
        luma += np.multiply(pixels[..., i], LUMA[i], dtype=np.float32)
    middle = luma.mean()
    scale = brightness * contrast
    result = np.multiply(pixels, scale * saturation, dtype=np.float32)
    luma *= scale * (1 - saturation)
    luma += brightness * (1 - contrast) * middle
    for i in range(3):
        result[..., i] += luma
    return np.clip(result, 0, 255, out=result)
