"""What augmentation does to the pixels of small data sets: parts in other sizes, other colours."""

from __future__ import annotations

import numpy as np
from PIL import Image

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
    """Return the part of uint8 RGB pixels, or of a float32 image, in size x size pixels."""
    if image.dtype == np.uint8:
        picture = Image.fromarray(image)
        return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR, box))
    planes = (Image.fromarray(np.ascontiguousarray(plane)) for plane in image.transpose(2, 0, 1))
    parts = [plane.resize((size, size), Image.Resampling.BILINEAR, box) for plane in planes]
    return np.stack([np.asarray(part) for part in parts], axis=2)


def jittered(
    pixels: np.ndarray, brightness: float, contrast: float, saturation: float
) -> np.ndarray:
    """Return float32 pixels: all values scaled, then spread about their mean, then about grey.

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
