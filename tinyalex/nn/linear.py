"""Linear: every output sees every input."""

from __future__ import annotations

from typing import Any

import numpy as np

import tinyalex.functional as F
from tinyalex.nn.init import reset_like_torch
from tinyalex.nn.module import Module, Parameter
from tinyalex.ops.arguments import flag, integer
from tinyalex.tensor import Tensor


class Linear(Module):
    """``y = x @ weight.T + bias`` with weight [out_features, in_features].

    Weight and bias start as torch's, uniform on ±1/sqrt(in_features). Raises ValueError or
    TypeError for sizes that are not integers >= 1.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: Any = np.float32,
    ) -> None:
        self.in_features = integer(in_features, "in_features", minimum=1)
        self.out_features = integer(out_features, "out_features", minimum=1)
        self.weight = Parameter(np.empty((out_features, in_features), dtype))
        self._register("bias", Parameter)  # without one, too
        self.bias = Parameter(np.empty(out_features, dtype)) if flag(bias, "bias") else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew, as torch does."""
        reset_like_torch(self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., out_features] for ``x`` of shape [..., in_features]."""
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Show the sizes, as torch does."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )
