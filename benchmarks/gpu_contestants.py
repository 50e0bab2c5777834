"""What every contestant of the GPU benchmark must be able to do, and the proof that it does it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from gpu_cases import LR, MOMENTUM, WEIGHT_DECAY, Case, errors

Arrays = dict[str, np.ndarray]


class Contestant(ABC):
    """A net with its batch on the GPU, ready to take the same step again and again.

    ``stream`` is the stream (CuPy's) on which the work is queued, ``settings`` what a reader should
    know, ``peak_bytes`` the most memory that one step had in use, weights included.
    """

    name: str
    settings: dict[str, Any]
    stream: Any
    peak_bytes: int

    @abstractmethod
    def step(self) -> None:
        """Queue one training step, or one prediction."""

    @abstractmethod
    def restore(self) -> None:
        """Give the net the weights that it began with."""

    @abstractmethod
    def poison(self) -> None:
        """Fill what a step should write with NaN."""

    @abstractmethod
    def results(self) -> Arrays:
        """Return the ``loss`` and all gradients of the last step, or the ``logits``."""

    @abstractmethod
    def weights(self) -> Arrays:
        """Return the weights as they are now, under the names of tinyalex's parameters."""

    @abstractmethod
    def velocities(self) -> Arrays:
        """Return the velocities of SGD under the same names."""

    @abstractmethod
    def close(self) -> None:
        """Give all memory back."""


def check(contestant: Contestant, case: Case, want: Arrays) -> dict[str, float]:
    """Take one step from the first weights and return its `errors` against float64."""
    contestant.restore()
    velocities = contestant.velocities() if case.training else {}
    contestant.poison()
    contestant.step()
    got = contestant.results()
    if case.training:
        got |= _updates(contestant, got, velocities)
    return errors(got, want)


def _updates(contestant: Contestant, got: Arrays, velocities: Arrays) -> Arrays:
    """Return how far the weights went, and how far SGD should have sent them by these gradients.

    ``v = momentum v + (gradient + decay w);  w = w - lr v``, in float64.
    """
    after = contestant.weights()
    contestant.restore()
    before = contestant.weights()
    went, should = [], []
    for name, weight in before.items():
        w = weight.astype(np.float64)
        v = MOMENTUM * velocities[name] + got[name] + WEIGHT_DECAY * w
        went.append((after[name] - w).reshape(-1))
        should.append((-LR * v).reshape(-1))
    return {"updates": np.concatenate(went), "updates expected": np.concatenate(should)}
