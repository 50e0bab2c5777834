"""Precision of float32 matrix products on the GPU."""

from __future__ import annotations

PRECISIONS = ("highest", "high", "medium")

_chosen = "highest"


def set_float32_matmul_precision(precision: str) -> None:
    """Set the precision of float32 matrix products on a GPU.

    - "highest": nothing beyond float32. The tensor cores multiply each number in two parts
      (3xTF32).
    - "high": the factors of each product to TF32, 10 bits after the leading one.
    - "medium": the factors of each product to bfloat16, 7 bits after the leading one.

    Products are added up in float32, and weights, activations and gradients stay float32 in memory.
    The CPU computes as "highest" always. Raises ValueError for any other word.
    """
    global _chosen
    if precision not in PRECISIONS:
        raise ValueError(f"the precision must be one of {', '.join(PRECISIONS)}; got {precision!r}")
    _chosen = precision


def get_float32_matmul_precision() -> str:
    """Return what `set_float32_matmul_precision` chose, at first "highest"."""
    return _chosen
