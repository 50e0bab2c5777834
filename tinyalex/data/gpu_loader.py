"""Batches on a GPU, copied as bytes during the step before."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyalex import backends
from tinyalex.backends import array_module
from tinyalex.backends.devices import check, move, parse, using
from tinyalex.backends.geometry import BatchOptions
from tinyalex.backends.layout import copy_with_room
from tinyalex.backends.types import Array
from tinyalex.data.dataset import Dataset
from tinyalex.data.loader import Batch, Loader
from tinyalex.data.transforms import EvalTransform, Transform

if TYPE_CHECKING:
    from tinyalex.backends.cuda.transfer import Place


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


class GPULoader(Loader):
    """`Loader` with images on `device`, the same to float32 rounding.

    Where the transform makes crops only, bytes travel and the GPU makes float32 of them
    (`Deferred`); else the host does it all, and four times as much travels. Labels and indices stay
    on the host.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        transform: Transform,
        device: str = "cuda",
        **options: Any,
    ) -> None:
        check(device)
        from tinyalex.backends.cuda.transfer import Uploads, empty_pinned

        self.device = device = parse(device)

        def empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
            with using(device):  # in a thread that has not heard of it
                return empty_pinned(shape, dtype)

        if isinstance(transform, EvalTransform) and transform.only_crops:
            transform = Deferred(transform)
        super().__init__(dataset, batch_size, transform, **options, empty=empty)
        with using(self.device):
            self._uploads = Uploads()
        self._mean: Array | None = None

    def epoch(
        self, epoch: int, start_batch: int = 0, every: int = 1
    ) -> Generator[Batch, None, None]:
        """Yield the batches of one epoch, as `Loader.epoch` does."""
        from tinyalex.backends.cuda.transfer import one_ahead

        with closing(super().epoch(epoch, start_batch, every)) as batches:
            for batch, place in one_ahead(batches, self._send):
                yield replace(batch, images=self._receive(batch, place))

    def _send(self, batch: Batch) -> Place:
        images = batch.images
        with using(self.device):
            return self._uploads.send(images if images.ndim == 1 else np.moveaxis(images, -3, -1))

    def _receive(self, batch: Batch, place: Place) -> Array:
        with using(self.device):
            arrived = place.receive()
            if isinstance(self.transform, Deferred):
                return self._prepared(self.transform, batch.images, arrived)
            return copy_with_room(array_module(arrived).moveaxis(arrived, -1, -3))

    def _prepared(self, deferred: Deferred, records: np.ndarray, content: Array) -> Array:
        """Return the images float32 [N, channels, crop, crop] of records, `content` their bytes."""
        transform, shape = deferred.transform, records.dtype["pixels"].shape
        if self._mean is None:
            self._mean = move(transform.mean, self.device) if deferred.whole else transform.mean
        std = transform.std * np.float32(transform.divisor)
        return backends.of(content).prepare(
            content[:, : math.prod(shape)].reshape(-1, *shape),
            records["top"],
            records["left"],
            records["mirrored"],
            BatchOptions(transform.crop, self._mean, std, transform.shape[2]),
            records["noise"],
        )


def loader_on(
    device: str, dataset: Dataset, batch_size: int, transform: Transform, **options: Any
) -> Loader:
    """Return a `Loader` for the CPU, for a GPU a `GPULoader`."""
    if parse(device) == "cpu":
        return Loader(dataset, batch_size, transform, **options)
    return GPULoader(dataset, batch_size, transform, device, **options)
