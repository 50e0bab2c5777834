"""bfloat16, the dtype of the package ml_dtypes: optional, and the GPU's alone."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import numpy as np


@cache
def bfloat16() -> np.dtype[Any] | None:
    """Return the dtype bfloat16, which CuPy then knows too; None without ml_dtypes."""
    try:
        return np.dtype(importlib.import_module("ml_dtypes").bfloat16)
    except ImportError:
        return None


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Return whether ``dtype`` is bfloat16, without importing ml_dtypes."""
    return dtype.itemsize == 2 and dtype.name == "bfloat16"  # the name alone takes a microsecond
