"""CrossEntropyLoss: the objective of the paper as a module."""

from __future__ import annotations

from typing import Any

import tinyalex.functional as F
from tinyalex.nn.module import Module
from tinyalex.tensor import Tensor


class CrossEntropyLoss(Module):
    """``-log softmax(logits)[target]``, averaged over the batch (paper section 3.5).

    The options are those of `functional.cross_entropy`, which checks them and says what they mean.
    """

    def __init__(
        self,
        weight: Any = None,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        self.weight, self.ignore_index = weight, ignore_index
        self.reduction, self.label_smoothing = reduction, label_smoothing

    def forward(self, input: Tensor, target: Any) -> Tensor:
        """Return the loss of logits [N, C, ...] against class indices [N, ...] or probabilities."""
        return F.cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )
