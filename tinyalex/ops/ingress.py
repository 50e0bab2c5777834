"""Data from outside: anything that holds numbers, as a plain array."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tinyalex.backends import numerics
from tinyalex.backends.devices import on_gpu
from tinyalex.backends.types import Array
from tinyalex.ops.promotion import DEFAULTS, promote_types


def plain_array(value: Any, dtype: Any = None) -> Array:
    """Return ``value`` as a plain NumPy or CuPy array, uncopied if possible.

    Subclasses of NumPy's array, and objects that only look like an array (``__array__``,
    ``__array_interface__``, buffers), become plain arrays of the same values and dtype. Numbers and
    nested sequences of them take ``dtype`` or, without one, torch's default: bool, int64 or, for
    floats, float32. Where sequences hold arrays, the dtypes of these count.

    Raises TypeError for a masked array of which an element is masked: there is no value to compute
    with; ValueError for sequences of unequal lengths; OverflowError for integers beyond the dtype.
    """
    if type(value) is np.ndarray or on_gpu(value):
        return value
    if type(value) not in DEFAULTS and not _is_sequence(value):
        array = np.asanyarray(value)  # the subclass, which knows what is masked
        _refuse_masked(array)
        return np.asarray(array)
    found = {_dtype_of(leaf) for leaf in _leaves(value)}
    if not all(each.kind in "biuf" for each in found):
        return np.asarray(value)  # strings, None: an array of a dtype that callers refuse
    if dtype is None:
        dtype = functools.reduce(promote_types, found) if found else DEFAULTS[float]
    try:
        return numerics.as_array(value, dtype)
    except OverflowError:
        raise OverflowError(f"an integer of {value!r:.80} does not fit into {dtype}") from None
    except ValueError as error:
        raise ValueError(
            f"expected numbers, in rows of equal length, got {value!r:.80} ({error})"
        ) from None


def looks_like_array(value: Any) -> bool:
    """Return whether an operand is an array of any class.

    Numbers and lists of them are none.
    """
    kinds = "__array__", "__array_interface__"
    return isinstance(value, memoryview) or on_gpu(value) or any(hasattr(value, k) for k in kinds)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, memoryview))


def _leaves(value: Any) -> Iterator[Any]:
    """Yield what nested sequences hold."""
    if not _is_sequence(value):
        yield value
        return
    for item in value:
        yield from (item,) if type(item) in DEFAULTS else _leaves(item)


def _dtype_of(leaf: Any) -> np.dtype[Any]:
    return DEFAULTS.get(type(leaf)) or plain_array(leaf).dtype


def _refuse_masked(array: Array) -> None:
    masked = sys.modules.get("numpy.ma")  # if it was never imported, nothing is masked
    if masked is not None and masked.is_masked(array):
        raise TypeError(
            "a masked array has no values where it is masked, and a Tensor no mask; "
            "fill it first: .filled(value)"
        )
