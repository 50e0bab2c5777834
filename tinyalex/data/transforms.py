"""An image as it lies on disk to the numbers the network sees, with or without augmentation.

Both transforms turn uint8 RGB [height, width, 3] into float32 [crop, crop, channels], channels
last: (value - mean) / std with values in 0..255. The paper (section 2) subtracts the mean and
trains on raw values, std = 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from PIL import Image

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of red, green and blue in a grey value (ITU-R BT.601)."""


class Transform(Protocol):
    """What the loader asks of a transform."""

    shape: tuple[int, int, int]
    """(crop, crop, channels) of the result."""

    def __call__(
        self, image: np.ndarray, rng: np.random.Generator, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the transformed image, written to `out` where given; all chance is `rng`'s."""
        ...


class EvalTransform:
    """The central crop x crop pixels, mean subtracted, divided by std.

    `mean` and `std` are in units of 0..255, one number or one for each channel. With
    `channels=1` the image becomes its luma, and three means become theirs.
    """

    def __init__(
        self,
        crop: int,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        channels: int = 3,
    ) -> None:
        if crop < 1 or channels not in (1, 3):
            raise ValueError(f"need crop >= 1 and channels 1 or 3, got {crop} and {channels}")
        self.crop = crop
        self.shape = (crop, crop, channels)
        self.mean = _for_channels(mean, channels, "mean")
        self.std = _for_channels(std, channels, "std")
        if not (np.isfinite(self.mean).all() and np.isfinite(self.std).all() and self.std.all()):
            raise ValueError(f"mean must be finite, std finite and not 0, got {mean} and {std}")

    def __call__(
        self, image: np.ndarray, rng: np.random.Generator, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the centre of `image`; `rng` is not used."""
        top, left = (extent // 2 for extent in self._spare(image))
        return self._normalise(image[top : top + self.crop, left : left + self.crop], out)

    def _spare(self, image: np.ndarray) -> tuple[int, int]:
        """Return how many pixels the image is higher and wider than the crop."""
        height, width = image.shape[0] - self.crop, image.shape[1] - self.crop
        if height < 0 or width < 0:
            raise ValueError(
                f"cannot cut {self.crop} x {self.crop} pixels from an image of "
                f"{image.shape[0]} x {image.shape[1]}: load it larger"
            )
        return height, width

    def _normalise(self, pixels: np.ndarray, out: np.ndarray | None) -> np.ndarray:
        if self.shape[2] == 1:
            pixels = (pixels @ LUMA)[..., None]
        if out is None:
            out = np.empty(self.shape, np.float32)
        # Whole rows at a time, and converted first: several times as fast as in one expression
        # over the three numbers of a pixel.
        rows = np.ascontiguousarray(pixels).reshape(self.crop, -1)
        target = out.reshape(rows.shape)  # a view: `out` is contiguous
        mean, std = (np.tile(v, rows.shape[1] // v.size) for v in (self.mean, self.std))
        np.copyto(target, rows)
        target -= mean
        if (std != 1).any():
            target /= std
        return out


class TrainTransform(EvalTransform):
    """A random crop, reflected half of the time (the paper's section 4.1), then as EvalTransform.

    Every offset of the crop is equally likely, the first and the last included. Two options help
    small data sets, which the paper's augmentation alone lets the network memorise:

    - `scale=(0.35, 1.0)`: instead of a crop of fixed size, a part with a random share of the
      image's area and a random aspect ratio from 3:4 to 4:3, resized to crop x crop.
    - `jitter=0.3`: brightness, contrast and saturation each times a factor from 0.7 to 1.3.
    """

    def __init__(
        self,
        crop: int,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        channels: int = 3,
        flip: bool = True,
        scale: tuple[float, float] | None = None,
        jitter: float = 0.0,
    ) -> None:
        super().__init__(crop, mean, std, channels)
        if scale is not None and not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"scale must be (low, high) with 0 < low <= high <= 1, got {scale}")
        if not 0 <= jitter < 1:
            raise ValueError(f"jitter must be at least 0 and below 1, got {jitter}")
        self.flip = flip
        self.scale = scale
        self.jitter = jitter

    def __call__(
        self, image: np.ndarray, rng: np.random.Generator, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Return a random view of `image`."""
        if self.scale is None:
            pixels = self._random_crop(image, rng)
        else:
            pixels = self._random_part(image, rng, self.scale)
        if self.flip and rng.random() < 0.5:
            pixels = _mirrored(pixels)
        if self.jitter:
            pixels = _jitter(pixels, *rng.uniform(1 - self.jitter, 1 + self.jitter, 3))
        return self._normalise(pixels, out)

    def _random_crop(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        # integers() leaves its upper end out, hence the + 1: the last offset is a crop too.
        top, left = (int(rng.integers(spare + 1)) for spare in self._spare(image))
        return image[top : top + self.crop, left : left + self.crop]

    def _random_part(
        self, image: np.ndarray, rng: np.random.Generator, scale: tuple[float, float]
    ) -> np.ndarray:
        height, width = image.shape[:2]
        area = rng.uniform(*scale) * height * width
        aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        part_width = min(float(np.sqrt(area * aspect)), width)
        part_height = min(float(np.sqrt(area / aspect)), height)
        left = rng.uniform(0, width - part_width)
        top = rng.uniform(0, height - part_height)
        box = (left, top, left + part_width, top + part_height)
        size = (self.crop, self.crop)
        return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, box))


def _mirrored(pixels: np.ndarray) -> np.ndarray:
    """Return RGB ``pixels[:, ::-1]``, moved pixel by pixel: faster than value by value."""
    whole = np.ascontiguousarray(pixels).view(f"V{3 * pixels.itemsize}")
    return np.ascontiguousarray(whole[:, ::-1]).view(pixels.dtype)


def _jitter(
    pixels: np.ndarray, brightness: float, contrast: float, saturation: float
) -> np.ndarray:
    """Return float32 pixels: all values scaled, then spread about their mean, then about grey."""
    pixels = np.multiply(pixels, brightness, dtype=np.float32)
    middle = (pixels @ LUMA).mean()
    pixels += (contrast - 1) * (pixels - middle)
    pixels += (saturation - 1) * (pixels - (pixels @ LUMA)[..., None])
    return np.clip(pixels, 0, 255, out=pixels)


def _for_channels(value: float | Sequence[float], channels: int, name: str) -> np.ndarray:
    array = np.atleast_1d(np.asarray(value, np.float32))
    if name == "mean" and channels == 1 and array.shape == (3,):
        array = np.atleast_1d(array @ LUMA)
    if array.shape not in ((1,), (channels,)):
        raise ValueError(f"{name} must be one number or {channels}, got {array.tolist()}")
    return array
