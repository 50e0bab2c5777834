"""Checks of layers' arguments, made when a layer is built rather than when it first runs."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np


def integer(value: Any, name: str, minimum: int | None = None) -> int:
    """Return ``value`` as an int, or raise an error that names the argument."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if minimum is not None and value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
    return int(value)


def probability(value: Any, name: str) -> float:
    """Return ``value`` as a float in [0, 1], or raise an error that names the argument."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be between 0 and 1, got {value}")
    return float(value)


def not_in_place(layer: str, inplace: bool) -> None:
    """Raise ValueError for torch's ``inplace=True``, which tinyalex does not have."""
    if inplace:
        raise ValueError(
            f"{layer}(inplace=True): tinyalex never overwrites a tensor that backward may need; "
            "leave inplace=True out, the output is the same"
        )
