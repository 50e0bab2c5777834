"""A training run: its parts, built from settings, and its state."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
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
)
from tinyalex.data.dataset import listed
from tinyalex.data.kept import Kept
from tinyalex.optim import SGD
from tinyalex.schedule import Schedule
from tinyalex.schema import check
from tinyalex.tensor import Tensor
from tinyalex.training.classifier import Classifier
from tinyalex.training.datasets import (
    data_digest,
    image_counts,
    in_both,
    kept_in,
    open_dataset,
    open_kept,
    other_data,
    what_changed,
)
from tinyalex.training.divergence import NOT_FINITE, not_finite
from tinyalex.training.measuring import measure
from tinyalex.training.progress import Progress, warn
from tinyalex.training.settings import AUGMENTATIONS, Settings
from tinyalex.training.state import CONTENT, RESUMABLE, State

INITIAL_IMAGES = 64
"""How many images the initial weights are suited to."""

PARTS = {"classifier", "settings", "state", "data", "optimizer", "schedule", "random"}
"""What a state consists of."""


@dataclass
class Run:
    """The parts of a run. `new_run` puts them together; `get_state` and `set_state` carry them."""

    settings: Settings
    classifier: Classifier
    optimizer: SGD
    schedule: Schedule
    train_data: Loader
    val_data: Loader
    test_data: Loader | None
    """Held-out images that nothing is chosen by; a folder of images has none."""
    colour_covariance: np.ndarray | None = None
    """That of the training set, if the colour noise needs it."""
    state: State = field(default_factory=State)
    _kept: dict[str, Kept] | None = None

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classifier.classes)

    @property
    def chance(self) -> float:
        """ln(classes): the loss of giving every class the same probability."""
        return math.log(self.num_classes)

    @property
    def total_steps(self) -> int:
        """Batches to learn from in the whole run."""
        return self.settings.epochs * len(self.train_data)

    def optimised(self) -> list[tuple[str, Tensor]]:
        """Return the name of each parameter and the parameter, in the optimiser's order."""
        names = {id(p): name for name, p in self.classifier.model.named_parameters()}
        groups = self.optimizer.param_groups
        return [(names[id(p)], p) for group in groups for p in group["params"]]

    def get_result(self) -> dict[str, Any]:
        """Return the classifier and where it comes from, as plain values and copies of arrays."""
        return {
            "classifier": self.classifier.get_state(),
            "settings": asdict(self.settings),
            "state": asdict(self.state),
            "data": self.data_digest(),
            "images": image_counts(self.classifier.classes, *self._labels()),
            "split": {split: images.get_state() for split, images in self.kept().items()},
        }

    def get_state(self) -> dict[str, Any]:
        """Return all that going on needs: the result so far and what training remembers."""
        return {
            **self.get_result(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": random.get_state(),
            "colour_covariance": self.colour_covariance,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on where `get_state` was called: bit for bit where the settings are the same.

        Where they are not, rates and schedule are those of this run. Raises ValueError, before
        anything is touched, if the state is of another network, optimiser or data set, or has
        values that are not finite.
        """
        check(state, {**CONTENT, "state": RESUMABLE})
        if missing := PARTS - state.keys():
            raise ValueError(f"there is no going on from this: it lacks {sorted(missing)}")
        if state["data"] != self.data_digest():
            now = image_counts(self.classifier.classes, *self._labels())
            where = self.settings.data or "the patterns"
            raise other_data(f"in {where} {what_changed(state.get('images'), now)}")
        before = kept_in(state, self.settings, "the state") if "split" in state else {}
        for split, images in self.kept().items() if before else ():
            if split not in before or not np.array_equal(before[split].text, images.text):
                raise other_data(f"in {self.settings.data} images have other names")
        self._check_arrays(state)
        position = State.from_dict(state["state"])
        if position.batch > len(self.train_data):
            length = len(self.train_data)
            raise ValueError(f"the state is {position.batch} batches into an epoch of {length}")
        optimizer, schedule = dict(state["optimizer"]), dict(state["schedule"])
        changed = self.settings.differences(Settings(**state["settings"]))
        if {"lr", "weight_decay", "schedule"} & set(changed):
            optimizer["param_groups"] = self.optimizer.state_dict()["param_groups"]
            schedule["base_lrs"] = list(self.schedule.base_lrs)
        if "schedule" in changed:
            schedule = self.schedule.state_dict()
        copy.copy(self.schedule).load_state_dict(schedule)  # it may complain
        before = random.get_state()
        random.set_state(state["random"])
        try:
            self.optimizer.load_state_dict(optimizer)
        except Exception:
            random.set_state(before)
            raise
        self.schedule.load_state_dict(schedule)
        self.classifier.model.load_state_dict(state["classifier"]["weights"])
        self.state = position

    def arrays_in(self, state: dict[str, Any]) -> list[tuple[str, Tensor, np.ndarray]]:
        """Return the weights and velocities in a state of this run.

        Before each stands what to call it, and the parameter that it is of.
        """
        own, weights = self.classifier.model.named_parameters(), state["classifier"]["weights"]
        velocities = zip(self.optimised(), state["optimizer"]["velocity"], strict=True)
        return [(name, parameter, weights[name]) for name, parameter in own] + [
            (f"the velocity of {name}", parameter, array)
            for (name, parameter), array in velocities
            if array is not None
        ]

    def _check_arrays(self, state: dict[str, Any]) -> None:
        """Raise ValueError unless names, shapes and dtypes are the run's, and all is finite."""
        own = {name for name, _ in self.classifier.model.named_parameters()}
        weights, velocities = state["classifier"]["weights"], state["optimizer"]["velocity"]
        if own != weights.keys() or len(self.optimised()) != len(velocities):
            differing = ", ".join(sorted(own ^ weights.keys())) or "the velocities"
            raise ValueError(f"these weights do not fit the network: it differs in {differing}")
        arrays = self.arrays_in(state)
        for what, like, array in arrays:
            if (array.shape, array.dtype) != (like.shape, like.dtype):
                raise ValueError(
                    f"these weights do not fit the network: {what} must be {like.dtype} of "
                    f"shape {like.shape}, not {array.dtype} of shape {array.shape}"
                )
        if wrong := not_finite({what: array for what, _, array in arrays}):
            raise ValueError(f"{wrong} {NOT_FINITE}")

    def _labels(self) -> list[np.ndarray]:
        return [loader.dataset.labels for loader in (self.train_data, self.val_data)]

    def data_digest(self) -> str:
        """Return a fingerprint of the class names and of the labels of both splits, in order."""
        return data_digest(self.classifier.classes, *self._labels())

    def kept(self) -> dict[str, Kept]:
        """Return which images of a folder each split has."""
        if self._kept is None:
            self._kept = {split: images.kept() for split, images in self._folders().items()}
            self.look_at_files()
        return self._kept

    def look_at_files(self) -> None:
        """Note the marks of the files held out; raise DataError where they have others by now."""
        kept = self.kept()
        for split, images in self._folders().items():
            if split != "train":
                now = kept[split].marked(images.paths)
                if changed := kept[split].changed(now):
                    raise other_data(
                        f"of the {len(images)} images that it held out in {images.folder}, "
                        f"{len(changed)} have other contents than then: {listed(changed)}"
                    )
                if kept[split].marks is None:
                    kept[split] = now

    def _folders(self) -> dict[str, ImageFolder]:
        """Return the splits that are folders."""
        loaders = {"train": self.train_data, "val": self.val_data, "test": self.test_data}
        images = {split: loader and loader.dataset for split, loader in loaders.items()}
        return {split: data for split, data in images.items() if isinstance(data, ImageFolder)}


def open_as_before(
    settings: Settings, kept: dict[str, Kept]
) -> tuple[Dataset, Dataset, Dataset | None]:
    """Return the splits of a run as it had them. Raises DataError where there are others now."""
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
    """Return the first `count` images of the first epoch, or all if there are fewer."""
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
    augment = TrainTransform(
        settings.input_size,
        mean,
        variant.pixels.std,
        variant.in_channels,
        colour_noise=noise,
        **AUGMENTATIONS[settings.augment],
    )
    loading: dict[str, Any] = {
        "workers": settings.workers,
        "processes": settings.worker_processes,
        "cache_bytes": settings.image_cache * 1_000_000,
    }
    device, size, seed = settings.device, settings.batch_size, settings.seed
    train_data = loader_on(device, train, size, augment, seed=seed, **loading)

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
        _kept=kept or None,
    )
