"""Schedules: golden rates, resuming at every point, refusals."""

import json

import numpy as np
import pytest

from tinyalex import nn, optim
from tinyalex.schedule import Constant, Cosine, DiscreteExponential, Plateau, Step


def optimizer(*lrs):
    groups = [{"params": [nn.Parameter(np.zeros(1))], "lr": lr} for lr in lrs or (0.01,)]
    return optim.SGD(groups, lr=1)


def rates(schedule, steps):
    """Return the rate of the first group at each step."""
    found = []
    for step in steps:
        schedule.before_step(step)
        found.append(schedule.optimizer.param_groups[0]["lr"])
    return found


def test_constant():
    assert rates(Constant(optimizer()), [0, 1, 10**6]) == [0.01] * 3


def test_step():
    schedule = Step(optimizer(), step_size=3, gamma=0.1)
    assert rates(schedule, [0, 2, 3, 5, 6, 9]) == pytest.approx(
        [1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-5]
    )


def test_discrete_exponential_is_2012s():
    """dexp[base=0.01; tgtFactor=250; numSteps=4]: 0.01 / 250 ** (0, 1/3, 2/3, 1)."""
    schedule = DiscreteExponential(optimizer(), total_steps=400)
    expected = [0.01, 0.0015874, 0.00025198, 0.00004]
    assert rates(schedule, [0, 100, 200, 300]) == pytest.approx(expected, rel=1e-4)
    assert rates(schedule, [99, 199, 299, 399]) == pytest.approx(expected, rel=1e-4)
    assert rates(schedule, [400, 10**6]) == pytest.approx([0.00004] * 2)
    ten = rates(DiscreteExponential(optimizer(), 10, 8, 4), range(10))
    assert ten == pytest.approx([0.01 / f for f in (1, 1, 1, 2, 2, 4, 4, 4, 8, 8)])
    assert rates(DiscreteExponential(optimizer(), 10, 8, 1), [0, 9]) == pytest.approx([0.00125] * 2)


def test_cosine_climbs_then_falls_to_nothing():
    schedule = Cosine(optimizer(), total_steps=24, warmup_steps=4)
    assert rates(schedule, [0, 1, 3, 4]) == pytest.approx([0.0025, 0.005, 0.01, 0.01])
    assert rates(schedule, [9, 14, 24, 99]) == pytest.approx([0.0085355, 0.005, 0, 0], abs=1e-7)


def test_a_longer_run_follows_the_longer_cosine():
    short, longer = Cosine(optimizer(), 100, 5), Cosine(optimizer(), 200, 10)
    before = rates(longer, [99])
    longer.load_state_dict(short.state_dict())
    assert rates(longer, [99]) == before


def test_plateau_divides_by_ten_three_times():
    schedule = Plateau(optimizer(), factor=0.1, patience=1, max_reductions=3)
    history = [  # the error of an epoch, and how often the rate has been divided after it
        (0.9, 0), (0.8, 0), (0.8, 0), (0.85, 1),
        (0.7, 1), (0.7, 1), (0.7, 2), (0.7, 2), (0.7, 3),
        (0.6, 3), (0.6, 3), (0.6, 3), (0.6, 3), (0.6, 3),
    ]  # fmt: skip
    for error, divisions in history:
        schedule.after_epoch(error)
        assert rates(schedule, [123]) == pytest.approx([0.01 / 10**divisions])


def test_plateau_wants_more_than_the_threshold():
    schedule = Plateau(optimizer(), patience=0, threshold=0.1)
    for error, expected in ((1.0, 0.01), (0.89, 0.01), (0.81, 0.001), (0.8, 0.001), (0.73, 1e-4)):
        schedule.after_epoch(error)
        assert rates(schedule, [0]) == pytest.approx([expected]), error
    assert schedule.best == 0.8


def test_every_group_keeps_its_own_rate():
    schedule = Step(optimizer(1.0, 0.5), step_size=1, gamma=0.5)
    schedule.before_step(2)
    assert [group["lr"] for group in schedule.optimizer.param_groups] == [0.25, 0.125]


ERRORS = [0.9, 0.8, 0.8, 0.8, 0.8, 0.7, 0.7, 0.7, 0.7, 0.7]

MAKE = {
    "constant": lambda opt: Constant(opt),
    "step": lambda opt: Step(opt, 7, 0.5),
    "plateau": lambda opt: Plateau(opt, 0.1, 1, 2, 0.01),
    "discrete exponential": lambda opt: DiscreteExponential(opt, 37, 30, 5),
    "cosine": lambda opt: Cosine(opt, 37, 5),
}


def run(schedule, begin, end, steps_per_epoch=4):
    """Train from step ``begin`` up to ``end`` and return the rates."""
    found = []
    for step in range(begin, end):
        found += rates(schedule, [step])
        if (step + 1) % steps_per_epoch == 0:
            schedule.after_epoch(ERRORS[step // steps_per_epoch])
    return found


@pytest.mark.parametrize("name", MAKE)
def test_resuming_equals_never_stopping(name):
    whole = run(MAKE[name](optimizer(0.3)), 0, 40)
    assert len(set(whole)) > 1 or name == "constant"
    for cut in range(41):
        first = MAKE[name](optimizer(0.3))
        begun = run(first, 0, cut)
        state = json.loads(json.dumps(first.state_dict()))
        second = MAKE[name](first.optimizer)  # made when the rate may have fallen already
        second.load_state_dict(state)
        assert begun + run(second, cut, 40) == whole


def test_options_come_from_the_state():
    state = Step(optimizer(), 3, 0.5).state_dict()
    schedule = Step(optimizer(), 100)
    schedule.load_state_dict(state)
    assert rates(schedule, [3]) == [0.005]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(schedule="Constant"), "Step schedule.*Constant"),
        (lambda s: s.pop("gamma"), "expected a state with.*gamma"),
        (lambda s: s.update(more=1), "expected a state"),
        (lambda s: s["base_lrs"].append(1.0), "1 parameter groups.*2"),
    ],
)
def test_another_schedules_state_is_refused(change, message):
    state = Step(optimizer(), 3).state_dict()
    change(state)
    with pytest.raises(ValueError, match=message):
        Step(optimizer(), 3).load_state_dict(state)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda opt: Constant("sgd"), TypeError, "optimiser, got str"),
        (lambda opt: Step(opt, 0), ValueError, "step_size must be at least 1"),
        (lambda opt: Step(opt, 2.5), TypeError, "step_size must be an integer"),
        (lambda opt: Step(opt, 2, 0), ValueError, "gamma.*got 0"),
        (lambda opt: Step(opt, 2, float("nan")), ValueError, "gamma.*nan"),
        (lambda opt: Plateau(opt, 1.0), ValueError, "factor must be below 1"),
        (lambda opt: Plateau(opt, patience=-1), ValueError, "patience"),
        (lambda opt: Plateau(opt, threshold=1), ValueError, "threshold"),
        (lambda opt: Plateau(opt, max_reductions=-1), ValueError, "max_reductions"),
        (lambda opt: DiscreteExponential(opt, 0), ValueError, "total_steps"),
        (lambda opt: Cosine(opt, 10, 10), ValueError, "warmup_steps"),
        (lambda opt: DiscreteExponential(opt, 9, -1), ValueError, "target_factor"),
        (lambda opt: DiscreteExponential(opt, 9, num_steps=0), ValueError, "num_steps"),
        (lambda opt: Plateau(opt).after_epoch(), ValueError, "validation error.*None"),
        (lambda opt: Plateau(opt).after_epoch(float("nan")), ValueError, "validation error.*nan"),
    ],
)
def test_bad_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make(optimizer())
