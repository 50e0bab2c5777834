"""Names of AlexNet's layers elsewhere, and the choice of a variant."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple, NoReturn

import numpy as np

from tinyalex.files import FileError, naming
from tinyalex.interop.stored import Stored
from tinyalex.interop.weights import (
    array_names,
    check_shapes,
    expected_shapes,
    fitting_variants,
)
from tinyalex.models import VARIANTS
from tinyalex.models.alexnet import parameter_shapes

Array = Stored | np.ndarray
"""Array, in a file or in memory."""

CONVS = ("conv1", "conv2", "conv3", "conv4", "conv5")

LAYERS = (*CONVS, "fc6", "fc7", "fc8")

STYLES: tuple[tuple[str, ...], ...] = (
    LAYERS,  # Caffe's
    (*CONVS, "fc1", "fc2", "fc3"),
    # pretrainedmodels
    (*(f"_features.{i}" for i in (0, 3, 6, 8, 10)), "linear0", "linear1", "last_linear"),
    # Dive into Deep Learning
    tuple(f"net.{i}" for i in (0, 3, 6, 8, 10, 14, 17, 20)),
)
"""Names of the eight layers, in order, besides those of our variants (torchvision's are one's)."""

PARTS = {
    "weight": ("weight", "weights", "W", "w"),
    "bias": ("bias", "biases", "b"),
}
"""Names of a layer's two arrays."""

_PART = {other: part for part, others in PARTS.items() for other in others}

COPY = re.compile(r"(^|[._])(ema|swa|averaged?|optim(izer)?|momentum|exp_avg)([._]|$)", re.I)
"""Parts of names that copies of the weights have, and the state of an optimiser."""


class Style(NamedTuple):
    """Names of layers in files, their names here, and variants with them."""

    names: tuple[str, ...]
    layers: tuple[str, ...]
    variants: tuple[str, ...]


class Found(NamedTuple):
    """Layers in a file: keys under the names conv1.weight ... fc8.bias."""

    prefix: str
    style: Style
    keys: dict[str, str]

    @property
    def missing(self) -> dict[str, str]:
        """Missing arrays, each with the key that is expected."""
        pairs = zip(self.style.layers, self.style.names, strict=True)
        wanted = {f"{own}.{part}": f"{key}.{part}" for own, key in pairs for part in PARTS}
        return {own: key for own, key in wanted.items() if own not in self.keys}

    @property
    def rank(self) -> int:
        """1 for running averages of weights and the like, 0 for the weights."""
        return int(_is_copy(self.prefix))


def select(
    arrays: Mapping[str, Array], asked: str | None = None, said: str | None = None
) -> tuple[dict[str, Array], str, str]:
    """Return an AlexNet's arrays, its variant and the prefix of its names.

    `arrays` has full names with dots ("state_dict.module.features.0.weight"): everything before a
    known name is a prefix. `asked` is the variant that the user wants, `said` the one that the file
    names. The result is under the names conv1.weight ... fc8.bias and has the variant's shapes.
    Raises FileError where a layer is missing, more than AlexNet's layers are there, a shape fits no
    variant, or several variants fit.
    """
    found = _find(arrays)
    used = set(found.keys.values())
    if more := sorted(
        key
        for key, array in arrays.items()
        if key.startswith(found.prefix) and key not in used and array.shape and not _is_copy(key)
    ):
        raise FileError(f"it has more arrays than an AlexNet: {', '.join(more[:4])}{_normed(more)}")
    own = {name: arrays[key] for name, key in found.keys.items()}
    shapes = {name: array.shape for name, array in own.items()}
    if asked and said and asked != said:
        raise FileError(f"it is of the variant {said!r}, not {asked!r}")
    variant = asked or said or _choose(shapes, found.style)
    check_shapes(shapes, variant)
    return {name: own[name] for name in array_names(VARIANTS[variant])}, variant, found.prefix


def read(arrays: Mapping[str, Array]) -> dict[str, np.ndarray]:
    """Return arrays as float32; those in a file are read."""
    done = {}
    for name, array in arrays.items():
        with naming(name):
            done[name] = array.read() if isinstance(array, Stored) else as_float32(array)
    return done


def own_names(variant: str) -> tuple[str, ...]:
    """Return the names of a variant's layers in its state_dict."""
    names = parameter_shapes(VARIANTS[variant], 1)
    return tuple(dict.fromkeys(name.rpartition(".")[0] for name in names))


def as_float32(array: np.ndarray) -> np.ndarray:
    """Return an array as float32; raise FileError for whole numbers."""
    if array.dtype.kind != "f":
        raise FileError(f"its dtype {array.dtype} is no floating point")
    with np.errstate(over="ignore"):  # what is too large is refused as not finite
        return array.astype(np.float32, order="C")


def _styles() -> list[Style]:
    """Return all styles, those of the variants included."""
    variants: dict[tuple[str, ...], list[str]] = {}
    for name in VARIANTS:
        variants.setdefault(own_names(name), []).append(name)
    own = [
        Style(names, tuple(_layers(users[0])), tuple(users)) for names, users in variants.items()
    ]
    return [*own, *(Style(names, LAYERS, ()) for names in STYLES if names not in variants)]


def _layers(variant: str) -> list[str]:
    return [name.partition(".")[0] for name in array_names(VARIANTS[variant])[::2]]


def _find(arrays: Mapping[str, Array]) -> Found:
    """Return the layers, wherever they are."""
    known: dict[str, list[tuple[Style, str]]] = {}
    for style in _styles():
        for name, layer in zip(style.names, style.layers, strict=True):
            known.setdefault(name, []).append((style, layer))
    depths = {name.count(".") + 1 for name in known}
    candidates: dict[tuple[str, Style], Found] = {}
    for key in arrays:
        *path, part = key.split(".")
        deep = [depth for depth in depths if depth <= len(path)]
        for depth in deep if part in _PART else ():
            prefix = "".join(f"{above}." for above in path[:-depth])
            for style, layer in known.get(".".join(path[-depth:]), ()):
                found = candidates.setdefault((prefix, style), Found(prefix, style, {}))
                name = f"{layer}.{_PART[part]}"
                if name in found.keys:
                    raise FileError(f"it has two {name}: {found.keys[name]} and {key}")
                found.keys[name] = key
    complete = sorted((f for f in candidates.values() if not f.missing), key=lambda f: f.rank)
    if not complete:
        _refuse(arrays, list(candidates.values()))
    best = [found.prefix for found in complete if found.rank == complete[0].rank]
    if len(set(best)) > 1:
        raise FileError(f"it has several networks: under {', '.join(sorted(set(best)))}")
    return max(complete[: len(best)], key=lambda found: len(found.keys))


def _refuse(arrays: Mapping[str, Array], candidates: list[Found]) -> NoReturn:
    """Raise FileError that says what is missing."""
    if not candidates:
        some = ", ".join(sorted(arrays)[:4])
        raise FileError(
            "it has none of AlexNet's layers under a known name: "
            + (f"its arrays are {some} ..." if some else "it has no arrays")
        )
    nearest = max(candidates, key=lambda found: len(found.keys) - len(found.missing))
    missing = [f"{own} ({nearest.prefix}{key})" for own, key in nearest.missing.items()]
    some = ", ".join(missing[:4]) + " ..." * (len(missing) > 4)
    raise FileError(f"it is no whole AlexNet: {some} missing{_normed(arrays)}")


def _normed(keys: Mapping[str, Array] | list[str]) -> str:
    """Return a remark where some layer is of batch normalisation."""
    found = sorted(key for key in keys if key.endswith("running_mean"))
    return f"; {found[0]} is of batch normalisation, which no variant has" if found else ""


def _is_copy(key: str) -> bool:
    return COPY.search(key) is not None


def _choose(shapes: Mapping[str, tuple[int, ...]], style: Style) -> str:
    """Return the one variant that has these shapes, and names if possible."""
    fitting = fitting_variants(shapes)
    fitting = [name for name in fitting if name in style.variants] or fitting
    if len(fitting) > 1:
        raise FileError(f"several variants have its shapes: say which ({', '.join(fitting)})")
    if fitting:
        return fitting[0]

    def alike(variant: str) -> int:  # the nearest is named in the message
        expected = expected_shapes(VARIANTS[variant], 1)
        return sum(shapes.get(name) == shape for name, shape in expected.items())

    return max(VARIANTS, key=alike)
