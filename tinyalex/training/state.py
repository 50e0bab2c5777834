"""State of a run between two steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from tinyalex.schema import (
    ARRAY,
    DICT,
    EXACT,
    FLAG,
    NOTHING,
    TEXT,
    Each,
    Maybe,
    Rule,
    Schema,
    array_of,
    check,
    number,
    whole,
)
from tinyalex.training.classifier import SCHEMA as CLASSIFIER
from tinyalex.training.metrics import Average


@dataclass
class State:
    """The state of a run besides weights, velocity, schedule and random state."""

    epoch: int = 0
    """Epochs completed."""
    batch: int = 0
    """Batches learned from in the epoch under way."""
    step: int = 0
    """Batches learned from since the beginning."""
    since_row: Average = field(default_factory=Average)
    since_epoch: Average = field(default_factory=Average)
    best_top1: float = -1.0
    best_loss: float = math.inf
    """The validation loss of the best epoch; NaN, beside which no other is lower, if not known."""
    best_epoch: int = 0
    stuck_steps: int = 0
    """For how many steps the loss has been that of guessing."""
    rows: int = 0
    """How many rows of metrics.jsonl belong to this state."""
    seconds: float = 0.0
    """Time spent training, interruptions left out."""

    def is_best(self, top1: float, loss: float) -> bool:
        """Tell whether the network of an epoch is better: more images right, else a lower loss."""
        if top1 == self.best_top1:
            return loss < self.best_loss
        return top1 > self.best_top1

    def count(self, result: Average) -> None:
        """Take note of a batch that was learned from."""
        self.step += 1
        self.batch += 1
        self.since_row += result
        self.since_epoch += result

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> State:
        """Rebuild what `dataclasses.asdict` took apart. Raises ValueError for anything else."""
        check(values, SCHEMA)
        averages = {name: Average(**values[name]) for name in ("since_row", "since_epoch")}
        try:
            return cls(**{"best_loss": math.nan, **values, **averages})
        except TypeError as error:
            raise ValueError(f"this is not where a run was: {error}") from error


def _schema(share: float) -> dict[str, Schema]:
    count = whole(0, int(share * EXACT))
    average = {"loss_sum": number(), "correct": count, "count": count}
    return {
        **dict.fromkeys(("epoch", "batch", "step", "stuck_steps", "rows", "best_epoch"), count),
        **dict.fromkeys(("since_row", "since_epoch"), average),
        "best_top1": number(-1, 1),
        "best_loss": Maybe(Rule("a number", lambda value: type(value) is float)),
        "seconds": number(0, share * 1e12),
    }


SCHEMA = _schema(1)
"""What a state must have. Before best_loss was remembered, the first of equals was the best."""

RESUMABLE = _schema(0.5)
"""What a state must have to go on from: room for all that a run will count."""

_RATE, _WORD = number(0, 1e38), whole(0, 2**128 - 1)
CONTENT = {
    "classifier": CLASSIFIER,
    "settings": DICT,
    "state": SCHEMA,
    "data": TEXT,
    "images": Maybe(Each(whole())),
    "split": Maybe(
        Each(
            {
                "folder": TEXT,
                "names": array_of("uint8", None),
                "marks": NOTHING | array_of("int64", None),
                "rules": whole(0, 99),
            }
        )
    ),
    "optimizer": Maybe(
        {
            "velocity": [NOTHING | ARRAY],
            "param_groups": [
                {
                    **dict.fromkeys(("lr", "momentum", "weight_decay"), _RATE),
                    **dict.fromkeys(("lr_factor", "decay_factor"), _RATE),
                    "dampening": number(-1e38, 1e38),
                    "nesterov": FLAG,
                    "update": TEXT,
                    "params": whole(),
                }
            ],
        }
    ),
    "schedule": Maybe(
        {
            "schedule": TEXT,
            "base_lrs": [_RATE],
            **dict.fromkeys(("step_size", "total_steps", "num_steps"), Maybe(whole(1))),
            **dict.fromkeys(("reduction", "gamma", "threshold"), Maybe(number(0, 1))),
            **dict.fromkeys(("patience", "max_reductions"), Maybe(whole())),
            **dict.fromkeys(("waited", "reductions"), Maybe(whole())),
            "best": Maybe(Rule("a number", lambda best: type(best) is float and best >= 0)),
            "target_factor": Maybe(number(1e-9, 1e300)),
        }
    ),
    "random": Maybe(
        {
            "generator": {
                "bit_generator": TEXT,
                "state": {"state": _WORD, "inc": _WORD},
                "has_uint32": whole(0, 1),
                "uinteger": whole(0, 2**32 - 1),
            },
            "seed": whole(-(2**63), 2**64 - 1),
            "step": Maybe(NOTHING | whole()),
            "draws": whole(),
        }
    ),
    "colour_covariance": Maybe(NOTHING | array_of("float64", 3, 3)),
}
"""What `Run.get_state` returns; what only a run needs that goes on is missing in a best network."""
