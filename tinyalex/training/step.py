"""One step of training: forward, loss, backward, update (the paper's section 5)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from tinyalex.data import Batch
from tinyalex.nn import Module
from tinyalex.optim import SGD
from tinyalex.training.divergence import NOT_FINITE, DivergedError, not_finite
from tinyalex.training.evaluation import logits_and_loss
from tinyalex.training.metrics import Average, hits


@np.errstate(over="ignore", invalid="ignore")  # what comes of an overflow is looked for below
def train_step(model: Module, optimizer: SGD, batch: Batch) -> Average:
    """Learn from one batch; return its loss and count of right answers.

    Raises DivergedError, before any weight is touched, if the loss or a gradient is not finite.
    """
    optimizer.zero_grad()
    logits, loss = logits_and_loss(model, batch)
    value = float(loss.item())
    if not math.isfinite(value):
        raise DivergedError(f"the loss is {value}")
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    if wrong := not_finite(gradients):
        raise DivergedError(f"the gradient of {wrong} {NOT_FINITE}")
    optimizer.step()
    correct = int(hits(logits.detach().cpu().numpy(), batch.labels).sum())
    return Average(value * len(batch), correct, len(batch))


class Steps:
    """Takes steps; what each found out is known at once."""

    every: int = 1
    """Most steps between two readings."""
    whole = True
    """True while the network here has all that was learned so far."""

    def __init__(self, model: Module, optimizer: SGD) -> None:
        self._model, self._optimizer = model, optimizer
        self._results: list[Average] = []

    @property
    def unread(self) -> int:
        """Number of steps since the last reading."""
        return len(self._results)

    def take(self, batch: Batch) -> None:
        """Take a step; DivergedError as from `train_step`."""
        self._results.append(train_step(self._model, self._optimizer, batch))

    def gather(self) -> None:
        """Make the network `whole`, together with the other ranks, if any."""

    def agree_to_save(self, due: bool) -> bool:
        """Return whether a save is due, on this rank or another."""
        return due

    def repeating(self, batch: Batch) -> AbstractContextManager[None]:
        """Let kernels compute a batch as in `take`."""
        return nullcontext()

    def close(self) -> None:
        """Leave the model as it was before."""

    def read(self) -> Iterator[Average]:
        """Yield what each step since the last reading found out."""
        results, self._results = self._results, []
        yield from results
