"""ReLU and Dropout: layers without weights that act on each element."""

from __future__ import annotations

import tinyalex.functional as F
from tinyalex.nn.module import Module
from tinyalex.ops.arguments import flag, probability
from tinyalex.tensor import Tensor


def _not_in_place(layer: str, inplace: bool) -> None:
    if flag(inplace, "inplace"):
        raise ValueError(
            f"{layer}(inplace=True): tinyalex never overwrites a tensor that backward may need; "
            "leave inplace=True out, the output is the same"
        )


class ReLU(Module):
    """``max(x, 0)`` (paper section 3.1). ``inplace=True`` is not supported (ValueError)."""

    def __init__(self, inplace: bool = False) -> None:
        _not_in_place("ReLU", inplace)

    def forward(self, x: Tensor) -> Tensor:
        """Return max(x, 0)."""
        return F.relu(x)


class Dropout(Module):
    """Zero each element with probability ``p``, scale others by 1 / (1 - p), in training.

    In evaluation: nothing. The paper (section 4.2) halves the outputs at test time instead, which
    has the same expectation. Raises ValueError unless 0 <= p <= 1, and for ``inplace=True``.
    """

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        _not_in_place("Dropout", inplace)
        self.p = probability(p, "p")

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` with elements dropped (training) or as it is (evaluation)."""
        return F.dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        """Show the arguments, as torch does."""
        return f"p={self.p}, inplace=False"
