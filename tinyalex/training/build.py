"""Construction of a run from settings, new or from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from tinyalex.models import AlexNet
from tinyalex.progress import Progress, warn
from tinyalex.tensor import Tensor
from tinyalex.text import listed, printable
from tinyalex.training.average import WeightAverage
from tinyalex.training.checkpoint import load_classifier
from tinyalex.training.classifier import Classifier
from tinyalex.training.datasets import (
    RunImages,
    in_both,
    open_dataset,
    open_kept,
    other_data,
    shorter_side_for,
)
from tinyalex.training.ranks import Ranks
from tinyalex.training.run import Run, groups_of
from tinyalex.training.settings import AUGMENTATIONS, Settings
from tinyalex.training.transfer import digest, freeze, frozen_layers, replace_head

INITIAL_IMAGES = 64
"""Number of images that the initial weights are suited to."""


def open_as_before(
    settings: Settings, kept: dict[str, Kept], shorter_side: int, resize: str
) -> tuple[Dataset, Dataset, Dataset | None]:
    """Return the splits that a run had; DataError if they have changed."""
    try:
        resizing: dict[str, Any] = {"shorter_side": shorter_side, "resize": resize}
        opened = {split: open_kept(settings, kept, split, **resizing) for split in kept}
        for split, images in opened.items():
            own = [part for part in kept.values() if part.folder == kept[split].folder]
            known = sum(len(part.labels) for part in own)
            assert isinstance(images, ImageFolder)
            if images.new_classes:
                more = ", ".join(images.new_classes[:3])
                raise DataError(f"in {printable(images.folder)} there are more classes: {more}")
            if images.beside + len(images) > known:
                raise DataError(
                    f"in {printable(images.folder)} there are more: {listed(images.new(own))}"
                )
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
    before: Mapping[str, Any] | None = None,
    start: Classifier | None = None,
    ranks: Ranks | None = None,
) -> Run:
    """Put a run together, with weights drawn from the seed or loaded.

    `mean` and `colour_covariance` are those of an earlier part of the run, whose weights will take
    the place of the fresh ones; by default they are the variant's own, or are measured on the
    training set where variant and settings ask for that. `kept` says which images that part had;
    by default they are found in the folder. `before` is that part's whole state, from which all
    that is taken. `start` is what `settings.weights` hold, by default read from there; the run
    changes it. `ranks` are the processes that train together, by default this one alone. Raises
    ValueError (DataError for the images, FileError for the weights) where settings, data and
    weights do not fit together.
    """
    if settings.weights is None or before is not None:
        start = None
    else:
        start = start or read_start(settings.weights, settings.variant)
        if settings.mean != (kind := kind_of_mean(start)):
            raise ValueError(
                f"{printable(settings.weights)} expects images minus a mean {kind}: leave --mean "
                "out"
            )
    use(settings.device)
    set_float32_matmul_precision(settings.precision)
    threads.set_num_threads(settings.threads)
    random.manual_seed(settings.seed)
    variant, recipe = models.VARIANTS[settings.variant], settings.recipe
    std, resizing, origin = variant.pixels.std, (0, "shorter_side"), dict[str, str]()
    if before is not None:
        state, colour_covariance = before["classifier"], before.get("colour_covariance")
        mean, std, origin = state["mean"], tuple(state["std"]), before.get("origin", {})
        resizing = state.get("shorter_side", 0), state.get("resize", "shorter_side")
        if settings.weights is not None and not origin:
            raise ValueError("the state does not say what the run began with")
    elif start is not None:
        std = start.std
        same_size = settings.input_size == start.input_size
        resizing = (start.shorter_side if same_size else 0), start.resize
    train, val, test = (
        open_as_before(settings, kept, *resizing)
        if kept
        else (open_dataset(settings, split, *resizing) for split in ("train", "val", "test"))
    )
    assert train is not None
    assert val is not None
    if shared := in_both({"train": train, "val": val, "test": test}):
        if not kept:
            raise DataError(
                f"{printable(settings.data or '')}: {shared}; keep each file in one of them"
            )
        warn(f"warning: {shared}: what is held out says nothing about those that are learned from")
    fresh = mean is None
    if mean is None:
        own = start.mean if start else None
        mean, colour_covariance = measure(
            settings, train, progress or Progress(silent=True), own, ranks
        )
    elif not isinstance(mean, np.ndarray):
        mean = tuple(mean)
    noise = None
    if settings.colour_noise != "none":
        if colour_covariance is None:
            raise ValueError("the colour noise of an earlier part of the run needs its covariance")
        noise = ColourNoise.of_kind(settings.colour_noise, colour_covariance)

    if start is None:
        model = models.alexnet(settings.variant, len(train.classes), settings.dropout)
    else:
        model, origin = begun_with(start, train.classes, settings)
    classifier = Classifier(model, train.classes, mean, std, settings.input_size, *resizing)

    def augment(size: int) -> TrainTransform:
        options = AUGMENTATIONS[settings.augment]
        return TrainTransform(size, mean, std, variant.in_channels, colour_noise=noise, **options)

    loading: dict[str, Any] = {
        "workers": settings.workers,
        "processes": settings.worker_processes,
        "cache_bytes": settings.image_cache * 1_000_000,
    }
    device, size, seed = settings.device, settings.batch_size, settings.seed
    if origin:  # of few images, all are a batch
        size = min(size, len(train))
    first = augment(settings.size_at(0))
    train_data = loader_on(device, train, size, first, seed=seed, **loading)

    def held_out(dataset: Dataset, **loading: Any) -> Loader:
        size = min(-(-settings.batch_size // settings.shards), len(dataset))
        transform = classifier.transform
        return loader_on(device, dataset, size, transform, shuffle=False, **loading)

    if settings.initial_weights == "data" and fresh:
        nn.data_dependent_(model, first_images(train_data, INITIAL_IMAGES))

    ranks = Ranks(shards=settings.shards) if ranks is None else ranks
    if not ranks.alone:
        train_data.rows = ranks.rows_with_partners if settings.mixup else ranks.rows
    model.to(device)
    groups = None
    if origin:
        if settings.freeze:
            freeze(model, settings.freeze)
        groups = groups_of(model, settings, origin)
    optimizer = recipe.optimizer(model, groups)
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
        origin=origin,
        ranks=ranks,
        _kept=kept or None,
    )


def read_start(weights: str, variant: str | None = None) -> Classifier:
    """Read the classifier that a run begins with.

    `weights` is another run, a checkpoint or a file of other people's weights. Raises ValueError
    for those of another variant, FileNotFoundError or FileError where they cannot be read.
    """
    start = load_classifier(weights, variant=variant)
    own = start.model.variant.name
    if variant not in (None, own):
        raise ValueError(
            f"{printable(weights)} has weights of the variant {own}: leave --variant {variant} out"
        )
    return start


def kind_of_mean(start: Classifier) -> str:
    """Return which of `settings.MEANS` a classifier subtracts."""
    return "image" if isinstance(start.mean, np.ndarray) else "colour"


def begun_with(
    start: Classifier, classes: list[str], settings: Settings
) -> tuple[AlexNet, dict[str, str]]:
    """Return a network that begins with a classifier's weights, and its origin.

    Its last layer stays where the classes are the same, in the same order.
    """
    model, kept = start.model, start.classes == classes
    assert settings.weights is not None
    origin = {
        "source": settings.weights,
        "digest": digest(model),
        "head": "kept" if kept else "new",
    }
    if not kept:
        replace_head(model, len(classes), settings.seed)
    model.dropout = settings.dropout
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = settings.dropout
    if settings.freeze:
        origin["frozen"] = digest(model, frozen_layers(freeze(model, settings.freeze)))
    return model, origin


def resumed_run(
    settings: Settings, checkpoint: dict[str, Any], out: Path, ranks: Ranks | None = None
) -> Run:
    """Rebuild the run of a checkpoint, in the checkpoint's state."""
    try:
        images = RunImages(checkpoint, settings, out)
        images.check_there()
        run = new_run(settings, kept=images.kept, before=checkpoint, ranks=ranks)
        run.set_state(checkpoint)
        run.look_at_files()
    except ValueError as error:
        raise FileError(f"the run in {printable(out)} cannot be resumed: {error}") from error
    return run


def measure(
    settings: Settings,
    train: Dataset,
    progress: Progress,
    mean: tuple[float, ...] | np.ndarray | None,
    ranks: Ranks | None = None,
) -> tuple[tuple[float, ...] | np.ndarray, np.ndarray | None]:
    """Return the mean to subtract, and the colour covariance if needed.

    The mean is `mean` where that is given. Both come from one pass over all training images, where
    that pass has not been made before; a mean colour alone takes a few of them. Raises DataError
    if too many images cannot be read, WorkerError for a disk that does not answer.
    """
    found, measured = None, settings.mean == "image" and mean is None
    if measured or settings.colour_noise != "none":
        size = shorter_side_for(settings.input_size)
        cache, workers = settings.index_cache, settings.workers
        others = ranks if ranks is not None and ranks.size > 1 else None
        found = statistics_for(train, size, workers, cache, progress, others)
    covariance = found.colour_covariance if found and settings.colour_noise != "none" else None
    if found and measured:
        return found.mean_image.astype(np.float32), covariance
    mean = models.VARIANTS[settings.variant].pixels.mean if mean is None else mean
    if mean is None:
        mean = tuple(found.mean_colour.tolist()) if found else mean_colour(train)
    return mean, covariance
