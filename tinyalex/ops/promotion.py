"""Type promotion: the common dtype of arrays and numbers, by torch's rules.

Dtypes have three categories, bool < integer < floating point. Between two of one category the wider
wins (``np.promote_types``); between categories the higher does: int64 and float32 make float32, not
NumPy's float64. Arrays with axes decide first, then arrays without, then Python numbers: of the
later ones only a higher category counts. So float32 images times a float64 of no axes, or times
0.1, stay float32, and int8 + 1000 wraps around in int8.

NumPy's scalars, and its arrays without axes, count as Python numbers, as in torch; its arrays with
axes as tensors of their dtype.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tinyalex.backends.bfloat16 import computing
from tinyalex.backends.numerics import quiet
from tinyalex.backends.types import Array

_CATEGORIES = {"b": 0, "u": 1, "i": 1, "f": 2}
_LARGEST = float(np.finfo(np.float32).max)
DEFAULTS = {bool: np.dtype(bool), int: np.dtype(np.int64), float: np.dtype(np.float32)}


def promote_types(a: np.dtype[Any], b: np.dtype[Any]) -> np.dtype[Any]:
    """Return the smallest dtype that holds both, as ``torch.promote_types`` does."""
    if (a.kind == "f") != (b.kind == "f"):
        return a if a.kind == "f" else b
    return np.promote_types(a, b)


def result_type(*operands: Any) -> np.dtype[Any]:
    """Return the dtype of a result computed from arrays and Python numbers."""
    found: dict[int, np.dtype[Any]] = {}
    for operand in operands:
        number = type(operand) in DEFAULTS
        rank = 2 if number else int(operand.ndim == 0)
        dtype = DEFAULTS[type(operand)] if number else operand.dtype
        found[rank] = promote_types(found[rank], dtype) if rank in found else dtype
    dtypes = [found[rank] for rank in sorted(found)]
    # The first of the highest category: what comes later counts only where it is higher.
    return max(dtypes, key=lambda dtype: _CATEGORIES[dtype.kind])


@quiet
def promote(*arrays: Array) -> tuple[Array, ...]:
    """Return the arrays in the one dtype that `result_type` finds for them."""
    if len({array.dtype for array in arrays}) == 1:
        return arrays
    dtype = result_type(*arrays)
    return tuple(array.astype(dtype, copy=False) for array in arrays)


def as_floating(x: Array) -> Array:
    """Return floating-point arrays as they are, others in float32: torch's default dtype."""
    return x if x.dtype.kind == "f" else x.astype(np.float32)


@quiet
def _rounded(value: float, dtype: np.dtype[Any]) -> float:
    return float(dtype.type(value))


def number_beside(array: Array, value: Any) -> tuple[bool | int | float, np.dtype[Any]]:
    """Return a number as an operand for ``array``, and its dtype.

    True and False stay bool, and meet the array as such. An integer that the dtype cannot hold
    wraps around, as in torch. Raises OverflowError for one that int64 cannot hold either.
    """
    if isinstance(value, np.generic):  # np.float64 is a float by class, too
        value = {"b": bool, "f": float}.get(value.dtype.kind, int)(value)
    if isinstance(value, bool):
        return value, DEFAULTS[bool]
    own = computing(array.dtype)
    if own.kind == "f":
        # The dtype that `result_type` finds; the usual case.
        return (value if abs(value) < _LARGEST else _rounded(value, own)), own
    dtype = result_type(array, value)
    if dtype.kind != "f":
        if not -(2**63) <= value < 2**63:
            raise OverflowError(f"an integer beside {own} must fit into int64, got {value}")
        value = int(np.int64(value).astype(dtype))
    return value, dtype
