"""The cache of transformed weights, which must never be out of date."""

import numpy as np
import pytest

import tinyalex as ta
from tinyalex.backends.cpu import weight_cache
from tinyalex.backends.cpu.conv.winograd import forward
from tinyalex.backends.geometry import ConvOptions

OPTIONS = ConvOptions(padding=((1, 1), (1, 1)))


@pytest.fixture
def weight(rng):
    ta.empty_cache()
    return rng.standard_normal((48, 32, 3, 3), dtype=np.float32)


def test_made_anew_twice_and_then_kept(weight):
    made = [weight_cache.reuse(weight, "name", lambda: np.ones(3)) for _ in range(4)]
    assert made[0] is not made[1]
    assert made[1] is made[2] is made[3]


def test_kept_for_these_weights_alone(weight):
    kept = [weight_cache.reuse(weight, "name", lambda: np.ones(3)) for _ in range(2)][1]
    others = weight.copy(), weight.reshape(32, 48, 3, 3)
    for other, name in (*((other, "name") for other in others), (weight, "other name")):
        for _ in range(2):
            assert weight_cache.reuse(other, name, lambda: np.ones(3)) is not kept
    assert weight_cache.reuse(weight[:], "name", lambda: np.ones(3)) is kept


def negate_one(w):
    w[17] *= -1


def negate_two_of_one_stream(w):
    w[[1, 1 + 2 * weight_cache.STREAMS]] *= -1


def double_two_of_one_stream(w):
    w[[1, 1 + 2 * weight_cache.STREAMS]] *= 2


def swap_two(w):
    w[[0, 2 * weight_cache.STREAMS]] = w[[2 * weight_cache.STREAMS, 0]]


def next_number(w):
    w[-1] = np.nextafter(w[-1], np.float32(9))


def negative_zero(w):
    w[5] = -0.0


@pytest.mark.parametrize(
    "change",
    [
        negate_one,
        negate_two_of_one_stream,
        double_two_of_one_stream,
        swap_two,
        next_number,
        negative_zero,
    ],
)
def test_a_change_of_any_bits_is_seen(rng, weight, change):
    weight.reshape(-1)[5] = 0
    x = rng.standard_normal((2, 32, 13, 13), dtype=np.float32)
    for _ in range(3):
        before = forward(x, weight, None, OPTIONS)
    mark = weight_cache.fingerprint(weight)
    change(weight.reshape(-1))
    assert weight_cache.fingerprint(weight) != mark
    after = forward(x, weight, None, OPTIONS)
    ta.empty_cache()
    np.testing.assert_array_equal(after, forward(x, weight, None, OPTIONS))
    assert change is negative_zero or not np.array_equal(after, before)


ROUND = 2 * weight_cache.STREAMS


@pytest.mark.parametrize("size", [1, ROUND - 1, ROUND, ROUND + 1, ROUND * 128, ROUND * 128 + 1])
def test_every_number_counts_whatever_the_size(rng, size):
    numbers = rng.standard_normal(size, dtype=np.float32)
    mark = weight_cache.fingerprint(numbers)
    for index in {0, size // 2, size - 1}:
        changed = numbers.copy()
        changed[index] += 1
        assert weight_cache.fingerprint(changed) != mark


def test_dropped_when_not_wanted_for_long(weight, monkeypatch):
    monkeypatch.setattr(weight_cache, "STALE", 3)
    for _ in range(2):
        kept = weight_cache.reuse(weight, "name", lambda: np.ones(3))
    for number in range(4):
        weight_cache.reuse(weight + number + 1, "name", lambda: np.ones(3))
    assert weight_cache.reuse(weight, "name", lambda: np.ones(3)) is not kept


def test_a_call_in_the_midst_of_another_does_not_wait(weight):
    """As in a handler of signals, which may calculate."""
    with weight_cache._lock:
        assert weight_cache.reuse(weight, "name", lambda: np.ones(3)).sum() == 3
    assert len(weight_cache._kept) == 0


@pytest.mark.parametrize("stride", [1, 4])
def test_dropped_with_the_weights(rng, stride):
    """Whichever layers made them, and whatever views of them are gone before."""
    ta.empty_cache()
    size = 3 if stride == 1 else 11
    x = ta.randn(1, 16, 48, 48)
    models = [ta.nn.Conv2d(16, 32, size, stride) for _ in range(4)]
    for model in models:
        for _ in range(4):
            with ta.no_grad():
                model(x)
    for left in (4, 3, 2, 1, 0):
        kept = sum(len(entry.made) for entry in weight_cache._kept.values())
        assert kept == left
        model = None
        if left:
            del models[0]


@pytest.mark.parametrize("evaluations", [0, 1, 3])
def test_training_keeps_nothing_of_weights_that_were(evaluations):
    ta.empty_cache()
    layer = ta.nn.Conv2d(32, 48, 3, padding=1)
    optimizer = ta.optim.SGD(layer.parameters(), 0.1)
    for _ in range(3):
        with ta.no_grad():
            for _ in range(evaluations):
                layer(ta.randn(2, 32, 13, 13))
        optimizer.zero_grad()
        layer(ta.randn(2, 32, 13, 13)).sum().backward()
        optimizer.step()
    assert sum(len(entry.made) for entry in weight_cache._kept.values()) == min(evaluations, 1)
