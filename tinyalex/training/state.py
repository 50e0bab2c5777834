"""Where a run is between two steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

from tinyalex.training.metrics import Average


@dataclass
class State:
    """Where a run is: what changes besides weights, velocity, schedule and random state."""

    epoch: int = 0
    """Epochs completed."""
    batch: int = 0
    """Batches learned from in the epoch under way."""
    step: int = 0
    """Batches learned from since the beginning."""
    since_row: Average = field(default_factory=Average)
    since_epoch: Average = field(default_factory=Average)
    best_top1: float = -1.0
    best_epoch: int = 0
    stuck_steps: int = 0
    """For how many steps the loss has been that of guessing."""
    rows: int = 0
    """How many rows of metrics.jsonl belong to this state."""
    seconds: float = 0.0
    """Time spent training, interruptions left out."""

    def count(self, result: Average) -> None:
        """Take note of a batch that was learned from."""
        self.step += 1
        self.batch += 1
        self.since_row += result
        self.since_epoch += result

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> State:
        """Rebuild what `dataclasses.asdict` took apart. Raises ValueError for anything else."""
        try:
            averages = {name: Average(**values[name]) for name in ("since_row", "since_epoch")}
            state = cls(**{**values, **averages})
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is not where a run was: {error!r}") from error
        parts: tuple[State | Average, ...] = (state, *averages.values())
        for part in parts:
            for one in fields(part):
                value = getattr(part, one.name)
                if one.type == "int" and not (type(value) is int and value >= 0):
                    raise ValueError(f"{one.name} must be a whole number >= 0, got {value!r}")
                if one.type == "float" and not (type(value) is float and math.isfinite(value)):
                    raise ValueError(f"{one.name} must be a finite number, got {value!r}")
        return state
