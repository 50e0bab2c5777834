"""The ten views of an image whose answers the paper averages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tinyalex.data.image import spare
from tinyalex.data.transforms import EvalTransform, Mean


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
