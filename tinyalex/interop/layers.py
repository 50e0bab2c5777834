"""Comparison of a file's layers with those of the variants."""

from __future__ import annotations

import math
from dataclasses import fields
from itertools import zip_longest

from tinyalex.files import FileError
from tinyalex.models import VARIANTS
from tinyalex.models.spec import Conv, Dropout, Layer, Linear

Layers = list[tuple[str, Layer]]
"""Names and layers in the order in which they run, without those that change no answer."""


def fitting(layers: Layers, asked: str | None) -> str:
    """Return the variant, perhaps the one `asked` for, with these layers.

    Raises FileError that names the first layer which is another one.
    """
    if asked is not None and asked not in VARIANTS:
        raise FileError(f"variant must be one of {', '.join(VARIANTS)}; got {asked!r}")
    differences = {name: _difference(layers, name) for name in ([asked] if asked else VARIANTS)}
    name = max(differences, key=lambda one: differences[one][0])
    if told := differences[name][1]:
        raise FileError(told)
    return name


def _difference(layers: Layers, variant: str) -> tuple[float, str]:
    """Return place and sentence of the first layer that differs."""
    features, classifier = VARIANTS[variant].features, VARIANTS[variant].classifier
    own = [layer for layer in (*features, *classifier) if layer != Dropout()]
    if all(isinstance(layer, (Conv, Linear)) for _, layer in layers):  # weights alone
        own = [layer for layer in own if isinstance(layer, (Conv, Linear))]
    last = max((i for i, (_, one) in enumerate(layers) if isinstance(one, Linear)), default=-1)
    for place, (layer, there) in enumerate(zip_longest(own, layers)):
        name, other = there or ("", None)
        if place == last:
            other = Linear(None)  # any number of classes
        if _told(layer) != _told(other):
            return place, (
                (f"layer {name!r} is {_told(other)}" if other else "it ends")
                + f" where the variant {variant!r} "
                + (f"has {_told(layer)}" if layer else "ends")
            )
    return math.inf, ""


def _told(layer: Layer | None) -> str:
    """Return a layer in words, but for its initial weights."""
    if layer is None:
        return ""
    shown = {field.name: getattr(layer, field.name) for field in fields(layer)}
    shown.pop("init", None)
    numbers = (f"{name} {'classes' if x is None else f'{x:g}'}" for name, x in shown.items())
    return f"{type(layer).__name__}({', '.join(numbers)})"
