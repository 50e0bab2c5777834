"""A trained network, with what it takes to classify images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tinyalex.data import RESIZES, EvalTransform, TenCropTransform, resize_image
from tinyalex.data.class_names import distinct, imagenet
from tinyalex.interop.weights import Weights, array_names
from tinyalex.models import VARIANTS, AlexNet, alexnet
from tinyalex.models.alexnet import parameter_shapes
from tinyalex.models.recipe import IMAGENET_PIXELS
from tinyalex.schema import (
    ARRAY,
    TEXT,
    Each,
    Maybe,
    array_of,
    check,
    list_of,
    number,
    one_of,
    whole,
)
from tinyalex.text import counted
from tinyalex.training.datasets import shorter_side_for
from tinyalex.training.evaluation import averaged, log_probabilities

CROPS: dict[int, type[EvalTransform]] = {1: EvalTransform, 10: TenCropTransform}
"""Crops of an image for an answer: the centre alone, or the paper's ten views."""


SIDE = whole(0, 4096)
"""The shorter side of images, in pixels: four times as long, they still fit in memory."""

SCHEMA = {
    "variant": TEXT,
    "classes": [TEXT],
    "mean": list_of(number(-1e6, 1e6), 1, 3) | array_of("float32", None, None, 3),
    "std": list_of(number(1e-6, 1e6), 1, 3),
    "input_size": SIDE,
    "shorter_side": Maybe(SIDE),
    "resize": Maybe(one_of(RESIZES)),
    "channels": Maybe(TEXT),
    "dropout": number(0, 1),
    "weights": Each(ARRAY),
}


def check_state(state: Any) -> None:
    """Raise ValueError for what no classifier's `get_state` returns, before anything is built.

    Of arrays only the shapes are looked at, for they decide how much memory it all takes.
    """
    check(state, SCHEMA, "classifier")
    classes, weights = state["classes"], state["weights"]
    if not classes or len(set(classes)) < len(classes):
        raise ValueError("the names of the classes must differ, and there must be one at least")
    if state["variant"] in VARIANTS:
        expected = parameter_shapes(VARIANTS[state["variant"]], len(classes))
        if differing := ", ".join(sorted(expected.keys() ^ weights.keys())):
            raise ValueError(f"these weights do not fit the network: it differs in {differing}")
        for name, shape in expected.items():
            if weights[name].shape != shape:
                raise ValueError(
                    f"these weights do not fit the network: {name} must have shape {shape} for "
                    f"{counted(len(classes), 'class')}, not {weights[name].shape}"
                )


@dataclass
class Classifier:
    """Trained network with its classes and preprocessing.

    `mean` and `std` are per colour in units of 0..255, or `mean` is an image of the mean of every
    pixel, float32 [shorter_side, shorter_side, 3]; `input_size` is the side of the square that the
    network sees, cut from an image whose shorter side was scaled to `shorter_side` pixels
    (`shorter_side_for` where none is given) by the rule `resize` of `data.RESIZES`.
    """

    model: AlexNet
    classes: list[str]
    mean: tuple[float, ...] | np.ndarray
    std: tuple[float, ...]
    input_size: int
    shorter_side: int = 0
    resize: str = "shorter_side"

    def __post_init__(self) -> None:
        self.shorter_side = self.shorter_side or shorter_side_for(self.input_size)
        rules = {"input_size": whole(1, self.shorter_side), "resize": one_of(RESIZES)}
        check({name: getattr(self, name) for name in rules}, rules)
        shape = (self.shorter_side, self.shorter_side, 3)
        if isinstance(self.mean, np.ndarray) and self.mean.shape != shape:
            raise ValueError(f"the mean image has shape {self.mean.shape}, expected {shape}")

    @property
    def channels(self) -> str:
        """Channels that the network takes: "RGB" or "grey"."""
        return "RGB" if self.model.variant.in_channels == 3 else "grey"

    @property
    def resizing(self) -> tuple[int, str]:
        """Size and rule of resizing, as data sets take them."""
        return self.shorter_side, self.resize

    @property
    def mean_colour(self) -> tuple[float, ...]:
        """The mean of each colour, also where the mean is an image."""
        if isinstance(self.mean, np.ndarray):
            return tuple(self.mean.mean(axis=(0, 1), dtype=np.float64).tolist())
        return self.mean

    @property
    def transform(self) -> EvalTransform:
        """The central crop, normalised as in training."""
        return self.transform_for(1)

    def transform_for(self, crops: int) -> EvalTransform:
        """Return `transform` for 1 crop, and for 10 those of the paper's section 4.1."""
        if crops not in CROPS:
            raise ValueError(f"crops must be 1 or 10, got {crops!r}")
        channels = self.model.variant.in_channels
        return CROPS[crops](self.input_size, self.mean, self.std, channels)

    def seen(self, image: np.ndarray) -> np.ndarray:
        """Return what the network sees of a uint8 RGB image: [input_size, input_size, 3]."""
        transform, resized = self.transform, resize_image(image, *self.resizing)
        region = transform.region(resized)
        top, left, _ = transform.choose(region, np.random.default_rng(0))
        return region[top : top + self.input_size, left : left + self.input_size]

    def inputs(self, images: Sequence[np.ndarray], crops: int = 1) -> np.ndarray:
        """Return uint8 RGB images of any size as the network takes them.

        float32 [N, channels, size, size] for the central crop, [N, 10, channels, size, size] for
        ten.
        """
        transform, unused = self.transform_for(crops), np.random.default_rng(0)
        resized = (resize_image(image, *self.resizing) for image in images)
        views = [transform(image, unused) for image in resized]
        return np.moveaxis(np.stack(views), -1, -3)

    def probabilities(
        self, images: Sequence[np.ndarray], batch_size: int = 32, crops: int = 1
    ) -> np.ndarray:
        """Return class probabilities [N, C] for uint8 RGB images of any size.

        With 10 crops it is the mean over the paper's ten views (section 4.1). `batch_size` views
        go through the network at a time.
        """
        self.model.eval()
        step = max(1, batch_size // crops)
        found = [np.empty((0, len(self.classes)), np.float32)]
        for start in range(0, len(images), step):
            views = self.inputs(images[start : start + step], crops)
            found.append(averaged(log_probabilities(self.model, views)))
        return np.exp(np.concatenate(found))

    def get_state(self) -> dict[str, Any]:
        """Return everything as plain values and arrays, for `tinyalex.save`."""
        return {
            "variant": self.model.variant.name,
            "classes": list(self.classes),
            "mean": self.mean if isinstance(self.mean, np.ndarray) else list(self.mean),
            "std": list(self.std),
            "input_size": self.input_size,
            "shorter_side": self.shorter_side,
            "resize": self.resize,
            "channels": self.channels,
            "dropout": self.model.dropout,
            "weights": self.model.state_dict(),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Classifier:
        """Rebuild the classifier; raise ValueError where the parts do not fit.

        A state without "shorter_side", "resize" or "channels", as they once were, has the usual.
        """
        check_state(state)
        if state["variant"] not in VARIANTS:
            known = ", ".join(VARIANTS)
            raise ValueError(f"the variant {state['variant']!r} is unknown here; known: {known}")
        model = alexnet(state["variant"], len(state["classes"]), state["dropout"])
        model.load_state_dict(state["weights"])
        mean, std = state["mean"], tuple(state["std"])
        mean = mean if isinstance(mean, np.ndarray) else tuple(mean)
        size, side = state["input_size"], state.get("shorter_side", 0)
        resize = state.get("resize", "shorter_side")
        classifier = cls(model, list(state["classes"]), mean, std, size, side, resize)
        if (channels := state.get("channels", classifier.channels)) != classifier.channels:
            raise ValueError(
                f"these weights expect pixels in {channels!r}, here they come in "
                f"{classifier.channels!r}: reorder the mean and the input channels of conv1"
            )
        _ = classifier.transform  # refuses what is not finite
        return classifier

    @classmethod
    def from_weights(cls, weights: Weights, classes: Sequence[str] | None = None) -> Classifier:
        """Return the classifier that `complete(weights, classes)` describe.

        Outputs without names are "class 0", "class 1", ... Raises ValueError where the parts do not
        fit.
        """
        whole = complete(weights, classes)
        state = {
            "variant": whole.variant,
            "classes": whole.classes or [f"class {n}" for n in range(whole.num_classes)],
            "mean": whole.mean if isinstance(whole.mean, np.ndarray) else list(whole.mean or ()),
            "std": list(whole.std or ()),
            "input_size": whole.input_size,
            "shorter_side": whole.shorter_side,
            "resize": whole.resize,
            "dropout": 0.5,
            "weights": whole.state_dict(),
        }
        return cls.from_state(state)

    def weights(self, source: str = "tinyalex") -> Weights:
        """Return the network as `Weights`, to be exported or learned from."""
        state = self.model.state_dict()
        arrays = (array.astype(np.float32, copy=False) for array in state.values())
        return Weights(
            dict(zip(array_names(self.model.variant), arrays, strict=True)),
            variant=self.model.variant.name,
            source=source,
            mean=self.mean,
            std=self.std,
            resize=self.resize,
            shorter_side=self.shorter_side,
            input_size=self.input_size,
            classes=list(self.classes),
        )


def complete(weights: Weights, classes: Sequence[str] | None = None) -> Weights:
    """Return weights with what they do not say filled in, and noted.

    `classes` names the outputs, else the weights do; a thousand without names are ImageNet's. Names
    that occur more than once get their number. Pixels are scaled as for the variant, with
    ImageNet's mean colour where that is measured on the images. Raises ValueError for another
    number of names.
    """
    if classes is not None:
        weights = weights.with_classes(classes)
    pixels, names, notes = VARIANTS[weights.variant].pixels, weights.classes, [*weights.notes]
    if names is None and weights.num_classes == len(imagenet()):
        names = list(imagenet().values())
        notes.append("the file names no classes: a thousand are ImageNet's")
    elif names is not None and len(set(names)) < len(names):
        names = distinct(names)
        notes.append("names that occur more than once have their number")
    mean = pixels.mean if weights.mean is None else weights.mean
    if mean is None:
        mean = IMAGENET_PIXELS.mean
        notes.append("the file has no mean: ImageNet's colour is subtracted")
    size = weights.input_size or VARIANTS[weights.variant].input_size
    return replace(
        weights,
        mean=mean,
        std=weights.std or pixels.std,
        shorter_side=weights.shorter_side or shorter_side_for(size),
        input_size=size,
        classes=names,
        notes=tuple(notes),
    )
