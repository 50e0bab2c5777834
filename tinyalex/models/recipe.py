"""Settings of a variant besides its layers: input scale and training recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tinyalex.nn import Module
from tinyalex.optim import SGD, Group, parameter_groups
from tinyalex.schedule import Constant, Cosine, DiscreteExponential, Plateau, Schedule, Step


@dataclass(frozen=True)
class PixelScale:
    """Input normalisation: ``(pixel - mean) / std`` per colour, pixels in 0..255.

    A mean of None is to be measured on the training set: ``measured`` is "colour" for one mean a
    colour, or "image" for one of every pixel.
    """

    mean: tuple[float, ...] | None
    std: tuple[float, ...]
    measured: str = "colour"


RAW_PIXELS = PixelScale(mean=None, std=(1.0, 1.0, 1.0), measured="image")
IMAGENET_PIXELS = PixelScale(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))


@dataclass(frozen=True)
class Recipe:
    """Training recipe of a variant.

    ``schedule_options`` count in epochs where they count time. Where nothing is known of a
    schedule, it is the fixed one of the 2012 source, as good there as lowering the rate by hand.
    ``colour_noise`` is "none" or a kind of `data.ColourNoise`.
    """

    lr: float
    momentum: float
    weight_decay: float
    batch_size: int
    epochs: int
    schedule: str = "discrete_exponential"
    schedule_options: Mapping[str, Any] = field(default_factory=dict)
    update: str = "torch"
    bias_lr_factor: float = 1.0
    bias_decay_factor: float = 1.0
    colour_noise: str = "none"

    def optimizer(self, model: Module, groups: list[Group] | None = None) -> SGD:
        """Return the recipe's optimiser for ``model``, or for groups of its parameters.

        By default these are two, weights and biases.
        """
        return SGD(
            groups or parameter_groups(model, self.bias_lr_factor, self.bias_decay_factor),
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            update=self.update,
        )

    def make_schedule(self, optimizer: SGD, steps_per_epoch: int) -> Schedule:
        """Return the recipe's schedule, its epochs converted to steps."""
        options = dict(self.schedule_options)
        if self.schedule == "constant":
            return Constant(optimizer)
        if self.schedule == "plateau":
            return Plateau(optimizer, **options)
        if self.schedule == "step":
            step_size = options.pop("epochs") * steps_per_epoch
            return Step(optimizer, step_size, **options)
        if self.schedule == "discrete_exponential":
            total_steps = self.epochs * steps_per_epoch
            return DiscreteExponential(optimizer, total_steps, **options)
        if self.schedule == "cosine":
            total_steps = self.epochs * steps_per_epoch
            return Cosine(optimizer, total_steps, int(options.get("warmup", 0.0) * total_steps))
        raise ValueError(
            "the schedule must be one of constant, plateau, step, discrete_exponential, cosine; "
            f"got {self.schedule!r}"
        )
