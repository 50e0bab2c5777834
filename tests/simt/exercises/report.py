"""Results that training steps record on the device."""

import numpy as np
from helpers import normal

from simt.exercises import exercise, to_device, to_host
from tinyalex.backends.cuda.sgd import Piece, StepTable
from tinyalex.backends.cuda.step_state import StepReport
from tinyalex.backends.geometry import SGDOptions

MOST = 3


def noted(report, logits, targets, loss=0.5, finite=True):
    arguments = (np.float32(loss), logits, targets, np.bool_(finite))
    report.note(*map(to_device, arguments))


@exercise("step_report.cu")
def losses_and_hits_of_some_steps(rng):
    for classes in (1, 31, 32, 33, 100):
        report = StepReport(MOST)
        expected = []
        for step in range(MOST):
            logits = rng.integers(-9, 9, (19, classes)).astype(np.float32)  # with ties
            targets = np.where(
                rng.random(19) < 0.5, logits.argmax(1), rng.integers(classes, size=19)
            )
            expected.append((logits.argmax(axis=1) == targets).sum())
            noted(report, logits, targets, loss=step + 0.25)
        found = report.read()
        assert found.losses.tolist() == [0.25, 1.25, 2.25]
        assert found.hits.tolist() == expected
        assert found.halted is None
        again = report.read()
        assert len(again.losses) == len(again.hits) == 0


@exercise("step_report.cu")
def a_loss_that_is_not_finite_halts(rng):
    logits, targets = normal(rng, (3, 5), np.float32), np.zeros(3, np.int64)
    for loss in (np.nan, np.inf, -np.inf):
        report = StepReport(MOST)
        for one in (1.0, loss, 2.0):
            noted(report, logits, targets, one)
        found = report.read()
        assert found.losses.tolist() == [1]
        np.testing.assert_array_equal(found.halted, loss)


@exercise("step_report.cu")
def gradients_that_are_not_finite_halt(rng):
    logits, targets = normal(rng, (3, 5), np.float32), np.zeros(3, np.int64)
    report = StepReport(MOST)
    noted(report, logits, targets, loss=1.5, finite=False)
    noted(report, logits, targets)
    found = report.read()
    assert (len(found.losses), found.halted) == (0, 1.5)


@exercise("sgd.cu")
def nothing_is_updated_once_halted(rng):
    for dtype in (np.float32, np.float64):
        w, g, v = (to_device(normal(rng, 1000, dtype)) for _ in range(3))
        before = to_host(w), to_host(v)
        table = StepTable([Piece(w, g, v, SGDOptions(0.1, 0.9, 0.0, 0.01, False, "torch"))])
        table.launch(to_device(np.array([1, 0, 0, 0], np.int32)))
        assert np.array_equal(to_host(w), before[0])
        assert np.array_equal(to_host(v), before[1])
        table.launch(to_device(np.array([0, 1, 0, 0], np.int32)))
        assert (to_host(w) != before[0]).all()
