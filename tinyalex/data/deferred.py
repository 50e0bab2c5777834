"""Transforms that leave the arithmetic to a GPU: an image stays bytes, with what to do to it.

A crop of 224 x 224 pixels is 150,528 bytes, and four times as many once it is float32.
"""

from __future__ import annotations

import numpy as np

from tinyalex.data.transforms import EvalTransform


class Deferred:
    """`transform` up to where its arithmetic begins, for one that makes `only_crops`.

    The result is a record of "pixels" uint8 [side, side, 3], of "top", "left" and "mirrored", which
    say what part of them the network sees, and of "noise", a number for each channel.
    `tinyalex.backends.cuda.prepare` does the rest. The same numbers are drawn as by `transform`.

    Where the mean is an image, the pixels are all those that it covers, since the crop's place in
    it counts; else they are the crop alone. Raises ValueError for other transforms.
    """

    shape: tuple[int, ...] = ()

    def __init__(self, transform: EvalTransform) -> None:
        if not transform.only_crops:
            raise ValueError("only crops can be left to a GPU, neither other sizes nor jitter")
        self.transform = transform
        self.whole = transform.mean.ndim == 3
        side = transform.mean.shape[0] if self.whole else transform.crop
        self.dtype = np.dtype(
            [
                ("pixels", np.uint8, (side, side, 3)),
                ("top", np.int32),
                ("left", np.int32),
                ("mirrored", np.int32),
                ("noise", np.float64, transform.shape[2]),
            ]
        )

    def __call__(
        self, image: np.ndarray, rng: np.random.Generator, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the record of uint8 RGB `image`, written to `out` where given."""
        record = np.empty((), self.dtype) if out is None else out
        transform, region = self.transform, self.transform.region(image)
        top, left, record["mirrored"] = transform.choose(region, rng)
        if not self.whole:
            region = region[top : top + transform.crop, left : left + transform.crop]
            top, left = 0, 0
        record["pixels"], record["top"], record["left"] = region, top, left
        noise = transform.draw_noise(rng)
        record["noise"] = 0 if noise is None else noise
        return record
