"""bfloat16, the dtype of the package ml_dtypes: optional, and the GPU's alone.

It is how numbers lie in a GPU's memory. Kernels that know it compute in float32; for all else,
arrays in it are copied to float32, which is exact.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import numpy as np

from tinyalex.backends.types import Array


@cache
def bfloat16() -> np.dtype[Any] | None:
    """Return the dtype bfloat16, which CuPy 14 then knows too.

    None without ml_dtypes, or with a NumPy older than CuPy wants for it, 2.1.2.
    """
    if np.lib.NumpyVersion(np.__version__) < "2.1.2":
        return None
    try:
        return np.dtype(importlib.import_module("ml_dtypes").bfloat16)
    except ImportError:
        return None


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Return whether ``dtype`` is bfloat16, without importing ml_dtypes."""
    return dtype.itemsize == 2 and dtype.name == "bfloat16"  # the name alone takes a microsecond


def is_floating(dtype: np.dtype[Any]) -> bool:
    """Return whether ``dtype`` is of floating point; NumPy does not count bfloat16."""
    return dtype.kind == "f" or is_bfloat16(dtype)


def computing(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype in which numbers of ``dtype`` are computed with."""
    return np.dtype(np.float32) if is_bfloat16(dtype) else dtype


def as_float32(array: Array) -> Array:
    """Return a bfloat16 array in float32, any other as it is."""
    return array.astype(np.float32) if is_bfloat16(array.dtype) else array
