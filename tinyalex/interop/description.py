"""Description of weights in JSON: variant, classes and preprocessing.

It travels in the files that we write, beside the arrays.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np

from tinyalex.data.image import RESIZES
from tinyalex.files import FileError, refusing_damage
from tinyalex.schema import NOTHING, TEXT, Maybe, Rule, check, list_of, number, one_of, whole

KEY = "tinyalex"
"""Name of the description among a file's metadata."""

LONGEST = 2**22 - 2**16
"""Bytes of a description: a header of safetensors, of 4 MiB, has room for the names besides."""

_SIDE = whole(0, 4096)

COLOURS = list_of(number(-1e6, 1e6), 1, 3)

_IMAGE = Rule("a mean image", lambda value: type(value) is dict and value.keys() == {"image"})

_CLASSES = Rule(
    "a list of texts",
    lambda value: type(value) is list and all(map(TEXT.holds, value)),
)

SCHEMA = {
    "variant": TEXT,
    "classes": Maybe(NOTHING | _CLASSES),
    "mean": Maybe(NOTHING | COLOURS | _IMAGE),
    "std": Maybe(NOTHING | list_of(number(1e-6, 1e6), 1, 3)),
    "resize": Maybe(one_of(RESIZES)),
    "shorter_side": Maybe(_SIDE),
    "input_size": Maybe(_SIDE),
}


def describe(weights: Any) -> str:
    """Return everything but the arrays of weights as JSON.

    Raises ValueError for what `described` would refuse.
    """
    mean: Any = weights.mean
    if isinstance(mean, np.ndarray):
        mean = {"image": base64.b64encode(mean.astype("<f4").tobytes()).decode()}
    text = json.dumps({**{name: getattr(weights, name) for name in SCHEMA}, "mean": mean})
    if len(text) > LONGEST:
        raise ValueError(
            f"mean and classes take {len(text):,} bytes, of which {LONGEST:,} can be read again: "
            "use the mean colour instead of a mean image"
        )
    return text


def described(text: str | bytes) -> dict[str, Any]:
    """Return what a description has for `Weights`; raise FileError for others."""
    if len(text) > LONGEST:
        raise FileError(f"its description has {len(text):,} bytes, at most {LONGEST:,} are read")
    with refusing_damage("its description is damaged"):
        content = json.loads(text)
        check(content, SCHEMA, "description")
        options = {name: content[name] for name in SCHEMA if name in content}
        for name in ("mean", "std"):
            if isinstance(options.get(name), list):
                options[name] = tuple(options[name])
        if isinstance(options.get("mean"), dict):
            side = options.get("shorter_side", 0)
            raw = base64.b64decode(options["mean"]["image"], validate=True)
            options["mean"] = np.frombuffer(raw, "<f4").astype(np.float32).reshape(side, side, 3)
    return options
