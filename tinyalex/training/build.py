"""Construction of a run from settings, new or from a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinyalex import models, nn, random, threads
from tinyalex.backends.devices import move, use
from tinyalex.backends.precision import set_float32_matmul_precision
from tinyalex.data import (
    ColourNoise,
    DataError,
    Dataset,
    ImageFolder,
    Loader,
    TrainTransform,
    loader_on,
    mean_colour,
)
from tinyalex.data.kept import Kept
from tinyalex.data.training_statistics import statistics_for
from tinyalex.files import FileError
from tinyalex.progress import Progress, warn
from tinyalex.tensor import Tensor
from tinyalex.text import listed
from tinyalex.training.average import WeightAverage
from tinyalex.training.classifier import Classifier
from tinyalex.training.datasets import (
    RunImages,
    in_both,
    open_dataset,
    open_kept,
    other_data,
    shorter_side_for,
)
from tinyalex.training.run import Run
from tinyalex.training.settings import AUGMENTATIONS, Settings

INITIAL_IMAGES = 64
"""Number of images that the initial weights are suited to."""


def open_as_before(
    settings: Settings, kept: dict[str, Kept]
) -> tuple[Dataset, Dataset, Dataset | None]:
    """Return the splits that a run had; DataError if they have changed."""
    try:
        opened = {split: open_kept(settings, kept, split) for split in kept}
        for split, images in opened.items():
            own = [part for part in kept.values() if part.folder == kept[split].folder]
            known = sum(len(part.labels) for part in own)
            assert isinstance(images, ImageFolder)
            if images.new_classes:
                more = ", ".join(images.new_classes[:3])
                raise DataError(f"in {images.folder} there are more classes: {more}")
            if images.beside + len(images) > known:
                raise DataError(f"in {images.folder} there are more: {listed(images.new(own))}")
        return opened["train"], opened["val"], opened.get("test")
    except DataError as error:
        raise other_data(str(error)) from error


def first_images(loader: Loader, count: int) -> Tensor:
    """Return the first `count` images of the first epoch, at most all."""
    parts: list[np.ndarray] = []
    for batch in loader.epoch(0):
        parts.append(move(batch.images, "cpu"))
        if sum(map(len, parts)) >= count:
            break
    return Tensor(np.concatenate(parts)[:count])


def new_run(
    settings: Settings,
    mean: Sequence[float] | np.ndarray | None = None,
    colour_covariance: np.ndarray | None = None,
    progress: Progress | None = None,
    kept: dict[str, Kept] | None = None,
) -> Run:
    """Put a run together, with fresh weights drawn from the seed.

    `mean` and `colour_covariance` are those of an earlier part of the run, whose weights will take
    the place of the fresh ones; by default they are the variant's own, or are measured on the
    training set where variant and settings ask for that. `kept` says which images that part had;
    by default they are found in the folder. Raises ValueError (DataError for the images) where
    settings and data do not fit together.
    """
    use(settings.device)
    set_float32_matmul_precision(settings.precision)
    threads.set_num_threads(settings.threads)
    random.manual_seed(settings.seed)
    variant, recipe = models.VARIANTS[settings.variant], settings.recipe
    train, val, test = (
        open_as_before(settings, kept)
        if kept
        else (open_dataset(settings, split) for split in ("train", "val", "test"))
    )
    assert train is not None
    assert val is not None
    if shared := in_both({"train": train, "val": val, "test": test}):
        if not kept:
            raise DataError(f"{settings.data}: {shared}; keep each file in one of them")
        warn(f"warning: {shared}: what is held out says nothing about those that are learned from")
    fresh = mean is None
    if mean is None:
        mean, colour_covariance = measure(settings, train, progress or Progress(silent=True))
    elif not isinstance(mean, np.ndarray):
        mean = tuple(mean)
    noise = None
    if settings.colour_noise != "none":
        if colour_covariance is None:
            raise ValueError("the colour noise of an earlier part of the run needs its covariance")
        noise = ColourNoise.of_kind(settings.colour_noise, colour_covariance)

    model = models.alexnet(settings.variant, len(train.classes), settings.dropout)
    classifier = Classifier(model, train.classes, mean, variant.pixels.std, settings.input_size)

    def augment(size: int) -> TrainTransform:
        options = AUGMENTATIONS[settings.augment]
        return TrainTransform(
            size, mean, variant.pixels.std, variant.in_channels, colour_noise=noise, **options
        )

    loading: dict[str, Any] = {
        "workers": settings.workers,
        "processes": settings.worker_processes,
        "cache_bytes": settings.image_cache * 1_000_000,
    }
    device, size, seed = settings.device, settings.batch_size, settings.seed
    first = augment(settings.size_at(0))
    train_data = loader_on(device, train, size, first, seed=seed, **loading)

    def held_out(dataset: Dataset, **loading: Any) -> Loader:
        size = min(settings.batch_size, len(dataset))
        transform = classifier.transform
        return loader_on(device, dataset, size, transform, shuffle=False, **loading)

    if settings.initial_weights == "data" and fresh:
        nn.data_dependent_(model, first_images(train_data, INITIAL_IMAGES))

    optimizer = recipe.optimizer(model.to(device))
    return Run(
        settings,
        classifier,
        optimizer,
        recipe.make_schedule(optimizer, steps_per_epoch=len(train_data)),
        train_data,
        val_data=held_out(val, **loading),
        test_data=held_out(test, **{**loading, "cache_bytes": 0}) if test is not None else None,
        colour_covariance=colour_covariance,
        average=WeightAverage(model, settings.average) if settings.average else None,
        augment=augment if settings.first_size is not None else None,
        _kept=kept or None,
    )


def resumed_run(settings: Settings, checkpoint: dict[str, Any], out: Path) -> Run:
    """Rebuild the run of a checkpoint, in the checkpoint's state."""
    try:
        mean = checkpoint["classifier"]["mean"]
        images = RunImages(checkpoint, settings, out)
        images.check_there()
        run = new_run(settings, mean, checkpoint.get("colour_covariance"), kept=images.kept)
        run.set_state(checkpoint)
        run.look_at_files()
    except ValueError as error:
        raise FileError(f"the run in {out} cannot be resumed: {error}") from error
    return run


def measure(
    settings: Settings, train: Dataset, progress: Progress
) -> tuple[tuple[float, ...] | np.ndarray, np.ndarray | None]:
    """Return the mean to subtract, and the colour covariance if needed.

    Both come from one pass over all training images, where that pass has not been made before; a
    mean colour alone takes a few of them. Raises DataError if too many images cannot be read,
    WorkerError for a disk that does not answer.
    """
    mean, found = models.VARIANTS[settings.variant].pixels.mean, None
    if settings.mean == "image" or settings.colour_noise != "none":
        size = shorter_side_for(settings.input_size)
        cache, workers = settings.index_cache, settings.workers
        found = statistics_for(train, size, workers, cache, progress)
    covariance = found.colour_covariance if found and settings.colour_noise != "none" else None
    if found and settings.mean == "image":
        return found.mean_image.astype(np.float32), covariance
    if mean is None:
        mean = tuple(found.mean_colour.tolist()) if found else mean_colour(train)
    return mean, covariance
