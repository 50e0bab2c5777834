"""Registry of exercises: small, checked calls of every kernel.

One list serves every way of looking at the kernels: values under all schedules of the shim, the
sanitizers, the traces of memory, the deleted barriers, and the real GPU.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from simt import resources
from tinyalex.backends.bfloat16 import bfloat16
from tinyalex.backends.gpu import cupy

BFLOAT16 = bfloat16() or np.dtype(np.float32)  # on a GPU without ml_dtypes there is none
HALVES = np.dtype(np.float32), BFLOAT16  # what is computed in float32 is stored in


class Exercise(NamedTuple):
    """A function that draws its inputs from a generator, runs kernels and asserts."""

    name: str
    files: tuple[str, ...]
    run: Callable[[np.random.Generator], None]


_found: list[Exercise] = []


def exercise(*files: str):
    """Register the function as an exercise of these files of kernels/."""

    def register(function):
        _found.append(Exercise(f"{function.__module__}.{function.__name__}", files, function))
        return function

    return register


def all_exercises() -> list[Exercise]:
    """Return every exercise of every module in this folder, in the order of their names."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return sorted(_found)


def launched() -> set[tuple[str, str]]:
    """Return file and name of every kernel that the exercises launch in the present mode."""
    from simt.exercises import conv_tensor, conv_wgmma

    left_out = conv_tensor.instances_left_out() | conv_wgmma.instances_left_out()
    return {entry for entry in resources.entries() if entry[1] not in left_out}


def to_device(array, dtype=None):
    """Return a copy of a NumPy array on the current device."""
    return cupy().asarray(np.asarray(array, dtype))


def to_host(array):
    """Return a copy of a device array as a NumPy array."""
    return cupy().asnumpy(array)


def assert_same(actual, expected):
    """Fail unless a device array has these values, rounded to its dtype."""
    actual = to_host(actual)
    with np.errstate(invalid="ignore"):  # as ml_dtypes says of NaN
        expected = np.asarray(expected).astype(actual.dtype).astype(np.float64)
        np.testing.assert_array_equal(actual.astype(np.float64), expected)
