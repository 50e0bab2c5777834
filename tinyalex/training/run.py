"""Training run: its parts, and their state in a checkpoint."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from tinyalex import random
from tinyalex.data import (
    Batch,
    ImageFolder,
    Loader,
)
from tinyalex.data.kept import Kept
from tinyalex.data.transforms import Transform
from tinyalex.models import AlexNet
from tinyalex.optim import SGD, Group
from tinyalex.schedule import Schedule
from tinyalex.schema import (
    ARRAY,
    DICT,
    EXACT,
    FLAG,
    NOTHING,
    TEXT,
    Each,
    Maybe,
    Rule,
    Schema,
    array_of,
    check,
    number,
    one_of,
    whole,
)
from tinyalex.tensor import Tensor
from tinyalex.text import counted, listed, printable
from tinyalex.training.average import WeightAverage
from tinyalex.training.classifier import SCHEMA as CLASSIFIER
from tinyalex.training.classifier import Classifier
from tinyalex.training.datasets import (
    data_digest,
    image_counts,
    kept_in,
    other_data,
    what_changed,
)
from tinyalex.training.divergence import NOT_FINITE, not_finite
from tinyalex.training.metrics import Average
from tinyalex.training.mixing import with_soft_targets
from tinyalex.training.ranks import Ranks
from tinyalex.training.settings import Settings
from tinyalex.training.transfer import frozen_layers, layer_rates


@dataclass
class State:
    """The state of a run besides weights, velocity, schedule and random state."""

    epoch: int = 0
    """Epochs completed."""
    batch: int = 0
    """Batches learned from in the epoch under way."""
    step: int = 0
    """Batches learned from since the beginning."""
    since_row: Average = field(default_factory=Average)
    since_epoch: Average = field(default_factory=Average)
    best_top1: float = -1.0
    best_loss: float = math.inf
    """The validation loss of the best epoch; NaN, beside which no other is lower, if not known."""
    best_epoch: int = 0
    stuck_steps: int = 0
    """For how many steps the loss has been that of guessing."""
    rows: int = 0
    """Number of rows of metrics.jsonl that belong to this state."""
    seconds: float = 0.0
    """Time spent training, interruptions left out."""

    def is_best(self, top1: float, loss: float) -> bool:
        """Tell whether an epoch is better, by accuracy, then by loss."""
        if top1 == self.best_top1:
            return loss < self.best_loss
        return top1 > self.best_top1

    def count(self, result: Average) -> None:
        """Take note of a batch that was learned from."""
        self.step += 1
        self.batch += 1
        self.since_row += result
        self.since_epoch += result

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> State:
        """Rebuild what `dataclasses.asdict` took apart. Raises ValueError for anything else."""
        check(values, SCHEMA)
        averages = {name: Average(**values[name]) for name in ("since_row", "since_epoch")}
        try:
            return cls(**{"best_loss": math.nan, **values, **averages})
        except TypeError as error:
            raise ValueError(f"this is not where a run was: {error}") from error


def _schema(share: float) -> dict[str, Schema]:
    count = whole(0, int(share * EXACT))
    average = {"loss_sum": number(), "correct": count, "count": count}
    return {
        **dict.fromkeys(("epoch", "batch", "step", "stuck_steps", "rows", "best_epoch"), count),
        **dict.fromkeys(("since_row", "since_epoch"), average),
        "best_top1": number(-1, 1),
        "best_loss": Maybe(Rule("a number", lambda value: type(value) is float)),
        "seconds": number(0, share * 1e12),
    }


SCHEMA = _schema(1)
"""Schema of a state. Before best_loss was kept, the first of equals was the best."""

RESUMABLE = _schema(0.5)
"""Schema of a state to resume: with room for all that a run will count."""

HEADS = ("new", "kept")
"""Fates of the last layer of the weights that a run began with."""

_RATE, _WORD = number(0, 1e38), whole(0, 2**128 - 1)

CONTENT = {
    "classifier": CLASSIFIER,
    "settings": Maybe(DICT),
    "state": Maybe(SCHEMA),
    "data": Maybe(TEXT),
    "images": Maybe(Each(whole())),
    "split": Maybe(
        Each(
            {
                "folder": TEXT,
                "names": array_of("uint8", None),
                "marks": NOTHING | array_of("int64", None),
                "rules": whole(0, 99),
            }
        )
    ),
    "optimizer": Maybe(
        {
            "velocity": [NOTHING | ARRAY],
            "param_groups": [
                {
                    **dict.fromkeys(("lr", "momentum", "weight_decay"), _RATE),
                    **dict.fromkeys(("lr_factor", "decay_factor"), _RATE),
                    "dampening": number(-1e38, 1e38),
                    "nesterov": FLAG,
                    "update": TEXT,
                    "params": whole(),
                }
            ],
        }
    ),
    "schedule": Maybe(
        {
            "schedule": TEXT,
            "base_lrs": [_RATE],
            **dict.fromkeys(("step_size", "total_steps", "num_steps"), Maybe(whole(1))),
            **dict.fromkeys(("reduction", "gamma", "threshold"), Maybe(number(0, 1))),
            **dict.fromkeys(("patience", "max_reductions"), Maybe(whole())),
            **dict.fromkeys(("waited", "reductions"), Maybe(whole())),
            "best": Maybe(Rule("a number", lambda best: type(best) is float and best >= 0)),
            "target_factor": Maybe(number(1e-9, 1e300)),
        }
    ),
    "random": Maybe(
        {
            "generator": {
                "bit_generator": TEXT,
                "state": {"state": _WORD, "inc": _WORD},
                "has_uint32": whole(0, 1),
                "uinteger": whole(0, 2**32 - 1),
            },
            "seed": whole(-(2**63), 2**64 - 1),
            "step": Maybe(NOTHING | whole()),
            "draws": whole(),
        }
    ),
    "colour_covariance": Maybe(NOTHING | array_of("float64", 3, 3)),
    "learning": Maybe(Each(ARRAY)),
    "origin": Maybe(
        {
            **dict.fromkeys(("source", "digest"), TEXT),
            "head": one_of(HEADS),
            "frozen": Maybe(TEXT),
        }
    ),
}
"""Schema of what `Run.get_state` returns; a best network lacks what only resuming needs."""

PARTS = {"classifier", "settings", "state", "data", "optimizer", "schedule", "random"}
"""Parts that a state must have."""


def groups_of(model: AlexNet, settings: Settings, origin: Mapping[str, str]) -> list[Group]:
    """Return the optimiser's groups where a run begins with weights."""
    head_factor = settings.head_lr_factor if origin["head"] == "new" else 1.0
    biases = settings.recipe.bias_lr_factor, settings.recipe.bias_decay_factor
    return layer_rates(model, head_factor, settings.layer_lr_decay, *biases)


@dataclass
class Run:
    """Parts of a run, saved by `get_state`, restored by `set_state`."""

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
    average: WeightAverage | None = None
    augment: Callable[[int], Transform] | None = None
    """Function that returns the training transform for a size, if that grows."""
    state: State = field(default_factory=State)
    ranks: Ranks = field(default_factory=Ranks)
    """Processes that train it together."""
    origin: dict[str, str] = field(default_factory=dict)
    """Weights that it began with: "source", "digest", "head", one of `HEADS`, and the digest of
    the layers that were "frozen"; empty where it began with random ones."""
    _kept: dict[str, Kept] | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classifier.classes)

    @property
    def chance(self) -> float:
        """ln(classes): the loss of giving every class the same probability."""
        return math.log(self.num_classes)

    @property
    def total_steps(self) -> int:
        """Batches to learn from in the whole run."""
        return self.settings.epochs * len(self.train_data)

    def batches(
        self, epoch: int, start_batch: int = 0, data: Loader | None = None
    ) -> Iterator[Batch]:
        """Yield an epoch's batches, by default of images, to learn from."""
        settings, size = self.settings, self.settings.size_at(epoch)
        if self.augment is not None and size != self.train_data.transform.shape[0]:
            self.train_data.use(self.augment(size))
        mixing = settings.label_smoothing, settings.mixup, settings.seed, epoch
        source = data or self.train_data
        batches: Iterator[Batch] = source.epoch(epoch, start_batch)
        if not self.ranks.alone:
            batches = self.ranks.watched(batches, source)
        for batch in batches:
            mixed = with_soft_targets(batch, self.num_classes, *mixing)
            yield self.ranks.own_rows(mixed, source.batch_size) if settings.mixup else mixed

    def averaged(self) -> AbstractContextManager[None]:
        """Let the classifier have the averaged weights, if any, for a while."""
        return nullcontext() if self.average is None else self.average.in_use()

    @property
    def frozen(self) -> list[str]:
        """The names of the layers that learn nothing now."""
        return frozen_layers(self.classifier.model)

    def unfreeze_if_due(self, epoch: int) -> list[str]:
        """Unfreeze all layers if due in `epoch`, counted from 0; return their names.

        The optimiser gets groups for them, whose velocities begin with zeros. The schedule
        continues: their rates are as far down its curve as the others.
        """
        after, frozen = self.settings.unfreeze_after, self.frozen
        if after is None or epoch < after or not frozen:
            return []
        own = {id(parameter) for _, parameter in self.optimised()}
        self.classifier.model.requires_grad_()
        for group in groups_of(self.classifier.model, self.settings, self.origin):
            if id(group["params"][0]) not in own:
                self.optimizer.add_param_group(group)
        self.schedule.take_new_groups()
        return frozen

    def optimised(self) -> list[tuple[str, Tensor]]:
        """Return (name, parameter) of each parameter, in the optimiser's order."""
        names = {id(p): name for name, p in self.classifier.model.named_parameters()}
        groups = self.optimizer.param_groups
        return [(names[id(p)], p) for group in groups for p in group["params"]]

    def get_result(self) -> dict[str, Any]:
        """Return the classifier and its origin, as plain values and arrays."""
        with self.averaged():
            classifier = self.classifier.get_state()
        return {
            "classifier": classifier,
            "settings": asdict(self.settings),
            "state": asdict(self.state),
            "data": self.data_digest(),
            "images": image_counts(self.classifier.classes, *self._labels()),
            "split": {split: images.get_state() for split, images in self.kept().items()},
            **({"origin": self.origin} if self.origin else {}),
        }

    def get_state(self) -> dict[str, Any]:
        """Return all that resuming needs; "learning" are the weights beside averaged ones."""
        learning = {"learning": self.classifier.model.state_dict()} if self.average else {}
        return {
            **self.get_result(),
            **learning,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": random.get_state(),
            "colour_covariance": self.colour_covariance,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Resume from a `get_state`, bit for bit with the same settings.

        Where they are not, rates and schedule are those of this run. Raises ValueError, before
        anything is touched, if the state is of another network, optimiser or data set, or has
        values that are not finite.
        """
        check(state, {**CONTENT, "state": RESUMABLE})
        if missing := PARTS - state.keys():
            raise ValueError(f"this cannot be resumed: it lacks {sorted(missing)}")
        if state["data"] != self.data_digest():
            now = image_counts(self.classifier.classes, *self._labels())
            where = self.settings.data or "the patterns"
            raise other_data(f"in {printable(where)} {what_changed(state.get('images'), now)}")
        before = kept_in(state, self.settings, "the state") if "split" in state else {}
        for split, images in self.kept().items() if before else ():
            if split not in before or not np.array_equal(before[split].text, images.text):
                raise other_data(
                    f"in {printable(self.settings.data or '')} images have other names"
                )
        position = State.from_dict(state["state"])
        self.unfreeze_if_due(position.epoch)
        self._check_arrays(state)
        if position.batch > len(self.train_data):
            length = len(self.train_data)
            raise ValueError(
                f"the state is {counted(position.batch, 'batch')} into an epoch of {length}"
            )
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
        weights = state["classifier"]["weights"]
        self.classifier.model.load_state_dict(state.get("learning", weights))
        if self.average is not None:
            self.average.load(weights)
        self.state = position

    def arrays_in(self, state: dict[str, Any]) -> list[tuple[str, Tensor, np.ndarray]]:
        """Return the weights and velocities in a state of this run.

        Before each stands what to call it, and the parameter that it is of.
        """
        own = list(self.classifier.model.named_parameters())
        sets = {"": state["classifier"]["weights"], "the learning ": state.get("learning", {})}
        velocities = zip(self.optimised(), state["optimizer"]["velocity"], strict=True)
        return [
            (f"{which}{name}", parameter, weights[name])
            for which, weights in sets.items()
            for name, parameter in own
            if weights
        ] + [
            (f"the velocity of {name}", parameter, array)
            for (name, parameter), array in velocities
            if array is not None
        ]

    def _check_arrays(self, state: dict[str, Any]) -> None:
        """Raise ValueError unless names, shapes and dtypes fit and values are finite."""
        own = {name for name, _ in self.classifier.model.named_parameters()}
        weights, velocities = state["classifier"]["weights"], state["optimizer"]["velocity"]
        others = state.get("learning", weights).keys()
        if not own == weights.keys() == others or len(self.optimised()) != len(velocities):
            differing = ", ".join(sorted(own ^ weights.keys() | own ^ others)) or "the velocities"
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
        """Return a digest of class names and labels of both splits."""
        return data_digest(self.classifier.classes, *self._labels())

    def kept(self) -> dict[str, Kept]:
        """Return which images of a folder each split has."""
        if self._kept is None:
            self._kept = {split: images.kept() for split, images in self._folders().items()}
            self.look_at_files()
        return self._kept

    def look_at_files(self) -> None:
        """Record the marks of held-out files; raise DataError if they have changed."""
        kept = self.kept()
        for split, images in self._folders().items():
            if split != "train":
                now = kept[split].marked(images.paths)
                if changed := kept[split].changed(now):
                    raise other_data(
                        f"of the {counted(len(images), 'image')} that it held out in "
                        f"{printable(images.folder)}, {counted(len(changed), 'has', 'have')} other "
                        f"contents than then: {listed(changed)}"
                    )
                if kept[split].marks is None:
                    kept[split] = now

    def _folders(self) -> dict[str, ImageFolder]:
        """Return the splits that are folders."""
        loaders = {"train": self.train_data, "val": self.val_data, "test": self.test_data}
        images = {split: loader and loader.dataset for split, loader in loaders.items()}
        return {split: data for split, data in images.items() if isinstance(data, ImageFolder)}
