"""Precision of float32 matrix products on the GPU."""

from __future__ import annotations

PRECISIONS = ("highest", "high", "medium")

_chosen = "highest"


def set_float32_matmul_precision(precision: str) -> None:
    """Set the precision of float32 matrix products on a GPU.

    - "highest": nothing beyond float32. The tensor cores multiply each number in two parts
      (3xTF32).
    - "high": the factors of each product to TF32, 10 bits after the leading one: rounded, or cut
      where Hopper's own instructions are used.
    - "medium": the factors of each product to bfloat16, 7 bits after the leading one.

    Products are added up in float32. The CPU computes as "highest" always.

    In memory, numbers stay float32, except with "medium" on Hopper GPUs (compute capability 9.0)
    where ml_dtypes is installed. There, with more than eight images, in layers whose channels and
    filters come in eights, activations and their gradients are bfloat16, the last layer's outputs
    too: a forward hook sees tensors of that dtype, which ``.to("float32")``
    widens. Parameters, their gradients, what an optimiser or a loss computes, `state_dict` and all
    that is copied to the host are float32 as ever. A `Function` gets float32 copies, unless it says
    that it ``takes_bfloat16``.

    Raises ValueError for any other word.
    """
    global _chosen
    if precision not in PRECISIONS:
        raise ValueError(f"the precision must be one of {', '.join(PRECISIONS)}; got {precision!r}")
    _chosen = precision


def get_float32_matmul_precision() -> str:
    """Return what `set_float32_matmul_precision` chose, at first "highest"."""
    return _chosen
