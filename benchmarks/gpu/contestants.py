"""Interface of the contestants of the GPU benchmark, and its check."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from gpu.cases import LR, MOMENTUM, WEIGHT_DECAY, Case, errors

Arrays = dict[str, np.ndarray]


class Contestant(ABC):
    """A net and its batch on the GPU, ready to step.

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
        """Return the last step's ``loss`` and gradients, or the ``logits``."""

    @abstractmethod
    def weights(self) -> Arrays:
        """Return the current weights, under the names of tinyalex's parameters."""

    @abstractmethod
    def velocities(self) -> Arrays:
        """Return the velocities of SGD under the same names."""

    @abstractmethod
    def close(self) -> None:
        """Give all memory back."""


def check(contestant: Contestant, case: Case, want: Arrays) -> dict[str, float]:
    """Take one step and return its `errors` against float64."""
    contestant.restore()
    velocities = contestant.velocities() if case.training else {}
    contestant.poison()
    contestant.step()
    got = contestant.results()
    found = errors(got, want)
    if case.training:
        found["update"] = _update_error(contestant, got, velocities)
    return found


def _update_error(contestant: Contestant, gradients: Arrays, velocities: Arrays) -> float:
    """Return the relative error of the update, given these gradients.

    ``v = momentum v + (gradient + decay w);  w = w - lr v``.
    """
    after = contestant.weights()
    contestant.restore()
    wrong = whole = 0.0
    for name, before in contestant.weights().items():
        should = MOMENTUM * velocities[name] + gradients[name] + WEIGHT_DECAY * before
        should *= -LR
        whole += float(np.linalg.norm(should)) ** 2
        should += before
        should -= after[name]
        wrong += float(np.linalg.norm(should)) ** 2
    error = (wrong / whole) ** 0.5
    return error if np.isfinite(error) else float("inf")
