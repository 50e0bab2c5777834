"""Type aliases of the kernels: arrays and shapes."""

from __future__ import annotations

from typing import Any, TypeAlias

# A NumPy array, or on another device an array of a library with NumPy's interface: they share no
# base class that a type checker knows.
Array: TypeAlias = Any
Shape: TypeAlias = tuple[int, ...]
