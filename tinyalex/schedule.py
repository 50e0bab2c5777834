"""Learning-rate schedules: what the rate is at each step of training.

All follow one protocol, so that a training loop need not know which one it runs::

    for epoch in range(epochs):
        for batch in loader:
            schedule.before_step(step)      # sets every group's "lr" for the update number `step`
            ...; optimizer.step(); step += 1
        schedule.after_epoch(error)         # only Plateau looks at it

Steps are counted from 0 over the whole training. A schedule multiplies the rates that the groups
had when it was made by one `factor`, a function of the step and of the errors seen so far. So
``load_state_dict`` resumes it exactly, from the middle of an epoch too.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from tinyalex.ops.arguments import integer
from tinyalex.optim import SGD


class Schedule:
    """Base class of all schedules; a subclass defines `factor`."""

    # The attributes that state_dict carries, beside the rates at the start.
    _state: ClassVar[tuple[str, ...]] = ()

    def __init__(self, optimizer: SGD) -> None:
        if not isinstance(optimizer, SGD):
            raise TypeError(f"a schedule drives an optimiser, got {type(optimizer).__name__}")
        self.optimizer = optimizer
        self.base_lrs: list[float] = [group["lr"] for group in optimizer.param_groups]

    def factor(self, step: int) -> float:
        """Return the factor of the initial rates at ``step``."""
        raise NotImplementedError(f"{type(self).__name__} must define factor(step)")

    def before_step(self, step: int) -> None:
        """Set the rates for update number ``step``, counted from 0."""
        factor = self.factor(step)
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * factor

    def after_epoch(self, error: float | None = None) -> None:
        """Record the validation error (lower is better) after an epoch."""

    def take_new_groups(self) -> None:
        """Schedule the groups that the optimiser was given since, too."""
        new = self.optimizer.param_groups[len(self.base_lrs) :]
        self.base_lrs += [group["lr"] for group in new]

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the schedule remembers: numbers and strings only."""
        state = {name: getattr(self, name) for name in self._state}
        return {"schedule": type(self).__name__, "base_lrs": list(self.base_lrs), **state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a `state_dict`; ValueError for another schedule's state."""
        expected = {"schedule", "base_lrs", *self._state}
        if not isinstance(state, dict) or set(state) != expected:
            raise ValueError(f"expected a state with {sorted(expected)}, got {state!r}")
        if state["schedule"] != type(self).__name__:
            raise ValueError(
                f"this is a {type(self).__name__} schedule, the state is of {state['schedule']}"
            )
        if len(state["base_lrs"]) != len(self.base_lrs):
            raise ValueError(
                f"the optimiser has {len(self.base_lrs)} parameter groups, the state has "
                f"{len(state['base_lrs'])}"
            )
        self.base_lrs = list(state["base_lrs"])
        for name in self._state:
            setattr(self, name, state[name])


class Constant(Schedule):
    """The initial rate throughout."""

    def factor(self, step: int) -> float:
        """Return 1."""
        return 1.0


class Step(Schedule):
    """Multiply the rate by ``gamma`` every ``step_size`` steps (Caffe's "step" policy)."""

    _state = ("step_size", "gamma")

    def __init__(self, optimizer: SGD, step_size: int, gamma: float = 0.1) -> None:
        super().__init__(optimizer)
        self.step_size = integer(step_size, "step_size", minimum=1)
        self.gamma = _positive(gamma, "gamma")

    def factor(self, step: int) -> float:
        """Return ``gamma ** (step // step_size)``."""
        return float(self.gamma ** (step // self.step_size))


class Plateau(Schedule):
    """Multiply the rate by ``factor`` when the error plateaus (paper section 5).

    The trainer's error is the share of validation images whose most probable class is wrong.
    The paper divides by 10, three times before the end; it does not say how long it waited. Here
    the rate falls after more than ``patience`` epochs in a row whose error was not below the best
    one by more than the fraction ``threshold`` of it.
    """

    _state = (
        "reduction",
        "patience",
        "max_reductions",
        "threshold",
        "best",
        "waited",
        "reductions",
    )

    def __init__(
        self,
        optimizer: SGD,
        factor: float = 0.1,
        patience: int = 5,
        max_reductions: int = 3,
        threshold: float = 1e-4,
    ) -> None:
        super().__init__(optimizer)
        self.reduction = _positive(factor, "factor")
        if self.reduction >= 1:
            raise ValueError(f"factor must be below 1 to reduce the rate, got {factor}")
        self.patience = integer(patience, "patience", minimum=0)
        self.max_reductions = integer(max_reductions, "max_reductions", minimum=0)
        if not 0 <= threshold < 1:
            raise ValueError(f"threshold must be in [0, 1), got {threshold}")
        self.threshold = float(threshold)
        self.best: float = math.inf
        self.waited = 0
        self.reductions = 0

    def factor(self, step: int) -> float:
        """Return the factor to the power of the reductions so far."""
        return float(self.reduction**self.reductions)

    def after_epoch(self, error: float | None = None) -> None:
        """Compare ``error``, which must be finite, with the best so far."""
        if error is None or not math.isfinite(error):
            raise ValueError(
                f"the plateau schedule needs the validation error after every epoch, got {error}; "
                "use another schedule where there is none"
            )
        if error < self.best * (1 - self.threshold):
            self.best, self.waited = float(error), 0
            return
        self.waited += 1
        if self.waited > self.patience and self.reductions < self.max_reductions:
            self.reductions += 1
            self.waited = 0


class DiscreteExponential(Schedule):
    """``num_steps`` equally long levels, from 1 down to ``1 / target_factor``.

    The levels are equally spaced in the logarithm: 2012's ``dexp[tgtFactor=250,numSteps=4]`` is 1,
    1/6.3, 1/39.7 and 1/250 of the initial rate, a quarter of ``total_steps`` each. Later steps stay
    on the last level.
    """

    _state = ("total_steps", "target_factor", "num_steps")

    def __init__(
        self, optimizer: SGD, total_steps: int, target_factor: float = 250, num_steps: int = 4
    ) -> None:
        super().__init__(optimizer)
        self.total_steps = integer(total_steps, "total_steps", minimum=1)
        self.target_factor = _positive(target_factor, "target_factor")
        self.num_steps = integer(num_steps, "num_steps", minimum=1)

    def factor(self, step: int) -> float:
        """Return ``target_factor ** -(level / (num_steps - 1))``; one level alone is the last."""
        level = min(step * self.num_steps // self.total_steps, self.num_steps - 1)
        exponent = level / (self.num_steps - 1) if self.num_steps > 1 else 1.0
        return float(self.target_factor**-exponent)


class Cosine(Schedule):
    """Half a cosine down to 0, after a linear warm-up of ``warmup_steps``.

    ``(step + 1) / warmup_steps`` while warming up, then ``(1 + cos(pi * progress)) / 2`` with
    progress from 0 to 1 at ``total_steps`` (Loshchilov and Hutter, SGDR, 2017, without restarts).
    For small data sets: most of the time near the full rate, and a calm end. The length is not part
    of the state: a run that is resumed with another length follows the curve of that length.
    """

    def __init__(self, optimizer: SGD, total_steps: int, warmup_steps: int = 0) -> None:
        super().__init__(optimizer)
        self.total_steps = integer(total_steps, "total_steps", minimum=1)
        self.warmup_steps = integer(warmup_steps, "warmup_steps", minimum=0)
        if warmup_steps >= total_steps:
            raise ValueError(
                f"warmup_steps must be below total_steps ({total_steps}), got {warmup_steps}"
            )

    def factor(self, step: int) -> float:
        """Return the share of the full rate at ``step``."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        return (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def _positive(value: float, name: str) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a finite number above 0, got {value}")
    return float(value)
