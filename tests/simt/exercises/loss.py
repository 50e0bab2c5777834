"""Softmax cross-entropy: rows around a warp and a block, many rows."""

import numpy as np
import oracles
from helpers import assert_close, normal

from simt.exercises import exercise, to_device, to_host
from tinyalex.backends.cuda import loss

IGNORED = -100
DTYPES = np.float32, np.float64
TOLERANCE = {np.float32: 1e-5, np.float64: 1e-12}


def both(logits, target, ignored=IGNORED, mean=True, smoothing=0.0, grad=1.0):
    """Return the loss and the gradient of the logits, on the host."""
    logits, target = to_device(logits), to_device(target)
    value, found = loss.cross_entropy(logits, target, ignored, mean, smoothing)
    assert value.shape == ()
    dx = loss.cross_entropy_input_grad(to_device(grad, logits.dtype), logits, found)
    assert dx.shape == logits.shape
    return to_host(value), to_host(dx)


def expected_grad(logits, target, ignored, mean, smoothing):
    """Return (softmax - q) / rows, one row at a time; classes on the last axis."""
    dx = np.zeros(logits.shape)
    for i in np.ndindex(target.shape):
        if target[i] != ignored:
            q = np.full(logits.shape[-1], smoothing / logits.shape[-1])
            q[target[i]] += 1 - smoothing
            dx[i] = oracles.softmax(logits[i], 0) - q
    return dx / (target != ignored).sum() if mean else dx


@exercise("cross_entropy.cu")
def cross_entropy_of_rows(rng):
    """131 classes are a block and three; of 131 rows three come in a second round of the total."""
    for rows, classes, mean, smoothing, dtypes in (
        (3, 131, True, 0.0, DTYPES),
        (131, 3, True, 0.1, DTYPES[:1]),
        (5, 33, False, 1.0, DTYPES),
        (1, 1, True, 0.0, DTYPES),
    ):
        for dtype in dtypes:
            logits, target = 3 * normal(rng, (rows, classes), dtype), rng.integers(0, classes, rows)
            value, dx = both(logits, target, IGNORED, mean, smoothing, grad=0.7)
            reduction = "mean" if mean else "sum"
            options = {"reduction": reduction, "label_smoothing": smoothing}
            wanted = oracles.cross_entropy(logits, target, **options)
            assert_close(value, np.asarray(wanted), TOLERANCE[dtype])
            wanted = 0.7 * expected_grad(logits, target, IGNORED, mean, smoothing)
            assert_close(dx, wanted, TOLERANCE[dtype])


@exercise("cross_entropy.cu")
def cross_entropy_leaves_out_what_is_ignored(rng):
    logits, target = normal(rng, (11, 5), np.float32), rng.integers(0, 5, 11)
    for ignored in (-100, 2):
        target[[1, 7, 10]] = ignored
        value, dx = both(logits, target, ignored)
        assert_close(value, np.asarray(oracles.cross_entropy(logits, target, None, ignored)))
        assert_close(dx, expected_grad(logits, target, ignored, True, 0))
        assert not dx[[1, 7, 10]].any()


@exercise("cross_entropy.cu")
def cross_entropy_of_other_shapes(rng):
    """Classes on axis 1 of four, one row without a batch, and indices of any integer type."""
    logits, target = normal(rng, (2, 5, 1, 3), np.float32), rng.integers(0, 5, (2, 1, 3))
    wanted = np.moveaxis(expected_grad(np.moveaxis(logits, 1, -1), target, -1, True, 0), -1, 1)
    for kind in (np.int64, np.int32, np.uint8):
        value, dx = both(logits, target.astype(kind))
        assert_close(value, np.asarray(oracles.cross_entropy(logits, target)))
        assert_close(dx, wanted)
    value, dx = both(logits[0, :, 0, 0], np.asarray(3))
    assert_close(value, np.asarray(oracles.cross_entropy(logits[0, :, 0, 0], np.asarray(3))))


@exercise("cross_entropy.cu")
def cross_entropy_at_the_edges(rng):
    far = np.array([[10_000.0, 10_001.0], [-10_000.0, -10_000.5]], np.float32)
    value, dx = both(far, np.array([0, 1]))
    assert_close(value, np.asarray(oracles.cross_entropy(far, np.array([0, 1]))))
    assert_close(dx, expected_grad(far, np.array([0, 1]), IGNORED, True, 0))

    impossible = np.array([[0.0, -np.inf, 1.0]], np.float32)  # with probability 0
    value, dx = both(impossible, np.array([2]))
    assert_close(value, np.asarray(np.log1p(np.exp(-1.0))))
    assert not np.isnan(dx).any()
    assert both(impossible, np.array([1]))[0] == np.inf
    for smoothing in (0.1, 1.0):
        assert both(impossible, np.array([1]), smoothing=smoothing)[0] == np.inf

    for bad in (np.nan, np.inf):
        value, dx = both(np.array([[0.0, bad], [0.0, 1.0]], np.float32), np.array([0, 1]))
        assert np.isnan(value)
        assert np.isnan(dx[0]).all()
        assert not np.isnan(dx[1]).any()


@exercise("cross_entropy.cu")
def cross_entropy_of_an_index_that_is_no_class_is_nan(rng):
    logits = normal(rng, (3, 5), np.float32)
    for index in (5, -1, 2**40):
        for smoothing in (0.0, 1.0):
            value, dx = both(logits, np.array([0, index, 4]), smoothing=smoothing)
            assert np.isnan(value)
            np.testing.assert_array_equal(np.isnan(dx).any(axis=1), [False, True, False])


@exercise("cross_entropy.cu")
def cross_entropy_of_nothing(rng):
    nothing, none = np.zeros((0, 5), np.float32), np.zeros(0, np.int64)
    assert np.isnan(both(nothing, none)[0])
    assert both(nothing, none, mean=False)[0] == 0
    assert np.isnan(both(np.zeros((2, 5), np.float32), np.full(2, IGNORED))[0])


@exercise("cross_entropy.cu")
def cross_entropy_has_the_same_bits_every_time(rng):
    logits, target = normal(rng, (7, 33), np.float32), rng.integers(0, 33, 7)
    first, second = (both(logits, target) for _ in range(2))
    assert [a.tobytes() for a in first] == [a.tobytes() for a in second]
