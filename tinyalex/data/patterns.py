"""The embedded data set: ten patterns, drawn on the fly.

Position, size, outline and rotation of the patch, the scale of its pattern, all colours, the light
and the clutter behind it are drawn at random for every image; only the pattern tells the class. A
linear classifier on the pixels does little better than guessing, a convolutional network learns it
in minutes.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

SIZE = 256
SPLITS = ("train", "val", "test")


def _part(x: np.ndarray) -> np.ndarray:
    """Return how far x is through its cell, 0 to 1."""
    return x - np.floor(x)


def _blots(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Waves that bend each other: irregular, and different wherever one looks."""
    return np.sin(4.1 * u + 1.7 * np.sin(2.3 * v)) + np.sin(3.7 * v + 1.9 * np.sin(3.1 * u)) > 0


def _crosses(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    u, v = abs(_part(u) - 0.5), abs(_part(v) - 0.5)
    return ((u < 0.14) & (v < 0.4)) | ((v < 0.14) & (u < 0.4))


def _zigzag(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _part(1.6 * v + 0.8 * abs(2 * _part(u) - 1)) < 0.5


# Which points of the plane are light; a pattern repeats about once per unit. Rays and
# rings have a centre, the origin.
PATTERNS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "blots": _blots,
    "bricks": lambda u, v: (_part(2 * v) > 0.25) & (_part(u + np.floor(2 * v) / 2) > 0.14),
    "checks": lambda u, v: (np.floor(2 * u) + np.floor(2 * v)) % 2 < 1,
    "crosses": _crosses,
    "dots": lambda u, v: (_part(u) - 0.5) ** 2 + (_part(v) - 0.5) ** 2 < 0.09,
    "grid": lambda u, v: (_part(1.5 * u) < 0.22) | (_part(1.5 * v) < 0.22),
    "rays": lambda u, v: np.sin(14 * np.arctan2(v, u)) > 0,
    "rings": lambda u, v: _part(1.6 * np.hypot(u, v)) < 0.5,
    "stripes": lambda u, v: _part(1.6 * u) < 0.5,
    "zigzag": _zigzag,
}
CENTRED = ("rays", "rings")


class Patterns:
    """Colour images of ten patterns, 256 x 256 pixels.

    Image ``index`` of a split is drawn from (seed, split, index) alone: always the same, and never
    the same in two splits. Classes take turns, so every split is balanced.

    Raises ValueError for an unknown split, a size below 1 or a negative seed.
    """

    def __init__(self, split: str = "train", size: int = 4000, seed: int = 0) -> None:
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        if size < 1 or seed < 0:
            raise ValueError(f"size must be at least 1 and seed 0, got {size} and {seed}")
        self.split = split
        self.seed = seed
        self.classes = list(PATTERNS)
        self.labels = np.arange(size, dtype=np.int64) % len(self.classes)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def __repr__(self) -> str:
        """Return split, size and seed."""
        return f"Patterns({self.split!r}, size={len(self)}, seed={self.seed})"

    def load(self, index: int) -> np.ndarray:
        """Return image ``index``, uint8 RGB [256, 256, 3]."""
        return self._draw(index)[0]

    def mask(self, index: int) -> np.ndarray:
        """Return the mask of the pattern in image ``index``, bool [256, 256].

        Outside of it, nothing depends on the class.
        """
        return self._draw(index)[1]

    def describe(self, index: int) -> str:
        """Return how image ``index`` came to be."""
        return f"{self.classes[self.labels[index]]} {index} of {self!r}"

    def _draw(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng((self.seed, SPLITS.index(self.split), index))
        return draw(self.classes[self.labels[index]], rng)


def draw(name: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return an image of the pattern ``name``, uint8 [256, 256, 3], and its mask."""
    image = Image.new("RGB", (SIZE, SIZE), _colour(rng))
    _clutter(image, rng)

    radius = rng.uniform(85, 135)
    centre = SIZE / 2 + rng.uniform(-45, 45, 2)
    left, top = np.maximum(centre - 1.3 * radius, 0).astype(int).tolist()
    right, bottom = np.minimum(centre + 1.3 * radius, SIZE).astype(int).tolist()
    x = np.arange(left, right, dtype=np.float32) + np.float32(0.5 - centre[0])
    y = (np.arange(top, bottom, dtype=np.float32) + np.float32(0.5 - centre[1]))[:, None]

    light, dark = _light_and_dark(rng)
    period, angle = rng.uniform(16, 30), rng.uniform(0, 2 * np.pi)
    cosine, sine = np.float32(np.cos(angle) / period), np.float32(np.sin(angle) / period)
    phase = np.float32(rng.uniform(0, 20, 2) * (name not in CENTRED))
    pattern = PATTERNS[name](cosine * x + sine * y + phase[0], cosine * y - sine * x + phase[1])
    patch = Image.new("RGB", (right - left, bottom - top), dark)
    patch.paste(light, mask=_as_mask(pattern))
    mask = np.zeros((SIZE, SIZE), bool)
    mask[top:bottom, left:right] = _inside(x, y, radius, rng)
    image.paste(patch, (left, top), mask=_as_mask(mask[top:bottom, left:right]))
    return _light_and_grain(np.asarray(image), rng), mask


def _inside(x: np.ndarray, y: np.ndarray, radius: float, rng: np.random.Generator) -> np.ndarray:
    """Return which points lie within a rounded, uneven outline about the origin."""
    turn = np.linspace(0, 2 * np.pi, 181, dtype=np.float32)
    waves = zip((2, 3, 5), rng.uniform(-0.12, 0.12, 3), rng.uniform(0, 2 * np.pi, 3), strict=True)
    edge = radius * (1 + sum(height * np.cos(k * turn + shift) for k, height, shift in waves))
    angle = np.arctan2(y, x) * np.float32(90 / np.pi)
    return x * x + y * y < np.square(edge.astype(np.float32))[angle.astype(np.int16)]


def _as_mask(points: np.ndarray) -> Image.Image:
    return Image.fromarray(points.astype(np.uint8) * np.uint8(255))


Colour = tuple[int, int, int]


def _colour(rng: np.random.Generator) -> Colour:
    hue, saturation, value = rng.uniform((0, 0.15, 0.2), (1, 1, 1))
    red, green, blue = (int(255 * c) for c in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue


def _light_and_dark(rng: np.random.Generator) -> tuple[Colour, Colour]:
    """Return two colours that differ visibly, the brighter one first."""
    while True:
        first, second = _colour(rng), _colour(rng)
        if np.abs(np.subtract(first, second)).sum() > 270:
            return (first, second) if sum(first) > sum(second) else (second, first)


def _clutter(image: Image.Image, rng: np.random.Generator) -> None:
    """Draw a few shards and lines on ``image``."""
    pen = ImageDraw.Draw(image)
    for _ in range(rng.integers(0, 6)):
        corners = rng.uniform(0, SIZE, 2) + rng.uniform(-50, 50, (rng.integers(3, 7), 2))
        pen.polygon(corners.ravel().tolist(), fill=_colour(rng))
    for _ in range(rng.integers(0, 3)):
        ends = rng.uniform(0, SIZE, 4).tolist()
        pen.line(ends, fill=_colour(rng), width=int(rng.integers(2, 7)))


def _light_and_grain(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return `image` lit from one side, with a little noise."""
    across, down = rng.uniform(-0.15, 0.15, 2)
    ramp = np.linspace(-1, 1, SIZE, dtype=np.float32)
    light = np.float32(1) + np.float32(across) * ramp + np.float32(down) * ramp[:, None]
    grain = rng.standard_normal((SIZE, SIZE), np.float32) * np.float32(8)
    return np.clip(image * light[..., None] + grain[..., None], 0, 255).astype(np.uint8)
