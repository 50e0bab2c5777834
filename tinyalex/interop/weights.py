"""Weights of an AlexNet, with their preprocessing and classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from tinyalex.files import FileError
from tinyalex.models import VARIANTS, AlexNet, Variant, alexnet
from tinyalex.models.alexnet import parameter_shapes
from tinyalex.models.spec import Conv, Linear
from tinyalex.text import counted


@dataclass(frozen=True)
class Weights:
    """Arrays of one AlexNet, independent of the format that they came in.

    `arrays` has "conv1.weight", "conv1.bias", ..., "fc8.bias", all float32: convolutions
    [K, C / groups, H, W], linear layers [out, in] with `in` in the order C, H, W, and conv1 takes
    RGB. `mean` and `std` are in units of 0..255 and RGB: one number per colour, or a mean image
    float32 [shorter_side, shorter_side, 3]; None is what the variant has. An image is resized to
    `shorter_side` by the rule `resize` of `data.RESIZES`, and a square of `input_size` pixels is
    cut from it; 0 is the usual size. `layout` and `channels` say how the file had them, `source`
    what it is, `notes` what was read.
    """

    arrays: Mapping[str, np.ndarray] = field(repr=False)
    variant: str
    source: str
    mean: tuple[float, ...] | np.ndarray | None = field(default=None, repr=False)
    std: tuple[float, ...] | None = None
    resize: str = "shorter_side"
    shorter_side: int = 0
    input_size: int = 0
    classes: list[str] | None = None
    layout: str = "K, C, H, W"
    channels: str = "RGB"
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_arrays(self.arrays, self.variant)
        if self.classes is not None and len(self.classes) != self.num_classes:
            named = len(self.classes)
            raise FileError(
                f"it names {counted(named, 'class')}, but the network has {self.num_classes}"
            )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.arrays[array_names(VARIANTS[self.variant])[-1]])

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return the arrays under the names of the variant's parameters."""
        variant = VARIANTS[self.variant]
        pairs = zip(parameter_shapes(variant, 1), array_names(variant), strict=True)
        return {name: self.arrays[own] for name, own in pairs}

    def network(self, dropout: float = 0.5) -> AlexNet:
        """Return the AlexNet that has these weights."""
        model = alexnet(self.variant, self.num_classes, dropout)
        model.load_state_dict(self.state_dict())
        return model

    def with_classes(self, classes: Iterable[str]) -> Weights:
        """Return these weights with the names of the classes, one per output."""
        named = list(classes)
        if len(named) != self.num_classes:
            raise ValueError(
                f"the network has {counted(self.num_classes, 'class')}, got "
                f"{counted(len(named), 'name')}: give one for each, in the order of its outputs"
            )
        return replace(self, classes=named)

    def with_mean(self, mean: tuple[float, ...] | np.ndarray) -> Weights:
        """Return these weights with a mean, to whose size images are resized."""
        if not isinstance(mean, np.ndarray):
            return replace(self, mean=mean)
        size = self.input_size or VARIANTS[self.variant].input_size
        if len(mean) < size:
            raise FileError(
                f"the mean image has {len(mean)} pixels, fewer than the {size} of the variant "
                f"{self.variant!r}"
            )
        return replace(self, mean=mean, shorter_side=len(mean))


def array_names(variant: Variant) -> list[str]:
    """Return the names of a variant's arrays: conv1.weight ... fc8.bias."""
    layers = (*variant.features, *variant.classifier)
    kinds = {Conv: "conv", Linear: "fc"}
    weighted = [kinds[type(layer)] for layer in layers if type(layer) in kinds]
    return [
        f"{kind}{number}.{part}"
        for number, kind in enumerate(weighted, start=1)
        for part in ("weight", "bias")
    ]


def expected_shapes(variant: Variant, num_classes: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a variant's arrays, under the names of `Weights.arrays`."""
    shapes = parameter_shapes(variant, num_classes).values()
    return dict(zip(array_names(variant), shapes, strict=True))


def _expected_for(
    variant: Variant, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Return `expected_shapes` for as many classes as last biases."""
    bias = shapes.get(array_names(variant)[-1]) or (1,)
    return expected_shapes(variant, max(1, bias[0]))  # no network has none


def fitting_variants(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return the variants whose layers have these shapes."""

    def fits(variant: Variant) -> bool:
        return _expected_for(variant, shapes) == shapes

    return [name for name, variant in VARIANTS.items() if fits(variant)]


def check_shapes(shapes: Mapping[str, tuple[int, ...]], name: str) -> None:
    """Raise FileError unless a variant has exactly arrays of these shapes."""
    if name not in VARIANTS:
        raise FileError(f"variant must be one of {', '.join(VARIANTS)}; got {name!r}")
    variant = VARIANTS[name]
    own = array_names(variant)
    if missing := [array for array in own if array not in shapes]:
        raise FileError(f"{', '.join(missing)} missing for the variant {name!r}")
    if more := sorted(shapes.keys() - set(own)):
        raise FileError(f"the variant {name!r} has no {', '.join(more)}")
    for place, shape in _expected_for(variant, shapes).items():
        if shapes[place] != shape:
            fitting = fitting_variants(shapes)
            raise FileError(
                f"{place} has shape {shapes[place]}, the variant {name!r} expects {shape}; "
                + (f"all shapes fit {', '.join(fitting)}" if fitting else "no variant fits")
            )


def check_arrays(arrays: Mapping[str, np.ndarray], name: str) -> None:
    """Raise FileError unless a variant has exactly these arrays, all finite."""
    check_shapes({place: array.shape for place, array in arrays.items()}, name)
    for place, array in arrays.items():
        if array.dtype != np.float32:
            raise FileError(f"{place} must be float32, got {array.dtype}")
        if not np.isfinite(array).all():
            raise FileError(f"{place} has values that are not finite")
