"""Checks of arguments of ops, with errors that say what was expected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np

from tinyalex.backends.bfloat16 import computing
from tinyalex.backends.geometry import ConvOptions, Pair, PoolOptions
from tinyalex.backends.types import Array

MOST = 2**31 - 1
"""The largest size, step or index that an argument may name; kernels count in 64 bits."""

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def is_integer(value: Any) -> bool:
    """Return whether ``value`` is an integer, Python's or NumPy's, not a bool."""
    # Not numbers.Integral: asking an abstract class takes a microsecond, dozens of times per step.
    return type(value) is int or (
        isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    )


def pair(value: int | Sequence[int], name: str, minimum: int = 1) -> Pair:
    """Return ``value``, an integer or two of them, as (height, width)."""
    items = (value, value) if is_integer(value) else value
    if isinstance(items, (tuple, list)) and len(items) == 2:
        height, width = items
        if is_integer(height) and is_integer(width):
            return integer(height, name, minimum), integer(width, name, minimum)
    raise TypeError(f"{name} must be an integer or a pair of integers, got {value!r}")


def integer(value: Any, name: str, minimum: int | None = None) -> int:
    """Return ``value`` if it is an integer, not below ``minimum``; no bools."""
    if not is_integer(value):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    number = int(value)
    if minimum is not None and number < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
    if abs(number) > MOST:
        raise ValueError(f"{name} must be at most {MOST} in magnitude, got {value}")
    return number


def flag(value: Any, name: str) -> bool:
    """Return ``value`` if it is True or False, and nothing else."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def number(value: Any, name: str) -> float:
    """Return a number, Python's or NumPy's, as a float.

    A tensor is refused: it would lose its graph.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {value!r}")
    return float(value)


def finite(value: Any, name: str) -> float:
    """Return ``value`` as a float, which must be finite."""
    if not math.isfinite(number(value, name)):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return float(value)


def probability(value: Any, name: str) -> float:
    """Return ``value`` as a float between 0 and 1."""
    number = finite(value, name)
    if not 0 <= number <= 1:
        raise ValueError(f"{name} must be between 0 and 1, got {value}")
    return number


def half_at_most(padding: Pair, kernel_size: Pair) -> None:
    """Check that every pooling window begins and ends inside the input."""
    if padding[0] > kernel_size[0] // 2 or padding[1] > kernel_size[1] // 2:
        raise ValueError(
            f"padding must be at most half of the kernel, got padding {padding} "
            f"for kernel size {kernel_size}"
        )


def images(x: Array, op: str) -> None:
    """Check that ``x`` is a batch of images [N, C, H, W] in floating point."""
    if x.ndim != 4:
        raise ValueError(f"{op} expects images of shape [N, C, H, W], got shape {x.shape}")
    floating(op, x)


def floating(op: str, *arrays: Array | None) -> None:
    """Check that all arrays are float32, or bfloat16, or all float64."""
    given = [a.dtype for a in arrays if a is not None]
    dtypes = [computing(dtype) for dtype in given]
    if dtypes[0] not in FLOATS or dtypes.count(dtypes[0]) < len(dtypes):
        got = ", ".join(map(str, given))
        raise TypeError(
            f"{op} expects all its tensors in float32 or all in float64, got {got}; "
            "convert with .to(dtype)"
        )


def positive_output(
    op: str,
    output_size: Pair,
    input_shape: tuple[int, ...],
    kernel_size: Pair,
    options: ConvOptions | PoolOptions,
) -> None:
    """Check that a sliding window fits into its input at least once."""
    if min(output_size) < 1:
        raise ValueError(
            f"{op}: a window of {kernel_size[0]}x{kernel_size[1]} (dilation {options.dilation}, "
            f"padding {options.padding}) does not fit into images of shape {input_shape}; use "
            "larger images, a smaller kernel or more padding"
        )


def dimension(dim: Any, ndim: int, name: str = "dim") -> int:
    """Return ``dim`` counted from the front; negative values count from the back."""
    dim = integer(dim, name)
    end = max(ndim, 1)  # a number may be asked for its 0th, as in torch
    if not -end <= dim < end:
        raise ValueError(f"{name} must be in [-{end}, {end}) for {ndim} dimensions, got {dim}")
    return dim % end
