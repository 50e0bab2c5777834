"""Everything that decides what a training run computes, in one small record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from tinyalex.backends.devices import parse
from tinyalex.backends.precision import PRECISIONS
from tinyalex.data.augment import KINDS
from tinyalex.data.layout import LAYOUTS
from tinyalex.data.worker_threads import WORKERS
from tinyalex.distributed.plan import STRATEGIES, has_towers
from tinyalex.interop.weights import array_names
from tinyalex.models import VARIANTS, Recipe
from tinyalex.models.alexnet import smallest_input
from tinyalex.schema import FLAG, NOTHING, TEXT, Rule, SettingError, number, one_of, shown, whole
from tinyalex.text import counted

AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "none": {"random_crop": False, "flip": False},
    "paper": {},
    "strong": {"scale": (0.35, 1.0), "jitter": 0.3},
}
"""Options of `data.TrainTransform`: the centre, crops and reflections, more for small data sets."""

MEANS = ("image", "colour")
"""Means to subtract: of every pixel, or one per colour (the variant's own, if any)."""

COLOUR_NOISES = ("none", *KINDS)
"""The paper's second augmentation, as `data.ColourNoise` explains."""

SCHEDULES: dict[str, dict[str, Any]] = {
    "constant": {},
    "plateau": {"factor": 0.1, "patience": 5, "max_reductions": 3},
    "step": {"epochs": 30, "gamma": 0.1},
    "discrete_exponential": {"target_factor": 250, "num_steps": 4},
    "cosine": {"warmup": 0.05},
}
"""Options of the schedules for variants whose own recipe has another one; epochs out of 90."""

INITIAL_WEIGHTS = ("variant", "data")
"""As the variant draws them, or scaled afterwards by `nn.data_dependent_`."""

GROWN_AFTER = 0.75
"""Share of the epochs after which images that grow have their full size."""

STEPS_PER_ROW = 10
"""Number of steps per row of metrics."""

CHANGEABLE = (
    "data",
    "epochs",
    "threads",
    "workers",
    "worker_processes",
    "image_cache",
    "index_cache",
    "device",
    "cuda_graph",
    "read_loss_every",
    "parallel",
)
"""Settings that a resumed run may change: where images lie, how they are loaded, its
length, and what computes it.
"""

CHANGEABLE_ON_REQUEST = (
    "augment",
    "mixup",
    "label_smoothing",
    "dropout",
    "lr",
    "schedule",
    "weight_decay",
    "precision",
)
"""Settings that it may change with --allow-change: how it learns from now on.

The rest it may never change: the network, the split of the data, and how steps are counted.
"""


MOST_PIXELS = 3584
"""The largest side of the square that a network sees."""

SCHEMA: dict[str, Rule] = {
    "variant": one_of(VARIANTS),
    "epochs": whole(1, 1_000_000_000),
    "batch_size": whole(1),
    "shards": whole(1, 65536),
    "parallel": one_of(STRATEGIES),
    "lr": Rule("a finite number > 0", lambda lr: number(0).holds(lr) and lr > 0),
    "weight_decay": number(0),
    "schedule": one_of(SCHEDULES),
    "input_size": whole(1, MOST_PIXELS),
    "data": Rule("a folder", lambda data: data is None or TEXT.holds(data)),
    "layout": NOTHING | one_of(LAYOUTS),
    "first_size": NOTHING | whole(1, MOST_PIXELS),
    "augment": one_of(AUGMENTATIONS),
    "mixup": number(0, 100),
    "label_smoothing": Rule("at least 0 and below 1", lambda e: number(0, 1).holds(e) and e < 1),
    "average": number(0, 1),
    "mean": one_of(MEANS),
    "colour_noise": one_of(COLOUR_NOISES),
    "initial_weights": one_of(INITIAL_WEIGHTS),
    "dropout": Rule("at least 0 and below 1", lambda p: number(0, 1).holds(p) and p < 1),
    "seed": whole(0, 2**64 - 1),
    "threads": whole(1),
    "workers": whole(1, 1024),
    "worker_processes": FLAG,
    "image_cache": Rule("a whole number of megabytes >= 0", whole(0).holds),
    "index_cache": FLAG,
    "device": TEXT,
    "precision": one_of(PRECISIONS),
    "cuda_graph": FLAG,
    "read_loss_every": whole(1, STEPS_PER_ROW),
    "weights": NOTHING | TEXT,
    "freeze": NOTHING | TEXT,
    "unfreeze_after": NOTHING | whole(1),
    "head_lr_factor": Rule("a number from 0 to 1e6", number(0, 1e6).holds),
    "layer_lr_decay": Rule("above 0, at most 1", lambda d: number(0, 1).holds(d) and d > 0),
}
"""Schema of the settings."""

TRANSFER = ("freeze", "unfreeze_after", "head_lr_factor", "layer_lr_decay")
"""Settings for a run that begins with weights."""


def check_settings(values: Mapping[str, Any], rules: Mapping[str, Rule] = SCHEMA) -> None:
    """Raise SettingError for the first of some settings that its rule refuses."""
    for name, rule in rules.items():
        if name in values and not rule.holds(values[name]):
            raise SettingError(name, f"must be {rule.expected}, got {shown(values[name])}")


def _absent(other: str, default: Any) -> Rule:
    """Return the rule of a setting that means nothing without another."""
    return Rule(f"given with --{other} only", lambda value: value == default)


@dataclass(frozen=True)
class Settings:
    """Checked settings of a run; equal ones give equal bits.

    Raises SettingError, a ValueError of one sentence, for a value that cannot be.
    """

    variant: str
    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    schedule: str
    input_size: int
    data: str | None = None
    """Folder of images; None is the embedded data set."""
    layout: str | None = None
    """Layout of that, "classes" or "splits", where it can be read in two ways."""
    augment: str = "paper"
    first_size: int | None = None
    """Side of the square in the first epoch, where it grows to `input_size` from that."""
    mixup: float = 0.0
    """Alpha of `mixing.mixed`; 0 for images as they are."""
    label_smoothing: float = 0.0
    average: float = 0.0
    """Share of the steps whose weights are averaged (`WeightAverage`); 0 for the last ones."""
    mean: str = "colour"
    colour_noise: str = "none"
    initial_weights: str = "variant"
    dropout: float = 0.5
    seed: int = 0
    shards: int = 1
    """Parts of a batch that are computed by themselves: the most processes that can share it."""
    parallel: str = "data"
    """Share of processes: rows of a batch, one of two towers, or parts of the linear layers."""
    threads: int = 1
    workers: int = WORKERS
    worker_processes: bool = False
    """True if the workers are processes, not threads."""
    image_cache: int = 1000
    """Megabytes of decoded images that stay in memory, for each split."""
    index_cache: bool = True
    """True to keep the mean and colours of a large folder's images for later runs."""
    device: str = "cpu"
    """Device: "cpu", "cuda" or "cuda:<number>"."""
    precision: str = "highest"
    """Precision of products on a GPU, as in `tinyalex.set_float32_matmul_precision`."""
    cuda_graph: bool = False
    """True if a GPU records a whole step once, and then repeats the record."""
    read_loss_every: int = 10
    """Steps between two looks at the loss, for each of which a GPU's work is waited for."""
    weights: str | None = None
    """Run, checkpoint or file of other people's weights that the run begins with."""
    freeze: str | None = None
    """Last of the layers that keep those weights."""
    unfreeze_after: int | None = None
    """Number of epochs after which these learn as well."""
    head_lr_factor: float = 1.0
    """Factor of a new last layer's rate."""
    layer_lr_decay: float = 1.0
    """Factor between the rates of a layer and of the one above it."""

    def __post_init__(self) -> None:
        check_settings(vars(self))
        variant, limits = VARIANTS[self.variant], {}
        if parse(self.device) == "cpu":
            without = "without a GPU (--device cuda)"
            limits["precision"] = Rule(f"highest {without}", lambda value: value == "highest")
            limits["cuda_graph"] = Rule(f"off {without}", lambda value: not value)
        least, most = variant.input_size, variant.input_size
        expected = f"{variant.input_size} for the variant {variant.name}"
        if variant.any_size:
            least, most = smallest_input(variant), MOST_PIXELS
            expected = f"at least {least} for the variant {variant.name}"
        limits["input_size"] = Rule(expected, whole(least, most).holds)
        if self.shards > 1:
            limits["cuda_graph"] = Rule("off beside --shards", lambda value: not value)
        if not has_towers(variant):
            grouped = any(getattr(layer, "groups", 1) == 2 for layer in variant.features)
            why = "whose response normalisation crosses the towers" if grouped else "which has none"
            expected = f"data or hybrid for the variant {variant.name}, {why}"
            limits["parallel"] = Rule(expected, lambda value: value != "towers")
        if self.first_size is not None:
            resizes, fits = "scale" in AUGMENTATIONS[self.augment], whole(least, self.input_size)
            expected = f"{least} to the input size {self.input_size}, beside --augment strong"
            limits["first_size"] = Rule(expected, lambda size: resizes and fits.holds(size))
        check_settings(vars(self), {**limits, **self._transfer_limits()})

    def _transfer_limits(self) -> dict[str, Rule]:
        """Return the rules of settings that go with weights alone."""
        if self.weights is None:
            defaults = {f.name: f.default for f in fields(self) if f.name in TRANSFER}
            return {name: _absent("weights", value) for name, value in defaults.items()}
        weights = array_names(VARIANTS[self.variant])[::2]
        *learning, head = (name.removesuffix(".weight") for name in weights)
        layers = f"a layer from {learning[0]} to {learning[-1]}, for {head} at least must learn"
        last, alone = self.epochs - 1, {}
        if self.freeze == learning[-1] and self.unfreeze_after is None:
            others = f"where {head} alone learns"
            alone["layer_lr_decay"] = Rule(f"1 {others}", lambda value: value == 1)
            alone["head_lr_factor"] = Rule(f"above 0 {others}", lambda value: value > 0)
        return {
            **alone,
            "initial_weights": Rule("variant beside weights", lambda value: value == "variant"),
            "freeze": Rule(layers, lambda name: name is None or name in learning),
            "unfreeze_after": _absent("freeze", None)
            if self.freeze is None
            else Rule(
                f"below the {counted(self.epochs, 'epoch')}", lambda n: n is None or n <= last
            ),
        }

    @property
    def recipe(self) -> Recipe:
        """The variant's recipe with these settings in place of its own.

        A schedule that counts epochs is stretched or squeezed: what torchvision does every 30 of
        90 epochs happens every 4 of 12.
        """
        recipe = VARIANTS[self.variant].recipe
        options, length = dict(SCHEDULES[self.schedule]), 90
        if self.schedule == recipe.schedule:
            options, length = dict(recipe.schedule_options), recipe.epochs
        if "epochs" in options:
            options["epochs"] = max(1, round(options["epochs"] * self.epochs / length))
        return replace(
            recipe,
            lr=self.lr,
            weight_decay=self.weight_decay,
            batch_size=self.batch_size,
            epochs=self.epochs,
            schedule=self.schedule,
            schedule_options=options,
            colour_noise=self.colour_noise,
        )

    def size_at(self, epoch: int) -> int:
        """Return the side of the square in an epoch, counted from 0.

        From `first_size` it grows evenly, in multiples of 16 pixels, to `input_size`.
        """
        done = epoch / (GROWN_AFTER * self.epochs)
        if self.first_size is None or done >= 1:
            return self.input_size
        side = self.first_size + (self.input_size - self.first_size) * done
        return min(max(self.first_size, round(side / 16) * 16), self.input_size)

    def differences(self, other: Settings) -> list[str]:
        """Return the names of the fields in which the two differ."""
        names = [field.name for field in fields(self)]
        return [name for name in names if getattr(self, name) != getattr(other, name)]
