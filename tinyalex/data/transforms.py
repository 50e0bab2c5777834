"""Transforms from decoded images to the network's input.

The transforms turn uint8 RGB [height, width, 3] into float32 [crop, crop, channels], channels
last: (value - mean) / std with values in 0..255. The paper (section 2) subtracts the mean image of
the training set and trains on raw values, std = 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from tinyalex.data.augment import LUMA, ColourNoise, jittered, random_box, resized
from tinyalex.data.image import central_square, spare


class Transform(Protocol):
    """Interface of a transform."""

    shape: tuple[int, ...]
    """(crop, crop, channels) of the result; with the number of views in front if it is many."""
    dtype: np.dtype
    """float32."""

    def __call__(
        self, image: np.ndarray, rng: np.random.Generator, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the transformed image, in `out` if given; randomness from `rng`."""
        ...


Mean = float | Sequence[float] | np.ndarray


class EvalTransform:
    """The central crop x crop pixels, mean subtracted, divided by std.

    `mean` and `std` are in units of 0..255, one number or one for each channel. `mean` may also be
    an image [size, size, 3] (`mean_image`): then crops are taken from the central size x size
    pixels, and the same crop of the mean is subtracted, mirrored where the image is mirrored.
    With `channels=1` the image becomes its luma, and three means become theirs.
    """

    def __init__(
        self, crop: int, mean: Mean = 0.0, std: float | Sequence[float] = 1.0, channels: int = 3
    ) -> None:
        if crop < 1 or channels not in (1, 3):
            raise ValueError(f"need crop >= 1 and channels 1 or 3, got {crop} and {channels}")
        self.crop = crop
        self.dtype = np.dtype(np.float32)
        self.shape: tuple[int, ...] = (crop, crop, channels)
        self.mean = _mean_for_channels(mean, channels)
        self._mirrored_mean = _mirrored_mean(self.mean)
        self.std = _for_channels(std, channels, "std")
        if not (np.isfinite(self.mean).all() and np.isfinite(self.std).all() and self.std.all()):
            raise ValueError(f"mean must be finite, std finite and not 0, got {mean} and {std}")
        if self.mean.ndim == 3 and self.mean.shape[0] < crop:
            raise ValueError(
                f"the mean image must have at least the crop's {crop} x {crop} pixels, got "
                f"{self.mean.shape[0]} x {self.mean.shape[1]}"
            )

    def __call__(
        self, image: np.ndarray, rng: np.random.Generator, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the centre of `image`; `rng` is not used."""
        return self.view(image, *self.choose(self.region(image), rng), out=out)

    @property
    def only_crops(self) -> bool:
        """True if a view is one crop, mirrored or not, and normalised.

        Nothing else changes it: the mean, the noise of `draw_noise`, `std` and `divisor`.
        """
        return len(self.shape) == 3

    @property
    def random(self) -> bool:
        """True if an image does not always look the same."""
        return False

    divisor = 1.0
    """By what the result is divided besides `std`."""

    def choose(self, region: np.ndarray, rng: np.random.Generator) -> tuple[int, int, bool]:
        """Return row and column of the crop, and whether it is mirrored."""
        top, left = (extent // 2 for extent in spare(region, self.crop))
        return top, left, False

    def draw_noise(self, rng: np.random.Generator) -> np.ndarray | None:
        """Return what is added to all pixels, per channel, or None."""
        return None

    def region(self, image: np.ndarray) -> np.ndarray:
        """Return what crops come from: `image`, or the mean image's square."""
        return image if self.mean.ndim == 1 else central_square(image, self.mean.shape[0])

    def view(
        self,
        image: np.ndarray,
        top: int,
        left: int,
        mirrored: bool = False,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return the crop at row `top` and column `left` of `region`."""
        return self._normalise(*self._cut(self.region(image), top, left, mirrored), out)

    def _cut(
        self, region: np.ndarray, top: int, left: int, mirrored: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Crop the pixels, and the mean if that is an image."""
        pixels, mean = region[top : top + self.crop, left : left + self.crop], self.mean
        if mirrored:
            pixels, mean = _mirrored(pixels), self._mirrored_mean
        if mean.ndim == 3:
            if mirrored:
                left = mean.shape[1] - self.crop - left
            mean = mean[top : top + self.crop, left : left + self.crop]
        return pixels, mean

    def _normalise(
        self,
        pixels: np.ndarray,
        mean: np.ndarray,
        out: np.ndarray | None,
        noise: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return (pixels - mean + noise) / (std divisor), with noise per channel."""
        if self.shape[-1] == 1:
            pixels = (pixels @ LUMA)[..., None]
        if out is None:
            out = np.empty(self.shape, np.float32)
        # Whole rows at a time, and converted first: several times as fast as in one expression
        # over the three numbers of a pixel.
        rows = np.ascontiguousarray(pixels).reshape(self.crop, -1)
        target = out.reshape(rows.shape)  # a view: `out` is contiguous
        np.copyto(target, rows)
        shift = noise
        if mean.ndim == 3:
            target -= mean.reshape(rows.shape)
        else:
            shift = -mean if noise is None else noise - mean
        if shift is not None:
            target += self._row(shift)
        scale = self.std * np.float32(self.divisor)
        if (scale != 1).any():
            target /= self._row(scale)
        return out

    def _row(self, values: np.ndarray) -> np.ndarray:
        """Repeat one number, or one per channel, along a row."""
        return np.tile(values, self.crop * self.shape[-1] // values.size).astype(np.float32)


class TrainTransform(EvalTransform):
    """A random crop, mirrored half the time (the paper's section 4.1).

    Every offset of the crop is equally likely, the first and the last included. `colour_noise` is
    the paper's second augmentation. `random_crop=False` takes the centre, `flip=False` reflects
    nothing: to see what each of them brings. Two options help small data sets, which the paper's
    augmentation alone lets the network memorise:

    - `scale=(0.35, 1.0)`: instead of a crop of fixed size, a part with a random share of the
      image's area and a random aspect ratio from 3:4 to 4:3, resized to crop x crop.
    - `jitter=0.3`: brightness, contrast and saturation each times a factor from 0.7 to 1.3.
    """

    def __init__(
        self,
        crop: int,
        mean: Mean = 0.0,
        std: float | Sequence[float] = 1.0,
        channels: int = 3,
        flip: bool = True,
        scale: tuple[float, float] | None = None,
        jitter: float = 0.0,
        colour_noise: ColourNoise | None = None,
        random_crop: bool = True,
    ) -> None:
        super().__init__(crop, mean, std, channels)
        if scale is not None and not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"scale must be (low, high) with 0 < low <= high <= 1, got {scale}")
        if scale is not None and not random_crop:
            raise ValueError(f"scale takes random parts: expected random_crop=True, got {scale=}")
        if not 0 <= jitter < 1:
            raise ValueError(f"jitter must be at least 0 and below 1, got {jitter}")
        self.random_crop = random_crop
        self.flip = flip
        self.scale = scale
        self.jitter = jitter
        self.colour_noise = colour_noise
        if colour_noise is not None:
            self.divisor = colour_noise.divisor

    def __call__(
        self, image: np.ndarray, rng: np.random.Generator, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Return a random view of `image`."""
        region = self.region(image)
        if self.scale is None:
            pixels, mean = self._cut(region, *self.choose(region, rng))
        else:
            box = random_box(region, rng, self.scale)
            pixels, mean = resized(region, box, self.crop), self.mean
            if mean.ndim == 3:
                mean = resized(mean, box, self.crop)
            if self._draw_flip(rng):
                pixels, mean = _mirrored(pixels), _mirrored_mean(mean)
        if self.jitter:
            pixels = jittered(pixels, *rng.uniform(1 - self.jitter, 1 + self.jitter, 3))
        return self._normalise(pixels, mean, out, self.draw_noise(rng))

    @property
    def only_crops(self) -> bool:
        """True if nothing is resized and no colour jitters."""
        return self.scale is None and not self.jitter

    @property
    def random(self) -> bool:
        """True unless it is always the centre, as it is."""
        noise = self.colour_noise is not None
        return self.random_crop or self.flip or self.jitter > 0 or noise

    def choose(self, region: np.ndarray, rng: np.random.Generator) -> tuple[int, int, bool]:
        """Draw the corner of the crop, and whether it is mirrored."""
        top, left = (self._offset(extent, rng) for extent in spare(region, self.crop))
        return top, left, self._draw_flip(rng)

    def draw_noise(self, rng: np.random.Generator) -> np.ndarray | None:
        """Draw the colour noise, if there is any."""
        if self.colour_noise is None:
            return None
        noise = self.colour_noise.draw(rng)
        return noise @ LUMA[:, None] if self.shape[2] == 1 else noise

    def _offset(self, extent: int, rng: np.random.Generator) -> int:
        """Return where a crop begins that may begin at 0 to `extent`."""
        # integers() leaves its upper end out, hence the + 1: the last offset is a crop too.
        return int(rng.integers(extent + 1)) if self.random_crop else extent // 2

    def _draw_flip(self, rng: np.random.Generator) -> bool:
        """Draw whether to mirror."""
        return self.flip and rng.random() < 0.5


class TenCropTransform(EvalTransform):
    """The ten views whose answers the paper averages (section 4.1), [10, crop, crop, channels].

    The four corners (top left, top right, bottom left, bottom right) and the centre of the image's
    central square, then the same five reflected. View `CENTRE` is that of `EvalTransform`.
    Arguments as there.
    """

    CENTRE = 4

    def __init__(
        self,
        crop: int,
        mean: Mean = 0.0,
        std: float | Sequence[float] = 1.0,
        channels: int = 3,
    ) -> None:
        super().__init__(crop, mean, std, channels)
        self.shape = (10, crop, crop, channels)

    def __call__(
        self, image: np.ndarray, rng: np.random.Generator, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the views of `image`; `rng` is not used."""
        down, across = spare(self.region(image), self.crop)
        room = min(down, across)  # by how much the central square is larger than a crop
        (top, bottom), (left, right) = (
            ((extent - room) // 2, (extent - room) // 2 + room) for extent in (down, across)
        )
        places = [(top, left), (top, right), (bottom, left), (bottom, right)]
        out = np.empty(self.shape, np.float32) if out is None else out
        for i, place in enumerate([*places, (down // 2, across // 2)]):
            self.view(image, *place, out=out[i])
            self.view(image, *place, mirrored=True, out=out[5 + i])
        return out


def _mirrored(pixels: np.ndarray) -> np.ndarray:
    """Return ``pixels[:, ::-1]``, moved pixel by pixel: faster than number by number."""
    whole = np.ascontiguousarray(pixels).view(f"V{pixels.shape[2] * pixels.itemsize}")
    return np.ascontiguousarray(whole[:, ::-1]).view(pixels.dtype)


def _mirrored_mean(mean: np.ndarray) -> np.ndarray:
    """Return the mean for a mirrored crop; a colour stays the same."""
    return mean if mean.ndim == 1 else _mirrored(mean)


def _mean_for_channels(mean: Mean, channels: int) -> np.ndarray:
    """Return float32 [1], [channels] or [size, size, channels]."""
    array = np.asarray(mean, np.float32)
    if array.ndim != 3:
        grey = channels == 1 and array.shape == (3,)
        return _for_channels(array @ LUMA if grey else array, channels, "mean")
    if array.shape != (array.shape[0], array.shape[0], 3):
        raise ValueError(f"a mean image must have shape [size, size, 3], got {array.shape}")
    return array if channels == 3 else (array @ LUMA)[..., None]


def _for_channels(value: Mean, channels: int, name: str) -> np.ndarray:
    array = np.atleast_1d(np.asarray(value, np.float32))
    if array.shape not in ((1,), (channels,)):
        raise ValueError(f"{name} must be one number or {channels}, got {array.tolist()}")
    return array
